//! A ReadWriteOncePod claim serves one pod in the whole cluster.

use crate::events::ClusterEvent;
use crate::framework::{CycleState, Hint, Plugin, PreFilter, Rejection, Verdict};
use crate::pod::PodInfo;
use crate::snapshot::{Slot, Snapshot};

pub struct VolumeRestrictions;

struct InUse(String);

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn pre_filter(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilter {
        let exclusive = pod.claims.iter().filter(|claim| {
            let key = (pod.namespace.clone(), claim.name.clone());
            snapshot
                .volumes
                .claims
                .get(&key)
                .is_some_and(|claim| claim.modes.iter().any(|mode| mode == "ReadWriteOncePod"))
        });
        for claim in exclusive {
            let user = snapshot.in_namespace(&pod.namespace).find(|(other, _)| {
                other.uid != pod.uid && other.claims.iter().any(|used| used.name == claim.name)
            });
            if let Some((other, _)) = user {
                cycle.put(InUse(format!("claim {} is used by pod {}", claim.name, other.name)));
                return PreFilter::Continue;
            }
        }
        PreFilter::Skip
    }

    fn filter(&self, cycle: &CycleState, _pod: &PodInfo, _snapshot: &Snapshot, _node: Slot) -> Verdict {
        match cycle.get::<InUse>() {
            None => Ok(()),
            Some(InUse(detail)) => Err(Rejection::resolvable(
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
            )
            .detail(detail.clone())),
        }
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        match event {
            ClusterEvent::PodLeft(left)
                if left.namespace == pod.namespace
                    && left.claims.iter().any(|used| pod.claims.iter().any(|own| own.name == used.name)) =>
            {
                Hint::Queue
            }
            ClusterEvent::Storage => Hint::Queue,
            _ => Hint::Skip,
        }
    }
}
