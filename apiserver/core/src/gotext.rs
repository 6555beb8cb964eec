//! Objects and syntax errors as upstream's messages print them: its structs encoded as JSON by Go.

use keelson_api::schema::{Field, Shape, Table, Type};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A string as Go's encoder writes it.
fn string(text: &str) -> String {
    let plain = Value::from(text).to_string();
    plain.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// Which objects of a document a patch went through: these were taken apart and come back with sorted keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Touched {
    /// As the struct was encoded.
    #[default]
    No,
    /// From the patch, as it is.
    Given,
    /// Taken apart.
    Through(BTreeMap<String, Touched>),
}

impl Touched {
    /// What a merge patch goes through.
    pub fn by_merge(before: &Value, patch: &Value) -> Touched {
        match (before, patch) {
            (Value::Object(before), Value::Object(patch)) => {
                let none = Value::Null;
                let parts = patch
                    .iter()
                    .map(|(k, v)| (k.clone(), Touched::by_merge(before.get(k).unwrap_or(&none), v)));
                Touched::Through(parts.collect())
            }
            _ => Touched::Given,
        }
    }

    /// What a list of JSON patch operations goes through.
    pub fn by_operations(operations: &Value) -> Touched {
        let mut all = Touched::Through(BTreeMap::new());
        for operation in operations.as_array().into_iter().flatten() {
            let path = operation["path"].as_str().unwrap_or("");
            let steps: Vec<String> =
                path.split('/').skip(1).map(|s| s.replace("~1", "/").replace("~0", "~")).collect();
            all.walk(&steps);
        }
        all
    }

    fn walk(&mut self, steps: &[String]) {
        let Some((first, rest)) = steps.split_first() else {
            *self = Touched::Given;
            return;
        };
        if *self == Touched::No {
            *self = Touched::Through(BTreeMap::new());
        }
        if let Touched::Through(parts) = self {
            parts.entry(first.clone()).or_default().walk(rest);
        }
    }
}

/// An object as a patch leaves it: struct order where the patch did not look, sorted keys where it did.
pub fn patched(table: &Table, shape: &Shape, value: &Value, touched: &Touched) -> String {
    match (touched, value) {
        (Touched::Given, v) => v.to_string(),
        (Touched::Through(parts), Value::Object(map)) => {
            let entries = map.iter().map(|(key, v)| {
                let part = parts.get(key).unwrap_or(&Touched::No);
                let child = child_shape(table, shape, key);
                format!("{}:{}", Value::from(key.as_str()), patched(table, &child, v, part))
            });
            format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
        }
        (Touched::Through(parts), Value::Array(list)) => {
            let item = match shape {
                Shape::List(item) => (**item).clone(),
                _ => Shape::Any,
            };
            let items = list
                .iter()
                .enumerate()
                .map(|(i, v)| patched(table, &item, v, parts.get(&i.to_string()).unwrap_or(&Touched::No)));
            format!("[{}]", items.collect::<Vec<_>>().join(","))
        }
        (_, v) => in_order(table, shape, v),
    }
}

fn child_shape(table: &Table, shape: &Shape, key: &str) -> Shape {
    match shape {
        Shape::Map(item) => (**item).clone(),
        _ => table.field(shape, key).map_or(Shape::Any, |f| f.shape.clone()),
    }
}

/// JSON with the fields of each struct in their order there.
pub fn in_order(table: &Table, shape: &Shape, value: &Value) -> String {
    match (shape, value) {
        (Shape::Object(id), Value::Object(map)) if table.get(*id).alias.is_none() => {
            format!("{{{}}}", members(table, table.get(*id), map).join(","))
        }
        (Shape::List(item), Value::Array(list)) => {
            let items: Vec<String> = list.iter().map(|v| in_order(table, item, v)).collect();
            format!("[{}]", items.join(","))
        }
        (Shape::Map(item), Value::Object(map)) => {
            let entries: Vec<String> =
                map.iter().map(|(k, v)| format!("{}:{}", string(k), in_order(table, item, v))).collect();
            format!("{{{}}}", entries.join(","))
        }
        (_, Value::String(s)) => string(s),
        (_, v) => v.to_string(),
    }
}

