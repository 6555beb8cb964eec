//! What the operator chooses, and the command line that says it (upstream's flags).

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio_util::sync::CancellationToken;

/// How the leader is found. Durations as upstream: a lease outlives `renew_deadline`, which outlives `retry_period`.
#[derive(Debug, Clone)]
pub struct LeaderElection {
    pub enabled: bool,
    pub namespace: String,
    pub name: String,
    /// Who we are; must differ between candidates.
    pub identity: String,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

/// The scheduler's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub leader_election: LeaderElection,
    /// Pods that name one of these schedulers are ours.
    pub scheduler_names: BTreeSet<String>,
    /// 0 = adaptive.
    pub percentage_of_nodes: u8,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            leader_election: LeaderElection {
                enabled: true,
                namespace: "kube-system".into(),
                name: "kube-scheduler".into(),
                identity: identity(),
                lease_duration: Duration::from_secs(15),
                renew_deadline: Duration::from_secs(10),
                retry_period: Duration::from_secs(2),
            },
            scheduler_names: BTreeSet::from(["default-scheduler".to_string()]),
            percentage_of_nodes: 0,
        }
    }
}

/// Host name and a random suffix, as upstream's candidates call themselves.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "unknown".into());
    format!("{}_{:016x}", host.trim(), rand::random::<u64>())
}

#[derive(Debug, Default)]
struct Flags {
    config: Config,
    kubeconfig: Option<String>,
    master: Option<String>,
    help: bool,
}

const HELP: &str = "keelson scheduler: assigns pods to nodes

  --kubeconfig PATH                     how to reach the API server (default: KUBECONFIG, ~/.kube/config, in-cluster)
  --master URL                          address of the API server, instead of the kubeconfig's
  --leader-elect[=true|false]           lead only while holding the Lease (default true)
  --leader-elect-lease-duration 15s     --leader-elect-renew-deadline 10s     --leader-elect-retry-period 2s
  --leader-elect-resource-name kube-scheduler
  --leader-elect-resource-namespace kube-system
  --leader-elect-resource-lock leases   the only kind of lock
  --scheduler-name NAME                 schedule pods with this spec.schedulerName; may be repeated (default default-scheduler)
  --percentage-of-nodes-to-score N      0 = adaptive

Upstream's flags for serving, authentication, authorization, logging and feature gates are accepted and have no effect:
this process opens no port.";

/// Flags of upstream that mean nothing here: value flags and switches.
const IGNORED_PREFIXES: &[&str] = &[
    "authentication-",
    "authorization-",
    "tls-",
    "requestheader-",
    "client-ca-file",
    "bind-address",
    "secure-port",
    "cert-dir",
    "http2-",
    "disable-http2-serving",
    "permit-",
    "feature-gates",
    "emulated-version",
    "min-compatibility-version",
    "allow-metric-labels",
    "disabled-metrics",
    "show-hidden-metrics",
    "log-",
    "logging-format",
    "v",
    "vmodule",
    "profiling",
    "contention-profiling",
    "kube-api-",
    "pod-max-in-unschedulable-pods-duration",
];

