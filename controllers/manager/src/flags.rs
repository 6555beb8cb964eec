//! `keelson controller-manager`: upstream's flags.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Parser;
use jiff::SignedDuration;
use keelson_controllers_core::election::Timing;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::health::{self, Identity};
use crate::metrics::Metrics;

/// Runs the Kubernetes controllers against an API server.
#[derive(Debug, Parser)]
#[command(name = "controller-manager", disable_version_flag = true)]
struct Flags {
    /// File with the address and credentials of the API server.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Address of the API server (overrides the kubeconfig).
    #[arg(long)]
    master: Option<String>,
    /// Address to serve health and metrics on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    bind_address: IpAddr,
    /// Port to serve health and metrics on over HTTPS; 0 for none.
    #[arg(long, default_value_t = 10257)]
    secure_port: u16,
    #[arg(long)]
    tls_cert_file: Option<PathBuf>,
    #[arg(long)]
    tls_private_key_file: Option<PathBuf>,
    /// Elect a leader before starting, so that many managers may run.
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    leader_elect: bool,
    #[arg(long, default_value = "15s", value_parser = duration)]
    leader_elect_lease_duration: SignedDuration,
    #[arg(long, default_value = "10s", value_parser = duration)]
    leader_elect_renew_deadline: SignedDuration,
    #[arg(long, default_value = "2s", value_parser = duration)]
    leader_elect_retry_period: SignedDuration,
    #[arg(long, default_value = "leases", value_parser = ["leases"])]
    leader_elect_resource_lock: String,
    #[arg(long, default_value = "kube-controller-manager")]
    leader_elect_resource_name: String,
    #[arg(long, default_value = "kube-system")]
    leader_elect_resource_namespace: String,
    /// Controllers to run: `*`, names, and `-name` to leave one out.
    #[arg(long, value_delimiter = ',', default_value = "*", allow_hyphen_values = true)]
    controllers: Vec<String>,
    /// Give every node a pod range out of --cluster-cidr.
    #[arg(long, default_value_t = false, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    allocate_node_cidrs: bool,
    #[arg(long, value_delimiter = ',')]
    cluster_cidr: Vec<String>,
    #[arg(long)]
    node_cidr_mask_size: Option<u8>,
    #[arg(long)]
    node_cidr_mask_size_ipv4: Option<u8>,
    #[arg(long)]
    node_cidr_mask_size_ipv6: Option<u8>,
    #[arg(long, default_value = "50s", value_parser = duration)]
    node_monitor_grace_period: SignedDuration,
    #[arg(long, default_value = "1m0s", value_parser = duration)]
    node_startup_grace_period: SignedDuration,
    #[arg(long, default_value_t = 12_500)]
    terminated_pod_gc_threshold: i64,
    /// Certificate bundle published to every namespace as kube-root-ca.crt.
    #[arg(long)]
    root_ca_file: Option<PathBuf>,
    #[arg(long, default_value = "15s", value_parser = duration)]
    horizontal_pod_autoscaler_sync_period: SignedDuration,
    #[arg(long, default_value_t = 0.1)]
    horizontal_pod_autoscaler_tolerance: f64,
    #[arg(long, default_value = "5m0s", value_parser = duration)]
    horizontal_pod_autoscaler_downscale_stabilization: SignedDuration,
    /// Addresses for Services of type LoadBalancer, like 172.30.0.200-172.30.0.250 (ours, not upstream's).
    #[arg(long, value_delimiter = ',')]
    load_balancer_pool: Vec<String>,
    /// Folder on the nodes for volumes of the StorageClass local-path (ours, not upstream's).
    #[arg(long, default_value = "/var/lib/keelson/local-path")]
    local_path: String,
    /// Log level: 0 for information, 4 and more for details.
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    verbosity: u8,
}

