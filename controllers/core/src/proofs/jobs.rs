//! Job and CronJob: scripts, and C11 under stale views and cut plans.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{from, plan, settle, step, template};
use crate::Reconciler;
use crate::cronjob::CronJobs;
use crate::job::ttl::TtlAfterFinished;
use crate::job::{Jobs, TRACKING, has_condition};
use crate::object::{Key, Object};
use crate::pods;
use crate::world::World;

fn job(more: Value) -> Job {
    let mut spec = json!({ "selector": { "matchLabels": { "app": "a" } }, "parallelism": 2, "completions": 3,
        "backoffLimit": 6, "template": template("i") });
    spec["template"]["spec"]["restartPolicy"] = json!("Never");
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    from(json!({ "metadata": { "name": "j", "namespace": "d", "generation": 1 }, "spec": spec }))
}

fn world(more: Value) -> (World, Key) {
    let mut world = World::default();
    let key = world.put(&job(more));
    (world, key)
}

fn active(world: &World) -> Vec<Key> {
    world.list::<Pod>().iter().filter(|p| pods::is_active(p)).map(Key::of).collect()
}

/// The kubelet's part: the pod ends.
fn end(world: &mut World, key: &Key, phase: &str, code: i32) {
    let at = world.now.to_string();
    let status = json!({ "phase": phase, "containerStatuses": [{ "name": "c", "ready": false, "restartCount": 0, "image": "i",
        "imageID": "", "state": { "terminated": { "exitCode": code, "finishedAt": at } } }] });
    world.edit::<Pod>(key, |pod| {
        pod.status = Some(serde_json::from_value::<PodStatus>(status).expect("a status"));
    });
}

/// What is being deleted and held by nothing goes.
fn sweep(world: &mut World) {
    for pod in world.list::<Pod>() {
        if pod.is_deleting() && pod.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
            world.remove::<Pod>(&Key::of(&pod));
        }
    }
}

fn status(world: &World, key: &Key) -> k8s_openapi::api::batch::v1::JobStatus {
    world.get::<Job>(key).unwrap().status.unwrap()
}

#[test]
fn runs_to_its_completions_and_lets_the_pods_go() {
    let (mut world, key) = world(json!({}));
    settle(&mut world, &Jobs, &key);
    assert_eq!(active(&world).len(), 2, "as many as may run at once");
    assert!(world.list::<Pod>().iter().all(|p| p.has_finalizer(TRACKING)));
    for pod in active(&world) {
        end(&mut world, &pod, "Succeeded", 0);
    }
    settle(&mut world, &Jobs, &key);
    assert_eq!((status(&world, &key).succeeded, active(&world).len()), (Some(2), 1));
    let last = active(&world).remove(0);
    end(&mut world, &last, "Succeeded", 0);
    settle(&mut world, &Jobs, &key);
    let job = world.get::<Job>(&key).unwrap();
    assert!(has_condition(&job, "Complete") && has_condition(&job, "SuccessCriteriaMet"));
    let status = job.status.unwrap();
    assert_eq!((status.succeeded, status.active, status.completion_time.is_some()), (Some(3), None, true));
    assert!(world.list::<Pod>().iter().all(|p| !p.has_finalizer(TRACKING)));
    assert!(plan(&world, &Jobs, &key).is_empty(), "an ended Job sees no writes (C27)");
}

#[test]
fn failures_wait_longer_each_time_and_end_the_job_at_the_limit() {
    let (mut world, key) = world(json!({ "parallelism": 1, "completions": 1, "backoffLimit": 1 }));
    settle(&mut world, &Jobs, &key);
    let first = active(&world).remove(0);
    end(&mut world, &first, "Failed", 1);
    settle(&mut world, &Jobs, &key);
    assert!(active(&world).is_empty());
    assert_eq!(plan(&world, &Jobs, &key).requeue.unwrap().as_secs(), 10);
    world.pass(11);
    settle(&mut world, &Jobs, &key);
    let second = active(&world).remove(0);
    end(&mut world, &second, "Failed", 1);
    settle(&mut world, &Jobs, &key);
    let job = world.get::<Job>(&key).unwrap();
    assert!(has_condition(&job, "Failed"));
    let failed = job.status.unwrap().conditions.unwrap().into_iter().find(|c| c.type_ == "Failed").unwrap();
    assert_eq!(failed.reason.as_deref(), Some("BackoffLimitExceeded"));
}

