//! HashKV: a checksum of the store up to a revision, equal on members whatever their scrub's progress.

use std::ops::{Bound, ControlFlow};

use crate::backend::{Cf, Read};
use crate::error::Error;
use crate::layout::{self, Kind, Revision};
use crate::state::State;

/// Answer of HashKV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HashKv {
    /// crc32c over the surviving (key, revision, record) triples in key order.
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
    let seed = crc32c::crc32c(SEED);
    let mut hasher = Hasher { read, compacted: state.compact_revision, hash: seed, pending: None };
    let mut key: Vec<u8> = Vec::new();
    read.scan(Cf::KeyHistory, Bound::Unbounded, Bound::Unbounded, false, &mut |stored, record| {
        let (escaped, at) = layout::split_key_history(stored);
        if escaped != key {
            hasher.finish(&key);
            key.clear();
            key.extend_from_slice(escaped);
        }
        if at.main <= until {
            hasher.entry(&key, at, layout::decode_kind(record));
        }
        ControlFlow::Continue(())
    });
    hasher.finish(&key);
    Ok(HashKv {
        hash: hasher.hash,
        compact_revision: state.compact_revision,
        hash_revision: until,
        revision: state.revision,
    })
}

struct Hasher<'a> {
    read: &'a dyn Read,
    compacted: i64,
    hash: u32,
    /// The newest version of the key before the compaction, until a later one replaces it.
    pending: Option<(Revision, Kind)>,
}

impl Hasher<'_> {
    fn entry(&mut self, key: &[u8], at: Revision, kind: Kind) {
        if at.main < self.compacted {
            self.pending = Some((at, kind));
            return;
        }
        if at.main == self.compacted {
            // Supersedes what is pending; the compaction revision itself stays whole.
            self.pending = None;
        }
        self.finish(key);
        self.add(key, at);
    }

    /// Counts the pending version, the one compaction leaves, unless it is a tombstone.
    fn finish(&mut self, key: &[u8]) {
        if let Some((at, Kind::Put)) = self.pending.take() {
            self.add(key, at);
        }
    }

    fn add(&mut self, key: &[u8], at: Revision) {
        let record = self.read.get(Cf::History, &at.encode());
        let record = record.expect("corrupt store: the index names a missing revision; restore this member");
        for part in [key, &at.encode(), &record] {
            self.hash = crc32c::crc32c_append(self.hash, part);
        }
    }
}
