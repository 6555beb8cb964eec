//! Exec, attach and port-forward: from the caller's connection to the runtime's streaming server.
//!
//! A caller that speaks what the runtime speaks (SPDY/3.1, WebSocket v4) is joined to it byte for byte. WebSocket v5 is
//! translated to SPDY, because only there stdin can end while output goes on. Port-forward over
//! `SPDY/3.1+portforward.k8s.io` carries SPDY's bytes in WebSocket messages: they are taken out and passed on as they are.
//! Hazard: a runtime's streaming address works once; ask for it only when the caller's request is known to be good.

use std::collections::BTreeMap;
use std::io;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use http::header::{
    CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use keelson_nodeagent_core::pod::observed::Container;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use tracing::debug;

use super::spdy::{Encoder, Received, decode};
use super::{Answer, Query, text};
use crate::context::Node;

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const PORT_FORWARD: &str = "SPDY/3.1+portforward.k8s.io";
const STREAM_VERSION: &str = "x-stream-protocol-version";
/// The largest message taken from a caller.
const MESSAGE: usize = 4 << 20;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

type Wire = TokioIo<Upgraded>;

/// Which streams a session has.
#[derive(Clone, Copy)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn of(query: &Query, tty: bool) -> Result<Wanted, Answer> {
        let either = |a: &str, b: &str| query.flag(a) || query.flag(b);
        let wanted = Wanted {
            stdin: either("input", "stdin"),
            stdout: either("output", "stdout"),
            // A terminal has one output.
            stderr: either("error", "stderr") && !tty,
            tty,
        };
        if wanted.stdin || wanted.stdout || wanted.stderr {
            return Ok(wanted);
        }
        Err(text(StatusCode::BAD_REQUEST, "you must specify at least one of stdin, stdout, stderr"))
    }
}

enum Dialect {
    /// The runtime speaks it too.
    Raw,
    V5,
    PortForward,
}

