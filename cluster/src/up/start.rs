//! `up`: from whatever is there to a running cluster. Every step looks first and does only what is missing.
//!
//! Order: the network; then, side by side, the nodes' containerds with their images and the servers (the first founds the
//! cluster, the others join); then agents, the local load balancer, the demo.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::Request;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::demo;
use super::image::{self, DEMO, PAUSE};
use super::layout::{API, Kind, LOAD_BALANCER_POOL, Layout, Node};
use super::preflight;
use super::process::{Background, running};
use super::progress::{Progress, say};
use super::{netns, runtime};
use crate::client::{client, from_kubeconfig};
use crate::objects::{create_missing, post};
use crate::pki::{Authorities, Subject, issue, kubeconfig, private_file};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Longest wait for one condition; far more than a healthy machine takes.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Life of the token in the console's link.
const CONSOLE_SECONDS: u32 = 8 * 3600;

pub async fn up(layout: &Layout, count: u8, simulated: Option<u16>, with_demo: bool) -> Result<()> {
    let progress = Progress::new();
    let work = async {
        match layout.kind {
            Kind::Real => build(layout, count, with_demo, &progress).await,
            Kind::Simulated => super::simulated::build(layout, count, simulated, with_demo, &progress).await,
        }
    };
    tokio::select! {
        done = work => done,
        _ = tokio::signal::ctrl_c() => {
            say("");
            bail!("interrupted; what was started goes on: `keelson up` continues, `keelson down` removes it")
        }
    }
}

async fn build(layout: &Layout, count: u8, with_demo: bool, progress: &Progress) -> Result<()> {
    preflight::check()?;
    let nodes: Vec<Node> = (1..=count).map(|index| layout.node(index)).collect();
    let known = layout.known_nodes().len();
    if known > nodes.len() {
        bail!("this cluster has {known} nodes: give --nodes {known}, or remove it first with `keelson down`");
    }
    netns::make_underlay()?;
    for node in &nodes {
        fs::create_dir_all(&node.folder).with_context(|| format!("make {}", node.folder.display()))?;
        netns::make_node(node)?;
    }
    fs::write(
        layout.data.join("resolv.conf"),
        "# Name servers the nodes of this cluster ask for names outside it: none.\n",
    )?;
    progress.done(format!("network: {count} namespaces on one bridge"));

    let archives = write_images(layout)?;
    let (runtimes, servers) =
        tokio::join!(start_runtimes(&nodes, &archives, progress), start_servers(layout, &nodes, progress));
    runtimes?;
    servers?;
    let admin = admin(layout, &nodes).await?;
    let balanced = start_balancer(layout, &nodes)?;
    let since = jiff::Timestamp::now();
    let agents = start_agents(layout, &nodes)?;
    if balanced || !agents.is_empty() {
        let also = if balanced { " and the local load balancer" } else { "" };
        progress.done(format!("started {} agents{also}", agents.len()));
    }
    let client = admin;
    let expected: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    // A node whose agent just came back still looks as it did before.
    let heard = |node: &&Node| agents.contains(&node.name);
    let returned: Vec<&str> = nodes.iter().filter(heard).map(|node| node.name.as_str()).collect();
    until("word of the started agents", layout, || heard_of(&client, &returned, since)).await?;
    until("all nodes Ready", layout, || nodes_ready(&client, &expected)).await?;
    progress.done(format!("cluster ready: {count} nodes"));
    if with_demo {
        create_missing(&client, &demo::demo()).await?;
        until("the demo's first pod Ready", layout, || demo_ready(&client, 1)).await?;
        progress.done("demo: first pod Ready");
        until("the demo's pods Ready", layout, || demo_ready(&client, 3)).await?;
        progress.done("demo: all pods Ready");
    }
    let console = console_link(&client).await;
    report(layout, &nodes, &client, console, with_demo, progress).await;
    Ok(())
}

