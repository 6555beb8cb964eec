//! The shipped ReplicaSet reconciler under stale views, cut plans, lost requests and answers, and changes of leader.
//!
//! A state holds the true pods, the pod events on their way to the cache, the cache, and the rest of the plan in
//! execution. `Reconcile` calls the shipped function on a `View` made of the cache. The runner's promise is part of the
//! model: no reconcile before the key's own writes are seen. A lost answer is a write the runner knows nothing of.
//!
//! Omitted, and why that is sound: the set's status (no decision on pods reads it), node placement and readiness
//! beyond ready or not (they only order the victims), and lists older than the last leader's writes (the informer
//! lists without a resourceVersion, which the API server answers consistently).

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodSpec, PodStatus, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use keelson_controllers_core::replicaset::ReplicaSets;
use keelson_controllers_core::{Action, Key, Object, Reconciler, View};
use serde_json::json;
use stateright::{Model, Property};

use crate::catalogue::{Bound, Report, explore};
use crate::cluster::{Scenario, keys_of, object};

/// Rounds in which the closure must end: a round delivers everything, reconciles, runs the plan, and lets the nodes act.
const ROUNDS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PodState {
    id: u8,
    ready: bool,
    deleting: bool,
}

/// What the watch says of a pod: its new state, or that it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fact {
    Is(PodState),
    Gone(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Request {
    Create,
    Delete(u8),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cluster {
    pods: Vec<PodState>,
    next: u8,
    unseen: Vec<Fact>,
    cache: Vec<PodState>,
    size: u8,
    cached_size: u8,
    plan: Vec<Request>,
    /// Facts to be delivered before the next reconcile: up to and with the key's own last write.
    hold: usize,
    edits: u8,
    faults: u8,
    kills: u8,
    /// Creates whose answer was lost.
    lost: u8,
    /// The largest size asked for so far.
    most: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Deliver,
    DeliverSize,
    Reconcile,
    /// The next request of the plan goes through.
    Execute,
    /// It never arrives.
    DropRequest,
    /// It goes through, but the answer is lost.
    LoseAnswer,
    /// A new leader: no plan, a fresh list.
    Crash,
    Resize(u8),
    Ready(u8),
    /// The node confirms a deletion.
    Confirm(u8),
    /// Somebody deletes a pod.
    Kill(u8),
}

pub struct Bounds {
    most: u8,
    edits: u8,
    faults: u8,
    kills: u8,
}

impl Cluster {
    fn change(&mut self, pod: PodState) {
        match self.pods.iter_mut().find(|p| p.id == pod.id) {
            Some(slot) => *slot = pod,
            None => self.pods.push(pod),
        }
        self.unseen.push(Fact::Is(pod));
    }

    fn pod(&self, id: u8) -> Option<PodState> {
        self.pods.iter().copied().find(|p| p.id == id)
    }

    fn active(&self) -> usize {
        self.pods.iter().filter(|p| !p.deleting).count()
    }

    fn deliver(&mut self) {
        match self.unseen.remove(0) {
            Fact::Is(pod) => match self.cache.iter_mut().find(|p| p.id == pod.id) {
                Some(slot) => *slot = pod,
                None => self.cache.push(pod),
            },
            Fact::Gone(id) => self.cache.retain(|p| p.id != id),
        }
        self.hold = self.hold.saturating_sub(1);
    }

    /// The server's part of a request.
    fn serve(&mut self, request: Request) {
        match request {
            Request::Create => {
                self.next += 1;
                self.change(PodState { id: self.next, ready: false, deleting: false });
            }
            Request::Delete(id) => {
                if let Some(pod) = self.pod(id).filter(|p| !p.deleting) {
                    self.change(PodState { deleting: true, ..pod });
                }
            }
        }
    }

    fn reconcile(&mut self) {
        let mut view = View::default();
        for watch in ReplicaSets.watches() {
            watch.install.iter().for_each(|install| install(&mut view));
        }
        let set = set_of(self.cached_size);
        let key = Key::of(&set);
        for pod in &self.cache {
            view.of_mut::<Pod>().insert(Arc::new(pod_of(&set, pod)));
        }
        view.of_mut::<ReplicaSet>().insert(Arc::new(set));
        let plan = ReplicaSets.reconcile(&key, &view, Timestamp::UNIX_EPOCH);
        let requests = plan.actions.iter().filter_map(|action| match action {
            Action::Create { .. } => Some(Request::Create),
            Action::Delete { target, .. } => {
                target.key.name.trim_start_matches('p').parse().ok().map(Request::Delete)
            }
            _ => None,
        });
        self.plan = requests.collect();
    }

    fn crash(&mut self) {
        self.plan.clear();
        self.unseen.clear();
        self.cache = self.pods.clone();
        self.cached_size = self.size;
        self.hold = 0;
    }

    fn is_settled(&self) -> bool {
        self.plan.is_empty()
            && self.unseen.is_empty()
            && self.pods.len() == usize::from(self.size)
            && self.pods.iter().all(|p| p.ready && !p.deleting)
    }

    /// Whether, with no more faults and edits, a few fair rounds end in the desired state, and stay there.
    fn converges(&self) -> bool {
        let mut cluster = self.clone();
        for _ in 0..ROUNDS {
            while let Some(request) = (!cluster.plan.is_empty()).then(|| cluster.plan.remove(0)) {
                cluster.serve(request);
            }
            while !cluster.unseen.is_empty() {
                cluster.deliver();
            }
            cluster.cached_size = cluster.size;
            cluster.reconcile();
            if cluster.plan.is_empty() {
                for pod in cluster.pods.clone() {
                    match pod.deleting {
                        true => cluster.confirm(pod.id),
                        false if !pod.ready => cluster.change(PodState { ready: true, ..pod }),
                        false => {}
                    }
                }
            }
            if cluster.is_settled() {
                cluster.reconcile();
                return cluster.is_settled();
            }
        }
        false
    }

    fn confirm(&mut self, id: u8) {
        self.pods.retain(|p| p.id != id);
        self.unseen.push(Fact::Gone(id));
    }
}

fn labels() -> std::collections::BTreeMap<String, String> {
    [("app".to_owned(), "a".to_owned())].into()
}

fn set_of(size: u8) -> ReplicaSet {
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels()), ..Default::default() }),
        spec: Some(PodSpec::default()),
    };
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("d".into()),
            uid: Some("set".into()),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(size.into()),
            min_ready_seconds: None,
            selector: LabelSelector { match_labels: Some(labels()), match_expressions: None },
            template: Some(template),
        }),
        status: None,
    }
}

