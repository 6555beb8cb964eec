//! The store's API in process: what the gRPC services and the `Etcd` seam call. Requests are checked, writes go through
//! the log, reads wait for a read index (unless serializable) and then read one consistent picture.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use keelson_store_core::{self as core, AlarmType, Command, Error, LeaseId, Response, State, check, txn};
use keelson_store_proto::client::{Etcd, WatchStream};
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_raft::types::TokioRuntime;
use keelson_store_raft::{Replica, network::MemberChange};
use keelson_store_sync::Hub;
use prost::Message;
use tonic::Status;

use crate::auth::{Caller, Passwords, Tokens};
use crate::config::Config;
use crate::convert::{self, Headers, status};
use crate::facts::Facts;
use crate::peer::PeerTransport;
use crate::quota::Quota;
use crate::rocks::Rocks;
use crate::strict;
use crate::traces::Traces;
use crate::watch;

/// The version we answer as.
pub const ETCD_VERSION: &str = "3.7.1";
/// The cluster's.
pub const CLUSTER_VERSION: &str = "3.7.0";

/// One member's replica.
pub type Member = Replica<TokioRuntime, Rocks, PeerTransport>;

/// A cheap handle on a running member.
#[derive(Clone)]
pub struct Handle {
    pub(crate) inner: Arc<Inner>,
    pub(crate) caller: Caller,
}

pub(crate) struct Inner {
    pub config: Config,
    pub cluster_id: u64,
    pub replica: Arc<Member>,
    pub hub: Arc<Hub<core::RevisionEvents>>,
    /// Set once this member has caught up after its start.
    pub ready: tokio::sync::watch::Receiver<bool>,
    /// Rung when a scrub has ended.
    pub scrubbed: Arc<tokio::sync::Notify>,
    pub facts: Arc<Facts>,
    /// Absent when calls are not traced.
    pub traces: Option<Traces>,
    pub quota: Quota,
    /// Held while files are rewritten to give space back.
    pub rewriting: tokio::sync::Semaphore,
    pub tokens: Arc<Tokens>,
    pub passwords: Passwords,
    /// For metrics.
    pub proposals: Proposals,
    /// Range streams that may be read at a time.
    pub streams: Arc<tokio::sync::Semaphore>,
}

/// What became of what was put to the cluster.
#[derive(Debug, Default)]
pub(crate) struct Proposals {
    pub pending: AtomicU64,
    pub failed: AtomicU64,
    pub reads_failed: AtomicU64,
}

/// One proposal under way, counted until it goes.
struct Pending<'a>(&'a Proposals);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Relaxed);
    }
}

type Answer<T> = Result<T, Status>;

impl Handle {
    /// This member's id.
    pub fn member_id(&self) -> u64 {
        self.inner.replica.id
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.inner.cluster_id
    }

    /// Ids of the members whose vote counts. A member just added joins them when it has caught up.
    pub fn voters(&self) -> Vec<u64> {
        self.inner.replica.voters().into_iter().collect()
    }

    /// Id of the leader, 0 when unknown.
    pub fn leader(&self) -> u64 {
        self.inner.replica.leader_id()
    }

