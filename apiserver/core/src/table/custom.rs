//! Columns of custom resources: their definition's own.

use crate::custom::jsonpath;
use crate::value::{name, text};
use keelson_api::Definition;
use serde_json::{Value, json};

/// The columns, the name first.
pub fn definitions(definition: Option<&Definition>) -> Vec<Value> {
    let first = json!({"name": "Name", "type": "string", "format": "name", "description": super::description("", "Name"), "priority": 0});
    let columns = definition.into_iter().flat_map(|d| &d.columns).map(|c| {
        let described = text(c, "description");
        let description = if described.is_empty() {
            format!("Custom resource definition column (in JSONPath format): {}", text(c, "jsonPath"))
        } else {
            described.to_owned()
        };
        json!({
            "name": text(c, "name"), "type": text(c, "type"), "format": text(c, "format"),
            "description": description, "priority": c["priority"].as_i64().unwrap_or(0),
        })
    });
    std::iter::once(first).chain(columns).collect()
}

/// The cells of one object.
pub fn cells(definition: &Definition, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let columns = definition.columns.iter().map(|c| {
        let found = jsonpath::find(object, text(c, "jsonPath"));
        let Some(value) = found.first() else { return Value::Null };
        match (text(c, "type"), value) {
            ("date", value) => match value.as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok()) {
                Some(_) => super::since(value, now).into(),
                None => Value::Null,
            },
            ("string", Value::String(s)) => s.as_str().into(),
            ("string", Value::Object(_) | Value::Array(_)) if found.len() == 1 => value.to_string().into(),
            ("string", _) => {
                let all = found.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
                all.collect::<Vec<_>>().join(",").into()
            }
            ("integer", Value::Number(_)) | ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => {
                (*value).clone()
            }
            _ => Value::Null,
        }
    });
    std::iter::once(json!(name(object))).chain(columns).collect()
}
