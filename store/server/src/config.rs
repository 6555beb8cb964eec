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
}

/// Everything a member needs to know; defaults are etcd's.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member's name.
    pub name: String,
    /// Where everything durable is.
    pub data_dir: PathBuf,
    /// `http(s)://host:port`, port 0 allowed.
    pub listen_client_urls: Vec<String>,
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
    /// Keeps clusters apart that have the same members.
    pub initial_cluster_token: String,
    /// For clients.
    pub tls: Option<TlsConfig>,
    /// Between members.
    pub peer_tls: Option<TlsConfig>,
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
    /// Make a cluster of this member alone, whatever its data says of others.
    pub force_new_cluster: bool,
    /// Between two comparisons of the members' data; zero = never.
    pub compact_hash_check_time: Duration,
    /// `simple`, or `jwt,…` as `--auth-token` takes it.
    pub auth_token: String,
    /// How long a simple token holds without use.
    pub auth_token_ttl: Duration,
    /// Of bcrypt: each step doubles the work.
    pub bcrypt_cost: u32,
    /// Acknowledge before data is on disk. Only for measurements.
    pub unsafe_no_fsync: bool,
    /// Of the database.
    pub memory: Memory,
    /// Said in the log at start.
    pub notes: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            name: "default".to_owned(),
            data_dir: PathBuf::from("default.etcd"),
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
            force_new_cluster: false,
            compact_hash_check_time: Duration::from_secs(60),
            auth_token: "simple".to_owned(),
            auth_token_ttl: Duration::from_secs(300),
            bcrypt_cost: 10,
            unsafe_no_fsync: false,
            memory: Memory::default(),
            notes: Vec::new(),
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
    /// Values that cannot work, each with what to change.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.election_timeout >= self.heartbeat_interval * 5,
            "--election-timeout[{}ms] should be at least as 5 times as --heartbeat-interval[{}ms]",
            self.election_timeout.as_millis(),
            self.heartbeat_interval.as_millis()
        );
        ensure!(!self.listen_client_urls.is_empty(), "--listen-client-urls is empty: give at least one URL");
        ensure!(!self.listen_peer_urls.is_empty(), "--listen-peer-urls is empty: give at least one URL");
        for url in
            self.listen_client_urls.iter().chain(&self.listen_peer_urls).chain(&self.listen_metrics_urls)
        {
            Endpoint::parse(url)?;
        }
        let members = self.initial_members();
        let Some(ours) = members.get(&self.name) else {
            bail!("couldn't find local name {:?} in the initial cluster configuration", self.name);
        };
        let mut advertised = self.initial_advertise_peer_urls.clone();
        advertised.sort_unstable();
        ensure!(
            *ours == advertised,
            "--initial-cluster has {}={} but missing from --initial-advertise-peer-urls={}",
            self.name,
            ours.join(","),
            advertised.join(",")
        );
        Ok(())
    }
}

/// Where to listen or connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// https or not.
    pub secure: bool,
    /// Name or address.
    pub host: String,
    /// 0 = any.
    pub port: u16,
}

impl Endpoint {
    /// # Errors
    /// Not of the form `http(s)://host:port`.
    pub fn parse(url: &str) -> Result<Endpoint> {
        let (scheme, rest) = url.split_once("://").with_context(|| {
            format!("URL scheme must be http or https: {url}; expected http(s)://host:port")
        })?;
        let secure = match scheme {
            "http" => false,
            "https" => true,
            _ => bail!("URL scheme must be http or https: {url}"),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        ensure!(!authority.contains('/'), "URL must not contain a path: {url}");
        let (host, port) = authority
            .rsplit_once(':')
            .with_context(|| format!("URL address does not have the form \"host:port\": {url}"))?;
        let port = port.parse().with_context(|| format!("the port of {url} is no number from 0 to 65535"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        ensure!(!host.is_empty(), "URL {url} has no host");
        Ok(Endpoint { secure, host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let parsed = Endpoint::parse("https://127.0.0.1:2379").expect("good");
        assert_eq!(parsed, Endpoint { secure: true, host: "127.0.0.1".to_owned(), port: 2379 });
        assert_eq!(Endpoint::parse("http://[::1]:80/").expect("good").host, "::1");
        for bad in ["127.0.0.1:2379", "ftp://a:1", "http://a", "http://a:99999", "http://a:1/b", "http://:1"]
        {
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
