//! Starting and stopping one member; several may run in one process.
//!
//! Start: lock the data directory → know who we are → bind every port → open database and log → start the replica → form
//! the group if that is ours to do → serve peers and clients → publish ourselves. Stop: hand leadership over → close the
//! ports → end Raft → make everything durable.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use keelson_store_core::{Command, RevisionEvents, State, TokenChange};
use keelson_store_raft::types::TokioRuntime;
use keelson_store_raft::{Backend, FileDisk, Listener, Node, Replica, ReplicaConfig, SegmentLog};
use keelson_store_sync::{Hub, Publisher};
use openraft::async_runtime::WatchReceiver;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{Caller, Passwords, Tokens};
use crate::config::{ClusterState, Config, Endpoint};
use crate::facts::Facts;
use crate::handle::{Handle, Inner, Member, Proposals};
use crate::http::ClientService;
use crate::identity::{DataDir, Identity, cluster_id, initial_ids};
use crate::listen::{self, Bound, Limits};
use crate::metrics::{Changes, Metrics};
use crate::peer::{self, PeerService, PeerTransport};
use crate::quota::{self, Quota};
use crate::rocks::Rocks;
use crate::traces::Traces;
use crate::{autocompact, consistency, discovery, range_stream, restore, scrub, service, tls};

/// Recent changes kept in memory for watchers: how many, and how many bytes.
const RING: usize = 4096;
const RING_BYTES: usize = 8 << 20;
/// How long a stopping leader waits for another to take over.
const HAND_OVER: Duration = Duration::from_millis(1000);
/// How often the member looks whether it can go on.
const WATCHDOG: Duration = Duration::from_millis(500);
/// Of a peer's connection.
const PEER_LIMITS: Limits =
    Limits { streams: 1024, keep_alive: Some((Duration::from_secs(60), Duration::from_secs(20))) };
/// How long a joining member looks for the cluster.
const JOIN: Duration = Duration::from_secs(60);

/// One running member.
pub struct Store {
    handle: Handle,
    /// Where clients are served, with the ports really bound.
    pub client_addresses: Vec<SocketAddr>,
    ready: watch::Receiver<bool>,
    ended: watch::Receiver<Option<Result<(), String>>>,
}

impl Store {
    /// Starts a member, which runs until `stop` is cancelled or it cannot go on.
    ///
    /// It returns once the ports are bound and the member runs, before there is a leader: see `ready`.
    ///
    /// # Errors
    /// Configuration that cannot work, ports taken, data that is damaged or another cluster's, a cluster that does not
    /// know us; each with what to do.
    pub async fn start(mut config: Config, stop: CancellationToken) -> Result<Store> {
        config.check()?;
        make_certificates(&mut config)?;
        let dial_tls = config.peer_tls.as_ref().map(tls::client).transpose()?;
        let bound = Ports::bind(&config).await?;
        let client_addresses = bound.clients.iter().filter_map(|(bound, _)| bound.address).collect();
        let doors = Doors::default();
        for bound in bound.peers {
            doors.open(bound, doors.peers.clone(), PEER_LIMITS);
        }
        let bootstrap = async {
            let (data_dir, force) = (config.data_dir.clone(), config.force_new_cluster);
            let runtime = tokio::runtime::Handle::current();
            let import = move || runtime.block_on(restore::import(&data_dir, None, force));
            tokio::task::spawn_blocking(import).await.context("importing")??;
            let data = DataDir::open(&config.data_dir)?;
            let known = data.identity()?.is_some();
            if !known && let Some(found) = discovery::find(&config).await? {
                config.initial_cluster = found.members;
                config.initial_cluster_token = found.token;
                config.check_members()?;
            }
            let identity = identify(&config, &data, dial_tls.as_ref()).await?;
            let member = Opened::open(&config, &data, identity, dial_tls).await?;
            member.form(&config).await?;
            Ok((data, member))
        };
        let (data, member) = doors.or_close(bootstrap).await.inspect_err(|error| {
            tracing::error!(error = format!("{error:#}"), "bootstrap failed");
        })?;
        let (running, ready) = member.serve(config, bound.clients, doors, stop);
        let handle = running.handle.clone();
        let (ended_sender, ended) = watch::channel(None);
        tokio::spawn(async move {
            let result = running.until_stopped(data).await;
            ended_sender.send_replace(Some(result));
        });
        Ok(Store { handle, client_addresses, ready, ended })
    }