/// Runs `keelson controller-manager` with its arguments (the first is the program's name).
pub fn main(args: Vec<String>) -> ExitCode {
    let flags = match Flags::try_parse_from(args) {
        Ok(flags) => flags,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 1 } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(start(flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start(flags: Flags) -> anyhow::Result<()> {
    tracing::debug!(level = flags.verbosity, "verbosity");
    let client = connect(&flags).await?;
    let config = config(&flags)?;
    let stop = CancellationToken::new();
    let metrics: Arc<Metrics> = Arc::default();
    let served = serve(&flags, metrics.clone(), stop.clone());
    let reconcilers = config.reconcilers()?;
    let run = crate::run_with(client, config, reconcilers, metrics, stop.clone());
    let signals = async {
        interrupted().await;
        stop.cancel();
        Ok::<(), anyhow::Error>(())
    };
    // A failure to serve or to run ends the others.
    let guard = |result: anyhow::Result<()>| {
        stop.cancel();
        result
    };
    let (served, ran, _) = tokio::join!(
        async { served.await.inspect_err(|_| stop.cancel()) },
        async { guard(run.await) },
        async { stop.run_until_cancelled(signals).await },
    );
    served.and(ran)
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

async fn connect(flags: &Flags) -> anyhow::Result<Client> {
    let mut config = match &flags.kubeconfig {
        Some(path) => {
            let read = Kubeconfig::read_from(path)
                .with_context(|| format!("read --kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("use --kubeconfig {}", path.display()))?
        }
        None => kube::Config::infer().await.context("find an API server: give --kubeconfig")?,
    };
    if let Some(master) = &flags.master {
        config.cluster_url = master.parse().with_context(|| format!("--master {master:?} is not a URL"))?;
    }
    // Watches stay silent for minutes; requests have their own limits.
    config.read_timeout = None;
    Client::try_from(config).context("make a client")
}

fn config(flags: &Flags) -> anyhow::Result<Config> {
    let timing = Timing {
        lease_duration: flags.leader_elect_lease_duration,
        renew_deadline: flags.leader_elect_renew_deadline,
        retry_period: flags.leader_elect_retry_period,
    };
    if timing.renew_deadline >= timing.lease_duration || timing.retry_period >= timing.renew_deadline {
        bail!("leader election: retry period < renew deadline < lease duration must hold");
    }
    let root_ca = match &flags.root_ca_file {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("read --root-ca-file {}", path.display()))?,
        None => String::new(),
    };
    let cluster_cidrs = if flags.allocate_node_cidrs { flags.cluster_cidr.clone() } else { Vec::new() };
    if flags.allocate_node_cidrs && cluster_cidrs.is_empty() {
        bail!("--allocate-node-cidrs needs --cluster-cidr");
    }
    Ok(Config {
        leader_elect: flags.leader_elect,
        timing,
        lease_name: flags.leader_elect_resource_name.clone(),
        lease_namespace: flags.leader_elect_resource_namespace.clone(),
        cluster_cidrs,
        node_cidr_mask_v4: flags.node_cidr_mask_size_ipv4.or(flags.node_cidr_mask_size).unwrap_or(24),
        node_cidr_mask_v6: flags.node_cidr_mask_size_ipv6.unwrap_or(64),
        node_monitor_grace: flags.node_monitor_grace_period,
        node_startup_grace: flags.node_startup_grace_period,
        terminated_pod_threshold: usize::try_from(flags.terminated_pod_gc_threshold).unwrap_or(usize::MAX),
        root_ca,
        controllers: flags.controllers.clone(),
        load_balancer_pool: flags.load_balancer_pool.clone(),
        local_path: flags.local_path.clone(),
        autoscaler_period: flags.horizontal_pod_autoscaler_sync_period,
        autoscaler_tolerance: flags.horizontal_pod_autoscaler_tolerance,
        autoscaler_stabilization: flags.horizontal_pod_autoscaler_downscale_stabilization,
        ..Config::default()
    })
}

async fn serve(flags: &Flags, metrics: Arc<Metrics>, stop: CancellationToken) -> anyhow::Result<()> {
    if flags.secure_port == 0 {
        return Ok(());
    }
    let identity = match (&flags.tls_cert_file, &flags.tls_private_key_file) {
        (Some(certificate), Some(key)) => {
            let read = |p: &PathBuf| std::fs::read(p).with_context(|| format!("read {}", p.display()));
            Identity { certificate: read(certificate)?, key: read(key)? }
        }
        (None, None) => health::self_signed()?,
        _ => bail!("--tls-cert-file and --tls-private-key-file go together"),
    };
    let address = SocketAddr::new(flags.bind_address, flags.secure_port);
    health::serve(address, identity, metrics, stop).await
}

/// A duration as Go writes it: `1m30s`, `2h`, `500ms`.
fn duration(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("{text:?} is not a duration; write it like 1m30s");
    let (mut rest, mut total) = (text, SignedDuration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: i64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit_len = rest[digits..].find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len() - digits);
        let part = match &rest[digits..digits + unit_len] {
            "h" => SignedDuration::from_secs(number.saturating_mul(3600)),
            "m" => SignedDuration::from_secs(number.saturating_mul(60)),
            "s" => SignedDuration::from_secs(number),
            "ms" => SignedDuration::from_millis(number),
            _ => return Err(wrong()),
        };
        total = total.saturating_add(part);
        rest = &rest[digits + unit_len..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        assert_eq!(duration("1m30s"), Ok(SignedDuration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(SignedDuration::from_secs(7200)));
        assert_eq!(duration("500ms"), Ok(SignedDuration::from_millis(500)));
        for bad in ["", "5", "s", "1x", "-1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn flags_are_upstreams() {
        let args = "controller-manager --leader-elect=false --cluster-cidr=10.244.0.0/16 --allocate-node-cidrs \
                    --controllers=*,-replicaset --node-monitor-grace-period=40s";
        let flags = Flags::try_parse_from(args.split_whitespace()).unwrap();
        let config = config(&flags).unwrap();
        assert!(!config.leader_elect);
        assert_eq!(config.cluster_cidrs, ["10.244.0.0/16"]);
        assert_eq!(config.controllers, ["*", "-replicaset"]);
        assert_eq!(config.node_monitor_grace, SignedDuration::from_secs(40));
    }
}
