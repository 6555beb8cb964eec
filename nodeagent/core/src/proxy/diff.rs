//! From the applied ruleset to the new one: a list of changes, and the text of one atomic nft transaction.
//!
//! Order inside the transaction: new sets and chains exist first, then rules are replaced, then elements move, and what
//! nothing leads to any more goes last. Hazard: a chain still named by an element can't be deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::Ipv4Addr;

use super::TABLE;
use super::compile::State;
use super::ruleset::{FIXED, Key, Rule, Ruleset, SetKind, Verb};
use super::service::Protocol;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    AddRemembered { set: String, seconds: u32 },
    AddChain(String),
    FlushChain(String),
    AddRule(String, Rule),
    RemoveElements(SetKind, Vec<Key>),
    AddElements(SetKind, Vec<(Key, Verb)>),
    DeleteChain(String),
    DeleteRemembered(String),
}

/// One transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub list: Vec<Change>,
    /// The table is made anew first.
    pub anew: bool,
}

/// Changes that lead from `old` (as applied) to `new`.
pub fn diff(old: &Ruleset, new: &Ruleset) -> Changes {
    let mut list = Vec::new();
    for (set, seconds) in &new.remembered {
        if !old.remembered.contains_key(set) {
            list.push(Change::AddRemembered { set: set.clone(), seconds: *seconds });
        }
    }
    let fresh = new.chains.keys().filter(|name| !old.chains.contains_key(*name));
    list.extend(fresh.map(|name| Change::AddChain(name.clone())));
    for (name, chain) in &new.chains {
        let before = old.chains.get(name);
        if before == Some(chain) {
            continue;
        }
        if before.is_some() {
            list.push(Change::FlushChain(name.clone()));
        }
        list.extend(chain.iter().map(|rule| Change::AddRule(name.clone(), rule.clone())));
    }
    let empty = BTreeMap::new();
    for kind in SetKind::ALL {
        let (before, after) = (old.sets.get(&kind).unwrap_or(&empty), new.sets.get(&kind).unwrap_or(&empty));
        let gone: Vec<Key> = before
            .iter()
            .filter(|(key, verb)| after.get(key) != Some(verb))
            .map(|(key, _)| key.clone())
            .collect();
        let come: Vec<(Key, Verb)> = after
            .iter()
            .filter(|(key, verb)| before.get(key) != Some(verb))
            .map(|(key, verb)| (key.clone(), verb.clone()))
            .collect();
        if !gone.is_empty() {
            list.push(Change::RemoveElements(kind, gone));
        }
        if !come.is_empty() {
            list.push(Change::AddElements(kind, come));
        }
    }
    let dead: Vec<&String> = old.chains.keys().filter(|name| !new.chains.contains_key(*name)).collect();
    list.extend(dead.iter().map(|name| Change::FlushChain((*name).clone())));
    list.extend(dead.iter().map(|name| Change::DeleteChain((*name).clone())));
    let forgotten = old.remembered.keys().filter(|set| !new.remembered.contains_key(*set));
    list.extend(forgotten.map(|set| Change::DeleteRemembered(set.clone())));
    Changes { list, anew: false }
}

/// The whole ruleset, whatever the table held before.
pub fn full(new: &Ruleset) -> Changes {
    Changes { anew: true, ..diff(&Ruleset::default(), new) }
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.list.is_empty() && !self.anew
    }

    /// Input of `nft -f -`: applied as a whole or not at all.
    pub fn script(&self) -> String {
        let mut text = String::new();
        if self.anew {
            let _ = write!(text, "add table ip {TABLE}\ndelete table ip {TABLE}\nadd table ip {TABLE}\n");
            for kind in SetKind::ALL {
                let (word, declaration) = kind.declaration();
                let _ = writeln!(text, "add {word} ip {TABLE} {} {declaration}", kind.name());
            }
            text.push_str(&FIXED.replace("TABLE", &format!("ip {TABLE}")));
        }
        for change in &self.list {
            write_change(&mut text, change);
        }
        text
    }
}

