//! The etcd v3 seam: `Etcd` is what the API server (and any other user of the store) calls. It has
//! two transports with the same messages: `Remote` here (gRPC to any etcd), and the in-process
//! handle of the store server, which encodes nothing.
//!
//! Hazard: a `Remote` call that failed with `Unavailable` may have been executed; only reads are
//! repeated on another endpoint by this module, writes are repeated only when they were never sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use crate::etcdserverpb::cluster_client::ClusterClient;
use crate::etcdserverpb::kv_client::KvClient;
use crate::etcdserverpb::lease_client::LeaseClient;
use crate::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::etcdserverpb::watch_client::WatchClient;
use crate::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest,
    LeaseGrantResponse, LeaseRevokeRequest, LeaseRevokeResponse, MemberListRequest, MemberListResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, StatusRequest, StatusResponse, TxnRequest,
    TxnResponse, WatchRequest, WatchResponse,
};

/// Requests go in, at most this many wait unsent on one watch stream.
const WATCH_REQUESTS: usize = 64;
/// Answers of one watch stream that may wait unread before the transport is throttled.
const WATCH_RESPONSES: usize = 256;

/// One open watch stream: the request side and the answer side. Dropping the sender ends it.
pub type WatchStream = (mpsc::Sender<WatchRequest>, mpsc::Receiver<Result<WatchResponse, Status>>);

/// The part of etcd's v3 API that the layers above the store use. Errors are etcd's own gRPC codes
/// and texts (`etcdserver: …`).
#[async_trait]
pub trait Etcd: Send + Sync + 'static {
    /// Reads a key or range, linearizable unless `serializable` is set.
    async fn range(&self, r: RangeRequest) -> Result<RangeResponse, Status>;
    /// Writes one key.
    async fn put(&self, r: PutRequest) -> Result<PutResponse, Status>;
    /// Deletes a key or range.
    async fn delete_range(&self, r: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status>;
    /// Compares and then does one of two lists of operations, atomically.
    async fn txn(&self, r: TxnRequest) -> Result<TxnResponse, Status>;
    /// Drops history up to a revision.
    async fn compact(&self, r: CompactionRequest) -> Result<CompactionResponse, Status>;
    /// Grants a lease; TTL in seconds.
    async fn lease_grant(&self, r: LeaseGrantRequest) -> Result<LeaseGrantResponse, Status>;
    /// Revokes a lease and deletes its keys.
    async fn lease_revoke(&self, r: LeaseRevokeRequest) -> Result<LeaseRevokeResponse, Status>;
    /// Version, size and Raft state of the member that answers.
    async fn status(&self, r: StatusRequest) -> Result<StatusResponse, Status>;
    /// Members of the cluster.
    async fn member_list(&self, r: MemberListRequest) -> Result<MemberListResponse, Status>;
    /// Opens one watch stream: requests go into the sender, answers come from the receiver;
    /// dropping the sender ends it.
    async fn watch(&self) -> Result<WatchStream, Status>;
}

/// TLS of a client, everything as PEM bytes.
#[derive(Clone, Debug, Default)]
pub struct ClientTls {
    /// The authorities that may have signed the server's certificate.
    pub ca: Vec<u8>,
    /// Our certificate chain and its key, where the server asks for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name expected in the server's certificate; the endpoint's host when absent.
    pub domain: Option<String>,
}

/// Why `Remote::connect` refused its configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The list of endpoints was empty.
    #[error("no etcd endpoint given: pass at least one, such as https://127.0.0.1:2379")]
    NoEndpoint,
    /// One endpoint is no URL, or its TLS material is unusable.
    #[error(
        "etcd endpoint {endpoint:?} cannot be used: {source}; expected http(s)://host:port and PEM certificates"
    )]
    Endpoint {
        /// The offending endpoint as given.
        endpoint: String,
        /// What the transport said.
        source: tonic::transport::Error,
    },
}

