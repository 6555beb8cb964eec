//! Between members: HTTP/2 POSTs on the peer URL, bodies in postcard, one connection per peer opened when needed.
//!
//! | path | body | answer |
//! |---|---|---|
//! | `/raft/message` | `Request` | `Reply` |
//! | `/raft/snapshot` | length (4), vote and meta, then the chunks | our vote |
//! | `/members/hashkv` | revision | `PeerHash` |
//! | `/members` (GET) | | JSON: cluster id, members; what a joiner needs |
//!
//! Every request carries the sender's cluster and the target's member id; a wrong one is refused, so that an address
//! that changed hands cannot mix two clusters.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use http::{Method, Request as HttpRequest, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use keelson_store_core::Member as CoreMember;
use keelson_store_raft::backend::Chunks;
use keelson_store_raft::types::{SnapshotMeta, TokioRuntime, Vote};
use keelson_store_raft::{Node, Reply, Request, Transport, TransportError};
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;

use crate::calls::Calls;
use crate::config::{Address, Endpoint};
use crate::consistency::PeerHash;
use crate::handle::Handle;
use crate::listen::{RequestBody, Serve, plain};
use crate::strict::Contacts;

const CLUSTER: &str = "x-keelson-cluster";
const TARGET: &str = "x-keelson-to";
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);
/// Largest message taken, bytes: a replication batch with its entries.
const LARGEST: usize = 64 << 20;
/// Chunks of an incoming snapshot that wait for the disk.
const SNAPSHOT_QUEUE: usize = 4;

type Body = BoxBody<Bytes, io::Error>;
type Sender = http2::SendRequest<Body>;

/// Carries messages to peers.
pub struct PeerTransport {
    cluster_id: u64,
    pub(crate) tls: Option<Arc<rustls::ClientConfig>>,
    connections: Mutex<BTreeMap<u64, Sender>>,
    /// Where members are by now: Raft's clients know only where they were when the client was made.
    addresses: Mutex<BTreeMap<u64, Vec<String>>>,
    /// Bytes sent and received.
    pub traffic: Traffic,
    /// Who answers us.
    pub(crate) contacts: Contacts,
}

/// Counters for metrics.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Payload bytes sent to peers.
    pub sent: std::sync::atomic::AtomicU64,
    /// Messages that could not be sent or got no answer.
    pub failures: std::sync::atomic::AtomicU64,
}

fn full(body: Vec<u8>) -> Body {
    Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed()
}

/// A peer URL's open connection.
async fn connect(url: &str, tls: Option<&Arc<rustls::ClientConfig>>) -> Result<Sender, String> {
    let endpoint = Endpoint::parse(url).map_err(|error| error.to_string())?;
    let work = async {
        match &endpoint.address {
            Address::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(|e| e.to_string())?;
                stream.set_nodelay(true).map_err(|e| e.to_string())?;
                secured(stream, &endpoint, tls).await
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|e| e.to_string())?;
                secured(stream, &endpoint, tls).await
            }
        }
    };
    let connected = tokio::time::timeout(CONNECT, work).await;
    connected
        .unwrap_or_else(|_| Err("connecting took too long".to_owned()))
        .map_err(|error| format!("{url}: {error}"))
}

async fn secured<I>(
    stream: I,
    endpoint: &Endpoint,
    tls: Option<&Arc<rustls::ClientConfig>>,
) -> Result<Sender, String>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if !endpoint.secure {
        return handshake(TokioIo::new(stream)).await;
    }
    let tls = tls.ok_or("the peer URL is https but there are no peer certificates: set --peer-cert-file")?;
    let name = ServerName::try_from(endpoint.host().to_owned()).map_err(|e| e.to_string())?;
    let stream = TlsConnector::from(tls.clone()).connect(name, stream).await.map_err(|e| e.to_string())?;
    handshake(TokioIo::new(stream)).await
}

async fn handshake<I>(io: I) -> Result<Sender, String>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(5)))
        .keep_alive_timeout(Duration::from_secs(5))
        .initial_connection_window_size(8 << 20)
        .initial_stream_window_size(4 << 20)
        .handshake(io)
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "peer connection ended");
        }
    });
    Ok(sender)
}

