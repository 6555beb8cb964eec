//! Puts the agent together and runs it until cancelled. Pods outlive it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::context::{self, Machine, Node};
use crate::cri::Cri;
use crate::events::Events;
use crate::objects::{Objects, Tokens};
use crate::source::{FromApi, FromFiles, PodSource};
use crate::{agent, images};

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
        services,
        cri,
        cgroups,
        config,
    });
    let mut sources: Vec<Box<dyn PodSource>> = Vec::new();
    if let Some(client) = client {
        let node_name = node.config.node_name.clone();
        sources.push(Box::new(FromApi { client, node_name }));
    }
    if let Some(dir) = node.config.static_pods.clone() {
        sources.push(Box::new(FromFiles { dir, node_name: node.config.node_name.clone() }));
    }
    let (_evict, evictions) = mpsc::channel(16);
    let mut tasks = tokio::task::JoinSet::new();
    if let Some(feed) = service_feed {
        tasks.spawn(feed);
    }
    tasks.spawn(collect_images(node.clone()));
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

async fn collect_images(node: Arc<Node>) {
    let mut tick = tokio::time::interval(Duration::from_secs(300));
    tick.tick().await;
    loop {
        tick.tick().await;
        if let Err(e) = images::collect(&node).await {
            warn!(error = e.message(), "image collection failed");
        }
    }
}
