//! Benchmarks of the store beside etcd: same load, same machine, in turn, so that drift of the machine hits both.
//!
//! Absolute figures of a shared machine are a floor; the ratios, and the servers' CPU per operation (user and
//! system time of all server processes, from /proc), are the finding. Prints a Markdown table.

mod large;
mod load;
mod peer;
mod streams;
mod wire;

use std::time::Duration;

use anyhow::{Context, bail};
use load::{Load, Measured};
use peer::{Kind, Servers};

/// One row of the table: what is asked of both.
#[derive(Clone, Copy)]
enum Row {
    Unary(Load),
    KeepAlive,
    /// At a pace, or at full speed.
    FanOut(Option<Duration>),
}

use Row::Unary;

const LOADS: &[(&str, Row, usize, usize)] = &[
    // name, request, clients (or watchers), operations (or puts)
    ("put, 1 client", Unary(Load::Put), 1, 1_000),
    ("put, 100 clients", Unary(Load::Put), 100, 20_000),
    ("put, 1000 clients", Unary(Load::Put), 1_000, 30_000),
    ("range linearizable, 100 clients", Unary(Load::RangeLinearizable), 100, 60_000),
    ("range linearizable, 1000 clients", Unary(Load::RangeLinearizable), 1_000, 60_000),
    ("range serializable, 100 clients", Unary(Load::RangeSerializable), 100, 60_000),
    ("lease keep-alive, 100 clients", Row::KeepAlive, 100, 100_000),
    ("watch: 1000 watchers of one key, events at full speed", Row::FanOut(None), 1_000, 1_000),
    ("the same with 100 puts a second", Row::FanOut(Some(Duration::from_millis(10))), 1_000, 200),
];

const USAGE: &str = "usage: cargo xtask bench store [--members 1|3 (0: neither)] [--only ROWS] [--rounds N] [--quick] [--keys N (0: not)]";

struct Options {
    members: Vec<usize>,
    rounds: usize,
    /// Rows whose names contain it.
    only: String,
    divide: usize,
    /// Of the large store.
    keys: usize,
}

fn options() -> anyhow::Result<Options> {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() != Some("store") {
        bail!(USAGE);
    }
    let mut options =
        Options { members: vec![1, 3], rounds: 3, only: String::new(), divide: 1, keys: 1_000_000 };
    while let Some(word) = words.next() {
        let number = |words: &mut dyn Iterator<Item = String>| -> anyhow::Result<usize> {
            Ok(words.next().context(USAGE)?.parse()?)
        };
        match word.as_str() {
            "--members" => {
                options.members =
                    Some(number(&mut words)?).filter(|members| *members > 0).into_iter().collect()
            }
            "--rounds" => options.rounds = number(&mut words)?.max(1),
            "--keys" => options.keys = number(&mut words)?,
            "--only" => options.only = words.next().context(USAGE)?,
            "--quick" => (options.divide, options.keys) = (10, options.keys / 10),
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
    if options.keys > 0 {
        runtime.block_on(large::compare(options.keys))?;
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
    println!("Idle RSS, MiB: etcd {}, keelson {}.\n", shown(&peer.resident()), shown(&ours.resident()));
    println!("| load | etcd req/s, p50 / p99 ms, CPU µs/op | keelson | req/s × | CPU ÷ |");
    println!("|---|---|---|---|---|");
    for (name, row, clients, total) in LOADS.iter().filter(|(name, ..)| name.contains(&options.only)) {
        let total = match row {
            Row::FanOut(_) => (total / options.divide).max(1),
            Row::Unary(_) | Row::KeepAlive => (total / options.divide).max(*clients),
        };
        let mut theirs_runs = Vec::new();
        let mut our_runs = Vec::new();
        for _ in 0..options.rounds {
            theirs_runs.push(measure(&peer, *row, *clients, total).await?);
            our_runs.push(measure(&ours, *row, *clients, total).await?);
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

async fn measure(servers: &Servers, row: Row, clients: usize, total: usize) -> anyhow::Result<Measured> {
    let before = servers.cpu_micros();
    let endpoints = &servers.endpoints;
    let (mut measured, operations) = match row {
        Row::Unary(load) => (load::run(endpoints, load, clients, total).await?, total),
        Row::KeepAlive => (streams::keep_alive(endpoints, clients, total).await?, total),
        Row::FanOut(every) => (streams::fan_out(endpoints, clients, total, every).await?, clients * total),
    };
    measured.cpu_micros = (servers.cpu_micros() - before) as f64 / operations as f64;
    Ok(measured)
}

/// The run whose throughput is the middle one.
fn median(mut runs: Vec<Measured>) -> Measured {
    runs.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    runs.swap_remove(runs.len() / 2)
}
