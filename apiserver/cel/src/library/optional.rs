//! Values that may be absent.

use super::{Called, no_overload};
use crate::value::Value;
use std::sync::Arc;

/// `optional.of` and its like.
pub fn make(name: &str, args: &[Value]) -> Called {
    match (name, args) {
        ("none", []) => Ok(Value::Optional(None)),
        ("of", [value]) => Ok(Value::Optional(Some(Arc::new(value.clone())))),
        ("ofNonZeroValue", [value]) => {
            Ok(Value::Optional((!is_zero(value)).then(|| Arc::new(value.clone()))))
        }
        _ => no_overload(),
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Optional(None) => true,
        Value::Bool(b) => !b,
        Value::Int(n) | Value::Duration(n) => *n == 0,
        Value::Uint(n) => *n == 0,
        Value::Double(n) => *n == 0.0,
        Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_) => value.size() == 0,
        _ => false,
    }
}

/// Runs a member of an optional value.
pub fn call(function: &str, inner: Option<&Arc<Value>>, args: &[Value]) -> Called {
    match (function, args, inner) {
        ("hasValue", [], _) => Ok(Value::Bool(inner.is_some())),
        ("value", [], Some(value)) | ("orValue", [_], Some(value)) => Ok((**value).clone()),
        ("value", [], None) => Err("optional.none() dereference".into()),
        ("orValue", [other], None) | ("or", [other], None) => Ok(other.clone()),
        ("or", [_], Some(value)) => Ok(Value::Optional(Some(value.clone()))),
        _ => no_overload(),
    }
}
