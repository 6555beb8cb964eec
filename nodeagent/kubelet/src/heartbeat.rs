//! The node's own objects: the Node (registration, status) and its Lease.
//!
//! Order: register, then a status every period if it changed or five minutes passed, and a lease renewal every ten seconds
//! whatever the status says. Ready needs both the runtime and its network. A quiet node writes nothing but its lease.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node as NodeObject, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeSpec, NodeStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use keelson_nodeagent_core::pod::eviction::{self, Pressure};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tracing::{info, warn};

use crate::context::Node;
use crate::stats;

pub const KUBELET_VERSION: &str = "v1.36.2";
const LEASE_SECONDS: i32 = 40;
const RENEW: Duration = Duration::from_secs(10);
const REPORT_ANYWAY: Duration = Duration::from_secs(300);
const IMAGES_SHOWN: usize = 50;

/// Registers, then keeps the Node's status fresh. Never returns.
pub async fn report(node: Arc<Node>, client: kube::Client) {
    let api: Api<NodeObject> = Api::all(client);
    let name = node.config.node_name.as_str();
    if node.config.register_node {
        register(name, &object(&node), &api).await;
    }
    let mut last: Option<(NodeStatus, Instant)> = None;
    let mut conditions: BTreeMap<String, (String, Timestamp)> = BTreeMap::new();
    loop {
        let now = Timestamp::now();
        let status = status(&node, &mut conditions, now).await;
        let quiet =
            last.as_ref().is_some_and(|(shown, at)| same(shown, &status) && at.elapsed() < REPORT_ANYWAY);
        if !quiet || !shows(&api, name, &status).await {
            match publish(name, &api, &status).await {
                Ok(()) => last = Some((status, Instant::now())),
                Err(kube::Error::Api(e)) if e.code == 404 && node.config.register_node => {
                    last = None;
                    register(name, &object(&node), &api).await;
                    continue;
                }
                Err(e) => warn!(error = %e, "node status not published, will be retried"),
            }
        }
        // Until ready, look more often: a new node should not wait a whole period.
        let ready = last.as_ref().is_some_and(|(s, _)| is_ready(s));
        tokio::time::sleep(if ready { node.config.status_period } else { Duration::from_secs(1) }).await;
    }
}

/// Whether the API shows these conditions: it may have been told `Unknown` while this node could not be heard, or have
/// lost the Node. When it does not answer, there is nothing to correct yet.
async fn shows(api: &Api<NodeObject>, name: &str, status: &NodeStatus) -> bool {
    let found = match api.get_opt(name).await {
        Ok(Some(found)) => found.status.and_then(|status| status.conditions).unwrap_or_default(),
        Ok(None) => return false,
        Err(_) => return true,
    };
    let own = status.conditions.as_deref().unwrap_or_default();
    own.iter().all(|own| found.iter().any(|c| c.type_ == own.type_ && c.status == own.status))
}

fn is_ready(status: &NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Equal but for heartbeat times.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let bare = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    bare(a) == bare(b)
}

/// Creates the Node, or brings the labels of the one that is there up to date. Tries until it is done.
pub async fn register(name: &str, object: &NodeObject, api: &Api<NodeObject>) {
    loop {
        match api.create(&PostParams::default(), object).await {
            Ok(_) => {
                info!(node = name, "node registered");
                return;
            }
            Err(kube::Error::Api(e)) if e.code == 409 => {
                let patch = json!({"metadata": {"labels": object.metadata.labels}});
                match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                    Ok(_) => return,
                    Err(e) => warn!(error = %e, "cannot bring the node's labels up to date"),
                }
            }
            Err(e) => warn!(error = %e, "cannot register the node, trying again"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The machine's architecture as Go spells it.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn object(node: &Node) -> NodeObject {
    let config = &node.config;
    let mut labels: BTreeMap<String, String> = config.labels.iter().cloned().collect();
    for (key, value) in [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch()),
    ] {
        labels.insert(key.into(), value.into());
    }
    let taints: Vec<Taint> = config
        .taints
        .iter()
        .map(|(key, value, effect)| Taint {
            key: key.clone(),
            value: (!value.is_empty()).then(|| value.clone()),
            effect: effect.clone(),
            time_added: None,
        })
        .collect();
    let attach = ("volumes.kubernetes.io/controller-managed-attach-detach".to_string(), "true".to_string());
    NodeObject {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels),
            annotations: Some([attach].into()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec { taints: (!taints.is_empty()).then_some(taints), ..NodeSpec::default() }),
        status: None,
    }
}

/// Writes a Node's status.
pub async fn publish(name: &str, api: &Api<NodeObject>, status: &NodeStatus) -> Result<(), kube::Error> {
    let patch = json!({"status": status});
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(|_| ())
}

async fn status(node: &Node, seen: &mut BTreeMap<String, (String, Timestamp)>, now: Timestamp) -> NodeStatus {
    let machine = &node.machine;
    let quantities = |pods: usize| -> BTreeMap<String, Quantity> {
        [
            ("cpu", machine.cpus.to_string()),
            ("memory", format!("{}Ki", machine.memory_bytes / 1024)),
            ("pods", pods.to_string()),
            ("ephemeral-storage", format!("{}Ki", machine.disk_bytes / 1024)),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_string(), Quantity(value)))
        .collect()
    };
    let pressure = eviction::pressure(&stats::signals(node), &node.config.thresholds);
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", node.config.node_ip.to_string()),
            address("Hostname", node.config.node_name.clone()),
        ]),
        capacity: Some(quantities(node.config.max_pods)),
        allocatable: Some(quantities(node.config.max_pods)),
        conditions: Some(conditions(node, pressure, seen, now).await),
        daemon_endpoints: node.config.bind.map(|bind| NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(bind.port()) }),
        }),
        images: images(node).await,
        node_info: Some(info_of(node)),
        ..NodeStatus::default()
    }
}

