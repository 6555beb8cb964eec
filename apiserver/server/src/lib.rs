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
mod bootstrap;
mod cache;
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
    let port = listener.local_addr()?.port();
    let pki = &config.pki;
    let tls = tls::server(pki)?;
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
    // Leaves the endpoints as soon as the stop is asked for.
    tasks.spawn(service.run(stop.clone()));
    tracing::info!(port, "API server listening");
    serve::serve(server, listener, TlsAcceptor::from(tls), stop).await;
    background.cancel();
    while tasks.join_next().await.is_some() {}
    Ok(())
}
