//! The shipped garbage collector in the cluster of `cluster.rs`, while an owner goes, in the background or waiting for its
//! dependents, and another comes under its name.
//!
//! Shown beside what holds of every scenario: a dependent never goes while an owner of that uid lives (C29); in the end it
//! is there exactly when its owner is (C5).
//!
//! Omitted: several owners and orphaning (unit-tested), kinds that the server does not know (likewise).

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_controllers_core::garbage::{FOREGROUND, GarbageCollector};
use keelson_controllers_core::world::World;
use keelson_controllers_core::{Gvr, Key, Object};
use serde_json::{Value, json};

use crate::catalogue::{Bound, Report};
use crate::cluster::{Scenario, object};

/// Runs the model.
pub fn run(bound: Bound) -> Report {
    scenario(if bound == Bound::Deep { 2 } else { 1 }).run(bound)
}

fn owner() -> Key {
    Key::new("d", "owner")
}

/// Keys of the collector are uids.
fn uids(world: &World) -> Vec<Key> {
    world.list::<ConfigMap>().iter().map(|map| Key::cluster(map.uid())).collect()
}

fn lives(world: &World, uid: &str) -> bool {
    world.list::<ConfigMap>().iter().any(|map| map.uid() == uid)
}

fn owner_uid(child: &Value) -> &str {
    child["metadata"]["ownerReferences"][0]["uid"].as_str().unwrap_or_default()
}

/// C29 of the newest write.
fn not_before_its_owner(world: &World) -> Result<(), String> {
    let Some((_, Some(before), after)) = world.change(world.version()) else { return Ok(()) };
    let goes = after.is_none_or(|after| !after["metadata"]["deletionTimestamp"].is_null());
    let uid = owner_uid(&before);
    let solid = world.list::<ConfigMap>().iter().any(|map| map.uid() == uid && !map.is_deleting());
    if goes && !uid.is_empty() && solid {
        return Err(format!("C29 {} goes and its owner lives", before["metadata"]["name"]));
    }
    Ok(())
}

fn follow(world: &World) -> Result<(), String> {
    for map in world.list::<ConfigMap>() {
        let wanted = map.metadata.owner_references.iter().flatten().next();
        if wanted.is_some_and(|owner| !lives(world, &owner.uid)) {
            return Err(format!("C5 {} is there and its owner is not", map.name()));
        }
        if map.is_deleting() {
            return Err(format!("C5 {} waits", map.name()));
        }
    }
    let (child, first) = (world.get::<ConfigMap>(&Key::new("d", "child")), lives(world, "first"));
    if child.is_some() == first {
        Ok(())
    } else {
        Err(format!("C5 the owner lives: {first}, the child: {}", child.is_some()))
    }
}

fn map(name: &str, uid: &str, owner: Option<&str>) -> ConfigMap {
    let reference = |uid: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid, "blockOwnerDeletion": true});
    let owners: Vec<Value> = owner.into_iter().map(reference).collect();
    object(json!({"metadata": {"name": name, "namespace": "d", "uid": uid, "ownerReferences": owners}}))
}

/// An owner and what it owns; each trouble may happen so many times.
pub fn scenario(most: u8) -> Scenario {
    Scenario::new("controllers-garbage")
        // Each plan is one request: nothing lies between two.
        .cuts(0)
        .resources(&[(Gvr::of::<ConfigMap>(), "ConfigMap", true)])
        .object(&map("owner", "first", None))
        .object(&map("child", "child", Some("first")))
        .controller(GarbageCollector, uids)
        .trouble(
            "the owner is removed",
            most,
            |_| vec![owner()],
            |world, key| {
                if world.get::<ConfigMap>(key).is_some_and(|map| !map.is_deleting()) {
                    world.remove::<ConfigMap>(key);
                }
            },
        )
        .trouble(
            "the owner is to go after its dependents",
            most,
            |_| vec![owner()],
            |world, key| {
                let at = world.now;
                if world.get::<ConfigMap>(key).is_some_and(|map| !map.is_deleting()) {
                    world.edit::<ConfigMap>(key, |map| {
                        map.metadata.finalizers = Some(vec![FOREGROUND.to_owned()]);
                        map.metadata.deletion_timestamp = Some(Time(at));
                    });
                }
            },
        )
        .trouble(
            "another comes under its name",
            most,
            |_| vec![owner()],
            |world, key| {
                if world.get::<ConfigMap>(key).is_none() {
                    world.put(&map("owner", "second", None));
                }
            },
        )
        .always(not_before_its_owner)
        .desired(follow)
        .sometimes("another has the owner's name and the dependent waits", |world| {
            lives(world, "second") && lives(world, "child")
        })
        .sometimes("the owner waits for its dependent", |world| {
            let waits = world.get::<ConfigMap>(&owner()).is_some_and(|map| map.is_deleting());
            waits && lives(world, "child")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependents_follow_their_owner_and_nobody_of_its_name() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 19, "the reach changed: look why, then set the new count");
    }
}
