//! Deployments, ReplicaSets, ControllerRevisions; and what all kinds with a pod template share.

use super::pod_spec::{self, Place};
use super::{Strategy, pod_validate};
use crate::context::Target;
use crate::validate::{immutable, label_selector, non_negative};
use crate::value::{at, default, int, is_empty, map_mut, text};
use keelson_api::{ErrorList, FieldError, LabelSelector, Path};
use serde_json::{Value, json};

/// Fills in `spec.template`.
pub fn default_template(object: &mut Value) {
    let template = crate::value::object_mut(object, "spec").entry("template").or_insert(Value::Null);
    pod_spec::default_spec(map_mut(template).entry("spec").or_insert(Value::Null), Place::Template);
}

/// The selector must be there, well formed, and match the template's labels; the template must be a pod's.
fn selector_and_template(object: &Value, errors: &mut ErrorList) {
    let spec = Path::new("spec");
    let selector = at(object, "spec.selector");
    if selector.is_null() {
        errors.push(FieldError::required(&spec.child("selector"), ""));
    } else {
        label_selector(selector, &spec.child("selector"), errors);
        if is_blank(selector) {
            // Upstream says so of ReplicaSets as well.
            let detail = "empty selector is invalid for deployment";
            let shown = crate::value::without_empty(selector);
            errors.push(FieldError::invalid(&spec.child("selector"), shown, detail));
        }
        if !is_valid(selector) {
            errors.push(FieldError::invalid(
                &spec.child("selector"),
                selector.clone(),
                "invalid label selector",
            ));
        }
    }
    template(object, selector, errors);
}

/// An empty selector matches everything, which is never meant; a missing one matches nothing.
pub fn is_blank(selector: &Value) -> bool {
    selector.is_object() && is_empty(&selector["matchLabels"]) && is_empty(&selector["matchExpressions"])
}

/// Whether a selector is well formed.
pub fn is_valid(selector: &Value) -> bool {
    let mut errors = ErrorList::new();
    label_selector(selector, &Path::root(), &mut errors);
    errors.is_empty()
}

fn template(object: &Value, selector: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec").child("template");
    let template = at(object, "spec.template");
    let labels = at(template, "metadata.labels");
    // What a selector matches is shown as it was given: no labels, or none left.
    if is_valid(selector) && !is_blank(selector) && !LabelSelector::from_object(selector).matches(labels) {
        mismatch(labels, &path, errors);
    }
    pod_validate::template(template, &path, errors);
    runs_for_ever(template, &path, "ReplicaSet", errors);
}

/// The selector does not select the pods that would be made.
pub fn mismatch(labels: &Value, template: &Path, errors: &mut ErrorList) {
    let path = template.child("metadata").child("labels");
    errors.push(FieldError::invalid(&path, labels.clone(), "`selector` does not match template `labels`"));
}

/// What keeps a number of pods running takes only pods that never end by themselves.
pub fn runs_for_ever(template: &Value, path: &Path, kind: &str, errors: &mut ErrorList) {
    let spec = path.child("spec");
    if text(template, "spec.restartPolicy") != "Always" && !text(template, "spec.restartPolicy").is_empty() {
        let policy = text(template, "spec.restartPolicy");
        errors.push(FieldError::not_supported(&spec.child("restartPolicy"), policy, &["Always"]));
    }
    if !at(template, "spec.activeDeadlineSeconds").is_null() {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(FieldError::forbidden(&spec.child("activeDeadlineSeconds"), &detail));
    }
}

pub struct Deployments;

