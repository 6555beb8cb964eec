//! The shipped CronJob reconciler in the cluster of `cluster.rs`: time passes, Jobs end when they like, a user deletes one.
//!
//! Shown beside what holds of every scenario: with `Forbid` no Job is made while another runs (the controller made it, so
//! that it knows); in the end no due time waits, and no more ended Jobs are kept than asked for.
//!
//! Omitted: other schedules and time zones (property-tested), what a Job does with its pods (its own model).

use k8s_openapi::api::batch::v1::{CronJob, Job};
use keelson_controllers_core::cronjob::CronJobs;
use keelson_controllers_core::job::is_finished;
use keelson_controllers_core::world::World;
use keelson_controllers_core::{Gvr, Key, Object};
use serde_json::{Value, json};

use super::template;
use crate::catalogue::{Bound, Report};
use crate::cluster::{Scenario, keys_of, object};

/// Seconds between two due times.
const PERIOD: i64 = 300;

/// Runs the model.
pub fn run(bound: Bound) -> Report {
    scenario(if bound == Bound::Deep { 4 } else { 3 }).run(bound)
}

fn key() -> Key {
    Key::new("d", "c")
}

fn end(world: &mut World, key: &Key) {
    if world.get::<Job>(key).is_none_or(|job| is_finished(&job)) {
        return;
    }
    let at = world.now.to_string();
    let done = json!({"completionTime": at, "conditions": [{"type": "Complete", "status": "True"}]});
    world.edit::<Job>(key, |job| job.status = Some(serde_json::from_value(done).expect("a sound status")));
}

/// Jobs that run, as of a version.
fn running(world: &World, version: usize, names: &[Key]) -> usize {
    let ended = |job: &Value| job["status"]["conditions"].as_array().is_some_and(|all| !all.is_empty());
    let job = |key: &Key| world.value_at(&Gvr::of::<Job>(), key, version);
    names.iter().filter(|key| job(key).is_some_and(|job| !ended(&job))).count()
}

/// `Forbid`, and one Job a due time: of the newest write.
fn forbids(world: &World) -> Result<(), String> {
    let newest = world.version();
    let Some((resource, None, Some(made))) = world.change(newest) else { return Ok(()) };
    if resource.resource != "jobs" {
        return Ok(());
    }
    if running(world, newest - 1, &keys_of::<Job>(world)) > 0 {
        return Err(format!("a Job is made while another runs: {}", made["metadata"]["name"]));
    }
    Ok(())
}

fn served(world: &World) -> Result<(), String> {
    let due = world.now.as_second() / PERIOD * PERIOD;
    let Some(cron) = world.get::<CronJob>(&key()) else { return Err("the CronJob is gone".to_owned()) };
    let created = cron.metadata.creation_timestamp.map_or(0, |time| time.0.as_second());
    let last = cron.status.and_then(|status| status.last_schedule_time).map(|time| time.0.as_second());
    let jobs = world.list::<Job>();
    let kept = jobs.iter().filter(|job| is_finished(job)).count();
    if (due > created && last != Some(due)) || kept > 1 || kept != jobs.len() {
        return Err(format!("due at {due}, last {last:?}, {kept} ended Jobs of {}", jobs.len()));
    }
    Ok(())
}

/// Every five minutes, so many times.
pub fn scenario(times: u8) -> Scenario {
    let cron: CronJob = object(json!({
        "metadata": {"name": "c", "namespace": "d"},
        "spec": {
            "schedule": "*/5 * * * *", "concurrencyPolicy": "Forbid", "successfulJobsHistoryLimit": 1,
            "failedJobsHistoryLimit": 1, "jobTemplate": {"spec": {"template": template("v1")}},
        },
    }));
    Scenario::new("controllers-cronjob")
        .object(&cron)
        .time(PERIOD, times)
        .controller(CronJobs, |_| vec![key()])
        .fair("a Job ends", keys_of::<Job>, end)
        .trouble("a user deletes a Job", 1, keys_of::<Job>, |world, key| world.remove::<Job>(key))
        .always(forbids)
        .desired(served)
        .sometimes("a Job runs when the next is due", |world| {
            let jobs = world.list::<Job>();
            let late = |job: &Job| {
                let made = job.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
                !is_finished(job) && world.now.as_second() - made >= PERIOD
            };
            jobs.iter().any(late)
        })
        .sometimes("a Job was made and its time is not noted", |world| {
            let cron = world.get::<CronJob>(&key());
            let noted = cron.is_some_and(|cron| cron.status.is_some_and(|s| s.last_schedule_time.is_some()));
            !noted && !world.list::<Job>().iter().all(|job| job.is_deleting())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_due_time_is_lost_or_served_twice_and_none_runs_into_another() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 3_636, "the reach changed: look why, then set the new count");
    }
}
