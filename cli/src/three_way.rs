//! What `apply` sends: the difference of live object and file, plus the deletion of what the last applied file had and
//! this one has not. Fields others set stay.
//!
//! For kinds of the schema table the result is a strategic merge patch (lists with a merge key go item by item); for
//! custom resources a JSON merge patch, where lists are replaced whole.

use std::collections::BTreeSet;

use keelson_api::schema::{PatchStrategy, Shape, Table, builtin};
use serde_json::{Map, Value, json};

/// Where the last applied file is kept.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The patch and its type.
pub struct Patch {
    pub kind: &'static str,
    pub body: Value,
}

impl Patch {
    /// Nothing to change.
    pub fn is_empty(&self) -> bool {
        self.body.as_object().is_some_and(Map::is_empty)
    }
}

/// Computes the patch that turns `live` into what `wanted` says. `original` is the last applied file, if known.
pub fn patch(original: &Value, wanted: &Value, live: &Value) -> Patch {
    let table = builtin();
    let shape = root(table, wanted);
    let kind = if shape.is_some() { "strategic-merge-patch+json" } else { "merge-patch+json" };
    let body = objects(table, shape.as_ref(), original, wanted, live);
    Patch { kind, body: Value::Object(body) }
}

/// The schema of a built-in kind.
fn root(table: &Table, object: &Value) -> Option<Shape> {
    let api_version = object["apiVersion"].as_str()?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = object["kind"].as_str()?;
    table
        .types
        .iter()
        .position(|found| {
            found
                .gvk
                .as_ref()
                .is_some_and(|(g, v, k)| (g.as_str(), v.as_str(), k.as_str()) == (group, version, kind))
        })
        .map(Shape::Object)
}

fn objects(
    table: &Table,
    shape: Option<&Shape>,
    original: &Value,
    wanted: &Value,
    live: &Value,
) -> Map<String, Value> {
    let mut patch = Map::new();
    let empty = Map::new();
    for (key, wanted) in wanted.as_object().unwrap_or(&empty) {
        let Some(found) = live.get(key) else {
            if !wanted.is_null() {
                patch.insert(key.clone(), wanted.clone());
            }
            continue;
        };
        let field = shape.and_then(|shape| table.field(shape, key));
        let inner = match shape {
            Some(Shape::Map(values)) => Some(values.as_ref()),
            _ => field.map(|field| &field.shape),
        };
        let before = original.get(key).unwrap_or(&Value::Null);
        let strategy = field.and_then(|field| field.patch.as_ref()).filter(|strategy| strategy.merge);
        match (wanted, found) {
            (Value::Object(_), Value::Object(_)) => {
                let deeper = objects(table, inner, before, wanted, found);
                if !deeper.is_empty() {
                    patch.insert(key.clone(), Value::Object(deeper));
                }
            }
            (Value::Array(wanted), Value::Array(found)) if strategy.is_some() && shape.is_some() => {
                let item = match inner {
                    Some(Shape::List(item)) => Some(item.as_ref()),
                    _ => None,
                };
                let lists = Lists { table, item, before, wanted, found };
                if let Some(strategy) = strategy {
                    lists.merge(key, strategy, &mut patch);
                }
            }
            (wanted, found) if wanted != found => {
                patch.insert(key.clone(), wanted.clone());
            }
            _ => {}
        }
    }
    for key in original.as_object().unwrap_or(&empty).keys() {
        if wanted.get(key).is_none() && live.get(key).is_some() {
            patch.insert(key.clone(), Value::Null);
        }
    }
    patch
}

struct Lists<'a> {
    table: &'a Table,
    item: Option<&'a Shape>,
    before: &'a Value,
    wanted: &'a [Value],
    found: &'a [Value],
}

