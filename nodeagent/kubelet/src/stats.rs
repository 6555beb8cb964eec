//! CPU and memory use of containers, pods and the node: sampled every ten seconds, a rate being the difference of two.
//!
//! Units: nanoseconds of CPU, nano-cores, bytes.

use std::collections::BTreeMap;
use std::sync::RwLock;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use keelson_nodeagent_core::pod::eviction::Signals;
use keelson_nodeagent_core::pod::naming;
use serde_json::{Value, json};

use crate::context::Node;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_nanos: u64,
    /// Nano-cores over the last two samples.
    pub cpu_rate: u64,
    pub memory: u64,
}

#[derive(Clone, Debug)]
pub struct Sample {
    pub at: Timestamp,
    taken: Instant,
    /// By container id.
    pub containers: BTreeMap<String, Usage>,
    pub node: Usage,
}

/// The newest sample.
#[derive(Default)]
pub struct Sampler(RwLock<Option<Sample>>);

impl Sampler {
    pub fn latest(&self) -> Option<Sample> {
        self.0.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Takes a sample unless the last is younger than `age`.
    pub async fn refresh(&self, node: &Node, age: Duration) -> Option<Sample> {
        let last = self.latest();
        if last.as_ref().is_some_and(|s| s.taken.elapsed() < age) {
            return last;
        }
        let Ok(stats) = node.cri.stats().await else { return last };
        let (taken, at) = (Instant::now(), Timestamp::now());
        let passed = last.as_ref().map(|l| taken.duration_since(l.taken)).unwrap_or_default();
        let rate = |now: u64, before: Option<Usage>| match before {
            Some(before) if passed.as_nanos() > 0 => {
                (u128::from(now.saturating_sub(before.cpu_nanos)) * 1_000_000_000 / passed.as_nanos()) as u64
            }
            _ => 0,
        };
        let mut containers = BTreeMap::new();
        for stat in stats {
            let Some(id) = stat.attributes.map(|a| a.id) else { continue };
            let cpu_nanos = stat.cpu.and_then(|c| c.usage_core_nano_seconds).map_or(0, |v| v.value);
            let memory = stat.memory.and_then(|m| m.working_set_bytes).map_or(0, |v| v.value);
            let before = last.as_ref().and_then(|l| l.containers.get(&id)).copied();
            containers.insert(id, Usage { cpu_nanos, cpu_rate: rate(cpu_nanos, before), memory });
        }
        let cpu_nanos = machine_cpu();
        let before = last.as_ref().map(|l| l.node);
        let node_usage = Usage { cpu_nanos, cpu_rate: rate(cpu_nanos, before), memory: memory_used() };
        let sample = Sample { at, taken, containers, node: node_usage };
        *self.0.write().unwrap_or_else(|e| e.into_inner()) = Some(sample.clone());
        Some(sample)
    }
}

fn machine_cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first.split_whitespace().skip(1).filter_map(|w| w.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal, in hundredths of a second.
    let busy: u64 =
        ticks.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, t)| t).sum();
    busy.saturating_mul(10_000_000)
}

fn meminfo(key: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|l| l.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn memory_used() -> u64 {
    meminfo("MemTotal").saturating_sub(meminfo("MemAvailable"))
}

/// What the eviction decision looks at.
pub fn signals(node: &Node) -> Signals {
    let disk = nix::sys::statvfs::statvfs(&node.config.root_dir);
    let loadavg = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let tasks = loadavg.split_whitespace().nth(3).and_then(|w| w.split('/').nth(1)?.parse().ok());
    let most = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|t| t.trim().parse().ok());
    let of = |get: fn(&nix::sys::statvfs::Statvfs) -> u64| disk.as_ref().map(get).unwrap_or(0);
    Signals {
        memory_available: meminfo("MemAvailable"),
        disk_available: of(|s| s.blocks_available() * s.fragment_size()),
        disk_capacity: of(|s| s.blocks() * s.fragment_size()),
        inodes_free: of(|s| s.files_free()),
        inodes: of(|s| s.files()),
        pids: tasks.unwrap_or(0),
        pids_max: most.unwrap_or(0),
    }
}

/// The summary API's document.
pub async fn summary(node: &Node) -> Value {
    let Some(sample) = node.sampler.refresh(node, Duration::from_secs(5)).await else {
        return json!({"node": {"nodeName": node.config.node_name}, "pods": []});
    };
    let pods: Vec<Value> = node.views().iter().map(|view| {
        let (mut cpu, mut memory) = (Usage::default(), 0u64);
        let mut containers = Vec::new();
        for container in view.observed.containers.iter().filter(|c| c.running()) {
            let Some(usage) = sample.containers.get(&container.id) else { continue };
            cpu.cpu_nanos += usage.cpu_nanos;
            cpu.cpu_rate += usage.cpu_rate;
            memory += usage.memory;
            let started = container.started.map(|t| t.to_string());
            containers.push(with(json!({"name": container.name, "startTime": started}), usage, sample.at));
        }
        let pod = &view.pod;
        let reference = json!({"name": naming::name(pod), "namespace": naming::namespace(pod), "uid": naming::uid(pod)});
        let start = pod.status.as_ref().and_then(|s| s.start_time.clone());
        let whole = Usage { memory, ..cpu };
        with(json!({"podRef": reference, "startTime": start, "containers": containers}), &whole, sample.at)
    }).collect();
    let signals = signals(node);
    let mut of_node = with(json!({"nodeName": node.config.node_name}), &sample.node, sample.at);
    of_node["memory"]["availableBytes"] = json!(signals.memory_available);
    of_node["fs"] = json!({
        "time": sample.at, "availableBytes": signals.disk_available, "capacityBytes": signals.disk_capacity,
        "usedBytes": signals.disk_capacity.saturating_sub(signals.disk_available),
        "inodes": signals.inodes, "inodesFree": signals.inodes_free,
    });
    json!({"node": of_node, "pods": pods})
}

fn with(mut value: Value, usage: &Usage, at: Timestamp) -> Value {
    value["cpu"] =
        json!({"time": at, "usageNanoCores": usage.cpu_rate, "usageCoreNanoSeconds": usage.cpu_nanos});
    value["memory"] = json!({"time": at, "workingSetBytes": usage.memory, "usageBytes": usage.memory});
    value
}
