//! One member of the Raft group: openraft with our log, state machine and network, and the tasks around it.
//!
//! Tasks: the proposer, the read-index rounds, and `attend`, which on the leader ticks lease time and makes caught-up
//! learners voters that asked for it. All end when `stop` is called.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelson_store_core::{Command, Error, Response, Stamp};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, InitializeError, RaftError};
use openraft::vote::RaftLeaderId as _;
use openraft::{AsyncRuntime, ChangeMembers, Config, Instant as _, ServerState};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::backend::{Backend, Chunks};
use crate::log::{Disk, SegmentLog};
use crate::machine::{Listener, Shared, SnapshotData, StateMachine};
use crate::network::{MemberChange, Network, Reply, Request, Transport};
use crate::proposer::{self, Proposer};
use crate::reads::{self, Reads};
use crate::trim;
use crate::types::{Applied, Node, SnapshotMeta, TypeConfig, Vote};

/// openraft with our types.
pub type Raft<R, B> = openraft::Raft<TypeConfig<R>, StateMachine<B>>;

/// How often the leader looks after leases and learners.
const ATTEND: Duration = Duration::from_millis(500);

/// What a replica is started with.
pub struct ReplicaConfig {
    /// Our own id.
    pub id: u64,
    /// openraft's settings; timers in milliseconds.
    pub raft: Config,
    /// How long a write or a read index may take altogether.
    pub request_timeout: Duration,
}

/// Why a replica did not start.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The state cannot be loaded.
    #[error("state: {0}")]
    State(#[from] io::Error),
    /// openraft's own configuration check.
    #[error("raft timers: {0}; the election timeout must be several times the heartbeat interval")]
    Config(String),
    /// Raft refused the stored log or state.
    #[error("raft: {0}")]
    Raft(String),
}

/// One running member.
pub struct Replica<R: AsyncRuntime, B: Backend, T> {
    /// Our own id.
    pub id: u64,
    /// openraft itself, for metrics and triggers.
    pub raft: Raft<R, B>,
    /// State and backend, for reads.
    pub shared: Arc<Shared<B>>,
    /// The way to peers.
    pub transport: Arc<T>,
    /// Writes.
    pub proposer: Proposer,
    /// Linearizable reads.
    pub reads: Reads,
    election: Duration,
    request_timeout: Duration,
    /// The term we lead and since when, for lease time.
    office: Mutex<Option<(u64, Instant)>>,
    /// Who last sent us entries or a heartbeat, and when.
    heard: Mutex<Option<(u64, Instant)>>,
    stopping: watch::Sender<bool>,
}

