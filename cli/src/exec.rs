//! `exec`: a command in a container over WebSocket; streams both ways, terminal size, the command's exit code.
//!
//! Raw terminal mode is set and restored with stty, which every place that has a terminal also has: this crate needs no
//! unsafe code and no terminal library for it. The mode is restored on every way out.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use futures::SinkExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::args::Parsed;
use crate::logs;
use crate::session::{Session, translate};

/// Runs `exec`; the exit code is the command's.
pub async fn run(session: &Session, parsed: &Parsed) -> Result<i32> {
    let command = match &parsed.tail {
        Some(tail) if !tail.is_empty() => tail.clone(),
        _ => bail!("you must specify at least one command for the container: exec POD -- COMMAND"),
    };
    let pods = logs::pods(session, parsed).await?;
    let Some(pod) = pods.first() else { bail!("no pod found") };
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        bail!("cannot exec into a container in a completed pod; current phase is {}", pod["status"]["phase"]);
    }
    let container = container(pod, parsed);
    let stdin = parsed.has("stdin");
    let mut tty = parsed.has("tty");
    if tty && !is_terminal() {
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
        tty = false;
    }
    let params = AttachParams {
        container: Some(container),
        stdin,
        stdout: true,
        // A terminal has one output.
        stderr: !tty,
        tty,
        max_stdin_buf_size: Some(64 * 1024),
        max_stdout_buf_size: Some(64 * 1024),
        max_stderr_buf_size: Some(64 * 1024),
    };
    let api: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    let mut process = api.exec(name, command, &params).await.map_err(translate)?;
    let _raw = if tty { Some(RawMode::enter()?) } else { None };
    if tty && let Some(mut sizes) = process.terminal_size() {
        let mut changes = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change())?;
        tokio::spawn(async move {
            loop {
                if let Some((height, width)) = size()
                    && sizes.send(TerminalSize { height, width }).await.is_err()
                {
                    return;
                }
                if changes.recv().await.is_none() {
                    return;
                }
            }
        });
    }
    if let Some(mut input) = process.stdin() {
        tokio::spawn(async move {
            let mut own = stdin_bytes();
            while let Some(bytes) = own.recv().await {
                if input.write_all(&bytes).await.is_err() || input.flush().await.is_err() {
                    return;
                }
            }
            let _closed = input.shutdown().await;
        });
    }
    let status = process.take_status();
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let output = async { tokio::try_join!(copy(stdout, false), copy(stderr, true)) };
    output.await?;
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    Ok(match status {
        None => bail!("the connection ended before the command's status arrived"),
        Some(status) if status.status.as_deref() == Some("Success") => 0,
        Some(status) => {
            let causes = status.details.iter().flat_map(|details| details.causes.iter().flatten());
            let code = causes
                .into_iter()
                .find(|cause| cause.reason.as_deref() == Some("ExitCode"))
                .and_then(|cause| cause.message.as_deref()?.parse().ok());
            match code {
                Some(code) => {
                    if !parsed.has("quiet") {
                        eprintln!("command terminated with exit code {code}");
                    }
                    code
                }
                None => bail!("{}", status.message.unwrap_or_else(|| "the command could not be run".into())),
            }
        }
    })
}

fn container(pod: &serde_json::Value, parsed: &Parsed) -> String {
    let all: Vec<&str> = pod["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|container| container["name"].as_str())
        .collect();
    let marked = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    let chosen = parsed.get("container").or(marked);
    if chosen.is_none() && all.len() > 1 && !parsed.has("quiet") {
        eprintln!("Defaulted container {:?} out of: {}", all[0], all.join(", "));
    }
    chosen.or(all.first().copied()).unwrap_or_default().to_string()
}

async fn copy<R: tokio::io::AsyncRead + Unpin>(from: Option<R>, to_stderr: bool) -> Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        use std::io::Write;
        if to_stderr {
            std::io::stderr().lock().write_all(&buffer[..count])?;
        } else {
            let mut out = std::io::stdout().lock();
            out.write_all(&buffer[..count])?;
            out.flush()?;
        }
    }
}

/// Standard input, read by a thread of its own: a blocked read must not keep the program from ending.
fn stdin_bytes() -> tokio::sync::mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        use std::io::Read;
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count) = std::io::stdin().read(&mut buffer) {
            if count == 0 || sender.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

fn is_terminal() -> bool {
    use std::io::IsTerminal;
    std::io::stdin().is_terminal()
}

fn stty(args: &[&str]) -> Result<String> {
    let output = Command::new("stty")
        .args(args)
        .stdin(Stdio::inherit())
        .stderr(Stdio::null())
        .output()
        .context("running stty: install coreutils, or leave -t out")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// Rows and columns.
fn size() -> Option<(u16, u16)> {
    let text = stty(&["size"]).ok()?;
    let (rows, columns) = text.split_once(' ')?;
    Some((rows.parse().ok()?, columns.parse().ok()?))
}

/// Raw mode while it lives.
struct RawMode(String);

impl RawMode {
    fn enter() -> Result<RawMode> {
        let before = stty(&["-g"])?;
        stty(&["raw", "-echo"])?;
        Ok(RawMode(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _restored = stty(&[&self.0]);
    }
}
