//! Whether an answer is the recorded one, apart from what no two runs have in common.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{KEPT, Raw, Verdict};

/// What stands in a recording for anything of its kind.
const MARKS: [&str; 11] = [
    "<uid>",
    "<time>",
    "<rand5>",
    "<clusterIP>",
    "<nodePort>",
    "<rv>",
    "<server>",
    "<sha256>",
    "<etag>",
    "<continue>",
    "<token>",
];

/// Compares; `versions` holds the last revision of each object of the sequence.
pub fn judge(case: &Value, ns: &str, raw: &Raw, versions: &mut BTreeMap<String, i64>) -> Verdict {
    let want = recorded(&case["response"], ns);
    let parsed: Result<Value, _> = serde_json::from_slice(&raw.body);
    let moved = parsed.as_ref().ok().and_then(|body| movement(body, versions));
    if want["code"].is_null() {
        return Verdict::Identical;
    }
    if want["code"] != raw.code {
        let message = parsed.map_or_else(|e| e.to_string(), |b| b["message"].to_string());
        return different("code", format!("want {} got {} {message}", want["code"], raw.code));
    }
    if want["body"] == "not compared" {
        return Verdict::Identical;
    }
    let expected =
        want.get("headers").cloned().unwrap_or_else(|| json!({"Content-Type": "application/json"}));
    let (expected, headers) = (headers_of(&expected), headers(raw));
    if !same(&expected, &headers) {
        return different("headers", first(&expected, &headers, ""));
    }
    if want.get("events").is_none() && want.get("rv") != moved.map(Value::from).as_ref() {
        return different("rv", format!("want {} got {moved:?}", want["rv"]));
    }
    let text = String::from_utf8_lossy(&raw.body);
    let managed = case["response"].to_string().contains("\"managedFields\"");
    let (part, expected, got) = if let Some(events) = want.get("events") {
        let lines = text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|_| json!({"raw": l})));
        ("events", events.clone(), lines.collect::<Vec<Value>>().into())
    } else if let Some(raw) = want.get("body_raw") {
        ("body_raw", raw.clone(), text.chars().take(4000).collect::<String>().into())
    } else {
        ("body", want.get("body").cloned().unwrap_or(Value::Null), parsed.unwrap_or(Value::Null))
    };
    let (expected, got) = (normal(&expected, managed), normal(&got, managed));
    if same(&expected, &got) { Verdict::Identical } else { different(part, first(&expected, &got, "")) }
}

fn different(part: &'static str, text: String) -> Verdict {
    Verdict::Different { part, text }
}

/// The recording with the namespace of this run, and marks where a number belongs to the other run.
fn recorded(response: &Value, ns: &str) -> Value {
    let text = response.to_string().replace("{{ns}}", ns);
    let mut text = mark_digits(&text, "in record (");
    for before in
        ["\\\\\\\"resourceVersion\\\\\\\":\\\\\\\"", "\\\"resourceVersion\\\":\\\"", "resourceVersion: \\\""]
    {
        text = mark_digits(&text, before);
    }
    serde_json::from_str(&text).unwrap_or_else(|_| response.clone())
}

fn mark_digits(text: &str, before: &str) -> String {
    let mut parts = text.split(before);
    let mut out = parts.next().unwrap_or("").to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        out.push_str(before);
        if rest.len() < part.len() {
            out.push_str("<rv>");
        }
        out.push_str(rest);
    }
    out
}

/// How the revision of the answered object moved.
fn movement(body: &Value, versions: &mut BTreeMap<String, i64>) -> Option<&'static str> {
    let kind = body["kind"].as_str().unwrap_or("");
    let meta = body.get("metadata")?;
    if kind == "Status" || kind.ends_with("List") {
        return None;
    }
    let key = format!("{} {kind} {} {}", body["apiVersion"], meta["namespace"], meta.get("name")?);
    let Some(version) = meta.get("resourceVersion") else { return Some("absent") };
    let version: i64 = version.as_str()?.parse().ok()?;
    let before = versions.insert(key, version);
    Some(match before {
        None => "first",
        Some(old) if old == version => "unchanged",
        Some(old) if version > old => "increased",
        Some(_) => "decreased",
    })
}

fn headers(raw: &Raw) -> Value {
    let mut out = Map::new();
    for name in KEPT {
        let all = raw.headers.get_all(name);
        let values: Vec<Value> =
            all.iter().map(|v| Value::from(String::from_utf8_lossy(v.as_bytes()))).collect();
        if !values.is_empty() {
            out.insert(name.to_owned(), values.into());
        }
    }
    out.into()
}

fn headers_of(recorded: &Value) -> Value {
    let list = |v: &Value| if v.is_array() { v.clone() } else { json!([v]) };
    let entries = recorded.as_object().into_iter().flatten();
    Value::Object(entries.map(|(k, v)| (k.clone(), list(v))).collect())
}

