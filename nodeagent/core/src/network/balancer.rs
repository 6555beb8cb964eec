//! Which node answers for a load-balancer address: every node computes the same one, nobody has to be asked.
//!
//! Highest weight of (address, node) among the candidates: a node that goes takes only its own addresses with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::routes::NodeNet;

/// An address to be held, and the nodes that may (those with endpoints, under `externalTrafficPolicy: Local`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub address: Ipv4Addr,
    /// `None`: any node.
    pub nodes: Option<BTreeSet<String>>,
}

/// The node that holds `address`: a Ready, not excluded one. `None`: nobody may.
pub fn owner<'a>(nodes: &'a BTreeMap<String, NodeNet>, candidate: &Candidate) -> Option<&'a str> {
    nodes
        .values()
        .filter(|node| node.ready && !node.excluded)
        .filter(|node| candidate.nodes.as_ref().is_none_or(|allowed| allowed.contains(&node.name)))
        .max_by_key(|node| (weight(candidate.address, &node.name), &node.name))
        .map(|node| node.name.as_str())
}

/// The addresses `me` holds. An address claimed twice is held if either claim elects `me`.
pub fn held_addresses(
    nodes: &BTreeMap<String, NodeNet>,
    candidates: &[Candidate],
    me: &str,
) -> BTreeSet<Ipv4Addr> {
    let node_addresses: BTreeSet<Ipv4Addr> = nodes.values().filter_map(|node| node.address).collect();
    candidates
        .iter()
        .filter(|candidate| !node_addresses.contains(&candidate.address))
        .filter(|candidate| owner(nodes, candidate) == Some(me))
        .map(|candidate| candidate.address)
        .collect()
}

/// FNV-1a over the address and the name, then mixed: small, and the same on every node and version.
fn weight(address: Ipv4Addr, node: &str) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in address.octets().into_iter().chain(node.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}
