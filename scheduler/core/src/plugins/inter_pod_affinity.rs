//! Pod affinity and anti-affinity, the incoming pod's and (for anti-affinity and scores) that of pods already there.
//!
//! Required terms of existing pods come from an index of pods that have any; terms of the incoming pod look only at
//! the namespaces they cover.

use std::collections::BTreeMap;

use crate::events::ClusterEvent;
use crate::framework::{CycleState, Hint, MAX_SCORE, Plugin, PreFilter, Rejection, Verdict};
use crate::pod::{AffinityTerm, PodInfo};
use crate::snapshot::{Slot, Snapshot};

/// What an existing pod's required affinity to the incoming pod is worth.
const HARD_AFFINITY_WEIGHT: i64 = 1;

pub struct InterPodAffinity;

/// Label key and value → how many.
type Places = BTreeMap<(String, String), i64>;

struct Found {
    /// Places where an existing pod does not want the incoming one.
    unwelcome: Places,
    /// Places of pods that satisfy all required affinity terms.
    wanted: Places,
    /// Places of pods that a required anti-affinity term forbids.
    avoided: Places,
}

struct Preferred(Places);

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn pre_filter(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilter {
        let own = snapshot.namespaces.get(&pod.namespace);
        let mut found = Found { unwelcome: Places::new(), wanted: Places::new(), avoided: Places::new() };
        for (other, slot) in snapshot.with_anti_affinity().filter(|(other, _)| other.uid != pod.uid) {
            for term in other.anti_affinity.iter().filter(|term| term.matches(pod, own)) {
                add(&mut found.unwelcome, snapshot, slot, &term.topology_key, 1);
            }
        }
        for_each_covered(pod, snapshot, &[&pod.affinity, &pod.anti_affinity], |other, slot, labels| {
            if !pod.affinity.is_empty() && pod.affinity.iter().all(|term| term.matches(other, labels)) {
                for term in &pod.affinity {
                    add(&mut found.wanted, snapshot, slot, &term.topology_key, 1);
                }
            }
            for term in pod.anti_affinity.iter().filter(|term| term.matches(other, labels)) {
                add(&mut found.avoided, snapshot, slot, &term.topology_key, 1);
            }
        });
        if found.unwelcome.is_empty() && pod.affinity.is_empty() && pod.anti_affinity.is_empty() {
            return PreFilter::Skip;
        }
        cycle.put(found);
        PreFilter::Continue
    }

    fn filter(&self, cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> Verdict {
        let Some(found) = cycle.get::<Found>() else { return Ok(()) };
        affinity(found, pod, snapshot, node)?;
        for term in &pod.anti_affinity {
            if let Some(value) = snapshot.label(node, &term.topology_key)
                && found.avoided.contains_key(&(term.topology_key.clone(), value.to_string()))
            {
                return Err(Rejection::resolvable("node(s) didn't match pod anti-affinity rules")
                    .detail(format!("a forbidden pod runs in {}={value}", term.topology_key)));
            }
        }
        for (key, value) in found.unwelcome.keys() {
            if snapshot.label(node, key) == Some(value) {
                return Err(Rejection::resolvable(
                    "node(s) didn't satisfy existing pods anti-affinity rules",
                )
                .detail(format!("a pod in {key}={value} does not want this one")));
            }
        }
        Ok(())
    }

    fn pre_score(&self, cycle: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot, _: &[Slot]) -> bool {
        let mut places = Places::new();
        let own = snapshot.namespaces.get(&pod.namespace);
        for (other, slot) in snapshot.with_affinity().filter(|(other, _)| other.uid != pod.uid) {
            for term in other.affinity.iter().filter(|term| term.matches(pod, own)) {
                add(&mut places, snapshot, slot, &term.topology_key, HARD_AFFINITY_WEIGHT);
            }
            for (weight, term) in other.preferred_affinity.iter().filter(|(_, term)| term.matches(pod, own)) {
                add(&mut places, snapshot, slot, &term.topology_key, *weight);
            }
            for (weight, term) in
                other.preferred_anti_affinity.iter().filter(|(_, term)| term.matches(pod, own))
            {
                add(&mut places, snapshot, slot, &term.topology_key, -weight);
            }
        }
        let terms =
            |weighted: &[(i64, AffinityTerm)]| weighted.iter().map(|(_, term)| term.clone()).collect();
        let (with, without): (Vec<_>, Vec<_>) =
            (terms(&pod.preferred_affinity), terms(&pod.preferred_anti_affinity));
        for_each_covered(pod, snapshot, &[&with, &without], |other, slot, labels| {
            for (sign, weighted) in [(1, &pod.preferred_affinity), (-1, &pod.preferred_anti_affinity)] {
                for (weight, term) in weighted.iter().filter(|(_, term)| term.matches(other, labels)) {
                    add(&mut places, snapshot, slot, &term.topology_key, sign * weight);
                }
            }
        });
        let scores = !places.is_empty();
        cycle.put(Preferred(places));
        scores
    }

    fn score(&self, cycle: &CycleState, _pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> i64 {
        let Some(Preferred(places)) = cycle.get::<Preferred>() else { return 0 };
        places
            .iter()
            .filter(|((key, value), _)| snapshot.label(node, key) == Some(value))
            .map(|(_, weight)| weight)
            .sum()
    }

    fn normalize(&self, _cycle: &CycleState, _snapshot: &Snapshot, _nodes: &[Slot], scores: &mut [i64]) {
        let (least, most) =
            (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
        for score in scores {
            *score = if most == least { 0 } else { MAX_SCORE * (*score - least) / (most - least) };
        }
    }

    fn hint(&self, _pod: &PodInfo, event: &ClusterEvent) -> Hint {
        match event {
            ClusterEvent::Node { change, .. } if change.added || change.labels => Hint::Queue,
            ClusterEvent::PodPlaced(_) | ClusterEvent::PodLeft(_) | ClusterEvent::Grouping => Hint::Queue,
            _ => Hint::Skip,
        }
    }
}

fn add(places: &mut Places, snapshot: &Snapshot, slot: Slot, key: &str, weight: i64) {
    if let Some(value) = snapshot.label(slot, key) {
        *places.entry((key.to_string(), value.to_string())).or_default() += weight;
    }
}

/// Calls with each pod on a node in a namespace that any of the terms covers, and that namespace's labels.
fn for_each_covered(
    pod: &PodInfo,
    snapshot: &Snapshot,
    terms: &[&Vec<AffinityTerm>],
    mut call: impl FnMut(&PodInfo, Slot, Option<&crate::selector::Labels>),
) {
    if terms.iter().all(|terms| terms.is_empty()) {
        return;
    }
    for namespace in snapshot.occupied_namespaces() {
        let labels = snapshot.namespaces.get(namespace);
        if !terms.iter().any(|terms| terms.iter().any(|term| term.covers(namespace, labels))) {
            continue;
        }
        for (other, slot) in snapshot.in_namespace(namespace).filter(|(other, _)| other.uid != pod.uid) {
            call(other, slot, labels);
        }
    }
}

/// The node is in a place with a wanted pod, for each term; the first pod of a group that wants itself may start it.
fn affinity(found: &Found, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> Verdict {
    let reason = "node(s) didn't match pod affinity rules";
    let mut all = true;
    for term in &pod.affinity {
        let Some(value) = snapshot.label(node, &term.topology_key) else {
            return Err(Rejection::unresolvable(reason).detail(format!("no label {}", term.topology_key)));
        };
        all &= found.wanted.contains_key(&(term.topology_key.clone(), value.to_string()));
    }
    let own = snapshot.namespaces.get(&pod.namespace);
    let starts = || found.wanted.is_empty() && pod.affinity.iter().all(|term| term.matches(pod, own));
    if all || starts() {
        return Ok(());
    }
    Err(Rejection::unresolvable(reason).detail("no wanted pod runs in this place"))
}
