//! The Go client: a program of ours on etcd's own client module (`tests/etcd/clients/go`), built when first asked for.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use super::Place;
use super::operation::{Answer, Operation};

/// The client.
pub struct Go {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// The program; `None`, with a notice, where there is no Go to build it with or its modules cannot be had.
pub fn program() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    let go = std::env::var_os("GO").unwrap_or_else(|| "go".into());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/go");
    let test = std::env::current_exe().expect("a running test has a path");
    let program = test.with_file_name("etcd-go-client");
    let built = Command::new(go).args(["build", "-o"]).arg(&program).arg(".").current_dir(source).output();
    match built {
        Ok(output) if output.status.success() => return Some(program),
        Ok(output) => println!("notice: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => println!("notice: no Go: {error}"),
    }
    println!("notice: the Go client is not built; what it runs is skipped");
    None
}

impl Go {
    /// `program` against the members of a place.
    pub fn new(program: &Path, place: &Place) -> Go {
        let mut command = Command::new(program);
        command.arg(format!("--endpoints={}", place.endpoints.join(",")));
        if let Some(tls) = &place.tls {
            for (flag, name) in [("cacert", "ca.pem"), ("cert", "client.pem"), ("key", "client-key.pem")] {
                command.arg(format!("--{flag}={}", tls.path(name).display()));
            }
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the Go client starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Go { input: child.stdin.take(), output, child }
    }

    /// Carries an operation out.
    pub fn call(&mut self, operation: &Operation) -> Answer {
        let line = serde_json::to_string(operation).expect("an operation is JSON");
        let input = self.input.as_mut().expect("open until it is dropped");
        writeln!(input, "{line}").expect("the Go client reads");
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("the Go client answers");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?} to {line}"))
    }
}

impl Drop for Go {
    fn drop(&mut self) {
        // The end of its input ends it.
        self.input = None;
        let _reaped = self.child.wait();
    }
}
