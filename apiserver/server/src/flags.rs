//! `keelson apiserver`: upstream's main flags.
//!
//! A flag is one row of a table: what it sets, or why it may be given and changes nothing here. An unknown flag is an
//! error, so that a misspelled one is never silently ignored.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use keelson_apiserver_core::UserInfo;
use keelson_store_proto::client::{ClientTls, Remote};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Pki};

/// Flags that set something.
const KNOWN: [(&str, &str); 27] = [
    ("advertise-address", "IP address on which to advertise this server to members of the cluster"),
    ("api-audiences", "audiences of tokens for this API, comma separated (default: the issuer)"),
    ("bind-address", "IP address to listen on (default 0.0.0.0)"),
    ("client-ca-file", "authorities of client certificates (PEM)"),
    ("etcd-cafile", "authority of the store's certificates (PEM)"),
    ("etcd-certfile", "our certificate towards the store (PEM)"),
    ("etcd-compaction-interval", "time between compactions of the store, such as 5m0s; 0 = never"),
    ("etcd-keyfile", "key of --etcd-certfile (PEM)"),
    ("etcd-servers", "the store's client URLs, comma separated"),
    ("event-ttl", "how long Events are kept, such as 1h0m0s"),
    ("kubelet-certificate-authority", "authority of the kubelets' serving certificates (PEM)"),
    ("kubelet-client-certificate", "our certificate towards kubelets (PEM)"),
    ("kubelet-client-key", "key of --kubelet-client-certificate (PEM)"),
    ("secure-port", "port to listen on (default 6443)"),
    ("service-account-issuer", "issuer of service account tokens"),
    ("service-account-key-file", "key whose service account tokens are accepted (PEM, may be repeated)"),
    ("service-account-signing-key-file", "key that signs service account tokens (PEM)"),
    ("service-cluster-ip-range", "CIDR of cluster IPs (default 10.96.0.0/16)"),
    ("service-node-port-range", "node ports, such as 30000-32767"),
    ("shutdown-delay-duration", "how long requests in flight may take at a stop, such as 10s"),
    ("tls-cert-file", "serving certificate (PEM)"),
    ("tls-private-key-file", "key of --tls-cert-file (PEM)"),
    ("token-auth-file", "CSV of token,user,uid,\"group1,group2\""),
    ("v", "log level number (0 to 10); RUST_LOG is more precise"),
    ("help", "print the flags"),
    ("etcd-prefix", "must be /registry"),
    ("authorization-mode", "must be Node,RBAC (in any order)"),
];

/// Flags that upstream's start scripts give and that are so by default here, or concern what this server does not have.
const ACCEPTED: [&str; 17] = [
    "allow-privileged",
    "anonymous-auth",
    "apiserver-count",
    "enable-admission-plugins",
    "enable-aggregator-routing",
    "enable-bootstrap-token-auth",
    "enable-priority-and-fairness",
    "endpoint-reconciler-type",
    "kubelet-preferred-address-types",
    "profiling",
    "proxy-client-cert-file",
    "proxy-client-key-file",
    "requestheader-allowed-names",
    "requestheader-client-ca-file",
    "requestheader-extra-headers-prefix",
    "requestheader-group-headers",
    "requestheader-username-headers",
];

type Given = BTreeMap<String, Vec<String>>;

fn parse(args: &[String]) -> anyhow::Result<Given> {
    let mut given = Given::new();
    let mut args = args.iter().peekable();
    while let Some(arg) = args.next() {
        let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            bail!("unexpected argument {arg:?}: flags are written --name=value");
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => match args.next_if(|next| !next.starts_with('-')) {
                Some(value) => (flag, value.clone()),
                None => (flag, "true".to_owned()),
            },
        };
        if ACCEPTED.contains(&name) {
            tracing::info!(flag = name, "this flag changes nothing here");
            continue;
        }
        if !KNOWN.iter().any(|(known, _)| *known == name) {
            bail!("unknown flag --{name}: keelson apiserver --help lists the flags");
        }
        given.entry(name.to_owned()).or_default().push(value);
    }
    Ok(given)
}

fn one<'a>(given: &'a Given, name: &str) -> Option<&'a str> {
    given.get(name).and_then(|values| values.last()).map(String::as_str)
}

