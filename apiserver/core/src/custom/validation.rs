//! Validation of custom resources against their schema, in the words of upstream's validators.

use keelson_api::field::quote;
use keelson_api::{Definition, ErrorList, FieldError, Path};
use regex::RegexBuilder;
use serde_json::Value;

/// A compiled pattern takes at most so many bytes.
const PATTERN_BYTES: usize = 1 << 20;

/// Checks an object; returns warnings. What an update leaves as it was is not held against it.
pub fn validate(
    definition: &Definition,
    object: &Value,
    old: Option<&Value>,
    errors: &mut ErrorList,
) -> Vec<String> {
    let schema = &definition.schema;
    for (key, child) in schema["properties"].as_object().into_iter().flatten() {
        if !["apiVersion", "kind", "metadata"].contains(&key.as_str())
            && let Some(given) = object.get(key)
        {
            changed(child, given, old.and_then(|old| old.get(key)), &Path::new(key), errors);
        }
    }
    required(schema, object, &Path::root(), errors);
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(given) = object.get(name) {
            lists(child, given, &Path::new(name), errors);
        }
    }
    rules(definition, object, old, errors)
}

/// Runs the rules in CEL, when the object has the form they rely on.
fn rules(
    definition: &Definition,
    object: &Value,
    old: Option<&Value>,
    errors: &mut ErrorList,
) -> Vec<String> {
    let compiled = definition.kept.get_or_make(|| crate::cel::compiled::compile(&definition.schema));
    let Some(node) = compiled.as_deref().and_then(Option::as_ref) else { return vec![] };
    const BLOCKING: [&str; 5] = [
        "FieldValueNotSupported",
        "FieldValueRequired",
        "FieldValueTooLong",
        "FieldValueTooMany",
        "FieldValueTypeInvalid",
    ];
    if errors.iter().any(|e| BLOCKING.contains(&e.reason)) {
        let detail = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
        errors.push(FieldError::invalid(&Path::root(), Value::Null, detail));
        return vec![];
    }
    crate::cel::rules::run(node, object, old, errors)
}

/// Checks a value of an update: what is equal to the old one is taken as it is.
fn changed(schema: &Value, given: &Value, old: Option<&Value>, path: &Path, errors: &mut ErrorList) {
    let Some(old) = old else { return value(schema, given, path, errors) };
    if old == given {
        return;
    }
    let mut found = ErrorList::new();
    value(schema, given, path, &mut found);
    found.retain(|error| !unchanged_at(schema, given, old, path, error));
    errors.extend(found);
}

/// Whether an error is about a part that is equal to its old one.
fn unchanged_at(schema: &Value, given: &Value, old: &Value, path: &Path, error: &FieldError) -> bool {
    if given == old {
        return error.path.as_str() == path.as_str() || below(&error.path, path);
    }
    match (given, old) {
        (Value::Object(map), Value::Object(before)) if schema["x-kubernetes-map-type"] != "atomic" => {
            map.iter().any(|(key, child)| {
                let known = schema["properties"].get(key);
                let at = path.child(key);
                let own = known.unwrap_or(&schema["additionalProperties"]);
                before.get(key).is_some_and(|before| unchanged_at(own, child, before, &at, error))
            })
        }
        (Value::Array(list), Value::Array(before)) if schema["x-kubernetes-list-type"] == "map" => {
            let keys = schema["x-kubernetes-list-map-keys"].as_array().cloned().unwrap_or_default();
            list.iter().enumerate().any(|(i, child)| {
                let same =
                    |other: &&Value| keys.iter().filter_map(Value::as_str).all(|k| other[k] == child[k]);
                let found = before.iter().find(same);
                found.is_some_and(|b| unchanged_at(&schema["items"], child, b, &path.index(i), error))
            })
        }
        _ => false,
    }
}

