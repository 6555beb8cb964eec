//! One run: three members, clients, faults, then healing and judgement. Everything is drawn from one seed.
//!
//! Safety phase: members crash with their unsynced writes lost (one, or all at once), links are cut in one or both
//! directions, messages are lost, disks are slow. Liveness phase: everything is healed and must converge. At every
//! applied entry, on every member, the core's step must agree with what any member applied there before (S4, S5); at
//! the end the core's own invariants hold, members are equal and the clients' history is judged.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use keelson_store_core::{
    Command, PutRequest, RangeRequest, Response, RevisionEvents, State, invariants, range,
};
use keelson_store_raft::log::SegmentLog;
use keelson_store_raft::replica::ReplicaConfig;
use keelson_store_raft::{Listener, MemoryStore, Node, Replica};
use openraft::{AsyncRuntime, SnapshotPolicy};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::checker::{self, Log, Operation, Time, Violation};
use crate::disk::SimDisk;
use crate::network::{Member, SimNetwork, SimTransport};
use crate::runtime::Runtime;

const MEMBERS: u64 = 3;
const CLIENTS: u64 = 4;
const KEYS: u64 = 5;
/// Virtual length of the two phases.
const FAULTS_FOR: Duration = Duration::from_secs(60);
const CONVERGE_WITHIN: Duration = Duration::from_secs(60);
/// How long a client waits for one answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a run was and found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub seed: u64,
    pub acknowledged: usize,
    pub unknown: usize,
    pub reads: usize,
    pub crashes: usize,
    pub cuts: usize,
    pub virtual_time: Duration,
    /// The trace's lines, in order: equal for equal seeds.
    pub trace: Vec<String>,
}

/// What all parts of a run write to.
#[derive(Default)]
struct Record {
    history: Vec<Operation>,
    log: Log,
    /// Applied revision -> hash of the state after it, from whichever member came first.
    states: BTreeMap<u64, u64>,
    violation: Option<Violation>,
    trace: Vec<String>,
    crashes: usize,
    cuts: usize,
}

#[derive(Clone)]
struct Shared {
    record: Arc<Mutex<Record>>,
    started: tokio::time::Instant,
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no panic while locked")
    }

    fn now(&self) -> Time {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn trace(&self, line: String) {
        let now = self.now();
        self.record().trace.push(format!("{now:>10} {line}"));
    }

    fn violated(&self, property: &'static str, story: String) {
        self.record().violation.get_or_insert(Violation { property, story });
    }
}

/// Compares what each member applies with what any member applied before.
struct Judge {
    id: u64,
    shared: Shared,
}

impl Listener for Judge {
    fn applied(&self, state: &State, events: Vec<RevisionEvents>, _compacted: bool) {
        for group in events {
            for event in &group.events {
                let entry = (number(&event.kv.key), number(&event.kv.value));
                let known = *self.shared.record().log.entry(group.revision).or_insert(entry);
                if known != entry {
                    self.shared.violated(
                        "S5",
                        format!(
                            "member {} has {entry:?} at {}, another had {known:?}",
                            self.id, group.revision
                        ),
                    );
                }
            }
        }
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        let hash = hasher.finish();
        let known = *self.shared.record().states.entry(state.applied()).or_insert(hash);
        if known != hash {
            self.shared.violated("S4", format!("member {} differs after entry {}", self.id, state.applied()));
        }
        self.shared.trace(format!("m{} applied {} revision {}", self.id, state.applied(), state.revision()));
    }

    fn restored(&self, state: &State) {
        self.shared.trace(format!("m{} restored {} revision {}", self.id, state.applied(), state.revision()));
    }
}

