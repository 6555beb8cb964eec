//! One server, of one or more members: carries an operation to one of its members and its watch streams to all of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelson_store_proto::client::{Etcd, Remote};
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::auth_client::AuthClient;
use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use keelson_store_proto::etcdserverpb::lease_client::LeaseClient;
use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
use keelson_store_proto::mvccpb;
use tokio::sync::{Notify, mpsc};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::operation::{Answer, Auth, Leases, NOT_OPEN, Operation, bare};

/// The longest that an answer of a stream is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a request for progress that was not answered is made again.
const AGAIN: Duration = Duration::from_millis(300);

/// What one watcher was sent and nobody has taken yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Answers that opened or ended it, without their events.
    pub control: Vec<pb::WatchResponse>,
    /// Its events.
    pub events: Vec<mvccpb::Event>,
}

/// What has arrived on one watch stream, by watch id.
#[derive(Default)]
struct Arrived {
    seen: BTreeMap<i64, Seen>,
    /// Newest revision by watch id, and whether its last answer was a fragment.
    last: BTreeMap<i64, (i64, bool)>,
    /// Revisions of answers to requests for progress.
    progress: Vec<i64>,
    /// Violations of what holds for every stream alone, and its end.
    broken: Vec<String>,
}

struct Line {
    requests: mpsc::Sender<pb::WatchRequest>,
    arrived: Arc<(Mutex<Arrived>, Notify)>,
    member: usize,
}

/// A server under comparison.
pub struct Peer {
    /// As messages call it.
    pub name: String,
    /// Whether it has `RangeStream`.
    pub streams_ranges: bool,
    channels: Vec<Channel>,
    lines: Vec<Line>,
    leases: Leases,
}

impl Arrived {
    fn take_in(&mut self, mut response: pb::WatchResponse) {
        bare(&mut response.header);
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        let events = std::mem::take(&mut response.events);
        let id = response.watch_id;
        if response.created || response.canceled {
            if !events.is_empty() {
                self.broken.push(format!("events on a control answer: {response:?}"));
            }
            self.last.remove(&id);
            self.seen.entry(id).or_default().control.push(response);
        } else if events.is_empty() {
            self.progress.push(revision);
        } else {
            self.in_order(id, &response, &events, revision);
            self.seen.entry(id).or_default().events.extend(events);
        }
    }

    /// Ordered, unique, atomic: no revision is split over answers that are not fragments of one.
    fn in_order(&mut self, id: i64, response: &pb::WatchResponse, events: &[mvccpb::Event], revision: i64) {
        let mod_revision = |event: &mvccpb::Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        let (first, last) = (mod_revision(&events[0]), mod_revision(&events[events.len() - 1]));
        if let Some(&(before, fragment)) = self.last.get(&id)
            && (first < before || first == before && !fragment)
        {
            self.broken.push(format!("watch {id} shows revision {first} after {before}"));
        }
        if !events.is_sorted_by_key(mod_revision) || last > revision {
            self.broken.push(format!("watch {id} at revision {revision}: {events:?}"));
        }
        self.last.insert(id, (last, response.fragment));
    }
}

fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned()).expect("a URL").tcp_nodelay(true).connect_lazy()
}

impl Peer {
    /// Connects to the members of a server, with so many watch streams.
    pub async fn new(name: &str, urls: &[String], streams: usize) -> Peer {
        let channels: Vec<Channel> = urls.iter().map(|url| channel(url)).collect();
        let mut lines = Vec::new();
        for stream in 0..streams {
            let member = stream % urls.len();
            let remote = Remote::connect(&urls[member..=member], None).await.expect("a URL");
            let (requests, mut answers) = remote.watch().await.expect("a stream");
            let arrived = Arc::new((Mutex::new(Arrived::default()), Notify::new()));
            let shared = arrived.clone();
            tokio::spawn(async move {
                while let Some(answer) = answers.recv().await {
                    {
                        let mut arrived = shared.0.lock().expect("not poisoned");
                        match answer {
                            Ok(response) => arrived.take_in(response),
                            Err(status) => arrived.broken.push(format!("the stream ended: {status}")),
                        }
                    }
                    shared.1.notify_one();
                }
            });
            lines.push(Line { requests, arrived, member });
        }
        let version =
            Remote::connect(&urls[..1], None).await.expect("a URL").status(pb::StatusRequest {}).await;
        let version = version.expect("a status").version;
        let streams_ranges = !version.starts_with("3.5.") && !version.starts_with("3.6.");
        Peer { name: format!("{name} {version}"), streams_ranges, channels, lines, leases: Leases::default() }
    }

