//! `/metrics`: etcd's names for what is measured here, in Prometheus' text form.
//!
//! Families whose subject does not exist here (bbolt's commits, v2's snapshots and store, the proxy's cache) are shown
//! as what they are, nothing: dashboards find them. Families that would need figures we do not take are left out.

mod calls;
mod page;
mod process;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use keelson_store_core::{EventType, RangeRequest, RevisionEvents};
use keelson_store_raft::log::SyncStats;

pub(crate) use self::calls::{Asked, Call, Stats};
pub(crate) use self::page::Histogram;
pub(crate) use self::process::file_limit;

use self::calls::Calls;
use self::page::Page;
use crate::handle::{CLUSTER_VERSION, ETCD_VERSION, Handle};

/// Counters of one member.
#[derive(Clone)]
pub(crate) struct Metrics {
    inner: Arc<Counters>,
}

struct Counters {
    calls: Calls,
    leader_changes: AtomicU64,
    disk: Arc<SyncStats>,
    changes: Arc<Changes>,
    health: [AtomicU64; 2],
    /// By probe and check: how often it succeeded and failed, and how the last one ended.
    checks: Mutex<BTreeMap<(&'static str, &'static str), ([u64; 2], bool)>>,
    scrapes: AtomicU64,
}

/// What was written, as applied.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    puts: AtomicU64,
    deletes: AtomicU64,
    put_bytes: AtomicU64,
}

impl Changes {
    /// These changes were applied.
    pub fn applied(&self, groups: &[RevisionEvents]) {
        let (mut puts, mut deletes, mut bytes) = (0, 0, 0);
        for event in groups.iter().flat_map(|group| &group.events) {
            match event.kind {
                EventType::Put => {
                    puts += 1;
                    bytes += (event.kv.key.len() + event.kv.value.len()) as u64;
                }
                EventType::Delete => deletes += 1,
            }
        }
        self.puts.fetch_add(puts, Relaxed);
        self.deletes.fetch_add(deletes, Relaxed);
        self.put_bytes.fetch_add(bytes, Relaxed);
    }
}

/// Histograms of what never happens here.
const NEVER: &[&str] = &[
    "etcd_debugging_disk_backend_commit_rebalance_duration_seconds",
    "etcd_debugging_disk_backend_commit_spill_duration_seconds",
    "etcd_debugging_disk_backend_commit_write_duration_seconds",
    "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
    "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
    "etcd_debugging_snap_save_marshalling_duration_seconds",
    "etcd_debugging_snap_save_total_duration_seconds",
    "etcd_snap_db_fsync_duration_seconds",
    "etcd_snap_db_save_total_duration_seconds",
    "etcd_snap_fsync_duration_seconds",
];

/// Counters and gauges of what does not exist here.
const NONE: &[(&str, bool)] = &[
    ("etcd_debugging_store_expires_total", true),
    ("etcd_debugging_store_watch_requests_total", true),
    ("etcd_debugging_store_watchers", false),
    ("etcd_disk_defrag_inflight", false),
    ("etcd_grpc_proxy_cache_hits_total", false),
    ("etcd_grpc_proxy_cache_keys_total", false),
    ("etcd_grpc_proxy_cache_misses_total", false),
    ("etcd_grpc_proxy_events_coalescing_total", true),
    ("etcd_grpc_proxy_watchers_coalescing_total", false),
];

/// Families that are the durations of a method's calls.
const DURATIONS: &[(&str, &[(&str, &str)], &str)] = &[
    ("etcd_disk_backend_defrag_duration_seconds", &[], "/etcdserverpb.Maintenance/Defragment"),
    ("etcd_disk_backend_snapshot_duration_seconds", &[], "/etcdserverpb.Maintenance/Snapshot"),
    ("etcd_mvcc_hash_duration_seconds", &[], "/etcdserverpb.Maintenance/Hash"),
    ("etcd_mvcc_hash_rev_duration_seconds", &[], "/etcdserverpb.Maintenance/HashKV"),
    ("etcd_server_range_duration_seconds", &[("success", "true")], "/etcdserverpb.KV/Range"),
    (
        "etcd_server_request_duration_seconds",
        &[("success", "true"), ("type", "Range")],
        "/etcdserverpb.KV/Range",
    ),
    ("etcd_server_request_duration_seconds", &[("success", "true"), ("type", "Put")], "/etcdserverpb.KV/Put"),
    (
        "etcd_server_request_duration_seconds",
        &[("success", "true"), ("type", "DeleteRange")],
        "/etcdserverpb.KV/DeleteRange",
    ),
    ("etcd_server_request_duration_seconds", &[("success", "true"), ("type", "Txn")], "/etcdserverpb.KV/Txn"),
    (
        "etcd_server_request_duration_seconds",
        &[("success", "true"), ("type", "Compaction")],
        "/etcdserverpb.KV/Compact",
    ),
];

