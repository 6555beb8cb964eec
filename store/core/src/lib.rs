//! Pure semantics of the etcd v3 store: no clock, IO, randomness, threads or disk.
//!
//! ```text
//! request ── check::* ──► Command ──► Batch (Raft log) ──► apply(&mut State, &dyn Read, index, &Batch)
//!                                                               │
//!                Effects { writes, events, responses, .. } ◄────┘   the shell writes, then publishes, then answers
//! ```
//!
//! Start reading at [`Command`] and [`apply()`]; then [`range()`] (reads), [`txn`], [`lease`], [`compact`], [`watch`].
//! Stored bytes are in `layout`. What must always hold is in [`invariants`].
//!
//! The shell's duties: propose only what `check` let through; stamp each batch with the leader's clock ([`Stamp`]);
//! propose an empty batch as a tick while leases exist; apply in log order; write `Effects::writes` as one atomic
//! batch; run [`compact::Scrub`] when due.

pub mod apply;
pub mod auth;
pub mod backend;
pub mod check;
pub mod command;
pub mod compact;
mod counts;
pub mod error;
pub mod hash;
pub mod invariants;
mod layout;
pub mod lease;
pub mod members;
pub mod portable;
pub mod range;
pub mod range_stream;
pub mod response;
pub mod restore;
pub mod state;
pub mod txn;
pub mod watch;

pub use apply::{Effects, apply};
pub use auth::{Access, Auth, Identity, Permission, TokenChange, User};
pub use backend::{Cf, MemoryBackend, Read, Write};
pub use command::{
    AlarmType, AuthChange, Batch, Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest,
    LeaseId, PutRequest, RangeRequest, RequestOp, SortOrder, SortTarget, Stamp, TxnRequest,
};
pub use error::{Code, Error};
pub use hash::{HashKv, hash_kv};
pub use layout::Revision;
pub use members::{Member, Members};
pub use range::{KeyRange, range};
pub use response::{
    DeleteRangeResponse, EventType, KeyValue, PutResponse, RangeResponse, Response, ResponseOp,
    RevisionEvents, TimeToLive, TxnResponse, WatchEvent,
};
pub use state::{Alarm, LoadError, State};
