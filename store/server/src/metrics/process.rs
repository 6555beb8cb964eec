//! What the kernel knows of this process.

use super::page::Page;

/// Kernel ticks per second in `/proc`; 100 on every Linux of today.
const TICKS: f64 = 100.0;
/// Bytes per page of memory.
const PAGE: u64 = 4096;

fn limit(name: &str) -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with(name))?;
    line[name.len()..].split_whitespace().next().map(|soft| soft.parse().unwrap_or(u64::MAX))
}

/// Files this process may have open.
pub(crate) fn file_limit() -> u64 {
    limit("Max open files").unwrap_or(0)
}

fn boot_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Bytes received and sent over IP in this network namespace.
fn network() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/self/net/netstat").ok()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt: "));
    let names = lines.next()?.split_whitespace();
    let values: Vec<u64> = lines.next()?.split_whitespace().filter_map(|value| value.parse().ok()).collect();
    let of = |wanted: &str| {
        let at = names.clone().position(|name| name == wanted)?;
        values.get(at).copied()
    };
    Some((of("InOctets")?, of("OutOctets")?))
}

pub(crate) fn render(page: &mut Page) {
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |files| files.count());
    page.gauge("os_fd_used", &[], open);
    page.gauge("process_open_fds", &[], open);
    page.gauge("os_fd_limit", &[], file_limit());
    page.gauge("process_max_fds", &[], file_limit());
    if let Some(most) = limit("Max address space") {
        page.gauge("process_virtual_memory_max_bytes", &[], most as f64);
    }
    if let Some((received, sent)) = network() {
        page.counter("process_network_receive_bytes_total", &[], received);
        page.counter("process_network_transmit_bytes_total", &[], sent);
    }
    // The name in parentheses may hold anything; the numbers follow it.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect());
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    if let (Some(user), Some(system)) = (number(11), number(12)) {
        page.counter("process_cpu_seconds_total", &[], (user + system) as f64 / TICKS);
    }
    if let (Some(boot), Some(started)) = (boot_time(), number(19)) {
        page.gauge("process_start_time_seconds", &[], boot + started as f64 / TICKS);
    }
    if let (Some(virtual_bytes), Some(pages)) = (number(20), number(21)) {
        page.gauge("process_virtual_memory_bytes", &[], virtual_bytes);
        page.gauge("process_resident_memory_bytes", &[], pages * PAGE);
    }
}
