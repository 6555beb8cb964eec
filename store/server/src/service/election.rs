//! Election: whoever's key was created first below a name leads, and its value is what it proclaims.

use bytes::Bytes;
use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::mvccpb::{KeyValue, event::EventType};
use keelson_store_proto::v3electionpb::election_server::Election;
use keelson_store_proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Services, Stream, session};
use crate::handle::Handle;

type Header = Option<pb::ResponseHeader>;

/// Proclamations that wait for an observer.
const QUEUE: usize = 16;

async fn campaign(handle: &Handle, request: CampaignRequest) -> Result<CampaignResponse, Status> {
    let lease = session::lease(handle, request.lease).await?;
    let (prefix, key) = (session::prefix(&request.name), session::key(&request.name, lease));
    let answer = Etcd::txn(
        handle,
        pb::TxnRequest {
            compare: vec![session::created_at(&key, 0)],
            success: vec![session::put(&key, request.value.clone(), lease)],
            failure: vec![session::get(session::get_key(&key))],
        },
    )
    .await?;
    let existing = session::found(answer.responses.first()).first();
    let current = answer.header.map_or(0, |header| header.revision);
    let rev = existing.map_or(current, |kv| kv.create_revision);
    let waiting = session::Waiting::new(handle, &key, rev);
    if existing.is_some_and(|kv| kv.value != request.value) {
        proclaim(handle, &key, rev, lease, request.value).await?;
    }
    session::turn(handle, &prefix, rev).await?;
    waiting.done();
    let leader = LeaderKey { name: request.name, key, rev, lease };
    Ok(CampaignResponse { header: answer.header, leader: Some(leader) })
}

async fn proclaim(
    handle: &Handle,
    key: &Bytes,
    rev: i64,
    lease: i64,
    value: Bytes,
) -> Result<Header, Status> {
    let txn = pb::TxnRequest {
        compare: vec![session::created_at(key, rev)],
        success: vec![session::put(key, value, lease)],
        failure: Vec::new(),
    };
    let answer = Etcd::txn(handle, txn).await?;
    if answer.succeeded { Ok(answer.header) } else { Err(Status::unknown("election: not leader")) }
}

async fn leader(handle: &Handle, prefix: &Bytes) -> Result<(Header, Option<KeyValue>), Status> {
    let answer = Etcd::range(handle, session::first(prefix)).await?;
    Ok((answer.header, answer.kvs.into_iter().next()))
}

type Observers = mpsc::Sender<Result<LeaderResponse, Status>>;

/// Tells every leader and what it proclaims, for ever; returns when the observer is gone.
async fn observe(handle: &Handle, prefix: &Bytes, observer: &Observers) -> Result<(), Status> {
    loop {
        let (mut header, elected) = leader(handle, prefix).await?;
        let since = header.map_or(0, |header| header.revision);
        let kv = match elected {
            Some(kv) => kv,
            None => match first_candidate(handle, prefix, since).await? {
                Some((at, kv)) => {
                    header = at.map(|at| pb::ResponseHeader { revision: kv.mod_revision, ..at });
                    kv
                }
                None => continue,
            },
        };
        let key = kv.key.clone();
        let since = header.map_or(0, |header| header.revision);
        if observer.send(Ok(LeaderResponse { header, kv: Some(kv) })).await.is_err() {
            return Ok(());
        }
        let mut watching = session::Watching::open(handle, key, Bytes::new(), since + 1).await?;
        while let Some((header, event)) = watching.next().await? {
            if event.r#type() == EventType::Delete {
                break;
            }
            if observer.send(Ok(LeaderResponse { header, kv: event.kv })).await.is_err() {
                return Ok(());
            }
        }
    }
}

async fn first_candidate(
    handle: &Handle,
    prefix: &Bytes,
    since: i64,
) -> Result<Option<(Header, KeyValue)>, Status> {
    let mut watching = session::Watching::below(handle, prefix, since).await?;
    while let Some((header, event)) = watching.next().await? {
        if let (EventType::Put, Some(kv)) = (event.r#type(), event.kv) {
            return Ok(Some((header, kv)));
        }
    }
    Ok(None)
}

fn given(leader: Option<LeaderKey>) -> Result<LeaderKey, Status> {
    leader.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))
}

#[tonic::async_trait]
impl Election for Services {
    async fn campaign(&self, r: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        campaign(&self.stream_by(&r), r.into_inner()).await.map(Response::new).map_err(session::plainly)
    }

    async fn proclaim(&self, r: Request<ProclaimRequest>) -> Result<Response<ProclaimResponse>, Status> {
        let handle = self.stream_by(&r);
        let request = r.into_inner();
        let leader = given(request.leader)?;
        let answer = proclaim(&handle, &leader.key, leader.rev, leader.lease, request.value).await;
        Ok(Response::new(ProclaimResponse { header: answer.map_err(session::plainly)? }))
    }

    async fn leader(&self, r: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let handle = self.stream_by(&r);
        let prefix = session::prefix(&r.into_inner().name);
        let (header, kv) = leader(&handle, &prefix).await.map_err(session::plainly)?;
        let kv = kv.ok_or_else(|| Status::unknown("election: no leader"))?;
        Ok(Response::new(LeaderResponse { header, kv: Some(kv) }))
    }

    type ObserveStream = Stream<LeaderResponse>;

    async fn observe(&self, r: Request<LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let handle = self.stream_by(&r);
        let prefix = session::prefix(&r.into_inner().name);
        let (observer, answers) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let ended = tokio::select! {
                biased;
                ended = observe(&handle, &prefix, &observer) => ended,
                () = observer.closed() => return,
            };
            if let Err(status) = ended {
                // The observer may be gone.
                let _ = observer.send(Err(session::plainly(status))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn resign(&self, r: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let handle = self.stream_by(&r);
        let leader = given(r.into_inner().leader)?;
        let header = session::give_up(&handle, &leader.key, leader.rev).await;
        Ok(Response::new(ResignResponse { header: header.map_err(session::plainly)? }))
    }
}
