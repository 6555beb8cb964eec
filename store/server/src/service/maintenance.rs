//! Maintenance: status, alarms, defragment, hashes, snapshot, move leader.

use bytes::Bytes;
use keelson_store_core::{Alarm, AlarmType, Command, Error, Response as CoreResponse, check};
use keelson_store_files::content::{ConfState, Origin};
use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::alarm_request::AlarmAction;
use keelson_store_proto::etcdserverpb::downgrade_request::DowngradeAction;
use keelson_store_proto::etcdserverpb::maintenance_server::Maintenance;
use keelson_store_raft::{Backend, Chunks};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Services, Stream};
use crate::convert::{self, status};
use crate::handle::{CLUSTER_VERSION, unexpected};

/// Blob size of a snapshot stream, bytes; as in etcd.
const BLOB: usize = 32 * 1024;
/// The cluster's version, major and minor.
const SERIES: (u64, u64) = (3, 7);
/// How long a leadership transfer may take.
const TRANSFER: std::time::Duration = std::time::Duration::from_secs(5);

impl Services {
    /// Our state as a database file of etcd's: its length and its pages.
    async fn etcd_file(&self) -> Result<(u64, Chunks), Status> {
        let failed = |error: std::io::Error| Status::internal(format!("snapshot: {error}"));
        let term = self.handle.replica().term();
        let file = self.handle.at_once(|state, rocks| {
            let ids = |learners: bool| {
                let members = state.members().iter().filter(move |member| member.is_learner == learners);
                members.map(|member| member.id).collect()
            };
            let origin = Origin {
                term,
                conf_state: ConfState { voters: ids(false), learners: ids(true), auto_leave: false },
                storage_version: CLUSTER_VERSION.to_owned(),
            };
            rocks.etcd_file(state.clone(), origin)
        });
        let (length, mut chunks) = file.await?.map_err(failed)?;
        match length.await {
            Ok(length) => Ok((length, chunks)),
            // The first pass failed; the queue says why.
            Err(_) => match chunks.recv().await {
                Some(Err(error)) => Err(failed(error)),
                _ => Err(Status::internal("snapshot: its thread ended early")),
            },
        }
    }
}

#[tonic::async_trait]
impl Maintenance for Services {
    async fn alarm(&self, r: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let handle = self.by(&r).into_owned();
        let request = r.into_inner();
        match request.action() {
            AlarmAction::Get => handle.allowed_any().await?,
            AlarmAction::Activate | AlarmAction::Deactivate => handle.allowed_admin().await?,
        }
        let kind = match request.alarm() {
            pb::AlarmType::None => None,
            pb::AlarmType::Nospace => Some(AlarmType::NoSpace),
            pb::AlarmType::Corrupt => Some(AlarmType::Corrupt),
        };
        let changed = match (request.action(), kind) {
            (AlarmAction::Get, kind) => {
                let wanted = |alarm: &&Alarm| {
                    (request.member_id == 0 || alarm.member == request.member_id)
                        && kind.is_none_or(|kind| alarm.alarm == kind)
                };
                self.handle
                    .at_once(|state, _| state.alarms().iter().filter(wanted).copied().collect())
                    .await?
            }
            (_, None) => Vec::new(),
            (AlarmAction::Activate, Some(alarm)) => {
                self.alarm_command(Command::AlarmActivate { member: request.member_id, alarm }).await?
            }
            (AlarmAction::Deactivate, Some(alarm)) => {
                self.alarm_command(Command::AlarmDeactivate { member: request.member_id, alarm }).await?
            }
        };
        let revision = self.handle.revision().await?;
        Ok(Response::new(pb::AlarmResponse {
            header: self.handle.headers().at(revision),
            alarms: changed.iter().map(convert::alarm).collect(),
        }))
    }

    async fn status(&self, r: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        Etcd::status(&*self.by(&r), r.into_inner()).await.map(Response::new)
    }

