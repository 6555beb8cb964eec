//! From a JSON tree to protobuf, by the schema table's tags.
//!
//! A field is written when the tree has it; zero values that JSON leaves out are zero for the reader as well.

use super::{MAGIC, union_of};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use keelson_api::schema::{Field, OBJECT_META, Shape, Table, TypeId, builtin};
use serde_json::Value;

/// Appends one varint.
pub(super) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn key(out: &mut Vec<u8>, tag: u32, wire: u64) {
    varint(out, u64::from(tag) << 3 | wire);
}

/// Appends a field that has a length.
pub(super) fn bytes(out: &mut Vec<u8>, tag: u32, content: &[u8]) {
    key(out, tag, 2);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn number(out: &mut Vec<u8>, tag: u32, value: i64) {
    key(out, tag, 0);
    varint(out, value as u64);
}

/// The envelope up to the object: what follows is `length` bytes of the object's message, then [`TAIL`].
pub fn head(api_version: &str, kind: &str, length: usize) -> Vec<u8> {
    let mut meta = vec![];
    bytes(&mut meta, 1, api_version.as_bytes());
    bytes(&mut meta, 2, kind.as_bytes());
    let mut out = MAGIC.to_vec();
    bytes(&mut out, 1, &meta);
    key(&mut out, 2, 2);
    varint(&mut out, length as u64);
    out
}

/// The envelope after the object: no content encoding, no content type.
pub const TAIL: [u8; 4] = [0x1a, 0, 0x22, 0];

/// A message in its envelope.
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut out = head(api_version, kind, message.len());
    out.extend_from_slice(message);
    out.extend_from_slice(&TAIL);
    out
}

/// An object of a built-in kind (or a Status) in its envelope.
///
/// # Errors
/// The kind has no message, or the tree is not one of its objects.
pub fn encode(object: &Value) -> Result<Vec<u8>, String> {
    let (api_version, kind) =
        (object["apiVersion"].as_str().unwrap_or(""), object["kind"].as_str().unwrap_or(""));
    Ok(envelope(api_version, kind, &message_of(object)?))
}

