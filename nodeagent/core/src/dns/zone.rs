//! What the cluster's names stand for, kept up to date object by object.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// (namespace, name).
pub(super) type Key = (String, String);

const SERVICE_NAME: &str = "kubernetes.io/service-name";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServicePort {
    pub name: String,
    /// "tcp", "udp", "sctp".
    pub protocol: String,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Addresses(Vec<IpAddr>),
    Headless,
    External(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceEntry {
    pub kind: Kind,
    pub ports: Vec<ServicePort>,
}

/// One address behind a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Endpoint {
    /// The pod's hostname when it has a subdomain, else the address with dashes.
    pub label: String,
    /// Whether `label` is a real hostname: only those have PTR records.
    pub named: bool,
    pub address: IpAddr,
    /// (port name, protocol, number).
    pub ports: Vec<(String, String, u16)>,
}

/// The zone. `domain` is the cluster's, e.g. `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    pub(super) domain: String,
    pub(super) server: IpAddr,
    pub(super) serial: u32,
    services: BTreeMap<Key, ServiceEntry>,
    slices: BTreeMap<Key, BTreeMap<String, Vec<Endpoint>>>,
    /// (namespace, slice) -> Service.
    owners: BTreeMap<Key, Key>,
    /// Cluster addresses -> Services, for PTR.
    reverse: BTreeMap<IpAddr, BTreeSet<Key>>,
    /// Named endpoints -> (Service, label), for PTR.
    reverse_endpoints: BTreeMap<IpAddr, BTreeSet<(Key, String)>>,
}

impl Zone {
    /// `server`: the address this zone is served on (the `kube-dns` Service's).
    pub fn new(domain: &str, server: IpAddr) -> Zone {
        Zone {
            domain: domain.trim_matches('.').to_ascii_lowercase(),
            server,
            serial: 1,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            owners: BTreeMap::new(),
            reverse: BTreeMap::new(),
            reverse_endpoints: BTreeMap::new(),
        }
    }

    pub fn apply_service(&mut self, service: &Service) {
        self.remove_service(service);
        let (Some(key), Some(entry)) = (service_key(service), service_entry(service)) else { return };
        if let Kind::Addresses(addresses) = &entry.kind {
            for address in addresses {
                self.reverse.entry(*address).or_default().insert(key.clone());
            }
        }
        self.services.insert(key, entry);
    }

    pub fn remove_service(&mut self, service: &Service) {
        self.serial = self.serial.wrapping_add(1).max(1);
        let Some(key) = service_key(service) else { return };
        if let Some(ServiceEntry { kind: Kind::Addresses(addresses), .. }) = self.services.remove(&key) {
            for address in addresses {
                forget(&mut self.reverse, address, &key);
            }
        }
    }

    pub fn apply_slice(&mut self, slice: &EndpointSlice) {
        self.remove_slice(slice);
        let Some((namespace, name)) = slice_key(slice) else { return };
        let Some(service) = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) else {
            return;
        };
        let owner = (namespace.clone(), service.clone());
        let endpoints = slice_endpoints(slice);
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.named) {
            let names = self.reverse_endpoints.entry(endpoint.address).or_default();
            names.insert((owner.clone(), endpoint.label.clone()));
        }
        self.owners.insert((namespace, name.clone()), owner.clone());
        self.slices.entry(owner).or_default().insert(name, endpoints);
    }

    pub fn remove_slice(&mut self, slice: &EndpointSlice) {
        self.serial = self.serial.wrapping_add(1).max(1);
        let Some(key) = slice_key(slice) else { return };
        let Some(owner) = self.owners.remove(&key) else { return };
        let Some(slices) = self.slices.get_mut(&owner) else { return };
        let gone = slices.remove(&key.1).unwrap_or_default();
        // Another slice of the Service may still hold the endpoint.
        let kept: BTreeSet<Endpoint> = slices.values().flatten().cloned().collect();
        if slices.is_empty() {
            self.slices.remove(&owner);
        }
        for endpoint in gone.into_iter().filter(|endpoint| !kept.contains(endpoint)) {
            forget(&mut self.reverse_endpoints, endpoint.address, &(owner.clone(), endpoint.label));
        }
    }

    pub(super) fn service(&self, namespace: &str, name: &str) -> Option<&ServiceEntry> {
        self.services.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Whether any Service lives in the namespace.
    pub(super) fn has_namespace(&self, namespace: &str) -> bool {
        let first = self.services.range((namespace.to_owned(), String::new())..).next();
        first.is_some_and(|((of, _), _)| of == namespace)
    }

    /// Ready endpoints of a Service, sorted.
    pub(super) fn endpoints(&self, namespace: &str, name: &str) -> Vec<&Endpoint> {
        let slices = self.slices.get(&(namespace.to_owned(), name.to_owned()));
        let mut endpoints: Vec<&Endpoint> = slices.into_iter().flat_map(BTreeMap::values).flatten().collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        endpoints
    }

    /// Names of an address inside the zone.
    pub(super) fn names_of(&self, address: IpAddr) -> Vec<String> {
        if let Some(services) = self.reverse.get(&address) {
            return services.iter().map(|(ns, name)| format!("{name}.{ns}.svc.{}", self.domain)).collect();
        }
        let endpoints = self.reverse_endpoints.get(&address).into_iter().flatten();
        endpoints.map(|((ns, name), label)| format!("{label}.{name}.{ns}.svc.{}", self.domain)).collect()
    }
}

fn forget<K: Ord>(index: &mut BTreeMap<IpAddr, BTreeSet<K>>, address: IpAddr, key: &K) {
    if let Some(keys) = index.get_mut(&address) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(&address);
        }
    }
}

fn service_key(service: &Service) -> Option<Key> {
    Some((service.metadata.namespace.clone()?, service.metadata.name.clone()?))
}

fn slice_key(slice: &EndpointSlice) -> Option<Key> {
    Some((slice.metadata.namespace.clone()?, slice.metadata.name.clone()?))
}

fn service_entry(service: &Service) -> Option<ServiceEntry> {
    let spec = service.spec.as_ref()?;
    let kind = if spec.type_.as_deref() == Some("ExternalName") {
        Kind::External(spec.external_name.as_ref()?.trim_end_matches('.').to_ascii_lowercase())
    } else if spec.cluster_ip.as_deref() == Some("None") {
        Kind::Headless
    } else {
        let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let mut addresses: Vec<IpAddr> = listed.filter_map(|ip| ip.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return None;
        }
        Kind::Addresses(addresses)
    };
    let port = |port: &k8s_openapi::api::core::v1::ServicePort| {
        Some(ServicePort {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(),
            port: u16::try_from(port.port).ok()?,
        })
    };
    Some(ServiceEntry { kind, ports: spec.ports.iter().flatten().filter_map(port).collect() })
}

fn slice_endpoints(slice: &EndpointSlice) -> Vec<Endpoint> {
    let ports: Vec<(String, String, u16)> = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
            Some((port.name.clone().unwrap_or_default(), protocol, u16::try_from(port.port?).ok()?))
        })
        .collect();
    let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    });
    ready
        .flat_map(|endpoint| {
            let (hostname, ports) = (endpoint.hostname.clone(), ports.clone());
            endpoint.addresses.iter().filter_map(|text| text.parse().ok()).map(move |address: IpAddr| {
                let label = hostname.clone().unwrap_or_else(|| dashed(address));
                Endpoint { label, named: hostname.is_some(), address, ports: ports.clone() }
            })
        })
        .collect()
}

/// `10.1.2.3` -> `10-1-2-3`, `::1` -> `--1`.
pub(super) fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}
