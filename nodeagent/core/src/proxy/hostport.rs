//! `hostPort`s of the pods of this node: the proxy owns them, so that pod start needs no portmap plugin.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Pod;

use super::service::{Protocol, port_number};

/// One port of the node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Owner, `namespace/pod`, used in the chain's name.
    pub pod: String,
    pub protocol: Protocol,
    /// `None`: every address of the node.
    pub host_ip: Option<Ipv4Addr>,
    pub host_port: u16,
    pub pod_ip: Ipv4Addr,
    pub container_port: u16,
}

/// The host ports of `pod`; none for a pod on the host's network, without an address, or that has ended.
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { return Vec::new() };
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let Some(pod_ip) = status.pod_ip.as_deref().and_then(|ip| ip.parse().ok()) else { return Vec::new() };
    if ended || spec.host_network == Some(true) {
        return Vec::new();
    }
    let name = format!(
        "{}/{}",
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        pod.metadata.name.as_deref().unwrap_or_default()
    );
    let mut ports: Vec<HostPort> = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(HostPort {
                pod: name.clone(),
                protocol: Protocol::parse(port.protocol.as_deref())?,
                host_ip: port
                    .host_ip
                    .as_deref()
                    .and_then(|ip| ip.parse().ok())
                    .filter(|ip: &Ipv4Addr| !ip.is_unspecified()),
                host_port: port.host_port.and_then(port_number)?,
                pod_ip,
                container_port: port_number(port.container_port)?,
            })
        })
        .collect();
    ports.sort();
    ports.dedup();
    ports
}
