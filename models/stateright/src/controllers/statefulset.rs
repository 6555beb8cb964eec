//! The shipped StatefulSet reconciler in the cluster of `cluster.rs`, from its first pod to a new template, while a pod
//! fails and a user changes the size.
//!
//! Shown beside what holds of every scenario: a pod is made only where all with a lower number were ready in a view that
//! the controller may have had, and the rollout takes one pod at a time (C10); a bound pod vanishes only when its node
//! has said that it stopped, so that no name runs twice (C3).
//!
//! Omitted: claims and partitions (property-tested), `Parallel` (no order to keep), minReadySeconds (time stands still).

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use keelson_controllers_core::statefulset::StatefulSets;
use keelson_controllers_core::world::World;
use keelson_controllers_core::{Gvr, Key, Object, pods};
use serde_json::{Value, json};

use super::{all_run, end_pod, run_pod, template};
use crate::catalogue::{Bound, Report};
use crate::cluster::{Scenario, keys_of, object};

/// How many writes a view may lag behind.
const LAG: usize = 2;

/// Runs the model.
pub fn run(bound: Bound) -> Report {
    scenario(if bound == Bound::Deep { 3 } else { 2 }).run(bound)
}

fn key() -> Key {
    Key::new("d", "web")
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let ready =
        conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
    ready && pod["metadata"]["deletionTimestamp"].is_null()
}

/// C10 and C3 of the newest write.
fn order(world: &World) -> Result<(), String> {
    let newest = world.version();
    let Some((resource, before, after)) = world.change(newest) else { return Ok(()) };
    if resource.resource != "pods" {
        return Ok(());
    }
    let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    match (before, after) {
        (None, Some(pod)) => in_turn(world, &resource, &name(&pod), newest),
        (Some(pod), None) => gone_in_peace(&pod, &name(&pod)),
        _ => Ok(()),
    }
}

fn in_turn(world: &World, resource: &Gvr, name: &str, newest: usize) -> Result<(), String> {
    let number: u32 = name.rsplit('-').next().and_then(|text| text.parse().ok()).unwrap_or(0);
    let all_ready = |version: usize| {
        (0..number).all(|lower| {
            let lower = Key::new("d", &format!("web-{lower}"));
            world.value_at(resource, &lower, version).is_some_and(|pod| is_ready(&pod))
        })
    };
    let seen = (newest - 1).saturating_sub(LAG)..newest;
    if seen.clone().any(all_ready) {
        return Ok(());
    }
    Err(format!("C10 {name} is made and in no view of late the ones before it were ready"))
}

fn gone_in_peace(pod: &Arc<Value>, name: &str) -> Result<(), String> {
    let bound = pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    if bound && pod["metadata"]["deletionTimestamp"].is_null() {
        return Err(format!("C3 {name} vanishes before its node has stopped it"));
    }
    Ok(())
}

/// C10: of the pods that run, one at a time is on its way out.
fn one_at_a_time(world: &World) -> Result<(), String> {
    let pods = world.list::<Pod>();
    let leaving = pods.iter().filter(|pod| pod.is_deleting() && !pods::is_finished(pod)).count();
    if leaving > 1 { Err(format!("C10 {leaving} pods leave at once")) } else { Ok(()) }
}

/// A set of so many pods whose template has just changed; somebody may make it smaller by one, and a pod may fail.
pub fn scenario(replicas: i32) -> Scenario {
    let set: StatefulSet = object(json!({
        "metadata": {"name": "web", "namespace": "d", "generation": 1},
        "spec": {
            "replicas": replicas, "serviceName": "web",
            "selector": {"matchLabels": {"app": "a"}},
            "template": template("v1"),
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        },
    }));
    let size =
        |world: &World| world.get::<StatefulSet>(&key()).and_then(|set| set.spec?.replicas).unwrap_or(0);
    Scenario::new("controllers-statefulset")
        .lag(LAG)
        .object(&set)
        .controller(StatefulSets, |_| vec![key()])
        .fair("a pod starts or stops", keys_of::<Pod>, run_pod)
        .desired(move |world| all_run(world, size(world) as usize, "v1"))
        .settled()
        .then(|world| {
            world.edit::<StatefulSet>(&key(), |set| {
                if let Some(spec) = set.spec.as_mut() {
                    spec.template = serde_json::from_value(template("v2")).expect("a sound template");
                }
            });
        })
        .trouble("a pod fails", 1, keys_of::<Pod>, |world, key| end_pod(world, key, "Failed", 1))
        .trouble(
            "a user wants one pod less",
            1,
            |_| vec![key()],
            |world, key| {
                world.edit::<StatefulSet>(key, |set| {
                    if let Some(replicas) = set.spec.as_mut().and_then(|spec| spec.replicas.as_mut()) {
                        *replicas -= 1;
                    }
                });
            },
        )
        .always(order)
        .always(one_at_a_time)
        .desired(move |world| all_run(world, size(world) as usize, "v2"))
        .sometimes("all pods are there and one has failed", |world| {
            let all = world.list::<Pod>();
            all.len() > 1 && all.iter().any(pods::is_finished)
        })
        .sometimes("the first pod is the last to be replaced", |world| {
            let pods = world.list::<Pod>();
            pods.len() > 1
                && super::image(&pods[0]) == "v1"
                && pods[1..].iter().all(|pod| super::image(pod) == "v2")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_come_and_go_in_their_order_and_by_their_nodes_word() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 5_065, "the reach changed: look why, then set the new count");
    }
}
