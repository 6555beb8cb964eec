//! One watch per kind, all into one bounded channel.
//!
//! Each keeps the last version of its objects, so that the loop gets old and new together and a deletion missed during
//! a relist is still reported. An object recreated under its name between two lists arrives as delete and add.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How many inputs may wait for the loop; a full channel slows the watches, it drops nothing.
const WAITING: usize = 1024;
/// How many kinds are watched.
pub const KINDS: usize = 12;

/// An object before and after; `None` before = added, after = deleted.
#[derive(Debug)]
pub struct Delta<K> {
    pub old: Option<Arc<K>>,
    pub new: Option<Arc<K>>,
}

/// What the watches tell the loop.
#[derive(Debug)]
pub enum Input {
    Pod(Delta<Pod>),
    Node(Delta<Node>),
    Claim(Delta<PersistentVolumeClaim>),
    Volume(Delta<PersistentVolume>),
    Class(Delta<StorageClass>),
    CsiNode(Delta<CSINode>),
    Namespace(Delta<Namespace>),
    Service(Delta<Service>),
    ReplicaSet(Delta<ReplicaSet>),
    StatefulSet(Delta<StatefulSet>),
    ReplicationController(Delta<ReplicationController>),
    Budget(Delta<PodDisruptionBudget>),
    /// A kind's first list is complete.
    Synced(&'static str),
}

/// Starts all watches; they end with the token.
pub fn start(client: &Client, token: &CancellationToken) -> mpsc::Receiver<Input> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let start = Start { client, token, sender };
    start.watch("pods", Input::Pod);
    start.watch("nodes", Input::Node);
    start.watch("persistentvolumeclaims", Input::Claim);
    start.watch("persistentvolumes", Input::Volume);
    start.watch("storageclasses", Input::Class);
    start.watch("csinodes", Input::CsiNode);
    start.watch("namespaces", Input::Namespace);
    start.watch("services", Input::Service);
    start.watch("replicasets", Input::ReplicaSet);
    start.watch("statefulsets", Input::StatefulSet);
    start.watch("replicationcontrollers", Input::ReplicationController);
    start.watch("poddisruptionbudgets", Input::Budget);
    receiver
}

struct Start<'a> {
    client: &'a Client,
    token: &'a CancellationToken,
    sender: mpsc::Sender<Input>,
}

impl Start<'_> {
    fn watch<K>(&self, name: &'static str, wrap: fn(Delta<K>) -> Input)
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let (sender, token) = (self.sender.clone(), self.token.clone());
        tokio::spawn(async move {
            tokio::select! { () = token.cancelled() => {}, () = follow(api, name, wrap, sender) => {} }
        });
    }
}

type Key = (String, String);

async fn follow<K>(api: Api<K>, name: &'static str, wrap: fn(Delta<K>) -> Input, sender: mpsc::Sender<Input>)
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    let mut known: BTreeMap<Key, Arc<K>> = BTreeMap::new();
    let mut unseen: BTreeSet<Key> = BTreeSet::new();
    let mut synced = false;
    let mut stream = watcher(api, watcher::Config::default()).default_backoff().boxed();
    while let Some(event) = stream.next().await {
        let mut deltas = Vec::new();
        let mut listed = false;
        match event {
            // A server without this kind has none of it; it may get it later.
            Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) if status.code == 404 => {
                listed = true;
                debug!(resource = name, "not served: asking again now and then");
            }
            Err(error) => warn!(%error, resource = name, "watch: retrying"),
            Ok(watcher::Event::Init) => unseen = known.keys().cloned().collect(),
            Ok(watcher::Event::Apply(object)) | Ok(watcher::Event::InitApply(object)) => {
                unseen.remove(&key(&object));
                apply(&mut known, object, &mut deltas);
            }
            Ok(watcher::Event::Delete(object)) => deltas.extend(remove(&mut known, &key(&object))),
            Ok(watcher::Event::InitDone) => {
                listed = true;
                for key in std::mem::take(&mut unseen) {
                    deltas.extend(remove(&mut known, &key));
                }
            }
        }
        let mut inputs: Vec<Input> = deltas.into_iter().map(wrap).collect();
        if listed && !synced {
            synced = true;
            inputs.push(Input::Synced(name));
        }
        for input in inputs {
            if sender.send(input).await.is_err() {
                return;
            }
        }
    }
}

fn key<K: ResourceExt>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn apply<K: ResourceExt>(known: &mut BTreeMap<Key, Arc<K>>, mut object: K, inputs: &mut Vec<Delta<K>>) {
    // Nobody here reads them, and they are often the larger half of an object.
    object.managed_fields_mut().clear();
    let key = key(&object);
    let new = Arc::new(object);
    let old = known.insert(key, new.clone());
    match old {
        Some(old) if old.uid() != new.uid() => {
            inputs.push(Delta { old: Some(old), new: None });
            inputs.push(Delta { old: None, new: Some(new) });
        }
        Some(old) if old.resource_version() == new.resource_version() => {}
        old => inputs.push(Delta { old, new: Some(new) }),
    }
}

fn remove<K>(known: &mut BTreeMap<Key, Arc<K>>, key: &Key) -> Option<Delta<K>> {
    known.remove(key).map(|old| Delta { old: Some(old), new: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: &str, version: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(uid.into());
        pod.metadata.resource_version = Some(version.into());
        pod
    }

    #[test]
    fn a_pod_recreated_under_its_name_is_deleted_and_added() {
        let mut known = BTreeMap::new();
        let mut deltas = Vec::new();
        apply(&mut known, pod("a", "1", "5"), &mut deltas);
        apply(&mut known, pod("a", "1", "5"), &mut deltas);
        assert_eq!(deltas.len(), 1, "the same version again is no news");
        apply(&mut known, pod("a", "2", "9"), &mut deltas);
        let shape: Vec<_> = deltas.iter().map(|delta| (delta.old.is_some(), delta.new.is_some())).collect();
        assert_eq!(shape, [(false, true), (true, false), (false, true)]);
    }
}
