//! Packets walked through compiled rules, the text of scripts, and `applied diffs == compile(latest)` over random histories.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::ruleset::{FIXED, REJECT_CHAIN};
use super::*;

fn node() -> ProxyNode {
    ProxyNode { name: "n1".into(), cluster_cidr: Some("10.244.0.0/16".parse().expect("a CIDR")) }
}

fn service(name: &str, spec: Value, status: Value) -> Service {
    serde_json::from_value(
        json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec, "status": status}),
    )
    .expect("a Service")
}

fn slice(service: &str, name: &str, port: u16, protocol: &str, endpoints: Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "d", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "", "port": port, "protocol": protocol}], "endpoints": endpoints,
    }))
    .expect("a slice")
}

/// (address, node) pairs, all ready.
fn ready(endpoints: &[(&str, &str)]) -> Value {
    endpoints
        .iter()
        .map(|(ip, node)| json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": true}}))
        .collect()
}

fn state(services: &[Service], slices: &[EndpointSlice]) -> State {
    let mut state = State::default();
    services.iter().for_each(|service| state.services.apply(service));
    slices.iter().for_each(|slice| state.endpoints.apply(slice));
    state
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// Endpoints it may end at, and whether the source is masqueraded.
    To(BTreeSet<(Ipv4Addr, u16)>, bool),
    Rejected,
    Dropped,
    Untouched,
}

fn to(endpoints: &[&str], masqueraded: bool) -> Fate {
    let split = |text: &&str| {
        let (ip, port) = text.split_once(':').expect("ip:port");
        (ip.parse().expect("an address"), port.parse().expect("a port"))
    };
    Fate::To(endpoints.iter().map(split).collect(), masqueraded)
}

struct Packet {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    port: u16,
    protocol: Protocol,
}

fn tcp(source: &str, destination: &str, port: u16) -> Packet {
    let parse = |ip: &str| ip.parse().expect("an address");
    Packet { source: parse(source), destination: parse(destination), port, protocol: Protocol::Tcp }
}

const NODE_IP: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 11);

/// What the fixed hooks and the compiled rules do with the first packet of a flow.
fn walk(rules: &Ruleset, packet: &Packet) -> Fate {
    let address = Key::Address(packet.destination, packet.protocol, packet.port);
    let node_port = Key::Port(packet.protocol, packet.port);
    let at_node = packet.destination == NODE_IP;
    let find = |kind: SetKind, key: &Key| rules.sets.get(&kind).and_then(|set| set.get(key));
    let mut marked = false;
    if let Some(verb) = find(SetKind::Firewall, &address) {
        match follow(rules, verb, packet, &mut marked) {
            Some(Fate::Dropped) => return Fate::Dropped,
            other => assert_eq!(other, None, "the firewall only drops"),
        }
    }
    let lead = find(SetKind::ServiceIps, &address)
        .or_else(|| at_node.then(|| find(SetKind::NodePorts, &node_port)).flatten());
    if let Some(Fate::To(endpoints, _)) = lead.and_then(|verb| follow(rules, verb, packet, &mut marked)) {
        return Fate::To(endpoints, marked);
    }
    let refusal = find(SetKind::NoEndpointIps, &address)
        .or_else(|| at_node.then(|| find(SetKind::NoEndpointPorts, &node_port)).flatten());
    match refusal {
        Some(Verb::Goto(chain)) if chain == REJECT_CHAIN => Fate::Rejected,
        Some(Verb::Drop) => Fate::Dropped,
        Some(other) => panic!("{other} is no refusal"),
        None => Fate::Untouched,
    }
}

fn follow(rules: &Ruleset, verb: &Verb, packet: &Packet, marked: &mut bool) -> Option<Fate> {
    match verb {
        Verb::Jump(chain) if chain == "mark-for-masquerade" => {
            *marked = true;
            None
        }
        Verb::Jump(chain) | Verb::Goto(chain) => {
            for rule in &rules.chains[chain] {
                if rule.when.iter().all(|condition| matches(condition, packet)) {
                    let fate = follow(rules, &rule.then, packet, marked);
                    if fate.is_some() || matches!(rule.then, Verb::Goto(_)) {
                        return fate;
                    }
                }
            }
            None
        }
        Verb::Drop => Some(Fate::Dropped),
        Verb::Rewrite(protocol, endpoints) => {
            assert_eq!(*protocol, packet.protocol);
            Some(Fate::To(endpoints.iter().copied().collect(), *marked))
        }
        Verb::Pick(chains) => {
            let mut all = BTreeSet::new();
            for chain in chains {
                match follow(rules, &Verb::Goto(chain.clone()), packet, marked) {
                    Some(Fate::To(endpoints, _)) => all.extend(endpoints),
                    other => panic!("{chain} ends in {other:?}"),
                }
            }
            Some(Fate::To(all, *marked))
        }
        Verb::Remember(_) | Verb::Member => None,
    }
}

