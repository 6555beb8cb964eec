//! PersistentVolumes and claims: binding, the built-in local-path provisioner, reclaim.
//!
//! A volume belongs to a claim when its `claimRef` carries the claim's uid; that write goes first and
//! under the volume's resourceVersion, so two claims never get one volume. Keys with a namespace are
//! claims, without one volumes.

pub mod classes;
pub mod protection;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference,
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use keelson_api::quantity::Quantity;

use crate::labels;
use crate::node_lifecycle::ready;
use crate::plan::{Action, Expectation};
use crate::replicaset::whole_seconds;
use crate::{Change, Gvr, Key, Object, Plan, Precondition, Reconciler, Target, View, Watch};

pub const PROVISIONER: &str = "keelson.dev/local-path";
/// On a volume: its data is on `NODE` and must go before the volume may.
pub const DATA_FINALIZER: &str = "keelson.dev/local-path-data";
/// On a volume: the node that holds the data.
pub const NODE: &str = "keelson.dev/node";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY: &str = "pv.kubernetes.io/bound-by-controller";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";

pub struct VolumeBinder {
    /// Folder on the nodes that holds local-path volumes.
    pub base: String,
}

impl Reconciler for VolumeBinder {
    fn name(&self) -> &'static str {
        "persistentvolume-binder-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        let claimed = |v: &PersistentVolume| claim_key(v).map(|k| k.to_string()).into_iter().collect();
        vec![
            Watch::of::<PersistentVolumeClaim>(),
            Watch::of::<PersistentVolume>().index("claim", claimed),
            Watch::of::<StorageClass>(),
            Watch::of::<Node>(),
        ]
    }

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        if let Some(claim) = change.latest::<PersistentVolumeClaim>() {
            let volume = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
            let key = Key::of(claim);
            let referring = view.of::<PersistentVolume>().by("claim", &key.to_string());
            let mut keys: Vec<Key> = referring.map(|v| Key::of(v.as_ref())).collect();
            keys.extend(volume.filter(|v| !v.is_empty()).map(Key::cluster));
            keys.push(key);
            keys.dedup();
            return keys;
        }
        if let Some(volume) = change.latest::<PersistentVolume>() {
            let mut keys = vec![Key::of(volume)];
            match claim_key(volume) {
                Some(claim) => keys.push(claim),
                None => keys.extend(pending(view)),
            }
            return keys;
        }
        if change.latest::<StorageClass>().is_some() {
            return pending(view).collect();
        }
        match change.of::<Node>() {
            Some((Some(gone), None)) => {
                let on_it =
                    view.of::<PersistentVolume>().iter().filter(|v| v.annotation(NODE) == Some(gone.name()));
                on_it.map(|v| Key::of(v.as_ref())).collect()
            }
            _ => Vec::new(),
        }
    }

    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        if key.namespace.is_empty() {
            if let Some(volume) = view.get::<PersistentVolume>(key) {
                look_after(&mut plan, volume, view, now);
            }
        } else if let Some(claim) = view.get::<PersistentVolumeClaim>(key).filter(|c| !c.is_deleting()) {
            self.settle(&mut plan, claim, view);
        }
        plan
    }
}

/// Claims that still wait for a volume.
fn pending(view: &View) -> impl Iterator<Item = Key> {
    let waits = |c: &&Arc<PersistentVolumeClaim>| phase_of(c) != "Bound" && !c.is_deleting();
    view.of::<PersistentVolumeClaim>().iter().filter(waits).map(|c| Key::of(c.as_ref()))
}

fn phase_of(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("")
}

pub fn volume_phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("")
}

fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

fn claim_key(volume: &PersistentVolume) -> Option<Key> {
    let claim = claim_ref(volume)?;
    Some(Key::new(claim.namespace.as_deref()?, claim.name.as_deref()?))
}

/// Whether the volume is promised to this very claim (an empty uid is a promise made by hand).
fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let uid = claim_ref(volume).and_then(|c| c.uid.as_deref()).unwrap_or("");
    claim_key(volume) == Some(Key::of(claim)) && (uid.is_empty() || uid == claim.uid())
}

