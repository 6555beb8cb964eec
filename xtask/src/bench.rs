//! `cargo xtask bench`: release binaries, ours and the peer's in turn, ratios printed.

use crate::setup;
use crate::shell::{Failure, cargo, step, target_directory};

pub fn bench(arguments: &[String]) -> Result<(), Failure> {
    setup::for_build()?;
    step(
        "build (release)",
        &mut cargo(&["build", "--release", "--package", "keelson", "--package", "keelson-bench"]),
    )?;
    let mut command = std::process::Command::new(target_directory().join("release/keelson-bench"));
    command.env("KEELSON_BIN", target_directory().join("release/keelson")).args(arguments);
    if let Some(folder) = setup::etcd_binaries() {
        command.env("ETCD", folder.join("etcd"));
    }
    step("bench", &mut command)
}
