//! Object metadata: what the server fills in, what a client may not change, and its validation.

use crate::context::{Context, Target};
use crate::value::{at, is_empty, items, map_mut, set, take, text};
use keelson_api::{ErrorList, FieldError, Path, Status, names};
use serde_json::Value;
use std::collections::BTreeSet;

/// Longest part of a generateName that is kept.
const GENERATE_BASE: usize = 58;
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

/// A time as `metav1.Time` writes it.
pub fn time(t: jiff::Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time as `metav1.MicroTime` writes it.
pub fn micro_time(t: jiff::Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Checks a new object's place and fills in what the server decides.
pub fn prepare_create(target: &Target, object: &mut Value, ctx: &Context) -> Result<(), Status> {
    place(target, object)?;
    if !text(object, "metadata.resourceVersion").is_empty() {
        let message = "resourceVersion should not be set on objects to be created";
        return Err(Status { code: 500, message: message.into(), bare: true, ..Status::default() });
    }
    let meta = crate::value::object_mut(object, "metadata");
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        meta.remove(field);
    }
    meta.insert("creationTimestamp".into(), time(ctx.now).into());
    meta.insert("uid".into(), ctx.uid.into());
    let prefix = text(object, "metadata.generateName").to_string();
    if text(object, "metadata.name").is_empty() && !prefix.is_empty() {
        let base: String = prefix.chars().take(GENERATE_BASE).collect();
        // Addresses are not made up: there the prefix itself is found wanting.
        let suffix = if target.resource.kind == "IPAddress" { "" } else { ctx.suffix };
        set(object, "metadata.name", format!("{base}{suffix}"));
    }
    Ok(())
}

/// The object's namespace must be the request's; an empty one is filled in.
pub fn place(target: &Target, object: &mut Value) -> Result<(), Status> {
    map_mut(object);
    if target.resource.namespaced {
        let given = text(object, "metadata.namespace");
        if !given.is_empty() && given != target.namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        set(object, "metadata.namespace", target.namespace);
    } else {
        take(object, "metadata.namespace");
    }
    Ok(())
}

/// The object's name must be the URL's.
pub fn check_name(target: &Target, object: &Value) -> Result<(), Status> {
    let (given, url) = (text(object, "metadata.name"), target.name);
    if given.is_empty() {
        let message =
            format!("the name of the object ({url} based on URL) was undeterminable: name must be provided");
        return Err(Status::bad_request(message));
    }
    if given != url {
        return Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({url})"
        )));
    }
    Ok(())
}

/// Carries over what an update may not change silently.
pub fn prepare_update(current: &Value, new: &mut Value) {
    let meta = crate::value::object_mut(new, "metadata");
    meta.remove("selfLink");
    for field in ["generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        match &current["metadata"][field] {
            // A deletion cannot be undone, and one that is asked for here is refused by validation.
            Value::Null if field.starts_with("deletion") => {}
            Value::Null => drop(meta.remove(field)),
            v => drop(meta.insert(field.into(), v.clone())),
        }
    }
    if meta.get("uid").is_none_or(is_empty) {
        meta.insert("uid".into(), current["metadata"]["uid"].clone());
    }
}

/// How a kind's names look: complaints about a name (or a prefix of one).
pub type NameCheck = fn(&str) -> Vec<String>;

/// Validates metadata of a new object.
pub fn validate(target: &Target, object: &Value, name_check: NameCheck, errors: &mut ErrorList) {
    let path = Path::new("metadata");
    let meta = &object["metadata"];
    let prefix = text(meta, "generateName");
    if !prefix.is_empty() {
        // A trailing dash is fine in a prefix: a name is checked as it could become.
        let masked = match prefix.strip_suffix('-') {
            Some(head) if !head.is_empty() => format!("{}a", &prefix[..prefix.len() - 1]),
            _ => prefix.to_string(),
        };
        for problem in name_check(&masked) {
            errors.push(FieldError::invalid(&path.child("generateName"), prefix, &problem));
        }
    }
    let name = text(meta, "name");
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), "name or generateName is required"));
    } else {
        for problem in name_check(name) {
            errors.push(FieldError::invalid(&path.child("name"), name, &problem));
        }
    }
    if target.resource.namespaced {
        let namespace = text(meta, "namespace");
        if namespace.is_empty() {
            errors.push(FieldError::required(&path.child("namespace"), ""));
        } else {
            for problem in names::dns1123_label(namespace) {
                errors.push(FieldError::invalid(&path.child("namespace"), namespace, &problem));
            }
        }
    }
    validate_common(meta, &path, errors);
    finalizers(meta, &path, !plain_finalizers(target), errors);
}

/// Kinds that take a finalizer without a domain: only the older kinds look twice.
fn plain_finalizers(target: &Target) -> bool {
    if target.resource.kind == "Event" && target.resource.group.is_empty() {
        return true;
    }
    let newer = [
        "PodDisruptionBudget",
        "Lease",
        "RuntimeClass",
        "ValidatingWebhookConfiguration",
        "MutatingWebhookConfiguration",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyBinding",
        "CustomResourceDefinition",
        "APIService",
    ];
    target.resource.definition.is_some() || newer.contains(&target.resource.kind.as_str())
}

