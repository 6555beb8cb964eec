//! A client's HTTP/2 connection: one task that reads, answers small calls itself, and passes all others on.
//!
//! A unary call that [`Calls`] takes costs no task and no timer of its own: its answer is appended to the connection's
//! output, at once or when a batch or a read index completes, and everything that became ready meanwhile leaves in one
//! write. A conversation (`calls::Conversation`) is a stream of such calls. Any other request becomes an ordinary
//! `http::Request` served by a task of its own, whose answer's data is bounded by credit: at most [`CREDIT`] bytes a call
//! wait here for the client.

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
use crate::calls::{Conversation, Method, Outcome, Partner, Reply};
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
/// Messages of a conversation asked at a time.
const MESSAGES: usize = 256;
/// Stands for no keep-alive at all: nobody waits that long.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

const OF_A_CONNECTION: [HeaderName; 3] =
    [http::header::CONNECTION, http::header::TRANSFER_ENCODING, http::header::UPGRADE];

type Make = Box<dyn FnOnce(Answer) -> Outcome + Send>;

/// What tasks and callbacks want of the connection.
enum Order {
    /// The answer of a small call.
    Answer(u32, Result<Reply, Status>),
    /// The answer of a small call, made here.
    Make(u32, Make),
    /// A conversation ends for a reason of its own.
    Fail(u32, Status),
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
#[derive(Clone)]
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
    pub fn make(self, make: impl FnOnce(Answer) -> Outcome + Send + 'static) {
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
    /// Small calls on one stream.
    Talking(Talk),
    /// A request that a task serves.
    Served { body: Option<mpsc::UnboundedSender<Bytes>>, credit: Arc<Semaphore>, _task: Task },
}

/// A conversation under way.
struct Talk {
    partner: Arc<dyn Partner>,
    /// What the client has said and was not asked yet.
    input: BytesMut,
    /// The client says no more.
    ended: bool,
    /// An answer is awaited, so long.
    busy: Option<Instant>,
    /// Answers on their way to the client, bytes.
    owed: usize,
    _until: Option<Task>,
}

impl Talk {
    /// Whole messages, a bounded number of them, and what they take of the client's window; the refusal of one that
    /// cannot be.
    fn take(&mut self, largest: usize) -> Result<(Vec<Bytes>, usize), Status> {
        let mut messages = Vec::new();
        let mut taken = 0;
        while messages.len() < MESSAGES
            && let Some(prefix) = self.input.get(..5)
        {
            let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
            if prefix[0] != 0 {
                return Err(Status::unimplemented("this server takes no compressed messages"));
            }
            if length > largest {
                return Err(crate::service::larger_than(length, largest));
            }
            if self.input.len() < 5 + length {
                break;
            }
            let mut message = self.input.split_to(5 + length);
            message.advance(5);
            messages.push(message.freeze());
            taken += 5 + length;
        }
        Ok((messages, taken))
    }
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
        let mut talked = false;
        for (stream, bytes) in door.connection.take_sent() {
            match door.calls.get_mut(&stream) {
                Some(Call::Served { credit, .. }) => credit.add_permits(bytes),
                Some(Call::Talking(talk)) => {
                    talk.owed -= bytes;
                    door.talk(stream);
                    talked = true;
                }
                _ => {}
            }
        }
        if talked {
            door.connection.pump(OUTPUT);
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
                Event::Reset { stream } => {
                    if let Some(Call::Talking(talk)) = self.calls.remove(&stream) {
                        self.connection.consumed(stream, talk.input.len());
                    }
                }
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
            None => {
                let talks = self.service.converses(&head.path) && plain_stream(&head);
                let talk = if talks { self.converse(stream, &head, end) } else { None };
                let served = || self.pass_on(stream, &head).map(|call| if end { ended(call) } else { call });
                talk.or_else(served)
            }
        };
        let talks = matches!(call, Some(Call::Talking(_)));
        self.calls.extend(call.map(|call| (stream, call)));
        if talks && end {
            self.talk(stream);
        }
    }

