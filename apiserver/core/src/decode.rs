//! From bytes to a well-formed object: parse, find unknown and duplicate fields, check types, write it as upstream would.
//!
//! [`normalize`] is the round trip through a typed struct: unknown fields go, nulls and empty optional fields go, zero values
//! of fields that are always written come, quantities and times get their canonical form.

use crate::context::{FieldValidation, Target};
use crate::protobuf;
use keelson_api::schema::{self, Field, Shape, Table};
use keelson_api::{Quantity, Resource, Status};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value, json};
use std::cell::RefCell;
use std::fmt;

/// Deeper bodies are refused; the parser itself stops at 128.
const MAX_DEPTH: usize = 120;
/// At most this many strict errors are reported.
const MAX_STRICT_ERRORS: usize = 100;

/// What kind of object a target takes.
pub fn body_kind(target: &Target) -> (String, String, String) {
    let res = target.resource;
    match target.subresource.and_then(|s| res.subresource(s)) {
        Some(sub) if !sub.version.is_empty() => (sub.group.clone(), sub.version.clone(), sub.kind.clone()),
        Some(sub) => (res.group.clone(), res.version.clone(), sub.kind.clone()),
        None => (res.group.clone(), res.version.clone(), res.kind.clone()),
    }
}

/// The schema of a kind: built-in types are found by group, version and kind.
pub fn shape_of(group: &str, version: &str, kind: &str) -> Option<Shape> {
    let prefix = match group {
        "" => "io.k8s.api.core".to_string(),
        "apiextensions.k8s.io" => "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions".into(),
        "apiregistration.k8s.io" => "io.k8s.kube-aggregator.pkg.apis.apiregistration".into(),
        "flowcontrol.apiserver.k8s.io" => "io.k8s.api.flowcontrol".into(),
        "rbac.authorization.k8s.io" => "io.k8s.api.rbac".into(),
        g => format!("io.k8s.api.{}", g.split('.').next().unwrap_or(g)),
    };
    schema::builtin().id(&format!("{prefix}.{version}.{kind}")).map(Shape::Object)
}

/// The types of a resource's objects: the built-in table, or a custom resource's own.
pub fn types(resource: &Resource) -> Option<(&Table, Shape)> {
    match &resource.definition {
        Some(definition) => Some((&definition.table, definition.root.clone())),
        None => {
            let shape = shape_of(&resource.group, &resource.version, &resource.kind)?;
            Some((schema::builtin(), shape))
        }
    }
}

/// The types of what a target takes: a subresource may take something else than the resource.
pub fn types_for<'a>(target: &Target<'a>) -> Result<(&'a Table, Shape), Status> {
    let (group, version, kind) = body_kind(target);
    let own = group == target.resource.group && kind == target.resource.kind;
    let found = match (own, shape_of(&group, &version, &kind)) {
        (true, _) => types(target.resource),
        (false, shape) => shape.map(|shape| (schema::builtin(), shape)),
    };
    found.ok_or_else(|| Status::internal(format!("no schema for {kind} in {group}/{version}")))
}

/// Whether a body for this target is a custom resource.
pub fn custom<'a>(target: &Target<'a>) -> Option<&'a keelson_api::Definition> {
    let definition = target.resource.definition.as_deref()?;
    (body_kind(target).2 == target.resource.kind).then_some(definition)
}

/// Canonical form of what a target takes.
pub fn canonical(target: &Target, value: &mut Value) -> Result<(), String> {
    if let Some(definition) = custom(target) {
        return crate::custom::normalize(definition, value);
    }
    let (table, shape) = types_for(target).map_err(|status| status.message)?;
    normalize(table, &shape, value)
}

/// The schema of what a target takes.
pub fn shape_for(target: &Target) -> Result<Shape, Status> {
    let (group, version, kind) = body_kind(target);
    shape_of(&group, &version, &kind)
        .ok_or_else(|| Status::internal(format!("no schema for {kind} in {group}/{version}")))
}