/// Takes out what differs between two runs of the same thing.
fn normal(v: &Value, managed: bool) -> Value {
    match v {
        Value::Object(map) => {
            let mut out = Map::new();
            for (k, child) in map {
                if k == "remoteAddr" {
                    continue;
                }
                let mut child = child.clone();
                if let Some(meta) = child.as_object_mut().filter(|_| k == "metadata") {
                    meta.remove("uid");
                    meta.remove("resourceVersion");
                    if meta.get("creationTimestamp").is_some_and(|t| !t.is_null()) {
                        meta.remove("creationTimestamp");
                    }
                    if !managed {
                        meta.remove("managedFields");
                    }
                    for entry in
                        meta.get_mut("managedFields").and_then(Value::as_array_mut).into_iter().flatten()
                    {
                        entry.as_object_mut().map(|e| e.remove("time"));
                    }
                }
                let child = if k == "cells" { cells(&child) } else { normal(&child, managed) };
                out.insert(k.clone(), child);
            }
            Value::Object(out)
        }
        Value::Array(list) => {
            // One recorded volume source belongs to another product's build.
            let foreign = |i: &&Value| i["configMap"]["name"] == "openshift-service-ca.crt";
            Value::Array(list.iter().filter(|i| !foreign(i)).map(|i| normal(i, managed)).collect())
        }
        other => other.clone(),
    }
}

/// Ages in a table row.
fn cells(row: &Value) -> Value {
    let age = |c: &Value| {
        let text = c.as_str().unwrap_or("");
        let seconds =
            text.strip_suffix('s').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        let years = text.strip_suffix('d').and_then(|t| t.split_once('y')).is_some_and(|(y, d)| {
            !y.is_empty() && !d.is_empty() && y.bytes().chain(d.bytes()).all(|b| b.is_ascii_digit())
        });
        if seconds || years || text == "<invalid>" || text == "<age>" { json!("<age>") } else { c.clone() }
    };
    Value::Array(row.as_array().into_iter().flatten().map(age).collect())
}

/// Whether the answer is what was recorded.
fn same(want: &Value, got: &Value) -> bool {
    match (want, got) {
        (Value::String(w), Value::String(g)) if w.contains('<') || w.contains("\n@@") => {
            // What follows is a picture of another program's memory.
            if let Some((head, _)) = w.split_once("\n@@") {
                return g.starts_with(head) || g.starts_with(head.trim_end());
            }
            // Bytes are not recorded.
            w == "<binary>" || pattern(w, g)
        }
        (Value::String(w), Value::Number(_)) => w == "<nodePort>",
        (Value::Object(a), Value::Object(b)) => {
            let at = |k: &str| b.get(k).or_else(|| b.iter().find(|(g, _)| pattern(k, g)).map(|(_, v)| v));
            a.len() == b.len() && a.iter().all(|(k, v)| at(k).is_some_and(|g| same(v, g)))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(x, y)| same(x, y)),
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (a, b) => a == b,
    }
}

fn pattern(want: &str, got: &str) -> bool {
    if !want.contains('<') {
        return want == got;
    }
    let mut pieces = vec![want.to_owned()];
    for mark in MARKS {
        pieces = pieces.iter().flat_map(|p| p.split(mark).map(str::to_owned).collect::<Vec<_>>()).collect();
    }
    let mut rest = got;
    for (i, piece) in pieces.iter().enumerate() {
        match rest.find(piece.as_str()) {
            Some(0) => rest = &rest[piece.len()..],
            Some(at) if i > 0 => rest = &rest[at + piece.len()..],
            _ => return false,
        }
    }
    rest.is_empty() || pieces.last().is_some_and(String::is_empty)
}

/// The first place where two values differ, in words.
fn first(want: &Value, got: &Value, at: &str) -> String {
    let shown = |v: &Value| v.to_string().chars().take(400).collect::<String>();
    match (want, got) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            // The causes say the same as the message.
            let mut keys: Vec<&String> = keys.into_iter().collect();
            keys.sort_by_key(|k| *k == "details");
            for key in keys {
                let (x, y) = (a.get(key), b.get(key));
                match (x, y) {
                    (Some(x), Some(y)) if same(x, y) => {}
                    (Some(x), Some(y)) => return first(x, y, &format!("{at}/{key}")),
                    (Some(x), None) => return format!("{at}/{key}: want {} got nothing", shown(x)),
                    (None, Some(y)) => return format!("{at}/{key}: want nothing got {}", shown(y)),
                    (None, None) => {}
                }
            }
            format!("{at}: keys")
        }
        (Value::Array(a), Value::Array(b)) => {
            for (i, (x, y)) in a.iter().zip(b).enumerate() {
                if !same(x, y) {
                    return first(x, y, &format!("{at}/{i}"));
                }
            }
            format!("{at}: {} items wanted, {} got: {} / {}", a.len(), b.len(), shown(want), shown(got))
        }
        _ => format!("{at}: want {} got {}", shown(want), shown(got)),
    }
}
