//! `describe`: every field as an indented outline in reading order, then the object's events.
//!
//! kubectl prints a hand-made page per kind; here one outline serves all kinds alike, custom ones too. Managed fields
//! and the last-applied annotation are left out.

use anyhow::Result;
use keelson_api::duration::human;
use serde_json::Value;

use crate::args::Parsed;
use crate::discovery::{Discovery, select};
use crate::get;
use crate::node_load::load;
use crate::output::{self, aligned};
use crate::session::{Session, is_not_found, sentence};
use crate::three_way::LAST_APPLIED;

/// Runs `describe`.
pub async fn run(session: &Session, parsed: &Parsed) -> Result<i32> {
    let discovery = Discovery::fetch(session).await?;
    let mut failures = 0;
    let mut printed = 0;
    for selection in select(&discovery, &parsed.words)? {
        let mut objects = Vec::new();
        for name in &selection.names {
            match session.get(&session.object(&selection.kind, name), &[]).await {
                Ok(object) => objects.push(object),
                Err(error) if is_not_found(&error) => {
                    // kubectl takes a prefix of names, too.
                    let path = session.collection(&selection.kind, false);
                    let list = get::list(session, &path, parsed, false).await?;
                    let items = list["items"].as_array().cloned().unwrap_or_default();
                    let starts = |item: &Value| {
                        item["metadata"]["name"].as_str().is_some_and(|found| found.starts_with(name))
                    };
                    let matching: Vec<Value> = items.into_iter().filter(starts).collect();
                    if matching.is_empty() {
                        eprintln!("{}", sentence(&error));
                        failures += 1;
                    }
                    objects.extend(matching);
                }
                Err(error) => return Err(error),
            }
        }
        if selection.names.is_empty() {
            let path = session.collection(&selection.kind, parsed.has("all-namespaces"));
            let list = get::list(session, &path, parsed, false).await?;
            objects.extend(list["items"].as_array().cloned().unwrap_or_default());
        }
        for object in objects {
            if printed > 0 {
                output::print("\n\n")?;
            }
            printed += 1;
            output::print(&outline(&object))?;
            if selection.kind.group.is_empty() && selection.kind.plural == "nodes" {
                output::print(&load(&object, &pods_of(session, &object).await?))?;
            }
            if parsed.get("show-events").is_none_or(|wanted| wanted != "false") {
                output::print(&events(session, &object).await?)?;
            }
        }
    }
    if printed == 0 && failures == 0 {
        eprintln!("No resources found in {} namespace.", session.namespace);
    }
    Ok(i32::from(failures > 0))
}

/// The object's outline.
fn outline(object: &Value) -> String {
    let mut text = String::new();
    let meta = &object["metadata"];
    let mut head = |name: &str, value: String| text.push_str(&format!("{:<18}{value}\n", format!("{name}:")));
    let of = |field: &str| meta[field].as_str().unwrap_or_default().to_string();
    head("Name", of("name"));
    if meta["namespace"].is_string() {
        head("Namespace", of("namespace"));
    }
    head("Labels", pairs(&meta["labels"], 18));
    head("Annotations", pairs(&meta["annotations"], 18));
    if let Some(owner) = meta["ownerReferences"]
        .as_array()
        .and_then(|owners| owners.iter().find(|owner| owner["controller"] == true))
    {
        head(
            "Controlled By",
            format!(
                "{}/{}",
                owner["kind"].as_str().unwrap_or_default(),
                owner["name"].as_str().unwrap_or_default()
            ),
        );
    }
    head("Created", of("creationTimestamp"));
    if meta["deletionTimestamp"].is_string() {
        head("Terminating", format!("since {}", of("deletionTimestamp")));
        head("Finalizers", meta["finalizers"].to_string());
    }
    let rest = object.as_object().into_iter().flatten();
    for (key, value) in rest.filter(|(key, _)| !["metadata", "apiVersion", "kind"].contains(&key.as_str())) {
        entry(&title(key), value, 0, &mut text);
    }
    text
}

fn pairs(value: &Value, indent: usize) -> String {
    let lines: Vec<String> = value
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| *key != LAST_APPLIED)
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if lines.is_empty() { "<none>".into() } else { lines.join(&format!("\n{}", " ".repeat(indent))) }
}

/// `containerPort` → `Container Port`.
fn title(key: &str) -> String {
    let mut text = String::new();
    let mut before = ' ';
    for found in key.chars() {
        if text.is_empty() {
            text.extend(found.to_uppercase());
        } else {
            if found.is_uppercase() && before.is_lowercase() {
                text.push(' ');
            }
            text.push(found);
        }
        before = found;
    }
    text
}

