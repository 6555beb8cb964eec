//! Writes pods' statuses and confirmed deletions to the API.
//!
//! Every write names the pod's uid, so a successor of the same name is never touched. A pod that is gone is no error.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use keelson_nodeagent_core::pod::naming;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};

/// Publishes a status.
pub async fn status(client: &kube::Client, pod: &Pod, status: &PodStatus) -> Result<(), String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), naming::namespace(pod));
    let patch = json!({"metadata": {"uid": naming::uid(pod)}, "status": patch_of(status)?});
    let name = naming::name(pod);
    match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(e)) if e.code == 404 => Ok(()),
        // Another pod has the name now: ours is gone.
        Err(kube::Error::Api(e)) if e.code == 409 && e.message.contains("uid") => Ok(()),
        Err(e) => Err(format!("cannot patch the status of pod {name}: {e}")),
    }
}

/// Shows a static pod in the API: its mirror is made or replaced, then gets the status.
pub async fn mirror(
    client: &kube::Client,
    node_name: &str,
    pod: &Pod,
    shown: &PodStatus,
) -> Result<(), String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), naming::namespace(pod));
    let name = naming::name(pod);
    let failed = |e: kube::Error| format!("cannot mirror static pod {name}: {e}");
    let found = api.get_opt(name).await.map_err(failed)?;
    let current = match found {
        Some(found)
            if naming::annotation(&found, naming::ANNOTATION_CONFIG_MIRROR) == Some(naming::uid(pod)) =>
        {
            found
        }
        other => {
            if let Some(stale) = other.filter(naming::is_mirror) {
                confirm_deletion(client, &stale).await?;
            }
            api.create(&PostParams::default(), &mirror_of(client, node_name, pod).await?)
                .await
                .map_err(failed)?
        }
    };
    status(client, &current, shown).await
}

async fn mirror_of(client: &kube::Client, node_name: &str, pod: &Pod) -> Result<Pod, String> {
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client.clone());
    let node = nodes.get(node_name).await.map_err(|e| format!("cannot read node {node_name}: {e}"))?;
    let mut mirror = pod.clone();
    mirror.status = None;
    let hash = mirror.metadata.uid.take().unwrap_or_default();
    mirror.metadata.annotations.get_or_insert_default().insert(naming::ANNOTATION_CONFIG_MIRROR.into(), hash);
    mirror.metadata.owner_references = node.metadata.uid.map(|uid| {
        vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: node_name.to_string(),
            uid,
            controller: Some(true),
            ..OwnerReference::default()
        }]
    });
    Ok(mirror)
}

/// Takes a static pod's mirror away.
pub async fn remove_mirror(client: &kube::Client, pod: &Pod) -> Result<(), String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), naming::namespace(pod));
    let found = api.get_opt(naming::name(pod)).await.map_err(|e| format!("cannot read a mirror pod: {e}"))?;
    match found {
        Some(found)
            if naming::annotation(&found, naming::ANNOTATION_CONFIG_MIRROR) == Some(naming::uid(pod)) =>
        {
            confirm_deletion(client, &found).await
        }
        _ => Ok(()),
    }
}

/// Fields that are not set any more are nulled; lists of addresses are replaced, conditions merged by type.
fn patch_of(status: &PodStatus) -> Result<Value, String> {
    let mut value = serde_json::to_value(status).map_err(|e| e.to_string())?;
    let Some(map) = value.as_object_mut() else { return Err("a status is not an object".into()) };
    for key in ["podIP", "podIPs", "reason", "message"] {
        map.entry(key).or_insert(Value::Null);
    }
    // Merged by type: what is left out would stay as it was.
    for condition in map.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(condition) = condition.as_object_mut() {
            for key in ["reason", "message"] {
                condition.entry(key).or_insert(Value::Null);
            }
        }
    }
    for key in ["podIPs", "hostIPs"] {
        if let Some(Value::Array(list)) = map.get_mut(key) {
            list.push(json!({"$patch": "replace"}));
        }
    }
    Ok(value)
}

/// Deletes the pod from the API for good: its containers are gone from this node.
pub async fn confirm_deletion(client: &kube::Client, pod: &Pod) -> Result<(), String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), naming::namespace(pod));
    let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    match api.delete(naming::name(pod), &parameters).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => Ok(()),
        Err(e) => Err(format!("cannot confirm the deletion of pod {}: {e}", naming::name(pod))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_condition_no_longer_says_is_taken_back() {
        let status: PodStatus = serde_json::from_value(
            json!({"conditions": [{"type": "Ready", "status": "True"}], "podIPs": [{"ip": "10.0.0.1"}]}),
        )
        .unwrap();
        let patch = patch_of(&status).unwrap();
        assert_eq!(patch["conditions"][0]["message"], Value::Null);
        assert!(patch["conditions"][0].as_object().unwrap().contains_key("reason"));
        assert_eq!(patch["podIPs"][1]["$patch"], "replace");
        assert!(patch.as_object().unwrap().contains_key("message"));
    }
}
