//! LimitRanger: fills in what containers leave out, and refuses what is out of a namespace's ranges.

use crate::context::{Context, Target};
use crate::value::{at, each_mut, items, object_mut, set, text};
use keelson_api::{Quantity, Status};
use serde_json::Value;
use std::collections::BTreeMap;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

fn limits(ctx: &Context, namespace: &str, kind: &str) -> Vec<Value> {
    let ranges = ctx.view.list("", "limitranges", Some(namespace));
    ranges.iter().flat_map(|r| items(r, "spec.limits")).filter(|l| text(l, "type") == kind).cloned().collect()
}

/// Default requests and limits of a new pod's containers.
pub fn fill_pod(target: &Target, pod: &mut Value, ctx: &Context) {
    let mut done: Vec<String> = vec![];
    for limit in limits(ctx, target.namespace, "Container") {
        for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
            for container in each_mut(&mut pod["spec"], list) {
                let name = text(container, "name").to_string();
                for (defaults, field, word) in
                    [("defaultRequest", "requests", "request"), ("default", "limits", "limit")]
                {
                    let set_here = fill(container, field, &limit[defaults]);
                    if !set_here.is_empty() {
                        done.push(format!("{} {word} for {what} {name}", set_here.join(", ")));
                    }
                }
            }
        }
    }
    if !done.is_empty() {
        let text = format!("LimitRanger plugin set: {}", done.join("; "));
        object_mut(&mut pod["metadata"], "annotations").insert(ANNOTATION.into(), text.into());
    }
}

/// Adds missing amounts; returns their names.
fn fill(container: &mut Value, field: &str, defaults: &Value) -> Vec<String> {
    let mut out = vec![];
    for (resource, amount) in defaults.as_object().into_iter().flatten() {
        if container["resources"][field].get(resource).is_none() {
            set(container, &format!("resources.{field}"), {
                let mut amounts = container["resources"][field].as_object().cloned().unwrap_or_default();
                amounts.insert(resource.clone(), amount.clone());
                amounts
            });
            out.push(resource.clone());
        }
    }
    out
}

type Amounts = BTreeMap<String, Quantity>;

fn amounts(value: &Value) -> Amounts {
    let pairs = value.as_object().into_iter().flatten();
    pairs.filter_map(|(k, v)| Some((k.clone(), Quantity::from_value(v).ok()?))).collect()
}

/// What a pod asks for as a whole: its containers together, or its hungriest init container.
pub fn pod_amounts(pod: &Value, field: &str) -> Amounts {
    let mut total = Amounts::new();
    let of = |c: &Value| amounts(&c["resources"][field]);
    for container in items(pod, "spec.containers") {
        for (k, v) in of(container) {
            let sum = total.get(&k).map_or(v, |old| old.plus(&v));
            total.insert(k, sum);
        }
    }
    for container in items(pod, "spec.initContainers") {
        for (k, v) in of(container) {
            let larger = total.get(&k).map_or(v, |old| (*old).max(v));
            total.insert(k, larger);
        }
    }
    total
}

/// Refuses a pod or a claim that is out of range.
pub fn check(target: &Target, object: &Value, ctx: &Context) -> Result<(), Status> {
    let mut problems = vec![];
    match target.resource.plural.as_str() {
        "pods" => {
            for limit in limits(ctx, target.namespace, "Container") {
                for c in items(object, "spec.containers").iter().chain(items(object, "spec.initContainers")) {
                    let (requests, caps) =
                        (amounts(at(c, "resources.requests")), amounts(at(c, "resources.limits")));
                    compare(&limit, "Container", &requests, &caps, &mut problems);
                }
            }
            for limit in limits(ctx, target.namespace, "Pod") {
                let (requests, caps) = (pod_amounts(object, "requests"), pod_amounts(object, "limits"));
                compare(&limit, "Pod", &requests, &caps, &mut problems);
            }
        }
        "persistentvolumeclaims" => {
            for limit in limits(ctx, target.namespace, "PersistentVolumeClaim") {
                let asked = amounts(at(object, "spec.resources.requests"));
                compare(&limit, "PersistentVolumeClaim", &asked, &asked, &mut problems);
            }
        }
        _ => {}
    }
    let cause = match problems.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    Err(Status::forbidden(target.resource, text(object, "metadata.name"), &cause))
}

fn compare(limit: &Value, kind: &str, requests: &Amounts, caps: &Amounts, problems: &mut Vec<String>) {
    for (resource, least) in amounts(&limit["min"]) {
        let start = format!("minimum {resource} usage per {kind} is {least}");
        match (requests.get(&resource), caps.get(&resource)) {
            (None, _) => problems.push(format!("{start}.  No request is specified")),
            (Some(r), _) if *r < least => problems.push(format!("{start}, but request is {r}")),
            (_, Some(c)) if *c < least => problems.push(format!("{start}, but limit is {c}")),
            _ => {}
        }
    }
    for (resource, most) in amounts(&limit["max"]) {
        let start = format!("maximum {resource} usage per {kind} is {most}");
        match (caps.get(&resource), requests.get(&resource)) {
            (None, _) => problems.push(format!("{start}.  No limit is specified")),
            (Some(c), _) if *c > most => problems.push(format!("{start}, but limit is {c}")),
            (_, Some(r)) if *r > most => problems.push(format!("{start}, but request is {r}")),
            _ => {}
        }
    }
    for (resource, most) in amounts(&limit["maxLimitRequestRatio"]) {
        let start = format!("{resource} max limit to request ratio per {kind} is {most}");
        match (caps.get(&resource), requests.get(&resource)) {
            (Some(c), Some(r)) if !r.is_zero() => {
                let ratio = c.milli() as f64 / r.milli() as f64;
                if ratio > most.milli() as f64 / 1000.0 {
                    problems.push(format!("{start}, but provided ratio is {ratio:.6}"));
                }
            }
            _ => problems.push(format!("{start}, but no request is specified or request is 0")),
        }
    }
}
