//! Values while an expression runs.

use crate::authorizer::Authorizer;
use crate::library::url::Url;
use ipnet::IpNet;
use jiff::Timestamp;
use keelson_api::quantity::Quantity;
use serde_json::Value as Json;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A value. Cloning is cheap.
#[derive(Debug, Clone)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    /// Nanoseconds.
    Duration(i64),
    Timestamp(Timestamp),
    List(Arc<List>),
    Map(Arc<Map>),
    Optional(Option<Arc<Value>>),
    /// A type, by its name at run time.
    Type(Arc<str>),
    Url(Arc<Url>),
    Quantity(Arc<Quantity>),
    Ip(IpAddr),
    Cidr(IpNet),
    Semver(Arc<semver::Version>),
    Format(&'static crate::library::format::Format),
    Authorizer(Arc<Authorizer>),
}

/// How the elements of a list are told apart when lists are compared and joined.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ListKind {
    #[default]
    Atomic,
    Set,
    /// By these fields.
    Map(Vec<String>),
}

#[derive(Debug, Clone, Default)]
pub struct List {
    pub items: Vec<Value>,
    pub kind: ListKind,
}

/// A map, or an object with fields: sorted, so that iteration has one order.
#[derive(Debug, Clone, Default)]
pub struct Map {
    pub entries: BTreeMap<Key, Value>,
    /// The type's name when it is an object.
    pub of: Option<Arc<str>>,
}

/// A key of a map. Whole numbers of different types are one key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Arc<str>),
}

impl Key {
    pub fn text(text: &str) -> Key {
        Key::String(text.into())
    }
    /// The key a value is, if it can be one.
    pub fn of(value: &Value) -> Option<Key> {
        Some(match value {
            Value::Bool(b) => Key::Bool(*b),
            Value::Int(n) => Key::Int(*n),
            Value::Uint(n) => i64::try_from(*n).map_or(Key::Uint(*n), Key::Int),
            Value::Double(n) if n.fract() == 0.0 && n.abs() < 9e15 => Key::Int(*n as i64),
            Value::String(s) => Key::String(s.clone()),
            _ => return None,
        })
    }
    pub fn value(&self) -> Value {
        match self {
            Key::Bool(b) => Value::Bool(*b),
            Key::Int(n) => Value::Int(*n),
            Key::Uint(n) => Value::Uint(*n),
            Key::String(s) => Value::String(s.clone()),
        }
    }
}

impl Map {
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.entries.get(&Key::text(field))
    }
}

impl From<Vec<Value>> for Value {
    fn from(items: Vec<Value>) -> Value {
        Value::List(Arc::new(List { items, kind: ListKind::Atomic }))
    }
}

impl Value {
    pub fn string(text: impl Into<String>) -> Value {
        Value::String(text.into().into())
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    pub fn is_true(&self) -> bool {
        matches!(self, Value::Bool(true))
    }

    /// A value whose type nobody described: whole numbers are `int`, others `double`.
    pub fn from_json(json: &Json) -> Value {
        match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Value::Int(n),
                (None, Some(n)) => Value::Uint(n),
                (None, None) => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(s) => Value::string(s.as_str()),
            Json::Array(items) => items.iter().map(Value::from_json).collect::<Vec<_>>().into(),
            Json::Object(map) => {
                let entries = map.iter().map(|(k, v)| (Key::text(k), Value::from_json(v))).collect();
                Value::Map(Arc::new(Map { entries, of: None }))
            }
        }
    }

    /// The other way; what JSON has no form for is its text.
    ///
    /// # Errors
    /// The name of the type of a value that cannot be data.
    pub fn to_json(&self) -> Result<Json, String> {
        Ok(match self {
            Value::Null => Json::Null,
            Value::Bool(b) => (*b).into(),
            Value::Int(n) => (*n).into(),
            Value::Uint(n) => (*n).into(),
            Value::Double(n) => serde_json::Number::from_f64(*n).map_or(Json::Null, Json::Number),
            Value::String(s) => s.as_ref().into(),
            Value::Bytes(bytes) => {
                use base64::Engine as _;
                base64::engine::general_purpose::STANDARD.encode(bytes).into()
            }
            Value::Duration(_) | Value::Timestamp(_) => {
                crate::library::convert::text(self).unwrap_or_default().into()
            }
            Value::List(list) => list.items.iter().map(Value::to_json).collect::<Result<Vec<_>, _>>()?.into(),
            Value::Map(map) => {
                let pairs = map.entries.iter().map(|(key, value)| {
                    let name = crate::library::convert::text(&key.value()).unwrap_or_default();
                    Ok((name, value.to_json()?))
                });
                Json::Object(pairs.collect::<Result<_, String>>()?)
            }
            other => return Err(other.type_name().to_string()),
        })
    }

