//! The slow jobs of a node: log rotation, image collection, memory pressure, folders of pods nobody has, data of deleted
//! local-path volumes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use keelson_nodeagent_core::pod::eviction::{self, Candidate};
use keelson_nodeagent_core::pod::{amounts, naming};
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::agent::Eviction;
use crate::context::Node;
use crate::{images, stats, volumes};

/// Runs all of them. Never returns.
pub async fn run(node: Arc<Node>, evictions: mpsc::Sender<Eviction>) {
    let mut tick = tokio::time::interval(Duration::from_secs(10));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut turn: u64 = 0;
    loop {
        tick.tick().await;
        turn += 1;
        node.sampler.refresh(&node, Duration::from_secs(9)).await;
        relieve(&node, &evictions).await;
        rotate_logs(&node).await;
        if turn.is_multiple_of(3) {
            remove_local_data(&node).await;
        }
        if turn.is_multiple_of(6) {
            remove_stray_folders(&node).await;
        }
        if turn.is_multiple_of(30)
            && let Err(e) = images::collect(&node).await
        {
            warn!(error = e.message(), "image collection failed");
        }
    }
}

/// Under memory pressure, asks for the end of one pod.
async fn relieve(node: &Node, evictions: &mpsc::Sender<Eviction>) {
    let signals = stats::signals(node);
    if !eviction::pressure(&signals, &node.config.thresholds).memory {
        return;
    }
    let Some(sample) = node.sampler.latest() else { return };
    let candidates: Vec<Candidate> = node
        .views()
        .iter()
        .map(|view| {
            let pod = &view.pod;
            let (_, request) =
                amounts::pod_requests(naming::init_containers(pod), naming::main_containers(pod));
            let running = view.observed.containers.iter().filter(|c| c.running());
            let used = running.filter_map(|c| sample.containers.get(&c.id)).map(|u| u.memory).sum();
            let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
            Candidate {
                uid: naming::uid(pod).into(),
                name: naming::name(pod).into(),
                priority,
                memory_request: request.max(0) as u64,
                memory_used: used,
                critical: naming::is_static(pod) || priority >= 2_000_000_000 || used == 0,
            }
        })
        .collect();
    if let Some(chosen) = eviction::choose(&candidates) {
        let available = signals.memory_available >> 10;
        let message = format!(
            "The node was low on resource: memory. Threshold quantity: {}Ki, available: {available}Ki. Pod {} was using {}Ki, request is {}Ki.",
            node.config.thresholds.memory_floor >> 10,
            chosen.name,
            chosen.memory_used >> 10,
            chosen.memory_request >> 10
        );
        let _ = evictions.send(Eviction { uid: chosen.uid.clone(), message }).await;
    }
}

/// Renames a log that has grown too large; the runtime then opens a new one.
async fn rotate_logs(node: &Node) {
    for view in node.views() {
        let pod = &view.pod;
        let dir = node.config.pod_log_dir(naming::namespace(pod), naming::name(pod), naming::uid(pod));
        for container in view.observed.containers.iter().filter(|c| c.running()) {
            let path = dir.join(naming::log_file(&container.name, container.attempt));
            let large = fs::metadata(&path).is_ok_and(|m| m.len() > node.config.log_max_bytes);
            if !large {
                continue;
            }
            if let Err(e) = rotate(&path, node.config.log_max_files) {
                warn!(path = %path.display(), error = %e, "cannot rotate a log");
                continue;
            }
            if let Err(e) = node.cri.reopen_log(&container.id).await {
                warn!(
                    container = container.name,
                    error = e.message(),
                    "the runtime did not reopen a rotated log"
                );
            }
        }
    }
}

fn rotate(path: &Path, keep: usize) -> std::io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S.%6f");
    fs::rename(path, dir.join(format!("{prefix}{stamp}")))?;
    let mut old: Vec<PathBuf> = fs::read_dir(dir)?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)))
        .collect();
    old.sort();
    let surplus = old.len().saturating_sub(keep.saturating_sub(1));
    old.iter().take(surplus).try_for_each(fs::remove_file)
}

