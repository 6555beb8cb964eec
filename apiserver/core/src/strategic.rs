//! Strategic merge patch: a merge patch in which lists merge by the keys of their schema.
//!
//! Directives: `$patch: replace|delete|merge` in a map or as a list item, `$retainKeys`, `$deleteFromPrimitiveList/field`,
//! `$setElementOrder/field`. Order within one map: retain keys, then fields, then element order.

use keelson_api::Status;
use keelson_api::schema::{Field, Shape, Table};
use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Why a patch cannot be applied.
#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// The patch does not fit the type.
    Type(String),
    /// The patch is not one.
    Patch(String),
}

impl Error {
    /// The answer; `shown` is the patch as Go prints it.
    pub fn status(self, shown: &str) -> Status {
        match self {
            Error::Type(problem) => crate::patch::unprocessable(shown, &problem),
            Error::Patch(message) => Status { code: 500, message, bare: true, ..Status::default() },
        }
    }
}

/// Applies `patch` to `original`, both of the type `shape`.
pub fn patch(table: &Table, shape: &Shape, original: &Value, patch: &Value) -> Result<Value, Error> {
    let mut out = original.clone();
    match patch {
        Value::Object(patch) => merge_map(table, shape, &mut out, patch)?,
        _ => return Err(Error::Type("the patch is no object".into())),
    }
    Ok(out)
}

fn merge_map(
    table: &Table,
    shape: &Shape,
    original: &mut Value,
    patch: &Map<String, Value>,
) -> Result<(), Error> {
    match patch.get(DIRECTIVE).map(|d| d.as_str().unwrap_or("")) {
        None | Some("merge") => {}
        Some("replace") => {
            let mut new = patch.clone();
            new.remove(DIRECTIVE);
            *original = Value::Object(new);
            return Ok(());
        }
        Some("delete") => {
            *original = Value::Object(Map::new());
            return Ok(());
        }
        Some(other) => {
            let shown = crate::patch::go_map(&Value::Object(patch.clone()));
            return Err(Error::Patch(format!("unknown patch type: {other} in map: {shown}")));
        }
    }
    let out = crate::value::map_mut(original);
    if let Some(Value::Array(keep)) = patch.get(RETAIN) {
        out.retain(|key, _| keep.iter().any(|k| k == key));
    }
    for (key, value) in patch {
        if key == DIRECTIVE || key == RETAIN || key.starts_with(ORDER) {
            continue;
        }
        if let Some(name) = key.strip_prefix(DELETE_FROM) {
            delete_from_list(out, name, value);
            continue;
        }
        if value.is_null() {
            out.remove(key);
            continue;
        }
        merge_field(table, shape, out, key, value)?;
    }
    for (key, order) in patch {
        if let Some(name) = key.strip_prefix(ORDER) {
            set_order(table, shape, out, name, order);
        }
    }
    Ok(())
}

fn delete_from_list(out: &mut Map<String, Value>, name: &str, values: &Value) {
    let gone = values.as_array().map(Vec::as_slice).unwrap_or_default();
    if let Some(Value::Array(list)) = out.get_mut(name) {
        list.retain(|v| !gone.contains(v));
    }
}

/// The shape of a member, and the field it is when the parent is a struct.
fn member<'a>(table: &'a Table, shape: &'a Shape, key: &str) -> (Option<&'a Shape>, Option<&'a Field>) {
    match shape {
        Shape::Object(_) => {
            let field = table.field(shape, key);
            (field.map(|f| &f.shape), field)
        }
        Shape::Map(item) => (Some(item), None),
        _ => (None, None),
    }
}

