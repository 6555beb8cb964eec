//! etcd's JSON gateway: HTTP/1 requests and WebSockets of `/v3/…` become calls of the gRPC services and their answers
//! JSON, by descriptors; nothing here knows what a method does.
//!
//! ```text
//! POST /v3/kv/range {"key":"YQ=="} ─► routes ─► json ─► transcode ─► gRPC service (in process, or another member)
//! 200 {"header":{…},"kvs":[…]}     ◄────────────────── transcode ◄──┘
//! ```
//!
//! A method that answers many times answers one `{"result":…}` a line. A method that takes many messages takes one JSON
//! value after the other from the body, or from a WebSocket's messages. Errors are `{"code":…,"message":…}` with HTTP's
//! nearest status.

mod codec;
mod json;
mod routes;
mod transcode;
mod websocket;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Method as Verb, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody};
use prost_reflect::{DynamicMessage, MessageDescriptor};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status, Streaming};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service};

use crate::codec::Dynamic;
use crate::json::Fault;
use crate::routes::Method;

pub use crate::routes::methods;

/// What answers the calls: a server's routes, or a channel to one.
type Upstream = BoxCloneSyncService<Request<Body>, Response<Body>, Status>;

/// Below this path everything is the gateway's.
pub const PREFIX: &str = "/v3/";

/// The gateway in front of a gRPC service.
#[derive(Clone)]
pub struct Gateway {
    upstream: Upstream,
    /// Most bytes of JSON that wait to become one message.
    most: usize,
}

impl Gateway {
    /// `most_message` is the largest message the service takes, bytes.
    pub fn new<S, B>(service: S, most_message: usize) -> Gateway
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        use tower::ServiceExt;
        let service = service.map_response(|response: Response<B>| response.map(Body::new));
        let unavailable = |error: S::Error| Status::unavailable(error.into().to_string());
        let upstream = BoxCloneSyncService::new(service.map_err(unavailable));
        // Base64 needs a third more, names and numbers their share.
        Gateway { upstream, most: most_message.saturating_mul(2) }
    }

    /// Answers a request below [`PREFIX`].
    pub async fn serve<B>(&self, mut request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::fmt::Display + Send,
    {
        let Some(method) = routes::method(request.uri().path()) else {
            return failure(StatusCode::NOT_FOUND, Code::NotFound, "Not Found");
        };
        if websocket::asked_for(&request) {
            return websocket::serve(self.clone(), method, &mut request);
        }
        if request.method() != Verb::POST {
            return failure(StatusCode::NOT_IMPLEMENTED, Code::Unimplemented, "Method Not Allowed");
        }
        let metadata = metadata(request.headers());
        let chunks = request.into_body().into_data_stream();
        // A body that breaks off ends like one that is whole; what it says so far is then not JSON.
        let chunks =
            chunks.take_while(|chunk| std::future::ready(chunk.is_ok())).filter_map(async |c| c.ok());
        let answers = if method.takes_many {
            let requests = messages(method.input.clone(), chunks.boxed(), self.most);
            self.call(method, metadata, while_good(requests)).await
        } else {
            match self.only(method, chunks.boxed()).await {
                Ok(message) => self.call(method, metadata, futures::stream::iter([message])).await,
                Err(status) => Err(status),
            }
        };
        match answers {
            Err(status) if method.answers_many => {
                json_response(http_status(status.code()), error_line(&status))
            }
            Err(status) => refused(&status),
            Ok(answers) if method.answers_many => streamed(answers).await,
            Ok(answers) => match one(answers).await {
                Ok(text) => json_response(StatusCode::OK, text),
                Err(status) => refused(&status),
            },
        }
    }

    /// The one message of a body; an empty body is an empty message, and what follows the first value is not looked at.
    async fn only(
        &self,
        method: &Method,
        chunks: impl Stream<Item = Bytes> + Send + Unpin + 'static,
    ) -> Result<DynamicMessage, Status> {
        let mut requests = Box::pin(messages(method.input.clone(), chunks, self.most));
        match requests.next().await {
            None => Ok(DynamicMessage::new(method.input.clone())),
            Some(read) => read.map_err(Status::invalid_argument),
        }
    }

    async fn call(
        &self,
        method: &Method,
        metadata: MetadataMap,
        requests: impl Stream<Item = DynamicMessage> + Send + 'static,
    ) -> Result<Streaming<DynamicMessage>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.upstream.clone()).max_decoding_message_size(usize::MAX);
        grpc.ready().await?;
        let mut request = tonic::Request::new(requests);
        *request.metadata_mut() = metadata;
        let codec = Dynamic::new(method.output.clone());
        Ok(grpc.streaming(request, method.grpc.clone(), codec).await?.into_inner())
    }
}

