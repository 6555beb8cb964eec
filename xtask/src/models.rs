//! The proof's own doors: models, interleavings, simulation.

use std::process::{Command, Stdio};

use crate::setup;
use crate::shell::{Failure, cargo, installed, root, step, target_directory};

/// `cargo xtask models [NAME ...] [--bound N] | --explore NAME`: the catalogue.
pub fn models(arguments: &[String]) -> Result<(), Failure> {
    step("models", cargo(&["run", "--quiet", "--package", "keelson-models", "--"]).args(arguments))
}

/// The models' own tests, which assert exact state counts.
pub fn model_tests() -> Result<(), Failure> {
    step("model tests", &mut cargo(&["test", "--package", "keelson-models"]))
}

/// A cargo call for loom: a target folder of its own, since `--cfg loom` rebuilds everything it touches.
pub fn loom_cargo() -> std::process::Command {
    let mut command = cargo(&["test", "--package", "keelson-loom"]);
    command
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_TARGET_DIR", target_directory().join("loom"))
        .env("LOOM_MAX_PREEMPTIONS", std::env::var("LOOM_MAX_PREEMPTIONS").unwrap_or_else(|_| "2".into()));
    command
}

/// `cargo xtask loom`.
pub fn loom(arguments: &[String]) -> Result<(), Failure> {
    step("loom", loom_cargo().args(arguments))
}

/// `cargo xtask sim [--cluster]`: `--seed N` replays one run, `--seeds N` tries that many.
pub fn sim(arguments: &[String]) -> Result<(), Failure> {
    setup::for_build()?;
    let (cluster, rest): (Vec<&String>, Vec<&String>) =
        arguments.iter().partition(|word| *word == "--cluster");
    let package = if cluster.is_empty() { "keelson-sim" } else { "keelson-simcluster" };
    step("sim", cargo(&["run", "--quiet", "--package", package, "--"]).args(rest))
}

/// A simulation's tests: pinned seeds, fresh seeds, the same seed twice.
pub fn sim_tests(package: &str) -> Result<(), Failure> {
    step("simulation tests", &mut cargo(&["test", "--package", package]))
}

/// `cargo xtask referee [COUNT]`: every history is judged by our checker and by porcupine.
pub fn referee(arguments: &[String]) -> Result<(), Failure> {
    if !installed("go") {
        return Err(Failure("porcupine is a Go module: install Go first".to_owned()));
    }
    let count = arguments.first().map_or("12000", String::as_str);
    step("build", &mut cargo(&["build", "--quiet", "--package", "keelson-sim"]))?;
    let failed = |error: std::io::Error| Failure(format!("referee: {error}"));
    let mut histories = Command::new(target_directory().join("debug/keelson-sim"))
        .args(["--histories", count])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let Some(output) = histories.stdout.take() else { return Err(Failure("referee: no output".to_owned())) };
    let mut judge = Command::new("go");
    judge.args(["run", "."]).current_dir(root().join("tests/referee")).stdin(output);
    step("referee", &mut judge)?;
    histories.wait().map_err(failed).map(drop)
}
