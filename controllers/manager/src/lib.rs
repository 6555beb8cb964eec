//! Runs controllers: informers, work queues, executor, leader election, Events, metrics.
//!
//! The controllers themselves are pure and live in `keelson-controllers-core`; here is everything
//! they need, written once. Knows the API server only through the `kube::Client` it is handed.
//!
//! Start with `run`; with your own reconcilers, `run_with`.

mod cache;
mod config;
mod discovery;
mod executor;
mod flags;
mod health;
mod informer;
mod leader;
mod metrics;
mod queue;
mod recorder;
mod request;
mod runner;

use std::sync::Arc;

pub use config::Config;
pub use flags::main;
use keelson_controllers_core::Reconciler;
use kube::Client;
pub use metrics::Metrics;
use tokio_util::sync::CancellationToken;

use leader::{Elector, Leadership, LeaseName};

/// Runs the built-in controllers until `stop`. Fails only on a configuration that cannot work.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let reconcilers = config.reconcilers()?;
    run_with(client, config, reconcilers, Arc::default(), stop).await
}

/// Runs these controllers under leader election until `stop`; on a graceful stop the Lease is released.
pub async fn run_with(
    client: Client,
    config: Config,
    reconcilers: Vec<Arc<dyn Reconciler>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if !config.leader_elect {
        metrics.set_leading(true);
        runner::lead(client, &reconcilers, Arc::new(Leadership::always()), metrics, stop).await;
        return Ok(());
    }
    let name = LeaseName {
        namespace: config.lease_namespace.clone(),
        name: config.lease_name.clone(),
        identity: config.identity.clone().unwrap_or_else(identity),
    };
    let mut elector = Elector::new(client.clone(), name, config.timing.clone());
    let leadership = Arc::new(Leadership::default());
    while elector.acquire(&leadership, &stop).await {
        metrics.set_leading(true);
        let term = stop.child_token();
        let work =
            runner::lead(client.clone(), &reconcilers, leadership.clone(), metrics.clone(), term.clone());
        let hold = async {
            elector.hold(&leadership, &stop).await;
            term.cancel();
        };
        tokio::join!(work, hold);
        metrics.set_leading(false);
        if stop.is_cancelled() {
            break;
        }
    }
    elector.release(&leadership).await;
    Ok(())
}

fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:08x}", host.trim(), rand::random::<u32>())
}
