//! Events and the PodScheduled condition, written by one task from a bounded queue: telling never delays deciding.
//!
//! The same refusal again writes no condition, and no event for a minute (C27: quiet when nothing changes). A full
//! queue drops the report with a warning; the next attempt reports again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use keelson_scheduler_core::PodInfo;
use keelson_scheduler_core::preemption::Victim;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

const WAITING: usize = 1024;
/// How long the same event about the same pod is not repeated.
const QUIET: Duration = Duration::from_secs(60);
/// Most pods whose last report is remembered.
const MOST_REMEMBERED: usize = 20_000;

enum Report {
    Unschedulable { pod: Arc<PodInfo>, reason: &'static str, message: String },
    Event { about: About, warning: bool, reason: &'static str, action: &'static str, message: String },
    Forget(String),
}

struct About {
    namespace: String,
    name: String,
    uid: String,
    reporter: String,
}

/// The sending end; cheap to clone.
#[derive(Clone)]
pub struct Reporter {
    sender: mpsc::Sender<Report>,
}

impl Reporter {
    /// Starts the task; it ends with the token.
    pub fn start(client: Client, instance: String, token: CancellationToken) -> Reporter {
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            let writer = Writer { client, instance, last: BTreeMap::new() };
            tokio::select! { () = token.cancelled() => {}, () = writer.run(receiver) => {} }
        });
        Reporter { sender }
    }

    /// The pod fits nowhere, or failed with an error (`reason` SchedulerError), or is gated.
    pub fn unschedulable(&self, pod: &Arc<PodInfo>, reason: &'static str, message: String) {
        self.send(Report::Unschedulable { pod: pod.clone(), reason, message });
    }

    /// The pod was bound.
    pub fn scheduled(&self, pod: &PodInfo, node: &str) {
        self.send(Report::Forget(pod.uid.clone()));
        self.send(Report::Event {
            about: about(pod),
            warning: false,
            reason: "Scheduled",
            action: "Binding",
            message: format!("Successfully assigned {} to {node}", pod.key()),
        });
    }

    /// A victim was told to leave.
    pub fn preempted(&self, victim: &Victim, by: &PodInfo, node: &str) {
        self.send(Report::Event {
            about: About {
                namespace: victim.namespace.clone(),
                name: victim.name.clone(),
                uid: victim.uid.clone(),
                reporter: by.scheduler_name.clone(),
            },
            warning: false,
            reason: "Preempted",
            action: "Preempting",
            message: format!("Preempted by pod {} on node {node}", by.uid),
        });
    }

    /// The pod is gone.
    pub fn forget(&self, uid: &str) {
        self.send(Report::Forget(uid.to_string()));
    }

    fn send(&self, report: Report) {
        if self.sender.try_send(report).is_err() {
            debug!("a scheduling report was dropped: the API server is slow");
        }
    }
}

fn about(pod: &PodInfo) -> About {
    About {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        reporter: pod.scheduler_name.clone(),
    }
}

/// What was last said about a pod.
struct Last {
    message: String,
    event: Instant,
    count: i32,
}

struct Writer {
    client: Client,
    instance: String,
    last: BTreeMap<String, Last>,
}

impl Writer {
    async fn run(mut self, mut receiver: mpsc::Receiver<Report>) {
        while let Some(report) = receiver.recv().await {
            match report {
                Report::Forget(uid) => drop(self.last.remove(&uid)),
                Report::Event { about, warning, reason, action, message } => {
                    self.event(&about, warning, reason, action, &message, 1).await;
                }
                Report::Unschedulable { pod, reason, message } => {
                    self.unschedulable(&pod, reason, message).await;
                }
            }
        }
    }

    async fn unschedulable(&mut self, pod: &PodInfo, reason: &'static str, message: String) {
        let known = self.last.get(&pod.uid);
        let changed = known.is_none_or(|last| last.message != message);
        let quiet = known.is_some_and(|last| last.event.elapsed() < QUIET);
        if !changed && quiet {
            return;
        }
        let count = if changed { 1 } else { known.map_or(1, |last| last.count.saturating_add(1)) };
        if changed {
            self.condition(pod, reason, &message).await;
        }
        if reason != "SchedulingGated" {
            self.event(&about(pod), true, "FailedScheduling", "Scheduling", &message, count).await;
        }
        if self.last.len() >= MOST_REMEMBERED {
            self.last.clear();
        }
        self.last.insert(pod.uid.clone(), Last { message, event: Instant::now(), count });
    }

    /// Writes the condition unless the pod already carries it.
    async fn condition(&self, pod: &PodInfo, reason: &str, message: &str) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let found = match pods.get_opt(&pod.name).await {
            Ok(Some(found)) if found.metadata.uid.as_deref() == Some(pod.uid.as_str()) => found,
            Ok(_) => return,
            Err(error) => return warn!(%error, pod = pod.key(), "reading the PodScheduled condition"),
        };
        if found.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) {
            return;
        }
        let conditions = found.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let before = conditions.into_iter().find(|condition| condition.type_ == "PodScheduled");
        let same = |condition: &&k8s_openapi::api::core::v1::PodCondition| {
            condition.status == "False"
                && condition.reason.as_deref() == Some(reason)
                && condition.message.as_deref() == Some(message)
        };
        if before.as_ref().is_some_and(same) {
            return;
        }
        let since = before
            .filter(|condition| condition.status == "False")
            .and_then(|condition| condition.last_transition_time.clone())
            .unwrap_or_else(|| Time(jiff::Timestamp::now()));
        let patch = json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
            "lastProbeTime": null, "lastTransitionTime": since,
            "observedGeneration": found.metadata.generation,
        }]}});
        let written = pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        if let Err(error) = written {
            debug!(%error, pod = pod.key(), "writing the PodScheduled condition");
        }
    }

    async fn event(
        &self,
        about: &About,
        warning: bool,
        reason: &str,
        action: &str,
        message: &str,
        count: i32,
    ) {
        let now = jiff::Timestamp::now();
        // The API's limit for a note is 1024 bytes.
        let mut message = message.to_string();
        if message.len() > 1024 {
            let cut = (0..=1021).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            message.truncate(cut);
            message.push_str("...");
        }
        let mut event = Event {
            involved_object: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                namespace: Some(about.namespace.clone()),
                name: Some(about.name.clone()),
                uid: Some(about.uid.clone()),
                ..ObjectReference::default()
            },
            type_: Some(if warning { "Warning" } else { "Normal" }.into()),
            reason: Some(reason.into()),
            action: Some(action.into()),
            message: Some(message),
            count: Some(count),
            event_time: Some(MicroTime(now)),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource { component: Some(about.reporter.clone()), host: None }),
            reporting_component: Some(about.reporter.clone()),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        };
        event.metadata.namespace = Some(about.namespace.clone());
        event.metadata.name = Some(format!("{}.{:x}", about.name, now.as_nanosecond()));
        let events: Api<Event> = Api::namespaced(self.client.clone(), &about.namespace);
        if let Err(error) = events.create(&PostParams::default(), &event).await {
            debug!(%error, pod = about.name, reason, "writing an event");
        }
    }
}
