//! The shipped namespace reconciler emptying a namespace, in the cluster of `cluster.rs`, while pods take their time to
//! stop and a request that was under way still makes something.
//!
//! Shown beside what holds of every scenario: the namespace is let go only when nothing is left in it, whatever the view
//! said (C20); pods go first; in the end it is let go.
//!
//! Omitted: kinds that the server cannot list (unit-tested), finalizers of what is inside (an object that waits is a pod
//! that takes longer).

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use keelson_controllers_core::namespace::{FINALIZER, Namespaces};
use keelson_controllers_core::world::World;
use keelson_controllers_core::{Gvr, Key, Object};
use serde_json::json;

use crate::catalogue::{Bound, Report};
use crate::cluster::{Scenario, keys_of, object};

/// Runs the model.
pub fn run(bound: Bound) -> Report {
    scenario(if bound == Bound::Deep { 2 } else { 1 }).run(bound)
}

fn key() -> Key {
    Key::cluster("d")
}

fn let_go(world: &World) -> bool {
    let spec = world.get::<Namespace>(&key()).and_then(|namespace| namespace.spec);
    spec.is_none_or(|spec| spec.finalizers.unwrap_or_default().is_empty())
}

fn contents(world: &World) -> usize {
    world.list::<Pod>().len() + world.list::<ConfigMap>().len()
}

/// C20 of the newest write.
fn empty_when_let_go(world: &World) -> Result<(), String> {
    let Some((resource, _, _)) = world.change(world.version()) else { return Ok(()) };
    if resource.resource == "namespaces" && let_go(world) && contents(world) > 0 {
        return Err(format!("C20 it is let go with {} objects in it", contents(world)));
    }
    Ok(())
}

/// A namespace that is being deleted; so many requests that were under way may still make something in it.
pub fn scenario(late: u8) -> Scenario {
    // `spec.finalizers` keeps it, which the world does not know of: another finalizer stands in.
    let namespace: Namespace = object(json!({
        "metadata": {
            "name": "d", "finalizers": ["stands-in"], "deletionTimestamp": "2023-01-01T00:00:00Z",
        },
        "spec": {"finalizers": [FINALIZER]},
    }));
    let map = |name: &str| -> ConfigMap { object(json!({"metadata": {"name": name, "namespace": "d"}})) };
    let pod: Pod = object(json!({
        "metadata": {"name": "p", "namespace": "d"}, "spec": {"containers": [], "nodeName": "n1"},
    }));
    Scenario::new("controllers-namespaces")
        .resources(&[
            (Gvr::of::<Pod>(), "Pod", true),
            (Gvr::of::<ConfigMap>(), "ConfigMap", true),
            (Gvr::of::<Namespace>(), "Namespace", false),
        ])
        .object(&namespace)
        .object(&map("m"))
        .object(&pod)
        .controller(Namespaces, |_| vec![key()])
        .fair("a pod stops", keys_of::<Pod>, |world, key| {
            if world.get::<Pod>(key).is_some_and(|pod| pod.is_deleting()) {
                world.remove::<Pod>(key);
            }
        })
        .trouble(
            "a late request makes something",
            late,
            |_| vec![Key::new("d", "late")],
            move |world, key| {
                if !let_go(world) && world.get::<ConfigMap>(key).is_none() {
                    world.put(&map(&key.name));
                }
            },
        )
        .trouble("somebody removes something", 1, keys_of::<ConfigMap>, |world, key| {
            world.remove::<ConfigMap>(key);
        })
        .always(empty_when_let_go)
        .desired(|world| match (let_go(world), contents(world)) {
            (true, 0) => Ok(()),
            (gone, left) => Err(format!("let go: {gone}, {left} objects are left")),
        })
        .sometimes("something came after all was swept", |world| {
            world.list::<Pod>().is_empty() && world.list::<ConfigMap>().iter().any(|map| map.name() == "late")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_let_go_when_it_is_empty_and_not_before() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 670, "the reach changed: look why, then set the new count");
    }
}
