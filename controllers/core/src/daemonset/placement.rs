//! Whether a node takes a DaemonSet's pod, and the pod that is made for one node.

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
    Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::Object;
use crate::history::REVISION_LABEL;
use crate::pods;
use crate::taint_eviction::tolerates;

const GENERATION_LABEL: &str = "pod-template-generation";
const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";

/// Taints that a daemon's pod outlives: it may be what heals the node.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// Whether a pod should be made for a node, and whether one that is there may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    pub run: bool,
    pub stay: bool,
}

fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let network = spec.host_network == Some(true);
    for (key, effect) in TOLERATED.into_iter().chain(network.then_some(NETWORK)) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Default::default()
        };
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    all
}

pub fn fit(spec: &DaemonSetSpec, node: &Node) -> Fit {
    let Some(pod) = &spec.template.spec else { return Fit { run: false, stay: false } };
    let named = pod.node_name.as_deref().is_none_or(|name| name.is_empty() || name == node.name());
    if !named || !selected(pod, node) {
        return Fit { run: false, stay: false };
    }
    let tolerations = tolerations(pod);
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    let untolerated: Vec<&Taint> = taints
        .into_iter()
        .flatten()
        .filter(|taint| {
            taint.effect != "PreferNoSchedule" && !tolerations.iter().any(|t| tolerates(t, taint))
        })
        .collect();
    Fit { run: untolerated.is_empty(), stay: !untolerated.iter().any(|t| t.effect == "NoExecute") }
}

/// Node selector and required node affinity.
fn selected(pod: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let plain = pod.node_selector.as_ref().is_none_or(|s| crate::labels::contains(labels, s));
    let affinity = pod.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    plain && required.is_none_or(|s| s.node_selector_terms.iter().any(|term| term_matches(term, node)))
}

fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let by_label = |r: &NodeSelectorRequirement| {
        requirement(r, node.metadata.labels.as_ref().and_then(|l| l.get(&r.key)).map(String::as_str))
    };
    let by_field =
        |r: &NodeSelectorRequirement| requirement(r, (r.key == "metadata.name").then(|| node.name()));
    let (labels, fields) = (term.match_expressions.as_ref(), term.match_fields.as_ref());
    let empty = labels.is_none_or(Vec::is_empty) && fields.is_none_or(Vec::is_empty);
    !empty && labels.into_iter().flatten().all(by_label) && fields.into_iter().flatten().all(by_field)
}

fn requirement(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = r.values.as_deref().unwrap_or_default();
    let listed = |v: &str| values.iter().any(|x| x == v);
    let number = |v: &str| v.parse::<i64>().ok();
    let bound = || values.first().and_then(|v| number(v));
    match r.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => value.and_then(number).zip(bound()).is_some_and(|(v, b)| v > b),
        "Lt" => value.and_then(number).zip(bound()).is_some_and(|(v, b)| v < b),
        _ => false,
    }
}

/// The node a pod is on, or is meant for.
pub fn target(pod: &Pod) -> &str {
    let node = pods::node_name(pod);
    if !node.is_empty() {
        return node;
    }
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let fields = required
        .into_iter()
        .flat_map(|s| &s.node_selector_terms)
        .flat_map(|t| t.match_fields.iter().flatten());
    fields
        .filter(|r| r.key == "metadata.name" && r.operator == "In")
        .find_map(|r| r.values.as_ref()?.first().map(String::as_str))
        .unwrap_or_default()
}

/// The pod for one node. The scheduler places it; its affinity leaves no choice.
pub fn pod_for(set: &DaemonSet, spec: &DaemonSetSpec, node: &str, revision: &str) -> Pod {
    let template = spec.template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut labels = meta.labels.unwrap_or_default();
    labels.insert(REVISION_LABEL.to_owned(), revision.to_owned());
    if let Some(generation) = set.annotation(GENERATION_ANNOTATION) {
        labels.insert(GENERATION_LABEL.to_owned(), generation.to_owned());
    }
    let mut pod = template.spec.unwrap_or_default();
    pod.tolerations = Some(tolerations(&pod));
    pin(&mut pod, node);
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name())),
            namespace: Some(set.namespace().to_owned()),
            labels: Some(labels),
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![set.owner_reference()]),
            ..Default::default()
        },
        spec: Some(pod),
        status: None,
    }
}

/// Requires the node by name in every term; what else the terms ask for was checked here.
fn pin(pod: &mut PodSpec, node: &str) {
    let here = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity = pod.affinity.get_or_insert_with(Affinity::default);
    let node_affinity = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
    let term = NodeSelectorTerm { match_fields: Some(vec![here]), match_expressions: None };
    node_affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}
