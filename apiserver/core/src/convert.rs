//! The same object in two versions. [`crate::create`] and its siblings speak the requested version; the store holds one.
//!
//! Two pairs are built in: `events.k8s.io/v1` is stored as `v1`, `autoscaling/v1` as `autoscaling/v2`.
//! What the older autoscaler has no field for travels in annotations, so nothing is lost on the way there and back.

use crate::value::{at, is_empty, items, object_mut, set, take, text};
use keelson_api::Resource;
use serde_json::{Value, json};

/// Old name, new name of an Event's fields.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];
pub const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

/// Whether a resource's objects are stored in another version than they are served in.
pub fn needed(resource: &Resource) -> bool {
    resource.storage.is_some() && resource.storage_version != resource.api_version()
}

/// From the requested version to the stored one.
pub fn to_stored(resource: &Resource, object: Value) -> Value {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("events.k8s.io", "events") => event(object, "v1", |(old, new)| (new, old)),
        ("autoscaling", "horizontalpodautoscalers") if resource.version == "v1" => autoscaler_v2(object),
        _ if resource.definition.is_some() => renamed(object, &resource.storage_version),
        _ => object,
    }
}

/// From the stored version to the requested one.
pub fn from_stored(resource: &Resource, object: Value) -> Value {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("events.k8s.io", "events") => event(object, "events.k8s.io/v1", |(old, new)| (old, new)),
        ("autoscaling", "horizontalpodautoscalers") if resource.version == "v1" => autoscaler_v1(object),
        _ if resource.definition.is_some() => renamed(object, &resource.api_version()),
        _ => object,
    }
}

/// Versions of a custom resource differ in nothing but their name, unless a webhook converts (which is not served yet).
fn renamed(mut object: Value, api_version: &str) -> Value {
    set(&mut object, "apiVersion", api_version);
    object
}

fn event(
    mut object: Value,
    version: &str,
    pair: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Value {
    set(&mut object, "apiVersion", version);
    for fields in EVENT_FIELDS {
        let (from, to) = pair(fields);
        if let Some(value) = take(&mut object, from) {
            set(&mut object, to, value);
        }
    }
    object
}

fn annotation(object: &mut Value, key: &str) -> Option<Value> {
    let found = object.get_mut("metadata")?.get_mut("annotations")?.as_object_mut()?.remove(key)?;
    if object["metadata"]["annotations"].as_object().is_some_and(|a| a.is_empty()) {
        take(object, "metadata.annotations");
    }
    serde_json::from_str(found.as_str()?).ok()
}

fn annotate(object: &mut Value, key: &str, value: &Value) {
    if !is_empty(value) {
        let metadata = crate::value::map_mut(object).entry("metadata").or_insert(Value::Null);
        object_mut(metadata, "annotations").insert(key.into(), value.to_string().into());
    }
}

fn is_cpu(metric: &Value) -> bool {
    text(metric, "type") == "Resource"
        && text(metric, "resource.name") == "cpu"
        && at(metric, "resource.target.averageUtilization").is_number()
}

fn autoscaler_v2(mut object: Value) -> Value {
    set(&mut object, "apiVersion", "autoscaling/v2");
    let mut metrics =
        annotation(&mut object, METRICS).and_then(|m| m.as_array().cloned()).unwrap_or_default();
    if let Some(percent) = take(&mut object, "spec.targetCPUUtilizationPercentage") {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}});
        metrics.insert(0, cpu);
    }
    if !metrics.is_empty() {
        set(&mut object, "spec.metrics", metrics);
    }
    if let Some(behavior) = annotation(&mut object, BEHAVIOR) {
        set(&mut object, "spec.behavior", behavior);
    }
    if let Some(conditions) = annotation(&mut object, CONDITIONS) {
        set(&mut object, "status.conditions", conditions);
    }
    let mut current =
        annotation(&mut object, CURRENT).and_then(|m| m.as_array().cloned()).unwrap_or_default();
    if let Some(percent) = take(&mut object, "status.currentCPUUtilizationPercentage") {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}});
        current.insert(0, cpu);
    }
    set(&mut object, "status.currentMetrics", if current.is_empty() { Value::Null } else { current.into() });
    object
}

fn autoscaler_v1(mut object: Value) -> Value {
    set(&mut object, "apiVersion", "autoscaling/v1");
    let mut metrics = items(&object, "spec.metrics").to_vec();
    if let Some(i) = metrics.iter().position(is_cpu) {
        let cpu = metrics.remove(i);
        set(
            &mut object,
            "spec.targetCPUUtilizationPercentage",
            at(&cpu, "resource.target.averageUtilization").clone(),
        );
    }
    take(&mut object, "spec.metrics");
    annotate(&mut object, METRICS, &metrics.into());
    let behavior = take(&mut object, "spec.behavior").unwrap_or_default();
    annotate(&mut object, BEHAVIOR, &behavior);
    let conditions = object.get_mut("status").and_then(|s| take(s, "conditions")).unwrap_or_default();
    annotate(&mut object, CONDITIONS, &conditions);
    let mut current = items(&object, "status.currentMetrics").to_vec();
    let cpu = |m: &Value| {
        text(m, "resource.name") == "cpu" && at(m, "resource.current.averageUtilization").is_number()
    };
    if let Some(i) = current.iter().position(cpu) {
        let found = current.remove(i);
        set(
            &mut object,
            "status.currentCPUUtilizationPercentage",
            at(&found, "resource.current.averageUtilization").clone(),
        );
    }
    if let Some(status) = object.get_mut("status") {
        take(status, "currentMetrics");
    }
    annotate(&mut object, CURRENT, &current.into());
    for field in ["currentReplicas", "desiredReplicas"] {
        crate::value::default(&mut object, &format!("status.{field}"), 0);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::resource::find;

    #[test]
    fn events_travel_there_and_back() {
        let r = find("events.k8s.io", "v1", "events").unwrap();
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "regarding": {"name": "x"}, "note": "n", "reportingController": "c"});
        let old = to_stored(r, new.clone());
        assert_eq!(
            old,
            json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"name": "x"}, "message": "n", "reportingComponent": "c"})
        );
        assert_eq!(from_stored(r, old), new);
    }

    #[test]
    fn autoscalers_keep_what_the_older_version_lacks() {
        let r = find("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        let v2 = json!({"apiVersion": "autoscaling/v2", "spec": {"maxReplicas": 2, "metrics": [
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}},
            {"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 50}}}]},
            "status": {"currentReplicas": 0, "desiredReplicas": 0, "currentMetrics": null}});
        let v1 = from_stored(r, v2.clone());
        assert_eq!(v1["spec"]["targetCPUUtilizationPercentage"], 80);
        assert_eq!(to_stored(r, v1)["spec"], v2["spec"]);
    }
}
