//! One watch stream: requests in, answers out, between the hub (what happens now) and history (what was missed).
//!
//! While answers wait for a slow client nothing new is taken from the hub: its ring is bounded, and what it drops is
//! read from history later. So a stream holds at most one slice of history, or what some revisions give to its watchers,
//! beside its queue.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use keelson_store_core::watch::{CatchUp, History, NO_WATCHER, WatchResponse, WatcherSet, history, weight};
use keelson_store_core::{Access, Error, Identity, RevisionEvents, State};
use keelson_store_proto::client::WatchStream;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
use keelson_store_sync::{Cursor, Next};
use tokio::sync::mpsc;
use tonic::{Code, Status};

use crate::convert::{self, status};
use crate::handle::Handle;
use crate::rocks::Rocks;

/// Requests that may wait.
const REQUESTS: usize = 64;
/// Answers that may wait for the client.
const RESPONSES: usize = 64;
/// The same where answers go out in batches.
const BATCHES: usize = 4;
/// Revisions times watchers that are offered together, at most.
const MANY: usize = 4096;
/// About the most that is offered or sent together, bytes.
const BATCH: usize = 64 * 1024;
/// History read at a time, bytes.
const SLICE: usize = 1 << 20;

/// The answer to a watch that may not be: created and canceled at once, the reason as etcd's client prints an error.
fn refused(revision: i64, refusal: &Status) -> WatchResponse {
    let cancel_reason = match refusal.code() {
        Code::Unauthenticated => "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
        Code::InvalidArgument if refusal.message() == Error::UserEmpty.to_string() => {
            "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"
        }
        Code::InvalidArgument => {
            "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old"
        }
        _ => "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
    };
    WatchResponse {
        revision,
        watch_id: NO_WATCHER,
        created: true,
        canceled: true,
        cancel_reason,
        ..WatchResponse::default()
    }
}

type Batches = mpsc::Sender<Result<Vec<pb::WatchResponse>, Status>>;

/// Where answers go.
enum Outgoing {
    /// One by one.
    Single(mpsc::Sender<Result<pb::WatchResponse, Status>>),
    /// Together, for a connection: one wake-up for all.
    Batches(Batches),
}

impl Outgoing {
    async fn closed(&self) {
        match self {
            Outgoing::Single(sender) => sender.closed().await,
            Outgoing::Batches(sender) => sender.closed().await,
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Outgoing::Single(sender) => sender.is_closed(),
            Outgoing::Batches(sender) => sender.is_closed(),
        }
    }

    async fn fail(&self, error: Status) {
        // The client may be gone; then nobody is to be told.
        match self {
            Outgoing::Single(sender) => drop(sender.send(Err(error)).await),
            Outgoing::Batches(sender) => drop(sender.send(Err(error)).await),
        }
    }

    /// Sends some of the answers once there is room; `None` when nobody takes them. Dropping the future loses nothing.
    async fn send(&self, pending: &mut VecDeque<WatchResponse>, handle: &Handle) -> Option<()> {
        match self {
            Outgoing::Single(sender) => {
                let permit = sender.reserve().await.ok()?;
                if let Some(response) = pending.pop_front() {
                    permit.send(Ok(handle.headers().watch(response)));
                }
            }
            Outgoing::Batches(sender) => {
                let permit = sender.reserve().await.ok()?;
                let headers = handle.headers();
                let mut batch = Vec::new();
                let mut size = 0;
                while size < BATCH
                    && let Some(response) = pending.pop_front()
                {
                    size += response.events.iter().map(weight).sum::<usize>();
                    batch.push(headers.watch(response));
                }
                permit.send(Ok(batch));
            }
        }
        Some(())
    }
}

/// Opens a stream served by a task of its own.
pub(crate) fn open(handle: Handle) -> WatchStream {
    let (requests, incoming) = mpsc::channel(REQUESTS);
    let (outgoing, responses) = mpsc::channel(RESPONSES);
    tokio::spawn(serve(handle, incoming, Outgoing::Single(outgoing)));
    (requests, responses)
}

/// The same for a connection: requests, answers, and a way to end the stream with an error.
pub(crate) fn open_batches(handle: Handle) -> (mpsc::Sender<pb::WatchRequest>, Responses, Batches) {
    let (requests, incoming) = mpsc::channel(REQUESTS);
    let (outgoing, batches) = mpsc::channel(BATCHES);
    tokio::spawn(serve(handle, incoming, Outgoing::Batches(outgoing.clone())));
    (requests, Responses { batches, now: Vec::new().into_iter() }, outgoing)
}

/// Answers, batch by batch.
pub(crate) struct Responses {
    batches: mpsc::Receiver<Result<Vec<pb::WatchResponse>, Status>>,
    now: std::vec::IntoIter<pb::WatchResponse>,
}

