//! The small commands: api-resources, version, label, annotate, patch, cordon; and what words select.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::apply::{DryRun, session_for};
use crate::args::Parsed;
use crate::discovery::{Discovery, Kind, select};
use crate::manifest;
use crate::output::{self, Format, aligned};
use crate::session::{Session, sentence};

/// The objects the command's words, `-f`, `-l` or `--all` name.
pub async fn targets(
    session: &Session,
    parsed: &Parsed,
    discovery: &Discovery,
) -> Result<Vec<(Session, Kind, String)>> {
    targets_of(session, parsed, discovery, &parsed.words).await
}

/// The same for given words.
pub async fn targets_of(
    session: &Session,
    parsed: &Parsed,
    discovery: &Discovery,
    words: &[String],
) -> Result<Vec<(Session, Kind, String)>> {
    let mut found = Vec::new();
    let here = || Session { client: session.client.clone(), namespace: session.namespace.clone() };
    if !parsed.all("filename").is_empty() {
        for object in manifest::objects(parsed)? {
            let kind = discovery.of(&object)?.clone();
            let session = session_for(session, parsed, &kind, &object)?;
            found.push((session, kind, crate::apply::name_of(&object)?.to_string()));
        }
        return Ok(found);
    }
    for selection in select(discovery, words)? {
        for name in &selection.names {
            found.push((here(), selection.kind.clone(), name.clone()));
        }
        if selection.names.is_empty() {
            if !parsed.has("all") && parsed.get("selector").is_none() {
                bail!("name the objects: KIND NAME or KIND/NAME, -l SELECTOR or --all");
            }
            let path = session.collection(&selection.kind, false);
            let list = crate::get::list(session, &path, parsed, false).await?;
            for item in list["items"].as_array().into_iter().flatten() {
                let name = item["metadata"]["name"].as_str().unwrap_or_default();
                found.push((here(), selection.kind.clone(), name.to_string()));
            }
        }
    }
    Ok(found)
}

/// `api-resources`.
pub async fn api_resources(session: &Session, parsed: &Parsed) -> Result<i32> {
    let discovery = Discovery::fetch(session).await?;
    let mut kinds: Vec<&Kind> = Vec::new();
    for kind in &discovery.kinds {
        let repeated = kinds.iter().any(|other| other.group == kind.group && other.plural == kind.plural);
        let scoped = parsed.get("namespaced").is_none_or(|wanted| (wanted != "false") == kind.namespaced);
        let grouped = parsed.get("api-group").is_none_or(|wanted| wanted == kind.group);
        if !repeated && scoped && grouped {
            kinds.push(kind);
        }
    }
    kinds.sort_by(|one, other| (&one.group, &one.plural).cmp(&(&other.group, &other.plural)));
    let mut rows = Vec::new();
    let wide = parsed.get("output") == Some("wide");
    if parsed.get("output") == Some("name") {
        rows.extend(kinds.iter().map(|kind| vec![kind.resource()]));
    } else {
        if !parsed.has("no-headers") {
            let mut header = vec!["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"];
            if wide {
                header.extend(["VERBS", "CATEGORIES"]);
            }
            rows.push(header.into_iter().map(str::to_string).collect());
        }
        for kind in kinds {
            let mut row = vec![
                kind.plural.clone(),
                kind.short_names.join(","),
                kind.api_version(),
                kind.namespaced.to_string(),
                kind.kind.clone(),
            ];
            if wide {
                row.extend([kind.verbs.join(","), kind.categories.join(",")]);
            }
            rows.push(row);
        }
    }
    output::print(&aligned(&rows))?;
    Ok(0)
}

/// The client's own version.
pub fn client_version() -> Result<i32> {
    output::print(&format!("Client Version: keelson {} (Kubernetes v1.36.2)\n", env!("CARGO_PKG_VERSION")))?;
    Ok(0)
}

/// `version`.
pub async fn version(session: &Session) -> Result<i32> {
    client_version()?;
    let server = session.get("/version", &[]).await?;
    output::print(&format!("Server Version: {}\n", server["gitVersion"].as_str().unwrap_or("unknown")))?;
    Ok(0)
}

