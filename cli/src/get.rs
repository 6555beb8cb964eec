//! `get`: tables from the server's printers, or the objects themselves; lists in chunks; `--watch`.

use anyhow::{Result, bail};
use futures::TryStreamExt;
use serde_json::{Value, json};

use crate::args::Parsed;
use crate::discovery::{Discovery, Kind, Selection, select};
use crate::jsonpath::Template;
use crate::manifest;
use crate::output::{self, Format, aligned, cell};
use crate::session::{Session, TABLE, is_not_found, translate};

/// Objects a request asks for.
const CHUNK: i64 = 500;

/// Runs `get`.
pub async fn run(session: &Session, parsed: &Parsed) -> Result<i32> {
    if let Some(path) = parsed.get("raw") {
        let request = Session::request("GET", path, &[], None, "application/json, */*")?;
        output::print(&session.text(request).await?)?;
        return Ok(0);
    }
    let format = Format::new(parsed)?;
    let discovery = Discovery::fetch(session).await?;
    let selections = selections(session, &discovery, parsed)?;
    if let Some((selector, _)) =
        parsed.get("selector").zip(selections.iter().find(|selection| !selection.1.names.is_empty()))
    {
        bail!("name cannot be provided when a selector is specified: drop the name or -l {selector}");
    }
    if parsed.has("watch") || parsed.has("watch-only") {
        let [(session, selection)] = &selections[..] else {
            bail!("you may only specify a single resource type when watching: watch one kind at a time");
        };
        return watch(session, selection, parsed, &format).await;
    }
    match &format {
        Format::Table { wide } => tables(&selections, parsed, *wide).await,
        _ => objects(&selections, parsed, &format).await,
    }
}

/// What to get, each with the session (namespace) to get it in.
fn selections(
    session: &Session,
    discovery: &Discovery,
    parsed: &Parsed,
) -> Result<Vec<(Session, Selection)>> {
    let here = |namespace: &str| Session { client: session.client.clone(), namespace: namespace.into() };
    if parsed.all("filename").is_empty() {
        let found = select(discovery, &parsed.words)?;
        return Ok(found.into_iter().map(|selection| (here(&session.namespace), selection)).collect());
    }
    let mut found = Vec::new();
    for object in manifest::objects(parsed)? {
        let kind = discovery.of(&object)?.clone();
        let meta = &object["metadata"];
        let namespace = meta["namespace"].as_str().unwrap_or(&session.namespace);
        let names = vec![meta["name"].as_str().unwrap_or_default().to_string()];
        found.push((here(namespace), Selection { kind, names }));
    }
    Ok(found)
}

fn query(parsed: &Parsed) -> Vec<(&'static str, String)> {
    vec![
        ("labelSelector", parsed.get("selector").unwrap_or_default().to_string()),
        ("fieldSelector", parsed.get("field-selector").unwrap_or_default().to_string()),
    ]
}

fn path(session: &Session, kind: &Kind, name: Option<&str>, parsed: &Parsed) -> String {
    let mut path = match name {
        Some(name) => session.object(kind, name),
        None => session.collection(kind, parsed.has("all-namespaces")),
    };
    if let Some(subresource) = parsed.get("subresource").filter(|_| name.is_some()) {
        path.push_str(&format!("/{subresource}"));
    }
    path
}

/// All pages of a list, as tables (`rows`) or lists (`items`).
pub async fn list(session: &Session, path: &str, parsed: &Parsed, table: bool) -> Result<Value> {
    let chunk = parsed.number("chunk-size")?.unwrap_or(CHUNK);
    let mut whole: Option<Value> = None;
    let mut next = String::new();
    loop {
        let mut query = query(parsed);
        if chunk > 0 {
            query.push(("limit", chunk.to_string()));
        }
        query.push(("continue", next.clone()));
        let mut page =
            if table { session.table(path, &query).await? } else { session.get(path, &query).await? };
        next = page["metadata"]["continue"].as_str().unwrap_or_default().to_string();
        let field = if page["kind"] == "Table" { "rows" } else { "items" };
        match &mut whole {
            None => whole = Some(page),
            Some(whole) => {
                let more = page[field].as_array_mut().map(std::mem::take).unwrap_or_default();
                if let Some(rows) = whole[field].as_array_mut() {
                    rows.extend(more);
                }
            }
        }
        if next.is_empty() {
            return Ok(whole.unwrap_or_default());
        }
    }
}

