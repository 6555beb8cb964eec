//! ReplicationController: what ReplicaSet grew out of. Keeps N pods that match a plain selector.
//!
//! Order of a plan and invariant as ReplicaSet's (C9).

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Pod, ReplicationController, ReplicationControllerCondition, ReplicationControllerSpec,
    ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::claim::{self, claim};
use crate::pods::{self, Availability};
use crate::replicaset::{BURST, whole_seconds};
use crate::{Change, Key, Object, Plan, Precondition, Reconciler, Recorded, View, Watch, labels};

const NAME: &str = "replicationcontroller-controller";

pub struct ReplicationControllers;

impl Reconciler for ReplicationControllers {
    fn name(&self) -> &'static str {
        NAME
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::of::<ReplicationController>(), claim::watch_pods()]
    }

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        claim::keys::<ReplicationController>(change, view, selects)
    }

    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        match view.get::<ReplicationController>(key) {
            Some(owner) => reconcile(owner, view, now),
            None => Plan::none(),
        }
    }
}

fn selects(owner: &ReplicationController, pod: &Pod) -> bool {
    let selector = owner.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty());
    selector.is_some_and(|s| labels::contains(pod.metadata.labels.as_ref(), s))
}

fn reconcile(owner: &ReplicationController, view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(spec) = &owner.spec else { return plan };
    let claimed = claim(owner, view, |pod| selects(owner, pod));
    let mut active: Vec<Arc<Pod>> = claimed.owned.iter().filter(|p| pods::is_active(p)).cloned().collect();
    active.extend(claimed.adopt.iter().cloned());
    let mut new = owner.clone();
    new.status = Some(status(owner, spec, &active, view.failure(NAME, &Key::of(owner)), now));
    plan.update_status(owner, &new);
    for pod in &active {
        if let Availability::In(left) = pods::availability(pod, spec.min_ready_seconds.unwrap_or(0), now) {
            plan.requeue_in(left);
        }
    }
    if owner.is_deleting() {
        return plan;
    }
    claimed.settle(&mut plan, owner);
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    if active.len() < wanted {
        let made = Recorded::new(owner, false, "SuccessfulCreate", "Created pod: ".to_owned());
        let pod = pod(owner, spec);
        for _ in 0..(wanted - active.len()).min(BURST) {
            plan.create_announced(&pod, Some(made.clone()));
        }
        return plan;
    }
    active.sort_by(|a, b| pods::deletion_order((a, 0), (b, 0), now));
    active.truncate((active.len() - wanted).min(BURST));
    for pod in &active {
        plan.delete(pod.as_ref(), Precondition::same(pod.as_ref()));
    }
    for pod in &active {
        plan.record(owner, false, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
    }
    plan
}

fn pod(owner: &ReplicationController, spec: &ReplicationControllerSpec) -> Pod {
    let template = spec.template.clone().unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name())),
            namespace: Some(owner.namespace().to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner.owner_reference()]),
            ..Default::default()
        },
        spec: template.spec,
        status: None,
    }
}

fn status(
    owner: &ReplicationController,
    spec: &ReplicationControllerSpec,
    active: &[Arc<Pod>],
    failure: Option<&str>,
    now: Timestamp,
) -> ReplicationControllerStatus {
    let template =
        spec.template.as_ref().and_then(|t| t.metadata.as_ref()?.labels.clone()).unwrap_or_default();
    let count = |test: &dyn Fn(&Pod) -> bool| active.iter().filter(|p| test(p)).count() as i32;
    let positive = |n: i32| (n > 0).then_some(n);
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let old = owner.status.clone().unwrap_or_default();
    let mut conditions = old.conditions.unwrap_or_default();
    let failed = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
    match failure {
        Some(message) if !failed => conditions.push(ReplicationControllerCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some("FailedCreate".into()),
            message: Some(message.to_owned()),
            last_transition_time: Some(Time(whole_seconds(now))),
        }),
        None if failed => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        _ => {}
    }
    ReplicationControllerStatus {
        replicas: active.len() as i32,
        fully_labeled_replicas: positive(count(&|p| labels::contains(p.metadata.labels.as_ref(), &template))),
        ready_replicas: positive(count(&pods::is_ready)),
        available_replicas: positive(count(&|p| {
            pods::availability(p, min_ready, now) == Availability::Available
        })),
        observed_generation: owner.metadata.generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}
