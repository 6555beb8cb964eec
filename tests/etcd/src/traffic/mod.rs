//! Kubernetes-shaped traffic: clients that list, watch, and update optimistically, events under leases, API servers that
//! compact through `compact_rev_key`; and a log of all that they saw for [`check`] to judge.
//!
//! A client does what a reflector does: it lists at a revision page by page, watches from the next one with previous
//! values and bookmarks, resumes where it was when its stream breaks, and lists again only when told that its start was
//! compacted.

pub mod check;
mod reflector;
mod writer;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelson_store_proto::client::{Etcd, Remote};
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::request_op::Request;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tonic::Status;

use check::{List, Log, Write};
use reflector::Reflector;
use writer::Writer;

/// What clients watch, each a prefix below `/registry/`.
pub const RESOURCES: &[&str] = &["pods", "configmaps", "leases", "events"];
/// Watchers of everything.
const WITNESSES: usize = 2;
/// Between two things that a client does.
const PAUSE: Duration = Duration::from_millis(4);
/// The longest that one call takes; then its outcome is unknown.
const CALL: Duration = Duration::from_secs(10);

/// How much of it, and for how long.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Clients, each with a reflector of one resource.
    pub clients: usize,
    /// Between two compactions of one API server.
    pub compaction: Duration,
    /// Everything random comes from it.
    pub seed: u64,
}

/// Shared by all clients.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// The newest revision that was acknowledged to anybody.
    acknowledged: AtomicI64,
    /// The newest compaction that anybody asked for.
    compacted: AtomicI64,
    reads: AtomicU64,
    changes: AtomicU64,
    refused: AtomicU64,
    compactions: AtomicU64,
    writes: Mutex<Vec<Write>>,
    lists: Mutex<Vec<List>>,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn acknowledge(&self, write: Write) {
        self.acknowledged.fetch_max(write.revision, Ordering::SeqCst);
        self.writes.lock().expect("not poisoned").push(write);
    }
}

/// What a run did and saw.
pub struct Seen {
    /// One a watcher.
    pub logs: Vec<Log>,
    /// Acknowledged.
    pub writes: Vec<Write>,
    /// Answered.
    pub lists: Vec<List>,
    /// Lists, watches opened, requests for progress; writes tried; calls that failed; compactions.
    pub reads: u64,
    /// Writes tried.
    pub changes: u64,
    /// Calls that failed, compared or not.
    pub refused: u64,
    /// Compactions done.
    pub compactions: u64,
}

/// Traffic that runs.
pub struct Traffic {
    shared: Arc<Shared>,
    clients: Vec<tokio::task::JoinHandle<Reflector>>,
    compactors: Vec<tokio::task::JoinHandle<()>>,
    endpoints: Vec<String>,
}

/// A bounded call.
async fn within<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded("the client's own deadline");
    tokio::time::timeout(CALL, call).await.map_err(late)?
}

impl Traffic {
    /// Starts it against the members' client URLs; watchers are open before anything is written.
    pub async fn start(endpoints: &[String], shape: &Shape) -> Traffic {
        let shared = Arc::new(Shared::default());
        let mut reflectors = Vec::new();
        for i in 0..WITNESSES + shape.clients {
            let prefix = match i.checked_sub(WITNESSES) {
                None => String::new(),
                Some(i) => format!("/registry/{}/", RESOURCES[i % RESOURCES.len()]),
            };
            let name = format!("watcher {i} of {prefix:?}");
            let mut reflector = Reflector::new(name, prefix, connect(endpoints, i).await, shared.clone());
            reflector.begin().await;
            reflectors.push(reflector);
        }
        let mut clients = Vec::new();
        for (i, reflector) in reflectors.into_iter().enumerate() {
            let rng = StdRng::seed_from_u64(shape.seed.wrapping_mul(1000) + i as u64);
            let writer = Writer::new(i, connect(endpoints, i + 1).await, shared.clone());
            clients.push(tokio::spawn(live(reflector, (i >= WITNESSES).then_some(writer), rng)));
        }
        let mut compactors = Vec::new();
        for i in 0..2 {
            let client = connect(endpoints, i).await;
            compactors.push(tokio::spawn(compact(client, shape.compaction, shared.clone())));
        }
        Traffic { shared, clients, compactors, endpoints: endpoints.to_vec() }
    }

