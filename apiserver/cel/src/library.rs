//! The functions: what each call does, and what it costs.

use crate::value::{Key, Map, Value};
use std::sync::Arc;

pub mod arithmetic;
pub mod authorization;
pub mod convert;
pub mod format;
pub mod lists;
pub mod net;
pub mod optional;
pub mod quantity;
pub mod regexes;
pub mod semver;
pub mod strings;
pub mod time;
pub mod url;

/// A result, or upstream's words for why there is none.
pub type Called = Result<Value, String>;

/// No form of a function takes these arguments.
pub fn no_overload() -> Called {
    Err("no such overload".into())
}

/// Calls a function. The receiver of a member comes first; `id` is the overload the checker found (the first of several).
pub fn call(function: &str, member: bool, id: &str, args: &[Value]) -> Called {
    if let Some(done) = arithmetic::call(function, args) {
        return done;
    }
    if !member {
        if let Some(done) = convert::call(function, args) {
            return done;
        }
        if let Some((namespace, name)) = function.split_once('.') {
            return match namespace {
                "optional" => optional::make(name, args),
                "sets" => lists::sets(name, args),
                "strings" => strings::quote(args),
                "ip" => net::is_canonical(args),
                "format" => format::make(name, args),
                "cel" => map_insert(args),
                "jsonpatch" => strings::escape_key(args),
                _ => no_overload(),
            };
        }
        return match function {
            "url" | "isURL" => url::make(function, args),
            "quantity" | "isQuantity" => quantity::make(function, args),
            "ip" | "isIP" | "cidr" | "isCIDR" => net::make(function, args),
            "semver" | "isSemver" => semver::make(function, args),
            "matches" => regexes::call(function, args),
            _ => no_overload(),
        };
    }
    match &args[0] {
        _ if function == "size" => convert::size(&args[0]),
        Value::String(_) => match function {
            "matches" | "find" | "findAll" => regexes::call(function, args),
            _ => strings::call(function, args),
        },
        Value::List(list) => lists::call(function, id, list, &args[1..]),
        Value::Timestamp(at) => time::timestamp_part(function, *at, &args[1..]),
        Value::Duration(nanos) => time::duration_part(function, *nanos),
        Value::Optional(inner) => optional::call(function, inner.as_ref(), &args[1..]),
        Value::Url(found) => url::call(function, found),
        Value::Quantity(found) => quantity::call(function, found, &args[1..]),
        Value::Ip(found) => net::ip(function, *found),
        Value::Cidr(found) => net::cidr(function, *found, &args[1..]),
        Value::Semver(found) => semver::call(function, found, &args[1..]),
        Value::Format(found) => format::call(function, found, &args[1..]),
        Value::Authorizer(found) => authorization::call(function, found, &args[1..]),
        _ => no_overload(),
    }
}

/// `a[i]`.
pub fn index(operand: &Value, index: &Value) -> Called {
    match operand {
        Value::List(list) => {
            let at = match index {
                Value::Int(n) => *n,
                Value::Uint(n) => i64::try_from(*n).unwrap_or(i64::MAX),
                Value::Double(n) if n.fract() == 0.0 => *n as i64,
                _ => return Err(format!("unsupported index type '{}' in list", index.type_name())),
            };
            let found = usize::try_from(at).ok().and_then(|i| list.items.get(i));
            found.cloned().ok_or_else(|| format!("index out of bounds: {at}"))
        }
        Value::Map(map) => {
            let Some(key) = Key::of(index) else { return no_overload() };
            let shown = || convert::text(index).unwrap_or_default();
            map.entries.get(&key).cloned().ok_or_else(|| format!("no such key: {}", shown()))
        }
        Value::Optional(None) => Ok(Value::Optional(None)),
        Value::Optional(Some(inner)) => optional_index(inner, index),
        _ => no_overload(),
    }
}

