//! A client's HTTP/2 connection: one task that reads, answers small calls itself, and passes all others on.
//!
//! A unary call that [`Calls`] takes costs no task and no timer of its own: its answer is appended to the connection's
//! output, at once or when a batch or a read index completes, and everything that became ready meanwhile leaves in one
//! write. Any other request becomes an ordinary `http::Request` served by a task of its own, whose answer's data is
//! bounded by credit: at most [`CREDIT`] bytes a call wait here for the client.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use keelson_store_http2::{Code, Config, Connection, Event, Head};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;

use crate::auth::ClientName;
use crate::calls::{Method, Outcome, Reply};
use crate::listen::{LINGER, Limits, RequestBody, Serve};

/// Data of one answer that waits for the client, bytes.
const CREDIT: usize = 256 * 1024;
/// Output above which no more is read, and no more data is put into it, bytes.
const OUTPUT: usize = 256 * 1024;
/// Read at a time, bytes.
const READ: usize = 8 * 1024;
/// Data of an answer passed on at a time, bytes.
const PIECE: usize = 64 * 1024;
/// What a buffer may keep while the connection rests, bytes.
const KEEP: usize = 64 * 1024;
/// Orders handled before the socket is looked at again.
const ORDERS: usize = 1024;
/// Stands for no keep-alive at all: nobody waits that long.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

const OF_A_CONNECTION: [HeaderName; 3] =
    [http::header::CONNECTION, http::header::TRANSFER_ENCODING, http::header::UPGRADE];

/// What tasks and callbacks want of the connection.
enum Order {
    /// The answer of a small call.
    Answer(u32, Result<Reply, Status>),
    /// The answer of a small call, made here.
    Make(u32, Box<dyn FnOnce() -> Result<Reply, Status> + Send>),
    /// A request's data was used.
    Consumed(u32, usize),
    /// The head of an answer; whether it is all of it.
    Head(u32, http::response::Parts, bool),
    Data(u32, Bytes),
    Trailers(u32, HeaderMap),
    End(u32),
    /// The answer cannot be finished.
    Broken(u32),
}

/// The way back for the answer of one small call.
pub(crate) struct Answer {
    orders: mpsc::UnboundedSender<Order>,
    stream: u32,
}

impl Answer {
    /// Gives the answer.
    pub fn give(self, answer: Result<Reply, Status>) {
        // The connection may be gone.
        let _ = self.orders.send(Order::Answer(self.stream, answer));
    }

    /// Lets the connection's task make the answer.
    pub fn make(self, make: impl FnOnce() -> Result<Reply, Status> + Send + 'static) {
        // The connection may be gone.
        let _ = self.orders.send(Order::Make(self.stream, Box::new(make)));
    }
}

/// A call under way.
enum Call {
    /// A small call whose message is not whole yet.
    Gathering { head: Arc<Head>, method: Method, message: BytesMut, first: Bytes },
    /// A small call that waits for its answer.
    Waiting,
    /// A request that a task serves.
    Served { body: Option<mpsc::UnboundedSender<Bytes>>, credit: Arc<Semaphore>, _task: Task },
}

