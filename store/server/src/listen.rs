//! Listeners: TCP with or without TLS, HTTP/1 and HTTP/2 on one port, ended gracefully.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use keelson_store_http2::PREFACE;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;

use crate::auth::ClientName;
use crate::calls::Calls;
use crate::config::Endpoint;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long open connections may go on after a stop.
pub(crate) const LINGER: Duration = Duration::from_millis(500);
/// How long a client may take to say what it speaks.
const GREETING: Duration = Duration::from_secs(30);

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
pub(crate) trait Serve: Calls + Clone + Send + Sync + 'static {
    /// Never fails: errors are responses.
    fn serve(&self, request: Request<RequestBody>) -> impl Future<Output = Response<Body>> + Send;
}

/// The body of a request, whichever way it came.
pub(crate) enum RequestBody {
    /// Over HTTP/1.
    Http1(Incoming),
    /// Over HTTP/2.
    Http2(crate::door::Incoming),
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            RequestBody::Http1(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            RequestBody::Http2(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
        }
    }
}

/// Accepts until `stop`, then lets open connections finish for a moment.
pub(crate) async fn run<S: Serve>(bound: Bound, service: S, streams: u32, stop: CancellationToken) {
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

/// Serves a connection: HTTP/2 at our own door, HTTP/1 by hyper.
async fn connection<S: Serve>(
    mut stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    client: Option<ClientName>,
    service: S,
    streams: u32,
    stop: CancellationToken,
) {
    let mut first = BytesMut::with_capacity(4096);
    let greeting = async {
        while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
            if !matches!(stream.read_buf(&mut first).await, Ok(1..)) {
                return false;
            }
        }
        true
    };
    let greeted = tokio::select! {
        biased;
        greeted = tokio::time::timeout(GREETING, greeting) => greeted.unwrap_or(false),
        () = stop.cancelled() => false,
    };
    if !greeted {
        return;
    }
    if first.starts_with(PREFACE) {
        return crate::door::serve(stream, first, client, service, streams, stop).await;
    }
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    let answer = service_fn(move |mut request: Request<Incoming>| {
        let service = service.clone();
        if let Some(client) = &client {
            request.extensions_mut().insert(client.clone());
        }
        async move { Ok::<_, std::convert::Infallible>(service.serve(request.map(RequestBody::Http1)).await) }
    });
    let serving = builder.serve_connection(TokioIo::new(Rewound { first, stream }), answer).with_upgrades();
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

/// A stream whose first bytes were read already.
struct Rewound<T> {
    first: BytesMut,
    stream: T,
}

impl<T: AsyncRead + Unpin> AsyncRead for Rewound<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let most = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first.split_to(most));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Rewound<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A small response of HTTP/1 and peers.
pub fn plain(status: http::StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = Body::new(http_body_util::Full::new(body.into()));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}
