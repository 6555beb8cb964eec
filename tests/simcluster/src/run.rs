//! One run: the cluster comes up, lives through faults while users work, is healed, must settle, and must then be quiet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use keelson_apiserver::{Config, InProcess, Pki};
use keelson_checker::Violation;
use keelson_sim::judge::Shared;
use keelson_sim::runtime::Runtime;
use keelson_sim::seam::{begin_time, end_time, on_seeded_thread};
use keelson_sim::world::{MEMBERS, World};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use openraft::AsyncRuntime;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::Servers;
use crate::check::{Checker, Strictness};
use crate::etcd::SimEtcd;
use crate::nodes;

const NODES: u64 = 5;
/// Whole cores of a node.
const CORES: u32 = 4;
const FAULTS_FOR: Duration = Duration::from_secs(120);
/// A lost node's pods go after 40 s of silence and 300 s of toleration.
const SETTLE_WITHIN: Duration = Duration::from_secs(900);
/// A settled cluster is watched for so long.
const QUIET_FOR: Duration = Duration::from_secs(60);

/// What a run was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub seed: u64,
    pub crashes: usize,
    pub binds: usize,
    pub pods: usize,
    pub revisions: i64,
    pub virtual_time: Duration,
    pub trace: Vec<String>,
}

/// What runs beside the store and can crash.
struct Process {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Process {
    fn crash(self) {
        self.task.abort();
        self.stop.cancel();
    }
}

struct Cluster {
    shared: Shared,
    world: World,
    servers: Servers,
    random: SmallRng,
    managers: BTreeMap<u64, Process>,
    schedulers: BTreeMap<u64, Process>,
    nodes: BTreeMap<u64, JoinHandle<()>>,
    checker: Checker,
    swarm: Swarm,
    crashes: usize,
    incarnation: u64,
}

/// Which faults a seed has at all.
#[derive(Clone, Copy, Debug)]
struct Swarm {
    store: bool,
    processes: bool,
    nodes: bool,
    kills: bool,
    lost: u32,
}

/// Runs one seed.
///
/// # Errors
/// The first violation, with the trace up to it.
pub fn run(seed: u64) -> Result<Report, (Violation, Report)> {
    on_seeded_thread(seed, move || {
        let mut runtime = Runtime::new(1);
        runtime.set_seed(seed);
        runtime.block_on(async move {
            begin_time();
            let shared = Shared::begin();
            let mut cluster = Cluster::new(seed, shared.clone());
            let outcome = cluster.live().await;
            let outcome = cluster.world.seen().and(outcome);
            let report = cluster.report(seed);
            cluster.stop().await;
            end_time();
            match outcome {
                Ok(()) => Ok(report),
                Err(violation) => Err((violation, report)),
            }
        })
    })
}

fn broken(story: String) -> Violation {
    Violation { property: "start", story }
}

impl Cluster {
    fn new(seed: u64, shared: Shared) -> Cluster {
        let mut random = SmallRng::seed_from_u64(seed ^ 0xc1u64 << 32);
        let swarm = Swarm {
            store: random.random_bool(0.6),
            processes: random.random_bool(0.6),
            nodes: random.random_bool(0.4),
            kills: random.random_bool(0.4),
            lost: [0, 0, 5, 30][random.random_range(0..4)],
        };
        let slowest = Duration::from_millis([1, 5, 40][random.random_range(0..3)]);
        shared.trace(format!("cluster of seed {seed}: {swarm:?}, answers <= {slowest:?}"));
        let strict = Strictness {
            pods_stay: !swarm.nodes && !swarm.kills,
            all_answered: swarm.lost == 0 && !swarm.processes && !swarm.store,
        };
        Cluster {
            world: World::new(seed, shared.clone()),
            servers: Servers::new(random.random(), swarm.lost, slowest),
            checker: Checker::new(shared.clone(), strict),
            shared,
            random,
            managers: BTreeMap::new(),
            schedulers: BTreeMap::new(),
            nodes: BTreeMap::new(),
            swarm,
            crashes: 0,
            incarnation: 0,
        }
    }

    fn report(&self, seed: u64) -> Report {
        let record = self.shared.record();
        Report {
            seed,
            crashes: self.crashes + record.crashes,
            binds: self.checker.binds,
            pods: self.checker.pods_made,
            revisions: record.newest(),
            virtual_time: self.shared.started.elapsed(),
            trace: record.trace.clone(),
        }
    }