impl PeerTransport {
    /// `tls` for https peers.
    pub fn new(cluster_id: u64, tls: Option<Arc<rustls::ClientConfig>>) -> PeerTransport {
        PeerTransport {
            cluster_id,
            tls,
            connections: Mutex::default(),
            addresses: Mutex::default(),
            traffic: Traffic::default(),
            contacts: Contacts::default(),
        }
    }

    /// Takes in the members' peer URLs; the connection to one that moved is given up.
    pub fn learn(&self, members: Vec<(u64, Vec<String>)>) {
        let mut addresses = self.addresses.lock().expect("no panic while locked");
        for (id, urls) in &members {
            if addresses.get(id).is_some_and(|known| known != urls) {
                self.connections.lock().expect("no panic while locked").remove(id);
            }
        }
        *addresses = members.into_iter().collect();
    }

    async fn connection(&self, target: u64, node: &Node) -> Result<Sender, TransportError> {
        let open = self.connections.lock().expect("no panic while locked").get(&target).cloned();
        if let Some(sender) = open.filter(|sender| !sender.is_closed()) {
            return Ok(sender);
        }
        let known = self.addresses.lock().expect("no panic while locked").get(&target).cloned();
        let mut last = format!("member {target:x} has no peer URL");
        for url in known.as_ref().unwrap_or(&node.peer_urls) {
            match connect(url, self.tls.as_ref()).await {
                Ok(sender) => {
                    self.connections.lock().expect("no panic while locked").insert(target, sender.clone());
                    return Ok(sender);
                }
                Err(error) => last = error,
            }
        }
        Err(TransportError::Unreachable(last))
    }

    async fn post(&self, target: u64, node: &Node, path: &str, body: Body) -> Result<Bytes, TransportError> {
        let mut sender = self.connection(target, node).await?;
        let request = HttpRequest::builder()
            .method(Method::POST)
            .uri(format!("http://peer{path}"))
            .header(CLUSTER, self.cluster_id.to_string())
            .header(TARGET, target.to_string())
            .body(body)
            .map_err(|error| TransportError::Broken(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| {
            self.connections.lock().expect("no panic while locked").remove(&target);
            if error.is_canceled() {
                TransportError::Unreachable(error.to_string())
            } else {
                TransportError::Broken(error.to_string())
            }
        })?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| TransportError::Broken(error.to_string()))?;
        let body = body.to_bytes();
        if status == StatusCode::OK {
            return Ok(body);
        }
        // Refused before anything was done.
        Err(TransportError::Unreachable(format!(
            "member {target:x} answered {status}: {}",
            String::from_utf8_lossy(&body)
        )))
    }
}

impl PeerTransport {
    /// A peer's hash of everything up to a revision.
    ///
    /// # Errors
    /// Not reachable; it has not got so far, or has compacted it.
    pub(crate) async fn hash(
        &self,
        target: u64,
        peer_urls: &[String],
        revision: i64,
    ) -> Result<PeerHash, TransportError> {
        let node = Node { peer_urls: peer_urls.to_vec(), ..Node::default() };
        let body = postcard::to_stdvec(&revision).map_err(garbled)?;
        let answer = self.post(target, &node, "/members/hashkv", full(body)).await?;
        postcard::from_bytes(&answer).map_err(garbled)
    }
}

fn garbled(error: postcard::Error) -> TransportError {
    TransportError::Broken(format!("the peer's answer does not decode: {error}"))
}

