//! Replays recorded requests of a real API server against the pure core, over a store that is a map.
//!
//! The recordings are not part of the tree: `KEELSON_SHARED` names a directory that has `data/kubernetes-corpus`. Without it
//! the test says so and passes. `KEELSON_CORPUS=<substring of an id>` replays a part and prints what differs.
//! Compared: status code, Status bodies in full, objects without identity and managed fields (those where recorded).

// A test may read its environment.
#![allow(clippy::disallowed_methods)]

use keelson_api::{RESOURCES, Resource, Status, resource};
use keelson_apiserver_core as core;
use keelson_apiserver_core::{
    Context, DeleteOptions, Deletion, FieldValidation, PatchType, Target, UserInfo, View, WriteOptions,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

/// What is compared, and how many of the cases that could be replayed must agree.
const FILES: [(&str, f64); 9] = [
    ("a_create", 0.94),
    ("b_others", 0.78),
    ("b_services", 0.81),
    ("b_workloads", 0.88),
    ("c_patch", 0.84),
    ("h_update", 0.82),
    ("c_apply", 0.87),
    ("a_life", 0.85),
    ("g_admission", 0.75),
];

fn corpus() -> Option<PathBuf> {
    let roots = [
        std::env::var("KEELSON_SHARED").ok(),
        Some("../../../shared".into()),
        Some("../../../../shared".into()),
    ];
    roots.into_iter().flatten().map(|r| PathBuf::from(r).join("data/kubernetes-corpus")).find(|p| p.is_dir())
}

#[derive(Default)]
struct Store {
    objects: BTreeMap<String, (Arc<Value>, &'static Resource)>,
    revision: u64,
    counter: u64,
}

impl View for Store {
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = resource::find_preferred(group, plural)?.key(namespace, name)?;
        self.objects.get(&key).map(|(o, _)| o.clone())
    }
    fn list(&self, group: &str, plural: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let Some(prefix) =
            resource::find_preferred(group, plural).and_then(|r| r.prefix(namespace.unwrap_or("")))
        else {
            return vec![];
        };
        self.objects
            .range(prefix.clone()..)
            .take_while(|(k, _)| k.starts_with(&prefix))
            .map(|(_, (o, _))| o.clone())
            .collect()
    }
}

impl Store {
    fn put(&mut self, r: &'static Resource, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let key = key_of(r, &object);
        let stored = core::convert::to_stored(r, object.clone());
        self.objects.insert(key, (Arc::new(stored), r));
        object
    }
}

fn key_of(r: &Resource, object: &Value) -> String {
    let text = |f: &str| object["metadata"][f].as_str().unwrap_or("").to_string();
    r.key(&text("namespace"), &text("name")).unwrap()
}

struct Answer {
    code: u16,
    body: Value,
}

fn ok(code: u16, body: Value) -> Answer {
    Answer { code, body }
}

/// Path to target; none when the core is not asked (lists, discovery, other kinds).
fn route(path: &str) -> Option<(&'static Resource, String, String, Option<String>)> {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (group, version, mut rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let mut namespace = "";
    if let ["namespaces", ns, plural, ..] = rest
        && !["status", "finalize"].contains(plural)
    {
        namespace = ns;
        rest = &rest[2..];
    }
    let plural = rest.first()?;
    let r = RESOURCES.iter().find(|r| r.group == group && r.version == version && r.plural == *plural)?;
    if r.namespaced == namespace.is_empty() {
        return None;
    }
    let name = rest.get(1).unwrap_or(&"").to_string();
    Some((r, namespace.into(), name, rest.get(2).map(|s| s.to_string())))
}

fn query(path: &str) -> BTreeMap<String, String> {
    let text = path.split_once('?').map_or("", |(_, q)| q);
    text.split('&')
        .filter_map(|p| p.split_once('='))
        .map(|(k, v)| (k.into(), v.replace("%3D", "=").replace("%2C", ",")))
        .collect()
}

/// One request; `Ok(None)` when it cannot be judged here.
fn request(store: &mut Store, case: &Value, body: &[u8], path: &str) -> Option<Result<Answer, Status>> {
    let method = case["request"]["method"].as_str()?;
    let bare = path.split('?').next()?;
    let (r, namespace, name, sub) = route(bare)?;
    if case["request"].get("user").is_some() || r.storage.is_none() {
        return None;
    }
    if let Some(sub) = &sub {
        let known = r.subresource(sub)?;
        if !["status", "scale", "finalize", "ephemeralcontainers", "approval"].contains(&sub.as_str()) {
            return None;
        }
        let verb = match method {
            "PUT" => "update",
            "PATCH" => "patch",
            "GET" => "get",
            _ => return None,
        };
        if !known.verbs.iter().any(|v| v == verb) {
            return None;
        }
    }
    let headers = &case["request"]["headers"];
    let content_type = headers["Content-Type"].as_str().unwrap_or("application/json");
    if headers["Accept"].as_str().is_some_and(|a| a != "application/json") {
        return None;
    }
    let q = query(path);
    let options = WriteOptions {
        dry_run: q.contains_key("dryRun"),
        field_manager: q.get("fieldManager").cloned().unwrap_or_else(|| {
            headers["User-Agent"]
                .as_str()
                .map_or("unknown".into(), |u| u.split('/').next().unwrap_or("").into())
        }),
        field_validation: FieldValidation::parse(q.get("fieldValidation").map_or("", |s| s))
            .unwrap_or_default(),
        force: q.get("force").is_some_and(|f| f == "true"),
    };
    if q.get("dryRun").is_some_and(|d| d != "All") {
        return None;
    }
    if q.get("fieldValidation").is_some_and(|v| FieldValidation::parse(v).is_none())
        || options.field_manager.len() > 128
    {
        return None;
    }
    store.counter += 1;
    let uid = format!("11111111-0000-4000-8000-{:012x}", store.counter);
    let user = UserInfo {
        name: "admin".into(),
        groups: vec!["system:masters".into(), "system:authenticated".into()],
        ..UserInfo::default()
    };
    let current = r
        .key(&namespace, &name)
        .and_then(|k| store.objects.get(&k))
        .map(|(o, _)| core::convert::from_stored(r, (**o).clone()));
    let view = std::mem::take(store);
    let ctx = Context {
        now: "2026-01-02T03:04:05Z".parse().unwrap(),
        uid: &uid,
        suffix: "bcdfg",
        user: &user,
        view: &view,
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        node_ports: (30000, 32767),
    };
    let target = Target { resource: r, subresource: sub.as_deref(), namespace: &namespace, name: &name };
    let result = act(method, &target, current.as_ref(), content_type, body, &q, &options, &ctx);
    *store = view;
    let result = match result? {
        Ok(step) => Ok(carry_out(store, r, step, options.dry_run, &namespace, &name)),
        Err(status) => Err(status),
    };
    Some(result)
}

enum Step {
    Read(Value),
    Write(core::Outcome),
    Delete(Deletion, Value),
}

#[allow(clippy::too_many_arguments)]
fn act(
    method: &str,
    target: &Target,
    current: Option<&Value>,
    content_type: &str,
    body: &[u8],
    q: &BTreeMap<String, String>,
    options: &WriteOptions,
    ctx: &Context,
) -> Option<Result<Step, Status>> {
    let not_found = || Err(Status::not_found(target.resource, target.name));
    Some(match method {
        "GET" if target.name.is_empty() => return None,
        "GET" => match (current, target.subresource) {
            (None, _) => not_found(),
            (Some(c), Some("scale")) => core::scale::read(target.resource, c).map(Step::Read),
            (Some(c), _) => Ok(Step::Read(c.clone())),
        },
        "POST" if target.name.is_empty() => {
            core::decode(target, content_type, body, options.field_validation)
                .and_then(|(v, _)| core::create(target, v, options, ctx))
                .map(Step::Write)
        }
        "PUT" if !target.name.is_empty() => {
            core::decode(target, content_type, body, options.field_validation)
                .and_then(|(v, _)| core::update(target, current, v, options, ctx))
                .map(Step::Write)
        }
        "PATCH" if !target.name.is_empty() => {
            let kind = PatchType::from_media_type(content_type)?;
            core::patch(target, current, kind, body, options, ctx).map(Step::Write)
        }
        "DELETE" if !target.name.is_empty() => {
            let body: Value =
                if body.is_empty() { json!({}) } else { serde_json::from_slice(body).unwrap_or(Value::Null) };
            if body.get("kind").is_some_and(|k| k != "DeleteOptions") {
                return None;
            }
            let mut delete = match DeleteOptions::from_value(&body) {
                Ok(o) => o,
                Err(e) => return Some(Err(e)),
            };
            if let Some(p) = q.get("propagationPolicy") {
                delete.propagation_policy = Some(p.clone());
            }
            if let Some(g) = q.get("gracePeriodSeconds") {
                delete.grace_period_seconds = g.parse().ok();
            }
            match current {
                None => not_found(),
                Some(c) => core::delete(target, c, &delete, ctx).map(|d| Step::Delete(d, c.clone())),
            }
        }
        _ => return None,
    })
}

fn carry_out(
    store: &mut Store,
    r: &'static Resource,
    step: Step,
    dry: bool,
    namespace: &str,
    name: &str,
) -> Answer {
    match step {
        Step::Read(v) => ok(200, v),
        Step::Write(o) => {
            let key = key_of(r, &o.object);
            if let Some((old, _)) = store.objects.get(&key).filter(|_| o.created) {
                let name = o.object["metadata"]["name"].as_str().unwrap_or("");
                let gone = !old["metadata"]["deletionTimestamp"].is_null();
                let status =
                    if gone { Status::being_deleted(r, name) } else { Status::already_exists(r, name) };
                return ok(409, status.to_value());
            }
            let answer = o.answer.clone();
            let mut object = o.object;
            if o.remove && !dry {
                store.objects.remove(&key);
            } else if !dry && !o.unchanged {
                object = store.put(r, object);
            } else if let Some((current, _)) = store.objects.get(&key) {
                object["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"].clone();
            }
            ok(if o.created { 201 } else { 200 }, answer.unwrap_or(object))
        }
        Step::Delete(Deletion::Remove { answer, .. }, current) => {
            if !dry {
                store.objects.remove(&r.key(namespace, name).unwrap());
            }
            let uid = current["metadata"]["uid"].as_str().unwrap_or("");
            ok(200, answer.unwrap_or_else(|| Status::deleted(r, name, uid).to_value()))
        }
        Step::Delete(Deletion::Update { object, unchanged }, _) => {
            let object = if dry || unchanged { object } else { store.put(r, object) };
            ok(200, object)
        }
    }
}

/// Takes out what differs between two runs of the same thing.
fn normal(v: &Value, managed: bool) -> Value {
    match v {
        Value::Object(map) => {
            let mut out = Map::new();
            for (k, child) in map {
                if k == "metadata" {
                    let mut meta = child.as_object().cloned().unwrap_or_default();
                    for f in ["uid", "resourceVersion", "creationTimestamp"] {
                        meta.remove(f);
                    }
                    if !managed {
                        meta.remove("managedFields");
                    }
                    for entry in
                        meta.get_mut("managedFields").and_then(Value::as_array_mut).into_iter().flatten()
                    {
                        entry.as_object_mut().map(|e| e.remove("time"));
                    }
                    out.insert(k.clone(), normal(&Value::Object(meta), true));
                } else {
                    out.insert(k.clone(), normal(child, managed));
                }
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

/// Whether the answer is what was recorded; `<…>` in the recording stands for anything of its kind.
fn same(want: &Value, got: &Value) -> bool {
    match (want, got) {
        (Value::String(w), g) if w.contains('<') || w.contains("{{") || w.contains("\n@@") => {
            let Some(g) = g.as_str() else { return w.starts_with("<nodePort>") && g.is_number() };
            // What follows is a picture of another program's memory.
            if let Some((head, _)) = w.split_once("\n@@") {
                return g.starts_with(head) || g.starts_with(head.trim_end());
            }
            pattern(w, g)
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|g| same(v, g)))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(x, y)| same(x, y)),
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (a, b) => a == b,
    }
}

/// Where two answers differ, in words.
fn differences(want: &Value, got: &Value, path: &str, out: &mut Vec<String>) {
    match (want, got) {
        _ if same(want, got) => {}
        (Value::Object(a), Value::Object(b)) => {
            // The causes say the same as the message.
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for k in keys.into_iter().filter(|k| *k != "causes" || a.get("message").is_none()) {
                differences(
                    a.get(k).unwrap_or(&Value::Null),
                    b.get(k).unwrap_or(&Value::Null),
                    &format!("{path}.{k}"),
                    out,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (x, y)) in a.iter().zip(b).enumerate() {
                differences(x, y, &format!("{path}[{i}]"), out);
            }
        }
        (a, b) => out.push(format!("{path}\n    want {a}\n    got  {b}")),
    }
}

fn pattern(want: &str, got: &str) -> bool {
    let marks = ["<uid>", "<time>", "<rand5>", "<clusterIP>", "<nodePort>", "<rv>", "{{ns}}"];
    let mut pieces = vec![want.to_string()];
    for mark in marks {
        pieces = pieces.iter().flat_map(|p| p.split(mark).map(String::from).collect::<Vec<_>>()).collect();
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

static PRIORITY_CLASSES: LazyLock<Vec<(&'static Resource, Value)>> = LazyLock::new(|| {
    core::bootstrap::objects().into_iter().filter(|(r, _)| r.plural == "priorityclasses").collect()
});

fn with_fresh_namespace() -> Store {
    let mut store = Store::default();
    let meta = |n: &str| json!({"name": n, "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"});
    let namespaces = resource::find_preferred("", "namespaces").unwrap();
    for ns in ["nsx", "default", "kube-system"] {
        store.put(namespaces, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta(ns), "status": {"phase": "Active"}}));
    }
    let mut account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("default")});
    account["metadata"]["namespace"] = "nsx".into();
    store.put(resource::find_preferred("", "serviceaccounts").unwrap(), account);
    for (r, object) in PRIORITY_CLASSES.iter() {
        store.put(r, object.clone());
    }
    store
}

/// Replays one file; returns how many agreed and how many were judged.
fn replay(name: &str, only: Option<&str>) -> Option<(usize, usize, BTreeMap<String, usize>)> {
    let text = std::fs::read_to_string(corpus()?.join(format!("{name}.jsonl"))).ok()?;
    let (mut agreed, mut judged, mut wrong) = (0, 0, BTreeMap::new());
    let (mut store, mut sequence, mut answers) = (with_fresh_namespace(), String::new(), Vec::<Value>::new());
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let id = case["id"].as_str().unwrap();
        if only.is_some_and(|o| !case["seq"].as_str().unwrap().contains(o) && !id.contains(o)) {
            continue;
        }
        if case["seq"] != sequence.as_str() {
            store = with_fresh_namespace();
            sequence = case["seq"].as_str().unwrap().into();
            answers.clear();
        }
        let (body, path) = prepare(&case, &answers);
        let first =
            ["/life/create", "/life/Orphan-create", "/life/Foreground-create", "/life/Background-create"];
        if first.iter().any(|f| id.ends_with(f)) {
            // The recorder cleared away what the steps about a missing object had made.
            store = with_fresh_namespace();
        }
        let Some(result) = request(&mut store, &case, body.as_bytes(), &path) else {
            answers.push(Value::Null);
            continue;
        };
        let (code, got) = match result {
            Ok(a) => (a.code, a.body),
            Err(s) => (s.code, s.to_value()),
        };
        answers.push(got.clone());
        let want = &case["response"];
        if want["code"].is_null() {
            continue;
        }
        judged += 1;
        let managed = want["body"]["metadata"].get("managedFields").is_some();
        let (w, g) = (normal(&want["body"], managed), normal(&got, managed));
        let fine = want["code"] == code
            && (want["body"] == "not compared" || want.get("body").is_none() || same(&w, &g));
        if fine {
            agreed += 1;
            continue;
        }
        *wrong.entry(id.split('/').next().unwrap_or("").to_string()).or_insert(0) += 1;
        if only.is_some() {
            println!("{id} {path} {} -> {code}", want["code"]);
            println!("  sent {}", body.chars().take(400).collect::<String>());
            let mut shown = vec![];
            differences(&w, &g, "", &mut shown);
            shown.iter().take(4).for_each(|d| println!("  {}", d.chars().take(500).collect::<String>()));
        }
    }
    Some((agreed, judged, wrong))
}