    async fn live(&mut self) -> Result<(), Violation> {
        self.world.boot().await?;
        (1..=MEMBERS).try_for_each(|id| self.start_server(id))?;
        for id in 1..=2 {
            self.start_manager(id);
            self.start_scheduler(id);
        }
        (1..=NODES).for_each(|id| self.start_node(id));
        let users = Users::new(&self.servers, self.random.random(), self.swarm.kills, self.shared.clone());
        let added = users.added.clone();
        let users = tokio::spawn(users.work());
        let until = Instant::now() + FAULTS_FOR;
        while Instant::now() < until {
            self.checker.advance()?;
            self.world.seen()?;
            if self.swarm.store && self.random.random_bool(0.3) {
                self.world.trouble().await?;
            } else {
                let pause = Duration::from_millis(self.random.random_range(100..3_000));
                tokio::time::sleep(pause).await;
            }
            self.trouble()?;
        }
        self.world.heal().await?;
        self.heal()?;
        users.await.map_err(|error| broken(format!("the users: {error}")))?;
        self.settle().await?;
        self.quiet().await?;
        self.counted(added.0.load(Ordering::Relaxed), added.1.load(Ordering::Relaxed))
    }

    /// One fault, or one repair, of a process.
    fn trouble(&mut self) -> Result<(), Violation> {
        let what = self.random.random_range(0..12);
        let id = self.random.random_range(1..=MEMBERS);
        let pair = 1 + id % 2;
        match what {
            0 if self.swarm.processes && self.servers.crash(id) => self.crashed(format!("API server {id}")),
            1 if self.swarm.processes => {
                if let Some(process) = self.managers.remove(&pair) {
                    process.crash();
                    self.crashed(format!("controller manager {pair}"));
                }
            }
            2 if self.swarm.processes => {
                if let Some(process) = self.schedulers.remove(&pair) {
                    process.crash();
                    self.crashed(format!("scheduler {pair}"));
                }
            }
            3 if self.swarm.nodes => {
                let id = self.random.random_range(1..=NODES);
                // Two of five may be gone at a time, so that everything has room.
                if self.nodes.len() > 3
                    && let Some(task) = self.nodes.remove(&id)
                {
                    task.abort();
                    self.crashed(format!("node {id}"));
                }
            }
            4..=7 => self.mend(false)?,
            _ => {}
        }
        Ok(())
    }

    fn crashed(&mut self, what: String) {
        self.crashes += 1;
        self.shared.trace(format!("crash of {what}"));
    }

    /// Whoever is gone comes back; nodes only sometimes, unless it is for good.
    fn mend(&mut self, all: bool) -> Result<(), Violation> {
        for id in 1..=MEMBERS {
            if !self.servers.runs(id) {
                self.start_server(id)?;
            }
        }
        for id in 1..=2 {
            if !self.managers.contains_key(&id) {
                self.start_manager(id);
            }
            if !self.schedulers.contains_key(&id) {
                self.start_scheduler(id);
            }
        }
        for id in 1..=NODES {
            if !all && !self.nodes.contains_key(&id) && self.random.random_bool(0.1) {
                self.start_node(id);
            }
        }
        Ok(())
    }

    /// Processes run and answers arrive. A node that is gone stays gone: its pods must be replaced (C19).
    fn heal(&mut self) -> Result<(), Violation> {
        self.servers.heal();
        self.mend(true)
    }

    fn start_server(&mut self, id: u64) -> Result<(), Violation> {
        let etcd = SimEtcd { id, open: self.world.open.clone(), shared: self.shared.clone() };
        let address = SocketAddr::from(([10, 0, 0, id as u8], 6443));
        let pki = Pki { service_account_key: KEY.as_bytes().to_vec(), ..Pki::default() };
        let mut config = Config::new(Arc::new(etcd), address, address.ip(), pki);
        // Far more often than in production, so that a run meets it.
        config.compaction_interval = 20;
        let server = InProcess::start(config, &CancellationToken::new());
        self.servers.join(id, server.map_err(|error| broken(format!("API server {id}: {error:#}")))?);
        self.shared.trace(format!("start of API server {id}"));
        Ok(())
    }

