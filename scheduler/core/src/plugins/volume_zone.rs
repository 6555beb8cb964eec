//! A bound volume labelled with a zone or region is used only on nodes of that zone or region.

use crate::events::ClusterEvent;
use crate::framework::{CycleState, Hint, Plugin, PreFilter, Rejection, Verdict};
use crate::pod::PodInfo;
use crate::snapshot::{Slot, Snapshot};

const KEYS: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

pub struct VolumeZone;

/// Label key → the values that will do.
struct Wanted(Vec<(&'static str, Vec<String>)>);

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn pre_filter(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilter {
        let mut wanted = Vec::new();
        for used in &pod.claims {
            let claim = snapshot.volumes.claims.get(&(pod.namespace.clone(), used.name.clone()));
            let volume = claim.and_then(|claim| snapshot.volumes.volumes.get(&claim.volume));
            for key in KEYS {
                if let Some(value) = volume.and_then(|volume| volume.labels.get(key)) {
                    wanted.push((key, value.split("__").map(str::to_string).collect()));
                }
            }
        }
        if wanted.is_empty() {
            return PreFilter::Skip;
        }
        cycle.put(Wanted(wanted));
        PreFilter::Continue
    }

    fn filter(&self, cycle: &CycleState, _pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> Verdict {
        let Some(Wanted(wanted)) = cycle.get::<Wanted>() else { return Ok(()) };
        for (key, values) in wanted {
            let found = snapshot.label(node, key);
            if !found.is_some_and(|found| values.iter().any(|value| value == found)) {
                return Err(Rejection::unresolvable("node(s) had no available volume zone")
                    .detail(format!("volume wants {key} in {values:?}, node has {found:?}")));
            }
        }
        Ok(())
    }

    fn hint(&self, _pod: &PodInfo, event: &ClusterEvent) -> Hint {
        match event {
            ClusterEvent::Node { change, .. } if change.added || change.labels => Hint::Queue,
            ClusterEvent::Storage => Hint::Queue,
            _ => Hint::Skip,
        }
    }
}
