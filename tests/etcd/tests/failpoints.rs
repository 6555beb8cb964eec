//! Members that die, or whose disk refuses, at every fail point: nothing acknowledged is lost, and members stay equal.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use keelson_etcd_tests::replay::http::request;
use keelson_etcd_tests::{Cluster, DEADLINE, Process, eventually, free_port, get, prefix, put};
use keelson_store_proto::client::{Etcd, Remote};
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::cluster_client::ClusterClient;
use keelson_store_proto::etcdserverpb::maintenance_client::MaintenanceClient;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_member"))
}

/// A member alone with its fail points at a port.
struct Alone {
    member: Process,
    points: String,
    /// Numbers of the keys that were acknowledged.
    acknowledged: BTreeSet<u64>,
    next: u64,
}

impl Alone {
    async fn start(folder: &Path) -> Alone {
        let mut member = Process::new(binary(), folder, "m1");
        let points = format!("127.0.0.1:{}", free_port());
        member.environment = vec![("GOFAIL_HTTP".to_owned(), points.clone())];
        let mut alone = Alone { member, points, acknowledged: BTreeSet::new(), next: 0 };
        alone.again().await;
        alone
    }

    fn begin(&mut self) {
        let initial = format!("{}={}", self.member.name, self.member.peer);
        self.member.start(&initial, "new", &[]);
    }

    /// Starts it with nothing armed, and finds every acknowledged write in it.
    async fn again(&mut self) {
        self.begin();
        self.member.ready(self.member.log().matches("ready to serve").count().max(1)).await;
        let client = self.member.connect().await;
        let found = eventually("a read after the restart", || async {
            client.range(pb::RangeRequest { keys_only: true, ..prefix("k") }).await.ok()
        })
        .await;
        let found: BTreeSet<String> =
            found.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect();
        for number in &self.acknowledged {
            assert!(found.contains(&key(*number)), "acknowledged write {number} is lost");
        }
    }

    async fn arm(&self, point: &str, terms: &str) {
        let answer = request(&self.points, "PUT", &format!("/{point}"), &[], terms.to_owned()).await;
        assert_eq!(answer.expect("an answer").status, 204, "{point}={terms}");
    }

    /// Writes `size` bytes at a time, and compacts now and then, until the process is gone.
    async fn write_until_it_ends(&mut self, what: &str, size: usize) -> ExitStatus {
        let client = self.member.connect().await;
        let value = "v".repeat(size);
        let started = Instant::now();
        loop {
            if let Some(status) = self.member.ended() {
                return status;
            }
            assert!(started.elapsed() < DEADLINE, "{what} is never reached");
            let number = self.next;
            self.next += 1;
            let request = put(&key(number), &value);
            let within = Duration::from_secs(5);
            if let Ok(Ok(written)) = tokio::time::timeout(within, client.put(request)).await {
                self.acknowledged.insert(number);
                // The values are no longer needed; the keys are.
                let revision = written.header.map_or(0, |header| header.revision);
                if number % 10 == 9 {
                    let compaction = pb::CompactionRequest { revision, physical: false };
                    // It may die here.
                    let _ = tokio::time::timeout(within, client.compact(compaction)).await;
                }
            }
        }
    }
}

fn key(number: u64) -> String {
    format!("k{number:06}")
}

/// What it takes to come by a point.
enum By {
    /// Any write.
    Write,
    /// Megabytes of them: segments of the log, snapshots and what they let go.
    Volume,
    /// A start.
    Start,
}

const ALONE: &[(&str, By)] = &[
    ("raftBeforeSave", By::Write),
    ("walBeforeSync", By::Write),
    ("walAfterSync", By::Write),
    ("beforeCommit", By::Write),
    ("afterCommit", By::Write),
    ("compactBeforeCommitBatch", By::Write),
    ("compactAfterCommitBatch", By::Write),
    ("raftBeforeVote", By::Start),
    ("raftAfterVote", By::Start),
    ("walBeforeSwitch", By::Volume),
    ("walAfterSwitch", By::Volume),
    ("raftBeforeSaveSnap", By::Volume),
    ("raftAfterSaveSnap", By::Volume),
    ("walBeforeRelease", By::Volume),
    ("raftAfterWALRelease", By::Volume),
];

