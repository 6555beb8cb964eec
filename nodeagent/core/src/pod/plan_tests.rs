//! The pod worker against a small runtime that does what it is told: order of steps, restarts, endings, and the safety
//! rules under random failures.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::pod::memory::{FailureKind, Memory, Outcome};
use crate::pod::observed::Sandbox;
use crate::pod::status::{NodeFacts, pod_status};

/// A runtime and an API for one pod.
struct World {
    pod: Pod,
    memory: Memory,
    observed: Observed,
    now: Timestamp,
    log: Vec<String>,
    ids: u32,
}

impl World {
    fn new(spec: Value) -> World {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        World {
            memory: Memory::adopt(&pod),
            pod,
            observed: Observed::default(),
            now,
            log: Vec::new(),
            ids: 0,
        }
    }

    fn plan(&mut self) -> PodActions {
        self.memory.refresh(&self.pod, &self.observed, self.now);
        plan(&self.pod, &self.memory, &self.observed, self.now)
    }

    /// One turn: every planned action begins and ends well.
    fn turn(&mut self) -> bool {
        let actions = self.plan().actions;
        for action in &actions {
            self.memory.begin(action, &self.observed, self.now);
            let outcome = self.carry_out(action);
            self.memory.finish(&self.pod, action, &outcome, self.now);
        }
        !actions.is_empty()
    }

    /// Turns until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..100 {
            if !self.turn() {
                return;
            }
        }
        panic!("the plan never settles: {:?}", self.log);
    }

    fn pass(&mut self, seconds: i64) {
        self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
    }

    fn carry_out(&mut self, action: &Action) -> Outcome {
        let word = match action {
            Action::Probe { name, container_id, kind } => {
                self.log.push(format!("probe {name} {}", kind.title()));
                return Outcome::Probed { container_id: container_id.clone(), ok: true };
            }
            Action::StartContainer { name, attempt, sandbox } => {
                self.ids += 1;
                let spec = naming::find_container(&self.pod, name).unwrap();
                self.observed.containers.push(Container {
                    id: format!("c{}", self.ids),
                    sandbox: sandbox.clone(),
                    name: name.clone(),
                    attempt: *attempt,
                    phase: ContainerPhase::Running,
                    created: self.now,
                    started: Some(self.now),
                    finished: None,
                    exit_code: 0,
                    reason: String::new(),
                    message: String::new(),
                    image: String::new(),
                    image_id: String::new(),
                    hash: naming::container_hash(&spec),
                });
                self.log.push(format!("start {name}"));
                self.observed = std::mem::take(&mut self.observed).sorted();
                return Outcome::Started;
            }
            Action::CreateSandbox { attempt } => {
                self.ids += 1;
                let id = format!("s{}", self.ids);
                let ips = vec!["10.0.0.1".to_string()];
                self.observed
                    .sandboxes
                    .insert(0, Sandbox { id, attempt: *attempt, ready: true, created: self.now, ips });
                "sandbox".to_string()
            }
            Action::StopContainer { id, name, .. } => {
                self.exit_id(&id.clone(), 137);
                format!("stop {name}")
            }
            Action::StopSandbox { id } => {
                self.observed.sandboxes.iter_mut().filter(|s| s.id == *id).for_each(|s| s.ready = false);
                "stop sandbox".to_string()
            }
            Action::RemoveSandbox { id } => {
                self.observed.sandboxes.retain(|s| s.id != *id);
                "remove sandbox".to_string()
            }
            Action::RemoveContainer { id } => {
                self.observed.containers.retain(|c| c.id != *id);
                return Outcome::Done;
            }
            other => format!("{other:?}").to_lowercase(),
        };
        self.log.push(word);
        Outcome::Done
    }

    fn exit_id(&mut self, id: &str, code: i32) {
        let now = self.now;
        for container in self.observed.containers.iter_mut().filter(|c| c.id == id && live(c.phase)) {
            container.phase = ContainerPhase::Exited;
            container.exit_code = code;
            container.finished = Some(now);
        }
    }

    fn exit(&mut self, name: &str, code: i32) {
        let id = self.observed.latest(name).unwrap().id.clone();
        self.exit_id(&id, code);
    }

    fn delete(&mut self, grace: i64) {
        let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now);
        self.pod.metadata.deletion_timestamp = Some(time);
        self.pod.metadata.deletion_grace_period_seconds = Some(grace);
    }

    fn phase(&self) -> String {
        let status = pod_status(&self.pod, &self.memory, &self.observed, &NodeFacts::default(), self.now);
        status.phase.unwrap()
    }

    fn said(&mut self) -> String {
        std::mem::take(&mut self.log).join(", ")
    }
}

