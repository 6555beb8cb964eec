//! nodeSelector and node affinity: the required part filters, the preferred part scores.

use std::collections::BTreeSet;

use crate::events::ClusterEvent;
use crate::framework::{CycleState, Hint, Plugin, PreFilter, Rejection, Verdict, normalize_to_max};
use crate::pod::PodInfo;
use crate::snapshot::{Slot, Snapshot};

const REASON: &str = "node(s) didn't match Pod's node affinity/selector";

pub struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    /// When every term names nodes, only those are looked at (daemon pods).
    fn pre_filter(&self, _cycle: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        let Some(terms) = &pod.node_affinity else {
            return if pod.node_selector.is_empty() { PreFilter::Skip } else { PreFilter::Continue };
        };
        let mut named = BTreeSet::new();
        for term in &terms.0 {
            match term.named_nodes() {
                Some(nodes) => named.extend(nodes.iter().cloned()),
                None => return PreFilter::Continue,
            }
        }
        match (terms.0.is_empty(), named.is_empty()) {
            (true, _) => PreFilter::Continue,
            (_, true) => PreFilter::Reject(Rejection::unresolvable("pod affinity terms conflict")),
            _ => PreFilter::Only(named),
        }
    }

    fn filter(&self, _cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> Verdict {
        if pod.matches_node(&snapshot.name[node], &snapshot.labels[node]) {
            return Ok(());
        }
        let missing = pod
            .node_selector
            .iter()
            .find(|(key, value)| snapshot.labels[node].get(*key) != Some(value))
            .map(|(key, value)| format!("nodeSelector {key}={value}"))
            .unwrap_or_else(|| "required node affinity".into());
        Err(Rejection::unresolvable(REASON).detail(missing))
    }

    fn pre_score(&self, _: &mut CycleState, pod: &PodInfo, _: &Snapshot, _: &[Slot]) -> bool {
        !pod.preferred_nodes.is_empty()
    }

    fn score(&self, _cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> i64 {
        pod.preferred_nodes
            .iter()
            .filter(|(_, term)| term.matches(&snapshot.name[node], &snapshot.labels[node]))
            .map(|(weight, _)| weight)
            .sum()
    }

    fn normalize(&self, _cycle: &CycleState, _snapshot: &Snapshot, _nodes: &[Slot], scores: &mut [i64]) {
        normalize_to_max(scores, false);
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        match event {
            ClusterEvent::Node { change, labels } if change.added || change.labels => {
                let fields = pod
                    .node_affinity
                    .as_ref()
                    .is_some_and(|terms| terms.0.iter().any(|term| term.named_nodes().is_some()));
                if fields || pod.matches_node("", labels) { Hint::Queue } else { Hint::Skip }
            }
            _ => Hint::Skip,
        }
    }
}