/// Passed by a member that is sent a snapshot, in this order.
const SENT_A_SNAPSHOT: &[&str] = &[
    "snapBeforeSync",
    "raftBeforeApplySnap",
    "applySnapAfterMarker",
    "applySnapAfterEmpty",
    "applySnapBeforeFlush",
    "applySnapAfterFlush",
    "raftAfterApplySnap",
];

/// A panic aborts.
fn assert_aborted(status: ExitStatus, point: &str) {
    const SIGABRT: i32 = 6;
    assert_eq!(status.signal(), Some(SIGABRT), "{point}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_point_is_listed_armed_and_disarmed_over_http() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let alone = Alone::start(folder.path()).await;
    let call = |method: &'static str, path: String, body: &'static str| {
        let address = alone.points.clone();
        async move {
            let answer = request(&address, method, &path, &[], body).await.expect("an answer");
            (answer.status, answer.text())
        }
    };
    let (status, list) = call("GET", "/".to_owned(), "").await;
    assert_eq!(status, 200);
    let listed: BTreeSet<&str> = list.lines().filter_map(|line| line.strip_suffix('=')).collect();
    let tried: BTreeSet<&str> =
        ALONE.iter().map(|(point, _)| *point).chain(SENT_A_SNAPSHOT.iter().copied()).collect();
    assert_eq!(listed, tried, "every point has its place in this suite");
    assert_eq!(call("PUT", "/afterCommit".to_owned(), "sleep(\"1ms\")").await, (204, String::new()));
    assert_eq!(call("GET", "/afterCommit".to_owned(), "").await, (200, "sleep(\"1ms\")\n".to_owned()));
    assert_eq!(call("DELETE", "/afterCommit".to_owned(), "").await, (204, String::new()));
    assert_eq!(call("DELETE", "/afterCommit".to_owned(), "").await.0, 400);
    assert_eq!(call("PUT", "/afterCommit".to_owned(), "explode").await.0, 400);
    assert_eq!(call("PUT", "/nowhere".to_owned(), "panic").await.0, 400);
    assert_eq!(call("GET", "/nowhere".to_owned(), "").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_at_any_point_loses_nothing_acknowledged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut alone = Alone::start(folder.path()).await;
    for (point, by) in ALONE {
        let status = match by {
            By::Write => {
                alone.arm(point, "panic").await;
                alone.write_until_it_ends(point, 100).await
            }
            By::Volume => {
                alone.arm(point, "panic").await;
                alone.write_until_it_ends(point, 1_000_000).await
            }
            By::Start => {
                alone.member.kill();
                alone.member.environment.push(("GOFAIL_FAILPOINTS".to_owned(), format!("{point}=panic")));
                alone.begin();
                alone.member.environment.pop();
                alone.write_until_it_ends(point, 100).await
            }
        };
        assert_aborted(status, point);
        alone.again().await;
    }
    assert!(alone.acknowledged.len() > 100, "there was something to lose");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_refuses_stops_the_member_and_loses_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut alone = Alone::start(folder.path()).await;
    let refusals = [
        ("raftBeforeSave", "ENOSPC", "No space left on device"),
        ("walBeforeSync", "EIO", "Input/output error"),
        ("walAfterSwitch", "ENOSPC", "No space left on device"),
        ("beforeCommit", "EIO", "Input/output error"),
        ("raftBeforeSaveSnap", "ENOSPC", "No space left on device"),
    ];
    for (point, error, text) in refusals {
        let said = alone.member.log().matches(text).count();
        // Once: a member that went on after a failed write or sync would acknowledge what may not be there.
        alone.arm(point, &format!("1*return(\"{error}\")->off")).await;
        let size = if point.starts_with("wal") || point.ends_with("Snap") { 1_000_000 } else { 100 };
        let status = alone.write_until_it_ends(point, size).await;
        assert_eq!(status.code(), Some(1), "{point}: it stops, and says so");
        assert!(alone.member.log().matches(text).count() > said, "{point}: the log names the error");
        alone.again().await;
    }
}

/// Found by an hour of faults: between a commit that failed and the end of the process, reads told the revision that was
/// computed and showed the value from before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_beside_a_failing_commit_shows_what_belongs_to_its_revision() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut alone = Alone::start(folder.path()).await;
    let client = alone.member.connect().await;
    client.put(put("k", "0")).await.expect("written");
    let readers: Vec<_> = [true, false, true, false]
        .map(|serializable| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut answers = 0;
                // Only one key is ever written, so its last revision is the store's. The end of the process ends this.
                while let Ok(Ok(read)) = tokio::time::timeout(
                    Duration::from_secs(5),
                    client.range(pb::RangeRequest { serializable, ..get("k") }),
                )
                .await
                {
                    let revision = read.header.map_or(0, |header| header.revision);
                    assert_eq!(read.kvs[0].mod_revision, revision, "serializable: {serializable}");
                    answers += 1;
                }
                answers
            })
        })
        .into();
    for _ in 0..20 {
        client.put(put("k", "v")).await.expect("written");
    }
    alone.arm("beforeCommit", "return(\"EIO\")").await;
    let started = Instant::now();
    while alone.member.ended().is_none() {
        // Its outcome is unknown.
        let _ = tokio::time::timeout(Duration::from_secs(1), client.put(put("k", "lost"))).await;
        assert!(started.elapsed() < DEADLINE, "the member goes on after a failed commit");
    }
    for reader in readers {
        assert!(reader.await.expect("every read is of one moment") > 0);
    }
}

