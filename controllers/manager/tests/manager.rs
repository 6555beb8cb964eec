//! The runner against an API in process: workloads come up, leadership moves, failures heal.

mod api;

use std::sync::atomic::Ordering;

use api::Api;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_controllers::Config;
use keelson_controllers_core::world::World;
use keelson_controllers_core::{Key, Object};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Manager {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Manager {
    fn start(api: &Api, identity: &str) -> Manager {
        let stop = CancellationToken::new();
        let config = Config {
            identity: Some(identity.to_owned()),
            root_ca: "PEM".into(),
            cluster_cidrs: vec!["10.244.0.0/16".into()],
            ..Config::default()
        };
        let task = tokio::spawn(keelson_controllers::run(api.client(), config, stop.clone()));
        Manager { stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn from<K: Object>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn deployment(replicas: i32) -> Deployment {
    let template = json!({ "metadata": { "labels": { "app": "a" } }, "spec": { "containers": [{ "name": "c", "image": "v1" }] } });
    from(json!({ "metadata": { "name": "web", "namespace": "d", "generation": 1 },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": "a" } }, "template": template } }))
}

fn holder(world: &World) -> Option<String> {
    world.get::<Lease>(&Key::new("kube-system", "kube-controller-manager"))?.spec?.holder_identity
}

fn ready(world: &mut World) {
    for pod in world.list::<Pod>() {
        let key = Key::of(&pod);
        if pod.is_deleting() {
            world.remove::<Pod>(&key);
        } else if pod.status.is_none() {
            world.edit::<Pod>(&key, |p| {
                p.spec.as_mut().unwrap().node_name = Some("n1".into());
                p.status = Some(from_status());
            });
        }
    }
}

fn from_status() -> k8s_openapi::api::core::v1::PodStatus {
    serde_json::from_value(json!({ "phase": "Running", "podIP": "10.244.0.2",
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }] }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_becomes_pods_and_endpoints_and_goes_with_its_owner() {
    let api = Api::default();
    let manager = Manager::start(&api, "a");
    api.world(|w| {
        w.put(&from::<Namespace>(json!({ "metadata": { "name": "d" } })));
        w.put(&from::<Node>(json!({ "metadata": { "name": "n1" } })));
        w.put(&deployment(3));
        w.put(&from::<Service>(json!({ "metadata": { "name": "web", "namespace": "d" },
            "spec": { "selector": { "app": "a" }, "ports": [{ "port": 80 }] } })));
    });
    api.until("three pods", |w| w.list::<Pod>().len() == 3).await;
    api.world(ready);
    let endpoints = |w: &World| {
        w.list::<EndpointSlice>().iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len)).sum::<usize>()
    };
    api.until("three endpoints", |w| endpoints(w) == 3).await;
    let available = |w: &World| w.list::<Deployment>()[0].status.as_ref().and_then(|s| s.available_replicas);
    api.until("an available deployment", |w| available(w) == Some(3)).await;
    api.until("the namespace's account", |w| w.get::<ServiceAccount>(&Key::new("d", "default")).is_some())
        .await;
    api.until("the CA", |w| w.get::<ConfigMap>(&Key::new("d", "kube-root-ca.crt")).is_some()).await;
    let cidr = |w: &World| w.list::<Node>()[0].spec.as_ref().and_then(|s| s.pod_cidr.clone());
    api.until("a pod range", |w| cidr(w).as_deref() == Some("10.244.0.0/24")).await;

    api.world(|w| w.remove::<Deployment>(&Key::new("d", "web")));
    api.until("the set is collected", |w| w.list::<ReplicaSet>().is_empty()).await;
    api.until("the pods are being deleted", |w| w.list::<Pod>().iter().all(|p| p.is_deleting())).await;
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_is_emptied() {
    let api = Api::default();
    let manager = Manager::start(&api, "a");
    api.world(|w| {
        let held = json!({ "metadata": { "name": "x", "finalizers": ["spec"] }, "spec": { "finalizers": ["kubernetes"] } });
        w.put(&from::<Namespace>(held));
        w.put(&from::<ConfigMap>(json!({ "metadata": { "name": "m", "namespace": "x" } })));
    });
    api.until("the namespace's account", |w| w.get::<ServiceAccount>(&Key::new("x", "default")).is_some())
        .await;
    api.world(|w| {
        w.edit::<Namespace>(&Key::cluster("x"), |n| {
            n.metadata.deletion_timestamp = n.metadata.creation_timestamp.clone()
        });
    });
    api.until("the namespace is gone", |w| w.list::<Namespace>().is_empty()).await;
    api.world(|w| assert!(w.list::<ConfigMap>().is_empty() && w.list::<ServiceAccount>().is_empty()));
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_hands_over_at_once() {
    let api = Api::default();
    let first = Manager::start(&api, "a");
    api.until("a leads", |w| holder(w).as_deref() == Some("a")).await;
    let second = Manager::start(&api, "b");
    let started = std::time::Instant::now();
    first.stop().await;
    assert_eq!(api.world(|w| holder(w)).as_deref(), Some(""), "released");
    api.until("b leads", |w| holder(w).as_deref() == Some("b")).await;
    assert!(started.elapsed().as_secs() < 14, "before the lease would have expired");
    api.world(|w| w.put(&deployment(1)));
    api.until("b acts", |w| w.list::<Pod>().len() == 1).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_tried_again_and_never_overshoot() {
    let api = Api::default();
    let manager = Manager::start(&api, "a");
    api.until("a leads", |w| holder(w).is_some()).await;
    api.broken.store(true, Ordering::Relaxed);
    api.world(|w| w.put(&deployment(5)));
    let creates = |log: &[String]| log.iter().filter(|l| l.starts_with("POST /apis/apps")).count();
    let tried = async {
        while creates(&api.log.lock().unwrap()) < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), tried).await.expect("asked again");
    api.broken.store(false, Ordering::Relaxed);
    let settled = |w: &World| {
        w.list::<ReplicaSet>().first().and_then(|s| s.status.clone()).is_some_and(|s| s.replicas == 5)
    };
    api.until("five pods", settled).await;
    api.world(|w| {
        assert_eq!((w.list::<Pod>().len(), w.list::<ReplicaSet>().len()), (5, 1));
        let made = (0..=w.version())
            .filter_map(|v| w.change(v))
            .filter(|(g, old, _)| g.resource == "pods" && old.is_none());
        assert_eq!(made.count(), 5, "no pod was ever made twice");
    });
    manager.stop().await;
}
