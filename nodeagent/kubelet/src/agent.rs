//! The agent's loop: sources' changes and the runtime's changes in, one worker per pod.
//!
//! Order: pods of a source appear as they come; pods only the runtime knows are orphans, ended with their grace once every
//! source is complete. The runtime is listed every second; a pod whose fingerprint changed wakes its worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_nodeagent_core::pod::admission::{self, Room};
use keelson_nodeagent_core::pod::naming;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::context::Node;
use crate::source::{Change, Origin, PodSource};
use crate::worker::{self, Desired, Handle};

/// A request of the node itself (pressure) to end a pod.
pub struct Eviction {
    pub uid: String,
    pub message: String,
}

pub struct Agent {
    node: Arc<Node>,
    workers: BTreeMap<String, Handle>,
    origins: BTreeMap<String, Origin>,
    incomplete: BTreeSet<Origin>,
    fingerprints: BTreeMap<String, u64>,
    /// Static pods' mirrors in the API, by the mirror's own uid.
    mirrors: BTreeMap<String, Arc<Pod>>,
    done: mpsc::UnboundedSender<String>,
    stop: CancellationToken,
}

/// Runs until `stop`; pods keep running then.
pub async fn run(
    node: Arc<Node>,
    sources: Vec<Box<dyn PodSource>>,
    mut evictions: mpsc::Receiver<Eviction>,
    stop: CancellationToken,
) {
    let (changes, mut changed) = mpsc::channel(64);
    let (done, mut finished) = mpsc::unbounded_channel();
    let mut agent = Agent {
        node,
        workers: BTreeMap::new(),
        origins: BTreeMap::new(),
        incomplete: sources.iter().map(|s| s.origin()).collect(),
        fingerprints: BTreeMap::new(),
        mirrors: BTreeMap::new(),
        done,
        stop: stop.clone(),
    };
    for source in sources {
        tokio::spawn(source.run(changes.clone(), stop.clone()));
    }
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(change) = changed.recv() => agent.change(change),
            Some(uid) = finished.recv() => agent.finished(&uid),
            Some(eviction) = evictions.recv() => agent.evict(&eviction),
            _ = tick.tick() => agent.relist().await,
            () = stop.cancelled() => break,
        }
    }
    for (_, handle) in std::mem::take(&mut agent.workers) {
        let _ = handle.task.await;
    }
}

impl Agent {
    fn change(&mut self, change: Change) {
        match change {
            Change::Apply(pod) => self.apply(*pod, Origin::Api),
            Change::Delete(pod) => {
                // Its last state tells whether the deletion was forced.
                let uid = naming::uid(&pod).to_string();
                if self.mirrors.remove(&uid).is_some() {
                    self.mirror_lost(&pod);
                    return;
                }
                self.update(&uid, |desired| {
                    desired.pod = Arc::new(*pod);
                    desired.removed = true;
                });
            }
            Change::Complete(origin, pods) => {
                let listed: BTreeSet<String> = pods.iter().map(|p| naming::uid(p).to_string()).collect();
                for pod in pods {
                    self.apply(pod, origin);
                }
                let of_origin = |(uid, o): (&String, &Origin)| (*o == origin).then(|| uid.clone());
                if origin == Origin::Api {
                    self.mirrors.retain(|uid, _| listed.contains(uid));
                }
                let gone: Vec<String> =
                    self.origins.iter().filter_map(of_origin).filter(|uid| !listed.contains(uid)).collect();
                for uid in gone {
                    self.update(&uid, |desired| desired.removed = true);
                }
                self.incomplete.remove(&origin);
            }
        }
    }

    fn apply(&mut self, pod: Pod, origin: Origin) {
        let uid = naming::uid(&pod).to_string();
        if uid.is_empty() {
            return;
        }
        let pod = Arc::new(pod);
        if naming::is_mirror(&pod) {
            self.mirrors.insert(uid, pod);
            return;
        }
        if let Some(handle) = self.workers.get(&uid) {
            handle.desired.send_modify(|desired| desired.pod = pod);
            self.origins.insert(uid, origin);
            return;
        }
        let over =
            matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
        let met_before = pod.status.as_ref().is_some_and(|s| s.start_time.is_some());
        let refusal = if over || met_before { None } else { self.admit(&pod) };
        if let Some(refusal) = &refusal {
            self.node.events.pod(&pod, None, true, "FailedAdmission", refusal.message.clone());
        }
        info!(pod = naming::name(&pod), namespace = naming::namespace(&pod), uid, "pod added");
        self.spawn(&uid, origin, Desired { pod, removed: false, refusal, eviction: None, mirrors_lost: 0 });
    }

    /// The mirror of a static pod is gone from the API: its worker makes a new one.
    fn mirror_lost(&self, mirror: &Pod) {
        if let Some(uid) = naming::annotation(mirror, naming::ANNOTATION_CONFIG_MIRROR) {
            self.update(uid, |desired| desired.mirrors_lost += 1);
        }
    }

