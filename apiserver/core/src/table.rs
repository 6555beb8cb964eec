//! Tables: what `kubectl get` prints. Columns are facts in `data/columns.txt`, cells are made per kind in [`cells`].

use crate::value::{at, int, items, name, text};
use keelson_api::Resource;
use keelson_api::duration::human;
use keelson_api::schema;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

mod cells;
mod cluster;
mod custom;
mod pod;
mod workloads;

const COLUMNS: &str = include_str!("../data/columns.txt");
const DESCRIPTIONS: &str = include_str!("../data/column_prose.txt");

/// Name, type, format, priority.
struct Column {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    priority: i64,
}

/// Resource and column to a text, or to the field that is described.
static DESCRIBED: LazyLock<BTreeMap<(&'static str, &'static str), &'static str>> = LazyLock::new(|| {
    let lines = DESCRIPTIONS.lines().filter(|l| !l.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut parts = line.splitn(3, '|');
            Some(((parts.next()?, parts.next()?), parts.next()?))
        })
        .collect()
});

/// What a column is described with.
fn description(key: &str, column: &str) -> Cow<'static, str> {
    match DESCRIBED.get(&(key, column)).map(|text| text.strip_prefix('=').ok_or(*text)) {
        Some(Ok(field)) => crate::prose::about(&schema::full_name(field)),
        Some(Err(text)) => text.into(),
        None => match column {
            "Name" => crate::prose::about(&format!("{}.name", schema::OBJECT_META)),
            "Age" | "Created At" => {
                crate::prose::about(&format!("{}.creationTimestamp", schema::OBJECT_META))
            }
            _ => "".into(),
        },
    }
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
    // The scale subresource of any resource is a view with columns of its own.
    let scale = objects.first().is_some_and(|o| text(o, "kind") == "Scale");
    let key =
        if scale { "autoscaling/scale".into() } else { format!("{}/{}", resource.group, resource.plural) };
    let columns = TABLE.get(key.as_str());
    let custom = resource.definition.as_deref().filter(|d| !scale && !d.columns.is_empty());
    let definitions: Vec<Value> = match columns {
        _ if custom.is_some() => custom::definitions(custom),
        Some(columns) => columns
            .iter()
            .map(|c| json!({"name": c.name, "type": c.kind, "format": c.format, "description": description(&key, c.name), "priority": c.priority}))
            .collect(),
        None => ["Name", "Age"]
            .iter()
            .map(|n| {
                let (kind, format) = if *n == "Name" { ("string", "name") } else { ("date", "") };
                json!({"name": n, "type": kind, "format": format, "description": description(&key, n), "priority": 0})
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

#[cfg(test)]
mod tests {
    use super::*;

    fn row(group: &str, plural: &str, object: &Value) -> Vec<Value> {
        let found = keelson_api::RESOURCES.iter().find(|r| r.group == group && r.plural == plural);
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        let got = table(found.unwrap(), &[object], json!({}), now, Include::None, true);
        got["rows"][0]["cells"].as_array().unwrap().clone()
    }

    #[test]
    fn every_row_has_a_cell_for_each_column() {
        let object = json!({"metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"}});
        for resource in keelson_api::RESOURCES.iter().filter(|r| r.allows("list")) {
            let got =
                table(resource, &[&object], json!({}), jiff::Timestamp::UNIX_EPOCH, Include::None, true);
            let cells = got["rows"][0]["cells"].as_array().unwrap().len();
            let columns = got["columnDefinitions"].as_array().unwrap().len();
            // Upstream gives an address an age that has no column.
            let more = usize::from(resource.plural == "ipaddresses");
            assert_eq!(cells, columns + more, "{}/{}", resource.group, resource.plural);
        }
    }

    #[test]
    fn workloads_show_how_far_they_are() {
        let made = json!({"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"});
        let pods =
            json!({"spec": {"containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "i:2"}]}});
        let selector = json!({"matchLabels": {"app": "x"}});
        let job = json!({
            "metadata": made, "spec": {"completions": 3, "parallelism": 2, "template": pods, "selector": selector},
            "status": {"succeeded": 1, "startTime": "2026-01-01T00:05:00Z",
                "conditions": [{"type": "Suspended", "status": "True"}]},
        });
        assert_eq!(
            row("batch", "jobs", &job),
            ["x", "Suspended", "1/3", "5m", "10m", "a,b", "i:1,i:2", "app=x"].map(Value::from)
        );
        let mut ended = job.clone();
        ended["status"]["completionTime"] = json!("2026-01-01T00:06:00Z");
        ended["status"]["conditions"] = json!([{"type": "Complete", "status": "True"}]);
        assert_eq!(row("batch", "jobs", &ended)[1..4], ["Complete", "1/3", "60s"].map(Value::from));
        let cron = json!({
            "metadata": made, "spec": {"schedule": "0 3 * * *", "suspend": false, "jobTemplate": {"spec": {"template": pods}}},
            "status": {"active": [{}], "lastScheduleTime": "2026-01-01T00:08:00Z"},
        });
        let wanted = json!(["x", "0 3 * * *", "<none>", "False", 1, "2m", "10m", "a,b", "i:1,i:2", "<none>"]);
        assert_eq!(json!(row("batch", "cronjobs", &cron)), wanted);
        let set = json!({"metadata": made, "spec": {"replicas": 2, "template": pods}, "status": {"readyReplicas": 1}});
        assert_eq!(row("apps", "statefulsets", &set), ["x", "1/2", "10m", "a,b", "i:1,i:2"].map(Value::from));
        let scale =
            json!({"kind": "Scale", "metadata": made, "spec": {"replicas": 2}, "status": {"replicas": 1}});
        assert_eq!(json!(row("apps", "deployments", &scale)), json!(["x", 2, 1, "10m"]));
    }
}
