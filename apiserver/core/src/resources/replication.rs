//! ReplicationControllers and PodTemplates.

use super::apps::{default_template, mismatch, runs_for_ever};
use super::pod_spec::{self, Place};
use super::{Strategy, pod_validate};
use crate::context::Target;
use crate::validate::non_negative;
use crate::value::{at, default, int, is_empty, map_mut, set};
use keelson_api::{ErrorList, FieldError, LabelSelector, Path};
use serde_json::Value;

pub struct ReplicationControllers;

impl Strategy for ReplicationControllers {
    fn warnings(&self, object: &Value) -> Vec<String> {
        super::pod_warnings::template(object)
    }
    fn warnings_on_update(&self, current: &Value, new: &Value) -> Vec<String> {
        super::apps::template_warnings_on_update(current, new)
    }
    fn default(&self, object: &mut Value) {
        let labels = at(object, "spec.template.metadata.labels").clone();
        if !is_empty(&labels) {
            for path in ["spec.selector", "metadata.labels"] {
                if is_empty(at(object, path)) {
                    set(object, path, labels.clone());
                }
            }
        }
        default(object, "spec.replicas", 1);
        if object["spec"]["template"].is_object() {
            default_template(object);
        }
    }
    fn generation(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        non_negative(int(spec, "minReadySeconds"), &path.child("minReadySeconds"), errors);
        if is_empty(&spec["selector"]) {
            errors.push(FieldError::required(&path.child("selector"), ""));
        }
        non_negative(int(spec, "replicas"), &path.child("replicas"), errors);
        let (template, path) = (&spec["template"], path.child("template"));
        if template.is_null() {
            errors.push(FieldError::required(&path, ""));
            return;
        }
        let labels = at(template, "metadata.labels");
        if !is_empty(&spec["selector"]) && !LabelSelector::from_map(&spec["selector"]).matches(labels) {
            mismatch(labels, &path, errors);
        }
        pod_validate::template(template, &path, errors);
        runs_for_ever(template, &path, "ReplicationController", errors);
    }
    fn validate_update(&self, target: &Target, _: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource == Some("status") {
            let fields = [
                "replicas",
                "fullyLabeledReplicas",
                "readyReplicas",
                "availableReplicas",
                "observedGeneration",
            ];
            super::apps::status(&fields, new, errors);
        }
    }
}

pub struct PodTemplates;

impl Strategy for PodTemplates {
    fn default(&self, object: &mut Value) {
        let template = map_mut(object).entry("template").or_insert(Value::Null);
        pod_spec::default_spec(map_mut(template).entry("spec").or_insert(Value::Null), Place::Template);
    }
    fn generation(&self) -> bool {
        true
    }
    fn spec_changed(&self, old: &Value, new: &Value) -> bool {
        old["template"] != new["template"]
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        pod_validate::template(&object["template"], &Path::new("template"), errors);
    }
}