fn write_images(layout: &Layout) -> Result<Vec<PathBuf>> {
    let folder = layout.data.join("images");
    fs::create_dir_all(&folder)?;
    let mut paths = Vec::new();
    for (name, archive) in image::make()? {
        let path = folder.join(format!("{}.tar", name.replace(['/', ':'], "-")));
        fs::write(&path, archive).with_context(|| format!("write {}", path.display()))?;
        paths.push(path);
    }
    Ok(paths)
}

async fn start_runtimes(nodes: &[Node], archives: &[PathBuf], progress: &Progress) -> Result<()> {
    let one = |node: Node| async move {
        let started = runtime::start(&node).await?;
        let mark = node.folder.join("images.loaded");
        // A containerd that was there has its images; a new one may have an old store.
        if started || !mark.exists() {
            for archive in archives {
                runtime::import(&node, archive).await?;
            }
            fs::write(&mark, "")?;
        }
        anyhow::Ok(started)
    };
    let started = futures::future::try_join_all(nodes.iter().cloned().map(one)).await?;
    let count = started.iter().filter(|started| **started).count();
    if count > 0 {
        progress.done(format!("started {count} containerds, images {PAUSE} and {DEMO} loaded"));
    }
    Ok(())
}

pub fn program() -> Result<PathBuf> {
    std::env::current_exe().context("find this program's file")
}

fn server_args(layout: &Layout, node: &Node, join: Option<(&Node, &Path)>) -> Vec<String> {
    let mut args: Vec<String> = vec![
        "server".into(),
        "--data-dir".into(),
        node.folder.display().to_string(),
        "--node-name".into(),
        node.name.clone(),
        "--node-ip".into(),
        node.ip.to_string(),
    ];
    if layout.kind == Kind::Simulated {
        // All servers share this machine's ports.
        args.extend(["--bind-address".into(), node.ip.to_string()]);
    }
    match join {
        None if layout.kind == Kind::Simulated => args.push("--cluster-init".into()),
        None => args.extend(
            [
                "--cluster-init",
                "--load-balancer-pool",
                LOAD_BALANCER_POOL,
                "--node-monitor-grace-period",
                "20s",
            ]
            .map(str::to_owned)
            .into_iter()
            .chain(["--local-path".to_owned(), layout.data.join("volumes").display().to_string()]),
        ),
        Some((first, token)) => {
            args.extend(["--server".into(), format!("https://{}", first.server_address())]);
            args.extend(["--token-file".into(), token.display().to_string()]);
        }
    }
    args
}

fn start_server(layout: &Layout, node: &Node, join: Option<(&Node, &Path)>) -> Result<bool> {
    if running(&node.pid_file("server"), &node.folder).is_some() {
        return Ok(false);
    }
    Background {
        program: program()?,
        args: server_args(layout, node, join),
        namespace: node.namespace.as_deref(),
        pid_file: node.pid_file("server"),
        log_file: node.log_file("server"),
    }
    .start()?;
    Ok(true)
}

/// A server that has founded or joined finds the others itself; only newcomers need one that runs already.
pub async fn start_servers(layout: &Layout, nodes: &[Node], progress: &Progress) -> Result<()> {
    let settled = |node: &Node| node.server_data().join("state.json").exists();
    let Some(first) = nodes.first() else { return Ok(()) };
    let mut started = 0;
    // Members that know the cluster start together: none of them is enough for a quorum.
    for node in nodes.iter().filter(|node| settled(node)) {
        started += usize::from(start_server(layout, node, None)?);
    }
    if !settled(first) {
        started += usize::from(start_server(layout, first, None)?);
        until("the first server", layout, || server_ready(first)).await?;
        progress.done("first server ready: store, API, controllers, scheduler");
    }
    let token = first.server_data().join("token");
    for node in nodes.iter().filter(|node| !settled(node)) {
        started += usize::from(start_server(layout, node, Some((first, &token)))?);
    }
    for node in nodes {
        until(&format!("the server of {}", node.name), layout, || server_ready(node)).await?;
    }
    if started > 0 {
        progress.done(format!("{} servers ready, {started} started", nodes.len()));
    }
    Ok(())
}