    /// Begins a conversation, if the service wants one.
    fn converse(&mut self, stream: u32, head: &Head, end: bool) -> Option<Call> {
        let mut request = request(head, ())?;
        if let Some(client) = &self.client {
            request.extensions_mut().insert(client.clone());
        }
        let Conversation { partner, until } = self.service.converse(&request)?;
        let until = until.map(|until| {
            let orders = self.orders.clone();
            let task = tokio::spawn(async move {
                // The connection may be gone.
                let _ = orders.send(Order::Fail(stream, until.await));
            });
            Task(task.abort_handle())
        });
        let kind = [("content-type".as_bytes(), "application/grpc".as_bytes())];
        self.connection.head(stream, 200, kind, false);
        let input = BytesMut::new();
        Some(Call::Talking(Talk { partner, input, ended: end, busy: None, owed: 0, _until: until }))
    }

    /// Goes on with a conversation: asks what the client has said meanwhile, once its last answer is on its way.
    fn talk(&mut self, stream: u32) {
        let Some(Call::Talking(talk)) = self.calls.get_mut(&stream) else { return };
        if talk.busy.is_some() || talk.owed > 0 {
            return;
        }
        let (messages, taken) = match talk.take(self.service.largest()) {
            Ok(found) => found,
            Err(status) => return self.hang_up(stream, &status),
        };
        if messages.is_empty() {
            if talk.ended {
                let status = match talk.input.is_empty() {
                    true => Status::ok(""),
                    false => Status::internal("the stream ends within a message"),
                };
                self.hang_up(stream, &status);
            }
            return;
        }
        let at = Instant::now() + self.patience;
        talk.busy = Some(at);
        let partner = talk.partner.clone();
        self.connection.consumed(stream, taken);
        let answer = Answer { orders: self.orders.clone(), stream };
        match partner.ask(messages, answer) {
            Outcome::Now(answer) => self.told(stream, answer),
            Outcome::Later | Outcome::Long(_) | Outcome::Pass => self.deadlines.push_back((at, stream)),
        }
    }

    /// An answer of a conversation.
    fn told(&mut self, stream: u32, answer: Result<Reply, Status>) {
        let Some(Call::Talking(talk)) = self.calls.get_mut(&stream) else { return };
        if talk.busy.take().is_none() {
            return;
        }
        match answer {
            Ok(reply) => {
                let mut framed = BytesMut::with_capacity(reply.encoded_len());
                reply.encode(&mut framed);
                talk.owed += framed.len();
                self.connection.data(stream, framed.freeze());
            }
            Err(status) => self.hang_up(stream, &status),
        }
    }

