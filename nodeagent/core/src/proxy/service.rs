//! Services as the proxy sees them: only what becomes rules, checked and ordered.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};

/// Label that hands a Service to another proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Affinity timeout when `sessionAffinityConfig` is absent, seconds.
const AFFINITY_SECONDS: u32 = 10_800;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// `None`: a protocol the proxy does not know.
    pub fn parse(text: Option<&str>) -> Option<Protocol> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

impl ServiceName {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> ServiceName {
        ServiceName { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name of the port, "" when unnamed; joins the Service to its slices.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// One Service that has an address to answer on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceInfo {
    pub cluster_ip: Ipv4Addr,
    pub external_ips: Vec<Ipv4Addr>,
    pub load_balancer_ips: Vec<Ipv4Addr>,
    /// Who may reach the load balancer's addresses; empty: everybody.
    pub source_ranges: Vec<Ipv4Net>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `sessionAffinity: ClientIP`, timeout in seconds.
    pub affinity: Option<u32>,
    pub health_check_node_port: Option<u16>,
    pub ports: Vec<ServicePort>,
}

impl ServiceInfo {
    /// `None`: nothing to proxy (headless, ExternalName, no address yet, IPv6 only, another proxy's).
    fn read(service: &Service) -> Option<ServiceInfo> {
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName")
            || service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME))
        {
            return None;
        }
        let cluster_ip = cluster_ip(spec)?;
        let load_balancer_ips = ordered(
            service
                .status
                .iter()
                .filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref())
                .flatten()
                .filter(|ingress| ingress.ip_mode.as_deref().unwrap_or("VIP") == "VIP")
                .filter_map(|ingress| ingress.ip.as_deref()?.parse().ok()),
        );
        Some(ServiceInfo {
            cluster_ip,
            external_ips: ordered(spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok())),
            load_balancer_ips,
            source_ranges: ordered(
                spec.load_balancer_source_ranges
                    .iter()
                    .flatten()
                    .filter_map(|range| range.trim().parse().ok()),
            ),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            affinity: (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| affinity_seconds(spec)),
            health_check_node_port: spec.health_check_node_port.and_then(port_number),
            ports: spec.ports.iter().flatten().filter_map(service_port).collect(),
        })
    }
}

fn service_port(port: &k8s_openapi::api::core::v1::ServicePort) -> Option<ServicePort> {
    Some(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        protocol: Protocol::parse(port.protocol.as_deref())?,
        port: port_number(port.port)?,
        node_port: port.node_port.and_then(port_number),
    })
}

fn cluster_ip(spec: &ServiceSpec) -> Option<Ipv4Addr> {
    spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()).find_map(|ip| ip.parse().ok())
}

fn affinity_seconds(spec: &ServiceSpec) -> u32 {
    spec.session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref()?.timeout_seconds)
        .and_then(|seconds| u32::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0)
        .unwrap_or(AFFINITY_SECONDS)
}

/// A port of the API (`int32`) that is a port.
pub(super) fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

fn ordered<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort();
    items.dedup();
    items
}

/// The latest Services, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceMap {
    services: BTreeMap<ServiceName, ServiceInfo>,
}

impl ServiceMap {
    /// Takes in the object as it is now.
    pub fn apply(&mut self, service: &Service) {
        let Some(name) = name_of(service) else { return };
        match ServiceInfo::read(service) {
            Some(info) => self.services.insert(name, info),
            None => self.services.remove(&name),
        };
    }

    pub fn remove(&mut self, service: &Service) {
        if let Some(name) = name_of(service) {
            self.services.remove(&name);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ServiceName, &ServiceInfo)> {
        self.services.iter()
    }

    pub fn get(&self, name: &ServiceName) -> Option<&ServiceInfo> {
        self.services.get(name)
    }
}

fn name_of(service: &Service) -> Option<ServiceName> {
    Some(ServiceName::new(service.metadata.namespace.clone()?, service.metadata.name.clone()?))
}
