//! Judges every change of the store, in order, as Kubernetes objects; and what must hold once all is calm.

use std::collections::{BTreeMap, BTreeSet};

use keelson_checker::Violation;
use keelson_sim::judge::Shared;
use keelson_store_core::{EventType, WatchEvent};
use serde_json::Value;

/// What a settled cluster may still write: heartbeats, leader leases, Events, the API servers' own bookkeeping.
const BREATH: [&str; 8] = [
    "/registry/leases/",
    "/registry/minions/",
    "/registry/events/",
    "/registry/keelson-mark",
    "/registry/masterleases/",
    "/registry/services/endpoints/default/kubernetes",
    "/registry/endpointslices/default/kubernetes",
    "/registry/keelson-compact",
];

/// How strict a run may be judged: some rules hold only where nothing got lost.
#[derive(Clone, Copy, Debug)]
pub struct Strictness {
    /// Nobody but the Deployment's controllers stops its pods.
    pub pods_stay: bool,
    /// Each request is answered.
    pub all_answered: bool,
}

/// The objects as of the newest change judged.
pub struct Checker {
    shared: Shared,
    strict: Strictness,
    objects: BTreeMap<String, Value>,
    next: i64,
    /// Deployment uids that have been fully available once.
    up: BTreeSet<String>,
    pub binds: usize,
    pub pods_made: usize,
    /// The newest change that is no heartbeat.
    pub last_work: (i64, String),
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    path.split('.').fold(value, |at, key| &at[key]).as_str().unwrap_or_default()
}

fn violated(property: &'static str, story: String) -> Result<(), Violation> {
    Err(Violation { property, story })
}

pub fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"]
        .as_array()
        .is_some_and(|list| list.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

pub fn is_active(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null()
        && !matches!(text(pod, "status.phase"), "Succeeded" | "Failed")
}

/// Whole cores of all containers; the pods here ask for whole or half ones.
fn milli_cpu(pod: &Value) -> i64 {
    let containers = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    containers.iter().map(|c| milli(text(c, "resources.requests.cpu"))).sum()
}

fn milli(amount: &str) -> i64 {
    match amount.strip_suffix('m') {
        Some(number) => number.parse().unwrap_or(0),
        None => amount.parse::<i64>().unwrap_or(0) * 1_000,
    }
}

fn controller(object: &Value) -> Option<&str> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|owner| owner["controller"] == true)?["uid"].as_str()
}

impl Checker {
    pub fn new(shared: Shared, strict: Strictness) -> Checker {
        Checker {
            shared,
            strict,
            objects: BTreeMap::new(),
            next: 0,
            up: BTreeSet::new(),
            binds: 0,
            pods_made: 0,
            last_work: (0, String::new()),
        }
    }

