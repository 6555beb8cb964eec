//! Carries out one action of a pod's plan and says how it ended. Decides nothing.
//!
//! Each action runs as its own task, so a long pull or a slow stop never holds the pod's loop. Cancelling (`ending`) is
//! honoured between the steps of a start, never between creating and starting a container.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container as Spec, LifecycleHandler, Pod, PodStatus};
use keelson_nodeagent_core::pod::memory::{FailureKind, Outcome};
use keelson_nodeagent_core::pod::observed::Observed;
use keelson_nodeagent_core::pod::plan::Action;
use keelson_nodeagent_core::pod::probe::Kind;
use keelson_nodeagent_core::pod::{naming, qos};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::context::Node;
use crate::handlers::{self, Target};
use crate::{containers, images, publish, sandboxes, volumes};

/// What an action needs to know besides the pod.
#[derive(Clone)]
pub struct Situation {
    pub node: Arc<Node>,
    pub pod: Arc<Pod>,
    pub observed: Observed,
    /// Set once the pod is ending: a start gives up.
    pub ending: CancellationToken,
    /// The pod is in the API and is to be deleted there.
    pub in_api: bool,
    pub final_status: Option<PodStatus>,
}

pub async fn execute(at: Situation, action: Action) -> Outcome {
    let result = match &action {
        Action::Prepare => prepare(&at).await,
        Action::CreateSandbox { attempt } => create_sandbox(&at, *attempt).await,
        Action::StartContainer { name, attempt, sandbox } => {
            return start(&at, name, *attempt, sandbox).await;
        }
        Action::StopContainer { id, name, grace, message } => stop(&at, id, name, *grace, message).await,
        Action::StopSandbox { id } => at.node.cri.stop_sandbox(id).await.map_err(text),
        Action::RemoveSandbox { id } => at.node.cri.remove_sandbox(id).await.map_err(text),
        Action::RemoveContainer { id } => at.node.cri.remove_container(id).await.map_err(text),
        Action::Probe { name, container_id, kind } => return probe(&at, name, container_id, *kind).await,
        Action::Release => release(&at).await,
        Action::Erase => erase(&at).await,
        Action::ConfirmDeletion => confirm(&at).await,
    };
    match result {
        Ok(()) => Outcome::Done,
        Err(message) => {
            let pod = naming::name(&at.pod);
            warn!(pod, ?action, message, "action failed");
            Outcome::Failed(message)
        }
    }
}

fn text(status: tonic::Status) -> String {
    status.message().to_string()
}

async fn prepare(at: &Situation) -> Result<(), String> {
    let (node, pod) = (&at.node, &at.pod);
    let uid = naming::uid(pod);
    let dir = node.config.pod_dir(uid);
    let logs = node.config.pod_log_dir(naming::namespace(pod), naming::name(pod), uid);
    for path in [&dir, &logs] {
        fs::create_dir_all(path).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
    }
    let cgroup = node.config.cgroup(&qos::cgroup_path(pod));
    node.cgroups
        .create(&cgroup, &qos::pod_limits(pod))
        .map_err(|e| format!("cannot make cgroup {cgroup}: {e}"))?;
    let prepared = volumes::prepare(node, pod).await;
    if let Err(message) = &prepared {
        node.events.pod(pod, None, true, "FailedMount", message.clone());
    }
    prepared
}

async fn create_sandbox(at: &Situation, attempt: u32) -> Result<(), String> {
    if attempt > 0 {
        let message = "Pod sandbox changed, it will be killed and re-created.".to_string();
        at.node.events.pod(&at.pod, None, false, "SandboxChanged", message);
    }
    let config = sandboxes::config(&at.node, &at.pod, attempt);
    let handler = runtime_handler(at).await?;
    match at.node.cri.run_sandbox(config, &handler).await {
        Ok(_) => Ok(()),
        Err(e) => {
            let message = format!("Failed to create pod sandbox: {}", e.message());
            at.node.events.pod(&at.pod, None, true, "FailedCreatePodSandBox", message.clone());
            Err(message)
        }
    }
}

