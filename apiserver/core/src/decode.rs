//! From bytes to a well-formed object: parse, find unknown and duplicate fields, check types, write it as upstream would.
//!
//! [`normalize`] is the round trip through a typed struct: unknown fields go, nulls and empty optional fields go, zero values
//! of fields that are always written come, quantities and times get their canonical form.

use crate::context::{FieldValidation, Target};
use crate::gotext;
use crate::protobuf;
use keelson_api::schema::{self, Field, Shape, Table};
use keelson_api::{Quantity, Resource, Status};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value, json};
use std::cell::{Cell, RefCell};
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

/// What a target takes as it is looked at: in canonical form but for what is empty. Says whether there is anything such.
pub fn readable(target: &Target, value: &mut Value) -> Result<bool, String> {
    if custom(target).is_some() {
        return canonical(target, value).map(|()| false);
    }
    let (table, shape) = types_for(target).map_err(|status| status.message)?;
    read(table, &shape, value)
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
    let media_type = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if let Some(definition) = custom(target) {
        return crate::custom::decode(target, definition, &media_type, body, validation);
    }
    let shape = shape_for(target)?;
    let table = schema::builtin();
    let (mut value, strict) = match media_type.as_str() {
        "application/yaml" => parse_yaml(body, &kind, table, &shape)?,
        "application/json" | "" | "*/*" => parse_json(body, &kind, table, &shape)?,
        "application/vnd.kubernetes.protobuf" => {
            let value = protobuf::decode(table, &shape, body).map_err(|e| unrecognized(&kind, &e, body))?;
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
    if let Err(e) = read(table, &shape, &mut value) {
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
            let problem =
                format!("json: cannot unmarshal {found} into Go struct field .{key} of type string");
            return Err(no_version(kind, &problem, body));
        }
    }
    let given_version = value["apiVersion"].as_str().filter(|s| !s.is_empty()).unwrap_or(&want).to_string();
    let given_kind = value["kind"].as_str().filter(|s| !s.is_empty()).unwrap_or(kind).to_string();
    // An older form of the same thing.
    let older = kind == "Eviction" && given_kind == kind && given_version == "policy/v1beta1";
    if (given_version != want || given_kind != kind) && !older {
        let short = given_version.rsplit('/').next().unwrap_or("");
        let why = not_it(group, kind, &given_version, &given_kind);
        return Err(Status::bad_request(format!(
            "{given_kind} in version \"{short}\" cannot be handled as a {kind}: {why}"
        )));
    }
    value["apiVersion"] = want.into();
    value["kind"] = kind.into();
    Ok(())
}

/// Kinds that every group and version has.
const COMMON: [&str; 9] = [
    "Status",
    "List",
    "APIVersions",
    "APIGroup",
    "APIGroupList",
    "APIResourceList",
    "DeleteOptions",
    "ListOptions",
    "WatchEvent",
];

/// Why a kind is not the one that is wanted: it is another, or none.
fn not_it(group: &str, kind: &str, given_version: &str, given_kind: &str) -> String {
    let (given_group, version) = given_version.split_once('/').unwrap_or(("", given_version));
    let known = shape_of(given_group, version, given_kind).is_some()
        || (given_version == "v1" && COMMON.contains(&given_kind));
    if known {
        let inner = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
        return format!("converting ({version}.{given_kind}) to ({inner}.{kind}): unknown conversion");
    }
    let scheme = match group {
        "apiextensions.k8s.io" => "pkg/apiserver/apiserver.go:55",
        "apiregistration.k8s.io" => "pkg/apiserver/scheme/scheme.go:28",
        _ => "pkg/api/legacyscheme/scheme.go:30",
    };
    format!("no kind \"{given_kind}\" is registered for version \"{given_version}\" in scheme \"{scheme}\"")
}

/// A body whose kind cannot be found out.
pub(crate) fn unrecognized(kind: &str, problem: &str, body: &[u8]) -> Status {
    let shown = gotext::summary(body);
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {problem} ({shown})"
    ))
}

fn no_version(kind: &str, problem: &str, body: &[u8]) -> Status {
    unrecognized(kind, &format!("couldn't get version/kind; json parse error: {problem}"), body)
}

fn parse_json(body: &[u8], kind: &str, table: &Table, shape: &Shape) -> Result<(Value, Vec<String>), Status> {
    let strict = RefCell::new(vec![]);
    let seed = Seed { table, shape: Some(shape), path: String::new(), strict: &strict, depth: 0 };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = seed.deserialize(&mut deserializer).and_then(|v| deserializer.end().map(|()| v));
    let value = parsed.map_err(|e| no_version(kind, &gotext::syntax_error(body, &e), body))?;
    if !value.is_object() {
        let found = go_kind(&value);
        let problem = format!(
            "json: cannot unmarshal {found} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; \
             Kind string \"json:\\\"kind,omitempty\\\"\" }}"
        );
        return Err(no_version(kind, &problem, body));
    }
    Ok((value, strict.into_inner()))
}

