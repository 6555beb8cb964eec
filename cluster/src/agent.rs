//! `keelson agent`: one node. Kubelet, service proxy, pod network and DNS, over a local load balancer of all API servers.
//!
//! Order: certificates (from disk, or through the join endpoint with the token), the balancer, then the parts, each started
//! again when it fails. A restart needs no flags: everything is in `agent/` of the data folder.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Endpoints;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::balancer::{self, Servers};
use crate::client::client;
use crate::newcomer::Newcomer;
use crate::pki::{private_file, private_folder};
use crate::settings::{AgentState, load, save};
use crate::{host, token};

/// Between two attempts to start a part that failed.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Parser, Debug)]
#[command(
    name = "keelson agent",
    version,
    about = "One node: kubelet, service proxy, pod network, cluster DNS"
)]
struct Flags {
    /// A server of the cluster, https://HOST:6443. Needed once.
    #[arg(long, env = "KEELSON_URL")]
    server: Option<String>,
    /// The join token (server/token or server/node-token on a server). Needed once.
    #[arg(long, env = "KEELSON_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File with the join token.
    #[arg(long, conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// This node's name [default: the host's]
    #[arg(long)]
    node_name: Option<String>,
    /// This node's address [default: the default route's]
    #[arg(long)]
    node_ip: Option<Ipv4Addr>,
    /// Everything the node keeps.
    #[arg(long, default_value = "/var/lib/keelson")]
    data_dir: PathBuf,
    /// The container runtime's socket.
    #[arg(long, default_value = "unix:///run/containerd/containerd.sock")]
    container_runtime_endpoint: String,
    /// Folder the runtime reads its network configuration from.
    #[arg(long, default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Prefix of every cgroup of this node.
    #[arg(long, default_value = "/")]
    cgroup_root: String,
    /// Containers' logs.
    #[arg(long, default_value = "/var/log/pods")]
    pod_log_dir: PathBuf,
    /// The node's own resolver file.
    #[arg(long, default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Image of the pod sandbox, never collected.
    #[arg(long, default_value = "")]
    pod_infra_container_image: String,
    /// The node reports disk pressure below this share of its file system, in percent.
    #[arg(long, default_value_t = 10)]
    eviction_disk_percent: u64,
    /// key=value,… on the Node.
    #[arg(long, value_delimiter = ',')]
    node_labels: Vec<String>,
    /// Local address of the load balancer over all API servers.
    #[arg(long, default_value = "127.0.0.1:6444")]
    balancer_address: SocketAddr,
    /// Address of the proxy's /healthz and /metrics.
    #[arg(long, default_value = "0.0.0.0:10256")]
    proxy_health_address: SocketAddr,
}

/// The subcommand; `args` start with the program's name.
pub fn main(args: Vec<String>) -> std::process::ExitCode {
    crate::program::<Flags, _>("keelson agent", args, run)
}

async fn run(flags: Flags) -> Result<()> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "a node needs root for mounts, cgroups and nftables: run this as root, or `keelson simulate` for nodes without containers"
    );
    let stop = host::stop_token()?;
    let folder = flags.data_dir.join("agent");
    private_folder(&folder)?;
    let newcomer = Newcomer {
        server: flags.server.clone(),
        token: token::given(flags.token.as_deref(), flags.token_file.as_deref())?,
        name: flags.node_name.clone(),
        ip: flags.node_ip,
    };
    let Some(state) = newcomer.identity(&folder, &stop).await? else { return Ok(()) };
    let servers_file = folder.join("servers.json");
    let known: Vec<SocketAddr> = load(&servers_file)?.unwrap_or_default();
    let first = flags.server.as_deref().map(server_address).transpose()?;
    let servers = Servers::new(if known.is_empty() { first.into_iter().collect() } else { known });
    let balancer = tokio::spawn(balancer::serve(flags.balancer_address, servers.clone(), stop.clone()));
    let url = format!("https://{}", flags.balancer_address);
    let kubelet = client(&url, &state.authority, &state.kubelet).await?;
    let proxy = client(&url, &state.authority, &state.proxy).await?;
    for (name, pair) in [("kubelet", &state.kubelet), ("proxy", &state.proxy)] {
        let text = crate::pki::kubeconfig(&url, &state.authority, name, pair);
        private_file(&folder.join(format!("{name}.kubeconfig")), text.as_bytes())?;
    }
    info!(node = state.node_name, ip = %state.node_ip, servers = ?servers.list(), "agent starts");
    let parts = [
        tokio::spawn(keep("kubelet", stop.clone(), {
            let config = kubelet_config(&flags, &folder, &state, kubelet.clone())?;
            move |token| keelson_kubelet::run(config.clone(), token)
        })),
        tokio::spawn(keep("proxy", stop.clone(), {
            let config = keelson_proxy::Config {
                node_name: state.node_name.clone(),
                cluster_cidr: Some(state.cluster_cidr),
                health_address: Some(flags.proxy_health_address),
                pods: Some(kubelet),
                namespace: None,
            };
            let proxy = proxy.clone();
            move |token| keelson_proxy::run(proxy.clone(), config.clone(), token)
        })),
        tokio::spawn(keep("network", stop.clone(), {
            let config = keelson_network::Config {
                node_name: state.node_name.clone(),
                node_ip: state.node_ip,
                cluster_cidr: Some(state.cluster_cidr),
                cni_conf_dir: flags.cni_conf_dir.clone(),
                ipam_dir: folder.join("ipam"),
                dns_ip: Some(state.dns_ip),
                domain: state.domain.clone(),
                resolv_conf: flags.resolv_conf.clone(),
            };
            let proxy = proxy.clone();
            move |token| keelson_network::run(proxy.clone(), config.clone(), token)
        })),
        tokio::spawn(follow_servers(proxy, servers, servers_file, stop.clone())),
    ];
    tokio::select! {
        ended = balancer => ended.context("the load balancer broke")??,
        _ = futures::future::join_all(parts) => {}
    }
    Ok(())
}

