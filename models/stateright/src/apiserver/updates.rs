//! The shipped request steps of the API server over one Deployment: writers race with old copies, a status writer, a
//! deleter and the holder of a finalizer, each through a compare-and-swap that others may win.
//!
//! A state holds the stored object (the real JSON), each client's copy, and each request between its step and its
//! swap: `Begin` runs the core's step on what is stored then, `Commit` swaps if nothing was stored in between, else the
//! step runs again, as the server's loop does.
//!
//! Shown: a write that names a version replaces exactly that version, whatever the door (C14), so no writer's work is
//! lost; an object with a finalizer stays (C6), and one without goes with its deletion; generation counts the changes
//! of the spec and nothing else (C15); uid and creation time never change; a deletion is never taken back.
//!
//! Omitted, and why that is sound: admission with a view (it reads other objects; its own tests have it), the watch
//! cache as the first copy (an answer from it is believed only after a step on the stored object), and JSON versus
//! other encodings (they end in the same tree).

use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use keelson_api::{RESOURCES, Resource};
use keelson_apiserver_core::{
    Context, DeleteOptions, Deletion, Outcome, PatchType, Target, UserInfo, View, WriteOptions, create,
    delete, patch, update,
};
use serde_json::{Value, json};
use stateright::{Model, Property};

use crate::catalogue::{Bound, Report, explore};

const FINALIZER: &str = "example.com/held";

static DEPLOYMENTS: LazyLock<&Resource> = LazyLock::new(|| {
    let wanted = |resource: &&Resource| resource.group == "apps" && resource.plural == "deployments";
    RESOURCES.iter().find(wanted).expect("the table has deployments")
});

static USER: LazyLock<UserInfo> = LazyLock::new(UserInfo::default);

/// What a client does with its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    /// Reads, adds one to the replicas, and puts it back under the version read.
    Counter,
    /// The same, a second one.
    Rival,
    /// The same through `status`: adds one to `status.replicas`.
    Status,
    Deleter,
    /// Takes its finalizer off by a patch without a version.
    Holder,
}

const CLIENTS: [Client; 5] =
    [Client::Counter, Client::Rival, Client::Status, Client::Deleter, Client::Holder];

/// A request whose step has run on version `on`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending {
    client: Client,
    /// The version the client's copy has; what it asks to replace.
    copy: u64,
    on: u64,
    /// What to store; nothing removes the object.
    next: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    stored: Option<Value>,
    version: u64,
    /// Copies by client, as read.
    copies: Vec<Option<Value>>,
    pending: Vec<Pending>,
    requests: Vec<u8>,
    /// Accepted spec and status increments.
    counted: i64,
    reported: i64,
    broken: Option<&'static str>,
    conflicts: u8,
    removed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Read(Client),
    Begin(Client),
    Commit(Client),
}

pub struct Updates {
    requests: u8,
}

/// Runs the model.
pub fn run(bound: Bound) -> Report {
    let model = match bound {
        Bound::Smoke | Bound::Browse => Updates { requests: 1 },
        Bound::Deep => Updates { requests: 2 },
    };
    explore("api-updates", bound, model)
}

/// What the request steps may look at: the namespace is there, and nothing else.
struct OneNamespace;

impl View for OneNamespace {
    fn get(&self, _: &str, resource: &str, _: &str, name: &str) -> Option<Arc<Value>> {
        let there = (resource, name) == ("namespaces", "d");
        there.then(|| Arc::new(json!({"metadata": {"name": "d"}, "status": {"phase": "Active"}})))
    }

    fn list(&self, _: &str, _: &str, _: Option<&str>) -> Vec<Arc<Value>> {
        Vec::new()
    }
}

fn context() -> Context<'static> {
    Context {
        now: Timestamp::UNIX_EPOCH,
        uid: "5f3c1a52-0000-4000-8000-000000000001",
        suffix: "bcdfg",
        user: &USER,
        view: &OneNamespace,
        service_cidr: "10.96.0.0/16".parse().expect("a network"),
        node_ports: (30_000, 32_767),
    }
}

fn target(client: Client) -> Target<'static> {
    let target = Target::object(&DEPLOYMENTS, "d", "web");
    if client == Client::Status { target.sub("status") } else { target }
}

