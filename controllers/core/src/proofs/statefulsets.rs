//! StatefulSet: scripts, and C10 under stale views and cut plans.

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{from, plan, run_pod, run_pods, settle, step, template};
use crate::Reconciler;
use crate::history::REVISION_LABEL;
use crate::object::{Key, Object};
use crate::pods;
use crate::statefulset::StatefulSets;
use crate::world::World;

fn world(replicas: i32, more: Value) -> (World, Key) {
    let mut world = World::default();
    let mut spec = json!({ "replicas": replicas, "serviceName": "web", "selector": { "matchLabels": { "app": "a" } },
        "template": template("i"),
        "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } } });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let set: StatefulSet =
        from(json!({ "metadata": { "name": "web", "namespace": "d", "generation": 1 }, "spec": spec }));
    let key = world.put(&set);
    (world, key)
}

fn names(world: &World) -> Vec<String> {
    world.list::<Pod>().iter().filter(|p| pods::is_active(p)).map(|p| p.name().to_owned()).collect()
}

/// Steps and lets every pod come up until nothing more happens.
fn bring_up(world: &mut World, key: &Key) {
    for _ in 0..40 {
        let _ = step(world, &StatefulSets, key);
        run_pods(world);
    }
    settle(world, &StatefulSets, key);
}

#[test]
fn pods_come_one_after_the_other_with_their_claims() {
    let claims = json!({ "volumeClaimTemplates": [{ "metadata": { "name": "data" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } }] });
    let (mut world, key) = world(2, claims);
    settle(&mut world, &StatefulSets, &key);
    assert_eq!(names(&world), ["web-0"], "the second waits for the first");
    run_pods(&mut world);
    settle(&mut world, &StatefulSets, &key);
    assert_eq!(names(&world), ["web-0", "web-1"]);
    let pod = world.get::<Pod>(&Key::new("d", "web-1")).unwrap();
    let spec = pod.spec.clone().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("web-1"), Some("web")));
    assert_eq!(pod.label("apps.kubernetes.io/pod-index"), Some("1"));
    let volume = &spec.volumes.unwrap()[0];
    assert_eq!(volume.persistent_volume_claim.as_ref().unwrap().claim_name, "data-web-1");
    assert_eq!(world.list::<PersistentVolumeClaim>().len(), 2);
    bring_up(&mut world, &key);
    let status = world.get::<StatefulSet>(&key).unwrap().status.unwrap();
    assert_eq!((status.replicas, status.ready_replicas, status.available_replicas), (2, Some(2), Some(2)));
    assert_eq!(status.current_revision, status.update_revision);
    assert!(plan(&world, &StatefulSets, &key).is_empty(), "a settled set sees no writes (C27)");
}

#[test]
fn it_shrinks_from_the_highest_and_keeps_or_drops_claims_as_told() {
    let claims = json!({ "volumeClaimTemplates": [{ "metadata": { "name": "data" }, "spec": {} }],
        "persistentVolumeClaimRetentionPolicy": { "whenScaled": "Delete", "whenDeleted": "Retain" } });
    let (mut world, key) = world(3, claims);
    bring_up(&mut world, &key);
    world.edit::<StatefulSet>(&key, |s| s.spec.as_mut().unwrap().replicas = Some(1));
    step(&mut world, &StatefulSets, &key).unwrap();
    assert_eq!(names(&world), ["web-0", "web-1"], "one at a time");
    let claim = world.get::<PersistentVolumeClaim>(&Key::new("d", "data-web-2")).unwrap();
    assert_eq!(claim.metadata.owner_references.unwrap()[0].kind, "Pod", "the claim goes with the pod");
    bring_up(&mut world, &key);
    assert_eq!(names(&world), ["web-0"]);
    let kept = world.get::<PersistentVolumeClaim>(&Key::new("d", "data-web-0")).unwrap();
    assert!(kept.metadata.owner_references.is_none());
}

#[test]
fn a_rollout_goes_from_the_highest_to_the_partition_and_can_go_back() {
    let (mut world, key) = world(3, json!({}));
    bring_up(&mut world, &key);
    let old = world.get::<StatefulSet>(&key).unwrap().status.unwrap().current_revision;
    world.edit::<StatefulSet>(&key, |s| {
        let spec = s.spec.as_mut().unwrap();
        spec.template.spec.as_mut().unwrap().containers[0].image = Some("j".into());
        spec.update_strategy.as_mut().unwrap().rolling_update.as_mut().unwrap().partition = Some(1);
    });
    step(&mut world, &StatefulSets, &key).unwrap();
    let deleting: Vec<String> =
        world.list::<Pod>().iter().filter(|p| p.is_deleting()).map(|p| p.name().to_owned()).collect();
    assert_eq!(deleting, ["web-2"]);
    bring_up(&mut world, &key);
    let images = |world: &World| -> Vec<String> {
        world
            .list::<Pod>()
            .iter()
            .map(|p| p.spec.as_ref().unwrap().containers[0].image.clone().unwrap())
            .collect()
    };
    assert_eq!(images(&world), ["i", "j", "j"], "the partition holds the first back");
    let status = world.get::<StatefulSet>(&key).unwrap().status.unwrap();
    assert_eq!((status.current_revision.clone(), status.updated_replicas), (old.clone(), Some(2)));
    world.edit::<Pod>(&Key::new("d", "web-0"), |p| p.status.as_mut().unwrap().phase = Some("Failed".into()));
    bring_up(&mut world, &key);
    assert_eq!(images(&world), ["i", "j", "j"], "below the partition the old template comes back");
    world.edit::<StatefulSet>(&key, |s| {
        s.spec
            .as_mut()
            .unwrap()
            .update_strategy
            .as_mut()
            .unwrap()
            .rolling_update
            .as_mut()
            .unwrap()
            .partition = Some(0);
    });
    bring_up(&mut world, &key);
    assert_eq!(images(&world), ["j", "j", "j"]);
    assert_eq!(world.list::<ControllerRevision>().len(), 2);
    world.edit::<StatefulSet>(&key, |s| {
        s.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image = Some("i".into());
    });
    bring_up(&mut world, &key);
    assert_eq!(images(&world), ["i", "i", "i"]);
    let revisions = world.list::<ControllerRevision>();
    assert_eq!(revisions.len(), 2, "an old template gets its old revision back");
    let newest = revisions.iter().max_by_key(|r| r.revision).unwrap();
    assert_eq!(Some(newest.name().to_owned()), old);
}

