//! ReplicaSet: scripts, and C9 under stale views and cut plans.

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::json;

use super::{from, plan, run_pods, settle, step, template};
use crate::object::{Key, Object};
use crate::plan::Action;
use crate::replicaset::{BURST, ReplicaSets};
use crate::world::World;
use crate::{Reconciler, pods};

fn world(replicas: i32) -> (World, Key) {
    let mut world = World::default();
    let set: ReplicaSet = from(json!({
        "metadata": { "name": "web", "namespace": "d", "generation": 1 },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": "a" } }, "template": template("i") },
    }));
    let key = world.put(&set);
    (world, key)
}

fn active(world: &World) -> usize {
    world.list::<Pod>().iter().filter(|p| pods::is_active(p)).count()
}

#[test]
fn makes_what_is_missing_and_reports_it() {
    let (mut world, key) = world(3);
    step(&mut world, &ReplicaSets, &key).unwrap();
    assert_eq!(active(&world), 3);
    assert_eq!(world.events.iter().filter(|e| *e == "SuccessfulCreate").count(), 3);
    run_pods(&mut world);
    settle(&mut world, &ReplicaSets, &key);
    let status = world.get::<ReplicaSet>(&key).unwrap().status.unwrap();
    assert_eq!((status.replicas, status.ready_replicas, status.available_replicas), (3, Some(3), Some(3)));
    assert_eq!(status.observed_generation, Some(1));
    assert!(plan(&world, &ReplicaSets, &key).is_empty(), "a settled set sees no writes (C27)");
}

#[test]
fn a_pod_that_goes_is_replaced_before_it_is_gone() {
    let (mut world, key) = world(2);
    settle(&mut world, &ReplicaSets, &key);
    run_pods(&mut world);
    let victim = Key::of(&world.list::<Pod>()[0]);
    world.edit::<Pod>(&victim, |p| p.metadata.deletion_timestamp = p.metadata.creation_timestamp.clone());
    step(&mut world, &ReplicaSets, &key).unwrap();
    assert_eq!((active(&world), world.list::<Pod>().len()), (2, 3));
    settle(&mut world, &ReplicaSets, &key);
    assert_eq!(world.get::<ReplicaSet>(&key).unwrap().status.unwrap().terminating_replicas, Some(1));
}

#[test]
fn adopts_and_releases_by_selector() {
    let (mut world, key) = world(2);
    let orphan: Pod = from(json!({ "metadata": { "name": "o", "namespace": "d", "labels": { "app": "a" } },
        "spec": { "containers": [] } }));
    let orphan = world.put(&orphan);
    settle(&mut world, &ReplicaSets, &key);
    assert_eq!(world.list::<Pod>().len(), 2, "the orphan counts");
    assert_eq!(world.get::<Pod>(&orphan).unwrap().controller().unwrap().name, "web");
    world.edit::<Pod>(&orphan, |p| p.metadata.labels = None);
    settle(&mut world, &ReplicaSets, &key);
    assert!(world.get::<Pod>(&orphan).unwrap().controller().is_none());
    assert_eq!(world.list::<Pod>().len(), 3, "the released one is replaced");
}

#[test]
fn shrinks_the_cheapest_and_least_ready_first() {
    let (mut world, key) = world(4);
    settle(&mut world, &ReplicaSets, &key);
    run_pods(&mut world);
    let all: Vec<Key> = world.list::<Pod>().iter().map(Key::of).collect();
    world.edit::<Pod>(&all[1], |p| p.status.as_mut().unwrap().conditions = None);
    let cost = [(pods::DELETION_COST.to_owned(), "-5".to_owned())].into();
    world.edit::<Pod>(&all[2], |p| p.metadata.annotations = Some(cost));
    world.edit::<ReplicaSet>(&key, |s| s.spec.as_mut().unwrap().replicas = Some(2));
    step(&mut world, &ReplicaSets, &key).unwrap();
    let gone: Vec<&Key> =
        all.iter().filter(|k| world.get::<Pod>(k).is_none_or(|p| p.is_deleting())).collect();
    assert_eq!(gone, [&all[1], &all[2]]);
}

#[test]
fn a_burst_is_bounded() {
    let (world, key) = world(5000);
    let plan = plan(&world, &ReplicaSets, &key);
    assert_eq!(plan.actions.iter().filter(|a| matches!(a, Action::Create { .. })).count(), BURST);
}

#[test]
fn a_replication_controller_does_the_same() {
    use crate::replicationcontroller::ReplicationControllers;
    use k8s_openapi::api::core::v1::ReplicationController;
    let mut world = World::default();
    let owner: ReplicationController =
        from(json!({ "metadata": { "name": "web", "namespace": "d", "generation": 1 },
        "spec": { "replicas": 3, "selector": { "app": "a" }, "template": template("i") } }));
    let key = world.put(&owner);
    settle(&mut world, &ReplicationControllers, &key);
    run_pods(&mut world);
    settle(&mut world, &ReplicationControllers, &key);
    let status = world.get::<ReplicationController>(&key).unwrap().status.unwrap();
    assert_eq!((active(&world), status.ready_replicas, status.fully_labeled_replicas), (3, Some(3), Some(3)));
    world.edit::<ReplicationController>(&key, |c| c.spec.as_mut().unwrap().replicas = Some(1));
    settle(&mut world, &ReplicationControllers, &key);
    assert_eq!(active(&world), 1);
    assert!(plan(&world, &ReplicationControllers, &key).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// C9: with views no older than its own last write and plans cut anywhere, a set never has more
    /// active pods than the largest size asked for, and with faults off it converges.
    #[test]
    fn never_exceeds_and_converges(steps in prop::collection::vec((0u8..4, 0usize..4, 0usize..6), 1..40), first in 0i32..4) {
        let (mut world, key) = world(first);
        let (mut own, mut most) = (world.version(), first);
        for (what, lag, cut) in steps {
            match what {
                0 => {
                    let size = cut as i32 % 4;
                    most = most.max(size);
                    world.edit::<ReplicaSet>(&key, |s| s.spec.as_mut().unwrap().replicas = Some(size));
                }
                1 => run_pods(&mut world),
                _ => {
                    let version = world.version().saturating_sub(lag).max(own);
                    let view = world.view(&ReplicaSets.watches(), version);
                    let plan = ReplicaSets.reconcile(&key, &view, world.now);
                    let before = world.version();
                    for action in plan.actions.iter().take(cut) {
                        if world.act(action).is_err() { break }
                    }
                    if world.version() > before { own = world.version(); }
                }
            }
            prop_assert!(active(&world) as i32 <= most, "{} pods, at most {most} were ever asked for", active(&world));
        }
        for _ in 0..12 {
            let _ = step(&mut world, &ReplicaSets, &key);
            run_pods(&mut world);
        }
        let want = world.get::<ReplicaSet>(&key).unwrap().spec.unwrap().replicas.unwrap();
        prop_assert_eq!(active(&world) as i32, want);
        prop_assert!(plan(&world, &ReplicaSets, &key).is_empty());
    }
}