    fn start_manager(&mut self, id: u64) {
        self.incarnation += 1;
        let client = self.servers.client("system:kube-controller-manager", &["system:masters"]);
        let config = keelson_controllers::Config {
            identity: Some(format!("manager-{id}-{}", self.incarnation)),
            ..keelson_controllers::Config::default()
        };
        let stop = CancellationToken::new();
        let run = keelson_controllers::run(client, config, stop.clone());
        let task = tokio::spawn(async move { drop(run.await) });
        self.managers.insert(id, Process { task, stop });
    }

    fn start_scheduler(&mut self, id: u64) {
        self.incarnation += 1;
        let client = self.servers.client("system:kube-scheduler", &["system:masters"]);
        let mut config = keelson_scheduler::Config::default();
        config.leader_election.identity = format!("scheduler-{id}-{}", self.incarnation);
        let stop = CancellationToken::new();
        let run = keelson_scheduler::run(client, config, stop.clone());
        let task = tokio::spawn(async move { drop(run.await) });
        self.schedulers.insert(id, Process { task, stop });
    }

    fn start_node(&mut self, id: u64) {
        let name = format!("n{id}");
        let client = self.servers.client(&format!("system:node:{name}"), &["system:masters"]);
        let node = nodes::live(client, name, CORES, self.random.random());
        self.nodes.insert(id, tokio::spawn(node));
    }