impl Transport<TokioRuntime> for PeerTransport {
    async fn call(
        &self,
        target: u64,
        node: &Node,
        request: Request<TokioRuntime>,
        timeout: Duration,
    ) -> Result<Reply<TokioRuntime>, TransportError> {
        use std::sync::atomic::Ordering::Relaxed;
        let body = postcard::to_stdvec(&request).map_err(garbled)?;
        self.traffic.sent.fetch_add(body.len() as u64, Relaxed);
        let exchange = self.post(target, node, "/raft/message", full(body));
        let answer = match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer.and_then(|body| postcard::from_bytes(&body).map_err(garbled)),
            Err(_) => Err(TransportError::Timeout(timeout)),
        };
        if answer.is_err() {
            self.traffic.failures.fetch_add(1, Relaxed);
        }
        self.contacts.note(target, answer.is_ok());
        answer
    }

    async fn snapshot(
        &self,
        target: u64,
        node: &Node,
        vote: Vote,
        meta: SnapshotMeta,
        chunks: Chunks,
    ) -> Result<Vote, TransportError> {
        let head = postcard::to_stdvec(&(vote, meta)).map_err(garbled)?;
        let mut first = BytesMut::from(&(head.len() as u32).to_be_bytes()[..]);
        first.extend_from_slice(&head);
        let first = futures::stream::once(async move { Ok(first.freeze()) });
        let body = first.chain(ReceiverStream::new(chunks)).map(|chunk| chunk.map(Frame::data));
        let body = BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(Box::pin(body)))));
        let answer = self.post(target, node, "/raft/snapshot", body).await?;
        postcard::from_bytes(&answer).map_err(garbled)
    }
}

/// A stream that is polled by one task at a time, made `Sync` for the body's sake.
struct SyncStream<S>(Mutex<std::pin::Pin<Box<S>>>);

impl<S: futures::Stream> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.lock().expect("no panic while locked").as_mut().poll_next(context)
    }
}

/// What a member tells of its cluster to one that joins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterInfo {
    /// The cluster's id.
    pub cluster_id: u64,
    /// All members.
    pub members: Vec<CoreMember>,
    /// Ids of those whose vote Raft counts; a member just added is not among them until it has caught up.
    pub voters: Vec<u64>,
    /// The log position up to which this is true.
    #[serde(default)]
    pub applied: u64,
}

/// Asks a peer URL for its cluster.
///
/// # Errors
/// Not reachable, not ready, not one of ours.
pub async fn cluster_info(url: &str, tls: Option<&Arc<rustls::ClientConfig>>) -> Result<ClusterInfo, String> {
    let mut sender = connect(url, tls).await?;
    let request = HttpRequest::builder()
        .uri("http://peer/members")
        .body(full(Vec::new()))
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        if status != StatusCode::OK {
            return Err(format!("{url} answered {status}: {}", String::from_utf8_lossy(&body)));
        }
        serde_json::from_slice(&body)
            .map_err(|error| format!("{url} is no store member of this kind: {error}"))
    };
    tokio::time::timeout(Duration::from_secs(5), exchange)
        .await
        .unwrap_or_else(|_| Err("no answer".to_owned()))
}

/// Answers peers. Until the member has started it refuses everything, which peers take for "not reachable yet".
#[derive(Clone, Default)]
pub struct PeerService {
    handle: Arc<OnceLock<Handle>>,
}

impl PeerService {
    /// From now on requests are served.
    pub fn serve_with(&self, handle: Handle) {
        // Set once, by the one start.
        let _ = self.handle.set(handle);
    }

