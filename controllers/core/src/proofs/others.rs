//! Scripts of the other reconcilers.

use jiff::SignedDuration;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::{from, plan, run_pods, settle, step};
use crate::endpoints::EndpointsController;
use crate::endpointslice::EndpointSlices;
use crate::garbage::{FOREGROUND, GarbageCollector, ORPHAN};
use crate::namespace::Namespaces;
use crate::node_ipam::{NodeIpam, Pool};
use crate::node_lifecycle::{NodeLifecycle, ready};
use crate::object::{Gvr, Key, Object};
use crate::plan::Action;
use crate::pod_gc::PodGc;
use crate::root_ca::RootCa;
use crate::serviceaccount::ServiceAccounts;
use crate::taint_eviction::TaintEviction;
use crate::world::World;
use crate::{Plan, Reconciler};

fn node(name: &str) -> Node {
    let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status });
    from(json!({ "metadata": { "name": name },
        "status": { "conditions": [condition("Ready", "True"), condition("MemoryPressure", "False")] } }))
}

fn pod(name: &str, spec: Value) -> Pod {
    from(json!({ "metadata": { "name": name, "namespace": "d", "labels": { "app": "a" } }, "spec": spec }))
}

fn service(spec: Value) -> Service {
    from(json!({ "metadata": { "name": "web", "namespace": "d", "labels": { "l": "1" } }, "spec": spec }))
}

#[test]
fn slices_follow_pods() {
    let mut world = World::default();
    world.put(&node("n1"));
    let key = world.put(&service(json!({ "selector": { "app": "a" }, "clusterIP": "10.96.0.5",
        "ports": [{ "name": "http", "port": 80, "targetPort": "web" }] })));
    settle(&mut world, &EndpointSlices, &key);
    assert_eq!(world.list::<EndpointSlice>().len(), 1, "a placeholder tells \"none\" from \"not yet\"");
    let ports = json!([{ "name": "c", "ports": [{ "name": "web", "containerPort": 8080 }] }]);
    let first = world.put(&pod("p1", json!({ "containers": ports })));
    world.put(&pod("p2", json!({ "containers": ports })));
    run_pods(&mut world);
    settle(&mut world, &EndpointSlices, &key);
    let slices = world.list::<EndpointSlice>();
    let endpoints = slices[0].endpoints.clone().unwrap();
    assert_eq!((slices.len(), endpoints.len()), (1, 2));
    assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
    assert_eq!(endpoints[0].node_name.as_deref(), Some("n1"));
    assert_eq!(endpoints[0].target_ref.as_ref().unwrap().name.as_deref(), Some("p1"));
    world.edit::<Pod>(&first, |p| p.metadata.deletion_timestamp = p.metadata.creation_timestamp.clone());
    settle(&mut world, &EndpointSlices, &key);
    let endpoints = world.list::<EndpointSlice>()[0].endpoints.clone().unwrap();
    let leaving =
        endpoints.iter().find(|e| e.target_ref.as_ref().unwrap().name.as_deref() == Some("p1")).unwrap();
    let conditions = leaving.conditions.clone().unwrap();
    assert_eq!(
        (conditions.ready, conditions.serving, conditions.terminating),
        (Some(false), Some(true), Some(true))
    );
    assert!(plan(&world, &EndpointSlices, &key).is_empty());
}

#[test]
fn many_endpoints_fill_several_slices_and_stay_where_they_are() {
    let mut world = World::default();
    world.put(&node("n1"));
    let key = world.put(&service(json!({ "selector": { "app": "a" }, "ports": [{ "port": 80 }] })));
    for n in 0..230 {
        world.put(&pod(&format!("p{n:03}"), json!({ "containers": [] })));
    }
    run_pods(&mut world);
    settle(&mut world, &EndpointSlices, &key);
    let sizes = |world: &World| {
        let mut s: Vec<usize> =
            world.list::<EndpointSlice>().iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len)).collect();
        s.sort();
        s
    };
    assert_eq!(sizes(&world), [30, 100, 100]);
    world.remove::<Pod>(&Key::new("d", "p000"));
    let plan = step(&mut world, &EndpointSlices, &key).unwrap();
    assert_eq!(plan.actions.len(), 1, "one slice changes");
    assert_eq!(sizes(&world).iter().sum::<usize>(), 229);
}

