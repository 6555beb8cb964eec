//! What a kubelet is told at start, and the folders that follow from it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use keelson_nodeagent_core::pod::eviction::Thresholds;

/// Everything `run` needs. `Config::new` fills in the defaults of a plain node.
#[derive(Clone)]
pub struct Config {
    pub node_name: String,
    pub node_ip: IpAddr,
    /// Without a client only static pods run and nothing is reported.
    pub client: Option<kube::Client>,
    /// `unix:///absolute/path` or an absolute path.
    pub runtime_endpoint: String,
    /// Pods' folders and volumes, e.g. `/var/lib/kubelet`.
    pub root_dir: PathBuf,
    /// Containers' logs, e.g. `/var/log/pods`.
    pub log_dir: PathBuf,
    /// Prefix of every cgroup this node makes, e.g. `/node1`; `/` for none.
    pub cgroup_root: String,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The node's resolver file, for pods that do not use the cluster's DNS.
    pub resolv_conf: PathBuf,
    /// Where the HTTPS server listens; `None` for no server.
    pub bind: Option<SocketAddr>,
    /// PEM files; without them a self-signed certificate is made in `root_dir/pki`.
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    /// PEM file with the CA that signs the API server's client certificate.
    pub client_ca: Option<PathBuf>,
    /// Folder of pod manifests to run without an API.
    pub static_pods: Option<PathBuf>,
    pub labels: Vec<(String, String)>,
    /// `key=value:Effect`.
    pub taints: Vec<(String, String, String)>,
    pub register_node: bool,
    pub max_pods: usize,
    /// The image of the pod sandbox, never collected.
    pub pause_image: String,
    /// How often the node object is refreshed.
    pub status_period: Duration,
    /// How often projected volumes are compared with the API.
    pub volume_period: Duration,
    pub thresholds: Thresholds,
    /// Bytes at which a container's log is rotated, and how many files are kept.
    pub log_max_bytes: u64,
    pub log_max_files: usize,
    /// Where the cluster's local-path volumes of this node lie.
    pub local_path_base: PathBuf,
}

impl Config {
    pub fn new(node_name: &str, node_ip: IpAddr, runtime_endpoint: &str, root_dir: &Path) -> Config {
        Config {
            node_name: node_name.to_string(),
            node_ip,
            client: None,
            runtime_endpoint: runtime_endpoint.to_string(),
            root_dir: root_dir.to_path_buf(),
            log_dir: PathBuf::from("/var/log/pods"),
            cgroup_root: "/".into(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            bind: None,
            tls_cert: None,
            tls_key: None,
            client_ca: None,
            static_pods: None,
            labels: Vec::new(),
            taints: Vec::new(),
            register_node: true,
            max_pods: 110,
            pause_image: String::new(),
            status_period: Duration::from_secs(10),
            volume_period: Duration::from_secs(30),
            thresholds: Thresholds::default(),
            log_max_bytes: 10 << 20,
            log_max_files: 5,
            local_path_base: PathBuf::from("/var/lib/keelson/local-path"),
        }
    }

    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    pub fn volume_dir(&self, uid: &str, plugin: &str, volume: &str) -> PathBuf {
        self.pod_dir(uid).join("volumes").join(plugin).join(volume)
    }

    pub fn container_dir(&self, uid: &str, container: &str) -> PathBuf {
        self.pod_dir(uid).join("containers").join(container)
    }

    pub fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.log_dir.join(keelson_nodeagent_core::pod::naming::log_folder(namespace, name, uid))
    }

    /// A cgroup path below the node's prefix.
    pub fn cgroup(&self, below: &str) -> String {
        let root = self.cgroup_root.trim_end_matches('/');
        let root =
            if root.is_empty() || root.starts_with('/') { root.to_string() } else { format!("/{root}") };
        format!("{root}/{below}")
    }
}
