//! What goes into the replicated log, and the request types it shares with reads.
//!
//! A log entry holds one [`Batch`]: a [`Stamp`] of the leader's clock and the commands of many clients. Variants and
//! fields are only ever appended: a log written by one version is read by the next.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::auth::{Identity, Permission};
use crate::members::Member;

/// Identifies a lease; 0 means none, negative ids are legal.
pub type LeaseId = i64;

/// One Raft log entry's payload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Batch {
    /// The proposing leader's clock, read when the batch was closed.
    pub stamp: Stamp,
    /// In order; an empty list is a pure tick of lease time.
    pub commands: Vec<Command>,
}

/// Lease time as the leader saw it: milliseconds of its monotonic clock since it took office in `term`.
///
/// Two stamps of one term are compared by `millis`; a stamp of an older term, or an older stamp of the same term, moves
/// nothing, so a duplicated or reordered proposal can never age a lease twice. A new leader counts from 0: the time
/// between two leaders is given to the leases, never taken from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    pub term: u64,
    pub millis: u64,
}

/// A state change. Requests are validated (`check` module) before they become commands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Command {
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(TxnRequest),
    /// Forget everything older than the newest version at or before `revision`.
    Compact {
        revision: i64,
    },
    /// `id` is chosen by the shell when the client gave 0; `ttl` in seconds, already raised to the server's floor.
    LeaseGrant {
        id: LeaseId,
        ttl: i64,
    },
    LeaseRevoke {
        id: LeaseId,
    },
    /// Restart the full TTL. Answers TTL 0 for an unknown lease (not an error).
    LeaseKeepAlive {
        id: LeaseId,
    },
    AlarmActivate {
        member: u64,
        alarm: AlarmType,
    },
    AlarmDeactivate {
        member: u64,
        alarm: AlarmType,
    },
    MemberAdd(Member),
    MemberRemove {
        id: u64,
    },
    MemberUpdate {
        id: u64,
        peer_urls: Vec<String>,
    },
    MemberPromote {
        id: u64,
    },
    /// What a member says of itself once it serves.
    MemberPublish {
        id: u64,
        name: String,
        client_urls: Vec<String>,
    },
    Auth(AuthChange),
    /// A request of a known user, judged when it is applied. Everything is proposed so while auth is enabled.
    As {
        who: Identity,
        command: Box<Command>,
    },
    /// Begins a downgrade of the cluster to a version (`major.minor.patch`), or ends it.
    Downgrade {
        target: Option<String>,
    },
}

/// A change of users and roles. Passwords arrive hashed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AuthChange {
    Enable,
    Disable,
    /// An empty hash: no password.
    UserAdd {
        name: String,
        password_hash: Bytes,
    },
    UserDelete {
        name: String,
    },
    UserChangePassword {
        name: String,
        password_hash: Bytes,
    },
    UserGrantRole {
        user: String,
        role: String,
    },
    UserRevokeRole {
        user: String,
        role: String,
    },
    RoleAdd {
        name: String,
    },
    RoleDelete {
        name: String,
    },
    /// `None` as on the wire: refused.
    RoleGrantPermission {
        name: String,
        permission: Option<Permission>,
    },
    RoleRevokePermission {
        name: String,
        key: Bytes,
        range_end: Bytes,
    },
    /// The server gave a token to a user whose password was right under the auth revision `checked`. Only the token's
    /// SHA-256 is logged.
    GiveToken {
        user: String,
        digest: [u8; 32],
        checked: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AlarmType {
    NoSpace,
    Corrupt,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PutRequest {
    pub key: Bytes,
    pub value: Bytes,
    pub lease: LeaseId,
    pub prev_kv: bool,
    pub ignore_value: bool,
    pub ignore_lease: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeleteRangeRequest {
    pub key: Bytes,
    /// As on the wire: empty = the one key, `\0` = everything from `key` on.
    pub range_end: Bytes,
    pub prev_kv: bool,
}

/// A read. `serializable` is the shell's business and not here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RangeRequest {
    pub key: Bytes,
    /// As on the wire: empty = the one key, `\0` = everything from `key` on.
    pub range_end: Bytes,
    /// Most keys to return; 0 or less = all.
    pub limit: i64,
    /// 0 or less = now.
    pub revision: i64,
    pub sort_order: SortOrder,
    pub sort_target: SortTarget,
    pub keys_only: bool,
    pub count_only: bool,
    /// 0 = no bound, for all four.
    pub min_mod_revision: i64,
    pub max_mod_revision: i64,
    pub min_create_revision: i64,
    pub max_create_revision: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SortOrder {
    #[default]
    None,
    Ascend,
    Descend,
    /// A number the protocol does not know; refused by `check`.
    Unknown,
}

impl SortOrder {
    /// From the wire's number.
    pub fn from_wire(number: i32) -> SortOrder {
        match number {
            0 => SortOrder::None,
            1 => SortOrder::Ascend,
            2 => SortOrder::Descend,
            _ => SortOrder::Unknown,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SortTarget {
    #[default]
    Key,
    Version,
    Create,
    Mod,
    Value,
    /// A number the protocol does not know; refused by `check`.
    Unknown,
}

impl SortTarget {
    /// From the wire's number.
    pub fn from_wire(number: i32) -> SortTarget {
        match number {
            0 => SortTarget::Key,
            1 => SortTarget::Version,
            2 => SortTarget::Create,
            3 => SortTarget::Mod,
            4 => SortTarget::Value,
            _ => SortTarget::Unknown,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TxnRequest {
    pub compare: Vec<Compare>,
    pub success: Vec<RequestOp>,
    pub failure: Vec<RequestOp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RequestOp {
    Range(RangeRequest),
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(TxnRequest),
    /// The wire's unset oneof; `check::txn` refuses it the way etcd does.
    Unset,
}

/// Holds when every key of the range satisfies it; a missing key compares as zeros, never as a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Compare {
    pub key: Bytes,
    /// As on the wire: empty = the one key, `\0` = everything from `key` on.
    pub range_end: Bytes,
    pub result: CompareResult,
    pub target: CompareTarget,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CompareResult {
    #[default]
    Equal,
    Greater,
    Less,
    NotEqual,
}

/// The compared attribute and its operand; an operand absent on the wire is its zero.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CompareTarget {
    Version(i64),
    Create(i64),
    Mod(i64),
    Value(Bytes),
    Lease(LeaseId),
}
