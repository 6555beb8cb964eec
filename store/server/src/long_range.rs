//! A Range of more than one key, encoded as it is read.
//!
//! gRPC wants a message's length before the message. An answer of up to [`HEAD`] bytes is encoded while it is read, once.
//! A longer one is only measured from there on, and read a second time from the same snapshot while it is sent, as fast as
//! the client takes it. So an answer costs a few pieces of memory, whatever its size and however many are asked for.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use keelson_store_core::{Error, KeyValue, RangeRequest, RangeResponse, range_stream};
use prost::Message;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;

use crate::convert::{self, status};
use crate::handle::{Handle, Member};

/// What is encoded at the first reading, bytes.
const HEAD: usize = 4 << 20;
/// Read and sent at a time, bytes.
const PIECE: usize = 256 * 1024;
/// Pieces that wait for the client.
const QUEUE: usize = 2;
/// The longest message, as in etcd, bytes.
const MOST: usize = i32::MAX as usize;
/// What a key takes beside itself and its value at most, bytes.
const OVERHEAD: usize = 64;
/// `kvs` in a RangeResponse.
const KVS: u32 = 2;

/// What the first reading gave. A message may be cut between its fields, and they may come in any order.
#[derive(Default)]
struct First {
    head: Vec<Bytes>,
    bytes: usize,
    kvs: usize,
    /// The last key of the head.
    last: Bytes,
    /// What follows the head, bytes; 0 when it is all.
    rest: usize,
}

fn encode(kvs: Vec<KeyValue>) -> Bytes {
    let size = kvs.iter().map(|kv| kv.key.len() + kv.value.len() + OVERHEAD).sum();
    let mut piece = BytesMut::with_capacity(size);
    for kv in kvs {
        prost::encoding::message::encode(KVS, &convert::key_value(kv), &mut piece);
    }
    piece.freeze()
}

impl First {
    fn take(&mut self, kvs: Vec<KeyValue>) {
        let Some(last) = kvs.last() else { return };
        if self.rest == 0 && self.bytes < HEAD {
            self.kvs += kvs.len();
            self.last = last.key.clone();
            let piece = encode(kvs);
            self.bytes += piece.len();
            self.head.push(piece);
        } else {
            let length = |kv: KeyValue| prost::encoding::message::encoded_len(KVS, &convert::key_value(kv));
            self.rest += kvs.into_iter().map(length).sum::<usize>();
        }
    }
}

/// The request for what follows the head.
fn rest_of(request: &RangeRequest, first: &First) -> RangeRequest {
    let mut key = BytesMut::from(&first.last[..]);
    key.put_u8(0);
    let limit = if request.limit > 0 { request.limit - first.kvs as i64 } else { 0 };
    RangeRequest { key: key.freeze(), limit, ..request.clone() }
}

type Frames = mpsc::Sender<Result<Frame<Bytes>, Status>>;

/// What a reader says before it goes on with what follows the head: the first reading, and what there is to say of the
/// whole.
type Begun = oneshot::Sender<Result<(First, RangeResponse), Error>>;

/// The reader, on a thread of its own.
struct Reader {
    replica: Arc<Member>,
    request: RangeRequest,
    begun: Begun,
    frames: Frames,
    /// Readers that may wait for their clients.
    turns: Arc<Semaphore>,
    patience: Duration,
}

impl Reader {
    fn run(self) {
        let backend = self.replica.shared.backend.clone();
        let now = self.replica.shared.read(|state, _| {
            let (revision, compacted) = (state.revision(), state.compact_revision());
            (!state.auth().enabled()).then(|| (revision, compacted, backend.view()))
        });
        // The way may have changed since the call came; the client tries again.
        let now = now.ok_or(Error::TimeoutWaitAppliedIndex).and_then(|now| now.ok_or(Error::LeaderChanged));
        let (revision, compacted, view) = match now {
            Ok(now) => now,
            // The client may be gone.
            Err(error) => return drop(self.begun.send(Err(error))),
        };
        let read = |request: &RangeRequest, emit: &mut dyn FnMut(Vec<KeyValue>) -> ControlFlow<()>| {
            range_stream::range_stream(revision, compacted, &view, request, PIECE, emit)
        };
        let mut first = First::default();
        let mut emit = |kvs| {
            first.take(kvs);
            ControlFlow::Continue(())
        };
        let whole = read(&self.request, &mut emit).map(|whole| {
            let mut whole = whole.expect("nothing stops the first reading");
            first.take(std::mem::take(&mut whole.kvs));
            whole
        });
        let (request, mut left) = (rest_of(&self.request, &first), first.rest);
        if self.begun.send(whole.map(|whole| (first, whole))).is_err() || left == 0 {
            return;
        }
        let turn = tokio::time::timeout(self.patience, self.turns.acquire_owned());
        let Ok(Ok(_turn)) = tokio::runtime::Handle::current().block_on(turn) else {
            return drop(self.frames.blocking_send(Err(status(Error::TooManyRequests))));
        };
        let mut send = |kvs| {
            let piece = encode(kvs);
            // More than was announced would be taken for something else.
            let Some(after) = left.checked_sub(piece.len()) else { return ControlFlow::Break(()) };
            left = after;
            match self.frames.blocking_send(Ok(Frame::data(piece))) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        };
        let sent = match read(&request, &mut send) {
            Ok(Some(last)) => send(last.kvs).is_continue(),
            Ok(None) | Err(_) => false,
        };
        if !sent || left > 0 {
            // The client may be gone; else the message that it waits for cannot be finished.
            drop(self.frames.blocking_send(Err(Status::internal("the range could not be read to its end"))));
        }
    }
}

impl Handle {
    /// The answer to a range that `range_stream::check` finds nothing against, asked while nobody is asked who they are.
    pub(crate) async fn long_range(self, request: RangeRequest, serializable: bool) -> Response<Body> {
        self.open_range(request, serializable).await.unwrap_or_else(Status::into_http)
    }

    async fn open_range(&self, request: RangeRequest, serializable: bool) -> Result<Response<Body>, Status> {
        self.prepare_read(serializable).await?;
        // An installation is waited out here, so that the thread need not.
        self.at_once(|_, _| ()).await?;
        let (begun, first) = oneshot::channel();
        let (frames, rest) = mpsc::channel(QUEUE);
        let (turns, patience) = (self.inner.streams.clone(), self.config().request_timeout());
        let reader = Reader { replica: self.replica().clone(), request, begun, frames, turns, patience };
        tokio::task::spawn_blocking(move || reader.run());
        let first = first.await.map_err(|_| Status::internal("the reader has stopped"))?;
        let (mut first, whole) = first.map_err(status)?;
        let tail = Bytes::from(self.headers().range(whole).encode_to_vec());
        let length = first.bytes + first.rest + tail.len();
        if length > MOST {
            return Err(Status::resource_exhausted(format!(
                "grpc: trying to send message larger than max ({length} vs. {MOST})"
            )));
        }
        let mut prefix = BytesMut::with_capacity(5);
        prefix.put_u8(0);
        prefix.put_u32(length as u32);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let head = std::iter::once(prefix.freeze()).chain(std::mem::take(&mut first.head));
        let head = futures::stream::iter(head.map(|piece| Ok(Frame::data(piece))));
        let end = futures::stream::iter([Ok(Frame::data(tail)), Ok(Frame::trailers(trailers))]);
        let frames = head.chain(ReceiverStream::new(rest)).chain(end);
        let mut response = Response::new(Body::new(StreamBody::new(frames)));
        let kind = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        Ok(response)
    }
}
