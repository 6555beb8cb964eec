//! Write transactions, and Txn on them.
//!
//! A Txn first chooses its path: every compare, also of nested transactions on the way, sees the state before the Txn.
//! Then everything on the path that can fail is checked against that same state. Only then does it run, and nothing in
//! it can fail any more: a refused Txn writes nothing (property S21).

use std::cmp::Ordering;

use bytes::Bytes;

use crate::apply::Applier;
use crate::backend::{Cf, Overlay, Read};
use crate::command::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, LeaseId, PutRequest, RangeRequest, RequestOp,
    TxnRequest,
};
use crate::counts;
use crate::error::Error;
use crate::layout::{self, Kind, Revision};
use crate::range::{KeyRange, LINGER, View, check_revision};
use crate::response::{
    DeleteRangeResponse, EventType, KeyValue, PutResponse, RangeResponse, ResponseOp, RevisionEvents,
    TxnResponse, WatchEvent,
};
use crate::state::State;

/// Which branch runs, for a Txn and each nested Txn on the branch, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

fn view<'a>(state: &State, read: &'a dyn Read) -> View<'a> {
    View { read, revision: state.revision, compact_revision: state.compact_revision, linger: LINGER }
}

impl Path {
    pub(crate) fn choose(applier: &Applier<'_>, request: &TxnRequest) -> Path {
        Path::of(&view(applier.state, &applier.view), request)
    }

    fn of(view: &View<'_>, request: &TxnRequest) -> Path {
        let succeeded = request.compare.iter().all(|compare| holds(view, compare));
        let nested = branch(request, succeeded).iter().filter_map(|op| match op {
            RequestOp::Txn(nested) => Some(Path::of(view, nested)),
            _ => None,
        });
        Path { succeeded, nested: nested.collect() }
    }

    /// Errors: what a put or an old read on the path would meet, the first in order.
    pub(crate) fn check(&self, applier: &Applier<'_>, request: &TxnRequest) -> Result<(), Error> {
        let view = view(applier.state, &applier.view);
        self.each(request, &mut |op| match op {
            RequestOp::Put(put) => check_kept(applier, put).and_then(|()| check_lease(applier, put)),
            RequestOp::Range(range) => check_range(&view, range),
            _ => Ok(()),
        })
    }

    fn check_reads(&self, view: &View<'_>, request: &TxnRequest) -> Result<(), Error> {
        self.each(request, &mut |op| match op {
            RequestOp::Range(range) => check_range(view, range),
            _ => Ok(()),
        })
    }

    /// Visits the operations of the path, depth first.
    fn each(
        &self,
        request: &TxnRequest,
        visit: &mut dyn FnMut(&RequestOp) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut nested = self.nested.iter();
        for op in branch(request, self.succeeded) {
            match op {
                RequestOp::Txn(inner) => {
                    nested.next().expect("a path has one entry per nested transaction").each(inner, visit)?;
                }
                op => visit(op)?,
            }
        }
        Ok(())
    }
}

/// Whether the Txn holds a put anywhere: what the space quota asks.
pub fn has_put(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|op| match op {
        RequestOp::Put(_) => true,
        RequestOp::Txn(nested) => has_put(nested),
        _ => false,
    })
}

/// Whether the Txn can be answered without the log: it writes nothing on any branch.
pub fn is_read_only(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|op| match op {
        RequestOp::Range(_) | RequestOp::Unset => true,
        RequestOp::Put(_) | RequestOp::DeleteRange(_) => false,
        RequestOp::Txn(nested) => is_read_only(nested),
    })
}

/// Answers a Txn for which [`is_read_only`] holds from a backend view, without the log.
/// Errors: an old read's revision is compacted or in the future.
pub fn read_txn(state: &State, read: &dyn Read, request: &TxnRequest) -> Result<TxnResponse, Error> {
    assert!(is_read_only(request), "a writing Txn goes through the log");
    let view = view(state, read);
    let path = Path::of(&view, request);
    path.check_reads(&view, request)?;
    let mut response = read_branch(&view, request, &path);
    response.revision = view.revision;
    Ok(response)
}

fn read_branch(view: &View<'_>, request: &TxnRequest, path: &Path) -> TxnResponse {
    let mut nested = path.nested.iter();
    let responses = branch(request, path.succeeded).iter().filter_map(|op| match op {
        RequestOp::Range(range) => Some(ResponseOp::Range(view.range(range))),
        RequestOp::Txn(inner) => {
            let path = nested.next().expect("a path has one entry per nested transaction");
            Some(ResponseOp::Txn(read_branch(view, inner, path)))
        }
        _ => None,
    });
    TxnResponse { revision: 0, succeeded: path.succeeded, responses: responses.collect() }
}

