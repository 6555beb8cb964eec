//! The gRPC services: thin, over `Handle`.

mod auth;
mod cluster;
mod kv;
mod lease;
mod maintenance;
mod watch;

use keelson_store_proto::etcdserverpb::auth_server::AuthServer;
use keelson_store_proto::etcdserverpb::cluster_server::ClusterServer;
use keelson_store_proto::etcdserverpb::kv_server::KvServer;
use keelson_store_proto::etcdserverpb::lease_server::LeaseServer;
use keelson_store_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use keelson_store_proto::etcdserverpb::watch_server::WatchServer;
use keelson_store_proto::health::health_check_response::ServingStatus;
use keelson_store_proto::health::health_server::{Health, HealthServer};
use keelson_store_proto::health::{HealthCheckRequest, HealthCheckResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::handle::Handle;

/// What a request may carry beside its payload, bytes; as in etcd.
const OVERHEAD: usize = 512 * 1024;

/// One type implements all services.
#[derive(Clone)]
pub(crate) struct Services {
    pub handle: Handle,
}

/// An answer that is streamed.
pub(crate) type Stream<T> = ReceiverStream<Result<T, Status>>;

/// All services of a member.
pub(crate) fn routes(handle: &Handle) -> Routes {
    let services = Services { handle: handle.clone() };
    let limit = handle.config().max_request_bytes + OVERHEAD;
    Routes::new(KvServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(WatchServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(LeaseServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(ClusterServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(MaintenanceServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(AuthServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(HealthServer::new(services))
        .prepare()
}

impl Services {
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