    /// The API in process.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Returns once there is a leader and all members can know where we are.
    ///
    /// # Errors
    /// The member stopped before.
    pub async fn ready(&self) -> Result<()> {
        let mut ready = self.ready.clone();
        ready.wait_for(|ready| *ready).await.map(|_| ()).context("the member stopped before it was ready")
    }

    /// Returns once the member has stopped and everything is durable and closed.
    ///
    /// # Errors
    /// Why it stopped, if it was not asked to.
    pub async fn stopped(&self) -> Result<()> {
        let mut ended = self.ended.clone();
        let result = match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone(),
            Err(_) => Some(Err("the member's task ended early".to_owned())),
        };
        match result {
            Some(Err(reason)) => bail!(reason),
            _ => Ok(()),
        }
    }
}

/// A client port that cannot be served because of its certificates.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ListenerFailed(String);

/// Everything bound, before anything is served.
struct Ports {
    peers: Vec<Bound>,
    /// Each with what is served there: gRPC, and everything else.
    clients: Vec<(Bound, Served)>,
}

/// What a client port serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    Both,
    Grpc,
    Http,
    Monitoring,
}

impl Ports {
    async fn bind(config: &Config) -> Result<Ports> {
        let reuse = config.socket_reuse_port;
        let peers = async {
            let tls = config.peer_tls.as_ref().map(|tls| tls::server(tls, true)).transpose()?;
            listen::bind(&config.listen_peer_urls, tls.as_ref(), reuse).await
        };
        let peers = peers.await.inspect_err(|error| {
            tracing::error!(
                error = format!("{error:#}"),
                remedy =
                    "see --listen-peer-urls and the certificates of peers; is another member running there?",
                "creating peer listener failed"
            );
        })?;
        let tls = config.tls.as_ref().map(|tls| tls::server(tls, false)).transpose();
        let tls = tls.map_err(|error| ListenerFailed(format!("{error:#}")))?;
        let split = !config.listen_client_http_urls.is_empty();
        let mut clients = Vec::new();
        for (urls, served) in [
            (&config.listen_client_urls, if split { Served::Grpc } else { Served::Both }),
            (&config.listen_client_http_urls, Served::Http),
            (&config.listen_metrics_urls, Served::Monitoring),
        ] {
            let bound = listen::bind(urls, tls.as_ref(), reuse).await.inspect_err(|error| {
                tracing::error!(
                    error = format!("{error:#}"),
                    remedy = "see --listen-client-urls; is another server running there?",
                    "creating client listener failed"
                );
            })?;
            clients.extend(bound.into_iter().map(|bound| (bound, served)));
        }
        Ok(Ports { peers, clients })
    }
}

/// `--auto-tls` and `--peer-auto-tls`.
fn make_certificates(config: &mut Config) -> Result<()> {
    let make = |which: &str, urls: &[String]| {
        let hosts: Vec<String> = urls
            .iter()
            .filter_map(|url| Endpoint::parse(url).ok())
            .map(|endpoint| endpoint.host().to_owned())
            .collect();
        tls::self_signed(&config.data_dir.join("fixtures").join(which), &hosts, config.self_signed_validity)
    };
    let mut client = None;
    if config.auto_tls && config.tls.is_some() {
        tracing::warn!("ignoring client auto TLS since certs given");
    } else if config.auto_tls {
        let urls = [config.listen_client_urls.clone(), config.listen_client_http_urls.clone()].concat();
        client = Some(make("client", &urls)?);
    }
    let mut peer = None;
    if config.peer_auto_tls && config.peer_tls.is_some() {
        tracing::warn!("ignoring peer auto TLS since certs given");
    } else if config.peer_auto_tls {
        peer = Some(make("peer", &config.listen_peer_urls)?);
    }
    config.tls = config.tls.take().or(client);
    config.peer_tls = config.peer_tls.take().or(peer);
    Ok(())
}

/// The ports and what answers on them. Peers are answered ("starting") from the beginning, so that members that start
/// together do not wait for each other.
#[derive(Default)]
struct Doors {
    tasks: TaskTracker,
    close: CancellationToken,
    peers: PeerService,
}

impl Doors {
    fn open(&self, bound: Bound, service: impl listen::Serve, limits: Limits) {
        self.tasks.spawn(listen::run(bound, service, limits, self.close.clone()));
    }

