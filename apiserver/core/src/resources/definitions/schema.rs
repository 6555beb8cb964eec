//! Whether a schema is structural: every field has a type, nothing refers elsewhere, lists say how they merge.

use crate::value::{flag, is_empty, items, text};
use keelson_api::{ErrorList, FieldError, Path};
use serde_json::Value;

/// Deeper schemas are refused.
const MAX_DEPTH: usize = 100;
/// What a structural schema may not use.
const UNSUPPORTED: [(&str, &str); 5] = [
    ("$ref", "$ref is not supported"),
    ("definitions", "definitions is not supported"),
    ("dependencies", "dependencies is not supported"),
    ("patternProperties", "patternProperties is not supported"),
    ("id", "id is not supported"),
];

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Field,
    Item,
}

/// Checks `schema.openAPIV3Schema` of a version.
pub fn validate(schema: &Value, path: &Path, errors: &mut ErrorList) {
    let schema = &schema["openAPIV3Schema"];
    if schema.is_null() {
        errors.push(FieldError::required(path, "schemas are required"));
        return;
    }
    let properties = schema["properties"].as_object();
    for (name, child) in properties.into_iter().flatten() {
        let at = path.child("properties").key(name);
        let kind = text(child, "type");
        match name.as_str() {
            "apiVersion" | "kind" if !kind.is_empty() && kind != "string" => {
                errors.push(FieldError::invalid(&at.child("type"), kind, "must be string"));
            }
            "metadata" => metadata(child, &at, errors),
            _ => {}
        }
    }
    let before = errors.len();
    level(schema, path, Level::Root, 0, errors);
    // Rules speak of the types that the schema gives: they are looked at when it gives them.
    if errors.len() == before {
        crate::cel::definition::check(schema, path, errors);
    }
}

fn metadata(schema: &Value, path: &Path, errors: &mut ErrorList) {
    let kind = text(schema, "type");
    if !kind.is_empty() && kind != "object" {
        errors.push(FieldError::invalid(&path.child("type"), kind, "must be object"));
    }
    let allowed = ["name", "generateName"];
    let other = |m: &serde_json::Map<String, Value>| m.keys().any(|k| !allowed.contains(&k.as_str()));
    if schema["properties"].as_object().is_some_and(other) {
        let detail = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.push(FieldError::forbidden(path, detail));
    }
}

fn level(schema: &Value, path: &Path, level_: Level, depth: usize, errors: &mut ErrorList) {
    if depth > MAX_DEPTH {
        errors.push(FieldError::forbidden(path, "the schema is nested too deeply"));
        return;
    }
    for (field, detail) in UNSUPPORTED {
        if !is_empty(&schema[field]) {
            errors.push(FieldError::forbidden(&path.child(field), detail));
        }
    }
    if flag(schema, "uniqueItems") {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(&path.child("uniqueItems"), detail));
    }
    list_type(schema, path, errors);
    let kind = text(schema, "type");
    let open =
        flag(schema, "x-kubernetes-preserve-unknown-fields") || flag(schema, "x-kubernetes-int-or-string");
    if schema["items"].is_array() {
        errors.push(FieldError::forbidden(
            &path.child("items"),
            "items must be a schema object and not an array",
        ));
    } else if kind == "array" && schema["items"].is_null() {
        errors.push(FieldError::required(&path.child("items"), "must be specified"));
    }
    let at = path.child("type");
    match (level_, kind) {
        (Level::Root, "") => errors.push(FieldError::required(&at, "must not be empty at the root")),
        (Level::Root, "object") => {}
        (Level::Root, other) => errors.push(FieldError::invalid(&at, other, "must be object at the root")),
        (Level::Field, "") if !open => {
            errors.push(FieldError::required(&at, "must not be empty for specified object fields"));
        }
        (Level::Item, "") if !open => {
            errors.push(FieldError::required(&at, "must not be empty for specified array items"));
        }
        _ => {}
    }
    rules(schema, path, errors);
    if schema["items"].is_object() {
        level(&schema["items"], &path.child("items"), Level::Item, depth + 1, errors);
    }
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        let root_meta = level_ == Level::Root && ["apiVersion", "kind", "metadata"].contains(&name.as_str());
        if !root_meta {
            level(child, &path.child("properties").key(name), Level::Field, depth + 1, errors);
        }
    }
    let extra = &schema["additionalProperties"];
    if extra.is_object() {
        level(extra, &path.child("additionalProperties"), Level::Field, depth + 1, errors);
    }
    given_default(schema, path, errors);
}

