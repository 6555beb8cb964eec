//! The API server's shell: HTTPS, authentication, storage over the etcd seam, watch caches, streams.
//!
//! ```text
//! serve ─► handler ─► authn ─► authz (core) ─► read / watch ─► cache ◄─ hub ◄─ one watch of the store
//!                                           └► write / remove / subresource ─► core step ─► storage (compare-and-swap)
//! ```
//!
//! Start reading at [`run`], then `handler`, then `write::Place::change` (the one way objects change) and `hub` (the one
//! way caches change). What a request means is decided in the core; here is only when, with what, and how often.
//!
//! Hazards: a step's answer counts only if it was computed from the store or its write succeeded (see `write`); an
//! answer whose write has an unknown outcome is settled by reading, never by writing blindly again (see `storage`).
//! Absences: nothing here knows RocksDB or Raft; the store is whatever speaks etcd's API.

mod admit;
mod authn;
mod availability;
mod bootstrap;
mod cache;
mod components;
mod config;
mod console;
mod definitions;
mod documents;
mod flags;
mod handler;
mod health;
mod hub;
mod kubelet;
mod kubernetes_service;
mod members;
mod metrics;
mod metrics_api;
mod metrics_routes;
mod object;
mod present;
mod read;
mod remove;
mod request;
mod respond;
mod serve;
mod server;
mod storage;
mod streams;
mod subresource;
mod tls;
mod tokens;
mod view;
mod watch;
mod webhooks;
mod write;
mod yaml;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub use config::{Config, Extra, Peer, Pki};
pub use flags::main;

/// Serves until the token is cancelled, then ends gracefully.
///
/// # Errors
/// The address cannot be bound, or keys and certificates are unusable. A store that does not answer is waited for.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let bind = config.bind;
    let listener = TcpListener::bind(bind).await.with_context(|| {
        format!("cannot listen on {bind}: choose another --bind-address or --secure-port, or stop who listens there")
    })?;
    run_on(listener, config, stop).await
}

/// Like [`run`], on a socket that is already bound.
///
/// # Errors
/// Keys and certificates are unusable.
pub async fn run_on(listener: TcpListener, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let tls = tls::server(&config.pki)?;
    let port = listener.local_addr()?.port();
    let (server, background) = begin(config, port, &stop)?;
    tracing::info!(port, "API server listening");
    serve::serve(server, listener, TlsAcceptor::from(tls), stop).await;
    background.end().await;
    Ok(())
}

/// An API server without a socket: clients in this process reach it over in-memory streams, as the users they say they
/// are. Aborting it is its crash: everything it was doing ends at once.
pub struct InProcess {
    server: Arc<server::Server>,
    tasks: std::sync::Mutex<tokio::task::JoinSet<()>>,
}

impl InProcess {
    /// Starts one.
    ///
    /// # Errors
    /// Keys and certificates are unusable.
    pub fn start(config: Config, stop: &CancellationToken) -> anyhow::Result<InProcess> {
        let port = config.bind.port();
        let (server, background) = begin(config, port, stop)?;
        Ok(InProcess { server, tasks: std::sync::Mutex::new(background.tasks) })
    }

    /// The client's end of a new HTTP/1.1 connection of this user.
    pub fn connect(&self, user: keelson_apiserver_core::UserInfo) -> tokio::io::DuplexStream {
        let (client, ours) = tokio::io::duplex(64 * 1024);
        let peer = Peer(self.server.config.bind);
        let mut tasks = self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(serve::in_process(self.server.clone(), ours, peer, Arc::new(user)));
        client
    }

    /// Ends everything it does, in the midst of it.
    pub fn abort(&self) {
        self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).abort_all();
    }
}

/// What a server does beside answering.
struct Background {
    tasks: tokio::task::JoinSet<()>,
    stop: CancellationToken,
}

impl Background {
    async fn end(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The shared state, and the work that goes on beside requests.
fn begin(
    config: Config,
    port: u16,
    stop: &CancellationToken,
) -> anyhow::Result<(Arc<server::Server>, Background)> {
    let pki = &config.pki;
    let tokens = tokens::Tokens::new(
        &pki.service_account_key,
        &pki.service_account_verify_keys,
        &config.service_account_issuer,
        &config.api_audiences,
    )?;
    let kubelets = kubelet::KubeletClient::new(pki.kubelet_client.as_ref(), pki.kubelet_ca.as_deref())
        .context(
            "the kubelet client certificate (--kubelet-client-certificate, --kubelet-client-key) is unusable",
        )?;
    let hub = hub::Hub::new(config.etcd.clone());
    let service = kubernetes_service::KubernetesService {
        etcd: config.etcd.clone(),
        advertise: config.advertise_address,
        port: config.advertise_port.unwrap_or(port),
        service_ip: config.kubernetes_service_ip(),
        uid: || uuid::Uuid::new_v4().to_string(),
    };
    let server = Arc::new(server::Server {
        storage: storage::Storage::new(config.etcd.clone()),
        view: view::CacheView(hub.clone()),
        hub: hub.clone(),
        tokens,
        metrics_api: metrics_api::MetricsApi::new(kubelets.clone()),
        kubelets,
        metrics: metrics::Metrics::default(),
        documents: documents::Documents::default(),
        definitions: definitions::Definitions::default(),
        bootstrapped: AtomicBool::new(false),
        stopping: stop.clone(),
        store_heard: AtomicU64::new(0),
        port,
        config,
    });
    // Background work ends after the last request, so that requests in flight still see the caches move.
    let background = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(hub.run(background.clone()));
    tasks.spawn(bootstrap::run(server.clone(), background.clone()));
    tasks.spawn(bootstrap::watch_store(server.clone(), background.clone()));
    tasks.spawn(bootstrap::compact(server.clone(), background.clone()));
    tasks.spawn(definitions::run(server.clone(), background.clone()));
    tasks.spawn(availability::run(server.clone(), background.clone()));
    // Leaves the endpoints as soon as the stop is asked for.
    tasks.spawn(service.run(stop.clone()));
    Ok((server, Background { tasks, stop: background }))
}