/// Reads a request body (JSON or YAML) for a target. Warnings are texts for `Warning` headers.
pub fn decode(
    target: &Target,
    content_type: &str,
    body: &[u8],
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let (group, version, kind) = body_kind(target);
    let media_type = content_type.split(';').next().unwrap_or("").trim();
    if let Some(definition) = custom(target) {
        return crate::custom::decode(target, definition, media_type, body, validation);
    }
    let shape = shape_for(target)?;
    let table = schema::builtin();
    let (mut value, strict) = match media_type {
        "application/yaml" => parse_yaml(body, &kind, table, &shape)?,
        "application/json" | "" | "*/*" => parse_json(body, &kind, table, &shape)?,
        "application/vnd.kubernetes.protobuf" => {
            let value = protobuf::decode(table, &shape, body).map_err(Status::bad_request)?;
            (value, vec![])
        }
        _ => {
            let known = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
            return Err(Status::unsupported_media_type(&known));
        }
    };
    check_kind(&mut value, body, &group, &version, &kind)?;
    let cannot = |what: String| {
        Status::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {what}"))
    };
    if let Err(e) = normalize(table, &shape, &mut value) {
        return Err(cannot(e));
    }
    let warnings = match validation {
        FieldValidation::Ignore => vec![],
        FieldValidation::Warn => strict,
        FieldValidation::Strict if strict.is_empty() => vec![],
        FieldValidation::Strict => {
            return Err(cannot(format!("strict decoding error: {}", strict.join(", "))));
        }
    };
    Ok((value, warnings))
}

fn check_kind(value: &mut Value, body: &[u8], group: &str, version: &str, kind: &str) -> Result<(), Status> {
    let want = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
    for key in ["apiVersion", "kind"] {
        if !matches!(value[key], Value::Null | Value::String(_)) {
            let found = go_kind(&value[key]);
            return Err(unrecognized(
                kind,
                &format!("json: cannot unmarshal {found} into Go struct field .{key} of type string"),
                &beginning(body),
            ));
        }
    }
    let given_version = value["apiVersion"].as_str().filter(|s| !s.is_empty()).unwrap_or(&want).to_string();
    let given_kind = value["kind"].as_str().filter(|s| !s.is_empty()).unwrap_or(kind).to_string();
    if given_version != want || given_kind != kind {
        let short = given_version.rsplit('/').next().unwrap_or("");
        let scheme = "pkg/api/legacyscheme/scheme.go:30";
        return Err(Status::bad_request(format!(
            "{given_kind} in version \"{short}\" cannot be handled as a {kind}: no kind \"{given_kind}\" is registered for version \
             \"{given_version}\" in scheme \"{scheme}\""
        )));
    }
    value["apiVersion"] = want.into();
    value["kind"] = kind.into();
    Ok(())
}

/// How a body begins, as an error shows it.
fn beginning(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let head = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).into_owned();
    if body.len() > SHOWN { format!("{head} ...") } else { head }
}

fn unrecognized(kind: &str, problem: &str, shown: &str) -> Status {
    let shown = if shown.is_empty() { "<empty>".to_string() } else { shown.to_string() };
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {problem} ({shown})"
    ))
}

fn parse_json(body: &[u8], kind: &str, table: &Table, shape: &Shape) -> Result<(Value, Vec<String>), Status> {
    let strict = RefCell::new(vec![]);
    let seed = Seed { table, shape: Some(shape), path: String::new(), strict: &strict, depth: 0 };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = seed.deserialize(&mut deserializer).and_then(|v| deserializer.end().map(|()| v));
    let value = parsed.map_err(|e| {
        let problem = if e.is_eof() { "unexpected end of JSON input".to_string() } else { e.to_string() };
        let head = String::from_utf8_lossy(&body[..body.len().min(22)]).into_owned();
        let shown = if body.len() > 22 { format!("{head} ...") } else { head };
        unrecognized(kind, &problem, &shown)
    })?;
    if !value.is_object() {
        let found = go_kind(&value);
        let problem = format!(
            "json: cannot unmarshal {found} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; \
             Kind string \"json:\\\"kind,omitempty\\\"\" }}"
        );
        let shown: String = body.iter().take(64).map(|b| format!("{b:02x}")).collect();
        return Err(unrecognized(kind, &problem, &shown));
    }
    Ok((value, strict.into_inner()))
}

