//! The node's interface: its MTU, the routes over it, the addresses on it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use keelson_nodeagent_core::network::Route;
use serde_json::Value;
use tracing::{info, warn};

use crate::arp;
use crate::tools::{ip, ip_list};

/// Marks routes as ours (`ip route show proto 73`).
const PROTOCOL: &str = "73";
/// Longest interface label the kernel takes.
const LABEL: usize = 15;

/// The interface that holds the node's address.
#[derive(Clone, Debug)]
pub struct Link {
    pub name: String,
    pub mtu: u32,
}

impl Link {
    /// # Errors
    /// When no interface holds `address`.
    pub async fn find(address: Ipv4Addr) -> Result<Link> {
        let links = ip_list(&["-4", "addr", "show"]).await?;
        let text = address.to_string();
        let holds = |link: &&Value| addresses(link).any(|info| info["local"] == text.as_str());
        let link = links.iter().find(holds).with_context(|| {
            format!("no interface has the node's address {address}: give the right one with --node-ip")
        })?;
        let name = link["ifname"].as_str().context("an interface without a name")?.to_owned();
        let mtu = link["mtu"].as_u64().and_then(|mtu| u32::try_from(mtu).ok()).unwrap_or(1500);
        Ok(Link { name, mtu })
    }

    /// Adds what is missing, removes what is ours and not wanted.
    ///
    /// # Errors
    /// The first route the kernel refused; the others were still tried.
    pub async fn sync_routes(&self, wanted: &[Route]) -> Result<()> {
        let there: BTreeSet<(String, String)> = ip_list(&["-4", "route", "show", "proto", PROTOCOL])
            .await?
            .iter()
            .filter_map(|route| {
                Some((route["dst"].as_str()?.to_owned(), route["gateway"].as_str()?.to_owned()))
            })
            .collect();
        let wanted: BTreeSet<(String, String)> =
            wanted.iter().map(|route| (route.to.to_string(), route.via.to_string())).collect();
        let mut failed = Ok(());
        for (to, via) in wanted.difference(&there) {
            info!("route to pods {to} via {via}");
            let words = ["route", "replace", to, "via", via, "dev", &self.name, "proto", PROTOCOL];
            failed = failed.and(ip(&words).await.map(drop));
        }
        let kept: BTreeSet<&String> = wanted.iter().map(|(to, _)| to).collect();
        for (to, via) in there.iter().filter(|(to, _)| !kept.contains(to)) {
            info!("no route to pods {to} via {via} any more");
            failed = failed.and(ip(&["route", "del", to, "via", via, "proto", PROTOCOL]).await.map(drop));
        }
        failed
    }

    /// Holds exactly `wanted` of the cluster's load-balancer addresses; new ones are announced.
    ///
    /// # Errors
    /// The first address the kernel refused; the others were still tried.
    pub async fn sync_addresses(&self, wanted: &BTreeSet<Ipv4Addr>) -> Result<()> {
        let label = self.label();
        let links = ip_list(&["-4", "addr", "show", "dev", &self.name]).await?;
        let there: BTreeSet<Ipv4Addr> = links
            .iter()
            .flat_map(addresses)
            .filter(|info| info["label"] == label.as_str() && info["prefixlen"] == 32)
            .filter_map(|info| info["local"].as_str()?.parse().ok())
            .collect();
        let mut failed = Ok(());
        for address in wanted.difference(&there) {
            info!("this node answers for the load-balancer address {address}");
            let text = format!("{address}/32");
            failed = failed
                .and(ip(&["addr", "replace", &text, "dev", &self.name, "label", &label]).await.map(drop));
            if let Err(error) = arp::announce(&self.name, *address) {
                warn!(%address, "neighbours not told: {error:#}");
            }
        }
        for address in there.difference(wanted) {
            info!("this node no longer answers for the load-balancer address {address}");
            failed =
                failed.and(ip(&["addr", "del", &format!("{address}/32"), "dev", &self.name]).await.map(drop));
        }
        failed
    }

    /// A label must start with the interface's name; a name too long for one has its addresses unlabelled.
    fn label(&self) -> String {
        let label = format!("{}:klb", self.name);
        if label.len() <= LABEL { label } else { self.name.clone() }
    }
}

fn addresses(link: &Value) -> impl Iterator<Item = &Value> {
    link["addr_info"].as_array().into_iter().flatten()
}

/// Puts a service's address on the loopback, so that this node answers it.
///
/// # Errors
/// When the kernel refuses.
pub async fn hold_on_loopback(address: Ipv4Addr) -> Result<()> {
    ip(&["link", "set", "lo", "up"]).await?;
    ip(&["addr", "replace", &format!("{address}/32"), "dev", "lo"]).await.map(drop)
}

/// Lets the node pass packets on. A kernel that refuses is reported and not fatal: it may be set from outside.
pub fn allow_forwarding() {
    for (setting, value, needed) in [
        ("/proc/sys/net/ipv4/ip_forward", "1", true),
        // Without the bridge module there is nothing to set yet.
        ("/proc/sys/net/bridge/bridge-nf-call-iptables", "1", false),
    ] {
        if let Err(error) = std::fs::write(setting, value)
            && needed
        {
            warn!(%error, "{setting} could not be set to {value}: pods may not reach other nodes");
        }
    }
}
