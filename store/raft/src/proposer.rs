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
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::backend::Backend;
use crate::network::{Reply, Request, Transport, TransportError};
use crate::replica::Replica;
use crate::types::{Applied, Payload};

/// Proposals that may wait; above it callers wait.
const QUEUE: usize = 4096;
/// Batches in flight.
const IN_FLIGHT: usize = 8;
/// Commands that are worth a batch of their own while others are in flight.
const WORTH: usize = 16;
/// Commands in one batch.
const COMMANDS: usize = 1024;
/// Approximate payload of one batch, bytes.
const BYTES: usize = 1024 * 1024;
/// How often a follower looks for a leader while there is none.
const LOOK: Duration = Duration::from_millis(20);

/// Commands that stay together, and who waits for them.
pub(crate) struct Job {
    commands: Vec<Command>,
    waiter: Waiter,
    deadline: Instant,
}

/// Told of the outcome: a task that waits, or a callback that must not block.
enum Waiter {
    Task(oneshot::Sender<Result<Applied, Error>>),
    Callback(Box<dyn FnOnce(Result<Applied, Error>) + Send>),
}

impl Waiter {
    fn is_gone(&self) -> bool {
        match self {
            Waiter::Task(answer) => answer.is_closed(),
            Waiter::Callback(_) => false,
        }
    }

    fn tell(self, outcome: Result<Applied, Error>) {
        match self {
            // A waiter that gave up needs no answer.
            Waiter::Task(answer) => drop(answer.send(outcome)),
            Waiter::Callback(callback) => callback(outcome),
        }
    }
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
        let job = Job { commands, waiter: Waiter::Task(answer), deadline };
        let waiting = async {
            self.jobs.send(job).await.map_err(|_| Error::Stopped)?;
            receiver.await.map_err(|_| Error::Stopped)?
        };
        tokio::time::timeout_at(deadline, waiting).await.unwrap_or(Err(Error::Timeout))
    }

    /// Queues one command without waiting: `done` is called once with the outcome, from a task that others wait for. It
    /// may be called long after the request's time is over, and never when the member stops. Answers whether there was
    /// room; without room nothing was queued.
    pub fn submit(
        &self,
        command: impl FnOnce() -> Command,
        done: impl FnOnce(Result<Applied, Error>) + Send + 'static,
    ) -> bool {
        let Ok(place) = self.jobs.try_reserve() else { return false };
        let deadline = Instant::now() + self.timeout;
        place.send(Job { commands: vec![command()], waiter: Waiter::Callback(Box::new(done)), deadline });
        true
    }

    /// The same for commands that stay together; gives them back when there is no room.
    ///
    /// # Errors
    /// No room.
    pub fn submit_all(
        &self,
        commands: Vec<Command>,
        done: impl FnOnce(Result<Applied, Error>) + Send + 'static,
    ) -> Result<(), Vec<Command>> {
        let Ok(place) = self.jobs.try_reserve() else { return Err(commands) };
        let deadline = Instant::now() + self.timeout;
        place.send(Job { commands, waiter: Waiter::Callback(Box::new(done)), deadline });
        Ok(())
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
///
/// A batch leaves at once when none is in flight; else when it holds as many commands as are in flight, and at least
/// [`WORTH`]. So a lone client waits for nobody, and under load few batches carry many commands: each costs the disk and
/// the peers about the same.
pub(crate) async fn run<R, B, T>(replica: Arc<Replica<R, B, T>>, mut jobs: mpsc::Receiver<Job>)
where
    R: AsyncRuntime,
    B: Backend,
    T: Transport<R>,
{
    let (done, mut completed) = mpsc::unbounded_channel();
    let mut in_flight = InFlight::default();
    let mut batch = Gathered::default();
    loop {
        while !batch.is_full()
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        if !in_flight.allows(&batch) {
            tokio::select! {
                biased;
                commands = completed.recv() => in_flight.end(commands.unwrap_or(0)),
                job = jobs.recv(), if !batch.is_full() => match job {
                    Some(job) => batch.push(job),
                    None => return,
                },
            }
            continue;
        }
        let Gathered { mut jobs, commands, .. } = std::mem::take(&mut batch);
        // Whoever gave up must not be surprised by a late write.
        jobs.retain(|job| !job.waiter.is_gone());
        in_flight.begin(commands);
        let (replica, done) = (replica.clone(), done.clone());
        drop(R::spawn(async move {
            launch(&replica, jobs).await;
            // The task that counts may have ended.
            let _ = done.send(commands);
        }));
    }
}

/// The next batch.
#[derive(Default)]
struct Gathered {
    jobs: Vec<Job>,
    commands: usize,
    weight: usize,
}

impl Gathered {
    fn push(&mut self, job: Job) {
        self.commands += job.commands.len();
        self.weight += job.commands.iter().map(weight).sum::<usize>();
        self.jobs.push(job);
    }

    fn is_full(&self) -> bool {
        self.commands >= COMMANDS || self.weight >= BYTES
    }
}

/// What is logged and not yet answered.
#[derive(Default)]
struct InFlight {
    batches: usize,
    commands: usize,
}

impl InFlight {
    fn allows(&self, batch: &Gathered) -> bool {
        let worth = batch.is_full() || batch.commands >= self.commands.max(WORTH);
        !batch.jobs.is_empty() && (self.batches == 0 || (self.batches < IN_FLIGHT && worth))
    }

    fn begin(&mut self, commands: usize) {
        self.batches += 1;
        self.commands += commands;
    }

    fn end(&mut self, commands: usize) {
        self.batches -= 1;
        self.commands -= commands;
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
    let mut waiters = Vec::with_capacity(jobs.len());
    let mut commands = Vec::with_capacity(jobs.len());
    for job in jobs {
        waiters.push((job.commands.len(), job.waiter));
        commands.extend(job.commands);
    }
    match log(replica, commands, deadline).await {
        Ok(applied) => {
            let mut responses = applied.responses.into_iter();
            for (count, waiter) in waiters {
                let responses = responses.by_ref().take(count).collect();
                waiter.tell(Ok(Applied { index: applied.index, responses }));
            }
        }
        Err(error) => {
            for (_, waiter) in waiters {
                waiter.tell(Err(error));
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
            let size = 64 + commands.iter().map(weight).sum::<usize>();
            let payload = Payload::encode(&Batch { stamp, commands: commands.clone() }, size);
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
