//! Validation of requests before they are proposed: each function answers etcd's exact error, in etcd's order.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::command::{
    DeleteRangeRequest, LeaseId, PutRequest, RangeRequest, RequestOp, SortOrder, SortTarget, TxnRequest,
};
use crate::error::Error;
use crate::lease::MAX_TTL;

/// Errors: no key; an unknown sort order or target.
pub fn range(request: &RangeRequest) -> Result<(), Error> {
    key(&request.key)?;
    if request.sort_order == SortOrder::Unknown || request.sort_target == SortTarget::Unknown {
        return Err(Error::InvalidSortOption);
    }
    Ok(())
}

/// Errors: no key; a value or lease where it is to be kept.
pub fn put(request: &PutRequest) -> Result<(), Error> {
    key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

/// Errors: no key.
pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), Error> {
    key(&request.key)
}

/// Errors: TTL above etcd's most.
pub fn lease_grant(_id: LeaseId, ttl: i64) -> Result<(), Error> {
    if ttl > MAX_TTL { Err(Error::LeaseTtlTooLarge) } else { Ok(()) }
}

/// Errors: too many operations, a malformed operation, two writes that meet on one key.
pub fn txn(request: &TxnRequest, max_ops: usize) -> Result<(), Error> {
    shape(request, max_ops)?;
    footprint(&request.success)?;
    footprint(&request.failure)?;
    Ok(())
}

fn key(key: &[u8]) -> Result<(), Error> {
    if key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// Counts and fields. Each level takes its longest list from the budget of the levels below it, so the recursion is
/// bounded by `max_ops`.
fn shape(request: &TxnRequest, max_ops: usize) -> Result<(), Error> {
    let longest = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = max_ops.checked_sub(longest).ok_or(Error::TooManyOps)?;
    for compare in &request.compare {
        key(&compare.key)?;
    }
    for op in request.success.iter().chain(&request.failure) {
        match op {
            RequestOp::Range(op) => range(op)?,
            RequestOp::Put(op) => put(op)?,
            RequestOp::DeleteRange(op) => delete_range(op)?,
            RequestOp::Txn(op) => shape(op, left)?,
            RequestOp::Unset => return Err(Error::KeyNotFound),
        }
    }
    Ok(())
}

/// What a list of operations may write.
#[derive(Default)]
struct Footprint {
    puts: BTreeSet<Bytes>,
    /// Key and end, end as [`deleted`] reads it.
    deletes: Vec<(Bytes, Bytes)>,
}

/// Whether a delete request covers the key. As in etcd's check, an end of `\0` is a plain bound here: a from-key delete
/// is not seen to meet a put (it is legal, and runs in order).
fn deleted((from, end): &(Bytes, Bytes), key: &Bytes) -> bool {
    if end.is_empty() { from == key } else { from <= key && key < end }
}

impl Footprint {
    fn deletes(&self, key: &Bytes) -> bool {
        self.deletes.iter().any(|range| deleted(range, key))
    }

    fn put(&mut self, key: &Bytes) -> Result<(), Error> {
        if self.deletes(key) || !self.puts.insert(key.clone()) {
            return Err(Error::DuplicateKey);
        }
        Ok(())
    }
}

/// Errors: two writes of one list that meet. The two branches of a nested transaction may share keys, as only one runs.
fn footprint(ops: &[RequestOp]) -> Result<Footprint, Error> {
    let mut all = Footprint::default();
    for op in ops {
        if let RequestOp::DeleteRange(delete) = op {
            all.deletes.push((delete.key.clone(), delete.range_end.clone()));
        }
    }
    for op in ops {
        let RequestOp::Txn(nested) = op else { continue };
        let then = footprint(&nested.success)?;
        let other = footprint(&nested.failure)?;
        for key in &then.puts {
            all.put(key)?;
        }
        for key in &other.puts {
            if then.puts.contains(key) {
                continue;
            }
            all.put(key)?;
        }
        all.deletes.extend(then.deletes);
        all.deletes.extend(other.deletes);
    }
    for op in ops {
        if let RequestOp::Put(put) = op {
            all.put(&put.key)?;
        }
    }
    Ok(all)
}

/// The version a downgrade from `major.minor` may go to: one minor below. A patch level is taken and not kept.
/// Errors: no version; another than that.
pub fn downgrade_target(text: &str, from: (u64, u64)) -> Result<String, Error> {
    let number = |part: Option<&str>| part?.parse::<u64>().ok();
    let mut parts = text.splitn(3, '.');
    let (major, minor) = (number(parts.next()), number(parts.next()));
    let patch = parts.next().is_none_or(|patch| {
        let digits = patch.find(['-', '+']).map_or(patch, |end| &patch[..end]);
        digits.parse::<u64>().is_ok()
    });
    let (Some(major), Some(minor), true) = (major, minor, patch) else {
        return Err(Error::WrongDowngradeVersionFormat);
    };
    if (major, minor + 1) != from {
        return Err(Error::InvalidDowngradeTargetVersion);
    }
    Ok(format!("{major}.{minor}.0"))
}
