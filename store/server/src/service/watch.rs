//! Watch: a gRPC stream onto a watch stream of the handle.

use keelson_store_core::Error;
use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::watch_server::Watch;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Services, Stream, leaderless, wants_leader};
use crate::convert::status;

#[tonic::async_trait]
impl Watch for Services {
    type WatchStream = Stream<pb::WatchResponse>;

    async fn watch(
        &self,
        r: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let needs_leader = wants_leader(r.metadata().as_ref());
        let handle = self.stream_by(&r);
        let mut incoming = r.into_inner();
        let (requests, mut answers) = Etcd::watch(&handle).await?;
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let feed = async {
                loop {
                    match incoming.message().await {
                        Ok(Some(request)) => {
                            if requests.send(request).await.is_err() {
                                break;
                            }
                        }
                        // A client that has said all it wants still listens.
                        Ok(None) => std::future::pending().await,
                        Err(error) => {
                            let error = super::too_large(&error).unwrap_or(error);
                            // The client may be gone.
                            let _ = sender.send(Err(error)).await;
                            break;
                        }
                    }
                }
                drop(requests);
            };
            let drain = async {
                while let Some(answer) = answers.recv().await {
                    if sender.send(answer).await.is_err() {
                        break;
                    }
                }
            };
            let both = async { tokio::join!(feed, drain) };
            tokio::select! {
                biased;
                _ = both => {}
                () = sender.closed() => {}
                () = leaderless(&handle), if needs_leader => {
                    // The client may be gone.
                    let _ = sender.send(Err(status(Error::NoLeader))).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
