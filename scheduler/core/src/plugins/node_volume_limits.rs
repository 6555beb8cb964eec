//! A node attaches at most so many volumes of a CSI driver (from CSINode).

use std::collections::{BTreeMap, BTreeSet};

use crate::events::ClusterEvent;
use crate::framework::{CycleState, Hint, Plugin, PreFilter, Rejection, Verdict};
use crate::pod::PodInfo;
use crate::snapshot::{Slot, Snapshot};

pub struct NodeVolumeLimits;

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn pre_filter(&self, _cycle: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        if pod.claims.is_empty() { PreFilter::Skip } else { PreFilter::Continue }
    }

    fn filter(&self, _cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> Verdict {
        let Some(limits) = snapshot.volumes.limits.get(&snapshot.name[node]) else { return Ok(()) };
        if limits.is_empty() {
            return Ok(());
        }
        let mut attached: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for other in snapshot.pods[node].values() {
            collect(other, snapshot, &mut attached);
        }
        let before: BTreeMap<String, usize> =
            attached.iter().map(|(driver, volumes)| (driver.clone(), volumes.len())).collect();
        collect(pod, snapshot, &mut attached);
        for (driver, volumes) in &attached {
            let grows = volumes.len() > before.get(driver).copied().unwrap_or(0);
            if let Some(limit) = limits.get(driver)
                && grows
                && volumes.len() as i64 > *limit
            {
                return Err(Rejection::resolvable("node(s) exceed max volume count")
                    .detail(format!("{driver}: {} of at most {limit}", volumes.len())));
            }
        }
        Ok(())
    }

    fn hint(&self, _pod: &PodInfo, event: &ClusterEvent) -> Hint {
        match event {
            ClusterEvent::Node { change, .. } if change.added => Hint::Queue,
            ClusterEvent::PodLeft(left) if !left.claims.is_empty() => Hint::Queue,
            ClusterEvent::Storage => Hint::Queue,
            _ => Hint::Skip,
        }
    }
}

/// Driver → volumes (bound) or claims (to be provisioned) the pod uses.
fn collect(pod: &PodInfo, snapshot: &Snapshot, found: &mut BTreeMap<String, BTreeSet<String>>) {
    for used in &pod.claims {
        let key = (pod.namespace.clone(), used.name.clone());
        let Some(claim) = snapshot.volumes.claims.get(&key) else { continue };
        let bound = snapshot.volumes.volumes.get(&claim.volume).and_then(|volume| volume.driver.clone());
        let driver = bound
            .or_else(|| snapshot.volumes.classes.get(&claim.class).map(|class| class.provisioner.clone()));
        if let Some(driver) = driver {
            let id =
                if claim.volume.is_empty() { format!("{}/{}", key.0, key.1) } else { claim.volume.clone() };
            found.entry(driver).or_default().insert(id);
        }
    }
}
