//! Kubernetes' protobuf form to JSON trees, driven by the schema table's tags.
//!
//! A body is four magic bytes and an `Unknown` envelope around the object's message. Unknown fields are dropped, as the
//! encoding demands; what is written though empty is left to `decode::normalize`, which knows what JSON leaves out.
//! Hazard: lengths come from the wire; every slice is checked, nesting is bounded.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use keelson_api::schema::{Field, Shape, Table, TypeId};
use serde_json::{Map, Value, json};

mod encode;

pub use encode::{TAIL, encode, envelope, head, list_item, list_meta, message_of, partial, watch_frame};

/// First bytes of an enveloped object.
pub const MAGIC: &[u8] = b"k8s\0";
/// Deepest nesting that is read.
const MAX_DEPTH: usize = 100;

/// One field as it stands on the wire.
enum Wire<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

/// Reads a message field by field.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or("unexpected EOF")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("proto: integer overflow".into())
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        if n > self.0.len() {
            return Err("unexpected EOF".into());
        }
        let (taken, rest) = self.0.split_at(n);
        self.0 = rest;
        Ok(taken)
    }

    fn fixed(&mut self, n: usize) -> Result<u64, String> {
        let bytes = self.take(n)?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// The next field, or the end.
    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).map_err(|_| "proto: illegal tag")?;
        if tag == 0 {
            return Err("proto: illegal tag 0".into());
        }
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed(self.fixed(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| "proto: negative length")?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed(self.fixed(4)?),
            other => return Err(format!("proto: illegal wireType {other}")),
        };
        Ok(Some((tag, wire)))
    }
}

impl<'a> Wire<'a> {
    fn bytes(&self) -> Result<&'a [u8], String> {
        match self {
            Wire::Bytes(bytes) => Ok(bytes),
            _ => Err("proto: wrong wireType for a field of bytes".into()),
        }
    }
    fn int(&self) -> Result<i64, String> {
        match self {
            Wire::Varint(value) => Ok(*value as i64),
            _ => Err("proto: wrong wireType for a number".into()),
        }
    }
}

fn text(bytes: &[u8]) -> Result<String, String> {
    std::str::from_utf8(bytes).map(str::to_string).map_err(|_| "proto: string is not UTF-8".into())
}

/// Field `wanted` of a message, the last one given.
fn inner<'a>(message: &'a [u8], wanted: u32) -> Result<Option<Wire<'a>>, String> {
    let (mut reader, mut found) = (Reader(message), None);
    while let Some((tag, wire)) = reader.next()? {
        if tag == wanted {
            found = Some(wire);
        }
    }
    Ok(found)
}

fn inner_bytes(message: &[u8], wanted: u32) -> Result<&[u8], String> {
    inner(message, wanted)?.map_or(Ok(&[]), |wire| wire.bytes())
}

fn inner_int(message: &[u8], wanted: u32) -> Result<i64, String> {
    inner(message, wanted)?.map_or(Ok(0), |wire| wire.int())
}

/// Opens the envelope and reads the object of the given shape; its type comes from the envelope.
///
/// # Errors
/// What is wrong with the bytes.
pub fn decode(table: &Table, shape: &Shape, body: &[u8]) -> Result<Value, String> {
    let envelope = body
        .strip_prefix(MAGIC)
        .ok_or("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")?;
    let meta = inner_bytes(envelope, 1)?;
    let raw = inner_bytes(envelope, 2)?;
    let mut value = message_value(table, shape, raw, 0)?;
    for (key, tag) in [("apiVersion", 1), ("kind", 2)] {
        let given = text(inner_bytes(meta, tag)?)?;
        if !given.is_empty() {
            value[key] = given.into();
        }
    }
    Ok(value)
}

/// Like [`decode`], for a type named in full that is no resource (`DeleteOptions`).
///
/// # Errors
/// What is wrong with the bytes, or an unknown type.
pub fn decode_type(table: &Table, type_name: &str, body: &[u8]) -> Result<Value, String> {
    let id = table.id(type_name).ok_or_else(|| format!("no schema for {type_name}"))?;
    decode(table, &Shape::Object(id), body)
}