/// Parses JSON that no table describes; notes fields that are given twice.
pub(crate) fn parse_untyped(body: &[u8], kind: &str) -> Result<(Value, Vec<String>), Status> {
    parse_json(body, kind, schema::builtin(), &Shape::Any)
}

fn parse_yaml(body: &[u8], kind: &str, table: &Table, shape: &Shape) -> Result<(Value, Vec<String>), Status> {
    let value: Value = std::str::from_utf8(body)
        .map_err(|_| "yaml: invalid leading UTF-8 octet".to_owned())
        .and_then(yaml)
        .map_err(|e| unrecognized(kind, &e, body))?;
    if !value.is_object() {
        return Err(unrecognized(kind, "the body is no object", body));
    }
    let mut strict = vec![];
    unknown_fields(table, shape, &value, "", &mut strict);
    Ok((value, strict))
}

/// The first document of a stream; of fields that are given twice the last counts.
fn yaml(text: &str) -> Result<Value, String> {
    let mut end = text.len();
    let (mut at, mut begun) = (0, false);
    for line in text.split_inclusive('\n') {
        if begun && (line.trim_end() == "---" || line.starts_with("--- ")) {
            end = at;
            break;
        }
        begun |= !line.trim().is_empty() && !line.starts_with(['#', '%']) && !line.starts_with("---");
        at += line.len();
    }
    let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
    serde_saphyr::from_str_with_options(&text[..end], options).map_err(|e| {
        let said = e.to_string();
        let line = said.split_once("line ").map_or("1", |(_, rest)| rest.split(' ').next().unwrap_or("1"));
        format!("yaml: line {line}: did not find expected node content")
    })
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
    Normalizer { table, keep_empty: false, kept: Cell::new(false) }.value(shape, value, Place::default())
}

/// [`normalize`], but what is empty stays where it was given: validation tells an empty list from none.
/// Says whether anything did.
pub fn read(table: &Table, shape: &Shape, value: &mut Value) -> Result<bool, String> {
    let normalizer = Normalizer { table, keep_empty: true, kept: Cell::new(false) };
    normalizer.value(shape, value, Place::default())?;
    Ok(normalizer.kept.get())
}

/// Where a value stands, as messages say it.
#[derive(Clone, Copy, Default)]
struct Place<'a> {
    /// The struct that has the field.
    owner: &'a str,
    path: &'a str,
    /// The value's type in Go when it has a name of its own.
    named: &'a str,
}

impl<'a> Place<'a> {
    /// An item of a list or map here.
    fn item(self) -> Place<'a> {
        let named = match self.named.strip_prefix("map[") {
            Some(rest) => rest.split_once(']').map_or("", |(_, item)| item),
            None => self.named.strip_prefix("[]").unwrap_or(""),
        };
        Place { named, ..self }
    }
}

struct Normalizer<'a> {
    table: &'a Table,
    /// Lists, maps and bytes that are empty stay.
    keep_empty: bool,
    /// Some did.
    kept: Cell<bool>,
}

