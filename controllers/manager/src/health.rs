//! `/healthz`, `/livez`, `/readyz` and `/metrics` over HTTPS, as upstream's `--secure-port`.
//!
//! Metrics need no credentials here: bind to loopback where others can reach the node.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ServerConfig, crypto};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Certificate and key in PEM; none makes a self-signed pair, as upstream does.
pub struct Identity {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

pub fn self_signed() -> anyhow::Result<Identity> {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).context("make a self-signed certificate")?;
    Ok(Identity {
        certificate: made.cert.pem().into_bytes(),
        key: made.signing_key.serialize_pem().into_bytes(),
    })
}

/// Serves until `stop`.
pub async fn serve(
    address: SocketAddr,
    identity: Identity,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&identity.certificate)
        .collect::<Result<_, _>>()
        .context("read --tls-cert-file")?;
    let key = PrivateKeyDer::from_pem_slice(&identity.key).context("read --tls-private-key-file")?;
    let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("use the serving certificate")?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}: choose another --secure-port, or 0 for none"))?;
    loop {
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { return Ok(()) };
        let Ok((stream, _)) = accepted else { continue };
        let (acceptor, metrics, stop) = (acceptor.clone(), metrics.clone(), stop.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| answer(request, metrics.clone()));
            let builder = Builder::new(TokioExecutor::new());
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            stop.run_until_cancelled(connection).await;
        });
    }
}

async fn answer(request: Request<Incoming>, metrics: Arc<Metrics>) -> Result<Response<String>, Infallible> {
    let (status, text) = match request.uri().path() {
        "/healthz" | "/livez" | "/readyz" => (StatusCode::OK, "ok".to_owned()),
        "/metrics" => (StatusCode::OK, metrics.render()),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    Ok(response)
}
