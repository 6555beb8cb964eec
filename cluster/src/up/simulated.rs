//! `up` without root: servers as plain processes on loopback, each on an address of its own, and one process behind all
//! simulated nodes.

use std::fs;

use anyhow::{Context, Result, bail};

use super::demo;
use super::layout::{API, FIRST_SIMULATED, Layout, Node};
use super::process::{Background, running, stop_all};
use super::progress::{Progress, say};
use super::start::{
    PATIENCE, admin, console_link, demo_ready, heard_of, nodes_ready, program, start_balancer, start_servers,
    until,
};
use crate::objects::create_missing;
use crate::simulated::name;

/// Without `--simulated`.
const NODES: u16 = 3;

/// What is not there, in the words that `up` prints.
const MEANING: &str = "The control plane is real (servers, highly available store, controllers, scheduler); the nodes are simulated:\n\
     pods are scheduled to them and shown as Running, but no container runs. So there are no logs, no exec, no images,\n\
     and nothing answers on the addresses of pods and Services.";

pub async fn build(
    layout: &Layout,
    servers: u8,
    nodes: Option<u16>,
    with_demo: bool,
    progress: &Progress,
) -> Result<()> {
    let known = known(layout);
    let count = nodes.unwrap_or(if known == 0 { NODES } else { known });
    if count < known {
        bail!(
            "this cluster has {known} simulated nodes: give --simulated {known} or more, or remove it with `keelson down`"
        );
    }
    let members: Vec<Node> = (1..=servers).map(|index| layout.node(index)).collect();
    let made = layout.known_nodes().len();
    if made > members.len() {
        bail!("this cluster has {made} servers: give --nodes {made}, or remove it first with `keelson down`");
    }
    say(format!("{}: {servers} servers as plain processes, {count} simulated nodes.\n{MEANING}\n", why()));
    for folder in members.iter().map(|node| &node.folder).chain([&layout.simulated_folder()]) {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    start_servers(layout, &members, progress).await?;
    let client = admin(layout, &members).await?;
    if start_balancer(layout, &members)? {
        progress.done("started the local load balancer");
    }
    until("the local load balancer", layout, || async {
        Ok(tokio::net::TcpStream::connect(API).await.is_ok())
    })
    .await?;
    let since = jiff::Timestamp::now();
    let names: Vec<String> = (1..=count).map(name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    if start_nodes(layout, &members, count, known).await? {
        until("word of the simulated nodes", layout, || heard_of(&client, &names, since)).await?;
    }
    until("all nodes Ready", layout, || nodes_ready(&client, &names)).await?;
    progress.done(format!("cluster ready: {count} simulated nodes"));
    if with_demo {
        create_missing(&client, &demo::demo()).await?;
        until("the demo's pods Ready", layout, || demo_ready(&client, 3)).await?;
        progress.done("demo: all pods shown as Ready");
    }
    let console = console_link(&client).await;
    report(layout, console, progress);
    Ok(())
}

fn why() -> &'static str {
    if super::preflight::is_root() { "As asked" } else { "This is not root" }
}

/// How many simulated nodes the cluster has had.
pub fn known(layout: &Layout) -> u16 {
    let entries = fs::read_dir(layout.simulated_folder()).into_iter().flatten().flatten();
    let nodes = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("sim-"));
    u16::try_from(nodes.count()).unwrap_or(u16::MAX)
}

/// The process behind all simulated nodes. Says whether it was started: again, if there are to be more than before.
async fn start_nodes(layout: &Layout, members: &[Node], count: u16, known: u16) -> Result<bool> {
    let pid_file = layout.simulated_pid();
    if let Some(pid) = running(&pid_file, &layout.data) {
        if count == known {
            return Ok(false);
        }
        tokio::task::spawn_blocking(move || stop_all(&[pid], PATIENCE / 10)).await?;
    }
    let token = members.first().context("no servers")?.server_data().join("node-token");
    let text = |path: &std::path::Path| path.display().to_string();
    Background {
        program: program()?,
        args: vec![
            "simulate".into(),
            "--nodes".into(),
            count.to_string(),
            "--server".into(),
            format!("https://{API}"),
            "--token-file".into(),
            text(&token),
            "--first-address".into(),
            FIRST_SIMULATED.to_string(),
            "--data-dir".into(),
            text(&layout.simulated_folder()),
        ],
        namespace: None,
        pid_file,
        log_file: layout.data.join("simulated.log"),
    }
    .start()?;
    Ok(true)
}

fn report(layout: &Layout, console: Result<String>, progress: &Progress) {
    let data = layout.data.display();
    say(format!(
        "\nUp after {:.1} s. Use it:\n  export KUBECONFIG={}\n  kubectl get nodes,pods -A -o wide",
        progress.seconds(),
        layout.kubeconfig().display()
    ));
    match console {
        Ok(link) => say(format!("Console (8 hours): {link}")),
        Err(error) => say(format!("Console: no link, because {error:#}")),
    }
    say(format!(
        "Logs: {data}/n*/*.log, {data}/simulated.log. Stop and remove: keelson down --data-dir {data}"
    ));
    say("The nodes are simulated: no container runs. For real nodes, run `keelson up` as root.");
}