/// Parses JSON that no table describes; notes fields that are given twice.
pub(crate) fn parse_untyped(body: &[u8], kind: &str) -> Result<(Value, Vec<String>), Status> {
    parse_json(body, kind, schema::builtin(), &Shape::Any)
}

fn parse_yaml(body: &[u8], kind: &str, table: &Table, shape: &Shape) -> Result<(Value, Vec<String>), Status> {
    let text = std::str::from_utf8(body).map_err(|_| unrecognized(kind, "yaml: invalid UTF-8", ""))?;
    let value: Value = serde_saphyr::from_str(text)
        .map_err(|e| Status::bad_request(format!("error converting YAML to JSON: yaml: {e}")))?;
    if !value.is_object() {
        return Err(unrecognized(kind, "the body is no object", ""));
    }
    let mut strict = vec![];
    unknown_fields(table, shape, &value, "", &mut strict);
    Ok((value, strict))
}

/// Parses YAML or JSON without a schema (apply patches).
pub fn parse_loose(body: &[u8]) -> Result<Value, Status> {
    if let Ok(value) = serde_json::from_slice(body) {
        return Ok(value);
    }
    let text =
        std::str::from_utf8(body).map_err(|_| Status::bad_request("error decoding YAML: invalid UTF-8"))?;
    serde_saphyr::from_str(text).map_err(|e| Status::bad_request(format!("error decoding YAML: {e}")))
}

/// Names every field of `value` that its schema does not have: `unknown field "spec.foo"`.
pub fn unknown_fields(table: &Table, shape: &Shape, value: &Value, path: &str, out: &mut Vec<String>) {
    match (shape, value) {
        (Shape::Object(id), Value::Object(map)) => {
            for (key, child) in map {
                let child_path = join(path, key);
                match table.get(*id).field(key) {
                    Some(f) => unknown_fields(table, &f.shape, child, &child_path, out),
                    None if table.get(*id).alias.is_some() => {}
                    None if out.len() < MAX_STRICT_ERRORS => {
                        out.push(format!("unknown field \"{child_path}\""))
                    }
                    None => {}
                }
            }
        }
        (Shape::List(item), Value::Array(list)) => {
            for (i, child) in list.iter().enumerate() {
                unknown_fields(table, item, child, &format!("{path}[{i}]"), out);
            }
        }
        (Shape::Map(item), Value::Object(map)) => {
            for (key, child) in map {
                unknown_fields(table, item, child, &join(path, key), out);
            }
        }
        _ => {}
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}

/// Parses one value, noting unknown and duplicate fields in the order of the document.
struct Seed<'a> {
    table: &'a Table,
    shape: Option<&'a Shape>,
    path: String,
    strict: &'a RefCell<Vec<String>>,
    depth: usize,
}

