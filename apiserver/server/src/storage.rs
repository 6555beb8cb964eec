//! Reads and compare-and-swap writes of single objects over the etcd seam.
//!
//! A write names the revision it replaces (0 = must not exist), so it happens at most once. When the store does not say
//! whether it did (leader change, lost connection), the key is read again: our bytes there mean yes, the old revision
//! means not (yet), anything else is decided by the caller's next step. Retries end at the request's deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use keelson_api::Status;
use keelson_apiserver_core::Claim;
use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_store_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, ResponseOp,
    TxnRequest, request_op::Request as Op, response_op::Response as Answer,
};
use keelson_store_proto::mvccpb::KeyValue;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::Code;

/// First pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(300);
/// Leases of Events are shared by what is written within so many seconds.
const LEASE_REUSE: Duration = Duration::from_secs(60);

/// The answer to a write of which nobody can say what became of it.
pub const UNCLEAR: &str =
    "the store did not say whether this write was carried out, and the object has changed since";

/// What a write did.
#[derive(Debug)]
pub enum Written {
    /// It is stored; its revision.
    Done(i64),
    /// Not stored: the key is at another revision.
    Changed,
    /// The store did not say, and what is stored now is what was to be: by this write, or by another of the same content.
    Perhaps,
    /// Not stored: a claimed key is taken.
    Taken,
}

/// One write of one object.
pub struct Write<'a> {
    pub key: &'a str,
    /// The revision replaced; 0 when it must not exist.
    pub revision: i64,
    /// The new bytes, or nothing to delete.
    pub value: Option<Bytes>,
    pub claims: &'a [Claim],
    /// 0 = none.
    pub lease: i64,
}

/// See the module.
pub struct Storage {
    etcd: Arc<dyn Etcd>,
    /// The newest revision this server wrote: what its own readers must see.
    written: AtomicI64,
    lease: Mutex<Option<(i64, Instant)>>,
}

/// Whether the store may answer differently in a moment.
fn passing(status: &tonic::Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
        || (status.code() == Code::Internal && status.message().contains("h2"))
}

/// The store's error in the API's form.
pub fn store_error(status: &tonic::Status) -> Status {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => Status {
            retry_after_seconds: 1,
            ..Status::unavailable(format!("the store does not answer: {}; try again", status.message()))
        },
        Code::ResourceExhausted => Status::internal(format!("{}: make room in the store", status.message())),
        Code::InvalidArgument if status.message().contains("too large") => {
            Status::too_large(format!("Request entity too large: {}", status.message()))
        }
        _ => Status::internal(status.message()),
    }
}

/// Whether the store said that a revision is compacted.
pub fn is_compacted(status: &tonic::Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("compacted")
}

fn compare(key: &str, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Compare::default()
    }
}

fn op(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn get(key: &str) -> RequestOp {
    op(Op::RequestRange(RangeRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        ..RangeRequest::default()
    }))
}

fn put(key: &str, value: Bytes, lease: i64) -> RequestOp {
    op(Op::RequestPut(PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value,
        lease,
        ..PutRequest::default()
    }))
}

fn delete(key: &str) -> RequestOp {
    op(Op::RequestDeleteRange(DeleteRangeRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        ..DeleteRangeRequest::default()
    }))
}

/// The transaction of a write. A claim given up is deleted only while it is there; a deletion of nothing is none.
fn transaction(write: &Write) -> TxnRequest {
    let mut txn = TxnRequest { compare: vec![compare(write.key, write.revision)], ..TxnRequest::default() };
    txn.success.push(match &write.value {
        Some(value) => put(write.key, value.clone(), write.lease),
        None => delete(write.key),
    });
    txn.failure.push(get(write.key));
    for claim in write.claims {
        if claim.take {
            txn.compare.push(compare(&claim.key, 0));
            txn.success.push(put(&claim.key, claim.owner.clone().into(), 0));
            txn.failure.push(get(&claim.key));
        } else {
            txn.success.push(delete(&claim.key));
        }
    }
    txn
}

fn ranged(answers: Vec<ResponseOp>) -> impl Iterator<Item = Option<KeyValue>> {
    answers.into_iter().map(|answer| match answer.response {
        Some(Answer::ResponseRange(range)) => range.kvs.into_iter().next(),
        _ => None,
    })
}

impl Storage {
    pub fn new(etcd: Arc<dyn Etcd>) -> Storage {
        Storage { etcd, written: AtomicI64::new(0), lease: Mutex::new(None) }
    }

    /// The seam itself.
    pub fn etcd(&self) -> &Arc<dyn Etcd> {
        &self.etcd
    }

    /// The newest revision this server wrote.
    pub fn written(&self) -> i64 {
        self.written.load(Ordering::Acquire)
    }

    /// A read, repeated while the store has no leader.
    ///
    /// # Errors
    /// What the store says last, at the deadline.
    pub async fn range(&self, request: RangeRequest, deadline: Instant) -> Result<Ranged, tonic::Status> {
        let mut pause = PAUSE;
        loop {
            let error = match tokio::time::timeout_at(deadline, self.etcd.range(request.clone())).await {
                Ok(Ok(answer)) => {
                    let revision = answer.header.as_ref().map_or(0, |h| h.revision);
                    return Ok(Ranged { kvs: answer.kvs, more: answer.more, count: answer.count, revision });
                }
                Ok(Err(error)) if !passing(&error) => return Err(error),
                Ok(Err(error)) => error,
                Err(_) => return Err(tonic::Status::deadline_exceeded("no answer in time")),
            };
            sleep(&mut pause, deadline).await.ok_or(error)?;
        }
    }

