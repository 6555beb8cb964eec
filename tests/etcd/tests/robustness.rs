//! Three processes under faults, with clients that write, read and watch: histories are judged by the checker of the
//! simulation, watches are compared with the history that survived, and members with each other.
//!
//! A push has twenty seconds of it; `KEELSON_ROBUSTNESS=3600` an hour (`cargo xtask robustness`). It prints what it did.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keelson_checker::{Log, Operation, check};
use keelson_etcd_tests::faults::{Faults, ran_in_a_network_of_its_own};
use keelson_etcd_tests::{Process, eventually, get, prefix, put};
use keelson_store_proto::client::{Etcd, Remote};
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const MEMBERS: usize = 3;
const KEYS: u64 = 8;
const CLIENTS: u64 = 6;
/// How long a client waits for one answer.
const PATIENCE: Duration = Duration::from_secs(5);

type Change = (u64, u64);

/// What a client and a watcher share with the test.
struct Run {
    started: Instant,
    stop: AtomicBool,
    history: Mutex<Vec<Operation>>,
    acknowledged: AtomicU64,
}

impl Run {
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).expect("less than an age")
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn note(&self, operation: Operation) {
        self.history.lock().expect("no panic while locked").push(operation);
    }
}

fn key(number: u64) -> String {
    format!("r{number}")
}

fn parse(bytes: &[u8]) -> u64 {
    String::from_utf8_lossy(bytes).trim_start_matches('r').parse().expect("a number of ours")
}

/// Closed loop: writes and linearizable reads at whichever member chance says.
async fn client(run: Arc<Run>, endpoints: Vec<String>, number: u64) {
    let mut members = Vec::new();
    for endpoint in &endpoints {
        members.push(Remote::connect(std::slice::from_ref(endpoint), None).await.expect("a good URL"));
    }
    let mut random = SmallRng::seed_from_u64(number);
    let mut written = 0;
    while !run.stopped() {
        tokio::time::sleep(Duration::from_millis(random.random_range(1..40))).await;
        let member = &members[random.random_range(0..members.len())];
        let k = random.random_range(0..KEYS);
        let invoked = run.now();
        if random.random_bool(0.5) {
            written += 1;
            let value = number * 100_000_000 + written;
            let answer = tokio::time::timeout(PATIENCE, member.put(put(&key(k), &value.to_string()))).await;
            let revision = match answer {
                Ok(Ok(answer)) => answer.header.map(|header| header.revision),
                _ => None,
            };
            run.acknowledged.fetch_add(u64::from(revision.is_some()), Ordering::Relaxed);
            run.note(Operation::Write { key: k, value, invoked, returned: run.now(), revision });
        } else if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, member.range(get(&key(k)))).await {
            let value = answer.kvs.first().map(|kv| parse(&kv.value));
            let revision = answer.header.map_or(0, |header| header.revision);
            run.note(Operation::Read { key: k, value, invoked, returned: run.now(), revision });
        }
    }
}

/// Follows the keys at one member from the first revision on, over every break, until `until` is seen.
async fn watcher(endpoint: String, until: Arc<AtomicU64>) -> Vec<(i64, Change)> {
    let member = Remote::connect(&[endpoint], None).await.expect("a good URL");
    let mut seen: Vec<(i64, Change)> = Vec::new();
    let done = |seen: &[(i64, Change)]| {
        let until = until.load(Ordering::Relaxed);
        until > 0 && seen.last().is_some_and(|(revision, _)| revision.unsigned_abs() >= until)
    };
    while !done(&seen) {
        let Ok((requests, mut answers)) = member.watch().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let from = seen.last().map_or(1, |(revision, _)| revision + 1);
        let range = prefix("r");
        let create = pb::WatchCreateRequest {
            key: range.key,
            range_end: range.range_end,
            start_revision: from,
            ..Default::default()
        };
        let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        if requests.send(request).await.is_err() {
            continue;
        }
        while !done(&seen) {
            // A paused member sends nothing; its stream is left for a new one now and then.
            match tokio::time::timeout(PATIENCE, answers.recv()).await {
                Ok(Some(Ok(answer))) => {
                    assert_eq!(answer.compact_revision, 0, "nothing is compacted");
                    for event in &answer.events {
                        let kv = event.kv.as_ref().expect("an event has its key");
                        seen.push((kv.mod_revision, (parse(&kv.key), parse(&kv.value))));
                    }
                }
                _ => break,
            }
        }
    }
    seen
}

/// The whole history as one member has it.
async fn log_of(endpoint: &str, newest: i64) -> Log {
    let until = Arc::new(AtomicU64::new(newest.unsigned_abs()));
    watcher(endpoint.to_owned(), until).await.into_iter().collect()
}

