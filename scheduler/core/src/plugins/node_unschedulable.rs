//! Cordoned nodes take only pods that tolerate the cordon.

use k8s_openapi::api::core::v1::Taint;

use crate::events::ClusterEvent;
use crate::framework::{CycleState, Hint, Plugin, Rejection, Verdict};
use crate::pod::PodInfo;
use crate::snapshot::{Slot, Snapshot};

pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn filter(&self, _cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> Verdict {
        if !snapshot.unschedulable[node] {
            return Ok(());
        }
        let cordon = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        if pod.tolerates(&cordon) {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) were unschedulable").detail("spec.unschedulable is true"))
    }

    fn hint(&self, _pod: &PodInfo, event: &ClusterEvent) -> Hint {
        match event {
            ClusterEvent::Node { change, .. } if change.added || change.cordon => Hint::Queue,
            _ => Hint::Skip,
        }
    }
}
