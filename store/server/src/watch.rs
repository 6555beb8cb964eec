//! One watch stream: requests in, answers out, between the hub (what happens now) and history (what was missed).
//!
//! While answers wait for a slow client nothing new is taken from the hub: its ring is bounded, and what it drops is
//! read from history later. So a stream holds at most one slice of history or one revision beside its queue.

use std::collections::VecDeque;
use std::sync::Arc;

use keelson_store_core::watch::{CatchUp, History, NO_WATCHER, WatchResponse, WatcherSet, history};
use keelson_store_core::{Access, Error, Identity, State};
use keelson_store_proto::client::WatchStream;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
use keelson_store_sync::Next;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use crate::convert::{self, status};
use crate::handle::Handle;
use crate::rocks::Rocks;

/// Requests that may wait.
const REQUESTS: usize = 64;
/// Answers that may wait for the client.
const RESPONSES: usize = 64;
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

type Outgoing = mpsc::Sender<Result<pb::WatchResponse, Status>>;

/// Opens a stream served by a task of its own.
pub(crate) fn open(handle: Handle) -> WatchStream {
    let (requests, incoming) = mpsc::channel(REQUESTS);
    let (outgoing, responses) = mpsc::channel(RESPONSES);
    tokio::spawn(serve(handle, incoming, outgoing));
    (requests, responses)
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
                Err(error) => {
                    // The client may be gone; then nobody is to be told.
                    let _ = outgoing.send(Err(error)).await;
                    return;
                }
            }
            if stream.pending.is_empty() && !outgoing.is_closed() {
                tokio::task::yield_now().await;
                continue;
            }
        }
        let idle = stream.pending.is_empty();
        tokio::select! {
            biased;
            permit = outgoing.reserve(), if !idle => {
                let Ok(permit) = permit else { return };
                if let Some(response) = stream.pending.pop_front() {
                    permit.send(Ok(stream.handle.headers().watch(response)));
                }
            }
            () = outgoing.closed() => return,
            request = requests.recv() => {
                let Some(request) = request else { return };
                stream.request(request).await;
            }
            next = cursor.next(), if idle => match next {
                Next::Item(change) => stream.pending.extend(stream.set.offer(&change)),
                Next::Lagged { through } => stream.pending.extend(stream.set.lag(through as i64)),
                Next::Closed => {
                    let _ = outgoing.send(Err(status(keelson_store_core::Error::Stopped))).await;
                    return;
                }
            },
            _ = progress.tick(), if idle => stream.pending.extend(stream.set.tick_progress()),
        }
    }
}

impl Stream {
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
            Ok(None) => Err(status(keelson_store_core::Error::TimeoutWaitAppliedIndex)),
            Err(error) => Err(Status::internal(format!("reading history: {error}"))),
        }
    }
}
