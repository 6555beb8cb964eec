//! `logs`: of one pod, of a workload's first pod, or of all pods of a selector; several at once when following.

use anyhow::{Result, bail};
use futures::AsyncBufReadExt;
use serde_json::Value;

use crate::args::Parsed;
use crate::discovery::{Discovery, select};
use crate::get;
use crate::session::{Session, sentence, translate};

/// Most streams at once.
const MOST_STREAMS: usize = 50;

/// Runs `logs`.
pub async fn run(session: &Session, parsed: &Parsed) -> Result<i32> {
    let pods = pods(session, parsed).await?;
    let mut sources = Vec::new();
    for pod in &pods {
        for container in containers(pod, parsed)? {
            sources.push((pod["metadata"]["name"].as_str().unwrap_or_default().to_string(), container));
        }
    }
    if sources.is_empty() {
        eprintln!("No resources found in {} namespace.", session.namespace);
        return Ok(0);
    }
    if sources.len() > MOST_STREAMS {
        bail!("{} containers are too many at once: narrow the selector or give -c", sources.len());
    }
    let prefix = parsed.has("prefix");
    let mut failures = 0;
    if parsed.has("follow") {
        let streams = sources.iter().map(|(pod, container)| print(session, parsed, pod, container, prefix));
        for outcome in futures::future::join_all(streams).await {
            if let Err(error) = outcome {
                eprintln!("{}", sentence(&error));
                failures += 1;
            }
        }
        return Ok(i32::from(failures > 0));
    }
    for (pod, container) in &sources {
        match print(session, parsed, pod, container, prefix).await {
            Ok(()) => {}
            Err(error) if parsed.has("ignore-errors") || sources.len() > 1 => {
                eprintln!("{}", sentence(&error));
                failures += 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(i32::from(failures > 0 && !parsed.has("ignore-errors")))
}

/// The pods meant.
pub async fn pods(session: &Session, parsed: &Parsed) -> Result<Vec<Value>> {
    let collection = format!("/api/v1/namespaces/{}/pods", session.namespace);
    if parsed.get("selector").is_some() {
        let list = get::list(session, &collection, parsed, false).await?;
        return Ok(list["items"].as_array().cloned().unwrap_or_default());
    }
    let Some(word) = parsed.words.first() else {
        bail!("expected 'logs [-f] [-p] (POD | TYPE/NAME) [-c CONTAINER]': name a pod")
    };
    let Some((kind, name)) = word.split_once('/') else {
        return Ok(vec![session.get(&format!("{collection}/{word}"), &[]).await?]);
    };
    if matches!(kind, "pod" | "pods" | "po") {
        return Ok(vec![session.get(&format!("{collection}/{name}"), &[]).await?]);
    }
    let discovery = Discovery::fetch(session).await?;
    let selection = select(&discovery, std::slice::from_ref(word))?;
    let owner = session.get(&session.object(&selection[0].kind, name), &[]).await?;
    let selector = &owner["spec"]["selector"];
    let labels = if selector["matchLabels"].is_object() { &selector["matchLabels"] } else { selector };
    let query = get::labels(labels);
    if query == "<none>" {
        bail!("{word} selects no pods by labels: name a pod");
    }
    let list = session.get(&collection, &[("labelSelector", query)]).await?;
    let mut pods = list["items"].as_array().cloned().unwrap_or_default();
    pods.sort_by_key(|pod| pod["status"]["phase"] != "Running");
    if pods.len() > 1 {
        eprintln!(
            "Found {} pods, using pod/{}",
            pods.len(),
            pods[0]["metadata"]["name"].as_str().unwrap_or_default()
        );
    }
    pods.truncate(1);
    Ok(pods)
}

fn containers(pod: &Value, parsed: &Parsed) -> Result<Vec<String>> {
    let names = |field: &str| -> Vec<String> {
        let list = pod["spec"][field].as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(|container| container["name"].as_str()).map(str::to_string).collect()
    };
    if let Some(container) = parsed.get("container") {
        return Ok(vec![container.to_string()]);
    }
    if parsed.has("all-containers") {
        let mut all = names("initContainers");
        all.extend(names("containers"));
        all.extend(names("ephemeralContainers"));
        return Ok(all);
    }
    let marked = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    let all = names("containers");
    let chosen = marked.map(str::to_string).or_else(|| all.first().cloned());
    if marked.is_none()
        && all.len() > 1
        && let Some(chosen) = &chosen
    {
        eprintln!("Defaulted container {chosen:?} out of: {}", all.join(", "));
    }
    Ok(chosen.into_iter().collect())
}

async fn print(session: &Session, parsed: &Parsed, pod: &str, container: &str, prefix: bool) -> Result<()> {
    let on = |flag: &str| if parsed.has(flag) { "true".to_string() } else { String::new() };
    let mut query = vec![
        ("container", container.to_string()),
        ("follow", on("follow")),
        ("previous", on("previous")),
        ("timestamps", on("timestamps")),
        ("sinceTime", parsed.get("since-time").unwrap_or_default().to_string()),
    ];
    if let Some(tail) = parsed.number("tail")?.filter(|tail| *tail >= 0) {
        query.push(("tailLines", tail.to_string()));
    } else if parsed.get("selector").is_some() && parsed.get("tail").is_none() {
        query.push(("tailLines", "10".into()));
    }
    if let Some(bytes) = parsed.number("limit-bytes")? {
        query.push(("limitBytes", bytes.to_string()));
    }
    if let Some(since) = parsed.duration("since")?.filter(|since| !since.is_zero()) {
        query.push(("sinceSeconds", since.as_secs().max(1).to_string()));
    }
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/log", session.namespace);
    let request = Session::request("GET", &path, &query, None, "text/plain, */*")?;
    let stream = session.client.request_stream(request).await.map_err(translate)?;
    let mut lines = Box::pin(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        if prefix {
            write!(out, "[pod/{pod}/{container}] ")?;
        }
        out.write_all(&line)?;
        out.flush()?;
    }
}
