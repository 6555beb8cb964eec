//! Statuses at chosen moments.

use serde_json::json;

use super::*;
use crate::pod::memory::Memory;
use crate::pod::observed::Sandbox;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn pod(extra: serde_json::Value) -> Pod {
    let mut spec = json!({"containers": [{"name": "x", "image": "i:1"}]});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u", "generation": 3}, "spec": spec}))
        .unwrap()
}

fn running(name: &str) -> Observed {
    let container = Container {
        id: "c1".into(),
        sandbox: "s1".into(),
        name: name.into(),
        attempt: 0,
        phase: ContainerPhase::Running,
        created: at(0),
        started: Some(at(1)),
        finished: None,
        exit_code: 0,
        reason: String::new(),
        message: String::new(),
        image: "i:1".into(),
        image_id: "sha".into(),
        hash: String::new(),
    };
    let sandbox =
        Sandbox { id: "s1".into(), attempt: 0, ready: true, created: at(0), ips: vec!["10.1.1.1".into()] };
    Observed { sandboxes: vec![sandbox], containers: vec![container] }
}

fn condition(status: &PodStatus, kind: &str) -> PodCondition {
    status.conditions.iter().flatten().find(|c| c.type_ == kind).cloned().unwrap()
}

fn facts() -> NodeFacts {
    NodeFacts { host_ips: vec!["192.0.2.1".into()], runtime: "containerd".into() }
}

#[test]
fn a_running_pod_is_ready_with_addresses_and_keeps_its_times() {
    let mut pod = pod(json!({}));
    let status = pod_status(&pod, &Memory::default(), &running("x"), &facts(), at(2));
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!((status.pod_ip.as_deref(), status.host_ip.as_deref()), (Some("10.1.1.1"), Some("192.0.2.1")));
    assert_eq!(status.observed_generation, Some(3));
    assert_eq!(condition(&status, "Ready").status, "True");
    let shown = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(shown.container_id.as_deref(), Some("containerd://c1"));
    assert!(shown.ready && shown.started == Some(true));
    pod.status = Some(status.clone());
    let later = pod_status(&pod, &Memory::default(), &running("x"), &facts(), at(50));
    assert_eq!(later, status, "nothing changed, so nothing changes");
}

#[test]
fn before_anything_runs_the_pod_is_pending_and_says_why() {
    let pod = pod(json!({"initContainers": [{"name": "a"}]}));
    let status = pod_status(&pod, &Memory::default(), &Observed::default(), &facts(), at(0));
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    let initialized = condition(&status, "Initialized");
    assert_eq!(initialized.status, "False");
    assert_eq!(initialized.message.as_deref(), Some("containers with incomplete status: [a]"));
    assert_eq!(waiting_reason(&status).as_deref(), Some("a: PodInitializing"));
}

#[test]
fn readiness_gates_hold_ready_back() {
    let mut pod = pod(json!({"readinessGates": [{"conditionType": "example.com/ok"}]}));
    let status = pod_status(&pod, &Memory::default(), &running("x"), &facts(), at(2));
    assert_eq!(condition(&status, "Ready").reason.as_deref(), Some("ReadinessGatesNotReady"));
    assert_eq!(condition(&status, "ContainersReady").status, "True");
    pod.status =
        serde_json::from_value(json!({"conditions": [{"type": "example.com/ok", "status": "True"}]}))
            .unwrap();
    let open = pod_status(&pod, &Memory::default(), &running("x"), &facts(), at(2));
    assert_eq!(condition(&open, "Ready").status, "True");
}

#[test]
fn what_the_runtime_forgot_comes_from_the_api() {
    let mut pod = pod(json!({}));
    pod.status = serde_json::from_value(json!({"phase": "Running", "containerStatuses": [{"name": "x", "image": "i:1",
        "imageID": "", "ready": true, "restartCount": 4, "containerID": "containerd://old", "state": {"running": {}}}]}))
    .unwrap();
    let memory = Memory::adopt(&pod);
    let status = pod_status(&pod, &memory, &Observed::default(), &facts(), at(0));
    let shown = &status.container_statuses.unwrap()[0];
    assert_eq!(shown.restart_count, 4);
    let ended = shown.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(ended.reason.as_deref(), Some("ContainerStatusUnknown"));
}

#[test]
fn a_host_network_pod_has_the_nodes_address() {
    let pod = pod(json!({"hostNetwork": true}));
    let status = pod_status(&pod, &Memory::default(), &running("x"), &facts(), at(0));
    assert_eq!(status.pod_ip.as_deref(), Some("192.0.2.1"));
}
