//! Job: pods that run to their end, counted exactly once.
//!
//! Every pod of a Job carries a finalizer, so that it cannot vanish before it was counted. Counting takes three steps, and
//! a plan may end between any two: the pod's uid is written into the status (`uncountedTerminatedPods`), its finalizer is
//! taken away, its uid becomes a number. Invariant C11: each pod is counted once, and never more than `parallelism` run.
//! A Job that is to end first says so (`FailureTarget`, `SuccessCriteriaMet`), then waits for its last pod.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::claim::{self, Claim, claim};
use crate::pods;
use crate::replicaset::whole_seconds;
use crate::{Change, Key, Object, Plan, Precondition, Reconciler, Recorded, View, Watch, labels};

mod count;
pub mod indexes;
mod pod;
mod policy;
pub mod ttl;

use count::Count;

/// The finalizer of pods that are not counted yet.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Most pods made or removed by one plan.
const BURST: usize = 500;
/// Wait after the first failure; doubled with each further one.
const BACKOFF: i64 = 10;
const BACKOFF_MOST: i64 = 600;

pub struct Jobs;

impl Reconciler for Jobs {
    fn name(&self) -> &'static str {
        "job-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::of::<Job>(), claim::watch_pods()]
    }

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        claim::keys::<Job>(change, view, selects)
    }

    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        match view.get::<Job>(key) {
            Some(job) => reconcile(job, view, now),
            None => Plan::none(),
        }
    }
}

fn selects(job: &Job, pod: &Pod) -> bool {
    let selector = job.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| !labels::is_empty(s) && labels::matches(s, pod.metadata.labels.as_ref()))
}

/// Whether a Job has a condition.
pub fn has_condition(job: &Job, kind: &str) -> bool {
    condition(job.status.as_ref(), kind).is_some()
}

fn condition<'a>(status: Option<&'a JobStatus>, kind: &str) -> Option<&'a JobCondition> {
    status?.conditions.as_ref()?.iter().find(|c| c.type_ == kind && c.status == "True")
}

/// Whether a Job has ended, well or not.
pub fn is_finished(job: &Job) -> bool {
    has_condition(job, "Complete") || has_condition(job, "Failed")
}

/// How a Job ends: the condition, why, and in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    failed: bool,
    reason: String,
    message: String,
}

impl End {
    fn failed(reason: &str, message: impl Into<String>) -> End {
        End { failed: true, reason: reason.into(), message: message.into() }
    }
    fn complete(reason: &str, message: impl Into<String>) -> End {
        End { failed: false, reason: reason.into(), message: message.into() }
    }
}

struct Work<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    now: Timestamp,
    pods: Vec<Arc<Pod>>,
}

fn reconcile(job: &Job, view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(spec) = &job.spec else { return plan };
    if spec.managed_by.as_deref().is_some_and(|m| m != "kubernetes.io/job-controller") {
        return plan;
    }
    let claimed = claim(job, view, |pod| selects(job, pod));
    if is_finished(job) || job.is_deleting() {
        let all: Vec<&Arc<Pod>> = claimed.owned.iter().chain(&claimed.release).collect();
        all.iter().for_each(|pod| free(&mut plan, pod));
        return plan;
    }
    let pods = claimed.owned.iter().chain(&claimed.adopt).cloned().collect();
    let work = Work { job, spec, now, pods };
    work.run(&mut plan, &claimed);
    plan
}

/// Takes the finalizer away: the pod is counted, or will never be.
fn free(plan: &mut Plan, pod: &Arc<Pod>) {
    if !pod.has_finalizer(TRACKING) {
        return;
    }
    let mut new = (**pod).clone();
    let finalizers = new.metadata.finalizers.get_or_insert_default();
    finalizers.retain(|f| f != TRACKING);
    if finalizers.is_empty() {
        new.metadata.finalizers = None;
    }
    plan.update(pod.as_ref(), &new);
}

