//! The snapshot plus what was decided but is not yet seen: assume → confirm (by watch) or forget (by bind outcome).
//!
//! Assumed pods occupy their node like any other. There is no expiry: an assumption ends by the watch or by `forget`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::framework::PreBind;
use crate::pod::{PodInfo, Uid};
use crate::snapshot::Snapshot;

/// What the caller should tell the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing that matters to waiting pods.
    Nothing,
    /// The pod took a place.
    Placed,
    /// The pod changed in place, so that it asks for less.
    Shrunk,
    /// Its labels changed.
    Relabelled,
}

#[derive(Clone, Debug)]
struct Assumed {
    pod: Arc<PodInfo>,
    volumes: Vec<String>,
}

/// The cache.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    snapshot: Snapshot,
    assumed: BTreeMap<Uid, Assumed>,
}

impl Cache {
    /// The picture to decide on: confirmed and assumed pods alike.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// For nodes, volumes, namespaces, budgets. Pods go through this type's own methods.
    pub fn snapshot_mut(&mut self) -> &mut Snapshot {
        &mut self.snapshot
    }

    /// A decision was taken: the pod occupies the node from now on. Returns false, changing nothing, when the pod
    /// already has a place (then it must not be bound: C1).
    pub fn assume(&mut self, pod: &PodInfo, node: &str, pre_bind: &[PreBind]) -> bool {
        if self.snapshot.place(&pod.uid).is_some() || self.snapshot.slot(node).is_none() {
            return false;
        }
        let pod = pod.on(node);
        let mut volumes = Vec::new();
        for action in pre_bind {
            if let PreBind::BindVolume { volume, namespace, claim } = action {
                self.snapshot.volumes.assume(volume, (namespace.clone(), claim.clone()));
                volumes.push(volume.clone());
            }
        }
        self.snapshot.nominated.remove(&pod.uid);
        self.snapshot.add_pod(pod.clone());
        self.assumed.insert(pod.uid.clone(), Assumed { pod, volumes });
        true
    }

    /// The bind did not happen. Returns the pod whose place is free again.
    pub fn forget(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let assumed = self.assumed.remove(uid)?;
        for volume in &assumed.volumes {
            self.snapshot.volumes.forget(volume);
        }
        self.snapshot.remove_pod(uid);
        Some(assumed.pod)
    }

    /// Whether the pod is assumed and not yet confirmed.
    pub fn is_assumed(&self, uid: &str) -> bool {
        self.assumed.contains_key(uid)
    }

    /// The watch showed a pod with a node: the truth, whatever was assumed.
    pub fn observe(&mut self, pod: Arc<PodInfo>) -> Change {
        self.assumed.remove(&pod.uid);
        self.snapshot.nominated.remove(&pod.uid);
        let before = self.snapshot.remove_pod(&pod.uid);
        let change = match &before {
            None => Change::Placed,
            Some(before) if shrank(before, &pod) => Change::Shrunk,
            Some(before) if before.labels != pod.labels || before.terminating != pod.terminating => {
                Change::Relabelled
            }
            Some(_) => Change::Nothing,
        };
        self.snapshot.add_pod(pod);
        change
    }

    /// The watch showed that a pod is gone or finished. Returns it if it had a place.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        self.assumed.remove(uid);
        self.snapshot.nominated.remove(uid);
        self.snapshot.remove_pod(uid)
    }
}

fn shrank(before: &PodInfo, after: &PodInfo) -> bool {
    let (before, after) = (&before.requests, &after.requests);
    after.milli_cpu < before.milli_cpu
        || after.memory < before.memory
        || after.ephemeral_storage < before.ephemeral_storage
        || before.scalar.iter().any(|(name, amount)| after.scalar.get(name).copied().unwrap_or(0) < *amount)
}
