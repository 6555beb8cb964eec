//! What controllers ask about pods: active, ready, available, and which to delete first.

use std::cmp::Ordering;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::object::Object;

pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

pub fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// Succeeded or Failed: it will never run again.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither finished nor being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !pod.is_deleting()
}

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Whether a pod counts as available: ready for `min_ready` seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    Available,
    /// Ready; available after this much more time.
    In(SignedDuration),
    NotReady,
}

pub fn availability(pod: &Pod, min_ready: i32, now: Timestamp) -> Availability {
    let Some(ready) = condition(pod, "Ready").filter(|c| c.status == "True") else {
        return Availability::NotReady;
    };
    if min_ready <= 0 {
        return Availability::Available;
    }
    let Some(Time(since)) = ready.last_transition_time else { return Availability::NotReady };
    let left = SignedDuration::from_secs(min_ready.into()) - now.duration_since(since);
    if left.is_positive() { Availability::In(left) } else { Availability::Available }
}

/// Restarts of the container that restarted most.
pub fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    let init = status.and_then(|s| s.init_container_statuses.as_ref()).into_iter().flatten();
    let main = status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten();
    init.chain(main).map(|c| c.restart_count).max().unwrap_or(0)
}

/// Orders pods so that the one to delete first comes first: not on a node, not running, not
/// ready, cheap to delete, crowded on its node (`crowd`), ready for a short time, often restarted,
/// young. Times are compared by order of magnitude, then by uid, so that victims are spread.
pub fn deletion_order(a: (&Pod, usize), b: (&Pod, usize), now: Timestamp) -> Ordering {
    let ((a, crowd_a), (b, crowd_b)) = (a, b);
    let placed = |p: &Pod| !node_name(p).is_empty();
    let running = |p: &Pod| match phase(p) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    placed(a)
        .cmp(&placed(b))
        .then_with(|| running(a).cmp(&running(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| crowd_b.cmp(&crowd_a))
        .then_with(|| {
            if is_ready(a) { by_age(ready_since(a), ready_since(b), a, b, now) } else { Ordering::Equal }
        })
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| by_age(created(a), created(b), a, b, now))
        .then_with(|| a.uid().cmp(b.uid()))
}

fn deletion_cost(pod: &Pod) -> i32 {
    pod.annotation(DELETION_COST).and_then(|c| c.parse().ok()).unwrap_or(0)
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready").filter(|c| c.status == "True")?.last_transition_time.as_ref().map(|t| t.0)
}

pub fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

fn by_age(a: Option<Timestamp>, b: Option<Timestamp>, pod_a: &Pod, pod_b: &Pod, now: Timestamp) -> Ordering {
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(a), Some(b)) if a == b => Ordering::Equal,
        (Some(a), Some(b)) => {
            let magnitude = |t: Timestamp| now.duration_since(t).as_secs().max(1).ilog2();
            magnitude(a).cmp(&magnitude(b)).then_with(|| pod_a.uid().cmp(pod_b.uid()))
        }
    }
}
