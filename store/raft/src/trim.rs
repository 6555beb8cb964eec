//! Keeps the log short in bytes. openraft counts entries, but an entry is a batch: anything between a hundred bytes and a
//! megabyte. What a restart reads, and applies again after a crash, is bounded by these two sizes.

use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::async_runtime::WatchReceiver;

use crate::backend::Backend;
use crate::log::{Disk, SegmentLog};
use crate::network::Transport;
use crate::replica::Replica;

/// Entries above this since the last snapshot make another, bytes.
const SNAPSHOT: u64 = 32 * 1024 * 1024;
/// Entries kept for slow followers, bytes.
const KEEP: u64 = 64 * 1024 * 1024;
/// How often the log is looked at.
const EVERY: Duration = Duration::from_millis(250);

/// Takes snapshots and purges until the replica stops.
pub(crate) async fn run<R, B, T, D>(replica: Arc<Replica<R, B, T>>, log: SegmentLog<D>)
where
    R: AsyncRuntime,
    B: Backend,
    T: Transport<R>,
    D: Disk,
{
    let mut asked = 0;
    loop {
        tokio::time::sleep(EVERY).await;
        let (applied, snapshot) = {
            let metrics = replica.raft.data_metrics();
            let metrics = metrics.borrow_watched();
            (metrics.last_applied.map_or(0, |id| id.index), metrics.snapshot.map_or(0, |id| id.index))
        };
        let outcome = if log.bytes_after(snapshot.max(asked)) > SNAPSHOT && applied > snapshot {
            asked = applied;
            replica.raft.trigger().snapshot().await
        } else if let Some(upto) = log.index_before(KEEP).filter(|upto| *upto <= snapshot) {
            replica.raft.trigger().purge_log(upto).await
        } else {
            Ok(())
        };
        if outcome.is_err() {
            // Raft has stopped.
            return;
        }
    }
}