async fn runtime_handler(at: &Situation) -> Result<String, String> {
    use k8s_openapi::api::node::v1::RuntimeClass;
    let class = at.pod.spec.as_ref().and_then(|s| s.runtime_class_name.clone()).filter(|c| !c.is_empty());
    let (Some(class), Some(client)) = (class, at.node.config.client.clone()) else {
        return Ok(String::new());
    };
    let api: kube::Api<RuntimeClass> = kube::Api::all(client);
    let found = api.get(&class).await.map_err(|e| format!("RuntimeClass \"{class}\": {e}"))?;
    Ok(found.handler)
}

async fn start(at: &Situation, name: &str, attempt: u32, sandbox: &str) -> Outcome {
    let failed =
        |kind, reason: &str, message: String| Outcome::StartFailed { kind, reason: reason.into(), message };
    let Some(spec) = naming::find_container(&at.pod, name) else {
        return failed(
            FailureKind::Config,
            "CreateContainerConfigError",
            format!("no container named {name}"),
        );
    };
    let (node, pod) = (&at.node, &at.pod);
    let sandbox_attempt = at.observed.sandboxes.iter().find(|s| s.id == sandbox).map_or(0, |s| s.attempt);
    let sandbox_config = sandboxes::config(node, pod, sandbox_attempt);
    let image = tokio::select! {
        image = images::ensure(node, pod, &spec, sandbox_config.clone()) => image,
        () = at.ending.cancelled() => {
            return failed(FailureKind::Pull, "ErrImagePull", "the pod is ending".into());
        }
    };
    let image = match image {
        Ok(image) => image,
        Err(e) => return failed(FailureKind::Pull, e.reason, e.message),
    };
    let ips = pod_ips(at);
    let config = match containers::config(node, pod, &spec, attempt, &image, &ips).await {
        Ok(config) => config,
        Err(message) => {
            node.events.pod(pod, Some(name), true, "Failed", format!("Error: {message}"));
            return failed(FailureKind::Config, "CreateContainerConfigError", message);
        }
    };
    if at.ending.is_cancelled() {
        return failed(FailureKind::Config, "ContainerCreating", "the pod is ending".into());
    }
    let id = match node.cri.create_container(sandbox, config, sandbox_config).await {
        Ok(id) => id,
        Err(e) => {
            node.events.pod(pod, Some(name), true, "Failed", format!("Error: {}", e.message()));
            return failed(FailureKind::Create, "CreateContainerError", text(e));
        }
    };
    node.events.pod(pod, Some(name), false, "Created", format!("Container created: {name}"));
    if let Err(e) = node.cri.start_container(&id).await {
        node.events.pod(pod, Some(name), true, "Failed", format!("Error: {}", e.message()));
        // The runtime keeps the container as exited; its state says StartError, and back-off counts from it.
        return failed(FailureKind::Create, "RunContainerError", text(e));
    }
    node.events.pod(pod, Some(name), false, "Started", format!("Container started: {name}"));
    post_start(at, &spec, &id).await;
    Outcome::Started
}

/// A failed post-start hook kills its container; the restart policy then decides.
async fn post_start(at: &Situation, spec: &Spec, id: &str) {
    let Some(hook) = spec.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return };
    let target =
        Target { container_id: id.to_string(), ip: pod_ips(at).first().and_then(|ip| ip.parse().ok()) };
    let run = handlers::hook(&at.node.cri, &target, spec, hook, Duration::from_secs(3600));
    let result = tokio::select! {
        result = run => result,
        () = at.ending.cancelled() => return,
    };
    if let Err(message) = result {
        let message = format!("PostStartHook failed: {message}");
        at.node.events.pod(&at.pod, Some(&spec.name), true, "FailedPostStartHook", message);
        let grace = keelson_nodeagent_core::pod::memory::grace_period(&at.pod);
        if let Err(e) = at.node.cri.stop_container(id, grace).await {
            warn!(container = spec.name, error = %e, "cannot stop a container whose post-start hook failed");
        }
    }
}

/// The pod's addresses; a host-network pod has the node's.
fn pod_ips(at: &Situation) -> Vec<String> {
    if naming::host_network(&at.pod) {
        return vec![at.node.config.node_ip.to_string()];
    }
    at.observed.ready_sandbox().map(|s| s.ips.clone()).unwrap_or_default()
}

