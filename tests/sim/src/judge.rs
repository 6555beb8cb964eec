//! What is checked while a run goes on: every member's every applied entry, against what any member applied before.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, Once};

use bytes::Bytes;
use keelson_store_core::{EventType, RevisionEvents, State};
use keelson_store_raft::Listener;
use tokio::sync::{Notify, watch};

use keelson_checker::{Log, Operation, Time, Violation};

/// Keys from here on hang on the lease of the same number, less this.
pub const LEASED: u64 = 1 << 40;
/// The key of the write that shows that the healed cluster accepts writes.
pub const PROBE: u64 = u64::MAX - 1;

/// What all parts of a run write to.
#[derive(Default)]
pub struct Record {
    pub history: Vec<Operation>,
    pub log: Log,
    /// Revision -> its changes and their hash, from whichever member came first.
    revisions: BTreeMap<i64, (u64, RevisionEvents)>,
    /// Applied index -> hash of the state after it, likewise.
    states: BTreeMap<u64, u64>,
    /// Lease -> until when its client may count on it, in microseconds.
    pub promised: BTreeMap<i64, Time>,
    pub expired: usize,
    /// Lease -> when its end was first applied.
    ended: BTreeMap<i64, Time>,
    violation: Option<Violation>,
    pub trace: Vec<String>,
    /// Who has just come to where a crash tells most: elected, or a snapshot installed.
    moment: Option<u64>,
    pub compactions: usize,
    pub old_reads: usize,
    pub crashes: usize,
    pub cuts: usize,
}

impl Record {
    /// The newest revision any member has applied.
    pub fn newest(&self) -> i64 {
        self.revisions.last_key_value().map_or(1, |(revision, _)| *revision)
    }

    /// What happened from a revision up to another.
    pub fn changes(&self, from: i64, to: i64) -> impl Iterator<Item = &RevisionEvents> {
        let here = self.revisions.range(from..).take_while(move |(revision, _)| **revision <= to);
        here.map(|(_, (_, events))| events)
    }
}

/// A run's record and clock; clones share it.
#[derive(Clone)]
pub struct Shared {
    record: Arc<Mutex<Record>>,
    moments: Arc<Notify>,
    /// Member -> the revision it has shown its watchers, and how often it has lost them all.
    shown: Arc<Mutex<BTreeMap<u64, watch::Sender<(i64, u32)>>>>,
    pub started: tokio::time::Instant,
}

thread_local! {
    /// The first panic on this thread since a run began: an assertion of the shipped code that did not hold.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// tokio catches what a task panics with; the hook remembers it for the run.
fn remember_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANIC.with(|panic| {
                panic.borrow_mut().get_or_insert_with(|| info.to_string());
            });
            usual(info);
        }));
    });
    PANIC.with(|panic| panic.borrow_mut().take());
}

impl Shared {
    /// Begins a run, now, on this thread.
    pub fn begin() -> Shared {
        remember_panics();
        Shared {
            record: Arc::default(),
            moments: Arc::default(),
            shown: Arc::default(),
            started: tokio::time::Instant::now(),
        }
    }

    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no panic while locked")
    }

    pub fn now(&self) -> Time {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub fn trace(&self, line: String) {
        let now = self.now();
        self.record().trace.push(format!("{now:>10} {line}"));
    }

    pub fn violated(&self, property: &'static str, story: String) {
        self.record().violation.get_or_insert(Violation { property, story });
    }

    /// The first violation so far.
    pub fn violation(&self) -> Option<Violation> {
        let seen = self.record().violation.clone();
        seen.or_else(|| {
            let story = PANIC.with(|panic| panic.borrow().clone())?;
            Some(Violation { property: "assertion", story })
        })
    }

    /// What a member has shown its watchers.
    pub fn shown(&self, id: u64) -> watch::Sender<(i64, u32)> {
        let mut shown = self.shown.lock().expect("no panic while locked");
        shown.entry(id).or_insert_with(|| watch::Sender::new((0, 0))).clone()
    }

    /// A member has come to a point where a crash tells most.
    pub fn moment(&self, id: u64) {
        self.record().moment = Some(id);
        self.moments.notify_one();
    }

    /// Waits for such a point.
    pub async fn next_moment(&self) -> u64 {
        loop {
            self.moments.notified().await;
            if let Some(id) = self.record().moment.take() {
                return id;
            }
        }
    }

    /// A lease was granted or renewed by a request sent at `invoked`.
    pub fn promise(&self, lease: i64, invoked: Time, seconds: i64) {
        let until = invoked + seconds.unsigned_abs() * 1_000_000;
        let mut record = self.record();
        let promised = record.promised.entry(lease).or_default();
        *promised = until.max(*promised);
        if let Some(ended) = record.ended.get(&lease).copied().filter(|ended| *ended < until) {
            let story =
                format!("lease {lease} was answered alive until {until} us and had ended at {ended} us");
            record.violation.get_or_insert(Violation { property: "S20", story });
        }
    }
}

