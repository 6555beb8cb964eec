//! Leases and the lessor: who expires when, in replicated lease time.
//!
//! Lease time advances only by the [`Stamp`]s of applied batches, so every member agrees on it, and it stands still
//! while there is no leader: a lease may live longer than its TTL, never shorter. Keys attached to a lease are in the
//! backend (`Cf::LeaseKey`), not here.
//!
//! A lease lasts [`SLACK`] longer than its TTL. While that much is left, a keep-alive has nothing to change: it is a read
//! ([`Lessor::kept`]), and only one in so much time goes through the log.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::command::{LeaseId, Stamp};
use crate::error::Error;

/// Longest TTL etcd grants, in seconds.
pub const MAX_TTL: i64 = 9_000_000_000;

/// What a lease lasts beyond its TTL, in milliseconds: less than etcd takes to notice that one is over.
pub const SLACK: u64 = 500;

/// Most leases revoked by one batch; the rest wait for the next, so a mass expiry cannot stall the store.
pub const EXPIRE_PER_BATCH: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Granted, in seconds.
    pub ttl: i64,
    /// In milliseconds of lease time.
    pub expiry: u64,
}

/// What a keep-alive finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// No such lease.
    Unknown,
    /// It lasts its whole TTL (in seconds) from now on already.
    Lasting { ttl: i64 },
    /// It must be renewed through the log.
    Ageing,
}

/// Lease time: the sum of what leaders' clocks advanced while they led.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Clock {
    /// Newest stamp seen.
    pub last: Stamp,
    /// Milliseconds.
    pub now: u64,
}

impl Clock {
    /// Moves to `stamp`; an older one moves nothing.
    pub fn advance(&mut self, stamp: Stamp) {
        if stamp <= self.last {
            return;
        }
        self.now = self.at(stamp);
        self.last = stamp;
    }

    /// Lease time at `stamp`, never before `now`.
    pub fn at(&self, stamp: Stamp) -> u64 {
        #[cfg(feature = "planted")]
        if keelson_plant::is(20) && stamp.term > self.last.term {
            return self.now.saturating_add(stamp.millis + self.last.millis);
        }
        let elapsed = match stamp.term.cmp(&self.last.term) {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => stamp.millis.saturating_sub(self.last.millis),
            std::cmp::Ordering::Greater => stamp.millis,
        };
        self.now.saturating_add(elapsed)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lessor {
    leases: BTreeMap<LeaseId, Lease>,
    by_expiry: BTreeSet<(u64, LeaseId)>,
    pub(crate) clock: Clock,
}

impl Lessor {
    pub fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    pub fn len(&self) -> usize {
        self.leases.len()
    }

    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// In order of id.
    pub fn iter(&self) -> impl Iterator<Item = (LeaseId, &Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, lease))
    }

    /// LeaseLeases: soonest to expire first.
    pub fn by_expiry(&self) -> impl Iterator<Item = LeaseId> {
        self.by_expiry.iter().map(|(_, id)| *id)
    }

    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Milliseconds of lease time until the first lease expires; `None` without leases.
    pub fn next_expiry(&self) -> Option<u64> {
        self.by_expiry.first().map(|(expiry, _)| expiry.saturating_sub(self.clock.now))
    }

    /// Both maps hold the same leases.
    pub(crate) fn is_consistent(&self) -> bool {
        self.leases.len() == self.by_expiry.len()
            && self
                .by_expiry
                .iter()
                .all(|(expiry, id)| self.leases.get(id).is_some_and(|l| l.expiry == *expiry))
    }

    pub(crate) fn insert(&mut self, id: LeaseId, lease: Lease) {
        if let Some(old) = self.leases.insert(id, lease) {
            self.by_expiry.remove(&(old.expiry, id));
        }
        self.by_expiry.insert((lease.expiry, id));
    }

    /// Errors: no id, TTL too large, id taken.
    pub(crate) fn grant(&mut self, id: LeaseId, ttl: i64) -> Result<Lease, Error> {
        if id == 0 {
            return Err(Error::LeaseNotFound);
        }
        if ttl > MAX_TTL {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(Error::LeaseExists);
        }
        let lease = Lease { ttl, expiry: self.full(ttl) };
        self.insert(id, lease);
        Ok(lease)
    }

