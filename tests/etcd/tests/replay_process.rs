//! How etcd starts, refuses and stops, replayed against our binary: exit codes, messages, the readiness line.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use keelson_etcd_tests::replay::corpus;
use keelson_etcd_tests::{DEADLINE, free_port};
use serde_json::Value;

/// The line that says a member serves.
const READY: &str = "ready to serve client requests";

/// Log lines of etcd's own inside, which say nothing to whoever runs it.
const INSIDE: &[&str] = &[
    "setting up serving from embedded etcd failed.",
    "stopping insecure grpc server due to error",
    "stopped insecure grpc server due to error",
    "closing peer listener",
    "closing client listener",
    "registerGateway failed",
    "simple token is not cryptographically signed",
];

/// Cases that differ, and why. `docs/compatibility.md` says the same.
const DIFFERENT: &[(&str, &str)] =
    &[("process-grpc-proxy-help", "the proxy and the gateway are parts of their own")];

/// Where a case runs: its folder and ports.
struct Place {
    folder: tempfile::TempDir,
    ports: [u16; 3],
}

impl Place {
    fn new() -> Place {
        Place {
            folder: tempfile::tempdir().expect("a folder"),
            ports: [free_port(), free_port(), free_port()],
        }
    }

    fn fill(&self, text: &str) -> String {
        let mut text = text.replace("TMPDIR", &self.folder.path().display().to_string());
        for (index, port) in self.ports.iter().enumerate() {
            text = text.replace(&format!("PORT{index}"), &port.to_string());
        }
        text
    }

    fn clear(&self, text: &str) -> String {
        let mut text = text.replace(&self.folder.path().display().to_string(), "TMPDIR");
        for (index, port) in self.ports.iter().enumerate() {
            text = text.replace(&port.to_string(), &format!("PORT{index}"));
        }
        text.replace("example.com:PORT0", "HOST")
    }

    fn spawn(&self, argv: &[String], env: &[(String, String)], run: usize) -> Running {
        let log = |name: &str| self.folder.path().join(format!("{name}.{run}"));
        let file = |path: &Path| std::fs::File::create(path).expect("a log file");
        let (stdout, stderr) = (log("stdout"), log("stderr"));
        let child = Command::new(env!("CARGO_BIN_EXE_member"))
            .args(argv)
            .envs(env.iter().cloned())
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(file(&stdout))
            .stderr(file(&stderr))
            .spawn()
            .expect("the member starts");
        Running { child, stdout, stderr }
    }
}

struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    fn read(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Until it has ended, or, where `stop` says so, until it serves and was then asked to stop.
    fn end(&mut self, stop: bool) -> Result<ExitStatus, String> {
        let start = Instant::now();
        let mut stopping = false;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return Ok(status);
            }
            if !stopping && self.read().contains(READY) {
                if !stop {
                    self.child.kill().expect("killed");
                    self.child.wait().expect("gone");
                    return Err("serves, where etcd ends".to_owned());
                }
                let sent = Command::new("kill").arg(self.child.id().to_string()).status().expect("kill runs");
                assert!(sent.success(), "SIGTERM");
                stopping = true;
            }
            if start.elapsed() > DEADLINE {
                self.child.kill().expect("killed");
                self.child.wait().expect("gone");
                return Err(format!("neither ready nor ended within {DEADLINE:?}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().map(|items| items.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

/// Files, folders, ports taken, a run before.
fn prepare(place: &Place, step: &Value, held: &mut Vec<TcpListener>, runs: &mut usize) -> Result<(), String> {
    let path = |name: &str| place.folder.path().join(name);
    if let (Some(name), Some(text)) = (step["file"].as_str(), step["text"].as_str()) {
        std::fs::write(path(name), place.fill(text)).map_err(|error| error.to_string())?;
    }
    if let Some(name) = step["dir"].as_str() {
        // As a shell would have made it.
        for folder in [path(name.split('/').next().unwrap_or(name)), path(name)] {
            std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
            let mode = step["mode"].as_u64().unwrap_or(0o755);
            let mode = std::fs::Permissions::from_mode(u32::try_from(mode).unwrap_or(0o755));
            std::fs::set_permissions(&folder, mode).map_err(|error| error.to_string())?;
        }
    }
    if let Some(index) = step["listen"].as_u64() {
        let port = place.ports[usize::try_from(index).unwrap_or(0)];
        held.push(TcpListener::bind(("127.0.0.1", port)).map_err(|error| error.to_string())?);
    }
    if step["run"].is_array() {
        let argv: Vec<String> = strings(&step["run"]).iter().map(|arg| place.fill(arg)).collect();
        *runs += 1;
        place.spawn(&argv, &[], *runs).end(true)?;
    }
    Ok(())
}

/// A level, message and error of the log.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    level: String,
    message: String,
    error: String,
}

impl Line {
    fn new(value: &Value, clear: impl Fn(&str) -> String) -> Line {
        let text = |key: &str| clear(value[key].as_str().unwrap_or_default());
        // How a YAML parser says it is its own.
        let error = text("error");
        let error = error.split("yaml: ").next().unwrap_or_default().to_owned();
        Line { level: text("level"), message: text("msg"), error }
    }

    /// Worth a look for whoever runs it.
    fn counts(&self) -> bool {
        matches!(self.level.as_str(), "warn" | "error" | "fatal") && !INSIDE.contains(&self.message.as_str())
    }
}

fn exit_code(status: ExitStatus) -> i64 {
    status.code().map_or_else(|| -i64::from(status.signal().unwrap_or(0)), i64::from)
}

/// What is not as recorded.
fn differences(case: &Value) -> Vec<String> {
    let place = Place::new();
    let (mut held, mut runs) = (Vec::new(), 0);
    for step in case["prepare"].as_array().into_iter().flatten() {
        if let Err(error) = prepare(&place, step, &mut held, &mut runs) {
            return vec![format!("preparing: {error}")];
        }
    }
    let env: Vec<(String, String)> = case["env"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect();
    let argv: Vec<String> = strings(&case["argv"]).iter().map(|arg| place.fill(arg)).collect();
    let serves = case["res"]["ran_until_signalled"].as_bool().unwrap_or(false);
    let mut running = place.spawn(&argv, &env, 0);
    let status = match running.end(serves) {
        Ok(status) => status,
        Err(error) => return vec![error, running.read()],
    };
    let mut found = Vec::new();
    let expected = case["res"]["exit"].as_i64().unwrap_or(0);
    if exit_code(status) != expected {
        found.push(format!("exit {} instead of {expected}", exit_code(status)));
    }
    let stdout = std::fs::read_to_string(&running.stdout).unwrap_or_default();
    if let Some(first) = strings(&case["res"]["stdout"]).first()
        && stdout.lines().next() != Some(first)
    {
        found.push(format!("stdout {stdout:?} instead of {first:?}"));
    }
    let stderr = place.clear(&running.read());
    found.extend(log_differences(case, &stderr, serves));
    if !found.is_empty() {
        found.push(stderr);
    }
    found
}

fn log_differences(case: &Value, stderr: &str, serves: bool) -> Vec<String> {
    let mut found = Vec::new();
    let ready = stderr.matches(READY).count();
    if serves != (ready == 1) {
        found.push(format!("the readiness line stands there {ready} times"));
    }
    if case["id"] == "process-console-log" {
        let shaped = |line: &str| line.split('\t').count() >= 4 && line.starts_with("20");
        found.extend(
            stderr.lines().filter(|line| !shaped(line)).map(|line| format!("no console line: {line}")),
        );
        return found;
    }
    let plain = strings(&case["res"]["stderr_plain"]);
    if let Some(first) = plain.first() {
        if stderr.lines().next() != Some(first) || stderr.lines().nth(1) != Some("Usage:") {
            found.push(format!("stderr instead of {first:?} and the usage"));
        }
        return found;
    }
    let mut ours = Vec::new();
    for line in stderr.lines() {
        match serde_json::from_str::<Value>(line) {
            Ok(value) if ["level", "ts", "caller", "msg"].iter().all(|key| value[*key].is_string()) => {
                ours.push(Line::new(&value, str::to_owned));
            }
            _ => found.push(format!("no line of a log: {line}")),
        }
    }
    if serves {
        let bad = ours.iter().filter(|line| matches!(line.level.as_str(), "error" | "fatal"));
        found.extend(bad.map(|line| format!("{line:?}")));
    }
    let mut rest = ours.iter();
    let recorded = case["res"]["log"].as_array().into_iter().flatten();
    let mut seen = Vec::new();
    for wanted in recorded.map(|value| Line::new(value, str::to_owned)).filter(Line::counts) {
        // etcd checks twice, and says so twice.
        if seen.contains(&wanted) {
            continue;
        }
        if !rest.any(|line| *line == wanted) {
            found.push(format!("not logged: {wanted:?}"));
        }
        seen.push(wanted);
    }
    found
}

#[test]
fn the_process_starts_refuses_and_stops_as_etcd_does() {
    let Some(corpus) = corpus() else { return };
    let text = std::fs::read_to_string(corpus.join("process.jsonl")).expect("process.jsonl");
    let (mut count, mut wrong) = (0, Vec::new());
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).expect("a line of JSON");
        let id = case["id"].as_str().expect("an id");
        if !case["argv"].is_array() || DIFFERENT.iter().any(|(different, _)| *different == id) {
            continue;
        }
        count += 1;
        let found = differences(&case);
        if !found.is_empty() {
            wrong.push(format!("{id}: {}", found.join("\n  ")));
        }
    }
    assert!(count > 50, "only {count} cases");
    assert!(wrong.is_empty(), "{} of {count} cases differ\n{}", wrong.len(), wrong.join("\n\n"));
}
