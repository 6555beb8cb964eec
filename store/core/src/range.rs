//! Reads: Range at the current or an old revision, with etcd's order of fetching, filtering, sorting and cutting.
//!
//! A read now scans `Current`; a read at an old revision walks the versions in `KeyHistory` and fetches only the values
//! it returns from `History`. `count` is of the whole range, so the walk continues, without values, past the limit.

use std::cmp::Ordering;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::backend::{Cf, Read};
use crate::command::{RangeRequest, SortOrder, SortTarget};
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
}

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
    Ok(View { read, revision, compact_revision }.range(request))
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
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        self.read.scan(Cf::Current, Bound::Included(from), to, false, &mut |key, record| {
            count += 1;
            if kvs.len() < most {
                let current = CurrentRef::decode(record);
                let value = if want { Bytes::copy_from_slice(current.value) } else { Bytes::new() };
                kvs.push(current.to_kv(Bytes::copy_from_slice(key), value));
            }
            ControlFlow::Continue(())
        });
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
        let mut found: Vec<Revision> = Vec::new();
        let mut count = 0;
        // The newest version seen so far of the key being walked.
        let mut key: Vec<u8> = Vec::new();
        let mut newest: Option<(Revision, Kind)> = None;
        let mut finish = |newest: Option<(Revision, Kind)>| {
            if let Some((at, Kind::Put)) = newest {
                count += 1;
                if found.len() < most {
                    found.push(at);
                }
            }
        };
        let from = layout::escape(from);
        let to = to.map(layout::escape);
        let to = to.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.read.scan(Cf::KeyHistory, Bound::Included(&from), to, false, &mut |stored, record| {
            let (escaped, at) = layout::split_key_history(stored);
            if escaped != key {
                finish(newest.take());
                key.clear();
                key.extend_from_slice(escaped);
            }
            if at.main <= revision {
                newest = Some((at, layout::decode_kind(record)));
            }
            ControlFlow::Continue(())
        });
        finish(newest.take());
        let kvs = found.into_iter().map(|at| {
            let kv = history(self.read, at).1;
            if want { kv } else { KeyValue { value: Bytes::new(), ..kv } }
        });
        (kvs.collect(), count)
    }
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