#[test]
fn init_containers_run_in_order_before_the_rest_and_sidecars_stay() {
    let mut world = World::new(json!({
        "initContainers": [{"name": "a"}, {"name": "side", "restartPolicy": "Always"}, {"name": "b"}],
        "containers": [{"name": "x"}, {"name": "y"}], "restartPolicy": "Never"}));
    world.settle();
    assert_eq!(world.said(), "prepare, sandbox, start a");
    world.exit("a", 0);
    world.settle();
    assert_eq!(world.said(), "start side, start b");
    assert_eq!(world.phase(), "Pending");
    world.exit("b", 0);
    world.settle();
    assert_eq!(world.said(), "start x, start y");
    assert_eq!(world.phase(), "Running");
    world.exit("side", 1);
    world.settle();
    assert_eq!(world.said(), "start side", "a sidecar is restarted at any time");
    world.exit("x", 0);
    world.exit("y", 0);
    world.settle();
    assert_eq!(world.said(), "stop side, stop sandbox, release");
    assert_eq!(world.phase(), "Succeeded");
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let mut world = World::new(
        json!({"initContainers": [{"name": "a"}], "containers": [{"name": "x"}], "restartPolicy": "Never"}),
    );
    world.settle();
    world.exit("a", 3);
    world.settle();
    assert_eq!(world.said(), "prepare, sandbox, start a, stop sandbox, release");
    assert_eq!(world.phase(), "Failed");
}

