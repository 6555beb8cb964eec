//! The types openraft is configured with: ids, the node record, an entry's payload and its answer.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use keelson_store_core::{Batch, Error, Response};
use openraft::impls::leader_id_std;
use openraft::vote::RaftLeaderId;
use openraft::{AsyncRuntime, OptionalSend, RaftTypeConfig};
use serde::{Deserialize, Serialize};

#[allow(deprecated, reason = "the crate that replaces the path is not a dependency of ours")]
pub use openraft::impls::TokioRuntime;

/// The configuration of openraft, generic over its runtime.
pub struct TypeConfig<R = TokioRuntime>(PhantomData<fn() -> R>);

impl<R> fmt::Debug for TypeConfig<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TypeConfig")
    }
}

impl<R> Clone for TypeConfig<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for TypeConfig<R> {}

impl<R> Default for TypeConfig<R> {
    fn default() -> Self {
        TypeConfig(PhantomData)
    }
}

impl<R> PartialEq for TypeConfig<R> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<R> Eq for TypeConfig<R> {}

impl<R> PartialOrd for TypeConfig<R> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<R> Ord for TypeConfig<R> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

impl<R: AsyncRuntime> RaftTypeConfig for TypeConfig<R> {
    type D = Payload;
    type R = Applied;
    type NodeId = u64;
    type Node = Node;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = EntryPayload;
    type Entry = Entry;
    type AsyncRuntime = R;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// One leader per term, as in etcd.
pub type LeaderId = leader_id_std::LeaderId<u64, u64>;
/// The part of a leader's id that log entries carry: the term.
pub type CommittedLeaderId = <LeaderId as RaftLeaderId>::Committed;
/// Term and index of an entry.
pub type LogId = openraft::LogId<CommittedLeaderId>;
/// Whom a member voted for, in which term.
pub type Vote = openraft::impls::Vote<LeaderId>;
/// Blank, a batch of commands, or a membership.
pub type EntryPayload = openraft::EntryPayload<Payload, u64, Node>;
/// One entry of the log.
pub type Entry = openraft::Entry<CommittedLeaderId, EntryPayload>;
/// Voters and learners.
pub type Membership = openraft::Membership<u64, Node>;
/// A membership with the entry that set it.
pub type StoredMembership = openraft::StoredMembership<CommittedLeaderId, u64, Node>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::storage::SnapshotMeta<CommittedLeaderId, u64, Node>;

/// What every member knows of another from Raft's own membership.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The name given at start, empty for a member added by its URLs only.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// A learner that the leader makes a voter by itself as soon as it has caught up.
    pub promote: bool,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.peer_urls.join(","))
    }
}

/// A batch of commands as it is logged, sent and applied: encoded once, where it was proposed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload(pub Bytes);

impl Payload {
    /// Encodes a batch of about `size` bytes.
    ///
    /// # Panics
    /// Never: a batch always encodes.
    pub fn encode(batch: &Batch, size: usize) -> Payload {
        let out = Vec::with_capacity(size);
        Payload(postcard::to_extend(batch, out).expect("a batch is plain data").into())
    }

    /// # Errors
    /// The bytes are no batch: the log is corrupt or written by a newer version.
    pub fn decode(&self) -> Result<Batch, postcard::Error> {
        postcard::from_bytes(&self.0)
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The answer of one applied entry: one result per command, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Where in the log the batch stands.
    pub index: u64,
    /// In the order of the batch's commands.
    pub responses: Vec<Result<Response, Error>>,
}
