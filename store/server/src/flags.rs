//! `etcd`'s command line: Go-style flags, `ETCD_*` variables, etcd's defaults. One table says what each flag does.
//!
//! `-x`, `--x`, `--x=v` and `--x v` are the same; a switch takes its value only after `=`. Given twice, the last wins.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::config::{ClusterState, Config, TlsConfig};

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// `--version`.
    Version,
    /// `--help`.
    Help,
    /// Run a member; logs of this level.
    Run(Box<Config>, String),
}

/// How a mistake ends the process.
#[derive(Debug)]
pub struct Usage(pub String);

#[derive(Clone, Copy)]
enum Kind {
    Switch,
    Value,
}

type Set = fn(&mut Draft, &str) -> Result<()>;

struct Flag {
    name: &'static str,
    kind: Kind,
    set: Set,
}

/// A configuration being put together.
#[derive(Default)]
struct Draft {
    config: Config,
    data_dir: Option<String>,
    initial_cluster: Option<String>,
    client: Tls,
    peer: Tls,
    log_level: String,
    warnings: Vec<String>,
}

#[derive(Default)]
struct Tls {
    cert: String,
    key: String,
    ca: String,
    auth: bool,
}

impl Tls {
    fn config(&self, which: &str) -> Result<Option<TlsConfig>> {
        match (self.cert.is_empty(), self.key.is_empty()) {
            (true, true) if self.ca.is_empty() && !self.auth => Ok(None),
            (false, false) => Ok(Some(TlsConfig {
                cert_file: self.cert.clone().into(),
                key_file: self.key.clone().into(),
                trusted_ca_file: (!self.ca.is_empty()).then(|| self.ca.clone().into()),
                client_cert_auth: self.auth,
            })),
            _ => bail!("TLS for {which} needs both a certificate and a key file"),
        }
    }
}

fn list(value: &str) -> Vec<String> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn truth(value: &str) -> Result<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => bail!("parse error: expected true or false"),
    }
}

fn millis(value: &str) -> Result<Duration> {
    Ok(Duration::from_millis(value.parse().context("expected milliseconds")?))
}

/// Go's durations: `10m`, `1h30m`, `500ms`, `0`.
pub(crate) fn duration(value: &str) -> Result<Duration> {
    if value == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = value;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits =
            rest.find(|c: char| !c.is_ascii_digit() && c != '.').context("a duration needs a unit")?;
        let number: f64 = rest[..digits].parse().context("not a duration")?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                other => bail!("unknown unit {other:?} in a duration"),
            };
        rest = &rest[unit..];
    }
    Ok(Duration::from_secs_f64(total))
}

/// A flag that asks for something we do not have: only its "off" values are taken.
fn absent(value: &str) -> Result<()> {
    if matches!(value, "" | "false" | "0" | "0s" | "simple" | "exit" | "proxy") {
        return Ok(());
    }
    bail!("not supported by this server; leave the flag out")
}

macro_rules! value {
    ($name:literal, |$draft:ident, $value:ident| $body:expr) => {
        Flag {
            name: $name,
            kind: Kind::Value,
            set: |$draft, $value| {
                $body;
                Ok(())
            },
        }
    };
}

macro_rules! switch {
    ($name:literal, |$draft:ident, $value:ident| $body:expr) => {
        Flag {
            name: $name,
            kind: Kind::Switch,
            set: |$draft, $value| {
                $body;
                Ok(())
            },
        }
    };
}

