//! Node IPAM: a pod CIDR for each node, out of the cluster's.
//!
//! One key for all nodes: two nodes allocated from two views would get the same range.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;

use crate::{Change, Key, Object, Plan, Reconciler, View, Watch};

/// A cluster range and the prefix length that each node gets of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    base: u128,
    prefix: u8,
    node_prefix: u8,
    v4: bool,
}

impl Pool {
    /// From `10.244.0.0/16` and 24. Errors name what is wrong with the range.
    pub fn parse(cidr: &str, node_prefix: u8) -> Result<Pool, String> {
        let wrong = |why: &str| format!("cluster CIDR {cidr:?}: {why}; give one like 10.244.0.0/16");
        let (ip, prefix) = cidr.split_once('/').ok_or_else(|| wrong("no prefix length"))?;
        let ip: IpAddr = ip.parse().map_err(|_| wrong("not an address"))?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong("prefix length is not a number"))?;
        let (base, bits) = match ip {
            IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
            IpAddr::V6(ip) => (u128::from(ip), 128),
        };
        if prefix > bits || node_prefix > bits || node_prefix < prefix || node_prefix - prefix > 16 {
            return Err(wrong("a node's prefix must be longer than the cluster's, by 16 at most"));
        }
        Ok(Pool { base, prefix, node_prefix, v4: bits == 32 })
    }

    fn len(&self) -> u128 {
        1 << (self.node_prefix - self.prefix)
    }

    fn shift(&self) -> u32 {
        (if self.v4 { 32 } else { 128 }) - u32::from(self.node_prefix)
    }

    /// The `index`th node range.
    pub fn range(&self, index: u128) -> String {
        let start = self.base + (index << self.shift());
        let ip = match self.v4 {
            true => IpAddr::V4(Ipv4Addr::from(start as u32)),
            false => IpAddr::V6(Ipv6Addr::from(start)),
        };
        format!("{ip}/{}", self.node_prefix)
    }

    /// The index of a node range of this pool.
    fn index(&self, cidr: &str) -> Option<u128> {
        let (ip, _) = cidr.split_once('/')?;
        let value = match (ip.parse().ok()?, self.v4) {
            (IpAddr::V4(ip), true) => u128::from(u32::from(ip)),
            (IpAddr::V6(ip), false) => u128::from(ip),
            _ => return None,
        };
        let index = value.checked_sub(self.base)? >> self.shift();
        (index < self.len()).then_some(index)
    }

    fn free(&self, used: &mut BTreeSet<u128>) -> Option<u128> {
        let index = (0..self.len()).find(|i| !used.contains(i))?;
        used.insert(index);
        Some(index)
    }
}

pub struct NodeIpam {
    pub pools: Vec<Pool>,
}

impl Reconciler for NodeIpam {
    fn name(&self) -> &'static str {
        "node-ipam-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::of::<Node>()]
    }

    fn keys(&self, change: &Change, _view: &View) -> Vec<Key> {
        let Some((old, new)) = change.of::<Node>() else { return Vec::new() };
        let lacks = new.is_some_and(|n| cidrs(n).is_empty());
        let freed = old.is_some() && new.is_none();
        if lacks || freed { vec![Key::default()] } else { Vec::new() }
    }

    fn reconcile(&self, _key: &Key, view: &View, _now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        let mut used: Vec<BTreeSet<u128>> = vec![BTreeSet::new(); self.pools.len()];
        for cidr in view.of::<Node>().iter().flat_map(|n| cidrs(n)) {
            for (pool, used) in self.pools.iter().zip(&mut used) {
                used.extend(pool.index(cidr));
            }
        }
        for node in view.of::<Node>().iter().filter(|n| cidrs(n).is_empty() && !n.is_deleting()) {
            let ranges: Option<Vec<String>> =
                self.pools.iter().zip(&mut used).map(|(p, used)| p.free(used).map(|i| p.range(i))).collect();
            match ranges {
                Some(ranges) if !ranges.is_empty() => {
                    let mut new = (**node).clone();
                    let spec = new.spec.get_or_insert_default();
                    spec.pod_cidr = ranges.first().cloned();
                    spec.pod_cidrs = Some(ranges);
                    plan.update(node.as_ref(), &new);
                }
                Some(_) => {}
                None => plan.record(
                    node.as_ref(),
                    true,
                    "CIDRNotAvailable",
                    format!("Node {} status is now: CIDRNotAvailable", node.name()),
                ),
            }
        }
        plan
    }
}

fn cidrs(node: &Node) -> &[String] {
    let spec = node.spec.as_ref();
    let many = spec.and_then(|s| s.pod_cidrs.as_deref()).filter(|c| !c.is_empty());
    many.or(spec.and_then(|s| s.pod_cidr.as_ref()).map(std::slice::from_ref)).unwrap_or_default()
}
