//! One HTTPS request to a server of ours: POST JSON, JSON back. The server is known by its authority's certificate or,
//! when joining, by that certificate's hash alone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::token::{Token, fingerprint};

/// From connecting to the last byte.
const PATIENCE: Duration = Duration::from_secs(15);
/// Largest answer taken, bytes.
const LARGEST: usize = 1 << 20;

/// POSTs `body` to `https://address/path`, with the token as bearer.
///
/// # Errors
/// No connection, a server of another cluster, or the server's own refusal in its words.
pub async fn post<A: DeserializeOwned>(
    address: &str,
    path: &str,
    token: &Token,
    body: &impl Serialize,
) -> Result<A> {
    let body = serde_json::to_vec(body)?;
    tokio::time::timeout(PATIENCE, exchange(address, path, token, body))
        .await
        .with_context(|| format!("{address} did not answer within {PATIENCE:?}"))?
}

async fn exchange<A: DeserializeOwned>(address: &str, path: &str, token: &Token, body: Vec<u8>) -> Result<A> {
    let (host, port) = host_and_port(address)?;
    let stream =
        TcpStream::connect((host.as_str(), port)).await.with_context(|| format!("connect to {address}"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Pinned { authority: token.authority.clone(), provider: provider.clone() };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let name = ServerName::try_from(host.clone()).context("server name")?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .with_context(|| format!("TLS with {address}: is the token of this cluster?"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::post(path)
        .header(header::HOST, format!("{host}:{port}"))
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), LARGEST).collect().await;
    driver.abort();
    let answer = answer.map_err(|error| anyhow::anyhow!("answer of {address}: {error}"))?.to_bytes();
    if !status.is_success() {
        bail!("{address} answers {status}: {}", String::from_utf8_lossy(&answer).trim());
    }
    serde_json::from_slice(&answer).with_context(|| format!("answer of {address}"))
}

/// `https://host[:port]`, `host:port` or `host`; 6443 without a port.
fn host_and_port(address: &str) -> Result<(String, u16)> {
    let bare = address.trim().trim_end_matches('/');
    let bare = bare.strip_prefix("https://").unwrap_or(bare);
    match bare.rsplit_once(':') {
        Some((host, port)) => {
            let port = port.parse().with_context(|| format!("--server {address}: want https://HOST:PORT"))?;
            Ok((host.to_owned(), port))
        }
        None => Ok((bare.to_owned(), 6443)),
    }
}

/// Trusts exactly the authority with this hash: it must come along in the server's chain and have signed its certificate.
#[derive(Debug)]
struct Pinned {
    authority: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = chain.iter().find(|certificate| fingerprint(certificate) == self.authority);
        let Some(pinned) = pinned else {
            return Err(rustls::Error::General("the server is not of the token's cluster".into()));
        };
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(leaf, &[], name, stapled, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_scheme_and_port() {
        for (text, host, port) in
            [("https://a.example:6444/", "a.example", 6444), ("10.0.0.1", "10.0.0.1", 6443), ("b:1", "b", 1)]
        {
            assert_eq!(host_and_port(text).expect("an address"), (host.to_owned(), port));
        }
        assert!(host_and_port("https://a:port").is_err());
    }
}
