//! DaemonSet: one pod on every node that fits.
//!
//! Order of a plan: the revision of the template, status (a function of the view), adoption and release, pods to remove,
//! pods to make, then the rollout. Invariant C12: on no node more than one pod that stays, except the one that replaces
//! another under `maxSurge`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::claim::{self, Claim, claim};
use crate::history::{History, REVISION_LABEL};
use crate::labels;
use crate::pods::{self, Availability};
use crate::{Change, Key, Object, Plan, Precondition, Reconciler, Recorded, View, Watch};

mod placement;

use placement::{Fit, fit, pod_for, target};

/// Most pods made or removed by one plan.
const BURST: usize = 250;

pub struct DaemonSets;

impl Reconciler for DaemonSets {
    fn name(&self) -> &'static str {
        "daemonset-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::of::<DaemonSet>(),
            claim::watch_pods(),
            Watch::of::<Node>(),
            Watch::of::<ControllerRevision>(),
        ]
    }

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        if let Some((old, new)) = change.of::<Node>() {
            // Heartbeats concern nobody.
            let says = |n: &Node| (n.metadata.labels.clone(), n.spec.clone());
            if old.map(says) == new.map(says) {
                return Vec::new();
            }
            return view.of::<DaemonSet>().iter().map(|set| Key::of(set.as_ref())).collect();
        }
        claim::keys::<DaemonSet>(change, view, selects)
    }

    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        match view.get::<DaemonSet>(key) {
            Some(set) => reconcile(set, view, now),
            None => Plan::none(),
        }
    }
}

fn selects(set: &DaemonSet, pod: &Pod) -> bool {
    set.spec.as_ref().is_some_and(|s| {
        !labels::is_empty(&s.selector) && labels::matches(&s.selector, pod.metadata.labels.as_ref())
    })
}

/// One node and the set's pods on it, the one to keep first.
struct Place {
    node: Arc<Node>,
    fit: Fit,
    pods: Vec<Arc<Pod>>,
}

struct Work<'a> {
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    now: Timestamp,
    history: History,
    places: Vec<Place>,
    /// Pods whose node is gone.
    lost: Vec<Arc<Pod>>,
}

fn reconcile(set: &DaemonSet, view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(spec) = &set.spec else { return plan };
    let old = set.status.clone().unwrap_or_default();
    let history = History::of(set, &spec.template, old.collision_count, view);
    let claimed = claim(set, view, |pod| selects(set, pod));
    let work = Work::new(set, spec, &claimed, history, view, now);
    if !set.is_deleting() {
        work.history.record(&mut plan, set, spec.selector.match_labels.as_ref());
    }
    work.report(&mut plan, &old);
    if set.is_deleting() {
        return plan;
    }
    claimed.settle(&mut plan, set);
    let mut gone: Vec<Arc<Pod>> = work.unwanted();
    let mut new: Vec<&Place> = work.empty();
    if work.rolling() {
        work.roll(&mut gone, &mut new);
    }
    work.act(&mut plan, &gone, &new);
    work.tidy(&mut plan);
    plan
}