fn write_change(text: &mut String, change: &Change) {
    // Writing to a String does not fail.
    let _ = match change {
        Change::AddRemembered { set, seconds } => {
            writeln!(
                text,
                "add set ip {TABLE} {set} {{ type ipv4_addr ; flags dynamic,timeout ; timeout {seconds}s ; }}"
            )
        }
        Change::AddChain(chain) => writeln!(text, "add chain ip {TABLE} {chain}"),
        Change::FlushChain(chain) => writeln!(text, "flush chain ip {TABLE} {chain}"),
        Change::AddRule(chain, rule) => writeln!(text, "add rule ip {TABLE} {chain} {rule}"),
        Change::RemoveElements(kind, keys) => {
            let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
            writeln!(text, "delete element ip {TABLE} {} {{ {} }}", kind.name(), keys.join(", "))
        }
        Change::AddElements(kind, elements) => {
            let elements: Vec<String> = elements
                .iter()
                .map(|(key, verb)| match verb {
                    Verb::Member => key.to_string(),
                    verb => format!("{key} : {verb}"),
                })
                .collect();
            writeln!(text, "add element ip {TABLE} {} {{ {} }}", kind.name(), elements.join(", "))
        }
        Change::DeleteChain(chain) => writeln!(text, "delete chain ip {TABLE} {chain}"),
        Change::DeleteRemembered(set) => writeln!(text, "delete set ip {TABLE} {set}"),
    };
}

/// UDP flows the kernel would keep sending the old way; TCP ends by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flow {
    /// To `address:port`, rewritten to `endpoint`, which is gone.
    ToEndpoint { address: Ipv4Addr, port: u16, endpoint: Ipv4Addr },
    /// To `address:port`, which had no endpoint and was not rewritten.
    NotRewritten { address: Ipv4Addr, port: u16 },
    /// To a node port, rewritten to `endpoint`, which is gone.
    NodePortToEndpoint { port: u16, endpoint: Ipv4Addr },
    /// To a node port that had no endpoint.
    NodePortNotRewritten { port: u16 },
}

/// The conntrack entries to delete after the rules of `new` have replaced those of `old`.
pub fn stale_flows(old: &State, new: &State, node: &str) -> BTreeSet<Flow> {
    let mut flows = BTreeSet::new();
    for (name, service) in old.services.iter() {
        for port in service.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
            let before = old.endpoints.port(name, &port.name, port.protocol, node).cluster;
            let now = new.endpoints.port(name, &port.name, port.protocol, node).cluster;
            let addresses: Vec<Ipv4Addr> = std::iter::once(service.cluster_ip)
                .chain(service.external_ips.iter().copied())
                .chain(service.load_balancer_ips.iter().copied())
                .collect();
            let gone =
                before.iter().filter(|endpoint| new.services.get(name).is_none() || !now.contains(endpoint));
            for (endpoint, _) in gone {
                let to = |address: &Ipv4Addr| Flow::ToEndpoint {
                    address: *address,
                    port: port.port,
                    endpoint: *endpoint,
                };
                flows.extend(addresses.iter().map(to));
                let node_port = |port| Flow::NodePortToEndpoint { port, endpoint: *endpoint };
                flows.extend(port.node_port.map(node_port));
            }
        }
    }
    for (name, service) in new.services.iter() {
        for port in service.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
            let before = old.endpoints.port(name, &port.name, port.protocol, node).cluster;
            let now = new.endpoints.port(name, &port.name, port.protocol, node).cluster;
            let was_there = old.services.get(name).is_some();
            if now.is_empty() || (was_there && !before.is_empty()) {
                continue;
            }
            let addresses = std::iter::once(&service.cluster_ip)
                .chain(&service.external_ips)
                .chain(&service.load_balancer_ips);
            flows.extend(addresses.map(|address| Flow::NotRewritten { address: *address, port: port.port }));
            flows.extend(port.node_port.map(|port| Flow::NodePortNotRewritten { port }));
        }
    }
    flows
}
