//! Do all members hold the same? The leader asks now and then, and raises CORRUPT where they do not.
//!
//! A hash speaks of one revision and one compaction; only hashes that speak of the same are compared, so a member that is
//! merely behind is never accused. Those that differ from what more than half of the members have are accused; without
//! such a majority nobody knows who is right, and the alarm names no member.
//!
//! Everything is read for a hash, so checking takes at most a small part of the time, and none when nothing was written.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use keelson_store_core::{AlarmType, Command, HashKv, hash_kv};
use serde::{Deserialize, Serialize};
use tonic::Status;

use crate::convert::status;
use crate::handle::Handle;

/// Hashing takes at most one part in this many of the time.
const PART: u32 = 20;

/// A member's hash as it tells its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct PeerHash {
    pub hash: u32,
    pub hash_revision: i64,
    pub compact_revision: i64,
}

impl From<HashKv> for PeerHash {
    fn from(hash: HashKv) -> PeerHash {
        PeerHash {
            hash: hash.hash,
            hash_revision: hash.hash_revision,
            compact_revision: hash.compact_revision,
        }
    }
}

impl Handle {
    /// `revision` 0 = now; on a thread, as it visits everything.
    pub(crate) async fn hash_at(&self, revision: i64) -> Result<HashKv, Status> {
        let replica = self.replica().clone();
        self.at_once(|_, _| ()).await?;
        let work = tokio::task::spawn_blocking(move || {
            let backend = replica.shared.backend.clone();
            let (state, view) = replica.shared.read(|state, _| (state.clone(), backend.view()))?;
            Some(hash_kv(&state, &view, revision))
        });
        match work.await {
            Ok(Some(hash)) => hash.map_err(status),
            Ok(None) => Err(status(keelson_store_core::Error::TimeoutWaitAppliedIndex)),
            Err(error) => Err(Status::internal(format!("hashing: {error}"))),
        }
    }
}

/// Checks every `interval` until stopped; zero never.
pub(crate) async fn run(handle: Handle, interval: Duration) {
    if interval.is_zero() {
        std::future::pending::<()>().await;
    }
    let mut pause = interval;
    let mut checked = None;
    loop {
        tokio::time::sleep(pause).await;
        pause = interval;
        if !handle.replica().is_leader() {
            checked = None;
            continue;
        }
        let Ok(members) = handle.members().await else { continue };
        let now = handle.at_once(|state, _| (state.revision(), state.compact_revision())).await.ok();
        if members.len() < 2 || now.is_none() || now == checked {
            continue;
        }
        let begin = Instant::now();
        match check(&handle, &members).await {
            Ok(true) => checked = now,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "members could not be compared"),
        }
        pause = interval.max(begin.elapsed() * PART);
    }
}

/// Compares all members; answers whether all could be.
async fn check(handle: &Handle, members: &[keelson_store_core::Member]) -> Result<bool, Status> {
    let ours: PeerHash = handle.hash_at(0).await?.into();
    let mut hashes = BTreeMap::from([(handle.member_id(), ours)]);
    for member in members.iter().filter(|member| member.id != handle.member_id()) {
        match handle.replica().transport.hash(member.id, &member.peer_urls, ours.hash_revision).await {
            Ok(hash) if hash.compact_revision == ours.compact_revision => {
                hashes.insert(member.id, hash);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(member = format_args!("{:x}", member.id), %error, "no hash to compare");
            }
        }
    }
    for accused in accused(&hashes, members.len()) {
        tracing::error!(
            member = format_args!("{accused:x}"),
            revision = ours.hash_revision,
            "this member holds other data than the rest; the cluster stops. Remove it and add it again, then lower the \
             alarm with `etcdctl alarm disarm`"
        );
        let raise = Command::AlarmActivate { member: accused, alarm: AlarmType::Corrupt };
        handle.propose(raise).await?;
    }
    Ok(hashes.len() == members.len())
}

/// Whom to accuse: those that differ from what more than half of `members` have; 0 when nobody has that.
fn accused(hashes: &BTreeMap<u64, PeerHash>, members: usize) -> Vec<u64> {
    let mut groups: BTreeMap<PeerHash, Vec<u64>> = BTreeMap::new();
    for (id, hash) in hashes {
        groups.entry(*hash).or_default().push(*id);
    }
    if groups.len() < 2 {
        return Vec::new();
    }
    if groups.values().all(|group| group.len() * 2 <= members) {
        return vec![0];
    }
    let minority = groups.into_values().filter(|group| group.len() * 2 <= members);
    minority.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_differs_from_the_majority_is_accused() {
        let all = |hashes: &[u32]| {
            let hash = |hash| PeerHash { hash, hash_revision: 5, compact_revision: 1 };
            hashes.iter().enumerate().map(|(id, value)| (id as u64 + 1, hash(*value))).collect()
        };
        assert_eq!(accused(&all(&[7, 7, 7]), 3), Vec::<u64>::new());
        assert_eq!(accused(&all(&[7, 8, 7]), 3), [2]);
        assert_eq!(accused(&all(&[7, 8]), 2), [0]);
        assert_eq!(accused(&all(&[7, 8, 9]), 3), [0]);
        assert_eq!(accused(&all(&[7, 7]), 3), Vec::<u64>::new());
        // Two of five are not known: the two that agree are no majority.
        assert_eq!(accused(&all(&[7, 8, 7]), 5), [0]);
    }
}
