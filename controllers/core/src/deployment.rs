//! Deployment: rolls ReplicaSets from one pod template to the next.
//!
//! One reconcile: sort out the sets (`sets`), decide their sizes (`rolling`: rolling update,
//! Recreate, proportional scaling), then status, conditions and history (`status`). Sizes are
//! decided on the sets' specs and statuses of one view; C7 (available ≥ replicas − maxUnavailable,
//! total ≤ replicas + maxSurge) holds for every prefix of the plan: growing counts the pods that
//! still run, not only those asked for, and shrinking never counts what is not yet available.

pub mod rolling;
pub mod sets;
pub mod status;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::labels;
use crate::plan::{Action, Expectation};
use crate::pods;
use crate::{Change, Key, Object, Plan, Reconciler, Recorded, Target, View, Watch};
use sets::{Set, Sets};

pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
pub const TEMPLATE_HASH: &str = "pod-template-hash";

pub struct Deployments;

impl Reconciler for Deployments {
    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::of::<Deployment>(), Watch::of::<ReplicaSet>(), Watch::of::<Pod>()]
    }

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        if let Some(deployment) = change.latest::<Deployment>() {
            return vec![Key::of(deployment)];
        }
        if let Some((old, new)) = change.of::<ReplicaSet>() {
            let mut keys: Vec<Key> = [old, new].into_iter().flatten().filter_map(owner_key).collect();
            if let Some(set) = new.filter(|s| s.controller().is_none()) {
                let all = view.of::<Deployment>().namespace(set.namespace());
                keys.extend(all.filter(|d| selects(d, set)).map(|d| Key::of(d.as_ref())));
            }
            keys.dedup();
            return keys;
        }
        // Recreate waits for the last old pod to be gone.
        match change.of::<Pod>() {
            Some((Some(pod), new)) if new.is_none_or(pods::is_finished) => {
                let set = pod.controller().filter(|o| o.kind == "ReplicaSet");
                let set = set.and_then(|o| view.get::<ReplicaSet>(&Key::new(pod.namespace(), &o.name)));
                set.and_then(|s| owner_key(s)).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        match view.get::<Deployment>(key) {
            Some(deployment) => reconcile(deployment, view, now),
            None => Plan::none(),
        }
    }
}

fn owner_key(set: &ReplicaSet) -> Option<Key> {
    let owner = set.controller().filter(|o| o.kind == "Deployment" && o.api_version.starts_with("apps/"))?;
    Some(Key::new(set.namespace(), &owner.name))
}

fn selects(deployment: &Deployment, set: &ReplicaSet) -> bool {
    deployment.spec.as_ref().is_some_and(|s| {
        !labels::is_empty(&s.selector) && labels::matches(&s.selector, set.metadata.labels.as_ref())
    })
}

fn reconcile(deployment: &Arc<Deployment>, view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(spec) = &deployment.spec else { return plan };
    if labels::is_empty(&spec.selector) {
        plan.record(
            deployment.as_ref(),
            true,
            "SelectingAll",
            "This deployment is selecting all pods. A non-empty selector is required.".to_owned(),
        );
        return plan;
    }
    let mut sets = Sets::of(deployment, view);
    if !deployment.is_deleting() {
        claim(&mut plan, deployment, view);
        roll(&mut plan, deployment, spec, &mut sets, view);
    }
    let mut new = (**deployment).clone();
    if !deployment.is_deleting() {
        sets.set_revision(&mut new);
        plan.update(deployment.as_ref(), &new);
    }
    new.status = Some(status::next(deployment, spec, &sets, view, now));
    let spent = wrote(&plan, deployment);
    plan.update_status_after(deployment.as_ref(), &new, spent);
    if let Some(delay) = status::recheck_in(spec, new.status.as_ref(), now) {
        plan.requeue_in(delay);
    }
    plan
}

/// Whether the plan already changes the Deployment, which spends this view's resourceVersion.
fn wrote(plan: &Plan, deployment: &Arc<Deployment>) -> bool {
    let me = Target::of(deployment.as_ref());
    plan.actions.iter().any(|a| matches!(a, Action::Patch { target, .. } if *target == me))
}

/// Takes in sets that the selector picks, lets go of those it no longer does.
fn claim(plan: &mut Plan, deployment: &Arc<Deployment>, view: &View) {
    for set in view.of::<ReplicaSet>().namespace(deployment.namespace()) {
        let mine = set.controller().map(|o| o.uid == deployment.uid());
        match (mine, selects(deployment, set)) {
            (None, true) if !set.is_deleting() => {
                let target = Target::of(deployment.as_ref());
                let uid = deployment.uid().to_owned();
                plan.actions.push(Action::Expect(Expectation::Live { target, uid }));
                let mut owned = (**set).clone();
                owned.metadata.owner_references.get_or_insert_default().push(deployment.owner_reference());
                plan.update(set.as_ref(), &owned);
            }
            (Some(true), false) => {
                let mut free = (**set).clone();
                if let Some(owners) = free.metadata.owner_references.as_mut() {
                    owners.retain(|o| o.uid != deployment.uid());
                }
                plan.update(set.as_ref(), &free);
            }
            _ => {}
        }
    }
}

