//! A node without containers: the same pod worker's plan, carried out on a runtime that is only told about.
//!
//! `node` holds a node's pods and answers with the writes to the API, `pod` is one pod with its make-believe runtime,
//! `address` gives out the node's pod addresses, `describe` makes the Node object's status. What a pod does here it does
//! by the real planner and the real status: only "the container runs", "the probe succeeds" and "the container ended by
//! itself" are made up. Nothing is made up where a lie would show: such a node has no logs, no exec and no statistics.

mod address;
pub mod describe;
pub mod node;
pub mod pod;
#[cfg(test)]
mod tests;

/// The scheme of container ids and the runtime's name.
pub const RUNTIME: &str = "simulated";
/// On nodes: `true` on every simulated one.
pub const LABEL: &str = "keelson.dev/simulated";
/// On pods: how long each main container runs before it ends by itself, e.g. `30s`.
pub const DURATION: &str = "keelson.dev/simulated-duration";
/// On pods: the exit code with which main containers end by themselves; 0 without.
pub const EXIT_CODE: &str = "keelson.dev/simulated-exit-code";