#[test]
fn endpoints_split_ready_from_not_ready_and_go_with_the_service() {
    let mut world = World::default();
    world.put(&node("n1"));
    let key = world
        .put(&service(json!({ "selector": { "app": "a" }, "ports": [{ "port": 80, "targetPort": 9 }] })));
    world.put(&pod("p1", json!({ "containers": [] })));
    run_pods(&mut world);
    let waiting = world.put(&pod("p2", json!({ "containers": [], "nodeName": "n1" })));
    world.edit::<Pod>(&waiting, |p| {
        p.status =
            Some(serde_json::from_value(json!({ "phase": "Running", "podIP": "10.244.0.2" })).unwrap());
    });
    settle(&mut world, &EndpointsController, &key);
    let subset = world.get::<Endpoints>(&key).unwrap().subsets.unwrap().remove(0);
    assert_eq!((subset.addresses.unwrap().len(), subset.not_ready_addresses.unwrap().len()), (1, 1));
    assert_eq!(subset.ports.unwrap()[0].port, 9);
    world.remove::<Service>(&key);
    settle(&mut world, &EndpointsController, &key);
    assert!(world.get::<Endpoints>(&key).is_none());
}

#[test]
fn every_namespace_gets_an_account_and_the_ca() {
    let mut world = World::default();
    let namespace: Namespace = from(json!({ "metadata": { "name": "x" } }));
    let key = world.put(&namespace);
    settle(&mut world, &ServiceAccounts, &key);
    assert!(world.get::<ServiceAccount>(&Key::new("x", "default")).is_some());
    let ca = RootCa { bundle: "PEM".into() };
    settle(&mut world, &ca, &key);
    let map = Key::new("x", "kube-root-ca.crt");
    world.edit::<ConfigMap>(&map, |m| m.data = None);
    settle(&mut world, &ca, &key);
    assert_eq!(world.get::<ConfigMap>(&map).unwrap().data.unwrap()["ca.crt"], "PEM");
}

