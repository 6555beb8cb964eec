//! A case being replayed: its members, what it has saved, its open streams, and what each kind of step does.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};

use super::door::{self, Api, Duplex};
use super::gateway::Socket;
use super::normal::{Names, count, loosen, same_stream, watch_view};
use super::{Case, Wire, gateway, http};
use crate::{Cluster, DEADLINE, Process};

/// How long a stream must be silent before its answers are taken for complete.
const SILENCE: Duration = Duration::from_millis(350);
/// How long recorded answers of a stream are waited for.
const STREAM: Duration = Duration::from_secs(6);

/// The stage.
pub struct Stage {
    wire: Wire,
    cluster: Cluster,
    binary: std::path::PathBuf,
    flags: Vec<String>,
    api: Api,
    names: Names,
    channels: Vec<Channel>,
    streams: BTreeMap<String, Stream>,
    background: BTreeMap<String, JoinHandle<Value>>,
    started: Vec<(String, &'static str)>,
}

/// A stream at either door.
enum Line {
    Grpc(Duplex),
    Gateway(Socket),
}

impl Line {
    async fn send(&mut self, message: &Value) {
        match self {
            Line::Grpc(duplex) => duplex.send(message).await,
            Line::Gateway(socket) => socket.send(message).await,
        }
    }

    fn waiting(&self) -> Vec<Value> {
        match self {
            Line::Grpc(duplex) => duplex.waiting(),
            Line::Gateway(socket) => socket.waiting(),
        }
    }

    fn take(&self) -> Vec<Value> {
        match self {
            Line::Grpc(duplex) => duplex.take(),
            Line::Gateway(socket) => socket.take(),
        }
    }

    async fn close(&mut self) {
        match self {
            Line::Grpc(duplex) => duplex.close(),
            Line::Gateway(socket) => socket.close().await,
        }
    }
}

struct Stream {
    duplex: Line,
    expected: Vec<Value>,
    answered: Vec<Value>,
    opened_at: usize,
}

fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned()).expect("a URL").connect_lazy()
}

fn port(url: &str) -> u16 {
    url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a URL with a port")
}

