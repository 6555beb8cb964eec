//! StatefulSet: pods with a name, a number and claims of their own, made and replaced in order.
//!
//! Order of a plan: the revision of the template, status (a function of the view), adoption and release, then what the
//! pods need. Invariant C10: with `OrderedReady`, a pod is made only when all with a lower number are available, and is
//! removed only when all with a higher number are gone. C3: a pod is never removed by force, so its name is free only
//! when its node said so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use crate::claim::{self, claim};
use crate::history::{History, REVISION_LABEL};
use crate::labels;
use crate::pods::{self, Availability};
use crate::{Change, Key, Object, Plan, Precondition, Reconciler, View, Watch};

mod identity;

pub struct StatefulSets;

impl Reconciler for StatefulSets {
    fn name(&self) -> &'static str {
        "statefulset-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::of::<StatefulSet>(),
            claim::watch_pods(),
            Watch::of::<PersistentVolumeClaim>(),
            Watch::of::<ControllerRevision>(),
        ]
    }

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        claim::keys::<StatefulSet>(change, view, selects)
    }

    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        match view.get::<StatefulSet>(key) {
            Some(set) => reconcile(set, view, now),
            None => Plan::none(),
        }
    }
}

fn selects(set: &StatefulSet, pod: &Pod) -> bool {
    set.spec.as_ref().is_some_and(|s| {
        !labels::is_empty(&s.selector)
            && labels::matches(&s.selector, pod.metadata.labels.as_ref())
            && identity::ordinal(set, pod).is_some()
    })
}

/// What the steps of one reconcile share.
struct Work<'a> {
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    view: &'a View,
    now: Timestamp,
    history: History,
    /// Name of the revision that pods had before the rollout under way.
    current: String,
    /// By number.
    pods: BTreeMap<i32, Arc<Pod>>,
}

fn reconcile(set: &StatefulSet, view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(spec) = &set.spec else { return plan };
    let old = set.status.clone().unwrap_or_default();
    let history = History::of(set, &spec.template, old.collision_count, view);
    let claimed = claim(set, view, |pod| selects(set, pod));
    let mut pods = BTreeMap::new();
    for pod in claimed.owned.iter().chain(&claimed.adopt) {
        if let Some(number) = identity::ordinal(set, pod) {
            pods.insert(number, pod.clone());
        }
    }
    let current = old.current_revision.clone().filter(|r| history.get(r).is_some());
    let current = current.unwrap_or_else(|| history.update.clone());
    let work = Work { set, spec, view, now, history, current, pods };
    if set.is_deleting() {
        work.report(&mut plan, &old);
        return plan;
    }
    work.history.record(&mut plan, set, spec.selector.match_labels.as_ref());
    work.report(&mut plan, &old);
    claimed.settle(&mut plan, set);
    work.bring_up(&mut plan);
    work.tidy(&mut plan);
    plan
}

