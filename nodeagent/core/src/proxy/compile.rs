//! The compiler: latest Services, endpoints and host ports -> [`Ruleset`].
//!
//! Chains of one Service port, made only when something leads there:
//! - `svc-NS/NAME/PROTO/PORT`: any endpoint; `svl-…`: this node's endpoints only;
//! - `ext-…`: traffic to node ports, external and load-balancer addresses, which applies `externalTrafficPolicy`;
//! - `fw-…`: load-balancer source ranges; `ep-…/IP/PORT`: one endpoint, with session affinity only.
//!
//! Without endpoints the addresses are refused; with endpoints but none that the policy allows, traffic is dropped.

use std::net::Ipv4Addr;

use super::ProxyNode;
use super::endpoints::{EndpointsMap, PortEndpoints};
use super::hostport::HostPort;
use super::ruleset::{Chain, Key, MARK_CHAIN, Match, REJECT_CHAIN, Rule, Ruleset, SetKind, Verb};
use super::service::{ServiceInfo, ServiceMap, ServicePort};

/// Everything the rules are a function of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub services: ServiceMap,
    pub endpoints: EndpointsMap,
    /// Of this node's pods, in any order.
    pub host_ports: Vec<HostPort>,
}

/// The rules for `node`. The same state gives the same ruleset, whatever order its objects came in.
pub fn compile(state: &State, node: &ProxyNode) -> Ruleset {
    let mut rules = Ruleset::default();
    for (name, service) in state.services.iter() {
        for port in &service.ports {
            let endpoints = state.endpoints.port(name, &port.name, port.protocol, &node.name);
            for (address, _) in &endpoints.local {
                rules.claim(SetKind::Hairpin, Key::Hairpin(*address), Verb::Member);
            }
            let suffix = format!("{}/{}/{}/{}", name.namespace, name.name, port.protocol, port.port);
            Compiler { rules: &mut rules, node, service, port, endpoints: &endpoints, suffix }.run();
        }
    }
    let mut host_ports: Vec<&HostPort> = state.host_ports.iter().collect();
    host_ports.sort();
    host_ports.dedup();
    for port in host_ports {
        host_port(&mut rules, port);
    }
    rules.prune();
    debug_assert_eq!(rules.check(), Ok(()));
    rules
}

struct Compiler<'a> {
    rules: &'a mut Ruleset,
    node: &'a ProxyNode,
    service: &'a ServiceInfo,
    port: &'a ServicePort,
    endpoints: &'a PortEndpoints,
    suffix: String,
}

