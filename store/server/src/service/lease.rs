//! Lease: grant, revoke, keep-alive, time to live, list.

use keelson_store_core::{Access, Error};
use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::lease_server::Lease;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Services, Stream, leaderless, wants_leader};
use crate::convert::status;

#[tonic::async_trait]
impl Lease for Services {
    async fn lease_grant(
        &self,
        r: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        Etcd::lease_grant(&*self.by(&r), r.into_inner()).await.map(Response::new)
    }

    async fn lease_revoke(
        &self,
        r: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        Etcd::lease_revoke(&*self.by(&r), r.into_inner()).await.map(Response::new)
    }

    type LeaseKeepAliveStream = Stream<pb::LeaseKeepAliveResponse>;

    async fn lease_keep_alive(
        &self,
        r: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let handle = self.stream_by(&r);
        let needs_leader = wants_leader(r.metadata().as_ref());
        let mut incoming = r.into_inner();
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let lost = leaderless(&handle);
            tokio::pin!(lost);
            loop {
                let request = tokio::select! {
                    biased;
                    () = sender.closed() => return,
                    () = lost.as_mut(), if needs_leader => {
                        // The client may be gone.
                        let _ = sender.send(Err(status(Error::NoLeader))).await;
                        return;
                    }
                    request = incoming.message() => request,
                };
                let request = match request {
                    Ok(Some(request)) => request,
                    Ok(None) => return,
                    Err(error) => {
                        let error = super::too_large(&error).unwrap_or(error);
                        // The client may be gone.
                        let _ = sender.send(Err(error)).await;
                        return;
                    }
                };
                let answer = handle.lease_keep_alive(request.id).await;
                let failed = answer.is_err();
                if sender.send(answer).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn lease_time_to_live(
        &self,
        r: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let handle = self.by(&r);
        let request = r.into_inner();
        handle.voters_only()?;
        handle.linearize().await?;
        // A follower knows lease time as of the last tick.
        let now = handle.replica().stamp().unwrap_or_default();
        let (revision, found) = handle
            .allowed(
                |state, who, rocks| match request.keys {
                    true => state.auth().check_lease(who, rocks, Access::Read, request.id),
                    false => state.auth().check_user(who),
                },
                |state, rocks| (state.revision(), state.time_to_live(rocks, request.id, request.keys, now)),
            )
            .await?;
        Ok(Response::new(pb::LeaseTimeToLiveResponse {
            header: handle.headers().at(revision),
            id: found.id,
            ttl: found.ttl,
            granted_ttl: found.granted_ttl,
            keys: found.keys,
        }))
    }

    async fn lease_leases(
        &self,
        r: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let handle = self.by(&r);
        handle.voters_only()?;
        handle.linearize().await?;
        let (revision, ids) = handle
            .allowed(
                |state, who, rocks| state.auth().check_leases(who, rocks, state.lessor().by_expiry()),
                |state, _| (state.revision(), state.lessor().by_expiry().collect::<Vec<_>>()),
            )
            .await?;
        Ok(Response::new(pb::LeaseLeasesResponse {
            header: self.handle.headers().at(revision),
            leases: ids.into_iter().map(|id| pb::LeaseStatus { id }).collect(),
        }))
    }
}
