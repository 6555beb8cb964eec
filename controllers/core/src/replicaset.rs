//! ReplicaSet: keeps N pods that match a selector.
//!
//! Order of a plan: status (a function of the view), adoption and release, then creates (slow
//! start) or deletes. Invariant C9: never more than `replicas` pods beyond what the view lacks.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::labels;
use crate::plan::{Action, Expectation};
use crate::pods::{self, Availability};
use crate::{Change, Key, Object, Plan, Precondition, Reconciler, Recorded, Target, View, Watch};

/// Most pods made or deleted by one plan.
pub const BURST: usize = 500;

pub struct ReplicaSets;

impl Reconciler for ReplicaSets {
    fn name(&self) -> &'static str {
        "replicaset-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::of::<ReplicaSet>(), Watch::of::<Pod>().index("orphans", orphan)]
    }

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        if let Some(set) = change.latest::<ReplicaSet>() {
            return vec![Key::of(set)];
        }
        let Some((old, new)) = change.of::<Pod>() else { return Vec::new() };
        let mut keys: Vec<Key> = [old, new].into_iter().flatten().filter_map(owner_key).collect();
        if let Some(pod) = new.filter(|pod| pod.controller().is_none()) {
            let sets = view.of::<ReplicaSet>().namespace(pod.namespace());
            keys.extend(sets.filter(|set| selects(set, pod)).map(|set| Key::of(set.as_ref())));
        }
        keys.dedup();
        keys
    }

    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        match view.get::<ReplicaSet>(key) {
            Some(set) => reconcile(set, view, now),
            None => Plan::none(),
        }
    }
}

fn orphan(pod: &Pod) -> Vec<String> {
    if pod.controller().is_none() { vec![pod.namespace().to_owned()] } else { Vec::new() }
}

fn owner_key(pod: &Pod) -> Option<Key> {
    let owner = pod.controller().filter(|o| o.kind == "ReplicaSet" && o.api_version.starts_with("apps/"))?;
    Some(Key::new(pod.namespace(), &owner.name))
}

fn selects(set: &ReplicaSet, pod: &Pod) -> bool {
    set.spec.as_ref().is_some_and(|s| {
        !labels::is_empty(&s.selector) && labels::matches(&s.selector, pod.metadata.labels.as_ref())
    })
}

/// A set's pods, sorted out against its selector.
struct Claim {
    active: Vec<Arc<Pod>>,
    terminating: usize,
    adopt: Vec<Arc<Pod>>,
    release: Vec<Arc<Pod>>,
}

fn claim(set: &ReplicaSet, view: &View) -> Claim {
    let mut claim = Claim { active: Vec::new(), terminating: 0, adopt: Vec::new(), release: Vec::new() };
    for pod in view.of::<Pod>().controlled_by(set.uid()) {
        match (selects(set, pod), pods::is_active(pod)) {
            (true, true) => claim.active.push(pod.clone()),
            (false, true) => claim.release.push(pod.clone()),
            (true, false) => claim.terminating += usize::from(pod.is_deleting() && !pods::is_finished(pod)),
            (false, false) => {}
        }
    }
    if !set.is_deleting() {
        let orphans = view.of::<Pod>().by("orphans", set.namespace());
        claim.adopt = orphans.filter(|p| selects(set, p) && pods::is_active(p)).cloned().collect();
    }
    claim
}

fn reconcile(set: &ReplicaSet, view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(spec) = &set.spec else { return plan };
    let claim = claim(set, view);
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let mut active = claim.active.clone();
    active.extend(claim.adopt.iter().cloned());
    let failure = view.failure("replicaset-controller", &Key::of(set));

    let mut new = set.clone();
    new.status = Some(status(set, &active, claim.terminating, failure, now));
    plan.update_status(set, &new);
    for pod in &active {
        if let Availability::In(left) = pods::availability(pod, min_ready, now) {
            plan.requeue_in(left);
        }
    }
    if set.is_deleting() {
        return plan;
    }
    release(&mut plan, set, &claim.release);
    adopt(&mut plan, set, &claim.adopt);
    scale(&mut plan, set, &active, view, now);
    plan
}

