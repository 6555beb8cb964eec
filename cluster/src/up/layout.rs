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
/// At most this many nodes: their addresses are 172.30.0.11 upwards.
pub const MOST_NODES: u8 = 9;

#[derive(Clone, Debug)]
pub struct Layout {
    pub data: PathBuf,
    /// Short, because a socket's path may have 107 bytes only.
    pub run: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    pub ip: Ipv4Addr,
    pub namespace: String,
    pub folder: PathBuf,
    pub socket: PathBuf,
    /// containerd's state.
    pub state: PathBuf,
    /// Prefix of the node's cgroups.
    pub cgroup: String,
}

impl Layout {
    /// # Errors
    /// When the folder can't be made or found.
    pub fn new(data: &Path) -> Result<Layout> {
        fs::create_dir_all(data)
            .with_context(|| format!("make {}: choose another --data-dir", data.display()))?;
        let data = fs::canonicalize(data).with_context(|| format!("find {}", data.display()))?;
        let run = Path::new("/run/keelson").join(&fingerprint(data.as_os_str().as_encoded_bytes())[..8]);
        Ok(Layout { data, run })
    }

    pub fn node(&self, index: u8) -> Node {
        let name = format!("n{index}");
        Node {
            ip: Ipv4Addr::new(172, 30, 0, 10 + index),
            namespace: format!("kn-{name}"),
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