fn seed() -> Value {
    let template = json!({
        "metadata": {"labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    let object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "d", "finalizers": [FINALIZER]},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "a"}}, "template": template},
    });
    let collection = Target::collection(&DEPLOYMENTS, "d");
    create(&collection, object, &WriteOptions::default(), &context()).expect("a sound object").object
}

fn versioned(object: &Value, version: u64) -> Value {
    let mut object = object.clone();
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    object
}

fn version_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn increment(object: &mut Value, part: &str) {
    let count = object[part]["replicas"].as_i64().unwrap_or(0);
    object[part]["replicas"] = json!(count + 1);
}

impl World {
    fn current(&self) -> Option<Value> {
        self.stored.as_ref().map(|object| versioned(object, self.version))
    }

    fn at(client: Client) -> usize {
        CLIENTS.iter().position(|one| *one == client).expect("every client is listed")
    }

    /// The core's step on what is stored now. `Err` is a refusal; the inner `None` removes.
    fn step(&self, client: Client) -> Result<Option<Option<Value>>, u16> {
        let current = self.current();
        let options = WriteOptions::default();
        let target = target(client);
        let kept = |outcome: Outcome| match (outcome.unchanged, outcome.remove) {
            (true, _) => None,
            (_, true) => Some(None),
            _ => Some(Some(outcome.object)),
        };
        match client {
            Client::Counter | Client::Rival | Client::Status => {
                let mut new = self.copies[World::at(client)].clone().expect("read before");
                increment(&mut new, if client == Client::Status { "status" } else { "spec" });
                let updated = update(&target, current.as_ref(), new, &options, &context());
                updated.map(kept).map_err(|status| status.code)
            }
            Client::Deleter => {
                let current = current.ok_or(404_u16)?;
                let deletion = delete(&target, &current, &DeleteOptions::default(), &context());
                match deletion.map_err(|status| status.code)? {
                    Deletion::Remove { .. } => Ok(Some(None)),
                    Deletion::Update { unchanged: true, .. } => Ok(None),
                    Deletion::Update { object, .. } => Ok(Some(Some(object))),
                }
            }
            Client::Holder => {
                let body = json!({"metadata": {"finalizers": null}}).to_string();
                let patched =
                    patch(&target, current.as_ref(), PatchType::Merge, body.as_bytes(), &options, &context());
                patched.map(kept).map_err(|status| status.code)
            }
        }
    }

    fn begin(&mut self, client: Client) {
        let copy = self.copies[World::at(client)].as_ref().map_or(0, version_of);
        match self.step(client) {
            Err(code) => {
                self.conflicts += u8::from(code == 409);
                if code == 409 && copy == self.version {
                    self.broken = Some("a conflict without one");
                }
                if !matches!(code, 404 | 409) {
                    self.broken = Some("refused for another reason");
                }
            }
            Ok(None) => {}
            Ok(Some(next)) => self.pending.push(Pending { client, copy, on: self.version, next }),
        }
    }

    fn commit(&mut self, client: Client) {
        let at =
            self.pending.iter().position(|pending| pending.client == client).expect("offered when there");
        let pending = self.pending.remove(at);
        if pending.on != self.version {
            // Somebody was quicker: the step runs again.
            return self.begin(client);
        }
        let names_version = matches!(client, Client::Counter | Client::Rival | Client::Status);
        if names_version && pending.copy != self.version {
            self.broken = Some("C14 a write replaced a version it did not name");
        }
        let before = self.stored.clone();
        self.version += 1;
        self.stored = pending.next;
        match client {
            Client::Counter | Client::Rival => self.counted += 1,
            Client::Status => self.reported += 1,
            Client::Deleter | Client::Holder => {}
        }
        if let Some(before) = before {
            self.compare(&before);
        }
    }

    fn compare(&mut self, before: &Value) {
        let Some(after) = &self.stored else {
            self.removed = true;
            let held = before["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
            let marked = !before["metadata"]["deletionTimestamp"].is_null();
            if held && !marked {
                self.broken = Some("C6 removed in spite of a finalizer");
            }
            return;
        };
        for field in ["uid", "creationTimestamp", "name", "namespace"] {
            if before["metadata"][field] != after["metadata"][field] {
                self.broken = Some("an identity changed");
            }
        }
        let marked = |object: &Value| !object["metadata"]["deletionTimestamp"].is_null();
        if marked(before) && !marked(after) {
            self.broken = Some("a deletion was taken back");
        }
        let generation = |object: &Value| object["metadata"]["generation"].as_i64().unwrap_or(0);
        let changed = before["spec"] != after["spec"] || marked(before) != marked(after);
        if generation(after) != generation(before) + i64::from(changed) {
            self.broken = Some("C15 generation does not count the changes of the spec");
        }
        if marked(after) && after["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty) {
            self.broken = Some("C6 deleted, without a finalizer, and still there");
        }
    }
}

impl Model for Updates {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            stored: Some(seed()),
            version: 1,
            copies: vec![None; CLIENTS.len()],
            pending: Vec::new(),
            requests: vec![0; CLIENTS.len()],
            counted: 0,
            reported: 0,
            broken: None,
            conflicts: 0,
            removed: false,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        for client in CLIENTS {
            let at = World::at(client);
            if world.pending.iter().any(|pending| pending.client == client) {
                steps.push(Step::Commit(client));
                continue;
            }
            let writes = matches!(client, Client::Counter | Client::Rival | Client::Status);
            if world.requests[at] < self.requests {
                let fresh = world.copies[at].as_ref().map(version_of) == Some(world.version);
                if writes && world.stored.is_some() && !fresh {
                    steps.push(Step::Read(client));
                }
                if !writes || world.copies[at].is_some() {
                    steps.push(Step::Begin(client));
                }
            }
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        match step {
            Step::Read(client) => world.copies[World::at(client)] = world.current(),
            Step::Begin(client) => {
                world.requests[World::at(client)] += 1;
                world.begin(client);
            }
            Step::Commit(client) => world.commit(client),
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Updates>> {
        vec![
            Property::always("C6 C14 C15 no step broke a rule", |_, world: &World| world.broken.is_none()),
            Property::always("C14 no accepted write is lost", |_, world: &World| {
                world.stored.as_ref().is_none_or(|object| {
                    object["spec"]["replicas"].as_i64() == Some(world.counted)
                        && object["status"]["replicas"].as_i64().unwrap_or(0) == world.reported
                })
            }),
            Property::sometimes("a writer with an old copy was refused", |_, world: &World| {
                world.conflicts > 0
            }),
            Property::sometimes("both writers and the status got through", |_, world: &World| {
                world.counted > 1 && world.reported > 0
            }),
            Property::sometimes("the object went when its finalizer did", |_, world: &World| world.removed),
            Property::sometimes("a write to an object being deleted", |_, world: &World| {
                world.counted > 0
                    && world.stored.as_ref().is_some_and(|o| !o["metadata"]["deletionTimestamp"].is_null())
            }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn racing_writers_lose_nothing_and_finalizers_hold() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 15_966, "the reach changed: look why, then set the new count");
    }
}