fn required<'a>(given: &'a Given, name: &str) -> anyhow::Result<&'a str> {
    one(given, name).ok_or_else(|| anyhow!("--{name} is needed: keelson apiserver --help lists the flags"))
}

fn file(given: &Given, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
    one(given, name).map(|path| Pki::read(Path::new(path)).with_context(|| format!("--{name}"))).transpose()
}

fn needed(given: &Given, name: &str) -> anyhow::Result<Vec<u8>> {
    required(given, name)?;
    Ok(file(given, name)?.unwrap_or_default())
}

/// Seconds of a duration such as `1h30m`, `5m0s`, `10s`.
fn seconds(text: &str) -> anyhow::Result<u64> {
    let mut total = 0u64;
    let mut number = String::new();
    for c in text.chars() {
        let factor = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => bail!("{text:?} is no duration: expected such as 1h30m or 10s"),
        };
        total +=
            number.parse::<u64>().map_err(|_| anyhow!("{text:?} is no duration: expected such as 10s"))?
                * factor;
        number.clear();
    }
    if number.is_empty() || number == "0" {
        Ok(total)
    } else {
        bail!("{text:?} has no unit: expected such as {text}s")
    }
}

/// The user's rows of a token file.
fn token_file(text: &str) -> anyhow::Result<Vec<(String, UserInfo)>> {
    let rows = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    rows.map(|line| {
        let mut fields = line.splitn(4, ',');
        let mut next = || fields.next().map(|f| f.trim().trim_matches('"').to_owned());
        let (Some(token), Some(name), uid) = (next(), next(), next().unwrap_or_default()) else {
            bail!("--token-auth-file: {line:?} is not token,user,uid[,groups]");
        };
        let groups = next().unwrap_or_default();
        let groups = groups.split(',').map(str::trim).filter(|g| !g.is_empty()).map(str::to_owned).collect();
        Ok((token, UserInfo { name, uid, groups, ..UserInfo::default() }))
    })
    .collect()
}

async fn configuration(given: &Given) -> anyhow::Result<Config> {
    let endpoints: Vec<String> =
        required(given, "etcd-servers")?.split(',').map(|s| s.trim().to_owned()).collect();
    let identity = match (file(given, "etcd-certfile")?, file(given, "etcd-keyfile")?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => bail!("--etcd-certfile and --etcd-keyfile go together"),
    };
    let ca = file(given, "etcd-cafile")?;
    let tls = (ca.is_some() || identity.is_some()).then(|| ClientTls {
        ca: ca.unwrap_or_default(),
        identity,
        ..ClientTls::default()
    });
    let etcd = Remote::connect(&endpoints, tls).await?;
    let pki = pki(given)?;
    let ip = |name: &str| {
        one(given, name)
            .map(|t| t.parse::<IpAddr>().map_err(|_| anyhow!("--{name}: {t:?} is no IP address")))
            .transpose()
    };
    let bind = ip("bind-address")?.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let port: u16 =
        one(given, "secure-port").unwrap_or("6443").parse().context("--secure-port is no port number")?;
    let own = if bind.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { bind };
    let mut config = Config::new(
        Arc::new(etcd),
        SocketAddr::new(bind, port),
        ip("advertise-address")?.unwrap_or(own),
        pki,
    );
    if let Some(cidr) = one(given, "service-cluster-ip-range") {
        config.service_cidr = cidr.parse().map_err(|_| {
            anyhow!("--service-cluster-ip-range: {cidr:?} is no IPv4 CIDR such as 10.96.0.0/16")
        })?;
    }
    if let Some(range) = one(given, "service-node-port-range") {
        let parts = range.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        config.node_ports = parts
            .ok_or_else(|| anyhow!("--service-node-port-range: {range:?} is not such as 30000-32767"))?;
    }
    if let Some(issuer) = one(given, "service-account-issuer") {
        config.service_account_issuer = issuer.to_owned();
    }
    if let Some(audiences) = one(given, "api-audiences") {
        config.api_audiences = audiences.split(',').map(str::to_owned).collect();
    }
    if let Some(time) = one(given, "event-ttl") {
        config.event_ttl = i64::try_from(seconds(time)?)?;
    }
    if let Some(time) = one(given, "etcd-compaction-interval") {
        config.compaction_interval = seconds(time)?;
    }
    if let Some(time) = one(given, "shutdown-delay-duration") {
        config.shutdown_grace = seconds(time)?.max(1);
    }
    if let Some(text) = file(given, "token-auth-file")? {
        config.static_tokens = token_file(&String::from_utf8_lossy(&text))?;
    }
    check(given)?;
    Ok(config)
}

