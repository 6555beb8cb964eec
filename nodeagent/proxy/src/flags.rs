//! `keelson proxy`: upstream's flags, for running beside a stock control plane.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use ipnet::Ipv4Net;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::Config;

/// Service proxy: keeps nftables at what Services and their endpoints say.
#[derive(Parser, Debug)]
#[command(name = "keelson proxy", version)]
struct Flags {
    /// Kubeconfig of the proxy; without it, the environment's or the pod's own.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Server address, over the kubeconfig's.
    #[arg(long)]
    master: Option<String>,
    /// Where pods live. Traffic from elsewhere to a ClusterIP is masqueraded.
    #[arg(long)]
    cluster_cidr: Option<Ipv4Net>,
    /// This node's name; the host's name without it.
    #[arg(long)]
    hostname_override: Option<String>,
    /// Only `nftables` is there.
    #[arg(long, default_value = "nftables")]
    proxy_mode: String,
    /// Address and port of /healthz and /metrics; empty: not served.
    #[arg(long, default_value = "0.0.0.0:10256")]
    healthz_bind_address: String,
}

/// The subcommand; `args` start with the program's name.
pub fn main(args: Vec<String>) -> ExitCode {
    let flags = match Flags::try_parse_from(args.into_iter().map(OsString::from)) {
        Ok(flags) => flags,
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.context("start the runtime").and_then(|runtime| runtime.block_on(start(flags))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keelson proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start(flags: Flags) -> Result<()> {
    if flags.proxy_mode != "nftables" {
        bail!("--proxy-mode {} is not there: use nftables", flags.proxy_mode);
    }
    let health_address: Option<SocketAddr> = match flags.healthz_bind_address.as_str() {
        "" => None,
        text => Some(text.parse().with_context(|| format!("--healthz-bind-address {text}: want IP:PORT"))?),
    };
    let mut config = match &flags.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("read {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer().await.context("no --kubeconfig and none in the environment")?,
    };
    if let Some(master) = flags.master {
        config.cluster_url = master.parse().with_context(|| format!("--master {master}"))?;
    }
    // Watches are quiet for minutes.
    config.read_timeout = None;
    let node_name = match flags.hostname_override {
        Some(name) => name,
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")
            .context("read the host's name")?
            .trim()
            .to_lowercase(),
    };
    let client = kube::Client::try_from(config)?;
    let token = CancellationToken::new();
    let on_signal = token.clone();
    tokio::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut terminate), Ok(mut interrupt)) =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            return;
        };
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        info!("stopping; the rules stay");
        on_signal.cancel();
    });
    let config = Config {
        node_name,
        cluster_cidr: flags.cluster_cidr,
        health_address,
        pods: Some(client.clone()),
        namespace: None,
    };
    crate::run(client, config, token).await
}
