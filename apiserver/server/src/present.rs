//! How objects are shown: in the requested version, as themselves, as a table row, as metadata only, in JSON or YAML.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use keelson_api::{Resource, Status};
use keelson_apiserver_core::{convert, table};
use serde_json::Value;

use crate::object::{self, Object};
use crate::request::{Accept, Form, Query};
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
    if accept.yaml {
        let text = serde_saphyr::to_string(value).map_err(|e| Status::internal(format!("YAML: {e}")))?;
        return Ok(text.into());
    }
    Ok(value.to_string().into())
}

/// A value as it is, in JSON or YAML.
///
/// # Errors
/// 500 when it cannot be YAML.
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
    match accept.form {
        Form::Table => {
            let metadata = serde_json::json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            let table = table::table(resource, &[object], metadata, now(), include(query)?, true);
            value(&accept, code, &table)
        }
        Form::Partial | Form::PartialList => value(&accept, code, &object::partial(object)),
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
    if accept.form == Form::Object && !accept.yaml && !converted(resource) {
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
    table::Include::parse(text)
        .ok_or_else(|| Status::bad_request(format!("unrecognized includeObject value: {text:?}")))
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
fn list_head(kind: &str, api_version: &str, meta: &ListMeta) -> String {
    let metadata = list_metadata(meta);
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
    if accept.form == Form::Table {
        let values: Vec<Value> = objects.iter().map(|o| tree(resource, o)).collect();
        let values: Vec<&Value> = values.iter().collect();
        let table = table::table(resource, &values, list_metadata(meta), now(), include(query)?, true);
        let size_known = encode(accept, &table)?;
        let gzip = accept.gzip && size_known.len() >= respond::GZIP_FROM;
        return Ok(respond::pieces(accept.content_type, gzip, std::iter::once(size_known)));
    }
    let partial = accept.form == Form::PartialList;
    let (kind, api_version) = if partial {
        ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned())
    } else {
        (format!("{}List", resource.kind), resource.api_version())
    };
    let size: usize = objects.iter().map(|o| o.bytes.len()).sum();
    let gzip = accept.gzip && size >= respond::GZIP_FROM;
    let pieces = Pieces {
        resource,
        partial,
        objects: objects.into_iter(),
        buffer: list_head(&kind, &api_version, meta).into_bytes(),
        first: true,
        ended: false,
    };
    if accept.yaml {
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
                if let Some(map) = value.as_object_mut() {
                    map.remove("kind");
                    map.remove("apiVersion");
                }
                self.buffer.extend_from_slice(value.to_string().as_bytes());
            } else {
                object.write_item(&mut self.buffer);
            }
        }
        let piece = std::mem::take(&mut self.buffer);
        (!piece.is_empty()).then(|| piece.into())
    }
}
