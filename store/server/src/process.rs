//! `keelson etcd` as a process: its flags, its log, its signals and how it ends. Exit codes are etcd's: 2 for bad flags, 1
//! for a member that cannot run, and after SIGINT or SIGTERM the signal itself, once the member has stopped.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use keelson_store_raft::prompt_thread;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failpoints;
use crate::flags::{self, Invocation, Mistake, Note, Run, Said};
use crate::handle::ETCD_VERSION;
use crate::logging::{self, FATAL, Logging};
use crate::store::{ListenerFailed, Store};

/// An error number as Go says it: without Rust's suffix, in small letters.
pub(crate) fn errno(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_ascii_lowercase().to_string() + letters.as_str()).unwrap_or_default()
}

/// `keelson etcd`: `args` without the program's name and subcommand.
pub fn main(args: Vec<String>) -> ExitCode {
    if args.first().is_some_and(|first| keelson_store_proxy::COMMANDS.contains(&first.as_str())) {
        return keelson_store_proxy::main(&args);
    }
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    let parsed = flags::parse(&args, &environment);
    let run = match parsed {
        Ok(Invocation::Version) => {
            println!("etcd Version: {ETCD_VERSION}\nkeelson Version: {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Ok(Invocation::Help) => {
            print!("{}", flags::help());
            return ExitCode::SUCCESS;
        }
        Ok(Invocation::Run(run)) => *run,
        Err(mistake) => return refuse(mistake, &args),
    };
    if let Err(error) = logging::init(&run.logging) {
        return refuse(Mistake::Verify(error, Box::default()), &args);
    }
    let code = start(run, &args);
    logging::flush();
    code
}

/// Says what is wrong where etcd says it.
fn refuse(mistake: Mistake, args: &[String]) -> ExitCode {
    let begin = |said: &Said| {
        if logging::init(&said.logging).is_err() {
            // Said on stderr instead.
            let _ = logging::init(&Logging::default());
        }
        tracing::info!(args = format!("{:?}", all(args)), "Running: ");
        say(&said.notes);
    };
    match mistake {
        Mistake::Usage(text) => {
            eprintln!("{text}\n{}", flags::USAGE);
            return ExitCode::from(2);
        }
        Mistake::Conflict(variable) => {
            let _ = logging::init(&Logging::default());
            tracing::error!(
                target: FATAL,
                { "environment-variable" = variable },
                "conflicting environment variable is shadowed by corresponding command-line flag (either unset \
                 environment variable or disable flag))"
            );
        }
        Mistake::Verify(error, said) => {
            begin(&said);
            tracing::warn!(error, "failed to verify flags");
            if error.starts_with("--advertise-client-urls is required") {
                tracing::warn!(error, "advertise client URLs are not set");
            }
        }
        Mistake::Start(error, said) => {
            begin(&said);
            tracing::error!(target: FATAL, error, "discovery failed");
        }
    }
    logging::flush();
    ExitCode::FAILURE
}

fn all(args: &[String]) -> Vec<&str> {
    std::iter::once("etcd").chain(args.iter().map(String::as_str)).collect()
}

fn say(notes: &[Note]) {
    for note in notes {
        match note {
            Note::Warning(text) => tracing::warn!("{text}"),
            Note::Error(error, text) => tracing::error!(error, "{text}"),
            Note::WarningOf(error, text) => tracing::warn!(error, "{text}"),
            Note::UnknownVariable(text) => {
                tracing::warn!("environment-variable" = text, "unrecognized environment variable");
            }
            Note::WithoutEffect(flag) => tracing::info!(flag, "this flag has no effect on this server"),
            Note::Variable(name, value) => tracing::info!(
                "variable-name" = name,
                "variable-value" = value,
                "recognized and used environment variable"
            ),
        }
    }
}

fn start(run: Run, args: &[String]) -> ExitCode {
    say(&run.notes);
    tracing::info!(args = format!("{:?}", all(args)), "Running: ");
    if let Err(error) = look_at(&run.config.data_dir) {
        let dir = run.config.data_dir.display().to_string();
        tracing::error!(target: FATAL, dir, error, "failed to list data directory");
        return ExitCode::FAILURE;
    }
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    let runtime = match threads.on_thread_start(prompt_thread).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(target: FATAL, %error, "cannot start threads");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(serve(run));
    match ended {
        Ok(signal) => by_signal(signal),
        Err(error) if error.is::<ListenerFailed>() => {
            tracing::error!(target: FATAL, error = format!("{error:#}"), "listener failed");
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!(target: FATAL, error = format!("{error:#}"), "discovery failed");
            ExitCode::FAILURE
        }
    }
}

/// Ends as a process does that was ended by this signal, so that whoever waits for it sees what happened. The first
/// process of a container has no default handler to fall back on.
fn by_signal(signal: i32) -> ExitCode {
    logging::flush();
    if std::process::id() != 1 {
        // Returns only when the signal is one that ends nothing.
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
    ExitCode::SUCCESS
}

/// Says what is strange about the data directory.
fn look_at(dir: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("readdirent {}: {}", dir.display(), errno(&error))),
        Ok(entries) => entries,
    };
    let mut initialized = false;
    for name in entries.filter_map(|entry| entry.ok().map(|entry| entry.file_name())) {
        let name = name.to_string_lossy().into_owned();
        match name.as_str() {
            "member" => initialized = true,
            // Certificates of --auto-tls.
            "fixtures" => {}
            _ => tracing::warn!(
                filename = name,
                "data-dir" = dir.display().to_string(),
                "found invalid file under data directory"
            ),
        }
    }
    if initialized {
        let dir = dir.display().to_string();
        tracing::info!("data-dir" = dir, "dir-type" = "member", "server has already been initialized");
    }
    let mode = std::fs::metadata(dir).map(|meta| meta.permissions().mode() & 0o777).unwrap_or(0o700);
    if mode != 0o700 {
        tracing::warn!(
            error = format!(
                "directory {:?} exist, but the permission is \"{}\". The recommended permission is \"-rwx------\" to \
                 prevent possible unprivileged access to the data",
                dir.display().to_string(),
                permissions(mode)
            ),
            "check file permission"
        );
    }
    Ok(())
}