fn adopt(plan: &mut Plan, set: &ReplicaSet, orphans: &[Arc<Pod>]) {
    if orphans.is_empty() {
        return;
    }
    // The set may be gone by now; a pod adopted by the dead would be collected with it.
    plan.actions
        .push(Action::Expect(Expectation::Live { target: Target::of(set), uid: set.uid().to_owned() }));
    for pod in orphans {
        let mut owned = (**pod).clone();
        owned.metadata.owner_references.get_or_insert_default().push(set.owner_reference());
        plan.update(pod.as_ref(), &owned);
    }
}

fn release(plan: &mut Plan, set: &ReplicaSet, strangers: &[Arc<Pod>]) {
    for pod in strangers {
        let mut free = (**pod).clone();
        if let Some(owners) = free.metadata.owner_references.as_mut() {
            owners.retain(|o| o.uid != set.uid());
        }
        plan.update(pod.as_ref(), &free);
    }
}

fn scale(plan: &mut Plan, set: &ReplicaSet, active: &[Arc<Pod>], view: &View, now: Timestamp) {
    let spec = set.spec.as_ref().expect("only sets with a spec are reconciled");
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    if active.len() < wanted {
        let pod = pod_from(set, spec.template.as_ref());
        let made = Recorded::new(set, false, "SuccessfulCreate", "Created pod: ".to_owned());
        for _ in 0..(wanted - active.len()).min(BURST) {
            plan.create_announced(&pod, Some(made.clone()));
        }
    } else {
        let mut victims = victims(set, active, view, now);
        victims.truncate((active.len() - wanted).min(BURST));
        for pod in &victims {
            plan.delete(pod.as_ref(), Precondition::same(pod.as_ref()));
        }
        for pod in &victims {
            plan.record(set, false, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
        }
    }
}

/// The pod a set makes: its template, named by the server after the set.
pub fn pod_from(set: &ReplicaSet, template: Option<&PodTemplateSpec>) -> Pod {
    let template = template.cloned().unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name())),
            namespace: Some(set.namespace().to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![set.owner_reference()]),
            ..Default::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// The set's pods in the order in which they should go. Pods of sets with the same owner count as
/// a crowd, so that a rollout keeps the spread over nodes.
fn victims(set: &ReplicaSet, active: &[Arc<Pod>], view: &View, now: Timestamp) -> Vec<Arc<Pod>> {
    let mut crowd: BTreeMap<&str, usize> = BTreeMap::new();
    let related: Vec<&str> = match set.controller() {
        Some(owner) => view.of::<ReplicaSet>().controlled_by(&owner.uid).map(|s| s.uid()).collect(),
        None => vec![set.uid()],
    };
    for pod in related.iter().flat_map(|uid| view.of::<Pod>().controlled_by(uid)) {
        if pods::is_active(pod) {
            *crowd.entry(pods::node_name(pod)).or_default() += 1;
        }
    }
    let mut sorted = active.to_vec();
    let rank = |pod: &Pod| crowd.get(pods::node_name(pod)).copied().unwrap_or(0);
    sorted.sort_by(|a, b| pods::deletion_order((a, rank(a)), (b, rank(b)), now));
    sorted
}

fn status(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<&str>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let spec = set.spec.clone().unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let template_labels = spec.template.and_then(|t| t.metadata).and_then(|m| m.labels).unwrap_or_default();
    let count = |test: &dyn Fn(&Pod) -> bool| active.iter().filter(|p| test(p)).count() as i32;
    #[cfg(feature = "planted")]
    let count = |test: &dyn Fn(&Pod) -> bool| {
        let gone = if keelson_plant::is(27) { terminating as i32 } else { 0 };
        count(test) + gone
    };
    let positive = |n: i32| (n > 0).then_some(n);
    let mut conditions = old.conditions.unwrap_or_default();
    let failed = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
    match failure {
        Some(message) if !failed => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some("FailedCreate".into()),
            message: Some(message.to_owned()),
            last_transition_time: Some(Time(whole_seconds(now))),
        }),
        None if failed => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        _ => {}
    }
    ReplicaSetStatus {
        replicas: active.len() as i32,
        fully_labeled_replicas: positive(count(&|p| {
            labels::contains(p.metadata.labels.as_ref(), &template_labels)
        })),
        ready_replicas: positive(count(&pods::is_ready)),
        available_replicas: positive(count(&|p| {
            pods::availability(p, min_ready, now) == Availability::Available
        })),
        terminating_replicas: Some(terminating as i32),
        observed_generation: set.metadata.generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

/// API times have whole seconds; anything finer would never compare equal to what was stored.
pub fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
