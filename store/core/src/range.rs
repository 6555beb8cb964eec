//! Reads: Range at the current or an old revision, with etcd's order of fetching, filtering, sorting and cutting.
//!
//! A read now scans `Current`; a read at an old revision walks the versions in `KeyHistory` and fetches only the values
//! it returns from `History`. `count` is of the whole range: a walk goes on a little past the limit, and if the end is
//! not in sight, the rest is counted by `counts` (for an old revision: now, less what was created and plus what was
//! deleted since).

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::backend::{Cf, Read};
use crate::command::{RangeRequest, SortOrder, SortTarget};
use crate::counts;
use crate::error::Error;
use crate::layout::{self, CurrentRef, Kind, Revision};
use crate::response::{KeyValue, RangeResponse};
use crate::state::State;

/// The keys a request speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRange<'a> {
    One(&'a [u8]),
    /// `from <= key`, and `key < to` if there is a `to`. Empty when `from >= to`.
    Span(&'a [u8], Option<&'a [u8]>),
}

impl<'a> KeyRange<'a> {
    /// From the wire's pair: no end = one key, `\0` = everything from `key` on.
    pub fn new(key: &'a [u8], range_end: &'a [u8]) -> KeyRange<'a> {
        match range_end {
            [] => KeyRange::One(key),
            [0] => KeyRange::Span(key, None),
            end => KeyRange::Span(key, Some(end)),
        }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match *self {
            KeyRange::One(one) => key == one,
            KeyRange::Span(from, to) => from <= key && to.is_none_or(|to| key < to),
        }
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        matches!(*self, KeyRange::Span(from, Some(to)) if from >= to)
    }
}

/// Stored state as of a point in the log, or within a transaction.
pub(crate) struct View<'a> {
    pub read: &'a dyn Read,
    /// The newest revision visible; inside a transaction that has written, its own.
    pub revision: i64,
    pub compact_revision: i64,
    /// Keys walked past the limit before the rest is counted without a walk.
    pub linger: usize,
}

/// About what counting costs, in keys walked.
pub(crate) const LINGER: usize = 2 * counts::FANOUT as usize;

/// Most changes looked at to count at an old revision; more, and the walk goes on instead.
const MOST_CHANGES: usize = 4096;

/// Answers a Range from a backend view that is at `state`'s applied index.
/// Errors: revision compacted, or in the future.
pub fn range(state: &State, read: &dyn Read, request: &RangeRequest) -> Result<RangeResponse, Error> {
    range_at(state.revision, state.compact_revision, read, request)
}

/// [`range`] for a shell that released the state: `read` is a snapshot taken when the two revisions were read.
/// Errors: revision compacted, or in the future.
pub fn range_at(
    revision: i64,
    compact_revision: i64,
    read: &dyn Read,
    request: &RangeRequest,
) -> Result<RangeResponse, Error> {
    check_revision(request.revision, revision, compact_revision)?;
    Ok(View { read, revision, compact_revision, linger: LINGER }.range(request))
}

/// Errors: `revision` is compacted or in the future (0 or less = now, always fine).
pub(crate) fn check_revision(revision: i64, current: i64, compacted: i64) -> Result<(), Error> {
    if revision > current {
        return Err(Error::FutureRevision);
    }
    if revision > 0 && revision < compacted {
        return Err(Error::Compacted);
    }
    Ok(())
}

