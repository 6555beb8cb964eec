//! `/metrics/resource` (what metrics-server scrapes) and `/metrics` (the agent itself), in Prometheus's text form.

use std::fmt::Write as _;
use std::time::Duration;

use keelson_nodeagent_core::pod::naming;

use crate::context::Node;

pub async fn resource(node: &Node) -> String {
    let mut out = String::new();
    let Some(sample) = node.sampler.refresh(node, Duration::from_secs(5)).await else { return out };
    let at = sample.at.as_millisecond();
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    head(
        &mut out,
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
    );
    line(&mut out, format_args!("node_cpu_usage_seconds_total {} {at}", seconds(sample.node.cpu_nanos)));
    head(&mut out, "node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes");
    line(&mut out, format_args!("node_memory_working_set_bytes {} {at}", sample.node.memory));
    let (mut cpu, mut memory, mut pod_cpu, mut pod_memory) =
        (String::new(), String::new(), String::new(), String::new());
    for view in node.views() {
        let (namespace, pod) = (naming::namespace(&view.pod), naming::name(&view.pod));
        let (mut nanos, mut bytes) = (0u64, 0u64);
        for container in view.observed.containers.iter().filter(|c| c.running()) {
            let Some(usage) = sample.containers.get(&container.id) else { continue };
            nanos += usage.cpu_nanos;
            bytes += usage.memory;
            let labels = format!("container=\"{}\",namespace=\"{namespace}\",pod=\"{pod}\"", container.name);
            let used = seconds(usage.cpu_nanos);
            line(&mut cpu, format_args!("container_cpu_usage_seconds_total{{{labels}}} {used} {at}"));
            line(
                &mut memory,
                format_args!("container_memory_working_set_bytes{{{labels}}} {} {at}", usage.memory),
            );
        }
        let labels = format!("namespace=\"{namespace}\",pod=\"{pod}\"");
        line(&mut pod_cpu, format_args!("pod_cpu_usage_seconds_total{{{labels}}} {} {at}", seconds(nanos)));
        line(&mut pod_memory, format_args!("pod_memory_working_set_bytes{{{labels}}} {bytes} {at}"));
    }
    let families = [
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the container in core-seconds",
            cpu,
        ),
        (
            "container_memory_working_set_bytes",
            "gauge",
            "Current working set of the container in bytes",
            memory,
        ),
        (
            "pod_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the pod in core-seconds",
            pod_cpu,
        ),
        ("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes", pod_memory),
    ];
    for (name, kind, help, lines) in families {
        head(&mut out, name, kind, help);
        out.push_str(&lines);
    }
    out
}

pub async fn own(node: &Node) -> String {
    let mut out = String::new();
    let views = node.views();
    let containers = views.iter().flat_map(|v| &v.observed.containers).filter(|c| c.running()).count();
    head(&mut out, "kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox");
    let pods = views.iter().filter(|v| v.observed.ready_sandbox().is_some()).count();
    line(&mut out, format_args!("kubelet_running_pods {pods}"));
    head(&mut out, "kubelet_running_containers", "gauge", "Number of containers currently running");
    line(&mut out, format_args!("kubelet_running_containers{{container_state=\"running\"}} {containers}"));
    head(&mut out, "kubelet_node_name", "gauge", "The node's name. The count is always 1.");
    line(&mut out, format_args!("kubelet_node_name{{node=\"{}\"}} 1", node.config.node_name));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    head(&mut out, "process_resident_memory_bytes", "gauge", "Resident memory size in bytes.");
    line(&mut out, format_args!("process_resident_memory_bytes {}", resident.unwrap_or(0) * 1024));
    out
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    line(out, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}
