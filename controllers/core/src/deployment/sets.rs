//! A Deployment's ReplicaSets: which is the new one, which are old, their revisions and annotations.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{DESIRED, MAXIMUM, REVISION, TEMPLATE_HASH, fence, replicas, rolling};
use crate::labels::template_hash;
use crate::{Key, Object, View};

/// Annotations of a Deployment that its sets do not inherit.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    "deployment.kubernetes.io/revision-history",
    DESIRED,
    MAXIMUM,
    "deprecated.deployment.rollback.to",
];

/// A set as it is (`object`) and as it should be.
#[derive(Clone, Debug)]
pub struct Set {
    pub object: Arc<ReplicaSet>,
    pub replicas: i32,
    pub min_ready: Option<i32>,
    pub annotations: BTreeMap<String, String>,
}

impl Set {
    pub fn new(object: &Arc<ReplicaSet>) -> Set {
        let spec = object.spec.as_ref();
        Set {
            object: object.clone(),
            replicas: spec.and_then(|s| s.replicas).unwrap_or(1),
            min_ready: spec.and_then(|s| s.min_ready_seconds),
            annotations: object.metadata.annotations.clone().unwrap_or_default(),
        }
    }

    /// `spec.replicas` as the server has it.
    pub fn size(&self) -> i32 {
        self.object.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    /// Available pods, never more than the set may have: the status may lag behind a shrinking.
    pub fn available(&self) -> i32 {
        let status = self.object.status.as_ref();
        status.and_then(|s| s.available_replicas).unwrap_or(0).min(self.replicas)
    }

    /// Pods the set had when its controller last looked.
    pub fn running(&self) -> i32 {
        self.object.status.as_ref().map_or(0, |s| s.replicas)
    }

    /// Whether the set's controller has looked at this size.
    pub fn is_observed(&self) -> bool {
        let observed = self.object.status.as_ref().and_then(|s| s.observed_generation);
        observed.unwrap_or(0) >= self.object.metadata.generation.unwrap_or(0)
    }

    pub fn revision(&self) -> i64 {
        self.object.annotation(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
    }
}

#[derive(Clone, Debug, Default)]
pub struct Sets {
    pub new: Option<Set>,
    /// From the oldest to the youngest.
    pub old: Vec<Set>,
    /// The new set, when this plan makes it.
    pub created: Option<ReplicaSet>,
    /// Uids of every set in the namespace by name, to notice a foreign one under our name.
    names: BTreeMap<String, Arc<ReplicaSet>>,
    pub collided: bool,
}

impl Sets {
    pub fn of(deployment: &Deployment, view: &View) -> Sets {
        let mut mine: Vec<Arc<ReplicaSet>> = view
            .of::<ReplicaSet>()
            .controlled_by(deployment.uid())
            .filter(|set| super::selects(deployment, set))
            .cloned()
            .collect();
        mine.sort_by_key(|s| (s.metadata.creation_timestamp.clone().map(|t| t.0), s.name().to_owned()));
        let template = deployment.spec.as_ref().map(|s| &s.template);
        let is_new = |set: &Arc<ReplicaSet>| template.is_some_and(|t| same_template(set, t));
        let new = mine.iter().position(is_new);
        let names = view.of::<ReplicaSet>().namespace(deployment.namespace());
        Sets {
            new: new.map(|at| Set::new(&mine[at])),
            old: mine
                .iter()
                .enumerate()
                .filter(|(at, _)| Some(*at) != new)
                .map(|(_, s)| Set::new(s))
                .collect(),
            created: None,
            names: names.map(|s| (s.name().to_owned(), s.clone())).collect(),
            collided: false,
        }
    }

    pub fn all(&self) -> impl Iterator<Item = &Set> {
        self.new.iter().chain(&self.old)
    }

    pub fn total(&self) -> i32 {
        self.all().map(|s| s.replicas).sum()
    }

    /// Whether the Deployment's size changed since the sets were last sized.
    pub fn is_scaling(&self, spec: &DeploymentSpec) -> bool {
        self.all().filter(|s| s.size() > 0).any(|set| {
            let desired = set.object.annotation(DESIRED).and_then(|d| d.parse().ok());
            desired.is_some_and(|d: i32| d != replicas(spec))
        })
    }

    /// Whether the rollout is done, as far as this view tells.
    pub fn is_complete(&self, deployment: &Deployment) -> bool {
        let status = deployment.status.clone().unwrap_or_default();
        super::status::is_complete(deployment, &status)
    }

    fn newest_old_revision(&self) -> i64 {
        self.old.iter().map(Set::revision).max().unwrap_or(0)
    }

    /// The revision of the new set: it moves to the front when an old template comes back.
    pub fn revision(&self) -> i64 {
        let next = self.newest_old_revision() + 1;
        self.new.as_ref().map_or(next, |s| s.revision().max(next))
    }

    /// Writes the revision of the new set, made or found, on the Deployment.
    pub fn set_revision(&self, deployment: &mut Deployment) {
        if self.new.is_some() || self.created.is_some() {
            let revision = self.revision().to_string();
            deployment.metadata.annotations.get_or_insert_default().insert(REVISION.to_owned(), revision);
        }
    }

    /// Annotations of the sets: the Deployment's own and the revision on the new one, sizes on all that run.
    pub fn annotate(&mut self, deployment: &Deployment, spec: &DeploymentSpec) {
        let revision = self.revision();
        if let Some(new) = self.new.as_mut() {
            let old = new.annotations.clone();
            inherit(&mut new.annotations, deployment);
            let was = old.get(REVISION).and_then(|r| r.parse::<i64>().ok()).unwrap_or(0);
            if was < revision {
                new.annotations.insert(REVISION.to_owned(), revision.to_string());
                if let Some(was) = old.get(REVISION) {
                    let history = new
                        .annotations
                        .entry("deployment.kubernetes.io/revision-history".into())
                        .or_default();
                    *history = if history.is_empty() { was.clone() } else { format!("{history},{was}") };
                }
            }
            new.min_ready = Some(spec.min_ready_seconds.unwrap_or(0)).filter(|n| *n > 0);
        }
        let paused = spec.paused == Some(true);
        for set in self.new.iter_mut().chain(&mut self.old) {
            if set.replicas > 0 || set.size() != set.replicas {
                // A paused or unsized set keeps the sizes it was scaled for.
                if !paused || set.size() != set.replicas || !set.annotations.contains_key(DESIRED) {
                    size_annotations(&mut set.annotations, spec);
                }
            }
        }
    }

    /// The set for the Deployment's template, sized by its strategy.
    pub fn make_new(&self, deployment: &Deployment, spec: &DeploymentSpec) -> ReplicaSet {
        let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
        let hash = template_hash(&spec.template, collisions);
        let mut template = spec.template.clone();
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(TEMPLATE_HASH.to_owned(), hash.clone());
        let labels = labels.clone();
        let mut selector = spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(TEMPLATE_HASH.to_owned(), hash.clone());
        let mut annotations = BTreeMap::new();
        inherit(&mut annotations, deployment);
        annotations.insert(REVISION.to_owned(), self.revision().to_string());
        size_annotations(&mut annotations, spec);
        ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", deployment.name())),
                namespace: deployment.metadata.namespace.clone(),
                labels: Some(labels),
                annotations: Some(annotations),
                owner_references: Some(vec![deployment.owner_reference()]),
                ..Default::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(rolling::new_size(spec, self)),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        }
    }

    /// Whether another object already has the new set's name.
    pub fn collides(&mut self, set: &ReplicaSet) -> bool {
        self.collided = self.names.contains_key(set.name());
        self.collided
    }

    pub fn new_key(&self) -> Option<Key> {
        self.new.as_ref().map(|s| Key::of(s.object.as_ref()))
    }
}

fn inherit(annotations: &mut BTreeMap<String, String>, deployment: &Deployment) {
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !OWN.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
}

fn size_annotations(annotations: &mut BTreeMap<String, String>, spec: &DeploymentSpec) {
    annotations.insert(DESIRED.to_owned(), replicas(spec).to_string());
    annotations.insert(MAXIMUM.to_owned(), (replicas(spec) + fence(spec).0).to_string());
}

/// Whether a set was made from this template: equal but for the hash label.
fn same_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let plain = |t: &PodTemplateSpec| {
        let mut t = t.clone();
        let meta = t.metadata.get_or_insert_default();
        meta.creation_timestamp = None;
        let labels = meta.labels.get_or_insert_default();
        labels.remove(TEMPLATE_HASH);
        if meta.annotations.as_ref().is_some_and(|a| a.is_empty()) {
            meta.annotations = None;
        }
        t
    };
    let of_set = set.spec.as_ref().and_then(|s| s.template.as_ref());
    of_set.is_some_and(|t| plain(t) == plain(template))
}
