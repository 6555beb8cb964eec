//! Deployment: scripts, and C7 under stale views, cut plans and every order of controllers.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{from, plan, run_pod, run_pods, settle, step, template};
use crate::deployment::{Deployments, REVISION, fence};
use crate::object::{Key, Object};
use crate::replicaset::ReplicaSets;
use crate::world::World;
use crate::{Reconciler, pods};

fn world(replicas: i32, strategy: Value) -> (World, Key) {
    let mut world = World::default();
    let deployment: Deployment = from(json!({
        "metadata": { "name": "web", "namespace": "d", "generation": 1 },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": "a" } }, "template": template("v1"),
            "strategy": strategy, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 2 },
    }));
    let key = world.put(&deployment);
    (world, key)
}

fn rolling(surge: i32, unavailable: i32) -> Value {
    json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } })
}

/// All controllers and the kubelet until nothing moves.
fn roll_out(world: &mut World, key: &Key) {
    for _ in 0..60 {
        let before = world.version();
        let _ = step(world, &Deployments, key);
        for set in world.list::<ReplicaSet>() {
            let _ = step(world, &ReplicaSets, &Key::of(&set));
        }
        run_pods(world);
        if world.version() == before {
            return;
        }
    }
    panic!("the rollout does not settle: {:#?}", world.events);
}

fn set_image(world: &mut World, key: &Key, image: &str) {
    world.edit::<Deployment>(key, |d| {
        d.spec.as_mut().unwrap().template = serde_json::from_value(template(image)).unwrap();
    });
}

fn condition(world: &World, key: &Key, kind: &str) -> (String, String) {
    let conditions = world.get::<Deployment>(key).unwrap().status.unwrap().conditions.unwrap_or_default();
    let found = conditions.into_iter().find(|c| c.type_ == kind).unwrap();
    (found.status, found.reason.unwrap_or_default())
}

fn images(world: &World) -> Vec<String> {
    let pods = world.list::<Pod>();
    pods.iter().map(|p| p.spec.as_ref().unwrap().containers[0].image.clone().unwrap()).collect()
}

#[test]
fn rolls_out_reports_and_is_quiet() {
    let (mut world, key) = world(3, rolling(1, 1));
    roll_out(&mut world, &key);
    let status = world.get::<Deployment>(&key).unwrap().status.unwrap();
    assert_eq!(
        (status.replicas, status.updated_replicas, status.available_replicas),
        (Some(3), Some(3), Some(3))
    );
    assert_eq!(condition(&world, &key, "Progressing"), ("True".into(), "NewReplicaSetAvailable".into()));
    assert_eq!(condition(&world, &key, "Available"), ("True".into(), "MinimumReplicasAvailable".into()));
    assert!(plan(&world, &Deployments, &key).is_empty());
    assert_eq!(world.get::<Deployment>(&key).unwrap().annotation(REVISION), Some("1"));
}

#[test]
fn an_update_replaces_every_pod_and_an_undo_brings_the_old_set_back() {
    let (mut world, key) = world(3, rolling(1, 0));
    roll_out(&mut world, &key);
    set_image(&mut world, &key, "v2");
    roll_out(&mut world, &key);
    assert_eq!(images(&world), ["v2", "v2", "v2"]);
    assert_eq!(world.list::<ReplicaSet>().len(), 2);
    assert_eq!(world.get::<Deployment>(&key).unwrap().annotation(REVISION), Some("2"));
    set_image(&mut world, &key, "v1");
    roll_out(&mut world, &key);
    assert_eq!(images(&world), ["v1", "v1", "v1"]);
    assert_eq!(world.list::<ReplicaSet>().len(), 2, "the old set is used again");
    assert_eq!(world.get::<Deployment>(&key).unwrap().annotation(REVISION), Some("3"));
}

#[test]
fn history_is_bounded() {
    let (mut world, key) = world(1, rolling(1, 0));
    for image in ["a", "b", "c", "d", "e"] {
        set_image(&mut world, &key, image);
        roll_out(&mut world, &key);
    }
    assert_eq!(world.list::<ReplicaSet>().len(), 3, "the new set and two old ones");
}

#[test]
fn recreate_never_runs_two_versions() {
    let (mut world, key) = world(2, json!({ "type": "Recreate" }));
    roll_out(&mut world, &key);
    set_image(&mut world, &key, "v2");
    for _ in 0..20 {
        let _ = step(&mut world, &Deployments, &key);
        for set in world.list::<ReplicaSet>() {
            let _ = step(&mut world, &ReplicaSets, &Key::of(&set));
        }
        let mut seen = images(&world);
        seen.dedup();
        assert!(seen.len() <= 1, "{seen:?}");
        run_pods(&mut world);
    }
    assert_eq!(images(&world), ["v2", "v2"]);
}

#[test]
fn paused_scales_but_does_not_roll() {
    let (mut world, key) = world(2, rolling(1, 0));
    roll_out(&mut world, &key);
    world.edit::<Deployment>(&key, |d| d.spec.as_mut().unwrap().paused = Some(true));
    set_image(&mut world, &key, "v2");
    world.edit::<Deployment>(&key, |d| d.spec.as_mut().unwrap().replicas = Some(4));
    roll_out(&mut world, &key);
    assert_eq!(images(&world), ["v1"; 4]);
    assert_eq!(condition(&world, &key, "Progressing").1, "DeploymentPaused");
    world.edit::<Deployment>(&key, |d| d.spec.as_mut().unwrap().paused = None);
    roll_out(&mut world, &key);
    assert_eq!(images(&world), ["v2"; 4]);
}

