//! One run: three members, clients, faults, then healing and judgement. Everything is drawn from one seed.
//!
//! Safety phase: members crash with their unsynced writes lost (one, or all at once), links are cut in one or both
//! directions, messages are lost, disks are slow. Liveness phase: everything is healed and must converge. At every
//! applied entry, on every member, the core's step must agree with what any member applied there before (S4, S5); at
//! the end the core's own invariants hold, members are equal and the clients' history is judged.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use keelson_store_core::compact::Scrub;
use keelson_store_core::{Command, PutRequest, invariants};
use keelson_store_raft::log::SegmentLog;
use keelson_store_raft::replica::ReplicaConfig;
use keelson_store_raft::{MemoryStore, Node, Replica};
use openraft::{AsyncRuntime, SnapshotPolicy};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::clients::{Client, Open, PATIENCE};
use crate::disk::SimDisk;
use crate::judge::{Judge, PROBE, Shared, bytes};
use crate::network::{Member, SimNetwork, SimTransport};
use crate::runtime::Runtime;
use crate::seam::{begin_time, end_time, on_seeded_thread};
use crate::shrink::Skip;
use keelson_checker::{Operation, Violation};

/// Their ids are 1 to this.
pub const MEMBERS: u64 = 3;
const CLIENTS: u64 = 4;
/// Clients that hold leases.
const HOLDERS: u64 = 2;
/// Those two kinds, and one that compacts and looks back.
pub const ALL_CLIENTS: u64 = CLIENTS + HOLDERS + 1;
/// Virtual length of the two phases.
const FAULTS_FOR: Duration = Duration::from_secs(60);
const CONVERGE_WITHIN: Duration = Duration::from_secs(60);

/// What a run was and found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub seed: u64,
    pub acknowledged: usize,
    pub unknown: usize,
    pub reads: usize,
    pub crashes: usize,
    pub cuts: usize,
    /// Leases whose end took a key along.
    pub expired: usize,
    pub compactions: usize,
    /// Reads at a revision of the past.
    pub old_reads: usize,
    /// Terms that had a leader.
    pub terms: usize,
    /// Faults drawn, whether or not they were left out.
    pub faults: u32,
    pub virtual_time: Duration,
    /// The trace's lines, in order: equal for equal seeds.
    pub trace: Vec<String>,
}

/// What survives a member's crash, and its running replica.
struct Machine {
    disk: SimDisk,
    backend: Arc<MemoryStore>,
    replica: Option<Arc<Member>>,
    incarnation: u64,
}

/// Three members, their disks and their links.
pub struct World {
    pub shared: Shared,
    network: SimNetwork,
    random: SmallRng,
    machines: BTreeMap<u64, Machine>,
    pub open: Open,
    /// Of a hundred telling moments, how many are met by a crash.
    spite: u32,
    /// What the run leaves out, and how many faults were drawn.
    skip: Arc<Skip>,
    faults: u32,
}

/// Runs one seed.
///
/// # Errors
/// The first violation, with the trace up to it.
pub fn run(seed: u64) -> Result<Report, (Violation, Report)> {
    run_but(seed, Skip::default())
}

/// Runs one seed without some of its faults and operations.
///
/// # Errors
/// As `run`.
pub fn run_but(seed: u64, skip: Skip) -> Result<Report, (Violation, Report)> {
    on_seeded_thread(seed, move || run_here(seed, skip))
}

fn run_here(seed: u64, skip: Skip) -> Result<Report, (Violation, Report)> {
    let mut runtime = Runtime::new(1);
    runtime.set_seed(seed);
    runtime.block_on(async move {
        begin_time();
        let shared = Shared::begin();
        let mut world = World::new(seed, shared.clone());
        world.skip = Arc::new(skip);
        let outcome = world.live().await;
        // What was seen first explains what came of it.
        let judged = world.seen().and(outcome);
        let judged = judged.and_then(|()| {
            let record = shared.record();
            keelson_checker::check(&record.history, &record.log, record.newest())
        });
        let report = report(seed, &shared, &world);
        world.stop().await;
        end_time();
        judged.map_or_else(|violation| Err((violation, report.clone())), |()| Ok(report.clone()))
    })
}

