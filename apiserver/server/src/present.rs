//! How objects are shown: in the requested version, as themselves, as a table row, as metadata only, in JSON or YAML.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use keelson_api::{Resource, Status};
use keelson_apiserver_core::{convert, protobuf, table};
use serde_json::Value;

use crate::object::{self, Object};
use crate::request::{Accept, Encoding, Form, Query};
use crate::respond::{self, Response};

/// Pieces of a streamed list are about this large, bytes.
const PIECE: usize = 64 * 1024;

/// Whether objects of this resource are stored in another version than it has.
pub fn converted(resource: &Resource) -> bool {
    resource.storage_version != resource.api_version()
}

/// Where a list ends and how to go on.
#[derive(Default, Debug)]
pub struct ListMeta {
    pub revision: i64,
    pub continue_token: String,
    pub remaining: Option<usize>,
}

/// A tree in the requested version.
pub fn tree(resource: &Resource, object: &Object) -> Value {
    let value = object.parse();
    if converted(resource) { convert::from_stored(resource, value) } else { value }
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

fn encode(accept: &Accept, value: &Value) -> Result<Bytes, Status> {
    Ok(match accept.encoding {
        Encoding::Json => value.to_string().into(),
        Encoding::Yaml => crate::yaml::write(value).into(),
        Encoding::Protobuf => protobuf::encode(value).map_err(Status::internal)?.into(),
    })
}

/// A value as it is, in the negotiated encoding.
///
/// # Errors
/// 500 when it cannot be written so.
pub fn value(accept: &Accept, code: u16, value: &Value) -> Result<Response, Status> {
    Ok(respond::answer(code, accept.content_type, respond::full(encode(accept, value)?)))
}

/// One object (with its resourceVersion) in the requested form.
///
/// # Errors
/// 406 as negotiated.
pub fn object(
    resource: &Resource,
    headers: &HeaderMap,
    query: &Query,
    code: u16,
    object: &Value,
) -> Result<Response, Status> {
    let accept = Accept::negotiate(headers, false)?;
    accept.fits(resource, false)?;
    match accept.form {
        Form::Table => {
            let metadata = serde_json::json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            let mut table = table::table(resource, &[object], metadata, now(), include(query)?, true);
            versioned(&mut table, accept.meta_version);
            value(&accept, code, &table)
        }
        Form::Partial | Form::PartialList => {
            let mut partial = object::partial(object);
            partial["apiVersion"] = accept.meta_version.into();
            value(&accept, code, &partial)
        }
        Form::Object => value(&accept, code, object),
    }
}

/// One stored object: its bytes as they are where possible.
///
/// # Errors
/// 406 as negotiated.
pub fn stored(
    resource: &Resource,
    headers: &HeaderMap,
    query: &Query,
    found: &Object,
) -> Result<Response, Status> {
    let accept = Accept::negotiate(headers, false)?;
    if accept.form == Form::Object && accept.encoding == Encoding::Json && !converted(resource) {
        return Ok(respond::answer(200, accept.content_type, respond::full(found.bytes.clone())));
    }
    object(resource, headers, query, 200, &tree(resource, found))
}

/// `includeObject`.
///
/// # Errors
/// 400 for a value that is none.
pub fn include(query: &Query) -> Result<table::Include, Status> {
    let text = query.get("includeObject");
    table::Include::parse(text).ok_or_else(|| {
        Status::bad_request(format!(
            "Unable to convert to Table as requested: includeObject: Invalid value: {text:?}: must be 'Metadata', 'Object', \
             'None', or empty"
        ))
    })
}

fn list_metadata(meta: &ListMeta) -> Value {
    let mut metadata = serde_json::json!({"resourceVersion": meta.revision.to_string()});
    if !meta.continue_token.is_empty() {
        metadata["continue"] = Value::String(meta.continue_token.clone());
    }
    if let Some(remaining) = meta.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    metadata
}

/// The head of a list up to and including `"items":[`.
fn list_head(kind: &str, api_version: &str, meta: &ListMeta, custom: bool) -> String {
    let mut metadata = list_metadata(meta);
    if custom && meta.continue_token.is_empty() {
        // Lists of custom resources say so when there is no more.
        metadata["continue"] = "".into();
    }
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":[")
}