impl Normalizer<'_> {
    fn wrong(&self, shape: &Shape, value: &Value, place: Place) -> String {
        let ty = match (shape, place.named) {
            (Shape::Time | Shape::MicroTime, _) => "string".into(),
            (Shape::IntOrString, _) => "int32".into(),
            (_, "") => go_type(self.table, shape),
            (_, named) => named.into(),
        };
        // A number is shown only when it is its value that does not fit.
        let shown = match value {
            Value::Number(n) if matches!(shape, Shape::Int32 | Shape::Int64) => format!("number {n}"),
            other => go_kind(other).to_string(),
        };
        format!(
            "json: cannot unmarshal {shown} into Go struct field {}.{} of type {ty}",
            place.owner, place.path
        )
    }

    fn value(&self, shape: &Shape, value: &mut Value, place: Place) -> Result<(), String> {
        let fits = match shape {
            Shape::Any | Shape::FieldsV1 => true,
            Shape::String => value.is_string(),
            Shape::Bool => value.is_boolean(),
            Shape::Number => value.is_number(),
            Shape::Int64 => value.as_i64().is_some(),
            Shape::Int32 => value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            Shape::IntOrString => {
                value.is_string() || value.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
            }
            Shape::List(_) => value.is_array(),
            Shape::Map(_) => value.is_object(),
            Shape::Time | Shape::MicroTime | Shape::Bytes => value.is_string(),
            Shape::Quantity | Shape::Object(_) => true,
        };
        if !fits {
            return Err(self.wrong(shape, value, place));
        }
        match (shape, value) {
            (Shape::Bytes, value) => self.bytes(value),
            (Shape::Quantity, value) => {
                if !matches!(value, Value::String(_) | Value::Number(_)) {
                    return Err("quantities must match the regular expression \
                                '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                        .into());
                }
                *value = Quantity::kept(value)?.into();
                Ok(())
            }
            (Shape::Time, value) => self.time(value, 0),
            (Shape::MicroTime, value) => self.time(value, 6),
            (Shape::List(item), Value::Array(list)) => {
                list.iter_mut().try_for_each(|v| self.item(item, v, place))
            }
            (Shape::Map(item), Value::Object(map)) => {
                map.values_mut().try_for_each(|v| self.item(item, v, place))
            }
            (Shape::Object(id), value) => self.object(*id, value, place),
            _ => Ok(()),
        }
    }

    fn item(&self, shape: &Shape, value: &mut Value, place: Place) -> Result<(), String> {
        if value.is_null() {
            *value = zero(self.table, shape);
        }
        self.value(shape, value, place.item())
    }

    fn bytes(&self, value: &Value) -> Result<(), String> {
        use base64::Engine;
        let text = value.as_str().unwrap_or("");
        match base64::engine::general_purpose::STANDARD.decode(text) {
            Ok(_) => Ok(()),
            Err(base64::DecodeError::InvalidByte(at, _)) => {
                Err(format!("illegal base64 data at input byte {at}"))
            }
            Err(_) => Err(format!("illegal base64 data at input byte {}", text.len() / 4 * 4)),
        }
    }

    fn time(&self, value: &mut Value, digits: usize) -> Result<(), String> {
        let text = value.as_str().unwrap_or("").to_owned();
        let parsed: jiff::Timestamp = text.parse().map_err(|_| {
            let layout =
                if digits == 0 { "2006-01-02T15:04:05Z07:00" } else { "2006-01-02T15:04:05.000000Z07:00" };
            format!("parsing time \"{text}\" as \"{layout}\": cannot parse \"{text}\" as \"2006\"")
        })?;
        if digits > 0 {
            exact_fraction(&text, digits)?;
        }
        *value = if digits == 0 { crate::meta::time(parsed) } else { crate::meta::micro_time(parsed) }.into();
        Ok(())
    }

    fn object(&self, id: usize, value: &mut Value, place: Place) -> Result<(), String> {
        let ty = self.table.get(id);
        if let Some(alias) = &ty.alias {
            if ty.short_name() == "JSONSchemaPropsOrBool" && !value.is_object() && !value.is_boolean() {
                return Err("boolean or JSON schema expected".into());
            }
            return if *alias == Shape::Object(id) { Ok(()) } else { self.value(alias, value, place) };
        }
        let Value::Object(map) = value else {
            return Err(self.wrong(&Shape::Object(id), value, place));
        };
        let old = std::mem::take(map);
        for (key, v) in old {
            if !v.is_null() && ty.field(&key).is_some() {
                map.insert(key, v);
            }
        }
        for field in &ty.fields {
            let way =
                if field.within.is_empty() { place.path.into() } else { join(place.path, &field.within) };
            let path = join(&way, &field.name);
            let here = Place { owner: ty.short_name(), path: &path, named: &field.go_type };
            if let Some(v) = map.get_mut(&field.name) {
                self.value(&field.shape, v, here)?;
                let collection = matches!(field.shape, Shape::List(_) | Shape::Map(_) | Shape::Bytes);
                if self.keep_empty && collection {
                    if crate::value::is_empty(v) {
                        self.kept.set(true);
                    }
                    continue;
                }
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
                if self.keep_empty && field.shape == Shape::Bytes {
                    // No bytes are something else than empty ones.
                    self.kept.set(true);
                    continue;
                }
                if v.is_object() {
                    self.value(&field.shape, &mut v, here)?;
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

/// A time with a fraction has exactly as many digits in it as it is written with.
fn exact_fraction(text: &str, digits: usize) -> Result<(), String> {
    const SECONDS_END: usize = "2006-01-02T15:04:05".len();
    let rest = text.get(SECONDS_END..).unwrap_or("");
    let given = rest.strip_prefix('.').map_or(0, |f| f.bytes().take_while(u8::is_ascii_digit).count());
    let (rest, want) = match given.cmp(&digits) {
        std::cmp::Ordering::Equal => return Ok(()),
        std::cmp::Ordering::Less => (rest, ".000000"),
        std::cmp::Ordering::Greater => (rest.get(1 + digits..).unwrap_or(""), "Z07:00"),
    };
    Err(format!(
        "parsing time \"{text}\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"{rest}\" as \"{want}\""
    ))
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
