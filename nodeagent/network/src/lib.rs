//! Pod network and cluster DNS of one node: CNI configuration, routes to other nodes' pods, masquerade, load-balancer
//! addresses, and the DNS server behind the `kube-dns` address.
//!
//! Order: until this node was given a pod range, no CNI configuration exists and the runtime reports its network as not
//! ready; routes and addresses are brought to the plan after every change and once a minute, because others may remove
//! them. On a stop everything stays: pods go on, and a restart finds its own routes (protocol 73) and addresses (label).
//!
//! Knows nothing of what a name resolves to or who holds an address (`nodeagent/core`).
//! Hazard: needs CAP_NET_ADMIN and CAP_NET_RAW, `ip` and `nft`, and runs in the namespace it configures.

mod arp;
mod dns;
mod link;
mod tools;
mod watches;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use ipnet::Ipv4Net;
use keelson_nodeagent_core::network::{conflist, held_addresses, masquerade_script, routes};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use dns::{Dns, Upstream};
use link::Link;
use watches::{Observed, watch};

/// Changes that come within this time become one round.
const GATHER: Duration = Duration::from_millis(30);
/// Between two rounds without a change.
const LOOK: Duration = Duration::from_secs(60);
/// After a round that failed.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// This node's address on the link all nodes share.
    pub node_ip: Ipv4Addr,
    /// Where all pods live; without it only this node's own pods keep their address.
    pub cluster_cidr: Option<Ipv4Net>,
    /// Folder the runtime reads its CNI configuration from.
    pub cni_conf_dir: PathBuf,
    /// Folder of host-local's reservations.
    pub ipam_dir: PathBuf,
    /// Address of the cluster's DNS service; put on this node's loopback. `None`: no DNS server here.
    pub dns_ip: Option<Ipv4Addr>,
    /// The cluster's domain.
    pub domain: String,
    /// Where the node's own name servers stand.
    pub resolv_conf: PathBuf,
}

/// Runs until the token is cancelled.
///
/// # Errors
/// When the node's address is on no interface, or a tool is missing.
pub async fn run(client: kube::Client, config: Config, token: CancellationToken) -> Result<()> {
    let link = Link::find(config.node_ip).await?;
    link::allow_forwarding();
    let domain = config.domain.clone();
    let dns = Dns::new(&domain, config.dns_ip.map_or(IpAddr::V4(config.node_ip), IpAddr::V4));
    if let Some(address) = config.dns_ip {
        link::hold_on_loopback(address).await?;
        let upstream = Upstream::new(config.resolv_conf.clone(), vec![IpAddr::V4(address)]);
        tokio::spawn(dns.clone().serve((address, 53).into(), upstream, token.clone()));
    }
    Network { config, link, dns, written: None }.run(client, token).await
}

struct Network {
    config: Config,
    link: Link,
    dns: Dns,
    /// The CNI configuration and masquerade rules on this node are for this range.
    written: Option<Ipv4Net>,
}

impl Network {
    async fn run(mut self, client: kube::Client, token: CancellationToken) -> Result<()> {
        let mut inputs = watch(client);
        let mut observed = Observed::new(self.dns.clone());
        let mut due: Option<Instant> = None;
        loop {
            let wait = due;
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                input = inputs.next() => {
                    let Some(input) = input else { anyhow::bail!("the watches ended") };
                    observed.take(input);
                    let soon = Instant::now() + GATHER;
                    due = Some(due.map_or(soon, |due| due.min(soon)));
                }
                () = async { tokio::time::sleep_until(wait.unwrap_or_else(Instant::now)).await }, if wait.is_some() => {
                    due = Some(Instant::now() + match self.round(&observed).await {
                        Ok(()) => LOOK,
                        Err(error) => {
                            warn!("pod network not as planned, tried again in {RETRY:?}: {error:#}");
                            RETRY
                        }
                    });
                }
            }
        }
    }

    /// Makes this node's network what the latest objects ask for.
    async fn round(&mut self, observed: &Observed) -> Result<()> {
        let Some(nodes) = observed.nodes() else { return Ok(()) };
        if let Some(range) = nodes.get(&self.config.node_name).and_then(|me| me.pods) {
            self.configure(range).await?;
        }
        self.link
            .sync_routes(&routes(nodes, &self.config.node_name))
            .await
            .context("routes to other nodes")?;
        if let Some(candidates) = observed.candidates() {
            let held = held_addresses(nodes, &candidates, &self.config.node_name);
            self.link.sync_addresses(&held).await.context("load-balancer addresses")?;
        }
        Ok(())
    }

    async fn configure(&mut self, range: Ipv4Net) -> Result<()> {
        if self.written == Some(range) {
            return Ok(());
        }
        let cluster = self.config.cluster_cidr;
        tools::nft(&masquerade_script(range, cluster)).await.context("masquerade rules")?;
        let (folder, ipam) = (&self.config.cni_conf_dir, &self.config.ipam_dir);
        for folder in [folder, ipam] {
            std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let text = serde_json::to_string_pretty(&conflist(range, self.link.mtu, &ipam.to_string_lossy()))?;
        // The runtime watches the folder: the file appears whole, under its name, at once.
        let (path, fresh) = (folder.join("10-keelson.conflist"), folder.join(".10-keelson.conflist.new"));
        std::fs::write(&fresh, text).with_context(|| format!("write {}", fresh.display()))?;
        std::fs::rename(&fresh, &path).with_context(|| format!("write {}", path.display()))?;
        info!(%range, mtu = self.link.mtu, "pod network configured in {}", path.display());
        self.written = Some(range);
        Ok(())
    }
}
