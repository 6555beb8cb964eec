//! Running other programs: the one place where xtask starts a process.

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Why a developer command did not finish; printed once, by `main`.
#[derive(Debug)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The workspace's root: the folder above xtask's own.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask sits in the workspace").to_path_buf()
}

/// Cargo's output folder for this call.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A cargo call at the workspace's root. What `cargo run` told xtask about itself is kept from it: build scripts declare
/// that they depend on such variables, so a clone at another path, or a plain `cargo build` in between, would compile
/// ring and all that stands on it again.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_about_xtask(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command
}

fn is_about_xtask(variable: &str) -> bool {
    let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
    variable == "OUT_DIR" || prefixes.iter().any(|prefix| variable.starts_with(prefix))
}

/// Runs a step, printing its name before and its time after; fails with the exit status.
pub fn step(name: &str, command: &mut Command) -> Result<(), Failure> {
    println!("==> {name}");
    let started = Instant::now();
    let status = command
        .status()
        .map_err(|error| Failure(format!("{name}: cannot start {:?}: {error}", command.get_program())))?;
    println!(
        "==> {name}: {} after {:.1} s",
        if status.success() { "ok" } else { "FAILED" },
        started.elapsed().as_secs_f32()
    );
    if status.success() { Ok(()) } else { Err(Failure(format!("{name} failed ({status})"))) }
}

/// Whether a program of that name is on PATH (or is an existing absolute path).
pub fn installed(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", "command -v \"$0\" >/dev/null 2>&1", program])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}
