//! The nodes' network: a namespace each, joined by a bridge in one more, with this machine on the same link.
//!
//! Every step checks first and may be repeated. IPv4 forwarding is switched on inside the nodes only.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::layout::{HOST_IP, HOST_LINK, Node, UNDERLAY};

fn ip(line: &str) -> Result<()> {
    let output = Command::new("ip").args(line.split_whitespace()).output().context("run ip")?;
    if !output.status.success() {
        bail!("ip {line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn there(line: &str) -> bool {
    Command::new("ip").args(line.split_whitespace()).output().is_ok_and(|output| output.status.success())
}

fn has_namespace(name: &str) -> bool {
    // A name without a namespace behind it is left over from a crash.
    there(&format!("-n {name} link show lo"))
}

fn add_namespace(name: &str) -> Result<()> {
    if has_namespace(name) {
        return Ok(());
    }
    if std::path::Path::new("/run/netns").join(name).exists() {
        ip(&format!("netns del {name}"))?;
    }
    ip(&format!("netns add {name}"))?;
    ip(&format!("-n {name} link set lo up"))
}

/// The bridge between the nodes, and this machine's place on it.
///
/// # Errors
/// What the kernel refuses.
pub fn make_underlay() -> Result<()> {
    add_namespace(UNDERLAY)?;
    if !there(&format!("-n {UNDERLAY} link show br0")) {
        ip(&format!("-n {UNDERLAY} link add br0 type bridge"))?;
    }
    ip(&format!("-n {UNDERLAY} link set br0 up"))?;
    if !there(&format!("link show {HOST_LINK}")) {
        ip(&format!("link add {HOST_LINK} type veth peer name host netns {UNDERLAY}"))?;
    }
    ip(&format!("-n {UNDERLAY} link set host master br0 up"))?;
    ip(&format!("link set {HOST_LINK} up"))?;
    ip(&format!("addr replace {HOST_IP}/24 dev {HOST_LINK}"))
}

/// A node's namespace and its link to the bridge.
///
/// # Errors
/// What the kernel refuses.
pub fn make_node(node: &Node) -> Result<()> {
    let Node { name, namespace: Some(namespace), ip: address, .. } = node else { return Ok(()) };
    add_namespace(namespace)?;
    if !there(&format!("-n {namespace} link show eth0")) {
        ip(&format!("link add ve-{name} netns {UNDERLAY} type veth peer name eth0 netns {namespace}"))?;
    }
    ip(&format!("-n {UNDERLAY} link set ve-{name} master br0 up"))?;
    ip(&format!("-n {namespace} link set eth0 up"))?;
    ip(&format!("-n {namespace} addr replace {address}/24 dev eth0"))?;
    // So that packets to ClusterIPs find a route before they are rewritten.
    ip(&format!("-n {namespace} route replace default via {HOST_IP}"))
}

/// Removes the nodes' namespaces and the bridge; what is not there is no error.
///
/// # Errors
/// What the kernel refuses.
pub fn remove(nodes: &[Node]) -> Result<()> {
    let namespaces = nodes.iter().filter_map(|node| node.namespace.as_deref()).chain([UNDERLAY]);
    for name in namespaces {
        if std::path::Path::new("/run/netns").join(name).exists() {
            ip(&format!("netns del {name}"))?;
        }
    }
    // The peer goes with its namespace, a moment later.
    if there(&format!("link show {HOST_LINK}")) {
        let gone = ip(&format!("link del {HOST_LINK}"));
        if there(&format!("link show {HOST_LINK}")) {
            return gone;
        }
    }
    Ok(())
}
