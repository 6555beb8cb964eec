//! One watch stream over a store that writes, compacts and scrubs, with a ring so small that it laps the stream.
//!
//! The stream reads the live ring, falls behind, catches up from history one revision at a time (the reading and the
//! delivery of a stretch are separate steps: writes, compactions, laps and new watchers come in between), and is asked
//! for progress at any time.
//!
//! Shown for each watcher: what it got is a prefix of what it should get: filtered, ordered, without gap or repetition,
//! whole revisions (S9–S12, S15); progress speaks only of what was delivered (S13); a future start is silent until then
//! (S18); cancellation happens only when its next revision is compacted (S19); once everything is read, it has it all.
//!
//! Omitted: the hub's memory ordering (`models/loom` has that), fragmenting (it splits an answer and is unit-tested),
//! previous versions (property-tested), several streams (they share nothing but the ring).

use std::collections::BTreeMap;

use bytes::Bytes;
use keelson_store_core::compact::Scrub;
use keelson_store_core::watch::{History, NO_WATCHER, WatchCreate, WatchResponse, WatcherSet, history};
use keelson_store_core::{
    Batch, Command, DeleteRangeRequest, EventType, MemoryBackend, PutRequest, RequestOp, RevisionEvents,
    State, TxnRequest, WatchEvent, apply,
};
use stateright::{Model, Property};

use crate::catalogue::{Bound, Report, explore};

/// Revisions the ring holds.
const RING: usize = 1;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Seen {
    wish: Wish,
    start: i64,
    got: Vec<WatchEvent>,
    canceled: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    state: State,
    backend: MemoryBackend,
    index: u64,
    published: Vec<RevisionEvents>,
    stream: WatcherSet,
    /// Read from a snapshot, not yet delivered.
    in_hand: Option<History>,
    watchers: BTreeMap<i64, Seen>,
    asked: bool,
    progressed: bool,
    broken: Option<&'static str>,
}

/// What a watcher asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wish {
    KeyFromNow,
    AllFromStart,
    AllFromFuture,
    DeletesFromStart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    PutA,
    PutBoth,
    DeleteAll,
    /// At the current revision, and the whole scrub.
    Compact,
    Watch(Wish),
    /// Reads the ring: the next revision, or that it has been lapped.
    Pump,
    ReadHistory,
    Deliver,
    AskProgress,
}

pub struct Watch {
    pub writes: u64,
    pub watchers: usize,
}

/// Runs the model.
pub fn run(bound: Bound) -> Report {
    let model = match bound {
        Bound::Smoke | Bound::Browse => Watch { writes: 3, watchers: 2 },
        Bound::Deep => Watch { writes: 5, watchers: 2 },
    };
    explore("store-watch", bound, model)
}

fn key(name: &'static str) -> Bytes {
    Bytes::from_static(name.as_bytes())
}

fn put(name: &'static str) -> PutRequest {
    PutRequest { key: key(name), ..PutRequest::default() }
}

impl Wish {
    fn request(self) -> WatchCreate {
        let all = WatchCreate { key: key("\0"), range_end: key("\0"), ..WatchCreate::default() };
        match self {
            Wish::KeyFromNow => WatchCreate { key: key("a"), ..WatchCreate::default() },
            Wish::AllFromStart => WatchCreate { start_revision: 2, ..all },
            Wish::AllFromFuture => WatchCreate { start_revision: 4, ..all },
            Wish::DeletesFromStart => WatchCreate { start_revision: 1, no_put: true, ..all },
        }
    }

    fn wants(self, event: &WatchEvent) -> bool {
        match self {
            Wish::KeyFromNow => event.kv.key == "a",
            Wish::DeletesFromStart => event.kind == EventType::Delete,
            Wish::AllFromStart | Wish::AllFromFuture => true,
        }
    }
}

impl World {
    fn write(&mut self, command: Command) {
        self.index += 1;
        let batch = Batch { commands: vec![command], ..Batch::default() };
        let effects = apply(&mut self.state, &self.backend, self.index, &batch);
        self.backend.write(&effects.writes);
        self.published.extend(effects.events);
        while let Some(scrub) = Scrub::due(&self.state, &self.backend) {
            let slice = scrub.slice(&self.backend, 1000);
            self.backend.write(&slice.writes);
        }
    }

    fn expected(&self, seen: &Seen, through: i64) -> Vec<WatchEvent> {
        let changes = self.published.iter().filter(|c| c.revision >= seen.start && c.revision <= through);
        let events = changes.flat_map(|change| &change.events).filter(|event| seen.wish.wants(event));
        events.map(|event| WatchEvent { prev_kv: None, ..event.clone() }).collect()
    }

    fn pump(&mut self) {
        let newest = self.state.revision();
        let next = self.stream.position() + 1;
        if next <= newest - RING as i64 {
            let responses = self.stream.lag(newest);
            return self.receive(responses);
        }
        // The first revision is 2.
        let change = self.published[(next - 2) as usize].clone();
        let responses = self.stream.offer(&change);
        self.receive(responses);
    }