    /// Asks one of the members and answers what of its answer is a fact.
    pub async fn call(&mut self, operation: &Operation, turn: usize) -> Answer {
        let member = turn % self.channels.len();
        if self.channels.len() > 1 && reads_locally(operation) {
            self.catch_up(member).await;
        }
        let outgoing = self.leases.outgoing(operation);
        let mut answer = match self.carry(outgoing, member).await {
            Ok(answer) => answer,
            Err(status) => Answer::from(status),
        };
        if let (Operation::Grant(asked), Answer::Grant(granted)) = (operation, &answer)
            && asked.id == 0
        {
            self.leases.learn(granted.id);
        }
        self.leases.incoming(&mut answer);
        answer
    }

    /// Waits until a member has applied everything that was acknowledged before.
    async fn catch_up(&self, member: usize) {
        let read = pb::RangeRequest { key: "a".into(), count_only: true, ..Default::default() };
        let _answered = KvClient::new(self.channels[member].clone()).range(read).await;
    }

    async fn carry(&self, operation: Operation, member: usize) -> Result<Answer, Status> {
        let channel = || self.channels[member].clone();
        let (mut kv, mut lease) = (KvClient::new(channel()), LeaseClient::new(channel()));
        Ok(match operation {
            Operation::Range(r) => Answer::Range(kv.range(r).await?.into_inner()),
            Operation::RangeStream(r) if self.streams_ranges => self.range_stream(kv, r).await?,
            Operation::RangeStream(r) => Answer::Range(kv.range(r).await?.into_inner()),
            Operation::Put(r) => Answer::Put(kv.put(r).await?.into_inner()),
            Operation::Delete(r) => Answer::Delete(kv.delete_range(r).await?.into_inner()),
            Operation::Txn(r) => Answer::Txn(kv.txn(r).await?.into_inner()),
            Operation::Compact(r) => Answer::Compact(kv.compact(r).await?.into_inner()),
            Operation::Grant(r) => Answer::Grant(lease.lease_grant(r).await?.into_inner()),
            Operation::Revoke(r) => Answer::Revoke(lease.lease_revoke(r).await?.into_inner()),
            Operation::KeepAlive(r) => {
                let requests = tokio_stream::once(r);
                let mut answers = lease.lease_keep_alive(requests).await?.into_inner();
                let ended = || Status::new(Code::Aborted, "the stream ended without an answer");
                Answer::KeepAlive(answers.message().await?.ok_or_else(ended)?)
            }
            Operation::TimeToLive(r) => Answer::TimeToLive(lease.lease_time_to_live(r).await?.into_inner()),
            Operation::Leases => {
                Answer::Leases(lease.lease_leases(pb::LeaseLeasesRequest {}).await?.into_inner())
            }
            Operation::Auth(call) => self.auth(AuthClient::new(channel()), call).await?,
            Operation::Watch { stream, request, ends } => self.open(stream, request, ends).await?,
            Operation::Cancel { stream, id } => self.cancel(stream, id).await?,
            Operation::Progress { stream, revision } => self.progress(stream, revision).await?,
        })
    }

    /// A streamed range put together.
    async fn range_stream(&self, mut kv: KvClient<Channel>, r: pb::RangeRequest) -> Result<Answer, Status> {
        let mut pieces = kv.range_stream(r).await?.into_inner();
        let mut whole = pb::RangeResponse::default();
        while let Some(piece) = pieces.message().await? {
            let mut piece = piece.range_response.unwrap_or_default();
            whole.kvs.append(&mut piece.kvs);
            (whole.more, whole.count) = (whole.more || piece.more, whole.count.max(piece.count));
            whole.header = piece.header.or(whole.header);
        }
        Ok(Answer::Range(whole))
    }