fn matches(condition: &Match, packet: &Packet) -> bool {
    match condition {
        Match::SourceIn(range) => range.contains(&packet.source),
        Match::SourceNotIn(ranges) => !ranges.iter().any(|range| range.contains(&packet.source)),
        Match::SourceIsNode => packet.source == NODE_IP,
        Match::SourceRemembered(_) => false,
        Match::DestinationIs(ip) => packet.destination == *ip,
    }
}

fn web(policy: Value) -> Service {
    let mut spec = json!({"clusterIP": "10.96.0.10", "type": "LoadBalancer", "externalIPs": ["192.0.2.9"],
        "ports": [{"port": 80, "nodePort": 30080}]});
    spec.as_object_mut().expect("an object").extend(policy.as_object().expect("an object").clone());
    service("web", spec, json!({"loadBalancer": {"ingress": [{"ip": "172.30.0.200"}]}}))
}

#[test]
fn a_service_is_reached_on_every_address_it_has() {
    let pods = ready(&[("10.244.1.2", "n1"), ("10.244.2.2", "n2")]);
    let rules = compile(&state(&[web(json!({}))], &[slice("web", "web-1", 8080, "TCP", pods)]), &node());
    let both = ["10.244.1.2:8080", "10.244.2.2:8080"];
    assert_eq!(walk(&rules, &tcp("10.244.1.7", "10.96.0.10", 80)), to(&both, false), "pod to ClusterIP");
    assert_eq!(walk(&rules, &tcp("172.30.0.11", "10.96.0.10", 80)), to(&both, true), "node to ClusterIP");
    for destination in ["192.0.2.9", "172.30.0.200"] {
        assert_eq!(walk(&rules, &tcp("172.30.0.254", destination, 80)), to(&both, true), "{destination}");
    }
    assert_eq!(walk(&rules, &tcp("172.30.0.254", "172.30.0.11", 30080)), to(&both, true), "node port");
    assert_eq!(walk(&rules, &tcp("172.30.0.254", "172.30.0.11", 30081)), Fate::Untouched);
    assert_eq!(walk(&rules, &tcp("10.244.1.7", "10.96.0.10", 81)), Fate::Untouched);
    let hairpin: Vec<String> = rules.set(SetKind::Hairpin).map(|(key, _)| key.to_string()).collect();
    assert_eq!(hairpin, ["10.244.1.2 . 10.244.1.2"], "only this node's endpoints come back to themselves");
}

#[test]
fn without_endpoints_every_address_is_refused() {
    let rules = compile(&state(&[web(json!({}))], &[]), &node());
    for (destination, port) in
        [("10.96.0.10", 80), ("192.0.2.9", 80), ("172.30.0.200", 80), ("172.30.0.11", 30080)]
    {
        assert_eq!(
            walk(&rules, &tcp("10.244.1.7", destination, port)),
            Fate::Rejected,
            "{destination}:{port}"
        );
    }
    assert!(rules.chains.is_empty());
}

#[test]
fn external_policy_local_keeps_outsiders_on_this_node_and_their_address() {
    let pods = ready(&[("10.244.1.2", "n1"), ("10.244.2.2", "n2")]);
    let policy = json!({"externalTrafficPolicy": "Local"});
    let rules = compile(&state(&[web(policy.clone())], &[slice("web", "a", 80, "TCP", pods)]), &node());
    assert_eq!(walk(&rules, &tcp("172.30.0.254", "172.30.0.11", 30080)), to(&["10.244.1.2:80"], false));
    let both = ["10.244.1.2:80", "10.244.2.2:80"];
    assert_eq!(walk(&rules, &tcp("10.244.1.9", "172.30.0.200", 80)), to(&both, false), "pods use any");
    assert_eq!(walk(&rules, &tcp("172.30.0.11", "172.30.0.200", 80)), to(&both, true), "the node uses any");

    let elsewhere = ready(&[("10.244.2.2", "n2")]);
    let rules = compile(&state(&[web(policy)], &[slice("web", "a", 80, "TCP", elsewhere)]), &node());
    assert_eq!(walk(&rules, &tcp("172.30.0.254", "172.30.0.11", 30080)), Fate::Dropped);
    assert_eq!(walk(&rules, &tcp("172.30.0.254", "172.30.0.200", 80)), Fate::Dropped);
    assert_eq!(walk(&rules, &tcp("10.244.1.9", "172.30.0.200", 80)), to(&["10.244.2.2:80"], false));
}

