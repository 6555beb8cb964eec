//! `etcd`'s command line: Go-style flags, `ETCD_*` variables, a configuration file; etcd's defaults and refusals.
//!
//! One table ([`table`]) says what each flag does, per area in the files beside this one. `-x`, `--x`, `--x=v` and
//! `--x v` are the same; a switch takes its value only after `=`. Given twice, the last wins. A configuration file makes
//! every other flag and variable void.

mod clustering;
mod file;
pub(crate) mod go;
mod logs;
mod member;
mod security;
mod verify;

pub(crate) use verify::initial_cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::{Config, Endpoint, TlsConfig, TlsVersions};
use crate::logging::Logging;

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// `--version`.
    Version,
    /// `--help`.
    Help,
    /// Run a member.
    Run(Box<Run>),
}

/// A member to run.
#[derive(Debug)]
pub struct Run {
    /// How.
    pub config: Config,
    /// Where its log goes.
    pub logging: Logging,
    /// What to say at start.
    pub notes: Vec<Note>,
}

/// Something worth a line in the log before the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A warning.
    Warning(String),
    /// `ETCD_X=value` that is no flag.
    UnknownVariable(String),
    /// An error and what it happened to, before the one that ends the start.
    Error(&'static str, &'static str),
    /// The same as a warning.
    WarningOf(&'static str, &'static str),
    /// A flag that was given and does nothing here.
    WithoutEffect(&'static str),
    /// A variable that was read, and its value.
    Variable(String, String),
}

/// How a mistake ends the process.
#[derive(Debug)]
pub enum Mistake {
    /// A flag or its value: text and usage on stderr, exit 2.
    Usage(String),
    /// A variable that contradicts a flag: a fatal line in the log, exit 1.
    Conflict(String),
    /// Values that do not fit together: "failed to verify flags" in the log, exit 1.
    Verify(String, Box<Said>),
    /// Seen only once the start has begun: "discovery failed" in the log, exit 1.
    Start(String, Box<Said>),
}

/// Where a mistake is said, and what is said before it.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// The log, as far as it is known.
    pub logging: Logging,
    /// The warnings.
    pub notes: Vec<Note>,
}

/// The type of a flag's value in Go, which its refusals name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Int,
    Int64,
    Uint,
    Uint32,
    Uint64,
    Duration,
    Text,
    /// Comma-separated on the command line, an array in a file.
    List,
}

type Set = fn(&mut Draft, &str) -> Result<(), String>;

/// One flag.
struct Flag {
    name: &'static str,
    kind: Kind,
    /// Shown by the help.
    default: &'static str,
    help: &'static str,
    set: Set,
}

/// Shortens the tables.
const fn flag(name: &'static str, kind: Kind, default: &'static str, help: &'static str, set: Set) -> Flag {
    Flag { name, kind, default, help, set }
}

/// Flags whose subject does not exist here (a bbolt file, Raft's ticks, Go's profiler): their values are checked and
/// have no effect, which `docs/etcd-flags.md` lists.
const WITHOUT_EFFECT: &[&str] = &[
    "max-snapshots",
    "max-wals",
    "initial-election-tick-advance",
    "backend-bbolt-freelist-type",
    "backend-batch-interval",
    "backend-batch-limit",
    "bootstrap-defrag-threshold-megabytes",
    "compaction-batch-limit",
    "compaction-sleep-interval",
    "discovery-dial-timeout",
    "discovery-keepalive-time",
    "discovery-keepalive-timeout",
    "downgrade-check-time",
    "enable-pprof",
    "feature-gates",
    "grpc-keepalive-min-time",
    "memory-mlock",
    "pre-vote",
    "raft-read-timeout",
    "raft-write-timeout",
    "socket-reuse-address",
    "v2-deprecation",
    "warning-apply-duration",
];

/// Every flag by area.
const TABLE: &[(&str, &[Flag])] = &[
    ("Member", member::FLAGS),
    ("Clustering", clustering::FLAGS),
    ("Security", security::FLAGS),
    ("Logging and monitoring", logs::FLAGS),
];

