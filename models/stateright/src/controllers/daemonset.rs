//! The shipped DaemonSet reconciler in the cluster of `cluster.rs`, rolling out a new template while a node goes or comes
//! and a pod fails.
//!
//! Shown beside what holds of every scenario: on no node more than one pod that stays (C12); in the end each node has one
//! of the new template, and none is meant for a node that is gone.
//!
//! Omitted: taints and selectors (property-tested; they only say which nodes count), maxSurge (likewise), and the
//! scheduler, which binds such a pod to the node it is meant for or not at all.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_controllers_core::daemonset::DaemonSets;
use keelson_controllers_core::world::World;
use keelson_controllers_core::{Key, Object, pods};
use serde_json::json;

use super::{active, end_pod, image, run_pod, template};
use crate::catalogue::{Bound, Report};
use crate::cluster::{Scenario, keys_of, object};

/// Runs the model.
pub fn run(bound: Bound) -> Report {
    scenario(if bound == Bound::Deep { 2 } else { 1 }).run(bound)
}

fn key() -> Key {
    Key::new("d", "log")
}

/// The node that a pod is meant for.
fn meant_for(pod: &Pod) -> String {
    let value = serde_json::to_value(pod).unwrap_or_default();
    let terms = &value["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let field = &terms["nodeSelectorTerms"][0]["matchFields"][0]["values"][0];
    field.as_str().unwrap_or_default().to_owned()
}

fn by_node(world: &World) -> BTreeMap<String, Vec<Pod>> {
    let mut nodes: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
    for pod in active(world) {
        nodes.entry(meant_for(&pod)).or_default().push(pod);
    }
    nodes
}

/// Scheduler and kubelet.
fn bind_and_run(world: &mut World, key: &Key) {
    let Some(pod) = world.get::<Pod>(key) else { return };
    let node = meant_for(&pod);
    let there = world.get::<Node>(&Key::cluster(&node)).is_some();
    if !there && !pod.is_deleting() {
        return;
    }
    if !pod.is_deleting() && pods::node_name(&pod).is_empty() {
        return world.edit::<Pod>(key, |pod| pod.spec.get_or_insert_default().node_name = Some(node));
    }
    run_pod(world, key);
}

fn node(name: &str) -> Node {
    object(json!({"metadata": {"name": name}, "spec": {}}))
}

fn one_each(world: &World) -> Result<(), String> {
    let nodes = world.list::<Node>().len();
    let placed = by_node(world);
    let right = |pods: &Vec<Pod>| pods.len() == 1 && image(&pods[0]) == "v2" && pods::is_ready(&pods[0]);
    let strays = placed.keys().any(|name| world.get::<Node>(&Key::cluster(name)).is_none());
    if placed.len() == nodes && placed.values().all(right) && !strays && world.list::<Pod>().len() == nodes {
        return Ok(());
    }
    let names: Vec<(&String, usize)> = placed.iter().map(|(name, pods)| (name, pods.len())).collect();
    Err(format!("{nodes} nodes, pods {names:?} of {}", world.list::<Pod>().len()))
}

/// A set on two nodes (`more`: three) whose template has just changed.
pub fn scenario(more: u8) -> Scenario {
    let set: DaemonSet = object(json!({
        "metadata": {"name": "log", "namespace": "d", "generation": 1},
        "spec": {
            "selector": {"matchLabels": {"app": "a"}}, "template": template("v1"),
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
        },
    }));
    let mut scenario = Scenario::new("controllers-daemonset").object(&set).object(&node("n0"));
    for number in 1..=more {
        scenario = scenario.object(&node(&format!("n{number}")));
    }
    scenario
        .controller(DaemonSets, |_| vec![key()])
        .fair("a pod is bound, starts or stops", keys_of::<Pod>, bind_and_run)
        .desired(|world| if by_node(world).len() > 1 { Ok(()) } else { Err("not everywhere".to_owned()) })
        .settled()
        .then(|world| {
            world.edit::<DaemonSet>(&key(), |set| {
                if let Some(spec) = set.spec.as_mut() {
                    spec.template = serde_json::from_value(template("v2")).expect("a sound template");
                }
            });
        })
        .trouble("a node goes", 1, keys_of::<Node>, |world, key| world.remove::<Node>(key))
        .trouble("a pod fails", 1, keys_of::<Pod>, |world, key| end_pod(world, key, "Failed", 1))
        .always(|world| match by_node(world).iter().find(|(_, pods)| pods.len() > 1) {
            Some((node, pods)) => Err(format!("C12 {} pods on {node}", pods.len())),
            None => Ok(()),
        })
        .desired(one_each)
        .sometimes("a pod is meant for a node that is gone", |world| {
            by_node(world).keys().any(|name| world.get::<Node>(&Key::cluster(name)).is_none())
        })
        .sometimes("both templates run at once", |world| {
            let pods = active(world);
            ["v1", "v2"].iter().all(|wanted| pods.iter().any(|pod| image(pod) == *wanted))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_node_has_two_and_each_has_one_in_the_end() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 15_922, "the reach changed: look why, then set the new count");
    }
}