fn holds(view: &View<'_>, compare: &Compare) -> bool {
    let want_value = matches!(compare.target, CompareTarget::Value(_));
    let keys = KeyRange::new(&compare.key, &compare.range_end);
    let (kvs, _) = view.fetch(keys, 0, usize::MAX, want_value);
    if kvs.is_empty() {
        return !want_value && satisfies(compare, &KeyValue::default());
    }
    kvs.iter().all(|kv| satisfies(compare, kv))
}

fn satisfies(compare: &Compare, kv: &KeyValue) -> bool {
    let order = match &compare.target {
        CompareTarget::Version(operand) => kv.version.cmp(operand),
        CompareTarget::Create(operand) => kv.create_revision.cmp(operand),
        CompareTarget::Mod(operand) => kv.mod_revision.cmp(operand),
        CompareTarget::Value(operand) => kv.value.cmp(operand),
        CompareTarget::Lease(operand) => kv.lease.cmp(operand),
    };
    match compare.result {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::NotEqual => order != Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
    }
}

/// Errors: the revision is compacted or in the future. Unlike a Range of its own, one in a Txn may not say "now" by a
/// negative revision once the store was compacted.
fn check_range(view: &View<'_>, range: &RangeRequest) -> Result<(), Error> {
    if range.revision < 0 && range.revision < view.compact_revision {
        return Err(Error::Compacted);
    }
    check_revision(range.revision, view.revision, view.compact_revision)
}

/// Errors: the lease does not exist.
pub(crate) fn check_lease(applier: &Applier<'_>, put: &PutRequest) -> Result<(), Error> {
    if put.lease != 0 && applier.state.lessor.get(put.lease).is_none() {
        return Err(Error::LeaseNotFound);
    }
    Ok(())
}

/// Errors: the key whose value or lease is to be kept does not exist.
pub(crate) fn check_kept(applier: &Applier<'_>, put: &PutRequest) -> Result<(), Error> {
    if (put.ignore_value || put.ignore_lease) && applier.view.get(Cf::Current, &put.key).is_none() {
        return Err(Error::KeyNotFound);
    }
    Ok(())
}

/// Changes that share one new main revision; a transaction that changes nothing keeps the old one.
pub(crate) struct WriteTxn<'b, 'a> {
    applier: &'b mut Applier<'a>,
    /// The revision its changes get.
    main: i64,
    changes: Vec<WatchEvent>,
}

impl<'b, 'a> WriteTxn<'b, 'a> {
    pub(crate) fn begin(applier: &'b mut Applier<'a>) -> WriteTxn<'b, 'a> {
        let main = applier.state.revision.checked_add(1).expect("fewer than 2^63 revisions");
        WriteTxn { applier, main, changes: Vec::new() }
    }

    /// The events to publish, if anything changed.
    pub(crate) fn end(self) -> Option<RevisionEvents> {
        if self.changes.is_empty() {
            #[cfg(feature = "planted")]
            if keelson_plant::is(13) {
                self.applier.state.revision = self.main;
            }
            return None;
        }
        self.applier.state.revision = self.main;
        Some(RevisionEvents { revision: self.main, events: self.changes })
    }

    /// What an answer's header shows at this point.
    fn revision(&self) -> i64 {
        if self.changes.is_empty() { self.main - 1 } else { self.main }
    }

    fn next(&self) -> Revision {
        let sub = u32::try_from(self.changes.len()).expect("fewer than 2^32 changes in a transaction");
        Revision { main: self.main, sub }
    }

