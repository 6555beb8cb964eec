//! The ruleset as a value: sets, chains and rules, each with its nft text.
//!
//! Only what depends on Services is a value; the hooks that lead there are fixed text ([`FIXED`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::service::Protocol;

/// Key of a set or map, in nft's notation `a . b . c`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Address(Ipv4Addr, Protocol, u16),
    Port(Protocol, u16),
    /// An endpoint of this node, as (source, destination) of a packet that came back to its sender.
    Hairpin(Ipv4Addr),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Address(ip, protocol, port) => write!(f, "{ip} . {protocol} . {port}"),
            Key::Port(protocol, port) => write!(f, "{protocol} . {port}"),
            Key::Hairpin(ip) => write!(f, "{ip} . {ip}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Jump(String),
    Goto(String),
    Drop,
    /// Rewrites to one of the endpoints at random. Never empty.
    Rewrite(Protocol, Vec<(Ipv4Addr, u16)>),
    /// Goes to one of the chains at random. Never empty.
    Pick(Vec<String>),
    /// Notes the source in a set, which forgets it after its timeout.
    Remember(String),
    /// A set's element without a verdict.
    Member,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verb::Jump(chain) => write!(f, "jump {chain}"),
            Verb::Goto(chain) => write!(f, "goto {chain}"),
            Verb::Drop => f.write_str("drop"),
            Verb::Rewrite(protocol, endpoints) => match endpoints.as_slice() {
                [(ip, port)] => write!(f, "meta l4proto {protocol} dnat ip to {ip}:{port}"),
                many => {
                    let choices =
                        many.iter().enumerate().map(|(index, (ip, port))| format!("{index} : {ip} . {port}"));
                    write!(
                        f,
                        "meta l4proto {protocol} dnat ip addr . port to numgen random mod {} map {{ {} }}",
                        many.len(),
                        choices.collect::<Vec<_>>().join(", ")
                    )
                }
            },
            Verb::Pick(chains) => match chains.as_slice() {
                [chain] => write!(f, "goto {chain}"),
                many => {
                    let choices =
                        many.iter().enumerate().map(|(index, chain)| format!("{index} : goto {chain}"));
                    write!(
                        f,
                        "numgen random mod {} vmap {{ {} }}",
                        many.len(),
                        choices.collect::<Vec<_>>().join(", ")
                    )
                }
            },
            Verb::Remember(set) => write!(f, "update @{set} {{ ip saddr }}"),
            Verb::Member => Ok(()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    SourceIn(Ipv4Net),
    SourceNotIn(Vec<Ipv4Net>),
    /// The packet was sent by this node itself.
    SourceIsNode,
    /// The source is noted in the set.
    SourceRemembered(String),
    DestinationIs(Ipv4Addr),
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Match::SourceIn(range) => write!(f, "ip saddr {range}"),
            Match::SourceNotIn(ranges) => match ranges.as_slice() {
                [range] => write!(f, "ip saddr != {range}"),
                many => {
                    let text: Vec<String> = many.iter().map(ToString::to_string).collect();
                    write!(f, "ip saddr != {{ {} }}", text.join(", "))
                }
            },
            Match::SourceIsNode => f.write_str("fib saddr type local"),
            Match::SourceRemembered(set) => write!(f, "ip saddr @{set}"),
            Match::DestinationIs(ip) => write!(f, "ip daddr {ip}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub when: Vec<Match>,
    pub then: Verb,
}

impl Rule {
    pub fn always(then: Verb) -> Rule {
        Rule { when: Vec::new(), then }
    }

    pub fn when(condition: Match, then: Verb) -> Rule {
        Rule { when: vec![condition], then }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.when {
            write!(f, "{condition} ")?;
        }
        write!(f, "{}", self.then)
    }
}

/// Rules in order.
pub type Chain = Vec<Rule>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetKind {
    /// ClusterIPs, external and load-balancer addresses -> chain.
    ServiceIps,
    /// Node ports and host ports -> chain.
    NodePorts,
    /// Addresses to refuse: no endpoint may answer.
    NoEndpointIps,
    /// Node ports to refuse.
    NoEndpointPorts,
    /// Load-balancer addresses with source ranges, looked at before rewriting.
    Firewall,
    /// This node's endpoints.
    Hairpin,
}

impl SetKind {
    pub const ALL: [SetKind; 6] = [
        SetKind::ServiceIps,
        SetKind::NodePorts,
        SetKind::NoEndpointIps,
        SetKind::NoEndpointPorts,
        SetKind::Firewall,
        SetKind::Hairpin,
    ];

    pub fn name(self) -> &'static str {
        match self {
            SetKind::ServiceIps => "service-ips",
            SetKind::NodePorts => "node-ports",
            SetKind::NoEndpointIps => "no-endpoint-ips",
            SetKind::NoEndpointPorts => "no-endpoint-ports",
            SetKind::Firewall => "firewall-ips",
            SetKind::Hairpin => "hairpin",
        }
    }

    /// `add set|map ip TABLE` takes this after the name.
    pub fn declaration(self) -> (&'static str, &'static str) {
        match self {
            SetKind::ServiceIps | SetKind::NoEndpointIps | SetKind::Firewall => {
                ("map", "{ type ipv4_addr . inet_proto . inet_service : verdict ; }")
            }
            SetKind::NodePorts | SetKind::NoEndpointPorts => {
                ("map", "{ type inet_proto . inet_service : verdict ; }")
            }
            SetKind::Hairpin => ("set", "{ type ipv4_addr . ipv4_addr ; }"),
        }
    }
}

/// Elements of one set or map; a set's elements have [`Verb::Member`].
pub type Set = BTreeMap<Key, Verb>;

/// Everything that depends on Services, endpoints and host ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub sets: BTreeMap<SetKind, Set>,
    pub chains: BTreeMap<String, Chain>,
    /// Sets filled by packets: name -> timeout in seconds.
    pub remembered: BTreeMap<String, u32>,
}