impl Work<'_> {
    fn suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    fn indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    /// The Job is decided and waits for its last pods.
    fn ending(&self) -> bool {
        has_condition(self.job, "FailureTarget") || has_condition(self.job, "SuccessCriteriaMet")
    }

    fn parallelism(&self) -> i32 {
        self.spec.parallelism.unwrap_or(1).max(0)
    }

    fn active(&self) -> Vec<&Arc<Pod>> {
        self.pods.iter().filter(|p| pods::is_active(p)).collect()
    }

    /// Asked to go and not gone.
    fn terminating(&self) -> usize {
        self.pods.iter().filter(|p| p.is_deleting() && !pods::is_finished(p)).count()
    }

    fn run(&self, plan: &mut Plan, claimed: &Claim) {
        let count = Count::of(self);
        let end = self.end(&count, plan);
        let mut new = self.job.clone();
        new.status = Some(self.status(&count, end.as_ref()));
        plan.update_status(self.job, &new);
        // What the status now names may lose its finalizer; what a policy ignores may as well.
        count.recorded.iter().for_each(|pod| free(plan, pod));
        claimed.settle(plan, self.job);
        if end.is_some() {
            // They count as failed once they are on their way out.
            self.remove(plan, &self.active(), true);
        } else if self.suspended() {
            self.remove(plan, &self.active(), false);
        } else {
            self.scale(plan, &count);
        }
    }

    /// Whether the Job is to end, and how. Once decided it stays decided.
    fn end(&self, count: &Count, plan: &mut Plan) -> Option<End> {
        let old = self.job.status.as_ref();
        for (kind, failed) in [("FailureTarget", true), ("SuccessCriteriaMet", false)] {
            if let Some(c) = condition(old, kind) {
                let text = |t: &Option<String>| t.clone().unwrap_or_default();
                return Some(End { failed, reason: text(&c.reason), message: text(&c.message) });
            }
        }
        count.fatal.clone().or_else(|| self.limits(count, plan)).or_else(|| self.done(count))
    }

    fn limits(&self, count: &Count, plan: &mut Plan) -> Option<End> {
        let limit = self.spec.backoff_limit.unwrap_or(6);
        let restarts: i32 = self.active().iter().map(|p| policy::restarts(p)).sum();
        let on_failure = pod::restart_policy(self.spec) == "OnFailure";
        let many_restarts = on_failure && if limit == 0 { restarts > 0 } else { restarts >= limit };
        if count.all_failed() > i64::from(limit) || many_restarts {
            return Some(End::failed("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
        }
        if let Some(most) = self.spec.max_failed_indexes
            && count.failed_indexes.len() as i64 > i64::from(most)
        {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(End::failed("MaxFailedIndexesExceeded", message));
        }
        let (Some(deadline), Some(Time(start))) =
            (self.spec.active_deadline_seconds, self.job.status.as_ref().and_then(|s| s.start_time.clone()))
        else {
            return None;
        };
        // One that is resumed just now begins anew.
        if self.suspended() || has_condition(self.job, "Suspended") {
            return None;
        }
        let left = SignedDuration::from_secs(deadline) - self.now.duration_since(start);
        if left.is_positive() {
            plan.requeue_in(left);
            return None;
        }
        Some(End::failed("DeadlineExceeded", "Job was active longer than specified deadline"))
    }

    fn done(&self, count: &Count) -> Option<End> {
        let reached = || End::complete("CompletionsReached", "Reached expected number of succeeded pods");
        let Some(completions) = self.spec.completions else {
            // Without a number, one success means that there is no more work.
            let over = count.all_succeeded() > 0 && self.active().is_empty();
            return over.then(reached);
        };
        if let Some(end) = policy::success(self.spec, &count.completed) {
            return Some(end);
        }
        if count.all_succeeded() >= i64::from(completions) {
            return Some(reached());
        }
        let ended = count.completed.len() + count.failed_indexes.len();
        let whole =
            self.indexed() && !count.failed_indexes.is_empty() && ended as i64 >= i64::from(completions);
        whole.then(|| End::failed("FailedIndexes", "Job has failed indexes"))
    }

    fn status(&self, count: &Count, end: Option<&End>) -> JobStatus {
        let old = self.job.status.clone().unwrap_or_default();
        let positive = |n: i64| (n > 0).then_some(n as i32);
        let active = self.active();
        let mut status = JobStatus {
            active: positive(active.len() as i64),
            ready: Some(active.iter().filter(|p| pods::is_ready(p)).count() as i32),
            terminating: Some(self.terminating() as i32),
            succeeded: positive(count.succeeded),
            failed: positive(count.failed),
            uncounted_terminated_pods: Some(count.uncounted.clone()),
            completed_indexes: self
                .indexed()
                .then(|| indexes::format(&count.completed))
                .filter(|t| !t.is_empty()),
            failed_indexes: self.spec.backoff_limit_per_index.map(|_| indexes::format(&count.failed_indexes)),
            ..old.clone()
        };
        let now = Time(whole_seconds(self.now));
        let conditions = status.conditions.get_or_insert_default();
        if let Some(end) = end {
            self.announce(conditions, end, &now);
            let over = active.is_empty() && self.terminating() == 0 && count.settled();
            if over {
                let kind = if end.failed { "Failed" } else { "Complete" };
                set(conditions, kind, true, &end.reason, &end.message, &now);
                status.completion_time = (!end.failed).then(|| now.clone());
            }
        } else {
            let was = conditions.iter().any(|c| c.type_ == "Suspended" && c.status == "True");
            match (self.suspended(), was) {
                (true, false) => set(conditions, "Suspended", true, "JobSuspended", "Job suspended", &now),
                (false, true) => {
                    set(conditions, "Suspended", false, "JobResumed", "Job resumed", &now);
                    status.start_time = Some(now.clone());
                }
                _ => {}
            }
            if status.start_time.is_none() && !self.suspended() {
                status.start_time = Some(now);
            }
        }
        if status.conditions.as_ref().is_some_and(Vec::is_empty) {
            status.conditions = None;
        }
        status
    }

    fn announce(&self, conditions: &mut Vec<JobCondition>, end: &End, now: &Time) {
        let kind = if end.failed { "FailureTarget" } else { "SuccessCriteriaMet" };
        if !conditions.iter().any(|c| c.type_ == kind) {
            set(conditions, kind, true, &end.reason, &end.message, now);
        }
    }

    /// Deletes pods; those that are not to be counted lose their finalizer first.
    fn remove(&self, plan: &mut Plan, victims: &[&Arc<Pod>], counted: bool) {
        for pod in victims.iter().take(BURST) {
            if !counted {
                free(plan, pod);
            }
            plan.delete(pod.as_ref(), Precondition::same(pod.as_ref()));
            plan.record(self.job, false, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
        }
    }

    fn scale(&self, plan: &mut Plan, count: &Count) {
        let active = self.active();
        let waits = self.spec.pod_replacement_policy.as_deref() == Some("Failed");
        let held = active.len() + if waits { self.terminating() } else { 0 };
        let wanted = match self.spec.completions {
            None if count.all_succeeded() > 0 => active.len(),
            None => self.parallelism() as usize,
            Some(completions) => {
                let left = i64::from(completions) - count.all_succeeded();
                usize::try_from(left.min(i64::from(self.parallelism()))).unwrap_or(0)
            }
        };
        if active.len() > wanted {
            let mut victims = active.clone();
            victims.sort_by(|a, b| pods::deletion_order((a, 0), (b, 0), self.now));
            victims.truncate(active.len() - wanted);
            return self.remove(plan, &victims, false);
        }
        let missing = wanted.saturating_sub(held).min(BURST);
        if missing == 0 {
            return;
        }
        if let Some(wait) = self.backoff() {
            return plan.requeue_in(wait);
        }
        let made = Recorded::new(self.job, false, "SuccessfulCreate", "Created pod: ".to_owned());
        if !self.indexed() {
            let new = pod::of(self.job, self.spec, None);
            (0..missing).for_each(|_| plan.create_announced(&new, Some(made.clone())));
            return;
        }
        for index in self.free_indexes(count, missing) {
            let new = pod::of(self.job, self.spec, Some((index, count.failures_of(index))));
            plan.create_announced(&new, Some(made.clone()));
        }
    }

    /// The lowest indexes that have no pod, no success and no final failure.
    fn free_indexes(&self, count: &Count, most: usize) -> Vec<i32> {
        let completions = self.spec.completions.unwrap_or(0);
        let waits = self.spec.pod_replacement_policy.as_deref() == Some("Failed");
        let held = self.pods.iter().filter(|p| pods::is_active(p) || (waits && !pods::is_finished(p)));
        let taken: std::collections::BTreeSet<i32> = held.filter_map(|p| pod::index(p)).collect();
        let ended = |i: &i32| count.completed.contains(i) || count.failed_indexes.contains(i);
        (0..completions).filter(|i| !taken.contains(i) && !ended(i)).take(most).collect()
    }

    /// How long to wait before the next pod, after failures.
    fn backoff(&self) -> Option<SignedDuration> {
        let ended = |phase: &str| -> Vec<Timestamp> {
            self.pods.iter().filter(|p| pods::phase(p) == phase).map(|p| pod::end(p)).collect()
        };
        let last_success = ended("Succeeded").into_iter().max();
        let mut failures = ended("Failed");
        failures.retain(|at| last_success.is_none_or(|s| *at > s));
        let last = failures.iter().max()?;
        let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(10);
        let wait = (BACKOFF << doublings).min(BACKOFF_MOST);
        let left = SignedDuration::from_secs(wait) - self.now.duration_since(*last);
        left.is_positive().then_some(left)
    }
}

fn set(conditions: &mut Vec<JobCondition>, kind: &str, is: bool, reason: &str, message: &str, now: &Time) {
    conditions.retain(|c| c.type_ != kind);
    conditions.push(JobCondition {
        type_: kind.into(),
        status: if is { "True" } else { "False" }.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    });
}
