//! What is known of gRPC calls: begun, ended with which code, how long, messages and bytes both ways.
//!
//! A call is seen from outside the services: bodies are watched as they pass, so that no service needs to count. Methods
//! are those of the API: a client cannot make more.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Code;
use tonic::body::Body;

use super::page::{Histogram, Page};
use crate::traces::CallSpan;

/// Names of codes as Go spells them, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// One method's figures.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    started: AtomicU64,
    handled: [AtomicU64; CODES.len()],
    received: AtomicU64,
    sent: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    took: Histogram,
}

impl Stats {
    /// A stream that its connection serves begins.
    pub fn begin(&self) {
        self.started.fetch_add(1, Relaxed);
    }

    /// Messages of it, by their number and bytes.
    pub fn talked(&self, received: (u64, u64), sent: (u64, u64)) {
        self.received.fetch_add(received.0, Relaxed);
        self.received_bytes.fetch_add(received.1, Relaxed);
        self.sent.fetch_add(sent.0, Relaxed);
        self.sent_bytes.fetch_add(sent.1, Relaxed);
    }

    /// A small call, answered by its connection; the code of one that is answered later is not known here.
    pub fn small(&self, bytes: u64, ended: Option<Code>) {
        self.started.fetch_add(1, Relaxed);
        self.received.fetch_add(1, Relaxed);
        self.received_bytes.fetch_add(bytes, Relaxed);
        if let Some(code) = ended {
            self.handled[code as usize].fetch_add(1, Relaxed);
        }
    }
}

struct Named {
    service: String,
    method: String,
    kind: &'static str,
    stats: Arc<Stats>,
}

/// All methods'.
pub(crate) struct Calls {
    named: Vec<Named>,
    by_path: HashMap<String, Arc<Stats>>,
}

impl Calls {
    pub fn new() -> Calls {
        let mut calls = Calls { named: Vec::new(), by_path: HashMap::new() };
        for (service, method, takes_many, answers_many) in keelson_store_gateway::methods() {
            let kind = match (takes_many, answers_many) {
                (false, false) => "unary",
                (false, true) => "server_stream",
                (true, false) => "client_stream",
                (true, true) => "bidi_stream",
            };
            let stats = Arc::<Stats>::default();
            calls.by_path.insert(format!("/{service}/{method}"), stats.clone());
            calls.named.push(Named { service, method, kind, stats });
        }
        calls
    }

    /// Figures of the method at `path`, if it is one.
    pub fn at(&self, path: &str) -> Option<&Arc<Stats>> {
        self.by_path.get(path)
    }

    /// Calls of a method that began.
    pub fn started(&self, path: &str) -> u64 {
        self.at(path).map_or(0, |stats| stats.started.load(Relaxed))
    }

    /// Calls of a method that ended well.
    pub fn succeeded(&self, path: &str) -> u64 {
        self.at(path).map_or(0, |stats| stats.handled[0].load(Relaxed))
    }

    /// Answers of a method.
    pub fn answers(&self, path: &str) -> u64 {
        self.at(path).map_or(0, |stats| stats.sent.load(Relaxed))
    }

    /// How long calls of a method took.
    pub fn took(&self, path: &str) -> Option<&Histogram> {
        self.at(path).map(|stats| &stats.took)
    }

    pub fn render(&self, page: &mut Page, extensive: bool) {
        let (mut received, mut sent) = (0, 0);
        for Named { service, method, kind, stats } in &self.named {
            let labels = [("grpc_method", &**method), ("grpc_service", service), ("grpc_type", kind)];
            page.counter("grpc_server_started_total", &labels, stats.started.load(Relaxed));
            page.counter("grpc_server_msg_received_total", &labels, stats.received.load(Relaxed));
            page.counter("grpc_server_msg_sent_total", &labels, stats.sent.load(Relaxed));
            received += stats.received_bytes.load(Relaxed);
            sent += stats.sent_bytes.load(Relaxed);
            for (code, handled) in CODES.iter().zip(&stats.handled) {
                let labels = [&[("grpc_code", *code)], &labels[..]].concat();
                page.counter("grpc_server_handled_total", &labels, handled.load(Relaxed));
            }
            if extensive {
                page.histogram("grpc_server_handling_seconds", &labels, &stats.took);
            }
        }
        page.counter("etcd_network_client_grpc_received_bytes_total", &[], received);
        page.counter("etcd_network_client_grpc_sent_bytes_total", &[], sent);
    }
}

