//! Tables: what `kubectl get` prints. Columns are facts in `data/columns.txt`, cells are made per kind in [`cells`].

use crate::value::{at, int, items, name, text};
use keelson_api::Resource;
use keelson_api::duration::human;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;

mod cells;
mod custom;
mod pod;

const COLUMNS: &str = include_str!("../data/columns.txt");

/// Name, type, format, priority.
struct Column {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    priority: i64,
}

static TABLE: LazyLock<BTreeMap<&'static str, Vec<Column>>> = LazyLock::new(|| {
    let lines = COLUMNS.lines().filter(|l| !l.starts_with('#'));
    lines
        .filter_map(|line| line.split_once('|'))
        .map(|(key, rest)| (key, rest.split('|').filter_map(column).collect()))
        .collect()
});

fn column(text: &'static str) -> Option<Column> {
    let mut parts = text.split(':');
    let mut next = || parts.next();
    Some(Column { name: next()?, kind: next()?, format: next()?, priority: next()?.parse().ok()? })
}

/// What goes into `rows[].object`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    /// Reads the `includeObject` query parameter.
    pub fn parse(text: &str) -> Option<Include> {
        match text {
            "" | "Metadata" => Some(Include::Metadata),
            "None" => Some(Include::None),
            "Object" => Some(Include::Object),
            _ => None,
        }
    }
}

/// A Table of objects. `metadata` is that of the list (or of the one object). A watch sends columns with its first event only.
pub fn table(
    resource: &Resource,
    objects: &[&Value],
    metadata: Value,
    now: jiff::Timestamp,
    include: Include,
    with_columns: bool,
) -> Value {
    let key = format!("{}/{}", resource.group, resource.plural);
    let columns = TABLE.get(key.as_str());
    let custom = resource.definition.as_deref().filter(|d| !d.columns.is_empty());
    let definitions: Vec<Value> = match columns {
        _ if custom.is_some() => custom::definitions(custom),
        Some(columns) => columns
            .iter()
            .map(|c| json!({"name": c.name, "type": c.kind, "format": c.format, "description": "", "priority": c.priority}))
            .collect(),
        None => ["Name", "Age"]
            .iter()
            .map(|n| {
                let (kind, format) = if *n == "Name" { ("string", "name") } else { ("date", "") };
                json!({"name": n, "type": kind, "format": format, "description": "", "priority": 0})
            })
            .collect(),
    };
    let rows: Vec<Value> = objects
        .iter()
        .map(|o| {
            let cells = match custom {
                Some(definition) => custom::cells(definition, o, now),
                None => {
                    cells::of(resource, o, now).unwrap_or_else(|| vec![json!(name(o)), json!(age(o, now))])
                }
            };
            let mut row = json!({"cells": cells});
            match include {
                Include::None => row["object"] = Value::Null,
                Include::Object => row["object"] = (*o).clone(),
                Include::Metadata => row["object"] = partial(o),
            }
            if resource.plural == "pods"
                && let Some(conditions) = pod::row_conditions(o)
            {
                row["conditions"] = conditions;
            }
            row
        })
        .collect();
    let mut out =
        json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "rows": rows});
    out["columnDefinitions"] = if with_columns { definitions.into() } else { Value::Null };
    out
}

/// The object as `PartialObjectMetadata`.
pub fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// Time since a point in time, humanized; `<unknown>` without one.
pub(crate) fn since(value: &Value, now: jiff::Timestamp) -> String {
    match value.as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok()) {
        Some(then) => human(now.as_second() - then.as_second()),
        None => "<unknown>".into(),
    }
}

pub(crate) fn age(object: &Value, now: jiff::Timestamp) -> String {
    since(at(object, "metadata.creationTimestamp"), now)
}

/// Containers and images of a pod template, each joined by commas.
pub(crate) fn containers(spec: &Value) -> (String, String) {
    let join = |f: &str| items(spec, "containers").iter().map(|c| text(c, f)).collect::<Vec<_>>().join(",");
    (join("name"), join("image"))
}

pub(crate) fn or_none(text: &str) -> String {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

pub(crate) fn count(object: &Value, path: &str) -> Value {
    json!(int(object, path))
}
