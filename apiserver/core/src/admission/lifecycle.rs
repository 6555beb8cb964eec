//! NamespaceLifecycle: nothing is made in a namespace that is not there or is going; some namespaces stay.

use crate::context::{Context, Target};
use crate::value::{terminating, text};
use keelson_api::{Cause, Status, resource};
use serde_json::Value;

/// Namespaces that cannot be deleted.
const KEPT: [&str; 3] = ["default", "kube-system", "kube-public"];

pub fn create(target: &Target, object: &Value, ctx: &Context) -> Result<(), Status> {
    if !target.resource.namespaced || target.namespace.is_empty() {
        return Ok(());
    }
    // These are asked and forgotten.
    if target.resource.storage.is_none() && target.resource.group == "authorization.k8s.io" {
        return Ok(());
    }
    let name = target.namespace;
    let namespaces =
        resource::find_preferred("", "namespaces").ok_or_else(|| Status::internal("no namespaces"))?;
    let Some(namespace) = ctx.view.get("", "namespaces", "", name) else {
        return Err(Status::not_found(namespaces, name));
    };
    if terminating(&namespace) || text(&namespace, "status.phase") == "Terminating" {
        let cause =
            format!("unable to create new content in namespace {name} because it is being terminated");
        let named = if target.name.is_empty() { text(object, "metadata.name") } else { target.name };
        let mut status = Status::forbidden(target.resource, named, &cause);
        status.causes = vec![Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {name} is being terminated"),
            field: "metadata.namespace".into(),
        }];
        return Err(status);
    }
    Ok(())
}

pub fn delete(target: &Target) -> Result<(), Status> {
    let is_namespace = target.resource.group.is_empty() && target.resource.plural == "namespaces";
    if is_namespace && KEPT.contains(&target.name) {
        return Err(Status::forbidden(target.resource, target.name, "this namespace may not be deleted"));
    }
    Ok(())
}