fn message_value(table: &Table, shape: &Shape, bytes: &[u8], depth: usize) -> Result<Value, String> {
    if depth > MAX_DEPTH {
        return Err("proto: nesting is too deep".into());
    }
    match shape {
        Shape::Object(id) => object(table, *id, bytes, depth),
        Shape::Quantity => Ok(text(inner_bytes(bytes, 1)?)?.into()),
        Shape::IntOrString if inner_int(bytes, 1)? == 1 => Ok(text(inner_bytes(bytes, 3)?)?.into()),
        Shape::IntOrString => Ok(inner_int(bytes, 2)?.into()),
        Shape::Time | Shape::MicroTime => time(shape, bytes),
        Shape::FieldsV1 | Shape::Any => raw(table, inner_bytes(bytes, 1)?),
        Shape::List(item) => {
            let mut list = vec![];
            let mut reader = Reader(bytes);
            while let Some((tag, wire)) = reader.next()? {
                if tag == 1 {
                    list.push(value(table, item, &wire, depth + 1)?);
                }
            }
            Ok(list.into())
        }
        _ => Err("proto: a scalar where a message should be".into()),
    }
}

fn time(shape: &Shape, bytes: &[u8]) -> Result<Value, String> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let nanos = i32::try_from(inner_int(bytes, 2)?).map_err(|_| "proto: nanoseconds out of range")?;
    let at = jiff::Timestamp::new(inner_int(bytes, 1)?, nanos).map_err(|e| e.to_string())?;
    Ok(if matches!(shape, Shape::Time) { crate::meta::time(at) } else { crate::meta::micro_time(at) }.into())
}

/// JSON inside protobuf.
fn raw(table: &Table, bytes: &[u8]) -> Result<Value, String> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    if bytes.starts_with(MAGIC) {
        let meta = inner_bytes(&bytes[MAGIC.len()..], 1)?;
        let (api_version, kind) = (text(inner_bytes(meta, 1)?)?, text(inner_bytes(meta, 2)?)?);
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let shape = crate::decode::shape_of(group, version, &kind)
            .ok_or_else(|| format!("no schema for {kind} in {api_version}"))?;
        return decode(table, &shape, bytes);
    }
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

/// Types of custom resources' schemas that are one thing or another in JSON, and a message with both in protobuf.
#[derive(Clone, Copy)]
enum Union {
    Bool,
    Array,
    StringArray,
}

fn union_of(type_name: &str) -> Option<Union> {
    Some(match type_name {
        "JSONSchemaPropsOrBool" => Union::Bool,
        "JSONSchemaPropsOrArray" => Union::Array,
        "JSONSchemaPropsOrStringArray" => Union::StringArray,
        _ => return None,
    })
}

fn json_schema(table: &Table) -> Result<Shape, String> {
    let name = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
    table.id(name).map(Shape::Object).ok_or_else(|| format!("no schema for {name}"))
}

fn union_value(table: &Table, union: Union, bytes: &[u8], depth: usize) -> Result<Value, String> {
    let props = json_schema(table)?;
    let (mut reader, mut list, mut schema, mut allows) = (Reader(bytes), vec![], None, false);
    while let Some((tag, wire)) = reader.next()? {
        match (union, tag) {
            (Union::Bool, 1) => allows = wire.int()? != 0,
            (Union::Bool, 2) | (Union::Array | Union::StringArray, 1) => {
                schema = Some(value(table, &props, &wire, depth + 1)?);
            }
            (Union::Array, 2) => list.push(value(table, &props, &wire, depth + 1)?),
            (Union::StringArray, 2) => list.push(value(table, &Shape::String, &wire, depth + 1)?),
            _ => {}
        }
    }
    Ok(match (schema, union) {
        (Some(schema), _) => schema,
        (None, Union::Bool) => allows.into(),
        (None, _) => list.into(),
    })
}

fn object(table: &Table, id: TypeId, bytes: &[u8], depth: usize) -> Result<Value, String> {
    if let Some(union) = union_of(table.get(id).short_name()) {
        return union_value(table, union, bytes, depth);
    }
    if let Some(alias) = &table.get(id).alias {
        return message_value(table, alias, bytes, depth + 1);
    }
    let mut out = Map::new();
    fields(table, &table.get(id).fields, &mut vec![], bytes, depth, &mut out)?;
    Ok(Value::Object(out))
}

