//! NodeRestriction: a node's credentials work on that node, its pods, its lease and nothing else.

use super::is;
use crate::context::{Context, Target};
use crate::node::node_name;
use crate::value::{at, items, text};
use keelson_api::Status;
use serde_json::Value;

/// Label prefixes a node may not give itself.
const RESTRICTED: &str = "node-restriction.kubernetes.io/";

pub fn create(target: &Target, object: &Value, ctx: &Context) -> Result<(), Status> {
    let Some(node) = node_name(ctx.user) else { return Ok(()) };
    let forbidden =
        |cause: String| Err(Status::forbidden(target.resource, text(object, "metadata.name"), &cause));
    if is(target, "", "pods") {
        if at(object, "metadata.annotations").get("kubernetes.io/config.mirror").is_none() {
            return forbidden(format!(
                "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
            ));
        }
        if text(object, "spec.nodeName") != node {
            return forbidden(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
        }
        return Ok(());
    }
    if is(target, "", "nodes") && text(object, "metadata.name") != node {
        return forbidden(format!(
            "node {node:?} is not allowed to modify node {:?}",
            text(object, "metadata.name")
        ));
    }
    if is(target, "", "nodes") {
        return labels(target, &Value::Null, object, node);
    }
    own(target, text(object, "metadata.name"), node)
}

pub fn update(target: &Target, current: &Value, new: &Value, ctx: &Context) -> Result<(), Status> {
    let Some(node) = node_name(ctx.user) else { return Ok(()) };
    let forbidden = |cause: String| Err(Status::forbidden(target.resource, target.name, &cause));
    if is(target, "", "pods") {
        if target.subresource != Some("status") {
            return forbidden(format!("unexpected update of pod by node {node:?}"));
        }
        if text(current, "spec.nodeName") != node {
            return forbidden(format!(
                "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
            ));
        }
        return Ok(());
    }
    if is(target, "", "nodes") {
        if target.name != node {
            return forbidden(format!("node {node:?} is not allowed to modify node {:?}", target.name));
        }
        if target.subresource.is_none() && items(current, "spec.taints") != items(new, "spec.taints") {
            return forbidden(format!("node {node:?} is not allowed to modify taints"));
        }
        return labels(target, current, new, node);
    }
    own(target, target.name, node)
}

pub fn delete(target: &Target, current: &Value, ctx: &Context) -> Result<(), Status> {
    let Some(node) = node_name(ctx.user) else { return Ok(()) };
    if is(target, "", "pods") && text(current, "spec.nodeName") != node {
        let cause = format!("node {node:?} can only delete pods with spec.nodeName set to itself");
        return Err(Status::forbidden(target.resource, target.name, &cause));
    }
    if is(target, "", "nodes") && target.name != node {
        let cause = format!("node {node:?} is not allowed to modify node {:?}", target.name);
        return Err(Status::forbidden(target.resource, target.name, &cause));
    }
    own(target, target.name, node)
}

/// Leases in the node namespace and CSI nodes carry the node's name.
fn own(target: &Target, name: &str, node: &str) -> Result<(), Status> {
    let lease = is(target, "coordination.k8s.io", "leases");
    if lease && target.namespace != "kube-node-lease" {
        let cause = "can only access leases in the \"kube-node-lease\" system namespace".to_string();
        return Err(Status::forbidden(target.resource, name, &cause));
    }
    if (lease || is(target, "storage.k8s.io", "csinodes")) && name != node {
        let cause =
            format!("can only access {} with the same name as the requesting node", target.resource.singular);
        return Err(Status::forbidden(target.resource, name, &cause));
    }
    Ok(())
}

fn labels(target: &Target, current: &Value, new: &Value, node: &str) -> Result<(), Status> {
    let (old, now) = (at(current, "metadata.labels"), at(new, "metadata.labels"));
    let keys = [old, now].into_iter().filter_map(Value::as_object).flat_map(|m| m.keys());
    let changed: Vec<&str> =
        keys.filter(|k| k.contains(RESTRICTED) && old.get(*k) != now.get(*k)).map(String::as_str).collect();
    if changed.is_empty() {
        return Ok(());
    }
    let cause = format!("is not allowed to modify labels: {}", changed.join(", "));
    Err(Status::forbidden(target.resource, target.name, &format!("node {node:?} {cause}")))
}
