//! What the lock and election services share: a key per session below a name, and waiting for those that came before.
//!
//! A session is a lease; its key is `NAME/LEASE` in hexadecimal, so it goes when the lease does. Whose key was created
//! first is first; the others wait for the key just before theirs to go, so one that goes wakes one.

use bytes::Bytes;
use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::mvccpb::{Event, KeyValue, event::EventType};
use pb::range_request::{SortOrder, SortTarget};
use tokio::sync::mpsc;
use tonic::Status;

use crate::handle::Handle;

/// TTL of a session whose lease is not given, in seconds.
const TTL: i64 = 60;

/// Errors of these services have etcd's texts, but not its codes.
pub(crate) fn plainly(status: Status) -> Status {
    Status::unknown(status.message())
}

/// The lease of a session: the given one, or a new one.
pub(crate) async fn lease(handle: &Handle, given: i64) -> Result<i64, Status> {
    if given != 0 {
        return Ok(given);
    }
    let granted = Etcd::lease_grant(handle, pb::LeaseGrantRequest { ttl: TTL, id: 0 }).await?;
    Ok(granted.id)
}

/// What every session's key of `name` begins with.
pub(crate) fn prefix(name: &Bytes) -> Bytes {
    [name, &b"/"[..]].concat().into()
}

/// The key of a session.
pub(crate) fn key(name: &Bytes, lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    let id = format!("{sign}{:x}", lease.unsigned_abs());
    [&prefix(name)[..], id.as_bytes()].concat().into()
}

/// The end of the range of keys with a prefix that ends in a slash.
fn end(prefix: &Bytes) -> Bytes {
    let (last, rest) = prefix.split_last().expect("it ends in a slash");
    [rest, &[last + 1][..]].concat().into()
}

/// Reads the key below `prefix` that was created first.
pub(crate) fn first(prefix: &Bytes) -> pb::RangeRequest {
    pb::RangeRequest {
        key: prefix.clone(),
        range_end: end(prefix),
        limit: 1,
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Create.into(),
        ..Default::default()
    }
}

/// Holds if the key was created at `revision` (0: if it does not exist).
pub(crate) fn created_at(key: &Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        key: key.clone(),
        target: pb::compare::CompareTarget::Create.into(),
        target_union: Some(pb::compare::TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

pub(crate) fn get(request: pb::RangeRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(request)) }
}

pub(crate) fn get_key(key: &Bytes) -> pb::RangeRequest {
    pb::RangeRequest { key: key.clone(), ..Default::default() }
}

pub(crate) fn put(key: &Bytes, value: Bytes, lease: i64) -> pb::RequestOp {
    let put = pb::PutRequest { key: key.clone(), value, lease, ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

/// Deletes the key if it was created at `revision`; answers the header.
pub(crate) async fn give_up(
    handle: &Handle,
    key: &Bytes,
    revision: i64,
) -> Result<Option<pb::ResponseHeader>, Status> {
    let delete = pb::DeleteRangeRequest { key: key.clone(), ..Default::default() };
    let delete = pb::RequestOp { request: Some(pb::request_op::Request::RequestDeleteRange(delete)) };
    let txn = pb::TxnRequest {
        compare: vec![created_at(key, revision)],
        success: vec![delete],
        failure: Vec::new(),
    };
    Ok(Etcd::txn(handle, txn).await?.header)
}

/// The keys a Range inside a Txn answered.
pub(crate) fn found(response: Option<&pb::ResponseOp>) -> &[KeyValue] {
    match response.and_then(|op| op.response.as_ref()) {
        Some(pb::response_op::Response::ResponseRange(range)) => &range.kvs,
        _ => &[],
    }
}

/// Gives a waiting session's key up when its request goes away before its turn has come.
pub(crate) struct Waiting {
    handle: Handle,
    key: Option<(Bytes, i64)>,
}

impl Waiting {
    /// For the key created at `revision`.
    pub fn new(handle: &Handle, key: &Bytes, revision: i64) -> Waiting {
        Waiting { handle: handle.clone(), key: Some((key.clone(), revision)) }
    }

    /// The turn has come: the key stays.
    pub fn done(mut self) {
        self.key = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some((key, revision)) = self.key.take() else { return };
        let handle = self.handle.clone();
        // Nobody is left to be told of a failure; then the lease's end takes the key.
        tokio::spawn(async move { give_up(&handle, &key, revision).await.map(|_| ()) });
    }
}

/// Returns once no key below `prefix` is older than the one created at `revision`.
pub(crate) async fn turn(handle: &Handle, prefix: &Bytes, revision: i64) -> Result<(), Status> {
    let before = pb::RangeRequest {
        sort_order: SortOrder::Descend.into(),
        max_create_revision: revision - 1,
        keys_only: true,
        ..first(prefix)
    };
    loop {
        let answer = Etcd::range(handle, before.clone()).await?;
        let Some(ahead) = answer.kvs.first() else { return Ok(()) };
        let since = answer.header.map_or(0, |header| header.revision);
        let mut watching = Watching::open(handle, ahead.key.clone(), Bytes::new(), since).await?;
        while let Some((_, event)) = watching.next().await? {
            if event.r#type() == EventType::Delete {
                break;
            }
        }
    }
}

/// Changes of a key or range from a revision on.
pub(crate) struct Watching {
    /// Dropping it ends the watch.
    _requests: mpsc::Sender<pb::WatchRequest>,
    answers: mpsc::Receiver<Result<pb::WatchResponse, Status>>,
    header: Option<pb::ResponseHeader>,
    events: std::vec::IntoIter<Event>,
}

impl Watching {
    pub async fn open(handle: &Handle, key: Bytes, range_end: Bytes, from: i64) -> Result<Watching, Status> {
        let (requests, answers) = Etcd::watch(handle).await?;
        let create = pb::WatchCreateRequest { key, range_end, start_revision: from, ..Default::default() };
        let union = pb::watch_request::RequestUnion::CreateRequest(create);
        let request = pb::WatchRequest { request_union: Some(union) };
        requests.send(request).await.map_err(|_| Status::unavailable("etcdserver: server stopped"))?;
        Ok(Watching { _requests: requests, answers, header: None, events: Vec::new().into_iter() })
    }

    /// Of all keys below a prefix.
    pub async fn below(handle: &Handle, prefix: &Bytes, from: i64) -> Result<Watching, Status> {
        Watching::open(handle, prefix.clone(), end(prefix), from).await
    }

    /// The next change, with the header it came with; `None` when what was asked for is compacted and must be read anew.
    pub async fn next(&mut self) -> Result<Option<(Option<pb::ResponseHeader>, Event)>, Status> {
        loop {
            if let Some(event) = self.events.next() {
                return Ok(Some((self.header, event)));
            }
            let stopped = || Err(Status::unavailable("etcdserver: server stopped"));
            let answer = self.answers.recv().await.unwrap_or_else(stopped)?;
            if answer.canceled && answer.compact_revision != 0 {
                return Ok(None);
            }
            if answer.canceled {
                return Err(Status::unknown(answer.cancel_reason));
            }
            self.header = answer.header;
            self.events = answer.events.into_iter();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_as_etcds() {
        let name = Bytes::from_static(b"n");
        assert_eq!(&key(&name, 10)[..], b"n/a");
        assert_eq!(&key(&name, -3)[..], b"n/-3");
        assert_eq!(&end(&prefix(&name))[..], b"n0");
    }
}