/// Keys and values are numbers of eight bytes.
fn bytes(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn number(bytes: &Bytes) -> u64 {
    bytes.as_ref().try_into().map_or(u64::MAX, u64::from_be_bytes)
}

/// What survives a member's crash, and its running replica.
struct Machine {
    disk: SimDisk,
    backend: Arc<MemoryStore>,
    replica: Option<Arc<Member>>,
    incarnation: u64,
}

struct World {
    shared: Shared,
    network: SimNetwork,
    random: SmallRng,
    machines: BTreeMap<u64, Machine>,
    /// Where the clients find whoever runs.
    open: Arc<Mutex<BTreeMap<u64, Arc<Member>>>>,
}

/// Runs one seed.
///
/// # Errors
/// The first violation, with the trace up to it.
pub fn run(seed: u64) -> Result<Report, (Violation, Report)> {
    let mut runtime = Runtime::new(1);
    runtime.set_seed(seed);
    runtime.block_on(async move {
        let shared = Shared { record: Arc::default(), started: tokio::time::Instant::now() };
        let mut world = World::new(seed, shared.clone());
        let outcome = world.live().await;
        let seen = shared.record().violation.take();
        let judged = outcome.and_then(|()| seen.map_or(Ok(()), Err));
        let judged = judged.and_then(|()| {
            let record = shared.record();
            checker::check(&record.history, &record.log)
        });
        let report = report(seed, &shared);
        world.stop().await;
        judged.map_or_else(|violation| Err((violation, report.clone())), |()| Ok(report.clone()))
    })
}

fn report(seed: u64, shared: &Shared) -> Report {
    let virtual_time = shared.started.elapsed();
    let record = shared.record();
    let count =
        |wanted: fn(&Operation) -> bool| record.history.iter().filter(|operation| wanted(operation)).count();
    Report {
        seed,
        acknowledged: count(|operation| matches!(operation, Operation::Write { revision: Some(_), .. })),
        unknown: count(|operation| matches!(operation, Operation::Write { revision: None, .. })),
        reads: count(|operation| matches!(operation, Operation::Read { .. })),
        crashes: record.crashes,
        cuts: record.cuts,
        virtual_time,
        trace: record.trace.clone(),
    }
}

impl World {
    /// The swarm: each seed draws how bad the disks and links are.
    fn new(seed: u64, shared: Shared) -> World {
        let mut random = SmallRng::seed_from_u64(seed);
        let lost = [0, 0, 5, 30, 100][random.random_range(0..5)];
        let slow_link = Duration::from_millis([1, 5, 30, 120][random.random_range(0..4)]);
        let slow_disk = Duration::from_millis([1, 3, 20, 100][random.random_range(0..4)]);
        shared
            .trace(format!("seed {seed}: {lost}/1000 lost, links <= {slow_link:?}, syncs <= {slow_disk:?}"));
        let network = SimNetwork::new(random.random(), lost, slow_link);
        let machines = (1..=MEMBERS)
            .map(|id| {
                let disk = SimDisk::new(random.random(), slow_disk);
                (id, Machine { disk, backend: Arc::default(), replica: None, incarnation: 0 })
            })
            .collect();
        World { shared, network, random, machines, open: Arc::default() }
    }

    /// Both phases.
    async fn live(&mut self) -> Result<(), Violation> {
        for id in 1..=MEMBERS {
            self.start(id).await?;
        }
        let members =
            (1..=MEMBERS).map(|id| (id, Node { name: format!("m{id}"), ..Node::default() })).collect();
        let first = self.machines[&1].replica.clone().expect("just started");
        first.initialize(members).await.map_err(|error| broken(format!("initialize: {error}")))?;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (shared, open, seed) = (self.shared.clone(), self.open.clone(), self.random.random());
                Runtime::spawn(client_loop(client, seed, shared, open))
            })
            .collect();
        while self.shared.started.elapsed() < FAULTS_FOR && self.shared.record().violation.is_none() {
            let pause = Duration::from_millis(self.random.random_range(100..3_000));
            Runtime::sleep(pause).await;
            self.fault().await?;
        }
        self.network.heal();
        self.shared.trace("healed".to_owned());
        for id in 1..=MEMBERS {
            if self.machines[&id].replica.is_none() {
                self.start(id).await?;
            }
        }
        for client in clients {
            client.await.map_err(|error| broken(format!("a client: {error}")))?;
        }
        self.converge().await
    }

    /// One fault or one repair.
    async fn fault(&mut self) -> Result<(), Violation> {
        let id = self.random.random_range(1..=MEMBERS);
        let other = 1 + (id + self.random.random_range(0..MEMBERS - 1)) % MEMBERS;
        match self.random.random_range(0..10) {
            0 | 1 => self.crash(id),
            2 => (1..=MEMBERS).for_each(|id| self.crash(id)),
            3 | 4 => {
                self.cut(id, other);
                self.cut(other, id);
            }
            5 => self.cut(id, other),
            6 => self.network.mend_cuts(),
            _ => {
                for id in 1..=MEMBERS {
                    if self.machines[&id].replica.is_none() {
                        self.start(id).await?;
                    }
                }
            }
        }
        Ok(())
    }

    fn cut(&self, from: u64, to: u64) {
        self.network.cut(from, to);
        self.shared.record().cuts += 1;
        self.shared.trace(format!("cut {from} -> {to}"));
    }

    /// Power loss: what was not synced is gone.
    fn crash(&mut self, id: u64) {
        let machine = self.machines.get_mut(&id).expect("members do not change");
        let Some(replica) = machine.replica.take() else { return };
        self.network.leave(id);
        self.open.lock().expect("no panic while locked").remove(&id);
        machine.disk = machine.disk.crash();
        machine.backend = Arc::new(machine.backend.crash());
        machine.incarnation += 1;
        drop(Runtime::spawn(async move { replica.stop().await }));
        self.shared.record().crashes += 1;
        self.shared.trace(format!("crash {id}"));
    }

    async fn start(&mut self, id: u64) -> Result<(), Violation> {
        let machine = self.machines.get_mut(&id).expect("members do not change");
        let incarnation = machine.incarnation;
        let transport = SimTransport { id, incarnation, network: self.network.clone() };
        let log = SegmentLog::open(Arc::new(machine.disk.clone()))
            .map_err(|error| broken(format!("m{id}: {error}")))?;
        let judge = Judge { id, shared: self.shared.clone() };
        let replica = Replica::start(
            configuration(id),
            log,
            machine.backend.clone(),
            Arc::new(transport),
            Arc::new(judge),
        )
        .await;
        let replica = replica.map_err(|error| broken(format!("m{id} does not start: {error}")))?;
        self.shared.trace(format!("start {id}"));
        self.network.join(id, incarnation, replica.clone());
        self.open.lock().expect("no panic while locked").insert(id, replica.clone());
        machine.replica = Some(replica);
        Ok(())
    }

    /// Everybody must apply the same last entry, hold equal states, and keep the core's invariants.
    async fn converge(&mut self) -> Result<(), Violation> {
        let deadline = tokio::time::Instant::now() + CONVERGE_WITHIN;
        let replicas: Vec<Arc<Member>> =
            self.machines.values().filter_map(|machine| machine.replica.clone()).collect();
        let mut written = false;
        loop {
            if !written {
                let put = PutRequest {
                    key: bytes(u64::MAX - 1),
                    value: bytes(u64::MAX - 1),
                    ..PutRequest::default()
                };
                let answer = Runtime::timeout(PATIENCE, replicas[0].propose(Command::Put(put))).await;
                written = matches!(answer, Ok(Ok(_)));
            }
            let applied: Vec<u64> = replicas.iter().map(|replica| replica.shared.applied()).collect();
            if written && applied.iter().all(|index| *index == applied[0]) {
                return self.equal(&replicas);
            }
            if tokio::time::Instant::now() > deadline {
                let story = format!(
                    "not converged within {CONVERGE_WITHIN:?}: applied {applied:?}, a write was acknowledged: {written}"
                );
                return Err(Violation { property: "liveness", story });
            }
            Runtime::sleep(Duration::from_millis(100)).await;
        }
    }

    fn equal(&self, replicas: &[Arc<Member>]) -> Result<(), Violation> {
        let first = self.machines[&1].backend.contents();
        for (id, machine) in &self.machines {
            if machine.backend.contents() != first {
                return Err(Violation {
                    property: "S4",
                    story: format!("member {id} holds something else than member 1"),
                });
            }
        }
        for replica in replicas {
            let broken = replica
                .shared
                .read(|state, backend| invariants::violated(state, backend))
                .unwrap_or_default();
            if let Some(invariant) = broken.first() {
                return Err(Violation {
                    property: invariant.id,
                    story: format!("member {}: {} does not hold", replica.id, invariant.name),
                });
            }
        }
        // The convergence probe is ours, not a client's.
        self.shared.record().log.retain(|_, (key, _)| *key != u64::MAX - 1);
        Ok(())
    }

    async fn stop(&mut self) {
        for machine in self.machines.values_mut() {
            if let Some(replica) = machine.replica.take() {
                replica.stop().await;
            }
        }
    }
}