/// Messages from JSON values that come in pieces. It ends after the first fault, which it tells in Go's words.
fn messages(
    descriptor: MessageDescriptor,
    chunks: impl Stream<Item = Bytes> + Send + Unpin,
    most: usize,
) -> impl Stream<Item = Result<DynamicMessage, String>> + Send {
    struct State<S> {
        chunks: S,
        waiting: BytesMut,
        ended: bool,
    }
    let state = State { chunks, waiting: BytesMut::new(), ended: false };
    futures::stream::unfold(state, move |mut state| {
        let descriptor = descriptor.clone();
        async move {
            loop {
                let fault = match json::first(&state.waiting) {
                    Ok(value) => {
                        let text = state.waiting.split_to(value.end);
                        let read = transcode::decode(&text, &value, &descriptor);
                        state.ended = read.is_err();
                        if state.ended {
                            state.waiting.clear();
                        }
                        return Some((read, state));
                    }
                    Err(Fault::Nothing) if state.ended => return None,
                    Err(Fault::Incomplete) if state.ended => "unexpected EOF".to_owned(),
                    Err(Fault::Syntax(words)) => words,
                    Err(Fault::Nothing | Fault::Incomplete) if state.waiting.len() > most => {
                        "etcdserver: request is too large".to_owned()
                    }
                    Err(Fault::Nothing | Fault::Incomplete) => {
                        match state.chunks.next().await {
                            Some(chunk) => state.waiting.extend_from_slice(&chunk),
                            None => state.ended = true,
                        }
                        continue;
                    }
                };
                state.ended = true;
                state.waiting.clear();
                return Some((Err(fault), state));
            }
        }
    })
}

/// A stream of requests just ends at the first that is none, as etcd's does.
fn while_good(
    requests: impl Stream<Item = Result<DynamicMessage, String>> + Send + 'static,
) -> impl Stream<Item = DynamicMessage> + Send + 'static {
    requests.take_while(|read| std::future::ready(read.is_ok())).filter_map(async |read| read.ok())
}

/// The answer of a method that has one.
async fn one(mut answers: Streaming<DynamicMessage>) -> Result<Vec<u8>, Status> {
    let message =
        answers.message().await?.ok_or_else(|| Status::internal("the call ended without an answer"))?;
    // The status comes last.
    answers.trailers().await?;
    encoded(&message)
}

/// The head goes out with the first answer: a call that fails before it has the failure's status.
async fn streamed(mut answers: Streaming<DynamicMessage>) -> Response<Body> {
    let first = match answers.message().await {
        Ok(Some(message)) => encoded(&message).map(|text| Bytes::from(result_line(&text))),
        Ok(None) => return json_response(StatusCode::OK, Vec::new()),
        Err(status) => Err(status),
    };
    let first = match first {
        Ok(line) => line,
        Err(status) => return json_response(http_status(status.code()), error_line(&status)),
    };
    let lines = futures::stream::iter([first]).chain(lines(answers));
    let frames = lines.map(|line| Ok::<_, Status>(http_body::Frame::data(line)));
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

fn result_line(text: &[u8]) -> Vec<u8> {
    [b"{\"result\":", text, b"}\n"].concat()
}

/// `{"result":…}` for each answer, `{"error":…}` at the end if it is a bad one; each with a line feed.
fn lines(answers: Streaming<DynamicMessage>) -> impl Stream<Item = Bytes> + Send {
    futures::stream::unfold(Some(answers), async |answers| {
        let mut answers = answers?;
        let line = match answers.message().await {
            Ok(None) => return None,
            Ok(Some(message)) => encoded(&message).map(|text| result_line(&text)),
            Err(status) => Err(status),
        };
        Some(match line {
            Ok(line) => (line.into(), Some(answers)),
            Err(status) => (error_line(&status).into(), None),
        })
    })
}

fn encoded(message: &DynamicMessage) -> Result<Vec<u8>, Status> {
    transcode::encode(message).map_err(|error| Status::internal(format!("encoding an answer: {error}")))
}

/// What of HTTP's headers is metadata of the call: the token, and what is marked to be.
fn metadata(headers: &HeaderMap) -> MetadataMap {
    const MARK: &str = "grpc-metadata-";
    let mut out = HeaderMap::new();
    for (name, value) in headers {
        let name = match name.as_str() {
            "authorization" => name.clone(),
            marked if marked.starts_with(MARK) => match marked[MARK.len()..].parse() {
                Ok(name) => name,
                Err(_) => continue,
            },
            _ => continue,
        };
        out.append(name, value.clone());
    }
    MetadataMap::from_headers(out)
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

fn json_response(status: StatusCode, text: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

fn error_json(code: Code, message: &str) -> serde_json::Value {
    // Fields without a value are left out, as everywhere; the order of the names is the alphabet's.
    match message {
        "" => serde_json::json!({ "code": code as i32 }),
        _ => serde_json::json!({ "code": code as i32, "message": message }),
    }
}

fn failure(status: StatusCode, code: Code, message: &str) -> Response<Body> {
    json_response(status, error_json(code, message).to_string().into_bytes())
}

fn refused(status: &Status) -> Response<Body> {
    let mut response = failure(http_status(status.code()), status.code(), status.message());
    if status.code() == Code::Unauthenticated
        && let Ok(words) = HeaderValue::from_str(status.message())
    {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, words);
    }
    response
}

fn error_line(status: &Status) -> Vec<u8> {
    let error = error_json(status.code(), status.message());
    format!("{}\n", serde_json::json!({ "error": error })).into_bytes()
}

/// HTTP's nearest to a gRPC code.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).expect("a status in use"),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
