//! Functions of lists and sets.

use super::{Called, arithmetic, no_overload, strings};
use crate::value::{List, Value};
use std::cmp::Ordering;

/// Runs a member of a list.
pub fn call(function: &str, id: &str, list: &List, args: &[Value]) -> Called {
    let items = &list.items;
    match (function, args) {
        ("isSorted", []) => sorted(items),
        ("sum", []) => sum(items, id),
        ("min", []) => extreme(items, "min", Ordering::Less),
        ("max", []) => extreme(items, "max", Ordering::Greater),
        ("indexOf", [item]) => Ok(position(items.iter().position(|i| i == item))),
        ("lastIndexOf", [item]) => Ok(position(items.iter().rposition(|i| i == item))),
        ("join", []) => strings::join(items, ""),
        ("join", [Value::String(separator)]) => strings::join(items, separator),
        _ => no_overload(),
    }
}

fn position(found: Option<usize>) -> Value {
    Value::Int(found.map_or(-1, |i| i as i64))
}

fn sorted(items: &[Value]) -> Called {
    for pair in items.windows(2) {
        match pair[0].order(&pair[1]) {
            None => return no_overload(),
            Some(Some(Ordering::Greater)) => return Ok(Value::Bool(false)),
            Some(_) => {}
        }
    }
    Ok(Value::Bool(true))
}

fn sum(items: &[Value], id: &str) -> Called {
    let zero = match (items.first(), id) {
        (Some(Value::Uint(_)), _) | (None, "list_uint_sum_uint") => Value::Uint(0),
        (Some(Value::Double(_)), _) | (None, "list_double_sum_double") => Value::Double(0.0),
        (Some(Value::Duration(_)), _) | (None, "list_duration_sum_duration") => Value::Duration(0),
        _ => Value::Int(0),
    };
    items
        .iter()
        .try_fold(zero, |sum, item| arithmetic::call("_+_", &[sum, item.clone()]).unwrap_or_else(no_overload))
}

fn extreme(items: &[Value], name: &str, wanted: Ordering) -> Called {
    let Some(mut best) = items.first() else { return Err(format!("{name} called on empty list")) };
    for item in &items[1..] {
        match item.order(best) {
            None => return no_overload(),
            Some(Some(order)) if order == wanted => best = item,
            Some(_) => {}
        }
    }
    Ok(best.clone())
}

/// `sets.contains` and its like.
pub fn sets(name: &str, args: &[Value]) -> Called {
    let [Value::List(a), Value::List(b)] = args else { return no_overload() };
    let all = |of: &List, within: &List| of.items.iter().all(|item| within.items.contains(item));
    Ok(Value::Bool(match name {
        "contains" => all(b, a),
        "equivalent" => all(a, b) && all(b, a),
        "intersects" => a.items.iter().any(|item| b.items.contains(item)),
        _ => return no_overload(),
    }))
}
