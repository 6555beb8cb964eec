//! `--auto-compaction-mode`: history compacted without being asked. The cores say when and to where; the loop asks the
//! leader's own API, as any client would.

use std::collections::VecDeque;
use std::time::Duration;

use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb::CompactionRequest;

use crate::config::AutoCompaction;
use crate::handle::Handle;

/// Longest between two compactions.
const LONGEST: Duration = Duration::from_secs(3600);
/// Samples of the revision in one interval.
const SAMPLES: u32 = 10;
/// Between two looks in the revision mode.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);

/// Keeps a period of history: samples the revision ten times an interval and compacts to what it was a period ago.
#[derive(Debug)]
struct Periodic {
    period: Duration,
    samples: VecDeque<i64>,
    /// Revision of the last success, and when it was.
    last: (i64, Duration),
    /// How long after it the next is due: the whole period at first, then the interval.
    due: Duration,
}

impl Periodic {
    /// `now` since any fixed moment.
    fn new(period: Duration, now: Duration) -> Periodic {
        Periodic { period, samples: VecDeque::new(), last: (0, now), due: period }
    }

    fn interval(&self) -> Duration {
        self.period.min(LONGEST)
    }

    /// Between two ticks.
    fn pause(&self) -> Duration {
        self.interval() / SAMPLES
    }

    /// Takes a sample at the beginning of a pause.
    fn sample(&mut self, revision: i64) {
        let kept = self.period.as_nanos() / self.pause().as_nanos().max(1) + 1;
        self.samples.push_back(revision);
        if self.samples.len() as u128 > kept {
            self.samples.pop_front();
        }
    }

    /// Where to compact to now, at the end of a pause.
    fn target(&mut self, now: Duration) -> Option<i64> {
        let oldest = *self.samples.front()?;
        if now.saturating_sub(self.last.1) < self.due || oldest == self.last.0 {
            return None;
        }
        self.due = self.interval();
        Some(oldest)
    }

    fn done(&mut self, revision: i64, now: Duration) {
        self.last = (revision, now);
    }
}

/// Where to compact to so that `kept` revisions are left; `None` when nothing changed since `last`.
fn back(current: i64, kept: i64, last: i64) -> Option<i64> {
    Some(current - kept).filter(|target| *target > 0 && *target != last)
}

/// Runs until dropped.
pub async fn run(handle: Handle, mode: AutoCompaction) {
    match mode {
        AutoCompaction::Off => {}
        AutoCompaction::Periodic(period) => periodic(handle, period).await,
        AutoCompaction::Revision(kept) => by_revision(handle, kept).await,
    }
}

async fn periodic(handle: Handle, period: Duration) {
    let start = tokio::time::Instant::now();
    let mut core = Periodic::new(period, Duration::ZERO);
    loop {
        if let Ok(revision) = handle.revision().await {
            core.sample(revision);
        }
        tokio::time::sleep(core.pause()).await;
        if !handle.replica().is_leader() {
            continue;
        }
        if let Some(target) = core.target(start.elapsed())
            && compact(&handle, target, "periodic").await
        {
            core.done(target, start.elapsed());
        }
    }
}

async fn by_revision(handle: Handle, kept: i64) {
    let mut last = 0;
    loop {
        tokio::time::sleep(REVISION_INTERVAL).await;
        let Ok(revision) = handle.revision().await else { continue };
        if let Some(target) = back(revision, kept, last).filter(|_| handle.replica().is_leader())
            && compact(&handle, target, "revision").await
        {
            last = target;
        }
    }
}

/// Whether it is compacted up to there now.
async fn compact(handle: &Handle, revision: i64, mode: &'static str) -> bool {
    match handle.compact(CompactionRequest { revision, physical: false }).await {
        Ok(_) => tracing::info!(revision, mode, "completed auto compaction"),
        // Somebody else was further.
        Err(status) if status.message().contains("has been compacted") => {}
        Err(status) => {
            tracing::warn!(revision, mode, error = status.message(), "failed auto compaction");
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compactions of a store whose revision is the minute, over so many minutes.
    fn over(minutes: u64, period: Duration) -> Vec<(u64, i64)> {
        let mut core = Periodic::new(period, Duration::ZERO);
        let mut done = Vec::new();
        let mut now = Duration::ZERO;
        while now < Duration::from_secs(minutes * 60) {
            core.sample((now.as_secs() / 60) as i64 + 1);
            now += core.pause();
            if let Some(target) = core.target(now) {
                core.done(target, now);
                done.push((now.as_secs() / 60, target));
            }
        }
        done
    }

    #[test]
    fn a_period_of_history_is_kept() {
        assert_eq!(over(35, Duration::from_secs(600)), [(10, 1), (20, 10), (30, 20)]);
        let hours = over(5 * 60, Duration::from_secs(2 * 3600));
        assert_eq!(hours, [(120, 1), (180, 55), (240, 115), (300, 175)], "hourly once the period has passed");
    }

    #[test]
    fn a_store_at_rest_is_not_compacted_again() {
        let mut core = Periodic::new(Duration::from_secs(600), Duration::ZERO);
        core.sample(5);
        assert_eq!(core.target(Duration::from_secs(600)), Some(5));
        core.done(5, Duration::from_secs(600));
        core.sample(5);
        assert_eq!(core.target(Duration::from_secs(1200)), None);
    }

    #[test]
    fn revisions_are_counted_back() {
        assert_eq!(back(100, 10, 0), Some(90));
        assert_eq!(back(100, 10, 90), None);
        assert_eq!(back(5, 10, 0), None);
    }
}