/// Flags whose subject does not exist here (a bbolt file, a tick, Go's logger); taken, and said to be without effect.
const WITHOUT_EFFECT: &[&str] = &[
    "wal-dir",
    "max-snapshots",
    "max-wals",
    "backend-bbolt-freelist-type",
    "backend-batch-interval",
    "backend-batch-limit",
    "grpc-keepalive-min-time",
    "grpc-keepalive-interval",
    "grpc-keepalive-timeout",
    "raft-read-timeout",
    "raft-write-timeout",
    "logger",
    "log-outputs",
    "log-format",
    "metrics",
    "warning-unary-request-duration",
    "warning-apply-duration",
    "compaction-batch-limit",
    "compaction-sleep-interval",
    "bootstrap-defrag-threshold-megabytes",
    "downgrade-check-time",
    "v2-deprecation",
    "cors",
    "host-whitelist",
    "cipher-suites",
    "tls-min-version",
    "tls-max-version",
    "client-cert-file",
    "client-key-file",
    "peer-client-cert-file",
    "peer-client-key-file",
    "self-signed-cert-validity",
    "corrupt-check-time",
    "feature-gates",
    "auto-compaction-mode",
    "discovery-fallback",
    "discovery-dial-timeout",
    "discovery-request-timeout",
    "discovery-keepalive-time",
    "discovery-keepalive-timeout",
    "log-rotation-config-json",
];

const SWITCHES_WITHOUT_EFFECT: &[&str] = &[
    "initial-election-tick-advance",
    "memory-mlock",
    "socket-reuse-port",
    "socket-reuse-address",
    "enable-grpc-gateway",
    "pre-vote",
    "enable-pprof",
    "enable-log-rotation",
    "peer-skip-client-san-verification",
    "discovery-insecure-transport",
    "discovery-insecure-skip-tls-verify",
];

const NOT_SUPPORTED: &[&str] = &[
    "listen-client-http-urls",
    "discovery",
    "discovery-token",
    "discovery-endpoints",
    "discovery-srv",
    "discovery-srv-name",
    "discovery-proxy",
    "discovery-cert",
    "discovery-key",
    "discovery-cacert",
    "discovery-user",
    "discovery-password",
    "auto-compaction-retention",
    "client-crl-file",
    "peer-crl-file",
    "client-cert-allowed-hostname",
    "peer-cert-allowed-cn",
    "peer-cert-allowed-hostname",
    "config-file",
];

const SWITCHES_NOT_SUPPORTED: &[&str] = &["auto-tls", "peer-auto-tls", "enable-distributed-tracing"];

