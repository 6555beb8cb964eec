//! Benchmarks of the store beside etcd: same load, same machine, in turn, so that drift of the machine hits both.
//!
//! Absolute figures of a shared machine are a floor; the ratios, and the servers' CPU per operation (user and
//! system time of all server processes, from /proc), are the finding. Prints a Markdown table.

mod load;
mod peer;

use std::time::Duration;

use anyhow::{Context, bail};
use load::{Load, Measured};
use peer::{Kind, Servers};

/// One row of the table: what is asked of both.
const LOADS: &[(&str, Load, usize, usize)] = &[
    // name, request, clients, operations
    ("put, 1 client", Load::Put, 1, 1_000),
    ("put, 100 clients", Load::Put, 100, 20_000),
    ("put, 1000 clients", Load::Put, 1_000, 30_000),
    ("range linearizable, 100 clients", Load::RangeLinearizable, 100, 30_000),
    ("range serializable, 100 clients", Load::RangeSerializable, 100, 30_000),
];

const USAGE: &str = "usage: cargo xtask bench store [--members 1|3] [--rounds N] [--quick]";

struct Options {
    members: Vec<usize>,
    rounds: usize,
    divide: usize,
}

fn options() -> anyhow::Result<Options> {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() != Some("store") {
        bail!(USAGE);
    }
    let mut options = Options { members: vec![1, 3], rounds: 3, divide: 1 };
    while let Some(word) = words.next() {
        let mut number = || -> anyhow::Result<usize> { Ok(words.next().context(USAGE)?.parse()?) };
        match word.as_str() {
            "--members" => options.members = vec![number()?],
            "--rounds" => options.rounds = number()?.max(1),
            "--quick" => options.divide = 10,
            _ => bail!(USAGE),
        }
    }
    Ok(options)
}

fn main() -> anyhow::Result<()> {
    let options = options()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for members in &options.members {
        runtime.block_on(compare(*members, &options))?;
    }
    Ok(())
}

async fn compare(members: usize, options: &Options) -> anyhow::Result<()> {
    let mut peer = Servers::start(Kind::Etcd, members).await?;
    let mut ours = Servers::start(Kind::Keelson, members).await?;
    println!(
        "\n### {members} member(s): keelson beside {} (fsync on, loopback, {} processors)\n",
        peer.version,
        peer::processors()
    );
    println!("| load | etcd req/s, p50 / p99 ms, CPU µs/op | keelson | req/s × | CPU ÷ |");
    println!("|---|---|---|---|---|");
    for (name, load, clients, total) in LOADS {
        let total = (total / options.divide).max(*clients);
        let mut theirs_runs = Vec::new();
        let mut our_runs = Vec::new();
        for _ in 0..options.rounds {
            theirs_runs.push(measure(&peer, *load, *clients, total).await?);
            our_runs.push(measure(&ours, *load, *clients, total).await?);
        }
        let (theirs, own) = (median(theirs_runs), median(our_runs));
        println!(
            "| {name} | {theirs} | {own} | {:.2} | {:.2} |",
            own.per_second / theirs.per_second,
            theirs.cpu_micros / own.cpu_micros
        );
    }
    println!(
        "| RSS of each server after it, MiB | {} | {} | | |",
        shown(&peer.resident()),
        shown(&ours.resident())
    );
    peer.stop(Duration::from_secs(10))?;
    ours.stop(Duration::from_secs(10))
}

fn shown(mebibytes: &[u64]) -> String {
    mebibytes.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

async fn measure(servers: &Servers, load: Load, clients: usize, total: usize) -> anyhow::Result<Measured> {
    let before = servers.cpu_micros();
    let mut measured = load::run(&servers.endpoints, load, clients, total).await?;
    measured.cpu_micros = (servers.cpu_micros() - before) as f64 / total as f64;
    Ok(measured)
}

/// The run whose throughput is the middle one.
fn median(mut runs: Vec<Measured>) -> Measured {
    runs.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    runs.swap_remove(runs.len() / 2)
}
