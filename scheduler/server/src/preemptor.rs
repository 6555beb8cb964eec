//! Makes room: marks and deletes the victims, then notes on the pod where it waits for them to leave.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use keelson_scheduler_core::PodInfo;
use keelson_scheduler_core::preemption::{Preemption, Victim};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use tracing::{info, warn};

use crate::reporter::Reporter;

/// Carries a preemption out. A victim that is already gone is fine; other failures are logged, the pod will be tried
/// again anyway.
pub async fn preempt(client: Client, reporter: Reporter, pod: Arc<PodInfo>, plan: Preemption) {
    for victim in &plan.victims {
        match evict(&client, &pod, victim).await {
            Ok(()) => {
                info!(victim = %format!("{}/{}", victim.namespace, victim.name), pod = pod.key(), node = plan.node, "preempted");
                reporter.preempted(victim, &pod, &plan.node);
            }
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
            Err(error) => {
                warn!(%error, victim = victim.name, pod = pod.key(), "preempting: will be tried again")
            }
        }
    }
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let patch = json!({"metadata": {"uid": pod.uid}, "status": {"nominatedNodeName": plan.node}});
    if let Err(error) = pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        warn!(%error, pod = pod.key(), "noting the nominated node");
    }
}

async fn evict(client: &Client, pod: &PodInfo, victim: &Victim) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &victim.namespace);
    let condition = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [{
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": format!("{}: preempting to accommodate a higher priority pod", pod.scheduler_name),
        "lastTransitionTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    }]}});
    pods.patch_status(&victim.name, &PatchParams::default(), &Patch::Strategic(condition)).await?;
    let params = DeleteParams::default()
        .preconditions(Preconditions { uid: Some(victim.uid.clone()), resource_version: None });
    pods.delete(&victim.name, &params).await?;
    Ok(())
}