/// A task that ends when its call does.
struct Task(tokio::task::AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Door<S> {
    service: S,
    /// The verified certificate's name.
    client: Option<ClientName>,
    connection: Connection,
    calls: HashMap<u32, Call>,
    orders: mpsc::UnboundedSender<Order>,
    /// When small calls are answered as timed out, in order.
    deadlines: VecDeque<(Instant, u32)>,
    patience: Duration,
    /// Silence after which the client is asked whether it is there, and how long it may take to answer.
    silence: (Duration, Duration),
}

/// Serves a connection whose first bytes, `input`, are those of HTTP/2.
pub(crate) async fn serve<S: Serve>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    mut input: BytesMut,
    client: Option<ClientName>,
    service: S,
    limits: Limits,
    stop: CancellationToken,
) {
    let (mut reader, mut writer) = tokio::io::split(io);
    let config = Config {
        max_streams: limits.streams,
        stream_window: 1 << 20,
        connection_window: 4 << 20,
        max_headers: 64 * 1024,
    };
    let (orders, mut incoming) = mpsc::unbounded_channel();
    let patience = service.patience();
    let connection = Connection::new(config);
    let silence = limits.keep_alive.unwrap_or((NEVER, NEVER));
    let mut door = Door {
        service,
        client,
        connection,
        calls: HashMap::new(),
        orders,
        deadlines: VecDeque::new(),
        patience,
        silence,
    };
    let mut events = Vec::new();
    let timer = tokio::time::sleep(silence.0);
    tokio::pin!(timer);
    let mut heard = Instant::now();
    let mut asked = false;
    let mut stopping: Option<Instant> = None;
    if !door.receive(&mut input, &mut events) {
        let _ = writer.write_all(&door.connection.out).await;
        return;
    }
    loop {
        for _ in 0..ORDERS {
            let Ok(order) = incoming.try_recv() else { break };
            door.order(order);
        }
        door.connection.pump(OUTPUT);
        for (stream, bytes) in door.connection.take_sent() {
            if let Some(Call::Served { credit, .. }) = door.calls.get(&stream) {
                credit.add_permits(bytes);
            }
        }
        let idle = door.connection.is_idle() && door.connection.out.is_empty();
        if idle && (stopping.is_some() || door.connection.is_leaving()) {
            break;
        }
        let wake = door.wake(heard, asked, stopping);
        if timer.deadline() > wake || timer.is_elapsed() {
            timer.as_mut().reset(wake);
        }
        tokio::select! {
            biased;
            written = writer.write_buf(&mut door.connection.out), if !door.connection.out.is_empty() => {
                if written.is_err() {
                    return;
                }
                let out = &mut door.connection.out;
                if out.is_empty() && out.capacity() > KEEP {
                    *out = BytesMut::new();
                }
            }
            read = reader.read_buf(&mut input), if door.connection.out.len() < OUTPUT => {
                if !matches!(read, Ok(1..)) {
                    return;
                }
                heard = Instant::now();
                asked = false;
                if !door.receive(&mut input, &mut events) {
                    // The reason goes out if it can; the connection is over either way.
                    let _ = tokio::time::timeout(LINGER, writer.write_all(&door.connection.out)).await;
                    return;
                }
                input.reserve(READ);
            }
            Some(order) = incoming.recv() => door.order(order),
            () = timer.as_mut() => {
                let now = Instant::now();
                door.expire(now);
                let limit = if asked { silence.0 + silence.1 } else { silence.0 };
                if stopping.is_some_and(|end| now >= end) || (asked && now >= heard + limit) {
                    return;
                }
                if !asked && now >= heard + limit {
                    asked = true;
                    door.connection.ping();
                }
            }
            () = stop.cancelled(), if stopping.is_none() => {
                stopping = Some(Instant::now() + LINGER);
                door.connection.leave();
            }
        }
    }
    // Everything is written; the client may be gone.
    let _ = writer.shutdown().await;
}

impl<S: Serve> Door<S> {
    /// When something is due.
    fn wake(&self, heard: Instant, asked: bool, stopping: Option<Instant>) -> Instant {
        let quiet = heard + self.silence.0 + if asked { self.silence.1 } else { Duration::ZERO };
        let call = self.deadlines.front().map_or(quiet, |(at, _)| *at);
        quiet.min(call).min(stopping.unwrap_or(quiet))
    }

    /// Handles what has come; whether the connection can go on.
    fn receive(&mut self, input: &mut BytesMut, events: &mut Vec<Event>) -> bool {
        let received = self.connection.receive(input, events);
        for event in events.drain(..) {
            match event {
                Event::Request { stream, head, end } => self.request(stream, head, end),
                Event::Data { stream, data, end } => self.data(stream, data, end),
                Event::Reset { stream } => drop(self.calls.remove(&stream)),
            }
        }
        if let Err(error) = received {
            tracing::debug!(%error, "connection ended");
            return false;
        }
        true
    }

    fn request(&mut self, stream: u32, head: Arc<Head>, end: bool) {
        let grpc = || head.field("content-type").is_some_and(|kind| kind.starts_with(b"application/grpc"));
        // Who asks for a leader, or says nonsense of itself, is looked after by the services.
        let version =
            || head.field("client-api-version").is_none_or(|text| std::str::from_utf8(text).is_ok());
        let plain = || grpc() && head.field("hasleader").is_none() && version();
        let method = if end { None } else { Method::of(&head.path).filter(|_| plain()) };
        let call = match method {
            Some(method) => {
                Some(Call::Gathering { head, method, message: BytesMut::new(), first: Bytes::new() })
            }
            None => self.pass_on(stream, &head).map(|call| if end { ended(call) } else { call }),
        };
        self.calls.extend(call.map(|call| (stream, call)));
    }

