//! The node agent's decisions, pure: no async, IO, clock, randomness or map-iteration order.
//!
//! `pod` is the kubelet's side: given a pod's spec, what the runtime reports, what earlier steps remembered and `now`,
//! it answers with the actions to take and the status to publish. `proxy` compiles Services into rulesets.
//! `simulated` carries the same plan out on nothing, for nodes without containers. The shells only carry them out.

pub mod dns;
pub mod network;
pub mod pod;
pub mod proxy;
pub mod simulated;