#[test]
fn a_deadline_ends_it_and_a_suspended_one_has_no_pods() {
    let (mut world, key) = world(json!({ "activeDeadlineSeconds": 30 }));
    settle(&mut world, &Jobs, &key);
    world.edit::<Job>(&key, |j| j.spec.as_mut().unwrap().suspend = Some(true));
    settle(&mut world, &Jobs, &key);
    sweep(&mut world);
    assert!(active(&world).is_empty() && has_condition(&world.get::<Job>(&key).unwrap(), "Suspended"));
    world.pass(100);
    world.edit::<Job>(&key, |j| j.spec.as_mut().unwrap().suspend = Some(false));
    settle(&mut world, &Jobs, &key);
    assert_eq!(active(&world).len(), 2, "the time begins anew");
    assert_eq!(status(&world, &key).failed, None, "pods of a suspended Job did not fail");
    world.pass(31);
    for _ in 0..5 {
        let _ = step(&mut world, &Jobs, &key);
        sweep(&mut world);
    }
    settle(&mut world, &Jobs, &key);
    assert!(has_condition(&world.get::<Job>(&key).unwrap(), "Failed"));
}

#[test]
fn indexes_are_done_once_each_and_may_fail_alone() {
    let (mut world, key) = world(
        json!({ "completionMode": "Indexed", "completions": 4, "parallelism": 4, "backoffLimitPerIndex": 0 }),
    );
    settle(&mut world, &Jobs, &key);
    let pods = world.list::<Pod>();
    let index = |p: &Pod| p.annotation("batch.kubernetes.io/job-completion-index").unwrap().to_owned();
    assert_eq!(pods.iter().map(index).collect::<BTreeSet<_>>().len(), 4);
    assert_eq!(
        pods[0].spec.as_ref().unwrap().containers[0].env.as_ref().unwrap()[0].name,
        "JOB_COMPLETION_INDEX"
    );
    for pod in &pods {
        let phase = if index(pod) == "1" { "Failed" } else { "Succeeded" };
        end(&mut world, &Key::of(pod), phase, 1);
    }
    settle(&mut world, &Jobs, &key);
    let job = world.get::<Job>(&key).unwrap();
    let status = job.status.clone().unwrap();
    assert_eq!(
        (status.completed_indexes.as_deref(), status.failed_indexes.as_deref()),
        (Some("0,2,3"), Some("1"))
    );
    assert!(has_condition(&job, "Failed"));
}

