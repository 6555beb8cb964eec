//! `keelson simulate`: nodes without containers, any number of them in one process. The control plane takes them for
//! nodes; their pods are only shown as running.
//!
//! Each joins with a name of its own and is that node for the API, with no more rights than a real one.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use keelson_kubelet::{Simulation, simulate};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::client::client;
use crate::host;
use crate::newcomer::Newcomer;
use crate::pki::{private_file, private_folder};
use crate::token;

/// As a kubelet's.
const PORT: u16 = 10250;
/// More would need another way to hand out addresses.
const MOST: u16 = 5000;

#[derive(Parser, Debug)]
#[command(
    name = "keelson simulate",
    version,
    about = "Simulated nodes: pods are shown as running on them, no container runs"
)]
struct Flags {
    /// How many nodes; they are named sim-1, sim-2 …
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST)))]
    nodes: u16,
    /// A server of the cluster (or what balances over them), https://HOST:6443.
    #[arg(long, env = "KEELSON_URL")]
    server: String,
    /// The join token (server/token or server/node-token on a server).
    #[arg(long, env = "KEELSON_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File with the join token.
    #[arg(long, conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// The nodes' certificates.
    #[arg(long)]
    data_dir: PathBuf,
    /// Address of the first node; the others follow. Each must be one of this machine's; all of 127.0.0.0/8 are.
    #[arg(long, default_value = "127.30.1.1")]
    first_address: Ipv4Addr,
    /// CPUs that each node claims to have.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    cpus: i64,
    /// GiB of memory that each node claims to have.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    memory_gib: i64,
    /// Pods that each node takes.
    #[arg(long, default_value_t = 110, value_parser = clap::value_parser!(u16).range(1..=250))]
    max_pods: u16,
}

/// The subcommand; `args` start with the program's name.
pub fn main(args: Vec<String>) -> std::process::ExitCode {
    crate::program::<Flags, _>("keelson simulate", args, run)
}

async fn run(flags: Flags) -> Result<()> {
    let stop = host::stop_token()?;
    let mut nodes = tokio::task::JoinSet::new();
    for index in 1..=flags.nodes {
        let Some(simulation) = prepare(&flags, index, &stop).await? else { return Ok(()) };
        let stop = stop.child_token();
        nodes.spawn(async move {
            let name = simulation.node_name.clone();
            simulate(simulation, stop).await.with_context(|| format!("node {name}"))
        });
    }
    while let Some(ended) = nodes.join_next().await {
        let ended = ended.context("a simulated node broke").and_then(|ended| ended);
        if !stop.is_cancelled() {
            stop.cancel();
            ended?;
            warn!("a simulated node ended by itself");
        }
    }
    Ok(())
}

/// A node's name, address and certificates, joined if it has none.
async fn prepare(flags: &Flags, index: u16, stop: &CancellationToken) -> Result<Option<Simulation>> {
    let name = name(index);
    let ip = address(flags.first_address, index)?;
    let folder = flags.data_dir.join(&name);
    private_folder(&folder)?;
    let newcomer = Newcomer {
        server: Some(flags.server.clone()),
        token: token::given(flags.token.as_deref(), flags.token_file.as_deref())?,
        name: Some(name.clone()),
        ip: Some(ip),
    };
    let Some(state) = newcomer.identity(&folder, stop).await? else { return Ok(None) };
    let file = |name: &str, text: &str| -> Result<PathBuf> {
        let path = Path::new(&folder).join(name);
        private_file(&path, text.as_bytes())?;
        Ok(path)
    };
    let url = format!("https://{}", flags.server.trim_start_matches("https://"));
    Ok(Some(Simulation {
        client: client(&url, &state.authority, &state.kubelet).await?,
        node_name: name,
        bind: (ip, PORT).into(),
        tls_cert: file("kubelet.crt", &state.kubelet.cert)?,
        tls_key: file("kubelet.key", &state.kubelet.key)?,
        room: keelson_kubelet::Room {
            cpu_milli: flags.cpus * 1000,
            memory_bytes: flags.memory_gib << 30,
            pods: usize::from(flags.max_pods),
        },
    }))
}

/// The name of the simulated node with that number, from 1.
pub fn name(index: u16) -> String {
    format!("sim-{index}")
}

/// The n-th address from the first one on; .0 and .255 are left out, some tools take them for something else.
fn address(first: Ipv4Addr, index: u16) -> Result<Ipv4Addr> {
    let mut at = u32::from(first);
    for _ in 1..index {
        at = at.checked_add(1).context("--first-address leaves no room for so many nodes")?;
        while matches!(at & 0xff, 0 | 0xff) {
            at = at.checked_add(1).context("--first-address leaves no room for so many nodes")?;
        }
    }
    let address = Ipv4Addr::from(at);
    ensure!(
        address.is_loopback() == first.is_loopback(),
        "--first-address {first} leaves no room for so many nodes"
    );
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_each_other_within_their_network() {
        let first = "127.30.1.1".parse().expect("an address");
        let at = |index| address(first, index).map(|address| address.to_string()).ok();
        assert_eq!(at(1).as_deref(), Some("127.30.1.1"));
        assert_eq!(at(254).as_deref(), Some("127.30.1.254"));
        assert_eq!(at(255).as_deref(), Some("127.30.2.1"));
        let last = "127.255.255.254".parse().expect("an address");
        assert!(address(last, 2).is_err());
    }
}
