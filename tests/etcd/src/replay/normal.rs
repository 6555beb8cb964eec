//! What of an answer is a fact: the corpus's rules of normalisation, applied to recording and answer alike.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Values an earlier step saved, and the ports of the members: what differs from run to run by nature.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// By name, without the dollar sign.
    pub vars: BTreeMap<String, String>,
    /// Client and peer port of each member.
    pub ports: Vec<(u16, u16)>,
}

impl Names {
    /// A request as this run must send it.
    pub fn fill(&self, value: &Value) -> Value {
        match value {
            Value::Object(object) => object.iter().map(|(k, v)| (k.clone(), self.fill(v))).collect(),
            Value::Array(list) => list.iter().map(|v| self.fill(v)).collect(),
            Value::String(text) => self.fill_text(text).into(),
            other => other.clone(),
        }
    }

    /// A text as this run must send it.
    pub fn fill_text(&self, text: &str) -> String {
        if let Some(value) = text.strip_prefix('$').and_then(|name| self.vars.get(name)) {
            return value.clone();
        }
        let mut text = text.to_owned();
        for (i, (client, peer)) in self.ports.iter().enumerate() {
            text = text.replace(&format!("127.0.0.1:PORT{i}"), &format!("127.0.0.1:{client}"));
            text = text.replace(&format!("127.0.0.1:PEER{i}"), &format!("127.0.0.1:{peer}"));
        }
        text
    }

    /// An answer in the recording's terms: headers hold only the revision, saved values and ports their names.
    pub fn name(&self, value: &Value) -> Value {
        match value {
            Value::Object(object) => {
                let mut out = Map::new();
                for (key, value) in object {
                    let mut value = self.name(value);
                    if key == "header"
                        && let Some(header) = value.as_object_mut()
                    {
                        header.retain(|key, _| !matches!(&**key, "cluster_id" | "member_id" | "raft_term"));
                    }
                    out.insert(key.clone(), value);
                }
                out.into()
            }
            Value::Array(list) => list.iter().map(|v| self.name(v)).collect(),
            Value::String(text) => {
                let saved = self.vars.iter().find(|(_, value)| value.len() > 6 && *value == text);
                saved.map_or_else(|| self.name_text(text), |(name, _)| format!("${name}")).into()
            }
            other => other.clone(),
        }
    }

    /// A text with the ports' names in it.
    pub fn name_text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (i, (client, peer)) in self.ports.iter().enumerate() {
            text = text.replace(&format!("127.0.0.1:{client}"), &format!("127.0.0.1:PORT{i}"));
            text = text.replace(&format!("127.0.0.1:{peer}"), &format!("127.0.0.1:PEER{i}"));
        }
        text
    }
}

const VOLATILE: &[&str] = &[
    "dbSize",
    "dbSizeInUse",
    "raftIndex",
    "raftAppliedIndex",
    "raftTerm",
    "hash",
    "remaining_bytes",
    "blob",
    "raft_term",
];

/// Numbers that are not facts become the same, lists without an order are sorted. `call` is the gateway path.
pub fn loosen(value: &Value, call: &str) -> Value {
    let time_to_live = call.contains("timetolive");
    match value {
        Value::Object(object) => {
            let mut out = Map::new();
            for (key, value) in object {
                let scalar = !value.is_object() && !value.is_array();
                let value = match &**key {
                    "details" => continue,
                    key if scalar && VOLATILE.contains(&key) => json!("<volatile>"),
                    "TTL" if time_to_live && positive(value) => json!("<ttl>"),
                    "leases" | "members" | "alarms" => sorted(loosen(value, call)),
                    "keys" if time_to_live => sorted(loosen(value, call)),
                    _ => loosen(value, call),
                };
                out.insert(key.clone(), value);
            }
            out.into()
        }
        Value::Array(list) => list.iter().map(|v| loosen(v, call)).collect(),
        Value::String(text) => loosen_text(text).into(),
        other => other.clone(),
    }
}

fn positive(value: &Value) -> bool {
    value.as_str().and_then(|text| text.parse::<i64>().ok()).is_some_and(|number| number > 0)
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Array(mut list) => {
            list.sort_by_key(Value::to_string);
            list.into()
        }
        other => other,
    }
}

/// A header within a text keeps only its revision.
fn without_ids(text: &str) -> String {
    let mut text = text.to_owned();
    for name in ["cluster_id", "member_id", "raft_term"] {
        let begin = format!("\"{name}\":\"");
        while let Some(at) = text.find(&begin) {
            let value = at + begin.len();
            let end = text[value..].find('"').map_or(text.len(), |length| value + length + 1);
            let end = if text[end..].starts_with(',') { end + 1 } else { end };
            text.replace_range(at..end, "");
        }
    }
    text
}