fn table() -> impl Iterator<Item = &'static Flag> {
    TABLE.iter().flat_map(|(_, flags)| flags.iter())
}

/// A configuration being put together: what is verified as a whole is kept as given.
struct Draft {
    config: Config,
    logging: Logging,
    data_dir: String,
    initial_cluster: Option<String>,
    client: TlsConfig,
    peer: TlsConfig,
    tls_min: String,
    tls_max: String,
    compaction_mode: String,
    compaction_retention: String,
    discovery: clustering::DiscoveryDraft,
    gates: BTreeMap<&'static str, bool>,
    tracing: bool,
    traces: crate::traces::Options,
    trace_rate: i64,
    fallback: String,
    config_file: String,
    compact_hash_check: Duration,
    given: BTreeSet<&'static str>,
    notes: Vec<Note>,
}

impl Draft {
    fn new() -> Draft {
        Draft {
            config: Config::default(),
            logging: Logging::default(),
            data_dir: String::new(),
            initial_cluster: None,
            client: TlsConfig::default(),
            peer: TlsConfig::default(),
            tls_min: "TLS1.2".to_owned(),
            tls_max: String::new(),
            compaction_mode: "periodic".to_owned(),
            compaction_retention: "0".to_owned(),
            discovery: clustering::DiscoveryDraft::default(),
            gates: BTreeMap::new(),
            tracing: false,
            traces: crate::traces::Options::default(),
            trace_rate: 0,
            fallback: "exit".to_owned(),
            config_file: String::new(),
            compact_hash_check: Duration::from_secs(60),
            given: BTreeSet::new(),
            notes: Vec::new(),
        }
    }

    fn verify(&self, error: impl Into<String>) -> Mistake {
        Mistake::Verify(error.into(), Box::new(self.said()))
    }

    fn said(&self) -> Said {
        Said { logging: self.logging.clone(), notes: self.notes.clone() }
    }
}

/// A duration in an option of a flag.
///
/// # Errors
/// Not in Go's form.
pub(crate) fn duration(value: &str) -> anyhow::Result<Duration> {
    go::duration(value).map_err(|error| anyhow::anyhow!("{value:?}: {error}"))
}

/// URLs between commas; each must be one.
fn urls(value: &str) -> Result<Vec<String>, String> {
    let mut urls = go::unique(value);
    for url in &urls {
        Endpoint::parse(url).map_err(|error| error.to_string())?;
    }
    urls.sort_unstable();
    Ok(urls)
}

/// Reads arguments (without the program's name) and `ETCD_*` variables.
///
/// # Errors
/// A mistake, in etcd's words.
pub fn parse(args: &[String], environment: &BTreeMap<String, String>) -> Result<Invocation, Mistake> {
    let mut draft = Draft::new();
    let mut version = false;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(body) = arg.strip_prefix('-').filter(|body| !body.is_empty()) else {
            return Err(draft.verify(format!("{arg:?} is not a valid flag")));
        };
        let body = body.strip_prefix('-').unwrap_or(body);
        if body.is_empty() {
            match args.next() {
                Some(word) => return Err(draft.verify(format!("{word:?} is not a valid flag"))),
                None => break,
            }
        }
        if body.starts_with(['-', '=']) {
            return Err(Mistake::Usage(format!("bad flag syntax: {arg}")));
        }
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        match name {
            "help" | "h" => return Ok(Invocation::Help),
            "version" => {
                version = go::truth(inline.unwrap_or("true")).map_err(|error| {
                    Mistake::Usage(format!(
                        "invalid boolean value {:?} for -version: {error}",
                        inline.unwrap_or_default()
                    ))
                })?;
                continue;
            }
            _ => {}
        }
        let Some(flag) = table().find(|flag| flag.name == name) else {
            return Err(Mistake::Usage(format!("flag provided but not defined: -{name}")));
        };
        let value = match (flag.kind, inline) {
            (_, Some(value)) => value,
            (Kind::Bool, None) => "true",
            (_, None) => {
                args.next().ok_or_else(|| Mistake::Usage(format!("flag needs an argument: -{name}")))?
            }
        };
        (flag.set)(&mut draft, value).map_err(|error| {
            // Go's words differ for switches.
            Mistake::Usage(match flag.kind {
                Kind::Bool => format!("invalid boolean value {value:?} for -{name}: {error}"),
                _ => format!("invalid value {value:?} for flag -{name}: {error}"),
            })
        })?;
        draft.given.insert(flag.name);
    }
    if version {
        return Ok(Invocation::Version);
    }
    if draft.config_file.is_empty()
        && let Some(path) = environment.get("ETCD_CONFIG_FILE")
    {
        draft.config_file.clone_from(path);
    }
    if draft.config_file.is_empty() {
        from_environment(environment, &mut draft)?;
        // Who listens somewhere else must say what to tell clients.
        if draft.given.contains("listen-client-urls") && !draft.given.contains("advertise-client-urls") {
            draft.config.advertise_client_urls.clear();
        }
    } else {
        draft = file::read(&draft.config_file)?;
    }
    verify::finish(draft).map(|run| Invocation::Run(Box::new(run)))
}

