//! Listeners: TCP with or without TLS, HTTP/1 and HTTP/2 on one port, ended gracefully.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::ClientName;
use crate::config::Endpoint;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long open connections may go on after a stop.
const LINGER: Duration = Duration::from_millis(500);

/// A bound port.
pub struct Bound {
    listener: TcpListener,
    /// What it is bound to; tells the port when 0 was asked for.
    pub address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
}

/// Binds every URL.
///
/// # Errors
/// The port is taken; the host is not ours; https without certificates.
pub async fn bind(urls: &[String], tls: Option<&Arc<ServerConfig>>, flag: &str) -> Result<Vec<Bound>> {
    let mut bound: Vec<Bound> = Vec::new();
    for url in urls {
        let endpoint = Endpoint::parse(url)?;
        if endpoint.secure && tls.is_none() {
            bail!("{flag} {url} wants TLS but no certificate was given: set the cert and key files");
        }
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port))
            .await
            .with_context(|| format!("{flag}: cannot resolve {}", endpoint.host))?
            .collect();
        // A name such as localhost may stand for several addresses; the first of IPv4 is what clients try.
        let address = addresses
            .iter()
            .find(|address| address.is_ipv4())
            .or_else(|| addresses.first())
            .with_context(|| format!("{flag}: {} has no address", endpoint.host))?;
        if endpoint.port != 0 && bound.iter().any(|other| other.address == *address) {
            continue;
        }
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("listen tcp {address}: cannot bind for {flag}; is another server on that port?")
        })?;
        let address = listener.local_addr().context("a bound socket has an address")?;
        bound.push(Bound { listener, address, tls: endpoint.secure.then(|| tls.cloned()).flatten() });
    }
    Ok(bound)
}

/// What answers requests of a listener.
pub trait Serve: Clone + Send + Sync + 'static {
    /// Never fails: errors are responses.
    fn serve(&self, request: Request<Incoming>) -> impl Future<Output = Response<tonic::body::Body>> + Send;
}

/// Accepts until `stop`, then lets open connections finish for a moment.
pub async fn run<S: Serve>(bound: Bound, service: S, streams: u32, stop: CancellationToken) {
    let connections = TaskTracker::new();
    let acceptor = bound.tls.map(TlsAcceptor::from);
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = bound.listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        let (service, stop, acceptor) = (service.clone(), stop.clone(), acceptor.clone());
        connections.spawn(async move {
            match acceptor {
                None => connection(stream, None, service, streams, stop).await,
                Some(acceptor) => match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        let client = client_name(stream.get_ref().1);
                        connection(stream, client, service, streams, stop).await;
                    }
                    Ok(Err(error)) => tracing::warn!(%error, "rejected connection"),
                    Err(_) => tracing::warn!("rejected connection: TLS handshake took too long"),
                },
            }
        });
    }
    drop(bound.listener);
    connections.close();
    if tokio::time::timeout(LINGER, connections.wait()).await.is_err() {
        tracing::debug!("connections still open at stop are dropped");
    }
}

/// The common name of the client's certificate, which the handshake has verified.
fn client_name(session: &rustls::ServerConnection) -> Option<ClientName> {
    let certificate = session.peer_certificates()?.first()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(ClientName(name.into()))
}

async fn connection<S: Serve>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    client: Option<ClientName>,
    service: S,
    streams: u32,
    stop: CancellationToken,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .initial_connection_window_size(4 << 20)
        .initial_stream_window_size(1 << 20)
        .keep_alive_interval(Some(Duration::from_secs(60)))
        .max_pending_accept_reset_streams(Some(1024));
    let serving = builder.serve_connection(
        TokioIo::new(stream),
        service_fn(move |mut request: Request<Incoming>| {
            let service = service.clone();
            if let Some(client) = &client {
                request.extensions_mut().insert(client.clone());
            }
            async move { Ok::<_, std::convert::Infallible>(service.serve(request).await) }
        }),
    );
    tokio::pin!(serving);
    let ended = tokio::select! {
        biased;
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            match tokio::time::timeout(LINGER, serving).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// A small response of HTTP/1 and peers.
pub fn plain(
    status: http::StatusCode,
    kind: &'static str,
    body: impl Into<Bytes>,
) -> Response<tonic::body::Body> {
    let body = tonic::body::Body::new(http_body_util::Full::new(body.into()));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}
