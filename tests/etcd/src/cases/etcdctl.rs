//! etcdctl as a client: each operation is a process, its JSON is read back.
//!
//! What it does not show: codes of errors (only texts), and that a watch is open, so cases give each a start.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::operation::{Answer, Compare, Event, Operation, Record};
use super::{PATIENCE, Place};

/// A child whose output is read line by line.
struct Running {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
    waiting: Vec<Event>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The client.
pub struct Etcdctl {
    program: PathBuf,
    arguments: Vec<String>,
    running: BTreeMap<String, Running>,
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Etcdctl {
    /// `program` against the members of a place.
    pub fn new(program: PathBuf, place: &Place) -> Etcdctl {
        let mut arguments = vec![format!("--endpoints={}", place.endpoints.join(","))];
        if let Some(tls) = &place.tls {
            let file = |flag: &str, name: &str| format!("--{flag}={}", tls.path(name).display());
            arguments.extend([
                file("cacert", "ca.pem"),
                file("cert", "client.pem"),
                file("key", "client-key.pem"),
            ]);
        }
        Etcdctl { program, arguments, running: BTreeMap::new() }
    }

    fn command(&self, words: &[String], user: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).args(&self.arguments).env("ETCDCTL_API", "3");
        if !user.is_empty() {
            command.arg(format!("--user={user}"));
        }
        command
    }

    /// Runs to the end; answers what it printed, or the error.
    fn run(&self, words: &[String], user: &str, input: &str) -> Result<String, Answer> {
        let mut command = self.command(words, user);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcdctl starts");
        let mut stdin = child.stdin.take().expect("piped");
        // One that is done before it has read everything is no failure.
        let _written = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("etcdctl ends");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(refused(&text(&output.stderr))),
        }
    }

    fn json(&self, words: &[String], user: &str) -> Result<Value, Answer> {
        let mut words = words.to_vec();
        words.push("--write-out=json".to_owned());
        let out = self.run(&words, user, "")?;
        serde_json::from_str(&out).map_err(|error| Answer::failed("", &format!("{error}: {out}")))
    }

    fn start(&mut self, name: &str, words: &[String], user: &str) {
        let mut child = self
            .command(words, user)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcdctl starts");
        let out = lines(child.stdout.take().expect("piped"));
        let err = lines(child.stderr.take().expect("piped"));
        self.running.insert(name.to_owned(), Running { child, out, err, waiting: Vec::new() });
    }

    /// Carries an operation out.
    pub fn call(&mut self, operation: &Operation) -> Answer {
        self.carry(operation).unwrap_or_else(|failed| failed)
    }

    fn carry(&mut self, o: &Operation) -> Result<Answer, Answer> {
        match o.name.as_str() {
            "txn" => self.txn(o),
            "get" if o.has("count-only") => self.count(o),
            "compact" => {
                let mut words = vec!["compaction".to_owned(), o.arg(0).to_owned()];
                words.extend(o.has("physical").then(|| "--physical".to_owned()));
                self.run(&words, &o.user, "").map(|_| Answer::default())
            }
            "watch" => {
                let mut words = vec!["watch".to_owned()];
                words.extend(o.args[1..].iter().cloned().chain(flags(o, &[])));
                words.push("--write-out=json".to_owned());
                self.start(o.arg(0), &words, &o.user);
                Ok(Answer::default())
            }
            "lock" => {
                self.start(o.arg(0), &["lock".to_owned(), o.arg(1).to_owned()], &o.user);
                Ok(Answer::default())
            }
            "elect" => {
                let words = ["elect".to_owned(), o.arg(1).to_owned(), o.arg(2).to_owned()];
                self.start(o.arg(0), &words, &o.user);
                Ok(Answer::default())
            }
            "leader" => self.leader(o),
            "events" | "ended" | "cancel" | "held" | "release" => {
                let mut running = self.running.remove(o.arg(0)).expect("it was started");
                let answer = match o.name.as_str() {
                    "events" => running.events(super::operation::number(o.arg(1)) as usize),
                    "ended" => running.ended(),
                    "held" => running.held(),
                    "release" => running.release(),
                    _ => Ok(Answer::default()),
                };
                if matches!(o.name.as_str(), "events" | "held") {
                    self.running.insert(o.arg(0).to_owned(), running);
                }
                answer
            }
            "user-passwd" => {
                let words = ["user", "passwd", o.arg(0), "--interactive=false"].map(str::to_owned);
                self.run(&words, &o.user, &format!("{}\n", o.arg(1))).map(|_| Answer::default())
            }
            "snapshot-save" => {
                let words = ["snapshot", "save", o.arg(0)].map(str::to_owned);
                // It takes one endpoint.
                let one = Etcdctl { program: self.program.clone(), ..Etcdctl::empty() };
                let first = self.arguments[0].split(',').next().unwrap_or_default().to_owned();
                let arguments = std::iter::once(first).chain(self.arguments[1..].iter().cloned()).collect();
                Etcdctl { arguments, ..one }.run(&words, &o.user, "").map(|_| Answer::default())
            }
            "auth-enable"
            | "auth-disable"
            | "user-add"
            | "user-delete"
            | "user-grant-role"
            | "user-revoke-role"
            | "role-add"
            | "role-delete"
            | "role-grant-permission"
            | "role-revoke-permission"
            | "member-remove"
            | "member-promote"
            | "member-update"
            | "defrag"
            | "move-leader" => self.run(&plain(o), &o.user, "").map(|_| Answer::default()),
            _ => Ok(read(o, &self.json(&plain(o), &o.user)?)),
        }
    }

