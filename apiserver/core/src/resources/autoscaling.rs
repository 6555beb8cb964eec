//! HorizontalPodAutoscalers, version 2.

use super::Strategy;
use crate::validate::{non_negative, one_of};
use crate::value::{at, default, int, is_empty, items, set, text};
use keelson_api::{ErrorList, FieldError, Path, Quantity, names};
use serde_json::{Value, json};

pub struct HorizontalPodAutoscalers;

impl Strategy for HorizontalPodAutoscalers {
    fn default(&self, object: &mut Value) {
        default(object, "spec.minReplicas", 1);
        if text(object, "apiVersion") == "autoscaling/v1" {
            // What the version has no field for may stand in an annotation, and then there is a metric.
            if object["metadata"]["annotations"].get(crate::convert::METRICS).is_none() {
                default(object, "spec.targetCPUUtilizationPercentage", 80);
            }
            return;
        }
        if is_empty(at(object, "spec.metrics")) {
            let cpu = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
            set(object, "spec.metrics", cpu);
        }
        if at(object, "spec.behavior").is_object() {
            behavior(&mut object["spec"]["behavior"]);
        }
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let (min, max) = (int(spec, "minReplicas"), int(spec, "maxReplicas"));
        if !spec["minReplicas"].is_null() && min < 1 {
            errors.push(FieldError::invalid(
                &path.child("minReplicas"),
                min,
                "must be greater than or equal to 1",
            ));
        }
        if min == 0
            && !items(spec, "metrics").iter().any(|m| ["Object", "External"].contains(&text(m, "type")))
        {
            let detail =
                "must specify at least one Object or External metric to support scaling to zero replicas";
            errors.push(FieldError::forbidden(&path.child("metrics"), detail));
        }
        if max == 0 {
            errors.push(FieldError::required(&path.child("maxReplicas"), "must be set and greater than 0"));
        } else if max < 0 {
            errors.push(FieldError::invalid(
                &path.child("maxReplicas"),
                max,
                "must be greater than or equal to 1",
            ));
        }
        if !spec["minReplicas"].is_null() && max < min {
            let detail = "must be greater than or equal to `minReplicas`";
            errors.push(FieldError::invalid(&path.child("maxReplicas"), max, detail));
        }
        reference(&spec["scaleTargetRef"], &path.child("scaleTargetRef"), errors);
        if let Some(n) = spec["targetCPUUtilizationPercentage"].as_i64().filter(|n| *n < 1) {
            let at_target = path.child("metrics").index(0).child("resource").child("target");
            errors.push(FieldError::invalid(
                &at_target.child("averageUtilization"),
                n,
                "must be greater than 0",
            ));
        }
        for (i, m) in items(spec, "metrics").iter().enumerate() {
            metric(m, &path.child("metrics").index(i), errors);
        }
        for side in ["scaleUp", "scaleDown"] {
            rules(&spec["behavior"][side], &path.child("behavior").child(side), errors);
        }
    }
}

/// Rules that are given are completed, and those that are not are made.
fn behavior(behavior: &mut Value) {
    default(behavior, "scaleUp", json!({}));
    default(behavior, "scaleDown", json!({}));
    default(behavior, "scaleUp.stabilizationWindowSeconds", 0);
    default(behavior, "scaleUp.selectPolicy", "Max");
    default(behavior, "scaleDown.selectPolicy", "Max");
    if at(behavior, "scaleUp").get("policies").is_none() {
        let policies = json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]);
        set(behavior, "scaleUp.policies", policies);
    }
    if at(behavior, "scaleDown.policies").is_null() {
        set(behavior, "scaleDown.policies", json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]));
    }
}

fn reference(r: &Value, path: &Path, errors: &mut ErrorList) {
    for field in ["kind", "name"] {
        if text(r, field).is_empty() {
            errors.push(FieldError::required(&path.child(field), ""));
        } else {
            for problem in names::path_segment(text(r, field)) {
                errors.push(FieldError::invalid(&path.child(field), text(r, field), &problem));
            }
        }
    }
    if text(r, "apiVersion").split('/').count() > 2 {
        let version = text(r, "apiVersion");
        let detail = format!("unexpected GroupVersion string: {version}");
        errors.push(FieldError::invalid(&path.child("apiVersion"), version, &detail));
    } else if !text(r, "apiVersion").contains('/') {
        let detail = "apiVersion must specify API group";
        errors.push(FieldError::invalid(&path.child("apiVersion"), text(r, "apiVersion"), detail));
    }
}

/// In the order in which they are looked at.
const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
    ("External", "external"),
];