#[test]
fn nodes_get_distinct_ranges() {
    let mut world = World::default();
    let ipam = NodeIpam { pools: vec![Pool::parse("10.244.0.0/16", 24).unwrap()] };
    for name in ["a", "b", "c"] {
        world.put(&node(name));
    }
    settle(&mut world, &ipam, &Key::default());
    let cidr = |w: &World, n: &str| w.get::<Node>(&Key::cluster(n)).unwrap().spec.unwrap().pod_cidr.unwrap();
    assert_eq!(["a", "b", "c"].map(|n| cidr(&world, n)), ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"]);
    world.remove::<Node>(&Key::cluster("b"));
    world.put(&node("d"));
    settle(&mut world, &ipam, &Key::default());
    assert_eq!(cidr(&world, "d"), "10.244.1.0/24", "a freed range is used again");
    assert!(Pool::parse("10.244.0.0/25", 24).is_err());
}

/// Reconciles as the runner does, carrying the note from one look to the next.
fn noted(world: &mut World, reconciler: &dyn Reconciler, key: &Key, note: &mut Option<Value>) -> Plan {
    let mut view = world.view(&reconciler.watches(), world.version());
    view.set_note(reconciler.name(), key, note.clone());
    let plan = reconciler.reconcile(key, &view, world.now);
    *note = plan.note.clone();
    let _ = world.run(&plan);
    plan
}

#[test]
fn a_silent_node_is_tainted_and_its_pods_move_but_only_if_another_lives() {
    let lifecycle =
        NodeLifecycle { grace: SignedDuration::from_secs(40), startup_grace: SignedDuration::from_secs(60) };
    let mut world = World::default();
    let key = world.put(&node("n1"));
    let lease: Lease = from(json!({ "metadata": { "name": "n1", "namespace": "kube-node-lease" },
        "spec": { "holderIdentity": "n1", "renewTime": "2026-01-01T00:00:00.000000Z" } }));
    world.put(&lease);
    let seconds = json!([{ "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
        "tolerationSeconds": 300 }]);
    let patient = world.put(&pod("p1", json!({ "containers": [], "tolerations": seconds })));
    run_pods(&mut world);
    let mut note = None;
    noted(&mut world, &lifecycle, &key, &mut note);
    world.pass(39);
    noted(&mut world, &lifecycle, &key, &mut note);
    assert_eq!(ready(&world.get::<Node>(&key).unwrap()), "True");
    world.pass(1);
    noted(&mut world, &lifecycle, &key, &mut note);
    assert_eq!(ready(&world.get::<Node>(&key).unwrap()), "Unknown");
    noted(&mut world, &lifecycle, &key, &mut note);
    let effects = |w: &World| -> Vec<String> {
        let taints = w.get::<Node>(&Key::cluster("n1")).unwrap().spec.unwrap_or_default().taints;
        taints.unwrap_or_default().into_iter().map(|t| t.effect).collect()
    };
    assert_eq!(effects(&world), ["NoSchedule"], "in a full outage nothing is evicted");
    world.put(&node("n2"));
    noted(&mut world, &lifecycle, &key, &mut note);
    assert_eq!(effects(&world), ["NoSchedule", "NoExecute"]);
    assert!(!crate::pods::is_ready(&world.get::<Pod>(&patient).unwrap()), "Services let go of it");

    let wait = step(&mut world, &TaintEviction, &patient).unwrap().requeue;
    assert_eq!(wait, Some(SignedDuration::from_secs(300)));
    world.pass(300);
    step(&mut world, &TaintEviction, &patient).unwrap();
    let pod = world.get::<Pod>(&patient).unwrap();
    assert!(pod.is_deleting(), "deleted, but kept until the node confirms (C17)");
    assert!(plan(&world, &PodGc { threshold: 100 }, &patient).is_empty(), "the node exists: no force");

    world.edit::<Lease>(&Key::new("kube-node-lease", "n1"), |l| {
        l.spec.as_mut().unwrap().renew_time =
            serde_json::from_value(json!("2026-01-01T00:10:00.000000Z")).unwrap();
    });
    world.edit::<Node>(&key, |n| {
        n.status
            .as_mut()
            .unwrap()
            .conditions
            .as_mut()
            .unwrap()
            .iter_mut()
            .for_each(|c| c.status = "True".into());
        n.status.as_mut().unwrap().conditions.as_mut().unwrap().truncate(1);
    });
    for _ in 0..3 {
        noted(&mut world, &lifecycle, &key, &mut note);
    }
    assert!(effects(&world).is_empty(), "a node that is back is free again");
}

#[test]
fn pods_of_a_node_that_is_gone_are_removed_after_a_while() {
    let mut world = World::default();
    let key = world.put(&pod("p1", json!({ "containers": [], "nodeName": "lost" })));
    let (gc, mut note) = (PodGc { threshold: 10 }, None);
    noted(&mut world, &gc, &key, &mut note);
    assert!(world.get::<Pod>(&key).is_some());
    world.pass(41);
    noted(&mut world, &gc, &key, &mut note);
    assert!(world.get::<Pod>(&key).is_none());
}

#[test]
fn only_the_oldest_finished_pods_go() {
    let mut world = World::default();
    let gc = PodGc { threshold: 2 };
    world.put(&node("n1"));
    for name in ["a", "b", "c"] {
        world.pass(1);
        let key = world.put(&pod(name, json!({ "containers": [], "nodeName": "n1" })));
        world.edit::<Pod>(&key, |p| p.status.get_or_insert_default().phase = Some("Succeeded".into()));
    }
    for name in ["c", "b", "a"] {
        let _ = step(&mut world, &gc, &Key::new("d", name));
    }
    let left: Vec<Pod> = world.list::<Pod>().into_iter().filter(|p| !p.is_deleting()).collect();
    assert_eq!(left.iter().map(|p| p.name()).collect::<Vec<_>>(), ["b", "c"]);
}

const KINDS: [(Gvr, &str, bool); 3] = [
    (Gvr::new("", "v1", "pods"), "Pod", true),
    (Gvr::new("", "v1", "configmaps"), "ConfigMap", true),
    (Gvr::new("", "v1", "serviceaccounts"), "ServiceAccount", true),
];

fn graph_plan(world: &World, reconciler: &dyn Reconciler, key: &Key) -> Plan {
    let mut view = world.view(&reconciler.watches(), world.version());
    view.graph.set_resources(World::resources(&KINDS));
    reconciler.reconcile(key, &view, world.now)
}

fn map(name: &str, uid: &str, owners: &[(&str, &str)], finalizers: &[&str]) -> ConfigMap {
    let owners: Vec<Value> = owners
        .iter()
        .map(|(name, uid)| json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid, "blockOwnerDeletion": true }))
        .collect();
    from(
        json!({ "metadata": { "name": name, "namespace": "d", "uid": uid, "ownerReferences": owners, "finalizers": finalizers } }),
    )
}