impl futures::Stream for Responses {
    type Item = Result<pb::WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(response) = self.now.next() {
                return Poll::Ready(Some(Ok(response)));
            }
            match ready!(self.batches.poll_recv(context)) {
                Some(Ok(batch)) => self.now = batch.into_iter(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

struct Stream {
    handle: Handle,
    set: WatcherSet,
    pending: VecDeque<WatchResponse>,
}

async fn serve(handle: Handle, mut requests: mpsc::Receiver<pb::WatchRequest>, outgoing: Outgoing) {
    let mut cursor = handle.inner.hub.subscribe();
    let set = WatcherSet::new(cursor.position() as i64, handle.config().max_request_bytes);
    let mut progress = tokio::time::interval(handle.config().watch_progress_notify_interval);
    progress.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    progress.reset();
    let mut stream = Stream { handle, set, pending: VecDeque::new() };
    loop {
        while let Ok(request) = requests.try_recv() {
            stream.request(request).await;
        }
        if stream.pending.is_empty()
            && let Some(want) = stream.set.catch_up_from()
        {
            match stream.history(want).await {
                Ok(history) => stream.pending.extend(stream.set.catch_up(&history)),
                Err(error) => return outgoing.fail(error).await,
            }
            if stream.pending.is_empty() && !outgoing.is_closed() {
                tokio::task::yield_now().await;
                continue;
            }
        }
        let idle = stream.pending.is_empty();
        tokio::select! {
            biased;
            sent = outgoing.send(&mut stream.pending, &stream.handle), if !idle => {
                if sent.is_none() {
                    return;
                }
            }
            () = outgoing.closed() => return,
            request = requests.recv() => {
                let Some(request) = request else { return };
                stream.request(request).await;
            }
            next = cursor.next(), if idle => {
                if !stream.take(next, &mut cursor) {
                    return outgoing.fail(status(Error::Stopped)).await;
                }
            }
            _ = progress.tick(), if idle => stream.pending.extend(stream.set.tick_progress()),
        }
    }
}

impl Stream {
    /// What the hub has, and with it what else is there by now; whether it goes on.
    fn take(&mut self, next: Next<RevisionEvents>, cursor: &mut Cursor<RevisionEvents>) -> bool {
        let mut changes: Vec<Arc<RevisionEvents>> = Vec::new();
        let mut size = 0;
        let mut next = Some(next);
        while let Some(Next::Item(change)) = next {
            size += change.events.iter().map(weight).sum::<usize>();
            changes.push(change);
            let more = changes.len() * self.set.len() < MANY && size < BATCH;
            next = if more { cursor.try_next() } else { None };
        }
        self.pending.extend(self.set.offer_all(changes.iter().map(|change| &**change)));
        match next {
            Some(Next::Lagged { through }) => self.pending.extend(self.set.lag(through as i64)),
            Some(Next::Closed) => return false,
            Some(Next::Item(_)) | None => {}
        }
        true
    }

    async fn request(&mut self, request: pb::WatchRequest) {
        let published = self.handle.inner.hub.published() as i64;
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                if let Err(refusal) = self.may_watch(&create).await {
                    let revision = published.max(self.set.position());
                    self.pending.push_back(refused(revision, &refusal));
                    return;
                }
                let response = self.set.create(convert::watch_create(create), published);
                self.pending.push_back(response);
            }
            Some(RequestUnion::CancelRequest(cancel)) => {
                self.pending.extend(self.set.cancel(cancel.watch_id, published));
            }
            Some(RequestUnion::ProgressRequest(_)) => self.pending.extend(self.set.request_progress()),
            None => {}
        }
    }

    /// Whether the caller may read the whole range, as it stands in the request.
    async fn may_watch(&self, create: &pb::WatchCreateRequest) -> Result<(), Status> {
        if !self.handle.guarded() {
            return Ok(());
        }
        // What the watch will take for its key.
        let key: &[u8] = if create.key.is_empty() { b"\0" } else { &create.key };
        let rule = |state: &State, who: &Identity, _: &Rocks| {
            state.auth().check_keys(who, Access::Read, key, &create.range_end)
        };
        self.handle.allowed(rule, |_, _| ()).await
    }

    /// A slice of the past, read on a thread where it may take its time.
    async fn history(&self, want: CatchUp) -> Result<History, Status> {
        let replica = Arc::clone(self.handle.replica());
        self.handle.at_once(|_, _| ()).await?;
        let work = tokio::task::spawn_blocking(move || {
            replica.shared.read(|state, rocks| history(state, rocks, want, SLICE))
        });
        match work.await {
            Ok(Some(history)) => Ok(history),
            Ok(None) => Err(status(Error::TimeoutWaitAppliedIndex)),
            Err(error) => Err(Status::internal(format!("reading history: {error}"))),
        }
    }
}
