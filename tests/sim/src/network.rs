//! The simulated network: every message takes seeded, virtual time, may be lost on its way there or back, and does not
//! cross a cut. Each direction of each link is its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use keelson_store_raft::backend::Chunks;
use keelson_store_raft::network::{Reply, Request, Transport, TransportError};
use keelson_store_raft::types::{SnapshotMeta, Vote};
use keelson_store_raft::{MemoryStore, Node, Replica};
use openraft::AsyncRuntime;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::judge::Shared;
use crate::runtime::Runtime;

/// A simulated member's replica.
pub type Member = Replica<Runtime, MemoryStore, SimTransport>;

/// The network of one run; clones share it.
#[derive(Clone)]
pub struct SimNetwork(Arc<Mutex<Inner>>);

struct Inner {
    random: SmallRng,
    /// Who runs, and in which incarnation: messages of an earlier one go nowhere.
    running: BTreeMap<u64, (u64, Arc<Member>)>,
    /// Directions that carry nothing.
    cut: BTreeSet<(u64, u64)>,
    /// Of a thousand messages, how many are lost.
    lost: u32,
    slowest: Duration,
    /// Who sent log entries as leader, by term (S1).
    leaders: BTreeMap<u64, u64>,
    two_leaders: Option<String>,
    shared: Shared,
}

impl SimNetwork {
    pub fn new(seed: u64, lost: u32, slowest: Duration, shared: Shared) -> SimNetwork {
        let random = SmallRng::seed_from_u64(seed);
        SimNetwork(Arc::new(Mutex::new(Inner {
            random,
            running: BTreeMap::new(),
            cut: BTreeSet::new(),
            lost,
            slowest,
            leaders: BTreeMap::new(),
            two_leaders: None,
            shared,
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic while locked")
    }

    pub fn join(&self, id: u64, incarnation: u64, member: Arc<Member>) {
        self.inner().running.insert(id, (incarnation, member));
    }

    pub fn leave(&self, id: u64) {
        self.inner().running.remove(&id);
    }

    pub fn cut(&self, from: u64, to: u64) {
        self.inner().cut.insert((from, to));
    }

    /// No cuts and no losses from here on.
    pub fn heal(&self) {
        let mut inner = self.inner();
        inner.cut.clear();
        inner.lost = 0;
    }

    pub fn mend_cuts(&self) {
        self.inner().cut.clear();
    }

    /// A member acts as the leader of a term.
    fn leads(&self, term: u64, id: u64) {
        let mut inner = self.inner();
        if !inner.leaders.contains_key(&term) {
            inner.shared.moment(id);
        }
        let known = *inner.leaders.entry(term).or_insert(id);
        if known != id {
            let story = format!("members {known} and {id} both lead term {term}");
            inner.two_leaders.get_or_insert(story);
        }
    }

    /// S1: the first term seen to have two leaders.
    pub fn two_leaders(&self) -> Option<String> {
        self.inner().two_leaders.clone()
    }

    /// How many terms have had a leader.
    pub fn terms(&self) -> usize {
        self.inner().leaders.len()
    }

    /// How long a message takes, or `None` when it is lost.
    fn fate(&self, from: u64, to: u64) -> Option<Duration> {
        let mut inner = self.inner();
        let longest = u64::try_from(inner.slowest.as_micros()).unwrap_or(u64::MAX).max(100);
        let takes = Duration::from_micros(inner.random.random_range(50..=longest));
        let lost = inner.random.random_range(0..1_000) < inner.lost;
        (!lost && !inner.cut.contains(&(from, to))).then_some(takes)
    }

    fn target(&self, id: u64) -> Option<Arc<Member>> {
        self.inner().running.get(&id).map(|(_, member)| member.clone())
    }

    fn current(&self, id: u64, incarnation: u64) -> bool {
        self.inner().running.get(&id).is_none_or(|(running, _)| *running == incarnation)
    }
}

/// One incarnation's way to its peers.
pub struct SimTransport {
    pub id: u64,
    pub incarnation: u64,
    pub network: SimNetwork,
}

impl SimTransport {
    /// The message's way there; the target when it arrives.
    async fn there(&self, target: u64, timeout: Duration) -> Result<Arc<Member>, TransportError> {
        let fate = self.network.fate(self.id, target).filter(|takes| *takes < timeout);
        let (Some(takes), true) = (fate, self.network.current(self.id, self.incarnation)) else {
            Runtime::sleep(timeout).await;
            return Err(TransportError::Timeout(timeout));
        };
        Runtime::sleep(takes).await;
        self.network.target(target).ok_or_else(|| TransportError::Unreachable(format!("{target} is down")))
    }

    /// The answer's way back.
    async fn back(&self, target: u64, timeout: Duration) -> Result<(), TransportError> {
        match self.network.fate(target, self.id).filter(|takes| *takes < timeout) {
            Some(takes) => {
                Runtime::sleep(takes).await;
                Ok(())
            }
            None => {
                Runtime::sleep(timeout).await;
                Err(TransportError::Timeout(timeout))
            }
        }
    }
}

impl Transport<Runtime> for SimTransport {
    async fn call(
        &self,
        target: u64,
        _: &Node,
        request: Request<Runtime>,
        timeout: Duration,
    ) -> Result<Reply<Runtime>, TransportError> {
        if let Request::Append(append) = &request {
            self.network.leads(append.vote.leader_id.term, self.id);
        }
        let member = self.there(target, timeout).await?;
        // The receiver goes on even when the sender no longer waits.
        let work = Runtime::spawn(async move { member.receive(request).await });
        let reply = match Runtime::timeout(timeout, work).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => return Err(TransportError::Broken(error.to_string())),
            Err(_) => return Err(TransportError::Timeout(timeout)),
        };
        self.back(target, timeout).await?;
        Ok(reply)
    }

    async fn snapshot(
        &self,
        target: u64,
        _: &Node,
        vote: Vote,
        meta: SnapshotMeta,
        chunks: Chunks,
    ) -> Result<Vote, TransportError> {
        let timeout = Duration::from_secs(10);
        let member = self.there(target, timeout).await?;
        let work = Runtime::spawn(async move { member.receive_snapshot(vote, meta, chunks).await });
        let answer = match Runtime::timeout(timeout, work).await {
            Ok(Ok(Ok(vote))) => vote,
            Ok(Ok(Err(error))) => return Err(TransportError::Broken(error.to_string())),
            Ok(Err(error)) => return Err(TransportError::Broken(error.to_string())),
            Err(_) => return Err(TransportError::Timeout(timeout)),
        };
        self.back(target, timeout).await?;
        Ok(answer)
    }
}
