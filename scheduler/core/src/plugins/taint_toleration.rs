//! NoSchedule and NoExecute taints keep pods away that do not tolerate them; PreferNoSchedule taints cost score.

use k8s_openapi::api::core::v1::Taint;

use crate::events::ClusterEvent;
use crate::framework::{CycleState, Hint, Plugin, Rejection, Verdict, normalize_to_max};
use crate::pod::{PodInfo, tolerates};
use crate::snapshot::{Slot, Snapshot};

pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn weight(&self) -> i64 {
        3
    }

    fn filter(&self, _cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> Verdict {
        match untolerated(pod, &snapshot.taints[node]) {
            None => Ok(()),
            Some(taint) => Err(Rejection::unresolvable("node(s) had untolerated taint(s)").detail(format!(
                "taint {{{}: {}}} {}",
                taint.key,
                taint.value.as_deref().unwrap_or_default(),
                taint.effect
            ))),
        }
    }

    fn score(&self, _cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> i64 {
        let soft = snapshot.taints[node].iter().filter(|taint| taint.effect == "PreferNoSchedule");
        soft.filter(|taint| {
            !pod.tolerations.iter().any(|found| {
                matches!(found.effect.as_deref(), None | Some("" | "PreferNoSchedule"))
                    && tolerates(found, taint)
            })
        })
        .count() as i64
    }

    fn normalize(&self, _cycle: &CycleState, _snapshot: &Snapshot, _nodes: &[Slot], scores: &mut [i64]) {
        normalize_to_max(scores, true);
    }

    fn hint(&self, _pod: &PodInfo, event: &ClusterEvent) -> Hint {
        match event {
            ClusterEvent::Node { change, .. } if change.added || change.taints => Hint::Queue,
            _ => Hint::Skip,
        }
    }
}

/// The first taint that keeps the pod away.
pub fn untolerated<'a>(pod: &PodInfo, taints: &'a [Taint]) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute")
        .find(|taint| !pod.tolerates(taint))
}