#[test]
fn policies_decide_what_an_end_means() {
    let policy = json!({ "podFailurePolicy": { "rules": [
        { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
        { "action": "FailJob", "onExitCodes": { "operator": "In", "values": [42] } }] }, "podReplacementPolicy": "Failed" });
    let (mut world, key) = world(policy);
    settle(&mut world, &Jobs, &key);
    let pods = active(&world);
    let condition =
        json!({ "phase": "Failed", "conditions": [{ "type": "DisruptionTarget", "status": "True" }] });
    world.edit::<Pod>(&pods[0], |p| p.status = Some(serde_json::from_value(condition).unwrap()));
    settle(&mut world, &Jobs, &key);
    assert_eq!(status(&world, &key).failed, None, "a disrupted pod is not held against the Job");
    end(&mut world, &pods[1], "Failed", 42);
    for _ in 0..5 {
        let _ = step(&mut world, &Jobs, &key);
        sweep(&mut world);
    }
    let job = world.get::<Job>(&key).unwrap();
    let failed = job.status.unwrap().conditions.unwrap().into_iter().find(|c| c.type_ == "Failed").unwrap();
    assert_eq!(failed.reason.as_deref(), Some("PodFailurePolicy"));
    assert!(failed.message.unwrap().contains("failed with exit code 42 matching FailJob rule at index 1"));
}

#[test]
fn an_ended_job_goes_after_its_time() {
    let (mut world, key) =
        world(json!({ "parallelism": 1, "completions": 1, "ttlSecondsAfterFinished": 60 }));
    settle(&mut world, &Jobs, &key);
    let pod = active(&world).remove(0);
    end(&mut world, &pod, "Succeeded", 0);
    settle(&mut world, &Jobs, &key);
    assert_eq!(plan(&world, &TtlAfterFinished, &key).requeue.unwrap().as_secs(), 60);
    world.pass(61);
    step(&mut world, &TtlAfterFinished, &key).unwrap();
    assert!(world.get::<Job>(&key).is_none());
}

fn cron(more: Value) -> CronJob {
    let mut spec = json!({ "schedule": "*/5 * * * *", "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1,
        "jobTemplate": { "spec": { "template": template("i") } } });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    from(json!({ "metadata": { "name": "c", "namespace": "d" }, "spec": spec }))
}

#[test]
fn a_schedule_makes_a_job_each_time_and_keeps_few() {
    let mut world = World::default();
    let key = world.put(&cron(json!({})));
    settle(&mut world, &CronJobs, &key);
    assert!(world.list::<Job>().is_empty(), "not yet due");
    for round in 1..=3 {
        world.pass(300);
        settle(&mut world, &CronJobs, &key);
        let running: Vec<Job> = world.list::<Job>().into_iter().filter(|j| j.status.is_none()).collect();
        assert_eq!(running.len(), 1, "round {round}");
        let done = json!({ "completionTime": world.now.to_string(), "conditions": [{ "type": "Complete", "status": "True" }] });
        let job = Key::of(&running[0]);
        world.edit::<Job>(&job, |j| j.status = Some(serde_json::from_value(done).unwrap()));
        settle(&mut world, &CronJobs, &key);
    }
    assert_eq!(world.list::<Job>().len(), 1, "the history is short");
    let status = world.get::<CronJob>(&key).unwrap().status.unwrap();
    assert!(status.last_successful_time.is_some() && status.active.is_none());
}

#[test]
fn concurrency_is_as_told() {
    for (policy, jobs) in [("Allow", 2), ("Forbid", 1), ("Replace", 1)] {
        let mut world = World::default();
        let key = world.put(&cron(json!({ "concurrencyPolicy": policy })));
        for _ in 0..2 {
            world.pass(300);
            for _ in 0..3 {
                let _ = step(&mut world, &CronJobs, &key);
            }
        }
        assert_eq!(world.list::<Job>().len(), jobs, "{policy}");
    }
    let mut world = World::default();
    let key = world.put(&cron(json!({ "suspend": true })));
    world.pass(900);
    assert!(step(&mut world, &CronJobs, &key).unwrap().actions.is_empty());
    let key = world.put(&cron(json!({ "startingDeadlineSeconds": 10 })));
    world.pass(130);
    let _ = step(&mut world, &CronJobs, &key);
    assert!(world.list::<Job>().is_empty(), "too late is not at all");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// C11: with views no older than its own last write and plans cut anywhere, never more pods run than may, and when
    /// all is over the numbers are those of the pods that ended, each counted once.
    #[test]
    fn counts_exactly_and_never_overruns(steps in prop::collection::vec((0u8..6, 0usize..4, 0usize..9), 1..60)) {
        let (mut world, key) = world(json!({ "backoffLimit": 1000, "completions": 4, "parallelism": 2 }));
        let mut own = world.version();
        let (mut good, mut bad) = (BTreeSet::new(), BTreeSet::new());
        for (what, lag, cut) in steps {
            let some = active(&world).get(cut % 3).cloned();
            match (what, some) {
                (0, Some(pod)) => {
                    good.insert(world.get::<Pod>(&pod).unwrap().uid().to_owned());
                    end(&mut world, &pod, "Succeeded", 0);
                }
                (1, Some(pod)) => {
                    bad.insert(world.get::<Pod>(&pod).unwrap().uid().to_owned());
                    end(&mut world, &pod, "Failed", 1);
                }
                (2, _) => { sweep(&mut world); world.pass(700); }
                _ => {
                    let version = world.version().saturating_sub(lag).max(own);
                    let view = world.view(&Jobs.watches(), version);
                    let plan = Jobs.reconcile(&key, &view, world.now);
                    let before = world.version();
                    for action in plan.actions.iter().take(cut) {
                        if world.act(action).is_err() { break }
                    }
                    if world.version() > before { own = world.version(); }
                }
            }
            prop_assert!(active(&world).len() <= 2, "{} pods run", active(&world).len());
        }
        for _ in 0..30 {
            let _ = step(&mut world, &Jobs, &key);
            for pod in active(&world) {
                good.insert(world.get::<Pod>(&pod).unwrap().uid().to_owned());
                end(&mut world, &pod, "Succeeded", 0);
            }
            world.pass(700);
        }
        let job = world.get::<Job>(&key).unwrap();
        prop_assert!(has_condition(&job, "Complete"), "{:?}", job.status);
        let status = job.status.unwrap();
        prop_assert_eq!(status.succeeded.unwrap_or(0) as usize, good.len());
        prop_assert_eq!(status.failed.unwrap_or(0) as usize, bad.len());
        prop_assert!(plan(&world, &Jobs, &key).is_empty());
    }
}
