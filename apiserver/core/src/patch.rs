//! PATCH: JSON patch, merge patch, strategic merge patch; apply lives in [`crate::managed`].
//!
//! The patched object goes through the same door as a PUT ([`crate::update`]), so nothing a patch does escapes validation.

use crate::context::{Context, FieldValidation, Outcome, PatchType, Target, WriteOptions};
use crate::value::{take, text};
use crate::{decode, managed, meta, scale, strategic, write};
use keelson_api::{FieldError, Path, Status};
use serde_json::Value;

const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;

/// What the store should hold after a PATCH. `current` is `None` when the object does not exist.
pub fn patch(
    target: &Target,
    current: Option<&Value>,
    patch_type: PatchType,
    body: &[u8],
    options: &WriteOptions,
    ctx: &Context,
) -> Result<Outcome, Status> {
    if patch_type == PatchType::Apply {
        return managed::apply(target, current, body, options, ctx);
    }
    let Some(current) = current else {
        return Err(Status::not_found(target.resource, target.name));
    };
    let is_scale = target.subresource == Some("scale");
    let before = if is_scale { scale::read(target.resource, current)? } else { current.clone() };
    let (mut patched, strict) = apply_patch(target, &before, patch_type, body)?;
    check_kind(target, &patched)?;
    let (group, version, kind) = decode::body_kind(target);
    crate::value::set(
        &mut patched,
        "apiVersion",
        if group.is_empty() { version } else { format!("{group}/{version}") },
    );
    crate::value::set(&mut patched, "kind", kind);
    let shown = patched.clone();
    decode::canonical(target, &mut patched).map_err(|e| match patch_type {
        PatchType::Strategic if e.starts_with("illegal") => {
            let shown = go_map(&serde_json::from_slice(body).unwrap_or(Value::Null));
            unprocessable(&shown, &format!("error decoding from json: {e}"))
        }
        PatchType::Strategic => {
            unprocessable(&go_map(&serde_json::from_slice(body).unwrap_or(Value::Null)), &e)
        }
        _ => unprocessable(&shown.to_string(), &e),
    })?;
    let strict = if options.field_validation == FieldValidation::Ignore { vec![] } else { strict };
    if options.field_validation == FieldValidation::Strict && !strict.is_empty() {
        return Err(unprocessable(
            &shown.to_string(),
            &format!("strict decoding error: {}", strict.join(", ")),
        ));
    }
    // Unless the patch names a version, it is meant for whatever is there.
    if text(&patched, "metadata.resourceVersion").is_empty() {
        crate::value::copy(&before, &mut patched, "metadata.resourceVersion");
    }
    if !target.resource.namespaced {
        take(&mut patched, "metadata.namespace");
    }
    let mut outcome = if is_scale {
        scale::update(target, Some(current), patched, options, ctx)?
    } else {
        meta::check_name(target, &patched)?;
        meta::place(target, &mut patched)?;
        write::update_existing(target, current, patched, options, ctx)?
    };
    outcome.warnings.splice(0..0, strict);
    Ok(outcome)
}

fn apply_patch(
    target: &Target,
    before: &Value,
    patch_type: PatchType,
    body: &[u8],
) -> Result<(Value, Vec<String>), Status> {
    let decoding = |e: &dyn std::fmt::Display| Status::bad_request(format!("error decoding patch: {e}"));
    let parsed: Value = serde_json::from_slice(body)
        .map_err(|e| if e.is_eof() { decoding(&"unexpected end of JSON input") } else { decoding(&e) })?;
    if patch_type == PatchType::Strategic && decode::custom(target).is_some() {
        return Err(unknown_patch());
    }
    let (table, shape) = decode::types_for(target)?;
    let patched = match patch_type {
        PatchType::Json => json_patch(before, parsed)?,
        PatchType::Merge | PatchType::Strategic => {
            if parsed.is_null() {
                return Err(Status::bad_request("Invalid JSON Patch"));
            }
            if !parsed.is_object() {
                let found = decode::go_kind(&parsed);
                return Err(decoding(&format!(
                    "json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
                )));
            }
            if patch_type == PatchType::Merge {
                let mut patched = before.clone();
                merge(&mut patched, &parsed);
                patched
            } else {
                strategic::patch(table, &shape, before, &parsed).map_err(|e| e.status(&go_map(&parsed)))?
            }
        }
        PatchType::Apply => return Err(Status::internal("apply is no patch of text")),
    };
    if let Some(definition) = decode::custom(target) {
        let strict = crate::custom::unknown_fields(definition, &patched);
        return Ok((patched, strict));
    }
    let mut strict = vec![];
    decode::unknown_fields(table, &shape, &patched, "", &mut strict);
    Ok((patched, strict))
}