/// Hash of the whole history that a member holds at its own newest revision.
async fn hash(endpoint: &str) -> Option<(i64, u32)> {
    let mut client = MaintenanceClient::connect(endpoint.to_owned()).await.ok()?;
    let answer = client.hash_kv(pb::HashKvRequest { revision: 0 }).await.ok()?.into_inner();
    Some((answer.hash_revision, answer.hash))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_while_a_snapshot_is_installed_ends_in_the_same_state() {
    let cluster = Cluster::start(binary(), 3, &[]).await;
    let client = Remote::connect(&cluster.endpoints(), None).await.expect("good URLs");
    let value = "v".repeat(1_000_000);
    // More than the log keeps, over and over on a few keys: a new member must be sent a snapshot, and a small one.
    for number in 0..130 {
        let written = client.put(put(&key(number % 7), &value)).await.expect("written");
        let revision = written.header.map_or(0, |header| header.revision);
        if number % 20 == 19 {
            client.compact(pb::CompactionRequest { revision, physical: false }).await.expect("compacted");
        }
    }
    for (at, point) in SENT_A_SNAPSHOT.iter().enumerate() {
        let mut member = Process::new(binary(), cluster.folder.path(), &format!("new{at}"));
        let members = ClusterClient::connect(cluster.endpoints()[0].clone()).await.expect("connected");
        let added = eventually("the member is added", || {
            let mut members = members.clone();
            let request = pb::MemberAddRequest { peer_ur_ls: vec![member.peer.clone()], is_learner: false };
            async move { members.member_add(request).await.ok() }
        })
        .await;
        let id = added.into_inner().member.expect("a member").id;
        let initial = format!("{},{}={}", cluster.initial(), member.name, member.peer);
        member.environment = vec![("GOFAIL_FAILPOINTS".to_owned(), format!("{point}=panic"))];
        member.start(&initial, "existing", &[]);
        let started = Instant::now();
        let status = loop {
            if let Some(status) = member.ended() {
                break status;
            }
            assert!(started.elapsed() < DEADLINE, "{point} is never reached; its log:\n{}", member.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_aborted(status, point);
        member.environment.clear();
        member.start(&initial, "existing", &[]);
        let wanted = hash(&cluster.endpoints()[0]).await.expect("the others' hash");
        eventually(&format!("{point}: the new member is equal to the others"), || async {
            (hash(&member.client).await? == wanted).then_some(())
        })
        .await;
        let own = member.connect().await;
        let read = own.range(pb::RangeRequest { serializable: true, ..get(&key(0)) }).await.expect("read");
        assert_eq!(read.kvs[0].value.len(), value.len(), "{point}");
        // Refused until the others count the new member among the healthy.
        eventually("the member is removed", || {
            let mut members = members.clone();
            async move { members.member_remove(pb::MemberRemoveRequest { id }).await.ok() }
        })
        .await;
        member.kill();
    }
}