fn members(table: &Table, ty: &Type, map: &Map<String, Value>) -> Vec<String> {
    let known = ty.in_order();
    let known = known.iter().filter_map(|f| map.get(&f.name).map(|v| (f.name.as_str(), Some(*f), v)));
    let unknown = map.iter().filter(|(k, _)| ty.field(k).is_none()).map(|(k, v)| (k.as_str(), None, v));
    let one = |(key, field, v): (&str, Option<&Field>, &Value)| {
        let shape = field.map_or(&Shape::Any, |f| &f.shape);
        format!("{}:{}", string(key), in_order(table, shape, v))
    };
    known.chain(unknown).map(one).collect()
}

/// A value of upstream's inner types, which have no names for JSON: every field, under its name in Go.
/// A type is given by the end of its published name, such as `core.v1.Taint`.
pub fn inner(type_name: &str, value: &Value) -> String {
    let table = keelson_api::schema::builtin();
    let id = table.id(&format!("io.k8s.api.{type_name}"));
    id.map_or_else(|| value.to_string(), |id| inner_of(table, &Shape::Object(id), value))
}

/// [`inner`] of a list of such values.
pub fn inner_list(type_name: &str, list: &Value) -> String {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    format!("[{}]", items.iter().map(|v| inner(type_name, v)).collect::<Vec<_>>().join(","))
}

fn inner_of(table: &Table, shape: &Shape, value: &Value) -> String {
    match (shape, value) {
        (Shape::Object(id), v) if table.get(*id).name.contains("apimachinery") => in_order(table, shape, v),
        (Shape::Object(id), v) if table.get(*id).alias.is_none() => {
            let mut parts = vec![];
            for field in table.get(*id).in_order() {
                let given = &v[&field.name];
                match field.name.as_str() {
                    "kind" | "apiVersion" if field.tags.is_empty() => {}
                    // Metadata is embedded and keeps its own names.
                    "metadata" => {
                        let text = in_order(table, &field.shape, given);
                        let text = text.trim_start_matches('{').trim_end_matches('}');
                        if given.is_object() && !text.is_empty() {
                            parts.push(text.to_owned());
                        }
                    }
                    _ => parts.push(format!("\"{}\":{}", field.go_name(), inner_field(table, field, given))),
                }
            }
            format!("{{{}}}", parts.join(","))
        }
        (Shape::List(item), Value::Array(list)) => {
            let items: Vec<String> = list.iter().map(|v| inner_of(table, item, v)).collect();
            format!("[{}]", items.join(","))
        }
        (Shape::Map(item), Value::Object(map)) => {
            let entries: Vec<String> =
                map.iter().map(|(k, v)| format!("{}:{}", string(k), inner_of(table, item, v))).collect();
            format!("{{{}}}", entries.join(","))
        }
        (_, Value::String(s)) => string(s),
        (_, v) => v.to_string(),
    }
}

fn inner_field(table: &Table, field: &Field, given: &Value) -> String {
    if !given.is_null() {
        return inner_of(table, &field.shape, given);
    }
    if field.pointer {
        return "null".into();
    }
    match &field.shape {
        Shape::String => "\"\"".into(),
        Shape::Int32 | Shape::Int64 | Shape::Number | Shape::IntOrString => "0".into(),
        Shape::Bool => "false".into(),
        Shape::Quantity => "\"0\"".into(),
        Shape::Object(id) if table.get(*id).alias.is_none() => inner_of(table, &field.shape, &Value::Null),
        _ => "null".into(),
    }
}