/// Folders of pods that neither a source nor the runtime knows: what a crash in the middle of an end leaves.
async fn remove_stray_folders(node: &Node) {
    let Ok(sandboxes) = node.cri.sandboxes(None).await else { return };
    let in_runtime: BTreeSet<String> =
        sandboxes.into_iter().filter_map(|s| s.metadata).map(|m| m.uid).collect();
    for entry in fs::read_dir(node.config.root_dir.join("pods")).into_iter().flatten().flatten() {
        let uid = entry.file_name().to_string_lossy().into_owned();
        let young = entry
            .metadata()
            .and_then(|m| m.modified())
            .is_ok_and(|t| t.elapsed().is_ok_and(|age| age < Duration::from_secs(60)));
        if young || in_runtime.contains(&uid) || node.view(&uid).is_some() {
            continue;
        }
        info!(uid, "removing the folder of a pod that is gone");
        let dir = entry.path();
        let gone =
            volumes::release(node, &uid).and_then(|()| match volumes::mounts::below(&dir)?.is_empty() {
                true => fs::remove_dir_all(&dir),
                false => Err(std::io::Error::other("still has mounts")),
            });
        if let Err(e) = gone {
            warn!(path = %dir.display(), error = %e, "cannot remove a pod's folder");
        }
    }
    for (uid, path) in node.cgroups.pods(&node.config.cgroup("kubepods")) {
        if !in_runtime.contains(&uid) && node.view(&uid).is_none() {
            // Busy means a pod is just being made; the next round sees it.
            let _ = node.cgroups.remove(&path);
        }
    }
}

const LOCAL_FINALIZER: &str = "keelson.dev/local-path-data";
const LOCAL_NODE: &str = "keelson.dev/node";

/// Deletes the folders of this node's deleted local-path volumes, then lets the objects go.
async fn remove_local_data(node: &Node) {
    let Some(client) = node.config.client.clone() else { return };
    let api: Api<PersistentVolume> = Api::all(client);
    let Ok(list) = api.list(&ListParams::default()).await else { return };
    for volume in list.items {
        let metadata = &volume.metadata;
        let finalizers = metadata.finalizers.clone().unwrap_or_default();
        let home = metadata.annotations.as_ref().and_then(|a| a.get(LOCAL_NODE));
        let ours = home == Some(&node.config.node_name) && finalizers.iter().any(|f| f == LOCAL_FINALIZER);
        if !ours || metadata.deletion_timestamp.is_none() {
            continue;
        }
        let path = volume.spec.as_ref().and_then(|s| s.host_path.as_ref()).map(|h| PathBuf::from(&h.path));
        let Some(path) = path.filter(|p| is_own(&node.config.local_path_base, p)) else {
            warn!(volume = metadata.name, "local-path data outside this node's base folder is left alone");
            continue;
        };
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                warn!(path = %path.display(), error = %e, "cannot remove a deleted volume's data");
                continue;
            }
            _ => info!(path = %path.display(), "removed a deleted volume's data"),
        }
        let left: Vec<&String> = finalizers.iter().filter(|f| *f != LOCAL_FINALIZER).collect();
        let patch = json!({"metadata": {"finalizers": left, "resourceVersion": metadata.resource_version}});
        let name = metadata.name.clone().unwrap_or_default();
        if let Err(e) = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
            warn!(volume = name, error = %e, "cannot release a deleted volume");
        }
    }
}

/// A direct child of the base folder, spelled without tricks.
fn is_own(base: &Path, path: &Path) -> bool {
    let plain = path
        .components()
        .all(|c| !matches!(c, std::path::Component::ParentDir | std::path::Component::CurDir));
    plain && path.parent() == Some(base) && path.file_name().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_children_of_the_base_are_ours() {
        let base = Path::new("/var/lib/keelson/local-path");
        assert!(is_own(base, &base.join("pvc-1")));
        for bad in ["/", "/var/lib/keelson/local-path", "/var/lib/keelson/local-path/../x", "/etc/pvc-1"] {
            assert!(!is_own(base, Path::new(bad)), "{bad}");
        }
    }

    #[test]
    fn rotation_keeps_the_newest_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for n in 0..5 {
            fs::write(&path, n.to_string()).unwrap();
            rotate(&path, 3).unwrap();
        }
        let mut kept: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| fs::read_to_string(e.unwrap().path()).unwrap())
            .collect();
        kept.sort();
        assert_eq!(kept, ["3", "4"]);
    }
}