/// Reads the fields of a message whose tag path begins with `path` (inlined structs are messages of their own).
fn fields(
    table: &Table,
    known: &[Field],
    path: &mut Vec<u32>,
    bytes: &[u8],
    depth: usize,
    out: &mut Map<String, Value>,
) -> Result<(), String> {
    let mut reader = Reader(bytes);
    while let Some((tag, wire)) = reader.next()? {
        path.push(tag);
        if let Some(field) = known.iter().find(|f| f.tags == *path) {
            put(table, field, &wire, depth, out)?;
        } else if known.iter().any(|f| f.tags.len() > path.len() && f.tags.starts_with(path)) {
            fields(table, known, path, wire.bytes()?, depth, out)?;
        }
        path.pop();
    }
    Ok(())
}

fn put(
    table: &Table,
    field: &Field,
    wire: &Wire,
    depth: usize,
    out: &mut Map<String, Value>,
) -> Result<(), String> {
    match &field.shape {
        Shape::List(item) => {
            let list = out.entry(field.name.clone()).or_insert_with(|| json!([]));
            let Value::Array(list) = list else { return Err("proto: no list".into()) };
            match (wire, &**item) {
                (Wire::Bytes(packed), Shape::Int32 | Shape::Int64 | Shape::Bool) => {
                    let mut reader = Reader(packed);
                    while !reader.0.is_empty() {
                        list.push(value(table, item, &Wire::Varint(reader.varint()?), depth + 1)?);
                    }
                }
                _ => list.push(value(table, item, wire, depth + 1)?),
            }
        }
        Shape::Map(item) => {
            let entry = wire.bytes()?;
            let key = text(inner_bytes(entry, 1)?)?;
            let content = inner(entry, 2)?.unwrap_or(Wire::Bytes(&[]));
            let content = value(table, item, &content, depth + 1)?;
            let map = out.entry(field.name.clone()).or_insert_with(|| json!({}));
            map[key] = content;
        }
        shape => {
            let content = value(table, shape, wire, depth + 1)?;
            out.insert(field.name.clone(), content);
        }
    }
    Ok(())
}

fn value(table: &Table, shape: &Shape, wire: &Wire, depth: usize) -> Result<Value, String> {
    Ok(match shape {
        Shape::String => text(wire.bytes()?)?.into(),
        Shape::Bytes => BASE64.encode(wire.bytes()?).into(),
        Shape::Int32 => (wire.int()? as i32).into(),
        Shape::Int64 => wire.int()?.into(),
        Shape::Bool => (wire.int()? != 0).into(),
        Shape::Number => match wire {
            Wire::Fixed(bits) => f64::from_bits(*bits).into(),
            _ => return Err("proto: wrong wireType for a double".into()),
        },
        message => return message_value(table, message, wire.bytes()?, depth),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::schema::builtin;
    use proptest::prelude::*;

    fn field(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag << 3 | 2, content.len() as u8];
        out.extend_from_slice(content);
        out
    }

    fn enveloped(api_version: &str, kind: &str, object: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, object)].concat()
    }

    fn read(group: &str, version: &str, kind: &str, bytes: &[u8]) -> Result<Value, String> {
        let shape = crate::decode::shape_of(group, version, kind).expect("shape");
        decode(builtin(), &shape, bytes)
    }

    #[test]
    fn maps_and_metadata() {
        let entry = [field(1, b"x"), field(2, b"y")].concat();
        let object = [field(1, &[field(1, b"a"), field(8, b"")].concat()), field(2, &entry)].concat();
        let value = read("", "v1", "ConfigMap", &enveloped("v1", "ConfigMap", &object)).expect("decoded");
        let want = json!({"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","creationTimestamp":null},"data":{"x":"y"}});
        assert_eq!(value, want);
    }

    #[test]
    fn inlined_messages_and_numbers_that_may_be_strings() {
        // Probe{handler=1{httpGet=2{port=2{type=1,strVal=3}}}, periodSeconds=4}
        let port = [vec![0x08, 1], field(3, b"http")].concat();
        let probe = [field(1, &field(2, &field(2, &port))), vec![0x20, 7]].concat();
        let table = builtin();
        let id = table.id("io.k8s.api.core.v1.Probe").expect("Probe");
        let value = object(table, id, &probe, 0).expect("decoded");
        assert_eq!(value, json!({"httpGet":{"port":"http"},"periodSeconds":7}));
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(read("", "v1", "ConfigMap", b"{}").is_err());
        assert!(read("", "v1", "ConfigMap", &[MAGIC, &[0x12, 0xff, 0x01]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read("", "v1", "Pod", &enveloped("v1", "Pod", &bytes[..bytes.len().min(120)]));
            let _ = read("", "v1", "Pod", &[MAGIC, &bytes].concat());
        }
    }
}