fn collect(world: &mut World, uid: &str) -> bool {
    let plan = graph_plan(world, &GarbageCollector, &Key::cluster(uid));
    world.run(&plan).is_ok()
}

#[test]
fn dependents_follow_the_owner_they_name_by_uid() {
    let mut world = World::default();
    world.put(&map("owner", "new-uid", &[], &[]));
    let orphaned = world.put(&map("child", "c1", &[("owner", "old-uid")], &[]));
    let held = world.put(&map("kept", "c2", &[("owner", "new-uid"), ("gone", "g")], &[]));
    assert!(collect(&mut world, "c1") && collect(&mut world, "c2"));
    assert!(
        world.get::<ConfigMap>(&orphaned).is_none(),
        "the owner of that uid is gone, its name is not the point"
    );
    let owners = world.get::<ConfigMap>(&held).unwrap().metadata.owner_references.unwrap();
    assert_eq!(owners.len(), 1, "a live owner keeps it; the dead reference goes");
}

#[test]
fn an_owner_that_only_our_view_lacks_protects_its_dependents() {
    let mut world = World::default();
    let child = world.put(&map("child", "c1", &[("owner", "o")], &[]));
    let stale = graph_plan(&world, &GarbageCollector, &Key::cluster("c1"));
    world.put(&map("owner", "o", &[], &[]));
    assert!(world.run(&stale).is_err(), "the server is asked first (C29)");
    assert!(world.get::<ConfigMap>(&child).is_some());
}

#[test]
fn foreground_and_orphan() {
    let mut world = World::default();
    let owner = world.put(&map("owner", "o", &[], &[FOREGROUND]));
    let child = world.put(&map("child", "c", &[("owner", "o")], &[]));
    let when = |m: &mut ConfigMap| m.metadata.deletion_timestamp = m.metadata.creation_timestamp.clone();
    world.edit::<ConfigMap>(&owner, when);
    assert!(collect(&mut world, "o"));
    assert!(world.get::<ConfigMap>(&owner).is_some(), "waits for the child");
    assert!(collect(&mut world, "c") && collect(&mut world, "o"));
    assert!(world.get::<ConfigMap>(&child).is_none() && world.get::<ConfigMap>(&owner).is_none());

    let owner = world.put(&map("owner", "o2", &[], &[ORPHAN]));
    let child = world.put(&map("child", "c2", &[("owner", "o2")], &[]));
    world.edit::<ConfigMap>(&owner, when);
    assert!(collect(&mut world, "o2"));
    assert!(world.get::<ConfigMap>(&owner).is_none());
    assert!(world.get::<ConfigMap>(&child).unwrap().metadata.owner_references.is_none());
}

#[test]
fn a_namespace_is_emptied_pods_first_and_only_then_let_go() {
    let mut world = World::default();
    let namespace: Namespace =
        from(json!({ "metadata": { "name": "d" }, "spec": { "finalizers": ["kubernetes"] } }));
    let key = world.put(&namespace);
    world.put(&map("m", "m", &[], &[]));
    let running = world.put(&pod("p", json!({ "containers": [], "nodeName": "n1" })));
    // `spec.finalizers` keeps it, which the world does not know of: hold it by hand.
    world.edit::<Namespace>(&key, |n| n.metadata.finalizers = Some(vec!["held".into()]));
    world.edit::<Namespace>(&key, |n| n.metadata.deletion_timestamp = n.metadata.creation_timestamp.clone());
    let round = |world: &mut World| {
        let plan = graph_plan(world, &Namespaces, &Key::cluster("d"));
        let _ = world.run(&plan);
        plan
    };
    let first = round(&mut world);
    assert!(
        first
            .actions
            .iter()
            .any(|a| matches!(a, Action::DeleteAll { resource, .. } if resource.resource == "pods"))
    );
    assert_eq!(world.list::<ConfigMap>().len(), 1, "pods first");
    round(&mut world);
    assert!(world.get::<Pod>(&running).is_some());
    world.remove::<Pod>(&running);
    round(&mut world);
    assert!(world.list::<ConfigMap>().is_empty());
    assert!(!world.get::<Namespace>(&key).unwrap().spec.unwrap().finalizers.unwrap().is_empty());
    round(&mut world);
    assert!(world.get::<Namespace>(&key).unwrap().spec.unwrap().finalizers.unwrap_or_default().is_empty());
}