#[test]
fn on_delete_replaces_only_what_the_user_deletes() {
    let (mut world, key) =
        world(2, json!({ "updateStrategy": { "type": "OnDelete" }, "podManagementPolicy": "Parallel" }));
    step(&mut world, &StatefulSets, &key).unwrap();
    assert_eq!(names(&world).len(), 2, "Parallel makes all at once");
    bring_up(&mut world, &key);
    world.edit::<StatefulSet>(&key, |s| {
        s.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image = Some("j".into());
    });
    bring_up(&mut world, &key);
    let update = world.get::<StatefulSet>(&key).unwrap().status.unwrap().update_revision;
    let of = |world: &World, name: &str| {
        world.get::<Pod>(&Key::new("d", name)).unwrap().label(REVISION_LABEL).map(str::to_owned)
    };
    assert_ne!(of(&world, "web-0"), update);
    world.remove::<Pod>(&Key::new("d", "web-0"));
    bring_up(&mut world, &key);
    assert_eq!((of(&world, "web-0"), of(&world, "web-1") == update), (update, false));
}

/// C10: all with a lower number than one that was just made are available.
fn in_order(before: &World, after: &World) -> bool {
    let old: Vec<String> = before.list::<Pod>().iter().map(|p| p.name().to_owned()).collect();
    let made = after.list::<Pod>().into_iter().filter(|p| !old.contains(&p.name().to_owned()));
    made.into_iter().all(|pod| {
        let number: i32 = pod.name().rsplit('-').next().unwrap_or("").parse().unwrap_or(0);
        (0..number).all(|n| before.get::<Pod>(&Key::new("d", &format!("web-{n}"))).is_some())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// With views no older than its own last write and plans cut anywhere: names are unique by nature, no pod is made
    /// before all with a lower number are there, at most one is on its way out, and with faults off it converges.
    #[test]
    fn keeps_order_and_converges(steps in prop::collection::vec((0u8..6, 0usize..4, 0usize..7), 1..40)) {
        let (mut world, key) = world(2, json!({}));
        let mut own = world.version();
        for (what, lag, cut) in steps {
            match what {
                0 => world.edit::<StatefulSet>(&key, |s| s.spec.as_mut().unwrap().replicas = Some(cut as i32 % 4)),
                1 => {
                    let image = format!("i{}", cut % 2);
                    world.edit::<StatefulSet>(&key, |s| {
                        s.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image = Some(image);
                    });
                }
                2 => run_pods(&mut world),
                3 => run_pod(&mut world, &Key::new("d", &format!("web-{}", cut % 4))),
                _ => {
                    let version = world.version().saturating_sub(lag).max(own);
                    let view = world.view(&StatefulSets.watches(), version);
                    let plan = StatefulSets.reconcile(&key, &view, world.now);
                    let (before, clone) = (world.version(), world.clone());
                    for action in plan.actions.iter().take(cut) {
                        if world.act(action).is_err() { break }
                    }
                    if world.version() > before { own = world.version(); }
                    // What a stale view allowed may differ from what is; what is made in a fresh one may not.
                    if lag == 0 {
                        prop_assert!(in_order(&clone, &world), "a pod was made before its turn");
                    }
                    let new = world.list::<Pod>().iter().filter(|p| p.is_deleting()).count();
                    let old = clone.list::<Pod>().iter().filter(|p| p.is_deleting()).count();
                    prop_assert!(new <= old + 1, "more than one pod was told to go at once");
                }
            }
        }
        bring_up(&mut world, &key);
        let set = world.get::<StatefulSet>(&key).unwrap();
        let want = set.spec.unwrap().replicas.unwrap();
        prop_assert_eq!(names(&world).len() as i32, want);
        let update = set.status.unwrap().update_revision.unwrap();
        prop_assert!(world.list::<Pod>().iter().all(|p| p.label(REVISION_LABEL) == Some(&update)));
        prop_assert!(plan(&world, &StatefulSets, &key).is_empty());
    }
}
