//! Group commit: one task gathers what clients propose into batches, a few of them in flight at a time.
//!
//! While batches are in flight the next one grows, so load makes batches larger instead of slower. On a follower a
//! batch's commands are sent to the leader, whose own proposer adds them to its next batch.
//!
//! Hazard: a command is sent again only when it certainly was not logged; everything else is answered as unknown
//! (`LeaderChanged`, `Timeout`), and clients decide.

use std::sync::Arc;
use std::time::Duration;

use keelson_store_core::{Batch, Command, Error, RequestOp, Response, TxnRequest};
use openraft::AsyncRuntime;
use openraft::errors::{ClientWriteError, RaftError};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::backend::Backend;
use crate::network::{Reply, Request, Transport, TransportError};
use crate::replica::Replica;
use crate::types::{Applied, Payload};

/// Proposals that may wait; above it callers wait.
const QUEUE: usize = 4096;
/// Batches in flight.
const IN_FLIGHT: usize = 4;
/// Commands in one batch.
const COMMANDS: usize = 1024;
/// Approximate payload of one batch, bytes.
const BYTES: usize = 1024 * 1024;
/// How often a follower looks for a leader while there is none.
const LOOK: Duration = Duration::from_millis(20);

/// Commands that stay together, and who waits for them.
pub(crate) struct Job {
    commands: Vec<Command>,
    answer: oneshot::Sender<Result<Applied, Error>>,
    deadline: Instant,
}

/// The entrance of the queue.
#[derive(Clone)]
pub struct Proposer {
    jobs: mpsc::Sender<Job>,
    timeout: Duration,
}

impl Proposer {
    pub(crate) fn new(timeout: Duration) -> (Proposer, mpsc::Receiver<Job>) {
        let (jobs, receiver) = mpsc::channel(QUEUE);
        (Proposer { jobs, timeout }, receiver)
    }

    /// Logs the commands together and answers their results once applied where they were logged.
    ///
    /// # Errors
    /// No leader, leader changed, timeout, stopped. After the last three the commands may still take effect.
    pub async fn propose_all(&self, commands: Vec<Command>) -> Result<Applied, Error> {
        let (answer, receiver) = oneshot::channel();
        let deadline = Instant::now() + self.timeout;
        let job = Job { commands, answer, deadline };
        let waiting = async {
            self.jobs.send(job).await.map_err(|_| Error::Stopped)?;
            receiver.await.map_err(|_| Error::Stopped)?
        };
        tokio::time::timeout_at(deadline, waiting).await.unwrap_or(Err(Error::Timeout))
    }

    /// One command.
    ///
    /// # Errors
    /// As `propose_all`, or the command's own refusal.
    pub async fn propose(&self, command: Command) -> Result<(u64, Response), Error> {
        let applied = self.propose_all(vec![command]).await?;
        let response = applied.responses.into_iter().next().ok_or(Error::Stopped)??;
        Ok((applied.index, response))
    }
}

/// Roughly what a command adds to a batch, bytes.
fn weight(command: &Command) -> usize {
    match command {
        Command::Put(put) => 64 + put.key.len() + put.value.len(),
        Command::DeleteRange(delete) => 64 + delete.key.len() + delete.range_end.len(),
        Command::Txn(txn) => txn_weight(txn),
        _ => 64,
    }
}

fn txn_weight(txn: &TxnRequest) -> usize {
    let op = |op: &RequestOp| match op {
        RequestOp::Put(put) => 64 + put.key.len() + put.value.len(),
        RequestOp::Txn(txn) => txn_weight(txn),
        RequestOp::Range(_) | RequestOp::DeleteRange(_) | RequestOp::Unset => 128,
    };
    64 + 128 * txn.compare.len() + txn.success.iter().chain(&txn.failure).map(op).sum::<usize>()
}

/// The task: gathers and launches batches until the queue closes.
pub(crate) async fn run<R, B, T>(replica: Arc<Replica<R, B, T>>, mut jobs: mpsc::Receiver<Job>)
where
    R: AsyncRuntime,
    B: Backend,
    T: Transport<R>,
{
    let permits = Arc::new(Semaphore::new(IN_FLIGHT));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let Some(first) = jobs.recv().await else { return };
        let mut weights: usize = first.commands.iter().map(weight).sum();
        let mut count = first.commands.len();
        let mut batch = vec![first];
        while count < COMMANDS && weights < BYTES {
            let Ok(job) = jobs.try_recv() else { break };
            weights += job.commands.iter().map(weight).sum::<usize>();
            count += job.commands.len();
            batch.push(job);
        }
        // Whoever gave up must not be surprised by a late write.
        batch.retain(|job| !job.answer.is_closed());
        let replica = replica.clone();
        drop(R::spawn(async move {
            launch(&replica, batch).await;
            drop(permit);
        }));
    }
}

/// Logs one batch, here or at the leader, and answers its jobs.
async fn launch<R, B, T>(replica: &Replica<R, B, T>, jobs: Vec<Job>)
where
    R: AsyncRuntime,
    B: Backend,
    T: Transport<R>,
{
    let Some(deadline) = jobs.iter().map(|job| job.deadline).max() else { return };
    let mut answers = Vec::with_capacity(jobs.len());
    let mut commands = Vec::new();
    for job in jobs {
        answers.push((job.commands.len(), job.answer));
        commands.extend(job.commands);
    }
    match log(replica, commands, deadline).await {
        Ok(applied) => {
            let mut responses = applied.responses.into_iter();
            for (count, answer) in answers {
                let responses = responses.by_ref().take(count).collect();
                // A waiter that gave up needs no answer.
                let _ = answer.send(Ok(Applied { index: applied.index, responses }));
            }
        }
        Err(error) => {
            for (_, answer) in answers {
                let _ = answer.send(Err(error));
            }
        }
    }
}

async fn log<R, B, T>(
    replica: &Replica<R, B, T>,
    commands: Vec<Command>,
    deadline: Instant,
) -> Result<Applied, Error>
where
    R: AsyncRuntime,
    B: Backend,
    T: Transport<R>,
{
    loop {
        if let Some(stamp) = replica.stamp() {
            let payload = Payload::encode(&Batch { stamp, commands: commands.clone() });
            match replica.raft.client_write(payload).await {
                Ok(written) => return Ok(written.data),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {}
                Err(RaftError::APIError(_)) => return Err(Error::LeaderChanged),
                Err(RaftError::Fatal(_)) => return Err(Error::Stopped),
            }
        } else if let Some((leader, node)) = replica.leader() {
            let left = deadline.saturating_duration_since(Instant::now());
            let request = Request::Forward(commands.clone());
            match replica.transport.call(leader, &node, request, left).await {
                // The leader it was, it is no more, and said so before logging anything.
                Ok(Reply::Forward(Err(Error::NotLeader))) => {}
                Ok(Reply::Forward(answer)) => {
                    let applied = answer?;
                    replica.shared.wait_applied(applied.index).await?;
                    return Ok(applied);
                }
                Err(TransportError::Unreachable(_)) => {}
                Err(TransportError::Timeout(_)) => return Err(Error::Timeout),
                Ok(_) | Err(TransportError::Broken(_)) => return Err(Error::TimeoutDueToConnectionLost),
            }
        }
        if Instant::now() + LOOK >= deadline {
            let nobody = replica.leader_id() == 0;
            return Err(if nobody { Error::DeadlineExceeded } else { Error::Timeout });
        }
        tokio::time::sleep(LOOK).await;
    }
}