/// Whether the node's own API server says it is ready.
async fn server_ready(node: &Node) -> Result<bool> {
    if running(&node.pid_file("server"), &node.folder).is_none() {
        bail!("the server of {} ended: see {}", node.name, node.log_file("server").display());
    }
    let Some(authorities) = Authorities::load(&node.server_data().join("pki"))? else { return Ok(false) };
    let admin = Subject { name: "kubernetes-admin", group: Some("system:masters"), ..Subject::default() };
    let pair = issue(&authorities.cluster, &admin, jiff::Timestamp::now())?;
    let client =
        client(&format!("https://{}", node.server_address()), &authorities.cluster.cert, &pair).await?;
    let request = Request::get("/readyz").body(vec![])?;
    let answer = tokio::time::timeout(Duration::from_secs(3), client.request_text(request)).await;
    Ok(matches!(answer, Ok(Ok(_))))
}

/// The admin's kubeconfig for this machine, made once, and a client that needs the first server only.
pub async fn admin(layout: &Layout, nodes: &[Node]) -> Result<Client> {
    let first = nodes.first().context("no nodes")?;
    let authorities =
        Authorities::load(&first.server_data().join("pki"))?.context("the first server has no keys")?;
    let path = layout.kubeconfig();
    if !path.exists() {
        let admin = Subject { name: "kubernetes-admin", group: Some("system:masters"), ..Subject::default() };
        let pair = issue(&authorities.cluster, &admin, jiff::Timestamp::now())?;
        let text =
            kubeconfig(&format!("https://{API}"), &authorities.cluster.cert, "kubernetes-admin", &pair);
        private_file(&path, text.as_bytes())?;
    }
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    from_kubeconfig(&text).await
}

pub fn start_balancer(layout: &Layout, nodes: &[Node]) -> Result<bool> {
    let pid_file = layout.data.join("lb.pid");
    if running(&pid_file, &layout.data).is_some() {
        return Ok(false);
    }
    if std::net::TcpListener::bind(API).is_err() {
        bail!(
            "{API} is taken by another program: stop it (a second local cluster? `keelson down` in its folder)"
        );
    }
    let servers: Vec<String> = nodes.iter().map(|node| node.server_address().to_string()).collect();
    Background {
        program: program()?,
        args: vec![
            "balance".into(),
            "--listen".into(),
            API.into(),
            "--servers".into(),
            servers.join(","),
            "--data-dir".into(),
            layout.data.display().to_string(),
        ],
        namespace: None,
        pid_file,
        log_file: layout.data.join("lb.log"),
    }
    .start()?;
    Ok(true)
}

fn start_agents(layout: &Layout, nodes: &[Node]) -> Result<Vec<String>> {
    let mut started = Vec::new();
    let token = nodes.first().context("no nodes")?.server_data().join("node-token");
    for node in nodes.iter().filter(|node| running(&node.pid_file("agent"), &node.folder).is_none()) {
        let text = |path: &Path| path.display().to_string();
        let args: Vec<(&str, String)> = vec![
            ("--data-dir", text(&node.folder)),
            ("--node-name", node.name.clone()),
            ("--node-ip", node.ip.to_string()),
            ("--server", format!("https://{}", node.server_address())),
            ("--token-file", text(&token)),
            ("--container-runtime-endpoint", format!("unix://{}", node.socket.display())),
            ("--cni-conf-dir", text(&node.cni_folder())),
            ("--cgroup-root", node.cgroup.clone()),
            ("--pod-log-dir", text(&node.folder.join("pods"))),
            ("--pod-infra-container-image", PAUSE.into()),
            ("--resolv-conf", text(&layout.data.join("resolv.conf"))),
            // The nodes share the developer's disk, of which a tenth may be far more than they will ever use.
            ("--eviction-disk-percent", "1".into()),
        ];
        let args = args.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        Background {
            program: program()?,
            args: std::iter::once("agent".to_owned()).chain(args).collect(),
            namespace: node.namespace.as_deref(),
            pid_file: node.pid_file("agent"),
            log_file: node.log_file("agent"),
        }
        .start()?;
        started.push(node.name.clone());
    }
    Ok(started)
}