async fn objects(selections: &[(Session, Selection)], parsed: &Parsed, format: &Format) -> Result<i32> {
    let mut found = Vec::new();
    let mut failures = 0;
    let single = selections.len() == 1 && selections[0].1.names.len() == 1;
    for (session, Selection { kind, names }) in selections {
        if names.is_empty() {
            let list = list(session, &path(session, kind, None, parsed), parsed, false).await?;
            for item in list["items"].as_array().into_iter().flatten() {
                let mut item = item.clone();
                // Items of a list carry no type of their own.
                if item["kind"].is_null() {
                    item["kind"] = json!(kind.kind);
                    item["apiVersion"] = json!(kind.api_version());
                }
                found.push((kind.clone(), item));
            }
        }
        for name in names {
            match session.get(&path(session, kind, Some(name), parsed), &[]).await {
                Ok(object) => found.push((kind.clone(), object)),
                Err(error) if is_not_found(&error) && parsed.has("ignore-not-found") => {}
                Err(error) if single => return Err(error),
                Err(error) => {
                    eprintln!("{}", crate::session::sentence(&error));
                    failures += 1;
                }
            }
        }
    }
    if let Some(template) = parsed.get("sort-by") {
        let template = sort_template(template)?;
        found.sort_by(|(_, one), (_, other)| by_text(&template.render(one), &template.render(other)));
    }
    if single && found.is_empty() {
        return Ok(0);
    }
    output::objects(parsed, format, found, single)?;
    Ok(i32::from(failures > 0))
}

fn sort_template(text: &str) -> Result<Template> {
    let text =
        if text.contains('{') { text.to_string() } else { format!("{{.{}}}", text.trim_start_matches('.')) };
    Template::parse(&text)
}

/// Numbers by value, everything else as text.
fn by_text(one: &str, other: &str) -> std::cmp::Ordering {
    match (one.parse::<f64>(), other.parse::<f64>()) {
        (Ok(one), Ok(other)) => one.total_cmp(&other),
        _ => one.cmp(other),
    }
}

async fn tables(selections: &[(Session, Selection)], parsed: &Parsed, wide: bool) -> Result<i32> {
    let several = selections.len() > 1;
    let mut failures = 0;
    let mut printed = 0;
    for (session, Selection { kind, names }) in selections {
        let mut whole: Option<Value> = None;
        if names.is_empty() {
            match list(session, &path(session, kind, None, parsed), parsed, true).await {
                Ok(table) => whole = Some(table),
                // One kind of a category that may not be listed hides no other.
                Err(error) if several => {
                    eprintln!("{}", crate::session::sentence(&error));
                    failures += 1;
                }
                Err(error) => return Err(error),
            }
        }
        for name in names {
            match session.table(&path(session, kind, Some(name), parsed), &[]).await {
                Ok(mut table) => match &mut whole {
                    None => whole = Some(table),
                    Some(whole) => {
                        let rows = table["rows"].as_array_mut().map(std::mem::take).unwrap_or_default();
                        if let Some(all) = whole["rows"].as_array_mut() {
                            all.extend(rows);
                        }
                    }
                },
                Err(error) if is_not_found(&error) && parsed.has("ignore-not-found") => {}
                Err(error) => {
                    eprintln!("{}", crate::session::sentence(&error));
                    failures += 1;
                }
            }
        }
        let Some(mut table) = whole else { continue };
        sort_rows(&mut table, parsed)?;
        let rows = rows(&table, kind, parsed, &Show { wide, several, headers: !parsed.has("no-headers") });
        if table["rows"].as_array().is_none_or(Vec::is_empty) {
            continue;
        }
        if several && printed > 0 {
            output::print("\n")?;
        }
        printed += 1;
        output::print(&aligned(&rows))?;
    }
    if printed == 0 && failures == 0 && !parsed.has("ignore-not-found") {
        let namespaced = selections.iter().any(|(_, selection)| selection.kind.namespaced);
        match (namespaced && !parsed.has("all-namespaces"), selections.first()) {
            (true, Some((session, _))) => eprintln!("No resources found in {} namespace.", session.namespace),
            _ => eprintln!("No resources found"),
        }
    }
    Ok(i32::from(failures > 0))
}

fn sort_rows(table: &mut Value, parsed: &Parsed) -> Result<()> {
    let Some(text) = parsed.get("sort-by") else { return Ok(()) };
    let template = sort_template(text)?;
    if let Some(rows) = table["rows"].as_array_mut() {
        rows.sort_by(|one, other| {
            by_text(&template.render(&one["object"]), &template.render(&other["object"]))
        });
    }
    Ok(())
}

struct Show {
    wide: bool,
    several: bool,
    headers: bool,
}

