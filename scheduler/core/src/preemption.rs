//! DefaultPreemption: when no node takes a pod, which pods of lower priority would have to leave where.
//!
//! For each node whose refusal removing pods could lift: take all lower pods away, see whether the pod fits, then spare
//! as many of them as possible, those protected by a budget and the more important first. Among the nodes left:
//! fewest broken budgets, lowest highest victim, lowest sum, fewest victims, youngest highest victim, first name.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::pod::PodInfo;
use crate::schedule::{Cycle, NodeVerdict, histogram};
use crate::snapshot::{Slot, Snapshot};

/// At most this many candidate nodes are worked out, unless a tenth of the nodes is more.
const MOST_CANDIDATES: usize = 100;

/// A pod that has to leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Victim {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub priority: i32,
}

/// Make room here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preemption {
    pub node: String,
    pub victims: Vec<Victim>,
    pub broken_budgets: usize,
}

const PREFIX: &str = "preemption:";
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";

/// The sentence when no node's refusal can be lifted.
pub(crate) fn not_helpful_anywhere(nodes: usize, may_preempt: bool) -> String {
    if !may_preempt {
        return format!("{PREFIX} not eligible due to preemptionPolicy=Never.");
    }
    format!("{PREFIX} 0/{nodes} nodes are available: {nodes} {NOT_HELPFUL}.")
}

/// Looks for room; the sentence says why not.
pub(crate) fn preempt(
    pod: &PodInfo,
    snapshot: &Snapshot,
    verdicts: &[NodeVerdict],
) -> (Option<Preemption>, String) {
    if let Some(refusal) = not_eligible(pod, snapshot) {
        return (None, format!("{PREFIX} {refusal}."));
    }
    // The clone is only worth its price where somebody could leave.
    let anyone = |slot: Slot| snapshot.pods[slot].values().any(|other| other.priority < pod.priority);
    let mut scratch = verdicts
        .iter()
        .any(|verdict| verdict.rejection.resolvable && snapshot.slot(&verdict.node).is_some_and(anyone))
        .then(|| snapshot.clone());
    let most = MOST_CANDIDATES.max(verdicts.len() / 10);
    let mut candidates = Vec::new();
    let mut reasons: Vec<String> = Vec::new();
    for verdict in verdicts {
        let slot = snapshot.slot(&verdict.node).filter(|_| verdict.rejection.resolvable);
        let Some(slot) = slot else {
            reasons.push(NOT_HELPFUL.into());
            continue;
        };
        if candidates.len() >= most {
            break;
        }
        match scratch.as_mut().filter(|_| anyone(slot)).map(|scratch| candidate(pod, scratch, slot)) {
            None => reasons.push("No preemption victims found for incoming pod".into()),
            Some(Ok(candidate)) => candidates.push(candidate),
            Some(Err(refused)) => reasons.extend(refused),
        }
    }
    let best = candidates.into_iter().min_by_key(rank);
    match best {
        Some((preemption, _)) => (Some(preemption), String::new()),
        None => {
            let counted = histogram(reasons.iter().map(String::as_str));
            (None, format!("{PREFIX} 0/{} nodes are available: {counted}.", snapshot.nodes().len()))
        }
    }
}

/// A pod that may not preempt, or whose earlier victims are still leaving, waits.
fn not_eligible(pod: &PodInfo, snapshot: &Snapshot) -> Option<&'static str> {
    if !pod.may_preempt {
        return Some("not eligible due to preemptionPolicy=Never");
    }
    let slot = snapshot.slot(&pod.nominated_node)?;
    let leaving =
        snapshot.pods[slot].values().any(|other| other.terminating && other.priority < pod.priority);
    leaving.then_some("not eligible due to a terminating pod on the nominated node")
}

type Candidate = (Preemption, Vec<Arc<PodInfo>>);

/// The error lists why the node refuses even without its pods of lower priority.
fn candidate(pod: &PodInfo, scratch: &mut Snapshot, slot: Slot) -> Result<Candidate, Vec<String>> {
    let lower: Vec<Arc<PodInfo>> =
        scratch.pods[slot].values().filter(|other| other.priority < pod.priority).cloned().collect();
    for other in &lower {
        scratch.remove_pod(&other.uid);
    }
    let refused = Cycle::begin(pod, scratch).and_then(|cycle| cycle.filter(slot)).err();
    if let Some((_, rejection)) = refused {
        lower.into_iter().for_each(|other| scratch.add_pod(other));
        return Err(rejection.reasons);
    }
    let (mut protected, mut others) = split_by_budget(&lower, scratch);
    let importance = |pod: &Arc<PodInfo>| (Reverse(pod.priority), pod.started, pod.uid.clone());
    protected.sort_by_key(importance);
    others.sort_by_key(importance);
    let mut victims = Vec::new();
    let mut broken_budgets = 0;
    let count = protected.len();
    for (index, other) in protected.into_iter().chain(others).enumerate() {
        scratch.add_pod(other.clone());
        if !fits(pod, scratch, slot) {
            scratch.remove_pod(&other.uid);
            broken_budgets += usize::from(index < count);
            victims.push(other);
        }
    }
    for victim in &victims {
        scratch.add_pod(victim.clone());
    }
    victims.sort_by_key(importance);
    let listed = victims
        .iter()
        .map(|victim| Victim {
            uid: victim.uid.clone(),
            namespace: victim.namespace.clone(),
            name: victim.name.clone(),
            priority: victim.priority,
        })
        .collect();
    Ok((Preemption { node: scratch.name[slot].clone(), victims: listed, broken_budgets }, victims))
}

fn fits(pod: &PodInfo, snapshot: &Snapshot, slot: Slot) -> bool {
    Cycle::begin(pod, snapshot).is_ok_and(|cycle| cycle.filter(slot).is_ok())
}

/// Pods whose leaving breaks a budget, and the others.
fn split_by_budget(pods: &[Arc<PodInfo>], snapshot: &Snapshot) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut allowed: BTreeMap<&(String, String), i32> =
        snapshot.budgets.iter().map(|(key, budget)| (key, budget.allowed)).collect();
    pods.iter().cloned().partition(|pod| {
        let mut breaks = false;
        for (key, budget) in &snapshot.budgets {
            let covers = budget.namespace == pod.namespace
                && !budget.selector.is_everything()
                && budget.selector.matches(&pod.labels)
                && !budget.disrupted.contains(&pod.name);
            if covers && let Some(left) = allowed.get_mut(key) {
                *left -= 1;
                breaks |= *left < 0;
            }
        }
        breaks
    })
}

type Rank = (usize, i32, i64, usize, Reverse<i64>, String);

fn rank((preemption, victims): &Candidate) -> Rank {
    let highest = victims.iter().map(|victim| victim.priority).max().unwrap_or(i32::MIN);
    // Shifted so that more victims never sum to less, as negative priorities would.
    let sum = victims.iter().map(|victim| i64::from(victim.priority) + i64::from(i32::MAX) + 1).sum();
    let oldest =
        victims.iter().filter(|victim| victim.priority == highest).map(|victim| victim.started).min();
    (
        preemption.broken_budgets,
        highest,
        sum,
        victims.len(),
        Reverse(oldest.unwrap_or(0)),
        preemption.node.clone(),
    )
}