/// `a[?i]` and `a.?f`.
pub fn optional_index(operand: &Value, index: &Value) -> Called {
    let inner = match operand {
        Value::Optional(None) => return Ok(Value::Optional(None)),
        Value::Optional(Some(inner)) => inner,
        other => other,
    };
    Ok(Value::Optional(match inner {
        Value::Map(map) => Key::of(index).and_then(|key| map.entries.get(&key).cloned()).map(Arc::new),
        Value::List(list) => {
            let Value::Int(at) = index else { return no_overload() };
            usize::try_from(*at).ok().and_then(|i| list.items.get(i)).cloned().map(Arc::new)
        }
        _ => return no_overload(),
    }))
}

fn map_insert(args: &[Value]) -> Called {
    let Some(Value::Map(map)) = args.first() else { return no_overload() };
    let mut entries = map.entries.clone();
    let new: Vec<(Key, Value)> = match args {
        [_, Value::Map(more)] => more.entries.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        [_, key, value] => {
            let Some(key) = Key::of(key) else { return no_overload() };
            vec![(key, value.clone())]
        }
        _ => return no_overload(),
    };
    for (key, value) in new {
        let shown = convert::text(&key.value()).unwrap_or_default();
        if entries.insert(key, value).is_some() {
            return Err(format!("insert failed: key {shown} already exists"));
        }
    }
    Ok(Value::Map(Arc::new(Map { entries, of: None })))
}

fn tenth(size: u64) -> u64 {
    size.div_ceil(10)
}

fn size(args: &[Value], i: usize) -> u64 {
    args.get(i).map_or(1, Value::size)
}

/// Every part of a value gone over once.
fn traversal(value: &Value) -> u64 {
    match value {
        Value::String(s) => s.len() as u64 / 10,
        Value::Bytes(b) => b.len() as u64 / 10,
        Value::List(list) => list.items.iter().map(traversal).sum(),
        Value::Map(map) => map.entries.iter().map(|(k, v)| traversal(&k.value()) + traversal(v)).sum(),
        _ => 1,
    }
}

/// What a call costs, in upstream's units, but for what depends on its result.
pub fn price(function: &str, args: &[Value]) -> u64 {
    match function {
        "check" => crate::cost::AUTHORIZE,
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => args.first().map_or(0, traversal),
        "url" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "isIP" | "cidr" | "isCIDR"
        | "quantity" | "isQuantity" | "semver" | "isSemver" | "format" => tenth(size(args, 0)),
        "validate" => tenth(size(args, 1)),
        "ip" if matches!(args.first(), Some(Value::String(_))) => tenth(size(args, 0)),
        "replace" | "split" | "ip.isCanonical" => tenth(size(args, 0) * 2),
        // Paid by its result.
        "join" => 0,
        "find" | "findAll" | "matches" => tenth(1 + size(args, 0)).saturating_mul(size(args, 1).div_ceil(4)),
        "contains" => tenth(size(args, 0)).saturating_mul(tenth(size(args, 1))),
        "startsWith" | "endsWith" => tenth(size(args, 0)),
        "containsIP" | "containsCIDR" => {
            let own = size(args, 0);
            let text = if matches!(args.get(1), Some(Value::String(_))) { tenth(size(args, 1)) } else { 0 };
            let more = if function == "containsCIDR" { tenth(own) + 1 } else { 0 };
            tenth(own * 2) + text + more
        }
        "@in" => match args.get(1) {
            Some(Value::List(list)) => list.items.len() as u64,
            _ => 1,
        },
        "_==_" | "_!=_" => tenth(size(args, 0).min(size(args, 1))),
        "_<_" | "_<=_" | "_>_" | "_>=_" => match args.first() {
            Some(Value::String(_) | Value::Bytes(_)) => tenth(size(args, 0).min(size(args, 1))),
            _ => 1,
        },
        "_+_" => match args.first() {
            Some(Value::String(_) | Value::Bytes(_)) => tenth(size(args, 0) + size(args, 1)),
            _ => 1,
        },
        "bytes" | "string" => match args.first() {
            Some(Value::String(_)) if function == "bytes" => tenth(size(args, 0)),
            Some(Value::Bytes(_)) => tenth(size(args, 0)),
            _ => 1,
        },
        "cel.@mapInsert" => 1,
        _ => 1,
    }
}

/// What a call costs for the size of its result.
pub fn price_of_result(function: &str, result: &Value) -> u64 {
    if function == "join" { tenth(result.size() * 2) } else { 0 }
}
