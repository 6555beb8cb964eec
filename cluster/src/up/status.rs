//! `status`: which processes run, which nodes are Ready, who leads the store.

use std::time::Duration;

use anyhow::{Context, Result};
use http::Request;
use serde_json::{Value, json};

use super::layout::{Kind, Layout};
use super::process::running;
use super::progress::say;
use crate::client::from_kubeconfig;

/// A status that waits for a dead cluster is of no use.
const PATIENCE: Duration = Duration::from_secs(5);

pub async fn status(layout: &Layout, machine: bool) -> Result<()> {
    let (nodes, leader) = match tokio::time::timeout(PATIENCE, ask(layout)).await {
        Ok(Ok(answers)) => answers,
        Ok(Err(error)) => (Err(error), Value::Null),
        Err(_) => (Err(anyhow::anyhow!("the API does not answer within {PATIENCE:?}")), Value::Null),
    };
    let balancer = running(&layout.data.join("lb.pid"), &layout.data).is_some();
    if layout.kind == Kind::Simulated {
        return simulated(layout, nodes, &leader, balancer, machine);
    }
    let ready = |name: &str| {
        let items = nodes.as_ref().ok().and_then(|nodes| nodes["items"].as_array());
        items.into_iter().flatten().any(|node| node["metadata"]["name"] == name && is_ready(node))
    };
    let rows: Vec<Value> = layout
        .known_nodes()
        .iter()
        .map(|node| {
            let runs = |part: &str| running(&node.pid_file(part), &node.folder).is_some();
            json!({
                "name": node.name, "address": node.ip, "server": runs("server"), "agent": runs("agent"),
                "containerd": runs("containerd"), "ready": ready(&node.name),
            })
        })
        .collect();
    if machine {
        say(format!("{}", json!({"nodes": rows, "leader": leader, "loadBalancer": balancer})));
        return Ok(());
    }
    say(format!("{:6}{:14}{:8}{:8}{:12}READY", "NODE", "ADDRESS", "SERVER", "AGENT", "CONTAINERD"));
    for row in &rows {
        say(format!(
            "{:6}{:14}{:8}{:8}{:12}{}",
            row["name"].as_str().unwrap_or_default(),
            row["address"].as_str().unwrap_or_default(),
            word(&row["server"]),
            word(&row["agent"]),
            word(&row["containerd"]),
            word(&row["ready"])
        ));
    }
    rest(nodes.err(), &leader, balancer);
    Ok(())
}

fn word(value: &Value) -> &'static str {
    if value == true { "yes" } else { "no" }
}

fn is_ready(node: &Value) -> bool {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|found| found["type"] == "Ready" && found["status"] == "True")
}

fn rest(error: Option<anyhow::Error>, leader: &Value, balancer: bool) {
    say(format!("store leader: {}", leader.as_str().unwrap_or("unknown")));
    say(format!("local load balancer: {}", if balancer { "runs" } else { "does not run" }));
    if let Some(error) = error {
        say(format!("API: {error:#}"));
    }
}

/// A cluster without root: servers, and how many of the simulated nodes are Ready.
fn simulated(
    layout: &Layout,
    nodes: Result<Value>,
    leader: &Value,
    balancer: bool,
    machine: bool,
) -> Result<()> {
    let servers = layout.known_nodes().into_iter().map(|node| {
        let runs = running(&node.pid_file("server"), &node.folder).is_some();
        json!({"name": node.name, "address": node.ip, "server": runs})
    });
    let servers: Vec<Value> = servers.collect();
    let items = nodes.as_ref().ok().and_then(|nodes| nodes["items"].as_array());
    let ready = items.into_iter().flatten().filter(|node| is_ready(node)).count();
    let runs = running(&layout.simulated_pid(), &layout.data).is_some();
    let (count, state) = (super::simulated::known(layout), if runs { "runs" } else { "does not run" });
    if machine {
        let simulated = json!({"nodes": count, "ready": ready, "process": runs});
        let all = json!({
            "servers": servers, "simulated": simulated, "leader": leader, "loadBalancer": balancer,
        });
        say(all.to_string());
        return Ok(());
    }
    say(format!("{:8}{:14}RUNS", "SERVER", "ADDRESS"));
    for row in &servers {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        say(format!("{:8}{:14}{}", text("name"), text("address"), word(&row["server"])));
    }
    say(format!("simulated nodes (no containers): {ready} of {count} Ready, their process {state}"));
    rest(nodes.err(), leader, balancer);
    Ok(())
}

/// (Nodes, the leader's name).
async fn ask(layout: &Layout) -> Result<(Result<Value>, Value)> {
    let path = layout.kubeconfig();
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let client = from_kubeconfig(&text).await?;
    let get = |path: &str| -> Result<Request<Vec<u8>>> { Ok(Request::get(path).body(vec![])?) };
    let (nodes, members) = tokio::join!(
        client.request::<Value>(get("/api/v1/nodes")?),
        client.request::<Value>(get("/keelson/v1/store/members")?),
    );
    let leader = members.ok().and_then(|members| {
        let of = |member: &&Value| member["isLeader"] == true || member["id"] == members["leader"];
        let leader = members["members"].as_array()?.iter().find(of)?;
        Some(leader["name"].clone())
    });
    Ok((nodes.context("list nodes"), leader.unwrap_or(Value::Null)))
}