/// `a.b.0.c` in a value.
fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, part| match value {
        Value::Array(list) => list.get(part.parse::<usize>().ok()?),
        other => other.get(part),
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

impl Stage {
    /// Starts the case's members and waits until all serve.
    pub async fn new(wire: Wire, binary: &Path, case: &Case, more: &[&str]) -> Stage {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let members =
            (0..case.members).map(|i| Process::new(binary, folder.path(), &format!("m{i}"))).collect();
        let flags = case.flags.iter().map(String::as_str).chain(more.iter().copied()).map(str::to_owned);
        let mut stage = Stage {
            wire,
            cluster: Cluster { folder, members },
            binary: binary.to_owned(),
            flags: flags.collect(),
            api: Api::load(),
            names: Names::default(),
            channels: Vec::new(),
            streams: BTreeMap::new(),
            background: BTreeMap::new(),
            started: Vec::new(),
        };
        let initial = stage.cluster.initial();
        for i in 0..case.members {
            stage.know(i);
            stage.started.push((initial.clone(), "new"));
            stage.start(i);
        }
        for i in 0..case.members {
            stage.cluster.members[i].ready(1).await;
        }
        let list = stage.call(0, "/v3/cluster/member/list", &json!({}), MetadataMap::new()).await;
        for member in list["members"].as_array().into_iter().flatten() {
            let id = text(&member["ID"]).to_owned();
            stage.names.vars.insert(text(&member["name"]).to_owned(), id);
        }
        stage
    }

    /// Adds a member's ports and channel.
    fn know(&mut self, i: usize) {
        let member = &self.cluster.members[i];
        self.names.ports.push((port(&member.client), port(&member.peer)));
        self.channels.push(channel(&member.client));
    }

    fn start(&mut self, i: usize) {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let (initial, state) = self.started[i].clone();
        self.cluster.members[i].start(&initial, state, &flags);
    }

    /// `host:port` of a member's client URL.
    pub fn address(&self, i: usize) -> &str {
        self.cluster.members[i].client.strip_prefix("http://").expect("a plain URL")
    }

    async fn call(&self, member: usize, path: &str, request: &Value, with: MetadataMap) -> Value {
        door::call(&self.channels[member], &self.api.method(path), request, with).await
    }

    /// Runs every step; answers what differs: position and text.
    pub async fn run(&mut self, case: &Case) -> Vec<(usize, String)> {
        let mut differences = Vec::new();
        for (at, step) in case.steps.iter().enumerate() {
            let expected = &step["res"];
            let got = self.step(at, step).await;
            if let Some(text) = differs(step, expected, &got) {
                differences.push((at, text));
            }
        }
        for (name, stream) in &self.streams {
            let (wanted, got) = (watch_view(&stream.expected), watch_view(&stream.answered));
            if !same_stream(&wanted, &got) {
                differences.push((stream.opened_at, format!("stream {name}\nwant {wanted}\ngot  {got}")));
            }
        }
        differences.sort();
        differences
    }

    /// One step; answers what the recording holds as `res`.
    async fn step(&mut self, at: usize, step: &Value) -> Value {
        let member = step["member"].as_u64().unwrap_or(0) as usize;
        if step.get("call").is_some() {
            return self.call_step(member, step).await;
        }
        if step.get("http").is_some() {
            return self.http_step(member, step).await;
        }
        if let Some(action) = step["ws"].as_str() {
            return self.stream_step(at, member, action, step).await;
        }
        if let Some(action) = step["proc"].as_str() {
            return self.process_step(member, action, step).await;
        }
        if let Some(seconds) = step["sleep"].as_f64() {
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        } else if let Some(member) = step["make_leader"].as_u64() {
            self.make_leader(member as usize).await;
        } else if step.get("await_leader").is_some() {
            self.cluster.leader().await;
        } else if let Some(name) = step["bg"].as_str() {
            let method = self.api.method(text(&step["path"]));
            let (channel, request) = (self.channels[member].clone(), self.names.fill(&step["req"]));
            let with = self.metadata(step);
            let (wire, address) = (self.wire, self.address(member).to_owned());
            let (path, headers) = (text(&step["path"]).to_owned(), self.headers(step));
            let work = async move {
                match wire {
                    Wire::Grpc => json!({ "body": door::call(&channel, &method, &request, with).await }),
                    Wire::Gateway => gateway::call(&address, &path, &request, &headers).await,
                }
            };
            self.background.insert(name.to_owned(), tokio::spawn(work));
            let settle = step["settle"].as_f64().unwrap_or(0.3);
            tokio::time::sleep(Duration::from_secs_f64(settle)).await;
            return json!({ "pending": !self.background[name].is_finished() });
        } else if let Some(name) = step["join"].as_str() {
            let task = self.background.remove(name).expect("begun before");
            let body = task.await.expect("no panic");
            return self.outcome(step, body);
        } else {
            panic!("unknown step {step}");
        }
        json!({ "ok": true })
    }

    /// Token and headers of a step, as the gateway hands them on.
    fn metadata(&self, step: &Value) -> MetadataMap {
        let mut pairs = Vec::new();
        if let Some(token) = step["token"].as_str() {
            pairs.push(("authorization".to_owned(), self.names.fill_text(token)));
        }
        for (name, value) in step["headers"].as_object().into_iter().flatten() {
            let name = name.to_lowercase();
            let name = name.strip_prefix("grpc-metadata-").unwrap_or(&name).to_owned();
            pairs.push((name, text(value).to_owned()));
        }
        door::metadata(&pairs)
    }

    async fn call_step(&mut self, member: usize, step: &Value) -> Value {
        let mut request = step["req"].clone();
        if step["expand"].as_bool() == Some(true) {
            use base64::Engine;
            let length = request["value_of_x"].as_u64().expect("a length") as usize;
            let object = request.as_object_mut().expect("a request");
            object.remove("value_of_x");
            let value = base64::engine::general_purpose::STANDARD.encode(vec![b'x'; length]);
            object.insert("value".to_owned(), value.into());
        }
        let request = self.names.fill(&request);
        let path = text(&step["call"]);
        let answer = match self.wire {
            Wire::Grpc => json!({ "body": self.call(member, path, &request, self.metadata(step)).await }),
            Wire::Gateway => gateway::call(self.address(member), path, &request, &self.headers(step)).await,
        };
        self.outcome(step, answer)
    }

    fn outcome(&mut self, step: &Value, answer: Value) -> Value {
        for (name, path) in step["save"].as_object().into_iter().flatten() {
            if let Some(value) = at(&answer["body"], text(path)).and_then(Value::as_str) {
                self.names.vars.insert(name.clone(), value.to_owned());
            }
        }
        self.names.name(&answer)
    }

    /// Token and headers of a step.
    fn headers(&self, step: &Value) -> Vec<(String, String)> {
        let token = step["token"].as_str().map(|token| self.names.fill_text(token));
        let mut headers: Vec<_> =
            token.map(|token| ("authorization".to_owned(), token)).into_iter().collect();
        for (name, value) in step["headers"].as_object().into_iter().flatten() {
            headers.push((name.clone(), text(value).to_owned()));
        }
        headers
    }

    async fn http_step(&mut self, member: usize, step: &Value) -> Value {
        let headers = self.headers(step);
        let (method, path) = (text(&step["http"]), text(&step["path"]));
        let body = text(&step["body"]).to_owned();
        let answer = match http::request(self.address(member), method, path, &headers, body).await {
            Ok(answer) => answer,
            Err(error) => return json!({ "fail": error.to_string() }),
        };
        let mut out = Map::new();
        out.insert("http".to_owned(), answer.status.into());
        out.insert("content_type".to_owned(), answer.header("content-type").unwrap_or_default().into());
        for name in [
            "access-control-allow-origin",
            "access-control-allow-methods",
            "access-control-allow-headers",
            "allow",
            "location",
        ] {
            if let Some(value) = answer.header(name) {
                out.insert(name.to_owned(), value.into());
            }
        }
        let whole = answer.text();
        if step["names"].as_bool() == Some(true) {
            let mut names: Vec<String> = whole
                .lines()
                .filter_map(|line| line.strip_prefix("# TYPE "))
                .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
                .collect();
            names.sort_unstable();
            out.insert("metrics".to_owned(), names.into());
        } else if let Some(length) = step["nobody"].as_u64() {
            out.insert(
                "body_prefix".to_owned(),
                whole.chars().take(length as usize).collect::<String>().into(),
            );
        } else if answer.status != 204 || !whole.is_empty() {
            let parsed = serde_json::from_str::<Value>(&whole).ok().filter(|_| step.get("text").is_none());
            let body = parsed.map_or_else(|| self.names.name_text(&whole).into(), |v| self.names.name(&v));
            out.insert("body".to_owned(), body);
        }
        out.into()
    }

    /// A WebSocket of the recording is a gRPC stream here. The gateway hands no token on to a stream, so none is sent.
    async fn stream_step(&mut self, opened_at: usize, member: usize, action: &str, step: &Value) -> Value {
        let name = text(&step["name"]).to_owned();
        if action == "open" {
            let method = self.api.method(step["path"].as_str().unwrap_or("/v3/watch"));
            let duplex = match self.wire {
                Wire::Grpc => Line::Grpc(Duplex::open(&self.channels[member], &method, MetadataMap::new())),
                Wire::Gateway => {
                    let path = step["path"].as_str().unwrap_or("/v3/watch");
                    Line::Gateway(Socket::open(self.address(member), path).await)
                }
            };
            let stream = Stream { duplex, expected: Vec::new(), answered: Vec::new(), opened_at };
            self.streams.insert(name, stream);
            return json!({ "ok": true });
        }
        let message = self.names.fill(&step["msg"]);
        let stream = self.streams.get_mut(&name).expect("opened before");
        match action {
            "send" => stream.duplex.send(&message).await,
            "recv" => {
                let expected = step["res"]["msgs"].as_array().cloned().unwrap_or_default();
                let wanted = count(&expected);
                let begin = Instant::now();
                let (mut seen, mut since) = (usize::MAX, Instant::now());
                while begin.elapsed() < STREAM {
                    let waiting = stream.duplex.waiting();
                    if waiting.len() != seen {
                        (seen, since) = (waiting.len(), Instant::now());
                    }
                    let (events, controls) = count(&waiting);
                    if events >= wanted.0 && controls >= wanted.1 && since.elapsed() >= SILENCE {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let got = stream.duplex.take();
                stream.expected.extend(expected);
                stream.answered.extend(got.iter().map(|message| self.names.name(message)));
            }
            "close" => stream.duplex.close().await,
            other => panic!("unknown stream step {other}"),
        }
        json!({ "ok": true })
    }

    async fn process_step(&mut self, member: usize, action: &str, step: &Value) -> Value {
        match action {
            "add" => {
                let i = self.cluster.members.len();
                let process = Process::new(&self.binary, self.cluster.folder.path(), &format!("m{i}"));
                self.cluster.members.push(process);
                self.know(i);
            }
            "join" => {
                let initial = self.names.fill_text(text(&step["initial"]));
                self.started.push((initial, "existing"));
                self.start(member);
                self.applied_something(member).await;
            }
            "term" => drop(self.cluster.members[member].terminate()),
            "kill" => self.cluster.members[member].kill(),
            "start" => {
                let times = self.cluster.members[member].starts();
                self.start(member);
                if step["wait"].as_bool() != Some(false) {
                    self.cluster.members[member].ready(times + 1).await;
                }
            }
            other => panic!("unknown process step {other}"),
        }
        json!({ "ok": true })
    }

    async fn applied_something(&self, member: usize) {
        crate::eventually("the joined member applies", || async {
            let status = self.call(member, "/v3/maintenance/status", &json!({}), MetadataMap::new()).await;
            status.get("raftAppliedIndex").map(|_| ())
        })
        .await;
    }

    async fn make_leader(&self, member: usize) {
        let wanted = self.names.vars[&format!("m{member}")].clone();
        let begin = Instant::now();
        loop {
            let status = self.call(0, "/v3/maintenance/status", &json!({}), MetadataMap::new()).await;
            let leader = text(&status["leader"]);
            if leader == wanted {
                return;
            }
            let holder = (0..self.cluster.members.len())
                .find(|i| self.names.vars.get(&format!("m{i}")).is_some_and(|id| id == leader));
            if let Some(holder) = holder {
                let request = json!({ "targetID": wanted });
                self.call(holder, "/v3/maintenance/transfer-leadership", &request, MetadataMap::new()).await;
            }
            assert!(begin.elapsed() < DEADLINE, "m{member} never led");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// How an answer differs from the recorded one, if it does.
fn differs(step: &Value, wanted: &Value, got: &Value) -> Option<String> {
    let uncompared = step["nocompare"].as_bool() == Some(true)
        || ["ws", "proc", "sleep", "make_leader", "await_leader"].iter().any(|kind| step.get(kind).is_some());
    if uncompared {
        return None;
    }
    // A gRPC answer has no HTTP status; its code is in the body.
    let mut wanted = wanted.clone();
    if got.get("http").is_none()
        && let Some(wanted) = wanted.as_object_mut()
    {
        wanted.remove("http");
    }
    let call = text(&step["call"]);
    let (wanted, got) = (loosen(&wanted, call), loosen(got, call));
    if wanted == got {
        return None;
    }
    if step["unstable_ties"].as_bool() == Some(true) && same_but_for_ties(step, &wanted, &got) {
        return None;
    }
    Some(format!("want {wanted}\ngot  {got}"))
}

fn same_but_for_ties(step: &Value, wanted: &Value, got: &Value) -> bool {
    let sorted = |answer: &Value| {
        let mut kvs: Vec<String> =
            answer["body"]["kvs"].as_array().into_iter().flatten().map(Value::to_string).collect();
        kvs.sort_unstable();
        kvs
    };
    let (wanted, got) = (sorted(wanted), sorted(got));
    if step["req"].get("limit").is_some() { wanted.len() == got.len() } else { wanted == got }
}
