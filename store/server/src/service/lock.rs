//! Lock: whoever's key was created first below a name holds it until the key, or the lease behind it, goes.

use bytes::Bytes;
use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::v3lockpb::lock_server::Lock;
use keelson_store_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::{Request, Response, Status};

use super::{Services, session};
use crate::handle::Handle;

async fn lock(handle: &Handle, request: LockRequest) -> Result<LockResponse, Status> {
    let lease = session::lease(handle, request.lease).await?;
    let (prefix, key) = (session::prefix(&request.name), session::key(&request.name, lease));
    let owner = session::get(session::first(&prefix));
    let answer = Etcd::txn(
        handle,
        pb::TxnRequest {
            compare: vec![session::created_at(&key, 0)],
            success: vec![session::put(&key, Bytes::new(), lease), owner.clone()],
            failure: vec![session::get(session::get_key(&key)), owner],
        },
    )
    .await?;
    let existing = session::found(answer.responses.first()).first();
    let current = answer.header.map_or(0, |header| header.revision);
    let ours = existing.map_or(current, |kv| kv.create_revision);
    let owned = session::found(answer.responses.get(1)).first().is_none_or(|kv| kv.create_revision == ours);
    if owned {
        return Ok(LockResponse { header: answer.header, key });
    }
    let waiting = session::Waiting::new(handle, &key, ours);
    session::turn(handle, &prefix, ours).await?;
    let answer = Etcd::range(handle, session::get_key(&key)).await?;
    if answer.kvs.first().is_none_or(|kv| kv.create_revision != ours) {
        return Err(Status::unknown("mutex: session is expired"));
    }
    waiting.done();
    Ok(LockResponse { header: answer.header, key })
}

#[tonic::async_trait]
impl Lock for Services {
    async fn lock(&self, r: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        lock(&self.stream_by(&r), r.into_inner()).await.map(Response::new).map_err(session::plainly)
    }

    async fn unlock(&self, r: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let handle = self.stream_by(&r);
        let request = pb::DeleteRangeRequest { key: r.into_inner().key, ..Default::default() };
        let answer = Etcd::delete_range(&handle, request).await.map_err(session::plainly)?;
        Ok(Response::new(UnlockResponse { header: answer.header }))
    }
}
