//! What must hold between the values: etcd's checks, in its order and words.

use std::time::Duration;

use super::{Draft, Mistake, Note, Run, WITHOUT_EFFECT, go, versions};
use crate::config::{Address, AutoCompaction, Discovery, DnsSrv, Endpoint, TlsConfig};
use crate::traces;

/// etcd's upper bound of the election timeout.
const LONGEST_ELECTION: Duration = Duration::from_millis(50_000);
/// etcd warns above this.
const RECOMMENDED_REQUEST: usize = 10 << 20;
/// Costs bcrypt knows.
const BCRYPT: std::ops::RangeInclusive<u32> = 4..=31;

pub(super) fn finish(mut draft: Draft) -> Result<Run, Mistake> {
    if !draft.logging.level_is_known() {
        return Err(Mistake::Usage(format!("panic: unrecognized level: {:?}", draft.logging.level)));
    }
    check(&mut draft).map_err(|error| draft.verify(error))?;
    warn(&mut draft);
    if let Err(error) = prepare(&mut draft) {
        return Err(Mistake::Start(error, Box::new(draft.said())));
    }
    Ok(Run { config: draft.config, logging: draft.logging, notes: draft.notes })
}

/// "failed to verify flags".
/// Traces as they were asked for, with etcd's words for a rate that is none.
fn traced(draft: &mut Draft) -> Result<(), String> {
    let rate = match u32::try_from(draft.trace_rate) {
        Err(_) if draft.trace_rate < 0 => return Err("tracing sampling rate must be positive".to_owned()),
        Ok(rate) if rate <= traces::EVERY => rate,
        _ => return Err(format!("tracing sampling rate must be less than {}", traces::EVERY)),
    };
    draft.config.traces = Some(traces::Options { rate, ..draft.traces.clone() });
    Ok(())
}

fn check(draft: &mut Draft) -> Result<(), String> {
    if draft.fallback == "proxy" {
        return Err(
            "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"".to_owned()
        );
    }
    draft.logging.check()?;
    let config = &draft.config;
    bindable(&config.listen_peer_urls)?;
    bindable(&config.listen_client_urls)?;
    bindable(&config.listen_client_http_urls)?;
    if config.listen_client_http_urls.is_empty() {
        let text = "Running http and grpc server on single port. This is not recommended for production.";
        draft.notes.push(Note::Warning(text.to_owned()));
    }
    bindable(&config.listen_metrics_urls)?;
    bootstrap(draft)?;
    timers(draft)?;
    if draft.config.advertise_client_urls.is_empty() {
        return Err(
            "--advertise-client-urls is required when --listen-client-urls is set explicitly".to_owned()
        );
    }
    match draft.compaction_mode.as_str() {
        "periodic" | "revision" => {}
        "" => return Err("undefined auto-compaction-mode".to_owned()),
        mode => return Err(format!("unknown auto-compaction-mode {mode:?}")),
    }
    if draft.tracing {
        traced(draft)?;
    }
    let on = |gate: &str| draft.gates.get(gate).copied().unwrap_or(false);
    if on("LeaseCheckpointPersist") && !on("LeaseCheckpoint") {
        return Err(
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint"
                .to_owned(),
        );
    }
    if draft.compact_hash_check.is_zero() {
        return Err("--compact-hash-check-time must be >0 (set to 0s)".to_owned());
    }
    let versions = versions(&draft.tls_min, &draft.tls_max)?;
    if draft.tls_min == "TLS1.3" && !draft.client.cipher_suites.is_empty() {
        return Err("cipher suites cannot be configured when only TLS1.3 is enabled".to_owned());
    }
    draft.client.versions = versions;
    draft.peer.versions = versions;
    draft.config.compact_hash_check_time = draft.compact_hash_check;
    Ok(())
}

