//! A store in memory behind the etcd seam: the store's own core over its memory backend, one member, no Raft. It can be
//! told to misbehave the way a store that changes its leader does.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use keelson_store_core as core;
use keelson_store_proto::client::{Etcd, WatchStream};
use keelson_store_proto::etcdserverpb::compare::TargetUnion;
use keelson_store_proto::etcdserverpb::request_op::Request as Op;
use keelson_store_proto::etcdserverpb::response_op::Response as Answer;
use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
use keelson_store_proto::etcdserverpb::*;
use keelson_store_proto::mvccpb;
use tokio::sync::{mpsc, watch};
use tonic::Status;

struct Inner {
    state: core::State,
    backend: core::MemoryBackend,
    index: u64,
    history: Vec<core::RevisionEvents>,
}

/// The store.
pub struct Memory {
    inner: Arc<Mutex<Inner>>,
    /// Revision, and a number that rises when all streams are to be cut.
    moved: watch::Sender<(i64, u32)>,
    /// So many writes are carried out and answered with an error.
    pub lose_answers: AtomicU32,
    /// So many writes are refused.
    pub refuse: AtomicU32,
}

fn take_one(counter: &AtomicU32) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: 1, member_id: 1, revision, raft_term: 1 })
}

fn kv(kv: core::KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

fn range_in(r: &RangeRequest) -> core::RangeRequest {
    core::RangeRequest {
        key: r.key.clone(),
        range_end: r.range_end.clone(),
        limit: r.limit,
        revision: r.revision,
        keys_only: r.keys_only,
        count_only: r.count_only,
        ..core::RangeRequest::default()
    }
}

fn range_out(r: core::RangeResponse) -> RangeResponse {
    RangeResponse {
        header: header(r.revision),
        kvs: r.kvs.into_iter().map(kv).collect(),
        more: r.more,
        count: r.count,
    }
}

fn put_in(p: &PutRequest) -> core::PutRequest {
    core::PutRequest {
        key: p.key.clone(),
        value: p.value.clone(),
        lease: p.lease,
        ..core::PutRequest::default()
    }
}

fn delete_in(d: &DeleteRangeRequest) -> core::DeleteRangeRequest {
    core::DeleteRangeRequest { key: d.key.clone(), range_end: d.range_end.clone(), prev_kv: d.prev_kv }
}

fn ops(ops: &[RequestOp]) -> Vec<core::RequestOp> {
    ops.iter()
        .map(|op| match &op.request {
            Some(Op::RequestRange(r)) => core::RequestOp::Range(range_in(r)),
            Some(Op::RequestPut(p)) => core::RequestOp::Put(put_in(p)),
            Some(Op::RequestDeleteRange(d)) => core::RequestOp::DeleteRange(delete_in(d)),
            Some(Op::RequestTxn(t)) => core::RequestOp::Txn(txn_in(t)),
            None => core::RequestOp::Unset,
        })
        .collect()
}

/// The comparisons that the API server makes: equality of modification revisions.
fn txn_in(t: &TxnRequest) -> core::TxnRequest {
    let compare = t.compare.iter().map(|c| {
        let Some(TargetUnion::ModRevision(revision)) = c.target_union else {
            panic!("unexpected comparison {c:?}")
        };
        core::Compare {
            key: c.key.clone(),
            range_end: c.range_end.clone(),
            result: core::CompareResult::Equal,
            target: core::CompareTarget::Mod(revision),
        }
    });
    core::TxnRequest { compare: compare.collect(), success: ops(&t.success), failure: ops(&t.failure) }
}

fn txn_out(t: core::TxnResponse) -> TxnResponse {
    let answers = t.responses.into_iter().map(|r| {
        let response = match r {
            core::ResponseOp::Range(r) => Answer::ResponseRange(range_out(r)),
            core::ResponseOp::Put(p) => {
                Answer::ResponsePut(PutResponse { header: header(p.revision), prev_kv: p.prev_kv.map(kv) })
            }
            core::ResponseOp::DeleteRange(d) => Answer::ResponseDeleteRange(DeleteRangeResponse {
                header: header(d.revision),
                deleted: d.deleted,
                prev_kvs: d.prev_kvs.into_iter().map(kv).collect(),
            }),
            core::ResponseOp::Txn(t) => Answer::ResponseTxn(txn_out(t)),
        };
        ResponseOp { response: Some(response) }
    });
    TxnResponse { header: header(t.revision), succeeded: t.succeeded, responses: answers.collect() }
}

fn failed(error: core::Error) -> Status {
    match error {
        core::Error::Compacted | core::Error::FutureRevision => Status::out_of_range(error.to_string()),
        other => Status::failed_precondition(other.to_string()),
    }
}

impl Memory {
    pub fn new() -> Memory {
        let backend = core::MemoryBackend::default();
        let state = core::State::load(&backend).expect("an empty backend loads");
        let revision = state.revision();
        let inner = Arc::new(Mutex::new(Inner { state, backend, index: 0, history: vec![] }));
        let (lose_answers, refuse) = (AtomicU32::new(0), AtomicU32::new(0));
        Memory { inner, moved: watch::Sender::new((revision, 0)), lose_answers, refuse }
    }

    /// Ends every open watch stream.
    pub fn cut_streams(&self) {
        self.moved.send_modify(|(_, cut)| *cut += 1);
    }

    fn apply(&self, command: core::Command) -> Result<core::Response, Status> {
        if take_one(&self.refuse) {
            return Err(Status::unavailable("etcdserver: no leader"));
        }
        let response = {
            let mut inner = self.inner.lock().expect("not poisoned");
            inner.index += 1;
            let index = inner.index;
            let Inner { state, backend, history, .. } = &mut *inner;
            let batch =
                core::Batch { stamp: core::Stamp { term: 1, millis: index }, commands: vec![command] };
            let mut effects = core::apply(state, backend, index, &batch);
            backend.write(&effects.writes);
            history.append(&mut effects.events);
            let revision = state.revision();
            self.moved.send_modify(|(at, _)| *at = revision);
            effects.responses.remove(0)
        };
        if take_one(&self.lose_answers) {
            return Err(Status::unavailable("etcdserver: leader changed"));
        }
        response.map_err(failed)
    }
}

#[async_trait]
impl Etcd for Memory {
    async fn range(&self, r: RangeRequest) -> Result<RangeResponse, Status> {
        let inner = self.inner.lock().expect("not poisoned");
        core::range(&inner.state, &inner.backend, &range_in(&r)).map(range_out).map_err(failed)
    }
    async fn put(&self, p: PutRequest) -> Result<PutResponse, Status> {
        let response = self.apply(core::Command::Put(put_in(&p)))?;
        Ok(PutResponse { header: header(response.revision()), prev_kv: None })
    }
    async fn delete_range(&self, d: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status> {
        match self.apply(core::Command::DeleteRange(delete_in(&d)))? {
            core::Response::DeleteRange(d) => {
                Ok(DeleteRangeResponse { header: header(d.revision), deleted: d.deleted, prev_kvs: vec![] })
            }
            other => panic!("{other:?}"),
        }
    }
    async fn txn(&self, t: TxnRequest) -> Result<TxnResponse, Status> {
        match self.apply(core::Command::Txn(txn_in(&t)))? {
            core::Response::Txn(t) => Ok(txn_out(t)),
            other => panic!("{other:?}"),
        }
    }
    async fn compact(&self, c: CompactionRequest) -> Result<CompactionResponse, Status> {
        let response = self.apply(core::Command::Compact { revision: c.revision })?;
        Ok(CompactionResponse { header: header(response.revision()) })
    }
    async fn lease_grant(&self, l: LeaseGrantRequest) -> Result<LeaseGrantResponse, Status> {
        let id = self.inner.lock().expect("not poisoned").index as i64 + 1000;
        match self.apply(core::Command::LeaseGrant { id, ttl: l.ttl })? {
            core::Response::LeaseGrant { revision, id, ttl } => {
                Ok(LeaseGrantResponse { header: header(revision), id, ttl, error: String::new() })
            }
            other => panic!("{other:?}"),
        }
    }
    async fn lease_revoke(&self, l: LeaseRevokeRequest) -> Result<LeaseRevokeResponse, Status> {
        let response = self.apply(core::Command::LeaseRevoke { id: l.id })?;
        Ok(LeaseRevokeResponse { header: header(response.revision()) })
    }
    async fn status(&self, _: StatusRequest) -> Result<StatusResponse, Status> {
        Ok(StatusResponse { header: header(self.moved.borrow().0), leader: 1, ..StatusResponse::default() })
    }
    async fn member_list(&self, _: MemberListRequest) -> Result<MemberListResponse, Status> {
        let member = Member { id: 1, name: "memory".to_owned(), ..Member::default() };
        Ok(MemberListResponse { header: header(self.moved.borrow().0), members: vec![member] })
    }
    async fn watch(&self) -> Result<WatchStream, Status> {
        let (requests, incoming) = mpsc::channel(8);
        let (answers, receiver) = mpsc::channel(8);
        tokio::spawn(carry(self.inner.clone(), self.moved.subscribe(), incoming, answers));
        Ok((requests, receiver))
    }
}

type Answers = mpsc::Sender<Result<WatchResponse, Status>>;

/// One watch stream with one watch, until it is cut or nobody listens.
async fn carry(
    inner: Arc<Mutex<Inner>>,
    mut moved: watch::Receiver<(i64, u32)>,
    mut incoming: mpsc::Receiver<WatchRequest>,
    answers: Answers,
) {
    let cut = moved.borrow().1;
    let mut next = i64::MAX;
    loop {
        tokio::select! {
            changed = moved.changed() => if changed.is_err() { return },
            request = incoming.recv() => {
                let Some(request) = request else { return };
                let revision = inner.lock().expect("not poisoned").state.revision();
                let mut answer = WatchResponse { header: header(revision), ..WatchResponse::default() };
                match request.request_union {
                    Some(RequestUnion::CreateRequest(create)) => {
                        next = create.start_revision;
                        answer.created = true;
                    }
                    // Progress may be told only when everything before has been sent.
                    _ if next <= revision => {}
                    _ => answer.watch_id = -1,
                }
                if (answer.created || answer.watch_id == -1) && answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        }
        if moved.borrow().1 != cut {
            let _ = answers.send(Err(Status::unavailable("etcdserver: leader changed"))).await;
            return;
        }
        for response in since(&inner, &mut next) {
            if answers.send(Ok(response)).await.is_err() {
                return;
            }
        }
    }
}

/// What happened from revision `next` on, one answer per revision.
fn since(inner: &Mutex<Inner>, next: &mut i64) -> Vec<WatchResponse> {
    let inner = inner.lock().expect("not poisoned");
    let fresh = inner.history.iter().filter(|r| r.revision >= *next);
    let answers: Vec<WatchResponse> = fresh
        .map(|r| {
            let events = r.events.iter().map(|e| mvccpb::Event {
                r#type: i32::from(e.kind == core::EventType::Delete),
                kv: Some(kv(e.kv.clone())),
                prev_kv: None,
            });
            WatchResponse { header: header(r.revision), events: events.collect(), ..WatchResponse::default() }
        })
        .collect();
    if *next != i64::MAX {
        *next = (*next).max(inner.state.revision() + 1);
    }
    answers
}
