//! ControllerRevisions: the templates a StatefulSet or DaemonSet had, so that it can roll back to one.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};

use crate::labels::{Labels, template_hash};
use crate::{Object, Plan, Precondition, View};

/// Label of pods and revisions: which revision a pod was made from.
pub const REVISION_LABEL: &str = "controller-revision-hash";
const HASH_LABEL: &str = "controller.kubernetes.io/hash";

/// The revisions of an owner, from the oldest to the youngest, and the one of its template now.
pub struct History {
    revisions: Vec<Arc<ControllerRevision>>,
    /// Name of the revision of the template as it is.
    pub update: String,
    /// The number to give it when it is not the youngest.
    next: i64,
    found: Option<Arc<ControllerRevision>>,
    data: Value,
    hash: String,
    /// The name was taken by another template.
    pub collided: bool,
}

/// A template as a revision keeps it: a patch of the owner.
fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({ "spec": { "template": template } })
}

/// The template that a revision keeps.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0["spec"]["template"].clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

impl History {
    pub fn of<K: Object>(
        owner: &K,
        template: &PodTemplateSpec,
        collisions: Option<i32>,
        view: &View,
    ) -> History {
        let mut revisions: Vec<Arc<ControllerRevision>> =
            view.of::<ControllerRevision>().controlled_by(owner.uid()).cloned().collect();
        revisions.sort_by_key(|r| (r.revision, r.name().to_owned()));
        let data = data_of(template);
        let same = |r: &&Arc<ControllerRevision>| r.data.as_ref().is_some_and(|d| d.0 == data);
        let found = revisions.iter().rev().find(same).cloned();
        let next = revisions.last().map_or(0, |r| r.revision) + 1;
        let (mut count, mut collided) = (collisions, false);
        let mut hash = template_hash(template, count);
        if found.is_none() {
            // Another template may have the name already.
            while view
                .of::<ControllerRevision>()
                .get(&crate::Key::new(owner.namespace(), &format!("{}-{hash}", owner.name())))
                .is_some()
            {
                count = Some(count.unwrap_or(0) + 1);
                collided = true;
                hash = template_hash(template, count);
            }
        }
        let update =
            found.as_ref().map_or_else(|| format!("{}-{hash}", owner.name()), |r| r.name().to_owned());
        History { revisions, update, next, found, data, hash, collided }
    }

    /// The value of [`REVISION_LABEL`] of pods made from the template as it is, when the label is the bare hash.
    pub fn hash(&self) -> &str {
        let found = self.found.as_ref().and_then(|r| r.label(HASH_LABEL));
        found.unwrap_or(&self.hash)
    }

    /// The revision with this name.
    pub fn get(&self, name: &str) -> Option<&Arc<ControllerRevision>> {
        self.revisions.iter().find(|r| r.name() == name)
    }

    /// Records the template, or moves its revision to the front when an old template came back.
    pub fn record<K: Object>(&self, plan: &mut Plan, owner: &K, labels: Option<&Labels>) {
        if let Some(found) = &self.found {
            if found.revision + 1 < self.next {
                let mut newest = (**found).clone();
                newest.revision = self.next;
                plan.update(found.as_ref(), &newest);
            }
            return;
        }
        let mut labels = labels.cloned().unwrap_or_default();
        labels.insert(HASH_LABEL.to_owned(), self.hash.clone());
        labels.insert(REVISION_LABEL.to_owned(), self.hash.clone());
        plan.create(&ControllerRevision {
            metadata: ObjectMeta {
                name: Some(self.update.clone()),
                namespace: Some(owner.namespace().to_owned()),
                labels: Some(labels),
                annotations: owner.metadata().annotations.clone(),
                owner_references: Some(vec![owner.owner_reference()]),
                ..Default::default()
            },
            data: Some(RawExtension(self.data.clone())),
            revision: self.next,
        });
    }

    /// Deletes the oldest revisions that no pod needs, down to `limit`.
    pub fn truncate(&self, plan: &mut Plan, live: &BTreeSet<String>, limit: usize) {
        let dead: Vec<_> = self
            .revisions
            .iter()
            .filter(|r| r.name() != self.update && !live.contains(r.name()))
            .filter(|r| !r.label(HASH_LABEL).is_some_and(|hash| live.contains(hash)))
            .collect();
        for revision in &dead[..dead.len().saturating_sub(limit)] {
            plan.delete(revision.as_ref(), Precondition::same(revision.as_ref()));
        }
    }
}
