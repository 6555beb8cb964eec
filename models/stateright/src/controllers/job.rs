//! The shipped Job reconciler in the cluster of `cluster.rs`: pods end well or badly, in any order, and nothing that has
//! ended vanishes before it was counted.
//!
//! Shown beside what holds of every scenario: never more active pods than `parallelism`, never more successes in the
//! status than completions (C11); in the end the numbers in the status are those of the pods that ended, each counted
//! once, and no pod is held by the Job's finalizer any more.
//!
//! Omitted: indexes, policies and suspension (unit- and property-tested).

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use keelson_controllers_core::job::{Jobs, TRACKING, has_condition};
use keelson_controllers_core::world::World;
use keelson_controllers_core::{Key, Object};
use serde_json::json;

use super::{active, end_pod, run_pod, template};
use crate::catalogue::{Bound, Report};
use crate::cluster::{Scenario, keys_of, object};

/// Where the pods that ended are counted: not an object, so that no controller sees it.
const GOOD: &str = "pods that ended well";
const BAD: &str = "pods that failed";

/// Runs the model.
pub fn run(bound: Bound) -> Report {
    scenario(if bound == Bound::Deep { 3 } else { 2 }).run(bound)
}

fn key() -> Key {
    Key::new("d", "j")
}

fn ended(world: &World, how: &'static str) -> i64 {
    world.notes.get(&(how, key())).and_then(serde_json::Value::as_i64).unwrap_or(0)
}

fn end(world: &mut World, pod: &Key, how: &'static str) {
    let before = world.version();
    let phase = if how == GOOD { "Succeeded" } else { "Failed" };
    end_pod(world, pod, phase, i32::from(how == BAD));
    if world.version() > before {
        let many = ended(world, how) + 1;
        world.notes.insert((how, key()), json!(many));
    }
}

fn bounded(world: &World, parallelism: usize, completions: i32) -> Result<(), String> {
    let many = active(world).len();
    if many > parallelism {
        return Err(format!("C11 {many} pods run, {parallelism} may"));
    }
    let status = world.get::<Job>(&key()).and_then(|job| job.status).unwrap_or_default();
    let succeeded = status.succeeded.unwrap_or(0);
    if i64::from(succeeded) > ended(world, GOOD) || succeeded > completions {
        return Err(format!("C11 {succeeded} successes of {} are counted", ended(world, GOOD)));
    }
    if i64::from(status.failed.unwrap_or(0)) > ended(world, BAD) {
        return Err(format!("C11 {:?} failures of {} are counted", status.failed, ended(world, BAD)));
    }
    Ok(())
}

fn complete(world: &World) -> Result<(), String> {
    let Some(job) = world.get::<Job>(&key()) else { return Err("the Job is gone".to_owned()) };
    let (good, bad) = (ended(world, GOOD), ended(world, BAD));
    let held = world.list::<Pod>().iter().filter(|pod| pod.has_finalizer(TRACKING)).count();
    let done = has_condition(&job, "Complete");
    let status = job.status.unwrap_or_default();
    let counts = (i64::from(status.succeeded.unwrap_or(0)), i64::from(status.failed.unwrap_or(0)));
    if done && held == 0 && counts == (good, bad) && active(world).is_empty() {
        return Ok(());
    }
    Err(format!("complete: {done}, counted {counts:?} of {:?}, {held} pods held", (good, bad)))
}

/// Two completions, so many at once; one pod may fail.
pub fn scenario(parallelism: usize) -> Scenario {
    const COMPLETIONS: i32 = 2;
    let mut template = template("v1");
    template["spec"]["restartPolicy"] = json!("Never");
    let job: Job = object(json!({
        "metadata": {"name": "j", "namespace": "d", "generation": 1},
        "spec": {
            "selector": {"matchLabels": {"app": "a"}}, "template": template,
            "parallelism": parallelism, "completions": COMPLETIONS, "backoffLimit": 6,
        },
    }));
    Scenario::new("controllers-job")
        .object(&job)
        .time(20, 1)
        .controller(Jobs, |_| vec![key()])
        .fair("a pod that is deleted goes", keys_of::<Pod>, |world, key| {
            if world.get::<Pod>(key).is_some_and(|pod| pod.is_deleting()) {
                run_pod(world, key);
            }
        })
        .fair("a pod ends well", keys_of::<Pod>, |world, key| end(world, key, GOOD))
        .trouble("a pod fails", 1, keys_of::<Pod>, |world, key| end(world, key, BAD))
        .always(move |world| bounded(world, parallelism, COMPLETIONS))
        .desired(complete)
        .sometimes("a pod has ended and is not counted", |world| {
            let status = world.get::<Job>(&key()).and_then(|job| job.status).unwrap_or_default();
            i64::from(status.succeeded.unwrap_or(0)) < ended(world, GOOD)
        })
        .sometimes("it completes though a pod failed", |world| {
            ended(world, BAD) > 0
                && world.get::<Job>(&key()).is_some_and(|job| has_condition(&job, "Complete"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_is_counted_once_and_never_too_many_run() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 3_459, "the reach changed: look why, then set the new count");
    }
}
