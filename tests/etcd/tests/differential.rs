//! Random operations to etcd and to us in lockstep: every answer and every event of every watch the same.
//!
//! `KEELSON_DIFFERENTIAL_OPERATIONS` says how many (the nightly's are millions), `KEELSON_DIFFERENTIAL_SEED` which. The
//! peers are the programs `ETCD` and, where it is set, `ETCD37`; without either a notice is printed.

use std::path::{Path, PathBuf};
use std::time::Instant;

use keelson_etcd_tests::Cluster;
use keelson_etcd_tests::differential::generate::STREAMS;
use keelson_etcd_tests::differential::operation::{Answer, Operation};
use keelson_etcd_tests::differential::{Known, Lockstep, Peer};
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::response_op::Response;

/// Operations of a night; from so many on, every known difference has to occur.
const OPERATIONS: usize = 10_000;
/// A run is reproducible.
const SEED: u64 = 20;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: no number")))
}

fn program(name: &str) -> Option<PathBuf> {
    if std::env::var_os("KEELSON_NIGHTLY").is_none() {
        println!("notice: only with KEELSON_NIGHTLY=1; skipped");
        return None;
    }
    let path = std::env::var_os(name).map(PathBuf::from);
    if path.is_none() {
        println!("notice: set {name} to etcd's own program; skipped");
    }
    path
}

async fn peer(name: &str, cluster: &Cluster) -> Peer {
    Peer::new(name, &cluster.endpoints(), STREAMS + 1).await
}

/// One member of etcd, one of ours, three of ours.
async fn compare(etcd: &Path, known: &'static [Known]) {
    let ours = Path::new(env!("CARGO_BIN_EXE_member"));
    let flags = &["--unsafe-no-fsync"];
    let clusters = [
        Cluster::start(etcd, 1, flags).await,
        Cluster::start(ours, 1, flags).await,
        Cluster::start(ours, 3, flags).await,
    ];
    let peers = vec![
        peer("etcd", &clusters[0]).await,
        peer("one member", &clusters[1]).await,
        peer("three members", &clusters[2]).await,
    ];
    let operations = number("KEELSON_DIFFERENTIAL_OPERATIONS").map_or(OPERATIONS, |n| n as usize);
    let seed = number("KEELSON_DIFFERENTIAL_SEED").unwrap_or(SEED);
    println!("seed {seed}, {operations} operations");
    let (name, start) = (peers[0].name.clone(), Instant::now());
    let report = Lockstep::new(peers, known).await.run(seed, operations).await;
    println!("{report:?}");
    println!(
        "ledger suite=differential etcd={} seed={seed} operations={operations} refused={} events={} known={} seconds={}",
        name.trim_start_matches("etcd "),
        report.refused,
        report.events,
        report.known.values().sum::<usize>(),
        start.elapsed().as_secs(),
    );
    for known in known {
        let seen = report.known.get(known.name).copied().unwrap_or(0);
        println!("known difference, {seen} times: {}: {}", known.name, known.why);
        assert!(seen > 0 || operations < OPERATIONS, "{} does not occur any more", known.name);
    }
    assert!(report.refused > operations / 50 && report.events > operations / 2, "{report:?}");
}

/// Listed in docs/compatibility.md.
const KNOWN: &[Known] = &[Known {
    name: "streamed sort",
    why: "RangeStream with a sort target and no order is refused: etcd sorts each piece by itself",
    covers: |asked, _, ours| {
        let Operation::RangeStream(r) = asked else { return false };
        (r.sort_order, r.sort_target != 0) == (0, true) && matches!(ours, Answer::Error { code: 12, .. })
    },
}];

/// What etcd itself answers otherwise since 3.5.
const OLD: &[Known] = &[Known {
    name: "leases of keys alone",
    why: "keys_only leaves the lease out since etcd 3.7",
    covers: |_, etcd, ours| without_leases(etcd) == without_leases(ours),
}];

/// An answer whose records without a value, which those of a keys_only range are, have no lease.
fn without_leases(answer: &Answer) -> Answer {
    fn range(r: &mut pb::RangeResponse) {
        r.kvs.iter_mut().filter(|kv| kv.value.is_empty()).for_each(|kv| kv.lease = 0);
    }
    fn txn(r: &mut pb::TxnResponse) {
        for response in &mut r.responses {
            match &mut response.response {
                Some(Response::ResponseRange(r)) => range(r),
                Some(Response::ResponseTxn(r)) => txn(r),
                _ => {}
            }
        }
    }
    let mut answer = answer.clone();
    match &mut answer {
        Answer::Range(r) => range(r),
        Answer::Txn(r) => txn(r),
        _ => {}
    }
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_are_answered_as_etcd_3_5_does() {
    let Some(etcd) = program("ETCD") else { return };
    compare(&etcd, OLD).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_are_answered_as_etcd_3_7_does() {
    let Some(etcd) = program("ETCD37") else { return };
    compare(&etcd, KNOWN).await;
}
