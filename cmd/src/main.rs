//! The keelson binary: looks at the first word, sets up logging and hands over to that part.
//!
//! Called as `etcd`, `etcdctl`, `etcdutl` or `kubectl` (a link of that name), it is that program. Growth: a subcommand is
//! one entry of [`PARTS`].

mod logging;

use std::path::Path;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How a part takes its arguments, and where its log lines go.
enum Entry {
    /// Without the program's name; logs in its own form.
    Bare(fn(Vec<String>) -> ExitCode),
    /// Without the program's name.
    Arguments(fn(Vec<String>) -> ExitCode),
    /// The program's name first.
    Named(fn(Vec<String>) -> ExitCode),
}

/// (word, what it does, how to run it). An empty text keeps it out of the help.
const PARTS: &[(&str, &str, Entry)] = &[
    (
        "up",
        "start (or repair) a local cluster: real nodes, real containers",
        Entry::Named(keelson_cluster::up_main),
    ),
    ("status", "what runs of the local cluster", Entry::Named(keelson_cluster::status_main)),
    ("down", "stop the local cluster, remove every trace", Entry::Named(keelson_cluster::down_main)),
    (
        "server",
        "store member, API server, controllers, scheduler",
        Entry::Named(keelson_cluster::server_main),
    ),
    (
        "agent",
        "one node: kubelet, service proxy, pod network, DNS",
        Entry::Named(keelson_cluster::agent_main),
    ),
    (
        "simulate",
        "nodes without containers: pods are only shown as running",
        Entry::Named(keelson_cluster::simulate_main),
    ),
    ("etcd", "the store alone, etcd's flags", Entry::Bare(keelson_store_server::main)),
    ("etcdctl", "etcd's client, for any etcd", Entry::Bare(keelson_etcdctl::main)),
    ("etcdutl", "etcd's offline tool: snapshots, hashes", Entry::Bare(keelson_store_server::utl_main)),
    ("apiserver", "the API server alone, on any etcd", Entry::Arguments(keelson_apiserver::main)),
    ("controller-manager", "the controllers alone", Entry::Named(keelson_controllers::main)),
    ("scheduler", "the scheduler alone", Entry::Arguments(keelson_scheduler::main)),
    ("kubelet", "the kubelet alone", Entry::Arguments(keelson_kubelet::main)),
    ("proxy", "the service proxy alone", Entry::Named(keelson_proxy::main)),
    ("kubectl", "kubectl's verbs; also without this word: get, apply, logs, why …", Entry::Bare(kubectl)),
    (
        "check",
        "the proof: models of all the cores, or those named",
        Entry::Bare(keelson_models::command::check),
    ),
    ("explore", "one model, step by step, in a browser", Entry::Bare(keelson_models::command::explore)),
    ("balance", "", Entry::Named(keelson_cluster::balance_main)),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments.collect();
    let called_as = Path::new(&program).file_name().map(|name| name.to_string_lossy().into_owned());
    match called_as.as_deref() {
        Some("etcd") => return keelson_store_server::main(arguments),
        Some("etcdctl") => return keelson_etcdctl::main(arguments),
        Some("etcdutl") => return keelson_store_server::utl_main(arguments),
        Some("kubectl") => return kubectl(arguments),
        _ => {}
    }
    let Some(word) = arguments.first() else {
        print!("{}", help());
        return ExitCode::from(2);
    };
    let rest = arguments[1..].to_vec();
    if let Some((name, _, entry)) = PARTS.iter().find(|(name, ..)| name == word) {
        return run(name, entry, rest);
    }
    match word.as_str() {
        "help" | "--help" | "-h" => {
            print!("{}", help());
            ExitCode::SUCCESS
        }
        "--version" | "-V" => {
            println!("keelson {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ if keelson_cli::is_command(word) => kubectl(arguments),
        _ => {
            eprintln!("keelson: unknown command {word:?}\n\n{}", help());
            ExitCode::from(2)
        }
    }
}

fn run(name: &str, entry: &Entry, rest: Vec<String>) -> ExitCode {
    match entry {
        Entry::Bare(start) => start(rest),
        Entry::Arguments(start) => {
            logging::start();
            start(rest)
        }
        Entry::Named(start) => {
            logging::start();
            let mut arguments = vec![format!("keelson {name}")];
            arguments.extend(rest);
            start(arguments)
        }
    }
}

fn kubectl(arguments: Vec<String>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(keelson_cli::run(arguments));
            // A read of the terminal may still be waiting.
            runtime.shutdown_background();
            ExitCode::from(u8::try_from(code).unwrap_or(1))
        }
        Err(error) => {
            eprintln!("keelson: cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

fn help() -> String {
    let mut text = String::from(
        "keelson: a replicated store that speaks etcd's API, a Kubernetes control plane on it, and the node agent\n\n\
         Usage: keelson COMMAND [FLAGS]      (keelson COMMAND --help says more)\n\n",
    );
    for (name, purpose, _) in PARTS.iter().filter(|(_, purpose, _)| !purpose.is_empty()) {
        text.push_str(&format!("  {name:<20}{purpose}\n"));
    }
    text.push_str(
        "\nEnvironment: KUBECONFIG for kubectl's verbs; KEELSON_LOG (info, debug, or target=level,…) and\n\
         KEELSON_LOG_FORMAT=json for logs.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_fits_one_screen_and_no_word_is_taken_twice() {
        let text = help();
        assert!(text.lines().count() <= 24, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
        let mut names: Vec<&str> = PARTS.iter().map(|(name, ..)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PARTS.len());
        let taken: Vec<&str> = names.into_iter().filter(|name| keelson_cli::is_command(name)).collect();
        assert!(taken.is_empty(), "kubectl's verbs hidden by a part: {taken:?}");
    }
}
