//! Kubernetes Events about pods and the node: queued, folded, written by one task.
//!
//! The queue is bounded and lossy: an event must never hold a pod back. Equal events within ten minutes become one with a
//! count.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use keelson_nodeagent_core::pod::naming;
use tokio::sync::mpsc;
use tracing::{debug, info};

const QUEUE: usize = 256;
const FOLDED: usize = 1024;

#[derive(Clone)]
pub struct Events {
    sender: mpsc::Sender<Note>,
    host: Arc<str>,
}

struct Note {
    object: ObjectReference,
    warning: bool,
    reason: &'static str,
    message: String,
    at: jiff::Timestamp,
}

impl Events {
    /// The recorder and the task that writes; without a client events are only logged.
    pub fn start(client: Option<kube::Client>, host: &str) -> Events {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let host: Arc<str> = host.into();
        tokio::spawn(write(client, receiver, host.clone()));
        Events { sender, host }
    }

    pub fn pod(
        &self,
        pod: &Pod,
        container: Option<&str>,
        warning: bool,
        reason: &'static str,
        message: String,
    ) {
        let object = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(naming::namespace(pod).into()),
            name: Some(naming::name(pod).into()),
            uid: Some(naming::uid(pod).into()),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: container.map(|c| naming::field_path(pod, c)),
        };
        self.send(object, warning, reason, message);
    }

    pub fn node(&self, warning: bool, reason: &'static str, message: String) {
        let object = ObjectReference {
            kind: Some("Node".into()),
            name: Some(self.host.to_string()),
            uid: Some(self.host.to_string()),
            ..ObjectReference::default()
        };
        self.send(object, warning, reason, message);
    }

    fn send(&self, object: ObjectReference, warning: bool, reason: &'static str, message: String) {
        info!(object = object.name.as_deref().unwrap_or_default(), reason, message, "event");
        let message = message.chars().take(1024).collect();
        let note = Note { object, warning, reason, message, at: jiff::Timestamp::now() };
        if self.sender.try_send(note).is_err() {
            debug!(reason, "event dropped: the queue is full");
        }
    }
}

type Key = (String, String, &'static str, String);

async fn write(client: Option<kube::Client>, mut receiver: mpsc::Receiver<Note>, host: Arc<str>) {
    let mut folded: BTreeMap<Key, (String, i32, jiff::Timestamp)> = BTreeMap::new();
    while let Some(note) = receiver.recv().await {
        let Some(client) = client.clone() else { continue };
        let namespace = note.object.namespace.clone().unwrap_or_else(|| "default".into());
        let api: kube::Api<Event> = kube::Api::namespaced(client, &namespace);
        let subject = format!("{}/{}", note.object.uid.as_deref().unwrap_or_default(), namespace);
        let field = note.object.field_path.clone().unwrap_or_default();
        let key = (subject, field, note.reason, note.message.clone());
        folded.retain(|_, (_, _, at)| note.at.duration_since(*at) < jiff::SignedDuration::from_mins(10));
        if let Some((name, count, at)) = folded.get_mut(&key) {
            *count += 1;
            *at = note.at;
            let patch = serde_json::json!({"count": *count, "lastTimestamp": Time(note.at)});
            let parameters = kube::api::PatchParams::default();
            if let Err(e) = api.patch(name, &parameters, &kube::api::Patch::Merge(patch)).await {
                debug!(error = %e, "cannot update an event");
                folded.remove(&key);
            }
            continue;
        }
        let event = event(&note, &namespace, &host);
        let name = event.metadata.name.clone().unwrap_or_default();
        match api.create(&kube::api::PostParams::default(), &event).await {
            Ok(_) if folded.len() < FOLDED => {
                folded.insert(key, (name, 1, note.at));
            }
            Ok(_) => {}
            Err(e) => debug!(error = %e, "cannot write an event"),
        }
    }
}

fn event(note: &Note, namespace: &str, host: &str) -> Event {
    let about = note.object.name.clone().unwrap_or_default();
    let source = EventSource { component: Some("kubelet".into()), host: Some(host.to_string()) };
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{about}.{:x}", note.at.as_nanosecond())),
            namespace: Some(namespace.to_string()),
            ..ObjectMeta::default()
        },
        involved_object: note.object.clone(),
        reason: Some(note.reason.into()),
        message: Some(note.message.clone()),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.into()),
        count: Some(1),
        first_timestamp: Some(Time(note.at)),
        last_timestamp: Some(Time(note.at)),
        source: Some(source),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(host.to_string()),
        ..Event::default()
    }
}