impl Ruleset {
    /// First come, first served: two Services may claim the same external address.
    pub(super) fn claim(&mut self, kind: SetKind, key: Key, verb: Verb) {
        self.sets.entry(kind).or_default().entry(key).or_insert(verb);
    }

    pub fn set(&self, kind: SetKind) -> impl Iterator<Item = (&Key, &Verb)> {
        self.sets.get(&kind).into_iter().flatten()
    }

    /// Drops chains that lost their only address to another Service, and the sets only they used.
    pub(super) fn prune(&mut self) {
        let mut reached: BTreeSet<String> = BTreeSet::new();
        let mut open: Vec<&Verb> = self.sets.values().flat_map(BTreeMap::values).collect();
        let mut sets: BTreeSet<String> = BTreeSet::new();
        while let Some(verb) = open.pop() {
            let next: Vec<&String> = match verb {
                Verb::Jump(chain) | Verb::Goto(chain) => vec![chain],
                Verb::Pick(chains) => chains.iter().collect(),
                Verb::Remember(set) => {
                    sets.insert(set.clone());
                    continue;
                }
                Verb::Drop | Verb::Rewrite(..) | Verb::Member => continue,
            };
            for chain in next {
                if reached.insert(chain.clone()) {
                    open.extend(self.chains.get(chain).into_iter().flatten().map(|rule| &rule.then));
                }
            }
        }
        self.chains.retain(|name, _| reached.contains(name));
        self.remembered.retain(|name, _| sets.contains(name));
    }

    /// Invariant: every chain and set that is named exists, and no chain is unreachable.
    ///
    /// # Errors
    /// The first name that breaks it.
    pub fn check(&self) -> Result<(), String> {
        let fixed: BTreeSet<&str> = [MARK_CHAIN, REJECT_CHAIN].into();
        let mut used = BTreeSet::new();
        let rules = self.chains.values().flatten();
        let verbs = self.sets.values().flat_map(BTreeMap::values).chain(rules.clone().map(|rule| &rule.then));
        for verb in verbs {
            match verb {
                Verb::Jump(chain) | Verb::Goto(chain) => drop(used.insert(chain.as_str())),
                Verb::Pick(chains) if chains.is_empty() => return Err("a pick among no chains".into()),
                Verb::Pick(chains) => used.extend(chains.iter().map(String::as_str)),
                Verb::Rewrite(_, endpoints) if endpoints.is_empty() => {
                    return Err("a rewrite to no endpoint".into());
                }
                Verb::Remember(set) if !self.remembered.contains_key(set) => {
                    return Err(format!("no set {set}"));
                }
                _ => {}
            }
        }
        for condition in rules.flat_map(|rule| &rule.when) {
            match condition {
                Match::SourceRemembered(set) if !self.remembered.contains_key(set) => {
                    return Err(format!("no set {set}"));
                }
                _ => {}
            }
        }
        if let Some(missing) =
            used.iter().find(|name| !fixed.contains(*name) && !self.chains.contains_key(**name))
        {
            return Err(format!("no chain {missing}"));
        }
        match self.chains.keys().find(|name| !used.contains(name.as_str())) {
            Some(orphan) => Err(format!("nothing leads to chain {orphan}")),
            None => Ok(()),
        }
    }
}

pub(super) const MARK_CHAIN: &str = "mark-for-masquerade";
pub(super) const REJECT_CHAIN: &str = "reject-it";

/// The hooks, after the sets of [`SetKind::ALL`] exist. One command a line, `TABLE` stands for `ip keelson`.
pub(super) const FIXED: &str = "\
add chain TABLE mark-for-masquerade
add rule TABLE mark-for-masquerade meta mark set meta mark or 0x4000
add chain TABLE reject-it
add rule TABLE reject-it reject
add chain TABLE services
add rule TABLE services ip daddr . meta l4proto . th dport vmap @service-ips
add rule TABLE services ip daddr != 127.0.0.0/8 fib daddr type local meta l4proto . th dport vmap @node-ports
add chain TABLE prerouting { type nat hook prerouting priority -100 ; }
add rule TABLE prerouting jump services
add chain TABLE output { type nat hook output priority -100 ; }
add rule TABLE output jump services
add chain TABLE postrouting { type nat hook postrouting priority 100 ; }
add rule TABLE postrouting ip saddr . ip daddr @hairpin masquerade fully-random
add rule TABLE postrouting meta mark & 0x4000 == 0 return
add rule TABLE postrouting meta mark set meta mark xor 0x4000
add rule TABLE postrouting masquerade fully-random
add chain TABLE firewall-prerouting { type filter hook prerouting priority -110 ; }
add rule TABLE firewall-prerouting ct state new ip daddr . meta l4proto . th dport vmap @firewall-ips
add chain TABLE refuse
add rule TABLE refuse ip daddr . meta l4proto . th dport vmap @no-endpoint-ips
add rule TABLE refuse fib daddr type local meta l4proto . th dport vmap @no-endpoint-ports
add chain TABLE filter-input { type filter hook input priority 0 ; }
add rule TABLE filter-input ct state new jump refuse
add chain TABLE filter-forward { type filter hook forward priority 0 ; }
add rule TABLE filter-forward ct state new jump refuse
add chain TABLE filter-output { type filter hook output priority 0 ; }
add rule TABLE filter-output ct state new jump refuse
";