fn entry(name: &str, value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) if map.is_empty() => text.push_str(&format!("{indent}{name}:  {{}}\n")),
        Value::Object(map) => {
            text.push_str(&format!("{indent}{name}:\n"));
            map.iter().for_each(|(key, value)| entry(&title(key), value, depth + 1, text));
        }
        Value::Array(items) if items.is_empty() => text.push_str(&format!("{indent}{name}:  <none>\n")),
        Value::Array(items) if items.iter().all(|item| !item.is_object() && !item.is_array()) => {
            let shown: Vec<String> = items.iter().map(output::cell).collect();
            text.push_str(&format!("{indent}{name}:  {}\n", shown.join(", ")));
        }
        Value::Array(items) => {
            text.push_str(&format!("{indent}{name}:\n"));
            for (at, item) in items.iter().enumerate() {
                let label = ["name", "type", "key", "ip"].iter().find_map(|key| item[*key].as_str());
                entry(&label.map_or_else(|| format!("[{at}]"), str::to_string), item, depth + 1, text);
            }
        }
        Value::String(found) if found.contains('\n') => {
            text.push_str(&format!("{indent}{name}:\n"));
            found.lines().for_each(|line| text.push_str(&format!("{indent}  {line}\n")));
        }
        other => text.push_str(&format!("{indent}{name}:  {}\n", output::cell(other))),
    }
}

/// The events about an object, newest last.
pub async fn about(session: &Session, object: &Value) -> Result<Vec<Value>> {
    let meta = &object["metadata"];
    let namespace = meta["namespace"].as_str().unwrap_or("default");
    let name = meta["name"].as_str().unwrap_or_default();
    // A kubelet reports about its node before it knows the object's UID, and puts the name there.
    let is_it = |about: &Value| {
        about["uid"] == meta["uid"]
            || (about["kind"] == "Node" && about["uid"] == name && meta["namespace"].is_null())
    };
    let selector = format!("involvedObject.name={name}");
    let path = format!("/api/v1/namespaces/{namespace}/events");
    let list = session.get(&path, &[("fieldSelector", selector)]).await?;
    let mut events = list["items"].as_array().cloned().unwrap_or_default();
    events.retain(|event| is_it(&event["involvedObject"]));
    events.sort_by_key(last_seen);
    Ok(events)
}

/// When an event was last seen, RFC 3339.
pub fn last_seen(event: &Value) -> String {
    ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"]
        .iter()
        .find_map(|path| event.pointer(path).and_then(Value::as_str))
        .unwrap_or_default()
        .to_string()
}

/// How long ago a time was.
pub fn age(time: &str) -> String {
    match time.parse::<jiff::Timestamp>() {
        Ok(time) => human(jiff::Timestamp::now().as_second() - time.as_second()),
        Err(_) => "<unknown>".into(),
    }
}

/// The pods bound to a node, in every namespace.
async fn pods_of(session: &Session, node: &Value) -> Result<Vec<Value>> {
    let selector = format!("spec.nodeName={}", node["metadata"]["name"].as_str().unwrap_or_default());
    let list = session.get("/api/v1/pods", &[("fieldSelector", selector)]).await?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

async fn events(session: &Session, object: &Value) -> Result<String> {
    let events = about(session, object).await?;
    if events.is_empty() {
        return Ok("Events:  <none>\n".into());
    }
    let header = ["  Type", "Reason", "Age", "From", "Message"];
    let mut rows = vec![header.iter().map(|cell| cell.to_string()).collect::<Vec<_>>()];
    rows.push(["  ----", "------", "----", "----", "-------"].iter().map(|cell| cell.to_string()).collect());
    for event in &events {
        let text = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default().to_string();
        let count = event["series"]["count"].as_i64().or(event["count"].as_i64()).unwrap_or(1);
        let mut seen = age(&last_seen(event));
        if count > 1 {
            let first = event["firstTimestamp"].as_str().or(event["eventTime"].as_str()).unwrap_or_default();
            seen = format!("{seen} (x{count} over {})", age(first));
        }
        let from = Some(text("/source/component")).filter(|from| !from.is_empty());
        rows.push(vec![
            format!("  {}", text("/type")),
            text("/reason"),
            seen,
            from.unwrap_or_else(|| text("/reportingComponent")),
            text("/message").trim().to_string(),
        ]);
    }
    Ok(format!("Events:\n{}", aligned(&rows)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_outline_names_fields_in_words() {
        let text = outline(&json!({"metadata": {"name": "a", "annotations": {LAST_APPLIED: "{}"}},
            "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i"}], "args": ["x", "y"]}}));
        assert!(text.contains("Annotations:      <none>"), "{text}");
        assert!(text.contains("  Host Network:  true\n") && text.contains("  Args:  x, y\n"), "{text}");
        assert!(text.contains("    c:\n      Image:  i\n"), "{text}");
    }
}