fn kubelet_config(
    flags: &Flags,
    folder: &Path,
    state: &AgentState,
    client: Client,
) -> Result<keelson_kubelet::Config> {
    let pki = folder.join("pki");
    private_folder(&pki)?;
    let (cert, key, authority) = (pki.join("kubelet.crt"), pki.join("kubelet.key"), pki.join("ca.crt"));
    private_file(&cert, state.kubelet.cert.as_bytes())?;
    private_file(&key, state.kubelet.key.as_bytes())?;
    private_file(&authority, state.authority.as_bytes())?;
    let endpoint = &flags.container_runtime_endpoint;
    let mut config = keelson_kubelet::Config::new(
        &state.node_name,
        state.node_ip.into(),
        endpoint,
        &folder.join("kubelet"),
    );
    config.client = Some(client);
    config.log_dir = flags.pod_log_dir.clone();
    config.cgroup_root = flags.cgroup_root.clone();
    config.cluster_dns = vec![IpAddr::V4(state.dns_ip)];
    config.cluster_domain = state.domain.clone();
    config.resolv_conf = flags.resolv_conf.clone();
    config.bind = Some((state.node_ip, 10250).into());
    config.tls_cert = Some(cert);
    config.tls_key = Some(key);
    config.client_ca = Some(authority);
    config.local_path_base = PathBuf::from(&state.local_path);
    config.pause_image = flags.pod_infra_container_image.clone();
    config.thresholds.disk_floor_percent = flags.eviction_disk_percent;
    for label in &flags.node_labels {
        let (key, value) =
            label.split_once('=').with_context(|| format!("--node-labels {label}: want key=value"))?;
        config.labels.push((key.to_owned(), value.to_owned()));
    }
    Ok(config)
}

/// Runs a part until it ends because of the token; a failure is reported and the part started again.
async fn keep<F, R>(name: &'static str, token: CancellationToken, start: F)
where
    F: Fn(CancellationToken) -> R,
    R: Future<Output = Result<()>>,
{
    while !token.is_cancelled() {
        match start(token.child_token()).await {
            Ok(()) if token.is_cancelled() => return,
            Ok(()) => warn!("{name} ended by itself, started again in {RETRY:?}"),
            Err(error) => warn!("{name} failed, started again in {RETRY:?}: {error:#}"),
        }
        tokio::select! {
            () = token.cancelled() => {}
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Keeps the balancer's servers those of the `kubernetes` Endpoints, on disk too.
async fn follow_servers(client: Client, servers: Servers, file: PathBuf, token: CancellationToken) {
    let only = watcher::Config::default().fields("metadata.name=kubernetes");
    let events = watcher(Api::<Endpoints>::namespaced(client, "default"), only).default_backoff();
    let mut events = std::pin::pin!(events.applied_objects());
    loop {
        let event = tokio::select! {
            () = token.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            Some(Ok(endpoints)) => {
                if servers.set(addresses(&endpoints)) {
                    info!(servers = ?servers.list(), "API servers");
                    if let Err(error) = save(&file, &servers.list()) {
                        warn!("API servers not kept for the next start: {error:#}");
                    }
                }
            }
            Some(Err(error)) => warn!(%error, "watch of the API servers broke; it is retried"),
            None => return,
        }
    }
}

fn addresses(endpoints: &Endpoints) -> Vec<SocketAddr> {
    let subsets = endpoints.subsets.iter().flatten();
    subsets
        .flat_map(|subset| {
            let port = subset.ports.iter().flatten().find_map(|port| u16::try_from(port.port).ok());
            let addresses = subset.addresses.iter().flatten();
            addresses.filter_map(move |address| Some(SocketAddr::new(address.ip.parse().ok()?, port?)))
        })
        .collect()
}

/// The address behind `--server`, resolved.
fn server_address(url: &str) -> Result<SocketAddr> {
    use std::net::ToSocketAddrs;
    let bare = url.trim_end_matches('/').trim_start_matches("https://");
    let full = if bare.contains(':') { bare.to_owned() } else { format!("{bare}:6443") };
    full.to_socket_addrs()
        .with_context(|| format!("--server {url}"))?
        .next()
        .with_context(|| format!("--server {url}"))
}