impl Strategy for Deployments {
    fn warnings(&self, object: &Value) -> Vec<String> {
        super::pod_warnings::template(object)
    }
    fn warnings_on_update(&self, current: &Value, new: &Value) -> Vec<String> {
        template_warnings_on_update(current, new)
    }
    fn default(&self, object: &mut Value) {
        default_template(object);
        default(object, "spec.replicas", 1);
        default(object, "spec.strategy.type", "RollingUpdate");
        if text(object, "spec.strategy.type").is_empty() {
            crate::value::set(object, "spec.strategy.type", "RollingUpdate");
        }
        if text(object, "spec.strategy.type") == "RollingUpdate" {
            default(object, "spec.strategy.rollingUpdate", json!({}));
            default(object, "spec.strategy.rollingUpdate.maxUnavailable", "25%");
            default(object, "spec.strategy.rollingUpdate.maxSurge", "25%");
        }
        default(object, "spec.revisionHistoryLimit", 10);
        default(object, "spec.progressDeadlineSeconds", 600);
    }
    fn generation(&self) -> bool {
        true
    }
    fn spec_changed(&self, old: &Value, new: &Value) -> bool {
        let annotations = |v: &Value| v["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
        !crate::value::same(&old["spec"], &new["spec"]) || annotations(old) != annotations(new)
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let spec = Path::new("spec");
        non_negative(int(object, "spec.replicas"), &spec.child("replicas"), errors);
        selector_and_template(object, errors);
        strategy(&object["spec"]["strategy"], &spec.child("strategy"), errors);
        non_negative(int(object, "spec.minReadySeconds"), &spec.child("minReadySeconds"), errors);
        non_negative(int(object, "spec.revisionHistoryLimit"), &spec.child("revisionHistoryLimit"), errors);
        let deadline = int(object, "spec.progressDeadlineSeconds");
        non_negative(deadline, &spec.child("progressDeadlineSeconds"), errors);
        if deadline <= int(object, "spec.minReadySeconds") {
            let detail = "must be greater than minReadySeconds";
            errors.push(FieldError::invalid(&spec.child("progressDeadlineSeconds"), deadline, detail));
        }
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource == Some("status") {
            status(
                &[
                    "observedGeneration",
                    "replicas",
                    "updatedReplicas",
                    "readyReplicas",
                    "availableReplicas",
                    "unavailableReplicas",
                ],
                new,
                errors,
            );
            return;
        }
        immutable(current, new, "spec.selector", errors);
    }
}

/// Warnings about a template, when it may have changed.
pub fn template_warnings_on_update(current: &Value, new: &Value) -> Vec<String> {
    let changed = at(current, "metadata.generation") != at(new, "metadata.generation");
    if changed { super::pod_warnings::template(new) } else { vec![] }
}

fn strategy(strategy: &Value, path: &Path, errors: &mut ErrorList) {
    match text(strategy, "type") {
        "Recreate" => {
            if !strategy["rollingUpdate"].is_null() {
                let detail = "may not be specified when strategy `type` is 'Recreate'";
                errors.push(FieldError::forbidden(&path.child("rollingUpdate"), detail));
            }
        }
        "RollingUpdate" => rolling_update(&strategy["rollingUpdate"], &path.child("rollingUpdate"), errors),
        _ => {
            let shown = crate::gotext::inner("apps.v1.DeploymentStrategy", strategy);
            errors.push(FieldError::not_supported_shown(path, &shown, &["Recreate", "RollingUpdate"]))
        }
    }
}

fn rolling_update(value: &Value, path: &Path, errors: &mut ErrorList) {
    if value.is_null() {
        errors.push(FieldError::required(path, "this should be defaulted and never be nil"));
        return;
    }
    for field in ["maxUnavailable", "maxSurge"] {
        crate::validate::int_or_percent(&value[field], &path.child(field), errors);
    }
    let zero = |v: &Value| v == 0 || v == "0%";
    if zero(&value["maxUnavailable"]) && zero(&value["maxSurge"]) {
        let detail = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid(
            &path.child("maxUnavailable"),
            value["maxUnavailable"].clone(),
            detail,
        ));
    }
    crate::validate::at_most_100_percent(&value["maxUnavailable"], &path.child("maxUnavailable"), errors);
}

/// Counts of a status that may not be negative, nor greater than those they are part of.
pub fn status(fields: &[&str], object: &Value, errors: &mut ErrorList) {
    let path = Path::new("status");
    for field in fields {
        non_negative(int(&object["status"], field), &path.child(field), errors);
    }
    let count = |f: &str| int(&object["status"], f);
    let mut over = |small: &str, big: &str, detail: &str| {
        if fields.contains(&small) && count(small) > count(big) {
            errors.push(FieldError::invalid(&path.child(small), count(small), detail));
        }
    };
    over("updatedReplicas", "replicas", "cannot be greater than status.replicas");
    over("fullyLabeledReplicas", "replicas", "cannot be greater than status.replicas");
    over("readyReplicas", "replicas", "cannot be greater than status.replicas");
    over("availableReplicas", "replicas", "cannot be greater than status.replicas");
    over("availableReplicas", "readyReplicas", "cannot be greater than readyReplicas");
}

pub struct ReplicaSets;

impl Strategy for ReplicaSets {
    fn warnings(&self, object: &Value) -> Vec<String> {
        super::pod_warnings::template(object)
    }
    fn warnings_on_update(&self, current: &Value, new: &Value) -> Vec<String> {
        template_warnings_on_update(current, new)
    }
    fn default(&self, object: &mut Value) {
        default_template(object);
        default(object, "spec.replicas", 1);
    }
    fn generation(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let spec = Path::new("spec");
        non_negative(int(object, "spec.replicas"), &spec.child("replicas"), errors);
        non_negative(int(object, "spec.minReadySeconds"), &spec.child("minReadySeconds"), errors);
        selector_and_template(object, errors);
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource == Some("status") {
            let fields = [
                "replicas",
                "fullyLabeledReplicas",
                "readyReplicas",
                "availableReplicas",
                "observedGeneration",
            ];
            status(&fields, new, errors);
            return;
        }
        immutable(current, new, "spec.selector", errors);
    }
}

pub struct ControllerRevisions;

impl Strategy for ControllerRevisions {
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        if object["data"].is_null() {
            errors.push(FieldError::required(&Path::new("data"), "data is mandatory"));
        } else if !object["data"].is_object() {
            errors.push(FieldError::required(&Path::new("data"), "data must be a valid JSON object"));
        }
        non_negative(int(object, "revision"), &Path::new("revision"), errors);
    }
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        immutable(current, new, "data", errors);
    }
}
