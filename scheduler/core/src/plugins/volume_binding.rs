//! Claims and nodes meet: bound volumes must reach the node; claims that wait for their first consumer get a free
//! volume that reaches it, or are marked to be provisioned for it.
//!
//! The choice made in `filter` is made again, on the same snapshot, in `pre_bind`: it is a pure function, so both agree.

use crate::events::ClusterEvent;
use crate::framework::{CycleState, Hint, Plugin, PreBind, PreFilter, Rejection, Verdict};
use crate::pod::PodInfo;
use crate::snapshot::{Slot, Snapshot};
use crate::volumes::{Claim, Key};

const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

pub struct VolumeBinding;

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn pre_filter(&self, _cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilter {
        if pod.claims.is_empty() {
            return PreFilter::Skip;
        }
        match claims(pod, snapshot) {
            Err(rejection) => PreFilter::Reject(rejection),
            Ok(claims) if claims.iter().any(|(_, claim)| !claim.bound && !delayed(claim, snapshot)) => {
                PreFilter::Reject(Rejection::unresolvable("pod has unbound immediate PersistentVolumeClaims"))
            }
            Ok(_) => PreFilter::Continue,
        }
    }

    fn filter(&self, _cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> Verdict {
        plan(pod, snapshot, node).map(|_| ())
    }

    fn pre_bind(&self, _cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> Vec<PreBind> {
        plan(pod, snapshot, node).unwrap_or_default()
    }

    fn hint(&self, _pod: &PodInfo, event: &ClusterEvent) -> Hint {
        match event {
            ClusterEvent::Node { change, .. } if change.added || change.labels => Hint::Queue,
            ClusterEvent::Storage => Hint::Queue,
            _ => Hint::Skip,
        }
    }
}

/// Waits for the scheduler to choose a node.
fn delayed(claim: &Claim, snapshot: &Snapshot) -> bool {
    claim.volume.is_empty()
        && snapshot.volumes.classes.get(&claim.class).is_some_and(|class| class.waits_for_consumer)
}

/// The pod's claims, all present and usable.
fn claims<'a>(pod: &PodInfo, snapshot: &'a Snapshot) -> Result<Vec<(Key, &'a Claim)>, Rejection> {
    let mut found = Vec::new();
    for used in &pod.claims {
        let key = (pod.namespace.clone(), used.name.clone());
        let name = &used.name;
        let Some(claim) = snapshot.volumes.claims.get(&key) else {
            return Err(Rejection::unresolvable(if used.ephemeral {
                format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""
                )
            } else {
                format!("persistentvolumeclaim \"{name}\" not found")
            }));
        };
        if used.ephemeral && !claim.owner_uids.contains(&pod.uid) {
            return Err(Rejection::unresolvable(format!(
                "PVC {}/{name} was not created for pod {} (pod is not owner)",
                pod.namespace,
                pod.key()
            )));
        }
        if claim.lost {
            return Err(Rejection::unresolvable(format!(
                "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{}\"",
                claim.volume
            )));
        }
        if claim.terminating {
            return Err(Rejection::unresolvable(format!(
                "persistentvolumeclaim \"{name}\" is being deleted"
            )));
        }
        found.push((key, claim));
    }
    Ok(found)
}

/// What to write before the pod may run on the node.
fn plan(pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> Result<Vec<PreBind>, Rejection> {
    let (name, labels) = (&snapshot.name[node], &snapshot.labels[node]);
    let mut actions = Vec::new();
    let mut taken = Vec::new();
    for (key, claim) in claims(pod, snapshot)? {
        if claim.bound {
            let Some(volume) = snapshot.volumes.volumes.get(&claim.volume) else {
                return Err(Rejection::unresolvable(
                    "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
                )
                .detail(format!("claim {} names volume {}", key.1, claim.volume)));
            };
            if !volume.reaches(name, labels) {
                return Err(Rejection::unresolvable("node(s) didn't match PersistentVolume's node affinity")
                    .detail(format!("volume {}", claim.volume)));
            }
            continue;
        }
        let elsewhere = claim.selected_node.as_ref().is_some_and(|selected| selected != name);
        let free = snapshot.volumes.find(&key, claim, name, labels, &taken);
        match free {
            Some(volume) if !elsewhere => {
                taken.push(volume.clone());
                actions.push(PreBind::BindVolume { volume, namespace: key.0, claim: key.1 });
            }
            _ if !elsewhere && provisions(claim, snapshot, node) => {
                actions.push(PreBind::SelectNode { namespace: key.0, claim: key.1 });
            }
            _ => {
                return Err(Rejection::unresolvable(
                    "node(s) didn't find available persistent volumes to bind",
                )
                .detail(format!("claim {}", key.1)));
            }
        }
    }
    Ok(actions)
}

/// Whether the claim's class makes volumes that reach the node.
fn provisions(claim: &Claim, snapshot: &Snapshot, node: Slot) -> bool {
    snapshot.volumes.classes.get(&claim.class).is_some_and(|class| {
        class.provisioner != NO_PROVISIONER
            && (class.topologies.is_empty()
                || class
                    .topologies
                    .iter()
                    .any(|term| term.matches(&snapshot.name[node], &snapshot.labels[node])))
    })
}