impl<R, B, T> Replica<R, B, T>
where
    R: AsyncRuntime,
    B: Backend,
    T: Transport<R>,
{
    /// Opens the state, starts openraft and the tasks.
    ///
    /// # Errors
    /// State that does not load, timers that make no sense, a log and state that contradict each other.
    pub async fn start<D: Disk>(
        config: ReplicaConfig,
        log: SegmentLog<D>,
        backend: Arc<B>,
        transport: Arc<T>,
        listener: Arc<dyn Listener>,
    ) -> Result<Arc<Replica<R, B, T>>, ReplicaError> {
        // A leader that resumes its term after a restart knows its first entry, but not how far it had committed: its
        // read index could lie before an acknowledged write (found by the simulator). It must be elected again.
        let raft_config =
            Config { enable_leader_restore: Some(false), enable_pre_vote: Some(true), ..config.raft };
        #[cfg(feature = "planted")]
        let raft_config = Config { enable_leader_restore: Some(keelson_plant::is(40)), ..raft_config };
        let raft_config = raft_config.validate().map_err(|error| ReplicaError::Config(error.to_string()))?;
        let election = Duration::from_millis(raft_config.election_timeout_max);
        let machine = StateMachine::open(backend, listener)?;
        let shared = machine.shared();
        log.settle(machine.last_applied()).map_err(|error| ReplicaError::Raft(error.to_string()))?;
        let network = Network::<T, B, R>::new(config.id, transport.clone());
        let trimmed = log.clone();
        let raft = Raft::<R, B>::new(config.id, Arc::new(raft_config), network, log, machine)
            .await
            .map_err(|error| ReplicaError::Raft(error.to_string()))?;
        let (proposer, jobs) = Proposer::new(config.request_timeout);
        let (reads, waiters) = Reads::new(config.request_timeout);
        let replica = Arc::new(Replica {
            id: config.id,
            raft,
            shared,
            transport,
            proposer,
            reads,
            election,
            request_timeout: config.request_timeout,
            office: Mutex::new(None),
            heard: Mutex::new(None),
            stopping: watch::Sender::new(false),
        });
        replica.task(proposer::run(replica.clone(), jobs));
        replica.task(reads::run(replica.clone(), waiters));
        replica.task(attend(replica.clone()));
        replica.task(trim::run(replica.clone(), trimmed));
        if replica.voters() == BTreeSet::from([replica.id]) {
            // Nobody else could be elected: there is nothing to wait for.
            let elected = replica.raft.trigger().elect(false).await;
            elected.map_err(|error| ReplicaError::Raft(error.to_string()))?;
        }
        Ok(replica)
    }

    /// Runs a task until `stop`.
    fn task(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut stopping = self.stopping.subscribe();
        drop(R::spawn(async move {
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => {}
                () = work => {}
            }
        }));
    }

    /// Forms a new group of these members. Exactly one of them is asked to.
    ///
    /// # Errors
    /// We are not among them; stopped. A group that exists already is success.
    pub async fn initialize(&self, members: BTreeMap<u64, Node>) -> Result<(), ReplicaError> {
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(ReplicaError::Raft(error.to_string())),
        }
    }

    /// Whether we lead, as far as we know.
    pub fn is_leader(&self) -> bool {
        self.raft.server_metrics().borrow_watched().state == ServerState::Leader
    }

    /// Another member that leads, as far as we know.
    pub fn leader(&self) -> Option<(u64, Node)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader.filter(|leader| *leader != self.id)?;
        let node = metrics.membership_config.membership().get_node(&leader)?.clone();
        Some((leader, node))
    }

    /// Whoever leads, ourselves included; 0 when unknown, when we lead nobody any more, or when the leader has been
    /// silent for so long that a quorum would have elected another (with pre-vote, a follower that reaches no quorum
    /// stays in the leader's term).
    pub fn leader_id(&self) -> u64 {
        let leader = self.raft.server_metrics().borrow_watched().current_leader.unwrap_or(0);
        let there = if leader == self.id { self.has_quorum() } else { self.heard_lately(leader) };
        if there { leader } else { 0 }
    }

    fn heard_lately(&self, leader: u64) -> bool {
        let heard = *self.heard.lock().expect("no panic while locked");
        heard.is_some_and(|(from, at)| from == leader && at.elapsed() < self.election * 2)
    }

    fn hear(&self, vote: &Vote) {
        let from = *vote.leader_id.node_id();
        *self.heard.lock().expect("no panic while locked") = Some((from, Instant::now()));
    }

    /// As leader: whether a quorum has answered within the time after which it would have elected another.
    fn has_quorum(&self) -> bool {
        let acknowledged = self.raft.data_metrics().borrow_watched().last_quorum_acked;
        // A leader just elected has had the quorum's votes.
        acknowledged.is_none_or(|at| at.elapsed() < self.election * 2)
            || self.voters() == BTreeSet::from([self.id])
    }

    /// Raft's term.
    pub fn term(&self) -> u64 {
        self.raft.server_metrics().borrow_watched().vote.leader_id.term
    }

    /// Index of the newest entry known to be committed.
    pub fn committed(&self) -> u64 {
        self.raft.data_metrics().borrow_watched().local_committed.map_or(0, |id| id.index)
    }

    /// How long one message may stay without an answer.
    pub fn patience(&self) -> Duration {
        self.election
    }

    /// Lease time now, if we lead: milliseconds since we took office in this term.
    pub fn stamp(&self) -> Option<Stamp> {
        // State and term at one moment: another leader's term is not ours to count in.
        let (leads, term) = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            (metrics.state == ServerState::Leader, metrics.vote.leader_id.term)
        };
        if !leads || !self.has_quorum() {
            return None;
        }
        let now = Instant::now();
        let mut office = self.office.lock().expect("no panic while locked");
        let since = match *office {
            Some((known, since)) if known == term => since,
            _ => {
                *office = Some((term, now));
                now
            }
        };
        let millis = now.saturating_duration_since(since).as_millis();
        Some(Stamp { term, millis: u64::try_from(millis).unwrap_or(u64::MAX) })
    }

    /// Answers a peer.
    pub async fn receive(&self, request: Request<R>) -> Reply<R> {
        let answer = match request {
            Request::Append(append) => {
                self.hear(&append.vote);
                self.raft.append_entries(append).await.map(Reply::Append)
            }
            Request::Vote(vote) => self.raft.vote(vote).await.map(Reply::Vote),
            Request::PreVote(vote) => self.raft.pre_vote(vote).await.map(Reply::Vote),
            Request::TransferLeader(transfer) => {
                let answer = self.raft.handle_transfer_leader(transfer).await;
                answer.map(Reply::TransferLeader).map_err(RaftError::Fatal)
            }
            Request::Forward(_) | Request::ReadIndex | Request::Change(_) if !self.is_leader() => {
                return match request {
                    Request::Forward(_) => Reply::Forward(Err(Error::NotLeader)),
                    Request::ReadIndex => Reply::ReadIndex(Err(Error::NotLeader)),
                    _ => Reply::Change(Err(Error::NotLeader)),
                };
            }
            Request::Forward(commands) => Ok(Reply::Forward(self.take_forwarded(commands).await)),
            Request::ReadIndex => Ok(Reply::ReadIndex(self.reads.index().await)),
            Request::Change(change) => Ok(Reply::Change(self.change_here(change).await)),
        };
        answer.unwrap_or_else(|error: RaftError<TypeConfig<R>>| Reply::Stopped(error.to_string()))
    }

    async fn take_forwarded(&self, commands: Vec<Command>) -> Result<Applied, Error> {
        self.proposer.propose_all(commands).await
    }

    /// Takes a peer's snapshot in and installs it; answers our vote.
    ///
    /// # Errors
    /// The stream is broken or corrupt (nothing is changed); stopped.
    pub async fn receive_snapshot(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        chunks: Chunks,
    ) -> Result<Vote, ReplicaError> {
        self.hear(&vote);
        let incoming = self.shared.backend.receive(chunks).await?;
        let snapshot = openraft::storage::Snapshot { meta, snapshot: SnapshotData::Incoming(incoming) };
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        installed.map(|answer| answer.vote).map_err(|error| ReplicaError::Raft(error.to_string()))
    }

    /// One command through the log.
    ///
    /// # Errors
    /// The command's own refusal; no leader, leader changed, timeout, stopped.
    pub async fn propose(&self, command: Command) -> Result<(u64, Response), Error> {
        self.proposer.propose(command).await
    }

    /// Returns when a read here sees everything acknowledged before the call.
    ///
    /// # Errors
    /// No leader, timeout, stopped.
    pub async fn read_index(&self) -> Result<(), Error> {
        let index = self.reads.index().await?.index;
        let applied = self.shared.wait_applied(index);
        tokio::time::timeout(self.request_timeout, applied)
            .await
            .unwrap_or(Err(Error::TimeoutWaitAppliedIndex))
    }

    /// Changes the membership, here or through the leader.
    ///
    /// # Errors
    /// The change's own refusal; no leader, timeout, stopped.
    pub async fn change(&self, change: MemberChange, timeout: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.is_leader() {
                match tokio::time::timeout(left, self.change_here(change.clone())).await {
                    Ok(Err(Error::NotLeader)) => {}
                    Ok(answer) => return answer,
                    Err(_) => return Err(Error::Timeout),
                }
            } else if let Some((leader, node)) = self.leader() {
                match self.transport.call(leader, &node, Request::Change(change.clone()), left).await {
                    Ok(Reply::Change(Err(Error::NotLeader))) => {}
                    Ok(Reply::Change(answer)) => return answer,
                    Ok(_) | Err(_) => return Err(Error::TimeoutDueToConnectionLost),
                }
            }
            if left.is_zero() {
                return Err(Error::NoLeader);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn change_here(&self, change: MemberChange) -> Result<(), Error> {
        let (changes, retain) = match change {
            MemberChange::Add { id, node } => {
                if self.node(id).is_some() {
                    return Err(Error::MemberExists);
                }
                (ChangeMembers::AddNodes(BTreeMap::from([(id, node)])), true)
            }
            MemberChange::Promote { id } => {
                let node = self.node(id).ok_or(Error::MemberNotFound)?;
                if node.promote || self.voters().contains(&id) {
                    return Err(Error::NotLearner);
                }
                if !self.caught_up(id) {
                    return Err(Error::LearnerNotReady);
                }
                (ChangeMembers::AddVoterIds(BTreeSet::from([id])), true)
            }
            MemberChange::Remove { id } => {
                self.node(id).ok_or(Error::MemberNotFound)?;
                if self.voters().contains(&id) {
                    (ChangeMembers::RemoveVoters(BTreeSet::from([id])), false)
                } else {
                    (ChangeMembers::RemoveNodes(BTreeSet::from([id])), true)
                }
            }
            MemberChange::Update { id, peer_urls } => {
                let node = self.node(id).ok_or(Error::MemberNotFound)?;
                (ChangeMembers::SetNodes(BTreeMap::from([(id, Node { peer_urls, ..node })])), true)
            }
        };
        self.submit_change(changes, retain).await
    }

    async fn submit_change(&self, changes: ChangeMembers<u64, Node>, retain: bool) -> Result<(), Error> {
        match self.raft.change_membership(changes, retain).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(Error::NotLeader),
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => Err(Error::LeaderChanged),
            Err(RaftError::APIError(error)) => {
                tracing::warn!(%error, "membership change refused");
                Err(Error::Unhealthy)
            }
            Err(RaftError::Fatal(_)) => Err(Error::Stopped),
        }
    }

    fn node(&self, id: u64) -> Option<Node> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&id).cloned()
    }

    /// Ids of the members whose vote counts.
    pub fn voters(&self) -> BTreeSet<u64> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().voter_ids().collect()
    }

    /// Whether a peer has nearly all of our log (nine tenths, as in etcd); only the leader knows.
    pub fn caught_up(&self, id: u64) -> bool {
        let metrics = self.raft.data_metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log.map_or(0, |id| id.index);
        let matched =
            metrics.replication.as_ref().and_then(|replication| replication.get(&id).copied().flatten());
        matched.is_some_and(|matched| matched.index.saturating_mul(10) >= last.saturating_mul(9))
    }

    /// Hands leadership to the voter that has most of our log, if we lead and there is another; returns once somebody
    /// else leads or `patience` is over. Answers whether leadership moved.
    pub async fn hand_over(&self, patience: Duration) -> bool {
        if !self.is_leader() {
            return true;
        }
        let voters = self.voters();
        let best = {
            let metrics = self.raft.data_metrics();
            let metrics = metrics.borrow_watched();
            let replication = metrics.replication.clone().unwrap_or_default();
            voters
                .into_iter()
                .filter(|voter| *voter != self.id)
                .max_by_key(|voter| replication.get(voter).copied().flatten().map(|id| id.index))
        };
        match best {
            Some(best) => self.transfer(best, patience).await.is_ok(),
            None => false,
        }
    }

    /// Hands leadership to one voter.
    ///
    /// # Errors
    /// We do not lead; it is no voter; it did not take over in time.
    pub async fn transfer(&self, target: u64, patience: Duration) -> Result<(), Error> {
        if !self.is_leader() {
            return Err(Error::NotLeader);
        }
        if target == self.id {
            return Ok(());
        }
        if !self.voters().contains(&target) {
            return Err(Error::BadLeaderTransferee);
        }
        self.raft.trigger().transfer_leader(target).await.map_err(|_: Fatal<_>| Error::Stopped)?;
        let mut metrics = self.raft.server_metrics();
        let moved = async {
            while metrics.borrow_watched().current_leader != Some(target) {
                if metrics.changed().await.is_err() {
                    return Err(Error::Stopped);
                }
            }
            Ok(())
        };
        tokio::time::timeout(patience, moved).await.unwrap_or(Err(Error::TimeoutDueToLeaderFail))
    }

    /// Ends the tasks and openraft. The log and backend are closed when the last reference is dropped.
    pub async fn stop(&self) {
        self.stopping.send_replace(true);
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop cleanly");
        }
    }
}

/// The leader's chores.
async fn attend<R, B, T>(replica: Arc<Replica<R, B, T>>)
where
    R: AsyncRuntime,
    B: Backend,
    T: Transport<R>,
{
    loop {
        tokio::time::sleep(ATTEND).await;
        if !replica.is_leader() {
            continue;
        }
        let leases = replica.shared.read(|state, _| !state.lessor().is_empty()).unwrap_or(false);
        if leases && let Err(error) = replica.proposer.propose_all(Vec::new()).await {
            tracing::debug!(%error, "lease time could not be advanced");
        }
        let waiting: Vec<u64> = {
            let metrics = replica.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            let membership = metrics.membership_config.membership();
            let learners = membership.learner_ids();
            learners.filter(|id| membership.get_node(id).is_some_and(|node| node.promote)).collect()
        };
        for id in waiting {
            if replica.caught_up(id) {
                let changes = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
                if let Err(error) = replica.submit_change(changes, true).await {
                    tracing::warn!(%error, member = format_args!("{id:x}"), "a new member could not be made a voter");
                }
            }
        }
    }
}