/// Listens to one incarnation of one member.
pub struct Judge {
    id: u64,
    shared: Shared,
    /// The revision whose changes watchers must be shown next; none before the state is loaded.
    next: Mutex<Option<i64>>,
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Judge {
    pub fn new(id: u64, shared: Shared) -> Judge {
        Judge { id, shared, next: Mutex::new(None) }
    }

    /// S15: a member shows its watchers every revision, in order.
    fn follows(&self, group: &RevisionEvents) {
        let mut next = self.next.lock().expect("no panic while locked");
        if next.is_none_or(|next| group.revision != next) {
            let story = format!("member {} shows revision {}, expected {next:?}", self.id, group.revision);
            self.shared.violated("S15", story);
        }
        *next = Some(group.revision + 1);
    }

    /// S5, and what the clients' history is judged by.
    fn record(&self, group: &RevisionEvents) {
        let now = self.shared.now();
        let mut record = self.shared.record();
        let mine = hash(group);
        let mut first = false;
        let known = record.revisions.entry(group.revision).or_insert_with(|| {
            first = true;
            (mine, group.clone())
        });
        let known = known.0;
        if known != mine {
            drop(record);
            let story =
                format!("member {} has {:?} at {}, another has not", self.id, group.events, group.revision);
            return self.shared.violated("S5", story);
        }
        for event in group.events.iter().filter(|_| first) {
            let key = number(&event.kv.key);
            match event.kind {
                EventType::Put if key < LEASED => {
                    record.log.insert(group.revision, (key, number(&event.kv.value)));
                }
                EventType::Put => {}
                EventType::Delete => {
                    record.expired += 1;
                    let lease = key.wrapping_sub(LEASED) as i64;
                    record.ended.entry(lease).or_insert(now);
                    let promised = record.promised.get(&lease).copied().unwrap_or(0);
                    if now < promised {
                        let story = format!("lease {lease} ended {} us early", promised - now);
                        record.violation.get_or_insert(Violation { property: "S20", story });
                    }
                }
            }
        }
    }
}

impl Listener for Judge {
    fn applied(&self, state: &State, events: Vec<RevisionEvents>, compacted: bool) {
        self.shared.record().compactions += usize::from(compacted);
        for group in &events {
            self.follows(group);
            self.record(group);
        }
        let mine = hash(state);
        let known = *self.shared.record().states.entry(state.applied()).or_insert(mine);
        if known != mine {
            self.shared.violated("S4", format!("member {} differs after entry {}", self.id, state.applied()));
        }
        self.shared.shown(self.id).send_modify(|(revision, _)| *revision = state.revision());
        self.shared.trace(format!("m{} applied {} revision {}", self.id, state.applied(), state.revision()));
    }

    fn restored(&self, state: &State) {
        let before = self.next.lock().expect("no panic while locked").replace(state.revision() + 1);
        if before.is_some() {
            self.shared.moment(self.id);
        }
        self.shared.shown(self.id).send_modify(|(revision, lost)| {
            *revision = state.revision();
            *lost += 1;
        });
        self.shared.trace(format!("m{} restored {} revision {}", self.id, state.applied(), state.revision()));
    }
}

/// Keys and values are numbers of eight bytes.
pub fn bytes(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

pub fn number(bytes: &Bytes) -> u64 {
    bytes.as_ref().try_into().map_or(u64::MAX, u64::from_be_bytes)
}
