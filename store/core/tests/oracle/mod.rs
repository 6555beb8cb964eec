//! The naive second implementation: a whole copy of the store for every revision, nothing clever.

use std::collections::BTreeMap;

use bytes::Bytes;
use keelson_store_core::{
    Command, Compare, CompareResult, CompareTarget, DeleteRangeResponse, Error, KeyValue, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RequestOp, Response, ResponseOp, SortOrder, SortTarget,
    TxnRequest, TxnResponse,
};

type Map = BTreeMap<Bytes, KeyValue>;

#[derive(Clone)]
pub struct Oracle {
    /// The store at revision `index + 1`.
    pub past: Vec<Map>,
    pub compacted: i64,
    pub leases: BTreeMap<i64, i64>,
}

/// A transaction in progress: a copy, and whether it wrote.
struct Draft {
    map: Map,
    main: i64,
    wrote: bool,
}

fn inside(key: &Bytes, from: &Bytes, end: &Bytes) -> bool {
    match &end[..] {
        [] => key == from,
        [0] => key >= from,
        _ => key >= from && key < end,
    }
}

impl Oracle {
    pub fn new() -> Oracle {
        Oracle { past: vec![Map::new()], compacted: -1, leases: BTreeMap::new() }
    }

    pub fn revision(&self) -> i64 {
        self.past.len() as i64
    }

    fn now(&self) -> &Map {
        self.past.last().expect("there is always a present")
    }

    fn draft(&self) -> Draft {
        Draft { map: self.now().clone(), main: self.revision() + 1, wrote: false }
    }

    fn commit(&mut self, draft: Draft) -> i64 {
        if draft.wrote {
            self.past.push(draft.map);
        }
        self.revision()
    }

    pub fn run(&mut self, command: &Command) -> Result<Response, Error> {
        let mut draft = self.draft();
        match command {
            Command::Put(put) => {
                self.lease_exists(put)?;
                self.key_exists(put)?;
                let response = draft.put(put);
                self.commit(draft);
                Ok(Response::Put(response))
            }
            Command::DeleteRange(delete) => {
                let response = draft.delete(&delete.key, &delete.range_end, delete.prev_kv);
                self.commit(draft);
                Ok(Response::DeleteRange(response))
            }
            Command::Txn(txn) => {
                self.check(txn)?;
                let mut response = self.txn(&mut draft, txn);
                response.revision = self.commit(draft);
                Ok(Response::Txn(response))
            }
            Command::Compact { revision } if *revision <= self.compacted => Err(Error::Compacted),
            Command::Compact { revision } if *revision > self.revision() => Err(Error::FutureRevision),
            Command::Compact { revision } => {
                self.compacted = *revision;
                Ok(Response::Compact { revision: self.revision() })
            }
            Command::LeaseGrant { id, .. } if self.leases.contains_key(id) => Err(Error::LeaseExists),
            Command::LeaseGrant { id, ttl } => {
                self.leases.insert(*id, *ttl);
                Ok(Response::LeaseGrant { revision: self.revision(), id: *id, ttl: *ttl })
            }
            Command::LeaseRevoke { id } => {
                self.leases.remove(id).ok_or(Error::LeaseNotFound)?;
                let before = draft.map.len();
                draft.map.retain(|_, kv| kv.lease != *id);
                draft.wrote = draft.map.len() != before;
                Ok(Response::LeaseRevoke { revision: self.commit(draft) })
            }
            other => panic!("the generator makes no {other:?}"),
        }
    }

    fn lease_exists(&self, put: &PutRequest) -> Result<(), Error> {
        let known = put.lease == 0 || self.leases.contains_key(&put.lease);
        if known { Ok(()) } else { Err(Error::LeaseNotFound) }
    }

    fn key_exists(&self, put: &PutRequest) -> Result<(), Error> {
        let kept = put.ignore_value || put.ignore_lease;
        if !kept || self.now().contains_key(&put.key) { Ok(()) } else { Err(Error::KeyNotFound) }
    }

