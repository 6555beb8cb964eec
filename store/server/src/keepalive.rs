//! Lease keep-alives, as a connection answers them itself.
//!
//! A lease lasts a little longer than its TTL (`core::lease`), so a keep-alive soon after another has nothing to change:
//! it is a read, asked like any linearizable one by the read index, whose round also tells the leader's clock. A lease
//! that has aged is renewed through the log. Whatever is not the plain case (authentication is on, an alarm, a queue is
//! full) is asked of the handle, message by message.

use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use keelson_store_core::lease::Kept;
use keelson_store_core::{AlarmType, Command, Error, LeaseId, Response, Stamp};
use keelson_store_proto::etcdserverpb as pb;
use prost::Message;
use tonic::{Code, Status};

use crate::calls::{Outcome, Partner, Reply, malformed};
use crate::convert::status;
use crate::door::Answer;
use crate::handle::{Handle, unexpected};
use crate::metrics::{Call, Stats};

/// Of the method.
pub(crate) const PATH: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// One stream.
pub(crate) struct KeepAlives {
    /// In the name of the client.
    handle: Handle,
    stats: Arc<Stats>,
    call: Mutex<Call>,
}

impl KeepAlives {
    pub fn new(handle: Handle, stats: Arc<Stats>) -> KeepAlives {
        stats.begin();
        KeepAlives { handle, call: Mutex::new(Call::new(stats.clone(), None)), stats }
    }

    /// The store's revision and what keep-alives find; `None` when the plain way is not open.
    fn look(&self, ids: &[LeaseId], stamp: Stamp) -> Option<(i64, Vec<Kept>)> {
        let read = self.handle.replica().shared.read(|state, _| {
            let plain = !state.auth().enabled() && !state.has_alarm(AlarmType::Corrupt);
            let kept = |id: &LeaseId| state.lessor().kept(*id, stamp);
            plain.then(|| (state.revision(), ids.iter().map(kept).collect()))
        });
        read.flatten()
    }

    /// What is known once everything acknowledged before is applied here.
    fn seen(self: Arc<Self>, ids: Vec<LeaseId>, stamp: Option<Stamp>, answer: Answer) -> Outcome {
        let Some((revision, kept)) = stamp.and_then(|stamp| self.look(&ids, stamp)) else {
            return self.one_by_one(ids, answer);
        };
        let ttl = |kept: Kept| match kept {
            Kept::Unknown => Some(0),
            Kept::Lasting { ttl } => Some(ttl),
            Kept::Ageing => None,
        };
        match kept.into_iter().map(ttl).collect::<Option<Vec<i64>>>() {
            Some(ttls) => Outcome::Now(Ok(self.answers(revision, ids.into_iter().zip(ttls)))),
            None => self.renew(ids, answer),
        }
    }

    /// Through the log.
    fn renew(self: Arc<Self>, ids: Vec<LeaseId>, answer: Answer) -> Outcome {
        let commands = ids.iter().map(|id| Command::LeaseKeepAlive { id: *id }).collect();
        let this = self.clone();
        let told = answer.clone();
        let done = move |outcome: Result<keelson_store_raft::Applied, Error>| {
            let responses =
                outcome.and_then(|applied| applied.responses.into_iter().collect::<Result<_, _>>());
            told.give(responses.map_err(status).and_then(|responses| this.renewed(responses)));
        };
        match self.handle.replica().proposer.submit_all(commands, done) {
            Ok(()) => Outcome::Later,
            Err(_) => self.one_by_one(ids, answer),
        }
    }

    fn renewed(&self, responses: Vec<Response>) -> Result<Reply, Status> {
        let mut revision = 0;
        let mut renewed = Vec::with_capacity(responses.len());
        for response in responses {
            match response {
                Response::LeaseKeepAlive { revision: at, id, ttl } => {
                    revision = at;
                    renewed.push((id, ttl));
                }
                other => return Err(unexpected(&other)),
            }
        }
        Ok(self.answers(revision, renewed))
    }

    /// The long way, which waits for room.
    fn one_by_one(self: Arc<Self>, ids: Vec<LeaseId>, answer: Answer) -> Outcome {
        tokio::spawn(async move {
            let mut framed = BytesMut::new();
            let mut count = 0;
            for id in ids {
                match self.handle.lease_keep_alive(id).await {
                    Ok(response) => put(&mut framed, &response),
                    Err(status) => return answer.give(Err(status)),
                }
                count += 1;
            }
            self.stats.talked((0, 0), (count, framed.len() as u64));
            answer.give(Ok(Reply::Framed(framed.freeze())));
        });
        Outcome::Later
    }

    fn answers(&self, revision: i64, ttls: impl IntoIterator<Item = (LeaseId, i64)>) -> Reply {
        let header = self.handle.headers().at(revision);
        let mut framed = BytesMut::new();
        let mut count = 0;
        for (id, ttl) in ttls {
            put(&mut framed, &pb::LeaseKeepAliveResponse { header, id, ttl });
            count += 1;
        }
        self.stats.talked((0, 0), (count, framed.len() as u64));
        Reply::Framed(framed.freeze())
    }
}

fn put(out: &mut BytesMut, response: &pb::LeaseKeepAliveResponse) {
    let length = response.encoded_len();
    out.reserve(5 + length);
    out.put_u8(0);
    out.put_u32(length as u32);
    response.encode(out).expect("a growing buffer has room");
}

impl Partner for KeepAlives {
    fn ask(self: Arc<Self>, messages: Vec<Bytes>, answer: Answer) -> Outcome {
        let bytes: usize = messages.iter().map(|message| 5 + message.len()).sum();
        self.stats.talked((messages.len() as u64, bytes as u64), (0, 0));
        let ids = messages.into_iter().map(pb::LeaseKeepAliveRequest::decode);
        let ids: Vec<LeaseId> = match ids.map(|request| request.map(|request| request.id)).collect() {
            Ok(ids) => ids,
            Err(error) => return malformed(&error),
        };
        let replica = self.handle.replica();
        if self.handle.guarded() || self.handle.learner() {
            return self.one_by_one(ids, answer);
        }
        // Even by a clock that may be behind: no need to ask for the leader's.
        let now = self.look(&ids, replica.stamp().unwrap_or_default());
        if now.is_some_and(|(_, kept)| kept.contains(&Kept::Ageing)) {
            return self.renew(ids, answer);
        }
        let (this, asked, told) = (self.clone(), ids.clone(), answer.clone());
        let room = replica.reads.submit(move |seen| match seen {
            Err(error) => told.give(Err(status(error))),
            Ok(seen) => told.make(move |answer| this.seen(asked, seen.stamp, answer)),
        });
        if room { Outcome::Later } else { self.one_by_one(ids, answer) }
    }

    fn end(&self, code: Code) {
        self.call.lock().expect("no panic while locked").end(code);
    }
}
