//! Garbage collector: dependents follow their owners.
//!
//! Background: an object goes when every owner is gone. Foreground: an owner being deleted with
//! `foregroundDeletion` waits for the dependents that block it. Orphan: dependents lose the reference,
//! then the owner goes. Owners are matched by uid only (C29), and the server is asked whether an owner
//! is really gone before its dependent is deleted. Keys are uids.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::graph::{Graph, Owner};
use crate::plan::{Action, Expectation};
use crate::{Change, GraphChange, Key, Node, Plan, Propagation, Reconciler, Target, View, Watch};

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

pub struct GarbageCollector;

impl Reconciler for GarbageCollector {
    fn name(&self) -> &'static str {
        "garbage-collector-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        Vec::new()
    }

    fn keys(&self, _change: &Change, _view: &View) -> Vec<Key> {
        Vec::new()
    }

    fn reads_graph(&self) -> bool {
        true
    }

    fn graph_keys(&self, change: &GraphChange, view: &View) -> Vec<Key> {
        let mut uids: Vec<&str> = Vec::new();
        let gone = |old: &Node| change.new.as_ref().is_none_or(|new| new.uid != old.uid);
        if let Some(new) = &change.new {
            if !new.owners.is_empty() || waits(new) || (new.deleting && new.has_finalizer(ORPHAN)) {
                uids.push(&new.uid);
            }
            if waits(new) {
                uids.extend(view.graph.dependents(&new.uid).map(|d| d.uid.as_str()));
            }
        }
        if let Some(old) = change.old.as_ref().filter(|old| gone(old)) {
            uids.extend(view.graph.dependents(&old.uid).map(|d| d.uid.as_str()));
        }
        for node in change.old.iter().chain(&change.new) {
            let owners = node.owners.iter().filter(|o| view.graph.by_uid(&o.uid).is_some_and(waits));
            uids.extend(owners.map(|o| o.uid.as_str()));
        }
        uids.sort_unstable();
        uids.dedup();
        uids.into_iter().map(Key::cluster).collect()
    }

    fn reconcile(&self, key: &Key, view: &View, _now: Timestamp) -> Plan {
        let graph = &view.graph;
        let Some(node) = graph.by_uid(&key.name) else { return Plan::none() };
        if node.deleting && node.has_finalizer(ORPHAN) {
            orphan(node, graph)
        } else if waits(node) {
            release(node, graph)
        } else if !node.deleting && !node.owners.is_empty() {
            collect(node, graph)
        } else {
            Plan::none()
        }
    }
}

/// Being deleted, waiting for its dependents.
fn waits(node: &Node) -> bool {
    node.deleting && node.has_finalizer(FOREGROUND)
}

fn incomplete() -> Plan {
    let mut plan = Plan::none();
    plan.requeue_in(SignedDuration::from_secs(5));
    plan
}

/// Takes the reference to the owner out of every dependent, then the finalizer off the owner.
fn orphan(owner: &Node, graph: &Graph) -> Plan {
    if !graph.complete {
        return incomplete();
    }
    let mut plan = Plan::none();
    for dependent in graph.dependents(&owner.uid) {
        plan.actions.push(without_owners(dependent, |o| o.uid == owner.uid));
    }
    plan.actions.push(without_finalizer(owner, ORPHAN));
    plan
}

/// Lets an owner go whose blocking dependents are gone.
fn release(owner: &Node, graph: &Graph) -> Plan {
    if !graph.complete {
        return incomplete();
    }
    let blocks = |d: &Node| d.owners.iter().any(|o| o.uid == owner.uid && o.blocks);
    let mut plan = Plan::none();
    if !graph.dependents(&owner.uid).any(blocks) {
        plan.actions.push(without_finalizer(owner, FOREGROUND));
    }
    plan
}

/// Deletes a dependent whose owners are all gone or waiting for it; drops only those references
/// when another owner stays.
fn collect(node: &Node, graph: &Graph) -> Plan {
    let mut plan = Plan::none();
    let (mut solid, mut dangling, mut waiting) = (false, Vec::new(), Vec::new());
    for owner in &node.owners {
        match graph.by_uid(&owner.uid) {
            Some(found) if !fits(found, owner, node) => solid = true,
            Some(found) if waits(found) => waiting.push(owner),
            Some(_) => solid = true,
            None => match absent(owner, node, graph) {
                Some(expect) => {
                    dangling.push(owner);
                    plan.actions.push(expect);
                }
                // Of a kind the server does not know (now): it cannot be said to be gone.
                None => {
                    solid = true;
                    plan.requeue_in(SignedDuration::from_secs(30));
                }
            },
        }
    }
    if solid {
        let gone: Vec<&str> = dangling.iter().chain(&waiting).map(|o| o.uid.as_str()).collect();
        match gone.is_empty() {
            true => plan.actions.clear(),
            false => plan.actions.push(without_owners(node, |o| gone.contains(&o.uid.as_str()))),
        }
        return plan;
    }
    let has_dependents = graph.dependents(&node.uid).next().is_some();
    let propagation = if node.has_finalizer(ORPHAN) {
        Propagation::Orphan
    } else if node.has_finalizer(FOREGROUND) || (!waiting.is_empty() && has_dependents) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    plan.actions.push(Action::Delete {
        target: node.target(),
        precondition: node.unchanged(),
        grace: None,
        propagation: Some(propagation),
    });
    plan
}

/// Whether an object can be the owner a reference names: kind and namespace agree. A reference that
/// disagrees is somebody's mistake; nothing is deleted on its word.
fn fits(found: &Node, owner: &Owner, dependent: &Node) -> bool {
    let namespace = found.key.namespace.is_empty() || found.key.namespace == dependent.key.namespace;
    namespace && found.key.name == owner.name
}

/// The question to the server whether an owner is gone.
fn absent(owner: &Owner, dependent: &Node, graph: &Graph) -> Option<Action> {
    let resource = graph.resource_of(&owner.api_version, &owner.kind)?;
    if resource.namespaced && dependent.key.namespace.is_empty() {
        return None;
    }
    let namespace = if resource.namespaced { dependent.key.namespace.as_str() } else { "" };
    let key = Key::new(namespace, &owner.name);
    let target = Target { resource: resource.gvr.clone(), key, subresource: None };
    let uid = Some(owner.uid.clone());
    #[cfg(feature = "planted")]
    let uid = uid.filter(|_| !keelson_plant::is(28));
    Some(Action::Expect(Expectation::Absent { target, uid }))
}

fn without_owners(node: &Node, drop: impl Fn(&Owner) -> bool) -> Action {
    let kept: Vec<Value> = node.owners.iter().filter(|o| !drop(o)).map(reference).collect();
    let owners = if kept.is_empty() { Value::Null } else { Value::Array(kept) };
    Action::Patch {
        target: node.target(),
        patch: json!({ "metadata": { "ownerReferences": owners } }),
        precondition: node.unchanged(),
    }
}

fn reference(owner: &Owner) -> Value {
    let mut value = json!({
        "apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid,
    });
    if owner.controls {
        value["controller"] = json!(true);
    }
    if owner.blocks {
        value["blockOwnerDeletion"] = json!(true);
    }
    value
}

fn without_finalizer(node: &Node, finalizer: &str) -> Action {
    let kept: Vec<&String> = node.finalizers.iter().filter(|f| *f != finalizer).collect();
    let finalizers = if kept.is_empty() { Value::Null } else { json!(kept) };
    Action::Patch {
        target: node.target(),
        patch: json!({ "metadata": { "finalizers": finalizers } }),
        precondition: node.unchanged(),
    }
}
