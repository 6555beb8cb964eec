//! Kubernetes' quantities.

use super::{Called, no_overload};
use crate::value::Value;
use keelson_api::quantity::Quantity;
use std::cmp::Ordering;
use std::sync::Arc;

/// `quantity` and `isQuantity`.
pub fn make(function: &str, args: &[Value]) -> Called {
    let [Value::String(text)] = args else { return no_overload() };
    let parsed = Quantity::parse(text);
    match (function, parsed) {
        ("isQuantity", parsed) => Ok(Value::Bool(parsed.is_ok())),
        (_, Ok(quantity)) => Ok(Value::Quantity(Arc::new(quantity))),
        (_, Err(why)) => Err(why.into()),
    }
}

/// Runs a member of a quantity.
pub fn call(function: &str, quantity: &Quantity, args: &[Value]) -> Called {
    let order = |o: Ordering| Value::Int(o as i64);
    match (function, args) {
        ("sign", []) => Ok(order(quantity.cmp(&Quantity::from_int(0)))),
        ("isInteger", []) => Ok(Value::Bool(quantity.is_integer())),
        ("asInteger", []) if quantity.is_integer() => Ok(Value::Int(quantity.value())),
        ("asInteger", []) => Err("cannot convert value to integer".into()),
        ("asApproximateFloat", []) => Ok(Value::Double(quantity.as_f64())),
        ("compareTo", [Value::Quantity(other)]) => Ok(order(quantity.cmp(other))),
        ("isLessThan", [Value::Quantity(other)]) => Ok(Value::Bool(quantity.cmp(other) == Ordering::Less)),
        ("isGreaterThan", [Value::Quantity(other)]) => {
            Ok(Value::Bool(quantity.cmp(other) == Ordering::Greater))
        }
        ("add" | "sub", [other]) => {
            let other = match other {
                Value::Quantity(other) => **other,
                Value::Int(n) => Quantity::from_int(*n),
                _ => return no_overload(),
            };
            let result = if function == "add" { quantity.plus(&other) } else { quantity.minus(&other) };
            Ok(Value::Quantity(Arc::new(result)))
        }
        _ => no_overload(),
    }
}