impl VolumeBinder {
    fn settle(&self, plan: &mut Plan, claim: &Arc<PersistentVolumeClaim>, view: &View) {
        let spec = claim.spec.clone().unwrap_or_default();
        if let Some(name) = spec.volume_name.as_deref().filter(|n| !n.is_empty()) {
            return match view.get::<PersistentVolume>(&Key::cluster(name)) {
                None if claim.annotation(BIND_COMPLETED).is_some() => lost(plan, claim),
                None => phase(plan, claim, "Pending"),
                Some(volume) if is_for(volume, claim) => bind(plan, claim, volume),
                Some(volume) if claim_ref(volume).is_none() => bind(plan, claim, volume),
                Some(_) if claim.annotation(BIND_COMPLETED).is_some() => lost(plan, claim),
                Some(_) => phase(plan, claim, "Pending"),
            };
        }
        let mut promised = view.of::<PersistentVolume>().by("claim", &Key::of(claim.as_ref()).to_string());
        if let Some(volume) = promised.find(|v| is_for(v, claim) && !v.is_deleting()) {
            return bind(plan, claim, volume);
        }
        let class = match class_of(claim, view) {
            Class::Named(class) => Some(class),
            Class::Default(class) => {
                let mut new = (**claim).clone();
                new.spec.get_or_insert_default().storage_class_name = Some(class.name().to_owned());
                return plan.update(claim.as_ref(), &new);
            }
            Class::None => None,
        };
        let node = claim.annotation(SELECTED_NODE).filter(|n| !n.is_empty());
        let waits = class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        if waits && node.is_none() {
            phase(plan, claim, "Pending");
            let message = "waiting for first consumer to be created before binding".to_owned();
            return plan.record(claim.as_ref(), false, "WaitForFirstConsumer", message);
        }
        match (find(claim, node, view), class) {
            (Some(volume), _) => bind(plan, claim, volume),
            (None, Some(class)) => self.provision(plan, claim, class, node, view),
            (None, None) => {
                phase(plan, claim, "Pending");
                let message = "no persistent volumes available for this claim and no storage class is set";
                plan.record(claim.as_ref(), false, "FailedBinding", message.to_owned());
            }
        }
    }

    fn provision(
        &self,
        plan: &mut Plan,
        claim: &Arc<PersistentVolumeClaim>,
        class: &StorageClass,
        node: Option<&str>,
        view: &View,
    ) {
        let mut new = (**claim).clone();
        let annotations = new.metadata.annotations.get_or_insert_default();
        annotations.insert(STORAGE_PROVISIONER.to_owned(), class.provisioner.clone());
        plan.update(claim.as_ref(), &new);
        if class.provisioner != PROVISIONER {
            if class.provisioner != "kubernetes.io/no-provisioner" {
                let message = format!(
                    "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.",
                    class.provisioner
                );
                plan.record(claim.as_ref(), false, "ExternalProvisioning", message);
            }
            return;
        }
        let able = |n: &&Arc<Node>| {
            ready(n) == "True" && n.spec.as_ref().is_none_or(|s| s.unschedulable != Some(true))
        };
        let any = || view.of::<Node>().iter().find(able).map(|n| n.name());
        let Some(node) = node.or_else(any) else {
            let message = "no node is ready to hold the volume".to_owned();
            return plan.record(claim.as_ref(), true, "ProvisioningFailed", message);
        };
        let volume = self.volume(claim, class, node, view);
        let name = volume.name().to_owned();
        plan.create(&volume);
        plan.record(
            claim.as_ref(),
            false,
            "ProvisioningSucceeded",
            format!("Successfully provisioned volume {name} using {PROVISIONER}"),
        );
    }

    fn volume(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        node: &str,
        view: &View,
    ) -> PersistentVolume {
        let spec = claim.spec.clone().unwrap_or_default();
        let base = class.parameters.as_ref().and_then(|p| p.get("path")).unwrap_or(&self.base);
        let hostname = view.get::<Node>(&Key::cluster(node)).and_then(|n| n.label("kubernetes.io/hostname"));
        let here = NodeSelectorRequirement {
            key: "kubernetes.io/hostname".into(),
            operator: "In".into(),
            values: Some(vec![hostname.unwrap_or(node).to_owned()]),
        };
        let term = NodeSelectorTerm { match_expressions: Some(vec![here]), match_fields: None };
        let name = format!("pvc-{}", claim.uid());
        let annotations = BTreeMap::from([
            (PROVISIONED_BY.to_owned(), PROVISIONER.to_owned()),
            (NODE.to_owned(), node.to_owned()),
        ]);
        PersistentVolume {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                annotations: Some(annotations),
                finalizers: Some(vec![protection::VOLUME.to_owned(), DATA_FINALIZER.to_owned()]),
                ..Default::default()
            },
            spec: Some(PersistentVolumeSpec {
                access_modes: spec.access_modes,
                capacity: spec.resources.and_then(|r| r.requests),
                claim_ref: Some(reference(claim)),
                host_path: Some(HostPathVolumeSource {
                    path: format!("{}/{name}", base.trim_end_matches('/')),
                    type_: Some("DirectoryOrCreate".into()),
                }),
                node_affinity: Some(VolumeNodeAffinity {
                    required: Some(NodeSelector { node_selector_terms: vec![term] }),
                }),
                persistent_volume_reclaim_policy: class.reclaim_policy.clone().or(Some("Delete".into())),
                storage_class_name: Some(class.name().to_owned()),
                volume_mode: spec.volume_mode,
                mount_options: class.mount_options.clone(),
                ..Default::default()
            }),
            status: None,
        }
    }
}

fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference { resource_version: None, ..claim.object_reference() }
}

enum Class<'a> {
    Named(&'a Arc<StorageClass>),
    /// The claim names none, and there is a default.
    Default(&'a Arc<StorageClass>),
    None,
}

fn class_of<'a>(claim: &PersistentVolumeClaim, view: &'a View) -> Class<'a> {
    match class_name(claim) {
        Some("") => Class::None,
        Some(name) => view.get::<StorageClass>(&Key::cluster(name)).map_or(Class::None, Class::Named),
        None => classes::default_class(view).map_or(Class::None, Class::Default),
    }
}

fn class_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    let old = claim.annotation("volume.beta.kubernetes.io/storage-class");
    old.or(claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()))
}

fn quantity(map: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>) -> i64 {
    let text = map.and_then(|m| m.get("storage")).map(|q| q.0.as_str());
    text.and_then(|t| Quantity::parse(t).ok()).map_or(0, |q| q.value())
}

/// The smallest free volume that fits the claim (and can be used from the node).
fn find<'a>(
    claim: &PersistentVolumeClaim,
    node: Option<&str>,
    view: &'a View,
) -> Option<&'a Arc<PersistentVolume>> {
    let spec = claim.spec.clone().unwrap_or_default();
    let wanted = quantity(spec.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let node = node.and_then(|n| view.get::<Node>(&Key::cluster(n)));
    let fits = |volume: &&Arc<PersistentVolume>| {
        let Some(have) = volume.spec.as_ref() else { return false };
        let modes = have.access_modes.as_deref().unwrap_or_default();
        have.claim_ref.is_none()
            && !volume.is_deleting()
            && volume_phase(volume) == "Available"
            && have.storage_class_name.as_deref().unwrap_or("") == class_name(claim).unwrap_or("")
            && have.volume_mode.as_deref().unwrap_or("Filesystem")
                == spec.volume_mode.as_deref().unwrap_or("Filesystem")
            && spec.access_modes.iter().flatten().all(|m| modes.contains(m))
            && quantity(have.capacity.as_ref()) >= wanted
            && spec.selector.as_ref().is_none_or(|s| labels::matches(s, volume.metadata.labels.as_ref()))
            && node.is_none_or(|n| reaches(have.node_affinity.as_ref(), n))
    };
    let size = |v: &&Arc<PersistentVolume>| quantity(v.spec.as_ref().and_then(|s| s.capacity.as_ref()));
    view.of::<PersistentVolume>().iter().filter(fits).min_by_key(size)
}

