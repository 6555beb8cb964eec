//! One recorded sequence against a running server: what is sent, and whether what comes back is what was recorded.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use serde_json::{Map, Value, json};

use crate::support::{Client, World};

mod compare;
mod ordered;

pub use ordered::Ordered;

/// What a case came to.
pub enum Verdict {
    Identical,
    Different { part: &'static str, text: String },
    Skipped(String),
}

/// Longest wait for an answer; recorded watches end after a second.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Headers that are compared.
const KEPT: [&str; 8] =
    ["Content-Type", "Warning", "Allow", "Location", "Retry-After", "WWW-Authenticate", "Vary", "ETag"];

/// An answer as it came.
pub struct Raw {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

/// Somebody with a connection that is kept.
struct Wire {
    client: Client,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Wire {
    async fn send(&mut self, method: &str, path: &str, headers: &[(String, String)], body: &str) -> Raw {
        if self.sender.as_ref().is_none_or(SendRequest::is_closed) {
            self.sender = Some(self.client.connect().await);
        }
        let mut request = Request::builder().method(method).uri(sendable(path)).header("host", "127.0.0.1");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).expect("a request");
        let sender = self.sender.as_mut().expect("connected above");
        let mut begun = None;
        let mut received = vec![];
        let asked = async {
            sender.ready().await?;
            let (head, mut body) = sender.send_request(request).await?.into_parts();
            begun = Some(head);
            while let Some(frame) = body.frame().await {
                received.extend_from_slice(&frame?.into_data().unwrap_or_default());
            }
            Ok::<_, hyper::Error>(())
        };
        let ended = tokio::time::timeout(PATIENCE, asked).await;
        if !matches!(ended, Ok(Ok(()))) {
            self.sender = None;
        }
        let error = match (ended, begun) {
            // A stream without end was cut by the recorder as well.
            (Ok(Ok(())) | Err(_), Some(head)) => {
                return Raw { code: head.status.as_u16(), headers: head.headers, body: received.into() };
            }
            (Ok(Err(error)), _) => error.to_string(),
            _ => "it does not begin".to_owned(),
        };
        let body = Bytes::from(format!("no answer: {error}"));
        Raw { code: 0, headers: http::HeaderMap::new(), body }
    }
}

/// The server under test and where in it the replay is.
pub struct Runner {
    _world: World,
    wires: BTreeMap<&'static str, Wire>,
    namespaces: usize,
    shared: Option<String>,
}

/// JSON with a space after each comma and colon, as the recorder wrote it.
fn spaced(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("[{}]", list.iter().map(spaced).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let entries: Vec<String> =
                map.iter().map(|(k, v)| format!("{}: {}", Value::from(k.as_str()), spaced(v))).collect();
            format!("{{{}}}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

/// A path with what may not stand in one written as percent signs.
fn sendable(path: &str) -> String {
    let odd = |b: u8| !(0x21..0x7f).contains(&b) || b"\"<>\\^`{|}".contains(&b);
    path.bytes().map(|b| if odd(b) { format!("%{b:02X}") } else { char::from(b).to_string() }).collect()
}

fn header(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// The resource a case is about, for the report.
pub fn resource_of(case: &Value) -> String {
    let path = case["request"]["path"].as_str().unwrap_or("").split('?').next().unwrap_or("");
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let rest = match parts.as_slice() {
        ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
        _ => return path.to_owned(),
    };
    match rest {
        ["namespaces", _, plural, ..] if !["status", "finalize"].contains(plural) => (*plural).to_owned(),
        [plural, ..] => (*plural).to_owned(),
        [] => path.to_owned(),
    }
}

impl Runner {
    pub async fn start() -> Runner {
        let world = World::start().await;
        // Where it was recorded, the first revisions were long gone.
        world.forget(2).await;
        let wire = |client: Client| Wire { client, sender: None };
        let wires = BTreeMap::from([
            ("admin", wire(world.admin.clone())),
            ("anonymous", wire(world.nobody.clone())),
            ("alice", wire(world.user("alice", "devs"))),
            ("bob", wire(world.user("bob", "ops"))),
        ]);
        Runner { _world: world, wires, namespaces: 0, shared: None }
    }

    async fn admin(&mut self, method: &str, path: &str, media_type: &str, body: &str) -> Raw {
        let mut headers = vec![header("Accept", "application/json")];
        if !body.is_empty() {
            headers.push(header("Content-Type", media_type));
        }
        self.wires.get_mut("admin").expect("admin").send(method, path, &headers, body).await
    }

    async fn namespace(&mut self) -> String {
        self.namespaces += 1;
        let ns = format!("cn-{:05}", self.namespaces);
        let meta = |name: &str| json!({"metadata": {"name": name}}).to_string();
        self.admin("POST", "/api/v1/namespaces", "application/json", &meta(&ns)).await;
        let accounts = format!("/api/v1/namespaces/{ns}/serviceaccounts");
        self.admin("POST", &accounts, "application/json", &meta("default")).await;
        ns
    }

    /// Deletes an object whatever holds it.
    async fn wipe(&mut self, path: &str, kind: &str) {
        let options = "?gracePeriodSeconds=0&propagationPolicy=Background";
        self.admin("DELETE", &format!("{path}{options}"), "", "").await;
        let got = self.admin("GET", path, "", "").await;
        if got.code != 200 {
            return;
        }
        if kind == "Namespace" {
            let mut object: Value = serde_json::from_slice(&got.body).unwrap_or_default();
            object["spec"] = json!({"finalizers": []});
            self.admin("PUT", &format!("{path}/finalize"), "application/json", &object.to_string()).await;
        }
        let patch = r#"{"metadata":{"finalizers":null}}"#;
        self.admin("PATCH", path, "application/merge-patch+json", patch).await;
        self.admin("DELETE", &format!("{path}?gracePeriodSeconds=0"), "", "").await;
    }

    /// Runs a sequence.
    pub async fn sequence(&mut self, cases: &[Value]) -> Vec<Verdict> {
        let stem = |v: &Value| v.as_str().unwrap_or("").split('~').next().unwrap_or("").to_owned();
        let alone = cases.len() == 1 && stem(&cases[0]["seq"]) == stem(&cases[0]["id"]);
        let ns = match (&self.shared, alone) {
            (Some(ns), true) => ns.clone(),
            (_, false) => self.namespace().await,
            (None, true) => {
                let ns = self.namespace().await;
                self.shared = Some(ns.clone());
                ns
            }
        };
        let mut state = Sequence { ns, answers: vec![], versions: BTreeMap::new(), created: vec![] };
        let mut verdicts = vec![];
        for case in cases {
            verdicts.push(self.case(case, &mut state).await);
        }
        for (path, kind) in state.created.iter().rev() {
            if alone || kind == "Namespace" || !path.contains("/namespaces/") {
                self.wipe(path, kind).await;
            }
        }
        verdicts
    }

    async fn case(&mut self, case: &Value, state: &mut Sequence) -> Verdict {
        let request = &case["request"];
        let (path, headers, body) = match state.prepare(request) {
            Ok(ready) => ready,
            Err(why) => {
                state.answers.push(Value::Null);
                return Verdict::Skipped(why);
            }
        };
        let method = request["method"].as_str().unwrap_or("GET");
        let id = case["id"].as_str().unwrap_or("");
        let bare = path.split('?').next().unwrap_or("").to_owned();
        let fresh =
            ["/life/create", "/life/Foreground-create", "/life/Orphan-create", "/life/Background-create"];
        if fresh.iter().any(|f| id.ends_with(f)) {
            let name = request["body"]["metadata"]["name"].as_str().unwrap_or("");
            let kind = request["body"]["kind"].as_str().unwrap_or("");
            self.wipe(&format!("{bare}/{name}"), kind).await;
        }
        let user = request["user"].as_str().unwrap_or("admin");
        let Some(wire) = self.wires.get_mut(user) else { return Verdict::Skipped(format!("no user {user}")) };
        let raw = wire.send(method, &path, &headers, &body).await;
        let answer: Value = serde_json::from_slice(&raw.body).unwrap_or_default();
        let verdict = compare::judge(case, &state.ns, &raw, &mut state.versions);
        if let Some(made) = state.note(method, &path, &bare, raw.code, &answer) {
            self.established(&made).await;
        }
        state.answers.push(answer);
        verdict
    }

    /// A definition takes effect a little later, and an APIService is judged then.
    async fn established(&mut self, path: &str) {
        for _ in 0..100 {
            let got = self.admin("GET", path, "", "").await;
            let object: Value = serde_json::from_slice(&got.body).unwrap_or_default();
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let is = |kind: &str, status: &str| {
                conditions.iter().any(|c| c["type"] == kind && c["status"] == status)
            };
            if is("Established", "True") || is("NamesAccepted", "False") || is("Available", "False") {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

/// Where a sequence is.
struct Sequence {
    ns: String,
    answers: Vec<Value>,
    /// The last revision seen of each object.
    versions: BTreeMap<String, i64>,
    /// Path and kind of what was made.
    created: Vec<(String, String)>,
}

type Ready = (String, Vec<(String, String)>, String);

impl Sequence {
    /// Path, headers and body with what earlier answers say filled in.
    fn prepare(&self, request: &Value) -> Result<Ready, String> {
        let path = self.fill(request["path"].as_str().unwrap_or(""))?;
        let body = if let Some(from) = request.get("body_from") {
            let step = from["step"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            let mut base = self.answers.get(step).cloned().unwrap_or_default();
            let merge: Value =
                serde_json::from_str(&self.fill(&from["merge"].to_string())?).map_err(|e| e.to_string())?;
            lay(&mut base, &merge);
            Some(spaced(&base))
        } else if let Some(raw) = request["body_raw"].as_str() {
            Some(self.fill(raw)?)
        } else {
            request["body_text"].as_str().map(|text| self.fill(text)).transpose()?
        };
        let mut headers = vec![];
        match request["headers"].as_object().filter(|h| !h.is_empty()) {
            Some(given) => {
                for (name, value) in given {
                    headers.push((name.clone(), self.fill(value.as_str().unwrap_or(""))?));
                }
            }
            None => {
                headers.push(header("Accept", "application/json"));
                if body.is_some() {
                    headers.push(header("Content-Type", "application/json"));
                }
            }
        }
        Ok((path, headers, body.unwrap_or_default()))
    }

    /// Replaces `{{ns}}` and `{{step:/pointer}}`.
    fn fill(&self, text: &str) -> Result<String, String> {
        let text = text.replace("{{ns}}", &self.ns);
        let (mut out, mut rest) = (String::new(), text.as_str());
        while let Some(start) = rest.find("{{") {
            let (before, after) = rest.split_at(start);
            let found = after[2..].split_once("}}").and_then(|(inner, tail)| {
                let (step, pointer) = inner.split_once(':')?;
                Some((step.parse::<i64>().ok()?, pointer, tail))
            });
            let Some((step, pointer, tail)) = found else {
                out.push_str(before);
                out.push_str("{{");
                rest = &after[2..];
                continue;
            };
            let index = if step < 0 { self.answers.len() as i64 + step } else { step };
            let value = usize::try_from(index)
                .ok()
                .and_then(|i| self.answers.get(i)?.pointer(pointer))
                .ok_or_else(|| format!("an earlier answer lacks {pointer}"))?;
            out.push_str(before);
            out.push_str(&value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            rest = tail;
        }
        out.push_str(rest);
        Ok(out)
    }

    /// Remembers what was made; gives the path of a definition that has to take effect.
    fn note(&mut self, method: &str, path: &str, bare: &str, code: u16, answer: &Value) -> Option<String> {
        let name = answer["metadata"]["name"].as_str().filter(|n| !n.is_empty())?;
        let stored = answer["metadata"]["resourceVersion"].as_str().is_some_and(|v| !v.is_empty());
        let writes = ["POST", "PUT", "PATCH"].contains(&method) && !path.contains("dryRun");
        if !writes || !stored || ![200, 201].contains(&code) {
            return None;
        }
        let kind = answer["kind"].as_str().unwrap_or("");
        if code == 201 {
            let below = method == "POST" && !bare.ends_with(&format!("/{name}"));
            let at = if below { format!("{bare}/{}", name.replace(':', "%3A")) } else { bare.to_owned() };
            self.created.push((at, kind.to_owned()));
        }
        let waits = kind == "CustomResourceDefinition"
            || kind == "APIService" && answer["spec"]["service"].is_object();
        let made = method == "POST" && waits;
        let moved = kind == "APIService" && waits && method != "POST" && bare.ends_with(&format!("/{name}"));
        if made { Some(format!("{bare}/{name}")) } else { moved.then(|| bare.to_owned()) }
    }
}

/// A JSON merge patch.
fn lay(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (key, value) in patch {
        let Some(map) = target.as_object_mut() else { return };
        if value.is_null() {
            map.remove(key);
        } else {
            lay(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}