async fn hash(endpoint: &str, revision: i64) -> Option<u32> {
    let mut client = MaintenanceClient::connect(endpoint.to_owned()).await.ok()?;
    Some(client.hash_kv(pb::HashKvRequest { revision }).await.ok()?.into_inner().hash)
}

/// One fault after the other, each with some progress between them.
async fn trouble(run: &Run, faults: &mut Faults, time: Duration) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    while run.started.elapsed() < time {
        let before = run.acknowledged.load(Ordering::Relaxed);
        let leader = leader_of(&faults.members).await;
        let fault = faults.next(leader);
        let name = format!("{fault:?}");
        let kind = name.split(['(', ' ']).next().unwrap_or_default().to_owned();
        *counts.entry(kind).or_default() += 1;
        println!("{:7.1} s  {fault:?}", run.started.elapsed().as_secs_f32());
        faults.inflict(&fault).await;
        eventually("writes after a fault", || async {
            (run.acknowledged.load(Ordering::Relaxed) > before + 20).then_some(())
        })
        .await;
    }
    counts
}

async fn leader_of(members: &[Process]) -> Option<usize> {
    for (at, member) in members.iter().enumerate() {
        let client = member.connect().await;
        let status = client.status(pb::StatusRequest {});
        if let Ok(Ok(status)) = tokio::time::timeout(Duration::from_secs(1), status).await
            && status.header.is_some_and(|header| header.member_id == status.leader)
        {
            return Some(at);
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_lose_nothing_and_show_nothing_false() {
    if ran_in_a_network_of_its_own("faults_lose_nothing_and_show_nothing_false") {
        return;
    }
    let asked = std::env::var("KEELSON_ROBUSTNESS").ok().and_then(|text| text.parse().ok());
    let time = Duration::from_secs(asked.unwrap_or(20));
    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    println!("faults are drawn from {seed}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let binary = Path::new(env!("CARGO_BIN_EXE_member"));
    let members = (1..=MEMBERS).map(|i| Process::new(binary, folder.path(), &format!("m{i}"))).collect();
    let mut faults = Faults::start(members, seed);
    for member in &faults.members {
        member.ready(1).await;
    }
    let endpoints: Vec<String> = faults.members.iter().map(|member| member.client.clone()).collect();
    let run = Arc::new(Run {
        started: Instant::now(),
        stop: AtomicBool::new(false),
        history: Mutex::default(),
        acknowledged: AtomicU64::new(0),
    });
    let until = Arc::new(AtomicU64::new(0));
    let watchers: Vec<_> =
        endpoints.iter().map(|endpoint| tokio::spawn(watcher(endpoint.clone(), until.clone()))).collect();
    let clients: Vec<_> =
        (1..=CLIENTS).map(|number| tokio::spawn(client(run.clone(), endpoints.clone(), number))).collect();
    let counts = trouble(&run, &mut faults, time).await;
    run.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("a client ends");
    }
    // One more write, so that every watcher has something to end with.
    let last = Remote::connect(&endpoints, None).await.expect("good URLs");
    let invoked = run.now();
    let written = eventually("a write at the end", || async { last.put(put(&key(0), "1")).await.ok() }).await;
    let newest = written.header.expect("a header").revision;
    run.note(Operation::Write { key: 0, value: 1, invoked, returned: run.now(), revision: Some(newest) });
    until.store(newest.unsigned_abs(), Ordering::Relaxed);
    let history = run.history.lock().expect("no panic while locked").clone();
    let log = log_of(&endpoints[0], newest).await;
    let hashed = hash(&endpoints[0], newest).await.expect("a hash");
    for endpoint in &endpoints[1..] {
        assert!(log == log_of(endpoint, newest).await, "S4: {endpoint} has another history");
        assert_eq!(hash(endpoint, newest).await, Some(hashed), "S4: {endpoint} has another state");
    }
    assert_eq!(check(&history, &log, newest), Ok(()));
    let whole: Vec<(i64, Change)> = log.into_iter().collect();
    for watcher in watchers {
        let seen = watcher.await.expect("a watcher ends");
        let at = seen.iter().zip(&whole).position(|(seen, real)| seen != real);
        assert_eq!(at.map(|at| (seen[at], whole[at])), None, "S10, S11, S15: a watch differs");
        assert_eq!(seen.len(), whole.len(), "S15: a watch has a gap");
    }
    let reads = history.iter().filter(|operation| matches!(operation, Operation::Read { .. })).count();
    println!(
        "robustness: seconds={} writes={} acknowledged={} reads={reads} events={} faults={} partitions={}",
        run.started.elapsed().as_secs(),
        history.len() - reads,
        run.acknowledged.load(Ordering::Relaxed),
        whole.len(),
        counts.iter().map(|(kind, count)| format!("{kind}:{count}")).collect::<Vec<_>>().join(","),
        faults.partitions
    );
}
