//! Whose turn it is: active → (popped) in flight → bound, or back through backoff or unschedulable.
//!
//! A state machine of pods and `now`; the shell sleeps until `next_wakeup`. A pod that failed waits in `unschedulable`
//! until an event that its refusing plugins' hints take for helpful, or for five minutes; then it passes through
//! backoff (1 s doubling to 10 s from its last failure). Events that arrive while a pod is in flight are kept and
//! looked at when it fails, so that none falls between decision and return.
//!
//! Hazard: `pop` must be followed by `done` (bound, or gone) or `failed`, else the kept events grow.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::events::ClusterEvent;
use crate::framework::Hint;
use crate::plugins::{PLUGINS, by_name};
use crate::pod::{PodInfo, Uid};

/// First wait after a failure.
pub const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// Longest wait after a failure.
pub const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// After this long an unschedulable pod is tried again without an event.
pub const LONGEST_UNSCHEDULABLE: Duration = Duration::from_secs(300);
/// At most this many events are kept for pods in flight; beyond, a failing pod is simply tried again.
const MOST_KEPT_EVENTS: usize = 4096;

/// Where a pod waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Active,
    /// Until this time.
    Backoff(Duration),
    /// Since this time.
    Unschedulable(Duration),
    /// A plugin keeps it out of the queue (scheduling gates).
    Gated,
    /// Popped; the number of the first event it may have missed.
    InFlight(u64),
}

#[derive(Clone, Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    place: Place,
    attempts: u32,
    failed_at: Duration,
    added: Duration,
    first_added: Duration,
    plugins: BTreeSet<&'static str>,
    /// Order in `active`, fixed when it enters.
    turn: Option<Turn>,
}

/// Higher priority first, then the one that waited longer.
type Turn = (Reverse<i32>, Duration, Uid);

/// A pod whose turn it is.
#[derive(Debug, Clone)]
pub struct Popped {
    pub pod: Arc<PodInfo>,
    /// This attempt's number, from 1.
    pub attempts: u32,
    /// When the pod was first seen.
    pub first_added: Duration,
}

/// The queue.
#[derive(Clone, Debug, Default)]
pub struct SchedulingQueue {
    entries: BTreeMap<Uid, Entry>,
    active: BTreeSet<Turn>,
    backoff: BTreeSet<(Duration, Uid)>,
    unschedulable: BTreeSet<(Duration, Uid)>,
    in_flight: BTreeMap<Uid, u64>,
    events: VecDeque<ClusterEvent>,
    /// The number of the first kept event.
    first_event: u64,
    overflowed: bool,
}

impl SchedulingQueue {
    /// A pod without a node was added, or changed. A change that may matter is tried at once.
    pub fn update(&mut self, pod: Arc<PodInfo>, now: Duration) {
        let uid = pod.uid.clone();
        let gated = !gates_open(&pod);
        let Some(entry) = self.entries.get_mut(&uid) else {
            let entry = Entry {
                pod,
                place: Place::Gated,
                attempts: 0,
                failed_at: Duration::ZERO,
                added: now,
                first_added: now,
                plugins: BTreeSet::new(),
                turn: None,
            };
            self.entries.insert(uid.clone(), entry);
            if !gated {
                self.put(&uid, Place::Active, now);
            }
            return;
        };
        let matters = matters(&entry.pod, &pod);
        let place = entry.place;
        entry.pod = pod;
        match place {
            Place::InFlight(_) => {}
            _ if gated => self.put(&uid, Place::Gated, now),
            Place::Gated => self.put(&uid, Place::Active, now),
            Place::Unschedulable(_) if matters => self.ready(&uid, now),
            // The turn holds the old priority.
            Place::Active => self.put(&uid, Place::Active, now),
            _ => {}
        }
    }

    /// A pod is gone, or has a node.
    pub fn remove(&mut self, uid: &str) {
        self.take(uid);
        self.entries.remove(uid);
        self.in_flight.remove(uid);
        self.drop_seen_events();
    }

    /// The next pod, if any is active.
    pub fn pop(&mut self) -> Option<Popped> {
        let (_, _, uid) = self.active.pop_first()?;
        let next_event = self.first_event + self.events.len() as u64;
        let entry = self.entries.get_mut(&uid)?;
        entry.turn = None;
        entry.place = Place::InFlight(next_event);
        entry.attempts += 1;
        let popped =
            Popped { pod: entry.pod.clone(), attempts: entry.attempts, first_added: entry.first_added };
        self.in_flight.insert(uid, next_event);
        Some(popped)
    }

    /// A popped pod was not placed. `plugins` refused it; empty = an error, to be tried again after backoff.
    pub fn failed(&mut self, uid: &str, plugins: BTreeSet<&'static str>, now: Duration) {
        let Some(since) = self.in_flight.remove(uid) else { return };
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.failed_at = now;
        entry.plugins = plugins;
        let pod = entry.pod.clone();
        let skip = since.saturating_sub(self.first_event) as usize;
        let missed = self.overflowed
            || since < self.first_event
            || self.events.iter().skip(skip).any(|event| helps(entry, event));
        if !gates_open(&pod) {
            self.put(uid, Place::Gated, now);
        } else if missed || self.entries.get(uid).is_some_and(|entry| entry.plugins.is_empty()) {
            self.ready(uid, now);
        } else {
            self.put(uid, Place::Unschedulable(now), now);
        }
        self.drop_seen_events();
    }

