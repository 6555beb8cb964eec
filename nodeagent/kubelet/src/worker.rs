//! One task per pod: observe, plan, start the actions, publish the status, wait.
//!
//! Order within a turn: the runtime is read afresh before every plan that follows a change, so a decision never rests on an
//! older view than its own last action. Actions run beside the loop and report back; the loop itself never blocks on one.
//! Hazard: if the runtime cannot be read, nothing is planned and the published status stands: a stopped runtime must not
//! look like stopped containers.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use keelson_nodeagent_core::pod::memory::{EndReason, Memory, Outcome, Prepared, grace_period};
use keelson_nodeagent_core::pod::observed::Observed;
use keelson_nodeagent_core::pod::plan::{self, Action};
use keelson_nodeagent_core::pod::{admission::Refusal, naming, status};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::context::{Node, PodView};
use crate::execute::{Situation, execute};
use crate::{publish, volumes};

/// How long the API may show something else than was published: it may only be seen late.
const DISPUTE: Duration = Duration::from_secs(2);

/// What the agent wants of a pod's worker.
#[derive(Clone)]
pub struct Desired {
    pub pod: Arc<Pod>,
    /// The source does not have the pod any more.
    pub removed: bool,
    pub refusal: Option<Refusal>,
    /// `(reason, message)` of an eviction by the node.
    pub eviction: Option<String>,
    /// How often the API lost a static pod's mirror.
    pub mirrors_lost: u32,
}

pub struct Handle {
    pub desired: watch::Sender<Desired>,
    /// Something about the pod changed in the runtime.
    pub wake: Arc<Notify>,
    pub task: tokio::task::JoinHandle<()>,
}

/// Starts the worker of a pod.
pub fn spawn(
    node: Arc<Node>,
    desired: Desired,
    done: tokio::sync::mpsc::UnboundedSender<String>,
    stop: CancellationToken,
) -> Handle {
    let (sender, receiver) = watch::channel(desired);
    let wake = Arc::new(Notify::new());
    let worker = Worker::new(node, receiver, wake.clone());
    let task = tokio::spawn(async move {
        let uid = worker.uid.clone();
        let finished = tokio::select! {
            () = worker.run() => true,
            // The agent stops, the pods stay.
            () = stop.cancelled() => false,
        };
        if finished {
            let _ = done.send(uid);
        }
    });
    Handle { desired: sender, wake, task }
}

struct Worker {
    node: Arc<Node>,
    uid: String,
    desired: watch::Receiver<Desired>,
    wake: Arc<Notify>,
    memory: Memory,
    observed: Observed,
    known: bool,
    running: JoinSet<(Action, Outcome)>,
    ending: CancellationToken,
    shown: Option<PodStatus>,
    published: Option<PodStatus>,
    /// Since when the API shows something else than was published.
    disputed: Option<tokio::time::Instant>,
    publishing: JoinSet<(PodStatus, Result<(), String>)>,
    publish_again: Option<tokio::time::Instant>,
    refresh_at: tokio::time::Instant,
    backing_off: std::collections::BTreeMap<String, String>,
    mirrors_lost: u32,
}

impl Worker {
    fn new(node: Arc<Node>, desired: watch::Receiver<Desired>, wake: Arc<Notify>) -> Worker {
        let pod = desired.borrow().pod.clone();
        Worker {
            uid: naming::uid(&pod).to_string(),
            memory: Memory::adopt(&pod),
            refresh_at: tokio::time::Instant::now() + node.config.volume_period,
            node,
            desired,
            wake,
            observed: Observed::default(),
            known: false,
            running: JoinSet::new(),
            ending: CancellationToken::new(),
            shown: None,
            published: None,
            disputed: None,
            publishing: JoinSet::new(),
            publish_again: None,
            backing_off: std::collections::BTreeMap::new(),
            mirrors_lost: 0,
        }
    }

    async fn run(mut self) {
        let mut dirty = true;
        loop {
            if dirty {
                self.observe().await;
            }
            let wake = self.turn();
            if self.memory.gone() {
                break;
            }
            dirty = self.wait(wake).await;
        }
        while self.publishing.join_next().await.is_some() {}
        self.node.remove_view(&self.uid);
    }

    async fn observe(&mut self) {
        match self.node.cri.observe(&self.uid).await {
            Ok(observed) => {
                self.observed = observed;
                self.known = true;
            }
            Err(e) => {
                self.known = false;
                warn!(uid = self.uid, error = e.message(), "cannot read the pod from the runtime");
            }
        }
    }