fn merge_field(
    table: &Table,
    shape: &Shape,
    out: &mut Map<String, Value>,
    key: &str,
    value: &Value,
) -> Result<(), Error> {
    let (child, field) = member(table, shape, key);
    let any = Shape::Any;
    let child = child.unwrap_or(&any);
    fits(child, value)?;
    match value {
        Value::Object(patch) => {
            let strategy = field.and_then(|f| f.patch.as_ref());
            let replace = strategy.is_some_and(|p| !p.merge && p.text.contains("replace"));
            let present = out.get(key).is_some_and(Value::is_object);
            if replace || !present {
                out.insert(key.into(), Value::Object(Map::new()));
            }
            let slot = out.entry(key).or_insert(Value::Null);
            merge_map(table, child, slot, patch)
        }
        Value::Array(patch) => {
            let merge = field.and_then(|f| f.patch.as_ref()).filter(|p| p.merge);
            let item = match child {
                Shape::List(item) => item,
                _ => &any,
            };
            let Some(strategy) = merge else {
                out.insert(
                    key.into(),
                    Value::Array(patch.iter().filter(|v| !is_directive(v)).cloned().collect()),
                );
                return Ok(());
            };
            let slot = out.entry(key).or_insert_with(|| Value::Array(vec![]));
            if !slot.is_array() {
                *slot = Value::Array(vec![]);
            }
            let Value::Array(original) = slot else { return Ok(()) };
            let server: Vec<Value> = original.iter().map(|v| identity(v, &strategy.key)).collect();
            match &strategy.key {
                Some(merge_key) => merge_list(table, item, original, patch, merge_key)?,
                None => {
                    for v in patch.iter().filter(|v| !original.contains(v)).cloned().collect::<Vec<_>>() {
                        original.push(v);
                    }
                }
            }
            if !patch.iter().any(is_directive) {
                reorder(original, patch, &server, &strategy.key);
            }
            Ok(())
        }
        scalar => {
            out.insert(key.into(), scalar.clone());
            Ok(())
        }
    }
}

fn is_directive(v: &Value) -> bool {
    v.as_object().is_some_and(|m| m.len() == 1 && m.contains_key(DIRECTIVE))
}

/// Coarse check of kinds, as the conversion to typed fields would complain.
fn fits(shape: &Shape, value: &Value) -> Result<(), Error> {
    let go = match value {
        Value::String(_) => "string",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::Bool(_) => "bool",
        Value::Array(_) => "slice",
        _ => "map",
    };
    match (shape, value) {
        (Shape::List(_), Value::Array(_)) | (Shape::Object(_) | Shape::Map(_), Value::Object(_)) => Ok(()),
        (Shape::List(_), _) => Err(Error::Type(format!("cannot restore slice from {go}"))),
        (Shape::Map(_), _) => Err(Error::Type(format!("cannot restore map from {go}"))),
        (Shape::Object(_), _) => Err(Error::Type(format!("cannot restore struct from: {go}"))),
        (Shape::String, Value::String(_)) => Ok(()),
        (Shape::String, _) => Err(Error::Type(format!("cannot convert {go} to string"))),
        (Shape::Bool, Value::Bool(_)) => Ok(()),
        (Shape::Bool, _) => Err(Error::Type(format!("cannot convert {go} to bool"))),
        (Shape::Int32 | Shape::Int64, Value::Number(_)) => Ok(()),
        (Shape::Int32, _) => Err(Error::Type(format!("cannot convert {go} to int32"))),
        (Shape::Int64, _) => Err(Error::Type(format!("cannot convert {go} to int64"))),
        _ => Ok(()),
    }
}

fn merge_list(
    table: &Table,
    item: &Shape,
    original: &mut Vec<Value>,
    patch: &[Value],
    merge_key: &str,
) -> Result<(), Error> {
    if patch.iter().any(|p| is_directive(p) && p[DIRECTIVE] == "replace") {
        *original = patch.iter().filter(|p| !is_directive(p)).cloned().collect();
        return Ok(());
    }
    for p in patch {
        let Value::Object(map) = p else {
            return Err(Error::Type("cannot restore struct from: ".to_string() + crate::decode::go_kind(p)));
        };
        let directive = map.get(DIRECTIVE).map(|d| d.as_str().unwrap_or(""));
        let Some(key) = map.get(merge_key) else {
            if directive == Some("delete") && map.len() == 1 {
                original.clear();
                continue;
            }
            let shown = crate::patch::go_map(p);
            return Err(Error::Patch(format!(
                "map: {shown} does not contain declared merge key: {merge_key}"
            )));
        };
        match directive {
            Some("delete") => original.retain(|o| o.get(merge_key) != Some(key)),
            Some("replace") => {
                let mut new = map.clone();
                new.remove(DIRECTIVE);
                original.retain(|o| o.get(merge_key) != Some(key));
                original.push(Value::Object(new));
            }
            None | Some("merge") => match original.iter_mut().find(|o| o.get(merge_key) == Some(key)) {
                Some(found) => merge_map(table, item, found, map)?,
                None => {
                    let mut new = Value::Object(Map::new());
                    merge_map(table, item, &mut new, map)?;
                    original.push(new);
                }
            },
            Some(other) => {
                return Err(Error::Patch(format!(
                    "unknown patch type: {other} in map: {}",
                    crate::patch::go_map(p)
                )));
            }
        }
    }
    Ok(())
}

