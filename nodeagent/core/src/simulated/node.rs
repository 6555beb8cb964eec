//! A simulated node's pods: what the API says of them in, what is to be written to the API out.
//!
//! Order: a pod has at most one write under way; the next one is offered once `written` told how it ended. A pod leaves
//! only after the API confirmed its deletion, or does not have it any more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::RUNTIME;
use super::address::Addresses;
use super::pod::Simulated;
use crate::pod::admission::{self, Room};
use crate::pod::memory::later;
use crate::pod::naming;
use crate::pod::status::{self, NodeFacts};

/// A failed write is offered again after this, and a status that the API does not show.
const RETRY: SignedDuration = SignedDuration::from_secs(2);

/// One request to the API about a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Status {
        pod: Arc<Pod>,
        status: PodStatus,
    },
    /// The last status, then the deletion without grace.
    Delete {
        pod: Arc<Pod>,
        status: Option<PodStatus>,
    },
}

/// Something to tell the pod's owner in an Event.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    pub pod: Arc<Pod>,
    pub container: Option<String>,
    pub reason: &'static str,
    pub message: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turn {
    pub writes: Vec<Write>,
    pub notes: Vec<Note>,
    /// When to turn again if nothing happens before.
    pub wake: Option<Timestamp>,
}

#[derive(Clone, Debug)]
struct Entry {
    pod: Arc<Pod>,
    removed: bool,
    simulated: Simulated,
    published: Option<PodStatus>,
    /// Since when the API shows something else than it was told.
    disputed: Option<Timestamp>,
    /// What is being written: a status, or nothing for a deletion.
    writing: Option<Option<PodStatus>>,
    delete: bool,
    retry: Option<Timestamp>,
}

#[derive(Clone, Debug)]
pub struct SimulatedNode {
    facts: NodeFacts,
    room: Room,
    addresses: Addresses,
    pods: BTreeMap<String, Entry>,
}

impl SimulatedNode {
    pub fn new(node_ip: &str, pods: Ipv4Net, room: Room) -> SimulatedNode {
        let facts = NodeFacts { host_ips: vec![node_ip.to_string()], runtime: RUNTIME.into() };
        SimulatedNode { facts, room, addresses: Addresses::new(pods), pods: BTreeMap::new() }
    }

    /// A pod of this node is new or changed.
    pub fn apply(&mut self, pod: Pod, now: Timestamp) {
        let uid = naming::uid(&pod).to_string();
        if uid.is_empty() || naming::is_mirror(&pod) {
            return;
        }
        let pod = Arc::new(pod);
        if let Some(entry) = self.pods.get_mut(&uid) {
            entry.pod = pod;
            return;
        }
        let mut simulated = Simulated::adopt(&pod);
        let known = pod.status.as_ref();
        if !over(known) && known.is_none_or(|s| s.start_time.is_none()) {
            let accepted: Vec<&Pod> =
                self.pods.values().filter(|e| e.counts()).map(|e| e.pod.as_ref()).collect();
            if let Err(refusal) = admission::admit(&pod, &accepted, &self.room, None) {
                simulated.refuse(&refusal, now);
            }
        }
        let entry = Entry {
            pod,
            removed: false,
            simulated,
            published: None,
            disputed: None,
            writing: None,
            delete: false,
            retry: None,
        };
        self.pods.insert(uid, entry);
    }

    /// The API does not have the pod any more; this is its last state.
    pub fn delete(&mut self, pod: Pod) {
        if let Some(entry) = self.pods.get_mut(naming::uid(&pod)) {
            entry.pod = Arc::new(pod);
            entry.removed = true;
        }
    }

    /// All pods that the API has for this node; others are gone.
    pub fn complete(&mut self, pods: Vec<Pod>, now: Timestamp) {
        let listed: BTreeSet<String> = pods.iter().map(|pod| naming::uid(pod).to_string()).collect();
        for (uid, entry) in &mut self.pods {
            entry.removed |= !listed.contains(uid);
        }
        for pod in pods {
            self.apply(pod, now);
        }
    }

