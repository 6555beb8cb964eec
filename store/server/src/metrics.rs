//! `/metrics`: etcd's names for what is measured here, in Prometheus' text form.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use keelson_store_raft::log::SyncStats;

use crate::handle::{CLUSTER_VERSION, ETCD_VERSION, Handle};

/// Methods counted apart; a client cannot make more.
const METHODS: usize = 128;

/// Counters of one member.
#[derive(Clone)]
pub(crate) struct Metrics {
    inner: Arc<Counters>,
}

struct Counters {
    started: Mutex<BTreeMap<String, u64>>,
    leader_changes: AtomicU64,
    disk: Arc<SyncStats>,
}

/// One line's metric, with its help and type before it.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, kind: &str, value: impl std::fmt::Display) {
        self.family(name, kind);
        self.line(name, value);
    }

    fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{name} {value}");
    }
}

impl Metrics {
    pub fn new(disk: Arc<SyncStats>) -> Metrics {
        let inner = Counters { started: Mutex::default(), leader_changes: AtomicU64::new(0), disk };
        Metrics { inner: Arc::new(inner) }
    }

    /// A gRPC call has begun.
    pub fn started(&self, path: &str) {
        let mut started = self.inner.started.lock().expect("no panic while locked");
        if let Some(count) = started.get_mut(path) {
            *count += 1;
        } else if started.len() < METHODS {
            started.insert(path.to_owned(), 1);
        }
    }

    /// Somebody else leads now.
    pub fn leader_changed(&self) {
        self.inner.leader_changes.fetch_add(1, Relaxed);
    }

    /// The page.
    pub async fn render(&self, handle: &Handle) -> String {
        let mut page = Page(String::with_capacity(8192));
        let replica = handle.replica();
        let leader = replica.leader_id();
        page.value("etcd_server_has_leader", "gauge", u8::from(leader != 0));
        page.value("etcd_server_is_leader", "gauge", u8::from(leader == replica.id));
        page.value("etcd_server_is_learner", "gauge", u8::from(handle.voters_only().is_err()));
        page.value(
            "etcd_server_leader_changes_seen_total",
            "counter",
            self.inner.leader_changes.load(Relaxed),
        );
        page.value("etcd_server_proposals_committed_total", "gauge", replica.committed());
        page.value("etcd_server_proposals_applied_total", "gauge", replica.shared.applied());
        page.value("etcd_server_quota_backend_bytes", "gauge", handle.config().quota());
        page.family("etcd_server_version", "gauge");
        page.line(&format!("etcd_server_version{{server_version=\"{ETCD_VERSION}\"}}"), 1);
        page.family("etcd_cluster_version", "gauge");
        page.line(&format!("etcd_cluster_version{{cluster_version=\"{CLUSTER_VERSION}\"}}"), 1);
        let sizes =
            handle.at_once(|state, rocks| (rocks.size(), state.revision(), state.compact_revision())).await;
        if let Ok(((total, live), revision, compacted)) = sizes {
            page.value("etcd_mvcc_db_total_size_in_bytes", "gauge", total);
            page.value("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge", live);
            page.value("etcd_debugging_mvcc_current_revision", "gauge", revision);
            page.value("etcd_debugging_mvcc_compact_revision", "gauge", compacted);
        }
        let traffic = &replica.transport.traffic;
        page.value("etcd_network_peer_sent_bytes_total", "counter", traffic.sent.load(Relaxed));
        page.value("etcd_network_peer_sent_failures_total", "counter", traffic.failures.load(Relaxed));
        self.disk(&mut page);
        self.calls(&mut page);
        if let Some(bytes) = resident() {
            page.value("process_resident_memory_bytes", "gauge", bytes);
        }
        page.0
    }

    fn disk(&self, page: &mut Page) {
        let name = "etcd_disk_wal_fsync_duration_seconds";
        page.family(name, "histogram");
        let mut total = 0;
        for (i, bucket) in self.inner.disk.buckets.iter().enumerate() {
            total += bucket.load(Relaxed);
            let last = i + 1 == SyncStats::BUCKETS;
            let bound = if last { "+Inf".to_owned() } else { format!("{}", (100u64 << i) as f64 / 1e6) };
            page.line(&format!("{name}_bucket{{le=\"{bound}\"}}"), total);
        }
        page.line(&format!("{name}_sum"), self.inner.disk.micros.load(Relaxed) as f64 / 1e6);
        page.line(&format!("{name}_count"), total);
    }

    fn calls(&self, page: &mut Page) {
        let name = "grpc_server_started_total";
        page.family(name, "counter");
        let started = self.inner.started.lock().expect("no panic while locked").clone();
        for (path, count) in started {
            let Some((service, method)) = path.trim_start_matches('/').split_once('/') else { continue };
            let safe = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '_');
            if safe(service) && safe(method) {
                page.line(&format!("{name}{{grpc_service=\"{service}\",grpc_method=\"{method}\"}}"), count);
            }
        }
    }
}

/// Bytes of memory this process holds.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
