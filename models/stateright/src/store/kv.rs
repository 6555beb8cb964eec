//! The key-value core under an adversarial life: one member follows every log of a small alphabet without disturbance,
//! a second one applies the same log late, restarts from its backend at any point, is fed entries again, gets the first
//! one's snapshot installed, and scrubs compacted history slice by slice with crashes in between.
//!
//! Shown for every reachable pair: equal state at equal index (S4), revisions never back and one per writing batch
//! (S6), every kept revision reads the same on both as it did when it was current (S8), the whole-store invariants
//! (S20, S21), HashKV equal whatever the scrub's progress (D5), and nothing a watcher may still ask for is scrubbed
//! (S15).
//!
//! Omitted: consensus itself (the log is given; S1–S3 belong to the simulation), a torn backend batch (writes are one
//! atomic batch by the shell's contract; the simulation's disk breaks that promise on purpose), values and keys beyond
//! the alphabet (the core compares keys bytewise only, and the property tests draw them freely).

use bytes::Bytes;
use keelson_store_core::compact::{Scrub, scrubbed};
use keelson_store_core::watch::{CatchUp, history};
use keelson_store_core::{
    Batch, Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, KeyValue, MemoryBackend,
    PutRequest, RangeRequest, RequestOp, RevisionEvents, Stamp, State, TxnRequest, apply, hash_kv,
    invariants, range,
};
use stateright::{Model, Property};

use crate::catalogue::{Bound, Report, explore};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    state: State,
    backend: MemoryBackend,
    scrub: Option<Scrub>,
}

/// What is observed when a revision is current, and must stay so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Witness {
    revision: i64,
    kvs: Vec<KeyValue>,
    events: RevisionEvents,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    log: Vec<Letter>,
    /// Applies each entry as it is appended; never scrubs.
    steady: Member,
    late: Member,
    witnesses: Vec<Witness>,
    /// A step broke a rule that needs both its sides to see.
    broken: Option<&'static str>,
    restarts: u8,
}

/// The alphabet of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Letter {
    PutA,
    PutBLeased,
    /// If `a` exists: delete all, then put `b`. Else put `a` and read it.
    Txn,
    /// Two commands of one batch: the second sees the first.
    PutThenDelete,
    Grant,
    /// Two seconds pass: the lease of [`Letter::Grant`] is over.
    Tick,
    /// At revision 3, when there is one.
    Compact,
    /// Must change nothing.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Append(Letter),
    /// The late member applies its next entry.
    Apply,
    /// The late member is fed an entry it has.
    Again(usize),
    Restart,
    /// The steady member's backend replaces the late one's.
    Install,
    Scrub,
}

const LETTERS: [Letter; 8] = [
    Letter::PutA,
    Letter::PutBLeased,
    Letter::Txn,
    Letter::PutThenDelete,
    Letter::Grant,
    Letter::Tick,
    Letter::Compact,
    Letter::Refused,
];

pub struct Kv {
    pub entries: usize,
    pub restarts: u8,
}

/// Runs the model.
pub fn run(bound: Bound) -> Report {
    let model = match bound {
        Bound::Smoke | Bound::Browse => Kv { entries: 4, restarts: 1 },
        Bound::Deep => Kv { entries: 6, restarts: 1 },
    };
    explore("store-kv", bound, model)
}

fn put(key: &'static str, lease: i64) -> PutRequest {
    PutRequest {
        key: Bytes::from_static(key.as_bytes()),
        value: Bytes::from_static(b"v"),
        lease,
        ..PutRequest::default()
    }
}

fn all() -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..RangeRequest::default()
    }
}

fn delete_all() -> DeleteRangeRequest {
    let RangeRequest { key, range_end, .. } = all();
    DeleteRangeRequest { key, range_end, prev_kv: true }
}

fn batch(letter: Letter, index: usize) -> Batch {
    let exists = Compare {
        key: Bytes::from_static(b"a"),
        range_end: Bytes::new(),
        result: CompareResult::Greater,
        target: CompareTarget::Version(0),
    };
    let commands = match letter {
        Letter::PutA => vec![Command::Put(put("a", 0))],
        Letter::PutBLeased => vec![Command::Put(put("b", 7))],
        Letter::Txn => vec![Command::Txn(TxnRequest {
            compare: vec![exists],
            success: vec![RequestOp::DeleteRange(delete_all()), RequestOp::Put(put("b", 0))],
            failure: vec![RequestOp::Put(put("a", 0)), RequestOp::Range(all())],
        })],
        Letter::PutThenDelete => vec![Command::Put(put("c", 0)), Command::DeleteRange(delete_all())],
        Letter::Grant => vec![Command::LeaseGrant { id: 7, ttl: 2 }],
        Letter::Tick => Vec::new(),
        Letter::Compact => vec![Command::Compact { revision: 3 }],
        Letter::Refused => vec![
            Command::Put(put("a", 99)),
            Command::LeaseRevoke { id: 99 },
            Command::Compact { revision: 1000 },
            Command::Txn(TxnRequest {
                success: vec![RequestOp::Put(put("a", 0)), RequestOp::Put(put("b", 99))],
                ..TxnRequest::default()
            }),
        ],
    };
    // Time stands still but for ticks, so that expiry happens only there.
    let millis = if letter == Letter::Tick { 2_000 * (index as u64 + 1) } else { 0 };
    Batch { stamp: Stamp { term: 1, millis }, commands }
}

impl Member {
    fn new() -> Member {
        Member { state: State::default(), backend: MemoryBackend::default(), scrub: None }
    }

