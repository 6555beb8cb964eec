//! KV: Range, RangeStream, Put, DeleteRange, Txn, Compact.

use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::kv_server::Kv;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Services, Stream};

/// Messages of a range stream that wait for the client.
const QUEUE: usize = 2;

#[tonic::async_trait]
impl Kv for Services {
    async fn range(&self, r: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        Etcd::range(&*self.by(&r), r.into_inner()).await.map(Response::new)
    }

    type RangeStreamStream = Stream<pb::RangeStreamResponse>;

    /// The answer of `range` in pieces of at most about the request size limit; header, more and count come last.
    async fn range_stream(
        &self,
        r: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let handle = self.stream_by(&r);
        let request = r.into_inner();
        let filtered = request.min_mod_revision != 0
            || request.max_mod_revision != 0
            || request.min_create_revision != 0
            || request.max_create_revision != 0;
        let sorted = request.sort_target != 0 || request.sort_order == 2;
        if filtered || sorted {
            return Err(Status::unimplemented(
                "etcdserver: RangeStream takes neither a custom sort nor revision filters",
            ));
        }
        let whole = Etcd::range(&handle, request).await?;
        let most = self.handle.config().max_request_bytes;
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let mut piece = pb::RangeResponse::default();
            let mut size = 0;
            for kv in whole.kvs {
                let length = kv.encoded_len();
                if size > 0 && size + length > most {
                    let full = std::mem::take(&mut piece);
                    let message = pb::RangeStreamResponse { range_response: Some(full) };
                    if sender.send(Ok(message)).await.is_err() {
                        return;
                    }
                    size = 0;
                }
                size += length;
                piece.kvs.push(kv);
            }
            piece.header = whole.header;
            piece.more = whole.more;
            piece.count = whole.count;
            // The client may be gone.
            let _ = sender.send(Ok(pb::RangeStreamResponse { range_response: Some(piece) })).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn put(&self, r: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        Etcd::put(&*self.by(&r), r.into_inner()).await.map(Response::new)
    }

    async fn delete_range(
        &self,
        r: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        Etcd::delete_range(&*self.by(&r), r.into_inner()).await.map(Response::new)
    }

    async fn txn(&self, r: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        Etcd::txn(&*self.by(&r), r.into_inner()).await.map(Response::new)
    }

    async fn compact(
        &self,
        r: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let handle = self.by(&r).into_owned();
        let request = r.into_inner();
        let (physical, revision) = (request.physical, request.revision);
        let answer = Etcd::compact(&handle, request).await?;
        if physical {
            self.handle.scrubbed(revision).await?;
        }
        Ok(Response::new(answer))
    }
}