/// The rows to print, the header first when wanted.
fn rows(table: &Value, kind: &Kind, parsed: &Parsed, show: &Show) -> Vec<Vec<String>> {
    if table["kind"] != "Table" {
        return plain_rows(table, kind, parsed);
    }
    let definitions = table["columnDefinitions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let shown: Vec<usize> = (0..definitions.len())
        .filter(|at| show.wide || definitions[*at]["priority"].as_i64().unwrap_or(0) == 0)
        .collect();
    let namespaces = parsed.has("all-namespaces") && kind.namespaced;
    let columns: Vec<&str> = parsed.all("label-columns").iter().flat_map(|keys| keys.split(',')).collect();
    let mut lines = Vec::new();
    if show.headers {
        let mut line: Vec<String> = Vec::new();
        if namespaces {
            line.push("NAMESPACE".into());
        }
        line.extend(
            shown.iter().map(|at| definitions[*at]["name"].as_str().unwrap_or_default().to_uppercase()),
        );
        line.extend(columns.iter().map(|key| key.rsplit('/').next().unwrap_or(key).to_uppercase()));
        if parsed.has("show-labels") {
            line.push("LABELS".into());
        }
        lines.push(line);
    }
    for row in table["rows"].as_array().into_iter().flatten() {
        let meta = &row["object"]["metadata"];
        let mut line = Vec::new();
        if namespaces {
            line.push(meta["namespace"].as_str().unwrap_or_default().to_string());
        }
        for at in &shown {
            let mut text = cell(&row["cells"][*at]);
            let is_name = definitions[*at]["format"] == "name" || *at == 0;
            if is_name && (show.several || parsed.has("show-kind")) {
                text = format!("{}/{text}", kind.in_messages());
            }
            line.push(text);
        }
        for key in &columns {
            line.push(meta["labels"][*key].as_str().unwrap_or("").to_string());
        }
        if parsed.has("show-labels") {
            line.push(labels(&meta["labels"]));
        }
        lines.push(line);
    }
    lines
}

/// For a server without tables: names and ages.
fn plain_rows(answer: &Value, kind: &Kind, parsed: &Parsed) -> Vec<Vec<String>> {
    let one = [answer.clone()];
    let items = answer["items"].as_array().map(Vec::as_slice).unwrap_or(&one);
    let mut lines = vec![vec!["NAME".to_string(), "CREATED".to_string()]];
    let namespaces = parsed.has("all-namespaces") && kind.namespaced;
    if namespaces {
        lines[0].insert(0, "NAMESPACE".into());
    }
    for item in items {
        let text = |field: &str| item["metadata"][field].as_str().unwrap_or_default().to_string();
        let mut line = vec![text("name"), text("creationTimestamp")];
        if namespaces {
            line.insert(0, text("namespace"));
        }
        lines.push(line);
    }
    lines
}

/// `a=b,c=d`, or `<none>`.
pub fn labels(value: &Value) -> String {
    let pairs: Vec<String> = value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join(",") }
}

/// Lists (unless told not to), then follows changes from there until the server or the user ends it. A watch that the
/// server ends is taken up again.
async fn watch(session: &Session, selection: &Selection, parsed: &Parsed, format: &Format) -> Result<i32> {
    let kind = &selection.kind;
    let table = matches!(format, Format::Table { .. });
    let wide = matches!(format, Format::Table { wide: true });
    let mut query = query(parsed);
    if let [name] = &selection.names[..] {
        query[1].1 = format!("metadata.name={name}");
    } else if !selection.names.is_empty() {
        bail!("watch one name, or a whole kind");
    }
    let path = path(session, kind, None, parsed);
    let first = if table { session.table(&path, &query).await? } else { session.get(&path, &query).await? };
    let mut version = first["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_string();
    let mut headers = !parsed.has("no-headers");
    let mut show = |value: &Value| -> Result<()> {
        if table {
            let lines = rows(value, kind, parsed, &Show { wide, several: false, headers });
            headers = false;
            return output::print(&aligned(&lines));
        }
        let items = value["items"].as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        for item in items {
            output::objects(parsed, format, vec![(kind.clone(), item)], true)?;
        }
        Ok(())
    };
    let empty = first["rows"].as_array().or(first["items"].as_array()).is_some_and(Vec::is_empty);
    if !parsed.has("watch-only") && !empty {
        show(&first)?;
    }
    loop {
        let mut query = query.clone();
        query.push(("watch", "true".into()));
        query.push(("resourceVersion", version.clone()));
        let accept = if table { TABLE } else { "application/json" };
        let request = Session::request("GET", &path, &query, None, accept)?;
        let events = session.client.request_events::<Value>(request).await.map_err(translate)?;
        futures::pin_mut!(events);
        while let Some(event) = events.try_next().await.map_err(translate)? {
            let object = match event {
                kube::api::WatchEvent::Added(object)
                | kube::api::WatchEvent::Modified(object)
                | kube::api::WatchEvent::Deleted(object) => object,
                kube::api::WatchEvent::Bookmark(_) => continue,
                kube::api::WatchEvent::Error(status) => {
                    bail!("the watch ended: {}", status.message);
                }
            };
            let seen = object["metadata"]["resourceVersion"]
                .as_str()
                .or_else(|| object["rows"][0]["object"]["metadata"]["resourceVersion"].as_str());
            if let Some(seen) = seen.filter(|seen| !seen.is_empty()) {
                version = seen.to_string();
            }
            show(&object)?;
        }
    }
}
