//! Reads of the past while history is compacted at any revision and scrubbed slice by slice, with restarts in between.
//!
//! Shown at every kept revision, whatever has been scrubbed: a range reads as it did when it was current, with every
//! limit: the first keys, `more`, and the count of all (S8); what a watch started there would replay is what happened
//! (S15), previous versions only where every member still has them (S16); below the compaction revision a read is
//! refused, never answered short (S19); a restart in the midst of a scrub changes no answer (D5); a scrub ends, and
//! leaves one version of a live key and none of a dead one below the compaction revision.
//!
//! Omitted: transactions and leases (`store-kv` has them), sorting and filters (they work on what was fetched, and are
//! property-tested), more than two keys (the walk looks at one key's versions at a time).

use bytes::Bytes;
use keelson_store_core::compact::{Scrub, scrubbed};
use keelson_store_core::watch::{CatchUp, history};
use keelson_store_core::{
    Batch, Cf, Command, DeleteRangeRequest, Error, KeyValue, MemoryBackend, PutRequest, RangeRequest, Read,
    RevisionEvents, State, apply, invariants, range,
};
use stateright::{Model, Property};
use std::ops::{Bound as Edge, ControlFlow};

use crate::catalogue::{Bound, Report, explore};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Witness {
    kvs: Vec<KeyValue>,
    events: RevisionEvents,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    state: State,
    backend: MemoryBackend,
    index: u64,
    scrub: Option<Scrub>,
    /// By revision, from 2 on.
    witnesses: Vec<Witness>,
    restart_differs: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Put(&'static str),
    Delete(&'static str),
    Compact(i64),
    Slice,
    Restart,
}

pub struct Compaction {
    pub commands: u64,
}

/// Runs the model.
pub fn run(bound: Bound) -> Report {
    let model = match bound {
        Bound::Smoke | Bound::Browse => Compaction { commands: 6 },
        Bound::Deep => Compaction { commands: 8 },
    };
    explore("store-compaction", bound, model)
}

const KEYS: [&str; 2] = ["a", "b"];

fn all(revision: i64, limit: i64) -> RangeRequest {
    let everything = Bytes::from_static(b"\0");
    RangeRequest {
        key: everything.clone(),
        range_end: everything,
        revision,
        limit,
        ..RangeRequest::default()
    }
}

fn key(name: &'static str) -> Bytes {
    Bytes::from_static(name.as_bytes())
}

impl World {
    fn append(&mut self, command: Command) {
        self.index += 1;
        let batch = Batch { commands: vec![command], ..Batch::default() };
        let effects = apply(&mut self.state, &self.backend, self.index, &batch);
        self.backend.write(&effects.writes);
        for events in effects.events {
            let now = range(&self.state, &self.backend, &all(0, 0)).expect("now is always readable");
            self.witnesses.push(Witness { kvs: now.kvs, events });
        }
    }

    fn reads_are_exact(&self) -> bool {
        (2..).zip(&self.witnesses).all(|(revision, witness)| {
            if revision < self.state.compact_revision() {
                let refused = range(&self.state, &self.backend, &all(revision, 0)).err();
                return refused == Some(Error::Compacted);
            }
            let total = witness.kvs.len();
            let counted = RangeRequest { count_only: true, ..all(revision, 0) };
            let counted = range(&self.state, &self.backend, &counted);
            if counted.map(|found| (found.count, found.kvs.len())) != Ok((total as i64, 0)) {
                return false;
            }
            (0..=2).all(|limit| {
                let Ok(found) = range(&self.state, &self.backend, &all(revision, limit)) else {
                    return false;
                };
                let most = if limit == 0 { total } else { total.min(limit as usize) };
                found.kvs == witness.kvs[..most]
                    && found.count == total as i64
                    && found.more == (most < total)
            })
        })
    }

    /// S15 S16: from each kept revision a watch replays what happened.
    fn replays_are_exact(&self) -> bool {
        let (newest, compacted) = (self.state.revision(), self.state.compact_revision());
        (compacted.max(2)..=newest).all(|from| {
            let want = CatchUp { from, to: newest, prev_kv: true };
            let past = history(&self.state, &self.backend, want, usize::MAX);
            let expected = &self.witnesses[(from - 2) as usize..];
            past.revisions.len() == expected.len()
                && past.revisions.iter().zip(expected).all(|(found, witness)| {
                    let pairs = found.events.iter().zip(&witness.events.events);
                    found.revision == witness.events.revision
                        && pairs.clone().all(|(found, then)| (found.kind, &found.kv) == (then.kind, &then.kv))
                        && pairs.clone().all(|(found, then)| {
                            // What the compaction revision itself replaced may be gone on one member.
                            let known = found.kv.mod_revision > compacted;
                            found.prev_kv == then.prev_kv.clone().filter(|_| known)
                        })
                })
        })
    }

    /// Once nothing is due, what is dead below the compaction revision is gone.
    fn is_lean(&self) -> bool {
        if self.scrub.is_some() || Scrub::due(&self.state, &self.backend).is_some() {
            return true;
        }
        let mut versions = 0;
        self.backend.scan(Cf::History, Edge::Unbounded, Edge::Unbounded, false, &mut |_, _| {
            versions += 1;
            ControlFlow::Continue(())
        });
        let compacted = self.state.compact_revision().max(1);
        let since = self.state.revision() - compacted;
        // Each key's version then, what the compaction revision itself replaced, and every change since.
        versions <= since as usize + KEYS.len() + 1
    }
}

impl Model for Compaction {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            state: State::default(),
            backend: MemoryBackend::default(),
            index: 0,
            scrub: None,
            witnesses: Vec::new(),
            restart_differs: false,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.index < self.commands {
            steps.extend(KEYS.map(Step::Put));
            steps.extend(KEYS.map(Step::Delete));
            let (from, to) = (world.state.compact_revision().max(1) + 1, world.state.revision());
            steps.extend((from..=to).map(Step::Compact));
        }
        if world.scrub.is_some() || Scrub::due(&world.state, &world.backend).is_some() {
            steps.push(Step::Slice);
            steps.push(Step::Restart);
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        match step {
            Step::Put(name) => {
                world.append(Command::Put(PutRequest { key: key(name), ..PutRequest::default() }))
            }
            Step::Delete(name) => {
                let delete = DeleteRangeRequest { key: key(name), ..DeleteRangeRequest::default() };
                world.append(Command::DeleteRange(delete));
            }
            Step::Compact(revision) => world.append(Command::Compact { revision }),
            Step::Slice => {
                let scrub = world.scrub.take().or_else(|| Scrub::due(&world.state, &world.backend));
                let slice = scrub.expect("offered only when due").slice(&world.backend, 1);
                world.backend.write(&slice.writes);
                world.scrub = slice.next;
            }
            Step::Restart => {
                world.state = State::load(&world.backend).expect("what was written loads");
                world.scrub = None;
                world.restart_differs = world.state != last.state;
            }
        }
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Compaction>> {
        vec![
            Property::always("S8 S19 reads of the past are exact or refused", |_, world: &World| {
                world.reads_are_exact()
            }),
            Property::always("S15 S16 replays of the past are exact", |_, world: &World| {
                world.replays_are_exact()
            }),
            Property::always("D5 a restart changes nothing", |_, world: &World| !world.restart_differs),
            Property::always("a finished scrub leaves nothing dead", |_, world: &World| world.is_lean()),
            Property::always("S8 S21 whole-store invariants", |_, world: &World| {
                invariants::violated(&world.state, &world.backend).is_empty()
            }),
            Property::sometimes("a second compaction was scrubbed", |_, world: &World| {
                world.scrub.is_none() && scrubbed(&world.backend) > 3
            }),
            Property::sometimes("a scrub outlived by a restart", |_, world: &World| {
                let due = Scrub::due(&world.state, &world.backend);
                due.is_some() && world.witnesses.len() >= 3 && world.scrub.is_none()
            }),
            Property::sometimes("everything is dead and gone", |_, world: &World| {
                let empty =
                    range(&world.state, &world.backend, &all(0, 0)).is_ok_and(|found| found.count == 0);
                empty && scrubbed(&world.backend) > 2
            }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_reads_as_it_was_whatever_is_scrubbed() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 10_047, "the reach changed: look why, then set the new count");
    }
}
