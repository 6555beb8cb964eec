//! ResourceQuota: refuses what would take a namespace over one of its quotas.
//!
//! Usage is counted from the view, so it is as fresh as the view is: two requests at the same instant may both pass.

use super::limits::pod_amounts;
use crate::context::{Context, Target};
use crate::value::{at, is_empty, items, text};
use keelson_api::{Quantity, Resource, Status};
use serde_json::Value;
use std::collections::BTreeMap;

type Amounts = BTreeMap<String, Quantity>;

/// Refuses a new object that a quota has no room for.
pub fn check(target: &Target, object: &Value, ctx: &Context) -> Result<(), Status> {
    if !target.resource.namespaced || target.resource.plural == "resourcequotas" {
        return Ok(());
    }
    let quotas = ctx.view.list("", "resourcequotas", Some(target.namespace));
    for quota in quotas.iter().filter(|q| in_scope(q, target.resource, object)) {
        let hard: Amounts = at(quota, "spec.hard")
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(k, v)| Some((k.clone(), Quantity::from_value(v).ok()?)))
            .collect();
        let name = crate::value::name(quota);
        let forbidden =
            |cause: String| Status::forbidden(target.resource, text(object, "metadata.name"), &cause);
        if target.resource.plural == "pods" {
            let missing = unspecified(&hard, object);
            if !missing.is_empty() {
                return Err(forbidden(format!("failed quota: {name}: must specify {}", missing.join("; "))));
            }
        }
        let asked = usage(target.resource, object);
        let limited: Amounts =
            hard.into_iter().filter(|(k, _)| asked.get(k).is_some_and(|a| !a.is_zero())).collect();
        if limited.is_empty() {
            continue;
        }
        let existing = ctx.view.list(&target.resource.group, &target.resource.plural, Some(target.namespace));
        let mut used: Amounts = limited.keys().map(|k| (k.clone(), Quantity::from_int(0))).collect();
        for other in existing.iter().filter(|o| in_scope(quota, target.resource, o)) {
            for (k, v) in usage(target.resource, other) {
                if let Some(sum) = used.get_mut(&k) {
                    *sum = sum.plus(&v);
                }
            }
        }
        let over: Vec<&String> =
            limited.iter().filter(|(k, most)| used[*k].plus(&asked[*k]) > **most).map(|(k, _)| k).collect();
        if !over.is_empty() {
            let list =
                |of: &Amounts| over.iter().map(|k| format!("{k}={}", of[*k])).collect::<Vec<_>>().join(",");
            let cause = format!(
                "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
                list(&asked),
                list(&used),
                list(&limited)
            );
            return Err(forbidden(cause));
        }
    }
    Ok(())
}

/// Computed resources a quota limits and a container says nothing about.
fn unspecified(hard: &Amounts, pod: &Value) -> Vec<String> {
    let mut out = vec![];
    for key in hard.keys() {
        let (field, resource) = match key.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => ("requests", key.as_str()),
            other => match other.split_once('.') {
                Some((
                    field @ ("requests" | "limits"),
                    resource @ ("cpu" | "memory" | "ephemeral-storage"),
                )) => (field, resource),
                _ => continue,
            },
        };
        let lacks = |c: &&Value| c["resources"][field].get(resource).is_none();
        let all = items(pod, "spec.containers").iter().chain(items(pod, "spec.initContainers"));
        let names: Vec<&str> = all.filter(lacks).map(|c| text(c, "name")).collect();
        if !names.is_empty() {
            out.push(format!("{key} for: {}", names.join(",")));
        }
    }
    out
}

/// What an object counts for.
fn usage(resource: &Resource, object: &Value) -> Amounts {
    let mut out = Amounts::new();
    let one = Quantity::from_int(1);
    out.insert(format!("count/{}", resource.group_resource()), one);
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => {
            if ["Succeeded", "Failed"].contains(&text(object, "status.phase")) {
                return out;
            }
            out.insert("pods".into(), one);
            for (k, v) in pod_amounts(object, "requests") {
                out.insert(k.clone(), v);
                out.insert(format!("requests.{k}"), v);
            }
            for (k, v) in pod_amounts(object, "limits") {
                out.insert(format!("limits.{k}"), v);
            }
        }
        ("", "services") => {
            out.insert("services".into(), one);
            let ports = items(object, "spec.ports").len() as i64;
            match text(object, "spec.type") {
                "NodePort" => drop(out.insert("services.nodeports".into(), Quantity::from_int(ports))),
                "LoadBalancer" => {
                    out.insert("services.loadbalancers".into(), one);
                    if at(object, "spec.allocateLoadBalancerNodePorts") != &Value::Bool(false) {
                        out.insert("services.nodeports".into(), Quantity::from_int(ports));
                    }
                }
                _ => {}
            }
        }
        ("", "persistentvolumeclaims") => {
            out.insert("persistentvolumeclaims".into(), one);
            let class = text(object, "spec.storageClassName");
            let size = Quantity::from_value(at(object, "spec.resources.requests.storage"))
                .unwrap_or(Quantity::from_int(0));
            out.insert("requests.storage".into(), size);
            if !class.is_empty() {
                let prefix = format!("{class}.storageclass.storage.k8s.io");
                out.insert(format!("{prefix}/persistentvolumeclaims"), one);
                out.insert(format!("{prefix}/requests.storage"), size);
            }
        }
        ("", plural @ ("configmaps" | "secrets")) => drop(out.insert(plural.into(), one)),
        _ => {}
    }
    out
}

fn in_scope(quota: &Value, resource: &Resource, object: &Value) -> bool {
    let simple =
        items(quota, "spec.scopes").iter().filter_map(Value::as_str).map(|s| (s, "Exists", Value::Null));
    let selectors = items(quota, "spec.scopeSelector.matchExpressions");
    let complex = selectors.iter().map(|e| (text(e, "scopeName"), text(e, "operator"), e["values"].clone()));
    let all: Vec<_> = simple.chain(complex).collect();
    if all.is_empty() {
        return true;
    }
    // Scopes are about pods.
    resource.group.is_empty()
        && resource.plural == "pods"
        && all.iter().all(|(scope, op, values)| pod_matches(scope, op, values, object))
}

fn pod_matches(scope: &str, operator: &str, values: &Value, pod: &Value) -> bool {
    let best_effort = crate::resources::pod_spec::qos_class(&pod["spec"]) == "BestEffort";
    let terminating = !at(pod, "spec.activeDeadlineSeconds").is_null();
    let class = text(pod, "spec.priorityClassName");
    match scope {
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "PriorityClass" => {
            let listed = values.as_array().into_iter().flatten().any(|v| v == class);
            match operator {
                "In" => listed,
                "NotIn" => !listed,
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => {
            let affinity = at(pod, "spec.affinity");
            ["podAffinity", "podAntiAffinity"].iter().any(|k| {
                let terms = items(&affinity[*k], "requiredDuringSchedulingIgnoredDuringExecution");
                terms.iter().any(|t| !is_empty(&t["namespaces"]) || !t["namespaceSelector"].is_null())
            })
        }
        _ => false,
    }
}