    fn data(&mut self, stream: u32, data: Bytes, end: bool) {
        let length = data.len();
        match self.calls.get_mut(&stream) {
            Some(Call::Gathering { message, first, .. }) => {
                self.connection.consumed(stream, length);
                if first.is_empty() && message.is_empty() {
                    *first = data;
                } else if length > 0 {
                    message.extend_from_slice(&std::mem::take(first));
                    message.extend_from_slice(&data);
                }
                let large = message.len() + first.len() > self.service.largest();
                if end || large {
                    self.gathered(stream, end);
                }
            }
            Some(Call::Served { body, .. }) => {
                if length > 0
                    && let Some(body) = body
                {
                    // The task may have lost interest.
                    let _ = body.send(data);
                } else if length > 0 {
                    self.connection.consumed(stream, length);
                }
                if end {
                    *body = None;
                }
            }
            Some(Call::Waiting) | None => self.connection.consumed(stream, length),
        }
    }

    /// A small call's message is whole (or too large for one).
    fn gathered(&mut self, stream: u32, end: bool) {
        let Some(Call::Gathering { head, method, message, first }) = self.calls.remove(&stream) else {
            return;
        };
        let framed = if message.is_empty() { first } else { message.freeze() };
        if end && let Some(message) = only_message(&framed) {
            let answer = Answer { orders: self.orders.clone(), stream };
            match self.service.call(method, message, answer) {
                Outcome::Now(answer) => return self.answer(stream, answer),
                Outcome::Later => {
                    self.calls.insert(stream, Call::Waiting);
                    self.deadlines.push_back((Instant::now() + self.patience, stream));
                    return;
                }
                Outcome::Pass => {}
            }
        }
        let Some(call) = self.pass_on(stream, &head) else { return };
        if let Call::Served { body: Some(body), .. } = &call {
            // The task is there: it was just made.
            let _ = body.send(framed);
        }
        self.calls.insert(stream, if end { ended(call) } else { call });
    }

    /// Has a task serve the request.
    fn pass_on(&mut self, stream: u32, head: &Head) -> Option<Call> {
        let (body, parts) = mpsc::unbounded_channel();
        let incoming = Incoming { parts, orders: self.orders.clone(), stream };
        let Some(mut request) = request(head, incoming) else {
            self.connection.reset(stream, Code::Protocol);
            return None;
        };
        if let Some(client) = &self.client {
            request.extensions_mut().insert(client.clone());
        }
        let credit = Arc::new(Semaphore::new(CREDIT));
        let (service, orders, left) = (self.service.clone(), self.orders.clone(), credit.clone());
        let task = tokio::spawn(async move {
            let response = service.serve(request).await;
            if send(stream, response, &orders, &left).await.is_none() {
                // The connection may be gone.
                let _ = orders.send(Order::Broken(stream));
            }
        });
        Some(Call::Served { body: Some(body), credit, _task: Task(task.abort_handle()) })
    }

    fn answer(&mut self, stream: u32, answer: Result<Reply, Status>) {
        match answer {
            Ok(reply) => {
                self.connection.unary(stream, reply.encoded_len(), |out| reply.encode(out));
            }
            Err(status) => self.refuse(stream, &status),
        }
    }

