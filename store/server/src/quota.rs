//! The database's size against its quota: what raises NOSPACE, and what lowers it again.
//!
//! The size is measured now and then, and between two measurements everything written counts on top, so a request is
//! judged by two loads. A member lowers only the alarm it raised itself: as soon as its database is below the quota
//! again, which after a compaction it sees to by rewriting files.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use keelson_store_core::{Alarm, AlarmType, Command};
use keelson_store_raft::Backend;

use crate::handle::Handle;
use crate::rocks::Rocks;

/// Between two measurements.
const MEASURE: Duration = Duration::from_millis(500);
/// What a request costs beside its own bytes; etcd's figure.
const OVERHEAD: u64 = 256;
/// Rewriting files takes at most one part in this many of the time.
const PART: u32 = 10;

/// The last measurement.
#[derive(Debug)]
pub(crate) struct Quota {
    limit: u64,
    measured: AtomicU64,
    /// What had been written altogether when it was measured.
    at: AtomicU64,
}

impl Quota {
    pub fn new(limit: u64) -> Quota {
        Quota { limit, measured: AtomicU64::new(0), at: AtomicU64::new(0) }
    }

    /// Whether a request of so many bytes still fits.
    pub fn fits(&self, rocks: &Rocks, bytes: usize) -> bool {
        let since = rocks.written().saturating_sub(self.at.load(Relaxed));
        let cost = OVERHEAD + bytes as u64;
        self.measured.load(Relaxed).saturating_add(since).saturating_add(cost) <= self.limit
    }

    /// Measures; answers whether the database is below the quota.
    fn measure(&self, rocks: &Rocks) -> bool {
        let at = rocks.written();
        let size = rocks.size().0;
        self.at.store(at, Relaxed);
        self.measured.store(size, Relaxed);
        size.saturating_add(OVERHEAD) < self.limit
    }
}

/// Measures until stopped, and lowers our NOSPACE alarm when space has returned.
pub(crate) async fn run(handle: Handle) {
    let ours = Alarm { member: handle.member_id(), alarm: AlarmType::NoSpace };
    let backend = handle.replica().shared.backend.clone();
    // How much had been written when files were last rewritten, and when that may be done again.
    let (mut rewritten, mut again) = (None, Instant::now());
    loop {
        tokio::time::sleep(MEASURE).await;
        let below = handle.inner.quota.measure(&backend);
        let alarmed =
            handle.replica().shared.read(|state, _| state.alarms().contains(&ours)).unwrap_or(false);
        if !alarmed {
            continue;
        }
        if below {
            let lower = Command::AlarmDeactivate { member: ours.member, alarm: ours.alarm };
            match handle.propose(lower).await {
                Ok(_) => tracing::info!("the database is below its quota again; NOSPACE is lowered"),
                Err(error) => tracing::debug!(%error, "NOSPACE could not be lowered yet"),
            }
            continue;
        }
        // Nothing was deleted or scrubbed since files were rewritten: there is nothing to gain.
        if rewritten == Some(backend.written()) || Instant::now() < again {
            continue;
        }
        let Ok(_turn) = handle.inner.rewriting.try_acquire() else { continue };
        let begin = Instant::now();
        rewritten = Some(backend.written());
        if let Err(error) = backend.flush().await {
            tracing::warn!(%error, "flushing to give space back failed");
            continue;
        }
        let working = backend.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || working.reclaim()).await {
            tracing::warn!(%error, "rewriting files to give space back failed");
        }
        again = Instant::now() + begin.elapsed() * PART;
    }
}
