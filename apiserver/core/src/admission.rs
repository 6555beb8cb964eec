//! Built-in admission: what the cluster adds to a request or refuses, beyond what the object's own rules say.
//!
//! Order on create: namespace life cycle, service account, priority, tolerations, default classes, node restriction.
//! Each plugin is a file below and a line here.

use crate::context::{Context, Target};
use keelson_api::Status;
use serde_json::Value;

pub mod lifecycle;
pub mod limits;
pub mod node_restriction;
pub mod pod_security;
pub mod pods;
pub mod policies;
pub mod quota;
pub mod rbac_escalation;
pub mod storage;
pub mod webhooks;

fn is(target: &Target, group: &str, plural: &str) -> bool {
    target.resource.group == group && target.resource.plural == plural
}

/// Adds to a new object. Returns warnings.
pub fn mutate_create(target: &Target, object: &mut Value, ctx: &Context) -> Result<Vec<String>, Status> {
    lifecycle::create(target, object, ctx)?;
    if is(target, "", "pods") {
        limits::fill_pod(target, object, ctx);
        pods::service_account(target, object, ctx)?;
        pods::priority(target, object, ctx)?;
        pods::tolerations(object);
        pods::runtime_class(target, object, ctx)?;
    }
    if is(target, "", "nodes") {
        pods::taint_new_node(object);
    }
    storage::mutate_create(target, object, ctx);
    node_restriction::create(target, object, ctx)?;
    Ok(vec![])
}

/// Refuses a new object. Returns warnings.
pub fn validate_create(target: &Target, object: &Value, ctx: &Context) -> Result<Vec<String>, Status> {
    limits::check(target, object, ctx)?;
    rbac_escalation::check(target, object, ctx)?;
    let mut warnings = pod_security::check(target, object, ctx)?;
    if is(target, "", "namespaces") {
        warnings.extend(pod_security::namespace(None, object, ctx)?);
    }
    quota::check(target, object, ctx)?;
    Ok(warnings)
}

/// Adds to a changed object. Returns warnings.
pub fn mutate_update(
    target: &Target,
    current: &Value,
    new: &mut Value,
    ctx: &Context,
) -> Result<Vec<String>, Status> {
    if is(target, "", "pods") && target.subresource.is_none() {
        pods::keep_assigned(current, new);
        pods::tolerations(new);
    }
    node_restriction::update(target, current, new, ctx)?;
    Ok(vec![])
}

/// Refuses a change. Returns warnings.
pub fn validate_update(
    target: &Target,
    current: &Value,
    new: &Value,
    ctx: &Context,
) -> Result<Vec<String>, Status> {
    storage::validate_update(target, current, new, ctx)?;
    if current.get("rules") != new.get("rules") || current.get("subjects") != new.get("subjects") {
        rbac_escalation::check(target, new, ctx)?;
    }
    if is(target, "", "namespaces") && target.subresource.is_none() {
        return pod_security::namespace(Some(current), new, ctx);
    }
    // What may change of a pod that exists is nothing these rules look at, but for containers added to it.
    if is(target, "", "pods") && target.subresource.is_none() {
        return Ok(vec![]);
    }
    pod_security::check(target, new, ctx)
}

/// Refuses a deletion.
pub fn validate_delete(target: &Target, current: &Value, ctx: &Context) -> Result<(), Status> {
    lifecycle::delete(target)?;
    node_restriction::delete(target, current, ctx)
}
