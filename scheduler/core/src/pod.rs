//! A pod as the scheduler sees it: compiled once when it arrives, shared by `Arc`, never changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;

use crate::resources::{Resources, pod_requests, pod_requests_for_scoring};
use crate::selector::{LabelSelector, Labels, NodeTerm, NodeTerms, Requirement};

/// A pod's identity over its whole life.
pub type Uid = String;

/// A port the pod wants of its node: protocol, port, address (`0.0.0.0` = all).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub protocol: String,
    pub port: i32,
    pub address: String,
}

/// A term of pod affinity or anti-affinity.
#[derive(Debug, Clone)]
pub struct AffinityTerm {
    namespaces: BTreeSet<String>,
    namespace_selector: Option<LabelSelector>,
    selector: LabelSelector,
    /// The label whose value makes nodes one place.
    pub topology_key: String,
}

impl AffinityTerm {
    fn new(term: &core::PodAffinityTerm, namespace: &str, labels: &Labels) -> AffinityTerm {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.to_string());
        }
        let mut selector = LabelSelector::new(term.label_selector.as_ref());
        for (keys, same) in [(&term.match_label_keys, true), (&term.mismatch_label_keys, false)] {
            for key in keys.iter().flatten() {
                if let Some(value) = labels.get(key) {
                    let make = if same { Requirement::equals } else { Requirement::differs };
                    selector.and(make(key, value));
                }
            }
        }
        AffinityTerm {
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(|found| LabelSelector::new(Some(found))),
            selector,
            topology_key: term.topology_key.clone(),
        }
    }

    /// Whether the term speaks of pods in the namespace; `labels` are that namespace's.
    pub fn covers(&self, namespace: &str, labels: Option<&Labels>) -> bool {
        self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                selector.is_everything() || labels.is_some_and(|labels| selector.matches(labels))
            })
    }

    /// Whether the term speaks of the pod; `labels` are those of the pod's namespace.
    pub fn matches(&self, pod: &PodInfo, labels: Option<&Labels>) -> bool {
        self.selector.matches(&pod.labels) && self.covers(&pod.namespace, labels)
    }
}

/// What to do about a spread constraint that no node satisfies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenUnsatisfiable {
    DoNotSchedule,
    ScheduleAnyway,
}

/// A topology spread constraint.
#[derive(Debug, Clone)]
pub struct SpreadConstraint {
    pub max_skew: i32,
    pub topology_key: String,
    pub when: WhenUnsatisfiable,
    pub selector: LabelSelector,
    pub min_domains: i32,
    /// Count only nodes that satisfy the pod's node affinity and selector.
    pub honor_affinity: bool,
    /// Count only nodes whose taints the pod tolerates.
    pub honor_taints: bool,
}

/// A claim the pod mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimUse {
    pub name: String,
    /// A claim the pod owns (generic ephemeral volume).
    pub ephemeral: bool,
}

/// The compiled pod.
#[derive(Debug, Clone)]
pub struct PodInfo {
    pub uid: Uid,
    pub namespace: String,
    pub name: String,
    pub labels: Labels,
    pub node_name: String,
    pub nominated_node: String,
    pub scheduler_name: String,
    pub priority: i32,
    pub may_preempt: bool,
    pub terminating: bool,
    /// The start time (or creation time) in seconds since 1970; preemption spares the oldest.
    pub started: i64,
    pub requests: Resources,
    pub scored: Resources,
    pub gates: Vec<String>,
    pub ports: Vec<HostPort>,
    pub tolerations: Vec<core::Toleration>,
    pub node_selector: Labels,
    pub node_affinity: Option<NodeTerms>,
    pub preferred_nodes: Vec<(i64, NodeTerm)>,
    pub affinity: Vec<AffinityTerm>,
    pub anti_affinity: Vec<AffinityTerm>,
    pub preferred_affinity: Vec<(i64, AffinityTerm)>,
    pub preferred_anti_affinity: Vec<(i64, AffinityTerm)>,
    pub spread: Vec<SpreadConstraint>,
    pub claims: Vec<ClaimUse>,
    /// Devices by dynamic resource allocation.
    pub uses_resource_claims: bool,
    pub images: Vec<String>,
    pub container_count: usize,
    /// The controlling owner's kind and name.
    pub owner: Option<(String, String)>,
}