fn bindable(urls: &[String]) -> Result<(), String> {
    for url in urls {
        let endpoint = Endpoint::parse(url).map_err(|error| error.to_string())?;
        if let Address::Tcp(host, _) = &endpoint.address
            && host != "localhost"
            && host.parse::<std::net::IpAddr>().is_err()
        {
            return Err(format!("expected IP in URL for binding ({url})"));
        }
    }
    Ok(())
}

fn bootstrap(draft: &Draft) -> Result<(), String> {
    let discovery = &draft.discovery;
    let ways = [
        draft.initial_cluster.as_ref().is_some_and(|text| !text.is_empty()),
        !discovery.srv.is_empty(),
        !discovery.endpoints.is_empty(),
    ];
    if ways.iter().filter(|way| **way).count() > 1 {
        return Err("multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \
                    \"discovery-endpoints\" or \"discovery-srv\""
            .to_owned());
    }
    if discovery.token.is_empty() != discovery.endpoints.is_empty() {
        return Err("both --discovery-token and --discovery-endpoints must be set".to_owned());
    }
    if discovery.endpoints.iter().any(|endpoint| endpoint.trim().is_empty()) {
        return Err("--discovery-endpoints must not contain empty endpoints".to_owned());
    }
    if !discovery.user.is_empty() || !discovery.password.is_empty() {
        return Err(
            "--discovery-user is not supported by this server; use a discovery service without users"
                .to_owned(),
        );
    }
    if discovery.insecure_skip_verify {
        return Err(
            "--discovery-insecure-skip-tls-verify is not supported by this server; give --discovery-cacert"
                .to_owned(),
        );
    }
    Ok(())
}

fn timers(draft: &Draft) -> Result<(), String> {
    let (tick, election) = (draft.config.heartbeat_interval, draft.config.election_timeout);
    for (name, value) in [("heartbeat-interval", tick), ("election-timeout", election)] {
        if value.is_zero() {
            return Err(format!("--{name} must be >0 (set to 0ms)"));
        }
    }
    if tick * 5 > election {
        return Err(format!(
            "--election-timeout[{}ms] should be at least as 5 times as --heartbeat-interval[{}ms]",
            election.as_millis(),
            tick.as_millis()
        ));
    }
    if election > LONGEST_ELECTION {
        return Err(format!(
            "--election-timeout[{}ms] is too long, and should be set less than {}ms",
            election.as_millis(),
            LONGEST_ELECTION.as_millis()
        ));
    }
    Ok(())
}

fn warn(draft: &mut Draft) {
    let mut say = |text: String| draft.notes.push(Note::Warning(text));
    if draft.config.name == "default" {
        say("it isn't recommended to use default name, please set a value for --name. Note that etcd might run into \
             issue when multiple members have the same default name"
            .to_owned());
    }
    if draft.given.contains("max-snapshots") {
        say("--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.".to_owned());
    }
    if draft.given.contains("v2-deprecation") {
        say("--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring \
             user input."
            .to_owned());
    }
    if draft.config.max_request_bytes > RECOMMENDED_REQUEST {
        say("exceeded recommended request limit".to_owned());
    }
    if !BCRYPT.contains(&draft.config.bcrypt_cost) {
        say("use default bcrypt cost instead of the invalid given cost".to_owned());
        draft.config.bcrypt_cost = 10;
    }
    for name in draft.given.iter().filter(|name| WITHOUT_EFFECT.contains(name)) {
        draft.notes.push(Note::WithoutEffect(name));
    }
}

