//! What a store member is started with, and the checks that need nothing but these values.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::rocks::Memory;

/// Whether the cluster is formed or joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterState {
    /// All members of the initial cluster start for the first time.
    #[default]
    New,
    /// The cluster runs; we were added to it.
    Existing,
}

/// TLS material by path; read at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Our certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Its key, PEM.
    pub key_file: PathBuf,
    /// The authorities whose certificates we accept, PEM.
    pub trusted_ca_file: Option<PathBuf>,
    /// Refuse whoever shows no certificate of these authorities.
    pub client_cert_auth: bool,
    /// Certificate and key shown when we are the client; the pair above when absent. PEM.
    pub dial: Option<(PathBuf, PathBuf)>,
    /// Serial numbers in this list are refused after the handshake; DER or PEM, read again when it changes.
    pub crl_file: Option<PathBuf>,
    /// Common names one of which a client's certificate must have; empty = any.
    pub allowed_cns: Vec<String>,
    /// Host names one of which a client's certificate must be good for; empty = any.
    pub allowed_hostnames: Vec<String>,
    /// Take certificates that name other addresses than the connection comes from.
    pub skip_client_san_verify: bool,
    /// Suites offered for TLS 1.2, by Go's names; empty = all that are safe.
    pub cipher_suites: Vec<String>,
    /// Versions taken.
    pub versions: TlsVersions,
    /// Whether the certificate was made by ourselves at start: then other members' are not checked either.
    pub self_signed: bool,
}

/// Versions of TLS a listener takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersions {
    /// 1.2 and 1.3.
    #[default]
    Both,
    /// 1.2 alone.
    Only12,
    /// 1.3 alone.
    Only13,
}

/// When history is compacted without being asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Never.
    #[default]
    Off,
    /// What is older than this.
    Periodic(Duration),
    /// What is more than so many revisions back.
    Revision(i64),
}

/// A second cluster through which the members of a new one find each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Which new cluster.
    pub token: String,
    /// The discovery service's client URLs.
    pub endpoints: Vec<String>,
    /// For one request.
    pub request_timeout: Duration,
    /// TLS to the discovery service: authority, certificate, key; by path.
    pub tls: Option<(PathBuf, PathBuf, PathBuf)>,
}

/// DNS SRV records that name the members of a new cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSrv {
    /// The domain asked.
    pub domain: String,
    /// Appended to the service's name after a dash.
    pub service: String,
}

