//! `cargo xtask`: the index of everything a developer does.
//!
//! Nothing but the standard library (and the catalogue of planted bugs), so that it builds in seconds on a machine that has nothing but Rust; it installs what
//! the rest of the build needs (Debian packages) before it starts it.

mod bench;
mod cluster;
mod ledger;
mod models;
mod mutants;
mod robustness;
mod setup;
mod shell;
mod suites;
mod verify;

use std::process::ExitCode;

use shell::Failure;

/// One developer command: a file or function here and one line in [`COMMANDS`].
struct Command {
    name: &'static str,
    arguments: &'static str,
    help: &'static str,
    run: fn(&[String]) -> Result<(), Failure>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "up",
        arguments: "[ARGS of keelson up]",
        help: "install what is missing, build, start a three-node HA cluster on this machine",
        run: cluster::up,
    },
    Command {
        name: "down",
        arguments: "",
        help: "stop that cluster and remove every trace of it",
        run: cluster::down,
    },
    Command { name: "status", arguments: "", help: "what of that cluster runs", run: cluster::status },
    Command {
        name: "test",
        arguments: "[--only SUITE,...]",
        help: "every suite that can run unattended: unit, models, loom, sim, store and cluster end to end",
        run: suites::test,
    },
    Command {
        name: "models",
        arguments: "[NAME ...] [--bound N]",
        help: "the stateright models, with their state counts; --explore NAME in a browser",
        run: models::models,
    },
    Command {
        name: "mutants",
        arguments: "--planted [NN ...] | --sieve",
        help: "bugs planted in the shipped code, or Sieve's mistakes in every controller: what catches each, how soon",
        run: mutants::mutants,
    },
    Command {
        name: "loom",
        arguments: "",
        help: "every interleaving of the hand-written concurrency",
        run: models::loom,
    },
    Command {
        name: "sim",
        arguments: "[--cluster] [--seed N [--shrink]] [--seeds N]",
        help: "the deterministic simulation of the store, or of the whole cluster; a failing seed replays",
        run: models::sim,
    },
    Command {
        name: "referee",
        arguments: "[COUNT]",
        help: "our linearizability checker beside porcupine (needs Go), on generated histories",
        run: models::referee,
    },
    Command {
        name: "robustness",
        arguments: "[SECONDS]",
        help: "three processes under kills, pauses, partitions and disk errors for an hour, judged and recorded",
        run: robustness::robustness,
    },
    Command {
        name: "verify",
        arguments: "[--report]",
        help: "all of the proof into the ledger, and the tables of docs/verification.md from it",
        run: verify::verify,
    },
    Command {
        name: "nightly",
        arguments: "[--hours N]",
        help: "the proof at its deep bounds, many seeds, every planted bug; all of it into the ledger",
        run: verify::nightly,
    },
    Command {
        name: "bench",
        arguments: "store [ARGS]",
        help: "ours beside etcd in one interleaved run",
        run: bench::bench,
    },
    Command {
        name: "tidy",
        arguments: "",
        help: "house rules: dependency edges, headers, doc references, format",
        run: suites::tidy,
    },
    Command {
        name: "setup",
        arguments: "",
        help: "only install what the build, the cluster and the suites need",
        run: setup::setup,
    },
    Command {
        name: "release",
        arguments: "",
        help: "the stripped, link-time optimised binary in target/dist/keelson",
        run: cluster::release,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(name) = arguments.first() else {
        print!("{}", help());
        return ExitCode::from(2);
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        print!("{}", help());
        return ExitCode::SUCCESS;
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprintln!("cargo xtask: no command {name:?}\n\n{}", help());
        return ExitCode::from(2);
    };
    match (command.run)(&arguments[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("cargo xtask {name}: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn help() -> String {
    let mut text = String::from("Usage: cargo xtask COMMAND\n\n");
    for command in COMMANDS {
        let call = format!("{} {}", command.name, command.arguments);
        text.push_str(&format!("  {:<32} {}\n", call.trim_end(), command.help));
    }
    text.push_str("\nThe cluster lives in .keelson/ of this checkout; `export KUBECONFIG=$PWD/.keelson/kubeconfig` for kubectl.\n");
    text
}
