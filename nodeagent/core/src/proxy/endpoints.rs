//! EndpointSlices as the proxy sees them, and the choice of endpoints that get traffic.
//!
//! Ready endpoints get traffic; when none is ready, those that still serve while terminating do, so that a rollout of a
//! node's last pod does not drop connections.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::service::{Protocol, ServiceName, port_number};

const SERVICE_NAME: &str = "kubernetes.io/service-name";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    pub address: Ipv4Addr,
    pub port: u16,
    pub node: Option<String>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

/// The endpoints of one Service port that traffic may go to, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortEndpoints {
    /// Wherever they are.
    pub cluster: Vec<(Ipv4Addr, u16)>,
    /// On this node.
    pub local: Vec<(Ipv4Addr, u16)>,
}

type Slice = BTreeMap<(String, Protocol), Vec<Endpoint>>;

/// The latest EndpointSlices, by Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointsMap {
    /// Service -> slice name -> endpoints by port.
    slices: BTreeMap<ServiceName, BTreeMap<String, Slice>>,
    /// (namespace, slice) -> its Service, for slices whose label moves.
    owners: BTreeMap<(String, String), ServiceName>,
}

impl EndpointsMap {
    /// Takes in the object as it is now.
    pub fn apply(&mut self, slice: &EndpointSlice) {
        self.remove(slice);
        let Some((namespace, name)) = name_of(slice) else { return };
        let Some(service) = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) else {
            return;
        };
        if slice.address_type != "IPv4" {
            return;
        }
        let service = ServiceName::new(namespace.clone(), service.clone());
        self.owners.insert((namespace, name.clone()), service.clone());
        self.slices.entry(service).or_default().insert(name, read(slice));
    }

    pub fn remove(&mut self, slice: &EndpointSlice) {
        let Some((namespace, name)) = name_of(slice) else { return };
        let Some(service) = self.owners.remove(&(namespace, name.clone())) else { return };
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.remove(&name);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
    }

    /// The endpoints of one port that traffic may go to from node `node`.
    pub fn port(&self, service: &ServiceName, port: &str, protocol: Protocol, node: &str) -> PortEndpoints {
        let key = (port.to_owned(), protocol);
        let all: Vec<&Endpoint> = self
            .slices
            .get(service)
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter_map(|slice| slice.get(&key))
            .flatten()
            .collect();
        let local = all.iter().copied().filter(|endpoint| endpoint.node.as_deref() == Some(node));
        PortEndpoints { cluster: usable(all.iter().copied()), local: usable(local) }
    }
}

fn name_of(slice: &EndpointSlice) -> Option<(String, String)> {
    Some((slice.metadata.namespace.clone()?, slice.metadata.name.clone()?))
}

fn read(slice: &EndpointSlice) -> Slice {
    let mut ports = Slice::new();
    for port in slice.ports.iter().flatten() {
        let (Some(protocol), Some(number)) =
            (Protocol::parse(port.protocol.as_deref()), port.port.and_then(port_number))
        else {
            continue;
        };
        let endpoints = slice.endpoints.iter().flatten().filter_map(|endpoint| {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            let node = endpoint.node_name.clone();
            // Upstream: all addresses of one endpoint are fungible, only the first is used.
            endpoint.addresses.first().and_then(|address| address.parse().ok()).map(|address| Endpoint {
                address,
                port: number,
                node,
                ready,
                serving: conditions.serving.unwrap_or(ready),
                terminating: conditions.terminating.unwrap_or(false),
            })
        });
        ports.entry((port.name.clone().unwrap_or_default(), protocol)).or_default().extend(endpoints);
    }
    ports
}

fn usable<'a>(endpoints: impl Iterator<Item = &'a Endpoint> + Clone) -> Vec<(Ipv4Addr, u16)> {
    let pick = |wanted: fn(&Endpoint) -> bool| {
        let mut chosen: Vec<(Ipv4Addr, u16)> = endpoints
            .clone()
            .filter(|endpoint| wanted(endpoint))
            .map(|endpoint| (endpoint.address, endpoint.port))
            .collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    };
    let ready = pick(|endpoint| endpoint.ready);
    if ready.is_empty() { pick(|endpoint| endpoint.serving && endpoint.terminating) } else { ready }
}
