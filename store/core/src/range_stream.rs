//! A range in pieces: one pass over the keys with memory for one piece, whatever the size of the whole.
//!
//! The pieces together are what `range` answers; which revision it is, whether there is more and how many keys there are
//! is said with the last one.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::backend::{Cf, Read};
use crate::command::{RangeRequest, SortOrder, SortTarget};
use crate::error::Error;
use crate::layout::CurrentRef;
use crate::range::{self, KeyRange, View};
use crate::response::{KeyValue, RangeResponse};

/// Errors: only the order of the keys can be kept in one pass, and every key of the range counts.
pub fn check(request: &RangeRequest) -> Result<(), Error> {
    let sorted = request.sort_order == SortOrder::Descend || request.sort_target != SortTarget::Key;
    let filtered = request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0;
    match (sorted, filtered) {
        (true, _) => Err(Error::RangeStreamSorted),
        (_, true) => Err(Error::RangeStreamFiltered),
        _ => Ok(()),
    }
}

/// Hands out all pieces but the last, each of about `piece` bytes (a key larger than that is a piece of its own), until
/// `emit` breaks; answers the last piece with the rest, or `None` after a break.
///
/// `read` is a snapshot taken when the two revisions were read. Errors: revision compacted, or in the future.
pub fn range_stream(
    revision: i64,
    compact_revision: i64,
    read: &dyn Read,
    request: &RangeRequest,
    piece: usize,
    emit: &mut dyn FnMut(Vec<KeyValue>) -> ControlFlow<()>,
) -> Result<Option<RangeResponse>, Error> {
    range::check_revision(request.revision, revision, compact_revision)?;
    let view = View { read, revision, compact_revision, linger: range::LINGER };
    let KeyRange::Span(from, to) = KeyRange::new(&request.key, &request.range_end) else {
        return Ok(Some(view.range(request)));
    };
    if request.count_only || KeyRange::Span(from, to).is_empty() {
        return Ok(Some(view.range(request)));
    }
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let mut pieces = Pieces {
        kvs: Vec::new(),
        size: 0,
        sent: 0,
        more: false,
        stopped: false,
        limit,
        piece,
        keys_only: request.keys_only,
        emit,
    };
    if request.revision <= 0 || request.revision == revision {
        let until = to.map_or(Bound::Unbounded, Bound::Excluded);
        read.scan(Cf::Current, Bound::Included(from), until, false, &mut |key, record| {
            pieces.take(|| {
                let current = CurrentRef::decode(record);
                let value =
                    if request.keys_only { Bytes::new() } else { Bytes::copy_from_slice(current.value) };
                current.to_kv(Bytes::copy_from_slice(key), value)
            })
        });
    } else {
        view.versions(from, to, request.revision, &mut |at| pieces.take(|| range::history(read, at).1));
    }
    let Pieces { kvs, sent, more, stopped, .. } = pieces;
    if stopped {
        return Ok(None);
    }
    // What was walked to the end is counted; else the whole range is, without a walk.
    let whole = RangeRequest { count_only: true, limit: 0, ..request.clone() };
    let count = if more { view.range(&whole).count } else { sent as i64 };
    Ok(Some(RangeResponse { revision, kvs, more, count }))
}

struct Pieces<'a> {
    kvs: Vec<KeyValue>,
    /// Bytes of `kvs`.
    size: usize,
    /// Keys taken, those handed out included.
    sent: usize,
    more: bool,
    stopped: bool,
    limit: usize,
    piece: usize,
    keys_only: bool,
    emit: &'a mut dyn FnMut(Vec<KeyValue>) -> ControlFlow<()>,
}

impl Pieces<'_> {
    fn take(&mut self, read: impl FnOnce() -> KeyValue) -> ControlFlow<()> {
        if self.sent == self.limit {
            self.more = true;
            return ControlFlow::Break(());
        }
        let mut kv = read();
        if self.keys_only {
            // As etcd answers keys alone: from its index, which knows neither values nor leases.
            kv = KeyValue { value: Bytes::new(), lease: 0, ..kv };
        }
        let size = kv.key.len() + kv.value.len() + OVERHEAD;
        if !self.kvs.is_empty() && self.size + size > self.piece {
            self.size = 0;
            if (self.emit)(std::mem::take(&mut self.kvs)).is_break() {
                self.stopped = true;
                return ControlFlow::Break(());
            }
        }
        self.size += size;
        self.sent += 1;
        self.kvs.push(kv);
        ControlFlow::Continue(())
    }
}

