//! C1 and C2 as predicates, for tests, models, the simulator and robustness runs.

use std::collections::BTreeMap;

use crate::snapshot::Snapshot;

/// C2: on each present node the sum of requests is at most what is allocatable. Returns what is too much where.
/// Holds at bind time; a node that shrinks later or a pod placed by hand breaks it legitimately.
pub fn c2_no_node_is_overcommitted(snapshot: &Snapshot) -> Result<(), String> {
    for slot in snapshot.nodes() {
        let (total, used) = (&snapshot.allocatable[*slot], &snapshot.requested[*slot]);
        let mut pairs = vec![
            ("cpu", used.milli_cpu, total.milli_cpu),
            ("memory", used.memory, total.memory),
            ("ephemeral-storage", used.ephemeral_storage, total.ephemeral_storage),
            ("pods", used.pods, total.pods),
        ];
        for (name, amount) in &used.scalar {
            pairs.push((name, *amount, total.scalar.get(name).copied().unwrap_or(0)));
        }
        for (what, used, total) in pairs {
            if used > total {
                return Err(format!("C2: node {} has {used} of {total} {what}", snapshot.name[*slot]));
            }
        }
    }
    Ok(())
}

/// C1: a pod is bound once. `binds` is the history of successful binds: uid and node, in order.
pub fn c1_bound_once(binds: &[(String, String)]) -> Result<(), String> {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for (uid, node) in binds {
        if let Some(before) = seen.insert(uid, node) {
            return Err(format!("C1: pod {uid} was bound to {before} and again to {node}"));
        }
    }
    Ok(())
}