/// A client of any etcd over gRPC: one HTTP/2 connection per endpoint, opened when first used. All
/// calls go to one endpoint until it fails, then to the next.
#[derive(Clone)]
pub struct Remote {
    channels: Arc<Vec<Channel>>,
    current: Arc<AtomicUsize>,
}

impl Remote {
    /// Prepares connections to every endpoint. It does not wait for a server: the first call does.
    ///
    /// # Errors
    /// An empty list, a malformed endpoint, unusable certificates.
    pub async fn connect(endpoints: &[String], tls: Option<ClientTls>) -> Result<Remote, ConnectError> {
        if endpoints.is_empty() {
            return Err(ConnectError::NoEndpoint);
        }
        let channels = endpoints
            .iter()
            .map(|endpoint| {
                channel(endpoint, tls.as_ref())
                    .map_err(|source| ConnectError::Endpoint { endpoint: endpoint.clone(), source })
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Remote { channels: Arc::new(channels), current: Arc::new(AtomicUsize::new(0)) })
    }

    /// Channels in the order to try them, with their position.
    fn order(&self) -> impl Iterator<Item = (usize, Channel)> + '_ {
        let first = self.current.load(Ordering::Relaxed);
        let count = self.channels.len();
        (0..count).map(move |i| {
            let at = (first + i) % count;
            (at, self.channels[at].clone())
        })
    }

    fn prefer(&self, position: usize) {
        self.current.store(position, Ordering::Relaxed);
    }
}

/// An https URL without a scheme of its own takes TLS when TLS is given.
fn channel(endpoint: &str, tls: Option<&ClientTls>) -> Result<Channel, tonic::transport::Error> {
    let url = if endpoint.contains("://") {
        endpoint.to_owned()
    } else if tls.is_some() {
        format!("https://{endpoint}")
    } else {
        format!("http://{endpoint}")
    };
    let secure = url.starts_with("https://");
    let mut endpoint = Endpoint::from_shared(url)?
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(30)))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true);
    if let (true, Some(tls)) = (secure, tls) {
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca));
        if let Some((certificate, key)) = &tls.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        if let Some(domain) = &tls.domain {
            config = config.domain_name(domain.clone());
        }
        endpoint = endpoint.tls_config(config)?;
    }
    Ok(endpoint.connect_lazy())
}

