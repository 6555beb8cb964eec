//! Regular expressions.

use super::{Called, no_overload};
use crate::value::Value;
use regex::{Regex, RegexBuilder};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// A compiled pattern takes at most so many bytes.
const PATTERN_BYTES: usize = 1 << 20;
/// Patterns that are kept compiled.
const KEPT: usize = 256;

/// Compiling is dear and patterns are few. What is kept changes no result.
static COMPILED: Mutex<BTreeMap<String, Regex>> = Mutex::new(BTreeMap::new());

/// Compiles a pattern.
///
/// # Errors
/// Upstream's sentence.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let mut kept = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = kept.get(pattern) {
        return Ok(known.clone());
    }
    let built = RegexBuilder::new(pattern).size_limit(PATTERN_BYTES).build();
    let regex = built.map_err(|_| format!("error parsing regexp: {pattern}"))?;
    if kept.len() >= KEPT {
        kept.clear();
    }
    kept.insert(pattern.to_owned(), regex.clone());
    Ok(regex)
}

/// `matches`, `find`, `findAll`.
pub fn call(function: &str, args: &[Value]) -> Called {
    let (Some(Value::String(text)), Some(Value::String(pattern))) = (args.first(), args.get(1)) else {
        return no_overload();
    };
    let regex = compile(pattern)?;
    match (function, args.get(2)) {
        ("matches", None) => Ok(Value::Bool(regex.is_match(text))),
        ("find", None) => Ok(Value::string(regex.find(text).map_or("", |m| m.as_str()))),
        ("findAll", limit) => {
            let most = match limit {
                None => usize::MAX,
                Some(Value::Int(n)) => usize::try_from(*n).unwrap_or(usize::MAX),
                Some(_) => return no_overload(),
            };
            Ok(regex.find_iter(text).take(most).map(|m| Value::string(m.as_str())).collect::<Vec<_>>().into())
        }
        _ => no_overload(),
    }
}