fn broken(story: String) -> Violation {
    Violation { property: "start", story }
}

/// Production's timers; snapshots and purges far more often, so that a run meets them.
fn configuration(id: u64) -> ReplicaConfig {
    let raft = openraft::Config {
        cluster_name: "simulation".to_owned(),
        heartbeat_interval: 100,
        election_timeout_min: 1_000,
        election_timeout_max: 2_000,
        enable_pre_vote: Some(true),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(40),
        max_in_snapshot_log_to_keep: 10,
        purge_batch_size: 1,
        ..openraft::Config::default()
    };
    ReplicaConfig { id, raft, request_timeout: PATIENCE }
}

/// Closed loop: a write or a linearizable read at whichever member it finds, until the faults are over.
async fn client_loop(client: u64, seed: u64, shared: Shared, open: Arc<Mutex<BTreeMap<u64, Arc<Member>>>>) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut written = 0;
    while shared.started.elapsed() < FAULTS_FOR {
        Runtime::sleep(Duration::from_millis(random.random_range(1..200))).await;
        let member = {
            let open = open.lock().expect("no panic while locked");
            let at = random.random_range(0..open.len().max(1));
            open.values().nth(at).cloned()
        };
        let Some(member) = member else { continue };
        let key = random.random_range(0..KEYS);
        if random.random_bool(0.6) {
            written += 1;
            write(&shared, &member, key, client * 1_000_000 + written).await;
        } else {
            read(&shared, &member, key).await;
        }
    }
}

