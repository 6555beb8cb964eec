//! `status`: which processes run, which nodes are Ready, who leads the store.

use std::time::Duration;

use anyhow::{Context, Result};
use http::Request;
use serde_json::{Value, json};

use super::layout::Layout;
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
    let ready = |name: &str| {
        let items = nodes.as_ref().ok().and_then(|nodes| nodes["items"].as_array());
        let node = items.into_iter().flatten().find(|node| node["metadata"]["name"] == name);
        let conditions = node.and_then(|node| node.pointer("/status/conditions")?.as_array());
        conditions.into_iter().flatten().any(|found| found["type"] == "Ready" && found["status"] == "True")
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
    let balancer = running(&layout.data.join("lb.pid"), &layout.data).is_some();
    if machine {
        say(format!("{}", json!({"nodes": rows, "leader": leader, "loadBalancer": balancer})));
        return Ok(());
    }
    let word = |value: &Value| if value == true { "yes" } else { "no" };
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
    say(format!("store leader: {}", leader.as_str().unwrap_or("unknown")));
    say(format!("local load balancer: {}", if balancer { "runs" } else { "does not run" }));
    if let Err(error) = nodes {
        say(format!("API: {error:#}"));
    }
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