    /// Ends a conversation.
    fn hang_up(&mut self, stream: u32, status: &Status) {
        let Some(Call::Talking(talk)) = self.calls.remove(&stream) else { return };
        talk.partner.end(status.code());
        self.connection.consumed(stream, talk.input.len());
        let mut fields = HeaderMap::new();
        if status.add_header(&mut fields).is_err() {
            fields.insert("grpc-status", HeaderValue::from_static("13"));
        }
        self.connection.trailers(stream, copied(&fields));
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
                    if body.send(data).is_err() {
                        self.connection.consumed(stream, length);
                    }
                } else if length > 0 {
                    self.connection.consumed(stream, length);
                }
                if end {
                    *body = None;
                }
            }
            Some(Call::Talking(talk)) => {
                talk.input.extend_from_slice(&data);
                talk.ended |= end;
                self.talk(stream);
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
                Outcome::Long(response) => {
                    let call = self.serve(stream, None, response);
                    self.calls.insert(stream, call);
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
        let Some(mut request) = request(head, RequestBody::Http2(incoming)) else {
            self.connection.reset(stream, Code::Protocol);
            return None;
        };
        if let Some(client) = &self.client {
            request.extensions_mut().insert(client.clone());
        }
        let service = self.service.clone();
        Some(self.serve(stream, Some(body), async move { service.serve(request).await }))
    }

    /// Has a task make and send an answer.
    fn serve(
        &self,
        stream: u32,
        body: Option<mpsc::UnboundedSender<Bytes>>,
        response: impl Future<Output = Response<Body>> + Send + 'static,
    ) -> Call {
        let credit = Arc::new(Semaphore::new(CREDIT));
        let (orders, left) = (self.orders.clone(), credit.clone());
        let task = tokio::spawn(async move {
            if send(stream, response.await, &orders, &left).await.is_none() {
                // The connection may be gone.
                let _ = orders.send(Order::Broken(stream));
            }
        });
        Call::Served { body, credit, _task: Task(task.abort_handle()) }
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
            Order::Answer(stream, answer) => self.given(stream, answer),
            Order::Make(stream, make) => {
                let waits = match self.calls.get(&stream) {
                    Some(Call::Waiting) => true,
                    Some(Call::Talking(talk)) => talk.busy.is_some(),
                    _ => false,
                };
                if waits {
                    let answer = Answer { orders: self.orders.clone(), stream };
                    if let Outcome::Now(answer) = make(answer) {
                        self.given(stream, answer);
                    }
                }
            }
            Order::Fail(stream, status) => self.hang_up(stream, &status),
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
                self.connection.trailers(stream, copied(&trailers));
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

    /// The answer of a small call that may still wait for it.
    fn given(&mut self, stream: u32, answer: Result<Reply, Status>) {
        match self.calls.get(&stream) {
            Some(Call::Waiting) => {
                self.calls.remove(&stream);
                self.answer(stream, answer);
            }
            Some(Call::Talking(_)) => self.told(stream, answer),
            _ => {}
        }
    }

    /// Answers small calls whose time is over.
    fn expire(&mut self, now: Instant) {
        while let Some((at, stream)) = self.deadlines.front().copied() {
            let (waits, talks) = match self.calls.get(&stream) {
                Some(Call::Waiting) => (true, false),
                Some(Call::Talking(talk)) => (talk.busy == Some(at), true),
                _ => (false, false),
            };
            if waits && at > now {
                return;
            }
            self.deadlines.pop_front();
            let late = crate::convert::status(keelson_store_core::Error::Timeout);
            if waits && talks {
                self.hang_up(stream, &late);
            } else if waits {
                self.calls.remove(&stream);
                self.refuse(stream, &late);
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

/// Fields of our own to keep.
fn copied(fields: &HeaderMap) -> Vec<(Bytes, Bytes)> {
    let copy = |text: &[u8]| Bytes::copy_from_slice(text);
    fields.iter().map(|(name, value)| (copy(name.as_str().as_bytes()), copy(value.as_bytes()))).collect()
}

/// Whether the request's messages come as gRPC says, uncompressed.
fn plain_stream(head: &Head) -> bool {
    head.field("content-type").is_some_and(|kind| kind.starts_with(b"application/grpc"))
        && head.field("grpc-encoding").is_none_or(|encoding| &encoding[..] == b"identity")
}

/// The one uncompressed message of a unary request.
fn only_message(framed: &Bytes) -> Option<Bytes> {
    let (prefix, message) = framed.split_at_checked(5)?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    (prefix[0] == 0 && message.len() == length as usize).then(|| framed.slice(5..))
}

/// The request as HTTP libraries know it; `None` when it cannot be one.
fn request<B>(head: &Head, body: B) -> Option<Request<B>> {
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
    request.body(body).ok()
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

impl Drop for Incoming {
    /// What nobody reads any more does not count against the client.
    fn drop(&mut self) {
        self.parts.close();
        while let Ok(data) = self.parts.try_recv() {
            // The connection may be gone.
            let _ = self.orders.send(Order::Consumed(self.stream, data.len()));
        }
    }
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
