//! The small replicated state kept in memory; everything of the size of the data stays in the backend.
//!
//! It is a pure function of the applied log: equal on all members at the same applied index (property S4), and restored
//! from the backend alone by [`State::load`].

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::auth::Auth;
use crate::backend::{Cf, Overlay, Read};
use crate::command::{AlarmType, LeaseId, Stamp};
use crate::layout;
use crate::lease::{Clock, Lease, Lessor};
use crate::members::Members;
use crate::response::TimeToLive;

/// The revision of a store in which nothing was ever written.
pub const FIRST_REVISION: i64 = 1;

/// `compact_revision` of a store never compacted.
pub const NEVER_COMPACTED: i64 = -1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Alarm {
    pub member: u64,
    pub alarm: AlarmType,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Raft index of the newest batch in this state (etcd's consistent index).
    pub(crate) applied: u64,
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    pub(crate) lessor: Lessor,
    pub(crate) alarms: BTreeSet<Alarm>,
    pub(crate) members: Members,
    pub(crate) auth: Auth,
    /// The version a downgrade under way goes to.
    pub(crate) downgrade: Option<String>,
}

impl Default for State {
    fn default() -> State {
        State {
            applied: 0,
            revision: FIRST_REVISION,
            compact_revision: NEVER_COMPACTED,
            lessor: Lessor::default(),
            alarms: BTreeSet::new(),
            members: Members::default(),
            auth: Auth::default(),
            downgrade: None,
        }
    }
}

/// The record written with every batch.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    applied: u64,
    revision: i64,
    compact_revision: i64,
    clock: Clock,
}

const HEAD: &[u8] = b"head";
const MEMBERS: &[u8] = b"members";
const ALARMS: &[u8] = b"alarms";
const AUTH: &[u8] = b"auth";
const DOWNGRADE: &[u8] = b"downgrade";

/// Stored state that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the stored record {record:?} is damaged ({source}): restore this member from a snapshot or re-add it empty"
)]
pub struct LoadError {
    pub record: &'static str,
    pub source: postcard::Error,
}

fn decode<T: DeserializeOwned>(
    read: &dyn Read,
    key: &[u8],
    record: &'static str,
) -> Result<Option<T>, LoadError> {
    let decoded = read.get(Cf::Meta, key).map(|bytes| postcard::from_bytes(&bytes));
    decoded.transpose().map_err(|source| LoadError { record, source })
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    postcard::to_stdvec(value).expect("plain data always encodes").into()
}

impl State {
    /// The state an empty or earlier written backend holds. Errors: a record that does not decode.
    pub fn load(read: &dyn Read) -> Result<State, LoadError> {
        let mut state = State::default();
        if let Some(head) = decode::<Head>(read, HEAD, "head")? {
            state.applied = head.applied;
            state.revision = head.revision;
            state.compact_revision = head.compact_revision;
            state.lessor.clock = head.clock;
        }
        #[cfg(feature = "planted")]
        if keelson_plant::is(12) && crate::compact::scrubbed(read) < state.compact_revision {
            state.revision = state.compact_revision;
        }
        state.members = decode(read, MEMBERS, "members")?.unwrap_or_default();
        state.alarms = decode(read, ALARMS, "alarms")?.unwrap_or_default();
        state.auth = decode(read, AUTH, "auth")?.unwrap_or_default();
        state.downgrade = decode(read, DOWNGRADE, "downgrade")?.unwrap_or_default();
        read.scan(Cf::Lease, Bound::Unbounded, Bound::Unbounded, false, &mut |id, record| {
            let (ttl, expiry) = layout::decode_lease_record(record);
            state.lessor.insert(layout::decode_lease(id), Lease { ttl, expiry });
            ControlFlow::Continue(())
        });
        Ok(state)
    }

    pub(crate) fn write_head(&self, view: &mut Overlay<'_>) {
        let head = Head {
            applied: self.applied,
            revision: self.revision,
            compact_revision: self.compact_revision,
            clock: self.lessor.clock,
        };
        view.put(Cf::Meta, Bytes::from_static(HEAD), encode(&head));
    }

    pub(crate) fn write_members(&self, view: &mut Overlay<'_>) {
        view.put(Cf::Meta, Bytes::from_static(MEMBERS), encode(&self.members));
    }

    pub(crate) fn write_auth(&self, view: &mut Overlay<'_>) {
        view.put(Cf::Meta, Bytes::from_static(AUTH), encode(&self.auth));
    }

    pub(crate) fn write_downgrade(&self, view: &mut Overlay<'_>) {
        view.put(Cf::Meta, Bytes::from_static(DOWNGRADE), encode(&self.downgrade));
    }

    pub(crate) fn write_alarms(&self, view: &mut Overlay<'_>) {
        view.put(Cf::Meta, Bytes::from_static(ALARMS), encode(&self.alarms));
    }

    /// Raft index of the newest applied batch.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// The current main revision; 1 when nothing was ever written.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Reads below it are refused; -1 when never compacted.
    pub fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    pub fn lessor(&self) -> &Lessor {
        &self.lessor
    }

    pub fn alarms(&self) -> &BTreeSet<Alarm> {
        &self.alarms
    }

    pub fn members(&self) -> &Members {
        &self.members
    }

    pub fn auth(&self) -> &Auth {
        &self.auth
    }

    /// The version a downgrade under way goes to.
    pub fn downgrade(&self) -> Option<&str> {
        self.downgrade.as_deref()
    }

    /// Whether any member raised this alarm.
    pub fn has_alarm(&self, alarm: AlarmType) -> bool {
        self.alarms.iter().any(|raised| raised.alarm == alarm)
    }

    /// LeaseTimeToLive. `stamp` is the leader's clock now (a default stamp reads the replicated time, at most a tick old).
    pub fn time_to_live(&self, read: &dyn Read, id: LeaseId, keys: bool, stamp: Stamp) -> TimeToLive {
        let Some(lease) = self.lessor.get(id) else {
            return TimeToLive { id, ttl: -1, ..TimeToLive::default() };
        };
        let left = lease.expiry.saturating_sub(self.lessor.clock.at(stamp));
        TimeToLive {
            id,
            ttl: ((left / 1000) as i64).min(lease.ttl),
            granted_ttl: lease.ttl,
            keys: if keys { lease_keys(read, id) } else { Vec::new() },
        }
    }
}

/// Keys attached to a lease, in order.
pub(crate) fn lease_keys(read: &dyn Read, id: LeaseId) -> Vec<Bytes> {
    let prefix = layout::lease_prefix(id);
    let mut keys = Vec::new();
    read.scan(Cf::LeaseKey, Bound::Included(&prefix), Bound::Unbounded, false, &mut |stored, _| {
        match stored.strip_prefix(&prefix[..]) {
            Some(key) => keys.push(Bytes::copy_from_slice(key)),
            None => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    });
    keys
}
