//! KV: Range, RangeStream, Put, DeleteRange, Txn, Compact.

use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::kv_server::Kv;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Services, Stream};

#[tonic::async_trait]
impl Kv for Services {
    async fn range(&self, r: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        Etcd::range(&*self.by(&r), r.into_inner()).await.map(Response::new)
    }

    type RangeStreamStream = Stream<pb::RangeStreamResponse>;

    async fn range_stream(
        &self,
        r: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let pieces = self.stream_by(&r).range_stream(r.into_inner()).await?;
        Ok(Response::new(ReceiverStream::new(pieces)))
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