    fn apply(&mut self, log: &[Letter], at: usize) -> Vec<RevisionEvents> {
        let effects = apply(&mut self.state, &self.backend, at as u64 + 1, &batch(log[at], at));
        self.backend.write(&effects.writes);
        effects.events
    }

    fn applied(&self) -> usize {
        self.state.applied() as usize
    }

    fn reads(&self, revision: i64) -> Result<Vec<KeyValue>, keelson_store_core::Error> {
        range(&self.state, &self.backend, &RangeRequest { revision, ..all() }).map(|response| response.kvs)
    }

    /// Every witness still within the compaction reads back whole, from reads and from watch history.
    fn agrees(&self, witnesses: &[Witness]) -> bool {
        let seen = witnesses.iter().filter(|witness| witness.revision <= self.state.revision());
        seen.filter(|witness| witness.revision >= self.state.compact_revision()).all(|witness| {
            let at = witness.revision;
            let past =
                history(&self.state, &self.backend, CatchUp { from: at, to: at, prev_kv: false }, usize::MAX);
            let events = witness.events.events.iter().map(|event| (event.kind, &event.kv));
            let found =
                past.revisions.iter().flat_map(|change| &change.events).map(|event| (event.kind, &event.kv));
            self.reads(at).as_ref() == Ok(&witness.kvs) && events.eq(found)
        })
    }
}

impl World {
    fn append(&mut self, letter: Letter) {
        self.log.push(letter);
        let before = self.steady.state.revision();
        for events in self.steady.apply(&self.log, self.log.len() - 1) {
            // A batch may write several revisions: what was current in between is read back from history.
            let kvs = self.steady.reads(events.revision).expect("a revision just written is readable");
            self.witnesses.push(Witness { revision: events.revision, kvs, events });
        }
        if letter == Letter::Refused && self.steady.state.revision() != before {
            self.broken = Some("a refused command wrote");
        }
    }
}

impl Model for Kv {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            log: Vec::new(),
            steady: Member::new(),
            late: Member::new(),
            witnesses: Vec::new(),
            broken: None,
            restarts: 0,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.log.len() < self.entries {
            steps.extend(LETTERS.map(Step::Append));
        }
        let applied = world.late.applied();
        if applied < world.log.len() {
            steps.push(Step::Apply);
            steps.push(Step::Install);
        }
        steps.extend((0..applied).map(Step::Again));
        if world.restarts < self.restarts {
            steps.push(Step::Restart);
        }
        if world.late.scrub.is_some() || Scrub::due(&world.late.state, &world.late.backend).is_some() {
            steps.push(Step::Scrub);
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        let late = &mut world.late;
        match step {
            Step::Append(letter) => world.append(letter),
            Step::Apply => {
                let at = late.applied();
                late.apply(&world.log, at);
            }
            Step::Again(at) => {
                late.apply(&world.log, at);
                if late != &last.late {
                    world.broken = Some("an entry applied twice changed something");
                }
            }
            Step::Restart => {
                late.state = State::load(&late.backend).expect("what was written loads");
                late.scrub = None;
                world.restarts += 1;
                if late.state != last.late.state {
                    world.broken = Some("a restart changed the state");
                }
            }
            Step::Install => {
                late.backend = world.steady.backend.clone();
                late.state = State::load(&late.backend).expect("a snapshot loads");
                late.scrub = None;
            }
            Step::Scrub => {
                let scrub = late.scrub.take().or_else(|| Scrub::due(&late.state, &late.backend));
                let slice = scrub.expect("offered only when due").slice(&late.backend, 1);
                late.backend.write(&slice.writes);
                late.scrub = slice.next;
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Kv>> {
        vec![
            Property::always("S4 equal index, equal state and hash", |_, world: &World| {
                let (a, b) = (&world.steady, &world.late);
                let hash = |member: &Member| hash_kv(&member.state, &member.backend, 0);
                a.applied() != b.applied() || (a.state == b.state && hash(a) == hash(b))
            }),
            Property::always("S6 one witness for each revision", |_, world: &World| {
                let revisions = world.witnesses.iter().map(|witness| witness.revision);
                revisions.eq(2..=world.steady.state.revision())
            }),
            Property::always("S8 S15 kept revisions read as they were", |_, world: &World| {
                world.steady.agrees(&world.witnesses) && world.late.agrees(&world.witnesses)
            }),
            Property::always("S8 compacted revisions are refused", |_, world: &World| {
                (1..world.late.state.compact_revision()).all(|revision| world.late.reads(revision).is_err())
            }),
            Property::always("S20 S21 whole-store invariants", |_, world: &World| {
                [&world.steady, &world.late]
                    .iter()
                    .all(|member| invariants::violated(&member.state, &member.backend).is_empty())
            }),
            Property::always("no step broke a rule", |_, world: &World| world.broken.is_none()),
            Property::sometimes("a scrub ran to its end and freed something", |_, world: &World| {
                scrubbed(&world.late.backend) > 0
                    && world.late.backend != world.steady.backend
                    && caught_up(world)
            }),
            Property::sometimes("a lease took its key along", |_, world: &World| {
                world.witnesses.iter().any(|witness| {
                    witness.events.events.iter().any(|event| {
                        event.prev_kv.as_ref().is_some_and(|prev| prev.lease == 7 && event.kv.version == 0)
                    })
                }) && world.log.last() == Some(&Letter::Tick)
            }),
            Property::sometimes("a restart in the midst of a scrub", |_, world: &World| {
                world.restarts > 0 && world.late.scrub.is_some()
            }),
        ]
    }
}

fn caught_up(world: &World) -> bool {
    world.late.applied() == world.steady.applied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apply_survives_duplicates_restarts_snapshots_and_scrubs() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 48_614, "the reach changed: look why, then set the new count");
    }
}
