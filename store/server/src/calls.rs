//! The small calls a connection answers itself: no task, no timer, no boxed future.
//!
//! They follow the same steps as `handle`'s `Etcd`; whatever is not the plain case (authentication is on, the member has
//! just started, a snapshot is being installed, a queue is full, a range wants to be sorted or filtered) is passed on to it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use keelson_store_core::{self as core, AlarmType, Command, Error, Response, check, txn};
use keelson_store_proto::etcdserverpb as pb;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

use crate::convert::{self, status};
use crate::door::Answer;
use crate::handle::{Handle, unexpected};

/// Which call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Range,
    Put,
    Txn,
    DeleteRange,
}

impl Method {
    const ALL: [(Method, &'static str); 4] = [
        (Method::Range, "/etcdserverpb.KV/Range"),
        (Method::Put, "/etcdserverpb.KV/Put"),
        (Method::Txn, "/etcdserverpb.KV/Txn"),
        (Method::DeleteRange, "/etcdserverpb.KV/DeleteRange"),
    ];

    /// The small call of this path.
    pub fn of(path: &[u8]) -> Option<Method> {
        Method::ALL.iter().find(|(_, known)| known.as_bytes() == path).map(|(method, _)| *method)
    }

    /// Its path.
    pub fn path(self) -> &'static str {
        Method::ALL.iter().find(|(method, _)| *method == self).map_or("", |(_, path)| path)
    }
}

/// Answers of small calls.
#[derive(Debug)]
pub(crate) enum Reply {
    Range(pb::RangeResponse),
    Put(pb::PutResponse),
    Txn(pb::TxnResponse),
    DeleteRange(pb::DeleteRangeResponse),
    /// Messages of a conversation, framed.
    Framed(Bytes),
}

impl Reply {
    pub fn encoded_len(&self) -> usize {
        match self {
            Reply::Range(r) => r.encoded_len(),
            Reply::Put(r) => r.encoded_len(),
            Reply::Txn(r) => r.encoded_len(),
            Reply::DeleteRange(r) => r.encoded_len(),
            Reply::Framed(messages) => messages.len(),
        }
    }

    pub fn encode(&self, out: &mut BytesMut) {
        let encoded = match self {
            Reply::Range(r) => r.encode(out),
            Reply::Put(r) => r.encode(out),
            Reply::Txn(r) => r.encode(out),
            Reply::DeleteRange(r) => r.encode(out),
            Reply::Framed(messages) => {
                out.extend_from_slice(messages);
                Ok(())
            }
        };
        encoded.expect("a growing buffer has room");
    }
}

/// What became of a small call.
pub(crate) enum Outcome {
    /// Its answer.
    Now(Result<Reply, Status>),
    /// The answer will be given.
    Later,
    /// The answer is a long one: a task makes and sends it.
    Long(Pin<Box<dyn Future<Output = http::Response<Body>> + Send>>),
    /// It is not a small one after all.
    Pass,
}

/// Answers small calls; by default there are none.
pub(crate) trait Calls {
    /// The largest message of a small call, bytes.
    fn largest(&self) -> usize {
        0
    }

    /// How long an answer may take.
    fn patience(&self) -> Duration {
        Duration::ZERO
    }

    /// Begins a call.
    fn call(&self, _: Method, _: Bytes, _: Answer) -> Outcome {
        Outcome::Pass
    }

    /// Whether requests to this path may be conversations.
    fn converses(&self, _: &[u8]) -> bool {
        false
    }

    /// Begins a conversation; `None` when the request is to be served as an ordinary one.
    fn converse(&self, _: &http::Request<()>) -> Option<Conversation> {
        None
    }
}

/// A stream on which the client sends small messages and each gets one answer, in order.
pub(crate) struct Conversation {
    pub partner: Arc<dyn Partner>,
    /// Resolves with the reason when the stream must end for a reason of its own.
    pub until: Option<Pin<Box<dyn Future<Output = Status> + Send>>>,
}

/// Who answers in a conversation.
pub(crate) trait Partner: Send + Sync {
    /// Answers these messages with as many, framed. Not asked again before the answer is given.
    fn ask(self: Arc<Self>, messages: Vec<Bytes>, answer: Answer) -> Outcome;

    /// The stream is over with this code. Otherwise the client gave it up.
    fn end(&self, code: tonic::Code);
}

pub(crate) fn malformed(error: &prost::DecodeError) -> Outcome {
    Outcome::Now(Err(Status::internal(error.to_string())))
}

/// Why the plain way is not open.
struct NotPlain;

