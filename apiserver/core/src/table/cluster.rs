//! Cells of what configures the cluster: admission, flow control, devices, aggregation, addresses. Between name and age.

use super::or_none;
use crate::value::{at, int, items, terminating, text};
use serde_json::{Value, json};

/// An admission policy: how many rules of that field it has, and the kind of its parameters.
pub fn policy(o: &Value, rules: &str) -> Vec<Value> {
    let kind = at(o, "spec.paramKind");
    let shown = match kind {
        Value::Null => "<unset>".to_owned(),
        kind => format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind")),
    };
    vec![json!(items(o, rules).len()), json!(shown)]
}

pub fn policy_binding(o: &Value) -> Vec<Value> {
    let parameters = at(o, "spec.paramRef");
    let shown = match (text(parameters, "namespace"), text(parameters, "name")) {
        (_, "") => "<unset>".to_owned(),
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    vec![json!(text(o, "spec.policyName")), json!(shown)]
}

/// `Local`, or the service; and whether it answers, with the reason why not.
pub fn api_service(o: &Value) -> Vec<Value> {
    let service = match at(o, "spec.service") {
        Value::Null => "Local".to_owned(),
        service => format!("{}/{}", text(service, "namespace"), text(service, "name")),
    };
    let conditions = items(o, "status.conditions");
    let available = conditions.iter().find(|c| text(c, "type") == "Available");
    let shown = match available.map(|c| (text(c, "status"), text(c, "reason"))) {
        None => "Unknown".to_owned(),
        Some((status @ "True", _)) => status.to_owned(),
        Some((status, reason)) => format!("{status} ({reason})"),
    };
    vec![json!(service), json!(shown)]
}

/// What an address belongs to: resource with its group, namespace if there is one, name.
pub fn ip_address(o: &Value) -> Vec<Value> {
    let parent = at(o, "spec.parentRef");
    if parent.is_null() {
        return vec![json!("<none>")];
    }
    let of_group = match text(parent, "group") {
        "" => text(parent, "resource").to_lowercase(),
        group => format!("{}.{group}", text(parent, "resource")).to_lowercase(),
    };
    let parts = [of_group.as_str(), text(parent, "namespace"), text(parent, "name")];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    vec![json!(parts.join("/"))]
}

pub fn service_cidr(o: &Value) -> Vec<Value> {
    let all: Vec<&str> = items(o, "spec.cidrs").iter().filter_map(Value::as_str).collect();
    vec![json!(all.join(","))]
}

pub fn claim_state(o: &Value) -> String {
    let mut states = vec![];
    if terminating(o) {
        states.push("deleted");
    }
    match (at(o, "status.allocation").is_null(), terminating(o)) {
        (true, false) => states.push("pending"),
        (true, true) => {}
        (false, _) => {
            states.push("allocated");
            if !items(o, "status.reservedFor").is_empty() {
                states.push("reserved");
            }
        }
    }
    states.join(",")
}

pub fn resource_slice(o: &Value) -> Vec<Value> {
    ["spec.nodeName", "spec.driver", "spec.pool.name"].map(|path| json!(text(o, path))).to_vec()
}

/// Its age stands before the last column.
pub fn flow_schema(o: &Value, age: String) -> Vec<Value> {
    let conditions = items(o, "status.conditions");
    let dangling = conditions.iter().find(|c| text(c, "type") == "Dangling");
    vec![
        json!(text(o, "spec.priorityLevelConfiguration.name")),
        json!(int(o, "spec.matchingPrecedence")),
        json!(or_none(text(o, "spec.distinguisherMethod.type"))),
        json!(age),
        json!(dangling.map_or("?", |c| text(c, "status"))),
    ]
}

pub fn priority_level(o: &Value) -> Vec<Value> {
    let or_none = |path: &str| match at(o, path) {
        Value::Null => json!("<none>"),
        number => number.clone(),
    };
    let queuing = "spec.limited.limitResponse.queuing";
    vec![
        json!(text(o, "spec.type")),
        or_none("spec.limited.nominalConcurrencyShares"),
        or_none(&format!("{queuing}.queues")),
        or_none(&format!("{queuing}.handSize")),
        or_none(&format!("{queuing}.queueLengthLimit")),
    ]
}