#[test]
fn scaling_within_a_rollout_is_shared_in_proportion() {
    let (mut world, key) = world(10, rolling(3, 2));
    roll_out(&mut world, &key);
    set_image(&mut world, &key, "v2");
    // As far as it goes while no new pod is ready: old 8, new 5 (13 in all).
    for _ in 0..3 {
        settle(&mut world, &Deployments, &key);
        for set in world.list::<ReplicaSet>() {
            settle(&mut world, &ReplicaSets, &Key::of(&set));
        }
    }
    let sizes = |world: &World| {
        let mut sets = world.list::<ReplicaSet>();
        sets.sort_by_key(|s| s.annotation(REVISION).unwrap().parse::<i32>().unwrap());
        sets.iter().map(|s| s.spec.as_ref().unwrap().replicas.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(sizes(&world), [8, 5]);
    world.edit::<Deployment>(&key, |d| d.spec.as_mut().unwrap().replicas = Some(30));
    step(&mut world, &Deployments, &key).unwrap();
    assert_eq!(sizes(&world).iter().sum::<i32>(), 33);
    assert!(sizes(&world)[0] > 18 && sizes(&world)[1] > 11, "{:?}", sizes(&world));
    roll_out(&mut world, &key);
    assert_eq!(images(&world), vec!["v2"; 30]);
}

#[test]
fn a_stuck_rollout_misses_its_deadline_and_a_new_one_does_not_inherit_it() {
    let (mut world, key) = world(2, rolling(1, 0));
    roll_out(&mut world, &key);
    world.pass(10_000);
    set_image(&mut world, &key, "broken");
    settle(&mut world, &Deployments, &key);
    assert_eq!(condition(&world, &key, "Progressing").0, "True");
    world.pass(601);
    settle(&mut world, &Deployments, &key);
    assert_eq!(condition(&world, &key, "Progressing"), ("False".into(), "ProgressDeadlineExceeded".into()));
}

#[test]
fn a_foreign_set_under_our_name_is_stepped_around() {
    let (mut world, key) = world(1, rolling(1, 0));
    let named = plan(&world, &Deployments, &key);
    let name = named.actions.iter().find_map(|a| match a {
        crate::Action::Create { object, .. } => object["metadata"]["name"].as_str().map(str::to_owned),
        _ => None,
    });
    let foreign: ReplicaSet = from(json!({ "metadata": { "name": name, "namespace": "d" },
        "spec": { "replicas": 0, "selector": { "matchLabels": { "x": "y" } } } }));
    world.put(&foreign);
    roll_out(&mut world, &key);
    assert_eq!(images(&world), ["v1"]);
    assert_eq!(world.get::<Deployment>(&key).unwrap().status.unwrap().collision_count, Some(1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// C7: total ≤ replicas + maxSurge and available ≥ replicas − maxUnavailable at every step of a
    /// rollout, whatever the order of controllers and kubelet, with stale views and cut plans.
    #[test]
    fn a_rollout_stays_within_its_fence(
        replicas in 1i32..6, surge in 0i32..3, unavailable in 0i32..3,
        steps in prop::collection::vec((0u8..6, 0usize..6, 0usize..8), 1..70),
    ) {
        let (mut world, key) = world(replicas, rolling(surge, unavailable));
        roll_out(&mut world, &key);
        let (surge, unavailable) = fence(&world.get::<Deployment>(&key).unwrap().spec.unwrap());
        set_image(&mut world, &key, "v2");
        let mut own = std::collections::BTreeMap::<String, usize>::new();
        for (what, lag, pick) in steps {
            let sets: Vec<Key> = world.list::<ReplicaSet>().iter().map(Key::of).collect();
            match what {
                0 | 1 => stale(&mut world, &Deployments, &key, lag, pick, &mut own),
                2 | 3 => stale(&mut world, &ReplicaSets, &sets[pick % sets.len()], lag, 100, &mut own),
                _ => {
                    let pods: Vec<Key> = world.list::<Pod>().iter().map(Key::of).collect();
                    if !pods.is_empty() { run_pod(&mut world, &pods[pick % pods.len()]) }
                }
            }
            let pods = world.list::<Pod>();
            let active: Vec<&Pod> = pods.iter().filter(|p| pods::is_active(p)).collect();
            let ready = active.iter().filter(|p| pods::is_ready(p)).count() as i32;
            prop_assert!(active.len() as i32 <= replicas + surge, "{} pods", active.len());
            prop_assert!(ready >= replicas - unavailable, "{ready} available of {replicas}");
        }
        roll_out(&mut world, &key);
        prop_assert_eq!(images(&world), vec!["v2"; replicas as usize]);
    }
}

/// One reconcile on a view that may lag (but holds this key's own writes), its plan cut after `cut` actions.
fn stale(
    world: &mut World,
    reconciler: &dyn Reconciler,
    key: &Key,
    lag: usize,
    cut: usize,
    own: &mut std::collections::BTreeMap<String, usize>,
) {
    let name = format!("{} {key}", reconciler.name());
    let version = world.version().saturating_sub(lag).max(own.get(&name).copied().unwrap_or(0));
    let view = world.view(&reconciler.watches(), version);
    let plan = reconciler.reconcile(key, &view, world.now);
    let before = world.version();
    for action in plan.actions.iter().take(cut) {
        if world.act(action).is_err() {
            break;
        }
    }
    if world.version() > before {
        own.insert(name, world.version());
    }
}