    /// A popped pod was bound, or needs no scheduling any more.
    pub fn done(&mut self, uid: &str) {
        self.remove(uid);
    }

    /// Something happened: wakes the unschedulable pods it may help. Returns how many.
    pub fn event(&mut self, event: ClusterEvent, now: Duration) -> usize {
        let woken: Vec<Uid> = self
            .unschedulable
            .iter()
            .filter(|(_, uid)| self.entries.get(uid).is_some_and(|entry| helps(entry, &event)))
            .map(|(_, uid)| uid.clone())
            .collect();
        for uid in &woken {
            self.ready(uid, now);
        }
        if !self.in_flight.is_empty() {
            self.events.push_back(event);
            if self.events.len() > MOST_KEPT_EVENTS {
                self.events.pop_front();
                self.first_event += 1;
                self.overflowed = true;
            }
        }
        woken.len()
    }

    /// Time passed: ends backoffs and overlong waits.
    pub fn tick(&mut self, now: Duration) {
        while let Some((until, uid)) = self.backoff.first().cloned().filter(|(until, _)| *until <= now) {
            debug_assert!(until <= now);
            self.put(&uid, Place::Active, now);
        }
        while let Some((_, uid)) = self
            .unschedulable
            .first()
            .cloned()
            .filter(|(since, _)| since.saturating_add(LONGEST_UNSCHEDULABLE) <= now)
        {
            self.ready(&uid, now);
        }
    }

    /// When `tick` next has something to do.
    pub fn next_wakeup(&self) -> Option<Duration> {
        let backoff = self.backoff.first().map(|(until, _)| *until);
        let flush = self.unschedulable.first().map(|(since, _)| since.saturating_add(LONGEST_UNSCHEDULABLE));
        backoff.into_iter().chain(flush).min()
    }

    /// Where a pod is.
    pub fn place(&self, uid: &str) -> Option<Place> {
        self.entries.get(uid).map(|entry| entry.place)
    }

    /// Active, backoff, unschedulable, gated pods: upstream's `scheduler_pending_pods`.
    pub fn pending(&self) -> [usize; 4] {
        let gated = self.entries.values().filter(|entry| entry.place == Place::Gated).count();
        [self.active.len(), self.backoff.len(), self.unschedulable.len(), gated]
    }

    /// To backoff if its time is not over yet, else to active.
    fn ready(&mut self, uid: &str, now: Duration) {
        let Some(entry) = self.entries.get(uid) else { return };
        let until = entry.failed_at.saturating_add(backoff(entry.attempts));
        let place = if until > now { Place::Backoff(until) } else { Place::Active };
        self.put(uid, place, now);
    }

    fn put(&mut self, uid: &str, place: Place, now: Duration) {
        self.take(uid);
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.place = place;
        match place {
            Place::Active => {
                if entry.attempts > 0 {
                    entry.added = now;
                }
                let turn = (Reverse(entry.pod.priority), entry.added, uid.to_string());
                entry.turn = Some(turn.clone());
                self.active.insert(turn);
            }
            Place::Backoff(until) => {
                self.backoff.insert((until, uid.to_string()));
            }
            Place::Unschedulable(since) => {
                self.unschedulable.insert((since, uid.to_string()));
            }
            Place::Gated | Place::InFlight(_) => {}
        }
    }

    /// Out of whatever ordered set it is in.
    fn take(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if let Some(turn) = entry.turn.take() {
            self.active.remove(&turn);
        }
        match entry.place {
            Place::Backoff(until) => {
                self.backoff.remove(&(until, uid.to_string()));
            }
            Place::Unschedulable(since) => {
                self.unschedulable.remove(&(since, uid.to_string()));
            }
            _ => {}
        }
    }

    /// Events that every pod in flight started after.
    fn drop_seen_events(&mut self) {
        let Some(oldest) = self.in_flight.values().copied().min() else {
            self.first_event += self.events.len() as u64;
            self.events.clear();
            self.overflowed = false;
            return;
        };
        while self.first_event < oldest && self.events.pop_front().is_some() {
            self.first_event += 1;
        }
    }
}

/// 1 s, 2 s, 4 s, 8 s, 10 s, 10 s, …
fn backoff(attempts: u32) -> Duration {
    let factor = 1u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST_BACKOFF.saturating_mul(factor).min(LONGEST_BACKOFF)
}

fn gates_open(pod: &PodInfo) -> bool {
    PLUGINS.iter().all(|plugin| plugin.pre_enqueue(pod).is_ok())
}

fn helps(entry: &Entry, event: &ClusterEvent) -> bool {
    entry.plugins.is_empty()
        || entry
            .plugins
            .iter()
            .filter_map(|name| by_name(name))
            .any(|plugin| plugin.hint(&entry.pod, event) == Hint::Queue)
}

/// A change of an unscheduled pod that could make it fit: anything but its status.
fn matters(before: &PodInfo, after: &PodInfo) -> bool {
    before.labels != after.labels
        || before.gates != after.gates
        || before.requests != after.requests
        || before.tolerations != after.tolerations
        || before.node_selector != after.node_selector
        || before.node_affinity != after.node_affinity
}