/// A list in the requested form.
///
/// # Errors
/// 406 as negotiated.
pub fn list(
    resource: &'static Resource,
    accept: &Accept,
    query: &Query,
    objects: Vec<Arc<Object>>,
    meta: &ListMeta,
) -> Result<Response, Status> {
    accept.fits(resource, true)?;
    if accept.form == Form::Table {
        let values: Vec<Value> = objects.iter().map(|o| tree(resource, o)).collect();
        let values: Vec<&Value> = values.iter().collect();
        let mut table = table::table(resource, &values, list_metadata(meta), now(), include(query)?, true);
        versioned(&mut table, accept.meta_version);
        let size_known = encode(accept, &table)?;
        let gzip = accept.gzip && size_known.len() >= respond::GZIP_FROM;
        return Ok(respond::pieces(accept.content_type, gzip, std::iter::once(size_known)));
    }
    let partial = accept.form == Form::PartialList;
    let (kind, api_version) = if partial {
        ("PartialObjectMetadataList".to_owned(), accept.meta_version.to_owned())
    } else {
        (format!("{}List", resource.kind), resource.api_version())
    };
    let size: usize = objects.iter().map(|o| o.bytes.len()).sum();
    let gzip = accept.gzip && size >= respond::GZIP_FROM;
    if accept.encoding == Encoding::Protobuf {
        return protobuf_list(resource, accept, gzip, (&api_version, &kind), &objects, meta);
    }
    if partial && objects.is_empty() {
        // A list of metadata alone that has nothing in it says so with null.
        let metadata = list_metadata(meta);
        let list =
            serde_json::json!({"kind": kind, "apiVersion": api_version, "metadata": metadata, "items": null});
        return value(accept, 200, &list);
    }
    let pieces = Pieces {
        resource,
        partial,
        objects: objects.into_iter(),
        buffer: list_head(&kind, &api_version, meta, resource.definition.is_some() && !partial).into_bytes(),
        first: true,
        ended: false,
    };
    if accept.encoding == Encoding::Yaml {
        let json: Vec<u8> = pieces.flat_map(|p| p.to_vec()).collect();
        let value = serde_json::from_slice(&json).map_err(Status::internal)?;
        return self::value(accept, 200, &value);
    }
    if size < PIECE {
        let whole: Vec<u8> = pieces.flat_map(|p| p.to_vec()).collect();
        return Ok(respond::answer(200, accept.content_type, respond::full(whole)));
    }
    Ok(respond::pieces(accept.content_type, gzip, pieces))
}

/// A list in protobuf. Its length stands before it, so the items are encoded first and then sent one after the other.
fn protobuf_list(
    resource: &'static Resource,
    accept: &Accept,
    gzip: bool,
    (api_version, kind): (&str, &str),
    objects: &[Arc<Object>],
    meta: &ListMeta,
) -> Result<Response, Status> {
    let mut parts = vec![Bytes::from(protobuf::list_meta(&list_metadata(meta)))];
    for object in objects {
        let value = tree(resource, object);
        let partial = accept.form == Form::PartialList;
        let message = if partial { protobuf::partial(&value) } else { protobuf::message_of(&value) };
        parts.push(protobuf::list_item(&message.map_err(Status::internal)?).into());
    }
    let length = parts.iter().map(Bytes::len).sum();
    let head = std::iter::once(Bytes::from(protobuf::head(api_version, kind, length)));
    let pieces = head.chain(parts).chain(std::iter::once(Bytes::from_static(&protobuf::TAIL)));
    if length < PIECE {
        let whole: Vec<u8> = pieces.flat_map(|p| p.to_vec()).collect();
        return Ok(respond::answer(200, accept.content_type, respond::full(whole)));
    }
    Ok(respond::pieces(accept.content_type, gzip, pieces))
}

/// Writes a list a piece at a time.
struct Pieces {
    resource: &'static Resource,
    partial: bool,
    objects: std::vec::IntoIter<Arc<Object>>,
    buffer: Vec<u8>,
    first: bool,
    ended: bool,
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        while !self.ended && self.buffer.len() < PIECE {
            let Some(object) = self.objects.next() else {
                self.buffer.extend_from_slice(b"]}");
                self.ended = true;
                break;
            };
            if !std::mem::take(&mut self.first) {
                self.buffer.push(b',');
            }
            if self.partial {
                let value = object::partial(&tree(self.resource, &object));
                self.buffer.extend_from_slice(value.to_string().as_bytes());
            } else if converted(self.resource) {
                let mut value = tree(self.resource, &object);
                if let Some(map) = value.as_object_mut().filter(|_| self.resource.definition.is_none()) {
                    map.remove("kind");
                    map.remove("apiVersion");
                }
                self.buffer.extend_from_slice(value.to_string().as_bytes());
            } else if self.resource.definition.is_some() {
                // Custom resources say in a list what they are.
                self.buffer.extend_from_slice(&object.bytes);
            } else {
                object.write_item(&mut self.buffer);
            }
        }
        let piece = std::mem::take(&mut self.buffer);
        (!piece.is_empty()).then(|| piece.into())
    }
}

/// A table in the version asked for, and so what its rows show of the objects.
fn versioned(table: &mut Value, version: &str) {
    table["apiVersion"] = version.into();
    for row in table["rows"].as_array_mut().into_iter().flatten() {
        if row["object"]["kind"] == "PartialObjectMetadata" {
            row["object"]["apiVersion"] = version.into();
        }
    }
}