impl Lists<'_> {
    fn merge(&self, field: &str, strategy: &PatchStrategy, patch: &mut Map<String, Value>) {
        let before = self.before.as_array().map(Vec::as_slice).unwrap_or_default();
        let Some(merge_key) = &strategy.key else {
            return self.merge_primitives(field, before, patch);
        };
        let by_key =
            |items: &'_ [Value], key: &Value| items.iter().position(|item| item.get(merge_key) == Some(key));
        let mut changes = Vec::new();
        for wanted in self.wanted {
            let key = wanted.get(merge_key).cloned().unwrap_or(Value::Null);
            match by_key(self.found, &key) {
                None => changes.push(wanted.clone()),
                Some(at) => {
                    let before = by_key(before, &key).map_or(&Value::Null, |at| &before[at]);
                    let mut change = objects(self.table, self.item, before, wanted, &self.found[at]);
                    if !change.is_empty() {
                        change.insert(merge_key.clone(), key);
                        changes.push(Value::Object(change));
                    }
                }
            }
        }
        for old in before {
            let key = old.get(merge_key).cloned().unwrap_or(Value::Null);
            if by_key(self.wanted, &key).is_none() && by_key(self.found, &key).is_some() {
                changes.push(json!({"$patch": "delete", merge_key: key}));
            }
        }
        if !changes.is_empty() {
            patch.insert(field.into(), Value::Array(changes));
        }
    }

    /// Sets of plain values, such as finalizers.
    fn merge_primitives(&self, field: &str, before: &[Value], patch: &mut Map<String, Value>) {
        let text = |value: &Value| value.to_string();
        let found: BTreeSet<String> = self.found.iter().map(text).collect();
        let wanted: BTreeSet<String> = self.wanted.iter().map(text).collect();
        let added: Vec<Value> =
            self.wanted.iter().filter(|item| !found.contains(&text(item))).cloned().collect();
        let removed: Vec<Value> = before
            .iter()
            .filter(|item| !wanted.contains(&text(item)) && found.contains(&text(item)))
            .cloned()
            .collect();
        if !added.is_empty() {
            patch.insert(field.into(), Value::Array(added));
        }
        if !removed.is_empty() {
            patch.insert(format!("$deleteFromPrimitiveList/{field}"), Value::Array(removed));
        }
    }
}

/// The object as sent and remembered: the annotation holds it without itself.
pub fn remember(object: &Value) -> Value {
    let mut bare = object.clone();
    if let Some(annotations) = bare["metadata"]["annotations"].as_object_mut() {
        annotations.remove(LAST_APPLIED);
    }
    // kubectl writes an empty map where the file has none.
    if bare["metadata"]["annotations"].is_null() {
        bare["metadata"]["annotations"] = json!({});
    }
    let text = format!("{bare}\n");
    bare["metadata"]["annotations"][LAST_APPLIED] = Value::String(text);
    bare
}

/// The last applied file of a live object; null when it was never applied.
pub fn original(live: &Value) -> Value {
    let text = live["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap_or_default();
    let mut original: Value = serde_json::from_str(text).unwrap_or(Value::Null);
    // The annotation itself is in `wanted`; deleting it by comparison would be wrong.
    if let Some(annotations) = original["metadata"]["annotations"].as_object_mut() {
        annotations.remove(LAST_APPLIED);
    }
    original
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(spec: Value) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
    }

    fn containers(items: Value) -> Value {
        json!({"template": {"spec": {"containers": items}}})
    }

    #[test]
    fn defaults_and_fields_of_others_stay() {
        let file = deployment(json!({"replicas": 2}));
        let live = deployment(json!({"replicas": 2, "progressDeadlineSeconds": 600}));
        assert!(patch(&file, &file, &live).is_empty());
    }

    #[test]
    fn containers_merge_by_name() {
        let old =
            deployment(containers(json!([{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}])));
        let new = deployment(containers(json!([{"name": "a", "image": "a:2"}])));
        let live = deployment(containers(json!([
            {"name": "a", "image": "a:1", "imagePullPolicy": "IfNotPresent"}, {"name": "b", "image": "b:1"}, {"name": "injected", "image": "x"}])));
        let found = patch(&old, &new, &live);
        assert_eq!(found.kind, "strategic-merge-patch+json");
        assert_eq!(
            found.body["spec"]["template"]["spec"]["containers"],
            json!([{"name": "a", "image": "a:2"}, {"$patch": "delete", "name": "b"}])
        );
    }

    #[test]
    fn what_the_last_file_had_and_this_one_has_not_is_deleted() {
        let old = deployment(json!({"replicas": 2, "minReadySeconds": 5}));
        let new = deployment(json!({"replicas": 2}));
        let live = deployment(json!({"replicas": 2, "minReadySeconds": 5, "paused": true}));
        assert_eq!(patch(&old, &new, &live).body, json!({"spec": {"minReadySeconds": null}}));
    }

    #[test]
    fn custom_resources_replace_lists() {
        let custom =
            |items: Value| json!({"apiVersion": "x.io/v1", "kind": "X", "spec": {"containers": items}});
        let found = patch(&Value::Null, &custom(json!([{"name": "a"}])), &custom(json!([{"name": "b"}])));
        assert_eq!(found.kind, "merge-patch+json");
        assert_eq!(found.body, json!({"spec": {"containers": [{"name": "a"}]}}));
    }

    #[test]
    fn the_annotation_round_trips() {
        let file = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "annotations": {"x": "y"}}});
        let sent = remember(&file);
        assert_eq!(original(&sent), file);
        assert!(patch(&original(&sent), &remember(&file), &sent).is_empty());
    }
}