impl Work<'_> {
    fn first(&self) -> i32 {
        self.spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0)
    }

    /// The numbers that pods should have.
    fn wanted(&self) -> std::ops::Range<i32> {
        let first = self.first();
        first..first.saturating_add(self.spec.replicas.unwrap_or(1).max(0))
    }

    fn ordered(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    fn rolling(&self) -> bool {
        self.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete")
    }

    /// Pods with a lower number stay at the current revision.
    fn partition(&self) -> i32 {
        let rolling = self.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        self.first().saturating_add(rolling.and_then(|r| r.partition).unwrap_or(0))
    }

    fn available(&self, pod: &Pod) -> bool {
        let min_ready = self.spec.min_ready_seconds.unwrap_or(0);
        pods::availability(pod, min_ready, self.now) == Availability::Available
    }

    /// Runs, is ready and stays.
    fn healthy(&self, pod: &Pod) -> bool {
        pods::is_active(pod) && pods::is_ready(pod)
    }

    fn revision(pod: &Pod) -> &str {
        pod.label(REVISION_LABEL).unwrap_or_default()
    }

    fn report(&self, plan: &mut Plan, old: &StatefulSetStatus) {
        let live: Vec<&Arc<Pod>> = self.pods.values().filter(|p| !pods::is_finished(p)).collect();
        let count = |what: &dyn Fn(&Pod) -> bool| live.iter().filter(|p| what(p)).count() as i32;
        let positive = |n: i32| (n > 0).then_some(n);
        let staying = |p: &Pod| !p.is_deleting();
        let of = |name: &str| count(&|p| staying(p) && Self::revision(p) == name);
        let (replicas, ready) = (count(&|_| true), count(&|p| self.healthy(p)));
        let updated = of(&self.history.update);
        let mut current = self.current.clone();
        // The rollout is done when every pod is a ready one of the new revision.
        let whole = self.spec.replicas.unwrap_or(1);
        if self.rolling() && updated == whole && replicas == whole && ready == whole {
            current.clone_from(&self.history.update);
        }
        for pod in &live {
            let min_ready = self.spec.min_ready_seconds.unwrap_or(0);
            if let Availability::In(left) = pods::availability(pod, min_ready, self.now) {
                plan.requeue_in(left);
            }
        }
        let collisions = old.collision_count.or(Some(0));
        let status = StatefulSetStatus {
            replicas,
            ready_replicas: positive(ready),
            available_replicas: Some(count(&|p| staying(p) && self.available(p))),
            current_replicas: positive(of(&current)),
            updated_replicas: positive(updated),
            current_revision: Some(current),
            update_revision: Some(self.history.update.clone()),
            observed_generation: self.set.metadata.generation,
            collision_count: if self.history.collided { collisions.map(|n| n + 1) } else { collisions },
            conditions: old.conditions.clone(),
        };
        let mut new = self.set.clone();
        new.status = Some(status);
        plan.update_status(self.set, &new);
    }

    /// Makes, replaces and removes pods, one step at a time when they are ordered.
    fn bring_up(&self, plan: &mut Plan) {
        for number in self.wanted() {
            if !self.bring_up_one(plan, number) && self.ordered() {
                return;
            }
        }
        let condemned: Vec<i32> =
            self.pods.keys().rev().copied().filter(|n| !self.wanted().contains(n)).collect();
        for number in condemned {
            self.condemn(plan, &self.pods[&number], number);
            if self.ordered() {
                return;
            }
        }
        if self.rolling() {
            self.roll(plan);
        }
    }

    /// Whether the pod with this number is as it should be and the next may follow.
    fn bring_up_one(&self, plan: &mut Plan, number: i32) -> bool {
        let Some(pod) = self.pods.get(&number) else {
            self.make_claims(plan, number);
            plan.create_announced(
                &self.pod(number),
                Some(crate::Recorded::new(
                    self.set,
                    false,
                    "SuccessfulCreate",
                    format!("create Pod in StatefulSet {} successful: ", self.set.name()),
                )),
            );
            return false;
        };
        if pod.is_deleting() {
            return false;
        }
        if pods::is_finished(pod) {
            plan.record(
                self.set,
                true,
                "RecreatingTerminatedPod",
                format!("{} ended and is made again", pod.name()),
            );
            plan.delete(pod.as_ref(), Precondition::same(pod.as_ref()));
            return false;
        }
        self.make_claims(plan, number);
        self.keep_claims(plan, pod, number);
        self.available(pod)
    }

    fn condemn(&self, plan: &mut Plan, pod: &Arc<Pod>, number: i32) {
        if pod.is_deleting() {
            return;
        }
        // Removing a healthy pod waits for the lower ones, unless it is the one that ails.
        let others = self.pods.iter().filter(|(n, _)| **n != number).map(|(_, p)| p);
        let waits = self.ordered()
            && self.healthy(pod)
            && others.into_iter().any(|p| p.is_deleting() || !self.available(p));
        if waits {
            return;
        }
        self.hand_claims_to(plan, pod, number);
        plan.delete(pod.as_ref(), Precondition::same(pod.as_ref()));
        let message = format!("delete Pod {} in StatefulSet {} successful", pod.name(), self.set.name());
        plan.record(self.set, false, "SuccessfulDelete", message);
    }

    /// Replaces the highest pod that is not of the update's revision, once all above it are healthy.
    fn roll(&self, plan: &mut Plan) {
        for (number, pod) in self.pods.iter().rev() {
            if *number < self.partition() || !self.wanted().contains(number) {
                continue;
            }
            if pod.is_deleting() {
                return;
            }
            if Self::revision(pod) != self.history.update {
                plan.delete(pod.as_ref(), Precondition::same(pod.as_ref()));
                let message =
                    format!("delete Pod {} in StatefulSet {} successful", pod.name(), self.set.name());
                plan.record(self.set, false, "SuccessfulDelete", message);
                return;
            }
            if !self.healthy(pod) || !self.available(pod) {
                return;
            }
        }
    }

    fn tidy(&self, plan: &mut Plan) {
        let mut live: BTreeSet<String> = self.pods.values().map(|p| Self::revision(p).to_owned()).collect();
        live.insert(self.current.clone());
        let limit = usize::try_from(self.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
        self.history.truncate(plan, &live, limit);
    }
}