#[test]
fn internal_policy_local_drops_when_only_others_could_answer() {
    let policy = json!({"internalTrafficPolicy": "Local"});
    let elsewhere = ready(&[("10.244.2.2", "n2")]);
    let rules = compile(&state(&[web(policy.clone())], &[slice("web", "a", 80, "TCP", elsewhere)]), &node());
    assert_eq!(walk(&rules, &tcp("10.244.1.9", "10.96.0.10", 80)), Fate::Dropped);
    assert_eq!(walk(&rules, &tcp("172.30.0.254", "172.30.0.11", 30080)), to(&["10.244.2.2:80"], true));
    let here = ready(&[("10.244.1.2", "n1"), ("10.244.2.2", "n2")]);
    let rules = compile(&state(&[web(policy)], &[slice("web", "a", 80, "TCP", here)]), &node());
    assert_eq!(walk(&rules, &tcp("10.244.1.9", "10.96.0.10", 80)), to(&["10.244.1.2:80"], false));
}

#[test]
fn source_ranges_guard_the_load_balancer_address_only() {
    let pods = ready(&[("10.244.1.2", "n1")]);
    let rules = compile(
        &state(
            &[web(json!({"loadBalancerSourceRanges": ["192.0.2.0/24", "198.51.100.0/24"]}))],
            &[slice("web", "a", 80, "TCP", pods)],
        ),
        &node(),
    );
    assert_eq!(walk(&rules, &tcp("172.30.0.254", "172.30.0.200", 80)), Fate::Dropped);
    assert_eq!(walk(&rules, &tcp("192.0.2.7", "172.30.0.200", 80)), to(&["10.244.1.2:80"], true));
    assert_eq!(walk(&rules, &tcp("172.30.0.254", "172.30.0.11", 30080)), to(&["10.244.1.2:80"], true));
}

#[test]
fn serving_terminating_endpoints_answer_when_none_is_ready() {
    let endpoints = json!([
        {"addresses": ["10.244.1.2"], "nodeName": "n1",
         "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.244.1.3"], "nodeName": "n1", "conditions": {"ready": false, "serving": false}},
    ]);
    let rules = compile(&state(&[web(json!({}))], &[slice("web", "a", 80, "TCP", endpoints)]), &node());
    assert_eq!(walk(&rules, &tcp("10.244.1.9", "10.96.0.10", 80)), to(&["10.244.1.2:80"], false));
}

#[test]
fn services_of_others_and_without_address_make_no_rules() {
    let mut labelled = web(json!({}));
    labelled.metadata.labels =
        Some(BTreeMap::from([("service.kubernetes.io/service-proxy-name".into(), "other".into())]));
    let headless = service("h", json!({"clusterIP": "None", "ports": [{"port": 80}]}), json!({}));
    let external = service("e", json!({"type": "ExternalName", "externalName": "example.com"}), json!({}));
    let rules = compile(&state(&[labelled, headless, external], &[]), &node());
    assert_eq!(rules, Ruleset::default());
}

#[test]
fn host_ports_lead_to_this_nodes_pods_and_yield_to_services() {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "d"},
        "spec": {"containers": [{"name": "c", "ports": [
            {"containerPort": 80, "hostPort": 8081}, {"containerPort": 81},
            {"containerPort": 82, "hostPort": 30080}, {"containerPort": 83, "hostPort": 53, "hostIP": "172.30.0.11"}]}]},
        "status": {"podIP": "10.244.1.5", "phase": "Running"},
    }))
    .expect("a Pod");
    let mut state = state(&[web(json!({}))], &[slice("web", "a", 80, "TCP", ready(&[("10.244.1.2", "n1")]))]);
    state.host_ports = host_ports(&pod);
    let rules = compile(&state, &node());
    assert_eq!(walk(&rules, &tcp("172.30.0.254", "172.30.0.11", 8081)), to(&["10.244.1.5:80"], false));
    assert_eq!(walk(&rules, &tcp("172.30.0.254", "172.30.0.11", 53)), to(&["10.244.1.5:83"], false));
    assert_eq!(walk(&rules, &tcp("172.30.0.254", "172.30.0.11", 30080)), to(&["10.244.1.2:80"], true));
}

