//! Building a store from another's content (a snapshot file, another program's data), in pieces of bounded size.
//!
//! Order of duties: [`change`] for every kept change in order of revision, each written before the next that touches
//! its key; then [`indexes`] over the result; last [`head`], which makes it a state that `State::load` reads.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::auth::Auth;
use crate::backend::{Cf, Overlay, Read, Write};
use crate::command::LeaseId;
use crate::compact;
use crate::counts;
use crate::layout::{self, Kind, Revision};
use crate::lease::Lease;
use crate::members::{Member, Members};
use crate::response::KeyValue;
use crate::state::{Alarm, FIRST_REVISION, NEVER_COMPACTED, State};

/// Everything beside the changes themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Log position of the newest batch in it; see `apply`.
    pub applied: u64,
    /// Of the newest change, or more.
    pub revision: i64,
    /// Reads below it are refused; 0 or less = never compacted.
    pub compact_revision: i64,
    /// Up to which superseded versions are gone already; 0 = not known.
    pub scrubbed: i64,
    pub leases: Vec<RestoredLease>,
    pub alarms: Vec<Alarm>,
    pub members: Vec<Member>,
    pub auth: Auth,
}

/// A lease whose time goes on where it stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoredLease {
    pub id: LeaseId,
    /// Granted, in seconds.
    pub ttl: i64,
    /// Seconds left; 0 or less = all of them.
    pub remaining: i64,
}

/// The writes of one change.
pub fn change(at: Revision, tombstone: bool, kv: &KeyValue) -> [Write; 3] {
    let kind = if tombstone { Kind::Tombstone } else { Kind::Put };
    let current = (!tombstone).then(|| layout::encode_current(kv, at.sub));
    let revision = Bytes::copy_from_slice(&at.encode());
    let write = |cf, key, value| Write { cf, key, value };
    [
        write(Cf::Current, kv.key.clone(), current),
        write(Cf::History, revision, Some(layout::encode_history(kind, kv))),
        write(Cf::KeyHistory, layout::key_history(&kv.key, at), Some(layout::encode_kind(kind))),
    ]
}

/// Derives from the current keys what depends on all of them: counts, and the keys of each lease. A key whose lease is
/// not among `leases` is attached to none, as in etcd.
pub fn indexes(read: &dyn Read, leases: &[RestoredLease], emit: &mut dyn FnMut(Write)) {
    let mut known: Vec<LeaseId> = leases.iter().map(|lease| lease.id).collect();
    known.sort_unstable();
    let mut builder = counts::Builder::default();
    read.scan(Cf::Current, Bound::Unbounded, Bound::Unbounded, false, &mut |key, record| {
        builder.key(key, emit);
        let lease = layout::CurrentRef::decode(record).lease;
        if lease != 0 && known.binary_search(&lease).is_ok() {
            emit(Write { cf: Cf::LeaseKey, key: layout::lease_key(lease, key), value: Some(Bytes::new()) });
        }
        ControlFlow::Continue(())
    });
    builder.finish(emit);
}

/// The last writes.
pub fn head(head: &Head) -> Vec<Write> {
    let mut state = State {
        applied: head.applied,
        revision: head.revision.max(FIRST_REVISION).max(head.compact_revision),
        compact_revision: if head.compact_revision > 0 { head.compact_revision } else { NEVER_COMPACTED },
        alarms: head.alarms.iter().copied().collect(),
        members: Members::of(&head.members),
        auth: head.auth.clone(),
        ..State::default()
    };
    let nothing = crate::backend::MemoryBackend::default();
    let mut view = Overlay::new(&nothing);
    for lease in &head.leases {
        let left = if lease.remaining > 0 { lease.remaining } else { lease.ttl };
        let expiry = u64::try_from(left).unwrap_or(0).saturating_mul(1000);
        state.lessor.insert(lease.id, Lease { ttl: lease.ttl, expiry });
        view.put(Cf::Lease, layout::lease(lease.id), layout::encode_lease(lease.ttl, expiry));
    }
    state.write_head(&mut view);
    state.write_members(&mut view);
    state.write_alarms(&mut view);
    state.write_auth(&mut view);
    if head.scrubbed > 0 {
        compact::write_scrubbed(&mut view, head.scrubbed.min(state.compact_revision));
    }
    view.into_writes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend::MemoryBackend;

    fn put(key: &str, main: i64, lease: LeaseId) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            create_revision: main,
            mod_revision: main,
            version: 1,
            value: "v".into(),
            lease,
        }
    }

    #[test]
    fn a_restored_store_loads_and_holds_its_invariants() {
        let mut backend = MemoryBackend::default();
        for (main, key, lease, tombstone) in
            [(2, "a", 7, false), (3, "b", 9, false), (4, "b", 0, true), (5, "c", 8, false)]
        {
            backend.write(&change(Revision { main, sub: 0 }, tombstone, &put(key, main, lease)));
        }
        let head_of = Head {
            applied: 12,
            revision: 5,
            leases: vec![RestoredLease { id: 7, ttl: 60, remaining: 30 }],
            ..Head::default()
        };
        let mut derived = Vec::new();
        indexes(&backend, &head_of.leases, &mut |write| derived.push(write));
        backend.write(&derived);
        backend.write(&head(&head_of));
        let state = State::load(&backend).expect("it loads");
        assert_eq!((state.applied(), state.revision(), state.compact_revision()), (12, 5, NEVER_COMPACTED));
        assert_eq!(crate::state::lease_keys(&backend, 7), ["a"]);
        assert!(crate::state::lease_keys(&backend, 8).is_empty(), "nobody granted lease 8");
        assert_eq!(state.lessor().next_expiry(), Some(30_000));
        assert!(counts::are_exact(&backend));
    }

    proptest! {
        #[test]
        fn counts_are_exact_for_any_number_of_keys(keys in prop::collection::btree_set(0..70_000u32, 0..900)) {
            let mut backend = MemoryBackend::default();
            for (at, key) in keys.iter().enumerate() {
                let key = format!("{key:05}");
                let at = at as i64 + 2;
                backend.write(&change(Revision { main: at, sub: 0 }, false, &put(&key, at, 0)));
            }
            let mut derived = Vec::new();
            indexes(&backend, &[], &mut |write| derived.push(write));
            backend.write(&derived);
            prop_assert!(counts::are_exact(&backend));
            prop_assert_eq!(counts::between(&backend, b"", None), keys.len() as u64);
        }
    }
}
