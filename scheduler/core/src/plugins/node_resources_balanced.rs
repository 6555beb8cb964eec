//! Prefers nodes on which cpu and memory would be used to about the same fraction.

use crate::framework::{CycleState, MAX_SCORE, Plugin};
use crate::pod::PodInfo;
use crate::snapshot::{Slot, Snapshot};

pub struct NodeResourcesBalancedAllocation;

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn weight(&self) -> i64 {
        1
    }

    /// A pod that asks for neither cpu nor memory does not change the balance.
    fn pre_score(&self, _: &mut CycleState, pod: &PodInfo, _: &Snapshot, _: &[Slot]) -> bool {
        pod.requests.milli_cpu != 0 || pod.requests.memory != 0
    }

    fn score(&self, _cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> i64 {
        let total = &snapshot.allocatable[node];
        let used = &snapshot.requested[node];
        let fractions: Vec<f64> = [
            (used.milli_cpu.saturating_add(pod.requests.milli_cpu), total.milli_cpu),
            (used.memory.saturating_add(pod.requests.memory), total.memory),
        ]
        .iter()
        .filter(|(_, total)| *total > 0)
        .map(|(used, total)| (*used as f64 / *total as f64).min(1.0))
        .collect();
        let spread = match fractions[..] {
            [one, other] => (one - other).abs() / 2.0,
            _ => 0.0,
        };
        ((1.0 - spread) * MAX_SCORE as f64) as i64
    }
}