#[test]
fn session_affinity_remembers_per_endpoint() {
    let policy =
        json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    let pods = ready(&[("10.244.1.2", "n1"), ("10.244.2.2", "n2")]);
    let rules = compile(&state(&[web(policy)], &[slice("web", "a", 80, "TCP", pods)]), &node());
    let text: Vec<String> = rules.chains["svc-d/web/tcp/80"].iter().map(ToString::to_string).collect();
    assert_eq!(
        text,
        [
            "ip daddr 10.96.0.10 ip saddr != 10.244.0.0/16 jump mark-for-masquerade",
            "ip saddr @aff-d/web/tcp/80/10.244.1.2/80/60 goto ep-d/web/tcp/80/10.244.1.2/80",
            "ip saddr @aff-d/web/tcp/80/10.244.2.2/80/60 goto ep-d/web/tcp/80/10.244.2.2/80",
            "numgen random mod 2 vmap { 0 : goto ep-d/web/tcp/80/10.244.1.2/80, 1 : goto ep-d/web/tcp/80/10.244.2.2/80 }",
        ]
    );
    assert_eq!(rules.remembered.values().collect::<Vec<_>>(), [&60, &60]);
}

#[test]
fn a_change_of_one_service_touches_only_its_rules() {
    let one = ready(&[("10.244.1.2", "n1")]);
    let two = ready(&[("10.244.1.2", "n1"), ("10.244.2.2", "n2")]);
    let other = service("other", json!({"clusterIP": "10.96.0.11", "ports": [{"port": 80}]}), json!({}));
    let with = |pods: Value| {
        compile(&state(&[web(json!({})), other.clone()], &[slice("web", "a", 80, "TCP", pods)]), &node())
    };
    let script = diff(&with(one.clone()), &with(two)).script();
    assert_eq!(
        script,
        "flush chain ip keelson svc-d/web/tcp/80\n\
         add rule ip keelson svc-d/web/tcp/80 ip daddr 10.96.0.10 ip saddr != 10.244.0.0/16 jump mark-for-masquerade\n\
         add rule ip keelson svc-d/web/tcp/80 meta l4proto tcp dnat ip addr . port to numgen random mod 2 map \
         { 0 : 10.244.1.2 . 80, 1 : 10.244.2.2 . 80 }\n"
    );
    assert!(diff(&with(one.clone()), &with(one)).is_empty());
}

#[test]
fn the_whole_script_declares_before_it_uses() {
    let script = full(&compile(&state(&[web(json!({}))], &[]), &node())).script();
    assert!(
        script.starts_with("add table ip keelson\ndelete table ip keelson\nadd table ip keelson\nadd map")
    );
    assert!(script.contains("no-endpoint-ports { tcp . 30080 : goto reject-it }"));
    assert!(FIXED.contains("TABLE") && !script.contains("TABLE"));
}