fn report(seed: u64, shared: &Shared, world: &World) -> Report {
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
        expired: record.expired,
        compactions: record.compactions,
        old_reads: record.old_reads,
        terms: world.network.terms(),
        faults: world.faults,
        virtual_time,
        trace: record.trace.clone(),
    }
}

impl World {
    /// The swarm: each seed draws how bad the disks and links are.
    pub fn new(seed: u64, shared: Shared) -> World {
        let mut random = SmallRng::seed_from_u64(seed);
        let lost = [0, 0, 5, 30, 100][random.random_range(0..5)];
        let slow_link = Duration::from_millis([1, 5, 30, 120][random.random_range(0..4)]);
        let slow_disk = Duration::from_millis([1, 3, 20, 100][random.random_range(0..4)]);
        let spite = [0, 10, 40][random.random_range(0..3)];
        shared.trace(format!(
            "seed {seed}: {lost}/1000 lost, links <= {slow_link:?}, syncs <= {slow_disk:?}, spite {spite}/100"
        ));
        let network = SimNetwork::new(random.random(), lost, slow_link, shared.clone());
        let machines = (1..=MEMBERS)
            .map(|id| {
                let disk = SimDisk::new(random.random(), slow_disk);
                (id, Machine { disk, backend: Arc::default(), replica: None, incarnation: 0 })
            })
            .collect();
        World {
            shared,
            network,
            random,
            machines,
            open: Arc::default(),
            spite,
            skip: Arc::default(),
            faults: 0,
        }
    }

    /// Starts the members and forms the group.
    ///
    /// # Errors
    /// One does not start.
    pub async fn boot(&mut self) -> Result<(), Violation> {
        for id in 1..=MEMBERS {
            self.start(id).await?;
        }
        let members =
            (1..=MEMBERS).map(|id| (id, Node { name: format!("m{id}"), ..Node::default() })).collect();
        let first = self.machines[&1].replica.clone().expect("just started");
        first.initialize(members).await.map_err(|error| broken(format!("initialize: {error}")))
    }

    /// Both phases.
    async fn live(&mut self) -> Result<(), Violation> {
        self.boot().await?;
        let mut clients = Vec::new();
        for number in 0..ALL_CLIENTS {
            let (shared, open, seed) = (self.shared.clone(), self.open.clone(), self.random.random());
            let skip = self.skip.clone();
            let client = Client { number, seed, shared, open, skip, until: FAULTS_FOR };
            clients.push(match number {
                number if number < CLIENTS => Runtime::spawn(client.write_and_read()),
                number if number < CLIENTS + HOLDERS => Runtime::spawn(client.hold_leases()),
                _ => Runtime::spawn(client.compact_and_look_back()),
            });
        }
        while self.shared.started.elapsed() < FAULTS_FOR {
            self.trouble().await?;
        }
        self.heal().await?;
        for client in clients {
            client.await.map_err(|error| broken(format!("a client: {error}")))?;
        }
        self.converge().await
    }

    /// The next fault, after a while or at a telling moment.
    ///
    /// # Errors
    /// A property that was violated meanwhile.
    pub async fn trouble(&mut self) -> Result<(), Violation> {
        self.seen()?;
        let pause = Duration::from_millis(self.random.random_range(100..3_000));
        let shared = self.shared.clone();
        let number = self.faults;
        self.faults += 1;
        match Runtime::timeout(pause, shared.next_moment()).await {
            Ok(id) => self.meet(id, number).await,
            Err(_) => self.fault(number).await,
        }
    }

    /// Links carry everything again, and everybody runs.
    ///
    /// # Errors
    /// A member does not start.
    pub async fn heal(&mut self) -> Result<(), Violation> {
        self.network.heal();
        self.shared.trace("healed".to_owned());
        for id in 1..=MEMBERS {
            if self.machines[&id].replica.is_none() {
                self.start(id).await?;
            }
        }
        Ok(())
    }

