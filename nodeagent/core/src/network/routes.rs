//! Routes to other nodes' pods, and the masquerade of pods that leave the cluster.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;

/// What the network needs of a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeNet {
    pub name: String,
    pub address: Option<Ipv4Addr>,
    pub pods: Option<Ipv4Net>,
    pub ready: bool,
    /// Labelled `node.kubernetes.io/exclude-from-external-load-balancers`.
    pub excluded: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub to: Ipv4Net,
    pub via: Ipv4Addr,
}

/// `None`: an object without a name.
pub fn read_node(node: &Node) -> Option<NodeNet> {
    let status = node.status.as_ref();
    let address = status.and_then(|status| {
        let internal = status.addresses.iter().flatten().filter(|address| address.type_ == "InternalIP");
        internal.filter_map(|address| address.address.parse().ok()).next()
    });
    let ready = status.is_some_and(|status| {
        status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    });
    let labels = node.metadata.labels.as_ref();
    Some(NodeNet {
        name: node.metadata.name.clone()?,
        address,
        pods: pod_range(node),
        ready,
        excluded: labels.is_some_and(|labels| {
            labels.contains_key("node.kubernetes.io/exclude-from-external-load-balancers")
        }),
    })
}

/// The node's IPv4 pod range, once it was given one.
pub fn pod_range(node: &Node) -> Option<Ipv4Net> {
    let spec = node.spec.as_ref()?;
    spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr).find_map(|range| range.parse().ok())
}

/// Routes of the node `me`: to each other node that has an address and a pod range, Ready or not (a node that reports
/// late still has pods). Sorted.
pub fn routes(nodes: &BTreeMap<String, NodeNet>, me: &str) -> Vec<Route> {
    let mut routes: Vec<Route> = nodes
        .values()
        .filter(|node| node.name != me)
        .filter_map(|node| Some(Route { to: node.pods?.trunc(), via: node.address? }))
        .collect();
    routes.sort();
    routes.dedup_by_key(|route| route.to);
    routes
}

/// nft transaction: pods of this node that leave the cluster get the node's address; traffic to other pods keeps its own.
pub fn masquerade_script(pods: Ipv4Net, cluster: Option<Ipv4Net>) -> String {
    let inside = cluster.unwrap_or(pods).trunc();
    let pods = pods.trunc();
    format!(
        "add table ip keelson-network\ndelete table ip keelson-network\nadd table ip keelson-network\n\
         add chain ip keelson-network postrouting {{ type nat hook postrouting priority 110 ; }}\n\
         add rule ip keelson-network postrouting ip saddr {pods} ip daddr != {{ {inside}, 224.0.0.0/4 }} masquerade fully-random\n"
    )
}