    /// Takes mirrors away that are to be deleted or whose static pod is gone.
    fn sweep_mirrors(&mut self) {
        let Some(client) = self.node.config.client.clone().filter(|_| self.incomplete.is_empty()) else {
            return;
        };
        for mirror in self.mirrors.values() {
            let of = naming::annotation(mirror, naming::ANNOTATION_CONFIG_MIRROR);
            let alive = of.is_some_and(|uid| self.workers.contains_key(uid));
            if alive && mirror.metadata.deletion_timestamp.is_none() {
                continue;
            }
            let (client, mirror) = (client.clone(), mirror.clone());
            tokio::spawn(async move {
                if let Err(message) = crate::publish::confirm_deletion(&client, &mirror).await {
                    warn!(message, "a mirror pod stays");
                }
            });
        }
    }

    fn spawn(&mut self, uid: &str, origin: Origin, desired: Desired) {
        let handle = worker::spawn(self.node.clone(), desired, self.done.clone(), self.stop.clone());
        self.workers.insert(uid.to_string(), handle);
        self.origins.insert(uid.to_string(), origin);
    }

    fn admit(&self, pod: &Pod) -> Option<admission::Refusal> {
        let accepted: Vec<Arc<Pod>> = self
            .workers
            .values()
            .map(|h| h.desired.borrow())
            .filter(|d| !d.removed && d.refusal.is_none() && d.eviction.is_none())
            .map(|d| self.node.view(naming::uid(&d.pod)).map_or_else(|| d.pod.clone(), |v| v.pod))
            .filter(|p| {
                !matches!(p.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
            })
            .collect();
        let accepted: Vec<&Pod> = accepted.iter().map(AsRef::as_ref).collect();
        let machine = &self.node.machine;
        let room = Room {
            cpu_milli: machine.cpus * 1000,
            memory_bytes: machine.memory_bytes,
            pods: self.node.config.max_pods,
        };
        admission::admit(pod, &accepted, &room, None).err()
    }

    fn update(&self, uid: &str, change: impl FnOnce(&mut Desired)) {
        if let Some(handle) = self.workers.get(uid) {
            handle.desired.send_modify(change);
        }
    }

    fn evict(&mut self, eviction: &Eviction) {
        if let Some(view) = self.node.view(&eviction.uid) {
            self.node.events.pod(&view.pod, None, true, "Evicted", eviction.message.clone());
        }
        self.update(&eviction.uid, |desired| desired.eviction = Some(eviction.message.clone()));
    }

    fn finished(&mut self, uid: &str) {
        info!(uid, "pod is gone from this node");
        self.workers.remove(uid);
        self.origins.remove(uid);
        self.fingerprints.remove(uid);
    }

    /// Lists the runtime, wakes the workers of pods that changed, finds orphans.
    async fn relist(&mut self) {
        self.sweep_mirrors();
        let listed = match self.list().await {
            Ok(listed) => listed,
            Err(e) => {
                warn!(error = e.message(), "cannot list the runtime's pods");
                return;
            }
        };
        for (uid, (fingerprint, pod)) in &listed {
            if self.fingerprints.insert(uid.clone(), *fingerprint) != Some(*fingerprint)
                && let Some(handle) = self.workers.get(uid)
            {
                handle.wake.notify_one();
            }
            if self.incomplete.is_empty() && !self.workers.contains_key(uid) {
                info!(pod = naming::name(pod), uid, "no source has this pod any more, ending it");
                let desired = Desired {
                    pod: Arc::new(pod.clone()),
                    removed: true,
                    refusal: None,
                    eviction: None,
                    mirrors_lost: 0,
                };
                self.spawn(uid, Origin::Api, desired);
            }
        }
        let vanished: Vec<String> =
            self.fingerprints.keys().filter(|uid| !listed.contains_key(*uid)).cloned().collect();
        for uid in vanished {
            self.fingerprints.remove(&uid);
            if let Some(handle) = self.workers.get(&uid) {
                handle.wake.notify_one();
            }
        }
    }

    async fn list(&self) -> Result<BTreeMap<String, (u64, Pod)>, tonic::Status> {
        let mut out: BTreeMap<String, (u64, Pod)> = BTreeMap::new();
        for sandbox in self.node.cri.sandboxes(None).await? {
            let Some(metadata) = sandbox.metadata else { continue };
            let entry = out
                .entry(metadata.uid.clone())
                .or_insert_with(|| (0, orphan(&metadata.name, &metadata.namespace, &metadata.uid)));
            entry.0 ^= mix(&sandbox.id, sandbox.state);
        }
        for container in self.node.cri.containers(None).await? {
            let Some(uid) = container.labels.get(naming::LABEL_POD_UID) else { continue };
            let Some(entry) = out.get_mut(uid) else { continue };
            entry.0 ^= mix(&container.id, container.state + 16);
            let name = container.metadata.map(|m| m.name).unwrap_or_default();
            if let Some(spec) = &mut entry.1.spec
                && !spec.containers.iter().any(|c| c.name == name)
            {
                spec.containers.push(Container { name, ..Container::default() });
                let grace = container.annotations.get(naming::ANNOTATION_GRACE).and_then(|g| g.parse().ok());
                spec.termination_grace_period_seconds = grace.or(spec.termination_grace_period_seconds);
            }
        }
        Ok(out)
    }
}

/// The little that the runtime's labels say about a pod, enough to end it.
fn orphan(name: &str, namespace: &str, uid: &str) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(namespace.into()),
            uid: Some(uid.into()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { termination_grace_period_seconds: Some(30), ..PodSpec::default() }),
        status: None,
    }
}

/// Order-free fingerprint of one item.
fn mix(id: &str, state: i32) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325 ^ (state as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in id.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}
