//! What etcdctl prints and how it exits, replayed with our etcdctl against our member: every output format, messages,
//! flags of every command.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelson_etcd_tests::replay::corpus;
use keelson_etcd_tests::{Cluster, DEADLINE};
use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb as pb;
use serde_json::Value;

/// Steps that differ, by case and the command's words, and why. `docs/compatibility.md` says the same.
const DIFFERENT: &[(&str, &str, &str)] =
    &[("etcdctl-txn", "txn -i lease", "etcdctl panics at a comparison of leases; ours compares them")];

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// One case's member and what its texts stand for.
struct Stage {
    cluster: Cluster,
    member: u64,
    cluster_id: u64,
}

impl Stage {
    async fn new() -> Stage {
        let cluster = Cluster::start(Path::new(env!("CARGO_BIN_EXE_member")), 1, &[]).await;
        let client = cluster.members[0].connect().await;
        let status = client.status(pb::StatusRequest {}).await.expect("status");
        let header = status.header.expect("a header");
        Stage { cluster, member: header.member_id, cluster_id: header.cluster_id }
    }

    fn folder(&self) -> String {
        self.cluster.folder.path().display().to_string()
    }

    fn fill(&self, text: &str) -> String {
        text.replace("TMPDIR", &self.folder()).replace("${m0.hex}", &format!("{:x}", self.member))
    }

    /// Our answer in the recording's terms.
    fn clear(&self, text: &str) -> String {
        let member = &self.cluster.members[0];
        let mut text = text
            .replace(&self.folder(), "TMPDIR")
            .replace(&member.client, "http://127.0.0.1:PORT0")
            .replace(&member.peer, "http://127.0.0.1:PEER0");
        for (id, name) in [(self.member, "M0ID"), (self.cluster_id, "CLUSTERID")] {
            text = text.replace(&id.to_string(), name).replace(&format!("{id:x}"), name);
        }
        // The name every harness gives its first member.
        text.replace("m1", "m0")
    }