    /// How a write ended.
    pub fn written(&mut self, uid: &str, answer: Result<(), String>, now: Timestamp) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let Some(what) = entry.writing.take() else { return };
        entry.retry = answer.is_err().then(|| later(now, RETRY));
        match what {
            Some(status) if answer.is_ok() => entry.published = Some(status),
            Some(_) => {}
            None => {
                entry.delete = false;
                let pod = entry.pod.clone();
                entry.simulated.deleted(&pod, answer, now);
            }
        }
    }

    /// Everything that is due on this node.
    pub fn turn(&mut self, now: Timestamp) -> Turn {
        let mut out = Turn::default();
        // Who has an address keeps it, before newcomers choose.
        for (uid, entry) in self.pods.iter().filter(|(_, entry)| entry.needs_address()) {
            if let Some(known) = entry.known_address() {
                self.addresses.take(uid, Some(known));
            }
        }
        for (uid, entry) in &mut self.pods {
            let pod = entry.pod.clone();
            // Not before the API knows: two pods it shows as running never share an address.
            if !entry.simulated.wants_address() && over(entry.published.as_ref()) {
                self.addresses.give_back(uid);
            }
            let address = if entry.needs_address() { self.addresses.take(uid, None) } else { None };
            let address = address.map(|ip| ip.to_string());
            let turn = entry.simulated.turn(&pod, entry.removed, address.as_deref(), &self.facts, now);
            entry.delete |= turn.delete;
            let notes = turn.events.into_iter().map(|(container, reason, message)| Note {
                pod: pod.clone(),
                container,
                reason,
                message,
            });
            out.notes.extend(notes);
            entry.compare(now);
            let write = entry.write(now);
            let again = entry.disputed.map(|since| later(since, RETRY)).into_iter().chain(entry.retry);
            let again = again.filter(|at| *at > now);
            out.wake = out.wake.into_iter().chain(turn.wake).chain(again).min();
            out.writes.extend(write);
        }
        let gone: Vec<String> =
            self.pods.iter().filter(|(_, e)| e.simulated.gone()).map(|(uid, _)| uid.clone()).collect();
        for uid in gone {
            self.pods.remove(&uid);
            self.addresses.give_back(&uid);
        }
        out
    }

    /// Uids of the pods that are still on the node.
    pub fn uids(&self) -> impl Iterator<Item = &str> {
        self.pods.keys().map(String::as_str)
    }
}

fn over(status: Option<&PodStatus>) -> bool {
    status.is_some_and(|s| matches!(s.phase.as_deref(), Some("Succeeded" | "Failed")))
}

/// What has lasted since then has lasted long enough.
fn earlier(now: Timestamp) -> Timestamp {
    now.saturating_sub(RETRY).unwrap_or(Timestamp::MIN)
}

impl Entry {
    /// Whether the pod takes room on the node.
    fn counts(&self) -> bool {
        !self.removed && !over(self.simulated.shown())
    }

    fn needs_address(&self) -> bool {
        // Of a pod that is over the API still shows the address, but it may be another's by now.
        let over = over(self.pod.status.as_ref());
        self.simulated.wants_address() && !over && !naming::host_network(&self.pod)
    }

    /// The address that the API shows.
    fn known_address(&self) -> Option<Ipv4Addr> {
        self.pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()
    }

    /// Whether the API shows what it was told.
    fn compare(&mut self, now: Timestamp) {
        let told = self.published.as_ref().filter(|_| self.writing.is_none() && !self.removed);
        let disputed =
            told.zip(self.pod.status.as_ref()).is_some_and(|(told, api)| status::contradicts(api, told));
        if !disputed {
            self.disputed = None;
        } else if *self.disputed.get_or_insert(now) <= earlier(now) {
            self.published = None;
            self.disputed = None;
        }
    }

    fn write(&mut self, now: Timestamp) -> Option<Write> {
        if self.removed || self.writing.is_some() || self.retry.is_some_and(|at| at > now) {
            return None;
        }
        let status = self.simulated.shown().cloned();
        if self.delete {
            self.writing = Some(None);
            return Some(Write::Delete { pod: self.pod.clone(), status });
        }
        let status = status.filter(|status| self.published.as_ref() != Some(status))?;
        self.writing = Some(Some(status.clone()));
        Some(Write::Status { pod: self.pod.clone(), status })
    }
}
