//! Claims, volumes, storage classes and per-node limits as the volume plugins need them.
//!
//! Decisions taken but not yet seen in the API ("assumed" claim → volume) live here too, so that two pods scheduled
//! one after the other never get the same volume. They vanish when the volume's own update arrives or on `forget`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim,
};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use keelson_api::quantity::Quantity;

use crate::selector::{LabelSelector, Labels, NodeTerm, NodeTerms};

/// Namespace and name.
pub type Key = (String, String);

/// Set by the volume binder when claim and volume refer to each other.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Set by the scheduler: provision this claim's volume for this node.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// A PersistentVolumeClaim.
#[derive(Debug, Clone)]
pub struct Claim {
    pub uid: String,
    pub volume: String,
    pub bound: bool,
    pub class: String,
    /// Bytes.
    pub size: i64,
    pub modes: Vec<String>,
    pub block: bool,
    pub selector: Option<LabelSelector>,
    pub selected_node: Option<String>,
    pub terminating: bool,
    pub lost: bool,
    pub owner_uids: Vec<String>,
}

/// A PersistentVolume.
#[derive(Debug, Clone)]
pub struct Volume {
    pub class: String,
    /// Bytes.
    pub size: i64,
    pub modes: Vec<String>,
    pub block: bool,
    pub labels: Labels,
    pub node_affinity: Option<NodeTerms>,
    /// Namespace, name and uid (empty = any) of the claim it belongs to.
    pub claim: Option<(String, String, String)>,
    pub available: bool,
    pub driver: Option<String>,
    pub terminating: bool,
}

/// A StorageClass.
#[derive(Debug, Clone)]
pub struct Class {
    pub provisioner: String,
    pub waits_for_consumer: bool,
    /// Alternatives; empty = everywhere.
    pub topologies: Vec<NodeTerm>,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Volumes {
    pub claims: BTreeMap<Key, Claim>,
    pub volumes: BTreeMap<String, Volume>,
    pub classes: BTreeMap<String, Class>,
    /// Node → CSI driver → how many volumes it attaches.
    pub limits: BTreeMap<String, BTreeMap<String, i64>>,
    /// Volume → claim, decided but not yet seen.
    assumed: BTreeMap<String, Key>,
}

impl Volumes {
    /// A claim was added or changed.
    pub fn set_claim(&mut self, claim: &PersistentVolumeClaim) {
        self.claims.insert(key(&claim.metadata), compile_claim(claim));
    }

    /// A claim is gone.
    pub fn remove_claim(&mut self, namespace: &str, name: &str) {
        self.claims.remove(&(namespace.to_string(), name.to_string()));
    }

    /// A volume was added or changed; an assumed binding it now shows is no longer assumed.
    pub fn set_volume(&mut self, volume: &PersistentVolume) {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let volume = compile_volume(volume);
        if volume.claim.is_some() {
            self.assumed.remove(&name);
        }
        self.volumes.insert(name, volume);
    }

    /// A volume is gone.
    pub fn remove_volume(&mut self, name: &str) {
        self.volumes.remove(name);
        self.assumed.remove(name);
    }

    /// A class was added or changed.
    pub fn set_class(&mut self, class: &StorageClass) {
        let topologies = class
            .allowed_topologies
            .iter()
            .flatten()
            .map(|term| {
                let expressions = term.match_label_expressions.iter().flatten();
                NodeTerm::new(&NodeSelectorTerm {
                    match_expressions: Some(
                        expressions
                            .map(|found| NodeSelectorRequirement {
                                key: found.key.clone(),
                                operator: "In".into(),
                                values: Some(found.values.clone()),
                            })
                            .collect(),
                    ),
                    match_fields: None,
                })
            })
            .collect();
        self.classes.insert(
            class.metadata.name.clone().unwrap_or_default(),
            Class {
                provisioner: class.provisioner.clone(),
                waits_for_consumer: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
                topologies,
            },
        );
    }

    /// A node's attach limits were added or changed.
    pub fn set_limits(&mut self, node: &CSINode) {
        let limits = node
            .spec
            .drivers
            .iter()
            .filter_map(|driver| {
                let count = driver.allocatable.as_ref()?.count?;
                Some((driver.name.clone(), i64::from(count)))
            })
            .collect();
        self.limits.insert(node.metadata.name.clone().unwrap_or_default(), limits);
    }

    /// Reserves volumes for claims until the API shows it.
    pub fn assume(&mut self, volume: &str, claim: Key) {
        self.assumed.insert(volume.to_string(), claim);
    }