async fn write(shared: &Shared, member: &Member, key: u64, value: u64) {
    let invoked = shared.now();
    let put = Command::Put(PutRequest { key: bytes(key), value: bytes(value), ..PutRequest::default() });
    let answer = Runtime::timeout(PATIENCE, member.propose(put)).await;
    let revision = match answer {
        Ok(Ok((_, Response::Put(put)))) => Some(put.revision),
        _ => None,
    };
    let returned = shared.now();
    shared.trace(format!("m{} write {key}={value} -> {revision:?}", member.id));
    shared.record().history.push(Operation::Write { key, value, invoked, returned, revision });
}

async fn read(shared: &Shared, member: &Member, key: u64) {
    let invoked = shared.now();
    if !matches!(Runtime::timeout(PATIENCE, member.read_index()).await, Ok(Ok(()))) {
        return;
    }
    let request = RangeRequest { key: bytes(key), ..RangeRequest::default() };
    let Some(Ok(answer)) = member.shared.read(|state, backend| range(state, backend, &request)) else {
        return;
    };
    let value = answer.kvs.first().map(|kv| number(&kv.value));
    let returned = shared.now();
    shared.trace(format!("m{} read {key} -> {value:?} at {}", member.id, answer.revision));
    shared.record().history.push(Operation::Read {
        key,
        value,
        invoked,
        returned,
        revision: answer.revision,
    });
}
