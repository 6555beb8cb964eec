//! Compaction: the command moves `compact_revision` at once; the space comes back by a scrub the shell drives.
//!
//! A scrub visits only what changed since the last one: each change at or before the compaction revision supersedes the
//! version of its key before it, which goes; a tombstone goes too. The compaction revision itself stays whole, since a
//! watcher may still start there (its dead go with the next scrub). Ascending order makes a scrub safe to stop and
//! restart anywhere: a version goes no later than the one that supersedes it. Progress is each member's own and not
//! part of the replicated state; nothing a client can ask depends on it.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::backend::{Cf, Overlay, Read, Write};
use crate::layout::{self, Kind, Revision};
use crate::range::entry_at;
use crate::state::State;

const SCRUBBED: &[u8] = b"scrubbed";

/// A scrub under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scrub {
    /// Everything up to the state's compaction revision when it began.
    until: i64,
    /// The next change to visit.
    next: Revision,
}

/// The result of one slice: `writes` go into the backend as one batch, then the scrub continues with `next`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    pub writes: Vec<Write>,
    /// `None` = done.
    pub next: Option<Scrub>,
}

/// The revision up to which this member's backend has been scrubbed; 0 when never.
pub fn scrubbed(read: &dyn Read) -> i64 {
    read.get(Cf::Meta, SCRUBBED).map_or(0, |record| {
        let bytes =
            record[..].try_into().expect("corrupt record: scrub progress has 8 bytes; restore this member");
        i64::from_be_bytes(bytes)
    })
}

/// Records progress made elsewhere: in the store this one is restored from.
pub(crate) fn write_scrubbed(view: &mut Overlay<'_>, until: i64) {
    view.put(Cf::Meta, Bytes::from_static(SCRUBBED), Bytes::copy_from_slice(&until.to_be_bytes()));
}

impl Scrub {
    /// The scrub that is due, if any: after a compaction, and at start.
    pub fn due(state: &State, read: &dyn Read) -> Option<Scrub> {
        let done = scrubbed(read);
        let until = state.compact_revision;
        // From `done` itself: its dead were left for the watchers of that revision.
        (until > done).then_some(Scrub { until, next: Revision { main: done, sub: 0 } })
    }

    /// The revision this scrub frees space up to.
    pub fn until(&self) -> i64 {
        self.until
    }

    /// Visits at most `most` changes of a snapshot that is no older than the compaction.
    pub fn slice(&self, read: &dyn Read, most: usize) -> Slice {
        assert!(most > 0, "a slice visits something");
        let mut dead: BTreeMap<(Cf, Bytes), ()> = BTreeMap::new();
        let mut resume = None;
        let mut visited = 0;
        let from = self.next.encode();
        let to = Revision { main: self.until, sub: u32::MAX }.encode();
        let bounds = (Bound::Included(&from[..]), Bound::Included(&to[..]));
        read.scan(Cf::History, bounds.0, bounds.1, false, &mut |stored, record| {
            let at = Revision::decode(stored);
            if visited == most {
                resume = Some(Scrub { until: self.until, next: at });
                return ControlFlow::Break(());
            }
            visited += 1;
            let (kind, key) = layout::history_key(record);
            let mut kill = |at: Revision| {
                dead.insert((Cf::History, Bytes::copy_from_slice(&at.encode())), ());
                dead.insert((Cf::KeyHistory, layout::key_history(key, at)), ());
            };
            if let Some((older, _)) = before(at).and_then(|before| entry_at(read, key, before))
                && older.main < self.until
            {
                kill(older);
            }
            #[cfg(feature = "planted")]
            if keelson_plant::is(11) && kind == Kind::Tombstone {
                kill(at);
            }
            if kind == Kind::Tombstone && at.main < self.until {
                kill(at);
            }
            ControlFlow::Continue(())
        });
        let mut writes: Vec<Write> =
            dead.into_keys().map(|(cf, key)| Write { cf, key, value: None }).collect();
        if resume.is_none() {
            let value = Bytes::copy_from_slice(&self.until.to_be_bytes());
            writes.push(Write { cf: Cf::Meta, key: Bytes::from_static(SCRUBBED), value: Some(value) });
        }
        Slice { writes, next: resume }
    }
}

/// The greatest revision below.
pub(crate) fn before(at: Revision) -> Option<Revision> {
    match at.sub.checked_sub(1) {
        Some(sub) => Some(Revision { main: at.main, sub }),
        None => (at.main > 0).then(|| Revision { main: at.main - 1, sub: u32::MAX }),
    }
}
