//! Messages between members, and openraft's network over the `Transport` seam.
//!
//! One request enum and one reply enum: a transport carries them in any encoding (serde), in any way; a simulator
//! delays, drops, repeats and partitions them. Only a snapshot's content goes beside them, as a stream of chunks.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use keelson_store_core::{Command, Error};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{AsyncRuntime, OptionalSend};
use serde::{Deserialize, Serialize};

use crate::backend::{Backend, Chunks};
use crate::machine::SnapshotData;
use crate::reads::Seen;
use crate::types::{Applied, CommittedLeaderId, Node, SnapshotMeta, TypeConfig, Vote};

/// What one member asks another.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub enum Request<R: AsyncRuntime> {
    /// Replication and heartbeats.
    Append(AppendEntriesRequest<TypeConfig<R>>),
    /// An election.
    Vote(VoteRequest<TypeConfig<R>>),
    /// Whether a vote would be granted.
    PreVote(VoteRequest<TypeConfig<R>>),
    /// Leadership is handed over.
    TransferLeader(TransferLeaderRequest<TypeConfig<R>>),
    /// Commands a follower took; they join the leader's next batch.
    Forward(Vec<Command>),
    /// What a linearizable read must wait for.
    ReadIndex,
    /// A membership change a follower was asked for.
    Change(MemberChange),
}

/// The answers, one for each request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub enum Reply<R: AsyncRuntime> {
    /// To `Append`.
    Append(AppendEntriesResponse<TypeConfig<R>>),
    /// To `Vote` and `PreVote`.
    Vote(VoteResponse<TypeConfig<R>>),
    /// To `TransferLeader`.
    TransferLeader(TransferLeaderResponse<TypeConfig<R>>),
    /// To `Forward`.
    Forward(Result<Applied, Error>),
    /// To `ReadIndex`.
    ReadIndex(Result<Seen, Error>),
    /// To `Change`.
    Change(Result<(), Error>),
    /// The member cannot serve any request: it is stopping or its storage failed.
    Stopped(String),
}

/// A change of membership, executed by the leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// Adds a learner; `node.promote` makes it a voter once it has caught up.
    Add {
        /// Of the new member.
        id: u64,
        /// Its record.
        node: Node,
    },
    /// Makes a learner a voter.
    Promote {
        /// Of the learner.
        id: u64,
    },
    /// Removes a member.
    Remove {
        /// Of the member.
        id: u64,
    },
    /// Changes where peers reach a member.
    Update {
        /// Of the member.
        id: u64,
        /// The new URLs.
        peer_urls: Vec<String>,
    },
}

/// Why a message got no answer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection: nothing was sent.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// No answer in time; the peer may have acted.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection broke, or the answer made no sense; the peer may have acted.
    #[error("{0}")]
    Broken(String),
}

/// Carries messages to peers.
pub trait Transport<R: AsyncRuntime>: Send + Sync + 'static {
    /// Sends one request and waits at most `timeout` for its reply.
    fn call(
        &self,
        target: u64,
        node: &Node,
        request: Request<R>,
        timeout: Duration,
    ) -> impl Future<Output = Result<Reply<R>, TransportError>> + Send;

    /// Sends a snapshot; answers the vote of the receiver once it has installed it.
    fn snapshot(
        &self,
        target: u64,
        node: &Node,
        vote: Vote,
        meta: SnapshotMeta,
        chunks: Chunks,
    ) -> impl Future<Output = Result<Vote, TransportError>> + Send;
}

/// Makes openraft's network clients.
pub struct Network<T, B, R> {
    id: u64,
    transport: Arc<T>,
    marker: PhantomData<fn() -> (B, R)>,
}

impl<T, B, R> Network<T, B, R> {
    /// `id` is our own.
    pub fn new(id: u64, transport: Arc<T>) -> Self {
        Network { id, transport, marker: PhantomData }
    }
}

impl<R: AsyncRuntime, B: Backend, T: Transport<R>> RaftNetworkFactory<TypeConfig<R>> for Network<T, B, R> {
    type Network = Client<T, B, R>;

    async fn new_client(&mut self, target: u64, node: &Node) -> Client<T, B, R> {
        Client {
            id: self.id,
            target,
            node: node.clone(),
            transport: self.transport.clone(),
            marker: PhantomData,
        }
    }
}

/// openraft's way to one peer.
pub struct Client<T, B, R> {
    id: u64,
    target: u64,
    node: Node,
    transport: Arc<T>,
    marker: PhantomData<fn() -> (B, R)>,
}

impl<R: AsyncRuntime, B: Backend, T: Transport<R>> Client<T, B, R> {
    async fn call(
        &self,
        action: RPCTypes,
        request: Request<R>,
        option: &RPCOption,
    ) -> Result<Reply<R>, RPCError<TypeConfig<R>>> {
        let reply = self.transport.call(self.target, &self.node, request, option.soft_ttl()).await;
        match reply {
            Ok(Reply::Stopped(text)) => Err(Unreachable::from_string(text).into()),
            Ok(reply) => Ok(reply),
            Err(TransportError::Unreachable(text)) => Err(Unreachable::from_string(text).into()),
            Err(TransportError::Broken(text)) => Err(NetworkError::from_string(text).into()),
            Err(TransportError::Timeout(timeout)) => {
                Err(Timeout { action, id: self.id, target: self.target, timeout }.into())
            }
        }
    }

    fn wrong(&self, reply: &Reply<R>) -> RPCError<TypeConfig<R>> {
        NetworkError::from_string(format!("member {:x} answered something else: {reply:?}", self.target))
            .into()
    }
}

impl<R: AsyncRuntime, B: Backend, T: Transport<R>> RaftNetworkV2<TypeConfig<R>> for Client<T, B, R> {
    type SnapshotData = SnapshotData<B::Incoming>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig<R>>, RPCError<TypeConfig<R>>> {
        match self.call(RPCTypes::AppendEntries, Request::Append(rpc), &option).await? {
            Reply::Append(reply) => Ok(reply),
            other => Err(self.wrong(&other)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<R>>, RPCError<TypeConfig<R>>> {
        match self.call(RPCTypes::Vote, Request::Vote(rpc), &option).await? {
            Reply::Vote(reply) => Ok(reply),
            other => Err(self.wrong(&other)),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<R>>, RPCError<TypeConfig<R>>> {
        match self.call(RPCTypes::Vote, Request::PreVote(rpc), &option).await? {
            Reply::Vote(reply) => Ok(reply),
            other => Err(self.wrong(&other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::storage::Snapshot<CommittedLeaderId, u64, Node, Self::SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<R>>, StreamingError<TypeConfig<R>>> {
        let SnapshotData::Outgoing(chunks) = snapshot.snapshot else {
            return Err(NetworkError::from_string("this snapshot was not made to be sent").into());
        };
        let sending = self.transport.snapshot(self.target, &self.node, vote, snapshot.meta, chunks);
        let sent = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            sent = sending => sent,
        };
        match sent {
            Ok(vote) => Ok(SnapshotResponse::new(vote)),
            Err(TransportError::Unreachable(text)) => Err(Unreachable::from_string(text).into()),
            Err(error) => Err(NetworkError::from_string(error).into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig<R>>, RPCError<TypeConfig<R>>> {
        match self.call(RPCTypes::TransferLeader, Request::TransferLeader(req), &option).await? {
            Reply::TransferLeader(reply) => Ok(reply),
            other => Err(self.wrong(&other)),
        }
    }
}
