//! Replay of recorded watch streams: a [`WatcherSet`] for each WebSocket, fed by the same store.
//!
//! Facts are, per watcher, the order of control answers and the concatenation of events; how revisions were batched
//! into answers is not one.

use std::collections::BTreeMap;

use keelson_store_core::watch::{WatchCreate, WatchResponse, WatcherSet, history};
use keelson_store_core::{EventType, WatchEvent};
use serde_json::{Map, Value, json};

use super::{Store, bytes, flag, header, int, kv_json, put_int, put_true};

struct Stream {
    set: WatcherSet,
    /// Our answers and etcd's, so far: when etcd's arrived is not a fact.
    sent: Vec<Value>,
    recorded: Vec<Value>,
}

#[derive(Default)]
struct Streams {
    store: Store,
    by_name: BTreeMap<String, Stream>,
}

/// Panics on the first difference; returns how many receptions were compared.
pub fn replay_streams(sequence: &Value) -> usize {
    let mut world = Streams::default();
    let mut compared = 0;
    for (at, step) in sequence["steps"].as_array().expect("steps").iter().enumerate() {
        let name = step["name"].as_str().unwrap_or_default().to_owned();
        if let Some(path) = step["call"].as_str() {
            let body = world.store.call(path, &step["req"]);
            assert_eq!(body["header"], step["res"]["body"]["header"], "{} step {at}", sequence["id"]);
        } else if step["ws"] == "open" {
            let set = WatcherSet::new(world.store.state.revision(), 1 << 21);
            world.by_name.insert(name, Stream { set, sent: Vec::new(), recorded: Vec::new() });
        } else if step["ws"] == "send" {
            world.settle(&name, false);
            world.send(&name, &step["msg"]);
        } else if step["ws"] == "recv" {
            world.settle(&name, true);
            let theirs = step["res"]["msgs"].as_array().cloned().unwrap_or_default();
            let theirs = theirs.into_iter().map(|mut message| message["result"].take());
            world.by_name.get_mut(&name).expect("opened").recorded.extend(theirs);
            compared += 1;
        }
    }
    let names: Vec<String> = world.by_name.keys().cloned().collect();
    names.iter().for_each(|name| world.settle(name, true));
    for (name, stream) in &world.by_name {
        let (ours, theirs) = (facts(&stream.sent), facts(&stream.recorded));
        let compacted = |of: &(Vec<Value>, Vec<Value>)| of.0.contains(&json!("compacted"));
        if !ours.keys().eq(theirs.keys()) {
            // An id freed by a compaction is given again, or not yet, as time has it.
            assert!(theirs.values().chain(ours.values()).any(compacted), "{} stream {name}", sequence["id"]);
            continue;
        }
        for (id, theirs) in &theirs {
            let ours = &ours[id];
            // One that was behind when a compaction passed is canceled or not as time has it.
            if !compacted(ours) && !compacted(theirs) {
                assert_eq!(ours, theirs, "{} stream {name} watcher {id}", sequence["id"]);
            }
        }
    }
    compared
}

impl Streams {
    /// Delivers all that is live to a stream and, as etcd does a little later, all that is past.
    fn settle(&mut self, name: &str, past: bool) {
        let Some(stream) = self.by_name.get_mut(name) else { return };
        let from = stream.set.position();
        let live = self.store.published.iter().filter(|change| change.revision > from);
        let mut out: Vec<WatchResponse> = live.flat_map(|change| stream.set.offer(change)).collect();
        while past && let Some(want) = stream.set.catch_up_from() {
            let past = history(&self.store.state, &self.store.backend, want, 100);
            out.extend(stream.set.catch_up(&past));
        }
        stream.sent.extend(out.iter().map(answer));
    }

    fn send(&mut self, name: &str, message: &Value) {
        let revision = self.store.state.revision();
        let stream = self.by_name.get_mut(name).expect("opened");
        let mut out = Vec::new();
        if let Some(create) = message.get("create_request") {
            out.push(stream.set.create(request(create), revision));
        } else if let Some(cancel) = message.get("cancel_request") {
            out.extend(stream.set.cancel(int(cancel, "watch_id"), revision));
        } else if message.get("progress_request").is_some() {
            out.extend(stream.set.request_progress());
        }
        stream.sent.extend(out.iter().map(answer));
    }
}

fn request(create: &Value) -> WatchCreate {
    let filters = create["filters"].as_array().cloned().unwrap_or_default();
    WatchCreate {
        key: bytes(create, "key"),
        range_end: bytes(create, "range_end"),
        start_revision: int(create, "start_revision"),
        progress_notify: flag(create, "progress_notify"),
        no_put: filters.contains(&json!("NOPUT")),
        no_delete: filters.contains(&json!("NODELETE")),
        prev_kv: flag(create, "prev_kv"),
        watch_id: int(create, "watch_id"),
        fragment: flag(create, "fragment"),
    }
}

fn answer(response: &WatchResponse) -> Value {
    let mut out = header(response.revision);
    put_int(&mut out, "watch_id", response.watch_id);
    put_true(&mut out, "created", response.created);
    put_true(&mut out, "canceled", response.canceled);
    put_int(&mut out, "compact_revision", response.compact_revision);
    if !response.cancel_reason.is_empty() {
        out.insert("cancel_reason".into(), response.cancel_reason.into());
    }
    if !response.events.is_empty() {
        out.insert("events".into(), response.events.iter().map(event).collect());
    }
    out.into()
}

fn event(event: &WatchEvent) -> Value {
    let mut out = Map::new();
    if event.kind == EventType::Delete {
        out.insert("type".into(), "DELETE".into());
    }
    out.insert("kv".into(), kv_json(&event.kv));
    if let Some(prev) = &event.prev_kv {
        out.insert("prev_kv".into(), kv_json(prev));
    }
    out.into()
}

/// Per watcher: control answers in order, and all events.
fn facts(messages: &[Value]) -> BTreeMap<String, (Vec<Value>, Vec<Value>)> {
    let mut facts: BTreeMap<String, (Vec<Value>, Vec<Value>)> = BTreeMap::new();
    for message in messages {
        let of = facts.entry(message["watch_id"].as_str().unwrap_or("0").to_owned()).or_default();
        match message["events"].as_array() {
            Some(events) => of.1.extend(events.iter().cloned()),
            // Whether asked-for progress comes at once, later or never depends on who is synced just then.
            None if message["created"].is_null() && message["canceled"].is_null() => {}
            None if !message["compact_revision"].is_null() => of.0.push(json!("compacted")),
            None => of.0.push(message.clone()),
        }
    }
    facts.retain(|_, (control, events)| !control.is_empty() || !events.is_empty());
    facts
}
