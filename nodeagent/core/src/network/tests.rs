//! Routes, election and masquerade of small clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde_json::json;

use super::*;

fn cluster(count: u8) -> BTreeMap<String, NodeNet> {
    (1..=count)
        .map(|index| {
            let node = json!({
                "metadata": {"name": format!("n{index}")}, "spec": {"podCIDR": format!("10.244.{index}.0/24")},
                "status": {"addresses": [{"type": "Hostname", "address": "x"},
                    {"type": "InternalIP", "address": format!("172.30.0.1{index}")}],
                    "conditions": [{"type": "Ready", "status": "True"}]},
            });
            let node = read_node(&serde_json::from_value(node).expect("a Node")).expect("a name");
            (node.name.clone(), node)
        })
        .collect()
}

#[test]
fn every_other_node_with_address_and_range_gets_a_route() {
    let mut nodes = cluster(3);
    let text = |nodes: &BTreeMap<String, NodeNet>| -> Vec<String> {
        routes(nodes, "n1").iter().map(|route| format!("{} via {}", route.to, route.via)).collect()
    };
    assert_eq!(text(&nodes), ["10.244.2.0/24 via 172.30.0.12", "10.244.3.0/24 via 172.30.0.13"]);
    nodes.get_mut("n2").expect("n2").ready = false;
    nodes.get_mut("n3").expect("n3").pods = None;
    assert_eq!(text(&nodes), ["10.244.2.0/24 via 172.30.0.12"], "late nodes keep their route");
}

#[test]
fn all_nodes_agree_on_one_holder_and_it_moves_only_when_it_must() {
    let mut nodes = cluster(3);
    let candidates: Vec<Candidate> = (0..200u8)
        .map(|last| Candidate { address: Ipv4Addr::new(172, 30, 0, last.max(20)), nodes: None })
        .collect();
    let before: BTreeMap<Ipv4Addr, String> = candidates
        .iter()
        .map(|candidate| (candidate.address, owner(&nodes, candidate).expect("a holder").to_owned()))
        .collect();
    let held: Vec<BTreeSet<Ipv4Addr>> =
        nodes.keys().map(|me| held_addresses(&nodes, &candidates, me)).collect();
    assert_eq!(held.iter().map(BTreeSet::len).sum::<usize>(), before.len(), "one holder each");
    assert!(held.iter().all(|mine| mine.len() > 20), "spread over the nodes: {held:?}");
    nodes.get_mut("n2").expect("n2").ready = false;
    for candidate in &candidates {
        let now = owner(&nodes, candidate).expect("a holder");
        let was = &before[&candidate.address];
        assert!(now == was || was == "n2", "{} moved from {was} to {now}", candidate.address);
        assert_ne!(now, "n2");
    }
}

#[test]
fn nobody_holds_what_no_node_may() {
    let mut nodes = cluster(2);
    let address = Ipv4Addr::new(172, 30, 0, 200);
    let only =
        |names: &[&str]| Candidate { address, nodes: Some(names.iter().map(ToString::to_string).collect()) };
    assert_eq!(owner(&nodes, &only(&["n2"])), Some("n2"));
    assert_eq!(owner(&nodes, &only(&[])), None);
    nodes.get_mut("n2").expect("n2").excluded = true;
    assert_eq!(owner(&nodes, &only(&["n2"])), None);
    let node_address = Candidate { address: Ipv4Addr::new(172, 30, 0, 11), nodes: None };
    assert!(
        held_addresses(&nodes, &[node_address], "n1").is_empty(),
        "a node's own address is not taken over"
    );
}

#[test]
fn configuration_and_masquerade_name_the_ranges() {
    let pods = "10.244.1.0/24".parse().expect("a CIDR");
    let list = conflist(pods, 1450, "/var/lib/ipam");
    assert_eq!(list["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.244.1.0/24");
    assert_eq!(list["plugins"][0]["mtu"], 1450);
    let script = masquerade_script(pods, Some("10.244.0.0/16".parse().expect("a CIDR")));
    assert!(script.contains("ip saddr 10.244.1.0/24 ip daddr != { 10.244.0.0/16, 224.0.0.0/4 } masquerade"));
}
