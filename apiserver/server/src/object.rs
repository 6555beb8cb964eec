//! Stored objects as immutable encoded bytes.
//!
//! What is stored is JSON without `metadata.resourceVersion`, written as `{"kind":…,"apiVersion":…,"metadata":{…},…}`.
//! That order is what lets a read splice the revision in and a list leave the type out without parsing. Bytes that
//! somebody else stored in another order are read too, by parsing them once.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use keelson_api::Resource;
use serde_json::{Map, Value, json};

/// One object at one revision, ready to be answered.
#[derive(Debug)]
pub struct Object {
    /// `namespace/name`, or `name`: the key below the resource's directory.
    pub key: Box<str>,
    /// The revision of its last change (its resourceVersion).
    pub revision: i64,
    /// JSON with `metadata.resourceVersion`.
    pub bytes: Bytes,
    /// Where `"metadata"` begins in `bytes`: what comes before it is the type.
    type_end: usize,
    /// Labels and selectable fields, in the shape of the object.
    pub selectable: Value,
    decoded: OnceLock<Arc<Value>>,
}

/// Writes an object in the stored form: type first, then metadata.
pub fn encode(object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.push(b'{');
    let first = ["kind", "apiVersion", "metadata"];
    for key in first {
        if let Some(value) = object.get(key) {
            field(&mut out, key, value);
        }
    }
    for (key, value) in object.as_object().into_iter().flatten() {
        if !first.contains(&key.as_str()) {
            field(&mut out, key, value);
        }
    }
    out.push(b'}');
    out
}

fn field(out: &mut Vec<u8>, key: &str, value: &Value) {
    if out.len() > 1 {
        out.push(b',');
    }
    // Writing into a vector cannot fail, and the keys of a `Value` are strings.
    let _ = serde_json::to_writer(&mut *out, key);
    out.push(b':');
    let _ = serde_json::to_writer(&mut *out, value);
}

const METADATA: &[u8] = b"\"metadata\":{";

/// Where the fields of metadata begin in bytes that `encode` wrote.
fn metadata_at(stored: &[u8]) -> Option<usize> {
    if !stored.starts_with(b"{\"kind\":\"") {
        return None;
    }
    let head = &stored[..stored.len().min(300)];
    head.windows(METADATA.len()).position(|w| w == METADATA)
}

/// The stored bytes with the revision in them, and where `"metadata"` begins.
pub fn with_revision(stored: &[u8], revision: i64) -> Option<(Bytes, usize)> {
    let Some(at) = metadata_at(stored) else {
        let mut value: Value = serde_json::from_slice(stored).ok()?;
        set_revision(&mut value, revision);
        let bytes = encode(&value);
        let at = metadata_at(&bytes)?;
        return Some((bytes.into(), at));
    };
    let fields = at + METADATA.len();
    let empty = stored.get(fields) == Some(&b'}');
    let mut out = Vec::with_capacity(stored.len() + 40);
    out.extend_from_slice(&stored[..fields]);
    out.extend_from_slice(format!("\"resourceVersion\":\"{revision}\"").as_bytes());
    if !empty {
        out.push(b',');
    }
    out.extend_from_slice(&stored[fields..]);
    Some((out.into(), at))
}

/// Sets `metadata.resourceVersion`.
pub fn set_revision(object: &mut Value, revision: i64) {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"]["resourceVersion"] = json!(revision.to_string());
}

/// Takes `metadata.resourceVersion` out.
pub fn take_revision(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
}

/// Labels and the fields that selectors of these resources may name.
fn selectable(resources: &[&Resource], object: &Value) -> Value {
    let mut out = Map::new();
    let metadata = &object["metadata"];
    let mut meta = Map::new();
    for key in ["name", "namespace", "labels"] {
        if let Some(value) = metadata.get(key) {
            meta.insert(key.to_owned(), value.clone());
        }
    }
    out.insert("metadata".to_owned(), Value::Object(meta));
    let fields = resources.iter().flat_map(|r| &r.fields).filter(|f| !f.starts_with("metadata."));
    for label in fields {
        copy_path(object, &mut out, label);
    }
    Value::Object(out)
}

