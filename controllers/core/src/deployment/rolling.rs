//! Sizes of a Deployment's sets: pure arithmetic on `Sets`.

use k8s_openapi::api::apps::v1::DeploymentSpec;

use super::sets::{Set, Sets};
use super::{MAXIMUM, fence, is_recreate, replicas};
use crate::Object;

/// The size the new set may have now: all at once under Recreate, else what maxSurge leaves room for.
pub fn new_size(spec: &DeploymentSpec, sets: &Sets) -> i32 {
    let size = sets.new.as_ref().map_or(0, |s| s.replicas);
    if is_recreate(spec) {
        return replicas(spec);
    }
    // What runs counts as well as what is asked for: a set just shrunk still has its pods (C7).
    if !sets.all().all(Set::is_observed) {
        return size;
    }
    let running: i32 = sets.all().map(|s| s.replicas.max(s.running())).sum();
    let room = replicas(spec) + fence(spec).0 - running;
    size + room.min(replicas(spec) - size).max(0)
}

/// Grows the new set as far as the fence allows, or shrinks it to the Deployment's size.
pub fn size_new(spec: &DeploymentSpec, sets: &mut Sets) {
    let grown = new_size(spec, sets);
    if let Some(new) = sets.new.as_mut() {
        new.replicas = if new.replicas > replicas(spec) { replicas(spec) } else { grown };
    }
}

pub fn shrink_old_to_zero(sets: &mut Sets) {
    for set in &mut sets.old {
        set.replicas = 0;
    }
}

/// Takes from the old sets what the fence allows: first pods that are not available anyway, then
/// as many available ones as leaves `replicas - maxUnavailable`.
pub fn shrink_old(spec: &DeploymentSpec, sets: &mut Sets) {
    // A set made or grown by this very plan has no available pods yet.
    let Some(new) = sets.new.clone() else { return };
    #[cfg(feature = "planted")]
    if keelson_plant::is(26) && new.replicas == new.size() {
        return;
    }
    let least = replicas(spec) - fence(spec).1;
    let new_unavailable = new.replicas - new.available();
    let mut room = sets.total() - least - new_unavailable;
    if room <= 0 || sets.old.iter().all(|s| s.replicas == 0) {
        return;
    }
    for set in &mut sets.old {
        let gone = (set.replicas - set.available()).min(room).max(0);
        set.replicas -= gone;
        room -= gone;
    }
    let mut spare = sets.all().map(Set::available).sum::<i32>() - least;
    for set in &mut sets.old {
        let gone = set.replicas.min(spare).max(0);
        set.replicas -= gone;
        spare -= gone;
    }
}

/// Follows a change of the Deployment's size. Outside a rollout one set takes it all; within one,
/// the sets share it in proportion.
pub fn scale(spec: &DeploymentSpec, sets: &mut Sets) {
    let want = replicas(spec);
    let active = sets.all().filter(|s| s.size() > 0).count();
    let single = match active {
        0 => sets.new.as_mut().or(sets.old.last_mut()),
        1 => sets.new.iter_mut().chain(&mut sets.old).find(|s| s.size() > 0),
        _ => None,
    };
    if active <= 1 {
        if let Some(set) = single {
            set.replicas = want;
        }
        return;
    }
    if is_saturated(spec, sets) {
        return shrink_old_to_zero(sets);
    }
    if !is_recreate(spec) {
        share(spec, sets);
    }
}

/// Whether the new set alone is all the Deployment wants, available.
fn is_saturated(spec: &DeploymentSpec, sets: &Sets) -> bool {
    let want = replicas(spec);
    sets.new.as_ref().is_some_and(|new| {
        let desired = new.object.annotation(super::DESIRED).and_then(|d| d.parse().ok());
        new.replicas == want && desired == Some(want) && new.available() == want
    })
}

fn share(spec: &DeploymentSpec, sets: &mut Sets) {
    let want = replicas(spec);
    let most = if want > 0 { want + fence(spec).0 } else { 0 };
    let to_add = most - sets.total();
    if to_add == 0 {
        return;
    }
    let mut order: Vec<&mut Set> =
        sets.new.iter_mut().chain(&mut sets.old).filter(|s| s.size() > 0).collect();
    // The biggest first; of equals the youngest when growing, the oldest when shrinking.
    order.sort_by_key(|s| {
        let age = s.object.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second());
        (-s.replicas, if to_add > 0 { -age } else { age }, s.object.name().to_owned())
    });
    let mut added = 0;
    for set in &mut order {
        let step = proportion(spec, set, to_add, added, most);
        set.replicas += step;
        added += step;
    }
    if let Some(first) = order.first_mut() {
        first.replicas = (first.replicas + to_add - added).max(0);
    }
}

/// A set's share of `to_add`, by its size against the size the Deployment had before.
fn proportion(spec: &DeploymentSpec, set: &Set, to_add: i32, added: i32, most: i32) -> i32 {
    if set.replicas == 0 || to_add == added {
        return 0;
    }
    let left = to_add - added;
    let fraction = if replicas(spec) == 0 {
        -set.replicas
    } else {
        let before = set.object.annotation(MAXIMUM).and_then(|m| m.parse().ok()).filter(|m: &i64| *m > 0);
        let before = before.unwrap_or(most.into());
        let scaled = i64::from(set.replicas) * i64::from(most);
        ((scaled + before / 2) / before) as i32 - set.replicas
    };
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}