/// 415 of a strategic patch where no type says how lists merge.
fn unknown_patch() -> Status {
    let accepted =
        ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
    Status::unsupported_media_type(&accepted)
}

fn check_kind(target: &Target, patched: &Value) -> Result<(), Status> {
    let (group, version, kind) = decode::body_kind(target);
    let want = if group.is_empty() { version } else { format!("{group}/{version}") };
    let (given_version, given_kind) = (text(patched, "apiVersion"), text(patched, "kind"));
    let fits = |given: &str, want: &str| given.is_empty() || given == want;
    if fits(given_version, &want) && fits(given_kind, &kind) {
        return Ok(());
    }
    let detail =
        format!("{given_kind} in version \"{given_version}\" is not what this path takes ({kind} in {want})");
    Err(unprocessable(&patched.to_string(), &detail))
}

/// 422 about the result of a patch, without naming an object.
pub(crate) fn unprocessable(shown: &str, problem: &str) -> Status {
    Status::invalid_kind("", "", "", vec![FieldError::invalid(&Path::new("patch"), shown, problem)])
}

fn json_patch(before: &Value, parsed: Value) -> Result<Value, Status> {
    let decoding = |what: &str| Status::bad_request(format!("error decoding patch: {what}"));
    let operations = match &parsed {
        Value::Array(list) => list,
        other => {
            let found = decode::go_kind(other);
            return Err(decoding(&format!(
                "json: cannot unmarshal {found} into Go value of type []handlers.jsonPatchOp"
            )));
        }
    };
    if let Some(other) = operations.iter().find(|o| !o.is_object()) {
        let found = decode::go_kind(other);
        return Err(decoding(&format!(
            "json: cannot unmarshal {found} into Go value of type handlers.jsonPatchOp"
        )));
    }
    if operations.len() > MAX_JSON_PATCH_OPERATIONS {
        return Err(Status::too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let rejected = || Status {
        code: 422,
        reason: "Invalid",
        message: "the server rejected our request due to an error in our request".into(),
        ..Status::default()
    };
    let mut patched = before.clone();
    for operation in operations {
        let operation = lenient(operation, &patched);
        let one: json_patch::PatchOperation = serde_json::from_value(operation).map_err(|_| rejected())?;
        json_patch::patch(&mut patched, &[one]).map_err(|_| rejected())?;
    }
    if patched.is_object() { Ok(patched) } else { Err(rejected()) }
}

/// Upstream's library replaces a member that is not there, and reads a missing value as null.
fn lenient(operation: &Value, object: &Value) -> Value {
    let mut operation = operation.clone();
    let kind = text(&operation, "op").to_string();
    if kind == "test" && operation["value"].is_null() && object.pointer(text(&operation, "path")).is_none() {
        // What is not there is null.
        return serde_json::json!({"op": "test", "path": "", "value": object});
    }
    if ["add", "replace", "test"].contains(&kind.as_str()) && operation.get("value").is_none() {
        operation["value"] = Value::Null;
    }
    if kind == "replace" {
        let path = text(&operation, "path").to_string();
        let parent = path.rsplit_once('/').map_or("", |(p, _)| p);
        if !path.is_empty()
            && object.pointer(&path).is_none()
            && object.pointer(parent).is_some_and(Value::is_object)
        {
            operation["op"] = "add".into();
        }
    }
    operation
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let map = crate::value::map_mut(target);
    for (key, value) in patch {
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}

/// A tree as Go prints its maps: `map[a:1 b:[x y]]`.
pub(crate) fn go_map(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(s) => s.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(go_map).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            format!(
                "map[{}]",
                keys.iter().map(|k| format!("{k}:{}", go_map(&map[*k]))).collect::<Vec<_>>().join(" ")
            )
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn merge_patch_removes_nulls_and_replaces_lists() {
        let mut v = json!({"a": {"b": 1, "c": [1, 2]}, "d": "x"});
        merge(&mut v, &json!({"a": {"b": null, "c": [3]}, "e": {"f": null}}));
        assert_eq!(v, json!({"a": {"c": [3]}, "d": "x", "e": {}}));
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            "[a-c]{1,2}".prop_map(Value::from),
            (0..5i64).prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn merging_twice_is_merging_once(mut a in tree(), p in tree()) {
            merge(&mut a, &p);
            let once = a.clone();
            merge(&mut a, &p);
            prop_assert_eq!(once, a);
        }
    }
}