    /// One decision. Returns when to look again.
    fn turn(&mut self) -> Option<Timestamp> {
        let now = Timestamp::now();
        let desired = self.desired.borrow_and_update().clone();
        let pod = desired.pod.clone();
        if !self.known {
            return now.checked_add(jiff::SignedDuration::from_secs(1)).ok();
        }
        self.note_endings(&desired, now);
        if std::mem::replace(&mut self.mirrors_lost, desired.mirrors_lost) != desired.mirrors_lost {
            self.published = None;
        }
        self.memory.refresh(&pod, &self.observed, now);
        if self.memory.ending.is_some() {
            self.ending.cancel();
        }
        let planned = plan::plan(&pod, &self.memory, &self.observed, now);
        for action in planned.actions {
            debug!(pod = naming::name(&pod), ?action, "action");
            self.memory.begin(&action, &self.observed, now);
            let situation = self.situation(&desired);
            self.running.spawn(async move {
                let outcome = execute(situation, action.clone()).await;
                (action, outcome)
            });
        }
        self.show(&desired, now);
        planned.wake
    }

    fn situation(&self, desired: &Desired) -> Situation {
        Situation {
            node: self.node.clone(),
            pod: desired.pod.clone(),
            observed: self.observed.clone(),
            ending: self.ending.clone(),
            in_api: !desired.removed && !naming::is_static(&desired.pod),
            final_status: self.shown.clone(),
        }
    }

    fn note_endings(&mut self, desired: &Desired, now: Timestamp) {
        let grace = grace_period(&desired.pod);
        if let Some(refusal) = &desired.refusal {
            self.memory.end(EndReason::Rejected, &refusal.reason, &refusal.message, 0, now);
        }
        if let Some(message) = &desired.eviction {
            self.memory.end(EndReason::Evicted, "Evicted", message, 0, now);
        }
        if desired.removed {
            let deleting = desired.pod.metadata.deletion_timestamp.is_some();
            // Gone from the API: a forced deletion is immediate, a lost pod gets its grace.
            let grace = if deleting {
                desired.pod.metadata.deletion_grace_period_seconds.unwrap_or(grace)
            } else {
                grace
            };
            self.memory.end(EndReason::Removed, "", "", grace, now);
        }
    }

    /// Computes the status, keeps it for the server, publishes it when it changed.
    fn show(&mut self, desired: &Desired, now: Timestamp) {
        let erasing = self.memory.ending.as_ref().is_some_and(|e| e.erases());
        if !(self.memory.released && erasing) {
            let facts = self.node.node_facts();
            // Transition times come from what was shown last, else from the API.
            let mut pod = status::with_shown(&desired.pod, self.shown.as_ref());
            let status = status::pod_status(&pod, &self.memory, &self.observed, &facts, now);
            self.events_of(&pod, &status);
            pod.status = Some(status.clone());
            self.node.put_view(&self.uid, PodView { pod: Arc::new(pod), observed: self.observed.clone() });
            self.shown = Some(status);
        }
        self.compare(&desired.pod);
        let due = self.publish_again.is_none_or(|at| at <= tokio::time::Instant::now());
        let reportable = !desired.removed && self.publishing.is_empty() && due;
        let (Some(client), true) = (self.node.config.client.clone(), reportable) else { return };
        let Some(status) = self.shown.clone().filter(|s| self.published.as_ref() != Some(s)) else { return };
        let (node, pod) = (self.node.clone(), desired.pod.clone());
        self.publishing.spawn(async move {
            let result = if naming::is_static(&pod) {
                publish::mirror(&client, &node.config.node_name, &pod, &status).await
            } else {
                publish::status(&client, &pod, &status).await
            };
            (status, result)
        });
    }

    /// Publishes again what the API does not show for a while: somebody else wrote, such as the node lifecycle controller
    /// while this node could not be heard.
    fn compare(&mut self, pod: &Pod) {
        let told = self.published.as_ref().filter(|_| self.publishing.is_empty() && !naming::is_static(pod));
        let disputed =
            told.zip(pod.status.as_ref()).is_some_and(|(told, api)| status::contradicts(api, told));
        let now = tokio::time::Instant::now();
        if !disputed {
            self.disputed = None;
        } else if *self.disputed.get_or_insert(now) + DISPUTE <= now {
            self.disputed = None;
            self.published = None;
        }
    }

