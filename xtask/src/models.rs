//! The proof's own doors: models, interleavings, simulation.

use crate::setup;
use crate::shell::{Failure, cargo, step, target_directory};

/// `cargo xtask models [NAME]`: the catalogue's tests, which assert exact state counts.
pub fn models(arguments: &[String]) -> Result<(), Failure> {
    let mut command = cargo(&["test", "--package", "keelson-models", "--", "--nocapture"]);
    command.args(arguments);
    step("models", &mut command)
}

/// `cargo xtask loom`: a target folder of its own, since `--cfg loom` rebuilds everything it touches.
pub fn loom(arguments: &[String]) -> Result<(), Failure> {
    let mut command = cargo(&["test", "--package", "keelson-loom"]);
    command
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_TARGET_DIR", target_directory().join("loom"))
        .env("LOOM_MAX_PREEMPTIONS", std::env::var("LOOM_MAX_PREEMPTIONS").unwrap_or_else(|_| "2".into()))
        .args(arguments);
    step("loom", &mut command)
}

/// A cargo call that builds the simulation so that it replays: tokio's own randomness can be seeded only under
/// `tokio_unstable`, which wants a target folder of its own.
fn simulation(verb: &str) -> std::process::Command {
    let mut command = cargo(&[verb, "--quiet", "--package", "keelson-sim"]);
    command.env("RUSTFLAGS", "--cfg tokio_unstable").env("CARGO_TARGET_DIR", target_directory().join("sim"));
    command
}

/// `cargo xtask sim`: `--seed N` replays one run, `--seeds N` tries that many.
pub fn sim(arguments: &[String]) -> Result<(), Failure> {
    setup::for_build()?;
    step("sim", simulation("run").arg("--").args(arguments))
}

/// The simulation's tests: pinned seeds, fresh seeds, the same seed twice.
pub fn sim_tests() -> Result<(), Failure> {
    step("simulation tests", &mut simulation("test"))
}