/// What etcd finds out only once it starts.
fn prepare(draft: &mut Draft) -> Result<(), String> {
    draft.config.auto_compaction = compaction(&draft.compaction_mode, &draft.compaction_retention)?;
    let discovery = &draft.discovery;
    if let Some(text) = draft.initial_cluster.as_ref().filter(|text| !text.is_empty()) {
        draft.config.initial_cluster = initial_cluster(text)?;
    }
    if !discovery.endpoints.is_empty() {
        draft.config.discovery = Some(discovery_config(discovery));
    }
    if !discovery.srv.is_empty() {
        draft.config.discovery_srv =
            Some(DnsSrv { domain: discovery.srv.clone(), service: discovery.srv_name.clone() });
    }
    let config = &mut draft.config;
    config.data_dir = match draft.data_dir.as_str() {
        "" => format!("{}.etcd", config.name).into(),
        given => given.into(),
    };
    crate::tls::suites(&draft.peer.cipher_suites)?;
    if config.auth_token.starts_with("jwt") && !config.auth_token.contains("sign-method=") {
        draft.notes.push(Note::Error("auth: invalid auth signature method", "problem loading JWT options"));
        draft.notes.push(Note::WarningOf("auth: invalid auth options", "failed to create token provider"));
        return Err("auth: invalid auth options".to_owned());
    }
    config.tls = tls(std::mem::take(&mut draft.client))?;
    config.peer_tls = tls(std::mem::take(&mut draft.peer))?;
    Ok(())
}

fn discovery_config(draft: &super::clustering::DiscoveryDraft) -> Discovery {
    let secure = !draft.cacert.is_empty() || !draft.cert.is_empty() || !draft.insecure_transport;
    Discovery {
        token: draft.token.clone(),
        endpoints: draft.endpoints.clone(),
        request_timeout: draft.request_timeout,
        tls: secure.then(|| ((&draft.cacert).into(), (&draft.cert).into(), (&draft.key).into())),
    }
}

/// `name=url,…`; a name may come several times.
pub(crate) fn initial_cluster(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut members = Vec::new();
    for item in text.split(',') {
        let (name, url) = item.split_once('=').unwrap_or((item, ""));
        let name = name.trim();
        if name.is_empty() {
            return Err(format!("error setting up initial cluster: empty name in {item:?}"));
        }
        Endpoint::parse(url).map_err(|error| format!("error setting up initial cluster: {error}"))?;
        members.push((name.to_owned(), url.to_owned()));
    }
    Ok(members)
}

fn compaction(mode: &str, retention: &str) -> Result<AutoCompaction, String> {
    let retention = if retention.is_empty() { "0" } else { retention };
    let whole = retention.parse::<i64>().ok().filter(|whole| *whole >= 0);
    let period = match (mode, whole) {
        (_, Some(0)) => return Ok(AutoCompaction::Off),
        ("revision", Some(revisions)) => return Ok(AutoCompaction::Revision(revisions)),
        (_, Some(hours)) => Duration::from_secs(hours.unsigned_abs().saturating_mul(3600)),
        (_, None) => go::duration(retention).map_err(|_| {
            format!("error parsing CompactionRetention: time: invalid duration {retention:?}")
        })?,
    };
    Ok(match mode {
        _ if period.is_zero() => AutoCompaction::Off,
        // Go's durations are nanoseconds, which etcd takes for revisions here.
        "revision" => AutoCompaction::Revision(i64::try_from(period.as_nanos()).unwrap_or(i64::MAX)),
        _ => AutoCompaction::Periodic(period),
    })
}

/// None where no certificate was given.
fn tls(mut draft: TlsConfig) -> Result<Option<TlsConfig>, String> {
    let (cert, key) = (draft.cert_file.display().to_string(), draft.key_file.display().to_string());
    if cert.is_empty() && key.is_empty() {
        return Ok(None);
    }
    if cert.is_empty() || key.is_empty() {
        return Err(format!("KeyFile and CertFile must both be present[key: {key}, cert: {cert}]"));
    }
    if let Some((cert, key)) = &draft.dial {
        match (cert.as_os_str().is_empty(), key.as_os_str().is_empty()) {
            (false, false) => {}
            (true, true) => draft.dial = None,
            _ => {
                return Err(format!(
                    "ClientKeyFile and ClientCertFile must both be present or both absent: key: {}, cert: {}]",
                    key.display(),
                    cert.display()
                ));
            }
        }
    }
    Ok(Some(draft))
}
