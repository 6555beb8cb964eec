//! What the cluster holds of its own configuration: decided once by the first server, handed to every joiner.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::pki::private_file;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Settings {
    /// Pods of all nodes.
    pub cluster_cidr: Ipv4Net,
    /// ClusterIPs.
    pub service_cidr: Ipv4Net,
    pub domain: String,
    /// Addresses for Services of type LoadBalancer: ranges or CIDRs; empty: none are given.
    pub load_balancer_pool: Vec<String>,
    /// Folder on the nodes under which the StorageClass `local-path` makes its volumes.
    pub local_path: String,
    /// Seconds of silence after which a node counts as lost.
    pub node_monitor_grace_seconds: u32,
    /// Secret of server tokens.
    pub server_secret: String,
    /// Secret of node tokens.
    pub node_secret: String,
}

impl Settings {
    /// The `kubernetes` Service's address: the first of the range.
    pub fn api_ip(&self) -> Ipv4Addr {
        self.service_cidr.hosts().next().unwrap_or(self.service_cidr.network())
    }

    /// The cluster DNS's address: the tenth.
    pub fn dns_ip(&self) -> Ipv4Addr {
        self.service_cidr.hosts().nth(9).unwrap_or(self.service_cidr.network())
    }

    /// # Errors
    /// Ranges that overlap or are too small; the message names the flag.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.service_cidr.prefix_len() <= 28,
            "--service-cidr {} is too small: want /28 or larger",
            self.service_cidr
        );
        ensure!(
            self.cluster_cidr.prefix_len() <= 24,
            "--cluster-cidr {} is too small: every node takes a /24 of it",
            self.cluster_cidr
        );
        let apart = !self.service_cidr.contains(&self.cluster_cidr.network())
            && !self.cluster_cidr.contains(&self.service_cidr.network());
        ensure!(
            apart,
            "--cluster-cidr {} and --service-cidr {} overlap",
            self.cluster_cidr,
            self.service_cidr
        );
        Ok(())
    }
}

/// What one server remembers, so that it starts again without flags.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct ServerState {
    pub node_name: String,
    pub node_ip: Ipv4Addr,
    /// The one address to listen on; `None`: all of the machine's.
    #[serde(default)]
    pub bind: Option<Ipv4Addr>,
    pub settings: Settings,
    /// (name, peer URL) as of the first start; later the store knows better.
    pub members: Vec<(String, String)>,
    /// Whether this server founded the cluster.
    pub founder: bool,
}

impl ServerState {
    /// Where this machine's own programs reach the server.
    pub fn local(&self) -> Ipv4Addr {
        self.bind.unwrap_or(Ipv4Addr::LOCALHOST)
    }
}

/// What one agent remembers.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct AgentState {
    pub node_name: String,
    pub node_ip: Ipv4Addr,
    pub cluster_cidr: Ipv4Net,
    pub dns_ip: Ipv4Addr,
    pub domain: String,
    pub local_path: String,
    pub authority: String,
    /// Client certificate of `system:node:<name>`, also the kubelet's serving certificate.
    pub kubelet: crate::pki::Pair,
    /// Client certificate of `system:kube-proxy`.
    pub proxy: crate::pki::Pair,
    /// Seconds since 1970 at which the certificates are renewed at the next start.
    pub renew_after: i64,
}

/// Reads JSON; `None`: no such file.
///
/// # Errors
/// When the file is there and can't be read.
pub fn load<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).map(Some).with_context(|| format!("{} is damaged", path.display()))
}

/// # Errors
/// When the file can't be written.
pub fn save<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    private_file(path, &serde_json::to_vec_pretty(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(cluster: &str, service: &str) -> Settings {
        Settings {
            cluster_cidr: cluster.parse().expect("a CIDR"),
            service_cidr: service.parse().expect("a CIDR"),
            domain: "cluster.local".into(),
            load_balancer_pool: vec![],
            node_monitor_grace_seconds: 40,
            local_path: "/var/lib/keelson/local-path".into(),
            server_secret: "s".into(),
            node_secret: "n".into(),
        }
    }

    #[test]
    fn well_known_addresses_come_from_the_service_range() {
        let settings = settings("10.244.0.0/16", "10.96.0.0/16");
        settings.check().expect("fine");
        assert_eq!(settings.api_ip().to_string(), "10.96.0.1");
        assert_eq!(settings.dns_ip().to_string(), "10.96.0.10");
    }

    #[test]
    fn overlapping_and_tiny_ranges_are_refused_by_flag() {
        let refused = |cluster, service| settings(cluster, service).check().expect_err("refused").to_string();
        assert!(refused("10.96.0.0/12", "10.96.0.0/16").contains("overlap"));
        assert!(refused("10.244.0.0/16", "10.96.0.0/30").contains("--service-cidr"));
        assert!(refused("10.244.0.0/28", "10.96.0.0/16").contains("--cluster-cidr"));
    }
}
