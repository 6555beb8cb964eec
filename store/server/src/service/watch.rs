//! Watch: a gRPC stream onto a watch stream of the handle.

use keelson_store_core::Error;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::watch_server::Watch;
use tonic::{Request, Response, Status, Streaming};

use super::{Services, leaderless, wants_leader};
use crate::convert::status;
use crate::watch::{self, Responses};

#[tonic::async_trait]
impl Watch for Services {
    type WatchStream = Responses;

    async fn watch(&self, r: Request<Streaming<pb::WatchRequest>>) -> Result<Response<Responses>, Status> {
        let needs_leader = wants_leader(r.metadata().as_ref());
        let handle = self.stream_by(&r);
        let mut incoming = r.into_inner();
        let (requests, answers, sender) = watch::open_batches(handle.clone());
        tokio::spawn(async move {
            let feed = async {
                loop {
                    match incoming.message().await {
                        Ok(Some(request)) => {
                            if requests.send(request).await.is_err() {
                                return None;
                            }
                        }
                        // A client that has said all it wants still listens.
                        Ok(None) => std::future::pending().await,
                        Err(error) => return Some(super::too_large(&error).unwrap_or(error)),
                    }
                }
            };
            let error = tokio::select! {
                biased;
                error = feed => error,
                () = sender.closed() => None,
                () = leaderless(&handle), if needs_leader => Some(status(Error::NoLeader)),
            };
            if let Some(error) = error {
                // The client may be gone.
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(Response::new(answers))
    }
}
