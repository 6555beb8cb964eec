//! One scheduling cycle: which node, or why none.
//!
//! A pure function of pod, snapshot and options: the same arguments give the same decision, whatever order the
//! objects arrived in. What-if questions call it on a changed clone of the snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use crate::framework::{CycleState, Plugin, PreBind, PreFilter, Rejection, Verdict};
use crate::plugins::PLUGINS;
use crate::pod::PodInfo;
use crate::preemption::{self, Preemption};
use crate::snapshot::{Slot, Snapshot};

/// Below this many nodes all are looked at.
const MIN_FEASIBLE: usize = 100;

/// What the caller decides.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Breaks ties among nodes with the best score.
    pub seed: u64,
    /// Where in the list of nodes to begin; advance it by `Decision::evaluated` for fairness.
    pub start: usize,
    /// How many per cent of the nodes to look for; 0 = upstream's adaptive rule.
    pub percentage_of_nodes: u8,
}

/// A node's refusal.
#[derive(Debug, Clone, Serialize)]
pub struct NodeVerdict {
    pub node: String,
    pub plugin: &'static str,
    #[serde(flatten)]
    pub rejection: Rejection,
}

/// A node that passed, with its weighed score per plugin.
#[derive(Debug, Clone, Serialize)]
pub struct NodeScore {
    pub node: String,
    pub total: i64,
    pub plugins: Vec<(&'static str, i64)>,
}

/// The chosen node.
#[derive(Debug, Clone, Serialize)]
pub struct Placement {
    pub node: String,
    /// To be written, in order, before the pod is bound.
    pub pre_bind: Vec<PreBind>,
}

/// The outcome of a cycle, with its reasons.
#[derive(Debug, Clone, Serialize)]
pub struct Decision {
    pub placement: Option<Placement>,
    /// Present nodes.
    pub nodes: usize,
    /// Nodes looked at.
    pub evaluated: usize,
    pub verdicts: Vec<NodeVerdict>,
    pub scores: Vec<NodeScore>,
    /// Set when a plugin refused before looking at nodes.
    pub refused: Option<(&'static str, Rejection)>,
    /// Who refused: whose hints decide when to try again.
    pub plugins: BTreeSet<&'static str>,
    pub preemption: Option<Preemption>,
    preemption_message: String,
}

impl Decision {
    /// Upstream's sentence for the event and the condition.
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".into();
        }
        let mut message = summary(self.nodes, self.refused.as_ref(), &self.verdicts);
        if !self.preemption_message.is_empty() {
            message.push(' ');
            message.push_str(&self.preemption_message);
        }
        message
    }
}

/// "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s)."
fn summary(nodes: usize, refused: Option<&(&'static str, Rejection)>, verdicts: &[NodeVerdict]) -> String {
    let mut message = format!("0/{nodes} nodes are available:");
    if let Some((_, rejection)) = refused {
        message.push_str(&format!(" {}.", rejection.reasons.join(", ")));
        return message;
    }
    let reasons = verdicts.iter().flat_map(|verdict| verdict.rejection.reasons.iter().map(String::as_str));
    let counted = histogram(reasons);
    if !counted.is_empty() {
        message.push_str(&format!(" {counted}."));
    }
    message
}

/// Counts reasons: "2 a, 3 b", in the order of the texts with their counts.
pub(crate) fn histogram<'a>(reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut texts: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    texts.sort();
    texts.join(", ")
}

