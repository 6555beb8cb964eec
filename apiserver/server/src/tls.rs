//! TLS of the server, and who a client certificate speaks for.

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use keelson_apiserver_core::UserInfo;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Pki;

/// Reads all certificates of a PEM text.
///
/// # Errors
/// There is none, or one is malformed.
pub fn certificates(pem: &[u8], what: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| anyhow!("{what} is not PEM: {e}"))?;
    if found.is_empty() {
        return Err(anyhow!("{what} holds no certificate: expected a PEM block BEGIN CERTIFICATE"));
    }
    Ok(found)
}

/// Reads a private key.
///
/// # Errors
/// There is none.
pub fn private_key(pem: &[u8], what: &str) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|e| anyhow!("{what} holds no private key: {e}"))
}

/// Authorities from PEM.
///
/// # Errors
/// None, or an unusable one.
pub fn roots(pem: &[u8], what: &str) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, what)? {
        roots.add(certificate).with_context(|| format!("{what} holds an unusable authority"))?;
    }
    Ok(roots)
}

/// The one cryptography provider of the process.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The server's TLS: client certificates are optional, but one that is shown must be good.
///
/// # Errors
/// Keys or certificates are unusable; the error says which.
pub fn server(pki: &Pki) -> anyhow::Result<Arc<ServerConfig>> {
    let verifier = WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots(&pki.client_ca, "the client CA (--client-ca-file)")?),
        provider(),
    )
    .allow_unauthenticated()
    .build()
    .context("the client CA (--client-ca-file) is unusable")?;
    let chain = certificates(&pki.server_cert, "the serving certificate (--tls-cert-file)")?;
    let key = private_key(&pki.server_key, "the serving key (--tls-private-key-file)")?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("TLS versions")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .context("the serving certificate and its key do not fit together")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The user a verified client certificate names: CN is the user, each O a group.
pub fn user(certificate: &CertificateDer) -> Option<UserInfo> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    let id = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect::<String>();
    let extra = [("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("X509SHA256={id}")])];
    Some(UserInfo { name, uid: String::new(), groups, extra: extra.into() })
}