fn pki(given: &Given) -> anyhow::Result<Pki> {
    let verify = given.get("service-account-key-file").into_iter().flatten();
    let verify = verify.map(|path| Pki::read(Path::new(path)).context("--service-account-key-file"));
    let kubelet_client =
        match (file(given, "kubelet-client-certificate")?, file(given, "kubelet-client-key")?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => bail!("--kubelet-client-certificate and --kubelet-client-key go together"),
        };
    Ok(Pki {
        server_cert: needed(given, "tls-cert-file")?,
        server_key: needed(given, "tls-private-key-file")?,
        client_ca: needed(given, "client-ca-file")?,
        service_account_key: needed(given, "service-account-signing-key-file")?,
        service_account_verify_keys: verify.collect::<anyhow::Result<_>>()?,
        kubelet_client,
        kubelet_ca: file(given, "kubelet-certificate-authority")?,
    })
}

/// Flags whose other values this server cannot honour.
fn check(given: &Given) -> anyhow::Result<()> {
    if let Some(prefix) = one(given, "etcd-prefix")
        && prefix != "/registry"
    {
        bail!("--etcd-prefix={prefix} is not supported: leave it at /registry");
    }
    if let Some(modes) = one(given, "authorization-mode") {
        let mut modes: Vec<&str> = modes.split(',').collect();
        modes.sort_unstable();
        if modes != ["Node", "RBAC"] {
            bail!("--authorization-mode={} is not supported: use Node,RBAC", modes.join(","));
        }
    }
    Ok(())
}

fn help() -> String {
    let mut out = "keelson apiserver: the API server alone, over any etcd\n\nFlags:\n".to_owned();
    for (name, text) in KNOWN {
        out.push_str(&format!("  --{name:36} {text}\n"));
    }
    out.push_str("\nAccepted without effect: ");
    out.push_str(&ACCEPTED.map(|name| format!("--{name}")).join(", "));
    out.push('\n');
    out
}

/// `keelson apiserver`: serves until SIGTERM or SIGINT. Exit code 1 for bad flags or an unusable configuration.
pub fn main(args: Vec<String>) -> ExitCode {
    let given = match parse(&args) {
        Ok(given) => given,
        Err(error) => {
            eprintln!("Error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    if given.contains_key("help") {
        print!("{}", help());
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: no threads to run on: {error}");
            return ExitCode::FAILURE;
        }
    };
    let served = runtime.block_on(async {
        let config = configuration(&given).await?;
        let stop = CancellationToken::new();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let asked = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            asked.cancel();
        });
        crate::run(config, stop).await
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn flags_are_read_and_unknown_ones_refused() {
        let given =
            parse(&args("--etcd-servers=http://a:1 --secure-port 7443 --allow-privileged=true --help"))
                .expect("flags");
        assert_eq!(
            (one(&given, "secure-port"), one(&given, "etcd-servers")),
            (Some("7443"), Some("http://a:1"))
        );
        assert_eq!(one(&given, "help"), Some("true"));
        let error = parse(&args("--etcd-server=x")).expect_err("unknown").to_string();
        assert!(error.contains("--etcd-server") && error.contains("--help"), "{error}");
        assert!(parse(&args("stray")).is_err());
    }

    #[test]
    fn durations_and_token_files() {
        assert_eq!(seconds("1h0m30s").ok(), Some(3630));
        assert_eq!(seconds("0").ok(), Some(0));
        assert!(seconds("10").is_err() && seconds("x").is_err());
        let users = token_file("t1,alice,u1,\"a,b\"\n").expect("tokens");
        assert_eq!((users[0].0.as_str(), users[0].1.groups.len()), ("t1", 2));
    }
}
