//! `top`: cpu and memory in use, from metrics.k8s.io.

use anyhow::{Result, bail};
use keelson_api::Quantity;
use serde_json::Value;

use crate::args::Parsed;
use crate::output::{self, aligned};
use crate::session::Session;

/// Runs `top`.
pub async fn run(session: &Session, parsed: &Parsed) -> Result<i32> {
    let what = parsed.words.first().map(String::as_str);
    let mut rows = match what {
        Some("node" | "nodes" | "no") => nodes(session, parsed).await?,
        Some("pod" | "pods" | "po") => pods(session, parsed).await?,
        _ => bail!("say what: top node or top pod"),
    };
    if rows.is_empty() {
        eprintln!("No resources found");
        return Ok(0);
    }
    match parsed.get("sort-by") {
        Some("cpu") => rows.sort_by_key(|row| std::cmp::Reverse(row.cpu)),
        Some("memory") => rows.sort_by_key(|row| std::cmp::Reverse(row.memory)),
        Some(other) => bail!("--sort-by accepts only cpu or memory, not {other:?}"),
        None => rows.sort_by(|one, other| one.names.cmp(&other.names)),
    }
    let mut header: Vec<&str> = Vec::new();
    if matches!(what, Some("node" | "nodes" | "no")) {
        header.extend(["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"]);
    } else {
        if parsed.has("all-namespaces") {
            header.push("NAMESPACE");
        }
        header.extend(if parsed.has("containers") { &["POD", "NAME"][..] } else { &["NAME"] });
        header.extend(["CPU(cores)", "MEMORY(bytes)"]);
    }
    let mut lines: Vec<Vec<String>> = Vec::new();
    if !parsed.has("no-headers") {
        lines.push(header.into_iter().map(str::to_string).collect());
    }
    lines.extend(rows.into_iter().map(Row::line));
    output::print(&aligned(&lines))?;
    Ok(0)
}

struct Row {
    names: Vec<String>,
    /// Millicores.
    cpu: i64,
    /// Bytes.
    memory: i64,
    /// What 100 % is.
    of: Option<(i64, i64)>,
}

impl Row {
    fn line(self) -> Vec<String> {
        let mut line = self.names;
        let cpu = format!("{}m", self.cpu);
        let memory = format!("{}Mi", self.memory / (1 << 20));
        match self.of {
            None => line.extend([cpu, memory]),
            Some((all_cpu, all_memory)) => {
                let percent = |part: i64, whole: i64| {
                    if whole > 0 {
                        format!("{}%", i128::from(part) * 100 / i128::from(whole))
                    } else {
                        "<unknown>".into()
                    }
                };
                line.extend([cpu, percent(self.cpu, all_cpu), memory, percent(self.memory, all_memory)]);
            }
        }
        line
    }
}

fn amounts(usage: &Value) -> (i64, i64) {
    let read = |name: &str| Quantity::from_value(&usage[name]).ok();
    (read("cpu").map_or(0, |cpu| cpu.milli()), read("memory").map_or(0, |memory| memory.value()))
}

async fn metrics(
    session: &Session,
    path: &str,
    parsed: &Parsed,
    name: Option<&String>,
) -> Result<Vec<Value>> {
    if let Some(name) = name {
        return Ok(vec![session.get(&format!("{path}/{name}"), &[]).await?]);
    }
    let selector = parsed.get("selector").unwrap_or_default().to_string();
    let list = session.get(path, &[("labelSelector", selector)]).await?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

async fn nodes(session: &Session, parsed: &Parsed) -> Result<Vec<Row>> {
    let found = metrics(session, "/apis/metrics.k8s.io/v1beta1/nodes", parsed, parsed.words.get(1)).await?;
    let list = session.get("/api/v1/nodes", &[]).await?;
    let nodes = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(found
        .iter()
        .map(|item| {
            let name = item["metadata"]["name"].as_str().unwrap_or_default();
            let node = nodes.iter().find(|node| node["metadata"]["name"] == name);
            let (cpu, memory) = amounts(&item["usage"]);
            let of = node.map(|node| amounts(&node["status"]["allocatable"]));
            Row { names: vec![name.to_string()], cpu, memory, of: Some(of.unwrap_or((0, 0))) }
        })
        .collect())
}

async fn pods(session: &Session, parsed: &Parsed) -> Result<Vec<Row>> {
    let everywhere = parsed.has("all-namespaces");
    let path = if everywhere {
        "/apis/metrics.k8s.io/v1beta1/pods".to_string()
    } else {
        format!("/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods", session.namespace)
    };
    let mut rows = Vec::new();
    for item in metrics(session, &path, parsed, parsed.words.get(1)).await? {
        let meta = |field: &str| item["metadata"][field].as_str().unwrap_or_default().to_string();
        let mut names = if everywhere { vec![meta("namespace")] } else { Vec::new() };
        names.push(meta("name"));
        let (mut cpu, mut memory) = (0, 0);
        for container in item["containers"].as_array().into_iter().flatten() {
            let used = amounts(&container["usage"]);
            if parsed.has("containers") {
                let mut names = names.clone();
                names.push(container["name"].as_str().unwrap_or_default().to_string());
                rows.push(Row { names, cpu: used.0, memory: used.1, of: None });
            }
            cpu += used.0;
            memory += used.1;
        }
        if !parsed.has("containers") {
            rows.push(Row { names, cpu, memory, of: None });
        }
    }
    Ok(rows)
}
