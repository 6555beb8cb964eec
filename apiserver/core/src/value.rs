//! Reading and writing JSON trees by dotted path. Paths here are written in code, never taken from a request.

use serde_json::{Map, Value};

/// The value at `a.b.c`; null when it is not there.
pub fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |v, key| &v[key])
}

/// The string at a path; empty when it is not there.
pub fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).as_str().unwrap_or("")
}

pub fn int(value: &Value, path: &str) -> i64 {
    at(value, path).as_i64().unwrap_or(0)
}

pub fn flag(value: &Value, path: &str) -> bool {
    at(value, path).as_bool().unwrap_or(false)
}

/// The elements at a path; none when it is no list.
pub fn items<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The object below `key`, made when it is not there.
pub fn object_mut<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    map_mut(map_mut(value).entry(key).or_insert(Value::Null))
}

/// The value as an object, made one when it is none.
pub fn map_mut(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// Sets the value at a path, making objects on the way.
pub fn set(value: &mut Value, path: &str, new: impl Into<Value>) {
    let mut v = value;
    for key in path.split('.') {
        v = map_mut(v).entry(key).or_insert(Value::Null);
    }
    *v = new.into();
}

/// Sets the value at a path when there is none (or null).
pub fn default(value: &mut Value, path: &str, new: impl Into<Value>) {
    if at(value, path).is_null() {
        set(value, path, new);
    }
}

/// Removes and returns the value at a path.
pub fn take(value: &mut Value, path: &str) -> Option<Value> {
    let (parent, key) = path.rsplit_once('.').map_or(("", path), |(p, k)| (p, k));
    let mut v = value;
    for step in parent.split('.').filter(|s| !s.is_empty()) {
        v = v.get_mut(step)?;
    }
    v.as_object_mut()?.remove(key)
}

/// The elements at a path, to change in place.
pub fn each_mut<'a>(value: &'a mut Value, path: &str) -> impl Iterator<Item = &'a mut Value> {
    let mut v = Some(value);
    for key in path.split('.') {
        v = v.and_then(|v| v.get_mut(key));
    }
    v.and_then(Value::as_array_mut).into_iter().flatten()
}

/// Null, or an empty string, list or object.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

/// Whether two trees say the same: what is empty is as good as what is not there.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(k, v)| same(v, y.get(k).unwrap_or(&Value::Null)))
                && y.iter().all(|(k, v)| x.contains_key(k) || same(&Value::Null, v))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(v, w)| same(v, w)),
        (Value::Array(list), Value::Null) | (Value::Null, Value::Array(list)) => list.is_empty(),
        (Value::Object(map), Value::Null) | (Value::Null, Value::Object(map)) => map.is_empty(),
        _ => a == b,
    }
}

/// A tree without what is empty in it.
pub fn without_empty(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().map(|(k, v)| (k.clone(), without_empty(v))).filter(|(_, v)| !is_empty(v));
            Value::Object(kept.collect())
        }
        Value::Array(list) => list.iter().map(without_empty).collect(),
        other => other.clone(),
    }
}

/// Copies the value at a path from one tree to another, removing it where the source has none.
pub fn copy(from: &Value, to: &mut Value, path: &str) {
    match at(from, path) {
        Value::Null => drop(take(to, path)),
        v => set(to, path, v.clone()),
    }
}

pub fn name(object: &Value) -> &str {
    text(object, "metadata.name")
}

pub fn namespace(object: &Value) -> &str {
    text(object, "metadata.namespace")
}

/// Whether a deletion is under way.
pub fn terminating(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}