fn validate_common(meta: &Value, path: &Path, errors: &mut ErrorList) {
    if let Some(generation) = meta["generation"].as_i64().filter(|g| *g < 0) {
        errors.push(FieldError::invalid(
            &path.child("generation"),
            generation,
            "must be greater than or equal to 0",
        ));
    }
    labels(&meta["labels"], &path.child("labels"), errors);
    annotations(&meta["annotations"], &path.child("annotations"), errors);
    owner_references(&meta["ownerReferences"], &path.child("ownerReferences"), errors);
}

pub fn labels(labels: &Value, path: &Path, errors: &mut ErrorList) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        for problem in names::qualified_name(key) {
            errors.push(FieldError::invalid(path, key.as_str(), &problem));
        }
        let value = value.as_str().unwrap_or("");
        for problem in names::label_value(value) {
            errors.push(FieldError::invalid(path, value, &problem));
        }
    }
}

pub fn annotations(annotations: &Value, path: &Path, errors: &mut ErrorList) {
    let mut total = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        for problem in names::qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid(path, key.as_str(), &problem));
        }
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_LIMIT {
        errors.push(FieldError::too_long(path, ANNOTATIONS_LIMIT));
    }
}

fn owner_references(references: &Value, path: &Path, errors: &mut ErrorList) {
    let mut controller: Option<String> = None;
    for r in references.as_array().into_iter().flatten() {
        let version = text(r, "apiVersion");
        if version.is_empty() || version.split('/').count() > 2 || version.ends_with('/') {
            errors.push(FieldError::invalid(&path.child("apiVersion"), version, "version must not be empty"));
        }
        for field in ["kind", "name", "uid"] {
            if text(r, field).is_empty() {
                errors.push(FieldError::invalid(&path.child(field), "", "must not be empty"));
            }
        }
        if r["controller"] == true {
            let this = format!("{}/{}", text(r, "kind"), text(r, "name"));
            match &controller {
                None => controller = Some(this),
                Some(first) => {
                    let detail = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    );
                    errors.push(FieldError::invalid_shown(path, &in_order(references), &detail));
                }
            }
        }
    }
}

/// Owner references as JSON, fields in the order of the type.
fn in_order(references: &Value) -> String {
    let fields = ["apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion"];
    let one = |r: &Value| {
        let parts: Vec<String> =
            fields.iter().filter(|f| !r[**f].is_null()).map(|f| format!("{:?}:{}", f, r[*f])).collect();
        format!("{{{}}}", parts.join(","))
    };
    let all: Vec<String> = references.as_array().into_iter().flatten().map(one).collect();
    format!("[{}]", all.join(","))
}

fn finalizers(meta: &Value, path: &Path, qualified: bool, errors: &mut ErrorList) {
    let path = path.child("finalizers");
    let list: Vec<&str> = items(meta, "finalizers").iter().filter_map(Value::as_str).collect();
    for (i, f) in list.iter().enumerate() {
        for problem in names::qualified_name(f) {
            errors.push(FieldError::invalid(&path, *f, &problem));
        }
        if qualified && !f.contains('/') && !["foregroundDeletion", "orphan", "kubernetes"].contains(f) {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(&path.index(i), *f, detail));
        }
    }
    if list.contains(&"foregroundDeletion") && list.contains(&"orphan") {
        let detail = "finalizer foregroundDeletion and orphan cannot be both set";
        errors.push(FieldError::invalid(&path, at(meta, "finalizers").clone(), detail));
    }
}

/// Validates what an update does to metadata.
pub fn validate_update(target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
    let path = Path::new("metadata");
    // Upstream looks twice (generic and per kind), each time at the object and at the change; all is among the causes.
    let once = looked_at_once(text(new, "kind"))
        || (target.resource.kind == "Event" && target.resource.group.is_empty());
    for look in 0..2 {
        validate_common(&new["metadata"], &path, errors);
        finalizers(&new["metadata"], &path, !plain_finalizers(target), errors);
        if look == 0 || !once {
            new_finalizers(current, new, &path, errors);
        }
        immutable(current, new, &path, errors);
        validate_common(&new["metadata"], &path, errors);
    }
}

fn looked_at_once(kind: &str) -> bool {
    let kinds = [
        "LimitRange",
        "PersistentVolume",
        "PodDisruptionBudget",
        "CSINode",
        "VolumeAttachment",
        "EndpointSlice",
        "ValidatingWebhookConfiguration",
        "MutatingWebhookConfiguration",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyBinding",
    ];
    kinds.contains(&kind)
}

fn new_finalizers(current: &Value, new: &Value, path: &Path, errors: &mut ErrorList) {
    let (old, meta) = (&current["metadata"], &new["metadata"]);
    if crate::value::terminating(current) {
        let had: BTreeSet<&str> = items(old, "finalizers").iter().filter_map(Value::as_str).collect();
        let more: Vec<String> = items(meta, "finalizers")
            .iter()
            .filter_map(Value::as_str)
            .filter(|f| !had.contains(f))
            .map(keelson_api::field::quote)
            .collect();
        if !more.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                more.join(", ")
            );
            errors.push(FieldError::forbidden(&path.child("finalizers"), &detail));
        }
    }
}

fn immutable(current: &Value, new: &Value, path: &Path, errors: &mut ErrorList) {
    let (old, meta) = (&current["metadata"], &new["metadata"]);
    for field in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        if meta[field] != old[field] {
            errors.push(FieldError::invalid(&path.child(field), meta[field].clone(), "field is immutable"));
        }
    }
}
