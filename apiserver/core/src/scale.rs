//! The scale subresource: a view of an object as `autoscaling/v1` Scale.

use crate::context::{Context, Outcome, Target, WriteOptions};
use crate::managed;
use crate::value::{at, int, set, text};
use crate::{meta, write};
use keelson_api::{FieldError, LabelSelector, Path, Resource, Status};
use serde_json::{Value, json};

/// The Scale of an object.
pub fn read(resource: &Resource, object: &Value) -> Result<Value, Status> {
    view(resource, object, false)
}

/// The Scale a write starts from: a number that is not there is none.
pub fn to_write(resource: &Resource, object: &Value) -> Result<Value, Status> {
    view(resource, object, true)
}

fn view(resource: &Resource, object: &Value, written: bool) -> Result<Value, Status> {
    if resource.subresource("scale").is_none() {
        return Err(Status::not_supported(resource, "scale"));
    }
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        crate::value::copy(&object["metadata"], &mut metadata, field);
    }
    if let Some(definition) = &resource.definition {
        return custom(&definition.scale, object, metadata, written);
    }
    let selector = at(object, "spec.selector");
    let selector = if resource.plural == "replicationcontrollers" {
        LabelSelector::from_map(selector).to_string()
    } else {
        LabelSelector::from_object(selector).to_string()
    };
    let mut status = json!({"replicas": int(object, "status.replicas")});
    if !selector.is_empty() {
        set(&mut status, "selector", selector);
    }
    let mut spec = json!({});
    if int(object, "spec.replicas") != 0 {
        set(&mut spec, "replicas", int(object, "spec.replicas"));
    }
    Ok(
        json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status}),
    )
}

/// The Scale of a custom resource, from where its definition says.
fn custom(paths: &Value, object: &Value, metadata: Value, written: bool) -> Result<Value, Status> {
    let path = |field: &str| text(paths, field).trim_start_matches('.').to_owned();
    let replicas = at(object, &path("specReplicasPath")).as_i64();
    let Some(replicas) = replicas.or_else(|| written.then_some(0)) else {
        return Err(Status::internal(format!(
            "the spec replicas field {} does not exist",
            keelson_api::field::quote(text(paths, "specReplicasPath"))
        )));
    };
    let mut spec = json!({});
    if replicas != 0 {
        set(&mut spec, "replicas", replicas);
    }
    let mut status = json!({"replicas": int(object, &path("statusReplicasPath"))});
    let selector = path("labelSelectorPath");
    if !selector.is_empty() && !text(object, &selector).is_empty() {
        set(&mut status, "selector", text(object, &selector));
    }
    Ok(
        json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status}),
    )
}

/// Where an object keeps the number it is to have.
fn replicas_path(resource: &Resource) -> String {
    let given = resource
        .definition
        .as_ref()
        .map(|d| text(&d.scale, "specReplicasPath").trim_start_matches('.').to_owned());
    given.filter(|p| !p.is_empty()).unwrap_or_else(|| "spec.replicas".into())
}

/// What the object should be after its Scale was written; the answer is the new Scale.
pub fn update(
    target: &Target,
    current: Option<&Value>,
    scale: Value,
    options: &WriteOptions,
    ctx: &Context,
) -> Result<Outcome, Status> {
    let Some(current) = current else {
        return Err(Status::not_found(target.resource, target.name));
    };
    let given = text(&scale, "metadata.name");
    if !given.is_empty() && given != target.name {
        let message =
            format!("the name of the object ({given}) does not match the name on the URL ({})", target.name);
        return Err(Status::bad_request(message));
    }
    let replicas = int(&scale, "spec.replicas");
    if replicas < 0 {
        let error = FieldError::invalid(
            &Path::new("spec").child("replicas"),
            replicas,
            "must be greater than or equal to 0",
        );
        return Err(Status::invalid_kind("autoscaling", "Scale", target.name, vec![error]));
    }
    let mut new = current.clone();
    set(&mut new, &replicas_path(target.resource), replicas);
    set(&mut new, "metadata.resourceVersion", at(&scale, "metadata.resourceVersion").clone());
    let uid = text(&scale, "metadata.uid");
    if !uid.is_empty() {
        set(&mut new, "metadata.uid", uid);
    }
    let main = Target { subresource: None, ..*target };
    meta::place(&main, &mut new)?;
    let mut outcome = write::update_with(&main, current, new, None, ctx, |current, new| {
        managed::update(target, Some(current), new, &options.field_manager, ctx.now)
    })?;
    outcome.answer = Some(read(target.resource, &outcome.object)?);
    Ok(outcome)
}