fn below(path: &Path, above: &Path) -> bool {
    path.as_str().strip_prefix(above.as_str()).is_some_and(|rest| rest.starts_with(['.', '[']))
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() || n.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn complain(path: &Path, shown: impl Into<Value>, detail: &str, errors: &mut ErrorList) {
    errors.push(FieldError::invalid(path, shown, &format!("{path} in body {detail}")));
}

/// Whether the value has the type; a complaint when not.
fn typed(schema: &Value, given: &Value, path: &Path, errors: &mut ErrorList) -> bool {
    if given.is_null() && schema["nullable"] == true {
        return false;
    }
    let found = go_type(given);
    if schema["x-kubernetes-int-or-string"] == true {
        if found != "integer" && found != "string" {
            type_error(path, "integer,string", found, errors);
            return false;
        }
        return true;
    }
    let Some(wanted) = schema["type"].as_str().filter(|t| !t.is_empty()) else { return true };
    if wanted == found || (wanted == "number" && found == "integer") {
        return true;
    }
    type_error(path, wanted, found, errors);
    if wanted == "integer" && found == "number" {
        let message =
            format!("Invalid value: \"\": Checked value must be of type integer (default format) in {path}");
        errors.push(FieldError { reason: "FieldValueInvalid", path: Path::root(), message });
    }
    false
}

fn type_error(path: &Path, wanted: &str, found: &str, errors: &mut ErrorList) {
    let message =
        format!("Invalid value: {}: {path} in body must be of type {wanted}: {}", quote(found), quote(found));
    errors.push(FieldError { reason: "FieldValueTypeInvalid", path: path.clone(), message });
}

/// Checks one value against its part of the schema.
pub fn value(schema: &Value, given: &Value, path: &Path, errors: &mut ErrorList) {
    if !typed(schema, given, path, errors) {
        return;
    }
    match given {
        Value::String(s) => string(schema, s, path, errors),
        Value::Number(_) => number(schema, given, path, errors),
        Value::Array(list) => array(schema, list, path, errors),
        Value::Object(_) => object(schema, given, path, errors),
        _ => {}
    }
    enumeration(schema, given, path, errors);
    combined(schema, given, path, errors);
}

fn enumeration(schema: &Value, given: &Value, path: &Path, errors: &mut ErrorList) {
    let Some(list) = schema["enum"].as_array() else { return };
    if !list.contains(given) {
        let shown: Vec<String> =
            list.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        errors.push(FieldError::not_supported(path, given.clone(), &shown));
    }
}

fn string(schema: &Value, given: &str, path: &Path, errors: &mut ErrorList) {
    let length = given.chars().count() as u64;
    if let Some(most) = schema["maxLength"].as_u64().filter(|m| length > *m) {
        errors.push(FieldError::too_long(path, usize::try_from(most).unwrap_or(usize::MAX)));
    }
    if let Some(least) = schema["minLength"].as_u64().filter(|m| length < *m) {
        complain(path, given, &format!("should be at least {least} chars long"), errors);
    }
    if let Some(pattern) = schema["pattern"].as_str().filter(|p| !p.is_empty()) {
        let regex = RegexBuilder::new(pattern).size_limit(PATTERN_BYTES).build();
        if !regex.is_ok_and(|r| r.is_match(given)) {
            complain(path, given, &format!("should match '{pattern}'"), errors);
        }
    }
    if let Some(format) = schema["format"].as_str()
        && !formatted(format, given)
    {
        let message = format!(
            "Invalid value: {}: {path} in body must be of type {format}: {}",
            quote(given),
            quote(given)
        );
        errors.push(FieldError { reason: "FieldValueInvalid", path: path.clone(), message });
    }
}

/// Formats that are checked; others say nothing.
fn formatted(format: &str, given: &str) -> bool {
    use base64::Engine as _;
    match format {
        "date-time" => given.parse::<jiff::Timestamp>().is_ok(),
        "date" => given.len() == 10 && given.parse::<jiff::civil::Date>().is_ok(),
        "byte" => base64::engine::general_purpose::STANDARD.decode(given).is_ok(),
        "ipv4" => given.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => given.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => given.parse::<ipnet::IpNet>().is_ok(),
        "uuid" => given.len() == 36 && given.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'),
        _ => true,
    }
}

fn number(schema: &Value, given: &Value, path: &Path, errors: &mut ErrorList) {
    let Some(n) = given.as_f64() else { return };
    if schema["format"] == "int32" && given.as_i64().is_some_and(|n| i32::try_from(n).is_err()) {
        let message =
            format!("Invalid value: \"\": Checked value must be of type integer with format int32 in {path}");
        errors.push(FieldError { reason: "FieldValueInvalid", path: Path::root(), message });
        return;
    }
    let strict = |field: &str| schema[field] == true;
    if let Some(most) = schema["maximum"].as_f64() {
        let (over, words) = if strict("exclusiveMaximum") {
            (n >= most, "should be less than")
        } else {
            (n > most, "should be less than or equal to")
        };
        if over {
            complain(path, given.clone(), &format!("{words} {}", schema["maximum"]), errors);
        }
    }
    if let Some(least) = schema["minimum"].as_f64() {
        let (under, words) = if strict("exclusiveMinimum") {
            (n <= least, "should be greater than")
        } else {
            (n < least, "should be greater than or equal to")
        };
        if under {
            complain(path, given.clone(), &format!("{words} {}", schema["minimum"]), errors);
        }
    }
    if let Some(step) = schema["multipleOf"].as_f64().filter(|s| *s > 0.0) {
        let times = n / step;
        if (times - times.round()).abs() > 1e-9 {
            complain(
                path,
                given.clone(),
                &format!("should be a multiple of {}", schema["multipleOf"]),
                errors,
            );
        }
    }
}

fn array(schema: &Value, list: &[Value], path: &Path, errors: &mut ErrorList) {
    let length = list.len() as u64;
    if let Some(most) = schema["maxItems"].as_u64().filter(|m| length > *m) {
        errors.push(FieldError::too_many(path, list.len(), usize::try_from(most).unwrap_or(usize::MAX)));
    }
    if let Some(least) = schema["minItems"].as_u64().filter(|m| length < *m) {
        complain(path, list.len(), &format!("should have at least {least} items"), errors);
    }
    if schema["items"].is_object() {
        for (i, item) in list.iter().enumerate() {
            value(&schema["items"], item, &path.index(i), errors);
        }
    }
}

fn object(schema: &Value, given: &Value, path: &Path, errors: &mut ErrorList) {
    let Some(map) = given.as_object() else { return };
    let length = map.len() as u64;
    if let Some(most) = schema["maxProperties"].as_u64().filter(|m| length > *m) {
        errors.push(FieldError::too_many(path, map.len(), usize::try_from(most).unwrap_or(usize::MAX)));
    }
    if let Some(least) = schema["minProperties"].as_u64().filter(|m| length < *m) {
        complain(path, map.len(), &format!("should have at least {least} properties"), errors);
    }
    if schema["x-kubernetes-embedded-resource"] == true {
        for field in ["apiVersion", "kind"] {
            if map.get(field).and_then(Value::as_str).is_none_or(str::is_empty) {
                errors.push(FieldError::required(&path.child(field), ""));
            }
        }
    }
    for (key, child) in map {
        if let Some(known) = schema["properties"].get(key) {
            value(known, child, &path.child(key), errors);
        } else if schema["additionalProperties"].is_object() {
            value(&schema["additionalProperties"], child, &path.child(key), errors);
        }
    }
    required(schema, given, path, errors);
}

fn required(schema: &Value, given: &Value, path: &Path, errors: &mut ErrorList) {
    for field in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if given.get(field).is_none() && !(path.as_str().is_empty() && field == "metadata") {
            errors.push(FieldError::required(&path.child(field), ""));
        }
    }
}

