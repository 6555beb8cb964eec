//! Conversions between types, sizes, and types themselves.

use super::{Called, no_overload, time};
use crate::value::Value;

/// Runs a conversion; none when it is none.
pub fn call(function: &str, args: &[Value]) -> Option<Called> {
    let [arg] = args else { return None };
    Some(match function {
        "size" => size(arg),
        "type" => Ok(Value::Type(arg.type_name())),
        "dyn" => Ok(arg.clone()),
        "int" => int(arg),
        "uint" => uint(arg),
        "double" => double(arg),
        "bool" => bool(arg),
        "bytes" => bytes(arg),
        "string" => string(arg),
        "duration" => match arg {
            Value::Duration(_) => Ok(arg.clone()),
            Value::String(text) => match time::duration(text) {
                Some(nanos) => Ok(Value::Duration(nanos)),
                None => cannot(arg, "google.protobuf.Duration"),
            },
            Value::Int(n) => Ok(Value::Duration(*n)),
            _ => no_overload(),
        },
        "timestamp" => match arg {
            Value::Timestamp(_) => Ok(arg.clone()),
            Value::String(text) => match time::timestamp(text) {
                Some(at) => Ok(Value::Timestamp(at)),
                None => cannot(arg, "google.protobuf.Timestamp"),
            },
            Value::Int(n) => match jiff::Timestamp::from_second(*n) {
                Ok(at) => Ok(Value::Timestamp(at)),
                Err(_) => Err("timestamp overflow".into()),
            },
            _ => no_overload(),
        },
        _ => return None,
    })
}

fn cannot(from: &Value, to: &str) -> Called {
    Err(format!("type conversion error from '{}' to '{to}'", from.type_name()))
}

pub fn size(value: &Value) -> Called {
    match value {
        Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_) => {
            Ok(Value::Int(value.size() as i64))
        }
        _ => no_overload(),
    }
}

fn int(value: &Value) -> Called {
    match value {
        Value::Int(_) => Ok(value.clone()),
        Value::Uint(n) => i64::try_from(*n).map(Value::Int).map_err(|_| "integer overflow".into()),
        Value::Double(n)
            if n.is_finite() && *n > -9.223_372_036_854_775e18 && *n < 9.223_372_036_854_775e18 =>
        {
            Ok(Value::Int(*n as i64))
        }
        Value::Double(_) => Err("integer overflow".into()),
        Value::String(text) => text.parse().map(Value::Int).or_else(|_| cannot(value, "int")),
        Value::Timestamp(at) => Ok(Value::Int(at.as_second())),
        Value::Duration(nanos) => Ok(Value::Int(*nanos)),
        _ => no_overload(),
    }
}

fn uint(value: &Value) -> Called {
    match value {
        Value::Uint(_) => Ok(value.clone()),
        Value::Int(n) => u64::try_from(*n).map(Value::Uint).map_err(|_| "unsigned integer overflow".into()),
        Value::Double(n) if n.is_finite() && *n >= 0.0 && *n < 1.8e19 => Ok(Value::Uint(*n as u64)),
        Value::Double(_) => Err("unsigned integer overflow".into()),
        Value::String(text) => text.parse().map(Value::Uint).or_else(|_| cannot(value, "uint")),
        _ => no_overload(),
    }
}

fn double(value: &Value) -> Called {
    match value {
        Value::Double(_) => Ok(value.clone()),
        Value::Int(n) => Ok(Value::Double(*n as f64)),
        Value::Uint(n) => Ok(Value::Double(*n as f64)),
        Value::String(text) => text.parse().map(Value::Double).or_else(|_| cannot(value, "double")),
        _ => no_overload(),
    }
}

fn bool(value: &Value) -> Called {
    match value {
        Value::Bool(_) => Ok(value.clone()),
        Value::String(text) => match text.as_ref() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => cannot(value, "bool"),
        },
        _ => no_overload(),
    }
}

fn bytes(value: &Value) -> Called {
    match value {
        Value::Bytes(_) => Ok(value.clone()),
        Value::String(text) => Ok(Value::Bytes(text.as_bytes().into())),
        _ => no_overload(),
    }
}

fn string(value: &Value) -> Called {
    if let Value::Bytes(bytes) = value {
        return match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Value::string(text)),
            Err(_) => Err("invalid UTF-8 in bytes, cannot convert to string".into()),
        };
    }
    text(value).map_or_else(no_overload, |text| Ok(Value::string(text)))
}

/// A scalar as text.
pub fn text(value: &Value) -> Option<String> {
    Some(match value {
        Value::String(text) => text.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Uint(n) => n.to_string(),
        Value::Double(n) => float(*n),
        Value::Timestamp(at) => time::timestamp_text(*at),
        Value::Duration(nanos) => time::duration_text(*nanos),
        Value::Ip(ip) => ip.to_string(),
        Value::Cidr(cidr) => cidr.to_string(),
        Value::Quantity(quantity) => quantity.to_string(),
        Value::Type(name) => name.to_string(),
        _ => return None,
    })
}

/// The shortest form that reads back the same, with an exponent when it is very large or small.
pub fn float(n: f64) -> String {
    if n.is_nan() {
        return "NaN".into();
    }
    if n.is_infinite() {
        return if n > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let scientific = format!("{n:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if n != 0.0 && !(-4..21).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    format!("{n}")
}
