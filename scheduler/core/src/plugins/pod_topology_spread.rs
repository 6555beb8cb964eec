//! Spreads pods over places (hosts, zones): hard constraints filter by skew, soft ones score.
//!
//! Counts run over the pods of the pod's own namespace only, once per cycle.

use std::collections::{BTreeMap, BTreeSet};

use crate::events::ClusterEvent;
use crate::framework::{CycleState, Hint, MAX_SCORE, Plugin, PreFilter, Rejection, Verdict};
use crate::plugins::default_spread::{self, HOSTNAME};
use crate::plugins::taint_toleration::untolerated;
use crate::pod::{PodInfo, SpreadConstraint, WhenUnsatisfiable};
use crate::snapshot::{Slot, Snapshot};

const REASON: &str = "node(s) didn't match pod topology spread constraints";

pub struct PodTopologySpread;

/// Per hard constraint: place → matching pods.
struct Hard(Vec<BTreeMap<String, i64>>);

/// Per soft constraint: the constraint, its weight and place → matching pods.
struct Soft {
    constraints: Vec<(SpreadConstraint, f64, BTreeMap<String, i64>)>,
    ignored: BTreeSet<Slot>,
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn pre_filter(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilter {
        let hard: Vec<&SpreadConstraint> = hard(pod).collect();
        if hard.is_empty() {
            return PreFilter::Skip;
        }
        let mut counts: Vec<BTreeMap<String, i64>> = vec![BTreeMap::new(); hard.len()];
        for slot in snapshot.nodes().iter().copied().filter(|slot| has_all_keys(&hard, snapshot, *slot)) {
            for (constraint, counts) in hard.iter().zip(&mut counts) {
                if counts_here(constraint, pod, snapshot, slot)
                    && let Some(value) = snapshot.label(slot, &constraint.topology_key)
                {
                    counts.entry(value.to_string()).or_default();
                }
            }
        }
        for (other, slot) in snapshot.in_namespace(&pod.namespace) {
            if other.terminating || other.uid == pod.uid || !has_all_keys(&hard, snapshot, slot) {
                continue;
            }
            for (constraint, counts) in hard.iter().zip(&mut counts) {
                if constraint.selector.matches(&other.labels)
                    && counts_here(constraint, pod, snapshot, slot)
                    && let Some(count) =
                        snapshot.label(slot, &constraint.topology_key).and_then(|value| counts.get_mut(value))
                {
                    *count += 1;
                }
            }
        }
        cycle.put(Hard(counts));
        PreFilter::Continue
    }

    fn filter(&self, cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> Verdict {
        let Some(Hard(counts)) = cycle.get::<Hard>() else { return Ok(()) };
        for (constraint, counts) in hard(pod).zip(counts) {
            let key = &constraint.topology_key;
            let Some(value) = snapshot.label(node, key) else {
                return Err(Rejection::unresolvable(format!("{REASON} (missing required label)"))
                    .detail(format!("no label {key}")));
            };
            let fewest = if counts.len() < constraint.min_domains.max(1) as usize {
                0
            } else {
                counts.values().copied().min().unwrap_or(0)
            };
            let here = counts.get(value).copied().unwrap_or(0);
            let skew = here + i64::from(constraint.selector.matches(&pod.labels)) - fewest;
            if skew > i64::from(constraint.max_skew) {
                return Err(Rejection::resolvable(REASON)
                    .detail(format!("{key}={value}: skew {skew} > maxSkew {}", constraint.max_skew)));
            }
        }
        Ok(())
    }

    fn pre_score(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot, nodes: &[Slot]) -> bool {
        let defaults = pod.spread.is_empty();
        let constraints: Vec<SpreadConstraint> = if defaults {
            default_spread::constraints(pod, snapshot)
        } else {
            pod.spread
                .iter()
                .filter(|found| found.when == WhenUnsatisfiable::ScheduleAnyway)
                .cloned()
                .collect()
        };
        if constraints.is_empty() {
            return false;
        }
        let all: Vec<&SpreadConstraint> = constraints.iter().collect();
        let ignored: BTreeSet<Slot> =
            nodes.iter().copied().filter(|slot| !defaults && !has_all_keys(&all, snapshot, *slot)).collect();
        let mut counts = Vec::new();
        for constraint in &constraints {
            counts.push(count_places(constraint, snapshot, nodes, &ignored));
        }
        for (other, slot) in snapshot.in_namespace(&pod.namespace) {
            if other.terminating || !defaults && !has_all_keys(&all, snapshot, slot) {
                continue;
            }
            for (constraint, counts) in constraints.iter().zip(&mut counts) {
                if constraint.selector.matches(&other.labels)
                    && counts_here(constraint, pod, snapshot, slot)
                    && let Some(count) =
                        snapshot.label(slot, &constraint.topology_key).and_then(|value| counts.get_mut(value))
                {
                    *count += 1;
                }
            }
        }
        let weighed = constraints.into_iter().zip(counts).map(|(constraint, counts)| {
            let places =
                if constraint.topology_key == HOSTNAME { nodes.len() - ignored.len() } else { counts.len() };
            (constraint, (places as f64 + 2.0).ln(), counts)
        });
        let constraints = weighed.collect();
        cycle.put(Soft { constraints, ignored });
        true
    }

    fn score(&self, cycle: &CycleState, _pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> i64 {
        let Some(soft) = cycle.get::<Soft>() else { return 0 };
        if soft.ignored.contains(&node) {
            return 0;
        }
        let mut score = 0.0;
        for (constraint, weight, counts) in &soft.constraints {
            if let Some(value) = snapshot.label(node, &constraint.topology_key) {
                let count = counts.get(value).copied().unwrap_or(0);
                score += count as f64 * weight + f64::from(constraint.max_skew - 1);
            }
        }
        score.round() as i64
    }

    fn normalize(&self, cycle: &CycleState, _snapshot: &Snapshot, nodes: &[Slot], scores: &mut [i64]) {
        let Some(soft) = cycle.get::<Soft>() else { return };
        let counted = || {
            nodes
                .iter()
                .zip(scores.iter())
                .filter(|(node, _)| !soft.ignored.contains(node))
                .map(|(_, score)| *score)
        };
        let (least, most) = (counted().min().unwrap_or(0), counted().max().unwrap_or(0));
        for (node, score) in nodes.iter().zip(scores.iter_mut()) {
            *score = match (soft.ignored.contains(node), most) {
                (true, _) => 0,
                (_, 0) => MAX_SCORE,
                _ => MAX_SCORE * (most + least - *score) / most,
            };
        }
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        let concerns = |other: &PodInfo| {
            other.namespace == pod.namespace
                && hard(pod).any(|constraint| constraint.selector.matches(&other.labels))
        };
        let helps = match event {
            ClusterEvent::Node { change, .. } => change.added || change.labels || change.taints,
            ClusterEvent::PodPlaced(other) | ClusterEvent::PodLeft(other) => concerns(other),
            _ => false,
        };
        if helps { Hint::Queue } else { Hint::Skip }
    }
}

fn hard(pod: &PodInfo) -> impl Iterator<Item = &SpreadConstraint> {
    pod.spread.iter().filter(|found| found.when == WhenUnsatisfiable::DoNotSchedule)
}

fn has_all_keys(constraints: &[&SpreadConstraint], snapshot: &Snapshot, slot: Slot) -> bool {
    constraints.iter().all(|constraint| snapshot.label(slot, &constraint.topology_key).is_some())
}

/// The places of the nodes that may be chosen, each with no pod yet.
fn count_places(
    constraint: &SpreadConstraint,
    snapshot: &Snapshot,
    nodes: &[Slot],
    ignored: &BTreeSet<Slot>,
) -> BTreeMap<String, i64> {
    nodes
        .iter()
        .filter(|slot| !ignored.contains(slot))
        .filter_map(|slot| snapshot.label(*slot, &constraint.topology_key))
        .map(|value| (value.to_string(), 0))
        .collect()
}

/// The node inclusion policies.
fn counts_here(constraint: &SpreadConstraint, pod: &PodInfo, snapshot: &Snapshot, slot: Slot) -> bool {
    (!constraint.honor_affinity || pod.matches_node(&snapshot.name[slot], &snapshot.labels[slot]))
        && (!constraint.honor_taints || untolerated(pod, &snapshot.taints[slot]).is_none())
}