#[test]
fn crashes_back_off_and_show_it() {
    let mut world = World::new(json!({"containers": [{"name": "x"}]}));
    world.settle();
    world.exit("x", 1);
    world.settle();
    assert_eq!(world.said(), "prepare, sandbox, start x, start x", "the first restart is immediate");
    world.exit("x", 1);
    world.settle();
    assert_eq!(world.said(), "");
    let status = pod_status(&world.pod, &world.memory, &world.observed, &NodeFacts::default(), world.now);
    let shown = &status.container_statuses.unwrap()[0];
    assert_eq!(
        shown.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(),
        Some("CrashLoopBackOff")
    );
    assert_eq!(shown.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
    assert_eq!(shown.restart_count, 1);
    let wake = world.plan().wake.unwrap();
    assert_eq!(wake.duration_since(world.now).as_secs(), 10);
    world.pass(10);
    world.settle();
    assert_eq!(world.said(), "start x");
    assert_eq!(world.observed.latest("x").unwrap().attempt, 2);
}

#[test]
fn a_lost_sandbox_is_made_again_with_all_that_was_in_it() {
    let mut world = World::new(json!({"initContainers": [{"name": "a"}], "containers": [{"name": "x"}]}));
    world.settle();
    world.exit("a", 0);
    world.settle();
    world.said();
    world.observed.sandboxes[0].ready = false;
    world.settle();
    assert_eq!(world.said(), "stop x, stop sandbox, sandbox, start a");
    world.exit("a", 0);
    world.settle();
    assert_eq!(world.said(), "start x");
}

#[test]
fn deletion_stops_containers_before_it_is_confirmed() {
    let mut world = World::new(json!({"initContainers": [{"name": "side", "restartPolicy": "Always"}],
        "containers": [{"name": "x"}]}));
    world.settle();
    world.said();
    world.delete(30);
    world.settle();
    let wanted = "stop x, stop side, stop sandbox, release, remove sandbox, erase, confirmdeletion";
    assert_eq!(world.said(), wanted);
    assert!(world.memory.gone());
}

#[test]
fn a_shorter_grace_stops_again_and_a_longer_one_does_not() {
    let mut world = World::new(json!({"containers": [{"name": "x"}]}));
    world.settle();
    world.delete(30);
    let first = world.plan().actions;
    assert!(matches!(first[0], Action::StopContainer { grace: 30, .. }));
    world.memory.begin(&first[0], &world.observed, world.now);
    world.pass(5);
    assert_eq!(world.plan().actions, []);
    world.delete(60);
    assert_eq!(world.plan().actions, []);
    world.delete(0);
    assert!(matches!(world.plan().actions[0], Action::StopContainer { grace: 0, .. }));
}

#[test]
fn a_finished_pod_never_runs_again_after_the_agent_restarts() {
    let mut world = World::new(json!({"containers": [{"name": "x"}], "restartPolicy": "OnFailure"}));
    world.pod.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
    world.memory = Memory::adopt(&world.pod);
    world.settle();
    assert_eq!(world.said(), "release");
    assert_eq!(world.phase(), "Succeeded");
}

#[test]
fn the_active_deadline_ends_the_pod() {
    let mut world = World::new(json!({"containers": [{"name": "x"}], "activeDeadlineSeconds": 5}));
    let start = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.now);
    world.pod.status =
        Some(k8s_openapi::api::core::v1::PodStatus { start_time: Some(start), ..Default::default() });
    world.settle();
    assert_eq!(world.plan().wake.unwrap().duration_since(world.now).as_secs(), 5);
    world.pass(5);
    world.settle();
    assert_eq!(world.said(), "prepare, sandbox, start x, stop x, stop sandbox, release");
    assert_eq!(world.phase(), "Failed");
}

#[test]
fn an_image_that_cannot_be_pulled_holds_back_only_its_container() {
    let mut world = World::new(json!({"containers": [{"name": "x"}, {"name": "y"}]}));
    world.turn();
    world.turn();
    let actions = world.plan().actions;
    world.memory.begin(&actions[0], &world.observed, world.now);
    let (reason, message) = ("ErrImagePull".to_string(), "no such image".to_string());
    let failed = Outcome::StartFailed { kind: FailureKind::Pull, reason, message };
    world.memory.finish(&world.pod, &actions[0], &failed, world.now);
    world.settle();
    assert_eq!(world.said(), "prepare, sandbox, start y");
    let reason = |world: &World| {
        let status = pod_status(&world.pod, &world.memory, &world.observed, &NodeFacts::default(), world.now);
        let state = status.container_statuses.unwrap()[0].state.clone().unwrap();
        state.waiting.unwrap().reason.unwrap()
    };
    assert_eq!(reason(&world), "ErrImagePull");
    world.pass(4);
    assert_eq!(reason(&world), "ImagePullBackOff");
    world.pass(6);
    world.settle();
    assert_eq!(world.said(), "start x");
}

#[test]
fn a_failed_liveness_probe_replaces_the_container() {
    let probe = json!({"exec": {"command": ["x"]}, "periodSeconds": 1, "failureThreshold": 1});
    let mut world = World::new(json!({"containers": [{"name": "x", "livenessProbe": probe}]}));
    world.settle();
    let id = world.observed.latest("x").unwrap().id.clone();
    let action = Action::Probe { name: "x".into(), container_id: id.clone(), kind: Kind::Liveness };
    let failed = Outcome::Probed { container_id: id, ok: false };
    world.memory.finish(&world.pod.clone(), &action, &failed, world.now);
    world.said();
    world.turn();
    world.turn();
    assert!(world.said().starts_with("stop x, start x"));
}