fn pod_of(set: &ReplicaSet, pod: &PodState) -> Pod {
    let at = Time(Timestamp::UNIX_EPOCH);
    let ready = PodCondition { type_: "Ready".into(), status: "True".into(), ..Default::default() };
    Pod {
        metadata: ObjectMeta {
            name: Some(format!("p{}", pod.id)),
            namespace: Some("d".into()),
            uid: Some(format!("uid-{}", pod.id)),
            labels: Some(labels()),
            owner_references: Some(vec![set.owner_reference()]),
            deletion_timestamp: pod.deleting.then(|| at.clone()),
            ..Default::default()
        },
        spec: Some(PodSpec::default()),
        status: Some(PodStatus {
            phase: Some(if pod.ready { "Running" } else { "Pending" }.into()),
            conditions: pod.ready.then(|| vec![ready]),
            ..Default::default()
        }),
    }
}

impl Model for Bounds {
    type State = Cluster;
    type Action = Step;

    fn init_states(&self) -> Vec<Cluster> {
        let cluster = |size| Cluster { size, cached_size: size, most: size, ..Cluster::default() };
        vec![cluster(self.most.min(2))]
    }

    fn actions(&self, cluster: &Cluster, steps: &mut Vec<Step>) {
        if !cluster.unseen.is_empty() {
            steps.push(Step::Deliver);
        }
        if cluster.cached_size != cluster.size {
            steps.push(Step::DeliverSize);
        }
        if cluster.plan.is_empty() && cluster.hold == 0 {
            steps.push(Step::Reconcile);
        }
        if let Some(next) = cluster.plan.first() {
            steps.push(Step::Execute);
            if cluster.faults < self.faults {
                steps.push(Step::DropRequest);
                if *next == Request::Create {
                    steps.push(Step::LoseAnswer);
                }
            }
        }
        if cluster.faults < self.faults && (!cluster.plan.is_empty() || !cluster.unseen.is_empty()) {
            steps.push(Step::Crash);
        }
        if cluster.edits < self.edits {
            steps.extend((0..=self.most).filter(|n| *n != cluster.size).map(Step::Resize));
        }
        for pod in &cluster.pods {
            if pod.deleting {
                steps.push(Step::Confirm(pod.id));
            } else {
                if !pod.ready {
                    steps.push(Step::Ready(pod.id));
                }
                if cluster.kills < self.kills {
                    steps.push(Step::Kill(pod.id));
                }
            }
        }
    }

