//! The scheduler's picture of the cluster: one array per attribute, indexed by a node's `Slot`.
//!
//! Changes are incremental: adding a pod touches one row and the indexes that name the pod. Slots are stable while a
//! node (or a pod that claims to run on it) is known; `order` lists the slots of present nodes by node name, and every
//! loop over nodes goes through it, so that the order in which objects arrived never decides anything.
//! `clone` gives an independent picture for what-if questions and preemption.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::pod::{HostPort, PodInfo, Uid};
use crate::resources::Resources;
use crate::selector::{LabelSelector, Labels};
use crate::volumes::Volumes;

/// A row.
pub type Slot = usize;

/// A PodDisruptionBudget as preemption needs it.
#[derive(Debug, Clone)]
pub struct Budget {
    pub namespace: String,
    pub selector: LabelSelector,
    pub allowed: i32,
    /// Pods already being disrupted, by name.
    pub disrupted: Vec<String>,
}

/// The columns, and what hangs beside them.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    slots: BTreeMap<String, Slot>,
    free: Vec<Slot>,
    order: Vec<Slot>,

    pub name: Vec<String>,
    present: Vec<bool>,
    pub labels: Vec<Labels>,
    pub taints: Vec<Vec<Taint>>,
    pub unschedulable: Vec<bool>,
    pub allocatable: Vec<Resources>,
    /// Sum of the pods' requests; `pods` counts them.
    pub requested: Vec<Resources>,
    /// The same with the assumptions of the scores.
    pub scored_cpu: Vec<i64>,
    pub scored_memory: Vec<i64>,
    pub ports: Vec<BTreeMap<HostPort, u32>>,
    pub images: Vec<BTreeMap<String, i64>>,
    pub pods: Vec<BTreeMap<Uid, Arc<PodInfo>>>,

    places: BTreeMap<Uid, Slot>,
    by_namespace: BTreeMap<String, BTreeMap<Uid, (Arc<PodInfo>, Slot)>>,
    with_affinity: BTreeMap<Uid, (Arc<PodInfo>, Slot)>,
    with_anti_affinity: BTreeMap<Uid, (Arc<PodInfo>, Slot)>,
    image_nodes: BTreeMap<String, u32>,

    /// Namespace → its labels.
    pub namespaces: BTreeMap<String, Labels>,
    pub volumes: Volumes,
    pub budgets: BTreeMap<(String, String), Budget>,
    /// Services: (namespace, name) → selector. For the default spread constraints.
    pub services: BTreeMap<(String, String), Labels>,
    /// (namespace, kind, name) → selector of ReplicaSets, StatefulSets, ReplicationControllers.
    pub workloads: BTreeMap<(String, String, String), LabelSelector>,
    /// Pods that wait for their victims to leave: uid → (pod, node name).
    pub nominated: BTreeMap<Uid, (Arc<PodInfo>, String)>,
}

