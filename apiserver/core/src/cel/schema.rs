//! A structural schema as the language sees it: a type for the checker, sizes for the estimate, values for the run.
//!
//! What the schema does not describe is not there for expressions. Names that are no identifiers are escaped.

use base64::Engine as _;
use keelson_cel::{Key, List, ListKind, Map, Object, Range, Sizes, Type, Value as Cel};
use serde_json::{Map as JsonMap, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The largest request, bytes: nothing inside one can be larger.
const REQUEST: u64 = 3 * 1024 * 1024;
const KEYWORDS: [&str; 18] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
];

/// A part of a schema.
#[derive(Debug, Clone)]
pub struct Decl {
    pub of: Type,
    /// The most elements or characters.
    pub most: u64,
    /// The fewest bytes it takes when written.
    pub least_bytes: u64,
    form: Form,
}

#[derive(Debug, Clone)]
enum Form {
    Plain,
    Bytes,
    Duration,
    Timestamp,
    Date,
    Double,
    List(Arc<Decl>, ListKind),
    Map(Arc<Decl>),
    /// By the escaped name: the name in JSON and its declaration.
    Object(Arc<str>, BTreeMap<String, (String, Decl)>),
}

/// A property's name as an identifier; none when it cannot be one.
pub fn escape(name: &str) -> Option<String> {
    if KEYWORDS.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-/".contains(c);
    if name.is_empty() || !name.chars().all(fits) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let out = name.replace("__", "__underscores__");
    Some(out.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__"))
}

fn text<'a>(schema: &'a Value, field: &str) -> &'a str {
    schema[field].as_str().unwrap_or("")
}

/// The schema of a resource's root: name and kind are there whatever it says.
fn with_metadata(schema: &Value) -> Value {
    let mut out = schema.clone();
    let string = || serde_json::json!({"type": "string"});
    let metadata =
        serde_json::json!({"type": "object", "properties": {"name": string(), "generateName": string()}});
    if !out["properties"].is_object() {
        out["properties"] = Value::Object(JsonMap::new());
    }
    for (name, of) in [("kind", string()), ("apiVersion", string()), ("metadata", metadata)] {
        out["properties"][name] = of;
    }
    out
}

fn plain(of: Type, least_bytes: u64, most: u64) -> Decl {
    Decl { of, most, least_bytes, form: Form::Plain }
}

/// Declares a schema; none when expressions may not see it. `name` is what its types are called.
pub fn declare(schema: &Value, root: bool, name: &str) -> Option<Decl> {
    let length = |times: u64| schema["maxLength"].as_u64().map(|n| n.saturating_mul(times));
    if schema["x-kubernetes-int-or-string"] == true {
        return Some(plain(Type::Dyn, 1, length(4).unwrap_or(REQUEST - 2)));
    }
    let whole;
    let schema = if root {
        whole = with_metadata(schema);
        &whole
    } else {
        schema
    };
    let embedded = |child: &Value| child["x-kubernetes-embedded-resource"] == true;
    match text(schema, "type") {
        "array" => {
            let items = &schema["items"];
            let element = declare(items, embedded(items), &format!("{name}.@idx"))?;
            let kind = match text(schema, "x-kubernetes-list-type") {
                "set" => ListKind::Set,
                "map" => {
                    let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
                    ListKind::Map(keys.filter_map(Value::as_str).filter_map(escape).collect())
                }
                _ => ListKind::Atomic,
            };
            let most = schema["maxItems"].as_u64().unwrap_or((REQUEST - 2) / (element.least_bytes + 1));
            let of = Type::list(element.of.clone());
            Some(Decl { of, most, least_bytes: 2, form: Form::List(Arc::new(element), kind) })
        }
        "object" if schema["additionalProperties"].is_object() => {
            let extra = &schema["additionalProperties"];
            let value = declare(extra, embedded(extra), &format!("{name}.@elem"))?;
            let most = schema["maxProperties"].as_u64().unwrap_or((REQUEST - 2) / (value.least_bytes + 6));
            let of = Type::map(Type::String, value.of.clone());
            Some(Decl { of, most, least_bytes: 2, form: Form::Map(Arc::new(value)) })
        }
        "object" => Some(object(schema, name)),
        "string" => Some(string(schema, length)),
        "boolean" => Some(plain(Type::Bool, 4, 0)),
        "number" => Some(Decl { form: Form::Double, ..plain(Type::Double, 1, 0) }),
        "integer" => Some(plain(Type::Int, 1, 0)),
        _ => None,
    }
}