/// Waits for a condition; an error that lasts, or the end of patience, ends the wait with where to look.
pub async fn until<R: Future<Output = Result<bool>>>(
    what: &str,
    layout: &Layout,
    look: impl Fn() -> R,
) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let last = match look().await {
            Ok(true) => return Ok(()),
            Ok(false) => String::new(),
            Err(error) if error.to_string().contains(" ended: see ") => return Err(error),
            Err(error) => format!(" (last answer: {error:#})"),
        };
        if Instant::now() > deadline {
            bail!("{what}: not within {PATIENCE:?}{last}. The logs are {}/n*/*.log", layout.data.display());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn get(client: &Client, path: &str) -> Result<Value> {
    let request = Request::get(path).body(vec![])?;
    Ok(tokio::time::timeout(Duration::from_secs(10), client.request(request))
        .await
        .context("no answer in 10 s")??)
}

fn is_true(object: &Value, condition: &str) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|found| found["type"] == condition && found["status"] == "True")
}

pub async fn nodes_ready(client: &Client, expected: &[&str]) -> Result<bool> {
    let nodes = get(client, "/api/v1/nodes").await?;
    let items = nodes["items"].as_array().map_or(&[][..], Vec::as_slice);
    Ok(expected
        .iter()
        .all(|name| items.iter().any(|node| node["metadata"]["name"] == *name && is_true(node, "Ready"))))
}

/// Whether each of the nodes renewed its lease since.
pub async fn heard_of(client: &Client, names: &[&str], since: jiff::Timestamp) -> Result<bool> {
    let leases = get(client, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases").await?;
    let items = leases["items"].as_array().map_or(&[][..], Vec::as_slice);
    let renewed = |name: &str| {
        let lease = items.iter().find(|lease| lease["metadata"]["name"] == name)?;
        lease.pointer("/spec/renewTime")?.as_str()?.parse::<jiff::Timestamp>().ok()
    };
    Ok(names.iter().all(|name| renewed(name).is_some_and(|renewed| renewed >= since)))
}

pub async fn demo_ready(client: &Client, wanted: usize) -> Result<bool> {
    let pods = get(client, "/api/v1/namespaces/default/pods?labelSelector=app%3Ddemo").await?;
    let ready = pods["items"].as_array().into_iter().flatten().filter(|pod| is_true(pod, "Ready")).count();
    Ok(ready >= wanted)
}

pub async fn console_link(client: &Client) -> Result<String> {
    create_missing(client, &demo::console()).await?;
    let ask = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": CONSOLE_SECONDS},
    });
    let answer = post(client, "/api/v1/namespaces/kube-system/serviceaccounts/console/token", &ask).await?;
    let token = answer.pointer("/status/token").and_then(Value::as_str).context("no token in the answer")?;
    Ok(format!("https://{API}/console/#token={token}"))
}

async fn report(
    layout: &Layout,
    nodes: &[Node],
    client: &Client,
    console: Result<String>,
    with_demo: bool,
    progress: &Progress,
) {
    say(format!(
        "\nUp after {:.1} s. Use it:\n  export KUBECONFIG={}",
        progress.seconds(),
        layout.kubeconfig().display()
    ));
    say("  kubectl get nodes,pods -A -o wide".to_owned());
    if with_demo {
        let node = nodes.first().map(|node| node.ip.to_string()).unwrap_or_default();
        say(format!("  curl http://{node}:30080/            # the demo, on any node's port"));
        let service = get(client, "/api/v1/namespaces/default/services/demo-lb").await.unwrap_or_default();
        if let Some(address) = service.pointer("/status/loadBalancer/ingress/0/ip").and_then(Value::as_str) {
            say(format!("  curl http://{address}/                 # its load-balancer address"));
        }
    }
    match console {
        Ok(link) => say(format!("Console (8 hours): {link}")),
        Err(error) => say(format!("Console: no link, because {error:#}")),
    }
    say(format!(
        "Logs: {}/n*/*.log. Stop and remove: keelson down --data-dir {}",
        layout.data.display(),
        layout.data.display()
    ));
}
