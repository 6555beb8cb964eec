//! Leases under leader changes, clock skew, and proposals that arrive twice or late.
//!
//! Real time passes in seconds; each leader counts its own clock from the moment it took office, and may read it up to
//! [`SKEW`] too far. Any batch ever proposed may enter the log again (a retry, or a deposed leader's message). A member
//! restarts from its backend at any point.
//!
//! Shown: a lease and its key are not gone before a full TTL of real time after the last grant or keep-alive was
//! proposed, less the skew of the leaders there were (S20), be it logged or answered from what is there already; with a leader ticking they are gone soon after; key and
//! lease go together; a restart changes nothing.
//!
//! Omitted: which entries survive an election (dropping a proposal is the same as never proposing it), several leases
//! (they do not touch one another; the bound on expiries per batch is unit-tested), sub-second timing (the lessor only
//! compares sums).

use bytes::Bytes;
use keelson_store_core::lease::Kept;
use keelson_store_core::{
    Batch, Command, MemoryBackend, PutRequest, Response, Stamp, State, apply, invariants,
};
use stateright::{Model, Property};

use crate::catalogue::{Bound, Report, explore};

const ID: i64 = 7;
const TTL: i64 = 2;
/// Milliseconds by which a leader's clock may run ahead during its term.
const SKEW: u64 = 400;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// Seconds of real time.
    real: u64,
    term: u64,
    /// When the present leader took office.
    office: u64,
    state: State,
    backend: MemoryBackend,
    log_length: u64,
    proposed: Vec<Batch>,
    /// Real milliseconds until which a client may count on the lease.
    promised: u64,
    early: bool,
    restart_differs: bool,
    expired: bool,
    /// A keep-alive was answered without the log.
    asked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    Tick,
    Grant,
    KeepAlive,
    PutLeased,
    Revoke,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Second,
    Propose {
        request: Request,
        ahead: bool,
    },
    /// A batch proposed before enters the log again.
    Again(usize),
    Elect,
    Restart,
    /// A keep-alive that may be answered without the log.
    Ask {
        ahead: bool,
    },
}

pub struct Leases {
    pub seconds: u64,
    pub terms: u64,
    pub log: u64,
}

/// Runs the model.
pub fn run(bound: Bound) -> Report {
    let model = match bound {
        Bound::Smoke | Bound::Browse => Leases { seconds: 4, terms: 2, log: 3 },
        Bound::Deep => Leases { seconds: 6, terms: 3, log: 5 },
    };
    explore("store-lease", bound, model)
}

impl Request {
    fn commands(self) -> Vec<Command> {
        let key = Bytes::from_static(b"k");
        match self {
            Request::Tick => Vec::new(),
            Request::Grant => vec![Command::LeaseGrant { id: ID, ttl: TTL }],
            Request::KeepAlive => vec![Command::LeaseKeepAlive { id: ID }],
            Request::PutLeased => vec![Command::Put(PutRequest { key, lease: ID, ..PutRequest::default() })],
            Request::Revoke => vec![Command::LeaseRevoke { id: ID }],
        }
    }
}

impl World {
    fn stamp(&self, seconds: u64, ahead: bool) -> Stamp {
        let skew = if ahead { SKEW } else { 0 };
        Stamp { term: self.term, millis: (seconds - self.office) * 1000 + skew }
    }

    /// A client is told that the lease lives, and counts from now.
    fn promise(&mut self) {
        self.promised = self.real * 1000 + TTL as u64 * 1000;
        // Told so in the very batch that ended it.
        self.early |= self.state.lessor().get(ID).is_none();
    }

