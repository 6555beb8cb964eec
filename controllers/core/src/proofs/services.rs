//! Scripts: load balancers, volumes, autoscaling, disruption budgets, aggregated roles.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::storage::v1::StorageClass;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{from, plan, run_pods, settle, step};
use crate::Reconciler;
use crate::aggregation::ClusterRoleAggregation;
use crate::autoscaler::Autoscaler;
use crate::autoscaler::behavior::{Past, Rules};
use crate::autoscaler::metrics::PodMetrics;
use crate::disruption::Disruption;
use crate::loadbalancer::{ANNOUNCED_BY, LoadBalancers, Pool};
use crate::object::{Key, Object};
use crate::storage::classes::LocalPathClass;
use crate::storage::protection::{ClaimProtection, VolumeProtection};
use crate::storage::{DATA_FINALIZER, VolumeBinder, volume_phase};
use crate::world::World;

fn node(name: &str, ready: &str) -> Node {
    from(json!({ "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": { "conditions": [{ "type": "Ready", "status": ready }] } }))
}

#[test]
fn balanced_services_get_distinct_addresses_and_a_living_announcer() {
    let balancers = LoadBalancers { provider: Pool::parse(&["172.30.0.200-172.30.0.201".into()]).unwrap() };
    let mut world = World::default();
    world.put(&node("n1", "True"));
    let service = |name: &str| -> Service {
        from(json!({ "metadata": { "name": name, "namespace": "d" }, "spec": { "type": "LoadBalancer" } }))
    };
    let keys = ["a", "b", "c"].map(|n| world.put(&service(n)));
    let balance = |world: &mut World| {
        for _ in 0..5 {
            let _ = step(world, &balancers, &Key::default());
        }
    };
    balance(&mut world);
    let ip = |w: &World, k: &Key| -> Option<String> {
        let status = w.get::<Service>(k)?.status?.load_balancer?.ingress?;
        status.first()?.ip.clone()
    };
    assert_eq!(ip(&world, &keys[0]).as_deref(), Some("172.30.0.200"));
    assert_eq!(ip(&world, &keys[1]).as_deref(), Some("172.30.0.201"));
    assert_eq!(ip(&world, &keys[2]), None, "the pool is empty");
    assert!(world.events.contains(&"SyncLoadBalancerFailed".to_owned()));
    assert_eq!(world.get::<Service>(&keys[0]).unwrap().annotation(ANNOUNCED_BY), Some("n1"));

    world.put(&node("n2", "True"));
    world.edit::<Node>(&Key::cluster("n1"), |n| *n = node("n1", "Unknown"));
    balance(&mut world);
    assert_eq!(world.get::<Service>(&keys[0]).unwrap().annotation(ANNOUNCED_BY), Some("n2"));

    world
        .edit::<Service>(&keys[0], |s| s.metadata.deletion_timestamp = s.metadata.creation_timestamp.clone());
    balance(&mut world);
    assert!(world.get::<Service>(&keys[0]).is_none());
    balance(&mut world);
    assert_eq!(ip(&world, &keys[2]).as_deref(), Some("172.30.0.200"), "a freed address is used again");
    assert!(Pool::parse(&["x".into()]).is_err());
    assert!(Pool::parse(&["10.0.0.0/28".into(), "10.1.0.9".into()]).is_ok());
}

