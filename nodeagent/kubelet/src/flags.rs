//! `keelson kubelet`: upstream's flags, then `run`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use clap::Parser;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::heartbeat;

/// Runs pods on this node through a container runtime.
#[derive(Debug, Parser)]
#[command(name = "kubelet", version)]
struct Flags {
    /// Credentials for the API server; without it only static pods run.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// The container runtime's socket.
    #[arg(long, default_value = "unix:///run/containerd/containerd.sock")]
    container_runtime_endpoint: String,
    /// This node's address.
    #[arg(long)]
    node_ip: Option<IpAddr>,
    /// The node's name, else the machine's hostname.
    #[arg(long)]
    hostname_override: Option<String>,
    /// Pods' folders and volumes.
    #[arg(long, default_value = "/var/lib/kubelet")]
    root_dir: PathBuf,
    /// Containers' logs.
    #[arg(long, default_value = "/var/log/pods")]
    pod_log_dir: PathBuf,
    /// Where a serving certificate is looked for (kubelet.crt, kubelet.key).
    #[arg(long)]
    cert_dir: Option<PathBuf>,
    #[arg(long)]
    tls_cert_file: Option<PathBuf>,
    #[arg(long)]
    tls_private_key_file: Option<PathBuf>,
    /// The CA that signs clients of this server.
    #[arg(long)]
    client_ca_file: Option<PathBuf>,
    #[arg(long, value_delimiter = ',')]
    cluster_dns: Vec<IpAddr>,
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// Prefix of the cgroups made here.
    #[arg(long, default_value = "/")]
    cgroup_root: String,
    /// Folder of static pods' manifests.
    #[arg(long)]
    pod_manifest_path: Option<PathBuf>,
    #[arg(long, default_value = "0.0.0.0")]
    address: IpAddr,
    #[arg(long, default_value_t = 10250)]
    port: u16,
    #[arg(long, default_value_t = 110)]
    max_pods: usize,
    /// `key=value,…` labels of the Node.
    #[arg(long, value_delimiter = ',')]
    node_labels: Vec<String>,
    /// `key=value:Effect,…` taints of a new Node.
    #[arg(long, value_delimiter = ',')]
    register_with_taints: Vec<String>,
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    register_node: bool,
    #[arg(long, default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Log verbosity: 0 info, 4 and more debug.
    #[arg(short = 'v', long, default_value_t = 0)]
    v: u8,
}

impl Flags {
    async fn config(self) -> anyhow::Result<Config> {
        let hostname =
            nix::unistd::gethostname().map(|h| h.to_string_lossy().to_lowercase()).unwrap_or_default();
        let name = self.hostname_override.unwrap_or(hostname);
        if name.is_empty() {
            bail!("this machine has no hostname: pass --hostname-override");
        }
        let ip = self.node_ip.or_else(heartbeat::guess_ip);
        let ip = ip.ok_or_else(|| anyhow!("cannot tell this node's address: pass --node-ip"))?;
        let mut config = Config::new(&name, ip, &self.container_runtime_endpoint, &self.root_dir);
        if let Some(path) = &self.kubeconfig {
            let unreadable =
                || format!("cannot use the kubeconfig {}: check the file and --kubeconfig", path.display());
            let read = kube::config::Kubeconfig::read_from(path).with_context(unreadable)?;
            let options = kube::config::KubeConfigOptions::default();
            let read = kube::Config::from_custom_kubeconfig(read, &options).await.with_context(unreadable)?;
            config.client = Some(kube::Client::try_from(read).with_context(unreadable)?);
        } else if self.pod_manifest_path.is_none() {
            bail!("nothing to run: pass --kubeconfig (an API server) or --pod-manifest-path (static pods)");
        }
        config.log_dir = self.pod_log_dir;
        config.cgroup_root = self.cgroup_root;
        config.cluster_dns = self.cluster_dns;
        config.cluster_domain = self.cluster_domain;
        config.resolv_conf = self.resolv_conf;
        config.bind = Some(SocketAddr::new(self.address, self.port));
        let in_dir = |file: &str| self.cert_dir.as_ref().map(|d| d.join(file)).filter(|p| p.exists());
        config.tls_cert = self.tls_cert_file.or_else(|| in_dir("kubelet.crt"));
        config.tls_key = self.tls_private_key_file.or_else(|| in_dir("kubelet.key"));
        config.client_ca = self.client_ca_file;
        config.static_pods = self.pod_manifest_path;
        config.max_pods = self.max_pods;
        config.register_node = self.register_node;
        config.labels =
            self.node_labels.iter().filter(|l| !l.is_empty()).map(|l| label(l)).collect::<Result<_, _>>()?;
        config.taints = self
            .register_with_taints
            .iter()
            .filter(|t| !t.is_empty())
            .map(|t| taint(t))
            .collect::<Result<_, _>>()?;
        Ok(config)
    }
}

fn label(text: &str) -> anyhow::Result<(String, String)> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| anyhow!("--node-labels wants key=value, got {text:?}"))?;
    Ok((key.into(), value.into()))
}

fn taint(text: &str) -> anyhow::Result<(String, String, String)> {
    let bad = || anyhow!("--register-with-taints wants key=value:Effect, got {text:?}");
    let (rest, effect) = text.rsplit_once(':').ok_or_else(bad)?;
    if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        return Err(bad());
    }
    let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
    Ok((key.into(), value.into(), effect.into()))
}

/// `keelson kubelet ARGS…`; `args` without the program's and the command's name.
pub fn main(args: Vec<String>) -> ExitCode {
    let flags = match Flags::try_parse_from(std::iter::once("kubelet".to_string()).chain(args)) {
        Ok(flags) => flags,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let level = if flags.v >= 4 { "debug" } else { "info" };
    let filter = tracing_subscriber::EnvFilter::new(format!("warn,keelson_kubelet={level}"));
    // A program that embeds this one may have set up logging already.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("kubelet: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve(flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("kubelet: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(flags: Flags) -> anyhow::Result<()> {
    let config = flags.config().await?;
    let stop = CancellationToken::new();
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        token.cancel();
    });
    crate::run(config, stop).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_taints_are_checked() {
        assert!(label("a").is_err());
        assert_eq!(taint("k=v:NoSchedule").unwrap(), ("k".into(), "v".into(), "NoSchedule".into()));
        assert_eq!(taint("k:NoExecute").unwrap().1, "");
        assert!(taint("k=v:Never").is_err());
    }

    #[test]
    fn flags_are_well_formed() {
        use clap::CommandFactory as _;
        Flags::command().debug_assert();
    }
}
