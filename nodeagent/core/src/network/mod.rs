//! The pod network, pure: from the cluster's nodes to this node's CNI configuration, routes, masquerade rules and
//! load-balancer addresses.
//!
//! host-gw: every node routes the others' pod ranges to their addresses, so all nodes share one link. Nothing is
//! remembered: each plan is a function of the latest objects.

mod balancer;
mod cni;
mod routes;
#[cfg(test)]
mod tests;

pub use balancer::{Candidate, held_addresses, owner};
pub use cni::{BRIDGE, conflist};
pub use routes::{NodeNet, Route, masquerade_script, pod_range, read_node, routes};