/// `allOf`, `anyOf`, `oneOf`, `not`: conditions beside the structure.
fn combined(schema: &Value, given: &Value, path: &Path, errors: &mut ErrorList) {
    let list = |field: &str| schema[field].as_array().cloned().unwrap_or_default();
    let wrong = |schema: &Value| {
        let mut found = ErrorList::new();
        value(schema, given, path, &mut found);
        found
    };
    let say = |detail: String| FieldError {
        reason: "FieldValueInvalid",
        path: Path::root(),
        message: format!("Invalid value: \"\": {detail}"),
    };
    let at = quote(path.as_str());
    if schema["x-kubernetes-int-or-string"] != true {
        let any = list("anyOf");
        if !any.is_empty() && any.iter().all(|s| !wrong(s).is_empty()) {
            errors.push(say(format!("{at} must validate at least one schema (anyOf)")));
            errors.extend(any.first().map(wrong).unwrap_or_default());
        }
    }
    let one = list("oneOf");
    if !one.is_empty() {
        let valid = one.iter().filter(|s| wrong(s).is_empty()).count();
        if valid == 0 {
            errors.push(say(format!("{at} must validate one and only one schema (oneOf). Found none valid")));
            errors.extend(one.first().map(wrong).unwrap_or_default());
        } else if valid > 1 {
            errors.push(say(format!(
                "{at} must validate one and only one schema (oneOf). Found {valid} valid alternatives"
            )));
        }
    }
    for part in list("allOf") {
        let found = wrong(&part);
        if !found.is_empty() {
            errors.push(say(format!("{at} must validate all the schemas (allOf)")));
            errors.extend(found);
        }
    }
    if schema["not"].is_object() && wrong(&schema["not"]).is_empty() {
        errors.push(say(format!("{at} must not validate the schema (not)")));
    }
}

