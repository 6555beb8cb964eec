//! Namespace: a namespace being deleted is emptied, pods first, then finalized.
//!
//! What it holds is known from the graph, which may lag; before the finalizer goes the server is
//! asked, resource by resource, whether the namespace is empty (C20).

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::graph::{ApiResource, Graph};
use crate::plan::{Action, Expectation, to_value};
use crate::replicaset::whole_seconds;
use crate::{Change, GraphChange, Gvr, Key, Method, Object, Plan, Reconciler, Target, View, Watch};

pub const FINALIZER: &str = "kubernetes";
/// A look at a namespace that should be emptying, in case nobody tells of the last removal.
const RECHECK: SignedDuration = SignedDuration::from_secs(15);

pub struct Namespaces;

pub fn is_active(namespace: &Namespace) -> bool {
    !namespace.is_deleting()
        && namespace.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating")
}

impl Reconciler for Namespaces {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::of::<Namespace>()]
    }

    fn reads_graph(&self) -> bool {
        true
    }

    fn keys(&self, change: &Change, _view: &View) -> Vec<Key> {
        let namespace = change.of::<Namespace>().and_then(|(_, new)| new);
        namespace.filter(|n| n.is_deleting()).map(Key::of).into_iter().collect()
    }

    fn graph_keys(&self, change: &GraphChange, view: &View) -> Vec<Key> {
        let node = change.new.as_ref().or(change.old.as_ref());
        let namespace = node.map(|n| Key::cluster(&n.key.namespace));
        let emptying = |key: &Key| view.get::<Namespace>(key).is_some_and(|n| n.is_deleting());
        namespace.filter(emptying).into_iter().collect()
    }

    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        match view.get::<Namespace>(key).filter(|n| n.is_deleting()) {
            Some(namespace) if finalizers(namespace).iter().any(|f| f == FINALIZER) => {
                empty(namespace, view, now)
            }
            _ => Plan::none(),
        }
    }
}

fn finalizers(namespace: &Namespace) -> &[String] {
    namespace.spec.as_ref().and_then(|s| s.finalizers.as_deref()).unwrap_or_default()
}

fn empty(namespace: &Namespace, view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let graph = &view.graph;
    let inside: Vec<&ApiResource> = graph
        .resources()
        .iter()
        .filter(|r| r.namespaced && r.can("list") && r.can("deletecollection"))
        .collect();
    let mut new = namespace.clone();
    new.status.get_or_insert_default().phase = Some("Terminating".into());
    conditions(&mut new, &inside, graph, now);
    plan.update_status(namespace, &new);
    plan.requeue_in(RECHECK);
    if !graph.complete {
        return plan;
    }
    let holds = |r: &&ApiResource| graph.contents(&r.gvr, namespace.name()).count > 0;
    let full: Vec<&ApiResource> = inside.iter().copied().filter(holds).collect();
    let pods = Gvr::of::<Pod>();
    let (first, rest): (Vec<&ApiResource>, Vec<&ApiResource>) = full.into_iter().partition(|r| r.gvr == pods);
    let stage = if first.is_empty() { rest } else { first };
    for resource in &stage {
        if graph.contents(&resource.gvr, namespace.name()).untouched > 0 {
            plan.actions.push(Action::DeleteAll {
                resource: resource.gvr.clone(),
                namespace: namespace.name().to_owned(),
            });
        }
    }
    if stage.is_empty() {
        finalize(&mut plan, namespace, &inside);
    }
    plan
}

/// Nothing is left that we know of: sweep what is not in the graph, have it confirmed, let go.
fn finalize(plan: &mut Plan, namespace: &Namespace, inside: &[&ApiResource]) {
    let name = namespace.name().to_owned();
    for resource in inside.iter().filter(|r| is_unlisted(&r.gvr)) {
        plan.actions.push(Action::DeleteAll { resource: resource.gvr.clone(), namespace: name.clone() });
    }
    for resource in inside {
        let resource = resource.gvr.clone();
        plan.actions.push(Action::Expect(Expectation::Empty { resource, namespace: name.clone() }));
    }
    let mut body = to_value(namespace);
    let kept: Vec<&String> = finalizers(namespace).iter().filter(|f| *f != FINALIZER).collect();
    body["apiVersion"] = json!("v1");
    body["kind"] = json!("Namespace");
    body["spec"]["finalizers"] = json!(kept);
    // The status was just written, which spent this view's resourceVersion; the uid still holds.
    body["metadata"].as_object_mut().map(|m| m.remove("resourceVersion"));
    let target = Target { subresource: Some("finalize"), ..Target::of(namespace) };
    plan.actions.push(Action::Submit { target, method: Method::Put, object: body });
}

/// Resources that the graph leaves out: Events come and go by the thousand and own nothing.
pub fn is_unlisted(resource: &Gvr) -> bool {
    resource.resource == "events"
}

fn conditions(namespace: &mut Namespace, inside: &[&ApiResource], graph: &Graph, now: Timestamp) {
    let name = namespace.name().to_owned();
    let mut remaining = Vec::new();
    let mut held: BTreeMap<String, usize> = BTreeMap::new();
    for resource in inside {
        let contents = graph.contents(&resource.gvr, &name);
        if contents.count > 0 {
            let group = if resource.gvr.group.is_empty() { "" } else { resource.gvr.group.as_ref() };
            remaining
                .push(format!("{}.{group} has {} resource instances", resource.gvr.resource, contents.count));
        }
        for (finalizer, count) in contents.finalizers {
            *held.entry(finalizer).or_default() += count;
        }
    }
    let held: Vec<String> = held.iter().map(|(f, n)| format!("{f} in {n} resource instances")).collect();
    let status = namespace.status.get_or_insert_default();
    let list = status.conditions.get_or_insert_default();
    let mut set = |kind: &str, on: bool, reason: &str, message: String| {
        let value = if on { "True" } else { "False" };
        let new = NamespaceCondition {
            type_: kind.into(),
            status: value.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(Time(whole_seconds(now))),
        };
        match list.iter_mut().find(|c| c.type_ == kind) {
            None => list.push(new),
            Some(old) => {
                let kept = old.last_transition_time.clone().filter(|_| old.status == new.status);
                *old = NamespaceCondition {
                    last_transition_time: kept.or(new.last_transition_time.clone()),
                    ..new
                };
            }
        }
    };
    match graph.complete {
        true => set(
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered".into(),
        ),
        false => set(
            "NamespaceDeletionDiscoveryFailure",
            true,
            "DiscoveryFailed",
            "Discovery failed for some groups".into(),
        ),
    }
    set(
        "NamespaceDeletionGroupVersionParsingFailure",
        false,
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed".into(),
    );
    set(
        "NamespaceDeletionContentFailure",
        false,
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization".into(),
    );
    match remaining.is_empty() {
        true => set(
            "NamespaceContentRemaining",
            false,
            "ContentRemoved",
            "All content successfully removed".into(),
        ),
        false => set(
            "NamespaceContentRemaining",
            true,
            "SomeResourcesRemain",
            format!("Some resources are remaining: {}", remaining.join(", ")),
        ),
    }
    match held.is_empty() {
        true => set(
            "NamespaceFinalizersRemaining",
            false,
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished".into(),
        ),
        false => set(
            "NamespaceFinalizersRemaining",
            true,
            "SomeFinalizersRemain",
            format!("Some content in the namespace has finalizers remaining: {}", held.join(", ")),
        ),
    }
}