/// Decides where a pod goes.
pub fn schedule(pod: &PodInfo, snapshot: &Snapshot, options: &Options) -> Decision {
    let mut decision = Decision {
        placement: None,
        nodes: snapshot.nodes().len(),
        evaluated: 0,
        verdicts: Vec::new(),
        scores: Vec::new(),
        refused: None,
        plugins: BTreeSet::new(),
        preemption: None,
        preemption_message: String::new(),
    };
    if decision.nodes == 0 {
        // Its hint waits for a node to be added, and for nothing else.
        decision.plugins.insert("NodeName");
        return decision;
    }
    let mut cycle = match Cycle::begin(pod, snapshot) {
        Ok(cycle) => cycle,
        Err((plugin, rejection)) => {
            decision.plugins.insert(plugin);
            decision.refused = Some((plugin, rejection));
            decision.preemption_message = preemption::not_helpful_anywhere(decision.nodes, pod.may_preempt);
            return decision;
        }
    };
    let feasible = find_feasible(&cycle, options, &mut decision);
    if feasible.is_empty() {
        let outcome = preemption::preempt(pod, snapshot, &decision.verdicts);
        decision.preemption = outcome.0;
        decision.preemption_message = outcome.1;
        return decision;
    }
    decision.scores = cycle.score(&feasible);
    let node = best(&decision.scores, &feasible, snapshot, options.seed);
    decision.placement =
        Some(Placement { node: snapshot.name[node].clone(), pre_bind: cycle.pre_bind(node) });
    decision
}

/// One cycle's state: the plugins that have something to say, and what they remember.
pub(crate) struct Cycle<'a> {
    pod: &'a PodInfo,
    snapshot: &'a Snapshot,
    state: CycleState,
    filters: Vec<&'static dyn Plugin>,
    only: Option<BTreeSet<String>>,
    narrowed_by: &'static str,
}

impl<'a> Cycle<'a> {
    /// Runs PreFilter.
    pub(crate) fn begin(
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Result<Cycle<'a>, (&'static str, Rejection)> {
        let mut cycle = Cycle {
            pod,
            snapshot,
            state: CycleState::default(),
            filters: Vec::new(),
            only: None,
            narrowed_by: "",
        };
        for plugin in PLUGINS.iter().copied() {
            match plugin.pre_filter(&mut cycle.state, pod, snapshot) {
                PreFilter::Skip => continue,
                PreFilter::Continue => {}
                PreFilter::Only(nodes) => {
                    cycle.narrowed_by = plugin.name();
                    cycle.only = Some(match cycle.only {
                        None => nodes,
                        Some(before) => before.intersection(&nodes).cloned().collect(),
                    });
                }
                PreFilter::Reject(rejection) => return Err((plugin.name(), rejection)),
            }
            cycle.filters.push(plugin);
        }
        Ok(cycle)
    }

    /// Runs the filters on one node.
    pub(crate) fn filter(&self, node: Slot) -> Result<(), (&'static str, Rejection)> {
        if self.only.as_ref().is_some_and(|only| !only.contains(&self.snapshot.name[node])) {
            return Err((
                self.narrowed_by,
                Rejection::unresolvable("node(s) didn't satisfy plugin(s) [NodeAffinity]"),
            ));
        }
        for plugin in &self.filters {
            let verdict: Verdict = plugin.filter(&self.state, self.pod, self.snapshot, node);
            verdict.map_err(|rejection| (plugin.name(), rejection))?;
        }
        Ok(())
    }

    fn score(&mut self, nodes: &[Slot]) -> Vec<NodeScore> {
        let name = |slot: &Slot| self.snapshot.name[*slot].clone();
        let mut found: Vec<NodeScore> =
            nodes.iter().map(|slot| NodeScore { node: name(slot), total: 0, plugins: Vec::new() }).collect();
        if nodes.len() == 1 {
            return found;
        }
        for plugin in PLUGINS.iter().filter(|plugin| plugin.weight() > 0) {
            if !plugin.pre_score(&mut self.state, self.pod, self.snapshot, nodes) {
                continue;
            }
            let mut scores: Vec<i64> =
                nodes.iter().map(|slot| plugin.score(&self.state, self.pod, self.snapshot, *slot)).collect();
            plugin.normalize(&self.state, self.snapshot, nodes, &mut scores);
            for (found, score) in found.iter_mut().zip(scores) {
                let weighed = score.saturating_mul(plugin.weight());
                found.total = found.total.saturating_add(weighed);
                found.plugins.push((plugin.name(), weighed));
            }
        }
        found
    }

