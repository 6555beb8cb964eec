//! What makes a StatefulSet's pod this one and no other: its name, its number, its claims.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::Work;
use crate::history::{REVISION_LABEL, template_of};
use crate::{Key, Object, Plan};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The number in a pod's name, if the name is one of this set's.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let number = pod.name().strip_prefix(set.name())?.strip_prefix('-')?;
    let plain = number == "0" || !number.starts_with('0');
    if plain && number.bytes().all(|b| b.is_ascii_digit()) { number.parse().ok() } else { None }
}

impl Work<'_> {
    fn pod_name(&self, number: i32) -> String {
        format!("{}-{number}", self.set.name())
    }

    fn claim_name(&self, template: &PersistentVolumeClaim, number: i32) -> String {
        format!("{}-{}", template.name(), self.pod_name(number))
    }

    fn claim_templates(&self) -> impl Iterator<Item = &PersistentVolumeClaim> {
        self.spec.volume_claim_templates.iter().flatten()
    }

    /// The pod with this number, of the revision it should have.
    pub(super) fn pod(&self, number: i32) -> Pod {
        let old = self.rolling() && number < self.partition();
        let kept = self.history.get(&self.current).filter(|_| old).and_then(|r| template_of(r));
        let revision = if kept.is_some() { &self.current } else { &self.history.update };
        let template = kept.unwrap_or_else(|| self.spec.template.clone());
        let (meta, name) = (template.metadata.unwrap_or_default(), self.pod_name(number));
        let mut labels = meta.labels.unwrap_or_default();
        labels.insert(POD_NAME.to_owned(), name.clone());
        labels.insert(POD_INDEX.to_owned(), number.to_string());
        labels.insert(REVISION_LABEL.to_owned(), revision.clone());
        let mut spec = template.spec.unwrap_or_default();
        spec.hostname = Some(name.clone());
        spec.subdomain = self.spec.service_name.clone().filter(|s| !s.is_empty());
        let volumes = spec.volumes.get_or_insert_default();
        for claim in self.claim_templates() {
            volumes.retain(|v| v.name != claim.name());
            volumes.push(Volume {
                name: claim.name().to_owned(),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: self.claim_name(claim, number),
                    read_only: None,
                }),
                ..Default::default()
            });
        }
        if volumes.is_empty() {
            spec.volumes = None;
        }
        Pod {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(self.set.namespace().to_owned()),
                labels: Some(labels),
                annotations: meta.annotations,
                finalizers: meta.finalizers,
                owner_references: Some(vec![self.set.owner_reference()]),
                ..Default::default()
            },
            spec: Some(spec),
            status: None,
        }
    }

    fn retention(
        &self,
        when: fn(
            &k8s_openapi::api::apps::v1::StatefulSetPersistentVolumeClaimRetentionPolicy,
        ) -> Option<&str>,
    ) -> bool {
        let policy = self.spec.persistent_volume_claim_retention_policy.as_ref();
        policy.and_then(when) == Some("Delete")
    }

    /// Makes the claims that a pod needs and that are not there.
    pub(super) fn make_claims(&self, plan: &mut Plan, number: i32) {
        for template in self.claim_templates() {
            let name = self.claim_name(template, number);
            let key = Key::new(self.set.namespace(), &name);
            if self.view.get::<PersistentVolumeClaim>(&key).is_some() {
                continue;
            }
            let mut claim = PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(name),
                    namespace: Some(self.set.namespace().to_owned()),
                    labels: template.metadata.labels.clone(),
                    annotations: template.metadata.annotations.clone(),
                    ..Default::default()
                },
                spec: template.spec.clone(),
                status: None,
            };
            if let Some(selected) = &self.spec.selector.match_labels {
                claim.metadata.labels.get_or_insert_default().extend(selected.clone());
            }
            if self.retention(|p| p.when_deleted.as_deref()) {
                claim.metadata.owner_references = Some(vec![self.own()]);
            }
            plan.create(&claim);
        }
    }

    /// An owner by whose end a claim goes; it does not manage the claim.
    fn own(&self) -> OwnerReference {
        OwnerReference { controller: None, block_owner_deletion: None, ..self.set.owner_reference() }
    }

    fn claims(&self, number: i32) -> Vec<Arc<PersistentVolumeClaim>> {
        let names =
            self.claim_templates().map(|t| Key::new(self.set.namespace(), &self.claim_name(t, number)));
        names.filter_map(|key| self.view.get::<PersistentVolumeClaim>(&key).cloned()).collect()
    }

    /// The claims of a pod that stays belong to the set when they are to go with it, and to nobody otherwise.
    pub(super) fn keep_claims(&self, plan: &mut Plan, pod: &Pod, number: i32) {
        let with_set = self.retention(|p| p.when_deleted.as_deref());
        for claim in self.claims(number) {
            let mut new = (*claim).clone();
            let owners = new.metadata.owner_references.get_or_insert_default();
            owners.retain(|o| o.uid != pod.uid() && (with_set || o.uid != self.set.uid()));
            if with_set && !owners.iter().any(|o| o.uid == self.set.uid()) {
                owners.push(self.own());
            }
            if owners.is_empty() {
                new.metadata.owner_references = None;
            }
            plan.update(claim.as_ref(), &new);
        }
    }

    /// The claims of a pod that goes for good go with it, where the set says so.
    pub(super) fn hand_claims_to(&self, plan: &mut Plan, pod: &Pod, number: i32) {
        if !self.retention(|p| p.when_scaled.as_deref()) {
            return;
        }
        for claim in self.claims(number) {
            let mut new = (*claim).clone();
            let owners = new.metadata.owner_references.get_or_insert_default();
            if owners.iter().any(|o| o.uid == pod.uid()) {
                continue;
            }
            owners.retain(|o| o.uid != self.set.uid());
            owners.push(OwnerReference {
                controller: None,
                block_owner_deletion: None,
                ..pod.owner_reference()
            });
            plan.update(claim.as_ref(), &new);
        }
    }
}