impl PodInfo {
    /// Compiles a pod. A pod without a spec asks for nothing.
    pub fn new(pod: &core::Pod) -> PodInfo {
        let empty = core::PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let status = pod.status.as_ref();
        let meta = &pod.metadata;
        let namespace = meta.namespace.clone().unwrap_or_default();
        let name = meta.name.clone().unwrap_or_default();
        let labels = meta.labels.clone().unwrap_or_default();
        let affinity = spec.affinity.as_ref();
        let nodes = affinity.and_then(|affinity| affinity.node_affinity.as_ref());
        let with = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let without = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let term = |term: &core::PodAffinityTerm| AffinityTerm::new(term, &namespace, &labels);
        let terms =
            |from: Option<&Vec<core::PodAffinityTerm>>| from.into_iter().flatten().map(term).collect();
        let weighted = |from: Option<&Vec<core::WeightedPodAffinityTerm>>| {
            from.into_iter()
                .flatten()
                .map(|found| (i64::from(found.weight), term(&found.pod_affinity_term)))
                .collect()
        };
        let started =
            status.and_then(|status| status.start_time.as_ref()).or(meta.creation_timestamp.as_ref());
        let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        PodInfo {
            uid: meta.uid.clone().unwrap_or_else(|| format!("{namespace}/{name}")),
            node_name: spec.node_name.clone().unwrap_or_default(),
            nominated_node: status.and_then(|status| status.nominated_node_name.clone()).unwrap_or_default(),
            scheduler_name: spec.scheduler_name.clone().unwrap_or_else(|| "default-scheduler".into()),
            priority: spec.priority.unwrap_or(0),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            terminating: meta.deletion_timestamp.is_some(),
            started: started.map_or(0, |time| time.0.as_second()),
            requests: pod_requests(spec, status),
            scored: pod_requests_for_scoring(spec, status),
            gates: spec.scheduling_gates.iter().flatten().map(|gate| gate.name.clone()).collect(),
            ports: host_ports(spec),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            node_affinity: nodes
                .and_then(|nodes| nodes.required_during_scheduling_ignored_during_execution.as_ref())
                .map(NodeTerms::new),
            preferred_nodes: nodes
                .and_then(|nodes| nodes.preferred_during_scheduling_ignored_during_execution.as_ref())
                .into_iter()
                .flatten()
                .map(|found| (i64::from(found.weight), NodeTerm::new(&found.preference)))
                .collect(),
            affinity: terms(
                with.and_then(|with| with.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            anti_affinity: terms(
                without.and_then(|with| with.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred_affinity: weighted(
                with.and_then(|with| with.preferred_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred_anti_affinity: weighted(
                without.and_then(|with| with.preferred_during_scheduling_ignored_during_execution.as_ref()),
            ),
            spread: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .map(|found| spread_constraint(found, &labels))
                .collect(),
            claims: claims(spec, &name),
            uses_resource_claims: spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()),
            images: images(spec),
            container_count: spec.containers.len() + spec.init_containers.as_ref().map_or(0, Vec::len),
            owner: owner.map(|owner| (owner.kind.clone(), owner.name.clone())),
            namespace,
            name,
            labels,
        }
    }

    /// The pod as `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// A copy placed on a node.
    pub fn on(&self, node: &str) -> Arc<PodInfo> {
        Arc::new(PodInfo { node_name: node.to_string(), ..self.clone() })
    }

    /// Whether the pod tolerates a taint.
    pub fn tolerates(&self, taint: &core::Taint) -> bool {
        self.tolerations.iter().any(|toleration| tolerates(toleration, taint))
    }

    /// Whether the node's labels satisfy the node selector and required node affinity.
    pub fn matches_node(&self, name: &str, labels: &Labels) -> bool {
        self.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.node_affinity.as_ref().is_none_or(|terms| terms.matches(name, labels))
    }

    /// Any pod affinity or anti-affinity, required or preferred.
    pub fn has_affinity(&self) -> bool {
        !self.affinity.is_empty()
            || !self.anti_affinity.is_empty()
            || !self.preferred_affinity.is_empty()
            || !self.preferred_anti_affinity.is_empty()
    }
}

/// Whether one toleration covers one taint: an empty key covers all with `Exists`, an empty effect covers all effects.
pub fn tolerates(toleration: &core::Toleration, taint: &core::Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    let wanted = toleration.value.as_deref().unwrap_or_default();
    let found = taint.value.as_deref().unwrap_or_default();
    let compare = |holds: fn(&i64, &i64) -> bool| matches!((found.parse::<i64>(), wanted.parse::<i64>()), (Ok(found), Ok(wanted)) if holds(&found, &wanted));
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => wanted == found,
        "Exists" => true,
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

fn host_ports(spec: &core::PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut ports = Vec::new();
    for port in spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten())
    {
        let number = match port.host_port {
            None | Some(0) if spec.host_network == Some(true) => port.container_port,
            None | Some(0) => continue,
            Some(number) => number,
        };
        ports.push(HostPort {
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            port: number,
            address: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into()),
        });
    }
    ports
}

fn spread_constraint(found: &core::TopologySpreadConstraint, labels: &Labels) -> SpreadConstraint {
    let mut selector = LabelSelector::new(found.label_selector.as_ref());
    for key in found.match_label_keys.iter().flatten() {
        if let Some(value) = labels.get(key) {
            selector.and(Requirement::equals(key, value));
        }
    }
    SpreadConstraint {
        max_skew: found.max_skew,
        topology_key: found.topology_key.clone(),
        when: match found.when_unsatisfiable.as_str() {
            "ScheduleAnyway" => WhenUnsatisfiable::ScheduleAnyway,
            _ => WhenUnsatisfiable::DoNotSchedule,
        },
        selector,
        min_domains: found.min_domains.unwrap_or(1),
        honor_affinity: found.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: found.node_taints_policy.as_deref() == Some("Honor"),
    }
}

fn claims(spec: &core::PodSpec, pod: &str) -> Vec<ClaimUse> {
    let mut claims = Vec::new();
    for volume in spec.volumes.iter().flatten() {
        if let Some(source) = &volume.persistent_volume_claim {
            claims.push(ClaimUse { name: source.claim_name.clone(), ephemeral: false });
        } else if volume.ephemeral.is_some() {
            claims.push(ClaimUse { name: format!("{pod}-{}", volume.name), ephemeral: true });
        }
    }
    claims
}

fn images(spec: &core::PodSpec) -> Vec<String> {
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .filter_map(|container| container.image.as_deref())
        .map(normalized_image)
        .collect()
}

/// An image name with a tag: the default tag is added where neither tag nor digest is given.
pub fn normalized_image(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || last.contains('@') { name.to_string() } else { format!("{name}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, value: &str, effect: &str) -> core::Taint {
        core::Taint { key: key.into(), value: Some(value.into()), effect: effect.into(), time_added: None }
    }

    fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> core::Toleration {
        core::Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            effect: Some(effect.into()),
            toleration_seconds: None,
        }
    }

    #[test]
    fn tolerations_match_by_key_value_and_effect() {
        let found = taint("dedicated", "db", "NoSchedule");
        assert!(tolerates(&toleration("dedicated", "Equal", "db", "NoSchedule"), &found));
        assert!(tolerates(&toleration("dedicated", "", "db", ""), &found));
        assert!(tolerates(&toleration("", "Exists", "", ""), &found));
        assert!(!tolerates(&toleration("dedicated", "Equal", "web", ""), &found));
        assert!(!tolerates(&toleration("dedicated", "Exists", "", "NoExecute"), &found));
        assert!(!tolerates(&toleration("", "Equal", "", ""), &found));
    }

    #[test]
    fn images_get_the_default_tag() {
        assert_eq!(normalized_image("a/b"), "a/b:latest");
        assert_eq!(normalized_image("r:5000/b"), "r:5000/b:latest");
        assert_eq!(normalized_image("b:1"), "b:1");
        assert_eq!(normalized_image("b@sha256:0"), "b@sha256:0");
    }
}
