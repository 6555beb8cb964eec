//! PATCH: JSON patch, merge patch, strategic merge patch; apply lives in [`crate::managed`].
//!
//! The patched object goes through the same door as a PUT ([`crate::update`]), so nothing a patch does escapes validation.

use crate::context::{Context, FieldValidation, Outcome, PatchType, Target, WriteOptions};
use crate::gotext::{self, Touched};
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
    let before = if is_scale { scale::to_write(target.resource, current)? } else { current.clone() };
    let parsed = parse(body, patch_type)?;
    let (mut patched, mut strict) = apply_patch(target, &before, patch_type, parsed.0.clone())?;
    strict.splice(0..0, parsed.1.iter().cloned());
    let shown = Shown { target, patch_type, patch: &parsed.0, before: &before };
    check_kind(target, &patched, &shown)?;
    let (group, version, kind) = decode::body_kind(target);
    crate::value::set(
        &mut patched,
        "apiVersion",
        if group.is_empty() { version } else { format!("{group}/{version}") },
    );
    crate::value::set(&mut patched, "kind", kind);
    let as_patched = patched.clone();
    decode::readable(target, &mut patched).map_err(|e| {
        let illegal = patch_type == PatchType::Strategic && e.starts_with("illegal");
        let problem = if illegal { format!("error decoding from json: {e}") } else { e };
        unprocessable(&shown.text(&as_patched), &problem)
    })?;
    let strict = if options.field_validation == FieldValidation::Ignore { vec![] } else { strict };
    if options.field_validation == FieldValidation::Strict && !strict.is_empty() {
        let problem = format!("strict decoding error: {}", strict.join(", "));
        return Err(unprocessable(&shown.text(&as_patched), &problem));
    }
    // Unless the patch names a version, it is meant for whatever is there.
    if text(&patched, "metadata.resourceVersion").is_empty() {
        crate::value::copy(&before, &mut patched, "metadata.resourceVersion");
    }
    if !target.resource.namespaced {
        take(&mut patched, "metadata.namespace");
    }
    let written = if is_scale {
        scale::update(target, Some(current), patched, options, ctx)
    } else {
        meta::check_name(target, &patched)
            .and_then(|()| meta::place(target, &mut patched))
            .and_then(|()| write::update_existing(target, current, patched, options, ctx))
    };
    match written {
        Ok(mut outcome) => {
            outcome.warnings.splice(0..0, strict);
            Ok(outcome)
        }
        Err(mut status) => {
            status.warnings.splice(0..0, strict);
            Err(status)
        }
    }
}

/// What an error shows of a patch: the object as the patch leaves it, or of a strategic patch the patch.
struct Shown<'a> {
    target: &'a Target<'a>,
    patch_type: PatchType,
    patch: &'a Value,
    before: &'a Value,
}

impl Shown<'_> {
    fn text(&self, patched: &Value) -> String {
        let touched = match self.patch_type {
            PatchType::Json => Touched::by_operations(self.patch),
            PatchType::Merge => Touched::by_merge(self.before, self.patch),
            _ => return go_map(self.patch),
        };
        match decode::types_for(self.target) {
            Ok((table, shape)) if decode::custom(self.target).is_none() => {
                gotext::patched(table, &shape, patched, &touched)
            }
            _ => patched.to_string(),
        }
    }
}

/// The patch, and what is in it twice.
fn parse(body: &[u8], patch_type: PatchType) -> Result<(Value, Vec<String>), Status> {
    let decoding = |e: &dyn std::fmt::Display| Status::bad_request(format!("error decoding patch: {e}"));
    let parsed: Value = serde_json::from_slice(body)
        .map_err(|e| if e.is_eof() { decoding(&"unexpected end of JSON input") } else { decoding(&e) })?;
    // Only of a merge patch are the paths those of the object.
    let twice = match patch_type {
        PatchType::Merge => decode::parse_untyped(body, "").map(|(_, twice)| twice).unwrap_or_default(),
        _ => vec![],
    };
    Ok((parsed, twice))
}

fn apply_patch(
    target: &Target,
    before: &Value,
    patch_type: PatchType,
    parsed: Value,
) -> Result<(Value, Vec<String>), Status> {
    let decoding = |e: &dyn std::fmt::Display| Status::bad_request(format!("error decoding patch: {e}"));
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

fn check_kind(target: &Target, patched: &Value, shown: &Shown) -> Result<(), Status> {
    let (group, version, kind) = decode::body_kind(target);
    let want = if group.is_empty() { version } else { format!("{group}/{version}") };
    let (given_version, given_kind) = (text(patched, "apiVersion"), text(patched, "kind"));
    let fits = |given: &str, want: &str| given.is_empty() || given == want;
    if fits(given_version, &want) && fits(given_kind, &kind) {
        return Ok(());
    }
    // It is read as what it says it is.
    let (given_group, version) = given_version.split_once('/').unwrap_or(("", given_version));
    let detail = match decode::shape_of(given_group, version, given_kind) {
        Some(shape) => match decode::read(keelson_api::schema::builtin(), &shape, &mut patched.clone()) {
            Err(problem) => problem,
            Ok(_) => format!("unable to decode {given_version}, Kind={given_kind} into {want}, Kind={kind}"),
        },
        None => format!(
            "no kind \"{given_kind}\" is registered for version \"{given_version}\" in scheme \"pkg/api/legacyscheme/scheme.go:30\""
        ),
    };
    Err(unprocessable(&shown.text(patched), &detail))
}

/// 422 about the result of a patch, without naming an object.
pub(crate) fn unprocessable(shown: &str, problem: &str) -> Status {
    Status::invalid_kind("", "", "", vec![FieldError::invalid(&Path::new("patch"), shown, problem)])
}

fn json_patch(before: &Value, parsed: Value) -> Result<Value, Status> {
    let decoding = |what: &str| Status::bad_request(format!("error decoding patch: {what}"));
    let operations = match &parsed {
        Value::Array(list) => list.as_slice(),
        Value::Null => &[],
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
    for field in ["path", "from"] {
        if let Some(given) = operation[field].as_str() {
            operation[field] = pointer(given, object, kind != "add").into();
        }
    }
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

/// A pointer as upstream's library reads it: what stands before the first slash is skipped, a tilde may stand alone,
/// items of lists are counted from the end with a minus, and their numbers may begin with zeros.
fn pointer(given: &str, object: &Value, exists: bool) -> String {
    let Some((_, rest)) = given.split_once('/') else { return String::new() };
    let mut at = Some(object);
    let mut out = String::new();
    for token in rest.split('/') {
        let mut token =
            token.replace("~0", "\u{0}0").replace("~1", "\u{0}1").replace('~', "~0").replace('\u{0}', "~");
        if let Some(Value::Array(list)) = at
            && let Ok(n) = token.parse::<i64>()
            && exists
        {
            let n = if n < 0 { n + list.len() as i64 } else { n };
            token = n.to_string();
        }
        let key = token.replace("~1", "/").replace("~0", "~");
        at = match at {
            Some(Value::Array(list)) => token.parse::<usize>().ok().and_then(|i| list.get(i)),
            Some(other) => other.get(&key),
            None => None,
        };
        out.push('/');
        out.push_str(&token);
    }
    out
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