    /// One key, with the store's revision.
    ///
    /// # Errors
    /// The store did not answer by the deadline.
    pub async fn get(&self, key: &str, deadline: Instant) -> Result<(Option<KeyValue>, i64), Status> {
        let request = RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..RangeRequest::default() };
        let answer = self.range(request, deadline).await.map_err(|e| store_error(&e))?;
        Ok((answer.kvs.into_iter().next(), answer.revision))
    }

    /// The store's revision now: what a consistent read must have seen.
    ///
    /// # Errors
    /// The store did not answer by the deadline.
    pub async fn revision(&self, deadline: Instant) -> Result<i64, Status> {
        let key = Bytes::from_static(b"/registry/keelson/none");
        let request = RangeRequest { key, count_only: true, ..RangeRequest::default() };
        Ok(self.range(request, deadline).await.map_err(|e| store_error(&e))?.revision)
    }

    /// Stores or deletes one object if it is at the revision named.
    ///
    /// # Errors
    /// The store refused it, or did not answer by the deadline (then it may have happened).
    pub async fn write(&self, write: &Write<'_>, deadline: Instant) -> Result<Written, Status> {
        let txn = transaction(write);
        let mut pause = PAUSE;
        let mut unknown = false;
        loop {
            let error = match tokio::time::timeout_at(deadline, self.etcd.txn(txn.clone())).await {
                Ok(Ok(answer)) => {
                    let revision = answer.header.as_ref().map_or(0, |h| h.revision);
                    if answer.succeeded {
                        self.written.fetch_max(revision, Ordering::AcqRel);
                        return Ok(Written::Done(revision));
                    }
                    return self.refused(write, answer.responses, unknown);
                }
                Ok(Err(error)) if !passing(&error) => return Err(store_error(&error)),
                Ok(Err(error)) => error,
                Err(_) => tonic::Status::deadline_exceeded("no answer in time"),
            };
            unknown = true;
            sleep(&mut pause, deadline).await.ok_or_else(|| store_error(&error))?;
        }
    }

    /// What a failed comparison means: if an earlier attempt of this write may have succeeded, its own traces are a yes: a
    /// new object's uid, an absence. The bytes of an update are nobody's: two clients that count from 4 to 5 write the
    /// same. Other traces are no answer: somebody may have replaced what the attempt wrote, and to say "conflict" then
    /// would make the client do again what was done (both found by the simulation of the cluster).
    fn refused(&self, write: &Write, answers: Vec<ResponseOp>, unknown: bool) -> Result<Written, Status> {
        let mut found = ranged(answers);
        let current = found.next().flatten();
        if unknown {
            let same = match (&current, &write.value) {
                (Some(kv), Some(value)) => kv.mod_revision != write.revision && kv.value == *value,
                (None, None) => true,
                _ => false,
            };
            if same && write.revision != 0 && write.value.is_some() {
                return Ok(Written::Perhaps);
            }
            if same {
                let revision = current.as_ref().map_or_else(|| write.revision, |kv| kv.mod_revision);
                self.written.fetch_max(revision, Ordering::AcqRel);
                return Ok(Written::Done(revision));
            }
        }
        let at = current.as_ref().map_or(0, |kv| kv.mod_revision);
        match (at == write.revision, unknown) {
            (true, _) => Ok(Written::Taken),
            (false, false) => Ok(Written::Changed),
            (false, true) => Err(Status::timeout(UNCLEAR, 1)),
        }
    }

    /// A lease of at least `ttl` seconds, shared by everything written in the same minute.
    ///
    /// # Errors
    /// The store refused it.
    pub async fn lease(&self, ttl: i64) -> Result<i64, Status> {
        let mut lease = self.lease.lock().await;
        if let Some((id, granted)) = *lease
            && granted.elapsed() < LEASE_REUSE
        {
            return Ok(id);
        }
        let request = LeaseGrantRequest { ttl: ttl + LEASE_REUSE.as_secs() as i64, id: 0 };
        let granted = self.etcd.lease_grant(request).await.map_err(|e| store_error(&e))?;
        *lease = Some((granted.id, Instant::now()));
        Ok(granted.id)
    }

    /// Forgets the shared lease (the store no longer knows it).
    pub async fn drop_lease(&self) {
        *self.lease.lock().await = None;
    }
}

/// What a range read found.
pub struct Ranged {
    pub kvs: Vec<KeyValue>,
    pub more: bool,
    pub count: i64,
    /// The store's revision at the read.
    pub revision: i64,
}

/// Sleeps and lengthens the pause; nothing when the deadline comes first.
async fn sleep(pause: &mut Duration, deadline: Instant) -> Option<()> {
    if Instant::now() + *pause >= deadline {
        return None;
    }
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(LONGEST_PAUSE);
    Some(())
}