/// Puts a list into the order a `$setElementOrder` asks for.
fn set_order(table: &Table, shape: &Shape, out: &mut Map<String, Value>, name: &str, order: &Value) {
    let key = table.field(shape, name).and_then(|f| f.patch.as_ref()).and_then(|p| p.key.clone());
    if let (Some(Value::Array(list)), Some(order)) = (out.get_mut(name), order.as_array()) {
        let server: Vec<Value> = list.iter().map(|v| identity(v, &key)).collect();
        reorder(list, order, &server, &key);
    }
}

fn identity(v: &Value, key: &Option<String>) -> Value {
    match key {
        Some(k) => v.get(k).cloned().unwrap_or(Value::Null),
        None => v.clone(),
    }
}

/// What the patch names comes in its order; what only the server has goes before the first named item it used to precede,
/// and to the end otherwise.
fn reorder(list: &mut Vec<Value>, order: &[Value], server: &[Value], key: &Option<String>) {
    let wanted: Vec<Value> = order.iter().map(|o| identity(o, key)).collect();
    let at = |v: &Value| server.iter().position(|s| *s == identity(v, key));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        list.drain(..).partition(|v| wanted.contains(&identity(v, key)));
    named.sort_by_key(|v| wanted.iter().position(|w| *w == identity(v, key)));
    others.sort_by_key(at);
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(n), Some(o)) = (named.peek(), others.peek()) {
        let before = matches!((at(o), at(n)), (Some(left), Some(right)) if left < right);
        list.extend(if before { others.next() } else { named.next() });
    }
    list.extend(named);
    list.extend(others);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::shape_of;
    use keelson_api::schema::builtin;
    use serde_json::json;

    fn pod(patch_: Value, spec: Value) -> Value {
        let shape = shape_of("", "v1", "Pod").unwrap();
        patch(builtin(), &shape, &json!({"spec": spec}), &json!({"spec": patch_})).unwrap()["spec"].clone()
    }

    #[test]
    fn containers_merge_by_name() {
        let spec = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]});
        assert_eq!(
            pod(json!({"containers": [{"name": "b", "image": "2"}, {"name": "c"}]}), spec.clone()),
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c"}]})
        );
        let added = pod(json!({"containers": [{"name": "z"}]}), spec.clone());
        assert_eq!(added["containers"][0]["name"], "z", "what is new goes first");
        assert_eq!(
            pod(json!({"containers": [{"name": "a", "$patch": "delete"}]}), spec.clone())["containers"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        assert_eq!(
            pod(json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}), spec.clone())["containers"]
                [0]["name"],
            "b"
        );
        assert_eq!(
            pod(json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}), spec),
            json!({"containers": [{"name": "z"}]})
        );
    }

    #[test]
    fn retain_keys_clears_the_rest() {
        let shape = shape_of("apps", "v1", "Deployment").unwrap();
        let before =
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let p = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(
            patch(builtin(), &shape, &before, &p).unwrap()["spec"]["strategy"],
            json!({"type": "Recreate"})
        );
    }

    #[test]
    fn finalizers_merge_as_a_set() {
        let shape = shape_of("", "v1", "Pod").unwrap();
        let before = json!({"metadata": {"finalizers": ["a", "b"]}});
        let p = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["b", "c"]}});
        assert_eq!(
            patch(builtin(), &shape, &before, &p).unwrap()["metadata"]["finalizers"],
            json!(["b", "c"])
        );
    }
}
