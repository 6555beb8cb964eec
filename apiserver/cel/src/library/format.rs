//! Named formats, and text made from a pattern.

use super::{Called, convert, no_overload};
use crate::value::Value;
use base64::Engine as _;
use keelson_api::names;
use std::sync::Arc;

/// A format texts can be checked against.
pub struct Format {
    pub name: &'static str,
    check: fn(&str) -> Vec<String>,
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The prefix of a generated name may end in a dash.
fn prefix(text: &str, check: fn(&str) -> Vec<String>) -> Vec<String> {
    match text.strip_suffix('-') {
        Some(rest) => check(&format!("{rest}a")),
        None => check(text),
    }
}

fn unless(fine: bool, message: &str) -> Vec<String> {
    if fine { vec![] } else { vec![message.to_owned()] }
}

static FORMATS: [Format; 13] = [
    Format { name: "dns1123Label", check: names::dns1123_label },
    Format { name: "dns1123Subdomain", check: names::dns1123_subdomain },
    Format { name: "dns1035Label", check: names::dns1035_label },
    Format { name: "qualifiedName", check: names::qualified_name },
    Format { name: "dns1123LabelPrefix", check: |s| prefix(s, names::dns1123_label) },
    Format { name: "dns1123SubdomainPrefix", check: |s| prefix(s, names::dns1123_subdomain) },
    Format { name: "dns1035LabelPrefix", check: |s| prefix(s, names::dns1035_label) },
    Format { name: "labelValue", check: names::label_value },
    Format { name: "uri", check: |s| super::url::parse(s).err().into_iter().collect() },
    Format {
        name: "uuid",
        check: |s| {
            let hex = |part: &str, n: usize| part.len() == n && part.bytes().all(|b| b.is_ascii_hexdigit());
            let parts: Vec<&str> = s.split('-').collect();
            let fine = parts.len() == 5 && [8, 4, 4, 4, 12].iter().zip(&parts).all(|(n, p)| hex(p, *n));
            unless(fine, "does not match the UUID format")
        },
    },
    Format {
        name: "byte",
        check: |s| unless(base64::engine::general_purpose::STANDARD.decode(s).is_ok(), "invalid base64"),
    },
    Format {
        name: "date",
        check: |s| unless(s.len() == 10 && s.parse::<jiff::civil::Date>().is_ok(), "invalid date"),
    },
    Format { name: "datetime", check: |s| unless(super::time::timestamp(s).is_some(), "invalid datetime") },
];

/// `format.named` and `format.uuid` and its like.
pub fn make(name: &str, args: &[Value]) -> Called {
    let find = |name: &str| FORMATS.iter().find(|f| f.name == name);
    match (name, args) {
        ("named", [Value::String(wanted)]) => {
            Ok(Value::Optional(find(wanted).map(|f| Arc::new(Value::Format(f)))))
        }
        (_, []) => find(name).map_or_else(no_overload, |f| Ok(Value::Format(f))),
        _ => no_overload(),
    }
}

/// Runs a member of a format: nothing when a text fits, the problems otherwise.
pub fn call(function: &str, format: &Format, args: &[Value]) -> Called {
    let ("validate", [Value::String(text)]) = (function, args) else { return no_overload() };
    let problems = (format.check)(text);
    Ok(Value::Optional(
        (!problems.is_empty())
            .then(|| Arc::new(problems.into_iter().map(Value::string).collect::<Vec<_>>().into())),
    ))
}

/// A value as `%s` shows it.
fn shown(value: &Value) -> Result<String, String> {
    Ok(match value {
        Value::Null => "null".into(),
        Value::List(list) => {
            let items = list.items.iter().map(shown).collect::<Result<Vec<_>, _>>()?;
            format!("[{}]", items.join(", "))
        }
        Value::Map(map) => {
            let entry = |(key, value): (&crate::value::Key, &Value)| Ok(format!("{}: {}", shown(&key.value())?, shown(value)?));
            let entries = map.entries.iter().map(entry).collect::<Result<Vec<String>, String>>()?;
            format!("{{{}}}", entries.join(", "))
        }
        Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => convert::text(other).ok_or_else(|| {
            format!("string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps, was given {}", other.type_name())
        })?,
    })
}

/// `"…%s…".format([…])`.
pub fn text(pattern: &str, args: &[Value]) -> Called {
    let mut out = String::new();
    let mut chars = pattern.chars().peekable();
    let mut next = 0;
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(d) = chars.peek().filter(|d| d.is_ascii_digit()) {
                digits.push(*d);
                chars.next();
            }
            precision = Some(digits.parse::<usize>().unwrap_or(usize::MAX).min(100));
        }
        let Some(clause) = chars.next() else { return Err("unexpected end of format string".into()) };
        let Some(arg) = args.get(next) else { return Err(format!("index {next} out of range")) };
        next += 1;
        out.push_str(&clause_text(clause, precision, arg)?);
    }
    Ok(Value::string(out))
}

fn clause_text(clause: char, precision: Option<usize>, arg: &Value) -> Result<String, String> {
    let unfit = || format!("no formatting function for '{clause}' of {}", arg.type_name());
    let number = || match arg {
        Value::Int(n) => Some(*n as f64),
        Value::Uint(n) => Some(*n as f64),
        Value::Double(n) => Some(*n),
        _ => None,
    };
    Ok(match (clause, arg) {
        ('s', _) => shown(arg)?,
        ('d', Value::Int(_) | Value::Uint(_)) => shown(arg)?,
        ('d', Value::Double(n)) if !n.is_finite() => convert::float(*n),
        ('f', _) => {
            let n = number().ok_or_else(unfit)?;
            format!("{n:.*}", precision.unwrap_or(6))
        }
        ('e', _) => {
            let n = number().ok_or_else(unfit)?;
            let text = format!("{n:.*e}", precision.unwrap_or(6));
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let exponent: i32 = exponent.parse().unwrap_or(0);
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        ('b', Value::Bool(b)) => u8::from(*b).to_string(),
        ('b', Value::Int(n)) => signed(*n, |n| format!("{n:b}")),
        ('b', Value::Uint(n)) => format!("{n:b}"),
        ('o', Value::Int(n)) => signed(*n, |n| format!("{n:o}")),
        ('o', Value::Uint(n)) => format!("{n:o}"),
        ('x' | 'X', _) => {
            let hex = match arg {
                Value::Int(n) => signed(*n, |n| format!("{n:x}")),
                Value::Uint(n) => format!("{n:x}"),
                Value::String(s) => s.bytes().map(|b| format!("{b:02x}")).collect(),
                Value::Bytes(b) => b.iter().map(|b| format!("{b:02x}")).collect(),
                _ => return Err(unfit()),
            };
            if clause == 'X' { hex.to_uppercase() } else { hex }
        }
        ('d' | 'b' | 'o', _) => return Err(unfit()),
        _ => {
            return Err(format!(
                "could not parse formatting clause: unrecognized formatting clause {:?}",
                clause.to_string()
            ));
        }
    })
}

fn signed(n: i64, digits: impl Fn(u64) -> String) -> String {
    let sign = if n < 0 { "-" } else { "" };
    format!("{sign}{}", digits(n.unsigned_abs()))
}