    async fn message(&self, handle: &Handle, body: RequestBody) -> Response<tonic::body::Body> {
        let body = match http_body_util::Limited::new(body, LARGEST).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return plain(StatusCode::BAD_REQUEST, "text/plain", error.to_string()),
        };
        let request = match postcard::from_bytes(&body) {
            Ok(request) => request,
            Err(error) => return plain(StatusCode::BAD_REQUEST, "text/plain", error.to_string()),
        };
        handle.inner.facts.hear();
        let refused = match &request {
            Request::Change(change) if handle.replica().is_leader() => handle.judge(change).await.err(),
            _ => None,
        };
        let reply = match refused {
            Some(error) => Reply::Change(Err(error)),
            None => handle.replica().receive(request).await,
        };
        match postcard::to_stdvec(&reply) {
            Ok(body) => plain(StatusCode::OK, "application/octet-stream", body),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
        }
    }

    async fn snapshot(&self, handle: &Handle, body: RequestBody) -> Response<tonic::body::Body> {
        let mut body = body.into_data_stream();
        let mut head = BytesMut::new();
        let wanted = |head: &BytesMut| match head.get(..4) {
            Some(length) => 4 + u32::from_be_bytes(length.try_into().expect("four bytes")) as usize,
            None => 4,
        };
        while head.len() < wanted(&head) || head.len() < 4 {
            match body.next().await {
                Some(Ok(piece)) if head.len() < LARGEST => head.extend_from_slice(&piece),
                _ => return plain(StatusCode::BAD_REQUEST, "text/plain", "the snapshot has no head"),
            }
        }
        let length = wanted(&head);
        let mut rest = head.freeze();
        let head = rest.split_to(length);
        let Ok((vote, meta)) = postcard::from_bytes::<(Vote, SnapshotMeta)>(&head[4..]) else {
            return plain(StatusCode::BAD_REQUEST, "text/plain", "the snapshot's head does not decode");
        };
        let (sender, chunks) = mpsc::channel(SNAPSHOT_QUEUE);
        let feed = async move {
            if rest.has_remaining() && sender.send(Ok(rest)).await.is_err() {
                return;
            }
            while let Some(piece) = body.next().await {
                if sender.send(piece.map_err(io::Error::other)).await.is_err() {
                    return;
                }
            }
        };
        let (installed, ()) = tokio::join!(handle.replica().receive_snapshot(vote, meta, chunks), feed);
        match installed.map(|vote| postcard::to_stdvec(&vote)) {
            Ok(Ok(body)) => plain(StatusCode::OK, "application/octet-stream", body),
            Ok(Err(error)) => plain(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
            Err(error) => {
                tracing::warn!(%error, "a snapshot could not be installed");
                plain(StatusCode::SERVICE_UNAVAILABLE, "text/plain", error.to_string())
            }
        }
    }

    async fn hash(&self, handle: &Handle, body: RequestBody) -> Response<tonic::body::Body> {
        let body = match http_body_util::Limited::new(body, 64).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return plain(StatusCode::BAD_REQUEST, "text/plain", error.to_string()),
        };
        let Ok(revision) = postcard::from_bytes::<i64>(&body) else {
            return plain(StatusCode::BAD_REQUEST, "text/plain", "no revision");
        };
        let hash = match handle.hash_at(revision).await {
            Ok(hash) => PeerHash::from(hash),
            Err(error) => {
                return plain(StatusCode::SERVICE_UNAVAILABLE, "text/plain", error.message().to_owned());
            }
        };
        match postcard::to_stdvec(&hash) {
            Ok(body) => plain(StatusCode::OK, "application/octet-stream", body),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
        }
    }

    async fn members(&self, handle: &Handle) -> Response<tonic::body::Body> {
        let told = handle.at_once(|state, _| (state.members().to_vec(), state.applied())).await;
        let (members, applied) = match told {
            Ok(told) => told,
            Err(error) => {
                return plain(StatusCode::SERVICE_UNAVAILABLE, "text/plain", error.message().to_owned());
            }
        };
        let info = ClusterInfo { cluster_id: handle.cluster_id(), members, voters: handle.voters(), applied };
        match serde_json::to_vec(&info) {
            Ok(body) => plain(StatusCode::OK, "application/json", body),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
        }
    }
}

impl Calls for PeerService {}

impl Serve for PeerService {
    async fn serve(&self, request: HttpRequest<RequestBody>) -> Response<tonic::body::Body> {
        let Some(handle) = self.handle.get() else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "this member is starting");
        };
        let path = request.uri().path().to_owned();
        if request.method() == Method::GET && path == "/members" {
            return self.members(handle).await;
        }
        let number = |name: &str| -> Option<u64> { request.headers().get(name)?.to_str().ok()?.parse().ok() };
        if number(CLUSTER) != Some(handle.cluster_id()) {
            return plain(StatusCode::PRECONDITION_FAILED, "text/plain", "cluster ID mismatch");
        }
        if number(TARGET) != Some(handle.member_id()) {
            return plain(StatusCode::GONE, "text/plain", "another member lives at this address");
        }
        match path.as_str() {
            "/raft/message" => self.message(handle, request.into_body()).await,
            "/members/hashkv" => self.hash(handle, request.into_body()).await,
            "/raft/snapshot" => self.snapshot(handle, request.into_body()).await,
            _ => plain(StatusCode::NOT_FOUND, "text/plain", "404 page not found\n"),
        }
    }
}
