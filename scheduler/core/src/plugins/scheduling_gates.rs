//! A pod with scheduling gates waits, without being tried, until they are taken away.

use crate::events::ClusterEvent;
use crate::framework::{Hint, Plugin, Rejection, Verdict};
use crate::pod::PodInfo;

pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn pre_enqueue(&self, pod: &PodInfo) -> Verdict {
        if pod.gates.is_empty() {
            return Ok(());
        }
        Err(Rejection::unresolvable(format!("waiting for scheduling gates: [{}]", pod.gates.join(" "))))
    }

    /// Only the pod's own update lifts a gate, and that goes through `SchedulingQueue::update`.
    fn hint(&self, _pod: &PodInfo, _event: &ClusterEvent) -> Hint {
        Hint::Skip
    }
}