/// Found by `safety_under_faults`: the phase said Failed while the plan went on, so the pod ran again after its end.
#[test]
fn a_sidecar_lost_with_its_sandbox_does_not_fail_a_pod_that_is_still_initializing() {
    let mut world = World::new(json!({"restartPolicy": "Never",
        "initContainers": [{"name": "side", "restartPolicy": "Always"}, {"name": "i"}],
        "containers": [{"name": "x"}]}));
    while world.observed.latest("side").is_none() {
        world.turn();
    }
    world.observed.sandboxes.iter_mut().for_each(|s| s.ready = false);
    world.exit("side", 137);
    assert_eq!(world.phase(), "Pending");
    world.settle();
    assert!(world.said().contains("sandbox, start side"));
    assert_eq!(world.phase(), "Pending");
}

/// What may happen to a pod between two turns.
#[derive(Clone, Debug)]
enum Fault {
    Exit(usize, i32),
    LoseSandbox,
    RestartAgent,
    Pass(i64),
    Delete(i64),
    FailNext,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => (0usize..4, 0i32..2).prop_map(|(at, code)| Fault::Exit(at, code)),
        1 => Just(Fault::LoseSandbox),
        1 => Just(Fault::RestartAgent),
        3 => (1i64..400).prop_map(Fault::Pass),
        1 => (0i64..60).prop_map(Fault::Delete),
        2 => Just(Fault::FailNext),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// C16: a finished pod never starts anything. C17: the deletion is confirmed only when nothing runs. And whatever
    /// happens, a deleted pod goes.
    #[test]
    fn safety_under_faults(policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
                           faults in proptest::collection::vec(fault(), 1..40)) {
        let mut world = World::new(json!({"restartPolicy": policy,
            "initContainers": [{"name": "i"}, {"name": "side", "restartPolicy": "Always"}],
            "containers": [{"name": "x"}, {"name": "y"}]}));
        let mut finished: Option<String> = None;
        let mut fail = false;
        for fault in faults {
            match fault {
                Fault::Exit(at, code) => {
                    let running: Vec<String> =
                        world.observed.containers.iter().filter(|c| c.running()).map(|c| c.id.clone()).collect();
                    if let Some(id) = running.get(at) {
                        world.exit_id(id, code);
                    }
                }
                Fault::LoseSandbox => world.observed.sandboxes.iter_mut().for_each(|s| s.ready = false),
                Fault::RestartAgent => world.memory = Memory::adopt(&world.pod),
                Fault::Pass(seconds) => world.pass(seconds),
                Fault::Delete(grace) => world.delete(grace),
                Fault::FailNext => fail = true,
            }
            let actions = world.plan().actions;
            for action in actions {
                if finished.is_some() {
                    prop_assert!(!matches!(action, Action::StartContainer { .. } | Action::CreateSandbox { .. }),
                        "C16: {action:?} after {finished:?}");
                }
                if matches!(action, Action::ConfirmDeletion) {
                    prop_assert!(world.observed.stopped(), "C17: confirmed while something runs");
                }
                world.memory.begin(&action, &world.observed, world.now);
                let outcome = if std::mem::take(&mut fail) {
                    Outcome::Failed("injected".into())
                } else {
                    world.carry_out(&action)
                };
                world.memory.finish(&world.pod.clone(), &action, &outcome, world.now);
            }
            let status = pod_status(&world.pod, &world.memory, &world.observed, &NodeFacts::default(), world.now);
            let phase = status.phase.clone().unwrap();
            if let Some(before) = &finished {
                prop_assert_eq!(before, &phase, "a terminal phase changed");
            } else if phase == "Succeeded" || phase == "Failed" {
                finished = Some(phase);
            }
            world.pod.status = Some(status);
        }
        world.delete(1);
        for _ in 0..200 {
            world.pass(3);
            world.turn();
        }
        prop_assert!(world.memory.gone(), "a deleted pod stayed: {:?}", world.memory.in_flight);
        prop_assert!(world.observed.sandboxes.is_empty() && world.observed.containers.is_empty());
    }
}
