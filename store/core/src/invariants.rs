//! Named predicates over the state, each with its property id (docs/verification.md): one definition for production
//! assertions, property tests, models and the simulator.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::apply::Effects;
use crate::backend::{Cf, Read};
use crate::layout::{self, CurrentRef, Kind, Revision};
use crate::state::State;

/// A predicate over the whole store, for tests and models: walks everything.
pub struct Invariant {
    /// Property id.
    pub id: &'static str,
    pub name: &'static str,
    pub holds: fn(&State, &dyn Read) -> bool,
}

/// All whole-store invariants.
pub const ALL: &[Invariant] = &[
    Invariant {
        id: "S4",
        name: "state is what the backend restores",
        holds: state_is_what_the_backend_restores,
    },
    Invariant {
        id: "S6",
        name: "no change is newer than the revision",
        holds: no_change_is_newer_than_the_revision,
    },
    Invariant { id: "S8", name: "current is the newest of history", holds: current_is_the_newest_of_history },
    Invariant { id: "S8", name: "counts are exact", holds: counts_are_exact },
    Invariant { id: "S20", name: "attached keys name their lease", holds: attached_keys_name_their_lease },
    Invariant { id: "S21", name: "history and index agree", holds: history_and_index_agree },
];

/// The invariants that do not hold.
pub fn violated(state: &State, read: &dyn Read) -> Vec<&'static Invariant> {
    ALL.iter().filter(|invariant| !(invariant.holds)(state, read)).collect()
}

/// Checked on every batch in production (S6): revisions never go back and rise by exactly one per event group.
pub(crate) fn assert_step(before: (i64, i64), state: &State, effects: &Effects) {
    let (revision, compacted) = before;
    let groups = effects.events.iter().map(|group| group.revision);
    assert!(groups.eq(revision + 1..=state.revision), "S6: one event group per new revision");
    assert!(effects.events.iter().all(|group| !group.events.is_empty()), "S12: a revision has events");
    assert!(state.compact_revision >= compacted, "S19: compaction never goes back");
    assert!(state.compact_revision <= state.revision, "S19: compaction stays within history");
}

fn all(read: &dyn Read, cf: Cf, mut visit: impl FnMut(&[u8], &[u8]) -> bool) -> bool {
    let mut holds = true;
    read.scan(cf, Bound::Unbounded, Bound::Unbounded, false, &mut |key, value| {
        holds = visit(key, value);
        if holds { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    holds
}

/// S4: a restart changes nothing.
pub fn state_is_what_the_backend_restores(state: &State, read: &dyn Read) -> bool {
    // A backend never written to restores the empty state.
    State::load(read).as_ref() == Ok(state) && state.lessor().is_consistent()
}

/// S6.
pub fn no_change_is_newer_than_the_revision(state: &State, read: &dyn Read) -> bool {
    all(read, Cf::History, |key, _| {
        let main = Revision::decode(key).main;
        main > crate::state::FIRST_REVISION && main <= state.revision()
    })
}

/// S8: the two ways to read now agree, in both directions.
pub fn current_is_the_newest_of_history(_: &State, read: &dyn Read) -> bool {
    let mut newest: BTreeMap<Bytes, (Revision, Kind)> = BTreeMap::new();
    all(read, Cf::KeyHistory, |stored, record| {
        let (escaped, at) = layout::split_key_history(stored);
        newest.insert(layout::user_key(escaped), (at, layout::decode_kind(record)));
        true
    });
    newest.retain(|_, (_, kind)| *kind == Kind::Put);
    let mut seen = 0;
    let same = all(read, Cf::Current, |key, record| {
        seen += 1;
        let current = CurrentRef::decode(record);
        let at = Revision { main: current.mod_revision, sub: current.sub };
        newest.get(key) == Some(&(at, Kind::Put)) && {
            let old = crate::range::history(read, at).1;
            old == current.to_kv(Bytes::copy_from_slice(key), Bytes::copy_from_slice(current.value))
        }
    });
    same && seen == newest.len()
}

/// S8: a count without a walk is what a walk would count.
pub fn counts_are_exact(_: &State, read: &dyn Read) -> bool {
    crate::counts::are_exact(read)
}

/// S20: a key names a lease exactly when that lease exists and lists the key.
pub fn attached_keys_name_their_lease(state: &State, read: &dyn Read) -> bool {
    let mut attached = 0;
    let listed = all(read, Cf::LeaseKey, |stored, _| {
        attached += 1;
        let (id, key) = stored.split_at(8);
        let id = layout::decode_lease(id);
        let names = read.get(Cf::Current, key).is_some_and(|record| CurrentRef::decode(&record).lease == id);
        state.lessor().get(id).is_some() && names
    });
    let mut naming = 0;
    all(read, Cf::Current, |_, record| {
        naming += usize::from(CurrentRef::decode(record).lease != 0);
        true
    });
    listed && attached == naming
}

/// S21: every change is in both history families, whole.
pub fn history_and_index_agree(_: &State, read: &dyn Read) -> bool {
    let mut changes = 0;
    let indexed = all(read, Cf::History, |stored, record| {
        changes += 1;
        let (kind, key) = layout::history_key(record);
        let index = read.get(Cf::KeyHistory, &layout::key_history(key, Revision::decode(stored)));
        index.is_some_and(|index| layout::decode_kind(&index) == kind)
    });
    let mut entries = 0;
    all(read, Cf::KeyHistory, |_, _| {
        entries += 1;
        true
    });
    indexed && changes == entries
}