/// Everything a member needs to know; defaults are etcd's.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member's name.
    pub name: String,
    /// Where everything durable is.
    pub data_dir: PathBuf,
    /// Where traces of calls go; nowhere when absent.
    pub traces: Option<crate::traces::Options>,
    /// Where the Raft log is, when not below `data_dir`.
    pub wal_dir: Option<PathBuf>,
    /// `http(s)://host:port` or `unix(s)://path`, port 0 allowed.
    pub listen_client_urls: Vec<String>,
    /// Everything but gRPC; when given, the URLs above serve gRPC alone.
    pub listen_client_http_urls: Vec<String>,
    /// What clients are told.
    pub advertise_client_urls: Vec<String>,
    /// `http(s)://host:port`.
    pub listen_peer_urls: Vec<String>,
    /// Where peers reach us; part of our identity in a new cluster.
    pub initial_advertise_peer_urls: Vec<String>,
    /// Only health and metrics.
    pub listen_metrics_urls: Vec<String>,
    /// Name and peer URL; a name may come several times.
    pub initial_cluster: Vec<(String, String)>,
    /// Formed or joined.
    pub initial_cluster_state: ClusterState,
    /// Members found through another cluster instead of `initial_cluster`.
    pub discovery: Option<Discovery>,
    /// Members found in DNS instead of `initial_cluster`.
    pub discovery_srv: Option<DnsSrv>,
    /// Make a cluster of this member alone from its data.
    pub force_new_cluster: bool,
    /// Keeps clusters apart that have the same members.
    pub initial_cluster_token: String,
    /// For clients.
    pub tls: Option<TlsConfig>,
    /// Between members.
    pub peer_tls: Option<TlsConfig>,
    /// Make a certificate for clients at start.
    pub auto_tls: bool,
    /// Make a certificate for peers at start.
    pub peer_auto_tls: bool,
    /// How long certificates made at start are good for.
    pub self_signed_validity: Duration,
    /// Between heartbeats.
    pub heartbeat_interval: Duration,
    /// Silence of the leader after which a member stands for election.
    pub election_timeout: Duration,
    /// Database size that raises the NOSPACE alarm, bytes; 0 = 2 GiB.
    pub quota_backend_bytes: i64,
    /// Largest request, bytes.
    pub max_request_bytes: usize,
    /// Most operations in a Txn.
    pub max_txn_ops: usize,
    /// HTTP/2 streams per client connection.
    pub max_concurrent_streams: u32,
    /// Silence after which a client's connection is pinged; zero = never.
    pub grpc_keepalive_interval: Duration,
    /// How long a pinged client may take to answer.
    pub grpc_keepalive_timeout: Duration,
    /// SO_REUSEPORT on listeners.
    pub socket_reuse_port: bool,
    /// Answer the JSON gateway.
    pub enable_grpc_gateway: bool,
    /// Origins allowed to call from a browser; `*` = all.
    pub cors: Vec<String>,
    /// Host names HTTP requests may be for on a listener without TLS; `*` = all.
    pub host_whitelist: Vec<String>,
    /// Histograms of gRPC calls in the metrics too.
    pub metrics_extensive: bool,
    /// A call that takes longer is logged.
    pub warning_unary_request_duration: Duration,
    /// `simple`, or `jwt,…` with its options.
    pub auth_token: String,
    /// Cost of password hashes.
    pub bcrypt_cost: u32,
    /// How long a simple token lives after its last use.
    pub auth_token_ttl: Duration,
    /// Compaction of history unasked.
    pub auto_compaction: AutoCompaction,
    /// Between comparisons of all members' hashes; zero = never.
    pub corrupt_check_time: Duration,
    /// Between comparisons of the hashes kept at compactions.
    pub compact_hash_check_time: Duration,
    /// Log entries between two purges.
    pub snapshot_count: u64,
    /// Log entries kept for slow followers.
    pub snapshot_catchup_entries: u64,
    /// Between progress notifications of idle watchers.
    pub watch_progress_notify_interval: Duration,
    /// Learners that may be members at a time.
    pub max_learners: usize,
    /// Refuse membership changes that would lose the quorum.
    pub strict_reconfig_check: bool,
    /// Acknowledge before data is on disk. Only for measurements.
    pub unsafe_no_fsync: bool,
    /// Of the database.
    pub memory: Memory,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            name: "default".to_owned(),
            data_dir: PathBuf::from("default.etcd"),
            traces: None,
            wal_dir: None,
            listen_client_http_urls: Vec::new(),
            discovery: None,
            discovery_srv: None,
            force_new_cluster: false,
            auto_tls: false,
            peer_auto_tls: false,
            self_signed_validity: Duration::from_secs(365 * 86_400),
            grpc_keepalive_interval: Duration::from_secs(2 * 3600),
            grpc_keepalive_timeout: Duration::from_secs(20),
            socket_reuse_port: false,
            enable_grpc_gateway: true,
            cors: vec!["*".to_owned()],
            host_whitelist: vec!["*".to_owned()],
            metrics_extensive: false,
            warning_unary_request_duration: Duration::from_millis(300),
            auth_token: "simple".to_owned(),
            bcrypt_cost: 10,
            auth_token_ttl: Duration::from_secs(300),
            auto_compaction: AutoCompaction::Off,
            corrupt_check_time: Duration::ZERO,
            compact_hash_check_time: Duration::from_secs(60),
            listen_client_urls: vec!["http://localhost:2379".to_owned()],
            advertise_client_urls: vec!["http://localhost:2379".to_owned()],
            listen_peer_urls: vec!["http://localhost:2380".to_owned()],
            initial_advertise_peer_urls: vec!["http://localhost:2380".to_owned()],
            listen_metrics_urls: Vec::new(),
            initial_cluster: Vec::new(),
            initial_cluster_state: ClusterState::New,
            initial_cluster_token: "etcd-cluster".to_owned(),
            tls: None,
            peer_tls: None,
            heartbeat_interval: Duration::from_millis(100),
            election_timeout: Duration::from_millis(1000),
            quota_backend_bytes: 0,
            max_request_bytes: 1_572_864,
            max_txn_ops: 128,
            max_concurrent_streams: u32::MAX,
            snapshot_count: 10_000,
            snapshot_catchup_entries: 5_000,
            watch_progress_notify_interval: Duration::from_secs(600),
            max_learners: 1,
            strict_reconfig_check: true,
            unsafe_no_fsync: false,
            memory: Memory::default(),
        }
    }
}

