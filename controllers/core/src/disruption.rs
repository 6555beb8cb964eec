//! PodDisruptionBudget: how many of the selected pods may be evicted now (C8).

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::deployment::portion;
use crate::labels::matches;
use crate::pods;
use crate::replicaset::whole_seconds;
use crate::{Change, Key, Object, Plan, Reconciler, View, Watch};

/// An eviction that has not led to a deletion after so long is forgotten.
const EVICTION_TIMEOUT: SignedDuration = SignedDuration::from_secs(120);

pub struct Disruption;

impl Reconciler for Disruption {
    fn name(&self) -> &'static str {
        "disruption-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::of::<PodDisruptionBudget>(),
            Watch::of::<Pod>(),
            Watch::of::<ReplicaSet>(),
            Watch::of::<Deployment>(),
            Watch::of::<StatefulSet>(),
        ]
    }

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        if let Some(budget) = change.latest::<PodDisruptionBudget>() {
            return vec![Key::of(budget)];
        }
        let namespace =
            match (change.latest::<Deployment>(), change.latest::<StatefulSet>(), change.of::<Pod>()) {
                (Some(d), _, _) => d.namespace(),
                (_, Some(s), _) => s.namespace(),
                (_, _, Some((old, new))) => {
                    let pods: Vec<&Pod> = [old, new].into_iter().flatten().collect();
                    let here = view
                        .of::<PodDisruptionBudget>()
                        .namespace(pods.first().map_or("", |p| p.namespace()));
                    let concerned = here.filter(|b| pods.iter().any(|p| selects(b, p)));
                    return concerned.map(|b| Key::of(b.as_ref())).collect();
                }
                _ => return Vec::new(),
            };
        view.of::<PodDisruptionBudget>().namespace(namespace).map(|b| Key::of(b.as_ref())).collect()
    }

    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        let Some(budget) = view.get::<PodDisruptionBudget>(key).filter(|b| !b.is_deleting()) else {
            return plan;
        };
        let mut new = (**budget).clone();
        let status = status(budget, view, now);
        if !status.disrupted_pods.as_ref().is_none_or(BTreeMap::is_empty) {
            plan.requeue_in(EVICTION_TIMEOUT);
        }
        new.status = Some(status);
        plan.update_status(budget.as_ref(), &new);
        plan
    }
}

fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| matches(s, pod.metadata.labels.as_ref()))
}

fn status(budget: &PodDisruptionBudget, view: &View, now: Timestamp) -> PodDisruptionBudgetStatus {
    let old = budget.status.clone().unwrap_or_default();
    let pods: Vec<&Arc<Pod>> = view
        .of::<Pod>()
        .namespace(budget.namespace())
        .filter(|p| selects(budget, p) && !pods::is_finished(p))
        .collect();
    let (expected, desired) = counts(budget, &pods, view);
    let mut disrupted = old.disrupted_pods.unwrap_or_default();
    disrupted.retain(|name, at| {
        let waiting = pods.iter().any(|p| p.name() == name && !p.is_deleting());
        waiting && now.duration_since(at.0) < EVICTION_TIMEOUT
    });
    let healthy = pods
        .iter()
        .filter(|p| !p.is_deleting() && pods::is_ready(p) && !disrupted.contains_key(p.name()))
        .count() as i32;
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        observed_generation: budget.metadata.generation,
        conditions: Some(conditions(budget, old.conditions.unwrap_or_default(), allowed > 0, now)),
    }
}

fn conditions(
    budget: &PodDisruptionBudget,
    mut list: Vec<Condition>,
    allowed: bool,
    now: Timestamp,
) -> Vec<Condition> {
    let (status, reason) = if allowed { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let old = list.iter().find(|c| c.type_ == "DisruptionAllowed" && c.status == status);
    let since = old.map_or(Time(whole_seconds(now)), |c| c.last_transition_time.clone());
    list.retain(|c| c.type_ != "DisruptionAllowed");
    list.push(Condition {
        type_: "DisruptionAllowed".into(),
        status: status.into(),
        reason: reason.into(),
        message: String::new(),
        last_transition_time: since,
        observed_generation: budget.metadata.generation,
    });
    list
}

/// Pods expected, and how many of them must stay healthy.
fn counts(budget: &PodDisruptionBudget, pods: &[&Arc<Pod>], view: &View) -> (i32, i32) {
    let spec = budget.spec.clone().unwrap_or_default();
    let present = pods.len() as i32;
    match (spec.max_unavailable, spec.min_available) {
        (Some(most), _) => {
            let expected = wanted(pods, view);
            (expected, (expected - portion(&most, expected, true)).max(0))
        }
        (None, Some(least @ k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String(_))) => {
            let expected = wanted(pods, view);
            (expected, portion(&least, expected, true))
        }
        (None, Some(least)) => (present, portion(&least, present, true)),
        (None, None) => (present, 0),
    }
}

/// How many pods the controllers of these pods want in all; a pod without one counts for itself.
fn wanted(pods: &[&Arc<Pod>], view: &View) -> i32 {
    let mut sizes: BTreeMap<String, i32> = BTreeMap::new();
    for pod in pods {
        let Some(owner) = pod.controller() else {
            sizes.insert(pod.uid().to_owned(), 1);
            continue;
        };
        let key = Key::new(pod.namespace(), &owner.name);
        let (uid, size) = match owner.kind.as_str() {
            "ReplicaSet" => of_set(view.get::<ReplicaSet>(&key), view),
            "StatefulSet" => {
                let set = view.get::<StatefulSet>(&key);
                (owner.uid.clone(), set.and_then(|s| s.spec.as_ref()?.replicas).unwrap_or(1))
            }
            _ => (pod.uid().to_owned(), 1),
        };
        sizes.insert(uid, size);
    }
    sizes.values().sum()
}

fn of_set(set: Option<&Arc<ReplicaSet>>, view: &View) -> (String, i32) {
    let Some(set) = set else { return (String::new(), 0) };
    let owner = set.controller().filter(|o| o.kind == "Deployment");
    let deployment = owner.and_then(|o| view.get::<Deployment>(&Key::new(set.namespace(), &o.name)));
    match deployment {
        Some(d) => (d.uid().to_owned(), d.spec.as_ref().map_or(1, crate::deployment::replicas)),
        None => (set.uid().to_owned(), set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)),
    }
}
