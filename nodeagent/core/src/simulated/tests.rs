//! A simulated node against an API that is a map of pods: what pods go through, and that nothing is lost by restarts,
//! failed writes or deletions at any moment.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::node::{SimulatedNode, Write};
use super::{DURATION, EXIT_CODE};
use crate::pod::admission::Room;
use crate::pod::naming;

struct World {
    node: SimulatedNode,
    /// The API's pods, by uid.
    api: BTreeMap<String, Pod>,
    now: Timestamp,
    /// The next writes fail.
    failing: usize,
}

fn node(pods: usize, range: &str) -> SimulatedNode {
    let room = Room { cpu_milli: 4000, memory_bytes: 8 << 30, pods };
    SimulatedNode::new("127.30.1.1", range.parse().unwrap(), room)
}

fn pod(uid: &str, more: Value) -> Pod {
    let mut value = json!({
        "metadata": {"name": uid, "namespace": "n", "uid": uid},
        "spec": {"containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 30},
    });
    merge(&mut value, more);
    serde_json::from_value(value).unwrap()
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

impl World {
    fn new() -> World {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        World { node: node(110, "10.244.1.0/24"), api: BTreeMap::new(), now, failing: 0 }
    }

    fn create(&mut self, pod: Pod) {
        self.api.insert(naming::uid(&pod).to_string(), pod.clone());
        self.node.apply(pod, self.now);
        self.settle();
    }

    /// As the API does on DELETE: a mark for pods with a grace, the end for those without.
    fn delete(&mut self, uid: &str, grace: i64) {
        let Some(found) = self.api.get_mut(uid) else { return };
        if grace == 0 {
            let gone = self.api.remove(uid).unwrap();
            self.node.delete(gone);
        } else {
            found.metadata.deletion_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
            found.metadata.deletion_grace_period_seconds = Some(grace);
            let marked = found.clone();
            self.node.apply(marked, self.now);
        }
        self.settle();
    }

    /// Another process in place of this one: it knows what the API knows.
    fn restart(&mut self) {
        self.node = node(110, "10.244.1.0/24");
        self.node.complete(self.api.values().cloned().collect(), self.now);
        self.settle();
    }

    /// Turns until nothing is to be written; answers when to turn again.
    fn settle(&mut self) -> Option<Timestamp> {
        for _ in 0..1000 {
            let turn = self.node.turn(self.now);
            if turn.writes.is_empty() {
                return turn.wake;
            }
            for write in turn.writes {
                self.write(write);
            }
        }
        panic!("the node never settles");
    }

    fn write(&mut self, write: Write) {
        let (Write::Status { pod, .. } | Write::Delete { pod, .. }) = &write;
        let uid = naming::uid(pod).to_string();
        if self.failing > 0 {
            self.failing -= 1;
            self.node.written(&uid, Err("no".into()), self.now);
            return;
        }
        match write {
            Write::Status { status, .. } => {
                if let Some(stored) = self.api.get_mut(&uid) {
                    stored.status = Some(status);
                    let seen = stored.clone();
                    self.node.apply(seen, self.now);
                }
                self.node.written(&uid, Ok(()), self.now);
            }
            Write::Delete { status, .. } => {
                if let Some(mut gone) = self.api.remove(&uid) {
                    gone.status = status;
                    self.node.delete(gone);
                }
                self.node.written(&uid, Ok(()), self.now);
            }
        }
    }

    fn pass(&mut self, seconds: i64) {
        let until = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        while let Some(wake) = self.settle().filter(|wake| *wake <= until) {
            assert!(wake > self.now, "a wake lies ahead");
            self.now = wake;
        }
        self.now = until;
        self.settle();
    }

    fn status(&self, uid: &str) -> PodStatus {
        self.api[uid].status.clone().unwrap_or_default()
    }

    fn phase(&self, uid: &str) -> String {
        self.status(uid).phase.unwrap_or_default()
    }
}

fn ready(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

#[test]
fn a_pod_runs_gets_an_address_and_says_where() {
    let mut world = World::new();
    let probe = json!({"httpGet": {"path": "/", "port": 80}, "periodSeconds": 2});
    world.create(pod("a", json!({"spec": {"containers": [{"name": "c", "readinessProbe": probe}]}})));
    world.create(pod("b", json!({"spec": {"hostNetwork": true}})));
    let a = world.status("a");
    assert_eq!((a.phase.as_deref(), a.pod_ip.as_deref()), (Some("Running"), Some("10.244.1.2")));
    assert!(ready(&a), "{a:?}");
    let container = &a.container_statuses.unwrap()[0];
    assert!(container.container_id.as_deref().unwrap().starts_with("simulated://"), "{container:?}");
    assert_eq!(world.status("b").pod_ip.as_deref(), Some("127.30.1.1"));
    world.pass(3600);
    assert_eq!(world.phase("a"), "Running", "nothing ends by itself");
}

#[test]
fn deletion_takes_a_moment_then_the_pod_is_gone_and_its_address_free() {
    let mut world = World::new();
    world.create(pod("a", json!({})));
    world.delete("a", 30);
    assert_eq!(world.phase("a"), "Running", "it is only marked");
    world.pass(2);
    assert!(world.api.is_empty());
    assert_eq!(world.node.uids().count(), 0);
    world.create(pod("b", json!({})));
    assert_eq!(world.status("b").pod_ip.as_deref(), Some("10.244.1.2"));
    world.delete("b", 0);
    world.pass(2);
    assert_eq!(world.node.uids().count(), 0, "a forced deletion leaves nothing behind");
}

#[test]
fn finite_pods_end_as_told() {
    let mut world = World::new();
    let init = json!([{"name": "i"}]);
    world.create(pod("job", json!({"spec": {"restartPolicy": "Never", "initContainers": init}})));
    assert_eq!(world.phase("job"), "Pending", "its init container runs");
    world.pass(2);
    assert_eq!(world.phase("job"), "Running");
    world.pass(10);
    assert_eq!(world.phase("job"), "Succeeded");
    let told = |code: &str| json!({"metadata": {"annotations": {DURATION: "60s", EXIT_CODE: code}}});
    let mut failing = json!({"spec": {"restartPolicy": "Never"}});
    merge(&mut failing, told("3"));
    world.create(pod("bad", failing));
    world.pass(59);
    assert_eq!(world.phase("bad"), "Running");
    world.pass(2);
    assert_eq!(world.phase("bad"), "Failed");
    let ended = world.status("bad").container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (3, Some("Error")));
    // A container that is to run always is started again, later each time.
    world.create(pod("loop", told("1")));
    world.pass(61);
    let looping = world.status("loop").container_statuses.unwrap()[0].clone();
    assert_eq!((looping.restart_count, world.phase("loop").as_str()), (1, "Running"));
    world.pass(62);
    let looping = world.status("loop").container_statuses.unwrap()[0].clone();
    assert_eq!(looping.state.unwrap().waiting.unwrap().reason.as_deref(), Some("CrashLoopBackOff"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut world = World::new();
    let asks =
        |cpu: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
    world.create(pod("a", asks("3")));
    world.create(pod("b", asks("2")));
    assert_eq!((world.phase("a").as_str(), world.phase("b").as_str()), ("Running", "Failed"));
    assert_eq!(world.status("b").reason.as_deref(), Some("OutOfcpu"));
    world.node = node(110, "10.244.1.0/30");
    world.api.clear();
    world.create(pod("c", json!({})));
    world.create(pod("d", json!({})));
    assert_eq!((world.phase("c").as_str(), world.phase("d").as_str()), ("Running", "Pending"));
    world.delete("c", 1);
    world.pass(20);
    assert_eq!(world.phase("d"), "Running", "the address that became free");
}

#[test]
fn a_restarted_simulator_leaves_running_pods_alone() {
    let mut world = World::new();
    world.create(pod("a", json!({})));
    world.create(pod("b", json!({})));
    let before = world.status("b");
    world.delete("a", 1);
    world.pass(5);
    // Bound while nobody looked, and first in order: it must not take the address of one that runs.
    world.api.insert("a2".into(), pod("a2", json!({})));
    world.restart();
    world.pass(30);
    assert_eq!(world.status("b"), before, "same container, same address, same times");
    assert_eq!(before.pod_ip.as_deref(), Some("10.244.1.3"));
    assert_eq!(world.status("a2").pod_ip.as_deref(), Some("10.244.1.2"));
    world.create(pod("c", json!({})));
    assert_eq!(world.status("c").pod_ip.as_deref(), Some("10.244.1.4"));
}

#[test]
fn a_status_that_others_changed_is_told_again() {
    let mut world = World::new();
    world.create(pod("a", json!({})));
    // The node lifecycle controller, while the node could not be heard.
    let stored = world.api.get_mut("a").unwrap();
    for condition in stored.status.as_mut().unwrap().conditions.iter_mut().flatten() {
        if condition.type_ == "Ready" {
            condition.status = "False".into();
        }
    }
    let seen = stored.clone();
    world.node.apply(seen, world.now);
    world.settle();
    assert!(!ready(&world.status("a")), "not at once: what is seen may be old");
    world.pass(3);
    assert!(ready(&world.status("a")));
}

#[derive(Clone, Debug)]
enum Step {
    Create { finite: bool, host: bool },
    Delete { which: usize, grace: i64 },
    Pass(i64),
    Restart,
    Fail(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (any::<bool>(), any::<bool>()).prop_map(|(finite, host)| Step::Create { finite, host }),
        3 => (0..8usize, prop_oneof![Just(0), Just(1), Just(30)])
            .prop_map(|(which, grace)| Step::Delete { which, grace }),
        3 => (0..12i64).prop_map(Step::Pass),
        1 => Just(Step::Restart),
        1 => (1..4usize).prop_map(Step::Fail),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// At every moment no two pods share an address and no pod that is over comes back; in the end all that were deleted
    /// are gone, all others run or are over, and a quiet node writes nothing.
    #[test]
    fn pods_come_and_go_whatever_happens(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        let (mut made, mut deleted, mut over) = (0, BTreeSet::new(), BTreeSet::new());
        for step in steps {
            match step {
                Step::Create { finite, host } => {
                    made += 1;
                    let policy = if finite { "OnFailure" } else { "Always" };
                    world.create(pod(
                        &format!("p{made}"),
                        json!({"spec": {"restartPolicy": policy, "hostNetwork": host}}),
                    ));
                }
                Step::Delete { which, grace } => {
                    let chosen = world.api.keys().nth(which).cloned();
                    if let Some(uid) = chosen {
                        world.delete(&uid, grace);
                        deleted.insert(uid);
                    }
                }
                Step::Pass(seconds) => world.pass(seconds),
                Step::Restart => world.restart(),
                Step::Fail(count) => world.failing = count,
            }
            let mut addresses = BTreeSet::new();
            for (uid, pod) in &world.api {
                let status = world.status(uid);
                let phase = status.phase.clone().unwrap_or_default();
                prop_assert!(!over.contains(uid) || ["Succeeded", "Failed"].contains(&phase.as_str()));
                if phase == "Running" && !naming::host_network(pod) {
                    prop_assert!(addresses.insert(status.pod_ip.clone()), "{uid} shares an address");
                }
                if ["Succeeded", "Failed"].contains(&phase.as_str()) {
                    over.insert(uid.clone());
                }
            }
        }
        world.failing = 0;
        world.pass(120);
        for uid in world.api.keys() {
            prop_assert!(!deleted.contains(uid), "{uid} was deleted");
            let phase = world.phase(uid);
            prop_assert!(["Running", "Succeeded"].contains(&phase.as_str()), "{uid} is {phase}");
        }
        let left: BTreeSet<&str> = world.node.uids().collect();
        prop_assert_eq!(left, world.api.keys().map(String::as_str).collect::<BTreeSet<_>>());
        prop_assert!(world.node.turn(world.now).writes.is_empty());
    }
}