    /// Begins to rewrite files to give back the space of deleted data; nobody waits for it. While that is under way
    /// there is nothing more to begin.
    async fn defragment(
        &self,
        r: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.by(&r).allowed_admin().await?;
        let (handle, backend) = (self.handle.clone(), self.handle.replica().shared.backend.clone());
        tokio::spawn(async move {
            let Ok(_turn) = handle.inner.rewriting.try_acquire() else { return };
            if let Err(error) = backend.flush().await {
                tracing::warn!(%error, "flushing to give space back failed");
                return;
            }
            if let Err(error) = tokio::task::spawn_blocking(move || backend.reclaim()).await {
                tracing::warn!(%error, "rewriting files to give space back failed");
            }
        });
        // etcd leaves the header out.
        Ok(Response::new(pb::DefragmentResponse { header: None }))
    }

    async fn hash(&self, r: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        self.by(&r).allowed_admin().await?;
        let hash = self.handle.hash_at(0).await?;
        Ok(Response::new(pb::HashResponse {
            header: self.handle.headers().at(hash.revision),
            hash: hash.hash,
        }))
    }

    async fn hash_kv(&self, r: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        self.by(&r).allowed_admin().await?;
        let hash = self.handle.hash_at(r.into_inner().revision).await?;
        Ok(Response::new(pb::HashKvResponse {
            header: self.handle.headers().at(hash.revision),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.hash_revision,
        }))
    }

    type SnapshotStream = Stream<pb::SnapshotResponse>;

    /// A database file of etcd's in blobs, then one with the SHA-256 of all of them. The file is never held as a whole.
    async fn snapshot(
        &self,
        r: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.by(&r).allowed_admin().await?;
        let (length, mut chunks) = self.etcd_file().await?;
        let revision = self.handle.revision().await?;
        let header = self.handle.headers().at(revision);
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut hash = Sha256::new();
            let mut left = length;
            let message = |remaining_bytes: u64, blob: Bytes| pb::SnapshotResponse {
                header,
                remaining_bytes,
                blob,
                version: CLUSTER_VERSION.to_owned(),
            };
            while let Some(chunk) = chunks.recv().await {
                let mut chunk = match chunk {
                    Ok(chunk) => chunk,
                    Err(error) => {
                        // The client may be gone.
                        let _ = sender.send(Err(Status::internal(format!("snapshot: {error}")))).await;
                        return;
                    }
                };
                hash.update(&chunk);
                while !chunk.is_empty() {
                    let blob = chunk.split_to(chunk.len().min(BLOB));
                    left = left.saturating_sub(blob.len() as u64);
                    if sender.send(Ok(message(left, blob))).await.is_err() {
                        return;
                    }
                }
            }
            let sum = Bytes::copy_from_slice(&hash.finalize());
            let last = if left == 0 {
                Ok(message(0, sum))
            } else {
                Err(Status::internal("snapshot: it ended early"))
            };
            let _ = sender.send(last).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn move_leader(
        &self,
        r: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.by(&r).allowed_admin().await?;
        if self.handle.leader() != self.handle.member_id() {
            return Err(status(Error::NotLeader));
        }
        self.handle.replica().transfer(r.into_inner().target_id, TRANSFER).await.map_err(status)?;
        // etcd leaves the header out.
        Ok(Response::new(pb::MoveLeaderResponse { header: None }))
    }

    async fn downgrade(
        &self,
        r: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        let handle = self.by(&r).into_owned();
        handle.allowed_admin().await?;
        let request = r.into_inner();
        let target = || check::downgrade_target(&request.version, SERIES).map_err(status);
        let action = DowngradeAction::try_from(request.action).map_err(|_| status(Error::UnknownMethod))?;
        match action {
            DowngradeAction::Validate => {
                handle.linearize().await?;
                target()?;
                if handle.at_once(|state, _| state.downgrade().is_some()).await? {
                    return Err(status(Error::DowngradeInProcess));
                }
            }
            DowngradeAction::Enable => {
                handle.propose_as_caller(Command::Downgrade { target: Some(target()?) }).await?;
            }
            DowngradeAction::Cancel => {
                handle.propose_as_caller(Command::Downgrade { target: None }).await?;
            }
        }
        let revision = handle.revision().await?;
        let version = format!("{}.{}", SERIES.0, SERIES.1);
        Ok(Response::new(pb::DowngradeResponse { header: handle.headers().at(revision), version }))
    }
}

impl Services {
    async fn alarm_command(&self, command: Command) -> Result<Vec<Alarm>, Status> {
        match self.handle.propose(command).await? {
            CoreResponse::Alarm { alarms, .. } => Ok(alarms),
            other => Err(unexpected(&other)),
        }
    }
}