    async fn run(&self, step: &Value, patience: Duration) -> Output {
        let argv: Vec<String> = strings(&step["argv"]).iter().map(|arg| self.fill(arg)).collect();
        // A suite started in a shell's background has SIGINT ignored, and so would its children.
        let mut child = Command::new("env")
            .arg("--default-signal=INT")
            .arg(env!("CARGO_BIN_EXE_etcdctl"))
            .args(&argv[1..])
            .env("ETCDCTL_ENDPOINTS", &self.cluster.members[0].client)
            .current_dir(self.cluster.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcdctl starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        if let Some(text) = step["stdin"].as_str() {
            // Who does not read its input may have ended already.
            let _ = stdin.write_all(text.as_bytes());
        }
        let signalled = step["term_after"].is_number();
        let held = signalled.then_some(stdin);
        if signalled {
            tokio::time::sleep(patience).await;
            for call in step["meanwhile"].as_array().into_iter().flatten() {
                self.call(call).await;
            }
            tokio::time::sleep(patience).await;
            let sent =
                Command::new("kill").args(["-2", &child.id().to_string()]).status().expect("kill runs");
            assert!(sent.success(), "SIGINT");
        }
        let start = Instant::now();
        while child.try_wait().expect("it can be waited for").is_none() {
            if start.elapsed() > DEADLINE {
                child.kill().expect("killed");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(held);
        child.wait_with_output().expect("its output")
    }

    /// The two calls that recordings make meanwhile.
    async fn call(&self, call: &Value) {
        let client = self.cluster.members[0].connect().await;
        let bytes =
            |name: &str| STANDARD.decode(call["req"][name].as_str().unwrap_or_default()).expect("base64");
        match call["call"].as_str() {
            Some("/v3/kv/put") => {
                let request = pb::PutRequest {
                    key: bytes("key").into(),
                    value: bytes("value").into(),
                    ..Default::default()
                };
                client.put(request).await.expect("written");
            }
            Some("/v3/kv/deleterange") => {
                let request = pb::DeleteRangeRequest { key: bytes("key").into(), ..Default::default() };
                client.delete_range(request).await.expect("deleted");
            }
            other => panic!("no such call here: {other:?}"),
        }
    }
}

/// What of a text is a fact: ids are, under their names; terms, the frame's width and log lines are not.
fn facts(text: &str, loose: bool) -> String {
    let mut lines = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with("{\"level\"")) {
        let mut line = line.to_owned();
        for name in ["M0ID", "CLUSTERID"] {
            while let Some(at) = line.find(name).filter(|at| line[at + name.len()..].starts_with(['d', 'h']))
            {
                let rest = line[at + name.len()..].trim_start_matches(['d', 'h']).to_owned();
                line.truncate(at);
                line.push_str(&format!("\u{1}{}{rest}", &name[..1]));
            }
        }
        line = line.replace('\u{1}', "");
        line = line.replace("M0ID", "M").replace("CLUSTERID", "C");
        if line.starts_with(['┌', '├', '└']) {
            continue;
        }
        if line.starts_with('│') {
            let cells: Vec<&str> = line.split('│').map(str::trim).collect();
            line = cells.join("|");
        }
        lines.push(numbers(&line, loose));
    }
    lines.join("\n")
}

/// Raft's term, and where asked for every number, is no fact; the revision a command was run for is not either.
fn numbers(line: &str, loose: bool) -> String {
    let all = loose || line.starts_with("\"PUT\" \"") || line.starts_with("\"DELETE\" \"");
    let mut line = line.to_owned();
    for mark in ["\"raft_term\":", "\"RaftTerm\" : "] {
        if let Some(at) = line.find(mark) {
            let end = at + mark.len();
            let rest = line[end..].trim_start_matches(|c: char| c.is_ascii_digit()).to_owned();
            line = format!("{}T{rest}", &line[..end]);
        }
    }
    if !all {
        return line;
    }
    let plain: String =
        line.replace("TIME", "0ms").chars().filter(|c| !c.is_ascii_digit() && *c != '.').collect();
    plain.replace("µs", "s").replace("ms", "s")
}

/// What is not as recorded.
fn difference(stage: &Stage, step: &Value, output: &Output) -> Option<String> {
    let res = &step["res"];
    let exit =
        output.status.code().map_or_else(|| -i64::from(output.status.signal().unwrap_or(0)), i64::from);
    let expected = res["exit"].as_i64().unwrap_or(0);
    let stderr = stage.clear(&String::from_utf8_lossy(&output.stderr));
    if exit != expected {
        return Some(format!("exit {exit} instead of {expected}; {stderr}"));
    }
    if step["nocompare"] == true || step["exitonly"] == true || step["binary"] == true {
        return None;
    }
    let loose = step["loose"] == true;
    let stdout = stage.clear(&String::from_utf8_lossy(&output.stdout));
    for (name, ours, theirs) in [("stdout", &stdout, &res["stdout"]), ("stderr", &stderr, &res["stderr"])] {
        let (ours, theirs) = (facts(ours, loose), facts(theirs.as_str().unwrap_or_default(), loose));
        // What the terminal's own tool says of a missing terminal is not etcdctl's.
        let theirs: Vec<&str> = theirs.lines().filter(|line| !line.starts_with("stty:")).collect();
        if ours.trim_end() != theirs.join("\n").trim_end() {
            return Some(format!("{name}\n--- ours\n{ours}\n--- etcd's\n{}", theirs.join("\n")));
        }
    }
    None
}

fn known(case: &str, step: &Value) -> bool {
    let words = strings(&step["argv"])[1..].join(" ");
    let shape = if step["stdin"].as_str().is_some_and(|text| text.contains("lease(")) {
        format!("{words} lease")
    } else {
        words
    };
    DIFFERENT.iter().any(|(id, words, _)| *id == case && *words == shape)
}

/// Replays the cases that `choose` takes.
async fn replay(choose: impl Fn(&str) -> bool) {
    let Some(corpus) = corpus() else { return };
    let text = std::fs::read_to_string(corpus.join("etcdctl.jsonl")).expect("etcdctl.jsonl");
    let mut wrong = Vec::new();
    let mut count = 0;
    for case in text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON")) {
        let id = case["id"].as_str().expect("an id").to_owned();
        if !choose(&id) {
            continue;
        }
        let stage = Stage::new().await;
        for step in case["steps"].as_array().into_iter().flatten() {
            // The offline tool is another program.
            if !step["argv"].is_array() || step["argv"][0] != "etcdctl" || known(&id, step) {
                continue;
            }
            count += 1;
            let mut found = None;
            // A watch says nothing once it is there: who changes keys too early is given more time.
            for patience in [600, 2000, 6000] {
                let output = stage.run(step, Duration::from_millis(patience)).await;
                found = difference(&stage, step, &output);
                if found.is_none() || !step["term_after"].is_number() {
                    break;
                }
            }
            if let Some(found) = found {
                wrong.push(format!("{id} {:?}: {found}", strings(&step["argv"])));
            }
        }
    }
    assert!(count > 0, "no case");
    assert!(wrong.is_empty(), "{} of {count} steps differ\n{}", wrong.len(), wrong.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_prints_keys_and_transactions_as_recorded() {
    replay(|id| matches!(id, "etcdctl-kv" | "etcdctl-txn")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_watches_as_recorded() {
    replay(|id| id == "etcdctl-watch").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_locks_and_elects_as_recorded() {
    replay(|id| id == "etcdctl-lock-elect").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_drives_cluster_and_maintenance_as_recorded() {
    replay(|id| id == "etcdctl-cluster").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_manages_users_and_roles_as_recorded() {
    replay(|id| id == "etcdctl-auth").await;
}

/// Flags of a help text: name, letter, type and default.
fn flags_of(help: &str) -> BTreeMap<String, (String, String, String)> {
    let mut flags = BTreeMap::new();
    let is_flag =
        |line: &&str| line.trim_start_matches('-').starts_with(char::is_alphabetic) && line.starts_with('-');
    for line in help.lines().map(str::trim_start).filter(is_flag) {
        let (head, about) = line.split_once("   ").unwrap_or((line, ""));
        let (letter, long) = head.split_once(", ").unwrap_or(("", head));
        let (name, kind) = long.split_once(' ').unwrap_or((long, "bool"));
        let default = about.rsplit_once("(default ").map_or("", |(_, rest)| rest.trim_end_matches(')'));
        let entry = (letter.to_owned(), kind.to_owned(), default.to_owned());
        flags.insert(name.trim_start_matches('-').to_owned(), entry);
    }
    flags
}

#[test]
fn every_command_of_etcdctl_has_its_flags() {
    let Some(corpus) = corpus() else { return };
    let text = std::fs::read_to_string(corpus.join("help-etcdctl.json")).expect("help-etcdctl.json");
    let commands: Value = serde_json::from_str(&text).expect("JSON");
    let mut wrong = Vec::new();
    for command in commands.as_array().expect("a list") {
        let name = command["command"].as_str().expect("a name");
        let output = Command::new(env!("CARGO_BIN_EXE_etcdctl"))
            .args(name.split(' '))
            // This one's answer is its help.
            .args((name != "options").then_some("--help"))
            .output()
            .expect("etcdctl runs");
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        let usage = command["usage"].as_str().unwrap_or_default();
        let usage_there = usage.is_empty() || help.contains(&format!("Usage:\n  {usage}\n"));
        if !output.status.success() || !usage_there {
            wrong.push(format!("{name}: no usage {usage:?} in\n{help}"));
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let expected: BTreeMap<_, _> = command["flags"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|flag| {
                (text(&flag["flag"]), (text(&flag["short"]), text(&flag["type"]), text(&flag["default"])))
            })
            .collect();
        let ours = flags_of(&help);
        if ours != expected {
            wrong.push(format!("{name}: {ours:?} instead of {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} commands differ\n{}", wrong.len(), wrong.join("\n"));
}