    /// Closes the doors again when a step of the start fails.
    async fn or_close<T>(&self, step: impl Future<Output = Result<T>>) -> Result<T> {
        let result = step.await;
        if result.is_err() {
            self.close.cancel();
            self.tasks.close();
            self.tasks.wait().await;
        }
        result
    }
}

/// Finds out who we are: from the data directory, from the initial cluster, or from the cluster we join.
async fn identify(
    config: &Config,
    data: &DataDir,
    tls: Option<&Arc<rustls::ClientConfig>>,
) -> Result<Identity> {
    let members = config.initial_members();
    let known = data.identity()?;
    if let Some(identity) = known {
        return Ok(identity);
    }
    match config.initial_cluster_state {
        ClusterState::New => {
            let ids = initial_ids(&members, &config.initial_cluster_token);
            let member_id = *ids.get(&config.name).context("the initial cluster does not name us")?;
            refuse_second_birth(config, &members, member_id, tls).await?;
            data.keep(member_id, cluster_id(&ids, &config.initial_cluster_token))
        }
        ClusterState::Existing => join(config, data, &members, tls).await,
    }
}

/// A voter that lost its disk must not vote again under its old name: it may have promised otherwise.
async fn refuse_second_birth(
    config: &Config,
    members: &BTreeMap<String, Vec<String>>,
    member_id: u64,
    tls: Option<&Arc<rustls::ClientConfig>>,
) -> Result<()> {
    for url in members.iter().filter(|(name, _)| **name != config.name).flat_map(|(_, urls)| urls) {
        let Ok(info) = peer::cluster_info(url, tls).await else { continue };
        let started =
            |member: &&keelson_store_core::Member| member.id == member_id && !member.client_urls.is_empty();
        if info.members.iter().any(|member| started(&member)) {
            bail!(
                "member {member_id:x} has already been bootstrapped; it lost its data: remove it with `etcdctl member \
                 remove {member_id:x}`, add it again, and start it with --initial-cluster-state=existing"
            );
        }
    }
    Ok(())
}

