//! The etcd seam over one simulated member: what an API server beside it calls.
//!
//! A request of a member that is down, or goes down, ends as unavailable; its watch streams end with it. Watchers are
//! shown what the member has shown (`Shared::shown`), one answer a revision, never more.

use std::sync::Arc;

use async_trait::async_trait;
use keelson_sim::clients::{Open, PATIENCE};
use keelson_sim::judge::Shared;
use keelson_sim::network::Member as Replica;
use keelson_store_core as core;
use keelson_store_proto::client::{Etcd, WatchStream};
use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
use keelson_store_proto::etcdserverpb::*;
use keelson_store_proto::mvccpb;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use crate::convert::{delete_in, failed, header, kv, put_in, range_in, range_out, txn_in, txn_out};

/// The door of one member.
pub struct SimEtcd {
    pub id: u64,
    pub open: Open,
    pub shared: Shared,
}

fn down() -> Status {
    Status::unavailable("etcdserver: server stopped")
}

impl SimEtcd {
    fn member(&self) -> Result<Arc<Replica>, Status> {
        self.open.lock().expect("no panic while locked").get(&self.id).cloned().ok_or_else(down)
    }

    async fn write(&self, command: core::Command) -> Result<core::Response, Status> {
        let member = self.member()?;
        match tokio::time::timeout(PATIENCE, member.propose(command)).await {
            Ok(answer) => answer.map(|(_, response)| response).map_err(failed),
            Err(_) => Err(Status::unavailable("etcdserver: request timed out")),
        }
    }
}

fn unexpected(response: &core::Response) -> Status {
    Status::internal(format!("an answer of another kind: {response:?}"))
}

#[async_trait]
impl Etcd for SimEtcd {
    async fn range(&self, r: RangeRequest) -> Result<RangeResponse, Status> {
        let member = self.member()?;
        if !r.serializable {
            let index = tokio::time::timeout(PATIENCE, member.read_index()).await;
            index.map_err(|_| Status::unavailable("etcdserver: request timed out"))?.map_err(failed)?;
        }
        let answer = member.shared.read(|state, backend| core::range(state, backend, &range_in(&r)));
        answer.ok_or_else(down)?.map(range_out).map_err(failed)
    }

    async fn put(&self, p: PutRequest) -> Result<PutResponse, Status> {
        let response = self.write(core::Command::Put(put_in(&p))).await?;
        Ok(PutResponse { header: header(response.revision()), prev_kv: None })
    }