impl Metrics {
    pub fn new(disk: Arc<SyncStats>) -> Metrics {
        let inner = Counters {
            calls: Calls::new(),
            leader_changes: AtomicU64::new(0),
            disk,
            changes: Arc::default(),
            health: Default::default(),
            checks: Mutex::default(),
            scrapes: AtomicU64::new(0),
        };
        Metrics { inner: Arc::new(inner) }
    }

    /// Figures of the gRPC method at `path`, if it is one of the API.
    pub fn call(&self, path: &str) -> Option<&Arc<Stats>> {
        self.inner.calls.at(path)
    }

    /// Told of everything that is applied.
    pub fn changes(&self) -> Arc<Changes> {
        self.inner.changes.clone()
    }

    /// Somebody else leads now.
    pub fn leader_changed(&self) {
        self.inner.leader_changes.fetch_add(1, Relaxed);
    }

    /// `/health` answered.
    pub fn health(&self, well: bool) {
        self.inner.health[usize::from(!well)].fetch_add(1, Relaxed);
    }

    /// A check of `/livez` or `/readyz` was made.
    pub fn checked(&self, probe: &'static str, check: &'static str, well: bool) {
        let mut checks = self.inner.checks.lock().expect("no panic while locked");
        let (counts, last) = checks.entry((probe, check)).or_default();
        counts[usize::from(!well)] += 1;
        *last = well;
    }

    /// The page.
    pub async fn render(&self, handle: &Handle) -> String {
        let mut page = Page::default();
        self.inner.scrapes.fetch_add(1, Relaxed);
        for name in NEVER {
            page.histogram(name, &[], &Histogram::default());
        }
        for (name, counts) in NONE {
            if *counts { page.counter(name, &[], 0) } else { page.gauge(name, &[], 0) }
        }
        for (name, labels, path) in DURATIONS {
            if let Some(took) = self.inner.calls.took(path) {
                page.histogram(name, labels, took);
            }
        }
        self.server(&mut page, handle);
        self.written(&mut page);
        self.health_checks(&mut page);
        stored(&mut page, handle).await;
        let disk = &self.inner.disk;
        let counts: Vec<u64> = disk.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        page.buckets("etcd_disk_wal_fsync_duration_seconds", &[], &counts, disk.micros.load(Relaxed));
        self.inner.calls.render(&mut page, handle.config().metrics_extensive);
        process::render(&mut page);
        page.gauge("promhttp_metric_handler_requests_in_flight", &[], 1);
        let scrapes = self.inner.scrapes.load(Relaxed);
        page.counter("promhttp_metric_handler_requests_total", &[("code", "200")], scrapes);
        page.text()
    }