/// Bytes of a key on the wire beside itself and its value, at most.
const OVERHEAD: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend::MemoryBackend;
    use crate::command::{Batch, Command, DeleteRangeRequest, PutRequest};
    use crate::state::State;

    fn command((key, length, delete): (u8, usize, bool)) -> Command {
        let key = Bytes::copy_from_slice(&[key]);
        match delete {
            false => {
                Command::Put(PutRequest { key, value: vec![b'x'; length].into(), ..PutRequest::default() })
            }
            true => Command::DeleteRange(DeleteRangeRequest { key, ..DeleteRangeRequest::default() }),
        }
    }

    fn written(steps: Vec<(u8, usize, bool)>) -> (State, MemoryBackend) {
        let (mut state, mut backend) = (State::default(), MemoryBackend::default());
        for (index, step) in steps.into_iter().enumerate() {
            let batch = Batch { commands: vec![command(step)], ..Batch::default() };
            let effects = crate::apply(&mut state, &backend, index as u64 + 1, &batch);
            backend.write(&effects.writes);
        }
        (state, backend)
    }

    proptest! {
        #[test]
        fn pieces_together_are_the_range(
            steps in prop::collection::vec((0..20u8, 0..200usize, prop::bool::weighted(0.3)), 1..60),
            (from, to) in (0..20u8, 0..22u8),
            limit in 0..8i64,
            keys_only in any::<bool>(),
            piece in 1..600usize,
        ) {
            let (state, backend) = written(steps);
            for revision in 0..=state.revision() {
                let request = RangeRequest {
                    key: vec![from].into(),
                    range_end: vec![to].into(),
                    revision,
                    limit,
                    keys_only,
                    ..RangeRequest::default()
                };
                let mut before: Vec<KeyValue> = Vec::new();
                let mut emit = |kvs: Vec<KeyValue>| {
                    let size: usize = kvs.iter().map(|kv| kv.key.len() + kv.value.len() + OVERHEAD).sum();
                    assert!(kvs.len() == 1 || size <= piece, "{size} > {piece}");
                    before.extend(kvs);
                    ControlFlow::Continue(())
                };
                let (now, compacted) = (state.revision(), state.compact_revision());
                let last = range_stream(now, compacted, &backend, &request, piece, &mut emit);
                let whole = last.map(|last| {
                    let last = last.expect("not stopped");
                    RangeResponse { kvs: [before, last.kvs].concat(), ..last }
                });
                prop_assert_eq!(whole, crate::range(&state, &backend, &request));
            }
        }
    }

    #[test]
    fn a_reader_that_stops_ends_the_walk_and_unsupported_requests_are_refused() {
        let (state, backend) = written((0..10).map(|key| (key, 100, false)).collect());
        let all = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..RangeRequest::default() };
        let mut pieces = 0;
        let mut emit = |_| {
            pieces += 1;
            ControlFlow::Break(())
        };
        assert_eq!(range_stream(state.revision(), 0, &backend, &all, 1, &mut emit), Ok(None));
        assert_eq!(pieces, 1);
        assert_eq!(check(&all), Ok(()));
        for (refused, error) in [
            (RangeRequest { sort_order: SortOrder::Descend, ..all.clone() }, Error::RangeStreamSorted),
            (RangeRequest { sort_target: SortTarget::Mod, ..all.clone() }, Error::RangeStreamSorted),
            (RangeRequest { min_mod_revision: 1, ..all.clone() }, Error::RangeStreamFiltered),
            (RangeRequest { max_create_revision: 1, ..all.clone() }, Error::RangeStreamFiltered),
        ] {
            assert_eq!(check(&refused), Err(error));
        }
    }
}