/// etcd's default quota, bytes.
const DEFAULT_QUOTA: u64 = 2 << 30;

impl Config {
    /// The quota in force, bytes; `u64::MAX` when negative (none).
    pub fn quota(&self) -> u64 {
        match self.quota_backend_bytes {
            0 => DEFAULT_QUOTA,
            bytes => u64::try_from(bytes).unwrap_or(u64::MAX),
        }
    }

    /// How long a request may wait for the cluster.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + self.election_timeout * 2
    }

    /// Shortest lease, in seconds.
    pub fn min_lease_ttl(&self) -> i64 {
        let millis = self.election_timeout.as_millis() * 3 / 2;
        i64::try_from(millis.div_ceil(1000)).unwrap_or(i64::MAX)
    }

    /// Peer URLs by name; ourselves alone when no initial cluster is given.
    pub fn initial_members(&self) -> BTreeMap<String, Vec<String>> {
        let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, url) in &self.initial_cluster {
            members.entry(name.clone()).or_default().push(url.clone());
        }
        if members.is_empty() {
            members.insert(self.name.clone(), self.initial_advertise_peer_urls.clone());
        }
        for urls in members.values_mut() {
            urls.sort_unstable();
        }
        members
    }

    /// # Errors
    /// Values that cannot work, in etcd's words.
    pub fn check(&self) -> Result<()> {
        let (tick, election) = (self.heartbeat_interval.as_millis(), self.election_timeout.as_millis());
        ensure!(
            election >= tick * 5,
            "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{tick}ms]"
        );
        ensure!(!self.listen_client_urls.is_empty(), "--listen-client-urls is empty: give at least one URL");
        ensure!(!self.listen_peer_urls.is_empty(), "--listen-peer-urls is empty: give at least one URL");
        let listening = [
            &self.listen_client_urls,
            &self.listen_peer_urls,
            &self.listen_metrics_urls,
            &self.listen_client_http_urls,
        ];
        for url in listening.into_iter().flatten() {
            Endpoint::parse(url)?;
        }
        if self.listen_client_http_urls.iter().any(|url| self.listen_client_urls.contains(url)) {
            bail!("cannot bind both --listen-client-urls and --listen-client-http-urls on the same url");
        }
        // Found later: the members are not known before the discovery was asked.
        if self.discovery.is_some() || self.discovery_srv.is_some() {
            return Ok(());
        }
        self.check_members()
    }

    /// # Errors
    /// An initial cluster that cannot be ours, in etcd's words.
    pub fn check_members(&self) -> Result<()> {
        let members = self.initial_members();
        let Some(ours) = members.get(&self.name) else {
            bail!("couldn't find local name {:?} in the initial cluster configuration", self.name);
        };
        if self.initial_cluster_state == ClusterState::New {
            self.check_advertised(ours)?;
        }
        let mut urls: Vec<&String> = members.values().flatten().collect();
        urls.sort_unstable();
        if urls.windows(2).any(|pair| pair[0] == pair[1]) {
            let text: Vec<String> = members
                .iter()
                .flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}")))
                .collect();
            bail!("initial cluster {} has duplicate url", text.join(","));
        }
        Ok(())
    }

    fn check_advertised(&self, ours: &[String]) -> Result<()> {
        let advertised = &self.initial_advertise_peer_urls;
        let missing = |from: &[String], other: &[String]| -> Vec<String> {
            from.iter().filter(|url| !other.contains(url)).cloned().collect()
        };
        let ours_only = missing(ours, advertised);
        if !ours_only.is_empty() {
            let named: Vec<String> = ours_only.iter().map(|url| format!("{}={url}", self.name)).collect();
            bail!(
                "--initial-cluster has {} but missing from --initial-advertise-peer-urls={}",
                named.join(","),
                advertised.join(",")
            );
        }
        let advertised_only = missing(advertised, ours);
        if !advertised_only.is_empty() {
            bail!(
                "--initial-advertise-peer-urls has {} but missing from --initial-cluster={}={}",
                advertised_only.join(","),
                self.name,
                ours.join(&format!(",{}=", self.name))
            );
        }
        Ok(())
    }
}