/// `drwxr-xr-x`.
fn permissions(mode: u32) -> String {
    let mut text = String::from("d");
    for (index, letter) in "rwxrwxrwx".chars().enumerate() {
        text.push(if mode & (0o400 >> index) != 0 { letter } else { '-' });
    }
    text
}

/// Runs a member until SIGINT or SIGTERM; tells which.
async fn serve(run: Run) -> anyhow::Result<i32> {
    let stop = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    failpoints::begin().await?;
    let (name, data_dir) = (run.config.name.clone(), run.config.data_dir.display().to_string());
    tracing::info!(name, "data-dir" = data_dir, "etcd-version" = ETCD_VERSION, "starting an etcd server");
    let starting = Store::start(run.config, stop.clone());
    let store = tokio::select! {
        biased;
        _ = interrupt.recv() => return Ok(SignalKind::interrupt().as_raw_value()),
        _ = terminate.recv() => return Ok(SignalKind::terminate().as_raw_value()),
        store = starting => store?,
    };
    let stopped = store.stopped();
    tokio::pin!(stopped);
    let mut by = None;
    loop {
        let (kind, name) = tokio::select! {
            biased;
            _ = interrupt.recv() => (SignalKind::interrupt(), "interrupt"),
            _ = terminate.recv() => (SignalKind::terminate(), "terminated"),
            result = stopped.as_mut() => {
                result?;
                return Ok(by.unwrap_or(SignalKind::terminate().as_raw_value()));
            }
        };
        tracing::info!(signal = name, "received signal; shutting down");
        by.get_or_insert(kind.as_raw_value());
        stop.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_modes_read_as_gos() {
        let missing = std::io::Error::from_raw_os_error(2);
        assert_eq!(errno(&missing), "no such file or directory");
        assert_eq!(permissions(0o755), "drwxr-xr-x");
    }
}