    async fn delete_range(&self, d: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status> {
        match self.write(core::Command::DeleteRange(delete_in(&d))).await? {
            core::Response::DeleteRange(d) => {
                Ok(DeleteRangeResponse { header: header(d.revision), deleted: d.deleted, prev_kvs: vec![] })
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn txn(&self, t: TxnRequest) -> Result<TxnResponse, Status> {
        match self.write(core::Command::Txn(txn_in(&t))).await? {
            core::Response::Txn(t) => Ok(txn_out(t)),
            other => Err(unexpected(&other)),
        }
    }

    async fn compact(&self, c: CompactionRequest) -> Result<CompactionResponse, Status> {
        let response = self.write(core::Command::Compact { revision: c.revision }).await?;
        Ok(CompactionResponse { header: header(response.revision()) })
    }

    async fn lease_grant(&self, l: LeaseGrantRequest) -> Result<LeaseGrantResponse, Status> {
        let id = if l.id == 0 { i64::from(rand::random::<u32>()) + 1 } else { l.id };
        match self.write(core::Command::LeaseGrant { id, ttl: l.ttl }).await? {
            core::Response::LeaseGrant { revision, id, ttl } => {
                Ok(LeaseGrantResponse { header: header(revision), id, ttl, error: String::new() })
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn lease_revoke(&self, l: LeaseRevokeRequest) -> Result<LeaseRevokeResponse, Status> {
        let response = self.write(core::Command::LeaseRevoke { id: l.id }).await?;
        Ok(LeaseRevokeResponse { header: header(response.revision()) })
    }

    async fn status(&self, _: StatusRequest) -> Result<StatusResponse, Status> {
        let member = self.member()?;
        let revision = member.shared.read(|state, _| state.revision()).ok_or_else(down)?;
        Ok(StatusResponse {
            header: header(revision),
            leader: member.leader_id(),
            ..StatusResponse::default()
        })
    }

    async fn member_list(&self, _: MemberListRequest) -> Result<MemberListResponse, Status> {
        let member = Member { id: self.id, name: format!("m{}", self.id), ..Member::default() };
        Ok(MemberListResponse { header: header(0), members: vec![member] })
    }

    async fn watch(&self) -> Result<WatchStream, Status> {
        let member = self.member()?;
        let (requests, incoming) = mpsc::channel(8);
        let (answers, receiver) = mpsc::channel(8);
        let stream = Stream {
            member,
            open: self.open.clone(),
            shared: self.shared.clone(),
            shown: self.shared.shown(self.id).subscribe(),
            answers,
            next: i64::MAX,
        };
        tokio::spawn(stream.carry(incoming));
        Ok((requests, receiver))
    }
}

/// One watch stream with one watch.
struct Stream {
    member: Arc<Replica>,
    open: Open,
    shared: Shared,
    shown: watch::Receiver<(i64, u32)>,
    answers: mpsc::Sender<Result<WatchResponse, Status>>,
    /// The next revision to be sent.
    next: i64,
}

impl Stream {
    /// Until it is cut or nobody listens.
    async fn carry(mut self, mut incoming: mpsc::Receiver<WatchRequest>) {
        let lost = self.shown.borrow_and_update().1;
        loop {
            tokio::select! {
                biased;
                request = incoming.recv() => {
                    let Some(request) = request else { return };
                    if self.request(request).await.is_none() {
                        return;
                    }
                }
                changed = self.shown.changed() => if changed.is_err() { return },
            }
            let (_, now) = *self.shown.borrow_and_update();
            let same = self.open.lock().expect("no panic while locked").get(&self.member.id).cloned();
            if now != lost || !same.is_some_and(|same| Arc::ptr_eq(&same, &self.member)) {
                // Nobody may listen any more.
                let _ = self.answers.send(Err(down())).await;
                return;
            }
            if self.catch_up().await.is_none() {
                return;
            }
        }
    }

    fn revision(&self) -> i64 {
        self.shown.borrow().0
    }

    async fn send(&self, answer: WatchResponse) -> Option<()> {
        self.answers.send(Ok(answer)).await.ok()
    }

    async fn request(&mut self, request: WatchRequest) -> Option<()> {
        let revision = self.revision();
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                self.next = if create.start_revision == 0 { revision + 1 } else { create.start_revision };
                let created =
                    WatchResponse { header: header(revision), created: true, ..WatchResponse::default() };
                self.send(created).await?;
                let compacted = self.member.shared.read(|state, _| state.compact_revision()).unwrap_or(0);
                if self.next < compacted {
                    let canceled = WatchResponse {
                        header: header(revision),
                        canceled: true,
                        compact_revision: compacted,
                        ..WatchResponse::default()
                    };
                    // The stream ends with its only watch.
                    let _ = self.send(canceled).await;
                    return None;
                }
            }
            // Progress may be told only when everything before has been sent.
            _ if self.next <= revision => {}
            _ => {
                let progress =
                    WatchResponse { header: header(revision), watch_id: -1, ..WatchResponse::default() };
                self.send(progress).await?;
            }
        }
        Some(())
    }

    async fn catch_up(&mut self) -> Option<()> {
        let through = self.revision();
        let answers: Vec<WatchResponse> = {
            let record = self.shared.record();
            let changes = record.changes(self.next.min(through + 1), through).map(|group| {
                let events = group.events.iter().map(|event| mvccpb::Event {
                    r#type: i32::from(event.kind == core::EventType::Delete),
                    kv: Some(kv(event.kv.clone())),
                    prev_kv: None,
                });
                WatchResponse {
                    header: header(group.revision),
                    events: events.collect(),
                    ..WatchResponse::default()
                }
            });
            changes.collect()
        };
        for answer in answers {
            self.next = self.next.max(answer.header.as_ref().map_or(0, |header| header.revision) + 1);
            self.send(answer).await?;
        }
        Some(())
    }
}
