//! The node has room for what the pod asks for. Scores nodes by how much cpu and memory stays free (LeastAllocated).

use std::collections::BTreeMap;

use crate::events::ClusterEvent;
use crate::framework::{CycleState, Hint, MAX_SCORE, Plugin, Rejection, Verdict};
use crate::pod::PodInfo;
use crate::resources::Resources;
use crate::snapshot::{Slot, Snapshot};

pub struct NodeResourcesFit;

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn filter(&self, _cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> Verdict {
        let short = shortages(&pod.requests, &snapshot.allocatable[node], &snapshot.requested[node]);
        if short.is_empty() {
            return Ok(());
        }
        Err(Rejection {
            reasons: short.iter().map(|found| found.reason.clone()).collect(),
            detail: short.iter().map(Shortage::to_string).collect::<Vec<_>>().join("; "),
            // Where the node's whole capacity is too small, removing pods is no help.
            resolvable: short.iter().all(|found| found.asked <= found.total),
        })
    }

    fn score(&self, _cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> i64 {
        let total = &snapshot.allocatable[node];
        let used = [
            (snapshot.scored_cpu[node].saturating_add(pod.scored.milli_cpu), total.milli_cpu),
            (snapshot.scored_memory[node].saturating_add(pod.scored.memory), total.memory),
        ];
        let scores: Vec<i64> = used
            .iter()
            .filter(|(_, total)| *total > 0)
            .map(|(used, total)| {
                let free = i128::from(*total) - i128::from(*used);
                (free.max(0) * i128::from(MAX_SCORE) / i128::from(*total)) as i64
            })
            .collect();
        if scores.is_empty() { 0 } else { scores.iter().sum::<i64>() / scores.len() as i64 }
    }

    fn hint(&self, _pod: &PodInfo, event: &ClusterEvent) -> Hint {
        match event {
            ClusterEvent::Node { change, .. } if change.added || change.allocatable => Hint::Queue,
            ClusterEvent::PodLeft(_) => Hint::Queue,
            _ => Hint::Skip,
        }
    }
}

struct Shortage {
    reason: String,
    asked: i64,
    used: i64,
    total: i64,
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = self.reason.trim_start_matches("Insufficient ");
        write!(f, "{what}: asked {}, used {}, allocatable {}", self.asked, self.used, self.total)
    }
}

/// What the node lacks. A pod that asks for nothing needs only a free pod slot.
fn shortages(asked: &Resources, total: &Resources, used: &Resources) -> Vec<Shortage> {
    let mut found = Vec::new();
    if used.pods.saturating_add(1) > total.pods {
        found.push(Shortage { reason: "Too many pods".into(), asked: 1, used: used.pods, total: total.pods });
    }
    let mut check = |name: &str, asked: i64, used: i64, total: i64| {
        if asked > 0 && asked > total.saturating_sub(used) {
            found.push(Shortage { reason: format!("Insufficient {name}"), asked, used, total });
        }
    };
    check("cpu", asked.milli_cpu, used.milli_cpu, total.milli_cpu);
    check("memory", asked.memory, used.memory, total.memory);
    check("ephemeral-storage", asked.ephemeral_storage, used.ephemeral_storage, total.ephemeral_storage);
    let of = |map: &BTreeMap<String, i64>, name: &str| map.get(name).copied().unwrap_or(0);
    for (name, amount) in &asked.scalar {
        check(name, *amount, of(&used.scalar, name), of(&total.scalar, name));
    }
    found
}

/// Whether the pod's requests fit beside what is there: invariant C2 as a question.
pub fn fits(pod: &PodInfo, total: &Resources, used: &Resources) -> bool {
    shortages(&pod.requests, total, used).is_empty()
}