impl Seed<'_> {
    fn note(&self, text: String) {
        let mut strict = self.strict.borrow_mut();
        if strict.len() < MAX_STRICT_ERRORS {
            strict.push(text);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        if self.depth > MAX_DEPTH {
            return Err(serde::de::Error::custom("exceeded max depth"));
        }
        let item = match self.shape {
            Some(Shape::List(item)) => Some(&**item),
            _ => None,
        };
        let mut out = vec![];
        loop {
            let path = format!("{}[{}]", self.path, out.len());
            let seed =
                Seed { table: self.table, shape: item, path, strict: self.strict, depth: self.depth + 1 };
            match seq.next_element_seed(seed)? {
                Some(v) => out.push(v),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        if self.depth > MAX_DEPTH {
            return Err(serde::de::Error::custom("exceeded max depth"));
        }
        let mut out = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let path = join(&self.path, &key);
            let duplicate = out.contains_key(&key);
            let (shape, known) = match self.shape {
                Some(Shape::Object(id)) if self.table.get(*id).alias.is_none() => {
                    let field: Option<&Field> = self.table.get(*id).field(&key);
                    (field.map(|f| &f.shape), field.is_some())
                }
                Some(Shape::Map(item)) => (Some(&**item), true),
                _ => (None, true),
            };
            if !known {
                self.note(format!("unknown field \"{path}\""));
            }
            let seed = Seed {
                table: self.table,
                shape,
                path: path.clone(),
                strict: self.strict,
                depth: self.depth + 1,
            };
            let value = access.next_value_seed(seed)?;
            if duplicate && known {
                self.note(format!("duplicate field \"{path}\""));
            }
            match (out.get_mut(&key), value) {
                // A field given twice fills the same struct or map twice.
                (Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
                (_, value) => drop(out.insert(key, value)),
            }
        }
        Ok(Value::Object(out))
    }
}

/// What Go calls a JSON value.
pub fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "bool",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
        Value::Null => "null",
    }
}

/// What Go calls a shape.
fn go_type(table: &Table, shape: &Shape) -> String {
    match shape {
        Shape::String => "string".into(),
        Shape::Bytes => "[]uint8".into(),
        Shape::Int32 => "int32".into(),
        Shape::Int64 => "int64".into(),
        Shape::Number => "float64".into(),
        Shape::Bool => "bool".into(),
        Shape::Any => "interface {}".into(),
        Shape::Time => "v1.Time".into(),
        Shape::MicroTime => "v1.MicroTime".into(),
        Shape::Quantity => "resource.Quantity".into(),
        Shape::IntOrString => "intstr.IntOrString".into(),
        Shape::FieldsV1 => "v1.FieldsV1".into(),
        Shape::Object(id) => table.get(*id).go_name(),
        Shape::List(item) => format!("[]{}", go_type(table, item)),
        Shape::Map(item) if **item == Shape::Quantity => "v1.ResourceList".into(),
        Shape::Map(item) => format!("map[string]{}", go_type(table, item)),
    }
}

/// Checks types and writes the object as upstream would. The error is upstream's sentence.
pub fn normalize(table: &Table, shape: &Shape, value: &mut Value) -> Result<(), String> {
    Normalizer { table }.value(shape, value, "", "")
}

struct Normalizer<'a> {
    table: &'a Table,
}

