//! Records Kubernetes Events: best effort, equal ones counted on one object.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use keelson_controllers_core::Recorded;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::request::{self, Answer};
use keelson_controllers_core::Gvr;

/// Events waiting to be sent; more are dropped.
const BACKLOG: usize = 1000;
/// Different events remembered for counting.
const REMEMBERED: usize = 4096;
const EVENTS: Gvr = Gvr::new("", "v1", "events");

/// A handle to the recording task.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<(&'static str, Recorded)>,
}

/// What makes two events equal.
type Likeness = (String, String, &'static str, String);

struct Known {
    name: String,
    count: i32,
}

struct Task {
    client: Client,
    known: BTreeMap<Likeness, Known>,
    order: VecDeque<Likeness>,
}

impl Recorder {
    pub fn start(client: Client, stop: CancellationToken) -> Recorder {
        let (queue, mut events) = mpsc::channel(BACKLOG);
        let mut task = Task { client, known: BTreeMap::new(), order: VecDeque::new() };
        tokio::spawn(async move {
            while let Some(Some((controller, event))) = stop.run_until_cancelled(events.recv()).await {
                task.send(controller, event).await;
            }
        });
        Recorder { queue }
    }

    /// Records an event, or drops it when too many wait.
    pub fn record(&self, controller: &'static str, event: Recorded) {
        if let Err(mpsc::error::TrySendError::Full((_, event))) = self.queue.try_send((controller, event)) {
            tracing::debug!(reason = event.reason, "too many events are waiting; one is dropped");
        }
    }
}

impl Task {
    async fn send(&mut self, controller: &'static str, event: Recorded) {
        let about = &event.about;
        let likeness = (
            about.uid.clone().unwrap_or_default(),
            format!("{}/{}", about.kind.as_deref().unwrap_or(""), about.name.as_deref().unwrap_or("")),
            event.reason,
            event.message.clone(),
        );
        let namespace = about.namespace.clone().filter(|n| !n.is_empty()).unwrap_or("default".into());
        let now = Timestamp::now();
        if let Some(known) = self.known.get_mut(&likeness) {
            known.count += 1;
            let patch = json!({ "count": known.count, "lastTimestamp": seconds(now) });
            let uri = request::path(&EVENTS, &namespace, Some(&known.name), None);
            let request = request::build(http::Method::PATCH, &uri, "application/merge-patch+json", &patch);
            if self.client.request_text(request).await.is_ok() {
                return;
            }
            // It has expired, most likely: start a new one.
            self.known.remove(&likeness);
        }
        let object = event_object(controller, &event, &namespace, now);
        let uri = request::path(&EVENTS, &namespace, None, None);
        let request = request::build(http::Method::POST, &uri, "application/json", &object);
        match self.client.request_text(request).await {
            Ok(text) => {
                let answer: Answer = serde_json::from_str(&text).unwrap_or_default();
                self.remember(likeness, Known { name: answer.metadata.name, count: 1 });
            }
            Err(error) => tracing::debug!(reason = event.reason, "event not recorded: {error}"),
        }
    }

    fn remember(&mut self, likeness: Likeness, known: Known) {
        if self.known.insert(likeness.clone(), known).is_none() {
            self.order.push_back(likeness);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn event_object(controller: &str, event: &Recorded, namespace: &str, now: Timestamp) -> Value {
    let name = event.about.name.clone().unwrap_or_default();
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": format!("{name}.{:x}", now.as_nanosecond()), "namespace": namespace },
        "involvedObject": event.about,
        "reason": event.reason,
        "message": event.message,
        "type": if event.warning { "Warning" } else { "Normal" },
        "source": { "component": controller },
        "reportingComponent": controller,
        "reportingInstance": "",
        "firstTimestamp": seconds(now),
        "lastTimestamp": seconds(now),
        "count": 1,
    })
}