    /// What the checks that go on all the time have found so far.
    ///
    /// # Errors
    /// The first violation.
    pub fn seen(&self) -> Result<(), Violation> {
        let leaders = self.network.two_leaders().map(|story| Violation { property: "S1", story });
        self.shared.violation().or(leaders).map_or(Ok(()), Err)
    }

    /// One fault or one repair.
    async fn fault(&mut self, number: u32) -> Result<(), Violation> {
        let id = self.random.random_range(1..=MEMBERS);
        let other = 1 + (id + self.random.random_range(0..MEMBERS - 1)) % MEMBERS;
        let what = self.random.random_range(0..10);
        if self.skip.fault(number) {
            return Ok(());
        }
        match what {
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

    /// A member has just been elected, or has installed a snapshot: perhaps it, or everybody, crashes right then and is
    /// back at once.
    async fn meet(&mut self, id: u64, number: u32) -> Result<(), Violation> {
        if self.random.random_range(0..100) >= self.spite {
            return Ok(());
        }
        let longest = 1 << self.random.random_range(0..9);
        Runtime::sleep(Duration::from_millis(self.random.random_range(0..longest))).await;
        let all = self.random.random_bool(0.5);
        if self.skip.fault(number) {
            return Ok(());
        }
        let victims = (1..=MEMBERS).filter(|one| all || *one == id);
        for id in victims.collect::<Vec<_>>() {
            if self.machines[&id].replica.is_some() {
                self.crash(id);
                self.start(id).await?;
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
        let random = &mut self.random;
        machine.backend = Arc::new(machine.backend.crash(|unflushed| random.random_range(0..=unflushed)));
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
        let judge = Judge::new(id, self.shared.clone());
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
        drop(Runtime::spawn(scrub(Arc::downgrade(&replica), self.random.random())));
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
                let put = PutRequest { key: bytes(PROBE), value: bytes(PROBE), ..PutRequest::default() };
                let answer = Runtime::timeout(PATIENCE, replicas[0].propose(Command::Put(put))).await;
                written = matches!(answer, Ok(Ok(_)));
            }
            let applied: Vec<u64> = replicas.iter().map(|replica| replica.shared.applied()).collect();
            let leases: Vec<usize> = replicas
                .iter()
                .map(|replica| replica.shared.read(|state, _| state.lessor().len()).unwrap_or(usize::MAX))
                .collect();
            let equal = applied.iter().all(|index| *index == applied[0]);
            let scrubbed = replicas.iter().all(|replica| {
                let due = replica.shared.read(|state, backend| Scrub::due(state, backend));
                due.is_some_and(|scrub| scrub.is_none())
            });
            if written && equal && scrubbed && leases.iter().all(|count| *count == 0) {
                return self.equal(&replicas);
            }
            if tokio::time::Instant::now() > deadline {
                let story = format!(
                    "not converged within {CONVERGE_WITHIN:?}: applied {applied:?}, a write was acknowledged: {written}, \
                     leases left: {leases:?}"
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
        Ok(())
    }

    /// Ends all members in good order.
    pub async fn stop(&mut self) {
        for machine in self.machines.values_mut() {
            if let Some(replica) = machine.replica.take() {
                replica.stop().await;
            }
        }
    }
}

/// Gives back a member's compacted space in small slices, as long as it runs.
async fn scrub(member: Weak<Member>, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut under_way: Option<Scrub> = None;
    loop {
        Runtime::sleep(Duration::from_millis(random.random_range(10..300))).await;
        let Some(member) = member.upgrade() else { return };
        let next = under_way
            .take()
            .or_else(|| member.shared.read(|state, backend| Scrub::due(state, backend)).flatten());
        let Some(scrub) = next else { continue };
        // `None`: a snapshot is being installed; what is due afterwards is looked up again.
        if let Some(Ok(next)) = member.shared.scrub(|backend| scrub.slice(backend, 5)) {
            under_way = next;
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