    fn chosen<'a>(&self, txn: &'a TxnRequest) -> (bool, &'a [RequestOp]) {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        (succeeded, if succeeded { &txn.success } else { &txn.failure })
    }

    fn check(&self, txn: &TxnRequest) -> Result<(), Error> {
        self.chosen(txn).1.iter().try_for_each(|op| match op {
            RequestOp::Put(put) => self.key_exists(put).and_then(|()| self.lease_exists(put)),
            RequestOp::Range(range) if range.revision == 0 => Ok(()),
            RequestOp::Range(range) if range.revision > self.revision() => Err(Error::FutureRevision),
            RequestOp::Range(range) if range.revision < self.compacted => Err(Error::Compacted),
            RequestOp::Txn(nested) => self.check(nested),
            _ => Ok(()),
        })
    }

    fn txn(&self, draft: &mut Draft, txn: &TxnRequest) -> TxnResponse {
        let (succeeded, ops) = self.chosen(txn);
        let run = |op: &RequestOp| match op {
            RequestOp::Put(put) => ResponseOp::Put(draft.put(put)),
            RequestOp::DeleteRange(del) => {
                ResponseOp::DeleteRange(draft.delete(&del.key, &del.range_end, del.prev_kv))
            }
            RequestOp::Range(range) => {
                let past = (range.revision > 0).then(|| &self.past[range.revision as usize - 1]);
                ResponseOp::Range(select(past.unwrap_or(&draft.map), range, draft.shown()))
            }
            RequestOp::Txn(nested) => ResponseOp::Txn(self.txn(draft, nested)),
            RequestOp::Unset => panic!("the generator makes none"),
        };
        TxnResponse { revision: 0, succeeded, responses: ops.iter().map(run).collect() }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let on = |kv: &KeyValue| {
            let order = match &compare.target {
                CompareTarget::Version(n) => kv.version.cmp(n),
                CompareTarget::Create(n) => kv.create_revision.cmp(n),
                CompareTarget::Mod(n) => kv.mod_revision.cmp(n),
                CompareTarget::Value(value) => kv.value.cmp(value),
                CompareTarget::Lease(n) => kv.lease.cmp(n),
            };
            match compare.result {
                CompareResult::Equal => order.is_eq(),
                CompareResult::NotEqual => order.is_ne(),
                CompareResult::Greater => order.is_gt(),
                CompareResult::Less => order.is_lt(),
            }
        };
        let mut found =
            self.now().values().filter(|kv| inside(&kv.key, &compare.key, &compare.range_end)).peekable();
        if found.peek().is_none() {
            return !matches!(compare.target, CompareTarget::Value(_)) && on(&KeyValue::default());
        }
        found.all(on)
    }

    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        let at = if request.revision <= 0 { self.revision() } else { request.revision };
        if at > self.revision() {
            return Err(Error::FutureRevision);
        }
        if at < self.compacted {
            return Err(Error::Compacted);
        }
        Ok(select(&self.past[at as usize - 1], request, self.revision()))
    }
}

impl Draft {
    fn shown(&self) -> i64 {
        if self.wrote { self.main } else { self.main - 1 }
    }

    fn put(&mut self, put: &PutRequest) -> PutResponse {
        let old = self.map.get(&put.key).cloned();
        let mut kv = old.clone().unwrap_or(KeyValue { create_revision: self.main, ..KeyValue::default() });
        kv.key = put.key.clone();
        kv.mod_revision = self.main;
        kv.version += 1;
        if !put.ignore_value {
            kv.value = put.value.clone();
        }
        if !put.ignore_lease {
            kv.lease = put.lease;
        }
        self.map.insert(put.key.clone(), kv);
        self.wrote = true;
        PutResponse { revision: self.main, prev_kv: old.filter(|_| put.prev_kv) }
    }

    fn delete(&mut self, key: &Bytes, end: &Bytes, prev_kv: bool) -> DeleteRangeResponse {
        let gone: Vec<KeyValue> = self.map.values().filter(|kv| inside(&kv.key, key, end)).cloned().collect();
        gone.iter().for_each(|kv| drop(self.map.remove(&kv.key)));
        self.wrote |= !gone.is_empty();
        let deleted = gone.len() as i64;
        DeleteRangeResponse {
            revision: self.shown(),
            deleted,
            prev_kvs: if prev_kv { gone } else { Vec::new() },
        }
    }
}

fn select(map: &Map, request: &RangeRequest, revision: i64) -> RangeResponse {
    let mut kvs: Vec<KeyValue> =
        map.values().filter(|kv| inside(&kv.key, &request.key, &request.range_end)).cloned().collect();
    let count = kvs.len() as i64;
    if request.count_only {
        return RangeResponse { revision, count, ..RangeResponse::default() };
    }
    let limit = if request.limit > 0 { request.limit as usize } else { usize::MAX };
    let bounds = [
        (request.min_mod_revision, request.max_mod_revision, (|kv| kv.mod_revision) as fn(&KeyValue) -> i64),
        (request.min_create_revision, request.max_create_revision, |kv| kv.create_revision),
    ];
    let filtered = bounds.iter().any(|(least, most, _)| *least != 0 || *most != 0);
    if request.sort_order == SortOrder::None && !filtered {
        // The cut comes before the sort (by one more, to know that there is more).
        kvs.truncate(limit.saturating_add(1));
    }
    for (least, most, of) in bounds {
        kvs.retain(|kv| (least == 0 || of(kv) >= least) && (most == 0 || of(kv) <= most));
    }
    match request.sort_target {
        SortTarget::Key | SortTarget::Unknown => {}
        SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
        SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
        SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
        SortTarget::Value => kvs.sort_by_key(|kv| kv.value.clone()),
    }
    if request.sort_order == SortOrder::Descend {
        // Equals stay in key order.
        kvs.reverse();
        let rank = |kv: &KeyValue| match request.sort_target {
            SortTarget::Version => (kv.version, Bytes::new()),
            SortTarget::Create => (kv.create_revision, Bytes::new()),
            SortTarget::Mod => (kv.mod_revision, Bytes::new()),
            SortTarget::Value => (0, kv.value.clone()),
            SortTarget::Key | SortTarget::Unknown => (0, kv.key.clone()),
        };
        kvs.chunk_by_mut(|a, b| rank(a) == rank(b)).for_each(|equals| equals.reverse());
    }
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    for kv in kvs.iter_mut().filter(|_| request.keys_only) {
        kv.value = Bytes::new();
        if request.sort_target != SortTarget::Value {
            kv.lease = 0;
        }
    }
    RangeResponse { revision, kvs, more, count }
}