/// Whether a node satisfies a volume's affinity (In, NotIn, Exists, DoesNotExist on labels).
fn reaches(affinity: Option<&VolumeNodeAffinity>, node: &Node) -> bool {
    let Some(required) = affinity.and_then(|a| a.required.as_ref()) else { return true };
    required.node_selector_terms.iter().any(|term| {
        term.match_expressions.iter().flatten().all(|e| {
            let value = node.label(&e.key).map(str::to_owned);
            let listed = value.as_ref().is_some_and(|v| e.values.iter().flatten().any(|x| x == v));
            match e.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
    })
}

/// Ties volume and claim to each other: the volume's side first, then the claim's, then the status.
fn bind(plan: &mut Plan, claim: &Arc<PersistentVolumeClaim>, volume: &Arc<PersistentVolume>) {
    let mut tied = (**volume).clone();
    let known = claim_ref(volume).is_some_and(|c| c.uid.as_deref() == Some(claim.uid()));
    if !known {
        tied.spec.get_or_insert_default().claim_ref = Some(reference(claim));
        if claim_ref(volume).is_none() {
            tied.metadata.annotations.get_or_insert_default().insert(BOUND_BY.to_owned(), "yes".to_owned());
        }
        plan.update(volume.as_ref(), &tied);
    }
    let mut new = (**claim).clone();
    let spec = new.spec.get_or_insert_default();
    let annotations = new.metadata.annotations.get_or_insert_default();
    if spec.volume_name.as_deref().is_none_or(str::is_empty) {
        spec.volume_name = Some(volume.name().to_owned());
        annotations.insert(BOUND_BY.to_owned(), "yes".to_owned());
    }
    annotations.insert(BIND_COMPLETED.to_owned(), "yes".to_owned());
    let before = plan.actions.len();
    plan.update(claim.as_ref(), &new);
    let spent = plan.actions.len() > before;
    let status = new.status.get_or_insert_default();
    status.phase = Some("Bound".into());
    status.access_modes = volume.spec.as_ref().and_then(|s| s.access_modes.clone());
    status.capacity = volume.spec.as_ref().and_then(|s| s.capacity.clone());
    plan.update_status_after(claim.as_ref(), &new, spent);
}

fn phase(plan: &mut Plan, claim: &Arc<PersistentVolumeClaim>, phase: &str) {
    let mut new = (**claim).clone();
    new.status.get_or_insert_default().phase = Some(phase.to_owned());
    plan.update_status(claim.as_ref(), &new);
}

fn lost(plan: &mut Plan, claim: &Arc<PersistentVolumeClaim>) {
    if phase_of(claim) != "Lost" {
        let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!".to_owned();
        plan.record(claim.as_ref(), true, "ClaimLost", message);
    }
    phase(plan, claim, "Lost");
}

/// A volume's phase, and what becomes of it when its claim is gone.
fn look_after(plan: &mut Plan, volume: &Arc<PersistentVolume>, view: &View, now: Timestamp) {
    if volume.is_deleting() {
        let node = volume.annotation(NODE).unwrap_or("");
        if volume.has_finalizer(DATA_FINALIZER) && view.get::<Node>(&Key::cluster(node)).is_none() {
            // Nobody is left to remove the data.
            let target = Target { resource: Gvr::of::<Node>(), key: Key::cluster(node), subresource: None };
            plan.actions.push(Action::Expect(Expectation::Absent { target, uid: None }));
            let mut new = (**volume).clone();
            new.metadata.finalizers.iter_mut().for_each(|f| f.retain(|f| f != DATA_FINALIZER));
            plan.update(volume.as_ref(), &new);
        }
    }
    let uid = claim_ref(volume).and_then(|c| c.uid.clone()).filter(|u| !u.is_empty());
    let (Some(key), Some(uid)) = (claim_key(volume), uid) else {
        return set_phase(plan, volume, "Available", now);
    };
    let claim = view.get::<PersistentVolumeClaim>(&key).filter(|c| c.uid() == uid);
    if let Some(claim) = claim {
        let bound = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()) == Some(volume.name());
        return set_phase(plan, volume, if bound { "Bound" } else { "Available" }, now);
    }
    let target = Target { resource: Gvr::of::<PersistentVolumeClaim>(), key, subresource: None };
    let gone = Action::Expect(Expectation::Absent { target, uid: Some(uid) });
    let spec = volume.spec.as_ref();
    let deletes = spec.and_then(|s| s.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
    if volume_phase(volume) != "Released" {
        plan.actions.push(gone);
        set_phase(plan, volume, "Released", now);
    } else if deletes && volume.annotation(PROVISIONED_BY) == Some(PROVISIONER) && !volume.is_deleting() {
        plan.actions.push(gone);
        plan.delete(volume.as_ref(), Precondition::unchanged(volume.as_ref()));
    }
}

fn set_phase(plan: &mut Plan, volume: &Arc<PersistentVolume>, phase: &str, now: Timestamp) {
    if volume_phase(volume) == phase {
        return;
    }
    let mut new = (**volume).clone();
    let status = new.status.get_or_insert_default();
    status.phase = Some(phase.to_owned());
    status.last_phase_transition_time = Some(Time(whole_seconds(now)));
    plan.update_status(volume.as_ref(), &new);
}