fn dialect(
    headers: &HeaderMap,
    offers: &[(&'static str, Dialect)],
) -> Result<(Option<&'static str>, usize), Answer> {
    let upgrade = headers.get(UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if upgrade.eq_ignore_ascii_case("SPDY/3.1") {
        return Ok((None, usize::MAX));
    }
    if !upgrade.eq_ignore_ascii_case("websocket") {
        return Err(text(StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade headers in request"));
    }
    let asked = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let asked: Vec<&str> = asked.flat_map(|v| v.split(',')).map(str::trim).collect();
    for (at, (name, _)) in offers.iter().enumerate() {
        if asked.contains(name) {
            return Ok((Some(name), at));
        }
    }
    let known: Vec<&str> = offers.iter().map(|(name, _)| *name).collect();
    let message =
        format!("unable to upgrade: none of the subprotocols {asked:?} is known, use one of {known:?}");
    Err(text(StatusCode::FORBIDDEN, message))
}

pub async fn exec(
    node: &Node,
    target: &Container,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Answer, Answer> {
    let wanted = Wanted::of(query, query.flag("tty"))?;
    let command = query.all("command");
    if command.is_empty() {
        return Err(text(StatusCode::BAD_REQUEST, "you must specify a command"));
    }
    let offers = [(V5, Dialect::V5), (V4, Dialect::Raw)];
    let (protocol, at) = dialect(request.headers(), &offers)?;
    let ask = ExecRequest {
        container_id: target.id.clone(),
        cmd: command,
        tty: wanted.tty,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
    };
    let url = node.cri.exec_url(ask).await.map_err(refused)?;
    join(request, &url, protocol, offers.get(at).map(|o| &o.1), wanted).await
}

pub async fn attach(
    node: &Node,
    target: &Container,
    tty: bool,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Answer, Answer> {
    let wanted = Wanted::of(query, tty)?;
    let offers = [(V5, Dialect::V5), (V4, Dialect::Raw)];
    let (protocol, at) = dialect(request.headers(), &offers)?;
    let ask = AttachRequest {
        container_id: target.id.clone(),
        tty,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
    };
    let url = node.cri.attach_url(ask).await.map_err(refused)?;
    join(request, &url, protocol, offers.get(at).map(|o| &o.1), wanted).await
}

pub async fn port_forward(
    node: &Node,
    sandbox: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Answer, Answer> {
    let offers = [(PORT_FORWARD, Dialect::PortForward), (V4, Dialect::Raw)];
    let (protocol, at) = dialect(request.headers(), &offers)?;
    let ports = query.all("port").into_iter().chain(query.all("ports"));
    let port: Vec<i32> =
        ports.flat_map(|p| p.split(',').filter_map(|n| n.parse().ok()).collect::<Vec<_>>()).collect();
    let ask = PortForwardRequest { pod_sandbox_id: sandbox.to_string(), port };
    let url = node.cri.port_forward_url(ask).await.map_err(refused)?;
    let none = Wanted { stdin: false, stdout: false, stderr: false, tty: false };
    join(request, &url, protocol, offers.get(at).map(|o| &o.1), none).await
}

fn refused(status: tonic::Status) -> Answer {
    let code =
        if status.code() == tonic::Code::NotFound { StatusCode::NOT_FOUND } else { StatusCode::BAD_GATEWAY };
    text(code, format!("the runtime refused the stream: {}", status.message()))
}

fn unreachable(e: impl std::fmt::Display) -> Answer {
    text(StatusCode::BAD_GATEWAY, format!("cannot reach the runtime's streaming server: {e}"))
}

async fn join(
    mut request: Request<Incoming>,
    url: &str,
    protocol: Option<&'static str>,
    dialect: Option<&Dialect>,
    wanted: Wanted,
) -> Result<Answer, Answer> {
    match dialect {
        None | Some(Dialect::Raw) => pass(request, url).await,
        Some(kind) => {
            let version = if matches!(kind, Dialect::V5) { V4 } else { "portforward.k8s.io" };
            let runtime = spdy_upgrade(url, version).await?;
            let answer = accept(request.headers(), protocol)?;
            let upgrade = hyper::upgrade::on(&mut request);
            let exec = matches!(kind, Dialect::V5);
            tokio::spawn(async move {
                let Ok(caller) = upgrade.await else { return };
                let limits =
                    WebSocketConfig::default().max_message_size(Some(MESSAGE)).max_frame_size(Some(MESSAGE));
                let caller =
                    WebSocketStream::from_raw_socket(TokioIo::new(caller), Role::Server, Some(limits)).await;
                let ended =
                    if exec { session(caller, runtime, wanted).await } else { tunnel(caller, runtime).await };
                if let Err(e) = ended {
                    debug!(error = %e, "stream ended");
                }
            });
            Ok(answer)
        }
    }
}

/// The 101 of a WebSocket handshake.
fn accept(headers: &HeaderMap, protocol: Option<&'static str>) -> Result<Answer, Answer> {
    let key = headers.get(SEC_WEBSOCKET_KEY);
    let key =
        key.ok_or_else(|| text(StatusCode::BAD_REQUEST, "unable to upgrade: Sec-WebSocket-Key is missing"))?;
    let mut answer = Response::new(Empty::new().boxed());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = answer.headers_mut();
    out.insert(UPGRADE, HeaderValue::from_static("websocket"));
    out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(value) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        out.insert(SEC_WEBSOCKET_ACCEPT, value);
    }
    if let Some(protocol) = protocol {
        out.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok(answer)
}

/// Sends a request to the runtime's streaming server and returns its answer.
async fn dial(url: &str, method: Method, headers: HeaderMap) -> Result<Response<Incoming>, Answer> {
    let uri: http::Uri = url.parse().map_err(unreachable)?;
    let authority = uri.authority().ok_or_else(|| unreachable("its address names no host"))?.to_string();
    let stream = TcpStream::connect(authority.as_str()).await.map_err(unreachable)?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
    tokio::spawn(connection.with_upgrades());
    let target = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut onward =
        Request::builder().method(method).uri(target).body(Empty::<Bytes>::new()).map_err(unreachable)?;
    *onward.headers_mut() = headers;
    if let Ok(host) = HeaderValue::from_str(&authority) {
        onward.headers_mut().insert(HOST, host);
    }
    sender.send_request(onward).await.map_err(unreachable)
}

/// Joins both ends byte for byte.
async fn pass(mut request: Request<Incoming>, url: &str) -> Result<Answer, Answer> {
    let kept = |name: &str| {
        name == "upgrade"
            || name == "connection"
            || name.starts_with("sec-websocket")
            || name.starts_with("x-stream")
    };
    let headers = |from: &HeaderMap| -> HeaderMap {
        from.iter().filter(|(n, _)| kept(n.as_str())).map(|(n, v)| (n.clone(), v.clone())).collect()
    };
    let onward = headers(request.headers());
    let mut response = dial(url, request.method().clone(), onward).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(text(response.status(), "the runtime's streaming server refused the upgrade"));
    }
    let (caller, runtime) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut response));
    tokio::spawn(async move {
        if let (Ok(caller), Ok(runtime)) = (caller.await, runtime.await) {
            // Either end may cut the stream; that is how it ends.
            let _ =
                tokio::io::copy_bidirectional(&mut TokioIo::new(caller), &mut TokioIo::new(runtime)).await;
        }
    });
    let mut answer = Response::new(Empty::new().boxed());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = headers(response.headers());
    Ok(answer)
}

async fn spdy_upgrade(url: &str, version: &str) -> Result<Wire, Answer> {
    let mut headers = HeaderMap::new();
    headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(STREAM_VERSION, HeaderValue::from_str(version).map_err(unreachable)?);
    let response = dial(url, Method::POST, headers).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let code = response.status();
        return Err(unreachable(format!("it answered {code} to a SPDY upgrade")));
    }
    hyper::upgrade::on(response).await.map(TokioIo::new).map_err(unreachable)
}

/// A close with a code: callers take one without for a broken stream.
fn good_end() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// WebSocket messages that carry a SPDY connection's bytes.
async fn tunnel(caller: WebSocketStream<Wire>, runtime: Wire) -> io::Result<()> {
    let (mut to_caller, mut from_caller) = caller.split();
    let (mut from_runtime, mut to_runtime) = tokio::io::split(runtime);
    let up = async {
        while let Some(message) = from_caller.next().await {
            match message.map_err(io::Error::other)? {
                Message::Binary(bytes) => to_runtime.write_all(&bytes).await?,
                Message::Close(_) => break,
                _ => {}
            }
        }
        to_runtime.shutdown().await
    };
    let down = async {
        let mut block = vec![0; 32 << 10];
        loop {
            let read = from_runtime.read(&mut block).await?;
            if read == 0 {
                break;
            }
            let message = Message::Binary(Bytes::copy_from_slice(&block[..read]));
            to_caller.send(message).await.map_err(io::Error::other)?;
        }
        to_caller.send(good_end()).await.map_err(io::Error::other)
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}

/// One exec or attach session: WebSocket channels on one side, SPDY streams on the other.
async fn session(caller: WebSocketStream<Wire>, runtime: Wire, wanted: Wanted) -> io::Result<()> {
    let mut encoder = Encoder::default();
    let mut hello = BytesMut::new();
    let mut streams: BTreeMap<u8, u32> = BTreeMap::new();
    let kinds = [
        (ERROR, "error", true),
        (STDIN, "stdin", wanted.stdin),
        (STDOUT, "stdout", wanted.stdout),
        (STDERR, "stderr", wanted.stderr),
        (RESIZE, "resize", wanted.tty),
    ];
    for (channel, name, _) in kinds.iter().filter(|(.., on)| *on) {
        streams.insert(*channel, encoder.open(&[("streamtype", name)], &mut hello));
    }
    let (from_runtime, mut to_runtime) = tokio::io::split(runtime);
    to_runtime.write_all(&hello).await?;
    let (to_caller, from_caller) = caller.split();
    // Pings are answered on the way up, so only one task writes to the runtime.
    let (pongs, pinged) = tokio::sync::mpsc::channel(4);
    let up = upstream(from_caller, to_runtime, streams.clone(), pinged);
    let down = downstream(from_runtime, to_caller, streams, pongs);
    tokio::pin!(up, down);
    tokio::select! {
        ended = &mut down => ended,
        ended = &mut up => ended,
    }
}

async fn upstream(
    mut caller: futures::stream::SplitStream<WebSocketStream<Wire>>,
    mut runtime: WriteHalf<Wire>,
    streams: BTreeMap<u8, u32>,
    mut pinged: tokio::sync::mpsc::Receiver<Bytes>,
) -> io::Result<()> {
    let mut open = true;
    loop {
        let mut out = BytesMut::new();
        tokio::select! {
            Some(frame) = pinged.recv() => out.extend_from_slice(&frame),
            message = caller.next() => {
                let content = match message.transpose().map_err(io::Error::other)? {
                    Some(Message::Binary(bytes)) => bytes,
                    Some(Message::Text(text)) => Bytes::from(text),
                    Some(Message::Close(_)) | None => return runtime.shutdown().await,
                    Some(_) => continue,
                };
                let Some((channel, rest)) = content.split_first() else { continue };
                match *channel {
                    STDIN | RESIZE => {
                        if let Some(id) = streams.get(channel).filter(|_| open || *channel == RESIZE)
                            && !rest.is_empty()
                        {
                            Encoder::data(*id, rest, false, &mut out);
                        }
                    }
                    CLOSE if rest == [STDIN] && open => {
                        open = false;
                        if let Some(id) = streams.get(&STDIN) {
                            Encoder::data(*id, &[], true, &mut out);
                        }
                    }
                    _ => {}
                }
            }
        }
        runtime.write_all(&out).await?;
    }
}

async fn downstream(
    mut runtime: ReadHalf<Wire>,
    mut caller: futures::stream::SplitSink<WebSocketStream<Wire>, Message>,
    streams: BTreeMap<u8, u32>,
    pongs: tokio::sync::mpsc::Sender<Bytes>,
) -> io::Result<()> {
    let mut waiting: BTreeMap<u32, u8> = [STDOUT, STDERR, ERROR]
        .into_iter()
        .filter_map(|channel| streams.get(&channel).map(|id| (*id, channel)))
        .collect();
    let mut buffer = BytesMut::with_capacity(32 << 10);
    while !waiting.is_empty() {
        match decode(&mut buffer)? {
            Some(Received::Data { id, content, end }) => {
                if let Some(channel) = waiting.get(&id).copied() {
                    if !content.is_empty() {
                        let mut message = BytesMut::with_capacity(content.len() + 1);
                        message.extend_from_slice(&[channel]);
                        message.extend_from_slice(&content);
                        caller.send(Message::Binary(message.freeze())).await.map_err(io::Error::other)?;
                    }
                    if end {
                        waiting.remove(&id);
                    }
                }
            }
            Some(Received::Reset(id)) => {
                waiting.remove(&id);
            }
            Some(Received::Ping(frame)) => {
                let _ = pongs.try_send(frame);
            }
            Some(Received::GoAway) => break,
            None => {
                if runtime.read_buf(&mut buffer).await? == 0 {
                    break;
                }
            }
        }
    }
    caller.send(good_end()).await.map_err(io::Error::other)?;
    caller.close().await.map_err(io::Error::other)
}
