//! Custom resources: objects whose form is a structural schema, not a type.
//!
//! [`decode`] reads a body, [`normalize`] is what the round trip through a typed struct is for built-in kinds: metadata in
//! canonical form, unknown fields gone, nulls gone where they are not allowed, defaults filled in. [`validate`] checks the
//! result against the schema.

use crate::context::{FieldValidation, Target};
use crate::decode::{self, parse_loose};
use crate::resources::Strategy;
use crate::value::{map_mut, text};
use keelson_api::schema::{OBJECT_META, Shape, builtin};
use keelson_api::{Definition, Status};
use serde_json::Value;

pub mod jsonpath;
mod structural;
mod validation;

pub use structural::{default, prune};
pub use validation::{validate, value as check_value};

/// Strategy of resources with a status subresource.
pub struct WithStatus;
/// Strategy of resources without.
pub struct Plain;

fn rest<'a>(object: &'a Value, without: &'a [&str]) -> impl Iterator<Item = (&'a String, &'a Value)> {
    object.as_object().into_iter().flatten().filter(move |(k, _)| !without.contains(&k.as_str()))
}

impl Strategy for WithStatus {
    fn generation(&self) -> bool {
        true
    }
    fn spec_changed(&self, old: &Value, new: &Value) -> bool {
        let without = ["metadata", "status", "apiVersion"];
        !rest(old, &without).eq(rest(new, &without))
    }
}

impl Strategy for Plain {
    fn generation(&self) -> bool {
        true
    }
    fn spec_changed(&self, old: &Value, new: &Value) -> bool {
        let without = ["metadata", "apiVersion"];
        !rest(old, &without).eq(rest(new, &without))
    }
}

fn metadata_shape() -> Shape {
    builtin().id(OBJECT_META).map_or(Shape::Any, Shape::Object)
}

/// Canonical form.
///
/// # Errors
/// The metadata is not what metadata is.
pub fn normalize(definition: &Definition, object: &mut Value) -> Result<(), String> {
    let meta = map_mut(object).entry("metadata").or_insert(Value::Null);
    map_mut(meta);
    decode::normalize(builtin(), &metadata_shape(), meta)?;
    prune(&definition.schema, object, &mut vec![]);
    default(&definition.schema, object);
    Ok(())
}

/// Names every field the schema does not have.
pub fn unknown_fields(definition: &Definition, object: &Value) -> Vec<String> {
    let mut paths = vec![];
    prune(&definition.schema, &mut object.clone(), &mut paths);
    let mut out: Vec<String> = paths.iter().map(|p| format!("unknown field \"{p}\"")).collect();
    decode::unknown_fields(builtin(), &metadata_shape(), &object["metadata"], "metadata", &mut out);
    out.sort();
    out
}

/// Reads a body for a custom resource. Warnings are texts for `Warning` headers.
///
/// # Errors
/// 400 and 415 in upstream's words.
pub fn decode(
    target: &Target,
    definition: &Definition,
    media_type: &str,
    body: &[u8],
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let resource = target.resource;
    let (version, kind) = (resource.api_version(), resource.kind.as_str());
    let (mut object, mut strict) = match media_type {
        "application/json" | "" | "*/*" => decode::parse_untyped(body, kind)?,
        "application/yaml" => (parse_loose(body)?, vec![]),
        _ => return Err(Status::unsupported_media_type(&["application/json", "application/yaml"])),
    };
    if text(&object, "kind").is_empty() || text(&object, "apiVersion").is_empty() {
        let what = if text(&object, "kind").is_empty() { "Object 'Kind'" } else { "Object 'apiVersion'" };
        let shown: String = String::from_utf8_lossy(body).chars().take(1000).collect();
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): {what} is missing in '{shown}' ({shown})"
        )));
    }
    if text(&object, "apiVersion") != version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({version})",
            text(&object, "apiVersion")
        )));
    }
    let cannot = |what: &str| {
        let short = &resource.version;
        Status::bad_request(format!("{kind} in version \"{short}\" cannot be handled as a {kind}: {what}"))
    };
    strict.extend(unknown_fields(definition, &object));
    normalize(definition, &mut object)
        .map_err(|e| cannot(&e.replacen("struct field .", "struct field ObjectMeta.", 1)))?;
    let warnings = match validation {
        FieldValidation::Ignore => vec![],
        FieldValidation::Strict if !strict.is_empty() => {
            return Err(cannot(&format!("strict decoding error: {}", strict.join(", "))));
        }
        _ => strict,
    };
    Ok((object, warnings))
}