#[test]
fn udp_flows_to_gone_endpoints_are_named() {
    let spec =
        json!({"clusterIP": "10.96.0.9", "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}]});
    let dns = service("dns", spec, json!({}));
    let with = |pods: &[(&str, &str)]| {
        state(std::slice::from_ref(&dns), &[slice("dns", "a", 5353, "UDP", ready(pods))])
    };
    let (old, new) = (with(&[("10.244.1.2", "n1"), ("10.244.1.3", "n1")]), with(&[("10.244.1.3", "n1")]));
    let (address, endpoint) = (Ipv4Addr::new(10, 96, 0, 9), Ipv4Addr::new(10, 244, 1, 2));
    let expected = BTreeSet::from([
        Flow::ToEndpoint { address, port: 53, endpoint },
        Flow::NodePortToEndpoint { port: 30053, endpoint },
    ]);
    assert_eq!(stale_flows(&old, &new, "n1"), expected);
    let expected = BTreeSet::from([
        Flow::NotRewritten { address, port: 53 },
        Flow::NodePortNotRewritten { port: 30053 },
    ]);
    assert_eq!(stale_flows(&with(&[]), &old, "n1"), expected);
    assert_eq!(stale_flows(&new, &new, "n1"), BTreeSet::new());
}

/// What nft would hold after the changes; panics where nft would refuse.
fn apply(rules: &mut Ruleset, changes: &Changes) {
    for change in &changes.list {
        match change {
            Change::AddRemembered { set, seconds } => {
                assert_eq!(rules.remembered.insert(set.clone(), *seconds), None);
            }
            Change::AddChain(name) => assert_eq!(rules.chains.insert(name.clone(), Vec::new()), None),
            Change::FlushChain(name) => rules.chains.get_mut(name).expect("flushed chain exists").clear(),
            Change::AddRule(name, rule) => {
                rules.chains.get_mut(name).expect("chain of a rule exists").push(rule.clone());
            }
            Change::RemoveElements(kind, keys) => {
                let set = rules.sets.get_mut(kind).expect("set has elements");
                keys.iter().for_each(|key| assert!(set.remove(key).is_some(), "{key} was there"));
            }
            Change::AddElements(kind, elements) => {
                let set = rules.sets.entry(*kind).or_default();
                for (key, verb) in elements {
                    assert_eq!(set.insert(key.clone(), verb.clone()), None, "{key} was free");
                }
            }
            Change::DeleteChain(name) => assert!(rules.chains.remove(name).is_some()),
            Change::DeleteRemembered(set) => assert!(rules.remembered.remove(set).is_some()),
        }
    }
    rules.sets.retain(|_, set| !set.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Service { name: usize, kind: usize, port: u16, affinity: bool, local: bool },
    DropService(usize),
    Slice { service: usize, slice: usize, endpoints: Vec<(u8, u8, bool)> },
    DropSlice(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..3usize;
    prop_oneof![
        (name.clone(), 0..3usize, 80..83u16, any::<bool>(), any::<bool>()).prop_map(
            |(name, kind, port, affinity, local)| Step::Service { name, kind, port, affinity, local }
        ),
        name.clone().prop_map(Step::DropService),
        (name.clone(), 0..2usize, prop::collection::vec((1..4u8, 2..6u8, any::<bool>()), 0..4))
            .prop_map(|(service, slice, endpoints)| Step::Slice { service, slice, endpoints }),
        (name, 0..2usize).prop_map(|(service, slice)| Step::DropSlice(service, slice)),
    ]
}

fn take(state: &mut State, step: &Step) {
    match step {
        Step::Service { name, kind, port, affinity, local } => {
            let kind = ["ClusterIP", "NodePort", "LoadBalancer"][*kind];
            let spec = json!({"clusterIP": format!("10.96.0.{}", name + 1), "type": kind, "externalIPs": ["192.0.2.9"],
                "sessionAffinity": if *affinity { "ClientIP" } else { "None" },
                "externalTrafficPolicy": if *local { "Local" } else { "Cluster" },
                "ports": [{"port": port, "nodePort": if kind == "ClusterIP" { None } else { Some(30000 + port) }}]});
            state.services.apply(&service(&format!("s{name}"), spec, json!({})));
        }
        Step::DropService(name) => state.services.remove(&service(&format!("s{name}"), json!({}), json!({}))),
        Step::Slice { service, slice: index, endpoints } => {
            let endpoints = endpoints
                .iter()
                .map(|(node, host, ready)| {
                    json!({"addresses": [format!("10.244.{node}.{host}")], "nodeName": format!("n{node}"),
                        "conditions": {"ready": ready}})
                })
                .collect();
            state.endpoints.apply(&slice(
                &format!("s{service}"),
                &format!("s{service}-{index}"),
                8080,
                "TCP",
                endpoints,
            ));
        }
        Step::DropSlice(service, index) => {
            let name = format!("s{service}");
            state.endpoints.remove(&slice(&name, &format!("{name}-{index}"), 1, "TCP", json!([])));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// C18: after any history, the rules applied by diffs are those compiled from the latest objects.
    #[test]
    fn applied_diffs_equal_the_rules_of_the_latest_state(steps in prop::collection::vec(step(), 1..25)) {
        let (mut state, mut applied) = (State::default(), Ruleset::default());
        for step in &steps {
            take(&mut state, step);
            let wanted = compile(&state, &node());
            prop_assert_eq!(wanted.check(), Ok(()));
            let changes = diff(&applied, &wanted);
            apply(&mut applied, &changes);
            prop_assert_eq!(&applied, &wanted);
        }
    }

    /// Traffic to a ClusterIP ends at exactly the ready endpoints of the latest slices, or is refused without any.
    #[test]
    fn traffic_ends_at_ready_endpoints_only(steps in prop::collection::vec(step(), 1..25)) {
        let mut state = State::default();
        steps.iter().for_each(|step| take(&mut state, step));
        let rules = compile(&state, &node());
        for (name, info) in state.services.iter() {
            let port = &info.ports[0];
            let packet = Packet { source: Ipv4Addr::new(10, 244, 1, 99), destination: info.cluster_ip, port: port.port,
                protocol: port.protocol };
            let ready = state.endpoints.port(name, "", port.protocol, "n1").cluster;
            let fate = walk(&rules, &packet);
            if ready.is_empty() {
                prop_assert_eq!(fate, Fate::Rejected);
            } else {
                prop_assert_eq!(fate, Fate::To(ready.into_iter().collect(), false));
            }
        }
    }
}
