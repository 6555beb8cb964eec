//! HashKV: a checksum of the store up to a revision, equal on members whatever their scrub's progress, and equal to
//! etcd's over the same content, so that a mirror can be compared with its source.
//!
//! It is etcd's: crc32c over the name of its `key` bucket, then over each surviving change as etcd stores it (see
//! `portable`), in order of revision. Survivors are all changes after the compaction, and of those before it the ones
//! that a read at the hashed revision still shows.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::backend::{Cf, Read};
use crate::compact::scrubbed;
use crate::error::Error;
use crate::layout::{self, Kind, Revision};
use crate::portable;
use crate::range::entry_at;
use crate::state::State;

/// Answer of HashKV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HashKv {
    /// crc32c as etcd computes it.
    pub hash: u32,
    pub compact_revision: i64,
    /// The revision it speaks of.
    pub hash_revision: i64,
    /// The store's current revision.
    pub revision: i64,
}

/// What a hash begins with, so that an empty store has one.
const SEED: &[u8] = b"key";

/// Hashes everything at or before `revision` (0 = now) that compaction keeps.
/// Errors: revision compacted, or in the future.
pub fn hash_kv(state: &State, read: &dyn Read, revision: i64) -> Result<HashKv, Error> {
    if revision > state.revision {
        return Err(Error::FutureRevision);
    }
    if revision > 0 && revision < state.compact_revision {
        return Err(Error::Compacted);
    }
    let until = if revision == 0 { state.revision } else { revision };
    let answer = |hash| HashKv {
        hash,
        compact_revision: state.compact_revision,
        hash_revision: until,
        revision: state.revision,
    };
    let mut hash = crc32c::crc32c(SEED);
    if until < 0 {
        // As in etcd: nothing is so old.
        return Ok(answer(hash));
    }
    let compacted = state.compact_revision;
    // Before this revision a scrub has left one version of a key at most: it is shown unless one since has replaced it.
    let clean = if scrubbed(read) == compacted { compacted } else { 0 };
    let replaced = if clean > 0 { replaced(read, compacted, until) } else { BTreeSet::new() };
    let (mut stored_key, mut stored_value) = (Vec::new(), Vec::new());
    let to = Revision { main: until, sub: u32::MAX };
    let end = to.encode();
    read.scan(Cf::History, Bound::Unbounded, Bound::Included(&end), false, &mut |stored, record| {
        let at = Revision::decode(stored);
        let (kind, key) = layout::history_key(record);
        let survives = if at.main > compacted {
            true
        } else if at.main < clean {
            !replaced.contains(&at)
        } else {
            kind == Kind::Put && entry_at(read, key, to).is_some_and(|(newest, _)| newest == at)
        };
        if survives {
            let (kind, kv) = layout::decode_history(at.main, &Bytes::copy_from_slice(record));
            portable::encode(at, kind == Kind::Tombstone, &kv, &mut stored_key, &mut stored_value);
            hash = crc32c::crc32c_append(hash, &stored_key);
            hash = crc32c::crc32c_append(hash, &stored_value);
        }
        ControlFlow::Continue(())
    });
    Ok(answer(hash))
}

/// The versions at or before the compaction that a change after it has replaced: as many as keys were changed since.
fn replaced(read: &dyn Read, compacted: i64, until: i64) -> BTreeSet<Revision> {
    let mut replaced = BTreeSet::new();
    let from = Revision { main: compacted, sub: u32::MAX };
    let bounds = (from.encode(), Revision { main: until, sub: u32::MAX }.encode());
    let bounds = (Bound::Excluded(&bounds.0[..]), Bound::Included(&bounds.1[..]));
    read.scan(Cf::History, bounds.0, bounds.1, false, &mut |_, record| {
        let (_, key) = layout::history_key(record);
        replaced.extend(entry_at(read, key, from).map(|(older, _)| older));
        ControlFlow::Continue(())
    });
    replaced
}
