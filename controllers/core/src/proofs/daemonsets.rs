//! DaemonSet: scripts, and C12 under stale views and cut plans.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{from, plan, settle, step, template};
use crate::Reconciler;
use crate::daemonset::DaemonSets;
use crate::object::{Key, Object};
use crate::pods;
use crate::world::World;

fn world(nodes: usize, strategy: Value) -> (World, Key) {
    let mut world = World::default();
    for n in 0..nodes {
        let node: Node =
            from(json!({ "metadata": { "name": format!("n{n}"), "labels": { "disk": "ssd" } }, "spec": {} }));
        world.put(&node);
    }
    let set: DaemonSet = from(json!({ "metadata": { "name": "log", "namespace": "d", "generation": 1 },
        "spec": { "selector": { "matchLabels": { "app": "a" } }, "template": template("i"), "updateStrategy": strategy } }));
    let key = world.put(&set);
    (world, key)
}

fn rolling(unavailable: i32, surge: i32) -> Value {
    json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": unavailable, "maxSurge": surge } })
}

fn meant_for(pod: &Pod) -> String {
    let value = serde_json::to_value(pod).unwrap();
    let fields = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchFields/0/values/0";
    value.pointer(fields).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Scheduler and kubelet: pods go where they are meant to and run; what is being deleted goes.
fn run(world: &mut World) {
    for pod in world.list::<Pod>() {
        let key = Key::of(&pod);
        if !pod.is_deleting() {
            world.edit::<Pod>(&key, |p| p.spec.as_mut().unwrap().node_name = Some(meant_for(&pod)));
        }
        super::run_pod(world, &key);
    }
}

fn bring_up(world: &mut World, key: &Key) {
    for _ in 0..30 {
        let _ = step(world, &DaemonSets, key);
        run(world);
    }
    settle(world, &DaemonSets, key);
}

fn by_node(world: &World) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    for pod in world.list::<Pod>().iter().filter(|p| pods::is_active(p)) {
        *out.entry(meant_for(pod)).or_insert(0) += 1;
    }
    out
}

#[test]
fn every_node_that_fits_gets_one() {
    let (mut world, key) = world(3, rolling(1, 0));
    world.edit::<Node>(&Key::cluster("n2"), |n| n.metadata.labels = None);
    world.edit::<DaemonSet>(&key, |s| {
        s.spec.as_mut().unwrap().template.spec.as_mut().unwrap().node_selector =
            Some([("disk".to_owned(), "ssd".to_owned())].into());
    });
    bring_up(&mut world, &key);
    assert_eq!(by_node(&world), [("n0".into(), 1), ("n1".into(), 1)].into());
    let status = world.get::<DaemonSet>(&key).unwrap().status.unwrap();
    assert_eq!(
        (status.desired_number_scheduled, status.number_ready, status.number_available),
        (2, 2, Some(2))
    );
    assert!(plan(&world, &DaemonSets, &key).is_empty(), "a settled set sees no writes (C27)");
    let taint = Taint { key: "x".into(), effect: "NoExecute".into(), ..Default::default() };
    world.edit::<Node>(&Key::cluster("n1"), |n| n.spec.get_or_insert_default().taints = Some(vec![taint]));
    bring_up(&mut world, &key);
    assert_eq!(by_node(&world), [("n0".into(), 1)].into(), "a taint drives it away");
    let cordon = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Default::default()
    };
    world.edit::<Node>(&Key::cluster("n0"), |n| n.spec.get_or_insert_default().taints = Some(vec![cordon]));
    bring_up(&mut world, &key);
    assert_eq!(by_node(&world).len(), 1, "a cordon does not");
}

#[test]
fn a_rollout_keeps_to_its_budget() {
    for (unavailable, surge) in [(1, 0), (2, 0), (0, 1)] {
        let (mut world, key) = world(4, rolling(unavailable, surge));
        bring_up(&mut world, &key);
        world.edit::<DaemonSet>(&key, |s| {
            s.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image = Some("j".into());
        });
        for _ in 0..30 {
            let _ = step(&mut world, &DaemonSets, &key);
            let ready =
                world.list::<Pod>().iter().filter(|p| pods::is_active(p) && pods::is_ready(p)).count();
            assert!(
                ready >= 4 - unavailable as usize,
                "{ready} ready with {unavailable} unavailable at most"
            );
            let most = by_node(&world).values().copied().max().unwrap_or(0);
            assert!(most <= 1 + surge as usize);
            run(&mut world);
        }
        let images: Vec<_> = world
            .list::<Pod>()
            .iter()
            .map(|p| p.spec.as_ref().unwrap().containers[0].image.clone().unwrap())
            .collect();
        assert_eq!(images, ["j"; 4], "{unavailable} {surge}");
    }
}

#[test]
fn a_failed_pod_is_replaced_and_on_delete_waits_for_the_user() {
    let (mut world, key) = world(1, json!({ "type": "OnDelete" }));
    bring_up(&mut world, &key);
    let pod = Key::of(&world.list::<Pod>()[0]);
    world.edit::<DaemonSet>(&key, |s| {
        s.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image = Some("j".into());
    });
    bring_up(&mut world, &key);
    assert!(world.get::<Pod>(&pod).is_some());
    world.edit::<Pod>(&pod, |p| p.status.as_mut().unwrap().phase = Some("Failed".into()));
    bring_up(&mut world, &key);
    let now = world.list::<Pod>();
    assert_eq!((now.len(), now[0].spec.as_ref().unwrap().containers[0].image.as_deref()), (1, Some("j")));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// C12: whatever comes and goes, no node has two pods that stay; with faults off every node has one of the template.
    #[test]
    fn at_most_one_a_node_and_converges(steps in prop::collection::vec((0u8..6, 0usize..4, 0usize..7), 1..40)) {
        let (mut world, key) = world(3, rolling(1, 0));
        let mut own = world.version();
        for (what, lag, cut) in steps {
            match what {
                0 => {
                    let name = format!("n{}", cut % 3);
                    if world.get::<Node>(&Key::cluster(&name)).is_some() {
                        world.remove::<Node>(&Key::cluster(&name));
                    } else {
                        let node: Node = from(json!({ "metadata": { "name": name }, "spec": {} }));
                        world.put(&node);
                    }
                }
                1 => {
                    let image = format!("i{}", cut % 2);
                    world.edit::<DaemonSet>(&key, |s| {
                        s.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image = Some(image);
                    });
                }
                2 => run(&mut world),
                _ => {
                    let version = world.version().saturating_sub(lag).max(own);
                    let view = world.view(&DaemonSets.watches(), version);
                    let plan = DaemonSets.reconcile(&key, &view, world.now);
                    let before = world.version();
                    for action in plan.actions.iter().take(cut) {
                        if world.act(action).is_err() { break }
                    }
                    if world.version() > before { own = world.version(); }
                }
            }
            prop_assert!(by_node(&world).values().all(|n| *n <= 1), "{:?}", by_node(&world));
        }
        bring_up(&mut world, &key);
        let nodes: Vec<String> = world.list::<Node>().iter().map(|n| n.name().to_owned()).collect();
        prop_assert_eq!(by_node(&world).into_keys().collect::<Vec<_>>(), nodes);
        let share = world.get::<DaemonSet>(&key).unwrap().spec.unwrap().update_strategy.unwrap().rolling_update.unwrap();
        prop_assert_eq!(share.max_surge, Some(IntOrString::Int(0)));
        prop_assert!(plan(&world, &DaemonSets, &key).is_empty());
    }
}
