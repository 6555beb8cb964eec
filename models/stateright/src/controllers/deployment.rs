//! The shipped Deployment and ReplicaSet reconcilers rolling out a new template together, in the cluster of `cluster.rs`:
//! pods start and stop in any order, and one that terminates may have been ready.
//!
//! Shown beside what holds of every scenario: never more active pods than replicas + maxSurge, never fewer ready ones
//! than replicas - maxUnavailable (C7); a set that was looked at never reports more available pods than are active.
//! Deadlines are omitted: time stands still, and none is missed.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use keelson_controllers_core::Key;
use keelson_controllers_core::deployment::Deployments;
use keelson_controllers_core::replicaset::ReplicaSets;
use keelson_controllers_core::world::World;
use serde_json::json;

use super::{active, all_run, ready, run_pod, template};
use crate::catalogue::{Bound, Report};
use crate::cluster::{Scenario, keys_of, object};

/// Runs the model.
pub fn run(bound: Bound) -> Report {
    let replicas = if bound == Bound::Deep { 2 } else { 1 };
    scenario(replicas).run(bound)
}

fn key() -> Key {
    Key::new("d", "web")
}

fn sizes(world: &World) -> Vec<i32> {
    let size = |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
    world.list::<ReplicaSet>().iter().map(size).collect()
}

/// C7, and what a set says of its pods: available are at most those that are active.
fn fence(world: &World, replicas: usize) -> Result<(), String> {
    let pods = active(world);
    let (many, ready) = (pods.len(), ready(&pods));
    if many > replicas + 1 || ready < replicas {
        return Err(format!("C7 {many} active pods, {ready} ready, of {replicas} with a surge of 1"));
    }
    for set in world.list::<ReplicaSet>() {
        let status = set.status.unwrap_or_default();
        if status.available_replicas.unwrap_or(0) > status.replicas {
            return Err(format!(
                "C7 {:?} of {} pods are available",
                status.available_replicas, status.replicas
            ));
        }
    }
    Ok(())
}

/// The old template is all there, and the new one is asked for.
pub fn scenario(replicas: usize) -> Scenario {
    let deployment: Deployment = object(json!({
        "metadata": {"name": "web", "namespace": "d", "generation": 1},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "a"}},
            "template": template("v1"),
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        },
    }));
    Scenario::new("controllers-deployment")
        .object(&deployment)
        .controller(Deployments, |_| vec![key()])
        .controller(ReplicaSets, keys_of::<ReplicaSet>)
        .fair("a pod starts or stops", keys_of::<Pod>, run_pod)
        .desired(move |world| all_run(world, replicas, "v1"))
        .settled()
        .then(|world| {
            world.edit::<Deployment>(&key(), |deployment| {
                if let Some(spec) = deployment.spec.as_mut() {
                    spec.template = serde_json::from_value(template("v2")).expect("a sound template");
                }
            });
        })
        .desired(move |world| all_run(world, replicas, "v2"))
        .always(move |world| fence(world, replicas))
        .sometimes("both templates run at once", |world| {
            let sizes: Vec<i32> = world
                .list::<ReplicaSet>()
                .iter()
                .map(|set| set.status.as_ref().map_or(0, |status| status.replicas))
                .collect();
            sizes.len() == 2 && sizes.iter().all(|size| *size > 0)
        })
        .sometimes("the old set is empty and the new one full", move |world| {
            let sizes = sizes(world);
            sizes.len() == 2 && sizes.contains(&0) && sizes.contains(&(replicas as i32)) && {
                let pods = active(world);
                pods.len() == replicas && ready(&pods) == replicas
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_stays_within_its_fence_and_ends() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 390, "the reach changed: look why, then set the new count");
    }
}
