//! Recorded HTTP, at the door where it was recorded: the JSON gateway, WebSockets, health, CORS, metrics.

use std::collections::BTreeSet;
use std::path::Path;

use keelson_etcd_tests::Cluster;
use keelson_etcd_tests::replay::{Case, Known, Wire, cases, corpus, http, replay_at};

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_member"))
}

const METRICS: &str =
    "no Go runtime here, so none of its metrics; families we take no figures for are left out";

async fn gateway(file: &str, choose: impl Fn(&Case) -> bool, known: &[Known]) {
    replay_at(Wire::Gateway, binary(), file, choose, &["--unsafe-no-fsync"], known).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_http_is_answered_as_etcd_does() {
    let known = [
        Known { case: "http-health", steps: &[58], always: true, why: METRICS },
        Known { case: "http-metrics-extensive", steps: &[2], always: true, why: METRICS },
        Known {
            case: "http-pprof",
            steps: &[0, 2],
            always: true,
            why: "no Go runtime, so no profiles of it",
        },
    ];
    gateway("http.jsonl", |_| true, &known).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_leases_are_answered_by_the_gateway() {
    gateway("lease-rpc.jsonl", |_| true, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_locks_and_elections_are_answered_by_the_gateway() {
    gateway("lock-election.jsonl", |_| true, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_tokens_pass_through_the_gateway() {
    let flags = ["--unsafe-no-fsync", "--bcrypt-cost=4"];
    replay_at(Wire::Gateway, binary(), "auth-rpc.jsonl", |_| true, &flags, &[]).await;
}

/// A new member a sequence takes its time: every eighth here, all of them against the core.
fn some(case: &Case) -> bool {
    let sum = case.id.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    std::env::var_os("KEELSON_REPLAY_ALL").is_some() || sum % 8 == 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_keys_are_answered_by_the_gateway() {
    for file in ["kv-range", "kv-txn", "kv-compact", "kv-lease", "kv-mixed", "kv-wide"] {
        gateway(&format!("{file}.jsonl.gz"), some, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_watches_are_answered_by_the_gateway() {
    gateway("watch-scripted.jsonl.gz", |_| true, &[]).await;
    gateway("watch-random.jsonl.gz", some, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_keys_and_watches_are_answered_over_grpc() {
    for file in ["kv-range", "kv-txn", "kv-compact", "kv-lease", "kv-mixed", "kv-wide", "watch-random"] {
        replay_at(Wire::Grpc, binary(), &format!("{file}.jsonl.gz"), some, &["--unsafe-no-fsync"], &[]).await;
    }
    replay_at(Wire::Grpc, binary(), "lock-election.jsonl", |_| true, &[], &[]).await;
}

/// Families of etcd's page that are not on ours, beside the Go runtime's.
const LEFT_OUT: &[&str] = &[
    "etcd_debugging_lease_ttl_total",
    "etcd_debugging_mvcc_db_compaction_keys_total",
    "etcd_debugging_mvcc_db_compaction_last",
    "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
    "etcd_debugging_mvcc_pending_events_total",
    "etcd_debugging_mvcc_slow_watcher_total",
    "etcd_debugging_mvcc_watch_stream_total",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_debugging_server_lease_expired_total",
    "etcd_debugging_server_watch_send_loop_control_stream_duration_seconds",
    "etcd_debugging_server_watch_send_loop_progress_duration_seconds",
    "etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds",
    "etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds",
    "etcd_disk_backend_commit_duration_seconds",
    "etcd_disk_wal_write_bytes_total",
    "etcd_disk_wal_write_duration_seconds",
    "etcd_mvcc_db_open_read_transactions",
    "etcd_server_apply_duration_seconds",
    "etcd_server_client_requests_total",
    "etcd_server_feature_enabled",
    "etcd_server_go_version",
    "etcd_server_heartbeat_send_failures_total",
    "etcd_server_slow_apply_total",
    "etcd_server_slow_read_indexes_total",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_etcds_names() {
    let Some(folder) = corpus() else { return };
    let cases = cases(&folder.join("http.jsonl"));
    let steps = cases.iter().flat_map(|case| &case.steps);
    let recorded = steps.filter_map(|step| step["res"]["metrics"].as_array()).flatten();
    let recorded: BTreeSet<String> = recorded.map(|name| name.as_str().expect("text").to_owned()).collect();
    let cluster = Cluster::start(binary(), 1, &["--metrics=extensive", "--unsafe-no-fsync"]).await;
    let address = cluster.members[0].client.strip_prefix("http://").expect("a plain URL").to_owned();
    for path in ["/livez", "/readyz", "/health"] {
        http::request(&address, "GET", path, &[], "").await.expect("answered");
    }
    let page = http::request(&address, "GET", "/metrics", &[], "").await.expect("answered").text();
    let ours: BTreeSet<String> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(str::to_owned).collect();
    let missing: Vec<&str> = recorded
        .difference(&ours)
        .map(|family| family.split(' ').next().expect("a name"))
        .filter(|name| !name.starts_with("go_"))
        .collect();
    assert_eq!(missing, LEFT_OUT);
}