    async fn auth(&self, mut client: AuthClient<Channel>, call: Auth) -> Result<Answer, Status> {
        macro_rules! asked {
            ($method:ident, $request:expr) => {{
                let mut answer = client.$method($request).await?.into_inner();
                bare(&mut answer.header);
                format!("{answer:?}")
            }};
        }
        Ok(Answer::Auth(match call {
            Auth::UserAdd(r) => asked!(user_add, r),
            Auth::UserGet(r) => asked!(user_get, r),
            Auth::UserList(r) => asked!(user_list, r),
            Auth::UserDelete(r) => asked!(user_delete, r),
            Auth::UserGrantRole(r) => asked!(user_grant_role, r),
            Auth::UserRevokeRole(r) => asked!(user_revoke_role, r),
            Auth::RoleAdd(r) => asked!(role_add, r),
            Auth::RoleGet(r) => asked!(role_get, r),
            Auth::RoleList(r) => asked!(role_list, r),
            Auth::RoleDelete(r) => asked!(role_delete, r),
            Auth::RoleGrantPermission(r) => asked!(role_grant_permission, r),
            Auth::RoleRevokePermission(r) => asked!(role_revoke_permission, r),
            Auth::Status(r) => asked!(auth_status, r),
            Auth::Enable(r) => asked!(auth_enable, r),
            Auth::Authenticate(r) => asked!(authenticate, r),
        }))
    }

    async fn send(&self, stream: usize, request: RequestUnion) -> Result<(), Status> {
        let request = pb::WatchRequest { request_union: Some(request) };
        let sent = self.lines[stream].requests.send(request).await;
        sent.map_err(|_| Status::new(Code::Aborted, "the watch stream is closed"))
    }

    /// Polls what has arrived on a stream until `look` finds something.
    async fn await_on<T>(
        &self,
        stream: usize,
        what: &str,
        look: impl Fn(&mut Arrived) -> Option<T>,
    ) -> Result<T, Status> {
        let (arrived, notify) = (&self.lines[stream].arrived.0, &self.lines[stream].arrived.1);
        let wait = async {
            loop {
                if let Some(found) = look(&mut arrived.lock().expect("not poisoned")) {
                    return found;
                }
                // Other streams' arrivals do not wake this one, and a permit may have been taken by an earlier look.
                let _looked_again = tokio::time::timeout(Duration::from_millis(50), notify.notified()).await;
            }
        };
        let late = |_| Status::new(Code::Aborted, format!("stream {stream}: not in time: {what}"));
        tokio::time::timeout(PATIENCE, wait).await.map_err(late)
    }

    /// Opens a watcher; where it starts in compacted history (`ends`) the answer that ends it is waited for too.
    async fn open(
        &self,
        stream: usize,
        request: pb::WatchCreateRequest,
        ends: bool,
    ) -> Result<Answer, Status> {
        self.catch_up(self.lines[stream].member).await;
        self.send(stream, RequestUnion::CreateRequest(request)).await?;
        let answered = self.await_on(stream, "an answer to a watch", |arrived| {
            let control: Vec<&pb::WatchResponse> =
                arrived.seen.values().flat_map(|seen| &seen.control).collect();
            let created = control.iter().any(|answer| answer.created);
            let ended = control.iter().any(|answer| answer.canceled);
            (created && (ended || !ends)).then(|| arrived.take_control())
        });
        Ok(Answer::Watch(answered.await?))
    }

