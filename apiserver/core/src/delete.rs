//! Deletion: options, preconditions, grace periods, finalizers, propagation.

use crate::context::DeleteOptions;
use keelson_api::{ErrorList, FieldError, Path, Status};
use serde_json::Value;

/// Reads a `DeleteOptions` object.
pub fn options(value: &Value) -> Result<DeleteOptions, Status> {
    let wrong = |field: &str, found: &Value, want: &str| {
        let found = match found {
            Value::String(_) => "string",
            Value::Number(_) => "number",
            Value::Bool(_) => "bool",
            Value::Array(_) => "array",
            _ => "object",
        };
        Status::bad_request(format!("json: cannot unmarshal {found} into Go struct field DeleteOptions.{field} of type {want}"))
    };
    let text = |at: &Value, field: &str| match at {
        Value::Null => Ok(None),
        Value::String(s) => Ok(Some(s.clone())),
        other => Err(wrong(field, other, "string")),
    };
    let mut out = DeleteOptions {
        precondition_uid: text(&value["preconditions"]["uid"], "preconditions.uid")?,
        precondition_resource_version: text(&value["preconditions"]["resourceVersion"], "preconditions.resourceVersion")?,
        propagation_policy: text(&value["propagationPolicy"], "propagationPolicy")?,
        ..DeleteOptions::default()
    };
    out.grace_period_seconds = match &value["gracePeriodSeconds"] {
        Value::Null => None,
        n => Some(n.as_i64().ok_or_else(|| wrong("gracePeriodSeconds", n, "int64"))?),
    };
    out.orphan_dependents = match &value["orphanDependents"] {
        Value::Null => None,
        b => Some(b.as_bool().ok_or_else(|| wrong("orphanDependents", b, "bool"))?),
    };
    let dry_run = value["dryRun"].as_array().map(Vec::as_slice).unwrap_or_default();
    out.dry_run = dry_run.iter().any(|d| d == "All");
    check(&out)?;
    Ok(out)
}

/// Checks options that came from a body, a query or both.
pub fn check(options: &DeleteOptions) -> Result<(), Status> {
    let mut errors = ErrorList::new();
    let path = Path::new("propagationPolicy");
    if let Some(policy) = &options.propagation_policy {
        if options.orphan_dependents.is_some() {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid(&path, policy.as_str(), detail));
        }
        let known = ["Foreground", "Background", "Orphan"];
        if !known.contains(&policy.as_str()) {
            errors.push(FieldError::not_supported(&path, policy.as_str(), &["Foreground", "Background", "Orphan", "nil"]));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid_kind("meta.k8s.io", "DeleteOptions", "", errors)) }
}
