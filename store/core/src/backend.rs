//! The store's view of stored state: ordered column families, read through [`Read`], changed by [`Write`]s.
//!
//! The same `apply` runs over [`MemoryBackend`] (tests, models, simulation) and over the shell's RocksDB. A read cannot
//! fail here: a shell whose disk fails a read stops the member instead of answering.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

/// Column families; `layout` tells what is in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cf {
    /// user key -> newest version, with its value
    Current,
    /// revision -> change, with its value
    History,
    /// (user key, revision) -> what kind of change
    KeyHistory,
    /// lease id -> its TTL and expiry
    Lease,
    /// (lease id, user key) -> nothing
    LeaseKey,
    /// (level, first key) -> how many keys lie below: see `counts`
    Count,
    /// a few named records: head, members, alarms, scrub progress
    Meta,
}

impl Cf {
    pub const ALL: [Cf; 7] =
        [Cf::Current, Cf::History, Cf::KeyHistory, Cf::Lease, Cf::LeaseKey, Cf::Count, Cf::Meta];

    /// The name the shell gives the column family.
    pub const fn name(self) -> &'static str {
        match self {
            Cf::Current => "current",
            Cf::History => "history",
            Cf::KeyHistory => "key_history",
            Cf::Lease => "lease",
            Cf::LeaseKey => "lease_key",
            Cf::Count => "count",
            Cf::Meta => "meta",
        }
    }
}

/// One change of the backend; a value of `None` deletes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    pub cf: Cf,
    pub key: Bytes,
    pub value: Option<Bytes>,
}

/// What a visitor of [`Read::scan`] answers.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// A consistent view of stored state: a snapshot, or the live database while nothing else writes.
pub trait Read {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes>;

    /// Visits keys within the bounds in ascending byte order (descending when `reverse`) until told to break.
    fn scan(&self, cf: Cf, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool, visit: Visit<'_>);
}

impl<R: Read + ?Sized> Read for &R {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        (**self).get(cf, key)
    }

    fn scan(&self, cf: Cf, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool, visit: Visit<'_>) {
        (**self).scan(cf, from, to, reverse, visit);
    }
}

/// Whether no key can lie within the bounds (`BTreeMap::range` panics on such).
pub fn nothing_between(from: Bound<&[u8]>, to: Bound<&[u8]>) -> bool {
    match (from, to) {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => {
            from >= to
        }
        _ => false,
    }
}

/// The backend in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MemoryBackend {
    families: [BTreeMap<Bytes, Bytes>; Cf::ALL.len()],
}

impl MemoryBackend {
    /// Applies the writes of one [`crate::Effects`] at once.
    pub fn write(&mut self, writes: &[Write]) {
        for write in writes {
            let family = &mut self.families[write.cf as usize];
            match &write.value {
                Some(value) => family.insert(write.key.clone(), value.clone()),
                None => family.remove(&write.key),
            };
        }
    }

    /// Everything in a column family, in order.
    pub fn iter(&self, cf: Cf) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.families[cf as usize].iter()
    }
}

impl Read for MemoryBackend {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        self.families[cf as usize].get(key).cloned()
    }

    fn scan(&self, cf: Cf, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool, visit: Visit<'_>) {
        if nothing_between(from, to) {
            return;
        }
        let mut range = self.families[cf as usize].range::<[u8], _>((from, to));
        while let Some((key, value)) = if reverse { range.next_back() } else { range.next() } {
            if visit(key, value).is_break() {
                return;
            }
        }
    }
}

/// Writes not yet in the backend, on top of it: later commands of a batch see earlier ones.
pub(crate) struct Overlay<'a> {
    base: &'a dyn Read,
    families: [BTreeMap<Bytes, Option<Bytes>>; Cf::ALL.len()],
}

impl<'a> Overlay<'a> {
    pub(crate) fn new(base: &'a dyn Read) -> Overlay<'a> {
        Overlay { base, families: Default::default() }
    }

    pub(crate) fn put(&mut self, cf: Cf, key: Bytes, value: Bytes) {
        self.families[cf as usize].insert(key, Some(value));
    }

    pub(crate) fn delete(&mut self, cf: Cf, key: Bytes) {
        self.families[cf as usize].insert(key, None);
    }

    /// The net change, by column family and key.
    pub(crate) fn into_writes(self) -> Vec<Write> {
        let with_cf = |(cf, family): (Cf, BTreeMap<Bytes, Option<Bytes>>)| {
            family.into_iter().map(move |(key, value)| Write { cf, key, value })
        };
        Cf::ALL.into_iter().zip(self.families).flat_map(with_cf).collect()
    }
}

impl Read for Overlay<'_> {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        match self.families[cf as usize].get(key) {
            Some(pending) => pending.clone(),
            None => self.base.get(cf, key),
        }
    }

    fn scan(&self, cf: Cf, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool, visit: Visit<'_>) {
        if nothing_between(from, to) {
            return;
        }
        let family = &self.families[cf as usize];
        if family.is_empty() {
            return self.base.scan(cf, from, to, reverse, visit);
        }
        let mut range = family.range::<[u8], _>((from, to));
        let mut pending =
            std::iter::from_fn(|| if reverse { range.next_back() } else { range.next() }).peekable();
        let mut stopped = false;
        self.base.scan(cf, from, to, reverse, &mut |key, value| {
            // Pending keys that come first, then the stored one unless it is overwritten.
            while let Some((ahead, change)) =
                pending.next_if(|(next, _)| if reverse { &next[..] >= key } else { &next[..] <= key })
            {
                let flow = change.as_ref().map_or(ControlFlow::Continue(()), |change| visit(ahead, change));
                stopped |= flow.is_break();
                if flow.is_break() || ahead == key {
                    return flow;
                }
            }
            let flow = visit(key, value);
            stopped |= flow.is_break();
            flow
        });
        while !stopped && let Some((key, change)) = pending.next() {
            stopped = change.as_ref().is_some_and(|change| visit(key, change).is_break());
        }
    }
}