/// What Go's parser says about a body that is no JSON.
pub fn syntax_error(body: &[u8], error: &serde_json::Error) -> String {
    let said = error.to_string();
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    if said.starts_with("exceeded max depth") || said.starts_with("recursion limit") {
        return "exceeded max depth".into();
    }
    let line_start = match error.line() {
        0 | 1 => 0,
        n => body.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(n - 2).map_or(0, |(i, _)| i + 1),
    };
    let at = line_start + error.column().saturating_sub(1);
    let Some(found) = body.get(at).copied() else { return said };
    let where_ = [
        ("expected value", "looking for beginning of value"),
        ("trailing characters", "after top-level value"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("expected `,` or `]`", "after array element"),
        ("key must be a string", "looking for beginning of object key string"),
        ("expected `:`", "after object key"),
        ("control character", "in string literal"),
        ("invalid escape", "in string escape code"),
    ];
    let shown = match found {
        b'\'' => "'\\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b if b < 0x20 => format!("'\\x{b:02x}'"),
        b => format!("'{}'", char::from(b)),
    };
    let trailing_comma = match found {
        b'}' => "looking for beginning of object key string",
        _ => "looking for beginning of value",
    };
    let known = where_.iter().find(|(start, _)| said.starts_with(start)).map(|(_, text)| *text);
    match known {
        Some(place) => format!("invalid character {shown} {place}"),
        None if said.starts_with("trailing comma") => format!("invalid character {shown} {trailing_comma}"),
        None => said,
    }
}

/// How a body begins, as an error shows it: JSON as it is, anything else in hexadecimal digits.
pub fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let head = &body[..body.len().min(SHOWN)];
    let text = match body.first() {
        None => return "<empty>".into(),
        Some(b'{') => String::from_utf8_lossy(head).into_owned(),
        Some(_) => head.iter().map(|b| format!("{b:02x}")).collect(),
    };
    if body.len() > SHOWN { format!("{text} ...") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::schema::builtin;
    use serde_json::json;

    #[test]
    fn inner_types_show_every_field() {
        let spec = json!({"attacher": "d", "nodeName": "m", "source": {"persistentVolumeName": "pv"}});
        let want = r#"{"Attacher":"d","Source":{"PersistentVolumeName":"pv","InlineVolumeSpec":null},"NodeName":"m"}"#;
        assert_eq!(inner("storage.v1.VolumeAttachmentSpec", &spec), want);
        let taint = r#"{"Key":"a","Value":"","Effect":"NoSchedule","TimeAdded":null}"#;
        assert_eq!(inner("core.v1.Taint", &json!({"key": "a", "effect": "NoSchedule"})), taint);
    }

    #[test]
    fn a_patched_object_keeps_struct_order_where_the_patch_did_not_look() {
        let id = builtin().id("io.k8s.api.core.v1.ConfigMap").unwrap();
        let before = json!({"kind": "ConfigMap", "metadata": {"uid": "u", "name": "x"}, "data": {"b": "1"}, "apiVersion": "v1"});
        let touched = Touched::by_merge(&before, &json!({"data": {"b": 1}}));
        let mut after = before.clone();
        after["data"]["b"] = 1.into();
        let want =
            r#"{"apiVersion":"v1","data":{"b":1},"kind":"ConfigMap","metadata":{"name":"x","uid":"u"}}"#;
        assert_eq!(patched(builtin(), &Shape::Object(id), &after, &touched), want);
    }

    #[test]
    fn syntax_errors_read_like_gos() {
        let say = |body: &str| {
            let error = serde_json::from_str::<Value>(body).unwrap_err();
            syntax_error(body.as_bytes(), &error)
        };
        assert_eq!(say("{\"a\":1}x"), "invalid character 'x' after top-level value");
        assert_eq!(say("\u{feff}{}"), "invalid character 'ï' looking for beginning of value");
        assert_eq!(say("{\"a\" 1}"), "invalid character '1' after object key");
        assert_eq!(say("{\"a\":"), "unexpected end of JSON input");
        assert_eq!(summary(b"{"), "{");
        assert_eq!(summary(b"a: ["), "613a205b");
    }
}
