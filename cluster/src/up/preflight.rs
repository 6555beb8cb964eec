//! What a node needs of the machine, looked at before anything is touched.

use std::path::Path;

use anyhow::{Result, bail};

use super::image::BUSYBOX;

/// (program or file, Debian package, what for).
const NEEDED: &[(&str, &str, &str)] = &[
    ("containerd", "containerd", "runs the containers"),
    ("ctr", "containerd", "loads images"),
    ("runc", "runc", "runs the containers"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins", "connects pods"),
    ("/usr/lib/cni/host-local", "containernetworking-plugins", "connects pods"),
    ("nft", "nftables", "Services"),
    ("conntrack", "conntrack", "UDP Services"),
    ("ip", "iproute2", "the nodes' namespaces"),
    ("nsenter", "util-linux", "the nodes' namespaces"),
    ("setsid", "util-linux", "background processes"),
    (BUSYBOX, "busybox-static", "the demo image"),
];

fn there(wanted: &str) -> bool {
    if wanted.starts_with('/') {
        return Path::new(wanted).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(wanted).is_file())
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// # Errors
/// Everything that is missing, with the command that installs it.
pub fn check() -> Result<()> {
    let missing: Vec<&(&str, &str, &str)> = NEEDED.iter().filter(|(wanted, ..)| !there(wanted)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|(_, package, _)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    let listed: Vec<String> = missing.iter().map(|(wanted, _, why)| format!("{wanted} ({why})")).collect();
    bail!(
        "missing on this machine: {}.\nInstall it, on Debian or Ubuntu:\n  apt-get install -y --no-install-recommends {}",
        listed.join(", "),
        packages.join(" ")
    )
}