fn list_type(schema: &Value, path: &Path, errors: &mut ErrorList) {
    let (kind, list) = (text(schema, "type"), schema["x-kubernetes-list-type"].as_str());
    let keys = items(schema, "x-kubernetes-list-map-keys");
    let at_keys = path.child("x-kubernetes-list-map-keys");
    if let Some(list) = list {
        if kind != "array" {
            let detail = "must be array if x-kubernetes-list-type is specified";
            errors.push(FieldError::invalid(&path.child("type"), kind, detail));
        }
        if !["atomic", "set", "map"].contains(&list) {
            let at = path.child("x-kubernetes-list-type");
            errors.push(FieldError::not_supported(&at, list, &["atomic", "set", "map"]));
        }
        if list == "map" && keys.is_empty() {
            errors.push(FieldError::required(&at_keys, "must not be empty if x-kubernetes-list-type is map"));
        }
        let item = &schema["items"];
        if list == "map" && item.is_null() {
            let detail = "must have a schema if x-kubernetes-list-type is map";
            errors.push(FieldError::required(&path.child("items"), detail));
        }
        if list == "set" && text(item, "type") == "object" && item["x-kubernetes-map-type"] != "atomic" {
            let at = path.child("items").child("x-kubernetes-map-type");
            let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
            errors.push(FieldError::invalid(&at, item["x-kubernetes-map-type"].clone(), detail));
        }
    }
    if !keys.is_empty() && list != Some("map") {
        let at = path.child("x-kubernetes-list-type");
        errors.push(FieldError::required(&at, "must be map if x-kubernetes-list-map-keys is non-empty"));
    }
    if let Some(map) = schema["x-kubernetes-map-type"].as_str() {
        if kind != "object" {
            let detail = "must be object if x-kubernetes-map-type is specified";
            errors.push(FieldError::invalid(&path.child("type"), kind, detail));
        }
        if !["atomic", "granular"].contains(&map) {
            let at = path.child("x-kubernetes-map-type");
            errors.push(FieldError::not_supported(&at, map, &["atomic", "granular"]));
        }
    }
}

/// What can be said of rules without compiling them.
fn rules(schema: &Value, path: &Path, errors: &mut ErrorList) {
    for (i, rule) in items(schema, "x-kubernetes-validations").iter().enumerate() {
        let path = path.child("x-kubernetes-validations").index(i);
        if text(rule, "rule").trim().is_empty() {
            errors.push(FieldError::required(&path.child("rule"), "rule is not specified"));
        }
        let message = text(rule, "message");
        if !message.is_empty() && message.trim().is_empty() {
            let detail = "message must be non-empty if specified";
            errors.push(FieldError::invalid(&path.child("message"), message, detail));
        } else if message.trim().contains('\n') {
            errors.push(FieldError::invalid(&path.child("message"), message, "must not contain line breaks"));
        }
        let reasons =
            ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
        crate::validate::one_of_if_set(&rule["reason"], &reasons, &path.child("reason"), errors);
    }
}

fn given_default(schema: &Value, path: &Path, errors: &mut ErrorList) {
    let default = &schema["default"];
    if default.is_null() {
        return;
    }
    let mut found = ErrorList::new();
    crate::custom::check_value(schema, default, &Path::root(), &mut found);
    for mut error in found {
        let inner = error.path.to_string();
        error.path = if inner == "<nil>" || inner.is_empty() {
            path.child("default")
        } else {
            path.child("default").child(&inner)
        };
        errors.push(error);
    }
}