fn address(kind: &str, address: String) -> NodeAddress {
    NodeAddress { type_: kind.into(), address }
}

async fn conditions(
    node: &Node,
    pressure: Pressure,
    seen: &mut BTreeMap<String, (String, Timestamp)>,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let (ready, reason, message) = readiness(node).await;
    let calm = |bad: bool, yes: (&str, &str), no: (&str, &str)| {
        let (reason, message) = if bad { yes } else { no };
        (bad, reason.to_string(), message.to_string())
    };
    let memory = calm(
        pressure.memory,
        ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
        ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    );
    let disk = calm(
        pressure.disk,
        ("KubeletHasDiskPressure", "kubelet has disk pressure"),
        ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    );
    let pid = calm(
        pressure.pid,
        ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
        ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    );
    let all = [
        ("MemoryPressure", memory),
        ("DiskPressure", disk),
        ("PIDPressure", pid),
        ("Ready", (ready, reason, message)),
    ];
    all.into_iter()
        .map(|(kind, (on, reason, message))| {
            let value = if on { "True" } else { "False" };
            let entry = seen.entry(kind.to_string()).or_insert_with(|| (value.to_string(), now));
            if entry.0 != value {
                if kind == "Ready" {
                    let event = if on { "NodeReady" } else { "NodeNotReady" };
                    node.events.node(
                        false,
                        event,
                        format!("Node {} status is now: {event}", node.config.node_name),
                    );
                }
                *entry = (value.to_string(), now);
            }
            NodeCondition {
                type_: kind.into(),
                status: value.into(),
                reason: Some(reason),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: Some(Time(entry.1)),
            }
        })
        .collect()
}

async fn readiness(node: &Node) -> (bool, String, String) {
    let not_ready = |message: String| (false, "KubeletNotReady".to_string(), message);
    match node.cri.status().await {
        Err(e) => not_ready(format!("container runtime is down: {}", e.message())),
        Ok(conditions) => match conditions.iter().find(|c| !c.status) {
            Some(bad) => not_ready(format!("{} is false: {} {}", bad.r#type, bad.reason, bad.message)),
            None => (true, "KubeletReady".into(), "kubelet is posting ready status".into()),
        },
    }
}

async fn images(node: &Node) -> Option<Vec<ContainerImage>> {
    let mut images = node.cri.images().await.ok()?;
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let shown = images.into_iter().take(IMAGES_SHOWN).map(|image| ContainerImage {
        names: Some(image.repo_digests.into_iter().chain(image.repo_tags).collect()),
        size_bytes: i64::try_from(image.size).ok(),
    });
    Some(shown.collect())
}

fn info_of(node: &Node) -> NodeSystemInfo {
    let read = |path: &str| std::fs::read_to_string(path).map(|t| t.trim().to_string()).unwrap_or_default();
    let kernel =
        nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let os = read("/etc/os-release");
    let os = os.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).map(|v| v.trim_matches('"').to_string());
    NodeSystemInfo {
        architecture: arch().into(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        machine_id: read("/etc/machine-id"),
        system_uuid: read("/sys/class/dmi/id/product_uuid"),
        kernel_version: kernel,
        os_image: os.unwrap_or_default(),
        operating_system: "linux".into(),
        container_runtime_version: format!(
            "{}://{}",
            node.cri.name,
            node.cri.version.trim_start_matches('v')
        ),
        kubelet_version: KUBELET_VERSION.into(),
        kube_proxy_version: String::new(),
        swap: None,
    }
}

/// Renews the node's lease. Never returns; a failed renewal is tried again at once, then with the period.
pub async fn lease(name: String, client: kube::Client) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let nodes: Api<NodeObject> = Api::all(client);
    let mut tick = tokio::time::interval(RENEW);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        for attempt in 1..=5 {
            match renew(&leases, &nodes, &name).await {
                Ok(()) => break,
                Err(e) => {
                    warn!(error = %e, attempt, "node lease not renewed");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

async fn renew(leases: &Api<Lease>, nodes: &Api<NodeObject>, name: &str) -> Result<(), kube::Error> {
    let now = MicroTime(Timestamp::now());
    let patch =
        json!({"spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}});
    match leases.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => return Ok(()),
        Err(kube::Error::Api(e)) if e.code == 404 => {}
        Err(e) => return Err(e),
    }
    let owner = nodes.get_opt(name).await?.and_then(|n| n.metadata.uid).map(|uid| OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.to_string(),
        uid,
        ..OwnerReference::default()
    });
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.to_string()),
            namespace: Some("kube-node-lease".into()),
            owner_references: owner.map(|o| vec![o]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_string()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    leases.create(&PostParams::default(), &lease).await.map(|_| ())
}

/// The address of the interface that reaches the network, for a node that was not told its own.
pub fn guess_ip() -> Option<IpAddr> {
    // Connecting a datagram socket sends nothing; it only picks the route's source address.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_unspecified())
}
