//! What the API server is started with. Everything is in memory here: `flags` reads files, the cluster crate hands
//! over bytes.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use futures::future::BoxFuture;
use keelson_apiserver_core::UserInfo;
use keelson_store_proto::client::Etcd;

/// Serves requests below `/keelson/v1/` that this crate does not know, before authentication: the hook makes its own
/// checks. The body is at most 3 MiB. `None` is answered as 404. The peer's address is in the request's extensions
/// as [`Peer`].
pub type Extra =
    Arc<dyn Fn(http::Request<Bytes>) -> BoxFuture<'static, Option<http::Response<Bytes>>> + Send + Sync>;

/// Address of the client of a request (request extension).
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Keys and certificates, as PEM.
#[derive(Clone, Default)]
pub struct Pki {
    /// Serving certificate chain and key.
    pub server_cert: Vec<u8>,
    pub server_key: Vec<u8>,
    /// Authorities of client certificates.
    pub client_ca: Vec<u8>,
    /// Signs service account tokens (PKCS#8 ECDSA P-256, PKCS#8 or PKCS#1 RSA).
    pub service_account_key: Vec<u8>,
    /// More keys (public or private) whose tokens are accepted.
    pub service_account_verify_keys: Vec<Vec<u8>>,
    /// Our certificate chain and key towards kubelets.
    pub kubelet_client: Option<(Vec<u8>, Vec<u8>)>,
    /// Authority of the kubelets' serving certificates; without it they are not verified (as upstream).
    pub kubelet_ca: Option<Vec<u8>>,
}

impl Pki {
    /// Reads one PEM file.
    ///
    /// # Errors
    /// The file cannot be read; the error names it.
    pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
        std::fs::read(path)
            .with_context(|| format!("cannot read {}: check the path and its permissions", path.display()))
    }
}

/// Everything `run` needs. Start from [`Config::new`].
#[derive(Clone)]
pub struct Config {
    pub etcd: Arc<dyn Etcd>,
    pub bind: SocketAddr,
    /// Address under which other machines reach this server; an endpoint of the `kubernetes` Service.
    pub advertise_address: IpAddr,
    /// Port of that endpoint; the bound port when absent.
    pub advertise_port: Option<u16>,
    pub service_cidr: ipnet::Ipv4Net,
    /// First and last node port.
    pub node_ports: (u16, u16),
    pub pki: Pki,
    /// `iss` of service account tokens.
    pub service_account_issuer: String,
    /// Audiences that mean this server; the issuer when empty.
    pub api_audiences: Vec<String>,
    /// Bearer tokens known from the start.
    pub static_tokens: Vec<(String, UserInfo)>,
    pub extra: Option<Extra>,
    /// Seconds a served Event lives.
    pub event_ttl: i64,
    /// Seconds between compactions of the store by this server; 0 = never.
    pub compaction_interval: u64,
    /// How long a graceful stop waits for requests in flight, seconds.
    pub shutdown_grace: u64,
}

impl Config {
    /// Defaults as upstream's, for one server.
    pub fn new(etcd: Arc<dyn Etcd>, bind: SocketAddr, advertise_address: IpAddr, pki: Pki) -> Config {
        Config {
            etcd,
            bind,
            advertise_address,
            advertise_port: None,
            service_cidr: ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 16),
            node_ports: (30000, 32767),
            pki,
            service_account_issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            api_audiences: vec![],
            static_tokens: vec![],
            extra: None,
            event_ttl: 3600,
            compaction_interval: 300,
            shutdown_grace: 10,
        }
    }

    /// The first address of the Service range: the `kubernetes` Service's.
    pub fn kubernetes_service_ip(&self) -> std::net::Ipv4Addr {
        self.service_cidr.hosts().next().unwrap_or(self.service_cidr.network())
    }
}