    fn server(&self, page: &mut Page, handle: &Handle) {
        let replica = handle.replica();
        let leader = replica.leader_id();
        page.gauge("etcd_server_has_leader", &[], u8::from(leader != 0));
        page.gauge("etcd_server_is_leader", &[], u8::from(leader == replica.id));
        page.gauge("etcd_server_is_learner", &[], u8::from(handle.voters_only().is_err()));
        page.gauge("etcd_server_id", &[("server_id", &format!("{:x}", replica.id))], 1);
        let changes = self.inner.leader_changes.load(Relaxed);
        page.counter("etcd_server_leader_changes_seen_total", &[], changes);
        page.gauge("etcd_server_proposals_committed_total", &[], replica.committed());
        page.gauge("etcd_server_proposals_applied_total", &[], replica.shared.applied());
        let proposals = &handle.inner.proposals;
        page.gauge("etcd_server_proposals_pending", &[], proposals.pending.load(Relaxed));
        page.counter("etcd_server_proposals_failed_total", &[], proposals.failed.load(Relaxed));
        page.counter("etcd_server_read_indexes_failed_total", &[], proposals.reads_failed.load(Relaxed));
        page.gauge("etcd_server_quota_backend_bytes", &[], handle.config().quota());
        page.gauge("etcd_server_version", &[("server_version", ETCD_VERSION)], 1);
        page.gauge("etcd_cluster_version", &[("cluster_version", CLUSTER_VERSION)], 1);
        let promoted = self.inner.calls.succeeded("/etcdserverpb.Cluster/MemberPromote");
        page.counter("etcd_server_learner_promote_successes", &[], promoted);
        let traffic = &replica.transport.traffic;
        let installing = replica.shared.read(|_, _| ()).is_none();
        page.gauge("etcd_server_snapshot_apply_in_progress_total", &[], u8::from(installing));
        for peer in handle.voters() {
            let (local, remote) = (format!("{:x}", replica.id), format!("{peer:x}"));
            page.gauge("etcd_network_known_peers", &[("Local", &local), ("Remote", &remote)], 1);
        }
        page.counter("etcd_network_peer_sent_bytes_total", &[], traffic.sent.load(Relaxed));
        page.counter("etcd_network_peer_sent_failures_total", &[], traffic.failures.load(Relaxed));
    }

    fn written(&self, page: &mut Page) {
        let (calls, changes) = (&self.inner.calls, &self.inner.changes);
        let (puts, deletes) = (changes.puts.load(Relaxed), changes.deletes.load(Relaxed));
        page.counter("etcd_mvcc_put_total", &[], puts);
        page.counter("etcd_mvcc_delete_total", &[], deletes);
        page.counter("etcd_debugging_mvcc_events_total", &[], puts + deletes);
        page.gauge("etcd_debugging_mvcc_total_put_size_in_bytes", &[], changes.put_bytes.load(Relaxed));
        page.counter("etcd_mvcc_range_total", &[], calls.started("/etcdserverpb.KV/Range"));
        page.counter("etcd_mvcc_txn_total", &[], calls.started("/etcdserverpb.KV/Txn"));
        let lease = |method| calls.succeeded(&format!("/etcdserverpb.Lease/{method}"));
        page.counter("etcd_debugging_lease_granted_total", &[], lease("LeaseGrant"));
        page.counter("etcd_debugging_lease_revoked_total", &[], lease("LeaseRevoke"));
        let renewed = calls.answers("/etcdserverpb.Lease/LeaseKeepAlive");
        page.counter("etcd_debugging_lease_renewed_total", &[], renewed);
    }

    fn health_checks(&self, page: &mut Page) {
        let [well, ill] = &self.inner.health;
        page.counter("etcd_server_health_success", &[], well.load(Relaxed));
        page.counter("etcd_server_health_failures", &[], ill.load(Relaxed));
        let checks = self.inner.checks.lock().expect("no panic while locked");
        for ((probe, check), (counts, last)) in checks.iter() {
            page.gauge("etcd_server_healthcheck", &[("name", check), ("type", probe)], u8::from(*last));
            for (status, count) in ["success", "error"].into_iter().zip(counts) {
                let labels = [("name", *check), ("status", status), ("type", *probe)];
                page.counter("etcd_server_healthchecks_total", &labels, count);
            }
        }
    }
}

/// What the database holds now.
async fn stored(page: &mut Page, handle: &Handle) {
    let everything = RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        count_only: true,
        ..RangeRequest::default()
    };
    let now = handle.at_once(|state, rocks| {
        let keys = keelson_store_core::range(state, rocks, &everything).map_or(0, |answer| answer.count);
        let auth = state.auth().revision();
        (rocks.size(), state.revision(), state.compact_revision(), keys, auth)
    });
    // A member that installs a snapshot has nothing to show.
    let Ok(((total, live), revision, compacted, keys, auth)) = now.await else { return };
    page.gauge("etcd_mvcc_db_total_size_in_bytes", &[], total);
    page.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", &[], live);
    page.gauge("etcd_debugging_mvcc_current_revision", &[], revision);
    page.gauge("etcd_debugging_mvcc_compact_revision", &[], compacted);
    page.gauge("etcd_debugging_mvcc_keys_total", &[], keys);
    page.gauge("etcd_debugging_auth_revision", &[], auth);
}
