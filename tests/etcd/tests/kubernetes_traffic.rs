//! Kubernetes-shaped traffic on three members whose leader is killed again and again, judged by the watch properties.
//!
//! `KEELSON_TRAFFIC_SECONDS` says for how long; `KEELSON_TRAFFIC_SEED` which traffic.

use std::path::Path;
use std::time::{Duration, Instant};

use keelson_etcd_tests::traffic::check::check;
use keelson_etcd_tests::traffic::{Shape, Traffic};
use keelson_etcd_tests::{Cluster, eventually};

/// Of each push.
const SECONDS: u64 = 20;
/// Between the recovery from one kill and the next.
const QUIET: Duration = Duration::from_secs(2);
/// How long a killed member stays away.
const AWAY: Duration = Duration::from_millis(700);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: no number")))
}

/// Waits until so many more writes were acknowledged.
async fn writes(traffic: &Traffic, more: usize) {
    let from = traffic.acknowledged();
    eventually("writes go on", || async { (traffic.acknowledged() >= from + more).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_traffic_keeps_the_watch_properties_over_leader_kills() {
    let seconds = number("KEELSON_TRAFFIC_SECONDS").unwrap_or(SECONDS);
    let seed = number("KEELSON_TRAFFIC_SEED").unwrap_or(1);
    let mut cluster = Cluster::start(Path::new(env!("CARGO_BIN_EXE_member")), 3, &[]).await;
    // Compactions often enough that some meet a watcher that lags.
    let shape = Shape { clients: 8, compaction: Duration::from_secs(3), seed };
    let traffic = Traffic::start(&cluster.endpoints(), &shape).await;
    let start = Instant::now();
    let mut kills = 0;
    writes(&traffic, 50).await;
    while start.elapsed() < Duration::from_secs(seconds) || kills < 2 {
        let leader = cluster.leader().await;
        cluster.members[leader].kill();
        kills += 1;
        tokio::time::sleep(AWAY).await;
        writes(&traffic, 20).await;
        let initial = cluster.initial();
        cluster.members[leader].start(&initial, "new", &[]);
        let starts = cluster.members[leader].starts();
        cluster.members[leader].ready(starts).await;
        writes(&traffic, 20).await;
        tokio::time::sleep(QUIET).await;
    }
    let ran = start.elapsed();
    let seen = traffic.finish().await;
    let report = match check(&seen.logs, &seen.writes, &seen.lists) {
        Ok(report) => report,
        Err(violation) => panic!("{} violated, seed {seed}: {}", violation.property, violation.text),
    };
    println!("{} calls failed, {} compactions: {report:?}", seen.refused, seen.compactions);
    println!(
        "ledger suite=traffic seconds={} kills={kills} reads={} writes={},{} revisions={} events={} lists={} \
         resumed={} violations=0",
        ran.as_secs(),
        seen.reads,
        seen.changes,
        report.writes,
        report.revisions,
        report.events,
        report.lists,
        report.resumed,
    );
    assert!(seen.reads >= 3 * seen.changes, "lists and watches are four fifths of Kubernetes' traffic");
    assert!(seen.compactions >= 2, "API servers compact");
    assert!(report.resumed >= kills && report.progress > 0 && report.lists > 100, "{report:?}");
    assert!(report.writes >= 100 && report.events > report.writes, "{report:?}");
}