/// Whether a failed call never reached a server: only connecting failed.
fn never_sent(status: &Status) -> bool {
    if status.code() != Code::Unavailable {
        return false;
    }
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// One unary call with failover: `$retry` says whether a failure allows the next endpoint.
macro_rules! unary {
    ($self:ident, $client:ident, $method:ident, $request:expr, $retry:expr) => {{
        let mut last = Status::unavailable("no etcd endpoint answered");
        for (position, channel) in $self.order() {
            let mut client = $client::new(channel).max_decoding_message_size(usize::MAX);
            match client.$method($request.clone()).await {
                Ok(response) => {
                    $self.prefer(position);
                    return Ok(response.into_inner());
                }
                Err(status) if $retry(&status) => last = status,
                Err(status) => return Err(status),
            }
        }
        Err(last)
    }};
}

fn read_again(status: &Status) -> bool {
    status.code() == Code::Unavailable
}

#[async_trait]
impl Etcd for Remote {
    async fn range(&self, r: RangeRequest) -> Result<RangeResponse, Status> {
        unary!(self, KvClient, range, r, read_again)
    }

    async fn put(&self, r: PutRequest) -> Result<PutResponse, Status> {
        unary!(self, KvClient, put, r, never_sent)
    }

    async fn delete_range(&self, r: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status> {
        unary!(self, KvClient, delete_range, r, never_sent)
    }

    async fn txn(&self, r: TxnRequest) -> Result<TxnResponse, Status> {
        unary!(self, KvClient, txn, r, never_sent)
    }

    async fn compact(&self, r: CompactionRequest) -> Result<CompactionResponse, Status> {
        unary!(self, KvClient, compact, r, never_sent)
    }

    async fn lease_grant(&self, r: LeaseGrantRequest) -> Result<LeaseGrantResponse, Status> {
        unary!(self, LeaseClient, lease_grant, r, never_sent)
    }

    async fn lease_revoke(&self, r: LeaseRevokeRequest) -> Result<LeaseRevokeResponse, Status> {
        unary!(self, LeaseClient, lease_revoke, r, never_sent)
    }

    async fn status(&self, r: StatusRequest) -> Result<StatusResponse, Status> {
        unary!(self, MaintenanceClient, status, r, read_again)
    }

    async fn member_list(&self, r: MemberListRequest) -> Result<MemberListResponse, Status> {
        unary!(self, ClusterClient, member_list, r, read_again)
    }

    /// Answers at once: the stream is opened with the first request, because etcd sends its headers only after that.
    /// A stream that cannot be opened answers with the error.
    async fn watch(&self) -> Result<WatchStream, Status> {
        let (requests, outgoing) = mpsc::channel(WATCH_REQUESTS);
        let (answers, receiver) = mpsc::channel(WATCH_RESPONSES);
        tokio::spawn(self.clone().carry_watch(outgoing, answers));
        Ok((requests, receiver))
    }
}

type Answers = mpsc::Sender<Result<WatchResponse, Status>>;

impl Remote {
    /// Opens a watch stream on the first endpoint that takes it and moves messages both ways until either side ends.
    async fn carry_watch(self, mut outgoing: mpsc::Receiver<WatchRequest>, answers: Answers) {
        let Some(first) = outgoing.recv().await else { return };
        let mut last = Status::unavailable("no etcd endpoint answered");
        for (position, channel) in self.order() {
            let (onward, wire) = mpsc::channel(WATCH_REQUESTS);
            if onward.try_send(first.clone()).is_err() {
                return;
            }
            let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
            match client.watch(ReceiverStream::new(wire)).await {
                Ok(response) => {
                    self.prefer(position);
                    return pump(outgoing, onward, response.into_inner(), answers).await;
                }
                Err(status) => last = status,
            }
            if !read_again(&last) {
                break;
            }
        }
        // Nobody listening any more is no error.
        let _ = answers.send(Err(last)).await;
    }
}

/// Moves requests and answers through bounded channels until either side ends.
async fn pump(
    mut outgoing: mpsc::Receiver<WatchRequest>,
    onward: mpsc::Sender<WatchRequest>,
    mut stream: tonic::Streaming<WatchResponse>,
    answers: Answers,
) {
    loop {
        let item = tokio::select! {
            () = answers.closed() => return,
            request = outgoing.recv() => {
                let Some(request) = request else { return };
                if onward.send(request).await.is_err() {
                    return;
                }
                continue;
            }
            item = stream.message() => item,
        };
        let (item, end) = match item {
            Ok(Some(response)) => (Ok(response), false),
            Ok(None) => return,
            Err(status) => (Err(status), true),
        };
        if answers.send(item).await.is_err() || end {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connect_refuses_an_empty_list_and_a_bad_url() {
        assert!(matches!(Remote::connect(&[], None).await, Err(ConnectError::NoEndpoint)));
        let bad = Remote::connect(&["http://a b".to_owned()], None).await;
        assert!(matches!(bad, Err(ConnectError::Endpoint { .. })));
    }

    #[tokio::test]
    async fn calls_fail_over_and_report_unavailable_when_nobody_listens() {
        let free =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        let remote = Remote::connect(&[format!("http://{free}"), format!("http://{free}")], None)
            .await
            .expect("configuration is good");
        let answer = remote.put(PutRequest::default()).await;
        assert_eq!(answer.expect_err("nobody listens").code(), Code::Unavailable);
    }
}