    /// Gives a reserved volume back.
    pub fn forget(&mut self, volume: &str) {
        self.assumed.remove(volume);
    }

    /// The volume that suits an unbound claim on this node best: pre-bound to it, else the smallest that is free.
    /// `taken`: volumes this pod's other claims already got.
    pub fn find(
        &self,
        key: &Key,
        claim: &Claim,
        node: &str,
        labels: &Labels,
        taken: &[String],
    ) -> Option<String> {
        let mut best: Option<(bool, i64, &String)> = None;
        for (name, volume) in &self.volumes {
            let reserved = self.assumed.get(name).is_some_and(|holder| holder != key);
            if reserved || taken.contains(name) || !volume.suits(claim, node, labels) {
                continue;
            }
            let prebound = match &volume.claim {
                Some((namespace, name, uid)) => {
                    if (namespace, name) != (&key.0, &key.1) || !uid.is_empty() && *uid != claim.uid {
                        continue;
                    }
                    true
                }
                None if !volume.available => continue,
                None => false,
            };
            let rank = (!prebound, volume.size, name);
            if best.is_none_or(|found| rank < found) {
                best = Some(rank);
            }
        }
        best.map(|(_, _, name)| name.clone())
    }
}

impl Volume {
    fn suits(&self, claim: &Claim, node: &str, labels: &Labels) -> bool {
        self.class == claim.class
            && self.size >= claim.size
            && self.block == claim.block
            && !self.terminating
            && claim.modes.iter().all(|mode| self.modes.contains(mode))
            && claim.selector.as_ref().is_none_or(|selector| selector.matches(&self.labels))
            && self.reaches(node, labels)
    }

    /// Whether the volume can be used on the node.
    pub fn reaches(&self, node: &str, labels: &Labels) -> bool {
        self.node_affinity.as_ref().is_none_or(|terms| terms.matches(node, labels))
    }
}

fn key(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn bytes(quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>) -> i64 {
    quantity.and_then(|quantity| Quantity::parse(&quantity.0).ok()).map_or(0, |quantity| quantity.value())
}

fn compile_claim(claim: &PersistentVolumeClaim) -> Claim {
    let empty = Default::default();
    let spec = claim.spec.as_ref().unwrap_or(&empty);
    let annotations = claim.metadata.annotations.as_ref();
    let annotation = |name: &str| annotations.and_then(|found| found.get(name)).cloned();
    let volume = spec.volume_name.clone().unwrap_or_default();
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    Claim {
        uid: claim.metadata.uid.clone().unwrap_or_default(),
        bound: !volume.is_empty() && annotation(BIND_COMPLETED).is_some(),
        volume,
        class: annotation("volume.beta.kubernetes.io/storage-class")
            .or_else(|| spec.storage_class_name.clone())
            .unwrap_or_default(),
        size: bytes(requests.and_then(|requests| requests.get("storage"))),
        modes: spec.access_modes.clone().unwrap_or_default(),
        block: spec.volume_mode.as_deref() == Some("Block"),
        selector: spec.selector.as_ref().map(|selector| LabelSelector::new(Some(selector))),
        selected_node: annotation(SELECTED_NODE),
        terminating: claim.metadata.deletion_timestamp.is_some(),
        lost: claim.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Lost")),
        owner_uids: claim.metadata.owner_references.iter().flatten().map(|owner| owner.uid.clone()).collect(),
    }
}

fn compile_volume(volume: &PersistentVolume) -> Volume {
    let empty = Default::default();
    let spec = volume.spec.as_ref().unwrap_or(&empty);
    let affinity = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    Volume {
        class: spec.storage_class_name.clone().unwrap_or_default(),
        size: bytes(spec.capacity.as_ref().and_then(|capacity| capacity.get("storage"))),
        modes: spec.access_modes.clone().unwrap_or_default(),
        block: spec.volume_mode.as_deref() == Some("Block"),
        labels: volume.metadata.labels.clone().unwrap_or_default(),
        node_affinity: affinity.map(NodeTerms::new),
        claim: spec.claim_ref.as_ref().map(|found| {
            (
                found.namespace.clone().unwrap_or_default(),
                found.name.clone().unwrap_or_default(),
                found.uid.clone().unwrap_or_default(),
            )
        }),
        available: volume
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            .is_some_and(|phase| phase == "Available"),
        driver: spec.csi.as_ref().map(|csi| csi.driver.clone()),
        terminating: volume.metadata.deletion_timestamp.is_some(),
    }
}
