//! The loop of a leading scheduler: inputs change cache and queue, a popped pod is decided, tasks carry it out.
//!
//! Order matters in one place: inputs that wait are taken before the next decision, so that a decision is never staler
//! than what already arrived. No pod is decided before every kind's first list is in (or 30 s passed: a server without
//! some kind must not stop scheduling; claims that are unknown are refused anyway).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_scheduler_core::binding::AfterBind;
use keelson_scheduler_core::cache::Change;
use keelson_scheduler_core::events::{ClusterEvent, NodeChange};
use keelson_scheduler_core::queue::Popped;
use keelson_scheduler_core::selector::LabelSelector;
use keelson_scheduler_core::{Cache, Decision, Options, PodInfo, SchedulingQueue, schedule};
use kube::{Client, ResourceExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::binder::{self, BindOutcome};
use crate::config::Config;
use crate::preemptor;
use crate::reporter::Reporter;
use crate::watches::{self, Delta, Input, KINDS};

/// How long the first lists may take before scheduling starts without some.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);
/// Most binds at once; more pods wait in the queue.
const MOST_BINDS: usize = 2048;

/// Schedules until the term ends.
pub async fn lead(client: Client, config: &Config, term: CancellationToken) {
    let mut inputs = watches::start(&client, &term);
    let mut scheduler = Scheduler::new(client, config, &term);
    scheduler.wait_for_lists(&mut inputs, &term).await;
    while !term.is_cancelled() {
        scheduler.take_waiting(&mut inputs);
        scheduler.queue.tick(scheduler.now());
        if scheduler.binds.len() < MOST_BINDS
            && let Some(popped) = scheduler.queue.pop()
        {
            scheduler.decide(popped);
            tokio::task::yield_now().await;
            continue;
        }
        let pause = scheduler.queue.next_wakeup().map(|at| at.saturating_sub(scheduler.now()));
        tokio::select! {
            () = term.cancelled() => break,
            input = inputs.recv() => match input {
                Some(input) => scheduler.input(input),
                None => break,
            },
            Some(outcome) = scheduler.binds.join_next() => match outcome {
                Ok(outcome) => scheduler.outcome(outcome),
                Err(error) => warn!(%error, "a binding task ended without an outcome"),
            },
            () = tokio::time::sleep(pause.unwrap_or(Duration::from_secs(60))) => {}
        }
    }
}

struct Scheduler<'a> {
    client: Client,
    config: &'a Config,
    reporter: Reporter,
    cache: Cache,
    queue: SchedulingQueue,
    binds: JoinSet<BindOutcome>,
    epoch: Instant,
    /// Where the next search begins in the list of nodes.
    start: usize,
}