    fn empty() -> Etcdctl {
        Etcdctl { program: PathBuf::new(), arguments: Vec::new(), running: BTreeMap::new() }
    }

    fn txn(&self, o: &Operation) -> Result<Answer, Answer> {
        let compares: Vec<String> = o.compare.iter().map(comparison).collect();
        let branch = |list: &[Operation]| -> String {
            let line = |o: &Operation| {
                let word = |word: &String| format!("{word:?}");
                let args: Vec<String> = o.args.iter().map(word).chain(flags(o, &[])).collect();
                format!("{} {}\n", o.name, args.join(" "))
            };
            list.iter().map(line).collect()
        };
        let input = format!("{}\n{}\n{}\n", compares.concat(), branch(&o.then), branch(&o.otherwise));
        let words = ["txn", "--interactive=false", "--write-out=json"].map(str::to_owned);
        let out = self.run(&words, &o.user, &input)?;
        let json =
            serde_json::from_str(&out).map_err(|error| Answer::failed("", &format!("{error}: {out}")))?;
        Ok(read(o, &json))
    }

    /// A count comes only among fields, `"Name" : VALUE` a line.
    fn count(&self, o: &Operation) -> Result<Answer, Answer> {
        let mut words = plain(o);
        words.push("--write-out=fields".to_owned());
        let out = self.run(&words, &o.user, "")?;
        let field = |name: &str| {
            let value = out.lines().find_map(|line| line.strip_prefix(&format!("{name:?} : ")));
            value.map_or(0, super::operation::number)
        };
        Ok(Answer { revision: field("Revision"), count: Some(field("Count")), ..Answer::default() })
    }

    /// Two lines, key and value, then it goes on listening.
    fn leader(&mut self, o: &Operation) -> Result<Answer, Answer> {
        let words = ["elect", "--listen", o.arg(0)].map(str::to_owned);
        self.start("leader", &words, &o.user);
        let running = self.running.remove("leader").expect("it was started");
        running.line()?;
        Ok(Answer { lines: vec![running.line()?], ..Answer::default() })
    }
}

impl Running {
    fn line(&self) -> Result<String, Answer> {
        let wait = self.out.recv_timeout(PATIENCE);
        wait.map_err(|_| Answer::failed("", &format!("it printed no line: {:?}", self.errors())))
    }

    fn errors(&self) -> Vec<String> {
        std::iter::from_fn(|| self.err.recv_timeout(Duration::from_millis(100)).ok()).collect()
    }

    fn events(&mut self, wanted: usize) -> Result<Answer, Answer> {
        while self.waiting.len() < wanted {
            let line = self.line()?;
            let response: Value = serde_json::from_str(&line)
                .map_err(|error| Answer::failed("", &format!("{error}: {line}")))?;
            self.waiting.extend(list(&response["Events"]).map(event));
        }
        Ok(Answer { events: std::mem::take(&mut self.waiting), ..Answer::default() })
    }