fn object(schema: &Value, name: &str) -> Decl {
    let mut fields = BTreeMap::new();
    let mut types = BTreeMap::new();
    let mut least_bytes = 2;
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (key, child) in schema["properties"].as_object().into_iter().flatten() {
        let embedded = child["x-kubernetes-embedded-resource"] == true;
        let Some(decl) = declare(child, embedded, &format!("{name}.{key}")) else { continue };
        if required.iter().any(|r| r == key) && child["default"].is_null() {
            least_bytes += key.len() as u64 + decl.least_bytes + 4;
        }
        if let Some(escaped) = escape(key) {
            types.insert(escaped.clone(), decl.of.clone());
            fields.insert(escaped, (key.clone(), decl));
        }
    }
    let of = Type::Object(Arc::new(Object { name: name.into(), fields: types, open: false }));
    Decl { of, most: 0, least_bytes, form: Form::Object(name.into(), fields) }
}

fn string(schema: &Value, length: impl Fn(u64) -> Option<u64>) -> Decl {
    let with = |of: Type, form: Form, least: u64, most: u64| Decl { of, most, least_bytes: least, form };
    match text(schema, "format") {
        "byte" => with(Type::Bytes, Form::Bytes, 2, length(1).unwrap_or(REQUEST - 2)),
        "duration" => with(Type::Duration, Form::Duration, 4, 32),
        "date" => with(Type::Timestamp, Form::Date, 12, 12),
        "date-time" => with(Type::Timestamp, Form::Timestamp, 22, 27),
        _ => {
            let listed = schema["enum"].as_array().filter(|e| !e.is_empty());
            let longest =
                listed.map(|e| e.iter().filter_map(Value::as_str).map(str::len).max().unwrap_or(0) as u64);
            plain(Type::String, 2, length(4).or(longest).unwrap_or(REQUEST - 2))
        }
    }
}

impl Decl {
    /// The declaration of a property, by its name in JSON.
    pub fn property(&self, name: &str) -> Option<&Decl> {
        match &self.form {
            Form::Object(_, fields) => fields.get(&escape(name)?).map(|(_, decl)| decl),
            _ => None,
        }
    }

    /// The declaration of elements or of a map's values.
    pub fn element(&self) -> Option<&Decl> {
        match &self.form {
            Form::List(of, _) | Form::Map(of) => Some(of),
            _ => None,
        }
    }

    fn step(&self, name: &str) -> Option<&Decl> {
        match (&self.form, name) {
            (Form::List(of, _), "@items") | (Form::Map(of), "@values") => Some(of),
            (Form::Object(_, fields), _) => fields.get(name).map(|(_, decl)| decl),
            _ => None,
        }
    }

    /// An object's value as the language sees it. What is not of its type becomes what its form says, so that rules
    /// fail and do not lie.
    pub fn value(&self, json: &Value) -> Cel {
        match (&self.form, json) {
            (_, Value::Null) => Cel::Null,
            (Form::Plain, _) => Cel::from_json(json),
            (Form::Double, Value::Number(n)) => Cel::Double(n.as_f64().unwrap_or(f64::NAN)),
            (Form::Bytes, Value::String(s)) => match base64::engine::general_purpose::STANDARD.decode(s) {
                Ok(bytes) => Cel::Bytes(bytes.into()),
                Err(_) => Cel::from_json(json),
            },
            (Form::Duration, Value::String(s)) => {
                keelson_cel::library::time::duration(s).map_or_else(|| Cel::from_json(json), Cel::Duration)
            }
            (Form::Timestamp, Value::String(s)) => {
                keelson_cel::library::time::timestamp(s).map_or_else(|| Cel::from_json(json), Cel::Timestamp)
            }
            (Form::Date, Value::String(s)) => {
                keelson_cel::library::time::timestamp(&format!("{s}T00:00:00Z"))
                    .map_or_else(|| Cel::from_json(json), Cel::Timestamp)
            }
            (Form::List(element, kind), Value::Array(items)) => {
                let items = items.iter().map(|item| element.value(item)).collect();
                Cel::List(Arc::new(List { items, kind: kind.clone() }))
            }
            (Form::Map(value), Value::Object(map)) => {
                let entries = map.iter().map(|(key, v)| (Key::text(key), value.value(v))).collect();
                Cel::Map(Arc::new(Map { entries, of: None }))
            }
            (Form::Object(name, fields), Value::Object(map)) => {
                let given = fields.iter().filter_map(|(escaped, (key, decl))| {
                    Some((Key::text(escaped), decl.value(map.get(key)?)))
                });
                Cel::Map(Arc::new(Map { entries: given.collect(), of: Some(name.clone()) }))
            }
            _ => Cel::from_json(json),
        }
    }
}

/// Sizes of what `self` and `oldSelf` lead to.
impl Sizes for Decl {
    fn size(&self, path: &[String]) -> Option<Range> {
        let mut at = self;
        for step in path.get(1..)? {
            if step == "@keys" {
                return matches!(at.form, Form::Map(_)).then_some(Range { min: 0, max: REQUEST - 2 });
            }
            at = at.step(step)?;
        }
        Some(Range { min: 0, max: at.most })
    }
}

/// How often a part of so few bytes fits into a request.
pub fn cardinality(least_bytes: u64) -> u64 {
    REQUEST / (least_bytes + 1)
}
