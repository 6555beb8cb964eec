//! The constraints of a pod that names none: spread softly over hosts and zones, among the pods of the same service
//! and workload. Part of PodTopologySpread.

use crate::pod::{PodInfo, SpreadConstraint, WhenUnsatisfiable};
use crate::selector::LabelSelector;
use crate::snapshot::Snapshot;

/// The label of a node's host name.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// The label of a node's zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// Default constraints; none for a pod that belongs to no service or workload.
pub fn constraints(pod: &PodInfo, snapshot: &Snapshot) -> Vec<SpreadConstraint> {
    let Some(selector) = group(pod, snapshot) else { return Vec::new() };
    [(HOSTNAME, 3), (ZONE, 5)]
        .into_iter()
        .map(|(key, max_skew)| SpreadConstraint {
            max_skew,
            topology_key: key.to_string(),
            when: WhenUnsatisfiable::ScheduleAnyway,
            selector: selector.clone(),
            min_domains: 1,
            honor_affinity: true,
            honor_taints: false,
        })
        .collect()
}

/// What selects the pod's like: all services that select it, and its owner.
fn group(pod: &PodInfo, snapshot: &Snapshot) -> Option<LabelSelector> {
    let mut selector = LabelSelector::from_labels(&Default::default());
    let first = (pod.namespace.clone(), String::new());
    let services =
        snapshot.services.range(first..).take_while(|((namespace, _), _)| *namespace == pod.namespace);
    for (_, labels) in services {
        let service = LabelSelector::from_labels(labels);
        if !service.is_everything() && service.matches(&pod.labels) {
            selector.and_all(&service);
        }
    }
    if let Some((kind, name)) = &pod.owner {
        let key = (pod.namespace.clone(), kind.clone(), name.clone());
        if let Some(workload) = snapshot.workloads.get(&key) {
            selector.and_all(workload);
        }
    }
    (!selector.is_everything()).then_some(selector)
}
