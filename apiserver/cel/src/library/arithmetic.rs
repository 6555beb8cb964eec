//! Operators.

use super::{Called, no_overload};
use crate::value::{Key, Value};
use std::cmp::Ordering;
use std::sync::Arc;

const OVERFLOW: &str = "integer overflow";
/// Elements of one list. Joining lists costs little, so that this bounds it.
const MOST: usize = 1 << 22;

/// Runs an operator; none when it is none.
pub fn call(function: &str, args: &[Value]) -> Option<Called> {
    Some(match (function, args) {
        ("_==_", [a, b]) => Ok(Value::Bool(a == b)),
        ("_!=_", [a, b]) => Ok(Value::Bool(a != b)),
        ("_<_", [a, b]) => ordered(a, b, |o| o == Ordering::Less),
        ("_<=_", [a, b]) => ordered(a, b, |o| o != Ordering::Greater),
        ("_>_", [a, b]) => ordered(a, b, |o| o == Ordering::Greater),
        ("_>=_", [a, b]) => ordered(a, b, |o| o != Ordering::Less),
        ("_+_", [a, b]) => add(a, b),
        ("_-_", [a, b]) => subtract(a, b),
        ("_*_", [a, b]) => multiply(a, b),
        ("_/_", [a, b]) => divide(a, b),
        ("_%_", [a, b]) => modulo(a, b),
        ("!_", [Value::Bool(b)]) => Ok(Value::Bool(!b)),
        ("-_", [Value::Int(n)]) => whole(n.checked_neg()),
        ("-_", [Value::Double(n)]) => Ok(Value::Double(-n)),
        ("!_" | "-_", _) => no_overload(),
        ("@in", [item, Value::List(list)]) => Ok(Value::Bool(list.items.contains(item))),
        ("@in", [key, Value::Map(map)]) => {
            Ok(Value::Bool(Key::of(key).is_some_and(|key| map.entries.contains_key(&key))))
        }
        ("@in", _) => no_overload(),
        _ => return None,
    })
}

fn ordered(a: &Value, b: &Value, fits: impl Fn(Ordering) -> bool) -> Called {
    match a.order(b) {
        Some(order) => Ok(Value::Bool(order.is_some_and(fits))),
        None => no_overload(),
    }
}

fn whole(n: Option<i64>) -> Called {
    n.map(Value::Int).ok_or_else(|| OVERFLOW.into())
}

fn natural(n: Option<u64>) -> Called {
    n.map(Value::Uint).ok_or_else(|| "unsigned integer overflow".into())
}

fn span(n: Option<i64>) -> Called {
    n.map(Value::Duration).ok_or_else(|| OVERFLOW.into())
}

/// A timestamp so many nanoseconds later.
fn later(at: jiff::Timestamp, nanos: i64) -> Called {
    let moved = at.checked_add(jiff::SignedDuration::from_nanos(nanos));
    moved.map(Value::Timestamp).map_err(|_| "timestamp overflow".into())
}

fn add(a: &Value, b: &Value) -> Called {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => whole(a.checked_add(*b)),
        (Value::Uint(a), Value::Uint(b)) => natural(a.checked_add(*b)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a + b)),
        (Value::String(a), Value::String(b)) => Ok(Value::string(format!("{a}{b}"))),
        (Value::Bytes(a), Value::Bytes(b)) => Ok(Value::Bytes([&a[..], &b[..]].concat().into())),
        (Value::List(a), Value::List(b)) if a.items.len() + b.items.len() > MOST => {
            Err("list is too large".into())
        }
        (Value::List(a), Value::List(b)) => Ok(Value::List(Arc::new(a.joined(b)))),
        (Value::Duration(a), Value::Duration(b)) => span(a.checked_add(*b)),
        (Value::Timestamp(at), Value::Duration(by)) | (Value::Duration(by), Value::Timestamp(at)) => {
            later(*at, *by)
        }
        _ => no_overload(),
    }
}

fn subtract(a: &Value, b: &Value) -> Called {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => whole(a.checked_sub(*b)),
        (Value::Uint(a), Value::Uint(b)) => natural(a.checked_sub(*b)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a - b)),
        (Value::Duration(a), Value::Duration(b)) => span(a.checked_sub(*b)),
        (Value::Timestamp(at), Value::Duration(by)) => match by.checked_neg() {
            Some(by) => later(*at, by),
            None => Err(OVERFLOW.into()),
        },
        (Value::Timestamp(a), Value::Timestamp(b)) => {
            span(i64::try_from(a.as_nanosecond() - b.as_nanosecond()).ok())
        }
        _ => no_overload(),
    }
}

fn multiply(a: &Value, b: &Value) -> Called {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => whole(a.checked_mul(*b)),
        (Value::Uint(a), Value::Uint(b)) => natural(a.checked_mul(*b)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a * b)),
        _ => no_overload(),
    }
}

fn divide(a: &Value, b: &Value) -> Called {
    match (a, b) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => Err("division by zero".into()),
        (Value::Int(a), Value::Int(b)) => whole(a.checked_div(*b)),
        (Value::Uint(a), Value::Uint(b)) => natural(a.checked_div(*b)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a / b)),
        _ => no_overload(),
    }
}

fn modulo(a: &Value, b: &Value) -> Called {
    match (a, b) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => Err("modulus by zero".into()),
        (Value::Int(a), Value::Int(b)) => whole(a.checked_rem(*b)),
        (Value::Uint(a), Value::Uint(b)) => natural(a.checked_rem(*b)),
        _ => no_overload(),
    }
}
