//! Where pods come from: the API (this node's, by `spec.nodeName`) and a folder of manifests (static pods).
//!
//! Each source first sends everything it has and then says it is complete; only then may pods that no source has be
//! removed from the node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use keelson_nodeagent_core::pod::naming;
use kube::runtime::watcher;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    Api,
    Files,
}

/// A change a source reports.
pub enum Change {
    Apply(Box<Pod>),
    Delete(Box<Pod>),
    /// All pods the source has; others of this origin are gone.
    Complete(Origin, Vec<Pod>),
}

/// Anything that can say which pods belong on this node.
#[async_trait::async_trait]
pub trait PodSource: Send + 'static {
    fn origin(&self) -> Origin;
    /// Sends changes until cancelled.
    async fn run(self: Box<Self>, changes: mpsc::Sender<Change>, stop: CancellationToken);
}

/// The API's pods bound to this node.
pub struct FromApi {
    pub client: kube::Client,
    pub node_name: String,
}

#[async_trait::async_trait]
impl PodSource for FromApi {
    fn origin(&self) -> Origin {
        Origin::Api
    }

    async fn run(self: Box<Self>, changes: mpsc::Sender<Change>, stop: CancellationToken) {
        let api: kube::Api<Pod> = kube::Api::all(self.client.clone());
        let only_ours = watcher::Config::default().fields(&format!("spec.nodeName={}", self.node_name));
        let mut stream =
            std::pin::pin!(kube::runtime::WatchStreamExt::default_backoff(watcher(api, only_ours)));
        let mut initial = Vec::new();
        loop {
            let next = tokio::select! {
                next = stream.try_next() => next,
                () = stop.cancelled() => return,
            };
            let change = match next {
                Ok(Some(watcher::Event::Apply(pod))) => Change::Apply(Box::new(slim(pod))),
                Ok(Some(watcher::Event::Delete(pod))) => Change::Delete(Box::new(slim(pod))),
                Ok(Some(watcher::Event::Init)) => {
                    initial.clear();
                    continue;
                }
                Ok(Some(watcher::Event::InitApply(pod))) => {
                    initial.push(slim(pod));
                    continue;
                }
                Ok(Some(watcher::Event::InitDone)) => {
                    Change::Complete(Origin::Api, std::mem::take(&mut initial))
                }
                Ok(None) => return,
                Err(e) => {
                    warn!(error = %e, "watching this node's pods failed, trying again");
                    continue;
                }
            };
            if changes.send(change).await.is_err() {
                return;
            }
        }
    }
}

fn slim(mut pod: Pod) -> Pod {
    pod.metadata.managed_fields = None;
    pod
}

/// A folder of JSON pod manifests, read every second.
pub struct FromFiles {
    pub dir: PathBuf,
    pub node_name: String,
}

#[async_trait::async_trait]
impl PodSource for FromFiles {
    fn origin(&self) -> Origin {
        Origin::Files
    }

    async fn run(self: Box<Self>, changes: mpsc::Sender<Change>, stop: CancellationToken) {
        let mut last: Option<BTreeMap<PathBuf, Vec<u8>>> = None;
        loop {
            let files = read_folder(&self.dir);
            if last.as_ref() != Some(&files) {
                let pods =
                    files.iter().filter_map(|(path, text)| match manifest(text, &self.node_name, path) {
                        Ok(pod) => Some(pod),
                        Err(e) => {
                            warn!(path = %path.display(), error = e, "static pod manifest skipped");
                            None
                        }
                    });
                let pods = pods.collect();
                last = Some(files);
                if changes.send(Change::Complete(Origin::Files, pods)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

fn read_folder(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let hidden = path.file_name().is_none_or(|n| n.to_string_lossy().starts_with('.'));
        if !hidden
            && path.is_file()
            && let Ok(text) = std::fs::read(&path)
        {
            out.insert(path, text);
        }
    }
    out
}

/// A manifest as the pod it describes: uid from its content, name with the node's, as static pods have.
fn manifest(text: &[u8], node_name: &str, path: &Path) -> Result<Pod, String> {
    let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
    let mut pod: Pod = if yaml {
        let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
        serde_saphyr::from_str(text).map_err(|e| e.to_string())?
    } else {
        serde_json::from_slice(text).map_err(|e| e.to_string())?
    };
    let name = pod.metadata.name.clone().filter(|n| !n.is_empty()).ok_or("metadata.name is missing")?;
    let digest = Sha256::new().chain_update(path.to_string_lossy().as_bytes()).chain_update(text).finalize();
    let hash: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
    pod.metadata.name = Some(format!("{name}-{node_name}"));
    pod.metadata.namespace.get_or_insert_with(|| "default".into());
    pod.metadata.uid = Some(hash.clone());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(naming::ANNOTATION_CONFIG_SOURCE.into(), "file".into());
    annotations.insert(naming::ANNOTATION_CONFIG_HASH.into(), hash);
    let spec = pod.spec.as_mut().ok_or("spec is missing")?;
    spec.node_name = Some(node_name.to_string());
    pod.status = None;
    Ok(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_manifest_is_another_pod() {
        let text = |image: &str| {
            format!(
                r#"{{"metadata":{{"name":"p"}},"spec":{{"containers":[{{"name":"c","image":"{image}"}}]}}}}"#
            )
        };
        let path = Path::new("/m/p.json");
        let first = manifest(text("a").as_bytes(), "n1", path).unwrap();
        assert_eq!(naming::name(&first), "p-n1");
        assert!(naming::is_static(&first));
        let second = manifest(text("b").as_bytes(), "n1", path).unwrap();
        assert_ne!(naming::uid(&first), naming::uid(&second));
        let yaml = b"metadata: {name: q}\nspec:\n  containers:\n  - {name: c, image: x}\n";
        assert_eq!(naming::name(&manifest(yaml, "n1", Path::new("q.yaml")).unwrap()), "q-n1");
        assert!(manifest(b"{}", "n1", path).is_err());
    }
}
