//! HorizontalPodAutoscaler v2 on CPU and memory.
//!
//! One look every period: read the target's size and its pods' usage, propose a size per metric
//! (`metrics`), take the largest, hold it within behaviour, window and bounds (`behavior`), write
//! scale and status. Past recommendations and scalings are the plan's note: they live in memory, and
//! a new leader starts with an empty window, as upstream does.

pub mod behavior;
pub mod metrics;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec, MetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use serde_json::json;

use crate::labels::matches;
use crate::plan::Action;
use crate::replicaset::whole_seconds;
use crate::{Change, Key, Object, Plan, Precondition, Reconciler, Target, View, Watch};
use behavior::Past;
use metrics::{PodMetrics, Proposal};

const NAME: &str = "horizontal-pod-autoscaler-controller";

#[derive(Clone, Debug)]
pub struct Autoscaler {
    pub period: SignedDuration,
    /// Usage within this fraction of the target changes nothing.
    pub tolerance: f64,
    /// Default window in which the highest recommendation holds back scaling down.
    pub stabilization: SignedDuration,
    /// A starting pod's CPU does not count for this long.
    pub cpu_initialization: SignedDuration,
    /// A pod that was never ready for this long after its start is starting.
    pub initial_readiness: SignedDuration,
}

impl Default for Autoscaler {
    fn default() -> Self {
        Autoscaler {
            period: SignedDuration::from_secs(15),
            tolerance: 0.1,
            stabilization: SignedDuration::from_secs(300),
            cpu_initialization: SignedDuration::from_secs(300),
            initial_readiness: SignedDuration::from_secs(30),
        }
    }
}

/// The object to scale: where, how big, and which pods are its.
struct Scalable {
    target: Target,
    precondition: Precondition,
    replicas: i32,
    selector: LabelSelector,
}

impl Reconciler for Autoscaler {
    fn name(&self) -> &'static str {
        NAME
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::of::<HorizontalPodAutoscaler>(),
            Watch::of::<Deployment>(),
            Watch::of::<ReplicaSet>(),
            Watch::of::<StatefulSet>(),
            Watch::of::<Pod>(),
            Watch::of::<PodMetrics>().poll(15, |view| !view.of::<HorizontalPodAutoscaler>().is_empty()),
        ]
    }

    fn keys(&self, change: &Change, _view: &View) -> Vec<Key> {
        // Only the autoscaler's own spec is urgent; everything else is looked at once a period.
        match change.of::<HorizontalPodAutoscaler>() {
            Some((old, Some(new))) if old.is_none_or(|old| old.spec != new.spec) => vec![Key::of(new)],
            _ => Vec::new(),
        }
    }

    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        let Some(scaler) = view.get::<HorizontalPodAutoscaler>(key).filter(|s| !s.is_deleting()) else {
            return plan;
        };
        let spec = &scaler.spec;
        plan.requeue_in(self.period);
        let past = Past::read(view.note(NAME, key));
        let mut look = Look { scaler, spec, new: (**scaler).clone(), now, plan, past };
        look.new.status.get_or_insert_default().observed_generation = scaler.metadata.generation;
        match scalable(spec, scaler.namespace(), view) {
            Some(target) => self.look(&mut look, target, view),
            None => {
                let kind = &spec.scale_target_ref.kind;
                let message = format!(
                    "the HPA controller was unable to get the target's current scale: {kind} {:?} not found",
                    spec.scale_target_ref.name
                );
                look.condition("AbleToScale", false, "FailedGetScale", message.clone());
                look.plan.record(scaler.as_ref(), true, "FailedGetScale", message);
            }
        }
        look.finish()
    }
}

struct Look<'a> {
    scaler: &'a Arc<HorizontalPodAutoscaler>,
    spec: &'a HorizontalPodAutoscalerSpec,
    new: HorizontalPodAutoscaler,
    now: Timestamp,
    plan: Plan,
    past: Past,
}