fn prepare(case: &Value, answers: &[Value]) -> (String, String) {
    let fill = |text: &str| {
        let mut out = text.replace("{{ns}}", "nsx");
        while let Some(start) = out.find("{{") {
            let Some(end) = out[start..].find("}}") else { break };
            let inner = out[start + 2..start + end].to_string();
            let value = inner
                .split_once(':')
                .and_then(|(k, pointer)| answers.get(k.parse::<usize>().ok()?)?.pointer(pointer)?.as_str())
                .unwrap_or("")
                .to_string();
            out.replace_range(start..start + end + 2, &value);
        }
        out
    };
    let request = &case["request"];
    let body = if let Some(raw) = request["body_raw"].as_str() {
        fill(raw)
    } else if let Some(from) = request.get("body_from") {
        let mut base = answers.get(from["step"].as_u64().unwrap_or(0) as usize).cloned().unwrap_or_default();
        lay(&mut base, &from["merge"]);
        fill(&base.to_string())
    } else if request.get("body").is_some() {
        fill(&request["body"].to_string())
    } else {
        String::new()
    };
    (body, fill(request["path"].as_str().unwrap()))
}

fn lay(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (k, v) in patch {
        if v.is_null() {
            target.as_object_mut().unwrap().remove(k);
        } else {
            lay(&mut target[k], v);
        }
    }
}

#[test]
fn recorded_requests_are_answered_alike() {
    if corpus().is_none() {
        println!("skipped: no corpus (set KEELSON_SHARED to a directory with data/kubernetes-corpus)");
        return;
    }
    let only = std::env::var("KEELSON_CORPUS").ok();
    for (name, least) in FILES {
        let Some((agreed, judged, wrong)) = replay(name, only.as_deref()) else { continue };
        println!("{name}: {agreed}/{judged} {wrong:?}");
        if only.is_none() {
            assert!(
                agreed as f64 >= least * judged as f64,
                "{name}: {agreed} of {judged} agree; KEELSON_CORPUS=<id> shows the rest"
            );
        }
    }
}
