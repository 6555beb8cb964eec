//! Taint eviction: pods leave nodes with NoExecute taints they do not tolerate (any longer).

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::endpointslice::on_node;
use crate::pods;
use crate::replicaset::whole_seconds;
use crate::{Change, Key, Object, Plan, Precondition, Reconciler, View, Watch};

pub struct TaintEviction;

impl Reconciler for TaintEviction {
    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::of::<Node>(), Watch::of::<Pod>().index("node", on_node)]
    }

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        if let Some((old, new)) = change.of::<Node>() {
            if old.map(no_execute) == new.map(no_execute) {
                return Vec::new();
            }
            let name = new.or(old).map_or("", |n| n.name());
            return view.of::<Pod>().by("node", name).map(|p| Key::of(p.as_ref())).collect();
        }
        let pod = change.of::<Pod>().and_then(|(_, new)| new);
        pod.filter(|p| !pods::node_name(p).is_empty()).map(Key::of).into_iter().collect()
    }

    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        let Some(pod) = view.get::<Pod>(key).filter(|p| pods::is_active(p)) else { return plan };
        let Some(node) = view.get::<Node>(&Key::cluster(pods::node_name(pod))) else { return plan };
        match deadline(pod, &no_execute(node), now) {
            None => {}
            Some(at) if at > now => plan.requeue_in(at.duration_since(now)),
            Some(_) => evict(&mut plan, pod, now),
        }
        plan
    }
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    taints.into_iter().flatten().filter(|t| t.effect == "NoExecute").cloned().collect()
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let same = |a: &Option<String>, b: &str| a.as_deref().is_none_or(|a| a.is_empty() || a == b);
    let exists = toleration.operator.as_deref() == Some("Exists");
    let any_key = toleration.key.as_deref().is_none_or(str::is_empty);
    same(&toleration.effect, &taint.effect)
        && if any_key { exists } else { toleration.key.as_deref() == Some(&taint.key) }
        && (exists || toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or(""))
}

/// When the pod has to go: none if it may stay. The first untolerated taint, or the shortest
/// toleration, counted from the taint.
fn deadline(pod: &Pod, taints: &[Taint], now: Timestamp) -> Option<Timestamp> {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let mut earliest: Option<Timestamp> = None;
    for taint in taints {
        let matching: Vec<&Toleration> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        let at = if matching.is_empty() {
            now
        } else {
            let Some(seconds) = matching.iter().filter_map(|t| t.toleration_seconds).min() else { continue };
            let since = taint.time_added.as_ref().map_or(now, |t| t.0);
            // A pod bound after the taint has its time from when it was bound.
            let start =
                pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(since, |t| t.0.max(since));
            start + SignedDuration::from_secs(seconds.max(0))
        };
        earliest = Some(earliest.map_or(at, |e| e.min(at)));
    }
    earliest
}

fn evict(plan: &mut Plan, pod: &Pod, now: Timestamp) {
    plan.record(pod, false, "TaintManagerEviction", format!("Marking for deletion Pod {}", Key::of(pod)));
    let mut new = pod.clone();
    disrupt(&mut new, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint", now);
    plan.update_status(pod, &new);
    plan.delete(pod, Precondition::same(pod));
}

/// Says in the pod's status why it is being removed.
pub fn disrupt(pod: &mut Pod, reason: &str, message: &str, now: Timestamp) {
    let generation = pod.metadata.generation;
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    if conditions.iter().any(|c| c.type_ == "DisruptionTarget" && c.status == "True") {
        return;
    }
    conditions.retain(|c| c.type_ != "DisruptionTarget");
    conditions.push(PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: Some(Time(whole_seconds(now))),
        observed_generation: generation,
        ..Default::default()
    });
}