/// The message alone, found by the object's own kind.
///
/// # Errors
/// As [`encode`].
pub fn message_of(object: &Value) -> Result<Vec<u8>, String> {
    let (api_version, kind) =
        (object["apiVersion"].as_str().unwrap_or(""), object["kind"].as_str().unwrap_or(""));
    if kind == "PartialObjectMetadata" {
        return partial(object);
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let shape = crate::decode::shape_of(group, version, kind)
        .or_else(|| builtin().id(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")).map(Shape::Object))
        .ok_or_else(|| format!("no protobuf message for {kind} in {api_version}"))?;
    message(builtin(), &shape, object)
}

/// `PartialObjectMetadata` has nothing but metadata.
///
/// # Errors
/// The metadata is malformed.
pub fn partial(object: &Value) -> Result<Vec<u8>, String> {
    let id = builtin().id(OBJECT_META).ok_or("no ObjectMeta")?;
    let meta = message(builtin(), &Shape::Object(id), &object["metadata"])?;
    let mut out = vec![];
    bytes(&mut out, 1, &meta);
    Ok(out)
}

/// A list's metadata as the first field of the list's message.
pub fn list_meta(metadata: &Value) -> Vec<u8> {
    let text = |f: &str| metadata[f].as_str().unwrap_or("").as_bytes();
    let mut meta = vec![];
    bytes(&mut meta, 1, b"");
    bytes(&mut meta, 2, text("resourceVersion"));
    bytes(&mut meta, 3, text("continue"));
    if let Some(remaining) = metadata["remainingItemCount"].as_i64() {
        number(&mut meta, 4, remaining);
    }
    let mut out = vec![];
    bytes(&mut out, 1, &meta);
    out
}

/// One element of a list's message.
pub fn list_item(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 6);
    bytes(&mut out, 2, message);
    out
}

/// A frame of a watch stream: its length, then `WatchEvent{type, object}` around an enveloped object.
pub fn watch_frame(kind: &str, enveloped: &[u8]) -> Vec<u8> {
    let (mut raw, mut event) = (vec![], vec![]);
    bytes(&mut raw, 1, enveloped);
    bytes(&mut event, 1, kind.as_bytes());
    bytes(&mut event, 2, &raw);
    let mut out = (event.len() as u32).to_be_bytes().to_vec();
    out.extend_from_slice(&event);
    out
}

fn wrong(what: &str, value: &Value) -> String {
    format!("proto: {what} expected, found {}", crate::decode::go_kind(value))
}

/// A value that is a message of its own.
fn message(table: &Table, shape: &Shape, value: &Value) -> Result<Vec<u8>, String> {
    let mut out = vec![];
    let text = || value.as_str().ok_or_else(|| wrong("a string", value));
    match shape {
        Shape::Object(id) => return object(table, *id, value),
        Shape::Quantity => match value {
            Value::String(s) => bytes(&mut out, 1, s.as_bytes()),
            other => bytes(&mut out, 1, other.to_string().as_bytes()),
        },
        Shape::IntOrString => match value {
            Value::String(s) => {
                number(&mut out, 1, 1);
                number(&mut out, 2, 0);
                bytes(&mut out, 3, s.as_bytes());
            }
            other => {
                number(&mut out, 1, 0);
                number(&mut out, 2, other.as_i64().ok_or_else(|| wrong("a number", other))?);
                bytes(&mut out, 3, b"");
            }
        },
        Shape::Time | Shape::MicroTime => {
            let at: jiff::Timestamp = text()?.parse().map_err(|e: jiff::Error| e.to_string())?;
            number(&mut out, 1, at.as_second());
            let nanos = if matches!(shape, Shape::Time) { 0 } else { at.subsec_nanosecond() };
            number(&mut out, 2, i64::from(nanos));
        }
        Shape::FieldsV1 | Shape::Any => bytes(&mut out, 1, value.to_string().as_bytes()),
        Shape::List(item) => {
            for element in value.as_array().ok_or_else(|| wrong("a list", value))? {
                single(table, item, 1, element, &mut out)?;
            }
        }
        _ => return Err("proto: a scalar where a message should be".into()),
    }
    Ok(out)
}

fn object(table: &Table, id: TypeId, value: &Value) -> Result<Vec<u8>, String> {
    let kind = table.get(id);
    if let Some(union) = union_of(kind.short_name()) {
        return union_message(table, union, value);
    }
    if let Some(alias) = &kind.alias {
        return message(table, alias, value);
    }
    if value.is_null() {
        return Ok(vec![]);
    }
    let map = value.as_object().ok_or_else(|| wrong("an object", value))?;
    let mut known: Vec<(&Field, &Value)> = kind
        .fields
        .iter()
        .filter(|f| !f.tags.is_empty())
        .filter_map(|f| map.get(&f.name).filter(|v| !v.is_null()).map(|v| (f, v)))
        .collect();
    known.sort_by(|a, b| a.0.tags.cmp(&b.0.tags));
    let mut out = vec![];
    fields(table, &known, 0, &mut out)?;
    Ok(out)
}

/// A value with several forms: `(tag when it is of the first form, tag otherwise)`.
fn union_message(table: &Table, union: super::Union, value: &Value) -> Result<Vec<u8>, String> {
    let props = super::json_schema(table)?;
    let mut out = vec![];
    match (union, value) {
        (super::Union::Bool, Value::Bool(allows)) => number(&mut out, 1, i64::from(*allows)),
        (super::Union::Bool, schema) => {
            number(&mut out, 1, 1);
            single(table, &props, 2, schema, &mut out)?;
        }
        (super::Union::Array, Value::Array(list)) => {
            for schema in list {
                single(table, &props, 2, schema, &mut out)?;
            }
        }
        (super::Union::StringArray, Value::Array(list)) => {
            for property in list {
                single(table, &Shape::String, 2, property, &mut out)?;
            }
        }
        (_, schema) => single(table, &props, 1, schema, &mut out)?,
    }
    Ok(out)
}

/// Fields sorted by tag path, `depth` steps of which are written; those that go deeper together are one message.
fn fields(table: &Table, known: &[(&Field, &Value)], depth: usize, out: &mut Vec<u8>) -> Result<(), String> {
    let mut rest = known;
    while let Some((field, value)) = rest.first() {
        let tag = field.tags[depth];
        if field.tags.len() == depth + 1 {
            put(table, field, tag, value, out)?;
            rest = &rest[1..];
            continue;
        }
        let together = rest.iter().take_while(|(f, _)| f.tags.get(depth) == Some(&tag)).count();
        let mut inner = vec![];
        fields(table, &rest[..together], depth + 1, &mut inner)?;
        bytes(out, tag, &inner);
        rest = &rest[together..];
    }
    Ok(())
}

fn put(table: &Table, field: &Field, tag: u32, value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    match &field.shape {
        Shape::List(item) => {
            for element in value.as_array().ok_or_else(|| wrong("a list", value))? {
                single(table, item, tag, element, out)?;
            }
            Ok(())
        }
        Shape::Map(item) => {
            for (name, content) in value.as_object().ok_or_else(|| wrong("an object", value))? {
                let mut entry = vec![];
                bytes(&mut entry, 1, name.as_bytes());
                single(table, item, 2, content, &mut entry)?;
                bytes(out, tag, &entry);
            }
            Ok(())
        }
        shape => single(table, shape, tag, value, out),
    }
}

fn single(table: &Table, shape: &Shape, tag: u32, value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    match shape {
        Shape::String => {
            bytes(out, tag, value.as_str().ok_or_else(|| wrong("a string", value))?.as_bytes());
        }
        Shape::Bytes => {
            let text = value.as_str().ok_or_else(|| wrong("base64", value))?;
            bytes(out, tag, &BASE64.decode(text).map_err(|e| e.to_string())?);
        }
        Shape::Int32 | Shape::Int64 => {
            number(out, tag, value.as_i64().ok_or_else(|| wrong("a whole number", value))?);
        }
        Shape::Bool => {
            number(out, tag, i64::from(value.as_bool().ok_or_else(|| wrong("a truth value", value))?));
        }
        Shape::Number => {
            let float = value.as_f64().ok_or_else(|| wrong("a number", value))?;
            key(out, tag, 1);
            out.extend_from_slice(&float.to_bits().to_le_bytes());
        }
        shape => bytes(out, tag, &message(table, shape, value)?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// There and back again, through the canonical form.
    fn round_trip(object: &Value) {
        let (api_version, kind) =
            (object["apiVersion"].as_str().unwrap_or(""), object["kind"].as_str().unwrap_or(""));
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let shape = crate::decode::shape_of(group, version, kind).expect("a shape");
        let mut want = object.clone();
        crate::decode::normalize(builtin(), &shape, &mut want).expect("a well-formed object");
        let encoded = encode(&want).expect("encoded");
        let mut got = super::super::decode(builtin(), &shape, &encoded).expect("decoded");
        crate::decode::normalize(builtin(), &shape, &mut got).expect("a well-formed object");
        assert_eq!(got, want);
    }

    #[test]
    fn objects_come_back_as_they_were() {
        round_trip(
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"a": "b"}, "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {"f:x": {}}}}]},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1500m"}},
                "livenessProbe": {"httpGet": {"port": "http", "path": "/"}, "periodSeconds": 7},
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}],
                "volumes": [{"name": "v", "projected": {"sources": [{"configMap": {"name": "m"}}]}}]}}),
        );
        round_trip(
            &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "AQID"}}),
        );
        round_trip(&json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
            "spec": {"replicas": 0, "selector": {"matchLabels": {}}, "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
                "template": {"spec": {"containers": []}}}}));
        round_trip(
            &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
            "spec": {"renewTime": "2026-01-02T03:04:05.000006Z", "leaseDurationSeconds": 15}}),
        );
        round_trip(
            &json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
            "spec": {"user": "u", "extra": {"k": ["a", "b"]}}}),
        );
        round_trip(
            &json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "x"},
            "spec": {"group": "g", "names": {"plural": "p", "kind": "K"}, "scope": "Namespaced", "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "minimum": 1.5, "default": {"a": 1},
                    "properties": {"a": {"type": "array", "items": {"type": "string"}}, "b": {"additionalProperties": true}, "c": {"additionalProperties": {"type": "integer"}}}}}}]}}),
        );
    }

    #[test]
    fn a_watch_frame_is_framed_by_its_length() {
        let object = encode(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}))
            .expect("encoded");
        let frame = watch_frame("ADDED", &object);
        assert_eq!(u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize, frame.len() - 4);
        assert!(encode(&json!({"apiVersion": "example.com/v1", "kind": "Foo"})).is_err());
    }

    proptest! {
        #[test]
        fn config_maps_round_trip(name in "[a-z]{1,9}", data in proptest::collection::btree_map("[a-z]{1,9}", ".*", 0..9), number in any::<u32>()) {
            round_trip(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "generation": number}, "data": data}));
        }
    }
}
