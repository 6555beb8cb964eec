//! Bodies and answers: everything a handler can return, in one body type.

use std::convert::Infallible;
use std::io::Write as _;
use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER, VARY,
};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use keelson_api::Status;
use keelson_apiserver_core::protobuf;
use serde_json::Value;

use crate::request::{Encoding, PROTOBUF};

/// Why a streamed body ended early; the connection is cut so that the client notices.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// The body of every answer.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;
/// An answer.
pub type Response = http::Response<Body>;

/// Bodies of at least this many bytes are compressed where the client accepts gzip.
pub const GZIP_FROM: usize = 128 * 1024;

fn never(never: Infallible) -> BodyError {
    match never {}
}

/// A body known at once.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(never).boxed_unsync()
}

/// A body that comes in pieces.
pub fn stream(pieces: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static) -> Body {
    let pieces: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(pieces);
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// An answer with a content type and the header every API answer has.
pub fn answer(code: u16, content_type: &str, body: Body) -> Response {
    let mut response = http::Response::new(body);
    *response.status_mut() =
        http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if let Ok(value) = HeaderValue::from_str(content_type) {
        headers.insert(CONTENT_TYPE, value);
    }
    response
}

/// A JSON answer.
pub fn json(code: u16, value: &Value) -> Response {
    answer(code, "application/json", full(value.to_string()))
}

/// A plain text answer.
pub fn text(code: u16, body: impl Into<Bytes>) -> Response {
    let mut response = answer(code, "text/plain; charset=utf-8", full(body));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// An error (or success) in the API's own form.
pub fn status(status: &Status) -> Response {
    status_as(status, Encoding::Json)
}

/// The same in the encoding the client asked for.
pub fn status_as(status: &Status, encoding: Encoding) -> Response {
    let value = status.to_value();
    let mut response = match protobuf::encode(&value) {
        Ok(bytes) if encoding == Encoding::Protobuf => answer(status.code, PROTOBUF, full(bytes)),
        _ if encoding == Encoding::Yaml => {
            answer(status.code, "application/yaml", full(crate::yaml::write(&value)))
        }
        _ => json(status.code, &value),
    };
    if status.retry_after_seconds > 0 {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(status.retry_after_seconds));
    }
    if status.code == 403 {
        response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    }
    response
}

/// The answer to HEAD: the same head, the length the body would have had, no body. HTTP/1 leaves a body out by itself,
/// HTTP/2 would send it.
pub fn head_only(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    if let Some(length) = http_body::Body::size_hint(&body).exact() {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    http::Response::from_parts(head, full(Bytes::new()))
}

/// Adds `Warning` headers; texts that cannot be a header are left out.
pub fn warn(response: &mut Response, warnings: &[String]) {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
}

/// Adds a `Warning` header before all others.
pub fn warn_first(response: &mut Response, warning: &str) {
    let others: Vec<HeaderValue> =
        response.headers().get_all(http::header::WARNING).iter().cloned().collect();
    response.headers_mut().remove(http::header::WARNING);
    warn(response, &[warning.to_owned()]);
    for other in others {
        response.headers_mut().append(http::header::WARNING, other);
    }
}

/// A body of pieces made one after the other, compressed if asked for.
pub fn pieces(
    content_type: &str,
    gzip: bool,
    pieces: impl Iterator<Item = Bytes> + Send + 'static,
) -> Response {
    if !gzip {
        return answer(200, content_type, stream(futures::stream::iter(pieces.map(Ok))));
    }
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let compressed = Compressed { pieces, encoder: Some(encoder) };
    let mut response = answer(200, content_type, stream(futures::stream::iter(compressed)));
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

/// Compresses as it goes; holds one piece at a time.
struct Compressed<I> {
    pieces: I,
    encoder: Option<flate2::write::GzEncoder<Vec<u8>>>,
}

impl<I: Iterator<Item = Bytes>> Iterator for Compressed<I> {
    type Item = Result<Bytes, BodyError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut encoder = self.encoder.take()?;
            let Some(piece) = self.pieces.next() else {
                return Some(encoder.finish().map(Bytes::from).map_err(BodyError::from));
            };
            if let Err(error) = encoder.write_all(&piece) {
                return Some(Err(error.into()));
            }
            let ready = std::mem::take(encoder.get_mut());
            self.encoder = Some(encoder);
            if !ready.is_empty() {
                return Some(Ok(ready.into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gzip_round_trip_in_pieces() {
        let parts: Vec<Bytes> = (0..100).map(|i| Bytes::from(format!("piece {i};").repeat(500))).collect();
        let plain: Vec<u8> = parts.concat();
        let response = pieces("application/json", true, parts.into_iter());
        let body = response.into_body().collect().await.expect("body").to_bytes();
        let mut out = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&body[..]), &mut out).expect("gzip");
        assert_eq!(out, plain);
        assert!(body.len() < plain.len() / 4);
    }

    #[test]
    fn warnings_are_quoted() {
        let mut response = text(200, "");
        warn(&mut response, &["unknown field \"zz\"".to_owned()]);
        assert_eq!(response.headers()[http::header::WARNING], "299 - \"unknown field \\\"zz\\\"\"");
    }
}
