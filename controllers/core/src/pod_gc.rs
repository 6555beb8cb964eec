//! Pod garbage collector: pods nobody else will remove.
//!
//! Pods of nodes that are gone, pods being deleted that never reached a node, and the oldest of too
//! many finished ones. A pod of a node that exists but is silent stays: its containers may run
//! (C3, C17), unless the operator has tainted the node out-of-service.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use crate::endpointslice::on_node;
use crate::node_lifecycle::ready;
use crate::plan::{Action, Expectation};
use crate::pods;
use crate::taint_eviction::disrupt;
use crate::{Change, Gvr, Key, Object, Plan, Precondition, Reconciler, Target, View, Watch};

const NAME: &str = "pod-garbage-collector-controller";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// How long a node must be missing before its pods go.
const QUARANTINE: SignedDuration = SignedDuration::from_secs(40);

pub struct PodGc {
    /// Finished pods to keep.
    pub threshold: usize,
}

impl Reconciler for PodGc {
    fn name(&self) -> &'static str {
        NAME
    }

    fn watches(&self) -> Vec<Watch> {
        let finished = |pod: &Pod| if pods::is_finished(pod) { vec![String::new()] } else { Vec::new() };
        vec![Watch::of::<Pod>().index("node", on_node).index("finished", finished), Watch::of::<Node>()]
    }

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        if let Some((old, new)) = change.of::<Node>() {
            let gone = new.is_none();
            let down = new.is_some_and(|n| ready(n) != "True");
            let name = if gone || down { new.or(old).map_or("", |n| n.name()) } else { return Vec::new() };
            return view.of::<Pod>().by("node", name).map(|p| Key::of(p.as_ref())).collect();
        }
        change.of::<Pod>().and_then(|(_, new)| new).map(Key::of).into_iter().collect()
    }

    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        let Some(pod) = view.get::<Pod>(key) else { return plan };
        let node = view.get::<Node>(&Key::cluster(pods::node_name(pod)));
        if pods::node_name(pod).is_empty() {
            if pod.is_deleting() {
                remove(&mut plan, pod, now, None);
            }
        } else if let Some(node) = node {
            if pod.is_deleting() && ready(node) != "True" && is_out_of_service(node) {
                remove(&mut plan, pod, now, Some("PodGC: node is out of service"));
            }
        } else {
            orphaned(&mut plan, pod, view, now);
        }
        if plan.is_empty() && pods::is_finished(pod) && self.is_surplus(pod, view) {
            plan.delete(pod.as_ref(), Precondition::same(pod.as_ref()));
        }
        plan
    }
}

impl PodGc {
    fn is_surplus(&self, pod: &Pod, view: &View) -> bool {
        let finished = || view.of::<Pod>().by("finished", "");
        let count = finished().count();
        let age = |p: &Pod| (pods::created(p), p.uid().to_owned());
        count > self.threshold && finished().filter(|p| age(p) < age(pod)).count() < count - self.threshold
    }
}

fn is_out_of_service(node: &Node) -> bool {
    node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == OUT_OF_SERVICE)
}

fn orphaned(plan: &mut Plan, pod: &Pod, view: &View, now: Timestamp) {
    let note = view.note(NAME, &Key::of(pod));
    let since = note.and_then(|n| n["missing"].as_str()?.parse().ok()).unwrap_or(now);
    plan.note = Some(json!({ "missing": since.to_string() }));
    let left = QUARANTINE - now.duration_since(since);
    if left.is_positive() {
        return plan.requeue_in(left);
    }
    let node =
        Target { resource: Gvr::of::<Node>(), key: Key::cluster(pods::node_name(pod)), subresource: None };
    plan.actions.push(Action::Expect(Expectation::Absent { target: node, uid: None }));
    remove(plan, pod, now, Some("PodGC: node no longer exists"));
}

/// Removes the pod without waiting for anybody; says why if it was still to run.
fn remove(plan: &mut Plan, pod: &Pod, now: Timestamp, why: Option<&str>) {
    if let Some(message) = why.filter(|_| !pods::is_finished(pod)) {
        let mut new = pod.clone();
        disrupt(&mut new, "DeletionByPodGC", message, now);
        new.status.get_or_insert_default().phase = Some("Failed".into());
        plan.update_status(pod, &new);
    }
    plan.actions.push(Action::Delete {
        target: Target::of(pod),
        precondition: Precondition::same(pod),
        grace: Some(0),
        propagation: None,
    });
}