impl Normalizer<'_> {
    fn wrong(&self, shape: &Shape, value: &Value, owner: &str, path: &str) -> String {
        let (found, mut ty) = (go_kind(value), go_type(self.table, shape));
        if path.ends_with("uid") && matches!(owner, "ObjectMeta" | "OwnerReference" | "ObjectReference") {
            ty = "types.UID".into();
        }
        // A number is shown only when it is its value that does not fit.
        let shown = match value {
            Value::Number(n) if matches!(shape, Shape::Int32 | Shape::Int64) => format!("number {n}"),
            _ => found.to_string(),
        };
        format!("json: cannot unmarshal {shown} into Go struct field {owner}.{path} of type {ty}")
    }

    fn value(&self, shape: &Shape, value: &mut Value, owner: &str, path: &str) -> Result<(), String> {
        let wrong = |v: &Value| Err(self.wrong(shape, v, owner, path));
        match shape {
            Shape::Any => Ok(()),
            Shape::FieldsV1 => Ok(()),
            Shape::String => {
                if value.is_string() {
                    Ok(())
                } else {
                    wrong(value)
                }
            }
            Shape::Bool => {
                if value.is_boolean() {
                    Ok(())
                } else {
                    wrong(value)
                }
            }
            Shape::Number => {
                if value.is_number() {
                    Ok(())
                } else {
                    wrong(value)
                }
            }
            Shape::Int64 => {
                if value.as_i64().is_some() {
                    Ok(())
                } else {
                    wrong(value)
                }
            }
            Shape::Int32 => match value.as_i64() {
                Some(n) if i32::try_from(n).is_ok() => Ok(()),
                Some(n) => Err(format!(
                    "json: cannot unmarshal number {n} into Go struct field {owner}.{path} of type int32"
                )),
                None => wrong(value),
            },
            Shape::Bytes => self.bytes(shape, value, owner, path),
            Shape::Quantity => {
                if !matches!(value, Value::String(_) | Value::Number(_)) {
                    return Err("quantities must match the regular expression \
                                '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                        .into());
                }
                *value = Quantity::kept(value)?.into();
                Ok(())
            }
            Shape::IntOrString => match value {
                Value::String(_) => Ok(()),
                Value::Number(n) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
                v => Err(format!(
                    "json: cannot unmarshal {} into Go struct field {owner}.{path} of type int32",
                    go_kind(v)
                )),
            },
            Shape::Time => self.time(value, 0),
            Shape::MicroTime => self.time(value, 6),
            Shape::List(item) => {
                let Value::Array(list) = value else { return wrong(value) };
                for v in list {
                    if v.is_null() {
                        *v = zero(self.table, item);
                    }
                    self.value(item, v, owner, path)?;
                }
                Ok(())
            }
            Shape::Map(item) => {
                let Value::Object(map) = value else { return wrong(value) };
                for v in map.values_mut() {
                    if v.is_null() {
                        *v = zero(self.table, item);
                    }
                    self.value(item, v, owner, path)?;
                }
                Ok(())
            }
            Shape::Object(id) => self.object(*id, value, owner, path),
        }
    }

    fn bytes(&self, shape: &Shape, value: &Value, owner: &str, path: &str) -> Result<(), String> {
        use base64::Engine;
        let Some(text) = value.as_str() else { return Err(self.wrong(shape, value, owner, path)) };
        match base64::engine::general_purpose::STANDARD.decode(text) {
            Ok(_) => Ok(()),
            Err(base64::DecodeError::InvalidByte(at, _)) => {
                Err(format!("illegal base64 data at input byte {at}"))
            }
            Err(_) => Err(format!("illegal base64 data at input byte {}", text.len() / 4 * 4)),
        }
    }

    fn time(&self, value: &mut Value, digits: usize) -> Result<(), String> {
        let Some(text) = value.as_str() else {
            return Err(format!("json: cannot unmarshal {} into Go value of type string", go_kind(value)));
        };
        let parsed: jiff::Timestamp = text.parse().map_err(|_| {
            let layout =
                if digits == 0 { "2006-01-02T15:04:05Z07:00" } else { "2006-01-02T15:04:05.000000Z07:00" };
            format!("parsing time \"{text}\" as \"{layout}\": cannot parse \"{text}\" as \"2006\"")
        })?;
        *value = if digits == 0 { crate::meta::time(parsed) } else { crate::meta::micro_time(parsed) }.into();
        Ok(())
    }

    fn object(&self, id: usize, value: &mut Value, owner: &str, path: &str) -> Result<(), String> {
        let ty = self.table.get(id);
        if let Some(alias) = &ty.alias {
            return if *alias == Shape::Object(id) { Ok(()) } else { self.value(alias, value, owner, path) };
        }
        let Value::Object(map) = value else {
            return Err(self.wrong(&Shape::Object(id), value, owner, path));
        };
        let old = std::mem::take(map);
        for (key, v) in old {
            if !v.is_null() && ty.field(&key).is_some() {
                map.insert(key, v);
            }
        }
        for field in &ty.fields {
            let child_path = join(path, &field.name);
            if let Some(v) = map.get_mut(&field.name) {
                self.value(&field.shape, v, ty.short_name(), &child_path)?;
                if vanishes(field, v) {
                    map.remove(&field.name);
                } else if !field.pointer
                    && matches!(field.shape, Shape::List(_) | Shape::Map(_))
                    && crate::value::is_empty(v)
                {
                    // A list that is always written reads null when there is nothing in it.
                    *v = Value::Null;
                }
            } else if let Some(mut v) = always_written(self.table, field) {
                if v.is_object() {
                    self.value(&field.shape, &mut v, ty.short_name(), &child_path)?;
                    if vanishes(field, &v) {
                        continue;
                    }
                }
                map.insert(field.name.clone(), v);
            }
        }
        Ok(())
    }
}