    /// Whether a keep-alive asked no later than `stamp`, the leader's clock, has anything to change.
    ///
    /// The answer `Lasting` promises what a logged keep-alive would: batches of this leader that end the lease carry
    /// stamps at least a TTL from now, and later leaders begin at a lease time that is not ahead of this one's.
    pub fn kept(&self, id: LeaseId, stamp: Stamp) -> Kept {
        #[cfg(feature = "planted")]
        if keelson_plant::is(45)
            && let Some(lease) = self.leases.get(&id)
        {
            return Kept::Lasting { ttl: lease.ttl };
        }
        match self.leases.get(&id) {
            None => Kept::Unknown,
            Some(lease) if lease.expiry >= self.clock.at(stamp).saturating_add(millis(lease.ttl)) => {
                Kept::Lasting { ttl: lease.ttl }
            }
            Some(_) => Kept::Ageing,
        }
    }

    /// A full TTL from now; `None` for an unknown lease.
    pub(crate) fn keep_alive(&mut self, id: LeaseId) -> Option<Lease> {
        let ttl = self.leases.get(&id)?.ttl;
        let lease = Lease { ttl, expiry: self.full(ttl) };
        self.insert(id, lease);
        Some(lease)
    }

    pub(crate) fn remove(&mut self, id: LeaseId) -> Option<Lease> {
        let lease = self.leases.remove(&id)?;
        let known = self.by_expiry.remove(&(lease.expiry, id));
        assert!(known, "lease {id} was not in the expiry order");
        Some(lease)
    }

    /// Whose time is over, soonest first, at most [`EXPIRE_PER_BATCH`].
    pub(crate) fn expired(&self) -> Vec<LeaseId> {
        let over = self.by_expiry.iter().take_while(|(expiry, _)| *expiry <= self.clock.now);
        over.take(EXPIRE_PER_BATCH).map(|(_, id)| *id).collect()
    }

    fn full(&self, ttl: i64) -> u64 {
        self.clock.now.saturating_add(millis(ttl)).saturating_add(SLACK)
    }
}

/// A TTL in milliseconds.
fn millis(ttl: i64) -> u64 {
    u64::try_from(ttl).unwrap_or(0).saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(term: u64, millis: u64) -> Stamp {
        Stamp { term, millis }
    }

    #[test]
    fn duplicated_and_old_stamps_move_nothing() {
        let mut clock = Clock::default();
        clock.advance(stamp(1, 100));
        clock.advance(stamp(1, 100));
        clock.advance(stamp(1, 60));
        assert_eq!(clock.now, 100);
        clock.advance(stamp(2, 30));
        assert_eq!(clock.now, 130, "a new leader counts from its own start");
        clock.advance(stamp(1, 5000));
        assert_eq!(clock.now, 130, "a deposed leader's stamp is void");
    }

    #[test]
    fn grant_refuses_what_etcd_refuses() {
        let mut lessor = Lessor::default();
        assert_eq!(lessor.grant(0, 5), Err(Error::LeaseNotFound));
        assert_eq!(lessor.grant(1, MAX_TTL + 1), Err(Error::LeaseTtlTooLarge));
        assert!(lessor.grant(1, MAX_TTL).is_ok());
        assert_eq!(lessor.grant(1, 5), Err(Error::LeaseExists));
    }

    #[test]
    fn keep_alive_restarts_the_ttl() {
        let mut lessor = Lessor::default();
        lessor.grant(7, 2).expect("granted");
        lessor.clock.advance(stamp(1, 1999));
        assert!(lessor.expired().is_empty());
        lessor.keep_alive(7).expect("alive");
        lessor.clock.advance(stamp(1, 3998 + SLACK));
        assert!(lessor.expired().is_empty());
        lessor.clock.advance(stamp(1, 3999 + SLACK));
        assert_eq!(lessor.expired(), [7]);
        assert!(lessor.is_consistent());
    }

    #[test]
    fn a_keep_alive_soon_after_another_has_nothing_to_change() {
        let mut lessor = Lessor::default();
        assert_eq!(lessor.kept(7, stamp(1, 0)), Kept::Unknown);
        lessor.clock.advance(stamp(1, 1000));
        lessor.grant(7, 2).expect("granted");
        assert_eq!(lessor.kept(7, stamp(1, 1000 + SLACK)), Kept::Lasting { ttl: 2 });
        assert_eq!(lessor.kept(7, stamp(1, 1001 + SLACK)), Kept::Ageing);
        // The next leader counts from its own start, and so does what is left.
        assert_eq!(lessor.kept(7, stamp(2, SLACK)), Kept::Lasting { ttl: 2 });
        assert_eq!(lessor.kept(7, stamp(2, 1 + SLACK)), Kept::Ageing);
        // What was promised at that moment holds: a whole TTL on, the lease is there.
        lessor.clock.advance(stamp(1, 1000 + SLACK + 1999));
        assert!(lessor.expired().is_empty());
    }
}
