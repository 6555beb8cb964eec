//! Semantic versions.

use super::{Called, no_overload};
use crate::value::Value;
use semver::Version;
use std::cmp::Ordering;
use std::sync::Arc;

/// `v1` and `01.2` in full form.
fn normalized(text: &str) -> String {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let bare = |part: &str| {
        let trimmed = part.trim_start_matches('0');
        if trimmed.is_empty() && !part.is_empty() { "0".to_owned() } else { trimmed.to_owned() }
    };
    let mut parts: Vec<String> = numbers.split('.').map(bare).collect();
    while parts.len() < 3 {
        parts.push("0".into());
    }
    format!("{}{rest}", parts.join("."))
}

/// `semver` and `isSemver`.
pub fn make(function: &str, args: &[Value]) -> Called {
    let parsed = match args {
        [Value::String(text)] | [Value::String(text), Value::Bool(false)] => Version::parse(text),
        [Value::String(text), Value::Bool(true)] => Version::parse(&normalized(text)),
        _ => return no_overload(),
    };
    match (function, parsed) {
        ("isSemver", parsed) => Ok(Value::Bool(parsed.is_ok())),
        (_, Ok(version)) => Ok(Value::Semver(Arc::new(version))),
        (_, Err(why)) => Err(format!("Semver string parse error: {why}")),
    }
}

/// Runs a member of a version.
pub fn call(function: &str, version: &Version, args: &[Value]) -> Called {
    let part = |n: u64| Ok(Value::Int(i64::try_from(n).unwrap_or(i64::MAX)));
    match (function, args) {
        ("major", []) => part(version.major),
        ("minor", []) => part(version.minor),
        ("patch", []) => part(version.patch),
        ("compareTo", [Value::Semver(other)]) => Ok(Value::Int(version.cmp_precedence(other) as i64)),
        ("isLessThan", [Value::Semver(other)]) => {
            Ok(Value::Bool(version.cmp_precedence(other) == Ordering::Less))
        }
        ("isGreaterThan", [Value::Semver(other)]) => {
            Ok(Value::Bool(version.cmp_precedence(other) == Ordering::Greater))
        }
        _ => no_overload(),
    }
}