    fn next_state(&self, cluster: &Cluster, step: Step) -> Option<Cluster> {
        let mut next = cluster.clone();
        match step {
            Step::Deliver => next.deliver(),
            Step::DeliverSize => next.cached_size = next.size,
            Step::Reconcile => next.reconcile(),
            Step::Execute => {
                let request = next.plan.remove(0);
                next.serve(request);
                next.hold = next.unseen.len();
            }
            Step::DropRequest => {
                next.plan.remove(0);
                next.faults += 1;
            }
            Step::LoseAnswer => {
                let request = next.plan.remove(0);
                next.serve(request);
                next.plan.clear();
                next.faults += 1;
                next.lost += 1;
            }
            Step::Crash => {
                next.crash();
                next.faults += 1;
            }
            Step::Resize(size) => {
                next.size = size;
                next.most = next.most.max(size);
                next.edits += 1;
            }
            Step::Ready(id) => {
                let pod = next.pod(id)?;
                next.change(PodState { ready: true, ..pod });
            }
            Step::Confirm(id) => next.confirm(id),
            Step::Kill(id) => {
                let pod = next.pod(id)?;
                next.change(PodState { deleting: true, ..pod });
                next.kills += 1;
            }
        }
        // What the cache would see unchanged does not tell states apart.
        (next != *cluster).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Bounds>> {
        vec![
            Property::always(
                "C9 never more pods than asked for, beyond creates with a lost answer",
                |_, c: &Cluster| c.active() <= usize::from(c.most + c.lost),
            ),
            Property::always("converges from here once faults stop", |_, c: &Cluster| c.converges()),
            Property::always("C27 a settled set sees no requests", |_, c: &Cluster| {
                let mut again = c.clone();
                again.cached_size = again.size;
                again.reconcile();
                !c.is_settled() || again.plan.is_empty()
            }),
            Property::sometimes("a reconcile decided on a cache behind the truth", |_, c: &Cluster| {
                !c.plan.is_empty() && !c.unseen.is_empty()
            }),
            Property::sometimes("a lost answer led to one pod too many", |_, c: &Cluster| {
                c.active() > usize::from(c.most)
            }),
            Property::sometimes("settled after every kind of trouble", |model: &Bounds, c: &Cluster| {
                c.is_settled() && c.faults == model.faults && c.edits == model.edits && c.kills == model.kills
            }),
        ]
    }
}

/// The same reconciler in the cluster of `cluster.rs`, where its plans run without other requests between: two pods,
/// one of which somebody may delete.
pub fn scenario() -> Scenario {
    const SIZE: usize = 2;
    let set: ReplicaSet = object(json!({
        "metadata": {"name": "web", "namespace": "d", "generation": 1},
        "spec": {
            "replicas": SIZE, "selector": {"matchLabels": {"app": "a"}}, "template": super::template("v1"),
        },
    }));
    Scenario::new("controllers-replicaset")
        .object(&set)
        .controller(ReplicaSets, keys_of::<ReplicaSet>)
        .fair("a pod starts or stops", keys_of::<Pod>, super::run_pod)
        .trouble("a user deletes a pod", 1, keys_of::<Pod>, super::delete_pod)
        .always(|world| match super::active(world).len() {
            many if many > SIZE => Err(format!("C9 {many} active pods of {SIZE}")),
            _ => Ok(()),
        })
        .desired(|world| super::all_run(world, SIZE, "v1"))
}

/// Explores the model; `Deep` lets somebody delete a pod as well (617,312 states).
pub fn run(bound: Bound) -> Report {
    let bounds = match bound {
        Bound::Smoke | Bound::Browse => Bounds { most: 2, edits: 1, faults: 1, kills: 0 },
        Bound::Deep => Bounds { most: 2, edits: 1, faults: 1, kills: 1 },
    };
    explore("controllers-replicaset", bound, bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replicaset_survives_stale_views_crashes_and_lost_requests() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 16_114, "the reach changed: look why, then set the new count");
    }
}
