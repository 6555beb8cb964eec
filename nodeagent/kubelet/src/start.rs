//! Puts the agent together and runs it until cancelled. Pods outlive it.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::context::{self, Machine, Node};
use crate::cri::Cri;
use crate::events::Events;
use crate::objects::{Objects, Tokens};
use crate::source::{FromApi, FromFiles, PodSource};
use crate::{agent, heartbeat, server, tls, upkeep};

/// Runs the kubelet until `stop`. Fails at once if the runtime cannot be reached or this is not root.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the kubelet needs root for mounts and cgroups: run it as root");
    }
    let cri = Cri::connect(&config.runtime_endpoint).await?;
    info!(runtime = cri.name, version = cri.version, node = config.node_name, "kubelet starts");
    std::fs::create_dir_all(config.root_dir.join("pods"))
        .with_context(|| format!("cannot make {}: pass --root-dir", config.root_dir.display()))?;
    let cgroups = Cgroups::detect()?;
    let kubepods = config.cgroup("kubepods");
    cgroups.create_classes(&kubepods).with_context(|| format!("cannot make cgroup {kubepods}"))?;
    let (services, service_feed) = match &config.client {
        Some(client) => {
            let (store, feed) = watch_services(client.clone());
            (Some(store), Some(feed))
        }
        None => (None, None),
    };
    let client = config.client.clone();
    let node = Arc::new(Node {
        events: Events::start(client.clone(), &config.node_name),
        objects: Objects::new(client.clone()),
        tokens: Tokens::default(),
        machine: Machine::detect(&config.root_dir),
        resolver: context::node_resolver(&config),
        pods: Default::default(),
        image_uses: Default::default(),
        sampler: Default::default(),
        services,
        cri,
        cgroups,
        config,
    });
    let mut tasks = tokio::task::JoinSet::new();
    if let Some(bind) = node.config.bind {
        // Bound before the node is registered, so that a ready node always answers.
        let listener = tokio::net::TcpListener::bind(bind).await;
        let listener = listener.with_context(|| format!("cannot listen on {bind}: pass another --port"))?;
        tasks.spawn(server::serve(node.clone(), listener, tls::server(&node.config)?, stop.clone()));
    }
    let mut sources: Vec<Box<dyn PodSource>> = Vec::new();
    if let Some(client) = client {
        tasks.spawn(heartbeat::report(node.clone(), client.clone()));
        tasks.spawn(heartbeat::lease(node.config.node_name.clone(), client.clone()));
        let node_name = node.config.node_name.clone();
        sources.push(Box::new(FromApi { client, node_name }));
    }
    if let Some(dir) = node.config.static_pods.clone() {
        sources.push(Box::new(FromFiles { dir, node_name: node.config.node_name.clone() }));
    }
    let (evict, evictions) = mpsc::channel(16);
    if let Some(feed) = service_feed {
        tasks.spawn(feed);
    }
    tasks.spawn(upkeep::run(node.clone(), evict));
    agent::run(node, sources, evictions, stop).await;
    tasks.abort_all();
    Ok(())
}

type Feed = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Services for environment links, without what links do not need.
fn watch_services(client: kube::Client) -> (reflector::Store<Service>, Feed) {
    let (reader, writer) = reflector::store();
    let api: kube::Api<Service> = kube::Api::all(client);
    let stream = watcher(api, watcher::Config::default()).default_backoff().modify(|service| {
        service.metadata.managed_fields = None;
        service.metadata.annotations = None;
        service.status = None;
    });
    let stream = reflector(writer, stream);
    let feed = async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            if let Err(e) = event {
                debug!(error = %e, "watching services failed, trying again");
            }
        }
    };
    (reader, Box::pin(feed))
}