    /// The name of its type at run time.
    pub fn type_name(&self) -> Arc<str> {
        match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::List(_) => "list",
            Value::Map(map) => return map.of.clone().unwrap_or_else(|| "map".into()),
            Value::Optional(_) => "optional_type",
            Value::Type(_) => "type",
            Value::Url(_) => "kubernetes.URL",
            Value::Quantity(_) => "kubernetes.Quantity",
            Value::Ip(_) => "net.IP",
            Value::Cidr(_) => "net.CIDR",
            Value::Semver(_) => "kubernetes.Semver",
            Value::Format(_) => "kubernetes.NamedFormat",
            Value::Authorizer(a) => a.type_name(),
        }
        .into()
    }

    /// What `size()` would say; 1 for what has no size.
    pub fn size(&self) -> u64 {
        (match self {
            Value::String(s) => s.chars().count(),
            Value::Bytes(bytes) => bytes.len(),
            Value::List(list) => list.items.len(),
            Value::Map(map) => map.entries.len(),
            Value::Ip(IpAddr::V4(_)) | Value::Cidr(IpNet::V4(_)) => 4,
            Value::Ip(IpAddr::V6(_)) | Value::Cidr(IpNet::V6(_)) => 16,
            _ => 1,
        }) as u64
    }
}

/// Numbers compare as numbers, whatever their types.
fn numbers(a: &Value, b: &Value) -> Option<Option<Ordering>> {
    let wide = |v: &Value| match v {
        Value::Int(n) => Some(i128::from(*n)),
        Value::Uint(n) => Some(i128::from(*n)),
        _ => None,
    };
    match (wide(a), wide(b), a, b) {
        (Some(a), Some(b), ..) => Some(Some(a.cmp(&b))),
        (_, _, Value::Double(a), Value::Double(b)) => Some(a.partial_cmp(b)),
        (Some(a), None, _, Value::Double(b)) => Some(whole_and_double(a, *b)),
        (None, Some(b), Value::Double(a), _) => Some(whole_and_double(b, *a).map(Ordering::reverse)),
        _ => None,
    }
}

fn whole_and_double(a: i128, b: f64) -> Option<Ordering> {
    if b.is_nan() {
        return None;
    }
    if b >= 1.8e19 {
        return Some(Ordering::Less);
    }
    if b <= -9.3e18 {
        return Some(Ordering::Greater);
    }
    let floor = b.floor();
    Some(a.cmp(&(floor as i128)).then(if b > floor { Ordering::Less } else { Ordering::Equal }))
}

impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        if let Some(order) = numbers(self, other) {
            return order == Some(Ordering::Equal);
        }
        match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::String(a), Value::String(b)) | (Value::Type(a), Value::Type(b)) => a == b,
            (Value::Bytes(a), Value::Bytes(b)) => a == b,
            (Value::Duration(a), Value::Duration(b)) => a == b,
            (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
            (Value::List(a), Value::List(b)) => lists_equal(a, b),
            (Value::Map(a), Value::Map(b)) => {
                a.entries.len() == b.entries.len()
                    && a.entries.iter().all(|(key, value)| b.entries.get(key).is_some_and(|v| v == value))
            }
            (Value::Optional(a), Value::Optional(b)) => a == b,
            (Value::Url(a), Value::Url(b)) => a == b,
            (Value::Quantity(a), Value::Quantity(b)) => a.cmp(b) == Ordering::Equal,
            (Value::Ip(a), Value::Ip(b)) => a == b,
            (Value::Cidr(a), Value::Cidr(b)) => a == b,
            (Value::Semver(a), Value::Semver(b)) => a.cmp_precedence(b) == Ordering::Equal,
            (Value::Format(a), Value::Format(b)) => std::ptr::eq(*a, *b),
            _ => false,
        }
    }
}

/// Sets and maps of lists are equal in any order.
fn lists_equal(a: &List, b: &List) -> bool {
    if a.items.len() != b.items.len() {
        return false;
    }
    if a.kind == ListKind::Atomic || b.kind == ListKind::Atomic {
        return a.items == b.items;
    }
    a.items.iter().all(|item| b.items.contains(item))
}

impl Value {
    /// The order of two values, when their types have one. The inner `None`: not a number is in no order.
    pub fn order(&self, other: &Value) -> Option<Option<Ordering>> {
        if let Some(order) = numbers(self, other) {
            return Some(order);
        }
        Some(Some(match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::String(a), Value::String(b)) => a.cmp(b),
            (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
            (Value::Duration(a), Value::Duration(b)) => a.cmp(b),
            (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
            _ => return None,
        }))
    }
}

/// The element of a list that is a map which has the same keys.
fn same_keys(keys: &[String], a: &Value, b: &Value) -> bool {
    let (Value::Map(a), Value::Map(b)) = (a, b) else { return false };
    keys.iter().all(|key| a.get(key) == b.get(key))
}

impl List {
    /// One list after the other; sets take in what they lack, maps replace what has the same keys.
    pub fn joined(&self, other: &List) -> List {
        let mut items = self.items.clone();
        for item in &other.items {
            let found = match &self.kind {
                ListKind::Atomic => None,
                ListKind::Set => items.iter().position(|known| known == item),
                ListKind::Map(keys) => items.iter().position(|known| same_keys(keys, known, item)),
            };
            match found {
                Some(i) => items[i] = item.clone(),
                None => items.push(item.clone()),
            }
        }
        List { items, kind: self.kind.clone() }
    }
}
