//! Whether this node takes a pod that was bound to it: the scheduler's view may be older than the node's.

use k8s_openapi::api::core::v1::{Node, Pod};

use super::amounts;
use super::naming;

/// What the node can give, in milli-CPUs, bytes and pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Room {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub pods: usize,
}

/// Why a pod is refused: `status.reason` and `status.message`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Refusal {
    pub reason: String,
    pub message: String,
}

/// Checks resources, pod count and node selector against the pods already accepted (without finished ones).
pub fn admit(pod: &Pod, accepted: &[&Pod], room: &Room, node: Option<&Node>) -> Result<(), Refusal> {
    let refuse = |reason: &str, message: String| Err(Refusal { reason: reason.into(), message });
    if accepted.len() + 1 > room.pods {
        let message = format!(
            "Node didn't have enough resource: pods, requested: 1, used: {}, capacity: {}",
            accepted.len(),
            room.pods
        );
        return refuse("OutOfpods", message);
    }
    let (cpu, memory) = request(pod);
    let (used_cpu, used_memory) = accepted
        .iter()
        .map(|p| request(p))
        .fold((0i64, 0i64), |acc, r| (acc.0.saturating_add(r.0), acc.1.saturating_add(r.1)));
    for (what, asked, used, capacity) in
        [("cpu", cpu, used_cpu, room.cpu_milli), ("memory", memory, used_memory, room.memory_bytes)]
    {
        if asked > 0 && used.saturating_add(asked) > capacity {
            let message = format!(
                "Node didn't have enough resource: {what}, requested: {asked}, used: {used}, capacity: {capacity}"
            );
            return refuse(&format!("OutOf{what}"), message);
        }
    }
    let selector = pod.spec.as_ref().and_then(|s| s.node_selector.as_ref());
    if let (Some(node), Some(selector)) = (node, selector) {
        let labels = node.metadata.labels.as_ref();
        if selector.iter().any(|(key, value)| labels.and_then(|l| l.get(key)) != Some(value)) {
            return refuse(
                "NodeAffinity",
                "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".into(),
            );
        }
    }
    Ok(())
}

fn request(pod: &Pod) -> (i64, i64) {
    amounts::pod_requests(naming::init_containers(pod), naming::main_containers(pod))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn refuses_what_does_not_fit() {
        let pod: Pod = serde_json::from_value(
            json!({"spec":{"containers":[{"name":"a","resources":{"requests":{"cpu":"600m"}}}]}}),
        )
        .unwrap();
        let room = Room { cpu_milli: 1000, memory_bytes: 1 << 30, pods: 2 };
        assert!(admit(&pod, &[], &room, None).is_ok());
        assert_eq!(admit(&pod, &[&pod], &room, None).unwrap_err().reason, "OutOfcpu");
        let tiny = Room { pods: 0, ..room };
        assert_eq!(admit(&pod, &[], &tiny, None).unwrap_err().reason, "OutOfpods");
    }
}