    /// Says once per container that it is backing off.
    fn events_of(&mut self, pod: &Pod, status: &PodStatus) {
        let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        for container in all {
            let waiting = container.state.as_ref().and_then(|s| s.waiting.as_ref());
            let reason = waiting.and_then(|w| w.reason.clone()).unwrap_or_default();
            if self.backing_off.get(&container.name) == Some(&reason) {
                continue;
            }
            let message = waiting.and_then(|w| w.message.clone()).unwrap_or_default();
            let name = Some(container.name.as_str());
            match reason.as_str() {
                "CrashLoopBackOff" => {
                    let shown =
                        message.split_once(" restarting").map_or(message.as_str(), |(_, rest)| rest.trim());
                    let text = format!("Back-off restarting {}", shown.trim_start_matches("restarting "));
                    self.node.events.pod(pod, name, true, "BackOff", text);
                }
                "ImagePullBackOff" => {
                    let text = format!("Back-off pulling image \"{}\"", container.image);
                    self.node.events.pod(pod, name, false, "BackOff", text);
                }
                _ => {}
            }
            self.backing_off.insert(container.name.clone(), reason);
        }
    }

    /// Waits for the next thing. True if the runtime must be read again.
    async fn wait(&mut self, wake: Option<Timestamp>) -> bool {
        let now = Timestamp::now();
        let until = wake.map(|at| at.duration_since(now).max(jiff::SignedDuration::ZERO).unsigned_abs());
        let until = until.map_or(Duration::from_secs(60), |d| d.min(Duration::from_secs(60)));
        let mut deadline = tokio::time::Instant::now() + until;
        for again in self.publish_again.into_iter().chain(self.disputed.map(|since| since + DISPUTE)) {
            deadline = deadline.min(again.max(tokio::time::Instant::now()));
        }
        let refreshes = self.memory.prepared == Prepared::Ready && self.memory.ending.is_none();
        let refreshes = refreshes && volumes::needs_refresh(&self.desired.borrow().pod);
        let refresh_at = self.refresh_at;
        tokio::select! {
            changed = self.desired.changed() => {
                if changed.is_err() {
                    // The agent dropped the handle: nothing will ever change again but the runtime.
                    tokio::time::sleep_until(deadline).await;
                }
                true
            }
            () = self.wake.notified() => true,
            Some(done) = self.running.join_next() => self.finished(done),
            Some(done) = self.publishing.join_next() => {
                self.was_published(done);
                false
            }
            () = tokio::time::sleep_until(refresh_at), if refreshes => {
                self.refresh_at = tokio::time::Instant::now() + self.node.config.volume_period;
                self.refresh_volumes();
                false
            }
            () = tokio::time::sleep_until(deadline) => !self.known || wake.is_none(),
        }
    }

    fn finished(&mut self, done: Result<(Action, Outcome), tokio::task::JoinError>) -> bool {
        match done {
            Ok((action, outcome)) => {
                let pod = self.desired.borrow().pod.clone();
                self.memory.finish(&pod, &action, &outcome, Timestamp::now());
                !matches!(action, Action::Probe { .. })
            }
            Err(e) => {
                // A panic in an action: forget what was in flight, so that the plan can offer it again.
                warn!(uid = self.uid, error = %e, "an action's task failed");
                self.memory.in_flight.clear();
                true
            }
        }
    }

    fn was_published(&mut self, done: Result<(PodStatus, Result<(), String>), tokio::task::JoinError>) {
        match done {
            Ok((status, Ok(()))) => {
                self.published = Some(status);
                self.publish_again = None;
            }
            Ok((_, Err(message))) => {
                warn!(uid = self.uid, message, "status not published, will be retried");
                self.publish_again = Some(tokio::time::Instant::now() + Duration::from_secs(2));
            }
            Err(e) => warn!(uid = self.uid, error = %e, "the publishing task failed"),
        }
    }

    /// Beside the loop: slow API answers must not hold it.
    fn refresh_volumes(&self) {
        let (node, pod) = (self.node.clone(), self.desired.borrow().pod.clone());
        let ending = self.ending.clone();
        tokio::spawn(async move {
            if ending.is_cancelled() {
                return;
            }
            if let Err(message) = volumes::refresh(&node, &pod).await {
                warn!(pod = naming::name(&pod), message, "volume not refreshed");
            }
        });
    }
}