/// `label` and `annotate`: `KEY=VALUE` sets, `KEY-` takes away.
pub async fn metadata(session: &Session, parsed: &Parsed, field: &str) -> Result<i32> {
    let is_change = |word: &&String| {
        word.contains('=')
            || word.ends_with('-') && !word.contains('/')
            || word.contains('/') && word.ends_with('-')
    };
    let changes: Vec<&String> = parsed.words.iter().skip(1).filter(is_change).collect();
    let words: Vec<String> = parsed
        .words
        .iter()
        .enumerate()
        .filter(|(at, word)| *at == 0 || !is_change(word))
        .map(|(_, word)| word.clone())
        .collect();
    if changes.is_empty() {
        bail!("at least one change is required: KEY=VALUE or KEY-");
    }
    let dry_run = DryRun::new(parsed)?;
    let discovery = Discovery::fetch(session).await?;
    let mut failures = 0;
    for (session, kind, name) in targets_of(session, parsed, &discovery, &words).await? {
        let path = session.object(&kind, &name);
        let changed = async {
            let found = session.get(&path, &[]).await?;
            let before = &found["metadata"][field];
            let mut patch = Map::new();
            for change in &changes {
                match change.split_once('=') {
                    Some((key, value)) => {
                        let set = before[key].as_str();
                        if set.is_some_and(|set| set != value) && !parsed.has("overwrite") {
                            bail!(
                                "'{key}' already has a value ({}), and --overwrite is false",
                                set.unwrap_or_default()
                            );
                        }
                        patch.insert(key.to_string(), json!(value));
                    }
                    None => drop(patch.insert(change.trim_end_matches('-').to_string(), Value::Null)),
                }
            }
            if dry_run != DryRun::Client {
                let patch = json!({"metadata": {field: patch}});
                let query =
                    [("fieldManager", format!("kubectl-{}", field.trim_end_matches('s'))), dry_run.query()];
                session.patch(&path, &query, "merge-patch+json", &patch).await?;
            }
            Ok(())
        };
        let verb = match (field, changes.iter().all(|change| !change.contains('='))) {
            ("labels", true) => "unlabeled",
            ("labels", false) => "labeled",
            _ => "annotated",
        };
        match changed.await {
            Ok(()) => output::print(&format!("{}/{name} {verb}{}\n", kind.in_messages(), dry_run.suffix()))?,
            Err(error) => {
                eprintln!("{}", sentence(&error));
                failures += 1;
            }
        }
    }
    Ok(i32::from(failures > 0))
}

/// `patch`.
pub async fn patch(session: &Session, parsed: &Parsed) -> Result<i32> {
    let text = match (parsed.get("patch"), parsed.get("patch-file")) {
        (Some(text), _) => text.to_string(),
        (None, Some(path)) => std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?,
        _ => bail!("must specify --patch or --patch-file containing the contents of the patch"),
    };
    let body: Value = match serde_json::from_str(&text) {
        Ok(body) => body,
        Err(_) => serde_saphyr::from_str(&text)
            .map_err(|error| anyhow::anyhow!("unable to parse the patch: {error}"))?,
    };
    let dry_run = DryRun::new(parsed)?;
    let discovery = Discovery::fetch(session).await?;
    for (session, kind, name) in targets(session, parsed, &discovery).await? {
        let content = match parsed.get("type") {
            None | Some("strategic") => "strategic-merge-patch+json",
            Some("merge") => "merge-patch+json",
            Some("json") => "json-patch+json",
            Some(other) => bail!("--type must be one of [json merge strategic], not {other:?}"),
        };
        let mut path = session.object(&kind, &name);
        if let Some(subresource) = parsed.get("subresource") {
            path.push_str(&format!("/{subresource}"));
        }
        let query = [("fieldManager", "kubectl-patch".to_string()), dry_run.query()];
        let result = session.patch(&path, &query, content, &body).await?;
        match parsed.get("output") {
            Some(_) => output::objects(parsed, &Format::new(parsed)?, vec![(kind, result)], true)?,
            None => output::print(&format!("{}/{name} patched{}\n", kind.in_messages(), dry_run.suffix()))?,
        }
    }
    Ok(0)
}

/// `cordon` and `uncordon`.
pub async fn cordon(session: &Session, parsed: &Parsed, wanted: bool) -> Result<i32> {
    let dry_run = DryRun::new(parsed)?;
    let mut names = parsed.words.clone();
    if names.is_empty() {
        if parsed.get("selector").is_none() {
            bail!("name the nodes, or give -l SELECTOR");
        }
        let list = crate::get::list(session, "/api/v1/nodes", parsed, false).await?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        names.extend(items.iter().filter_map(|node| node["metadata"]["name"].as_str()).map(str::to_string));
    }
    for name in names {
        let name = name.trim_start_matches("node/");
        let path = format!("/api/v1/nodes/{name}");
        let found = session.get(&path, &[]).await?;
        let before = found["spec"]["unschedulable"].as_bool().unwrap_or(false);
        let verb = if wanted { "cordoned" } else { "uncordoned" };
        if before == wanted {
            output::print(&format!("node/{name} already {verb}\n"))?;
            continue;
        }
        if dry_run != DryRun::Client {
            let value = if wanted { json!(true) } else { Value::Null };
            let patch = json!({"spec": {"unschedulable": value}});
            session.patch(&path, &[dry_run.query()], "merge-patch+json", &patch).await?;
        }
        output::print(&format!("node/{name} {verb}{}\n", dry_run.suffix()))?;
    }
    Ok(0)
}