impl View<'_> {
    /// The caller has checked the revision.
    pub(crate) fn range(&self, request: &RangeRequest) -> RangeResponse {
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        let fetch_all = request.sort_order != SortOrder::None || filters.iter().any(|bound| *bound != 0);
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let most = match (request.count_only, fetch_all || limit == 0) {
            (true, _) => 0,
            (false, true) => usize::MAX,
            (false, false) => limit.saturating_add(1),
        };
        let want_value = !request.keys_only || request.sort_target == SortTarget::Value;
        let keys = KeyRange::new(&request.key, &request.range_end);
        let (mut kvs, count) = self.fetch(keys, request.revision, most, want_value);
        kvs.retain(|kv| passes(request, kv));
        sort(&mut kvs, request.sort_order, request.sort_target);
        let more = limit > 0 && kvs.len() > limit;
        if more {
            kvs.truncate(limit);
        }
        for kv in kvs.iter_mut().filter(|_| request.keys_only) {
            kv.value = Bytes::new();
            // etcd answers from its index, which knows no leases, unless it must sort by value.
            if !want_value {
                kv.lease = 0;
            }
        }
        RangeResponse { revision: self.revision, kvs, more, count: count as i64 }
    }

    /// The newest version of one key, with its sub-revision.
    pub(crate) fn current(&self, key: &[u8]) -> Option<(KeyValue, u32)> {
        let record = self.read.get(Cf::Current, key)?;
        let sub = CurrentRef::decode(&record).sub;
        Some((layout::decode_current(Bytes::copy_from_slice(key), &record), sub))
    }

    /// The first `most` keys in order, and the count of all.
    pub(crate) fn fetch(
        &self,
        keys: KeyRange<'_>,
        revision: i64,
        most: usize,
        want_value: bool,
    ) -> (Vec<KeyValue>, usize) {
        assert!(revision <= self.revision, "a future revision is refused before it is read");
        if keys.is_empty() {
            return (Vec::new(), 0);
        }
        match (keys, revision <= 0 || revision == self.revision) {
            (KeyRange::One(key), true) => one(self.current(key).map(|(kv, _)| kv), most),
            (KeyRange::Span(from, to), true) => self.fetch_current(from, to, most, want_value),
            (KeyRange::One(key), false) => {
                one(version_at(self.read, key, Revision { main: revision, sub: u32::MAX }), most)
            }
            (KeyRange::Span(from, to), false) => self.fetch_old(from, to, revision, most, want_value),
        }
    }

    fn fetch_current(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        most: usize,
        want: bool,
    ) -> (Vec<KeyValue>, usize) {
        let mut kvs = Vec::new();
        let mut count = 0;
        let mut ended = true;
        let until = to.map_or(Bound::Unbounded, Bound::Excluded);
        self.read.scan(Cf::Current, Bound::Included(from), until, false, &mut |key, record| {
            if count >= most.saturating_add(self.linger) {
                ended = false;
                return ControlFlow::Break(());
            }
            count += 1;
            if kvs.len() < most {
                let current = CurrentRef::decode(record);
                let value = if want { Bytes::copy_from_slice(current.value) } else { Bytes::new() };
                kvs.push(current.to_kv(Bytes::copy_from_slice(key), value));
            }
            ControlFlow::Continue(())
        });
        if !ended {
            count = counts::between(self.read, from, to) as usize;
        }
        (kvs, count)
    }

    fn fetch_old(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        revision: i64,
        most: usize,
        want: bool,
    ) -> (Vec<KeyValue>, usize) {
        // Only a revision not long ago can be counted from now; else the walk must reach the end.
        let mut counted = None;
        let mut walk = self.walk_old(from, to, revision, most, most.saturating_add(self.linger));
        if !walk.ended {
            counted = self.count_old(from, to, revision);
        }
        if !walk.ended && counted.is_none() {
            walk = self.walk_old(from, to, revision, most, usize::MAX);
        }
        #[cfg(feature = "planted")]
        if keelson_plant::is(14) && self.compact_revision > 0 {
            walk.count = walk.found.len();
        }
        let kvs = walk.found.into_iter().map(|at| {
            let kv = history(self.read, at).1;
            if want { kv } else { KeyValue { value: Bytes::new(), ..kv } }
        });
        (kvs.collect(), counted.unwrap_or(walk.count))
    }

    /// The first `most` keys there were at a revision, and how many, stopping after `give_up` of them.
    fn walk_old(&self, from: &[u8], to: Option<&[u8]>, revision: i64, most: usize, give_up: usize) -> Walk {
        let mut walk = Walk { found: Vec::new(), count: 0, ended: true };
        self.versions(from, to, revision, &mut |at| {
            if walk.count >= give_up {
                walk.ended = false;
                return ControlFlow::Break(());
            }
            walk.count += 1;
            if walk.found.len() < most {
                walk.found.push(at);
            }
            ControlFlow::Continue(())
        });
        walk
    }

    /// Visits what each key was at a revision, in the order of the keys, those that did not exist left out.
    pub(crate) fn versions(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        revision: i64,
        visit: &mut dyn FnMut(Revision) -> ControlFlow<()>,
    ) {
        // The newest version seen so far of the key being walked.
        let mut key: Vec<u8> = Vec::new();
        let mut newest: Option<(Revision, Kind)> = None;
        let mut finish = |newest: Option<(Revision, Kind)>| match newest {
            Some((at, Kind::Put)) => visit(at),
            _ => ControlFlow::Continue(()),
        };
        let mut stopped = false;
        let from = layout::escape(from);
        let to = to.map(layout::escape);
        let to = to.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.read.scan(Cf::KeyHistory, Bound::Included(&from), to, false, &mut |stored, record| {
            let (escaped, at) = layout::split_key_history(stored);
            if escaped != key {
                if finish(newest.take()).is_break() {
                    stopped = true;
                    return ControlFlow::Break(());
                }
                key.clear();
                key.extend_from_slice(escaped);
            }
            if at.main <= revision {
                newest = Some((at, layout::decode_kind(record)));
            }
            ControlFlow::Continue(())
        });
        if !stopped {
            // Nothing follows: what the visitor answers is of no use.
            let _ = finish(newest.take());
        }
    }

    /// How many keys there were at a revision, from how many there are and what changed since; `None` when much did.
    fn count_old(&self, from: &[u8], to: Option<&[u8]>, revision: i64) -> Option<usize> {
        let keys = KeyRange::Span(from, to);
        let mut exists: BTreeMap<Bytes, bool> = BTreeMap::new();
        let mut changes = 0;
        let since = Revision { main: revision + 1, sub: 0 }.encode();
        self.read.scan(Cf::History, Bound::Included(&since), Bound::Unbounded, false, &mut |_, record| {
            changes += 1;
            if changes > MOST_CHANGES {
                return ControlFlow::Break(());
            }
            let (kind, key) = layout::history_key(record);
            if keys.contains(key) {
                exists.insert(Bytes::copy_from_slice(key), kind == Kind::Put);
            }
            ControlFlow::Continue(())
        });
        if changes > MOST_CHANGES {
            return None;
        }
        let then = Revision { main: revision, sub: u32::MAX };
        let existed = |key: &Bytes| matches!(entry_at(self.read, key, then), Some((_, Kind::Put)));
        let gone = exists.keys().filter(|key| existed(key)).count();
        let come = exists.values().filter(|exists| **exists).count();
        Some(counts::between(self.read, from, to) as usize + gone - come)
    }
}

