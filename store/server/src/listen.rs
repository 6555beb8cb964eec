//! Listeners: TCP and unix sockets, with TLS, without, or both on one port; HTTP/1 and HTTP/2; ended gracefully.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
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
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;

use crate::auth::ClientName;
use crate::calls::Calls;
use crate::config::{Address, Endpoint};
use crate::process::errno;
use crate::tls::Acceptor;

/// How long a TLS handshake may take, and the first byte before it where both forms are served.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long open connections may go on after a stop.
pub(crate) const LINGER: Duration = Duration::from_millis(500);
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// First byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// How long a client may take to say what it speaks.
const GREETING: Duration = Duration::from_secs(30);

/// A bound port or socket.
pub struct Bound {
    socket: Socket,
    /// What a port is bound to; tells the port when 0 was asked for.
    pub address: Option<SocketAddr>,
    tls: Option<Acceptor>,
    plain: bool,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Bound {
    /// Whether every connection speaks TLS.
    pub fn secure(&self) -> bool {
        self.tls.is_some() && !self.plain
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            // Left over, it would only be removed by the next start.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What every connection of a listener may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// HTTP/2 streams of one connection.
    pub streams: u32,
    /// Silence after which the other side is pinged, and how long it may take to answer.
    pub keep_alive: Option<(Duration, Duration)>,
}

/// Binds every URL. Two URLs of one address, one of them with TLS, are one listener that takes both.
///
/// # Errors
/// The port is taken; the host is not ours; https without certificates. In Go's words.
pub async fn bind(urls: &[String], tls: Option<&Acceptor>, reuse_port: bool) -> Result<Vec<Bound>> {
    let mut bound: Vec<(Address, Bound)> = Vec::new();
    for url in urls {
        let endpoint = Endpoint::parse(url)?;
        if endpoint.secure && tls.is_none() {
            bail!(
                "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
            );
        }
        let any_port = matches!(endpoint.address, Address::Tcp(_, 0));
        let same = bound.iter_mut().find(|(address, _)| !any_port && *address == endpoint.address);
        let secure = endpoint.secure.then(|| tls.cloned()).flatten();
        if let Some((_, listener)) = same {
            listener.plain |= !endpoint.secure;
            listener.tls = listener.tls.take().or(secure);
            continue;
        }
        let (socket, address) = match &endpoint.address {
            Address::Tcp(host, port) => tcp(host, *port, reuse_port).await?,
            Address::Unix(path) => (unix(path)?, None),
        };
        bound.push((endpoint.address, Bound { socket, address, tls: secure, plain: !endpoint.secure }));
    }
    Ok(bound.into_iter().map(|(_, bound)| bound).collect())
}

async fn tcp(host: &str, port: u16, reuse_port: bool) -> Result<(Socket, Option<SocketAddr>)> {
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((host, port)).await.with_context(|| format!("lookup {host}"))?.collect();
    // A name such as localhost may stand for several addresses; the first of IPv4 is what clients try.
    let address = addresses
        .iter()
        .find(|address| address.is_ipv4())
        .or_else(|| addresses.first())
        .with_context(|| format!("lookup {host}: no such host"))?;
    let open = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        if reuse_port {
            socket.set_reuseport(true)?;
        }
        socket.bind(*address)?;
        socket.listen(BACKLOG)
    };
    let listener = open()
        .map_err(|error: std::io::Error| anyhow::anyhow!("listen tcp {address}: bind: {}", errno(&error)))?;
    let address = listener.local_addr().context("a bound socket has an address")?;
    Ok((Socket::Tcp(listener), Some(address)))
}

fn unix(path: &PathBuf) -> Result<Socket> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!("remove {}: {}", path.display(), errno(&error))
        }
        _ => {}
    }
    let listener = UnixListener::bind(path)
        .map_err(|error| anyhow::anyhow!("listen unix {}: bind: {}", path.display(), errno(&error)))?;
    Ok(Socket::Unix(listener, path.clone()))
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

/// A stream just accepted, of either kind.
enum Accepted {
    Tcp(TcpStream, IpAddr),
    Unix(UnixStream),
}

impl Bound {
    async fn accept(&self) -> std::io::Result<Accepted> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "no TCP_NODELAY");
                }
                Ok(Accepted::Tcp(stream, remote.ip()))
            }
            Socket::Unix(listener, _) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

/// Accepts until `stop`, then lets open connections finish for a moment.
pub(crate) async fn run<S: Serve>(bound: Bound, service: S, limits: Limits, stop: CancellationToken) {
    let connections = TaskTracker::new();
    let door = Door { tls: bound.tls.clone(), plain: bound.plain, service, limits, stop: stop.clone() };
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = bound.accept() => accepted,
        };
        let door = door.clone();
        match accepted {
            Ok(Accepted::Tcp(stream, remote)) => drop(connections.spawn(async move {
                let secure = match (&door.tls, door.plain) {
                    (Some(_), true) => match first_byte(&stream).await {
                        Some(byte) => byte == TLS_HANDSHAKE,
                        None => return,
                    },
                    (tls, _) => tls.is_some(),
                };
                door.enter(stream, secure, Some(remote)).await;
            })),
            Ok(Accepted::Unix(stream)) => drop(connections.spawn(async move {
                let secure = door.tls.is_some();
                door.enter(stream, secure, None).await;
            })),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(bound);
    connections.close();
    if tokio::time::timeout(LINGER, connections.wait()).await.is_err() {
        tracing::debug!("connections still open at stop are dropped");
    }
}

async fn first_byte(stream: &TcpStream) -> Option<u8> {
    let mut byte = [0];
    let peeked = tokio::time::timeout(HANDSHAKE, stream.peek(&mut byte)).await;
    matches!(peeked, Ok(Ok(1))).then_some(byte[0])
}

/// What a connection passes through.
#[derive(Clone)]
struct Door<S> {
    tls: Option<Acceptor>,
    plain: bool,
    service: S,
    limits: Limits,
    stop: CancellationToken,
}

impl<S: Serve> Door<S> {
    async fn enter<I>(self, stream: I, secure: bool, remote: Option<IpAddr>)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Some(tls) = self.tls.as_ref().filter(|_| secure) else {
            return connection(stream, None, self.service, self.limits, self.stop).await;
        };
        let rejected = |error: String| {
            tracing::warn!(
                "remote-addr" = remote.map(|ip| ip.to_string()).unwrap_or_default(),
                error,
                "rejected connection on client endpoint"
            );
        };
        let shaken = TlsAcceptor::from(tls.config.clone()).accept(stream);
        let stream = match tokio::time::timeout(HANDSHAKE, shaken).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return rejected(error.to_string()),
            Err(_) => return rejected("TLS handshake took too long".to_owned()),
        };
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        match tls.gate.admit(certificates, remote).await {
            Ok(name) => connection(stream, name, self.service, self.limits, self.stop).await,
            Err(error) => rejected(error),
        }
    }
}

/// Serves a connection: HTTP/2 at our own door, HTTP/1 by hyper.
async fn connection<S: Serve>(
    mut stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    client: Option<ClientName>,
    service: S,
    limits: Limits,
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
        return crate::door::serve(stream, first, client, service, limits, stop).await;
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
