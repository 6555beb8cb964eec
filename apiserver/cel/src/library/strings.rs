//! Functions of strings. Positions count characters.

use super::{Called, convert, no_overload};
use crate::value::Value;

/// Bytes of one text. Replacing and joining are paid for by what goes in, so that this bounds what comes out.
const MOST: usize = 1 << 24;

fn too_large() -> Called {
    Err("text is too large".into())
}

/// Runs a member of a string.
pub fn call(function: &str, args: &[Value]) -> Called {
    let Some(text) = args[0].as_str() else { return no_overload() };
    match (function, &args[1..]) {
        ("contains", [Value::String(s)]) => Ok(Value::Bool(text.contains(&**s))),
        ("startsWith", [Value::String(s)]) => Ok(Value::Bool(text.starts_with(&**s))),
        ("endsWith", [Value::String(s)]) => Ok(Value::Bool(text.ends_with(&**s))),
        ("lowerAscii", []) => Ok(Value::string(text.to_ascii_lowercase())),
        ("upperAscii", []) => Ok(Value::string(text.to_ascii_uppercase())),
        ("trim", []) => Ok(Value::string(text.trim())),
        ("charAt", [Value::Int(at)]) => char_at(text, *at),
        ("indexOf", [Value::String(part)]) => index_of(text, part, 0),
        ("indexOf", [Value::String(part), Value::Int(from)]) => index_of(text, part, *from),
        ("lastIndexOf", [Value::String(part)]) => last_index_of(text, part, None),
        ("lastIndexOf", [Value::String(part), Value::Int(from)]) => last_index_of(text, part, Some(*from)),
        ("substring", [Value::Int(from)]) => substring(text, *from, text.chars().count() as i64),
        ("substring", [Value::Int(from), Value::Int(to)]) => substring(text, *from, *to),
        ("replace", [Value::String(from), Value::String(to)]) => replace(text, from, to, usize::MAX),
        ("replace", [Value::String(from), Value::String(to), Value::Int(n)]) => {
            replace(text, from, to, usize::try_from(*n).unwrap_or(usize::MAX))
        }
        ("split", [Value::String(by)]) => Ok(split(text, by, -1)),
        ("split", [Value::String(by), Value::Int(n)]) => Ok(split(text, by, *n)),
        ("format", [Value::List(list)]) => super::format::text(text, &list.items),
        _ => no_overload(),
    }
}

fn replace(text: &str, from: &str, to: &str, most: usize) -> Called {
    let found = text.matches(from).take(most).count();
    if found.saturating_mul(to.len()).saturating_add(text.len()) > MOST {
        return too_large();
    }
    Ok(Value::string(text.replacen(from, to, most)))
}

fn char_at(text: &str, at: i64) -> Called {
    let count = text.chars().count() as i64;
    if !(0..=count).contains(&at) {
        return Err(format!("index out of range: {at}"));
    }
    Ok(Value::string(text.chars().nth(at as usize).map(String::from).unwrap_or_default()))
}

fn index_of(text: &str, part: &str, from: i64) -> Called {
    let chars: Vec<char> = text.chars().collect();
    let part: Vec<char> = part.chars().collect();
    let Some(from) = usize::try_from(from).ok().filter(|f| *f <= chars.len()) else {
        return Err(format!("index out of range: {from}"));
    };
    if part.is_empty() {
        return Ok(Value::Int(from as i64));
    }
    let found = chars[from..].windows(part.len()).position(|w| w == part);
    Ok(Value::Int(found.map_or(-1, |i| (i + from) as i64)))
}

fn last_index_of(text: &str, part: &str, from: Option<i64>) -> Called {
    let chars: Vec<char> = text.chars().collect();
    let part: Vec<char> = part.chars().collect();
    let from = match from {
        None => chars.len().saturating_sub(part.len()),
        Some(from) => match usize::try_from(from).ok().filter(|f| *f <= chars.len()) {
            Some(from) => from,
            None => return Err(format!("index out of range: {from}")),
        },
    };
    if part.is_empty() {
        return Ok(Value::Int(if from == 0 && !chars.is_empty() { 0 } else { chars.len() as i64 }));
    }
    let windows = chars.windows(part.len()).enumerate();
    let found = windows.rev().find(|(i, window)| *i <= from && *window == part).map(|(i, _)| i);
    Ok(Value::Int(found.map_or(-1, |i| i as i64)))
}

fn substring(text: &str, from: i64, to: i64) -> Called {
    let count = text.chars().count() as i64;
    if !(0..=count).contains(&from) {
        return Err(format!("index out of range: {from}"));
    }
    if !(0..=count).contains(&to) {
        return Err(format!("index out of range: {to}"));
    }
    if from > to {
        return Err(format!("invalid substring range. start: {from}, end: {to}"));
    }
    Ok(Value::string(text.chars().skip(from as usize).take((to - from) as usize).collect::<String>()))
}

fn split(text: &str, by: &str, n: i64) -> Value {
    let most = usize::try_from(n).unwrap_or(usize::MAX);
    let strings = |parts: Vec<String>| Value::from(parts.into_iter().map(Value::string).collect::<Vec<_>>());
    if most == 0 {
        return strings(vec![]);
    }
    if by.is_empty() {
        let chars: Vec<char> = text.chars().collect();
        let mut parts: Vec<String> = chars.iter().take(most - 1).map(|c| c.to_string()).collect();
        if chars.len() > parts.len() {
            let rest: String = chars[parts.len()..].iter().collect();
            if most == usize::MAX {
                parts.extend(rest.chars().map(|c| c.to_string()));
            } else {
                parts.push(rest);
            }
        }
        return strings(parts);
    }
    strings(text.splitn(most, by).map(str::to_owned).collect())
}

/// `strings.quote`.
pub fn quote(args: &[Value]) -> Called {
    match args {
        [Value::String(text)] => Ok(Value::string(keelson_api::field::quote(text))),
        _ => no_overload(),
    }
}

/// `jsonpatch.escapeKey`.
pub fn escape_key(args: &[Value]) -> Called {
    match args {
        [Value::String(text)] => Ok(Value::string(text.replace('~', "~0").replace('/', "~1"))),
        _ => no_overload(),
    }
}

/// The elements of a list, one after the other.
pub fn join(items: &[Value], separator: &str) -> Called {
    let mut out = String::new();
    for (i, item) in items.iter().enumerate() {
        let Value::String(_) = item else { return no_overload() };
        if i > 0 {
            out.push_str(separator);
        }
        out.push_str(&convert::text(item).unwrap_or_default());
        if out.len() > MOST {
            return too_large();
        }
    }
    Ok(Value::string(out))
}
