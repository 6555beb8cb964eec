//! Running keelson: `server`, `agent`, `simulate`, `up`, `down`, `status`, and the local load balancer.
//!
//! A cluster comes up like this: the first server makes the authorities and two secrets, and founds the store; others show
//! the token at the join endpoint, become learners, then voters; agents show it to have their certificates signed. `up`
//! does all of that on one machine, a network namespace and a containerd per node; without root with simulated nodes.
//!
//! Knows nothing of what any component decides.

mod addons;
mod agent;
mod balancer;
mod call;
mod client;
mod host;
mod join;
mod newcomer;
mod objects;
mod pki;
mod server;
mod settings;
mod simulated;
mod token;
mod up;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use keelson_store_server::prompt_thread;

pub use agent::main as agent_main;
pub use server::main as server_main;
pub use simulated::main as simulate_main;
pub use up::{balance_main, down_main, status_main, up_main};

/// Parses flags, starts the runtime, runs, and turns an error into one line and exit code 1.
fn program<F: Parser, R: Future<Output = Result<()>>>(
    name: &str,
    args: Vec<String>,
    run: impl FnOnce(F) -> R,
) -> ExitCode {
    let flags = match F::try_parse_from(args) {
        Ok(flags) => flags,
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    let runtime = threads.on_thread_start(prompt_thread).enable_all().build().context("start the runtime");
    match runtime.and_then(|runtime| {
        let ended = runtime.block_on(run(flags));
        // Blocking work that is still going on is not waited for.
        runtime.shutdown_background();
        ended
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
