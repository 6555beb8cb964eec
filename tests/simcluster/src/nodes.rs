//! A node without containers: registers itself, renews its lease, starts the pods bound to it and, when they are being
//! deleted, stops them and confirms. What a kubelet promises, as far as the control plane can tell.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// Between two looks at everything.
const PERIOD: Duration = Duration::from_millis(700);
/// Between two renewals of the lease and the status.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Lives until it is dropped: a node whose machine stops says nothing any more.
pub async fn live(client: kube::Client, name: String, pods: u32, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut beat = tokio::time::Instant::now();
    let mut registered = false;
    // Pod uid -> when it is to be stopped; a container takes its time.
    let mut stopping: BTreeMap<String, tokio::time::Instant> = BTreeMap::new();
    loop {
        if !registered || beat <= tokio::time::Instant::now() {
            registered = heartbeat(&client, &name, pods).await.is_ok();
            beat = tokio::time::Instant::now() + HEARTBEAT;
        }
        if registered {
            // What cannot be read or written now is looked at again.
            let _ = look(&client, &name, &mut random, &mut stopping).await;
        }
        tokio::time::sleep(PERIOD + Duration::from_millis(random.random_range(0..300))).await;
    }
}

async fn heartbeat(client: &kube::Client, name: &str, pods: u32) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    if nodes.get_opt(name).await?.is_none() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        }))
        .map_err(kube::Error::SerdeError)?;
        nodes.create(&PostParams::default(), &node).await?;
    }
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let room = json!({"cpu": pods.to_string(), "memory": "8Gi", "pods": "110"});
    let status = json!({"status": {
        "capacity": room, "allocatable": room,
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        }],
    }});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let renew_time = Some(MicroTime(Timestamp::now()));
    match leases.get_opt(name).await? {
        Some(mut lease) => {
            lease.spec.get_or_insert_default().renew_time = renew_time;
            leases.replace(name, &PostParams::default(), &lease).await?;
        }
        None => {
            let spec = LeaseSpec {
                holder_identity: Some(name.to_owned()),
                lease_duration_seconds: Some(40),
                renew_time,
                ..LeaseSpec::default()
            };
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            leases.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await?;
        }
    }
    Ok(())
}

async fn look(
    client: &kube::Client,
    name: &str,
    random: &mut SmallRng,
    stopping: &mut BTreeMap<String, tokio::time::Instant>,
) -> Result<(), kube::Error> {
    let all: Api<Pod> = Api::all(client.clone());
    let mine = all.list(&ListParams::default().fields(&format!("spec.nodeName={name}"))).await?;
    for pod in &mine {
        let meta = &pod.metadata;
        let (Some(pod_name), Some(namespace), Some(uid)) = (&meta.name, &meta.namespace, &meta.uid) else {
            continue;
        };
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        if meta.deletion_timestamp.is_some() {
            let wait = Duration::from_millis(random.random_range(0..3_000));
            let at = *stopping.entry(uid.clone()).or_insert_with(|| tokio::time::Instant::now() + wait);
            if at <= tokio::time::Instant::now() {
                let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
                let now = DeleteParams {
                    grace_period_seconds: Some(0),
                    preconditions: Some(preconditions),
                    ..DeleteParams::default()
                };
                pods.delete(pod_name, &now).await?;
                stopping.remove(uid);
            }
            continue;
        }
        let ready = pod
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_ref())
            .is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
        if !ready && random.random_bool(0.5) {
            start(&pods, pod_name, uid, random).await?;
        }
    }
    Ok(())
}

async fn start(pods: &Api<Pod>, name: &str, uid: &str, random: &mut SmallRng) -> Result<(), kube::Error> {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let address = format!("10.244.{}.{}", random.random_range(0..255), random.random_range(1..255));
    let condition = |kind: &str| -> Value {
        json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": now})
    };
    let status = json!({"metadata": {"uid": uid}, "status": {
        "phase": "Running", "startTime": now, "podIP": address, "podIPs": [{"ip": address}],
        "conditions": [condition("Initialized"), condition("Ready"), condition("ContainersReady"), condition("PodScheduled")],
    }});
    pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await.map(|_| ())
}
