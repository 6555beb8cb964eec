//! Gives back the space of compacted history, in slices, at its own pace, beside everything else.
//!
//! A slice only deletes what no read may ask for any more, so it needs no place in the log. It is written under the
//! state's write lock, which keeps it apart from applying (one writer at a time).

use std::sync::Arc;
use std::time::Duration;

use keelson_store_core::compact::{Scrub, scrubbed};
use keelson_store_core::{Error, Read};
use tokio::sync::Notify;
use tonic::Status;

use crate::convert::status;
use crate::handle::{Handle, Member};

/// Changes visited at a time, and the pause between two slices; etcd's batch limit and sleep interval.
const SLICE: usize = 1000;
const PAUSE: Duration = Duration::from_millis(10);

/// Runs scrubs until stopped; `due` is rung after a compaction.
pub(crate) async fn run(replica: Arc<Member>, due: Arc<Notify>, done: Arc<Notify>) {
    loop {
        let mut scrub = replica.shared.read(|state, rocks| Scrub::due(state, rocks)).flatten();
        while let Some(current) = scrub {
            let member = replica.clone();
            let slice =
                tokio::task::spawn_blocking(move || member.shared.scrub(|rocks| current.slice(rocks, SLICE)));
            match slice.await {
                Ok(Some(Ok(next))) => scrub = next,
                Ok(Some(Err(error))) => {
                    tracing::error!(%error, "freeing compacted history failed");
                    return;
                }
                // A snapshot is being installed: what was due is gone.
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "freeing compacted history failed");
                    return;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        done.notify_waiters();
        due.notified().await;
    }
}

impl Handle {
    /// Returns once history below `revision` is freed here.
    pub(crate) async fn scrubbed(&self, revision: i64) -> Result<(), Status> {
        loop {
            let done = self.inner.scrubbed.notified();
            let far = self.at_once(|_, rocks| scrubbed(rocks as &dyn Read)).await?;
            if far >= revision {
                return Ok(());
            }
            // Looked at again now and then: a notification may come between the look and the wait.
            let waited = tokio::time::timeout(Duration::from_millis(100), done).await;
            if waited.is_err() && self.inner.replica.leader_id() == 0 {
                return Err(status(Error::NoLeader));
            }
        }
    }
}
