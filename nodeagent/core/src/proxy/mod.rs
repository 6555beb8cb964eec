//! Services and endpoints in, an nftables ruleset out; pure.
//!
//! Order: [`ServiceMap`] and [`EndpointsMap`] hold the latest objects, [`compile`] turns them into a [`Ruleset`] (a
//! value, not text), [`diff`] says how to get from the applied one to the new one, [`Changes::script`] is the text of
//! one atomic `nft -f` transaction. The rules are always `compile(latest)`: nothing is remembered between rounds.
//!
//! Shape of the table `ip keelson`: a verdict map from (address, protocol, port) to a chain per Service port; the chain
//! rewrites to one endpoint with a random pick in one rule, so there is no chain per endpoint (only session affinity
//! needs those). Hairpin needs no rule per endpoint either: after rewriting, source = destination, looked up in a set of
//! this node's endpoints.
//!
//! Hazards: IPv4 only. A NodePort is not answered on 127.0.0.0/8 (as upstream's nftables mode). Zone hints are ignored.

mod compile;
mod diff;
mod endpoints;
mod hostport;
mod ruleset;
mod service;
#[cfg(test)]
mod tests;

pub use compile::{State, compile};
pub use diff::{Change, Changes, Flow, diff, full, stale_flows};
pub use endpoints::{Endpoint, EndpointsMap, PortEndpoints};
pub use hostport::{HostPort, host_ports};
pub use ruleset::{Chain, Key, Match, Rule, Ruleset, Set, SetKind, Verb};
pub use service::{Protocol, ServiceInfo, ServiceMap, ServiceName, ServicePort};

use ipnet::Ipv4Net;

/// Name of the table that holds every rule of the proxy.
pub const TABLE: &str = "keelson";

/// What the compiler must know of the node it compiles for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyNode {
    /// Node name, compared with an endpoint's `nodeName` to find local endpoints.
    pub name: String,
    /// Where pods live; traffic from elsewhere to a ClusterIP is masqueraded. `None`: nothing is.
    pub cluster_cidr: Option<Ipv4Net>,
}