    /// Takes in what was applied since the last call.
    ///
    /// # Errors
    /// The first violation.
    pub fn advance(&mut self) -> Result<(), Violation> {
        let changes: Vec<(i64, Vec<WatchEvent>)> = {
            let record = self.shared.record();
            let changes = record.changes(self.next, record.newest());
            changes.map(|group| (group.revision, group.events.clone())).collect()
        };
        for (revision, events) in changes {
            self.next = revision + 1;
            for event in events {
                self.take(revision, &event)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, revision: i64, event: &WatchEvent) -> Result<(), Violation> {
        let Ok(key) = std::str::from_utf8(&event.kv.key) else { return Ok(()) };
        if !BREATH.iter().any(|prefix| key.starts_with(prefix)) {
            self.last_work = (revision, key.to_owned());
        }
        let new: Option<Value> = match event.kind {
            EventType::Put => serde_json::from_slice(&event.kv.value).ok(),
            EventType::Delete => None,
        };
        let old = match new.clone() {
            Some(value) => self.objects.insert(key.to_owned(), value),
            None => self.objects.remove(key),
        };
        if key.starts_with("/registry/pods/") {
            self.pod(key, old.as_ref(), new.as_ref())?;
            self.fences(revision)?;
        } else if key.starts_with("/registry/deployments/") {
            self.fences(revision)?;
        }
        Ok(())
    }

    fn of<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Value> + 'a {
        let range = self.objects.range(prefix.to_owned()..);
        range.take_while(move |(key, _)| key.starts_with(prefix)).map(|(_, value)| value)
    }

    fn pod(&mut self, key: &str, old: Option<&Value>, new: Option<&Value>) -> Result<(), Violation> {
        let Some(new) = new else { return Ok(()) };
        let same = old.filter(|old| text(old, "metadata.uid") == text(new, "metadata.uid"));
        let (before, node) = (same.map_or("", |old| text(old, "spec.nodeName")), text(new, "spec.nodeName"));
        self.pods_made += usize::from(same.is_none());
        if !before.is_empty() && before != node {
            return violated("C1", format!("{key} was on {before} and is on {node:?}"));
        }
        if let Some(old) = same
            && matches!(text(old, "status.phase"), "Succeeded" | "Failed")
            && text(new, "status.phase") != text(old, "status.phase")
        {
            return violated("C16", format!("{key} had ended and runs again"));
        }
        if before.is_empty() && !node.is_empty() {
            self.binds += 1;
            let there = self.of("/registry/pods/").filter(|pod| text(pod, "spec.nodeName") == node);
            let used: i64 = there
                .filter(|pod| !matches!(text(pod, "status.phase"), "Succeeded" | "Failed"))
                .map(milli_cpu)
                .sum();
            let room = self.objects.get(&format!("/registry/minions/{node}"));
            let room = room.map_or(i64::MAX, |node| milli(text(node, "status.allocatable.cpu")));
            if used > room {
                return violated("C2", format!("{key} makes {used}m of {room}m on {node}"));
            }
        }
        Ok(())
    }

    /// C7, for each Deployment that has once been fully available.
    fn fences(&mut self, revision: i64) -> Result<(), Violation> {
        let mut up = self.up.clone();
        for deployment in self.of("/registry/deployments/") {
            let uid = text(deployment, "metadata.uid");
            let want = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
            let sets: BTreeSet<&str> = self
                .of("/registry/replicasets/")
                .filter(|set| controller(set) == Some(uid))
                .map(|set| text(set, "metadata.uid"))
                .collect();
            let pods: Vec<&Value> = self
                .of("/registry/pods/")
                .filter(|pod| controller(pod).is_some_and(|owner| sets.contains(owner)) && is_active(pod))
                .collect();
            let ready = pods.iter().filter(|pod| is_ready(pod)).count() as i64;
            if ready >= want {
                up.insert(uid.to_owned());
            }
            let rolling = &deployment["spec"]["strategy"]["rollingUpdate"];
            let (Some(surge), Some(unavailable)) =
                (rolling["maxSurge"].as_i64(), rolling["maxUnavailable"].as_i64())
            else {
                continue;
            };
            let fixed = deployment["metadata"]["annotations"]["example.com/size"] == "fixed";
            if !fixed || !up.contains(uid) {
                continue;
            }
            let name = text(deployment, "metadata.name");
            if self.strict.pods_stay && ready < want - unavailable {
                return violated("C7", format!("{name} has {ready} of {want} ready at revision {revision}"));
            }
            if self.strict.all_answered && pods.len() as i64 > want + surge {
                return violated(
                    "C7",
                    format!("{name} has {} pods, wants {want}, at revision {revision}", pods.len()),
                );
            }
        }
        self.up = up;
        Ok(())
    }

    /// Why the cluster is not settled; `None` when it is. `live`: the nodes that run.
    pub fn unsettled(&self, live: &BTreeSet<String>) -> Option<String> {
        let mut expected = 0;
        for deployment in self.of("/registry/deployments/") {
            let name = text(deployment, "metadata.name");
            if !deployment["metadata"]["deletionTimestamp"].is_null() {
                return Some(format!("deployment {name} is being deleted"));
            }
            let want = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
            expected += want;
            let status = &deployment["status"];
            let counts = ["replicas", "updatedReplicas", "availableReplicas"]
                .map(|field| status[field].as_i64().unwrap_or(0));
            if counts != [want; 3] || status["observedGeneration"] != deployment["metadata"]["generation"] {
                return Some(format!("deployment {name} wants {want} and says {status}"));
            }
        }
        let pods: Vec<&Value> = self.of("/registry/pods/").collect();
        for pod in &pods {
            let name = text(pod, "metadata.name");
            if !is_active(pod) || !is_ready(pod) || !live.contains(text(pod, "spec.nodeName")) {
                return Some(format!("pod {name} on {:?}: not running for good", text(pod, "spec.nodeName")));
            }
        }
        if pods.len() as i64 != expected {
            return Some(format!("{} pods, {expected} wanted", pods.len()));
        }
        self.wrong_endpoints(&pods)
    }

    /// C18, once calm: each Service's slices name exactly its ready pods.
    fn wrong_endpoints(&self, pods: &[&Value]) -> Option<String> {
        for service in self.of("/registry/services/specs/") {
            let Some(selector) = service["spec"]["selector"].as_object() else { continue };
            let name = text(service, "metadata.name");
            let picked = pods
                .iter()
                .filter(|pod| selector.iter().all(|(key, value)| &pod["metadata"]["labels"][key] == value));
            let ready: BTreeSet<&str> =
                picked.filter(|pod| is_ready(pod)).map(|pod| text(pod, "status.podIP")).collect();
            let slices = self
                .of("/registry/endpointslices/")
                .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == name);
            let endpoints = slices.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
            let shown: BTreeSet<&str> = endpoints
                .filter(|endpoint| endpoint["conditions"]["ready"] == true)
                .filter_map(|endpoint| endpoint["addresses"][0].as_str())
                .collect();
            if ready != shown {
                return Some(format!("service {name} shows {shown:?}, ready are {ready:?}"));
            }
        }
        None
    }

    /// An object of the store, as of the newest change judged.
    pub fn object(&self, key: &str) -> Option<&Value> {
        self.objects.get(key)
    }
}