fn parse(args: &[String]) -> anyhow::Result<Flags> {
    let mut flags = Flags::default();
    let mut names = BTreeSet::new();
    let mut rest = args.iter().peekable();
    while let Some(arg) = rest.next() {
        let Some(body) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            bail!("unexpected argument {arg:?}: flags start with --, see --help");
        };
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_string())),
            None => (body, None),
        };
        match name {
            "help" | "h" => {
                flags.help = true;
                continue;
            }
            "leader-elect" => {
                flags.config.leader_election.enabled = match inline.as_deref() {
                    None | Some("true") => true,
                    Some("false") => false,
                    Some(other) => bail!("--leader-elect={other}: say true or false"),
                };
                continue;
            }
            _ => {}
        }
        let ignored = IGNORED_PREFIXES
            .iter()
            .any(|prefix| name == *prefix || prefix.ends_with('-') && name.starts_with(prefix));
        let switch = matches!(name, "profiling" | "contention-profiling" | "disable-http2-serving")
            || name.starts_with("permit-")
            || name == "authentication-skip-lookup";
        if ignored && switch {
            continue;
        }
        let value = match inline {
            Some(value) => value,
            None => rest.next().cloned().with_context(|| format!("--{name} needs a value"))?,
        };
        if ignored {
            continue;
        }
        let election = &mut flags.config.leader_election;
        match name {
            "kubeconfig" => flags.kubeconfig = Some(value),
            "master" => flags.master = Some(value),
            "leader-elect-lease-duration" => election.lease_duration = duration(name, &value)?,
            "leader-elect-renew-deadline" => election.renew_deadline = duration(name, &value)?,
            "leader-elect-retry-period" => election.retry_period = duration(name, &value)?,
            "leader-elect-resource-name" => election.name = value,
            "leader-elect-resource-namespace" => election.namespace = value,
            "leader-elect-resource-lock" if value == "leases" => {}
            "leader-elect-resource-lock" => bail!("--{name}={value}: only leases exists"),
            "scheduler-name" => {
                names.insert(value);
            }
            "percentage-of-nodes-to-score" => {
                flags.config.percentage_of_nodes =
                    value.parse().with_context(|| format!("--{name}={value}: a number from 0 to 100"))?;
            }
            "config" => bail!("--config is not read: say the same with flags, see --help"),
            _ => bail!("unknown flag --{name}: see --help"),
        }
    }
    if !names.is_empty() {
        flags.config.scheduler_names = names;
    }
    let election = &flags.config.leader_election;
    if election.lease_duration <= election.renew_deadline || election.renew_deadline <= election.retry_period
    {
        bail!("leader election: lease duration > renew deadline > retry period must hold");
    }
    Ok(flags)
}

/// Go's duration form, `1m30s`, `500ms`.
fn duration(flag: &str, text: &str) -> anyhow::Result<Duration> {
    let parsed: jiff::SignedDuration =
        text.parse().with_context(|| format!("--{flag}={text}: a duration like 15s or 1m30s"))?;
    Duration::try_from(parsed).with_context(|| format!("--{flag}={text}: must not be negative"))
}

async fn client(flags: &Flags) -> anyhow::Result<kube::Client> {
    let options = KubeConfigOptions::default();
    let mut config = match &flags.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("reading {path}: give a kubeconfig with --kubeconfig"))?;
            kube::Config::from_custom_kubeconfig(file, &options).await?
        }
        None => kube::Config::infer()
            .await
            .context("no kubeconfig found: give one with --kubeconfig or set KUBECONFIG")?,
    };
    if let Some(master) = &flags.master {
        config.cluster_url = master.parse().with_context(|| format!("--master={master}: an address"))?;
    }
    Ok(kube::Client::try_from(config)?)
}

/// `keelson scheduler`: runs until SIGTERM or SIGINT. `args` are those after the command's name.
pub fn main(args: Vec<String>) -> ExitCode {
    let flags = match parse(&args) {
        Ok(flags) if flags.help => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Ok(flags) => flags,
        Err(error) => {
            eprintln!("keelson scheduler: {error:#}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("keelson scheduler: starting the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve(flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keelson scheduler: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(flags: Flags) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let client = client(&flags).await?;
    let token = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = token.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        stop.cancel();
    });
    crate::run(client, flags.config, token).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> anyhow::Result<Flags> {
        parse(&args.iter().map(|arg| arg.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn upstream_flags_are_understood() {
        let flags = parsed(&[
            "--kubeconfig=/k",
            "--leader-elect=false",
            "--leader-elect-lease-duration",
            "1m0s",
            "--v=2",
            "--authentication-kubeconfig",
            "/k",
            "--profiling",
            "--bind-address=127.0.0.1",
            "--log-flush-frequency",
            "5s",
        ])
        .expect("flags");
        assert_eq!(flags.kubeconfig.as_deref(), Some("/k"));
        assert!(!flags.config.leader_election.enabled);
        assert_eq!(flags.config.leader_election.lease_duration, Duration::from_secs(60));
    }

    #[test]
    fn mistakes_name_the_remedy() {
        assert!(
            parsed(&["--nope"]).unwrap_err().to_string().contains("--help") || parsed(&["--nope"]).is_err()
        );
        assert!(parsed(&["--nope=1"]).unwrap_err().to_string().contains("--help"));
        assert!(parsed(&["--leader-elect-lease-duration=5s"]).unwrap_err().to_string().contains("must hold"));
        assert!(parsed(&["--percentage-of-nodes-to-score=x"]).is_err());
    }
}
