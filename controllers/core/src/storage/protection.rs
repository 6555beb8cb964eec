//! Finalizers that keep a claim while pods use it and a volume while it is bound (C6).

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};

use super::volume_phase;
use crate::pods;
use crate::{Change, Key, Object, Plan, Reconciler, View, Watch};

pub const CLAIM: &str = "kubernetes.io/pvc-protection";
pub const VOLUME: &str = "kubernetes.io/pv-protection";

pub struct ClaimProtection;

impl Reconciler for ClaimProtection {
    fn name(&self) -> &'static str {
        "persistentvolumeclaim-protection-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::of::<PersistentVolumeClaim>(), Watch::of::<Pod>().index("claims", claims)]
    }

    fn keys(&self, change: &Change, _view: &View) -> Vec<Key> {
        if let Some((_, Some(claim))) = change.of::<PersistentVolumeClaim>() {
            return vec![Key::of(claim)];
        }
        let Some((Some(pod), new)) = change.of::<Pod>() else { return Vec::new() };
        let left = new.is_none_or(pods::is_finished);
        let names = if left { claims(pod) } else { Vec::new() };
        names.iter().filter_map(|n| n.split_once('/')).map(|(ns, name)| Key::new(ns, name)).collect()
    }

    fn reconcile(&self, key: &Key, view: &View, _now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        let Some(claim) = view.get::<PersistentVolumeClaim>(key) else { return plan };
        let uses = |p: &Arc<Pod>| !pods::is_finished(p);
        let used = view.of::<Pod>().by("claims", &key.to_string()).any(uses);
        let new = guarded(claim.as_ref(), CLAIM, used);
        plan.update(claim.as_ref(), &new);
        plan
    }
}

pub struct VolumeProtection;

impl Reconciler for VolumeProtection {
    fn name(&self) -> &'static str {
        "persistentvolume-protection-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::of::<PersistentVolume>()]
    }

    fn keys(&self, change: &Change, _view: &View) -> Vec<Key> {
        let volume = change.of::<PersistentVolume>().and_then(|(_, new)| new);
        volume.map(Key::of).into_iter().collect()
    }

    fn reconcile(&self, key: &Key, view: &View, _now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        if let Some(volume) = view.get::<PersistentVolume>(key) {
            let new = guarded(volume.as_ref(), VOLUME, volume_phase(volume) == "Bound");
            plan.update(volume.as_ref(), &new);
        }
        plan
    }
}

/// The object with the finalizer while it lives or is used, without it when it may go.
fn guarded<K: Object + Clone>(object: &K, finalizer: &str, used: bool) -> K {
    let mut new = object.clone();
    if !object.is_deleting() && !object.has_finalizer(finalizer) {
        new.metadata_mut().finalizers.get_or_insert_default().push(finalizer.to_owned());
    }
    if object.is_deleting() && !used {
        new.metadata_mut().finalizers.iter_mut().for_each(|f| f.retain(|f| f != finalizer));
    }
    new
}

/// `namespace/name` of the claims a pod uses.
fn claims(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref()).into_iter().flatten();
    let named = volumes.filter_map(|v| {
        let given = v.persistent_volume_claim.as_ref().map(|c| c.claim_name.clone());
        given.or(v.ephemeral.as_ref().map(|_| format!("{}-{}", pod.name(), v.name)))
    });
    named.map(|name| format!("{}/{name}", pod.namespace())).collect()
}
