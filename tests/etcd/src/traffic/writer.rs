//! Optimistic writes: create, update and delete under the revision that the client knows; events under a shared lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use keelson_store_proto::client::{Etcd, Remote};
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::request_op::Request;
use keelson_store_proto::etcdserverpb::response_op::Response;
use rand::Rng;
use rand::rngs::StdRng;

use super::check::{Write, digest};
use super::{RESOURCES, Shared, within};

/// Objects of one resource and namespace.
const OBJECTS: u32 = 12;
/// Seconds until the events of one lease vanish, and how long it takes in new ones.
const TTL: i64 = 6;
const REUSED: Duration = Duration::from_secs(2);

/// A client that writes.
pub(super) struct Writer {
    number: usize,
    remote: Remote,
    shared: Arc<Shared>,
    /// The revision of an object as last seen; 0 for one that is not there.
    known: BTreeMap<String, i64>,
    lease: Option<(i64, Instant)>,
    sequence: u64,
}

impl Writer {
    pub(super) fn new(number: usize, remote: Remote, shared: Arc<Shared>) -> Writer {
        Writer { number, remote, shared, known: BTreeMap::new(), lease: None, sequence: 0 }
    }

    /// One write of one object, which succeeds when the client knows the newest revision of it.
    pub(super) async fn write(&mut self, rng: &mut StdRng) {
        let resource = RESOURCES[rng.random_range(0..RESOURCES.len())];
        let (namespace, object) = (rng.random_range(0..3u32), rng.random_range(0..OBJECTS));
        let key = format!("/registry/{resource}/ns{namespace}/object{object:02}");
        let known = self.known.get(&key).copied().unwrap_or(0);
        let delete = known != 0 && rng.random_range(0..5u32) == 0;
        let lease = if resource == "events" { self.lease().await } else { 0 };
        self.sequence += 1;
        // Unlike any other value, and about as long as an object.
        let value = format!("{}/{}/{}", self.number, self.sequence, "x".repeat(rng.random_range(200..1500)));
        self.shared.changes.fetch_add(1, Ordering::Relaxed);
        let request = optimistic(&key, known, (!delete).then_some(&value), lease);
        let Ok(answer) = within(self.remote.txn(request)).await else {
            // It may have happened or not; a failed comparison will tell.
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let revision = answer.header.map_or(0, |header| header.revision);
        let found = answer.responses.into_iter().next().and_then(|response| response.response);
        let now = match (answer.succeeded, found) {
            (true, Some(_)) => {
                let value = (!delete).then(|| digest(value.as_bytes()));
                self.shared.acknowledge(Write { revision, key: key.clone(), value });
                if delete { 0 } else { revision }
            }
            (false, Some(Response::ResponseRange(range))) => {
                range.kvs.first().map_or(0, |kv| kv.mod_revision)
            }
            (succeeded, other) => panic!("{succeeded} and {other:?} for an optimistic write of {key}"),
        };
        self.known.insert(key, now);
    }

    /// The lease that new events are put under.
    async fn lease(&mut self) -> i64 {
        if let Some((id, since)) = self.lease
            && since.elapsed() < REUSED
        {
            return id;
        }
        let request = pb::LeaseGrantRequest { ttl: TTL, id: 0 };
        let granted = within(self.remote.lease_grant(request)).await;
        self.lease = granted.ok().map(|granted| (granted.id, Instant::now()));
        self.lease.map_or(0, |(id, _)| id)
    }
}

/// If the object is at that revision, put or delete it, else read it.
fn optimistic(key: &str, known: i64, value: Option<&String>, lease: i64) -> pb::TxnRequest {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let change = match value {
        Some(value) => Request::RequestPut(pb::PutRequest {
            key: key.clone(),
            value: value.clone().into(),
            lease,
            ..Default::default()
        }),
        None => {
            Request::RequestDeleteRange(pb::DeleteRangeRequest { key: key.clone(), ..Default::default() })
        }
    };
    let read = Request::RequestRange(pb::RangeRequest { key: key.clone(), ..Default::default() });
    let operation = |request| vec![pb::RequestOp { request: Some(request) }];
    pb::TxnRequest {
        compare: vec![pb::Compare {
            target: pb::compare::CompareTarget::Mod as i32,
            key,
            target_union: Some(pb::compare::TargetUnion::ModRevision(known)),
            ..Default::default()
        }],
        success: operation(change),
        failure: operation(read),
    }
}