impl<'a> Work<'a> {
    fn new(
        set: &'a DaemonSet,
        spec: &'a DaemonSetSpec,
        claimed: &Claim,
        history: History,
        view: &View,
        now: Timestamp,
    ) -> Work<'a> {
        let mut by_node: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in claimed.owned.iter().chain(&claimed.adopt) {
            by_node.entry(target(pod).to_owned()).or_default().push(pod.clone());
        }
        let mut places: Vec<Place> = vec![];
        for node in view.of::<Node>().iter() {
            let mut pods = by_node.remove(node.name()).unwrap_or_default();
            // The one that runs, is ready, and is oldest stays.
            pods.sort_by_key(|p| {
                (
                    p.is_deleting(),
                    pods::node_name(p).is_empty(),
                    !pods::is_ready(p),
                    pods::created(p),
                    p.uid().to_owned(),
                )
            });
            places.push(Place { node: node.clone(), fit: fit(spec, node), pods });
        }
        let lost = by_node.into_values().flatten().collect();
        Work { set, spec, now, history, places, lost }
    }

    fn rolling(&self) -> bool {
        self.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete")
    }

    fn updated(&self, pod: &Pod) -> bool {
        pod.label(REVISION_LABEL) == Some(self.history.hash())
    }

    fn available(&self, pod: &Pod) -> bool {
        let min_ready = self.spec.min_ready_seconds.unwrap_or(0);
        pods::is_active(pod) && pods::availability(pod, min_ready, self.now) == Availability::Available
    }

    fn wanted(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|p| p.fit.run)
    }

    fn report(&self, plan: &mut Plan, old: &DaemonSetStatus) {
        let (mut current, mut wrong, mut ready, mut available, mut updated) = (0, 0, 0, 0, 0);
        for place in &self.places {
            let staying: Vec<&Arc<Pod>> = place.pods.iter().filter(|p| pods::is_active(p)).collect();
            if !place.fit.run {
                wrong += i32::from(!staying.is_empty());
                continue;
            }
            current += i32::from(!staying.is_empty());
            ready += i32::from(staying.iter().any(|p| pods::is_ready(p)));
            available += i32::from(staying.iter().any(|p| self.available(p)));
            updated += i32::from(staying.iter().any(|p| self.updated(p)));
            for pod in staying {
                let min_ready = self.spec.min_ready_seconds.unwrap_or(0);
                if let Availability::In(left) = pods::availability(pod, min_ready, self.now) {
                    plan.requeue_in(left);
                }
            }
        }
        let desired = self.wanted().count() as i32;
        let positive = |n: i32| (n > 0).then_some(n);
        let collisions = if self.history.collided {
            Some(old.collision_count.unwrap_or(0) + 1)
        } else {
            old.collision_count
        };
        let status = DaemonSetStatus {
            current_number_scheduled: current,
            number_misscheduled: wrong,
            desired_number_scheduled: desired,
            number_ready: ready,
            number_available: positive(available),
            number_unavailable: positive(desired - available),
            updated_number_scheduled: positive(updated),
            observed_generation: self.set.metadata.generation,
            collision_count: collisions,
            conditions: old.conditions.clone(),
        };
        let mut new = self.set.clone();
        new.status = Some(status);
        plan.update_status(self.set, &new);
    }

    /// Pods where none should be, a second one where one is enough, and those that ended.
    fn unwanted(&self) -> Vec<Arc<Pod>> {
        let mut gone = self.lost.clone();
        for place in &self.places {
            if !place.fit.stay {
                gone.extend(place.pods.iter().cloned());
                continue;
            }
            gone.extend(place.pods.iter().filter(|p| pods::is_finished(p)).cloned());
            let live: Vec<&Arc<Pod>> = place.pods.iter().filter(|p| pods::is_active(p)).collect();
            // An old pod and its successor may be there together for a while.
            let keep_both = self.surge() > 0 && live.iter().any(|p| self.updated(p));
            for same in [true, false] {
                let alike = live.iter().filter(|p| !keep_both || self.updated(p) == same);
                if keep_both || same {
                    gone.extend(alike.skip(1).map(|p| (*p).clone()));
                }
            }
        }
        gone.retain(|p| !p.is_deleting());
        gone
    }

    /// Nodes that should have a pod and have none, not even one that is still on its way out.
    fn empty(&self) -> Vec<&Place> {
        self.wanted().filter(|p| p.pods.is_empty()).collect()
    }

    fn surge(&self) -> usize {
        self.share(|r| r.max_surge.clone(), 0)
    }

    fn unavailable(&self) -> usize {
        self.share(|r| r.max_unavailable.clone(), 1)
    }

    fn share(
        &self,
        of: fn(&k8s_openapi::api::apps::v1::RollingUpdateDaemonSet) -> Option<IntOrString>,
        default: i32,
    ) -> usize {
        if !self.rolling() {
            return 0;
        }
        let rolling = self.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let value = rolling.and_then(of).unwrap_or(IntOrString::Int(default));
        let desired = self.wanted().count() as i32;
        usize::try_from(crate::deployment::portion(&value, desired, true)).unwrap_or(0)
    }

    /// Which old pods may go now, and where a new one may come beside an old one.
    fn roll(&'a self, gone: &mut Vec<Arc<Pod>>, new: &mut Vec<&'a Place>) {
        let (most, surge) = (self.unavailable(), self.surge());
        let mut out = self.wanted().filter(|p| !p.pods.iter().any(|pod| self.available(pod))).count();
        let beside = |place: &Place| place.pods.iter().filter(|p| pods::is_active(p)).count() > 1;
        let mut extra = self.wanted().filter(|p| beside(p)).count();
        for place in self.wanted() {
            let live: Vec<&Arc<Pod>> = place.pods.iter().filter(|p| pods::is_active(p)).collect();
            let successor = live.iter().find(|p| self.updated(p));
            let Some(old) = live.iter().find(|p| !self.updated(p)) else { continue };
            if gone.iter().any(|g| g.uid() == old.uid()) {
                continue;
            }
            if let Some(successor) = successor {
                if self.available(successor) {
                    gone.push((*old).clone());
                }
            } else if surge > 0 {
                // One that fails already has nothing to lose.
                if !self.available(old) || extra < surge {
                    extra += usize::from(self.available(old));
                    new.push(place);
                }
            } else if !self.available(old) {
                gone.push((*old).clone());
            } else if out < most {
                out += 1;
                gone.push((*old).clone());
            }
        }
    }

    fn act(&self, plan: &mut Plan, gone: &[Arc<Pod>], new: &[&Place]) {
        let mut done = BTreeSet::new();
        let gone: Vec<&Arc<Pod>> =
            gone.iter().filter(|p| done.insert(p.uid().to_owned())).take(BURST).collect();
        for pod in &gone {
            plan.delete(pod.as_ref(), Precondition::same(pod.as_ref()));
        }
        for pod in &gone {
            plan.record(self.set, false, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
        }
        let made = Recorded::new(self.set, false, "SuccessfulCreate", "Created pod: ".to_owned());
        for place in new.iter().take(BURST) {
            let pod = pod_for(self.set, self.spec, place.node.name(), self.history.hash());
            plan.create_announced(&pod, Some(made.clone()));
        }
    }

    fn tidy(&self, plan: &mut Plan) {
        let pods = self.places.iter().flat_map(|p| &p.pods).chain(&self.lost);
        let live = pods.filter_map(|p| p.label(REVISION_LABEL).map(str::to_owned)).collect();
        let limit = usize::try_from(self.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
        self.history.truncate(plan, &live, limit);
    }
}
