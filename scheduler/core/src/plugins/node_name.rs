//! A pod that names its node goes there or nowhere.
//!
//! The scheduler only sees pods without `spec.nodeName`; the check matters for what-if questions.

use crate::events::ClusterEvent;
use crate::framework::{CycleState, Hint, Plugin, Rejection, Verdict};
use crate::pod::PodInfo;
use crate::snapshot::{Slot, Snapshot};

pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn filter(&self, _cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> Verdict {
        if pod.node_name.is_empty() || pod.node_name == snapshot.name[node] {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) didn't match the requested node name"))
    }

    fn hint(&self, _pod: &PodInfo, event: &ClusterEvent) -> Hint {
        match event {
            ClusterEvent::Node { change, .. } if change.added => Hint::Queue,
            _ => Hint::Skip,
        }
    }
}