fn roll(plan: &mut Plan, deployment: &Arc<Deployment>, spec: &DeploymentSpec, sets: &mut Sets, view: &View) {
    let paused = spec.paused == Some(true);
    let recreate = is_recreate(spec);
    if paused || sets.is_scaling(spec) {
        rolling::scale(spec, sets);
    } else if recreate {
        rolling::shrink_old_to_zero(sets);
        if sets.old.iter().all(|s| s.replicas == 0) && !runs_old_pods(sets, view) {
            create_or_grow(plan, deployment, spec, sets);
        }
    } else {
        create_or_grow(plan, deployment, spec, sets);
        rolling::shrink_old(spec, sets);
    }
    sets.annotate(deployment, spec);
    for set in sets.new.iter().chain(&sets.old) {
        apply(plan, deployment, set);
    }
    if sets.is_complete(deployment) || paused {
        cleanup(plan, spec, sets);
    }
}

fn create_or_grow(plan: &mut Plan, deployment: &Arc<Deployment>, spec: &DeploymentSpec, sets: &mut Sets) {
    match sets.new {
        Some(_) => rolling::size_new(spec, sets),
        None => {
            let set = sets.make_new(deployment, spec);
            let size = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
            // A set of that name that is not ours: the status counts the collision, the next hash differs.
            if sets.collides(&set) {
                return;
            }
            let grown = format!("Scaled up replica set {} from 0 to {size}", set.name());
            plan.create(&set);
            if size > 0 {
                plan.actions.push(Action::Record(Recorded::new(
                    deployment.as_ref(),
                    false,
                    "ScalingReplicaSet",
                    grown,
                )));
            }
            sets.created = Some(set);
        }
    }
}

fn apply(plan: &mut Plan, deployment: &Arc<Deployment>, set: &Set) {
    let mut new = (*set.object).clone();
    if let Some(spec) = new.spec.as_mut() {
        spec.replicas = Some(set.replicas);
        spec.min_ready_seconds = set.min_ready;
    }
    new.metadata.annotations = (!set.annotations.is_empty()).then(|| set.annotations.clone());
    plan.update(set.object.as_ref(), &new);
    let was = set.size();
    if was != set.replicas {
        let direction = if set.replicas > was { "up" } else { "down" };
        let message =
            format!("Scaled {direction} replica set {} from {was} to {}", set.object.name(), set.replicas);
        plan.record(deployment.as_ref(), false, "ScalingReplicaSet", message);
    }
}

/// Drops the oldest sets beyond the history limit: only empty ones, fully observed.
fn cleanup(plan: &mut Plan, spec: &DeploymentSpec, sets: &Sets) {
    let limit = spec.revision_history_limit.unwrap_or(10);
    if limit == i32::MAX || limit < 0 {
        return;
    }
    let mut empty: Vec<&Set> = sets.old.iter().filter(|s| !s.object.is_deleting()).collect();
    let surplus = empty.len().saturating_sub(limit as usize);
    empty.sort_by_key(|s| (s.revision(), s.object.metadata.creation_timestamp.clone().map(|t| t.0)));
    for set in empty.into_iter().take(surplus) {
        let status = set.object.status.clone().unwrap_or_default();
        let settled = status.replicas == 0
            && set.size() == 0
            && set.replicas == 0
            && status.observed_generation >= set.object.metadata.generation;
        if settled {
            plan.delete(set.object.as_ref(), crate::Precondition::unchanged(set.object.as_ref()));
        }
    }
}

fn runs_old_pods(sets: &Sets, view: &View) -> bool {
    let pods = sets.old.iter().flat_map(|s| view.of::<Pod>().controlled_by(s.object.uid()));
    pods.into_iter().any(|pod| !pods::is_finished(pod))
}

pub fn is_recreate(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

pub fn replicas(spec: &DeploymentSpec) -> i32 {
    spec.replicas.unwrap_or(1)
}

/// maxSurge and maxUnavailable in pods. Surge rounds up, unavailable down; both zero would never move.
pub fn fence(spec: &DeploymentSpec) -> (i32, i32) {
    if is_recreate(spec) || replicas(spec) == 0 {
        return (0, 0);
    }
    let quarter = IntOrString::String("25%".into());
    let rolling = spec.strategy.as_ref().and_then(|s| s.rolling_update.clone()).unwrap_or_default();
    let surge = portion(rolling.max_surge.as_ref().unwrap_or(&quarter), replicas(spec), true);
    let unavailable = portion(rolling.max_unavailable.as_ref().unwrap_or(&quarter), replicas(spec), false);
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    (surge, unavailable.min(replicas(spec)))
}

/// A number, or a percentage of `total` rounded up or down.
pub fn portion(value: &IntOrString, total: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent * i64::from(total);
            (if up { (product + 99).div_euclid(100) } else { product.div_euclid(100) }) as i32
        }
    }
}