fn table() -> Vec<Flag> {
    let mut flags = vec![
        value!("name", |d, v| d.config.name = v.to_owned()),
        value!("data-dir", |d, v| d.data_dir = Some(v.to_owned())),
        value!("listen-client-urls", |d, v| d.config.listen_client_urls = list(v)),
        value!("advertise-client-urls", |d, v| d.config.advertise_client_urls = list(v)),
        value!("listen-peer-urls", |d, v| d.config.listen_peer_urls = list(v)),
        value!("initial-advertise-peer-urls", |d, v| d.config.initial_advertise_peer_urls = list(v)),
        value!("listen-metrics-urls", |d, v| d.config.listen_metrics_urls = list(v)),
        value!("initial-cluster", |d, v| d.initial_cluster = Some(v.to_owned())),
        value!("initial-cluster-state", |d, v| d.config.initial_cluster_state = match v {
            "new" => ClusterState::New,
            "existing" => ClusterState::Existing,
            _ => bail!("expected new or existing"),
        }),
        value!("initial-cluster-token", |d, v| d.config.initial_cluster_token = v.to_owned()),
        value!("cert-file", |d, v| d.client.cert = v.to_owned()),
        value!("key-file", |d, v| d.client.key = v.to_owned()),
        value!("trusted-ca-file", |d, v| d.client.ca = v.to_owned()),
        switch!("client-cert-auth", |d, v| d.client.auth = truth(v)?),
        value!("peer-cert-file", |d, v| d.peer.cert = v.to_owned()),
        value!("peer-key-file", |d, v| d.peer.key = v.to_owned()),
        value!("peer-trusted-ca-file", |d, v| d.peer.ca = v.to_owned()),
        switch!("peer-client-cert-auth", |d, v| d.peer.auth = truth(v)?),
        value!("heartbeat-interval", |d, v| d.config.heartbeat_interval = millis(v)?),
        value!("election-timeout", |d, v| d.config.election_timeout = millis(v)?),
        value!("quota-backend-bytes", |d, v| d.config.quota_backend_bytes = v.parse()?),
        value!("max-request-bytes", |d, v| d.config.max_request_bytes = v.parse()?),
        value!("max-txn-ops", |d, v| d.config.max_txn_ops = v.parse()?),
        value!("max-concurrent-streams", |d, v| d.config.max_concurrent_streams = v.parse()?),
        value!("snapshot-count", |d, v| d.config.snapshot_count = v.parse()?),
        value!("snapshot-catchup-entries", |d, v| d.config.snapshot_catchup_entries = v.parse()?),
        value!("watch-progress-notify-interval", |d, v| {
            // etcd's floor.
            d.config.watch_progress_notify_interval = duration(v)?.max(Duration::from_millis(100));
        }),
        value!("max-learners", |d, v| d.config.max_learners = v.parse()?),
        value!("auth-token", |d, v| d.config.auth_token = v.to_owned()),
        value!("auth-token-ttl", |d, v| d.config.auth_token_ttl = Duration::from_secs(v.parse()?)),
        value!("bcrypt-cost", |d, v| d.config.bcrypt_cost = v.parse()?),
        value!("compact-hash-check-time", |d, v| d.config.compact_hash_check_time = duration(v)?),
        switch!("force-new-cluster", |d, v| d.config.force_new_cluster = truth(v)?),
        switch!("strict-reconfig-check", |d, v| d.config.strict_reconfig_check = truth(v)?),
        switch!("unsafe-no-fsync", |d, v| d.config.unsafe_no_fsync = truth(v)?),
        value!("log-level", |d, v| d.log_level = match v {
            "debug" | "info" | "warn" | "error" => v.to_owned(),
            "panic" | "fatal" => "error".to_owned(),
            _ => bail!("expected debug, info, warn, error, panic or fatal"),
        }),
    ];
    let add = |flags: &mut Vec<Flag>, names: &[&'static str], kind: Kind, set: Set| {
        flags.extend(names.iter().map(|name| Flag { name, kind, set }));
    };
    add(&mut flags, WITHOUT_EFFECT, Kind::Value, |_, _| Ok(()));
    add(&mut flags, SWITCHES_WITHOUT_EFFECT, Kind::Switch, |_, v| truth(v).map(|_| ()));
    add(&mut flags, NOT_SUPPORTED, Kind::Value, |_, v| absent(v));
    add(&mut flags, SWITCHES_NOT_SUPPORTED, Kind::Switch, |_, v| absent(v));
    flags
}

fn has_effect(name: &str) -> bool {
    !WITHOUT_EFFECT.contains(&name) && !SWITCHES_WITHOUT_EFFECT.contains(&name)
}

/// Reads arguments (without the program's name) and `ETCD_*` variables.
///
/// # Errors
/// A mistake in the flags, in Go's words.
pub fn parse(args: &[String], environment: &BTreeMap<String, String>) -> Result<Invocation, Usage> {
    let table = table();
    let mut draft = Draft { log_level: "info".to_owned(), ..Draft::default() };
    let mut given: Vec<&'static str> = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(body) =
            arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|body| !body.is_empty())
        else {
            return Err(Usage(format!("'{arg}' is not a valid flag")));
        };
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        match name {
            "version" => return Ok(Invocation::Version),
            "help" | "h" => return Ok(Invocation::Help),
            _ => {}
        }
        let Some(flag) = table.iter().find(|flag| flag.name == name) else {
            return Err(Usage(format!("flag provided but not defined: -{name}")));
        };
        let value = match (flag.kind, inline) {
            (_, Some(value)) => value,
            (Kind::Switch, None) => "true".to_owned(),
            (Kind::Value, None) => {
                args.next().cloned().ok_or_else(|| Usage(format!("flag needs an argument: -{name}")))?
            }
        };
        apply(flag, &mut draft, &value, &format!("flag -{name}"))?;
        given.push(flag.name);
    }
    from_environment(&table, environment, &given, &mut draft)?;
    finish(draft).map_err(|error| Usage(format!("{error:#}")))
}

