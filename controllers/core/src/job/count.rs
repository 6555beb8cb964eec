//! What a Job's pods came to: counted, being counted, not to be counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::batch::v1::UncountedTerminatedPods;
use k8s_openapi::api::core::v1::Pod;

use super::{End, TRACKING, Work, indexes, pod, policy};
use crate::{Object, pods};

/// At most so many uids are in the status at once.
const UNCOUNTED_MOST: usize = 500;

#[derive(Default)]
pub struct Count {
    /// Numbers of the new status.
    pub succeeded: i64,
    pub failed: i64,
    /// uids of the new status: seen to have ended, not yet numbers.
    pub uncounted: UncountedTerminatedPods,
    /// Pods that may lose their finalizer once the new status is stored.
    pub recorded: Vec<Arc<Pod>>,
    pub completed: BTreeSet<i32>,
    pub failed_indexes: BTreeSet<i32>,
    /// A pod ended in a way that ends the Job.
    pub fatal: Option<End>,
    failures: BTreeMap<i32, i32>,
    indexed: bool,
    /// More pods have ended than one status can name.
    more: bool,
}

impl Count {
    pub fn of(work: &Work<'_>) -> Count {
        let status = work.job.status.clone().unwrap_or_default();
        let old = status.uncounted_terminated_pods.unwrap_or_default();
        let mut count = Count {
            succeeded: i64::from(status.succeeded.unwrap_or(0)),
            failed: i64::from(status.failed.unwrap_or(0)),
            completed: indexes::parse(status.completed_indexes.as_deref().unwrap_or("")),
            failed_indexes: indexes::parse(status.failed_indexes.as_deref().unwrap_or("")),
            indexed: work.indexed(),
            ..Count::default()
        };
        let tracked: BTreeMap<&str, &Arc<Pod>> =
            work.pods.iter().filter(|p| p.has_finalizer(TRACKING)).map(|p| (p.uid(), p)).collect();
        // A uid whose pod has no finalizer any longer becomes a number.
        let flush = |uids: Option<Vec<String>>, number: &mut i64| -> Vec<String> {
            let (waiting, counted): (Vec<_>, Vec<_>) =
                uids.unwrap_or_default().into_iter().partition(|uid| tracked.contains_key(uid.as_str()));
            *number += counted.len() as i64;
            waiting
        };
        let (mut succeeded, mut failed) = (count.succeeded, count.failed);
        let mut good = flush(old.succeeded, &mut succeeded);
        let mut bad = flush(old.failed, &mut failed);
        (count.succeeded, count.failed) = (succeeded, failed);
        let named: BTreeSet<String> = good.iter().chain(&bad).cloned().collect();
        for pod in tracked.values() {
            if named.contains(pod.uid()) {
                count.recorded.push((*pod).clone());
            } else if pods::phase(pod) == "Succeeded" {
                count.success(pod, &mut good);
            } else if has_failed(work, pod) {
                count.failure(work, pod, &mut bad);
            }
            if good.len() + bad.len() >= UNCOUNTED_MOST {
                count.more = true;
                break;
            }
        }
        if count.indexed {
            count.succeeded = count.completed.len() as i64;
        }
        count.uncounted = UncountedTerminatedPods {
            succeeded: (!good.is_empty()).then_some(good),
            failed: (!bad.is_empty()).then_some(bad),
        };
        count.index_failures(work);
        count
    }

    fn success(&mut self, pod: &Arc<Pod>, uids: &mut Vec<String>) {
        self.recorded.push(pod.clone());
        if !self.indexed {
            return uids.push(pod.uid().to_owned());
        }
        // An index is done once, however often it was.
        if let Some(index) = pod::index(pod) {
            self.completed.insert(index);
        }
    }

    fn failure(&mut self, work: &Work<'_>, pod: &Arc<Pod>, uids: &mut Vec<String>) {
        self.recorded.push(pod.clone());
        match policy::failure(work.spec, pod) {
            policy::Verdict::Ignore => return,
            policy::Verdict::FailJob(message) => {
                self.fatal.get_or_insert_with(|| End::failed("PodFailurePolicy", message));
            }
            policy::Verdict::FailIndex => {
                self.failed_indexes.extend(pod::index(pod));
            }
            policy::Verdict::Count => {}
        }
        uids.push(pod.uid().to_owned());
    }

    /// Indexes that failed more often than they may.
    fn index_failures(&mut self, work: &Work<'_>) {
        let Some(limit) = work.spec.backoff_limit_per_index else { return };
        for pod in work.pods.iter().filter(|p| has_failed(work, p)) {
            if matches!(policy::failure(work.spec, pod), policy::Verdict::Ignore) {
                continue;
            }
            let Some(index) = pod::index(pod) else { continue };
            let failures = pod::failures_before(pod) + 1;
            let most = self.failures.entry(index).or_insert(0);
            *most = (*most).max(failures);
        }
        let over = self.failures.iter().filter(|(_, n)| **n > limit).map(|(i, _)| *i);
        self.failed_indexes.extend(over.filter(|i| !self.completed.contains(i)).collect::<Vec<_>>());
    }

    /// How often an index failed so far.
    pub fn failures_of(&self, index: i32) -> i32 {
        self.failures.get(&index).copied().unwrap_or(0)
    }

    pub fn all_succeeded(&self) -> i64 {
        self.succeeded + self.uncounted.succeeded.as_ref().map_or(0, Vec::len) as i64
    }

    pub fn all_failed(&self) -> i64 {
        self.failed + self.uncounted.failed.as_ref().map_or(0, Vec::len) as i64
    }

    /// Nothing is on its way to be counted.
    pub fn settled(&self) -> bool {
        self.uncounted.succeeded.is_none() && self.uncounted.failed.is_none() && !self.more
    }
}

/// Whether a pod is to be counted as failed. One that is taken away before its end counts too, unless only pods that
/// have really failed are replaced.
fn has_failed(work: &Work<'_>, pod: &Pod) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => {
            let only_real = work.spec.pod_replacement_policy.as_deref() == Some("Failed");
            pod.is_deleting() && (!only_real || work.ending())
        }
    }
}
