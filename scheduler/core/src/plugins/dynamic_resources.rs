//! Pods with resource claims wait: devices are not allocated by this scheduler, and placing such a pod without its
//! devices would be wrong.

use crate::events::ClusterEvent;
use crate::framework::{CycleState, Hint, Plugin, PreFilter, Rejection};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

pub struct DynamicResources;

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }

    fn pre_filter(&self, _cycle: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        if !pod.uses_resource_claims {
            return PreFilter::Skip;
        }
        PreFilter::Reject(Rejection::unresolvable(
            "dynamic resource allocation is not supported by this scheduler: remove spec.resourceClaims or use another schedulerName",
        ))
    }

    fn hint(&self, _pod: &PodInfo, _event: &ClusterEvent) -> Hint {
        Hint::Skip
    }
}