impl<'a> Scheduler<'a> {
    fn new(client: Client, config: &'a Config, term: &CancellationToken) -> Scheduler<'a> {
        let instance = config.leader_election.identity.split('_').next().unwrap_or_default();
        let instance = format!("default-scheduler-{instance}");
        Scheduler {
            reporter: Reporter::start(client.clone(), instance, term.clone()),
            client,
            config,
            cache: Cache::default(),
            queue: SchedulingQueue::default(),
            binds: JoinSet::new(),
            epoch: Instant::now(),
            start: 0,
        }
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    async fn wait_for_lists(&mut self, inputs: &mut mpsc::Receiver<Input>, term: &CancellationToken) {
        let mut deadline = tokio::time::Instant::now() + SYNC_TIMEOUT;
        let mut synced = BTreeSet::new();
        while synced.len() < KINDS {
            tokio::select! {
                () = term.cancelled() => return,
                () = tokio::time::sleep_until(deadline) => {
                    // Without pods and nodes every decision would be wrong: those are waited for as long as it takes.
                    if synced.contains("pods") && synced.contains("nodes") {
                        warn!(?synced, "some kinds could not be listed: scheduling without them");
                        return;
                    }
                    deadline += Duration::from_secs(1);
                }
                input = inputs.recv() => match input {
                    Some(Input::Synced(kind)) => drop(synced.insert(kind)),
                    Some(input) => self.input(input),
                    None => return,
                },
            }
        }
        info!(nodes = self.cache.snapshot().nodes().len(), "scheduling");
    }

    fn take_waiting(&mut self, inputs: &mut mpsc::Receiver<Input>) {
        while let Ok(input) = inputs.try_recv() {
            self.input(input);
        }
        while let Some(outcome) = self.binds.try_join_next() {
            match outcome {
                Ok(outcome) => self.outcome(outcome),
                Err(error) => warn!(%error, "a binding task ended without an outcome"),
            }
        }
    }

    /// One scheduling cycle.
    fn decide(&mut self, popped: Popped) {
        let pod = popped.pod;
        if pod.terminating || self.cache.snapshot().place(&pod.uid).is_some() {
            self.queue.done(&pod.uid);
            return;
        }
        let options = Options {
            seed: rand::random(),
            start: self.start,
            percentage_of_nodes: self.config.percentage_of_nodes,
        };
        let started = Instant::now();
        let decision = schedule(&pod, self.cache.snapshot(), &options);
        self.start = self.start.wrapping_add(decision.evaluated) % decision.nodes.max(1);
        debug!(pod = pod.key(), attempt = popped.attempts, micros = started.elapsed().as_micros(), "decided");
        match &decision.placement {
            None => self.refused(pod, decision),
            Some(placement) => {
                if !self.cache.assume(&pod, &placement.node, &placement.pre_bind) {
                    self.queue.failed(&pod.uid, BTreeSet::new(), self.now());
                    return;
                }
                let task = binder::bind(
                    self.client.clone(),
                    pod,
                    placement.node.clone(),
                    placement.pre_bind.clone(),
                );
                self.binds.spawn(task);
            }
        }
    }

    fn refused(&mut self, pod: Arc<PodInfo>, decision: Decision) {
        let message = decision.message();
        info!(pod = pod.key(), %message, "unschedulable");
        self.queue.failed(&pod.uid, decision.plugins, self.now());
        self.reporter.unschedulable(&pod, "Unschedulable", message);
        if let Some(plan) = decision.preemption {
            let nominated = &mut self.cache.snapshot_mut().nominated;
            nominated.insert(pod.uid.clone(), (pod.clone(), plan.node.clone()));
            tokio::spawn(preemptor::preempt(self.client.clone(), self.reporter.clone(), pod, plan));
        }
    }

    fn outcome(&mut self, outcome: BindOutcome) {
        let BindOutcome { pod, node, after, message } = outcome;
        let now = self.now();
        match after {
            AfterBind::Bound => {
                info!(pod = pod.key(), node, "bound");
                self.queue.done(&pod.uid);
                self.reporter.scheduled(&pod, &node);
            }
            AfterBind::Forget => {
                self.queue.done(&pod.uid);
                self.freed(&pod.uid);
            }
            // The binder ends with neither of the last two; were it to, trying again is safe.
            AfterBind::ForgetAndRequeue | AfterBind::ReadBack | AfterBind::BindAgain => {
                warn!(pod = pod.key(), node, %message, "binding failed: will be tried again");
                self.queue.failed(&pod.uid, BTreeSet::new(), now);
                self.freed(&pod.uid);
                self.reporter.unschedulable(&pod, "SchedulerError", message);
            }
        }
    }

    /// The assumed pod gives its room back: others may fit now.
    fn freed(&mut self, uid: &str) {
        if let Some(pod) = self.cache.forget(uid) {
            self.queue.event(ClusterEvent::PodLeft(pod), self.now());
        }
    }

    fn input(&mut self, input: Input) {
        let now = self.now();
        let storage = |scheduler: &mut Scheduler| {
            scheduler.queue.event(ClusterEvent::Storage, now);
        };
        let cluster = self.cache.snapshot_mut();
        match input {
            Input::Synced(_) => {}
            Input::Pod(delta) => self.pod(delta),
            Input::Node(delta) => self.node(delta),
            Input::Claim(delta) => {
                match (delta.new, delta.old) {
                    (Some(new), _) => cluster.volumes.set_claim(&new),
                    (None, Some(old)) => {
                        cluster.volumes.remove_claim(&old.namespace().unwrap_or_default(), &old.name_any());
                    }
                    _ => {}
                }
                storage(self);
            }
            Input::Volume(delta) => {
                match (delta.new, delta.old) {
                    (Some(new), _) => cluster.volumes.set_volume(&new),
                    (None, Some(old)) => cluster.volumes.remove_volume(&old.name_any()),
                    _ => {}
                }
                storage(self);
            }
            Input::Class(delta) => {
                match (delta.new, delta.old) {
                    (Some(new), _) => cluster.volumes.set_class(&new),
                    (None, Some(old)) => drop(cluster.volumes.classes.remove(&old.name_any())),
                    _ => {}
                }
                storage(self);
            }
            Input::CsiNode(delta) => {
                match (delta.new, delta.old) {
                    (Some(new), _) => cluster.volumes.set_limits(&new),
                    (None, Some(old)) => drop(cluster.volumes.limits.remove(&old.name_any())),
                    _ => {}
                }
                storage(self);
            }
            Input::Budget(delta) => match (delta.new, delta.old) {
                (Some(new), _) => cluster.set_budget(&new),
                (None, Some(old)) => {
                    cluster.budgets.remove(&(old.namespace().unwrap_or_default(), old.name_any()));
                }
                _ => {}
            },
            other => self.grouping(other),
        }
    }

    /// Namespaces, services and workloads: what groups pods.
    fn grouping(&mut self, input: Input) {
        let now = self.now();
        let cluster = self.cache.snapshot_mut();
        match input {
            Input::Namespace(Delta { old, new }) => {
                let before = old.as_ref().map(|old| old.labels().clone());
                match (new, old) {
                    (Some(new), _) => {
                        let changed = before.as_ref() != Some(new.labels());
                        cluster.namespaces.insert(new.name_any(), new.labels().clone());
                        if changed {
                            self.queue.event(ClusterEvent::Grouping, now);
                        }
                    }
                    (None, Some(old)) => drop(cluster.namespaces.remove(&old.name_any())),
                    _ => {}
                }
            }
            Input::Service(Delta { old, new }) => match (new, old) {
                (Some(new), _) => {
                    let selector =
                        new.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
                    cluster.services.insert((new.namespace().unwrap_or_default(), new.name_any()), selector);
                }
                (None, Some(old)) => {
                    cluster.services.remove(&(old.namespace().unwrap_or_default(), old.name_any()));
                }
                _ => {}
            },
            Input::ReplicaSet(delta) => self.workload("ReplicaSet", delta, |set| {
                set.spec.as_ref().map(|spec| LabelSelector::new(Some(&spec.selector)))
            }),
            Input::StatefulSet(delta) => self.workload("StatefulSet", delta, |set| {
                set.spec.as_ref().map(|spec| LabelSelector::new(Some(&spec.selector)))
            }),
            Input::ReplicationController(delta) => self.workload("ReplicationController", delta, |set| {
                set.spec.as_ref().and_then(|spec| spec.selector.as_ref()).map(LabelSelector::from_labels)
            }),
            _ => {}
        }
    }

    fn workload<K: ResourceExt>(
        &mut self,
        kind: &str,
        delta: Delta<K>,
        selector: impl Fn(&K) -> Option<LabelSelector>,
    ) {
        let workloads = &mut self.cache.snapshot_mut().workloads;
        let key = |object: &K| (object.namespace().unwrap_or_default(), kind.to_string(), object.name_any());
        match (delta.new, delta.old) {
            (Some(new), _) => {
                if let Some(selector) = selector(&new) {
                    workloads.insert(key(&new), selector);
                }
            }
            (None, Some(old)) => drop(workloads.remove(&key(&old))),
            _ => {}
        }
    }

    fn node(&mut self, delta: Delta<Node>) {
        let now = self.now();
        match (delta.new, delta.old) {
            (Some(new), old) => {
                let change = NodeChange::between(old.as_deref(), &new);
                self.cache.snapshot_mut().set_node(&new);
                if !change.is_nothing() {
                    let labels = new.labels().clone();
                    self.queue.event(ClusterEvent::Node { change, labels }, now);
                }
            }
            (None, Some(old)) => self.cache.snapshot_mut().remove_node(&old.name_any()),
            _ => {}
        }
    }

    fn pod(&mut self, delta: Delta<Pod>) {
        let now = self.now();
        let gone = |pod: &Pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            matches!(phase, Some("Succeeded" | "Failed"))
        };
        match (delta.new, delta.old) {
            (Some(new), _) if !gone(&new) => {
                let pod = Arc::new(PodInfo::new(&new));
                if pod.node_name.is_empty() {
                    self.waiting(pod);
                } else {
                    self.queue.remove(&pod.uid);
                    match self.cache.observe(pod.clone()) {
                        Change::Nothing => {}
                        Change::Placed | Change::Relabelled => {
                            self.queue.event(ClusterEvent::PodPlaced(pod), now);
                        }
                        Change::Shrunk => drop(self.queue.event(ClusterEvent::PodLeft(pod), now)),
                    }
                }
            }
            (Some(pod), _) | (None, Some(pod)) => {
                let uid = pod.uid().unwrap_or_default();
                self.queue.remove(&uid);
                self.reporter.forget(&uid);
                let nominated = self.cache.snapshot_mut().nominated.remove(&uid);
                if let Some(left) = self.cache.remove(&uid).or(nominated.map(|(pod, _)| pod)) {
                    self.queue.event(ClusterEvent::PodLeft(left), now);
                }
            }
            _ => {}
        }
    }

    /// A pod without a node.
    fn waiting(&mut self, pod: Arc<PodInfo>) {
        if pod.terminating || !self.config.scheduler_names.contains(&pod.scheduler_name) {
            self.queue.remove(&pod.uid);
            return;
        }
        if self.cache.is_assumed(&pod.uid) {
            return;
        }
        if !pod.nominated_node.is_empty() {
            let nominated = &mut self.cache.snapshot_mut().nominated;
            nominated.insert(pod.uid.clone(), (pod.clone(), pod.nominated_node.clone()));
        }
        if !pod.gates.is_empty() {
            let message = "Scheduling is blocked due to non-empty scheduling gates".to_string();
            self.reporter.unschedulable(&pod, "SchedulingGated", message);
        }
        self.queue.update(pod, self.now());
    }
}
