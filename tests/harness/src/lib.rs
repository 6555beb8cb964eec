//! What the end-to-end tests share: the binary under test, deadlines instead of sleeps, programs with captured output.
//!
//! Everything that waits does so on a condition with a deadline, polled every 100 ms; a deadline that passes
//! panics with the last thing seen.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary under test: `KEELSON_BIN`, else the debug build beside the running test.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("KEELSON_BIN") {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().expect("a running test has a path");
    let path = test.ancestors().nth(2).expect("target/debug/deps/test").join("keelson");
    assert!(
        path.exists(),
        "{} is not built: cargo build --package keelson, or set KEELSON_BIN",
        path.display()
    );
    path
}

/// Whether this process is root: containers and network namespaces need it.
pub fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// A stock kubectl of 1.32 or newer: `KUBECTL`, or the one on PATH.
pub fn kubectl() -> Option<PathBuf> {
    let path = std::env::var_os("KUBECTL").map_or_else(|| PathBuf::from("kubectl"), PathBuf::from);
    let output = Command::new(&path).args(["version", "--client", "-o", "json"]).output().ok()?;
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let minor = version["clientVersion"]["minor"].as_str()?.trim_end_matches('+').parse::<u32>().ok()?;
    (minor >= 32).then_some(path)
}

/// What a program printed and whether it succeeded.
#[derive(Debug, Clone)]
pub struct Ran {
    pub ok: bool,
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs a program to its end, killing it at the deadline.
pub fn run(command: &mut Command, deadline: Duration) -> Ran {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {:?}: {error}", command.get_program()));
    let pid = child.id();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if wait.recv_timeout(deadline) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    });
    let (mut out, mut err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let reader = std::thread::spawn(move || read(&mut err));
    let text = read(&mut out);
    let status = child.wait().expect("a child that was started can be waited for");
    drop(done);
    let _joined = guard.join();
    Ran { ok: status.success(), code: status.code(), out: text, err: reader.join().unwrap_or_default() }
}

fn read(from: &mut impl std::io::Read) -> String {
    let mut bytes = Vec::new();
    let _read = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran {
            ok: output.status.success(),
            code: output.status.code(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }
}

/// Runs a program with these words; see [`run`]. Sixty seconds.
pub fn call<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, words: &[S]) -> Ran {
    run(Command::new(program).args(words), Duration::from_secs(60))
}

/// Polls until `probe` gives a value; panics with the last refusal when `deadline` has passed.
pub fn eventually<T>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        let refusal = match probe() {
            Ok(value) => return value,
            Err(refusal) => refusal,
        };
        assert!(started.elapsed() < deadline, "{what}: not within {deadline:?}; last seen: {refusal}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
