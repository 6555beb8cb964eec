//! `etcd gateway` and `etcd grpc-proxy`: between clients and a cluster, without state of their own.
//!
//! The gateway passes bytes on and knows nothing of what they mean. The proxy ends connections (and TLS) itself and
//! passes gRPC calls on, each to an endpoint that answers. Neither merges watches nor caches: what a client asked is
//! what the cluster is asked.

mod calls;
mod flags;
mod relay;

use std::process::ExitCode;

/// Names of the subcommands here.
pub const COMMANDS: &[&str] = &["gateway", "grpc-proxy"];

/// `gateway start …` or `grpc-proxy start …`. Exit codes are etcd's: 1 for what cannot run, 0 for a clean stop.
pub fn main(args: &[String]) -> ExitCode {
    let (command, verb) = (args.first().map(String::as_str), args.get(1).map(String::as_str));
    let rest = args.get(2..).unwrap_or_default();
    let result = match (command, verb) {
        (Some("gateway"), Some("start")) => run(relay::Options::parse(rest), relay::run),
        (Some("grpc-proxy"), Some("start")) => run(calls::Options::parse(rest), calls::run),
        (Some("gateway"), _) => return usage(relay::HELP),
        _ => return usage(calls::HELP),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage(text: &str) -> ExitCode {
    println!("{text}");
    ExitCode::SUCCESS
}

fn run<O, F>(options: anyhow::Result<Option<O>>, serve: impl FnOnce(O) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let Some(options) = options? else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            biased;
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
            result = serve(options) => result,
        }
    })
}
