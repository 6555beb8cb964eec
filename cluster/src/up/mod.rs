//! A whole cluster on this one machine: a network namespace, a containerd, a server and an agent per node. Without root:
//! the servers on loopback, and simulated nodes.
//!
//! `up` brings the machine to that state from whatever state it is in (so it also repairs), `status` looks, `down` removes
//! every trace. Everything is found again through the data folder; nothing is remembered elsewhere.

mod demo;
mod down;
mod image;
mod layout;
mod netns;
mod preflight;
mod process;
mod progress;
mod runtime;
mod simulated;
mod start;
mod status;

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use nix::fcntl::{Flock, FlockArg};

#[cfg(test)]
pub use demo::{console, demo};
use layout::{Kind, Layout, MOST_NODES};
use progress::say;

#[derive(Parser, Debug)]
#[command(
    name = "keelson up",
    version,
    about = "Starts (or repairs) a local cluster: real nodes, real containers; without root, simulated nodes"
)]
struct UpFlags {
    /// Nodes; each is a server and an agent. With simulated nodes: servers.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
    nodes: u8,
    /// Everything the cluster keeps: data, logs, kubeconfig.
    #[arg(long, default_value = ".keelson", env = "KEELSON_DATA")]
    data_dir: PathBuf,
    /// So many simulated nodes in place of real ones, on which no container runs. Without root there are no others [default:
    /// 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    simulated: Option<u16>,
    /// Without the demo workload.
    #[arg(long)]
    no_demo: bool,
}

#[derive(Parser, Debug)]
#[command(name = "keelson down", version, about = "Stops the local cluster and removes every trace of it")]
struct DownFlags {
    /// The folder `up` was given.
    #[arg(long, default_value = ".keelson", env = "KEELSON_DATA")]
    data_dir: PathBuf,
    /// Keep the data folder: the next `up` goes on with the same cluster.
    #[arg(long)]
    keep_data: bool,
}

#[derive(Parser, Debug)]
#[command(name = "keelson status", version, about = "What runs of the local cluster")]
struct StatusFlags {
    /// The folder `up` was given.
    #[arg(long, default_value = ".keelson", env = "KEELSON_DATA")]
    data_dir: PathBuf,
    /// `json` for machines.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

#[derive(Parser, Debug)]
#[command(
    name = "keelson balance",
    version,
    about = "TCP load balancer over the API servers (started by up)"
)]
struct BalanceFlags {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long, value_delimiter = ',', required = true)]
    servers: Vec<SocketAddr>,
    /// Only marks the process as one of this cluster's.
    #[arg(long)]
    data_dir: PathBuf,
}

pub fn up_main(args: Vec<String>) -> ExitCode {
    crate::program("keelson up", args, |flags: UpFlags| async move {
        let root = preflight::is_root();
        let wanted = if root && flags.simulated.is_none() { Kind::Real } else { Kind::Simulated };
        let layout = Layout::new(&flags.data_dir, wanted)?;
        let data = layout.data.display();
        anyhow::ensure!(
            layout.kind == Kind::Simulated || root,
            "the cluster in {data} has real nodes: run this as root, or choose another --data-dir"
        );
        anyhow::ensure!(
            layout.kind == wanted,
            "the cluster in {data} has {} nodes: remove it with `keelson down` first, or choose another --data-dir",
            if wanted == Kind::Real { "simulated" } else { "real" }
        );
        let _lock = lock(&layout)?;
        start::up(&layout, flags.nodes, flags.simulated, !flags.no_demo).await
    })
}

pub fn down_main(args: Vec<String>) -> ExitCode {
    crate::program("keelson down", args, |flags: DownFlags| async move {
        if !flags.data_dir.exists() {
            say(format!("nothing to do: {} is not there", flags.data_dir.display()));
            return Ok(());
        }
        let layout = Layout::new(&flags.data_dir, Kind::Real)?;
        let lock = lock(&layout)?;
        let done = down::down(&layout, flags.keep_data).await;
        drop(lock);
        done
    })
}

pub fn status_main(args: Vec<String>) -> ExitCode {
    crate::program("keelson status", args, |flags: StatusFlags| async move {
        anyhow::ensure!(
            flags.data_dir.exists(),
            "no cluster in {}: `keelson up --data-dir {}` starts one",
            flags.data_dir.display(),
            flags.data_dir.display()
        );
        status::status(&Layout::new(&flags.data_dir, Kind::Real)?, flags.output == "json").await
    })
}

pub fn balance_main(args: Vec<String>) -> ExitCode {
    crate::program("keelson balance", args, |flags: BalanceFlags| async move {
        let token = crate::host::stop_token()?;
        tracing::info!(servers = ?flags.servers, data = %flags.data_dir.display(), "balancing on {}", flags.listen);
        crate::balancer::serve(flags.listen, crate::balancer::Servers::new(flags.servers), token).await
    })
}

/// One `up` or `down` at a time on one folder.
fn lock(layout: &Layout) -> Result<Flock<File>> {
    let path = layout.data.join("lock");
    let file = File::create(&path).with_context(|| format!("write {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        anyhow::anyhow!("another `keelson up` or `down` works on {}: wait for it", layout.data.display())
    })
}