    pub(crate) fn headers(&self) -> Headers {
        Headers {
            cluster_id: self.inner.cluster_id,
            member_id: self.inner.replica.id,
            raft_term: self.inner.replica.term(),
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.inner.config
    }

    pub(crate) fn traces(&self) -> Option<&Traces> {
        self.inner.traces.as_ref()
    }

    pub(crate) fn replica(&self) -> &Arc<Member> {
        &self.inner.replica
    }

    /// State and database at one point of the log; waits out the installation of a snapshot.
    pub(crate) async fn at_once<T>(&self, read: impl Fn(&State, &Rocks) -> T) -> Answer<T> {
        let shared = &self.inner.replica.shared;
        if let Some(answer) = shared.read(&read) {
            return Ok(answer);
        }
        let mut applied = shared.watch_applied();
        let deadline = tokio::time::Instant::now() + self.config().request_timeout();
        loop {
            applied.borrow_and_update();
            if let Some(answer) = shared.read(&read) {
                return Ok(answer);
            }
            match tokio::time::timeout_at(deadline, applied.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(status(Error::Stopped)),
                Err(_) => return Err(status(Error::TimeoutWaitAppliedIndex)),
            }
        }
    }

    /// The store's revision now.
    pub(crate) async fn revision(&self) -> Answer<i64> {
        self.at_once(|state, _| state.revision()).await
    }

    pub(crate) async fn linearize(&self) -> Answer<()> {
        let read = self.inner.replica.read_index().await;
        if read.is_err() {
            self.inner.proposals.reads_failed.fetch_add(1, Relaxed);
        }
        read.map_err(status)
    }

    /// Answers its size, bytes.
    fn fits(&self, request: &impl Message) -> Answer<usize> {
        let size = request.encoded_len();
        if size > self.config().max_request_bytes {
            return Err(status(Error::RequestTooLarge));
        }
        Ok(size)
    }

    /// Raises NOSPACE and refuses when a request of so many bytes would take the database above its quota.
    async fn within_quota(&self, bytes: usize) -> Answer<()> {
        if self.inner.quota.fits(&self.inner.replica.shared.backend, bytes)
            || self.at_once(|state, _| state.has_alarm(AlarmType::NoSpace)).await?
        {
            return Ok(());
        }
        let alarm = Command::AlarmActivate { member: self.member_id(), alarm: AlarmType::NoSpace };
        self.propose(alarm).await?;
        Err(status(Error::NoSpace))
    }

    pub(crate) async fn propose(&self, command: Command) -> Answer<Response> {
        let proposals = &self.inner.proposals;
        proposals.pending.fetch_add(1, Relaxed);
        let _pending = Pending(proposals);
        let proposed = self.inner.replica.propose(command).await;
        if proposed.as_ref().is_err_and(|error| error.code() == keelson_store_core::Code::Unavailable) {
            proposals.failed.fetch_add(1, Relaxed);
        }
        proposed.map(|(_, response)| response).map_err(status)
    }

    pub(crate) fn learner(&self) -> bool {
        self.inner.facts.learner()
    }

    /// A learner serves little else than serializable reads.
    pub(crate) fn voters_only(&self) -> Answer<()> {
        if self.learner() { Err(status(Error::NotSupportedForLearner)) } else { Ok(()) }
    }

    /// After a restart the state may be older than what was served before; nothing is read from it until it has caught
    /// up once.
    pub(crate) fn is_recovered(&self) -> bool {
        *self.inner.ready.borrow()
    }

    async fn recovered(&self) -> Answer<()> {
        let mut ready = self.inner.ready.clone();
        if *ready.borrow() {
            return Ok(());
        }
        match tokio::time::timeout(self.config().request_timeout(), ready.wait_for(|ready| *ready)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(status(Error::Stopped)),
            Err(_) => Err(status(Error::Timeout)),
        }
    }

    pub(crate) async fn prepare_read(&self, serializable: bool) -> Answer<()> {
        if serializable {
            self.recovered().await?;
        } else {
            self.voters_only()?;
            self.linearize().await?;
        }
        let corrupt = self.at_once(|state, _| state.has_alarm(AlarmType::Corrupt)).await?;
        if corrupt { Err(status(Error::Corrupt)) } else { Ok(()) }
    }

    /// A range, or more than a key of it, is read on a thread where it may take its time.
    async fn read_range(&self, request: core::RangeRequest) -> Answer<core::RangeResponse> {
        let rule = |state: &State, who: &core::Identity, _: &Rocks| state.auth().check_range(who, &request);
        if request.range_end.is_empty() {
            return self
                .allowed(rule, |state, rocks| core::range(state, rocks, &request))
                .await?
                .map_err(status);
        }
        // Judged, and an installation waited out, here, so that the thread below need not.
        self.allowed(rule, |_, _| ()).await?;
        let replica = self.inner.replica.clone();
        let work = tokio::task::spawn_blocking(move || {
            let backend = replica.shared.backend.clone();
            let (revision, compacted, view) = replica
                .shared
                .read(|state, _| (state.revision(), state.compact_revision(), backend.view()))?;
            Some(core::range::range_at(revision, compacted, &view, &request))
        });
        match work.await {
            Ok(Some(answer)) => answer.map_err(status),
            Ok(None) => Err(status(Error::TimeoutWaitAppliedIndex)),
            Err(error) => Err(Status::internal(format!("reading: {error}"))),
        }
    }

    /// The members as this member knows them.
    pub(crate) async fn members(&self) -> Answer<Vec<core::Member>> {
        self.at_once(|state, _| state.members().to_vec()).await
    }

    /// What the leader refuses of changes of the membership, here or asked for by a follower.
    pub(crate) async fn judge(&self, change: &MemberChange) -> Result<(), Error> {
        let members = self.members().await.map_err(|_| Error::TimeoutWaitAppliedIndex)?;
        if self.config().strict_reconfig_check {
            strict::judge(change, &members, self.member_id(), &self.inner.replica.transport.contacts)?;
        }
        let taken = |urls: &[String], except: u64| {
            let has = |member: &core::Member| member.peer_urls.iter().any(|url| urls.contains(url));
            members.iter().any(|member| member.id != except && has(member))
        };
        match change {
            MemberChange::Add { node, .. } if taken(&node.peer_urls, 0) => Err(Error::PeerUrlsExist),
            MemberChange::Update { id, peer_urls } if taken(peer_urls, *id) => Err(Error::PeerUrlsExist),
            _ => Ok(()),
        }
    }

    /// Changes the membership and returns once this member shows it.
    pub(crate) async fn change(
        &self,
        change: MemberChange,
        shows: impl Fn(&core::Members) -> bool,
    ) -> Answer<Vec<core::Member>> {
        let timeout = self.config().request_timeout();
        if self.inner.replica.is_leader() {
            self.judge(&change).await.map_err(status)?;
        }
        self.inner.replica.change(change, timeout).await.map_err(status)?;
        let mut applied = self.inner.replica.shared.watch_applied();
        let wait = async {
            while !self.at_once(|state, _| shows(state.members())).await? {
                if applied.changed().await.is_err() {
                    return Err(status(Error::Stopped));
                }
            }
            self.members().await
        };
        let late = Err(status(Error::TimeoutWaitAppliedIndex));
        tokio::time::timeout(timeout, wait).await.unwrap_or(late)
    }

    /// Adds a member by its peer URLs: a voter to be (made one as soon as it has caught up), or a learner. Answers its
    /// id. It is then started with the same name and URLs and `initial_cluster_state` existing.
    ///
    /// # Errors
    /// etcd's own refusals.
    pub async fn add_member(&self, name: &str, peer_urls: Vec<String>, learner: bool) -> Answer<u64> {
        self.voters_only()?;
        let bad =
            peer_urls.is_empty() || peer_urls.iter().any(|url| crate::config::Endpoint::parse(url).is_err());
        if bad {
            return Err(status(Error::InvalidMemberUrls));
        }
        self.allowed_admin().await?;
        let members = self.members().await?;
        let learners = members.iter().filter(|member| member.is_learner).count();
        if learner && learners >= self.config().max_learners {
            return Err(status(Error::TooManyLearners));
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let id = crate::identity::member_id(&peer_urls, &now.as_nanos().to_be_bytes());
        let node = keelson_store_raft::Node { name: name.to_owned(), peer_urls, promote: !learner };
        self.change(MemberChange::Add { id, node }, |members| members.get(id).is_some()).await?;
        Ok(id)
    }

    /// Makes a learner a voter.
    ///
    /// # Errors
    /// etcd's own refusals: not there, no learner, not in sync yet (ask again later).
    pub async fn promote_member(&self, id: u64) -> Answer<()> {
        self.voters_only()?;
        self.allowed_admin().await?;
        let shows = |members: &core::Members| members.get(id).is_none_or(|member| !member.is_learner);
        self.change(MemberChange::Promote { id }, shows).await.map(|_| ())
    }

    /// Removes a member, which then stops by itself if it runs.
    ///
    /// # Errors
    /// etcd's own refusals: not there, too few members of the rest have started.
    pub async fn remove_member(&self, id: u64) -> Answer<()> {
        self.voters_only()?;
        self.allowed_admin().await?;
        let members = self.members().await?;
        if members.iter().all(|member| member.id != id) {
            return Err(status(Error::MemberNotFound));
        }
        self.change(MemberChange::Remove { id }, |members| members.get(id).is_none()).await.map(|_| ())
    }

    /// A lease id: positive, random, free.
    fn free_lease_id(&self, state: &State) -> LeaseId {
        loop {
            let id = (rand::random::<u64>() >> 1) as i64;
            if id != 0 && state.lessor().get(id).is_none() {
                return id;
            }
        }
    }

    /// Renews a lease; a TTL of 0 says that there is none.
    pub(crate) async fn lease_keep_alive(&self, id: LeaseId) -> Answer<pb::LeaseKeepAliveResponse> {
        self.voters_only()?;
        match self.propose_as_caller(Command::LeaseKeepAlive { id }).await? {
            Response::LeaseKeepAlive { revision, id, ttl } => {
                Ok(pb::LeaseKeepAliveResponse { header: self.headers().at(revision), id, ttl })
            }
            other => Err(unexpected(&other)),
        }
    }
}

pub(crate) fn unexpected(response: &Response) -> Status {
    Status::internal(format!("a command was answered with {response:?}"))
}

#[async_trait]
impl Etcd for Handle {
    async fn range(&self, r: pb::RangeRequest) -> Answer<pb::RangeResponse> {
        let serializable = r.serializable;
        let request = convert::range(r);
        check::range(&request).map_err(status)?;
        self.prepare_read(serializable).await?;
        let answer = self.read_range(request).await?;
        Ok(self.headers().range(answer))
    }

    async fn put(&self, r: pb::PutRequest) -> Answer<pb::PutResponse> {
        let size = self.fits(&r)?;
        let request = convert::put(r);
        check::put(&request).map_err(status)?;
        self.voters_only()?;
        self.within_quota(size).await?;
        match self.propose_as_caller(Command::Put(request)).await? {
            Response::Put(answer) => Ok(self.headers().put(answer)),
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_range(&self, r: pb::DeleteRangeRequest) -> Answer<pb::DeleteRangeResponse> {
        let request = convert::delete_range(r);
        check::delete_range(&request).map_err(status)?;
        self.voters_only()?;
        match self.propose_as_caller(Command::DeleteRange(request)).await? {
            Response::DeleteRange(answer) => Ok(self.headers().delete_range(answer)),
            other => Err(unexpected(&other)),
        }
    }

    async fn txn(&self, r: pb::TxnRequest) -> Answer<pb::TxnResponse> {
        let size = self.fits(&r)?;
        let serializable = serializable(&r);
        let request = convert::txn(r);
        check::txn(&request, self.config().max_txn_ops).map_err(status)?;
        if txn::is_read_only(&request) {
            self.prepare_read(serializable).await?;
            let answer = self
                .allowed(
                    |state, who, rocks| state.auth().check_txn(who, rocks, &request),
                    |state, rocks| txn::read_txn(state, rocks, &request),
                )
                .await?;
            return Ok(self.headers().txn(answer.map_err(status)?));
        }
        self.voters_only()?;
        if txn::has_put(&request) {
            self.within_quota(size).await?;
        }
        match self.propose_as_caller(Command::Txn(request)).await? {
            Response::Txn(answer) => Ok(self.headers().txn(answer)),
            other => Err(unexpected(&other)),
        }
    }

    async fn compact(&self, r: pb::CompactionRequest) -> Answer<pb::CompactionResponse> {
        self.voters_only()?;
        match self.propose_as_caller(Command::Compact { revision: r.revision }).await? {
            Response::Compact { revision } => {
                Ok(pb::CompactionResponse { header: self.headers().at(revision) })
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn lease_grant(&self, r: pb::LeaseGrantRequest) -> Answer<pb::LeaseGrantResponse> {
        self.voters_only()?;
        self.within_quota(0).await?;
        let id = match r.id {
            0 => self.at_once(|state, _| self.free_lease_id(state)).await?,
            id => id,
        };
        check::lease_grant(id, r.ttl).map_err(status)?;
        let ttl = r.ttl.max(self.config().min_lease_ttl());
        match self.propose_as_caller(Command::LeaseGrant { id, ttl }).await? {
            Response::LeaseGrant { revision, id, ttl } => Ok(pb::LeaseGrantResponse {
                header: self.headers().at(revision),
                id,
                ttl,
                error: String::new(),
            }),
            other => Err(unexpected(&other)),
        }
    }

    async fn lease_revoke(&self, r: pb::LeaseRevokeRequest) -> Answer<pb::LeaseRevokeResponse> {
        self.voters_only()?;
        match self.propose_as_caller(Command::LeaseRevoke { id: r.id }).await? {
            Response::LeaseRevoke { revision } => {
                Ok(pb::LeaseRevokeResponse { header: self.headers().at(revision) })
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn status(&self, _: pb::StatusRequest) -> Answer<pb::StatusResponse> {
        let replica = &self.inner.replica;
        let (revision, alarms, sizes, downgrade) = self
            .allowed(
                |state, who, _| state.auth().check_user(who),
                |state, rocks| {
                    let alarms = state.alarms().iter().map(|alarm| match alarm.alarm {
                        AlarmType::NoSpace => format!("memberID:{} alarm:NOSPACE ", alarm.member),
                        AlarmType::Corrupt => format!("memberID:{} alarm:CORRUPT ", alarm.member),
                    });
                    let downgrade = state.downgrade().map(str::to_owned);
                    (state.revision(), alarms.collect::<Vec<_>>(), rocks.size(), downgrade)
                },
            )
            .await?;
        let leader = replica.leader_id();
        let mut errors = Vec::new();
        if leader == 0 {
            errors.push(Error::NoLeader.to_string());
        }
        errors.extend(alarms);
        let applied = replica.shared.applied();
        let signed = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
        Ok(pb::StatusResponse {
            header: self.headers().at(revision),
            version: ETCD_VERSION.to_owned(),
            db_size: signed(sizes.0),
            leader,
            raft_index: replica.committed().max(applied),
            raft_term: replica.term(),
            raft_applied_index: applied,
            errors,
            db_size_in_use: signed(sizes.1),
            is_learner: self.learner(),
            storage_version: CLUSTER_VERSION.to_owned(),
            db_size_quota: signed(self.config().quota()),
            downgrade_info: Some(pb::DowngradeInfo {
                enabled: downgrade.is_some(),
                target_version: downgrade.unwrap_or_default(),
            }),
        })
    }

    async fn member_list(&self, r: pb::MemberListRequest) -> Answer<pb::MemberListResponse> {
        self.allowed_any().await?;
        if r.linearizable {
            self.linearize().await?;
        }
        let members = self.members().await?;
        Ok(pb::MemberListResponse {
            // etcd leaves the revision of membership answers empty.
            header: self.headers().at(0),
            members: members.iter().map(convert::member).collect(),
        })
    }

    async fn watch(&self) -> Answer<WatchStream> {
        Ok(watch::open(self.clone()))
    }
}

/// A Txn of reads is serializable when all its reads are.
fn serializable(request: &pb::TxnRequest) -> bool {
    use pb::request_op::Request;
    let all = |op: &pb::RequestOp| match &op.request {
        Some(Request::RequestRange(range)) => range.serializable,
        _ => false,
    };
    request.success.iter().chain(&request.failure).all(all)
}

/// How long a stream may go without a leader before it is ended, if the client asked for that.
pub(crate) fn leader_patience(config: &Config) -> Duration {
    config.election_timeout * 3
}
