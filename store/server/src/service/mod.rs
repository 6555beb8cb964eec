//! The gRPC services: thin, over `Handle`.

mod auth;
mod cluster;
mod election;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod session;
mod watch;

use std::borrow::Cow;

use keelson_store_core::Error;
use keelson_store_proto::etcdserverpb::auth_server::AuthServer;
use keelson_store_proto::etcdserverpb::cluster_server::ClusterServer;
use keelson_store_proto::etcdserverpb::kv_server::KvServer;
use keelson_store_proto::etcdserverpb::lease_server::LeaseServer;
use keelson_store_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use keelson_store_proto::etcdserverpb::watch_server::WatchServer;
use keelson_store_proto::health::health_check_response::ServingStatus;
use keelson_store_proto::health::health_server::{Health, HealthServer};
use keelson_store_proto::health::{HealthCheckRequest, HealthCheckResponse};
use keelson_store_proto::v3electionpb::election_server::ElectionServer;
use keelson_store_proto::v3lockpb::lock_server::LockServer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::auth::{ClientName, Credential};
use crate::config::Config;
use crate::convert::status;
use crate::handle::{Handle, leader_patience};

/// What a request may carry beside its payload, bytes; as in etcd.
pub(crate) const OVERHEAD: usize = 512 * 1024;

/// One type implements all services.
#[derive(Clone)]
pub(crate) struct Services {
    pub handle: Handle,
}

/// An answer that is streamed.
pub(crate) type Stream<T> = ReceiverStream<Result<T, Status>>;

/// What a request shows of who sent it: the token, or else the client's certificate where certificates are demanded.
pub(crate) fn credential(
    handle: &Handle,
    headers: &http::HeaderMap,
    extensions: &http::Extensions,
) -> Option<Credential> {
    let token = headers.get("token").or_else(|| headers.get("authorization"));
    if let Some(token) = token {
        let token = String::from_utf8_lossy(token.as_bytes());
        return Some(Credential::Token(token.strip_prefix("Bearer ").unwrap_or(&token).to_owned()));
    }
    let demanded = handle.config().tls.as_ref().is_some_and(|tls| tls.client_cert_auth);
    // A gateway's own certificate says nothing of its client.
    if !demanded || headers.contains_key("grpcgateway-accept") {
        return None;
    }
    extensions.get::<ClientName>().map(|name| Credential::Certificate(name.0.clone()))
}

/// Whether the client wants no answer without a leader.
pub(crate) fn wants_leader(headers: &http::HeaderMap) -> bool {
    headers.get("hasleader").is_some_and(|value| value == "true")
}

/// Resolves once there has been no leader for three election timeouts: a stream of a client that wants one ends then.
pub(crate) async fn leaderless(handle: &Handle) {
    let patience = leader_patience(handle.config());
    let mut misses = 0;
    loop {
        tokio::time::sleep(patience / 3).await;
        misses = if handle.leader() == 0 { misses + 1 } else { 0 };
        if misses >= 3 {
            return;
        }
    }
}

/// Refuses what this member cannot do now, before anything else is looked at: a learner serves little, and who asks for
/// a leader wants no answer without one. `path` is the method's.
pub(crate) fn admit(handle: &Handle, path: &str, headers: &http::HeaderMap) -> Result<(), Status> {
    /// Served by a learner; of the reads the serializable ones.
    const OF_LEARNERS: &[&str] = &[
        "/etcdserverpb.Maintenance/Status",
        "/etcdserverpb.Maintenance/Snapshot",
        "/etcdserverpb.KV/Range",
        "/etcdserverpb.KV/RangeStream",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    ];
    if handle.learner() && !OF_LEARNERS.contains(&path) {
        return Err(status(Error::NotSupportedForLearner));
    }
    let version = headers.get("client-api-version").map(http::HeaderValue::as_bytes);
    if version.is_some_and(|version| std::str::from_utf8(version).is_err()) {
        return Err(status(Error::InvalidClientApiVersion));
    }
    if wants_leader(headers) && handle.replica().leader_id() == 0 {
        return Err(status(Error::NoLeader));
    }
    Ok(())
}

/// The largest message that is taken, bytes.
pub(crate) fn most_message(config: &Config) -> usize {
    config.max_request_bytes + OVERHEAD
}

/// The transport's refusal of a message above the limit, in the words of Go's; `None` when it is not that.
pub(crate) fn too_large(status: &Status) -> Option<Status> {
    let sizes = status.message().strip_prefix("Error, decoded message length too large: found ")?;
    let (found, limit) = sizes.strip_suffix(" bytes")?.split_once(" bytes, the limit is: ")?;
    Some(larger_than(found, limit))
}

/// The refusal of a message above the limit, in the words of Go's transport.
pub(crate) fn larger_than(found: impl std::fmt::Display, limit: impl std::fmt::Display) -> Status {
    Status::resource_exhausted(format!("grpc: received message larger than max ({found} vs. {limit})"))
}

/// All services of a member.
pub(crate) fn routes(handle: &Handle) -> Routes {
    let services = Services { handle: handle.clone() };
    let limit = most_message(handle.config());
    Routes::new(KvServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(WatchServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(LeaseServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(ClusterServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(MaintenanceServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(AuthServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(LockServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(ElectionServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(HealthServer::new(services))
        .prepare()
}

impl Services {
    /// The handle in the name of whoever sent the request; the plain one while nobody is asked who they are.
    fn by<T>(&self, request: &Request<T>) -> Cow<'_, Handle> {
        if self.handle.guarded() { Cow::Owned(self.stream_by(request)) } else { Cow::Borrowed(&self.handle) }
    }

    /// The same for a stream, which may live to see auth turned on.
    fn stream_by<T>(&self, request: &Request<T>) -> Handle {
        let headers = request.metadata().as_ref();
        self.handle.in_the_name_of(credential(&self.handle, headers, request.extensions()))
    }

    fn serving(&self) -> ServingStatus {
        if self.handle.replica().leader_id() == 0 {
            ServingStatus::NotServing
        } else {
            ServingStatus::Serving
        }
    }
}

#[tonic::async_trait]
impl Health for Services {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(HealthCheckResponse { status: self.serving().into() }))
    }

    type WatchStream = Stream<HealthCheckResponse>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = request.get_ref().service.is_empty();
        let (sender, receiver) = mpsc::channel(1);
        let services = self.clone();
        tokio::spawn(async move {
            let mut last = None;
            let mut tick = tokio::time::interval(std::time::Duration::from_secs(1));
            loop {
                tokio::select! {
                    biased;
                    () = sender.closed() => return,
                    _ = tick.tick() => {}
                }
                let status = if known { services.serving() } else { ServingStatus::ServiceUnknown };
                if last != Some(status) {
                    last = Some(status);
                    if sender.send(Ok(HealthCheckResponse { status: status.into() })).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