/// The outcome of walking key histories.
struct Walk {
    found: Vec<Revision>,
    count: usize,
    /// The end of the range was reached, so the count is whole.
    ended: bool,
}

fn one(kv: Option<KeyValue>, most: usize) -> (Vec<KeyValue>, usize) {
    let count = usize::from(kv.is_some());
    (kv.into_iter().take(most).collect(), count)
}

/// The record of a revision the index names.
pub(crate) fn history(read: &dyn Read, at: Revision) -> (Kind, KeyValue) {
    let record = read.get(Cf::History, &at.encode());
    let record = record.expect("corrupt store: the index names a missing revision; restore this member");
    layout::decode_history(at.main, &record)
}

/// The newest entry of a key's history at or before `at`.
pub(crate) fn entry_at(read: &dyn Read, key: &[u8], at: Revision) -> Option<(Revision, Kind)> {
    let from = layout::escape(key);
    let to = layout::key_history(key, at);
    let mut found = None;
    read.scan(Cf::KeyHistory, Bound::Included(&from), Bound::Included(&to), true, &mut |stored, record| {
        found = Some((layout::split_key_history(stored).1, layout::decode_kind(record)));
        ControlFlow::Break(())
    });
    found
}

/// What a key was at a revision; `None` when it did not exist.
pub(crate) fn version_at(read: &dyn Read, key: &[u8], at: Revision) -> Option<KeyValue> {
    match entry_at(read, key, at)? {
        (at, Kind::Put) => Some(history(read, at).1),
        (_, Kind::Tombstone) => None,
    }
}

fn passes(request: &RangeRequest, kv: &KeyValue) -> bool {
    let within =
        |value: i64, least: i64, most: i64| (least == 0 || value >= least) && (most == 0 || value <= most);
    within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
}

/// Stable: equals stay in key order, whichever the direction.
fn sort(kvs: &mut [KeyValue], order: SortOrder, target: SortTarget) {
    let order = match (order, target) {
        (SortOrder::None, SortTarget::Key) => return,
        (SortOrder::None, _) => SortOrder::Ascend,
        (order, _) => order,
    };
    let compare = |a: &KeyValue, b: &KeyValue| -> Ordering {
        match target {
            SortTarget::Key | SortTarget::Unknown => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        }
    };
    kvs.sort_by(|a, b| if order == SortOrder::Descend { compare(b, a) } else { compare(a, b) });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend::MemoryBackend;
    use crate::command::{Batch, Command, DeleteRangeRequest, PutRequest};

    fn command(key: u8, delete: bool) -> Command {
        let key = Bytes::copy_from_slice(&[key]);
        match delete {
            false => Command::Put(PutRequest { key, ..PutRequest::default() }),
            true => Command::DeleteRange(DeleteRangeRequest { key, ..DeleteRangeRequest::default() }),
        }
    }

    proptest! {
        #[test]
        fn counting_without_a_walk_is_counting(
            steps in prop::collection::vec((0..30u8, prop::bool::weighted(0.3)), 1..80),
            span in (0..30u8, 0..32u8),
            most in 0..6usize,
        ) {
            let (mut state, mut backend) = (State::default(), MemoryBackend::default());
            for (index, (key, delete)) in steps.into_iter().enumerate() {
                let batch = Batch { commands: vec![command(key, delete)], ..Batch::default() };
                let effects = crate::apply(&mut state, &backend, index as u64 + 1, &batch);
                backend.write(&effects.writes);
            }
            let view = |linger| View {
                read: &backend,
                revision: state.revision(),
                compact_revision: state.compact_revision(),
                linger,
            };
            let (from, to) = ([span.0], [span.1]);
            for to in [None, Some(&to[..])] {
                let keys = KeyRange::Span(&from, to);
                for revision in 0..=state.revision() {
                    let walked = view(usize::MAX).fetch(keys, revision, most, true);
                    prop_assert_eq!(view(0).fetch(keys, revision, most, true), walked);
                }
            }
        }
    }
}