#[test]
fn a_claim_is_provisioned_bound_protected_and_reclaimed() {
    let binder = VolumeBinder { base: "/data".into() };
    let mut world = World::default();
    world.put(&node("n1", "True"));
    world.put(&from::<Namespace>(json!({ "metadata": { "name": "kube-system" } })));
    settle(&mut world, &LocalPathClass, &Key::cluster("local-path"));
    assert_eq!(world.list::<StorageClass>().len(), 1);
    let claim: PersistentVolumeClaim = from(json!({ "metadata": { "name": "c", "namespace": "d" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } }));
    let key = world.put(&claim);
    for _ in 0..4 {
        step(&mut world, &binder, &key).unwrap();
    }
    assert!(world.list::<PersistentVolume>().is_empty(), "waits for the scheduler's choice");
    assert!(world.events.contains(&"WaitForFirstConsumer".to_owned()));
    settle(&mut world, &ClaimProtection, &key);
    let chosen = [("volume.kubernetes.io/selected-node".to_owned(), "n1".to_owned())];
    world.edit::<PersistentVolumeClaim>(&key, |c| {
        c.metadata.annotations.get_or_insert_default().extend(chosen)
    });
    settle(&mut world, &binder, &key);
    let volume = world.list::<PersistentVolume>().remove(0);
    let place = Key::of(&volume);
    settle(&mut world, &binder, &place);
    let bound = world.get::<PersistentVolumeClaim>(&key).unwrap();
    assert_eq!(bound.status.unwrap().phase.as_deref(), Some("Bound"));
    assert_eq!(bound.spec.unwrap().volume_name.as_deref(), Some(place.name.as_str()));
    let volume = world.get::<PersistentVolume>(&place).unwrap();
    assert_eq!(volume_phase(&volume), "Bound");
    assert!(volume.spec.unwrap().host_path.unwrap().path.starts_with("/data/pvc-uid-"));

    let user: Pod = from(
        json!({ "metadata": { "name": "p", "namespace": "d" }, "spec": { "containers": [], "nodeName": "n1",
        "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "c" } }] } }),
    );
    let user = world.put(&user);
    world.edit::<PersistentVolumeClaim>(&key, |c| {
        c.metadata.deletion_timestamp = c.metadata.creation_timestamp.clone()
    });
    settle(&mut world, &ClaimProtection, &key);
    assert!(world.get::<PersistentVolumeClaim>(&key).is_some(), "a pod uses it");
    world.remove::<Pod>(&user);
    step(&mut world, &ClaimProtection, &key).unwrap();
    assert!(world.get::<PersistentVolumeClaim>(&key).is_none());
    for _ in 0..4 {
        let _ = step(&mut world, &binder, &place);
        let _ = step(&mut world, &VolumeProtection, &place);
    }
    let volume = world.get::<PersistentVolume>(&place).unwrap();
    assert!(
        volume.is_deleting() && volume.metadata.finalizers.unwrap() == [DATA_FINALIZER],
        "the node has data to remove"
    );
}

#[test]
fn one_volume_never_goes_to_two_claims() {
    let binder = VolumeBinder { base: "/data".into() };
    let mut world = World::default();
    let volume: PersistentVolume = from(
        json!({ "metadata": { "name": "v" }, "status": { "phase": "Available" },
        "spec": { "capacity": { "storage": "2Gi" }, "accessModes": ["ReadWriteOnce"], "hostPath": { "path": "/x" } } }),
    );
    world.put(&volume);
    let claim = |name: &str| -> PersistentVolumeClaim {
        from(json!({ "metadata": { "name": name, "namespace": "d" }, "spec": { "storageClassName": "",
            "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } }))
    };
    let keys = ["a", "b"].map(|n| world.put(&claim(n)));
    let view = world.view(&binder.watches(), world.version());
    let plans = keys.clone().map(|k| binder.reconcile(&k, &view, world.now));
    assert!(world.run(&plans[0]).is_ok());
    assert!(world.run(&plans[1]).is_err(), "decided on the same view, refused by the server");
    settle(&mut world, &binder, &keys[0]);
    let phase = |k: &Key| world.get::<PersistentVolumeClaim>(k).unwrap().status.and_then(|s| s.phase);
    assert_eq!(phase(&keys[0]).as_deref(), Some("Bound"));
    assert_ne!(phase(&keys[1]).as_deref(), Some("Bound"));
}

fn scaled_world(replicas: i32, usage: &str) -> (World, Key) {
    let mut world = World::default();
    let container = json!({ "name": "c", "resources": { "requests": { "cpu": "100m" } } });
    let deployment: Deployment = from(json!({ "metadata": { "name": "web", "namespace": "d" },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": "a" } },
            "template": { "metadata": { "labels": { "app": "a" } }, "spec": { "containers": [container] } } } }));
    world.put(&deployment);
    let scaler: HorizontalPodAutoscaler = from(json!({ "metadata": { "name": "web", "namespace": "d" },
        "spec": { "minReplicas": 1, "maxReplicas": 10, "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" },
            "metrics": [{ "type": "Resource", "resource": { "name": "cpu",
                "target": { "type": "Utilization", "averageUtilization": 50 } } }] } }));
    let key = world.put(&scaler);
    measure(&mut world, replicas, usage);
    (world, key)
}

fn measure(world: &mut World, replicas: i32, usage: &str) {
    for n in 0..replicas {
        let name = format!("p{n}");
        let container = json!({ "name": "c", "resources": { "requests": { "cpu": "100m" } } });
        let pod: Pod = from(
            json!({ "metadata": { "name": name, "namespace": "d", "labels": { "app": "a" } },
            "spec": { "containers": [container], "nodeName": "n1" },
            "status": { "phase": "Running", "startTime": "2020-01-01T00:00:00Z",
                "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:10Z" }] } }),
        );
        world.put(&pod);
        let metrics: PodMetrics = serde_json::from_value(json!({ "metadata": { "name": name, "namespace": "d" },
            "timestamp": "2023-01-01T00:00:00Z", "containers": [{ "name": "c", "usage": { "cpu": usage } }] })).unwrap();
        world.put(&metrics);
    }
}

/// One look, carrying the note; the size of the Deployment after it.
fn look(world: &mut World, key: &Key, note: &mut Option<Value>) -> i32 {
    let scaler = Autoscaler::default();
    let mut view = world.view(&scaler.watches(), world.version());
    view.set_note(scaler.name(), key, note.clone());
    let plan = scaler.reconcile(key, &view, world.now);
    *note = plan.note.clone();
    world.run(&plan).unwrap();
    world.list::<Deployment>()[0].spec.as_ref().unwrap().replicas.unwrap()
}

#[test]
fn scales_up_at_once_and_down_only_after_the_window() {
    let (mut world, key) = scaled_world(2, "100m");
    let mut note = None;
    assert_eq!(look(&mut world, &key, &mut note), 4, "twice the target");
    let status = world.get::<HorizontalPodAutoscaler>(&key).unwrap().status.unwrap();
    assert_eq!((status.current_replicas, status.desired_replicas), (Some(2), 4));
    measure(&mut world, 4, "53m");
    world.pass(15);
    assert_eq!(look(&mut world, &key, &mut note), 4, "within tolerance");
    measure(&mut world, 4, "10m");
    for _ in 0..19 {
        world.pass(15);
        assert_eq!(look(&mut world, &key, &mut note), 4, "held for 300 s");
    }
    world.pass(15);
    world.pass(15);
    assert_eq!(look(&mut world, &key, &mut note), 1);
    assert!(world.events.iter().filter(|e| *e == "SuccessfulRescale").count() == 2);
}

#[test]
fn without_figures_nothing_is_scaled_and_the_condition_says_so() {
    let (mut world, key) = scaled_world(2, "100m");
    for n in 0..2 {
        world.remove::<PodMetrics>(&Key::new("d", &format!("p{n}")));
    }
    assert_eq!(look(&mut world, &key, &mut None), 2);
    let conditions = world.get::<HorizontalPodAutoscaler>(&key).unwrap().status.unwrap().conditions.unwrap();
    let active = conditions.iter().find(|c| c.type_ == "ScalingActive").unwrap();
    assert_eq!(
        (active.status.as_str(), active.reason.as_deref()),
        ("False", Some("FailedGetResourceMetric"))
    );
}

proptest! {
    /// C30: whatever the recommendations, steps stay within the policies and down never undercuts
    /// the highest recommendation of its window.
    #[test]
    fn autoscaling_is_bounded_and_does_not_flap(proposals in prop::collection::vec(1i32..50, 1..60)) {
        let rules = Rules::of(None, jiff::SignedDuration::from_secs(300));
        let (mut past, mut world, mut size) = (Past::default(), World::default(), 5);
        let mut history: Vec<(i64, i32)> = Vec::new();
        for proposed in proposals {
            world.pass(15);
            let stable = past.stabilize(&rules, world.now, size, proposed);
            let next = past.limit(&rules, world.now, size, stable);
            history.push((world.now.as_second(), proposed));
            prop_assert!(next <= (size * 2).max(size + 4), "{size} to {next} in one period");
            let window = history.iter().filter(|(at, _)| world.now.as_second() - at < 300).map(|(_, n)| *n);
            let highest = window.max().unwrap();
            prop_assert!(next >= size.min(highest), "{size} to {next}, though {highest} was recommended");
            if next != size { past.scaled(world.now, size, next) }
            prop_assert_eq!(Past::read(past.write().as_ref()), past.clone());
            size = next;
        }
    }
}

#[test]
fn a_budget_counts_the_pods_its_controllers_want() {
    let (mut world, _) = scaled_world(3, "1m");
    let budget: PodDisruptionBudget =
        from(json!({ "metadata": { "name": "b", "namespace": "d", "generation": 2 },
        "spec": { "minAvailable": 2, "selector": { "matchLabels": { "app": "a" } } } }));
    let key = world.put(&budget);
    settle(&mut world, &Disruption, &key);
    let status = |w: &World| w.get::<PodDisruptionBudget>(&Key::new("d", "b")).unwrap().status.unwrap();
    assert_eq!((status(&world).disruptions_allowed, status(&world).observed_generation), (Some(1), Some(2)));
    world.edit::<Pod>(&Key::new("d", "p0"), |p| p.status = None);
    settle(&mut world, &Disruption, &key);
    assert_eq!((status(&world).disruptions_allowed, status(&world).current_healthy), (Some(0), Some(2)));
    run_pods(&mut world);
    settle(&mut world, &Disruption, &key);
    assert_eq!(status(&world).disruptions_allowed, Some(1));
    world.edit::<PodDisruptionBudget>(&key, |b| {
        b.status.as_mut().unwrap().disrupted_pods = Some([("p1".to_owned(), from_now())].into());
    });
    settle_once(&mut world, &key);
    assert_eq!(status(&world).disruptions_allowed, Some(0), "an eviction on its way counts");
}

fn from_now() -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(World::default().now)
}

fn settle_once(world: &mut World, key: &Key) {
    let plan = plan(world, &Disruption, key);
    world.run(&plan).unwrap();
}

#[test]
fn aggregated_roles_follow_their_parts() {
    let mut world = World::default();
    let part: ClusterRole = from(json!({ "metadata": { "name": "part", "labels": { "to": "all" } },
        "rules": [{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] }] }));
    world.put(&part);
    let all: ClusterRole = from(json!({ "metadata": { "name": "all" },
        "aggregationRule": { "clusterRoleSelectors": [{ "matchLabels": { "to": "all" } }] } }));
    let key = world.put(&all);
    settle(&mut world, &ClusterRoleAggregation, &key);
    assert_eq!(world.get::<ClusterRole>(&key).unwrap().rules.unwrap().len(), 1);
    world.edit::<ClusterRole>(&Key::cluster("part"), |r| r.rules = None);
    settle(&mut world, &ClusterRoleAggregation, &key);
    assert!(world.get::<ClusterRole>(&key).unwrap().rules.unwrap_or_default().is_empty());
}
