//! Answers: what `apply` and the reads return. `revision` is the answer's header revision.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::command::LeaseId;
use crate::members::Member;

/// A key's version as clients see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyValue {
    pub key: Bytes,
    /// Revision at which this life of the key began.
    pub create_revision: i64,
    /// Revision of this version.
    pub mod_revision: i64,
    /// 1 at creation, +1 per put.
    pub version: i64,
    pub value: Bytes,
    /// 0 = none.
    pub lease: LeaseId,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Response {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    Compact {
        revision: i64,
    },
    LeaseGrant {
        revision: i64,
        id: LeaseId,
        ttl: i64,
    },
    LeaseRevoke {
        revision: i64,
    },
    /// `ttl` in seconds; 0 = no such lease.
    LeaseKeepAlive {
        revision: i64,
        id: LeaseId,
        ttl: i64,
    },
    /// The alarms that were changed.
    Alarm {
        revision: i64,
        alarms: Vec<crate::state::Alarm>,
    },
    Auth {
        revision: i64,
    },
    /// The list after the change.
    Members {
        revision: i64,
        members: Vec<Member>,
    },
    Downgrade {
        revision: i64,
    },
}

impl Response {
    /// The header's revision.
    pub fn revision(&self) -> i64 {
        match self {
            Response::Put(put) => put.revision,
            Response::DeleteRange(delete) => delete.revision,
            Response::Txn(txn) => txn.revision,
            Response::Compact { revision }
            | Response::LeaseGrant { revision, .. }
            | Response::LeaseRevoke { revision }
            | Response::Auth { revision }
            | Response::Downgrade { revision }
            | Response::LeaseKeepAlive { revision, .. }
            | Response::Alarm { revision, .. }
            | Response::Members { revision, .. } => *revision,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PutResponse {
    pub revision: i64,
    pub prev_kv: Option<KeyValue>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeleteRangeResponse {
    pub revision: i64,
    pub deleted: i64,
    pub prev_kvs: Vec<KeyValue>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RangeResponse {
    /// The store's current revision, not the revision read at.
    pub revision: i64,
    pub kvs: Vec<KeyValue>,
    /// More keys than `limit` matched.
    pub more: bool,
    /// Keys in the range, before limit and min/max filters.
    pub count: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TxnResponse {
    pub revision: i64,
    pub succeeded: bool,
    pub responses: Vec<ResponseOp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ResponseOp {
    Range(RangeResponse),
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
}

/// Answer to LeaseTimeToLive; seconds. `ttl` is -1 when the lease does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TimeToLive {
    pub id: LeaseId,
    pub ttl: i64,
    pub granted_ttl: i64,
    /// Attached keys in order, when asked for.
    pub keys: Vec<Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Put,
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WatchEvent {
    pub kind: EventType,
    /// For a delete only `key` and `mod_revision` are set.
    pub kv: KeyValue,
    /// The version before, if there was one (and it is not compacted).
    pub prev_kv: Option<KeyValue>,
}

/// All changes of one revision, in order. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RevisionEvents {
    pub revision: i64,
    pub events: Vec<WatchEvent>,
}

impl RevisionEvents {
    /// Approximate memory, bytes: what budgets count.
    pub fn size(&self) -> usize {
        let kv = |kv: &KeyValue| kv.key.len() + kv.value.len() + 64;
        self.events.iter().map(|event| kv(&event.kv) + event.prev_kv.as_ref().map_or(0, kv)).sum()
    }
}
