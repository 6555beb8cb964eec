//! Models of the shipped reconcilers, and what their scenarios share.

pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod garbage;
pub mod job;
pub mod namespaces;
pub mod replicaset;
pub mod statefulset;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use keelson_controllers_core::world::World;
use keelson_controllers_core::{Key, Object, pods};
use serde_json::{Value, json};

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

/// The kubelet's part: what is being deleted goes, everything else runs and is ready.
pub fn run_pod(world: &mut World, key: &Key) {
    let Some(pod) = world.get::<Pod>(key) else { return };
    if pod.is_deleting() {
        if pod.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
            world.remove::<Pod>(key);
        }
        return;
    }
    if pods::is_ready(&pod) || pods::is_finished(&pod) {
        return;
    }
    let now = world.now.to_string();
    let ready = json!({
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
    });
    world.edit::<Pod>(key, |pod| {
        pod.spec.get_or_insert_default().node_name.get_or_insert("n1".into());
        pod.status = Some(serde_json::from_value::<PodStatus>(ready).expect("a sound status"));
    });
}

/// A pod ends, well or not, unless it has ended.
pub fn end_pod(world: &mut World, key: &Key, phase: &str, code: i32) {
    let lives = world.get::<Pod>(key).is_some_and(|pod| pods::is_active(&pod));
    if !lives {
        return;
    }
    let at = world.now.to_string();
    let state = json!({"terminated": {"exitCode": code, "finishedAt": at}});
    let container = json!({
        "name": "c", "ready": false, "restartCount": 0, "image": "v1", "imageID": "", "state": state,
    });
    let status = json!({"phase": phase, "containerStatuses": [container]});
    world.edit::<Pod>(key, |pod| {
        pod.status = Some(serde_json::from_value::<PodStatus>(status).expect("a sound status"));
    });
}

/// A user deletes a pod that stays otherwise.
fn delete_pod(world: &mut World, key: &Key) {
    let stays = world.get::<Pod>(key).is_some_and(|pod| pods::is_active(&pod));
    if stays {
        let at = world.now;
        world.edit::<Pod>(key, |pod| {
            pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
        });
    }
}

fn image(pod: &Pod) -> &str {
    let spec = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    spec.and_then(|container| container.image.as_deref()).unwrap_or_default()
}

fn active(world: &World) -> Vec<Pod> {
    world.list::<Pod>().into_iter().filter(pods::is_active).collect()
}

fn ready(pods: &[Pod]) -> usize {
    pods.iter().filter(|pod| pods::is_ready(pod)).count()
}

/// All active pods are ready ones of this template, and there are so many; nothing else is left.
fn all_run(world: &World, many: usize, template: &str) -> Result<(), String> {
    let (all, active) = (world.list::<Pod>(), active(world));
    let right = active.iter().filter(|pod| image(pod) == template && pods::is_ready(pod)).count();
    if right == many && all.len() == many {
        return Ok(());
    }
    Err(format!("{} pods, {} active, {right} of {many} ready with {template}", all.len(), active.len()))
}
