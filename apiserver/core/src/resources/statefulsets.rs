//! StatefulSets.

use super::apps::{default_template, is_blank, is_valid, mismatch, runs_for_ever};
use super::{Strategy, pod_validate, storage};
use crate::context::{Context, Target};
use crate::meta::NameCheck;
use crate::validate::{label_selector, non_negative, one_of};
use crate::value::{at, default, each_mut, int, is_empty, items, map_mut, take, text};
use keelson_api::{ErrorList, FieldError, LabelSelector, Path, names};
use serde_json::{Value, json};

pub struct StatefulSets;

/// What may change in the spec of a StatefulSet.
const MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

impl Strategy for StatefulSets {
    fn warnings(&self, object: &Value) -> Vec<String> {
        super::pod_warnings::template(object)
    }
    fn warnings_on_update(&self, current: &Value, new: &Value) -> Vec<String> {
        super::apps::template_warnings_on_update(current, new)
    }
    fn name_check(&self) -> NameCheck {
        names::dns1123_label_without_dots
    }
    fn default(&self, object: &mut Value) {
        default_template(object);
        default(object, "spec.replicas", 1);
        for (path, value) in [
            ("spec.podManagementPolicy", "OrderedReady"),
            ("spec.updateStrategy.type", "RollingUpdate"),
            ("spec.persistentVolumeClaimRetentionPolicy.whenDeleted", "Retain"),
            ("spec.persistentVolumeClaimRetentionPolicy.whenScaled", "Retain"),
        ] {
            if is_empty(at(object, path)) {
                crate::value::set(object, path, value);
            }
        }
        if text(object, "spec.updateStrategy.type") == "RollingUpdate" {
            default(object, "spec.updateStrategy.rollingUpdate.partition", 0);
        }
        default(object, "spec.revisionHistoryLimit", 10);
        for claim in each_mut(object, "spec.volumeClaimTemplates") {
            let map = map_mut(claim);
            map.insert("kind".into(), "PersistentVolumeClaim".into());
            map.insert("apiVersion".into(), "v1".into());
            storage::PersistentVolumeClaims.default(claim);
            default(claim, "status.phase", "Pending");
        }
    }
    fn generation(&self) -> bool {
        true
    }
    fn prepare_create(&self, object: &mut Value, _: &Context) {
        // A gate that is off by default guards it.
        take(object, "spec.updateStrategy.rollingUpdate.maxUnavailable");
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        policies(spec, &path, errors);
        let retention = path.child("persistentVolumeClaimRetentionPolicy");
        for field in ["whenDeleted", "whenScaled"] {
            let value = text(&spec["persistentVolumeClaimRetentionPolicy"], field);
            one_of(value, &["Retain", "Delete"], &retention.child(field), errors);
        }
        non_negative(int(spec, "replicas"), &path.child("replicas"), errors);
        non_negative(int(spec, "minReadySeconds"), &path.child("minReadySeconds"), errors);
        non_negative(int(spec, "ordinals.start"), &path.child("ordinals").child("start"), errors);
        for (i, claim) in items(spec, "volumeClaimTemplates").iter().enumerate() {
            let at = path.child("volumeClaimTemplates").index(i).child("spec");
            storage::claim_spec(&claim["spec"], &at, errors);
        }
        selector_and_template(spec, &path, errors);
        let service = text(spec, "serviceName");
        if !service.is_empty() {
            for problem in names::dns1123_label(service) {
                errors.push(FieldError::invalid(&path.child("serviceName"), service, &problem));
            }
        }
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource == Some("status") {
            let fields =
                ["replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
            super::apps::status(&fields, new, errors);
            return;
        }
        let rest = |object: &Value| {
            let mut spec = object["spec"].as_object().cloned().unwrap_or_default();
            MUTABLE.iter().for_each(|field| drop(spec.remove(*field)));
            spec
        };
        if rest(current) != rest(new) {
            let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
            errors.push(FieldError::forbidden(&Path::new("spec"), detail));
        }
    }
}

fn policies(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let management = text(spec, "podManagementPolicy");
    if management != "OrderedReady" && management != "Parallel" {
        let detail = "must be 'OrderedReady' or 'Parallel'";
        errors.push(FieldError::invalid(&path.child("podManagementPolicy"), management, detail));
    }
    let path = path.child("updateStrategy");
    let (kind, rolling) = (text(spec, "updateStrategy.type"), at(spec, "updateStrategy.rollingUpdate"));
    // The form in which the value is shown is that of upstream's types.
    let shown = if rolling.is_null() {
        "null".to_owned()
    } else {
        crate::gotext::inner("apps.v1.RollingUpdateStatefulSetStrategy", rolling)
    };
    match kind {
        "RollingUpdate" => {
            let at = path.child("rollingUpdate");
            non_negative(int(rolling, "partition"), &at.child("partition"), errors);
            crate::validate::int_or_percent(&rolling["maxUnavailable"], &at.child("maxUnavailable"), errors);
        }
        "OnDelete" if rolling.is_null() => {}
        "OnDelete" => {
            let detail = "only allowed for updateStrategy 'RollingUpdate'";
            errors.push(FieldError::invalid_shown(&path.child("rollingUpdate"), &shown, detail));
        }
        other => {
            let shown =
                format!("{{\"Type\":{},\"RollingUpdate\":{shown}}}", keelson_api::field::quote(other));
            errors.push(FieldError::invalid_shown(&path, &shown, "must be 'RollingUpdate' or 'OnDelete'"));
        }
    }
}

fn selector_and_template(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let selector = &spec["selector"];
    if selector.is_null() {
        errors.push(FieldError::required(&path.child("selector"), ""));
    } else {
        label_selector(selector, &path.child("selector"), errors);
        if is_blank(selector) {
            let detail = "empty selector is invalid for statefulset";
            let shown = crate::value::without_empty(selector);
            errors.push(FieldError::invalid(&path.child("selector"), shown, detail));
        }
    }
    let at_template = path.child("template");
    if !is_valid(selector) {
        errors.push(FieldError::invalid(&path.child("selector"), selector.clone(), ""));
        return;
    }
    let labels = at(spec, "template.metadata.labels");
    if !is_blank(selector) && !LabelSelector::from_object(selector).matches(labels) {
        mismatch(labels, &at_template, errors);
    }
    // Mounts may name the claims that the set makes.
    let mut template = spec["template"].clone();
    let volumes: Vec<Value> = items(spec, "volumeClaimTemplates")
        .iter()
        .map(|claim| {
            let name = text(claim, "metadata.name");
            json!({"name": name, "persistentVolumeClaim": {"claimName": name}})
        })
        .collect();
    if !volumes.is_empty() {
        let kept = items(&template, "spec.volumes")
            .iter()
            .filter(|v| !volumes.iter().any(|c| c["name"] == v["name"]));
        let all: Vec<Value> = kept.cloned().collect::<Vec<_>>().into_iter().chain(volumes.clone()).collect();
        crate::value::set(&mut template, "spec.volumes", all);
    }
    pod_validate::template(&template, &at_template, errors);
    runs_for_ever(&template, &at_template, "StatefulSet", errors);
}
