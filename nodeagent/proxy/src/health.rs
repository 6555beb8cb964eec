//! `/healthz`, `/livez`, `/metrics` of the proxy, and the health-check port of each `externalTrafficPolicy: Local` Service.
//!
//! Healthy: rules were written and the last transaction was not refused.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use keelson_nodeagent_core::proxy::{ServiceName, State};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Connections served at once on each port.
const CONNECTIONS: usize = 64;

/// Port -> (Service, its endpoints on this node).
type Ports = BTreeMap<u16, (ServiceName, usize)>;

pub struct Health {
    ready: AtomicBool,
    syncs: AtomicU64,
    failures: AtomicU64,
    last_sync_micros: AtomicU64,
    ports: watch::Sender<Ports>,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            ready: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            last_sync_micros: AtomicU64::new(0),
            ports: watch::Sender::new(Ports::new()),
        }
    }
}

impl Health {
    pub fn synced(&self, state: &State, node: &str, took: Duration) {
        self.ready.store(true, Ordering::Relaxed);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.last_sync_micros.store(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let ports: Ports = state
            .services
            .iter()
            .filter_map(|(name, service)| {
                let port = service.health_check_node_port?;
                let local = |port: &keelson_nodeagent_core::proxy::ServicePort| {
                    state.endpoints.port(name, &port.name, port.protocol, node).local.len()
                };
                Some((port, (name.clone(), service.ports.iter().map(local).max().unwrap_or(0))))
            })
            .collect();
        self.ports.send_if_modified(|known| {
            let changed = *known != ports;
            *known = ports;
            changed
        });
    }

    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.ready.store(false, Ordering::Relaxed);
    }

    fn metrics(&self) -> String {
        let seconds = self.last_sync_micros.load(Ordering::Relaxed) as f64 / 1e6;
        format!(
            "# TYPE kubeproxy_sync_proxy_rules_total counter\nkubeproxy_sync_proxy_rules_total {}\n\
             # TYPE kubeproxy_sync_proxy_rules_nftables_sync_failures_total counter\n\
             kubeproxy_sync_proxy_rules_nftables_sync_failures_total {}\n\
             # TYPE keelson_proxy_last_sync_seconds gauge\nkeelson_proxy_last_sync_seconds {seconds}\n",
            self.syncs.load(Ordering::Relaxed),
            self.failures.load(Ordering::Relaxed)
        )
    }
}

/// Binds `address`; the future serves it and the Services' ports until the token is cancelled.
///
/// # Errors
/// When the address is taken.
pub async fn serve(
    address: SocketAddr,
    health: Arc<Health>,
    token: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + 'static> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("proxy health address {address}: choose another with --healthz-bind-address")
    })?;
    let ports = services(health.ports.subscribe(), token.clone());
    let answer = move |path: &str| match path {
        "/healthz" | "/livez" => match health.ready.load(Ordering::Relaxed) {
            true => (StatusCode::OK, "application/json", "{\"status\":\"ok\"}\n".to_owned()),
            false => (
                StatusCode::SERVICE_UNAVAILABLE,
                "application/json",
                "{\"status\":\"rules not written\"}\n".into(),
            ),
        },
        "/metrics" => (StatusCode::OK, "text/plain; version=0.0.4", health.metrics()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "404 page not found\n".to_owned()),
    };
    Ok(async move {
        tokio::join!(accept(listener, answer, token), ports);
    })
}

/// Opens and closes health-check ports as Services come and go.
async fn services(mut ports: watch::Receiver<Ports>, token: CancellationToken) {
    let mut open: BTreeMap<u16, CancellationToken> = BTreeMap::new();
    loop {
        let wanted: Vec<u16> = ports.borrow_and_update().keys().copied().collect();
        open.retain(|port, token| {
            let keep = wanted.contains(port);
            if !keep {
                token.cancel();
            }
            keep
        });
        for port in wanted {
            if open.contains_key(&port) {
                continue;
            }
            match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
                Ok(listener) => {
                    let child = token.child_token();
                    let counts = ports.clone();
                    let answer = move |_: &str| local_endpoints(&counts.borrow(), port);
                    tokio::spawn(accept(listener, answer, child.clone()));
                    open.insert(port, child);
                }
                Err(error) => warn!(port, %error, "health-check port of a Service can't be opened"),
            }
        }
        tokio::select! {
            () = token.cancelled() => return,
            changed = ports.changed() => if changed.is_err() { return },
        }
    }
}

fn local_endpoints(ports: &Ports, port: u16) -> (StatusCode, &'static str, String) {
    let Some((service, count)) = ports.get(&port) else {
        return (StatusCode::NOT_FOUND, "text/plain", "404 page not found\n".into());
    };
    let status = if *count > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": count, "serviceProxyHealthy": true,
    });
    (status, "application/json", body.to_string())
}

async fn accept<F>(listener: TcpListener, answer: F, token: CancellationToken)
where
    F: Fn(&str) -> (StatusCode, &'static str, String) + Clone + Send + Sync + 'static,
{
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = token.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (Ok((stream, _)), Ok(slot)) = (accepted, slots.clone().try_acquire_owned()) else { continue };
        let answer = answer.clone();
        tokio::spawn(async move {
            let respond = service_fn(|request: Request<Incoming>| {
                let (status, kind, body) = answer(request.uri().path());
                let response = Response::builder().status(status).header(header::CONTENT_TYPE, kind);
                let response = response
                    .body(Full::new(Bytes::from(body)))
                    .unwrap_or_else(|_| Response::new(Full::default()));
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), respond);
            if let Err(error) = connection.await {
                debug!(%error, "health connection");
            }
            drop(slot);
        });
    }
}