fn copy_path(object: &Value, out: &mut Map<String, Value>, label: &str) {
    let (first, rest) = label.split_once('.').map_or((label, None), |(f, r)| (f, Some(r)));
    let Some(value) = object.get(first) else { return };
    let Some(rest) = rest else {
        out.insert(first.to_owned(), value.clone());
        return;
    };
    if let Value::Object(inner) = out.entry(first).or_insert_with(|| json!({})) {
        copy_path(value, inner, rest);
    }
}

impl Object {
    /// Reads stored bytes. Without parsable JSON there is no object.
    pub fn read(resources: &[&Resource], key: &str, stored: &[u8], revision: i64) -> Option<Object> {
        let value: Value = serde_json::from_slice(stored).ok()?;
        let (bytes, type_end) = with_revision(stored, revision)?;
        let selectable = selectable(resources, &value);
        Some(Object { key: key.into(), revision, bytes, type_end, selectable, decoded: OnceLock::new() })
    }

    /// The same object as deleted at `revision`.
    pub fn deleted_at(&self, resources: &[&Resource], revision: i64) -> Option<Object> {
        let mut value = self.parse();
        set_revision(&mut value, revision);
        let bytes = encode(&value);
        let type_end = metadata_at(&bytes)?;
        let selectable = selectable(resources, &value);
        let bytes = bytes.into();
        Some(Object {
            key: self.key.clone(),
            revision,
            bytes,
            type_end,
            selectable,
            decoded: OnceLock::new(),
        })
    }

    /// The object as a tree, not kept.
    pub fn parse(&self) -> Value {
        self.decoded
            .get()
            .map_or_else(|| serde_json::from_slice(&self.bytes).unwrap_or(Value::Null), |v| (**v).clone())
    }

    /// The object as a tree, kept for the next one who asks when `keep`.
    pub fn decoded(&self, keep: bool) -> Arc<Value> {
        if !keep {
            return self.decoded.get().cloned().unwrap_or_else(|| Arc::new(self.parse()));
        }
        self.decoded
            .get_or_init(|| Arc::new(serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)))
            .clone()
    }

    /// The object as an item of a typed list: without its type.
    pub fn write_item(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        out.extend_from_slice(&self.bytes[self.type_end..]);
    }

    /// Approximate memory, bytes.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.key.len() + 600
    }
}

/// The object with only its metadata.
pub fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::resource::find_preferred;

    #[test]
    fn revision_is_spliced_in_and_the_type_left_out_of_items() {
        let pods = find_preferred("", "pods").expect("pods");
        let pod = json!({"spec":{"nodeName":"n1"},"metadata":{"name":"x","labels":{"a":"b"}},"apiVersion":"v1","kind":"Pod"});
        let object = Object::read(&[pods], "d/x", &encode(&pod), 7).expect("object");
        let mut want = pod.clone();
        set_revision(&mut want, 7);
        assert_eq!(object.parse(), want);
        let mut item = vec![];
        object.write_item(&mut item);
        let item: Value = serde_json::from_slice(&item).expect("item");
        assert_eq!((item.get("kind"), &item["metadata"]["resourceVersion"]), (None, &json!("7")));
        assert_eq!(object.selectable["spec"]["nodeName"], "n1");
        assert_eq!(object.selectable["metadata"]["labels"]["a"], "b");
    }

    #[test]
    fn foreign_order_and_empty_metadata_are_read() {
        for stored in [
            r#"{"metadata":{"name":"x"},"kind":"A","apiVersion":"v1"}"#,
            r#"{"kind":"A","apiVersion":"v1","metadata":{}}"#,
        ] {
            let (bytes, _) = with_revision(stored.as_bytes(), 3).expect("readable");
            let value: Value = serde_json::from_slice(&bytes).expect("json");
            assert_eq!(value["metadata"]["resourceVersion"], "3", "{stored}");
        }
        assert!(with_revision(b"k8s\0", 3).is_none());
    }
}
