//! `up`, `down`, `status`: builds the binary and hands over to it; `release` builds the one to ship.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::setup;
use crate::shell::{Failure, cargo, root, step, target_directory};

/// Where the cluster of this checkout keeps its data, kubeconfig and logs.
fn data_directory() -> PathBuf {
    std::env::var_os("KEELSON_DATA").map_or_else(|| root().join(".keelson"), PathBuf::from)
}

fn binary() -> PathBuf {
    target_directory().join("release/keelson")
}

fn build() -> Result<(), Failure> {
    setup::for_nodes()?;
    step("build (release)", &mut cargo(&["build", "--release", "--package", "keelson"]))
}

fn hand_over(verb: &str, arguments: &[String]) -> Result<(), Failure> {
    let mut command = Command::new(binary());
    command.arg(verb).arg("--data-dir").arg(data_directory()).args(arguments);
    let error = command.exec();
    Err(Failure(format!("cannot start {}: {error}", binary().display())))
}

pub fn up(arguments: &[String]) -> Result<(), Failure> {
    build()?;
    hand_over("up", arguments)
}

pub fn down(arguments: &[String]) -> Result<(), Failure> {
    if !binary().exists() {
        build()?;
    }
    hand_over("down", arguments)
}

pub fn status(arguments: &[String]) -> Result<(), Failure> {
    if !binary().exists() {
        return Err(Failure("nothing was built yet: `cargo xtask up` starts a cluster".into()));
    }
    hand_over("status", arguments)
}

pub fn release(_: &[String]) -> Result<(), Failure> {
    setup::for_build()?;
    step("build (dist)", &mut cargo(&["build", "--profile", "dist", "--package", "keelson"]))?;
    println!("{}", target_directory().join("dist/keelson").display());
    Ok(())
}