fn apply(flag: &Flag, draft: &mut Draft, value: &str, what: &str) -> Result<(), Usage> {
    (flag.set)(draft, value)
        .map_err(|error| Usage(format!("invalid value {value:?} for {what}: {error:#}")))?;
    if !has_effect(flag.name) {
        draft.warnings.push(format!("--{} has no effect on this server", flag.name));
    }
    Ok(())
}

fn from_environment(
    table: &[Flag],
    environment: &BTreeMap<String, String>,
    given: &[&str],
    draft: &mut Draft,
) -> Result<(), Usage> {
    for (variable, value) in environment.iter().filter(|(name, _)| name.starts_with("ETCD_")) {
        let name = variable["ETCD_".len()..].to_lowercase().replace('_', "-");
        let Some(flag) = table.iter().find(|flag| flag.name == name) else {
            draft.warnings.push(format!("unrecognized environment variable {variable}"));
            continue;
        };
        if given.contains(&flag.name) {
            return Err(Usage(format!(
                "conflicting environment variable {variable:?} is shadowed by corresponding command-line flag \
                 (either unset environment variable or disable flag)"
            )));
        }
        apply(flag, draft, value, variable)?;
    }
    Ok(())
}

fn finish(mut draft: Draft) -> Result<Invocation> {
    let config = &mut draft.config;
    config.data_dir = draft.data_dir.unwrap_or_else(|| format!("{}.etcd", config.name)).into();
    if let Some(text) = &draft.initial_cluster {
        for item in list(text) {
            let (name, url) = item
                .split_once('=')
                .with_context(|| format!("--initial-cluster: {item:?} is not of the form name=url"))?;
            config.initial_cluster.push((name.to_owned(), url.to_owned()));
        }
    }
    config.tls = draft.client.config("clients")?;
    config.peer_tls = draft.peer.config("peers")?;
    config.check()?;
    config.notes = draft.warnings;
    Ok(Invocation::Run(Box::new(draft.config), draft.log_level))
}

/// All flags, one per line.
pub fn help() -> String {
    let mut text =
        String::from("Usage:\n\n  keelson etcd [flags]\n    Start a member of the store.\n\nFlags:\n");
    for flag in table().iter().filter(|flag| has_effect(flag.name)) {
        if NOT_SUPPORTED.contains(&flag.name) || SWITCHES_NOT_SUPPORTED.contains(&flag.name) {
            continue;
        }
        let value = match flag.kind {
            Kind::Switch => "",
            Kind::Value => " VALUE",
        };
        text.push_str(&format!("  --{}{value}\n", flag.name));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str], environment: &[(&str, &str)]) -> Result<Invocation, Usage> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        parse(&args, &environment)
    }

    fn config(args: &[&str]) -> Config {
        match run(args, &[]).expect("good flags") {
            Invocation::Run(config, _) => *config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_go_spelling_and_the_last_wins() {
        let config = config(&[
            "-max-txn-ops",
            "1",
            "--max-txn-ops=2",
            "--max-txn-ops",
            "3",
            "--strict-reconfig-check=false",
        ]);
        assert_eq!(config.max_txn_ops, 3);
        assert!(!config.strict_reconfig_check);
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for args in [&["--nope"][..], &["--max-txn-ops"], &["--max-txn-ops=x"], &["word"], &["--auto-tls"]] {
            assert!(run(args, &[]).is_err(), "{args:?}");
        }
    }

    #[test]
    fn environment_counts_and_must_not_conflict() {
        let Ok(Invocation::Run(config, _)) = run(&[], &[("ETCD_MAX_TXN_OPS", "7"), ("ETCD_UNKNOWN", "1")])
        else {
            panic!("good variables");
        };
        assert_eq!(config.max_txn_ops, 7);
        assert_eq!(config.notes.len(), 1);
        assert!(run(&["--max-txn-ops=1"], &[("ETCD_MAX_TXN_OPS", "7")]).is_err());
    }

    #[test]
    fn go_durations() {
        assert_eq!(duration("1h30m").expect("good"), Duration::from_secs(5400));
        assert_eq!(duration("500ms").expect("good"), Duration::from_millis(500));
        assert!(duration("5").is_err());
    }
}