    async fn cancel(&self, stream: usize, id: i64) -> Result<Answer, Status> {
        self.send(stream, RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: id })).await?;
        if id == NOT_OPEN {
            // A watcher that is not there is not answered: what comes nevertheless is found by the next look.
            return Ok(Answer::Watch(Vec::new()));
        }
        let ended = self.await_on(stream, "the end of a watcher", |arrived| {
            let control = arrived.seen.get(&id).map_or(&[][..], |seen| &seen.control[..]);
            control.iter().any(|answer| answer.canceled).then(|| arrived.take_control())
        });
        Ok(Answer::Watch(ended.await?))
    }

    /// The answer to a request for progress. A server may leave a request unanswered while a watcher is behind, and has
    /// the right to think one behind that has just caught up: then the request is made again. So there may be late
    /// answers to earlier requests, which are passed over.
    async fn progress(&self, stream: usize, now: i64) -> Result<Answer, Status> {
        let waiting = self.await_on(stream, "progress", |arrived| {
            let mut came = std::mem::take(&mut arrived.progress).into_iter();
            came.find(|revision| *revision >= now)
        });
        tokio::pin!(waiting);
        loop {
            self.send(stream, RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await?;
            tokio::select! {
                revision = &mut waiting => {
                    let header = Some(pb::ResponseHeader { revision: revision?, ..Default::default() });
                    return Ok(Answer::Watch(vec![pb::WatchResponse { header, ..Default::default() }]));
                }
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    /// Waits until a watcher has shown so many events, and takes them; fewer when they do not come in time.
    pub async fn events(&self, stream: usize, id: i64, count: usize) -> Vec<mvccpb::Event> {
        let shown = |arrived: &Arrived| arrived.seen.get(&id).map_or(0, |seen| seen.events.len());
        let _late = self.await_on(stream, "events", |arrived| (shown(arrived) >= count).then_some(())).await;
        let mut arrived = self.lines[stream].arrived.0.lock().expect("not poisoned");
        let mut events = std::mem::take(&mut arrived.seen.entry(id).or_default().events);
        drop(arrived);
        for event in &mut events {
            event.kv.iter_mut().chain(&mut event.prev_kv).for_each(|kv| self.leases.record(kv));
        }
        events
    }

    /// Control answers nobody expected, watchers that show events and are not open, and violations.
    pub fn stray(&self, open: impl Fn(usize, i64) -> bool) -> Vec<String> {
        let mut found = Vec::new();
        for (stream, line) in self.lines.iter().enumerate() {
            let arrived = line.arrived.0.lock().expect("not poisoned");
            found.extend(arrived.broken.iter().map(|text| format!("stream {stream}: {text}")));
            for (id, seen) in &arrived.seen {
                if !seen.control.is_empty() || !seen.events.is_empty() && !open(stream, *id) {
                    found.push(format!("stream {stream}, watch {id}: {seen:?}"));
                }
            }
        }
        found
    }

    /// Waits until the witness has shown a revision, and takes its events.
    pub async fn witness(&self, revision: i64) -> Vec<mvccpb::Event> {
        let shown = |arrived: &Arrived| arrived.last.get(&0).map_or(1, |(revision, _)| *revision);
        let what = format!("revision {revision} at the witness");
        let waited = self.await_on(0, &what, |arrived| (shown(arrived) >= revision).then_some(())).await;
        if let Err(status) = waited {
            panic!("{}: {status}", self.name);
        }
        self.events(0, 0, 0).await
    }
}

impl Arrived {
    fn take_control(&mut self) -> Vec<pb::WatchResponse> {
        self.seen.values_mut().flat_map(|seen| std::mem::take(&mut seen.control)).collect()
    }
}

/// Whether a member answers out of what it has applied itself.
fn reads_locally(operation: &Operation) -> bool {
    use keelson_store_proto::etcdserverpb::request_op::Request;
    fn local(txn: &pb::TxnRequest) -> bool {
        txn.success.iter().chain(&txn.failure).any(|operation| match &operation.request {
            Some(Request::RequestRange(r)) => r.serializable,
            Some(Request::RequestTxn(r)) => local(r),
            _ => false,
        })
    }
    match operation {
        Operation::Range(r) | Operation::RangeStream(r) => r.serializable,
        Operation::Txn(r) => local(r),
        Operation::Leases | Operation::Auth(_) => true,
        _ => false,
    }
}
