//! CronJob: makes a Job whenever its schedule says so.
//!
//! The name of a Job is the CronJob's and the minute it was due, so that the same time never makes two.

use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use keelson_api::cron::{self, Schedule};

use crate::job::{has_condition, is_finished};
use crate::plan::Action;
use crate::{
    Change, Key, Object, Plan, Precondition, Propagation, Reconciler, Recorded, Target, View, Watch,
};

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed times than this are not looked through one by one.
const MISSED_MOST: usize = 100;

pub struct CronJobs;

impl Reconciler for CronJobs {
    fn name(&self) -> &'static str {
        "cronjob-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::of::<CronJob>(), Watch::of::<Job>()]
    }

    fn keys(&self, change: &Change, _: &View) -> Vec<Key> {
        if let Some(cron) = change.latest::<CronJob>() {
            return vec![Key::of(cron)];
        }
        let job = change.latest::<Job>();
        let owner = job.and_then(|j| Some((j.namespace(), j.controller().filter(|o| o.kind == "CronJob")?)));
        owner.map(|(namespace, o)| Key::new(namespace, &o.name)).into_iter().collect()
    }

    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        match view.get::<CronJob>(key).filter(|c| !c.is_deleting()) {
            Some(cron) => reconcile(cron, view, now),
            None => Plan::none(),
        }
    }
}

fn reconcile(cron: &CronJob, view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let spec = &cron.spec;
    let jobs: Vec<Arc<Job>> = view.of::<Job>().controlled_by(cron.uid()).cloned().collect();
    let mut status = status(cron, &jobs);
    let due = if spec.suspend == Some(true) { Due::default() } else { due(cron, spec, now, &mut plan) };
    let running: Vec<&Arc<Job>> = jobs.iter().filter(|j| !is_finished(j)).collect();
    let mut started = None;
    if let Some(at) = due.last {
        let job = job(cron, spec, at);
        let made = view.get::<Job>(&Key::of(&job)).is_some();
        let forbidden = spec.concurrency_policy.as_deref() == Some("Forbid") && !running.is_empty();
        if made {
            status.last_schedule_time = Some(Time(at));
        } else if forbidden {
            let message =
                "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.record(cron, false, "JobAlreadyActive", message.into());
        } else {
            if spec.concurrency_policy.as_deref() == Some("Replace") {
                running.iter().for_each(|j| remove(&mut plan, j));
                status.active = None;
            }
            status.last_schedule_time = Some(Time(at));
            started = Some(job);
        }
    }
    if let Some(next) = due.next {
        plan.requeue_in(next.duration_since(now) + SignedDuration::from_millis(100));
    }
    // The Job first: a time that is noted and whose Job was not made would be lost.
    if let Some(job) = &started {
        let made = Recorded::new(cron, false, "SuccessfulCreate", "Created job ".to_owned());
        plan.create_announced(job, Some(made));
    }
    let mut new = cron.clone();
    new.status = Some(status);
    plan.update_status(cron, &new);
    clean_up(&mut plan, spec, &jobs);
    plan
}

/// What runs now, and the newest success.
fn status(cron: &CronJob, jobs: &[Arc<Job>]) -> CronJobStatus {
    let old = cron.status.clone().unwrap_or_default();
    let mut active: Vec<ObjectReference> =
        jobs.iter().filter(|j| !is_finished(j) && !j.is_deleting()).map(|j| j.object_reference()).collect();
    for reference in &mut active {
        // The revision would change the status with every change of the Job.
        reference.resource_version = None;
    }
    let ends = jobs.iter().filter(|j| has_condition(j, "Complete"));
    let newest = ends.filter_map(|j| j.status.as_ref()?.completion_time.clone()).map(|t| t.0).max();
    let last = old.last_successful_time.map(|t| t.0).max(newest);
    CronJobStatus {
        active: (!active.is_empty()).then_some(active),
        last_successful_time: last.map(Time),
        last_schedule_time: old.last_schedule_time,
    }
}

/// The newest time that is due and not yet served, and the next to come.
#[derive(Default, Debug, PartialEq, Eq)]
struct Due {
    last: Option<Timestamp>,
    next: Option<Timestamp>,
}

fn due(cron: &CronJob, spec: &CronJobSpec, now: Timestamp, plan: &mut Plan) -> Due {
    let schedule = match Schedule::parse(&spec.schedule) {
        Ok(schedule) => schedule,
        Err(problem) => {
            let message = format!("unparseable schedule {:?} : {problem}", spec.schedule);
            plan.record(cron, true, "UnparseableSchedule", message);
            return Due::default();
        }
    };
    let zone = match spec.time_zone.as_deref() {
        None => TimeZone::UTC,
        Some(name) => match cron::zone(name) {
            Some(zone) => zone,
            None => {
                let message = format!("invalid timeZone: {name:?}: unknown time zone");
                plan.record(cron, true, "UnknownTimeZone", message);
                return Due::default();
            }
        },
    };
    let next = |after: Timestamp| {
        let civil = schedule.next(zone.to_datetime(after))?;
        zone.to_timestamp(civil).ok().filter(|at| *at > after)
    };
    let created = cron.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let served = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref()).map(|t| t.0);
    let mut earliest = served.unwrap_or(created);
    if let Some(deadline) = spec.starting_deadline_seconds {
        earliest = earliest.max(now - SignedDuration::from_secs(deadline.max(0)));
    }
    let (mut last, mut at, mut missed) = (None, next(earliest), 0);
    while let Some(time) = at.filter(|t| *t <= now) {
        last = Some(time);
        missed += 1;
        if missed > MISSED_MOST {
            // Too many to go through: what was due within the last day decides.
            let recent = (now - SignedDuration::from_hours(24)).max(time);
            let mut later = next(recent);
            while let Some(t) = later.filter(|t| *t <= now).filter(|_| missed < MISSED_MOST + 2000) {
                last = Some(t);
                later = next(t);
                missed += 1;
            }
            plan.record(cron, true, "TooManyMissedTimes", format!("too many missed start times: {missed}. Set or decrease .spec.startingDeadlineSeconds or check clock skew"));
            break;
        }
        at = next(time);
    }
    Due { last, next: next(now) }
}

fn job(cron: &CronJob, spec: &CronJobSpec, at: Timestamp) -> Job {
    let template = spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.to_owned(), at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", cron.name(), at.as_second() / 60)),
            namespace: Some(cron.namespace().to_owned()),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![cron.owner_reference()]),
            ..Default::default()
        },
        spec: template.spec,
        status: None,
    }
}

fn remove(plan: &mut Plan, job: &Arc<Job>) {
    if job.is_deleting() {
        return;
    }
    plan.actions.push(Action::Delete {
        target: Target::of(job.as_ref()),
        precondition: Precondition::same(job.as_ref()),
        grace: None,
        propagation: Some(Propagation::Background),
    });
}

/// Keeps as many ended Jobs as asked for, the youngest.
fn clean_up(plan: &mut Plan, spec: &CronJobSpec, jobs: &[Arc<Job>]) {
    for (kind, limit) in
        [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)]
    {
        let Some(limit) = limit.and_then(|n| usize::try_from(n).ok()) else { continue };
        let mut ended: Vec<&Arc<Job>> =
            jobs.iter().filter(|j| has_condition(j, kind) && !j.is_deleting()).collect();
        ended.sort_by_key(|j| (j.metadata.creation_timestamp.as_ref().map(|t| t.0), j.name().to_owned()));
        for job in &ended[..ended.len().saturating_sub(limit)] {
            remove(plan, job);
        }
    }
}