/// Whether a field with this value is left out.
fn vanishes(field: &Field, value: &Value) -> bool {
    if field.pointer || !(field.omit_empty || field.omit_zero) {
        return false;
    }
    match &field.shape {
        Shape::Object(_) => field.omit_zero && value.as_object().is_some_and(Map::is_empty),
        Shape::String | Shape::Bytes => value == "",
        Shape::Int32 | Shape::Int64 | Shape::Number => value.as_f64() == Some(0.0),
        Shape::Bool => value == false,
        Shape::List(_) | Shape::Map(_) => crate::value::is_empty(value),
        _ => false,
    }
}

/// What is written for a field that is not given, if anything is.
fn always_written(table: &Table, field: &Field) -> Option<Value> {
    if field.pointer {
        return (!field.omit_empty).then_some(Value::Null);
    }
    if field.omit_zero {
        return None;
    }
    match &field.shape {
        Shape::Object(id) if table.get(*id).alias.is_some() => None,
        Shape::Object(_) => Some(json!({})),
        Shape::Quantity => Some("0".into()),
        Shape::Time | Shape::MicroTime => Some(Value::Null),
        Shape::IntOrString => Some(0.into()),
        shape if !field.omit_empty => Some(zero(table, shape)),
        _ => None,
    }
}

fn zero(table: &Table, shape: &Shape) -> Value {
    match shape {
        Shape::String | Shape::Bytes => "".into(),
        Shape::Int32 | Shape::Int64 | Shape::Number | Shape::IntOrString => 0.into(),
        Shape::Bool => false.into(),
        Shape::Quantity => "0".into(),
        Shape::Object(id) if table.get(*id).alias.is_none() => json!({}),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::resource::find_preferred;

    fn decode_for(plural: &str, sub: Option<&str>, body: &str) -> Result<(Value, Vec<String>), Status> {
        let target =
            Target { subresource: sub, ..Target::object(find_preferred("", plural).unwrap(), "ns", "x") };
        decode(&target, "application/json", body.as_bytes(), FieldValidation::Warn)
    }

    #[test]
    fn subresources_take_bodies_of_their_own_kind() {
        for (plural, sub, body, kind) in [
            ("pods", "eviction", r#"{"metadata":{"name":"x"}}"#, "Eviction"),
            ("pods", "binding", r#"{"target":{"name":"n"}}"#, "Binding"),
            ("serviceaccounts", "token", r#"{"spec":{"audiences":["a"]}}"#, "TokenRequest"),
        ] {
            assert_eq!(decode_for(plural, Some(sub), body).unwrap().0["kind"], kind);
        }
    }

    #[test]
    fn unknown_and_duplicate_fields_are_named_in_order() {
        let body = r#"{"spec":{"b":1,"containers":[{"name":"c","name":"d","zz":2}],"a":1}}"#;
        let (value, warnings) = decode_for("pods", None, body).unwrap();
        let want = [
            "unknown field \"spec.b\"",
            "duplicate field \"spec.containers[0].name\"",
            "unknown field \"spec.containers[0].zz\"",
            "unknown field \"spec.a\"",
        ];
        assert_eq!(warnings, want);
        assert_eq!(value["spec"]["containers"][0], json!({"name": "d", "resources": {}}));
    }

    #[test]
    fn wrong_types_read_like_upstream() {
        let error = decode_for("pods", None, r#"{"spec":{"containers":7}}"#).unwrap_err();
        let want = "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field \
                    PodSpec.spec.containers of type []v1.Container";
        assert_eq!(error.message, want);
        assert!(
            decode_for("pods", None, "{\"a\":").unwrap_err().message.contains("unexpected end of JSON input")
        );
        assert!(decode_for("pods", None, &"[".repeat(100_000)).is_err());
    }
}