    /// C19, C26: everything the users asked for runs, on nodes that live, within the time.
    async fn settle(&mut self) -> Result<(), Violation> {
        let deadline = Instant::now() + SETTLE_WITHIN;
        let live: BTreeSet<String> = self.nodes.keys().map(|id| format!("n{id}")).collect();
        loop {
            self.checker.advance()?;
            self.world.seen()?;
            let Some(why) = self.checker.unsettled(&live) else {
                self.shared.trace("settled".to_owned());
                return Ok(());
            };
            if Instant::now() > deadline {
                return Err(Violation { property: "C26", story: format!("not settled in time: {why}") });
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// C27: nothing is written but heartbeats.
    async fn quiet(&mut self) -> Result<(), Violation> {
        // What was under way when the last pod became ready may still come: status, Events, slices.
        tokio::time::sleep(Duration::from_secs(30)).await;
        self.checker.advance()?;
        let (before, _) = self.checker.last_work;
        tokio::time::sleep(QUIET_FOR).await;
        self.checker.advance()?;
        let (after, key) = self.checker.last_work.clone();
        if after > before {
            let story = format!("{key} was written at revision {after} though nothing changes");
            return Err(Violation { property: "C27", story });
        }
        Ok(())
    }

    /// C14: each accepted increment under a resourceVersion is in the count, and nothing else is.
    fn counted(&self, accepted: i64, unclear: i64) -> Result<(), Violation> {
        let counter = self.checker.object("/registry/configmaps/default/counter");
        let count: i64 = counter.and_then(|map| map["data"]["n"].as_str()?.parse().ok()).unwrap_or(0);
        if count < accepted || count > accepted + unclear {
            let story =
                format!("{accepted} increments were accepted, {unclear} are unclear, the count is {count}");
            return Err(Violation { property: "C14", story });
        }
        Ok(())
    }

    async fn stop(&mut self) {
        for process in std::mem::take(&mut self.managers).into_values() {
            process.crash();
        }
        for process in std::mem::take(&mut self.schedulers).into_values() {
            process.crash();
        }
        self.nodes.values().for_each(JoinHandle::abort);
        for id in 1..=MEMBERS {
            self.servers.crash(id);
        }
        self.world.stop().await;
    }
}

/// Who uses the cluster.
struct Users {
    client: kube::Client,
    random: SmallRng,
    kills: bool,
    shared: Shared,
    /// Increments of the counter that were accepted, and those of unknown outcome.
    added: Arc<(AtomicI64, AtomicI64)>,
}

impl Users {
    fn new(servers: &Servers, seed: u64, kills: bool, shared: Shared) -> Users {
        Users {
            client: servers.admin(),
            random: SmallRng::seed_from_u64(seed),
            kills,
            shared,
            added: Arc::default(),
        }
    }

    /// Makes a fixed and a scaled Deployment with a Service, then changes them while the faults go on.
    async fn work(mut self) {
        let until = Instant::now() + FAULTS_FOR;
        for (name, size, fixed) in [("steady", 3, true), ("elastic", 2, false)] {
            self.insist(&deployment(name, size, fixed)).await;
        }
        self.insist(&service("steady")).await;
        let counters: Vec<_> = (0..2)
            .map(|_| {
                tokio::spawn(count(self.client.clone(), self.random.random(), until, self.added.clone()))
            })
            .collect();
        let deployments: Api<Deployment> = Api::default_namespaced(self.client.clone());
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(self.random.random_range(500..8_000))).await;
            let params = PatchParams::default();
            let what = self.random.random_range(0..4);
            // A refused or lost wish is no wish: what counts is what the store holds in the end.
            let _ = match what {
                0 => {
                    let size = self.random.random_range(0..5);
                    self.shared.trace(format!("user: elastic = {size}"));
                    let patch = Patch::Merge(json!({"spec": {"replicas": size}}));
                    deployments.patch("elastic", &params, &patch).await.map(drop)
                }
                1 | 2 => {
                    let name = if what == 1 { "steady" } else { "elastic" };
                    let image = format!("v{}", self.random.random_range(1..4));
                    self.shared.trace(format!("user: {name} runs {image}"));
                    let containers = json!([{"name": "c", "image": image}]);
                    let patch = json!({"spec": {"template": {"spec": {"containers": containers}}}});
                    deployments.patch(name, &params, &Patch::Strategic(patch)).await.map(drop)
                }
                _ if self.kills => self.kill().await,
                _ => Ok(()),
            };
        }
        for counter in counters {
            // It ends by itself at the same time.
            let _ = counter.await;
        }
    }

    async fn kill(&mut self) -> Result<(), kube::Error> {
        let pods: Api<Pod> = Api::default_namespaced(self.client.clone());
        let all = pods.list(&ListParams::default()).await?.items;
        if all.is_empty() {
            return Ok(());
        }
        let at = self.random.random_range(0..all.len());
        let name = all[at].metadata.name.clone().unwrap_or_default();
        self.shared.trace(format!("user: deletes {name}"));
        pods.delete(&name, &DeleteParams::default()).await.map(drop)
    }

    /// Until it is there.
    async fn insist<K>(&self, object: &K)
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::default_namespaced(self.client.clone());
        loop {
            match api.create(&PostParams::default(), object).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if status.code == 409 => return,
                Err(error) => {
                    self.shared.trace(format!("user: {error}"));
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }
}

/// Reads a counter, adds one, and writes it back under the version read; never twice the same.
async fn count(client: kube::Client, seed: u64, until: Instant, added: Arc<(AtomicI64, AtomicI64)>) {
    let mut random = SmallRng::seed_from_u64(seed);
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(random.random_range(100..2_000))).await;
        let found = match maps.get_opt("counter").await {
            Ok(Some(found)) => found,
            Ok(None) => {
                let empty: ConfigMap =
                    serde_json::from_value(json!({"metadata": {"name": "counter"}, "data": {"n": "0"}}))
                        .expect("a sound object");
                // Another may have been quicker.
                let _ = maps.create(&PostParams::default(), &empty).await;
                continue;
            }
            Err(_) => continue,
        };
        let mut next = found.clone();
        let n: i64 = found.data.as_ref().and_then(|data| data.get("n")?.parse().ok()).unwrap_or(0);
        next.data.get_or_insert_default().insert("n".into(), (n + 1).to_string());
        match maps.replace("counter", &PostParams::default(), &next).await {
            Ok(_) => drop(added.0.fetch_add(1, Ordering::Relaxed)),
            Err(kube::Error::Api(status)) if (400..500).contains(&status.code) && status.code != 408 => {}
            Err(_) => drop(added.1.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

fn deployment(name: &str, replicas: i32, fixed: bool) -> Deployment {
    let size = if fixed { "fixed" } else { "free" };
    let resources = json!({"requests": {"cpu": "1", "memory": "64Mi"}});
    let value: Value = json!({
        "metadata": {"name": name, "annotations": {"example.com/size": size}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 5,
                    "containers": [{"name": "c", "image": "v1", "resources": resources}],
                },
            },
        },
    });
    serde_json::from_value(value).expect("a sound object")
}

fn service(name: &str) -> Service {
    let value = json!({
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    serde_json::from_value(value).expect("a sound object")
}

/// Signs the service accounts' tokens of simulated clusters, and nothing else.
const KEY: &str = include_str!("../testdata/service-account.pem");