impl Snapshot {
    /// A node was added or changed.
    pub fn set_node(&mut self, node: &Node) {
        let Some(name) = node.metadata.name.clone() else { return };
        let slot = self.slot_for(&name);
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        if !self.present[slot] {
            self.present[slot] = true;
            let place = self.order.partition_point(|other| self.name[*other] < name);
            self.order.insert(place, slot);
        }
        self.labels[slot] = node.metadata.labels.clone().unwrap_or_default();
        self.taints[slot] = spec.and_then(|spec| spec.taints.clone()).unwrap_or_default();
        self.unschedulable[slot] = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
        self.allocatable[slot] = status
            .and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()))
            .map(Resources::from_map)
            .unwrap_or_default();
        let images = status.and_then(|status| status.images.as_deref()).unwrap_or_default();
        self.set_images(
            slot,
            images
                .iter()
                .flat_map(|image| {
                    let size = image.size_bytes.unwrap_or(0);
                    image.names.iter().flatten().map(move |name| (name.clone(), size))
                })
                .collect(),
        );
    }

    /// A node is gone. Its pods keep their row until they are gone too.
    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.slots.get(name).copied() else { return };
        self.present[slot] = false;
        self.order.retain(|other| *other != slot);
        self.set_images(slot, BTreeMap::new());
        self.release(slot);
    }

    /// A pod occupies its node (`pod.node_name`); one already known by this uid is replaced.
    pub fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.remove_pod(&pod.uid);
        let slot = self.slot_for(&pod.node_name);
        self.requested[slot].add(&pod.requests);
        self.requested[slot].pods += 1;
        self.scored_cpu[slot] = self.scored_cpu[slot].saturating_add(pod.scored.milli_cpu);
        self.scored_memory[slot] = self.scored_memory[slot].saturating_add(pod.scored.memory);
        for port in &pod.ports {
            *self.ports[slot].entry(port.clone()).or_default() += 1;
        }
        self.places.insert(pod.uid.clone(), slot);
        let entry = (pod.clone(), slot);
        if pod.has_affinity() {
            self.with_affinity.insert(pod.uid.clone(), entry.clone());
        }
        if !pod.anti_affinity.is_empty() {
            self.with_anti_affinity.insert(pod.uid.clone(), entry.clone());
        }
        self.by_namespace.entry(pod.namespace.clone()).or_default().insert(pod.uid.clone(), entry);
        self.pods[slot].insert(pod.uid.clone(), pod);
    }

    /// A pod no longer occupies its node. Returns it if it was known.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let slot = self.places.remove(uid)?;
        let pod = self.pods[slot].remove(uid)?;
        self.requested[slot].subtract(&pod.requests);
        self.requested[slot].pods -= 1;
        self.scored_cpu[slot] = self.scored_cpu[slot].saturating_sub(pod.scored.milli_cpu);
        self.scored_memory[slot] = self.scored_memory[slot].saturating_sub(pod.scored.memory);
        for port in &pod.ports {
            if let Some(count) = self.ports[slot].get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.ports[slot].remove(port);
                }
            }
        }
        self.with_affinity.remove(uid);
        self.with_anti_affinity.remove(uid);
        if let Some(pods) = self.by_namespace.get_mut(&pod.namespace) {
            pods.remove(uid);
            if pods.is_empty() {
                self.by_namespace.remove(&pod.namespace);
            }
        }
        self.release(slot);
        Some(pod)
    }

    /// A budget was added or changed.
    pub fn set_budget(&mut self, budget: &PodDisruptionBudget) {
        let namespace = budget.metadata.namespace.clone().unwrap_or_default();
        let name = budget.metadata.name.clone().unwrap_or_default();
        let status = budget.status.as_ref();
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
        self.budgets.insert(
            (namespace.clone(), name),
            Budget {
                namespace,
                selector: LabelSelector::new(selector),
                allowed: status.and_then(|status| status.disruptions_allowed).unwrap_or(0),
                disrupted: disrupted.into_iter().flat_map(BTreeMap::keys).cloned().collect(),
            },
        );
    }

    /// Present nodes, by name.
    pub fn nodes(&self) -> &[Slot] {
        &self.order
    }

    /// A present node's row.
    pub fn slot(&self, name: &str) -> Option<Slot> {
        self.slots.get(name).copied().filter(|slot| self.present[*slot])
    }

    /// The pod's row, present node or not.
    pub fn place(&self, uid: &str) -> Option<Slot> {
        self.places.get(uid).copied()
    }

    /// Pods of a namespace that occupy present nodes.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = (&Arc<PodInfo>, Slot)> {
        self.by_namespace.get(namespace).into_iter().flat_map(|pods| self.rows(pods))
    }

    /// Namespaces with pods on nodes.
    pub fn occupied_namespaces(&self) -> impl Iterator<Item = &String> {
        self.by_namespace.keys()
    }

    /// Pods on present nodes that have any (anti-)affinity.
    pub fn with_affinity(&self) -> impl Iterator<Item = (&Arc<PodInfo>, Slot)> {
        self.rows(&self.with_affinity)
    }

    /// Pods on present nodes that have required anti-affinity.
    pub fn with_anti_affinity(&self) -> impl Iterator<Item = (&Arc<PodInfo>, Slot)> {
        self.rows(&self.with_anti_affinity)
    }

    fn rows<'a>(
        &'a self,
        pods: &'a BTreeMap<Uid, (Arc<PodInfo>, Slot)>,
    ) -> impl Iterator<Item = (&'a Arc<PodInfo>, Slot)> {
        pods.values().filter(|(_, slot)| self.present[*slot]).map(|(pod, slot)| (pod, *slot))
    }

    /// On how many nodes an image is.
    pub fn image_nodes(&self, image: &str) -> u32 {
        self.image_nodes.get(image).copied().unwrap_or(0)
    }

    /// The value of a node's label.
    pub fn label(&self, slot: Slot, key: &str) -> Option<&str> {
        self.labels[slot].get(key).map(String::as_str)
    }

    fn set_images(&mut self, slot: Slot, images: BTreeMap<String, i64>) {
        let old = std::mem::replace(&mut self.images[slot], images);
        for image in old.keys() {
            if let Some(count) = self.image_nodes.get_mut(image) {
                *count -= 1;
                if *count == 0 {
                    self.image_nodes.remove(image);
                }
            }
        }
        for image in self.images[slot].keys() {
            *self.image_nodes.entry(image.clone()).or_default() += 1;
        }
    }

    /// The row of a name; a new one, absent and empty, where there is none.
    fn slot_for(&mut self, name: &str) -> Slot {
        if let Some(slot) = self.slots.get(name) {
            return *slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.name.push(String::new());
            self.present.push(false);
            self.labels.push(Labels::new());
            self.taints.push(Vec::new());
            self.unschedulable.push(false);
            self.allocatable.push(Resources::default());
            self.requested.push(Resources::default());
            self.scored_cpu.push(0);
            self.scored_memory.push(0);
            self.ports.push(BTreeMap::new());
            self.images.push(BTreeMap::new());
            self.pods.push(BTreeMap::new());
            self.name.len() - 1
        });
        self.name[slot] = name.to_string();
        self.slots.insert(name.to_string(), slot);
        slot
    }

    /// Frees the row of a node that is gone once no pod is left on it.
    fn release(&mut self, slot: Slot) {
        if self.present[slot] || !self.pods[slot].is_empty() {
            return;
        }
        self.slots.remove(&self.name[slot]);
        self.name[slot].clear();
        self.labels[slot].clear();
        self.taints[slot].clear();
        self.unschedulable[slot] = false;
        self.allocatable[slot] = Resources::default();
        self.requested[slot] = Resources::default();
        self.scored_cpu[slot] = 0;
        self.scored_memory[slot] = 0;
        self.ports[slot].clear();
        self.free.push(slot);
    }
}