    fn pre_bind(&self, node: Slot) -> Vec<PreBind> {
        let plugins = PLUGINS.iter();
        plugins.flat_map(|plugin| plugin.pre_bind(&self.state, self.pod, self.snapshot, node)).collect()
    }
}

/// The nodes that can take the pod: the nominated one alone if it can, else as many as are wanted.
fn find_feasible(cycle: &Cycle, options: &Options, decision: &mut Decision) -> Vec<Slot> {
    let snapshot = cycle.snapshot;
    let nominated = snapshot.slot(&cycle.pod.nominated_node);
    if let Some(slot) = nominated
        && cycle.filter(slot).is_ok()
        && room_beside_nominated(cycle.pod, snapshot, slot).is_ok()
    {
        decision.evaluated = 1;
        return vec![slot];
    }
    let nodes = snapshot.nodes();
    let wanted = nodes_to_find(nodes.len(), options.percentage_of_nodes);
    let mut feasible = Vec::new();
    for offset in 0..nodes.len() {
        if feasible.len() >= wanted {
            break;
        }
        let slot = nodes[(options.start + offset) % nodes.len()];
        decision.evaluated += 1;
        match cycle.filter(slot).and_then(|()| room_beside_nominated(cycle.pod, snapshot, slot)) {
            Ok(()) => feasible.push(slot),
            Err((plugin, rejection)) => {
                decision.plugins.insert(plugin);
                decision.verdicts.push(NodeVerdict { node: snapshot.name[slot].clone(), plugin, rejection });
            }
        }
    }
    feasible
}

/// The node must also do when the pods nominated to it, of at least this priority, are already there.
fn room_beside_nominated(
    pod: &PodInfo,
    snapshot: &Snapshot,
    node: Slot,
) -> Result<(), (&'static str, Rejection)> {
    let waiting: Vec<Arc<PodInfo>> = snapshot
        .nominated
        .values()
        .filter(|(other, name)| {
            *name == snapshot.name[node] && other.uid != pod.uid && other.priority >= pod.priority
        })
        .map(|(other, name)| other.on(name))
        .collect();
    if waiting.is_empty() {
        return Ok(());
    }
    let mut fuller = snapshot.clone();
    waiting.into_iter().for_each(|other| fuller.add_pod(other));
    Cycle::begin(pod, &fuller)?.filter(node)
}

/// How many feasible nodes are enough. Upstream's rule: all below 100 nodes, else 50 % falling to 5 %.
fn nodes_to_find(nodes: usize, percentage: u8) -> usize {
    if nodes < MIN_FEASIBLE || percentage >= 100 {
        return nodes;
    }
    let percentage = match usize::from(percentage) {
        0 => 50usize.saturating_sub(nodes / 125).max(5),
        chosen => chosen,
    };
    (nodes * percentage / 100).max(MIN_FEASIBLE)
}

/// The node of the best score; among equals the one whose name the seed favours.
fn best(scores: &[NodeScore], nodes: &[Slot], snapshot: &Snapshot, seed: u64) -> Slot {
    let rank = |index: &usize| {
        let name = &snapshot.name[nodes[*index]];
        (scores[*index].total, mix(seed, name), std::cmp::Reverse(name.as_str()))
    };
    #[cfg(feature = "planted")]
    if keelson_plant::is(34) {
        use std::hash::BuildHasher;
        let order = std::hash::RandomState::new();
        let rank = |index: &usize| (scores[*index].total, order.hash_one(&snapshot.name[nodes[*index]]));
        return nodes[(0..nodes.len()).max_by_key(rank).unwrap_or(0)];
    }
    let index = (0..nodes.len()).max_by(|one, other| rank(one).cmp(&rank(other))).unwrap_or(0);
    nodes[index]
}

/// A small mixing function (FNV-1a with a final shuffle): enough to spread ties evenly.
fn mix(seed: u64, name: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}