    /// An answer that is an error: everything is in its head.
    fn refuse(&mut self, stream: u32, status: &Status) {
        let mut fields = HeaderMap::new();
        if status.add_header(&mut fields).is_err() {
            fields.insert("grpc-status", HeaderValue::from_static("13"));
        }
        let kind = [("content-type".as_bytes(), "application/grpc".as_bytes())];
        let fields = fields.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
        self.connection.head(stream, 200, kind.into_iter().chain(fields), true);
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Answer(stream, answer) => {
                if self.waited(stream) {
                    self.answer(stream, answer);
                }
            }
            Order::Make(stream, make) => {
                if self.waited(stream) {
                    self.answer(stream, make());
                }
            }
            Order::Consumed(stream, bytes) => self.connection.consumed(stream, bytes),
            Order::Head(stream, parts, end) => {
                // Fields of a connection have no place in HTTP/2.
                let fields = parts.headers.iter().filter(|(name, _)| !OF_A_CONNECTION.contains(name));
                let fields = fields.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
                self.connection.head(stream, parts.status.as_u16(), fields, end);
                if end {
                    self.calls.remove(&stream);
                }
            }
            Order::Data(stream, data) => self.connection.data(stream, data),
            Order::Trailers(stream, trailers) => {
                let copy = |text: &[u8]| Bytes::copy_from_slice(text);
                let fields = trailers.iter();
                let fields =
                    fields.map(|(name, value)| (copy(name.as_str().as_bytes()), copy(value.as_bytes())));
                self.connection.trailers(stream, fields.collect());
                self.calls.remove(&stream);
            }
            Order::End(stream) => {
                self.connection.end(stream);
                self.calls.remove(&stream);
            }
            Order::Broken(stream) => {
                self.calls.remove(&stream);
                self.connection.reset(stream, Code::Internal);
            }
        }
    }

    /// Takes a small call off the list; whether it still waits.
    fn waited(&mut self, stream: u32) -> bool {
        matches!(self.calls.get(&stream), Some(Call::Waiting)) && self.calls.remove(&stream).is_some()
    }

    /// Answers small calls whose time is over.
    fn expire(&mut self, now: Instant) {
        while let Some((at, stream)) = self.deadlines.front().copied() {
            let waits = matches!(self.calls.get(&stream), Some(Call::Waiting));
            if waits && at > now {
                return;
            }
            self.deadlines.pop_front();
            if waits {
                self.calls.remove(&stream);
                self.refuse(stream, &crate::convert::status(keelson_store_core::Error::Timeout));
            }
        }
    }
}

fn ended(call: Call) -> Call {
    match call {
        Call::Served { credit, _task, .. } => Call::Served { body: None, credit, _task },
        call => call,
    }
}

/// The one uncompressed message of a unary request.
fn only_message(framed: &Bytes) -> Option<Bytes> {
    let (prefix, message) = framed.split_at_checked(5)?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    (prefix[0] == 0 && message.len() == length as usize).then(|| framed.slice(5..))
}

/// The request as HTTP libraries know it; `None` when it cannot be one.
fn request(head: &Head, body: Incoming) -> Option<Request<RequestBody>> {
    let text = |name: &str| head.field(name).and_then(|value| std::str::from_utf8(value).ok());
    let path = std::str::from_utf8(&head.path).ok()?;
    let uri = match (text(":scheme"), text(":authority")) {
        (Some(scheme), Some(authority)) if path.starts_with('/') => format!("{scheme}://{authority}{path}"),
        _ => path.to_owned(),
    };
    let mut request = Request::builder().version(http::Version::HTTP_2).method(&head.method[..]).uri(uri);
    let headers = request.headers_mut()?;
    for (name, value) in head.fields.iter().filter(|(name, _)| !name.starts_with(b":")) {
        let name = HeaderName::from_bytes(name).ok()?;
        headers.append(name, HeaderValue::from_maybe_shared(value.clone()).ok()?);
    }
    request.body(RequestBody::Http2(body)).ok()
}

/// Sends an answer piece by piece; `None` when its body fails or the connection is gone.
async fn send(
    stream: u32,
    response: Response<Body>,
    orders: &mpsc::UnboundedSender<Order>,
    credit: &Semaphore,
) -> Option<()> {
    let (parts, mut body) = response.into_parts();
    let end = body.is_end_stream();
    orders.send(Order::Head(stream, parts, end)).ok()?;
    if end {
        return Some(());
    }
    while let Some(frame) = body.frame().await {
        match frame.ok()?.into_data() {
            Ok(mut data) => {
                while !data.is_empty() {
                    let piece = data.split_to(data.len().min(PIECE));
                    credit.acquire_many(piece.len() as u32).await.ok()?.forget();
                    orders.send(Order::Data(stream, piece)).ok()?;
                }
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                orders.send(Order::Trailers(stream, trailers)).ok()?;
                return Some(());
            }
        }
    }
    orders.send(Order::End(stream)).ok()
}

/// The body of a request, as it comes.
pub(crate) struct Incoming {
    parts: mpsc::UnboundedReceiver<Bytes>,
    orders: mpsc::UnboundedSender<Order>,
    stream: u32,
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.parts.poll_recv(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(data)) => {
                // The connection may be gone.
                let _ = self.orders.send(Order::Consumed(self.stream, data.remaining()));
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
        }
    }
}
