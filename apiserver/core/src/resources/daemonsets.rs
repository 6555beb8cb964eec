//! DaemonSets.

use super::apps::{default_template, is_blank, is_valid, mismatch, runs_for_ever};
use super::{Strategy, pod_validate};
use crate::context::{Context, Target};
use crate::validate::{at_most_100_percent, immutable, int_or_percent, label_selector, non_negative};
use crate::value::{at, default, int, is_empty, object_mut, set, text};
use keelson_api::{ErrorList, FieldError, LabelSelector, Path};
use serde_json::Value;

pub struct DaemonSets;

/// Counts the changes of the template, for clients older than revisions.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn set_template_generation(object: &mut Value, value: &str) {
    let annotations = object_mut(object, "metadata").entry("annotations").or_insert(Value::Null);
    crate::value::map_mut(annotations).insert(TEMPLATE_GENERATION.into(), value.into());
}

fn template_generation(object: &Value) -> i64 {
    let annotation = &object["metadata"]["annotations"][TEMPLATE_GENERATION];
    annotation.as_str().and_then(|t| t.parse().ok()).unwrap_or(0)
}

impl Strategy for DaemonSets {
    fn warnings(&self, object: &Value) -> Vec<String> {
        super::pod_warnings::template(object)
    }
    fn warnings_on_update(&self, current: &Value, new: &Value) -> Vec<String> {
        super::apps::template_warnings_on_update(current, new)
    }
    fn default(&self, object: &mut Value) {
        default_template(object);
        if object["metadata"]["annotations"][TEMPLATE_GENERATION].is_null() {
            set_template_generation(object, "0");
        }
        if is_empty(at(object, "spec.updateStrategy.type")) {
            set(object, "spec.updateStrategy.type", "RollingUpdate");
        }
        if text(object, "spec.updateStrategy.type") == "RollingUpdate" {
            default(object, "spec.updateStrategy.rollingUpdate.maxUnavailable", 1);
            default(object, "spec.updateStrategy.rollingUpdate.maxSurge", 0);
        }
        default(object, "spec.revisionHistoryLimit", 10);
    }
    fn generation(&self) -> bool {
        true
    }
    fn prepare_create(&self, object: &mut Value, _: &Context) {
        set_template_generation(object, "1");
    }
    fn prepare_update(&self, target: &Target, current: &Value, new: &mut Value, _: &Context) {
        if target.subresource.is_some() {
            return;
        }
        let changed = current["spec"]["template"] != new["spec"]["template"];
        let generation = template_generation(current) + i64::from(changed);
        set_template_generation(new, &generation.to_string());
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let (selector, template) = (&spec["selector"], &spec["template"]);
        label_selector(selector, &path.child("selector"), errors);
        let labels = at(template, "metadata.labels");
        if is_valid(selector) && !is_blank(selector) && !LabelSelector::from_object(selector).matches(labels)
        {
            mismatch(labels, &path.child("template"), errors);
        }
        if is_blank(selector) {
            let detail = "empty selector is invalid for daemonset";
            let shown = crate::value::without_empty(selector);
            errors.push(FieldError::invalid(&path.child("selector"), shown, detail));
        }
        pod_validate::template(template, &path.child("template"), errors);
        runs_for_ever(template, &path.child("template"), "DaemonSet", errors);
        non_negative(int(spec, "minReadySeconds"), &path.child("minReadySeconds"), errors);
        update_strategy(&spec["updateStrategy"], &path.child("updateStrategy"), errors);
        non_negative(int(spec, "revisionHistoryLimit"), &path.child("revisionHistoryLimit"), errors);
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource == Some("status") {
            let fields = [
                "currentNumberScheduled",
                "numberMisscheduled",
                "desiredNumberScheduled",
                "numberReady",
                "observedGeneration",
                "updatedNumberScheduled",
                "numberAvailable",
                "numberUnavailable",
            ];
            super::apps::status(&fields, new, errors);
            return;
        }
        // What cannot change is named first.
        let mut first = ErrorList::new();
        immutable(current, new, "spec.selector", &mut first);
        errors.splice(0..0, first);
    }
}

fn update_strategy(strategy: &Value, path: &Path, errors: &mut ErrorList) {
    match text(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" if strategy["rollingUpdate"].is_null() => {
            errors.push(FieldError::required(&path.child("rollingUpdate"), ""));
        }
        "RollingUpdate" => rolling_update(&strategy["rollingUpdate"], &path.child("rollingUpdate"), errors),
        other => {
            errors.push(FieldError::not_supported(&path.child("type"), other, &["OnDelete", "RollingUpdate"]))
        }
    }
}

/// The number, or the percentage.
fn amount(value: &Value) -> i64 {
    let percent = value.as_str().and_then(|s| s.strip_suffix('%')).and_then(|s| s.parse().ok());
    value.as_i64().or(percent).unwrap_or(0)
}

fn rolling_update(value: &Value, path: &Path, errors: &mut ErrorList) {
    for field in ["maxUnavailable", "maxSurge"] {
        int_or_percent(&value[field], &path.child(field), errors);
        at_most_100_percent(&value[field], &path.child(field), errors);
    }
    match (amount(&value["maxUnavailable"]) != 0, amount(&value["maxSurge"]) != 0) {
        (true, true) => {
            let detail = "may not be set when maxUnavailable is non-zero";
            errors.push(FieldError::invalid(&path.child("maxSurge"), value["maxSurge"].clone(), detail));
        }
        (false, false) => {
            let detail = "cannot be 0 when maxSurge is 0";
            errors.push(FieldError::required(&path.child("maxUnavailable"), detail));
        }
        _ => {}
    }
}
