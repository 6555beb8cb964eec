//! The gateway over a WebSocket: messages in are pieces of the body of a POST, lines of its answer are messages out.

use bytes::{Bytes, BytesMut};
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use prost_reflect::DynamicMessage;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};

use crate::routes::Method;
use crate::{Gateway, error_line, lines, messages, while_good};

/// Pieces of requests that wait for the call to take them.
const PIECES: usize = 16;

/// Whether a request wants to become a WebSocket.
pub(crate) fn asked_for<B>(request: &Request<B>) -> bool {
    let has = |name: header::HeaderName, word: &str| {
        request.headers().get_all(name).iter().any(|value| {
            let words = value.to_str().unwrap_or_default().split(',');
            words.map(str::trim).any(|found| found.eq_ignore_ascii_case(word))
        })
    };
    has(header::CONNECTION, "upgrade") && has(header::UPGRADE, "websocket")
}

/// Agrees to a WebSocket and serves it in a task of its own.
pub(crate) fn serve<B>(
    gateway: Gateway,
    method: &'static Method,
    request: &mut Request<B>,
) -> Response<Body> {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    let accept = derive_accept_key(key.as_bytes());
    let (metadata, protocol) = credentials(request);
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let config = WebSocketConfig::default().max_message_size(Some(gateway.most));
                let socket =
                    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config))
                        .await;
                run(gateway, method, metadata, socket).await;
            }
            Err(error) => tracing::debug!(%error, "a WebSocket was not opened"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(protocol) = protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    response
}

/// Browsers cannot set headers on a WebSocket, and etcd looks at none: a token comes as the protocol `Bearer, TOKEN`,
/// which is then the protocol agreed on.
fn credentials<B>(request: &Request<B>) -> (MetadataMap, Option<HeaderValue>) {
    let mut found = MetadataMap::new();
    let asked = request.headers().get(header::SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok());
    let Some((scheme, token)) = asked.and_then(|asked| asked.split_once(',')) else {
        return (found, None);
    };
    if scheme.trim() != "Bearer" {
        return (found, None);
    }
    if let Ok(token) = format!("Bearer {}", token.trim()).parse() {
        found.insert("authorization", token);
    }
    (found, Some(HeaderValue::from_static("Bearer")))
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

async fn run(gateway: Gateway, method: &'static Method, metadata: MetadataMap, socket: Socket) {
    let (outgoing, mut incoming) = socket.split();
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(PIECES);
    let reading = async move {
        while let Some(Ok(message)) = incoming.next().await {
            let bytes: Bytes = match message {
                Message::Text(text) => text.into(),
                Message::Binary(bytes) => bytes,
                Message::Close(_) => return,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            };
            let mut line = BytesMut::from(&bytes[..]);
            line.extend_from_slice(b"\n");
            // A call that takes no more is still ended by a closed socket.
            let _ = sender.send(line.freeze()).await;
        }
    };
    let chunks = futures::stream::unfold(receiver, async |mut receiver| {
        let chunk = receiver.recv().await?;
        Some((chunk, receiver))
    });
    let requests = while_good(messages(method.input.clone(), chunks.boxed(), gateway.most));
    let most = if method.takes_many { usize::MAX } else { 1 };
    let talking = talk(gateway.call(method, metadata, requests.take(most)), outgoing);
    tokio::select! {
        biased;
        () = talking => {}
        () = reading => {}
    }
}

async fn talk(
    call: impl Future<Output = Result<Streaming<DynamicMessage>, Status>>,
    mut outgoing: SplitSink<Socket, Message>,
) {
    let text = |line: &[u8]| Message::text(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
    match call.await {
        Ok(answers) => {
            let mut lines = std::pin::pin!(lines(answers));
            while let Some(line) = lines.next().await {
                if outgoing.send(text(&line)).await.is_err() {
                    return;
                }
            }
        }
        Err(status) => {
            // The client may be gone.
            let _ = outgoing.send(text(&error_line(&status))).await;
        }
    }
    let _ = outgoing.close().await;
}
