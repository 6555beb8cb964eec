//! Where everything of a local cluster is: folders, sockets, names, addresses.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::token::fingerprint;

/// The namespace that holds the bridge between the nodes.
pub const UNDERLAY: &str = "kn-ul";
/// This machine's end of the underlay.
pub const HOST_LINK: &str = "kn-host";
/// This machine's address on the underlay, every node's default gateway.
pub const HOST_IP: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 254);
/// Addresses given to Services of type LoadBalancer; on the underlay, so that this machine reaches them.
pub const LOAD_BALANCER_POOL: &str = "172.30.0.200-172.30.0.250";
/// Where kubectl on this machine finds the three API servers.
pub const API: &str = "127.0.0.1:6443";
/// At most this many nodes: their addresses are 172.30.0.11 (without root 127.30.0.11) upwards.
pub const MOST_NODES: u8 = 9;
/// Simulated nodes have the addresses from here on.
pub const FIRST_SIMULATED: Ipv4Addr = Ipv4Addr::new(127, 30, 1, 1);

/// What the cluster's nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Network namespaces and containers, which need root.
    Real,
    /// Servers are plain processes on loopback, nodes are simulated.
    Simulated,
}

#[derive(Clone, Debug)]
pub struct Layout {
    pub kind: Kind,
    pub data: PathBuf,
    /// Short, because a socket's path may have 107 bytes only.
    pub run: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    pub ip: Ipv4Addr,
    /// `None`: it runs in the machine's own.
    pub namespace: Option<String>,
    pub folder: PathBuf,
    pub socket: PathBuf,
    /// containerd's state.
    pub state: PathBuf,
    /// Prefix of the node's cgroups.
    pub cgroup: String,
}

impl Layout {
    /// A folder that holds a cluster keeps its kind; a new one becomes what is `wanted`.
    ///
    /// # Errors
    /// When the folder can't be made or found.
    pub fn new(data: &Path, wanted: Kind) -> Result<Layout> {
        fs::create_dir_all(data)
            .with_context(|| format!("make {}: choose another --data-dir", data.display()))?;
        let data = fs::canonicalize(data).with_context(|| format!("find {}", data.display()))?;
        let run = Path::new("/run/keelson").join(&fingerprint(data.as_os_str().as_encoded_bytes())[..8]);
        let mut layout = Layout { kind: Kind::Real, data, run };
        let fresh = layout.known_nodes().is_empty();
        if layout.simulated_folder().exists() || (fresh && wanted == Kind::Simulated) {
            layout.kind = Kind::Simulated;
        }
        Ok(layout)
    }

    pub fn node(&self, index: u8) -> Node {
        let name = format!("n{index}");
        let real = self.kind == Kind::Real;
        Node {
            ip: Ipv4Addr::new(if real { 172 } else { 127 }, 30, 0, 10 + index),
            namespace: real.then(|| format!("kn-{name}")),
            folder: self.data.join(&name),
            socket: self.run.join(&name).join("c.sock"),
            state: self.run.join(&name).join("state"),
            cgroup: format!("/keelson-{name}"),
            name,
        }
    }

    /// Nodes that have a folder, whatever became of them.
    pub fn known_nodes(&self) -> Vec<Node> {
        (1..=MOST_NODES).map(|index| self.node(index)).filter(|node| node.folder.exists()).collect()
    }

    /// What the process behind the simulated nodes keeps; it is there exactly in clusters of that kind.
    pub fn simulated_folder(&self) -> PathBuf {
        self.data.join("simulated")
    }

    pub fn simulated_pid(&self) -> PathBuf {
        self.data.join("simulated.pid")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.data.join("kubeconfig")
    }
}

impl Node {
    pub fn server_address(&self) -> SocketAddr {
        (self.ip, 6443).into()
    }

    pub fn server_data(&self) -> PathBuf {
        self.folder.join("server")
    }

    pub fn cni_folder(&self) -> PathBuf {
        self.folder.join("cni")
    }

    pub fn pid_file(&self, part: &str) -> PathBuf {
        self.folder.join(format!("{part}.pid"))
    }

    pub fn log_file(&self, part: &str) -> PathBuf {
        self.folder.join(format!("{part}.log"))
    }
}
