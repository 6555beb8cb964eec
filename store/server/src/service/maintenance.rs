//! Maintenance: status, alarms, defragment, hashes, snapshot, move leader.

use std::io::SeekFrom;

use bytes::Bytes;
use keelson_store_core::{Alarm, AlarmType, Command, Error, HashKv, Response as CoreResponse, hash_kv};
use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::alarm_request::AlarmAction;
use keelson_store_proto::etcdserverpb::maintenance_server::Maintenance;
use keelson_store_raft::Backend;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Services, Stream};
use crate::convert::{self, status};
use crate::handle::{ETCD_VERSION, unexpected};

/// Blob size of a snapshot stream, bytes; as in etcd.
const BLOB: usize = 32 * 1024;
/// A snapshot's payload is a multiple of it: etcdctl takes a file for whole when size modulo it is the hash's length.
const SECTOR: u64 = 512;
/// How long a leadership transfer may take.
const TRANSFER: std::time::Duration = std::time::Duration::from_secs(5);

impl Services {
    /// `revision` 0 = now; on a thread, as it visits everything.
    async fn hash_at(&self, revision: i64) -> Result<HashKv, Status> {
        let replica = self.handle.replica().clone();
        self.handle.at_once(|_, _| ()).await?;
        let work = tokio::task::spawn_blocking(move || {
            let backend = replica.shared.backend.clone();
            let (state, view) = replica.shared.read(|state, _| (state.clone(), backend.view()))?;
            Some(hash_kv(&state, &view, revision))
        });
        match work.await {
            Ok(Some(hash)) => hash.map_err(status),
            Ok(None) => Err(status(Error::TimeoutWaitAppliedIndex)),
            Err(error) => Err(Status::internal(format!("hashing: {error}"))),
        }
    }

    /// Writes everything into a file without a name; answers it with its length.
    async fn spool(&self) -> Result<(tokio::fs::File, u64), Status> {
        let failed = |error: std::io::Error| Status::internal(format!("snapshot: {error}"));
        let mut chunks = self.handle.at_once(|_, rocks| rocks.export()).await?.map_err(failed)?;
        let path = self
            .handle
            .config()
            .data_dir
            .join("member")
            .join(format!("{:016x}.spool", rand::random::<u64>()));
        let mut options = tokio::fs::OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).open(&path).await;
        let mut file = file.map_err(failed)?;
        tokio::fs::remove_file(&path).await.map_err(failed)?;
        let mut length = 0;
        while let Some(chunk) = chunks.recv().await {
            let chunk = chunk.map_err(failed)?;
            length += chunk.len() as u64;
            file.write_all(&chunk).await.map_err(failed)?;
        }
        let padding = length.next_multiple_of(SECTOR) - length;
        file.write_all(&vec![0; padding as usize]).await.map_err(failed)?;
        file.flush().await.map_err(failed)?;
        file.seek(SeekFrom::Start(0)).await.map_err(failed)?;
        Ok((file, length + padding))
    }
}

#[tonic::async_trait]
impl Maintenance for Services {
    async fn alarm(&self, r: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let request = r.into_inner();
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
        Etcd::status(&self.handle, r.into_inner()).await.map(Response::new)
    }

    /// Rewrites files to give back the space of deleted data; nobody waits for it but the caller.
    async fn defragment(
        &self,
        _: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        let backend = self.handle.replica().shared.backend.clone();
        backend.flush().await.map_err(|error| Status::internal(format!("flushing: {error}")))?;
        let work = tokio::task::spawn_blocking(move || backend.reclaim());
        work.await.map_err(|error| Status::internal(format!("compacting files: {error}")))?;
        let revision = self.handle.revision().await?;
        Ok(Response::new(pb::DefragmentResponse { header: self.handle.headers().at(revision) }))
    }

    async fn hash(&self, _: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        let hash = self.hash_at(0).await?;
        Ok(Response::new(pb::HashResponse {
            header: self.handle.headers().at(hash.revision),
            hash: hash.hash,
        }))
    }

    async fn hash_kv(&self, r: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        let hash = self.hash_at(r.into_inner().revision).await?;
        Ok(Response::new(pb::HashKvResponse {
            header: self.handle.headers().at(hash.revision),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.hash_revision,
        }))
    }

    type SnapshotStream = Stream<pb::SnapshotResponse>;

    /// Our own snapshot format in etcd's framing: blobs, then one with the SHA-256 of all of them.
    async fn snapshot(
        &self,
        _: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let (mut file, length) = self.spool().await?;
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
                version: ETCD_VERSION.to_owned(),
            };
            while left > 0 {
                let size = left.min(BLOB as u64);
                let mut blob = vec![0; size as usize];
                if let Err(error) = file.read_exact(&mut blob).await {
                    // The client may be gone.
                    let _ = sender.send(Err(Status::internal(format!("snapshot: {error}")))).await;
                    return;
                }
                hash.update(&blob);
                left -= size;
                if sender.send(Ok(message(left, blob.into()))).await.is_err() {
                    return;
                }
            }
            let sum = Bytes::copy_from_slice(&hash.finalize());
            let _ = sender.send(Ok(message(0, sum))).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn move_leader(
        &self,
        r: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.handle.replica().transfer(r.into_inner().target_id, TRANSFER).await.map_err(status)?;
        let revision = self.handle.revision().await?;
        Ok(Response::new(pb::MoveLeaderResponse { header: self.handle.headers().at(revision) }))
    }

    async fn downgrade(
        &self,
        _: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(Status::unimplemented("etcdserver: downgrade is not supported by this server"))
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
