//! Read index: the log position a linearizable read must wait for, and the leader's clock, asked once for all reads
//! that wait.
//!
//! Reads that arrive while a round is under way wait for the next one: a round begun before a read may miss a write that
//! was acknowledged before the read.

use std::sync::Arc;
use std::time::Duration;

use keelson_store_core::{Error, Stamp};
use openraft::AsyncRuntime;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::raft::ReadPolicy;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::backend::Backend;
use crate::network::{Reply, Request, Transport};
use crate::replica::Replica;

/// Reads that may wait; above it callers wait.
const QUEUE: usize = 4096;
/// Pause before asking again after a failed round.
const AGAIN: Duration = Duration::from_millis(20);

/// What a round of asking gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// What must be applied here before a read.
    pub index: u64,
    /// The leader's clock after the round began; `None` when it leads no more.
    pub stamp: Option<Stamp>,
}

pub(crate) struct Waiter {
    told: Told,
    deadline: Instant,
}

/// Who is told.
enum Told {
    /// Of the index.
    Task(oneshot::Sender<Result<Seen, Error>>),
    /// Once the index is applied here; must not block.
    Callback(Box<dyn FnOnce(Result<Seen, Error>) + Send>),
}

/// The entrance of the queue.
#[derive(Clone)]
pub struct Reads {
    waiters: mpsc::Sender<Waiter>,
    timeout: Duration,
}

impl Reads {
    pub(crate) fn new(timeout: Duration) -> (Reads, mpsc::Receiver<Waiter>) {
        let (waiters, receiver) = mpsc::channel(QUEUE);
        (Reads { waiters, timeout }, receiver)
    }

    /// The index a read that begins now must see applied.
    ///
    /// # Errors
    /// No leader, timeout, stopped.
    pub async fn index(&self) -> Result<Seen, Error> {
        let (answer, receiver) = oneshot::channel();
        let deadline = Instant::now() + self.timeout;
        let waiting = async {
            let waiter = Waiter { told: Told::Task(answer), deadline };
            self.waiters.send(waiter).await.map_err(|_| Error::Stopped)?;
            receiver.await.map_err(|_| Error::Stopped)?
        };
        tokio::time::timeout_at(deadline, waiting).await.unwrap_or(Err(Error::Timeout))
    }

    /// Queues a read without waiting: `done` is called once a read here sees everything acknowledged before this call.
    /// Answers whether there was room; without room nothing was queued.
    pub fn submit(&self, done: impl FnOnce(Result<Seen, Error>) + Send + 'static) -> bool {
        let Ok(place) = self.waiters.try_reserve() else { return false };
        place.send(Waiter { told: Told::Callback(Box::new(done)), deadline: Instant::now() + self.timeout });
        true
    }
}

/// The task: one round for all that wait, again and again.
pub(crate) async fn run<R, B, T>(replica: Arc<Replica<R, B, T>>, mut waiters: mpsc::Receiver<Waiter>)
where
    R: AsyncRuntime,
    B: Backend,
    T: Transport<R>,
{
    while let Some(first) = waiters.recv().await {
        let mut round = vec![first];
        while let Ok(waiter) = waiters.try_recv() {
            round.push(waiter);
        }
        let Some(deadline) = round.iter().map(|waiter| waiter.deadline).max() else { continue };
        let seen = ask(&replica, deadline).await;
        let mut callbacks = Vec::new();
        for waiter in round {
            match waiter.told {
                // A reader that gave up needs no answer.
                Told::Task(answer) => drop(answer.send(seen)),
                Told::Callback(callback) => callbacks.push(callback),
            }
        }
        match seen {
            Ok(seen) if replica.shared.applied() < seen.index && !callbacks.is_empty() => {
                let replica = replica.clone();
                drop(R::spawn(async move {
                    let applied = replica.shared.wait_applied(seen.index);
                    let applied = tokio::time::timeout_at(deadline, applied).await;
                    let applied = applied.unwrap_or(Err(Error::TimeoutWaitAppliedIndex));
                    callbacks.into_iter().for_each(|callback| callback(applied.map(|()| seen)));
                }));
            }
            seen => callbacks.into_iter().for_each(|callback| callback(seen)),
        }
    }
}

async fn ask<R, B, T>(replica: &Replica<R, B, T>, deadline: Instant) -> Result<Seen, Error>
where
    R: AsyncRuntime,
    B: Backend,
    T: Transport<R>,
{
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if replica.is_leader() {
            match tokio::time::timeout(left, here(replica)).await {
                Ok(Ok(seen)) => return Ok(seen),
                Ok(Err(Error::Stopped)) => return Err(Error::Stopped),
                Ok(Err(_)) => {}
                Err(_) => return Err(Error::Timeout),
            }
        } else if let Some((leader, node)) = replica.leader()
            && let Ok(Reply::ReadIndex(Ok(seen))) =
                replica.transport.call(leader, &node, Request::ReadIndex, left.min(replica.patience())).await
        {
            return Ok(seen);
        }
        if Instant::now() + AGAIN >= deadline {
            return Err(Error::Timeout);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The read index of this member as leader.
///
/// # Errors
/// Not (or no longer surely) the leader; stopped.
pub(crate) async fn here<R, B, T>(replica: &Replica<R, B, T>) -> Result<Seen, Error>
where
    R: AsyncRuntime,
    B: Backend,
    T: Transport<R>,
{
    #[cfg(feature = "planted")]
    if keelson_plant::is(8) {
        return Ok(Seen { index: replica.committed(), stamp: replica.stamp() });
    }
    match replica.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
        Ok((read, _)) => Ok(Seen { index: read.index(), stamp: replica.stamp() }),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => Err(Error::NotLeader),
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(Error::NoLeader),
        Err(RaftError::Fatal(_)) => Err(Error::Stopped),
    }
}