impl Compiler<'_> {
    fn run(mut self) {
        let internal = self.allowed(self.service.internal_local);
        let external = self.allowed(self.service.external_local);
        let cluster_ip = self.key(self.service.cluster_ip);
        match internal {
            true => {
                let chain = self.endpoints_chain(self.service.internal_local);
                self.rules.claim(SetKind::ServiceIps, cluster_ip, Verb::Goto(chain));
            }
            false => {
                let verdict = self.refusal();
                self.rules.claim(SetKind::NoEndpointIps, cluster_ip, verdict);
            }
        }
        let addresses: Vec<Ipv4Addr> =
            self.service.external_ips.iter().chain(&self.service.load_balancer_ips).copied().collect();
        // Even where outsiders are dropped, this node and its pods still reach every endpoint through `ext`.
        let chain = (!self.endpoints.cluster.is_empty()
            && (!addresses.is_empty() || self.port.node_port.is_some()))
        .then(|| self.external_chain());
        for address in addresses {
            let key = self.key(address);
            match &chain {
                Some(chain) => self.rules.claim(SetKind::ServiceIps, key.clone(), Verb::Goto(chain.clone())),
                None => self.rules.claim(SetKind::NoEndpointIps, key.clone(), self.refusal()),
            }
            if !external && chain.is_some() {
                self.rules.claim(SetKind::NoEndpointIps, key, Verb::Drop);
            }
        }
        if let Some(number) = self.port.node_port {
            let key = Key::Port(self.port.protocol, number);
            match &chain {
                Some(chain) => self.rules.claim(SetKind::NodePorts, key.clone(), Verb::Goto(chain.clone())),
                None => self.rules.claim(SetKind::NoEndpointPorts, key.clone(), self.refusal()),
            }
            if !external && chain.is_some() {
                self.rules.claim(SetKind::NoEndpointPorts, key, Verb::Drop);
            }
        }
        self.firewall();
    }

    /// Whether the policy leaves any endpoint.
    fn allowed(&self, local_only: bool) -> bool {
        !if local_only { &self.endpoints.local } else { &self.endpoints.cluster }.is_empty()
    }

    /// Refused when nobody could answer, dropped when only another node could.
    fn refusal(&self) -> Verb {
        match self.endpoints.cluster.is_empty() {
            true => Verb::Goto(REJECT_CHAIN.into()),
            false => Verb::Drop,
        }
    }

    fn key(&self, address: Ipv4Addr) -> Key {
        Key::Address(address, self.port.protocol, self.port.port)
    }

    /// The chain that ends at an endpoint; made on first use.
    fn endpoints_chain(&mut self, local_only: bool) -> String {
        let (prefix, endpoints) = match local_only {
            true => ("svl", &self.endpoints.local),
            false => ("svc", &self.endpoints.cluster),
        };
        let name = format!("{prefix}-{}", self.suffix);
        if self.rules.chains.contains_key(&name) {
            return name;
        }
        let mut chain = Chain::new();
        if let Some(cidr) = self.node.cluster_cidr {
            // A client outside the pod network would not accept an answer from a pod's address.
            chain.push(Rule {
                when: vec![Match::DestinationIs(self.service.cluster_ip), Match::SourceNotIn(vec![cidr])],
                then: Verb::Jump(MARK_CHAIN.into()),
            });
        }
        match self.service.affinity {
            None => chain.push(Rule::always(Verb::Rewrite(self.port.protocol, endpoints.clone()))),
            Some(seconds) => {
                let mut chains = Vec::new();
                for (ip, port) in endpoints {
                    // A set's timeout can't be changed, so it is part of the name.
                    let set = format!("aff-{}/{ip}/{port}/{seconds}", self.suffix);
                    let target = format!("ep-{}/{ip}/{port}", self.suffix);
                    chain.push(Rule::when(Match::SourceRemembered(set.clone()), Verb::Goto(target.clone())));
                    self.rules.remembered.insert(set.clone(), seconds);
                    let rewrite = Verb::Rewrite(self.port.protocol, vec![(*ip, *port)]);
                    self.rules.chains.insert(
                        target.clone(),
                        vec![Rule::always(Verb::Remember(set)), Rule::always(rewrite)],
                    );
                    chains.push(target);
                }
                chain.push(Rule::always(Verb::Pick(chains)));
            }
        }
        self.rules.chains.insert(name.clone(), chain);
        name
    }

    fn external_chain(&mut self) -> String {
        let name = format!("ext-{}", self.suffix);
        let all = self.endpoints_chain(false);
        let mut chain = Chain::new();
        let mark = Verb::Jump(MARK_CHAIN.into());
        if self.service.external_local {
            // The client's address is kept, so only this node's endpoints may answer; but pods and the node itself may
            // use any.
            if let Some(cidr) = self.node.cluster_cidr {
                chain.push(Rule::when(Match::SourceIn(cidr), Verb::Goto(all.clone())));
            }
            chain.push(Rule::when(Match::SourceIsNode, mark));
            chain.push(Rule::when(Match::SourceIsNode, Verb::Goto(all)));
            if self.allowed(true) {
                let local = self.endpoints_chain(true);
                chain.push(Rule::always(Verb::Goto(local)));
            }
        } else {
            chain.push(Rule::always(mark));
            chain.push(Rule::always(Verb::Goto(all)));
        }
        self.rules.chains.insert(name.clone(), chain);
        name
    }

    fn firewall(&mut self) {
        if self.service.source_ranges.is_empty() || self.service.load_balancer_ips.is_empty() {
            return;
        }
        let chain = format!("fw-{}", self.suffix);
        let ranges = self.service.source_ranges.clone();
        self.rules.chains.insert(chain.clone(), vec![Rule::when(Match::SourceNotIn(ranges), Verb::Drop)]);
        for address in &self.service.load_balancer_ips {
            let key = self.key(*address);
            self.rules.claim(SetKind::Firewall, key, Verb::Jump(chain.clone()));
        }
    }
}

fn host_port(rules: &mut Ruleset, port: &HostPort) {
    let (kind, key) = match port.host_ip {
        Some(address) => (SetKind::ServiceIps, Key::Address(address, port.protocol, port.host_port)),
        None => (SetKind::NodePorts, Key::Port(port.protocol, port.host_port)),
    };
    // A Service that claimed the port keeps it.
    if rules.sets.get(&kind).is_some_and(|set| set.contains_key(&key)) {
        return;
    }
    let chain = match port.host_ip {
        Some(address) => format!("hp-{}/{}/{address}/{}", port.pod, port.protocol, port.host_port),
        None => format!("hp-{}/{}/{}", port.pod, port.protocol, port.host_port),
    };
    let rewrite = Verb::Rewrite(port.protocol, vec![(port.pod_ip, port.container_port)]);
    rules.chains.insert(chain.clone(), vec![Rule::always(rewrite)]);
    rules.claim(kind, key, Verb::Goto(chain));
    rules.claim(SetKind::Hairpin, Key::Hairpin(port.pod_ip), Verb::Member);
}