impl Handle {
    /// Begins a small call.
    pub(crate) fn small_call(&self, method: Method, message: Bytes, answer: Answer) -> Outcome {
        match method {
            Method::Range => match pb::RangeRequest::decode(message) {
                Ok(request) => self.small_range(request, answer),
                Err(error) => malformed(&error),
            },
            Method::Put => {
                let length = message.len();
                match pb::PutRequest::decode(message) {
                    Ok(request) => self.small_put(request, length, answer),
                    Err(error) => malformed(&error),
                }
            }
            Method::Txn => {
                let length = message.len();
                match pb::TxnRequest::decode(message) {
                    Ok(request) => self.small_txn(request, length, answer),
                    Err(error) => malformed(&error),
                }
            }
            Method::DeleteRange => match pb::DeleteRangeRequest::decode(message) {
                Ok(request) => {
                    let request = convert::delete_range(request);
                    let checked = check::delete_range(&request);
                    self.small_write(checked, None, || Command::DeleteRange(request), answer)
                }
                Err(error) => malformed(&error),
            },
        }
    }

    fn small_range(&self, request: pb::RangeRequest, answer: Answer) -> Outcome {
        let serializable = request.serializable;
        let request = convert::range(request);
        if let Err(error) = check::range(&request) {
            return Outcome::Now(Err(status(error)));
        }
        if !request.range_end.is_empty() {
            if self.guarded() || self.learner() || core::range_stream::check(&request).is_err() {
                return Outcome::Pass;
            }
            return Outcome::Long(Box::pin(self.clone().long_range(request, serializable)));
        }
        if serializable {
            if !self.is_recovered() {
                return Outcome::Pass;
            }
            return match self.read_one_key(&request) {
                Ok(read) => Outcome::Now(read),
                Err(NotPlain) => Outcome::Pass,
            };
        }
        if self.guarded() || self.learner() {
            return Outcome::Pass;
        }
        let handle = self.clone();
        let room = self.replica().reads.submit(move |seen| match seen {
            Err(error) => answer.give(Err(status(error))),
            Ok(_) => answer.make(move |_| {
                let read = handle.read_one_key(&request);
                // The way has changed since the call came; the client tries again.
                Outcome::Now(read.unwrap_or_else(|NotPlain| Err(status(Error::LeaderChanged))))
            }),
        });
        if room { Outcome::Later } else { Outcome::Pass }
    }

    fn read_one_key(&self, request: &core::RangeRequest) -> Result<Result<Reply, Status>, NotPlain> {
        let read = self.replica().shared.read(|state, rocks| {
            if state.auth().enabled() {
                return Err(NotPlain);
            }
            if state.has_alarm(AlarmType::Corrupt) {
                return Ok(Err(Error::Corrupt));
            }
            Ok(core::range(state, rocks, request))
        });
        let read = read.unwrap_or(Err(NotPlain))?;
        Ok(read.map(|found| Reply::Range(self.headers().range(found))).map_err(status))
    }

    fn small_put(&self, request: pb::PutRequest, length: usize, answer: Answer) -> Outcome {
        if length > self.config().max_request_bytes {
            return Outcome::Now(Err(status(Error::RequestTooLarge)));
        }
        let request = convert::put(request);
        self.small_write(check::put(&request), Some(length), || Command::Put(request), answer)
    }

    fn small_txn(&self, request: pb::TxnRequest, length: usize, answer: Answer) -> Outcome {
        if length > self.config().max_request_bytes {
            return Outcome::Now(Err(status(Error::RequestTooLarge)));
        }
        let request = convert::txn(request);
        let checked = check::txn(&request, self.config().max_txn_ops);
        if checked.is_ok() && txn::is_read_only(&request) {
            return Outcome::Pass;
        }
        let grows = txn::has_put(&request).then_some(length);
        self.small_write(checked, grows, || Command::Txn(request), answer)
    }

    /// Proposes a command that was `checked`; `grows` is its size in bytes when it may make the store larger.
    fn small_write(
        &self,
        checked: Result<(), Error>,
        grows: Option<usize>,
        command: impl FnOnce() -> Command,
        answer: Answer,
    ) -> Outcome {
        if let Err(error) = checked {
            return Outcome::Now(Err(status(error)));
        }
        let fits = |bytes| self.inner.quota.fits(&self.replica().shared.backend, bytes);
        if self.guarded() || self.learner() || !grows.is_none_or(fits) {
            return Outcome::Pass;
        }
        let handle = self.clone();
        let done = move |outcome: Result<keelson_store_raft::Applied, Error>| {
            let response = outcome.and_then(|applied| {
                let first = applied.responses.into_iter().next();
                first.unwrap_or(Err(Error::Stopped))
            });
            let headers = handle.headers();
            answer.give(match response {
                Ok(Response::Put(put)) => Ok(Reply::Put(headers.put(put))),
                Ok(Response::Txn(txn)) => Ok(Reply::Txn(headers.txn(txn))),
                Ok(Response::DeleteRange(delete)) => Ok(Reply::DeleteRange(headers.delete_range(delete))),
                Ok(other) => Err(unexpected(&other)),
                Err(error) => Err(status(error)),
            });
        };
        let room = self.replica().proposer.submit(command, done);
        if room { Outcome::Later } else { Outcome::Pass }
    }
}
