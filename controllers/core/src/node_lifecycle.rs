//! Node lifecycle: a node that stops renewing its Lease becomes Ready=Unknown and is tainted.
//!
//! Silence is measured on our own clock from the last change we saw (kept as the plan's note), never
//! by comparing the node's clock with ours. After a change of leader the wait starts anew.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::endpointslice::on_node;
use crate::pods;
use crate::replicaset::whole_seconds;
use crate::{Change, Key, Object, Plan, Reconciler, View, Watch};

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub const LEASE_NAMESPACE: &str = "kube-node-lease";
const NAME: &str = "node-lifecycle-controller";
/// Conditions with a taint of their own: (condition, status that taints, taint).
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

pub struct NodeLifecycle {
    /// Silence after which a node is Unknown.
    pub grace: SignedDuration,
    /// The same for a node that never reported.
    pub startup_grace: SignedDuration,
}

impl Reconciler for NodeLifecycle {
    fn name(&self) -> &'static str {
        NAME
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::of::<Node>(),
            Watch::of::<Lease>().namespace(LEASE_NAMESPACE),
            Watch::of::<Pod>().index("node", on_node),
        ]
    }

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        if let Some((old, new)) = change.of::<Node>() {
            let mut keys: Vec<Key> = new.or(old).map(Key::of).into_iter().collect();
            // The first or last ready node decides whether the others may be evicted.
            if old.map(ready) != new.map(ready) {
                keys.extend(view.of::<Node>().iter().map(|n| Key::of(n.as_ref())));
            }
            return keys;
        }
        if let Some(lease) = change.latest::<Lease>() {
            // Each renewal is looked at, so that the note tells when we last heard of the node.
            return vec![Key::cluster(lease.name())];
        }
        match change.of::<Pod>() {
            Some((_, Some(pod))) if pods::is_ready(pod) => {
                let node = view.get::<Node>(&Key::cluster(pods::node_name(pod)));
                node.filter(|n| ready(n) == "Unknown").map(|n| Key::of(n.as_ref())).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        let Some(node) = view.get::<Node>(key) else { return plan };
        let silent = self.listen(node, view, now, &mut plan);
        let mut new = (**node).clone();
        if silent {
            mark_unknown(&mut new, now);
        }
        let unknown = ready(&new) == "Unknown";
        if silent && ready(node) != "Unknown" {
            let message = format!("Node {} status is now: NodeNotReady", node.name());
            plan.record(node.as_ref(), false, "NodeNotReady", message);
        }
        plan.update_status(node.as_ref(), &new);
        let spent = plan.actions.iter().any(|a| matches!(a, crate::Action::Patch { .. }));
        if spent {
            // The taints follow from the new conditions on the next view.
            return plan;
        }
        let somewhere = view.of::<Node>().iter().any(|n| ready(n) == "True");
        taint(&mut new, somewhere, now);
        plan.update(node.as_ref(), &new);
        if unknown {
            for pod in view.of::<Pod>().by("node", node.name()) {
                mark_not_ready(&mut plan, pod, now);
            }
        }
        plan
    }
}

impl NodeLifecycle {
    /// Whether the node has been silent for too long; leaves the note and the requeue.
    fn listen(&self, node: &Node, view: &View, now: Timestamp, plan: &mut Plan) -> bool {
        let lease = view.get::<Lease>(&Key::new(LEASE_NAMESPACE, node.name()));
        let renewed = lease.and_then(|l| l.spec.as_ref()?.renew_time.as_ref()).map(|t| t.0.to_string());
        let condition = condition(node.status.as_ref(), "Ready");
        let beat = condition.and_then(|c| c.last_heartbeat_time.as_ref()).map(|t| t.0.to_string());
        let seen = json!([node.uid(), renewed, beat]);
        let note = view.note(NAME, &Key::of(node)).filter(|note| note["seen"] == seen);
        let since = note.and_then(|n| n["at"].as_str()?.parse().ok()).unwrap_or(now);
        plan.note = Some(json!({ "seen": seen, "at": since.to_string() }));
        let grace = if condition.is_some() { self.grace } else { self.startup_grace };
        let left = grace - now.duration_since(since);
        if left.is_positive() {
            plan.requeue_in(left);
        }
        !left.is_positive()
    }
}

fn condition<'a>(status: Option<&'a NodeStatus>, kind: &str) -> Option<&'a NodeCondition> {
    status?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Status of the Ready condition; a node without one is Unknown.
pub fn ready(node: &Node) -> &str {
    condition(node.status.as_ref(), "Ready").map_or("Unknown", |c| c.status.as_str())
}

fn mark_unknown(node: &mut Node, now: Timestamp) {
    let created = node.metadata.creation_timestamp.clone();
    let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let at = Some(Time(whole_seconds(now)));
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(c) if c.status != "Unknown" => {
                c.status = "Unknown".into();
                c.reason = Some("NodeStatusUnknown".into());
                c.message = Some("Kubelet stopped posting node status.".into());
                c.last_transition_time = at;
            }
            Some(_) => {}
            None => conditions.push(NodeCondition {
                type_: kind.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: created.clone(),
                last_transition_time: at,
            }),
        }
    }
}

/// Makes the taints we own equal to what the conditions call for. `evict`: some node is ready, so
/// that moving pods makes sense; in a full outage nothing is evicted.
fn taint(node: &mut Node, evict: bool, now: Timestamp) {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let taint = match ready(node) {
        "False" => Some(NOT_READY),
        "Unknown" => Some(UNREACHABLE),
        _ => None,
    };
    wanted.extend(taint.map(|t| (t, "NoSchedule")));
    wanted.extend(taint.filter(|_| evict).map(|t| (t, "NoExecute")));
    for (kind, key) in PRESSURES {
        if condition(node.status.as_ref(), kind).is_some_and(|c| c.status == "True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    let spec = node.spec.get_or_insert_default();
    if spec.unschedulable == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let had_list = spec.taints.is_some();
    let taints = spec.taints.get_or_insert_default();
    taints.retain(|t| !is_ours(t) || wanted.contains(&(t.key.as_str(), t.effect.as_str())));
    for (key, effect) in wanted {
        if !taints.iter().any(|t| t.key == key && t.effect == effect) {
            taints.push(Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: Some(Time(whole_seconds(now))),
                value: None,
            });
        }
    }
    if taints.is_empty() && !had_list {
        spec.taints = None;
    }
}

fn is_ours(taint: &Taint) -> bool {
    let reachability = [NOT_READY, UNREACHABLE].contains(&taint.key.as_str());
    let pressure = PRESSURES.iter().any(|(_, key)| *key == taint.key) || taint.key == UNSCHEDULABLE;
    (reachability && matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
        || (pressure && taint.effect == "NoSchedule")
}

/// Nobody on a silent node can say that a pod is not ready; Services must not wait for it.
fn mark_not_ready(plan: &mut Plan, pod: &Pod, now: Timestamp) {
    let mut new = pod.clone();
    let conditions = new.status.as_mut().and_then(|s| s.conditions.as_mut());
    let Some(ready) =
        conditions.and_then(|c| c.iter_mut().find(|c| c.type_ == "Ready" && c.status == "True"))
    else {
        return;
    };
    ready.status = "False".into();
    ready.last_transition_time = Some(Time(whole_seconds(now)));
    plan.update_status(pod, &new);
    plan.record(pod, true, "NodeNotReady", "Node is not ready".to_owned());
}
