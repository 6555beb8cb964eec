//! Scripts and property tests: reconcilers against a `World`.

mod daemonsets;
mod deployments;
mod jobs;
mod others;
mod replicasets;
mod services;
mod statefulsets;

use serde_json::{Value, json};

use crate::object::{Key, Object};
use crate::world::{Refused, World};
use crate::{Plan, Reconciler};

fn from<K: Object>(value: Value) -> K {
    serde_json::from_value(value).expect("the test's object is well-formed")
}

/// Reconciles on the newest view and runs the plan.
fn step(world: &mut World, reconciler: &dyn Reconciler, key: &Key) -> Result<Plan, Refused> {
    let plan = plan(world, reconciler, key);
    world.run(&plan).map(|()| plan)
}

fn plan(world: &World, reconciler: &dyn Reconciler, key: &Key) -> Plan {
    let view = world.view(&reconciler.watches(), world.version());
    reconciler.reconcile(key, &view, world.now)
}

/// Steps until nothing more is planned; panics if that does not come.
fn settle(world: &mut World, reconciler: &dyn Reconciler, key: &Key) {
    for _ in 0..50 {
        if step(world, reconciler, key).is_ok_and(|plan| plan.is_empty()) {
            return;
        }
    }
    panic!("{} does not settle on {key}", reconciler.name());
}

fn template(image: &str) -> Value {
    json!({ "metadata": { "labels": { "app": "a" } }, "spec": { "containers": [{ "name": "c", "image": image }] } })
}

/// The kubelet's part: what is not being deleted runs and is ready, what is being deleted goes.
fn run_pods(world: &mut World) {
    for pod in world.list::<k8s_openapi::api::core::v1::Pod>() {
        run_pod(world, &Key::of(&pod));
    }
}

fn run_pod(world: &mut World, key: &Key) {
    use k8s_openapi::api::core::v1::{Pod, PodStatus};
    let Some(pod) = world.get::<Pod>(key) else { return };
    if pod.is_deleting() {
        return world.remove::<Pod>(key);
    }
    if crate::pods::is_ready(&pod) {
        return;
    }
    let now = world.now.to_string();
    let ready = json!({ "phase": "Running", "podIP": "10.244.0.9", "podIPs": [{ "ip": "10.244.0.9" }],
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": now }] });
    world.edit::<Pod>(key, |pod| {
        pod.spec.get_or_insert_default().node_name.get_or_insert("n1".into());
        pod.status = Some(serde_json::from_value::<PodStatus>(ready).expect("a status"));
    });
}