fn metric(m: &Value, path: &Path, errors: &mut ErrorList) {
    let kind = text(m, "type");
    if kind.is_empty() {
        errors.push(FieldError::required(&path.child("type"), "must specify a metric source type"));
    }
    let known = SOURCES.iter().find(|(k, _)| *k == kind);
    if known.is_none() {
        let mut kinds: Vec<&str> = SOURCES.iter().map(|(k, _)| *k).collect();
        kinds.sort_unstable();
        // Found once as a value and once more as the name of a source.
        for _ in 0..2 {
            one_of(kind, &kinds, &path.child("type"), errors);
        }
    }
    let given: Vec<&str> = SOURCES.iter().map(|(_, f)| *f).filter(|f| !m[*f].is_null()).collect();
    let own = known.map(|(_, f)| *f).filter(|f| given.contains(f)).or(given.first().copied());
    for extra in given.iter().filter(|f| Some(**f) != own) {
        errors.push(FieldError::forbidden(&path.child(extra), "must populate the given metric source only"));
    }
    if let Some((_, field)) = SOURCES.iter().find(|(k, _)| *k == kind)
        && m[*field].is_null()
    {
        errors.push(FieldError::required(
            &path.child(field),
            "must populate information for the given metric source",
        ));
    }
    for field in given {
        let (source, path) = (&m[field], path.child(field));
        if field == "resource" || field == "containerResource" {
            crate::validate::required(source, "name", &path, errors);
        } else if text(source, "metric.name").is_empty() {
            let at_name = path.child("metric").child("name");
            errors.push(FieldError::required(&at_name, "must specify a metric name"));
        }
        if field == "containerResource" && text(source, "container").is_empty() {
            errors.push(FieldError::required(&path.child("container"), "must specify a container"));
        }
        target(&source["target"], &path.child("target"), errors);
        let (target, at_target) = (&source["target"], path.child("target"));
        let none = |f: &str| target[f].is_null();
        if field.ends_with("esource") && none("averageUtilization") && none("averageValue") {
            let detail = "must set either a target raw value or a target utilization";
            errors.push(FieldError::required(&at_target.child("averageUtilization"), detail));
        }
        if field == "pods" && none("averageValue") {
            let detail = "must specify a positive target averageValue";
            errors.push(FieldError::required(&at_target.child("averageValue"), detail));
        }
    }
}

fn target(t: &Value, path: &Path, errors: &mut ErrorList) {
    let kind = text(t, "type");
    if kind.is_empty() {
        errors.push(FieldError::required(&path.child("type"), "must specify a metric target type"));
    }
    if !["AverageValue", "Utilization", "Value"].contains(&kind) {
        let detail = "must be either Utilization, Value, or AverageValue";
        errors.push(FieldError::invalid(&path.child("type"), kind, detail));
    }
    if let Some(n) = t["averageUtilization"].as_i64().filter(|n| *n < 1) {
        errors.push(FieldError::invalid(&path.child("averageUtilization"), n, "must be greater than 0"));
    }
    for field in ["value", "averageValue"] {
        if Quantity::from_value(&t[field]).is_ok_and(|q| q.is_zero() || q.is_negative()) {
            errors.push(FieldError::invalid(&path.child(field), t[field].clone(), "must be positive"));
        }
    }
}

fn rules(r: &Value, path: &Path, errors: &mut ErrorList) {
    if r.is_null() {
        return;
    }
    if let Some(n) = r["stabilizationWindowSeconds"].as_i64() {
        let at_window = path.child("stabilizationWindowSeconds");
        non_negative(n, &at_window, errors);
        if n > 3600 {
            errors.push(FieldError::invalid(&at_window, n, "must be less than or equal to 3600"));
        }
    }
    if let Some(policy) = r["selectPolicy"].as_str() {
        one_of(policy, &["Disabled", "Max", "Min"], &path.child("selectPolicy"), errors);
    }
    let policies = items(r, "policies");
    if policies.is_empty() {
        errors.push(FieldError::required(&path.child("policies"), "must specify at least one Policy"));
    }
    for (i, p) in policies.iter().enumerate() {
        let at_i = path.child("policies").index(i);
        one_of(text(p, "type"), &["Percent", "Pods"], &at_i.child("type"), errors);
        if int(p, "value") <= 0 {
            errors.push(FieldError::invalid(
                &at_i.child("value"),
                int(p, "value"),
                "must be greater than zero",
            ));
        }
        let period = int(p, "periodSeconds");
        if period <= 0 {
            errors.push(FieldError::invalid(
                &at_i.child("periodSeconds"),
                period,
                "must be greater than zero",
            ));
        } else if period > 1800 {
            errors.push(FieldError::invalid(
                &at_i.child("periodSeconds"),
                period,
                "must be less than or equal to 1800",
            ));
        }
    }
}