    fn view(&self) -> View<'_> {
        View {
            read: &self.applier.view,
            revision: self.revision(),
            compact_revision: self.applier.state.compact_revision,
            linger: LINGER,
        }
    }

    /// The caller has checked it.
    pub(crate) fn put(&mut self, request: &PutRequest) -> PutResponse {
        let prev = self.view().current(&request.key).map(|(kv, _)| kv);
        let old = prev.as_ref();
        let kept_value = old.filter(|_| request.ignore_value).map(|kv| kv.value.clone());
        let kept_lease = old.filter(|_| request.ignore_lease).map(|kv| kv.lease);
        let kv = KeyValue {
            key: request.key.clone(),
            create_revision: old.map_or(self.main, |kv| kv.create_revision),
            mod_revision: self.main,
            version: old.map_or(1, |kv| kv.version + 1),
            value: kept_value.unwrap_or_else(|| request.value.clone()),
            lease: kept_lease.unwrap_or(request.lease),
        };
        let at = self.next();
        let old_lease = old.map_or(0, |kv| kv.lease);
        let view = &mut self.applier.view;
        if old_lease != kv.lease {
            detach(view, old_lease, &kv.key);
            if kv.lease != 0 {
                view.put(Cf::LeaseKey, layout::lease_key(kv.lease, &kv.key), Bytes::new());
            }
        }
        view.put(Cf::Current, kv.key.clone(), layout::encode_current(&kv, at.sub));
        if prev.is_none() {
            counts::created(view, &kv.key, counts::FANOUT);
        }
        view.put(Cf::History, Bytes::copy_from_slice(&at.encode()), layout::encode_history(Kind::Put, &kv));
        view.put(Cf::KeyHistory, layout::key_history(&kv.key, at), layout::encode_kind(Kind::Put));
        let prev_kv = prev.clone().filter(|_| request.prev_kv);
        self.changes.push(WatchEvent { kind: EventType::Put, kv, prev_kv: prev });
        PutResponse { revision: self.main, prev_kv }
    }

    pub(crate) fn delete_range(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let keys = KeyRange::new(&request.key, &request.range_end);
        let (kvs, _) = self.view().fetch(keys, 0, usize::MAX, true);
        for kv in &kvs {
            self.delete(kv.clone());
        }
        let deleted = kvs.len() as i64;
        let prev_kvs = if request.prev_kv { kvs } else { Vec::new() };
        DeleteRangeResponse { revision: self.revision(), deleted, prev_kvs }
    }

    /// Deletes a key of a lease that ends.
    pub(crate) fn delete_leased(&mut self, key: &Bytes, id: LeaseId) {
        let (kv, _) = self.view().current(key).expect("a key attached to a lease exists");
        assert_eq!(kv.lease, id, "a key is attached to the lease it names");
        self.delete(kv);
    }

    fn delete(&mut self, prev: KeyValue) {
        let at = self.next();
        let kv = KeyValue { key: prev.key.clone(), mod_revision: self.main, ..KeyValue::default() };
        let view = &mut self.applier.view;
        detach(view, prev.lease, &kv.key);
        view.delete(Cf::Current, kv.key.clone());
        counts::deleted(view, &kv.key);
        view.put(
            Cf::History,
            Bytes::copy_from_slice(&at.encode()),
            layout::encode_history(Kind::Tombstone, &kv),
        );
        view.put(Cf::KeyHistory, layout::key_history(&kv.key, at), layout::encode_kind(Kind::Tombstone));
        self.changes.push(WatchEvent { kind: EventType::Delete, kv, prev_kv: Some(prev) });
    }

    fn range(&self, request: &RangeRequest) -> RangeResponse {
        self.view().range(request)
    }

    /// The caller has chosen and checked the path.
    pub(crate) fn run(&mut self, request: &TxnRequest, path: &Path) -> TxnResponse {
        let mut response = self.run_branch(request, path);
        response.revision = self.revision();
        response
    }

    fn run_branch(&mut self, request: &TxnRequest, path: &Path) -> TxnResponse {
        let mut nested = path.nested.iter();
        let mut responses = Vec::new();
        for op in branch(request, path.succeeded) {
            responses.push(match op {
                RequestOp::Range(range) => ResponseOp::Range(self.range(range)),
                RequestOp::Put(put) => ResponseOp::Put(self.put(put)),
                RequestOp::DeleteRange(delete) => ResponseOp::DeleteRange(self.delete_range(delete)),
                RequestOp::Txn(inner) => {
                    let path = nested.next().expect("a path has one entry per nested transaction");
                    ResponseOp::Txn(self.run_branch(inner, path))
                }
                // Refused by `check::txn` before it was proposed; a log cannot hold it.
                RequestOp::Unset => continue,
            });
        }
        TxnResponse { revision: 0, succeeded: path.succeeded, responses }
    }
}

fn detach(view: &mut Overlay<'_>, lease: LeaseId, key: &Bytes) {
    if lease != 0 {
        view.delete(Cf::LeaseKey, layout::lease_key(lease, key));
    }
}