/// Counts gRPC's messages in the bytes that pass: five bytes of head, then what they announce.
#[derive(Default)]
struct Messages {
    head: [u8; 5],
    have: usize,
    left: usize,
}

impl Messages {
    /// How many begin in `data`.
    fn pass(&mut self, mut data: &[u8]) -> u64 {
        let mut begun = 0;
        while !data.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(data.len());
                self.left -= skipped;
                data = &data[skipped..];
                continue;
            }
            let taken = (self.head.len() - self.have).min(data.len());
            self.head[self.have..self.have + taken].copy_from_slice(&data[..taken]);
            self.have += taken;
            data = &data[taken..];
            if self.have == self.head.len() {
                begun += 1;
                self.have = 0;
                self.left =
                    u32::from_be_bytes([self.head[1], self.head[2], self.head[3], self.head[4]]) as usize;
            }
        }
        begun
    }
}

/// A request's body, watched.
pub(crate) struct Asked<B> {
    body: B,
    messages: Messages,
    stats: Arc<Stats>,
}

impl<B> Asked<B> {
    /// A call begins.
    pub fn new(body: B, stats: Arc<Stats>) -> Asked<B> {
        stats.started.fetch_add(1, Relaxed);
        Asked { body, messages: Messages::default(), stats }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Asked<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let begun = self.messages.pass(data);
            self.stats.received.fetch_add(begun, Relaxed);
            self.stats.received_bytes.fetch_add(data.len() as u64, Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A call under way; one that is dropped before its status is known was cancelled.
pub(crate) struct Call {
    stats: Arc<Stats>,
    begun: Instant,
    ended: bool,
    span: Option<CallSpan>,
}

impl Call {
    pub fn new(stats: Arc<Stats>, span: Option<CallSpan>) -> Call {
        Call { stats, begun: Instant::now(), ended: false, span }
    }

    /// Ended with this code; the first counts.
    pub fn end(&mut self, code: Code) {
        if !std::mem::replace(&mut self.ended, true) {
            self.stats.handled[code as usize].fetch_add(1, Relaxed);
            self.stats.took.observe(self.begun.elapsed());
            if let Some(span) = self.span.take() {
                span.end(code);
            }
        }
    }

    fn status(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.end(Code::from_bytes(status.as_bytes()));
        }
    }

    /// Watches the answer to its end.
    pub fn answer(mut self, response: Response<Body>) -> Response<Body> {
        self.status(response.headers());
        if self.ended {
            return response;
        }
        response.map(|body| Body::new(Answered { body, messages: Messages::default(), call: self }))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// An answer's body, watched.
struct Answered {
    body: Body,
    messages: Messages,
    call: Call,
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            if let Some(data) = frame.data_ref() {
                let begun = self.messages.pass(data);
                self.call.stats.sent.fetch_add(begun, Relaxed);
                self.call.stats.sent_bytes.fetch_add(data.len() as u64, Relaxed);
            } else if let Some(trailers) = frame.trailers_ref() {
                self.call.status(trailers);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let mut wire = Vec::new();
        for length in [0_usize, 1, 300] {
            wire.push(0);
            wire.extend_from_slice(&(length as u32).to_be_bytes());
            wire.extend(std::iter::repeat_n(7, length));
        }
        for size in 1..wire.len() {
            let mut messages = Messages::default();
            assert_eq!(wire.chunks(size).map(|piece| messages.pass(piece)).sum::<u64>(), 3, "{size}");
        }
    }

    #[test]
    fn a_call_is_ended_once_and_a_dropped_one_is_cancelled() {
        let calls = Calls::new();
        let stats = calls.at("/etcdserverpb.KV/Range").expect("a method").clone();
        let mut call = Call::new(stats.clone(), None);
        call.end(Code::Ok);
        drop(call);
        drop(Call::new(stats, None));
        assert_eq!(calls.succeeded("/etcdserverpb.KV/Range"), 1);
        let mut page = Page::default();
        calls.render(&mut page, true);
        let text = page.text();
        let line = "grpc_server_handled_total{grpc_code=\"Canceled\",grpc_method=\"Range\",grpc_service=\
                    \"etcdserverpb.KV\",grpc_type=\"unary\"} 1";
        assert!(text.lines().any(|found| found == line), "{text}");
    }
}