/// Where to listen or connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// https or unixs.
    pub secure: bool,
    /// The place.
    pub address: Address,
}

/// The place of an [`Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Name or address, and port; 0 = any.
    Tcp(String, u16),
    /// A unix socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// # Errors
    /// Not of the form `http(s)://host:port` or `unix(s)://path`, in etcd's words.
    pub fn parse(url: &str) -> Result<Endpoint> {
        let unknown = || format!("URL scheme must be http, https, unix, or unixs: {url}");
        let (scheme, rest) = url.split_once("://").with_context(|| match url.split_once(':') {
            // Go's URL parser fails at a colon before any slash.
            Some((host, _)) if !host.chars().all(|c| c.is_ascii_alphabetic()) || host.is_empty() => {
                format!("parse {url:?}: first path segment in URL cannot contain colon")
            }
            _ => unknown(),
        })?;
        let secure = matches!(scheme, "https" | "unixs");
        match scheme {
            "unix" | "unixs" => {
                ensure!(!rest.is_empty(), "URL {url} names no socket");
                return Ok(Endpoint { secure, address: Address::Unix(rest.into()) });
            }
            "http" | "https" => {}
            _ => bail!(unknown()),
        }
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (host, port) = authority
            .rsplit_once(':')
            .with_context(|| format!("URL address does not have the form \"host:port\": {url}"))?;
        ensure!(path.is_empty(), "URL must not contain a path: {url}");
        let port = port
            .parse()
            .with_context(|| format!("parse {url:?}: invalid port {:?} after host", format!(":{port}")))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        ensure!(!host.is_empty(), "URL {url} has no host");
        Ok(Endpoint { secure, address: Address::Tcp(host, port) })
    }

    /// The name a server's certificate is checked for.
    pub fn host(&self) -> &str {
        match &self.address {
            Address::Tcp(host, _) => host,
            Address::Unix(_) => "localhost",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let parsed = Endpoint::parse("https://127.0.0.1:2379").expect("good");
        let address = Address::Tcp("127.0.0.1".to_owned(), 2379);
        assert_eq!(parsed, Endpoint { secure: true, address });
        assert_eq!(Endpoint::parse("http://[::1]:80").expect("good").host(), "::1");
        let socket = Endpoint::parse("unixs://localhost:17").expect("good");
        assert_eq!(socket, Endpoint { secure: true, address: Address::Unix("localhost:17".into()) });
        for bad in [
            "127.0.0.1:2379",
            "ftp://a:1",
            "http://a",
            "http://a:99999",
            "http://a:1/b",
            "http://:1",
            "unix://",
        ] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_member_must_find_itself_in_the_initial_cluster() {
        let mut config = Config { name: "m1".to_owned(), ..Config::default() };
        assert!(config.check().is_ok(), "alone is fine");
        config.initial_cluster = vec![("m2".to_owned(), "http://localhost:2380".to_owned())];
        assert!(config.check().expect_err("not there").to_string().contains("couldn't find local name"));
        config.initial_cluster = vec![("m1".to_owned(), "http://localhost:9".to_owned())];
        assert!(config.check().expect_err("elsewhere").to_string().contains("--initial-advertise-peer-urls"));
    }
}