async fn join(
    config: &Config,
    data: &DataDir,
    members: &BTreeMap<String, Vec<String>>,
    tls: Option<&Arc<rustls::ClientConfig>>,
) -> Result<Identity> {
    let urls: Vec<&String> =
        members.iter().filter(|(name, _)| **name != config.name).flat_map(|(_, urls)| urls).collect();
    if urls.is_empty() {
        bail!(
            "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"
        );
    }
    let deadline = tokio::time::Instant::now() + JOIN;
    let mut last = String::new();
    loop {
        for url in &urls {
            let info = match peer::cluster_info(url, tls).await {
                Ok(info) => info,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            let ours = info.members.iter().find(|member| {
                member.peer_urls.iter().any(|url| config.initial_advertise_peer_urls.contains(url))
            });
            match ours {
                Some(member) if member.client_urls.is_empty() => {
                    return data.keep(member.id, info.cluster_id);
                }
                Some(member) => bail!(
                    "member {id:x} has already been bootstrapped; it lost its data: remove it with `etcdctl member \
                     remove {id:x}` and add it again",
                    id = member.id
                ),
                // A member just added may not be known there yet.
                None => {
                    last = format!(
                        "the cluster at {url} does not know {}: add it with `etcdctl member add {} --peer-urls={}`",
                        config.initial_advertise_peer_urls.join(","),
                        config.name,
                        config.initial_advertise_peer_urls.join(",")
                    );
                }
            }
        }
        if tokio::time::Instant::now() >= deadline {
            bail!(
                "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs \
                 ({last})"
            );
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Passes what is applied on to watchers and to the scrub.
struct Events {
    publisher: Mutex<Publisher<RevisionEvents>>,
    compacted: Arc<Notify>,
    facts: Arc<Facts>,
    tokens: Arc<Tokens>,
    member_id: u64,
    changes: Arc<Changes>,
}

impl Listener for Events {
    fn applied(&self, state: &State, events: Vec<RevisionEvents>, compacted: bool) {
        self.facts.note(state, self.member_id);
        if !events.is_empty() {
            self.changes.applied(&events);
            let mut publisher = self.publisher.lock().expect("no panic while locked");
            for group in events {
                let size = group.size();
                publisher.publish(group.revision as u64, Arc::new(group), size);
            }
        }
        if compacted {
            self.compacted.notify_one();
        }
    }

    fn tokens(&self, changes: Vec<TokenChange>) {
        self.tokens.follow(changes);
    }

    fn restored(&self, state: &State) {
        self.facts.note(state, self.member_id);
        self.publisher.lock().expect("no panic while locked").reset(state.revision() as u64);
        self.compacted.notify_one();
    }
}

/// A member whose replica runs, not yet served to anyone.
struct Opened {
    identity: Identity,
    replica: Arc<Member>,
    hub: Arc<Hub<RevisionEvents>>,
    metrics: Metrics,
    compacted: Arc<Notify>,
    facts: Arc<Facts>,
    tokens: Arc<Tokens>,
    traces: Option<Traces>,
    pristine: bool,
}

impl Opened {
    async fn open(
        config: &Config,
        data: &DataDir,
        identity: Identity,
        dial: Option<Arc<rustls::ClientConfig>>,
    ) -> Result<Opened> {
        let wal = config.wal_dir.clone().unwrap_or_else(|| data.folder.join("wal"));
        let disk = Arc::new(FileDisk::open(&wal, !config.unsafe_no_fsync).context("raft log")?);
        let metrics = Metrics::new(disk.stats.clone());
        let log = SegmentLog::open(disk)?;
        let pristine = log.is_pristine();
        if config.force_new_cluster {
            let peer_urls = config.initial_advertise_peer_urls.clone();
            let node = Node { name: config.name.clone(), peer_urls, promote: false };
            tracing::warn!("forcing a new cluster of this member alone; what only others knew is lost");
            log.make_alone(identity.member_id, node).await?;
        }
        let folder = data.folder.join("snap");
        let memory = config.memory;
        let backend = tokio::task::spawn_blocking(move || Rocks::open(&folder, memory)).await??;
        let (publisher, hub) = Hub::new(RING, RING_BYTES, 0);
        let compacted = Arc::new(Notify::new());
        let tokens = Arc::new(Tokens::new(&config.auth_token, config.auth_token_ttl)?);
        let traces = config.traces.as_ref().map(Traces::start).transpose()?;
        let facts = Arc::new(Facts::default());
        let events = Events {
            publisher: Mutex::new(publisher),
            compacted: compacted.clone(),
            facts: facts.clone(),
            tokens: tokens.clone(),
            member_id: identity.member_id,
            changes: metrics.changes(),
        };
        let transport = PeerTransport::new(identity.cluster_id, dial);
        let replica = Replica::<TokioRuntime, _, _>::start(
            replica_config(config, &identity),
            log,
            Arc::new(backend),
            Arc::new(transport),
            Arc::new(events),
        )
        .await?;
        Ok(Opened { identity, replica, hub, metrics, compacted, facts, tokens, traces, pristine })
    }

    /// In a new cluster the member with the smallest id forms the group; the others wait to hear of it.
    async fn form(&self, config: &Config) -> Result<()> {
        if !self.pristine || config.initial_cluster_state != ClusterState::New {
            return Ok(());
        }
        let members = config.initial_members();
        let ids = initial_ids(&members, &config.initial_cluster_token);
        if ids.values().min() != Some(&self.identity.member_id) {
            return Ok(());
        }
        let node = |name: &String| {
            let peer_urls = members.get(name).cloned().unwrap_or_default();
            Node { name: name.clone(), peer_urls, promote: false }
        };
        let nodes = ids.iter().map(|(name, id)| (*id, node(name))).collect();
        self.replica.initialize(nodes).await.context("forming the cluster")
    }

    fn serve(
        self,
        config: Config,
        clients: Vec<(Bound, Served)>,
        doors: Doors,
        stop: CancellationToken,
    ) -> (Running, watch::Receiver<bool>) {
        let scrubbed = Arc::new(Notify::new());
        let (ready_sender, ready) = watch::channel(false);
        let (interval, timeout) = (config.grpc_keepalive_interval, config.grpc_keepalive_timeout);
        let limits = Limits {
            streams: config.max_concurrent_streams,
            keep_alive: (!interval.is_zero() && !timeout.is_zero()).then_some((interval, timeout)),
        };
        let compaction = config.auto_compaction;
        let quota = Quota::new(config.quota());
        let inner = Inner {
            passwords: Passwords::new(config.bcrypt_cost),
            config,
            cluster_id: self.identity.cluster_id,
            replica: self.replica.clone(),
            hub: self.hub.clone(),
            scrubbed: scrubbed.clone(),
            ready: ready.clone(),
            facts: self.facts,
            traces: self.traces,
            quota,
            rewriting: Semaphore::new(1),
            tokens: self.tokens,
            proposals: Proposals::default(),
            streams: Arc::new(tokio::sync::Semaphore::new(range_stream::MOST)),
        };
        let handle = Handle { inner: Arc::new(inner), caller: Caller::Process };
        doors.peers.serve_with(handle.clone());
        // Whoever comes by a port is a client, and nobody until it shows who it is.
        let client = handle.in_the_name_of(None);
        let routes = service::routes(&client);
        let enabled = client.config().enable_grpc_gateway;
        let gateway = enabled.then(|| crate::http::gateway(&client, routes.clone(), &self.metrics));
        for (bound, served) in clients {
            let service = ClientService {
                handle: client.clone(),
                metrics: self.metrics.clone(),
                gateway: gateway.clone().filter(|_| served != Served::Monitoring),
                routes: matches!(served, Served::Both | Served::Grpc).then(|| routes.clone()),
                monitoring: served == Served::Monitoring,
                http: served != Served::Grpc,
                secure: bound.secure(),
            };
            doors.open(bound, service, limits);
        }
        let failed = Arc::new(Mutex::new(None));
        let background = CancellationToken::new();
        let until = |token: &CancellationToken, work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            tokio::spawn(token.clone().run_until_cancelled_owned(work));
        };
        let hub = self.hub.clone();
        until(&background, Box::pin(async move { hub.drive().await }));
        until(&background, Box::pin(scrub::run(self.replica.clone(), self.compacted.clone(), scrubbed)));
        until(&background, Box::pin(watch_leader(self.replica.clone(), self.metrics.clone())));
        until(&background, Box::pin(watch_addresses(self.replica.clone())));
        until(&background, Box::pin(watchdog(handle.clone(), failed.clone(), stop.clone())));
        until(&background, Box::pin(quota::run(handle.clone())));
        let interval = handle.config().compact_hash_check_time;
        until(&background, Box::pin(consistency::run(handle.clone(), interval)));
        until(&background, Box::pin(autocompact::run(handle.clone(), compaction)));
        until(&background, Box::pin(publish(handle.clone(), ready_sender)));
        (Running { handle, doors, background, stop, failed }, ready)
    }
}

fn replica_config(config: &Config, identity: &Identity) -> ReplicaConfig {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let raft = openraft::Config {
        cluster_name: format!("{:x}", identity.cluster_id),
        heartbeat_interval: millis(config.heartbeat_interval),
        // A follower stands for election after openraft's leader lease (the maximum) and then a random time between the
        // two: together 1.0 to 1.3 times the election timeout.
        election_timeout_min: millis(config.election_timeout * 7 / 20),
        election_timeout_max: millis(config.election_timeout * 13 / 20),
        install_snapshot_timeout: 600_000,
        max_payload_entries: 1024,
        snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(config.snapshot_count.max(1)),
        max_in_snapshot_log_to_keep: config.snapshot_catchup_entries,
        purge_batch_size: 256,
        ..openraft::Config::default()
    };
    ReplicaConfig { id: identity.member_id, raft, request_timeout: config.request_timeout() }
}

/// Tells the cluster our name and client URLs; once that is applied we are ready.
async fn publish(handle: Handle, ready: watch::Sender<bool>) {
    let id = handle.member_id();
    loop {
        let config = handle.config();
        let (name, client_urls) = (config.name.clone(), config.advertise_client_urls.clone());
        let current = handle.at_once(|state, _| {
            let ours = state.members().get(id);
            ours.is_some_and(|member| member.name == name && member.client_urls == client_urls)
        });
        let known = matches!(current.await, Ok(true)) && handle.linearize().await.is_ok();
        let published =
            known || handle.replica().propose(Command::MemberPublish { id, name, client_urls }).await.is_ok();
        if published {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tracing::info!(
        "local-member-id" = format!("{id:x}"),
        "cluster-id" = format!("{:x}", handle.cluster_id()),
        "published local member to cluster through raft"
    );
    tracing::info!("ready to serve client requests");
    ready.send_replace(true);
    // The receiver side lives as long as the store.
    ready.closed().await;
}

/// Keeps the transport's peer URLs those of the members.
async fn watch_addresses(replica: Arc<Member>) {
    let mut server = replica.raft.server_metrics();
    let mut known = Vec::new();
    loop {
        let members: Vec<(u64, Vec<String>)> = {
            let now = server.borrow_watched();
            let nodes = now.membership_config.membership().nodes();
            nodes.map(|(id, node)| (*id, node.peer_urls.clone())).collect()
        };
        if members != known {
            known.clone_from(&members);
            replica.transport.learn(members);
        }
        if server.changed().await.is_err() {
            return;
        }
    }
}

/// Counts and logs changes of leadership.
async fn watch_leader(replica: Arc<Member>, metrics: Metrics) {
    let mut server = replica.raft.server_metrics();
    let mut last = None;
    loop {
        let (leader, term) = {
            let now = server.borrow_watched();
            (now.current_leader, now.vote.leader_id.term)
        };
        if leader != last {
            last = leader;
            match leader {
                Some(leader) => {
                    metrics.leader_changed();
                    tracing::info!(
                        "local-member-id" = format!("{:x}", replica.id),
                        "leader" = format!("{leader:x}"),
                        term,
                        "raft.node: elected leader"
                    );
                }
                None => tracing::info!(term, "raft.node: lost leader"),
            }
        }
        if server.changed().await.is_err() {
            return;
        }
    }
}

/// Stops the member when it cannot go on: storage failed, or it was removed from the cluster.
async fn watchdog(handle: Handle, failed: Arc<Mutex<Option<String>>>, stop: CancellationToken) {
    let replica = handle.replica().clone();
    let mut was_member = false;
    let forgotten = handle.config().election_timeout * 2;
    loop {
        tokio::time::sleep(WATCHDOG).await;
        let state = replica.raft.metrics().borrow_watched().running_state.clone();
        let reason = match state {
            Err(error) => Some(format!("raft stopped: {error}; see the messages before this one")),
            Ok(()) => {
                let member = replica.shared.read(|state, _| state.members().get(replica.id).is_some());
                let mut removed = was_member && member == Some(false);
                was_member |= member == Some(true);
                if was_member && !replica.is_leader() && handle.inner.facts.silence() > forgotten {
                    removed |= removed_unheard(&handle).await;
                }
                removed.then(|| "the member has been permanently removed from the cluster".to_owned())
            }
        };
        if let Some(reason) = reason {
            failed.lock().expect("no panic while locked").get_or_insert(reason);
            stop.cancel();
            return;
        }
    }
}

/// Whether another member knows more than we do, and does not know us: nobody tells a member that it is removed when it
/// is not there at that moment.
async fn removed_unheard(handle: &Handle) -> bool {
    let us = handle.member_id();
    let Ok((members, applied)) = handle.at_once(|state, _| (state.members().to_vec(), state.applied())).await
    else {
        return false;
    };
    let tls = handle.replica().transport.tls.clone();
    for url in members.iter().filter(|member| member.id != us).flat_map(|member| &member.peer_urls) {
        let Ok(info) = peer::cluster_info(url, tls.as_ref()).await else { continue };
        let known = info.members.iter().any(|member| member.id == us);
        if info.cluster_id == handle.cluster_id() && info.applied > applied && !known {
            return true;
        }
    }
    false
}

/// A member that is served.
struct Running {
    handle: Handle,
    doors: Doors,
    background: CancellationToken,
    stop: CancellationToken,
    failed: Arc<Mutex<Option<String>>>,
}

impl Running {
    async fn until_stopped(self, data: DataDir) -> Result<(), String> {
        self.stop.cancelled().await;
        let failed = self.failed.lock().expect("no panic while locked").clone();
        let replica = self.handle.replica().clone();
        if failed.is_none() && replica.is_leader() {
            let moved = replica.hand_over(HAND_OVER).await;
            tracing::info!(moved, "leadership handed over before stopping");
        }
        self.background.cancel();
        self.doors.close.cancel();
        self.doors.tasks.close();
        self.doors.tasks.wait().await;
        replica.stop().await;
        if let Err(error) = replica.shared.backend.flush().await {
            tracing::warn!(%error, "the database could not be flushed; the raft log has what is missing");
        }
        // The lock on the data directory goes last.
        drop(data);
        match failed {
            Some(reason) => Err(reason),
            None => Ok(()),
        }
    }
}