impl Look<'_> {
    fn condition(&mut self, kind: &str, on: bool, reason: &str, message: String) {
        let status = if on { "True" } else { "False" };
        let now = Time(whole_seconds(self.now));
        let list = self.new.status.get_or_insert_default().conditions.get_or_insert_default();
        let old = list.iter().find(|c| c.type_ == kind && c.status == status);
        let since = old.and_then(|c| c.last_transition_time.clone()).or(Some(now));
        let condition = HorizontalPodAutoscalerCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: since,
        };
        match list.iter_mut().find(|c| c.type_ == kind) {
            Some(slot) => *slot = condition,
            None => list.push(condition),
        }
    }

    fn finish(mut self) -> Plan {
        self.plan.update_status(self.scaler.as_ref(), &self.new);
        self.plan.note = self.past.write();
        self.plan
    }
}

impl Autoscaler {
    fn look(&self, look: &mut Look<'_>, target: Scalable, view: &View) {
        let current = target.replicas;
        look.condition(
            "AbleToScale",
            true,
            "SucceededGetScale",
            "the HPA controller was able to get the target's current scale".into(),
        );
        let status = look.new.status.get_or_insert_default();
        status.current_replicas = Some(current);
        let (least, most) = (look.spec.min_replicas.unwrap_or(1), look.spec.max_replicas);
        if current == 0 && least != 0 {
            status.desired_replicas = 0;
            let message = "scaling is disabled since the replica count of the target is zero".to_owned();
            return look.condition("ScalingActive", false, "ScalingDisabled", message);
        }
        let (desired, why) = if current > most {
            (most, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < least {
            (least, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            match self.propose(look, &target, view) {
                Some((size, why)) => (self.hold(look, current, size, least, most), why),
                None => {
                    look.new.status.get_or_insert_default().desired_replicas = current;
                    return;
                }
            }
        };
        look.new.status.get_or_insert_default().desired_replicas = desired;
        if desired == current {
            return;
        }
        look.past.scaled(look.now, current, desired);
        look.new.status.get_or_insert_default().last_scale_time = Some(Time(whole_seconds(look.now)));
        let message = format!("the HPA controller was able to update the target scale to {desired}");
        look.condition("AbleToScale", true, "SucceededRescale", message);
        let target_path = Target { subresource: Some("scale"), ..target.target };
        let patch = json!({ "spec": { "replicas": desired } });
        look.plan.actions.push(Action::Patch {
            target: target_path,
            patch,
            precondition: target.precondition,
        });
        look.plan.record(
            look.scaler.as_ref(),
            false,
            "SuccessfulRescale",
            format!("New size: {desired}; reason: {why}"),
        );
    }

    /// The largest size that a metric asks for. None when the metrics cannot be had, or when some
    /// cannot and the others would scale down.
    fn propose(&self, look: &mut Look<'_>, target: &Scalable, view: &View) -> Option<(i32, String)> {
        let current = target.replicas;
        let pods: Vec<&Arc<Pod>> = view
            .of::<Pod>()
            .namespace(look.scaler.namespace())
            .filter(|p| matches(&target.selector, p.metadata.labels.as_ref()))
            .collect();
        let usages: Vec<Option<&Arc<PodMetrics>>> =
            pods.iter().map(|p| view.get::<PodMetrics>(&Key::of(p.as_ref()))).collect();
        let (mut best, mut failed): (Option<Proposal>, Option<(String, String)>) = (None, None);
        let mut seen: Vec<MetricStatus> = Vec::new();
        for metric in look.spec.metrics.iter().flatten() {
            match metrics::propose(self, metric, &pods, &usages, current, look.now) {
                Ok(proposal) => {
                    seen.push(proposal.status.clone());
                    if best.as_ref().is_none_or(|b| proposal.replicas > b.replicas) {
                        best = Some(proposal);
                    }
                }
                Err(failure) => failed = failed.or(Some(failure)),
            }
        }
        look.new.status.get_or_insert_default().current_metrics = (!seen.is_empty()).then_some(seen);
        if let Some((reason, message)) = failed.filter(|_| best.as_ref().is_none_or(|b| b.replicas < current))
        {
            let message = format!("the HPA was unable to compute the replica count: {message}");
            look.plan.record(look.scaler.as_ref(), true, "FailedComputeMetricsReplicas", message.clone());
            look.condition("ScalingActive", false, &reason, message);
            return None;
        }
        let best = best?;
        let message =
            format!("the HPA was able to successfully calculate a replica count from {}", best.name);
        look.condition("ScalingActive", true, "ValidMetricFound", message);
        let side = if best.replicas > current { "above" } else { "below" };
        Some((best.replicas, format!("{} {side} target", best.name)))
    }

    /// Holds a proposal within the window, the policies and the bounds, and says which held it.
    fn hold(&self, look: &mut Look<'_>, current: i32, proposed: i32, least: i32, most: i32) -> i32 {
        let rules = behavior::Rules::of(look.spec.behavior.as_ref(), self.stabilization);
        let stable = look.past.stabilize(&rules, look.now, current, proposed);
        match stable.cmp(&proposed) {
            std::cmp::Ordering::Greater => look.condition(
                "AbleToScale",
                true,
                "ScaleDownStabilized",
                "recent recommendations were higher than current one, applying the highest recent recommendation".into(),
            ),
            std::cmp::Ordering::Less => look.condition(
                "AbleToScale",
                true,
                "ScaleUpStabilized",
                "recent recommendations were lower than current one, applying the lowest recent recommendation".into(),
            ),
            std::cmp::Ordering::Equal => look.condition(
                "AbleToScale",
                true,
                "ReadyForNewScale",
                "recommended size matches current size".into(),
            ),
        }
        let limited = look.past.limit(&rules, look.now, current, stable);
        let bounded = limited.clamp(least, most);
        let (on, reason, message) = if stable > most && bounded == most {
            (true, "TooManyReplicas", "the desired replica count is more than the maximum replica count")
        } else if stable < least && bounded == least {
            (true, "TooFewReplicas", "the desired replica count is less than the minimum replica count")
        } else if limited < stable {
            (
                true,
                "ScaleUpLimit",
                "the desired replica count is increasing faster than the maximum scale rate",
            )
        } else if limited > stable {
            (
                true,
                "ScaleDownLimit",
                "the desired replica count is decreasing faster than the maximum scale rate",
            )
        } else {
            (false, "DesiredWithinRange", "the desired count is within the acceptable range")
        };
        look.condition("ScalingLimited", on, reason, message.into());
        bounded
    }
}

fn scalable(spec: &HorizontalPodAutoscalerSpec, namespace: &str, view: &View) -> Option<Scalable> {
    let key = Key::new(namespace, &spec.scale_target_ref.name);
    match spec.scale_target_ref.kind.as_str() {
        "Deployment" => {
            let object = view.get::<Deployment>(&key)?;
            let spec = object.spec.as_ref()?;
            Some(made(object.as_ref(), spec.replicas, &spec.selector))
        }
        "ReplicaSet" => {
            let object = view.get::<ReplicaSet>(&key)?;
            let spec = object.spec.as_ref()?;
            Some(made(object.as_ref(), spec.replicas, &spec.selector))
        }
        "StatefulSet" => {
            let object = view.get::<StatefulSet>(&key)?;
            let spec = object.spec.as_ref()?;
            Some(made(object.as_ref(), spec.replicas, &spec.selector))
        }
        _ => None,
    }
}

fn made<K: Object>(object: &K, replicas: Option<i32>, selector: &LabelSelector) -> Scalable {
    Scalable {
        target: Target::of(object),
        precondition: Precondition::unchanged(object),
        replicas: replicas.unwrap_or(1),
        selector: selector.clone(),
    }
}
