//! The store's shell: openraft over HTTP/2 between members, RocksDB below, etcd's v3 API above.
//!
//! ```text
//! clients ─► listen ─► http ─► service ─► Handle ─► Replica (store/raft) ─► Rocks
//! peers   ─► listen ─► peer ───────────────────────►   │
//!                              watch ◄─ hub ◄──────────┘
//! ```
//!
//! Entry points: [`Store::start`] (embed), [`Handle`] (the API in process, `impl Etcd`), [`main`] (`keelson etcd`).
//! Nothing here decides what a request means: that is `keelson_store_core`.
//!
//! Not there yet, and answered as such: the lock and election services, the JSON gateway, downgrade,
//! etcd's own snapshot and data formats.

mod auth;
mod calls;
mod config;
mod consistency;
mod convert;
mod door;
mod facts;
mod flags;
mod handle;
mod http;
mod identity;
mod listen;
mod logging;
mod metrics;
mod peer;
mod quota;
mod rocks;
mod scrub;
mod service;
mod store;
mod strict;
mod tls;
mod watch;

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use config::{ClusterState, Config, Endpoint, TlsConfig};
pub use flags::{Invocation, Usage};
pub use handle::{CLUSTER_VERSION, ETCD_VERSION, Handle};
pub use rocks::{Memory, Rocks};
pub use store::Store;

/// `keelson etcd`: `args` without the program's name and subcommand. Exit codes are etcd's: 2 for bad flags, 1 for a
/// member that cannot run, 0 for a clean stop.
pub fn main(args: Vec<String>) -> ExitCode {
    let environment = std::env::vars().collect();
    let (config, level) = match flags::parse(&args, &environment) {
        Ok(Invocation::Version) => {
            println!("etcd Version: {ETCD_VERSION}\nkeelson Version: {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Ok(Invocation::Help) => {
            print!("{}", flags::help());
            return ExitCode::SUCCESS;
        }
        Ok(Invocation::Run(config, level)) => (*config, level),
        Err(Usage(text)) => {
            eprintln!("{text}\nSee 'keelson etcd --help'.");
            return ExitCode::from(2);
        }
    };
    logging::init(&level);
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the member stopped");
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a member until SIGINT or SIGTERM.
async fn run(config: Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (name, data_dir) = (config.name.clone(), config.data_dir.display().to_string());
    tracing::info!(name, "data-dir" = data_dir, "starting a member");
    let starting = Store::start(config, stop.clone());
    let store = tokio::select! {
        biased;
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
        store = starting => store?,
    };
    let stopped = store.stopped();
    tokio::pin!(stopped);
    loop {
        let name = tokio::select! {
            biased;
            _ = interrupt.recv() => "interrupt",
            _ = terminate.recv() => "terminated",
            result = stopped.as_mut() => return result,
        };
        tracing::info!(signal = name, "received signal; shutting down");
        stop.cancel();
    }
}