    /// `watch was canceled (REASON)`, the answer that ended it, then the end.
    fn ended(&self) -> Result<Answer, Answer> {
        loop {
            match self.err.recv_timeout(PATIENCE) {
                Ok(line) => {
                    if let Some((_, reason)) = line.split_once("watch was canceled (") {
                        let last: Value = serde_json::from_str(&self.line()?).unwrap_or_default();
                        let revision = int(&last["CompactRevision"]);
                        return Err(Answer { revision, ..Answer::failed("", reason.trim_end_matches(')')) });
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Err(Answer::failed("", "no reason")),
                Err(RecvTimeoutError::Timeout) => return Err(Answer::failed("", "it does not end")),
            }
        }
    }

    fn held(&self) -> Result<Answer, Answer> {
        Ok(Answer { id: self.line()?, ..Answer::default() })
    }

    /// An interrupt makes it give up what it holds.
    fn release(&mut self) -> Result<Answer, Answer> {
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "SIGINT");
        let _status = self.child.wait().expect("it ends");
        Ok(Answer::default())
    }
}

/// The last line that says what was wrong.
fn refused(stderr: &str) -> Answer {
    let line = stderr.lines().rev().find_map(|line| line.strip_prefix("Error: "));
    let line = line.unwrap_or(stderr.trim());
    let text = line.split_once("desc = ").map_or(line, |(_, text)| text);
    let wrapped = ["failed to revoke lease (", "failed to grant lease ("];
    let inner = wrapped.iter().find_map(|prefix| text.strip_prefix(prefix));
    let text = inner.map_or(text, |text| text.trim_end_matches(')'));
    Answer::failed("", text)
}

/// Flags as they are given, but for those that are renamed or left out (no second name).
fn flags(o: &Operation, renamed: &[(&str, Option<&str>)]) -> Vec<String> {
    let mut words = Vec::new();
    for (flag, value) in &o.flags {
        let name = match renamed.iter().find(|(from, _)| from == flag) {
            Some((_, None)) => continue,
            Some((_, Some(name))) => *name,
            None => flag.as_str(),
        };
        match (name, value.as_str()) {
            ("lease", id) => words.push(format!("--lease={}", hex(id))),
            (name, "") => words.push(format!("--{name}")),
            (name, value) => words.push(format!("--{name}={value}")),
        }
    }
    words
}

fn hex(id: &str) -> String {
    format!("{:x}", id.parse::<i128>().unwrap_or_else(|_| panic!("no id: {id}")))
}

/// Words of an operation that is a command of etcdctl's with its arguments.
fn plain(o: &Operation) -> Vec<String> {
    let families = ["lease", "user", "role", "member", "endpoint", "alarm", "auth"];
    let mut words = match o.name.split_once('-') {
        Some((family, command)) if families.contains(&family) => vec![family.to_owned(), command.to_owned()],
        _ => vec![o.name.clone()],
    };
    let mut args = o.args.clone();
    let by_id = [
        "lease-revoke",
        "lease-keep-alive",
        "lease-timetolive",
        "member-remove",
        "member-promote",
        "member-update",
        "move-leader",
    ];
    if by_id.contains(&o.name.as_str()) {
        args[0] = hex(&args[0]);
    }
    words.append(&mut args);
    words.extend(flags(o, &[]));
    match o.name.as_str() {
        "lease-keep-alive" => words.push("--once".to_owned()),
        "user-add" if !o.has("no-password") => words.push("--interactive=false".to_owned()),
        "defrag" => words.push("--command-timeout=20s".to_owned()),
        _ => {}
    }
    words
}

fn comparison(c: &Compare) -> String {
    let target = if c.target == "value" { "val" } else { &c.target };
    let value = if target == "lease" { hex(&c.value) } else { c.value.clone() };
    format!("{target}({:?}) {} {value:?}\n", c.key, c.result)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn bytes(value: &Value) -> String {
    let bytes = BASE64_STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

fn record(kv: &Value) -> Record {
    Record {
        key: bytes(&kv["key"]),
        value: bytes(&kv["value"]),
        create: int(&kv["create_revision"]),
        modified: int(&kv["mod_revision"]),
        version: int(&kv["version"]),
        lease: int(&kv["lease"]),
    }
}

fn event(event: &Value) -> Event {
    Event {
        delete: int(&event["type"]) == 1,
        record: record(&event["kv"]),
        prev: event.get("prev_kv").filter(|prev| !prev.is_null()).map(record),
    }
}

/// The answer that JSON of an operation is.
fn read(o: &Operation, json: &Value) -> Answer {
    let texts = |name: &str| -> Vec<String> {
        list(&json[name]).filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let number = |value: &Value| value.as_u64().map_or_else(|| value.to_string(), |n| n.to_string());
    let revision = int(&json["header"]["revision"]);
    match o.name.as_str() {
        "put" | "get" | "del" | "txn" => Answer { revision, ..kv(&o.name, json) },
        "lease-grant" => Answer { id: number(&json["ID"]), number: int(&json["TTL"]), ..Answer::default() },
        "lease-revoke" => Answer { revision, ..Answer::default() },
        "lease-keep-alive" => match int(&json["TTL"]) {
            0 => Answer::failed("", "etcdserver: requested lease not found"),
            ttl => Answer { number: ttl, ..Answer::default() },
        },
        "lease-timetolive" => {
            let (ttl, granted) = (int(&json["ttl"]), int(&json["granted-ttl"]));
            let mut lines: Vec<String> = list(&json["keys"]).map(bytes).collect();
            lines.sort();
            let number = if ttl < 0 || ttl > granted { ttl } else { granted };
            Answer { number, lines, ..Answer::default() }
        }
        "lease-list" => {
            let mut lines: Vec<String> = list(&json["leases"]).map(|lease| number(&lease["id"])).collect();
            if lines.iter().any(|id| id == "null") {
                lines = list(&json["leases"]).map(|lease| number(&lease["ID"])).collect();
            }
            lines.sort();
            Answer { lines, ..Answer::default() }
        }
        "auth-status" => {
            Answer { succeeded: Some(json["enabled"].as_bool().unwrap_or(false)), ..Answer::default() }
        }
        "user-get" | "role-list" => Answer { lines: texts("roles"), ..Answer::default() },
        "user-list" => Answer { lines: texts("users"), ..Answer::default() },
        "role-get" => {
            let line = |permission: &Value| {
                let kind = ["read", "write", "readwrite"][int(&permission["permType"]) as usize];
                let end = bytes(&permission["range_end"]).replace('\0', "\\0");
                format!("{kind} {} {end}", bytes(&permission["key"])).trim_end().to_owned()
            };
            Answer { lines: list(&json["perm"]).map(line).collect(), ..Answer::default() }
        }
        "member-list" => {
            let line = |member: &Value| {
                let learner = member["isLearner"].as_bool().unwrap_or(false);
                format!("{} {} {learner}", number(&member["ID"]), member["name"].as_str().unwrap_or_default())
            };
            let mut lines: Vec<String> = list(&json["members"]).map(line).collect();
            lines.sort();
            Answer { lines, ..Answer::default() }
        }
        "member-add" => Answer { id: number(&json["member"]["ID"]), ..Answer::default() },
        "alarm-list" => {
            let names = ["NONE", "NOSPACE", "CORRUPT"];
            let line = |alarm: &Value| names[int(&alarm["alarm"]) as usize].to_owned();
            Answer { lines: list(&json["alarms"]).map(line).collect(), ..Answer::default() }
        }
        "endpoint-status" => {
            let line = |one: &Value| {
                let status = &one["Status"];
                format!("{} {}", number(&status["header"]["member_id"]), number(&status["leader"]))
            };
            Answer { lines: list(json).map(line).collect(), ..Answer::default() }
        }
        "endpoint-hashkv" => {
            let hash = |one: &Value| number(&one.get("HashKV").unwrap_or(&one["HashKV"])["hash"]);
            Answer { lines: list(json).map(hash).collect(), ..Answer::default() }
        }
        other => Answer::failed("Client", &format!("etcdctl has no {other}")),
    }
}

/// An answer of the KV service, or one within a transaction's.
fn kv(name: &str, json: &Value) -> Answer {
    match name {
        "put" => {
            let prev = json.get("prev_kv").filter(|prev| !prev.is_null()).map(record);
            Answer { prev: prev.into_iter().collect(), ..Answer::default() }
        }
        "get" => Answer {
            count: Some(int(&json["count"])),
            more: json["more"].as_bool().unwrap_or(false),
            records: list(&json["kvs"]).map(record).collect(),
            ..Answer::default()
        },
        "del" => Answer {
            deleted: Some(int(&json["deleted"])),
            prev: list(&json["prev_kvs"]).map(record).collect(),
            ..Answer::default()
        },
        _ => {
            let response = |one: &Value| {
                let one = &one["Response"];
                let found = [
                    ("response_put", "put"),
                    ("response_range", "get"),
                    ("response_delete_range", "del"),
                    ("response_txn", "txn"),
                ];
                let (field, name) = found
                    .into_iter()
                    .find(|(field, _)| one.get(field).is_some())
                    .unwrap_or_else(|| panic!("no response: {one}"));
                kv(name, &one[field])
            };
            Answer {
                succeeded: Some(json["succeeded"].as_bool().unwrap_or(false)),
                responses: list(&json["responses"]).map(response).collect(),
                ..Answer::default()
            }
        }
    }
}