    /// Writes that were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.shared.writes.lock().expect("not poisoned").len()
    }

    /// Ends it: one last write, until which every watcher is followed.
    pub async fn finish(self) -> Seen {
        self.shared.stop.store(true, Ordering::Relaxed);
        for compactor in self.compactors {
            compactor.await.expect("a compactor ends");
        }
        let mut reflectors = Vec::new();
        for client in self.clients {
            reflectors.push(client.await.expect("a client ends"));
        }
        let remote = connect(&self.endpoints, 0).await;
        let last = crate::eventually("the last write", || async {
            within(remote.put(crate::put("/registry/last", "written"))).await.ok()
        });
        let revision = last.await.header.map_or(0, |header| header.revision);
        let mut logs = Vec::new();
        for reflector in reflectors {
            logs.push(reflector.finish(revision).await);
        }
        let shared = &self.shared;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Seen {
            logs,
            writes: std::mem::take(&mut shared.writes.lock().expect("not poisoned")),
            lists: std::mem::take(&mut shared.lists.lock().expect("not poisoned")),
            reads: count(&shared.reads),
            changes: count(&shared.changes),
            refused: count(&shared.refused),
            compactions: count(&shared.compactions),
        }
    }
}

/// A client of all members that begins at one of them.
async fn connect(endpoints: &[String], first: usize) -> Remote {
    let mut order = endpoints.to_vec();
    order.rotate_left(first % endpoints.len());
    Remote::connect(&order, None).await.expect("good URLs")
}

/// A client's life: four of five things that it does are lists and watches. Witnesses only watch.
async fn live(mut reflector: Reflector, mut writer: Option<Writer>, mut rng: StdRng) -> Reflector {
    let shared = reflector.shared();
    while !shared.stopped() {
        match (&mut writer, rng.random_range(0..100)) {
            (Some(writer), 0..20) => writer.write(&mut rng).await,
            (Some(_), 20..75) => reflector.list(&mut rng).await,
            (_, 75..80) => reflector.reopen().await,
            (_, 80..90) => reflector.ask_progress().await,
            _ => {}
        }
        reflector.take_in(PAUSE).await;
    }
    reflector
}

/// What each API server does: whoever moves `compact_rev_key` compacts to the revision that was current one interval ago.
async fn compact(client: Remote, interval: Duration, shared: Arc<Shared>) {
    let (mut version, mut revision) = (0, 0);
    let mut due = tokio::time::Instant::now() + interval;
    while !shared.stopped() {
        if tokio::time::Instant::now() < due {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        due = tokio::time::Instant::now() + interval;
        let Ok(answer) = within(client.txn(compact_txn(version, revision))).await else {
            shared.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let now = answer.header.map_or(0, |header| header.revision);
        if !answer.succeeded {
            let found = answer.responses.into_iter().next().and_then(|response| match response.response {
                Some(pb::response_op::Response::ResponseRange(r)) => r.kvs.into_iter().next(),
                _ => None,
            });
            (version, revision) = (found.map_or(0, |kv| kv.version), now);
            continue;
        }
        version += 1;
        if revision > 0 {
            shared.compacted.fetch_max(revision, Ordering::SeqCst);
            let request = pb::CompactionRequest { revision, physical: false };
            match within(client.compact(request)).await {
                Ok(_) => shared.compactions.fetch_add(1, Ordering::Relaxed),
                Err(_) => shared.refused.fetch_add(1, Ordering::Relaxed),
            };
        }
        revision = now;
    }
}

fn compact_txn(version: i64, revision: i64) -> pb::TxnRequest {
    let key = bytes::Bytes::from_static(b"compact_rev_key");
    let put = pb::PutRequest { key: key.clone(), value: revision.to_string().into(), ..Default::default() };
    let get = pb::RangeRequest { key: key.clone(), ..Default::default() };
    let operation = |request| vec![pb::RequestOp { request: Some(request) }];
    pb::TxnRequest {
        compare: vec![pb::Compare {
            target: pb::compare::CompareTarget::Version as i32,
            key,
            target_union: Some(pb::compare::TargetUnion::Version(version)),
            ..Default::default()
        }],
        success: operation(Request::RequestPut(put)),
        failure: operation(Request::RequestRange(get)),
    }
}