/// Items of sets, and keys of maps, are unique.
fn lists(schema: &Value, given: &Value, path: &Path, errors: &mut ErrorList) {
    match given {
        Value::Array(items) => {
            let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let id = |item: &Value| -> Value {
                if keys.is_empty() {
                    return item.clone();
                }
                let pairs = keys.iter().filter_map(|k| Some(((*k).to_owned(), item.get(*k)?.clone())));
                Value::Object(pairs.collect())
            };
            let unique = matches!(schema["x-kubernetes-list-type"].as_str(), Some("set" | "map"));
            for (i, item) in items.iter().enumerate() {
                if unique && items[..i].iter().any(|earlier| id(earlier) == id(item)) {
                    errors.push(FieldError::duplicate(&path.index(i), id(item)));
                }
                lists(&schema["items"], item, &path.index(i), errors);
            }
        }
        Value::Object(map) => {
            for (key, child) in map {
                let known = schema["properties"].get(key).unwrap_or(&schema["additionalProperties"]);
                lists(known, child, &path.child(key), errors);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::schema::{Shape, Table};
    use serde_json::json;

    fn complaints(schema: Value, spec: Value) -> Vec<String> {
        let schema = json!({"type": "object", "properties": {"spec": schema}});
        let definition = Definition {
            schema,
            table: Table::default(),
            root: Shape::Any,
            columns: vec![],
            scale: Value::Null,
            warning: String::new(),
            kept: Default::default(),
        };
        let mut errors = ErrorList::new();
        validate(&definition, &json!({"spec": spec}), None, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn complaints_read_like_upstreams() {
        let schema = json!({"type": "object", "required": ["z"], "properties": {
            "a": {"type": "integer", "maximum": 100}, "s": {"type": "string", "maxLength": 2, "pattern": "^[a-z]*$"},
            "l": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}, "z": {"type": "boolean"}}});
        assert_eq!(
            complaints(schema.clone(), json!({"a": 101, "s": "B1c", "l": ["x", "x"]})),
            [
                "spec.a: Invalid value: 101: spec.a in body should be less than or equal to 100",
                "spec.s: Too long: may not be more than 2 bytes",
                "spec.s: Invalid value: \"B1c\": spec.s in body should match '^[a-z]*$'",
                "spec.z: Required value",
                "spec.l[1]: Duplicate value: \"x\"",
            ]
        );
        assert_eq!(
            complaints(schema, json!({"a": "x", "z": true})),
            ["spec.a: Invalid value: \"string\": spec.a in body must be of type integer: \"string\""]
        );
    }
}