    /// Appends and applies. `fresh`: its client counts from now.
    fn append(&mut self, batch: &Batch, fresh: bool) {
        self.log_length += 1;
        let effects = apply(&mut self.state, &self.backend, self.log_length, batch);
        self.backend.write(&effects.writes);
        if effects.expired.contains(&ID) {
            self.expired = true;
            // Each leader's clock may have given away its skew once.
            let skew = SKEW * self.term;
            self.early |= self.real * 1000 + skew < self.promised;
        }
        let renewed = effects.responses.iter().any(|response| match response {
            Ok(Response::LeaseGrant { ttl, .. } | Response::LeaseKeepAlive { ttl, .. }) => *ttl > 0,
            _ => false,
        });
        if renewed && fresh {
            self.promise();
        }
    }

    /// What a ticking leader brings about once the longest promise is over.
    fn ends(&self) -> bool {
        let mut world = self.clone();
        world.real += TTL as u64;
        let commands = Request::Tick.commands();
        let batch = Batch { stamp: world.stamp(world.real, false), commands };
        world.append(&batch, true);
        // Lease time stood still between leaders at most for the seconds that passed without a stamp.
        world.real += world.real;
        let batch = Batch { stamp: world.stamp(world.real, false), commands: Vec::new() };
        world.append(&batch, true);
        world.state.lessor().is_empty()
    }
}

impl Model for Leases {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            real: 0,
            term: 1,
            office: 0,
            state: State::default(),
            backend: MemoryBackend::default(),
            log_length: 0,
            proposed: Vec::new(),
            promised: 0,
            early: false,
            restart_differs: false,
            expired: false,
            asked: false,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.real < self.seconds {
            steps.push(Step::Second);
        }
        if world.term < self.terms {
            steps.push(Step::Elect);
        }
        if world.log_length < self.log {
            for request in [Request::Grant, Request::KeepAlive, Request::PutLeased, Request::Revoke] {
                steps.push(Step::Propose { request, ahead: false });
            }
            // A clock that runs ahead matters when it ends leases; a renewal by it only promises less.
            steps.extend([false, true].map(|ahead| Step::Propose { request: Request::Tick, ahead }));
            steps.extend((0..world.proposed.len()).map(Step::Again));
        }
        steps.push(Step::Restart);
        steps.extend([false, true].map(|ahead| Step::Ask { ahead }));
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        match step {
            Step::Second => world.real += 1,
            Step::Elect => {
                world.term += 1;
                world.office = world.real;
            }
            Step::Propose { request, ahead } => {
                let batch = Batch { stamp: world.stamp(world.real, ahead), commands: request.commands() };
                world.append(&batch, true);
                world.proposed.push(batch);
            }
            Step::Again(at) => {
                let batch = world.proposed[at].clone();
                world.append(&batch, false);
            }
            Step::Ask { ahead } => {
                let kept = world.state.lessor().kept(ID, world.stamp(world.real, ahead));
                if !matches!(kept, Kept::Lasting { .. }) {
                    return None;
                }
                world.promise();
                world.asked = true;
            }
            Step::Restart => {
                world.state = State::load(&world.backend).expect("what was written loads");
                // A state nothing was ever written to loads as the first one.
                world.restart_differs = world.state != last.state;
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Leases>> {
        vec![
            Property::always("S20 not before its TTL", |_, world: &World| !world.early),
            Property::always("S20 with a ticking leader it ends", |_, world: &World| world.ends()),
            Property::always("S20 key and lease go together", |_, world: &World| {
                invariants::violated(&world.state, &world.backend).is_empty()
            }),
            Property::always("a restart changes nothing", |_, world: &World| !world.restart_differs),
            Property::sometimes("a lease outlives its TTL through a leader change", |_, world: &World| {
                world.term > 1 && world.real * 1000 > world.promised && !world.state.lessor().is_empty()
            }),
            Property::sometimes("a lease expires and takes its key", |_, world: &World| {
                world.expired && world.state.revision() > 2
            }),
            Property::sometimes("a keep-alive needs no log", |_, world: &World| {
                world.asked && world.real > 0
            }),
            Property::sometimes("a lease expires under a second leader", |_, world: &World| {
                world.expired && world.term > 1
            }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lives_its_ttl_through_leader_changes_skew_and_retries() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 211_476, "the reach changed: look why, then set the new count");
    }
}