fn variable(name: &str) -> String {
    format!("ETCD_{}", name.to_uppercase().replace('-', "_"))
}

fn from_environment(environment: &BTreeMap<String, String>, draft: &mut Draft) -> Result<(), Mistake> {
    let mut mistake = None;
    let given = draft.given.clone();
    for (name, value) in environment.iter().filter(|(name, _)| name.starts_with("ETCD_")) {
        let Some(flag) = table().find(|flag| variable(flag.name) == *name) else {
            draft.notes.push(Note::UnknownVariable(format!("{name}={value}")));
            continue;
        };
        if given.contains(flag.name) {
            return Err(Mistake::Conflict(name.clone()));
        }
        if value.is_empty() {
            continue;
        }
        match (flag.set)(draft, value) {
            Ok(()) => {
                draft.given.insert(flag.name);
                draft.notes.push(Note::Variable(name.clone(), value.clone()));
            }
            Err(error) => mistake = Some(format!("invalid value {value:?} for {name}: {error}")),
        }
    }
    match mistake {
        Some(error) => Err(draft.verify(error)),
        None => Ok(()),
    }
}

/// The versions between two of etcd's names.
fn versions(min: &str, max: &str) -> Result<TlsVersions, String> {
    let known = |version: &str| match version {
        "" => Ok(0),
        "TLS1.2" => Ok(2),
        "TLS1.3" => Ok(3),
        _ => Err(format!("unexpected TLS version {version:?} (must be one of: TLS1.2, TLS1.3)")),
    };
    match (known(min)?, known(max)?) {
        (low, high) if high != 0 && low > high => {
            Err(format!("min version ({min}) is greater than max version ({max})"))
        }
        (3, _) => Ok(TlsVersions::Only13),
        (_, 2) => Ok(TlsVersions::Only12),
        _ => Ok(TlsVersions::Both),
    }
}

/// The forms of the command.
pub const USAGE: &str = "Usage:

  etcd [flags]
    Start an etcd server.

  etcd --version
    Show the version of etcd.

  etcd -h | --help
    Show the help information about etcd.

  etcd --config-file
    Path to the server configuration file. Note that if a configuration file is provided, other command line flags
    and environment variables will be ignored.
";

/// All flags by area, with their defaults.
pub fn help() -> String {
    let mut text = format!("{USAGE}\n");
    for (area, flags) in TABLE {
        text.push_str(&format!("{area}:\n"));
        for flag in *flags {
            let idle = if WITHOUT_EFFECT.contains(&flag.name) { " (no effect here)" } else { "" };
            text.push_str(&format!("  --{} '{}'\n    {}{idle}\n", flag.name, flag.default, flag.help));
        }
        text.push('\n');
    }
    text.push_str("Each flag is also a variable: --listen-client-urls is ETCD_LISTEN_CLIENT_URLS.\n");
    text
}

#[cfg(test)]
mod tests;