/// Generated ids are no facts; the order of the lines of a health report is none.
fn loosen_text(text: &str) -> String {
    let text = &without_ids(text);
    let mut out = String::new();
    let mut digits = String::new();
    for c in text.chars().chain(['\0']) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        out.push_str(if (17..=20).contains(&digits.len()) { "<id>" } else { &digits });
        digits.clear();
        if c != '\0' {
            out.push(c);
        }
    }
    if out.starts_with("[+]") || out.starts_with("[-]") {
        let mut lines: Vec<&str> = out.split('\n').collect();
        lines.sort_unstable();
        return lines.join("\n");
    }
    out
}

/// Events and control answers in a stream's messages.
pub fn count(messages: &[Value]) -> (usize, usize) {
    let events = |message: &Value| {
        let result = message.get("result").unwrap_or(message);
        result["events"].as_array().map_or(0, Vec::len)
    };
    let with = messages.iter().map(events).sum();
    (with, messages.iter().filter(|message| events(message) == 0).count())
}

/// What a watch stream said, in the corpus's terms: in order for each watch id, events run together; errors of the
/// stream; revisions split over answers that are no fragments.
pub fn watch_view(messages: &[Value]) -> Value {
    let mut watches: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut fragment: BTreeMap<String, bool> = BTreeMap::new();
    let (mut split, mut errors) = (Vec::new(), Vec::new());
    for message in messages {
        if let Some(error) = message.get("error") {
            errors.push(json!({ "code": error["code"], "message": error["message"] }));
            continue;
        }
        let result = message.get("result").unwrap_or(message);
        let id = result["watch_id"].as_str().unwrap_or("0").to_owned();
        let seen = watches.entry(id.clone()).or_default();
        let events = result["events"].as_array().cloned().unwrap_or_default();
        let control: Map<String, Value> = ["created", "canceled", "cancel_reason", "compact_revision"]
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), result.get(*key)?.clone())))
            .collect();
        if !control.is_empty() {
            seen.push(json!({ "control": control }));
        } else if events.is_empty() {
            let progress = json!({ "progress": result["header"]["revision"] });
            if seen.last() != Some(&progress) {
                seen.push(progress);
            }
        }
        let Some(first) = events.first() else { continue };
        let revision = |event: &Value| event["kv"]["mod_revision"].clone();
        let before = seen.last().and_then(|last| last.get("event")).map(revision);
        if before == Some(revision(first)) && !fragment.get(&id).copied().unwrap_or(false) {
            split.push(format!("watch {id}: revision {} in two answers", revision(first)));
        }
        seen.extend(events.into_iter().map(|event| json!({ "event": event })));
        fragment.insert(id, result["fragment"] == json!(true));
    }
    json!({ "watches": watches, "errors": errors, "split": split })
}

/// Whether two views of a stream are of one behaviour. When a progress answer comes, and how often, is no fact: only the
/// last one is. Whether a watcher that was behind when a compaction passed was canceled is none either.
pub fn same_stream(wanted: &Value, got: &Value) -> bool {
    let compacted = |watch: &Value| {
        let entries = watch.as_array().into_iter().flatten();
        entries.clone().any(|entry| !entry["control"]["compact_revision"].is_null())
    };
    let watches = |view: &Value| view["watches"].as_object().cloned().unwrap_or_default();
    let (wanted_watches, got_watches) = (watches(wanted), watches(got));
    let any_compacted = wanted_watches.values().chain(got_watches.values()).any(compacted);
    let facts = |watch: &Value| -> (Vec<Value>, Option<Value>) {
        let entries = watch.as_array().cloned().unwrap_or_default();
        let (progress, rest): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| entry.get("progress").is_some());
        (rest, progress.into_iter().next_back().filter(|_| !any_compacted))
    };
    let ids: std::collections::BTreeSet<&String> = wanted_watches.keys().chain(got_watches.keys()).collect();
    let same = |id: &String| {
        let none = Value::Null;
        let (wanted, got) = (wanted_watches.get(id).unwrap_or(&none), got_watches.get(id).unwrap_or(&none));
        compacted(wanted) || compacted(got) || facts(wanted) == facts(got)
    };
    wanted["errors"] == got["errors"] && wanted["split"] == got["split"] && ids.into_iter().all(same)
}