    fn receive(&mut self, responses: Vec<WatchResponse>) {
        for response in responses {
            if response.watch_id == NO_WATCHER {
                self.progressed = true;
                let complete = self
                    .watchers
                    .values()
                    .filter(|seen| !seen.canceled)
                    .all(|seen| self.expected(seen, response.revision).len() <= seen.got.len());
                if !complete {
                    self.broken = Some("S13 progress overtook a change");
                }
                continue;
            }
            let at = response.revision;
            let Some(mut seen) = self.watchers.remove(&response.watch_id) else {
                self.broken = Some("an answer to nobody");
                continue;
            };
            if response.canceled {
                seen.canceled = true;
                let had = seen.got.last().map_or(seen.start, |event| event.kv.mod_revision + 1);
                if response.compact_revision != self.state.compact_revision() && self.in_hand.is_none() {
                    self.broken = Some("a cancellation names another compaction");
                }
                if had >= response.compact_revision && seen.start >= response.compact_revision {
                    self.broken = Some("S19 canceled without need");
                }
            }
            if response.events.iter().any(|event| event.kv.mod_revision > at) {
                self.broken = Some("S13 an event is newer than its header");
            }
            seen.got.extend(response.events);
            if let Some(last) = seen.got.last() {
                let whole = self.expected(&seen, last.kv.mod_revision);
                if !seen.canceled && seen.got != whole {
                    self.broken =
                        Some("S9 S10 S11 S12 S15 S18: not a prefix, whole revisions, of what it should get");
                }
            }
            self.watchers.insert(response.watch_id, seen);
        }
    }

    /// Everything is read and delivered.
    fn quiet(&self) -> bool {
        self.stream.position() == self.state.revision() && self.stream.catch_up_from().is_none()
    }
}

impl Model for Watch {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let state = State::default();
        let stream = WatcherSet::new(state.revision(), 1 << 20);
        vec![World {
            state,
            backend: MemoryBackend::default(),
            index: 0,
            published: Vec::new(),
            stream,
            in_hand: None,
            watchers: BTreeMap::new(),
            asked: false,
            progressed: false,
            broken: None,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.index < self.writes {
            steps.extend([Step::PutA, Step::PutBoth, Step::DeleteAll]);
            if world.state.compact_revision() < world.state.revision() && world.state.revision() > 1 {
                steps.push(Step::Compact);
            }
        }
        if world.watchers.len() < self.watchers {
            let wishes = [Wish::KeyFromNow, Wish::AllFromStart, Wish::AllFromFuture, Wish::DeletesFromStart];
            steps.extend(wishes.map(Step::Watch));
        }
        if world.stream.position() < world.state.revision() {
            steps.push(Step::Pump);
        }
        if world.in_hand.is_none() && world.stream.catch_up_from().is_some() {
            steps.push(Step::ReadHistory);
        }
        if world.in_hand.is_some() {
            steps.push(Step::Deliver);
        }
        if !world.asked && world.watchers.values().any(|seen| !seen.canceled) {
            steps.push(Step::AskProgress);
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        let both = || TxnRequest {
            success: vec![RequestOp::Put(put("a")), RequestOp::Put(put("b"))],
            ..TxnRequest::default()
        };
        match step {
            Step::PutA => world.write(Command::Put(put("a"))),
            Step::PutBoth => world.write(Command::Txn(both())),
            Step::DeleteAll => world.write(Command::DeleteRange(DeleteRangeRequest {
                key: key("\0"),
                range_end: key("\0"),
                prev_kv: false,
            })),
            Step::Compact => world.write(Command::Compact { revision: last.state.revision() }),
            Step::Watch(wish) => {
                let request = wish.request();
                let asked_from = request.start_revision;
                let response = world.stream.create(request, world.state.revision());
                let start = if asked_from == 0 { response.revision + 1 } else { asked_from };
                let seen = Seen { wish, start, got: Vec::new(), canceled: false };
                world.watchers.insert(response.watch_id, seen);
            }
            Step::Pump => world.pump(),
            Step::ReadHistory => {
                let want = world.stream.catch_up_from().expect("offered only when wanted");
                world.in_hand = Some(history(&world.state, &world.backend, want, 1));
            }
            Step::Deliver => {
                let stretch = world.in_hand.clone().expect("offered only when read");
                let responses = world.stream.catch_up(&stretch);
                world.receive(responses);
                world.in_hand = None;
            }
            Step::AskProgress => {
                world.asked = true;
                let responses = world.stream.request_progress();
                world.receive(responses);
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Watch>> {
        vec![
            Property::always("no step broke a rule", |_, world: &World| world.broken.is_none()),
            Property::always("S15 when quiet, everyone has everything", |_, world: &World| {
                let live = || world.watchers.values().filter(|seen| !seen.canceled);
                !world.quiet() || live().all(|seen| seen.got == world.expected(seen, i64::MAX))
            }),
            Property::always("asked-for progress comes once all are synced", |_, world: &World| {
                !(world.quiet() && world.asked && !world.progressed)
                    || world.watchers.values().any(|s| s.canceled)
            }),
            Property::sometimes("a watcher was canceled by a compaction", |_, world: &World| {
                world.watchers.values().any(|seen| seen.canceled)
            }),
            Property::sometimes("a lapped stream caught up", |_, world: &World| {
                world.quiet() && world.watchers.values().any(|seen| seen.got.len() > 2)
            }),
            Property::sometimes("history arrives after a compaction passed it", |_, world: &World| {
                let stale = |h: &History| h.compact_revision < world.state.compact_revision();
                world.in_hand.as_ref().is_some_and(stale)
            }),
            Property::sometimes("a future watcher got its first change", |_, world: &World| {
                world.watchers.values().any(|seen| seen.wish == Wish::AllFromFuture && !seen.got.is_empty())
            }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchers_get_exactly_what_happened_through_laps_and_compactions() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 197_340, "the reach changed: look why, then set the new count");
    }
}
