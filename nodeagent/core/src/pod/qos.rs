//! Quality-of-service class and the kernel values that follow from it.
//!
//! Shares are cgroup v1 units (2…262144); `weight` converts to v2's 1…10000. Quotas are microseconds per 100 ms period.

use k8s_openapi::api::core::v1::{Container, Pod};

use super::amounts::{self, Amounts};
use super::naming;

pub const PERIOD_US: i64 = 100_000;
pub const MIN_SHARES: i64 = 2;
pub const MAX_SHARES: i64 = 262_144;

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn class(pod: &Pod) -> &'static str {
    let all = || naming::init_containers(pod).iter().chain(naming::main_containers(pod));
    let mut any = false;
    let mut guaranteed = true;
    for container in all() {
        let asked = amounts::requests(container.resources.as_ref());
        let limit = amounts::limits(container.resources.as_ref());
        let positive = |v: Option<i64>| v.is_some_and(|v| v > 0);
        any |= positive(asked.cpu_milli) || positive(asked.memory_bytes);
        any |= positive(limit.cpu_milli) || positive(limit.memory_bytes);
        guaranteed &= positive(limit.cpu_milli) && positive(limit.memory_bytes);
        guaranteed &= asked.cpu_milli == limit.cpu_milli && asked.memory_bytes == limit.memory_bytes;
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

pub fn shares(cpu_milli: i64) -> i64 {
    (cpu_milli.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// cgroup v2's `cpu.weight` for v1 shares.
pub fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(MIN_SHARES, MAX_SHARES) - 2) * 9999 / 262_142
}

/// Microseconds per period, at least 1 ms; 0 means no quota.
pub fn quota(cpu_milli: i64) -> i64 {
    if cpu_milli <= 0 { 0 } else { (cpu_milli.saturating_mul(PERIOD_US) / 1000).max(1000) }
}

/// The kernel's preference for killing this container under memory pressure, by what it asked for.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory: i64) -> i64 {
    let critical = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0) >= 2_000_000_000;
    if critical {
        return -997;
    }
    match class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let asked = amounts::requests(container.resources.as_ref()).memory_bytes.unwrap_or(0);
            let share = 1000i128 * i128::from(asked) / i128::from(node_memory.max(1));
            (1000 - share as i64).clamp(3, 999)
        }
    }
}

/// Limits to write into a pod's own cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PodLimits {
    pub shares: i64,
    /// 0: none.
    pub quota_us: i64,
    /// 0: none.
    pub memory_bytes: i64,
}

/// A pod is limited as a whole only where every one of its containers is.
pub fn pod_limits(pod: &Pod) -> PodLimits {
    let (init, main) = (naming::init_containers(pod), naming::main_containers(pod));
    let (cpu, _) = amounts::pod_requests(init, main);
    let all = || init.iter().chain(main);
    let limit = |c: &Container| amounts::limits(c.resources.as_ref());
    let every = |get: fn(Amounts) -> Option<i64>| all().all(|c| get(limit(c)).is_some_and(|v| v > 0));
    let (cpu_limit, memory_limit) = amounts::pod_total(init, main, |c| {
        let l = limit(c);
        (l.cpu_milli.unwrap_or(0), l.memory_bytes.unwrap_or(0))
    });
    PodLimits {
        shares: shares(cpu),
        quota_us: if every(|a| a.cpu_milli) { quota(cpu_limit) } else { 0 },
        memory_bytes: if every(|a| a.memory_bytes) { memory_limit } else { 0 },
    }
}

/// The pod's cgroup below the node's root, e.g. `kubepods/burstable/pod<uid>`.
pub fn cgroup_path(pod: &Pod) -> String {
    let uid = naming::uid(pod);
    match class(pod) {
        "Guaranteed" => format!("kubepods/pod{uid}"),
        "Burstable" => format!("kubepods/burstable/pod{uid}"),
        _ => format!("kubepods/besteffort/pod{uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(resources: serde_json::Value) -> Pod {
        serde_json::from_value(
            json!({"metadata":{"uid":"u"},"spec":{"containers":[{"name":"a","resources":resources}]}}),
        )
        .unwrap()
    }

    #[test]
    fn class_follows_requests_and_limits() {
        assert_eq!(class(&pod(json!({}))), "BestEffort");
        assert_eq!(class(&pod(json!({"requests":{"cpu":"1"}}))), "Burstable");
        assert_eq!(class(&pod(json!({"limits":{"cpu":"1","memory":"1Gi"}}))), "Guaranteed");
        let uneven = json!({"requests":{"cpu":"500m","memory":"1Gi"},"limits":{"cpu":"1","memory":"1Gi"}});
        assert_eq!(class(&pod(uneven)), "Burstable");
    }

    #[test]
    fn kernel_values() {
        assert_eq!((shares(0), shares(1000), shares(250)), (2, 1024, 256));
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10_000));
        assert_eq!((quota(0), quota(5), quota(1500)), (0, 1000, 150_000));
        let burstable = pod(json!({"requests":{"memory":"1Gi"}}));
        assert_eq!(oom_score_adj(&burstable, &burstable.spec.as_ref().unwrap().containers[0], 4 << 30), 750);
    }

    #[test]
    fn a_pod_is_limited_only_if_every_container_is() {
        let limits = pod_limits(&pod(json!({"limits":{"cpu":"500m","memory":"64Mi"}})));
        assert_eq!((limits.quota_us, limits.memory_bytes), (50_000, 64 << 20));
        let open = pod_limits(&pod(json!({"requests":{"cpu":"500m"}})));
        assert_eq!((open.quota_us, open.memory_bytes, open.shares), (0, 0, 512));
    }
}
