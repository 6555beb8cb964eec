//! Service proxy: watches Services, EndpointSlices and this node's pods, and keeps nftables at `compile(latest)`.
//!
//! Order: nothing is applied before the first complete list of Services and slices, so a restart never tears down
//! working rules; then each burst of changes becomes one atomic transaction. What nft refuses is answered by writing the
//! whole table anew.
//!
//! Knows nothing of how a ruleset is compiled (`nodeagent/core`). Hazards: needs CAP_NET_ADMIN, `nft` and, for stale UDP
//! flows, `conntrack`.

mod flags;
mod health;
mod netfilter;
mod observed;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, stream::BoxStream};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_nodeagent_core::proxy::{ProxyNode, Ruleset, State, compile, diff, full, stale_flows};
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use flags::main;
use health::Health;
use netfilter::Netfilter;
use observed::{Input, Observed};

/// Changes that come within this time become one transaction.
const GATHER: Duration = Duration::from_millis(20);
/// How often the proxy looks whether somebody removed its table.
const LOOK: Duration = Duration::from_secs(30);
/// Wait after a refused transaction.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct Config {
    /// This node's name.
    pub node_name: String,
    /// Where pods live; without it, nothing is masqueraded on the way to a ClusterIP.
    pub cluster_cidr: Option<Ipv4Net>,
    /// Address of `/healthz`, `/livez`, `/metrics`; `None`: not served.
    pub health_address: Option<SocketAddr>,
    /// A client that may list this node's pods (the proxy's own identity may not): for host ports. `None`: no host ports.
    pub pods: Option<kube::Client>,
    /// Name of the network namespace to write rules into; `None`: the one the process runs in.
    pub namespace: Option<String>,
}

/// Runs until the token is cancelled. The rules stay in place: connections outlive the proxy.
///
/// # Errors
/// When nftables can't be used at all or the health address can't be bound.
pub async fn run(client: kube::Client, config: Config, token: CancellationToken) -> Result<()> {
    let netfilter = Netfilter::new(config.namespace.clone());
    netfilter.check().await?;
    let health = Arc::new(Health::default());
    if let Some(address) = config.health_address {
        let serve = health::serve(address, health.clone(), token.clone()).await?;
        tokio::spawn(serve);
    }
    let inputs = watch(client, &config);
    let node = ProxyNode { name: config.node_name.clone(), cluster_cidr: config.cluster_cidr };
    Proxier { netfilter, node, health, applied: None }.run(inputs, config.pods.is_some(), token).await
}

fn watch(client: kube::Client, config: &Config) -> BoxStream<'static, Input> {
    let all = watcher::Config::default;
    let services = watcher(Api::<Service>::all(client.clone()), all()).default_backoff();
    let slices = watcher(Api::<EndpointSlice>::all(client), all()).default_backoff();
    let services = services.filter_map(|event| async { noted("Services", event).map(Input::Service) });
    let slices = slices.filter_map(|event| async { noted("EndpointSlices", event).map(Input::Slice) });
    let joined = futures::stream::select(services, slices);
    let Some(client) = config.pods.clone() else { return joined.boxed() };
    let mine = all().fields(&format!("spec.nodeName={}", config.node_name));
    let pods = watcher(Api::<Pod>::all(client), mine).default_backoff();
    let pods = pods.filter_map(|event| async { noted("Pods", event).map(Input::Pod) });
    futures::stream::select(joined, pods).boxed()
}

fn noted<K>(what: &str, event: watcher::Result<watcher::Event<K>>) -> Option<watcher::Event<K>> {
    event.inspect_err(|error| warn!(%error, "watch of {what} broke; it is retried")).ok()
}

/// What the table holds and which objects it was compiled from.
struct Applied {
    rules: Ruleset,
    state: State,
}

struct Proxier {
    netfilter: Netfilter,
    node: ProxyNode,
    health: Arc<Health>,
    /// `None`: unknown, so the next transaction writes everything.
    applied: Option<Applied>,
}

impl Proxier {
    async fn run(
        mut self,
        mut inputs: BoxStream<'static, Input>,
        pods: bool,
        token: CancellationToken,
    ) -> Result<()> {
        let mut observed = Observed::new(pods);
        let mut look = tokio::time::interval(LOOK);
        // Set while there is something to apply: when to do it.
        let mut due: Option<Instant> = None;
        loop {
            let wait = due;
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                input = inputs.next() => {
                    let Some(input) = input else { anyhow::bail!("the watches ended") };
                    observed.take(input);
                    due = due.or_else(|| observed.complete().then(|| Instant::now() + GATHER));
                }
                () = async { tokio::time::sleep_until(wait.unwrap_or_else(Instant::now)).await }, if wait.is_some() => {
                    due = match self.sync(observed.state()).await {
                        Ok(()) => None,
                        Err(error) => {
                            warn!("rules not applied, the whole table is written again in {RETRY:?}: {error:#}");
                            self.applied = None;
                            self.health.failed();
                            Some(Instant::now() + RETRY)
                        }
                    };
                }
                _ = look.tick(), if self.applied.is_some() => {
                    if !self.netfilter.table_is_there().await {
                        warn!("somebody removed the table; it is written again");
                        self.applied = None;
                        due = due.or_else(|| Some(Instant::now()));
                    }
                }
            }
        }
    }

    /// Makes the kernel's rules those of `state`.
    async fn sync(&mut self, state: State) -> Result<()> {
        let started = Instant::now();
        let rules = compile(&state, &self.node);
        let changes = match &self.applied {
            Some(applied) => diff(&applied.rules, &rules),
            None => full(&rules),
        };
        if !changes.is_empty() {
            self.netfilter.apply(&changes.script()).await.context("nft transaction")?;
        }
        let before = self.applied.as_ref().map(|applied| &applied.state);
        let flows = before.map(|before| stale_flows(before, &state, &self.node.name)).unwrap_or_default();
        self.netfilter.forget(&flows).await;
        let (services, took) = (state.services.iter().count(), started.elapsed());
        match self.applied {
            None => info!(services, chains = rules.chains.len(), ?took, "Service rules written"),
            Some(_) => {
                debug!(services, changes = changes.list.len(), flows = flows.len(), ?took, "rules synced")
            }
        }
        self.health.synced(&state, &self.node.name, took);
        self.applied = Some(Applied { rules, state });
        Ok(())
    }
}