async fn stop(at: &Situation, id: &str, name: &str, grace: i64, message: &str) -> Result<(), String> {
    let said = if message == "Stopping container" {
        format!("Stopping container {name}")
    } else {
        message.to_string()
    };
    at.node.events.pod(&at.pod, Some(name), false, "Killing", said);
    let began = std::time::Instant::now();
    let spec = naming::find_container(&at.pod, name);
    let hook: Option<(Spec, LifecycleHandler)> = spec.and_then(|s| {
        let hook = s.lifecycle.as_ref()?.pre_stop.clone()?;
        Some((s, hook))
    });
    if let Some((spec, hook)) = hook.filter(|_| grace > 0) {
        let target =
            Target { container_id: id.to_string(), ip: pod_ips(at).first().and_then(|ip| ip.parse().ok()) };
        let limit = Duration::from_secs(grace as u64);
        if let Err(e) = handlers::hook(&at.node.cri, &target, &spec, &hook, limit).await {
            at.node.events.pod(
                &at.pod,
                Some(name),
                true,
                "FailedPreStopHook",
                format!("PreStopHook failed: {e}"),
            );
        }
    }
    // After a hook at least two seconds remain for the signal, unless the kill is to be immediate.
    let spent = began.elapsed().as_secs() as i64;
    let left = if grace == 0 { 0 } else { (grace - spent).max(2.min(grace)) };
    at.node.cri.stop_container(id, left).await.map_err(text)
}

async fn probe(at: &Situation, name: &str, container_id: &str, kind: Kind) -> Outcome {
    let spec = naming::find_container(&at.pod, name);
    let Some((spec, check)) = spec.and_then(|s| kind.of(&s).cloned().map(|p| (s, p))) else {
        return Outcome::Failed("the probe is gone".into());
    };
    let ip = pod_ips(at).first().and_then(|ip| ip.parse().ok());
    let target = Target { container_id: container_id.to_string(), ip };
    let result = handlers::probe(&at.node.cri, &target, &spec, &check).await;
    if let Err(message) = &result {
        debug!(container = name, ?kind, message, "probe failed");
        if !at.ending.is_cancelled() {
            let message = format!("{} probe failed: {message}", kind.title());
            at.node.events.pod(&at.pod, Some(name), true, "Unhealthy", message);
        }
    }
    Outcome::Probed { container_id: container_id.to_string(), ok: result.is_ok() }
}

async fn release(at: &Situation) -> Result<(), String> {
    let node = at.node.clone();
    let uid = naming::uid(&at.pod).to_string();
    let cgroup = node.config.cgroup(&qos::cgroup_path(&at.pod));
    node.tokens.forget(&uid);
    let work = move || {
        volumes::release(&node, &uid).map_err(|e| format!("cannot release volumes: {e}"))?;
        // An orphan's class is not known; its cgroup may be in any of the three places.
        let found = node.cgroups.pods(&node.config.cgroup("kubepods"));
        let own = found.into_iter().filter(|(pod, _)| *pod == uid).map(|(_, path)| path);
        for path in own.chain([cgroup]) {
            node.cgroups.remove(&path).map_err(|e| format!("cannot remove cgroup {path}: {e}"))?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}

async fn erase(at: &Situation) -> Result<(), String> {
    let (config, pod) = (&at.node.config, &at.pod);
    let uid = naming::uid(pod);
    if uid.is_empty() || uid.contains('/') {
        return Err(format!("refusing to erase the folders of pod uid {uid:?}"));
    }
    let logs = config.pod_log_dir(naming::namespace(pod), naming::name(pod), uid);
    let folders = [config.pod_dir(uid), logs];
    let work = move || {
        for dir in &folders {
            // Never follow a volume that is still mounted into someone's data.
            if !volumes::mounts::below(dir).map_err(|e| e.to_string())?.is_empty() {
                return Err(format!("{} still has mounts", dir.display()));
            }
            match fs::remove_dir_all(dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("{}: {e}", dir.display()));
                }
                _ => {}
            }
        }
        Ok(())
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}

async fn confirm(at: &Situation) -> Result<(), String> {
    if naming::is_static(&at.pod) {
        return match &at.node.config.client {
            Some(client) => publish::remove_mirror(client, &at.pod).await,
            None => Ok(()),
        };
    }
    if !at.in_api {
        return Ok(());
    }
    let Some(client) = at.node.config.client.clone() else { return Ok(()) };
    if let Some(status) = &at.final_status {
        publish::status(&client, &at.pod, status).await?;
    }
    publish::confirm_deletion(&client, &at.pod).await
}
