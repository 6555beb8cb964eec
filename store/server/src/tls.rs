//! rustls configurations from PEM files: for clients, for peers in both directions.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::config::TlsConfig;

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = || -> Result<Vec<_>, rustls::pki_types::pem::Error> {
        CertificateDer::pem_file_iter(path)?.collect()
    };
    let found = read().with_context(|| format!("cannot read certificates from {}", path.display()))?;
    ensure!(!found.is_empty(), "{} holds no certificate; expected PEM", path.display());
    Ok(found)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path)
        .with_context(|| format!("cannot read a private key from {}", path.display()))
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).with_context(|| format!("{} holds no usable authority", path.display()))?;
    }
    Ok(roots)
}

/// For a listener. HTTP/2 and HTTP/1 are offered.
///
/// # Errors
/// Files that cannot be read or do not fit together.
pub fn server(tls: &TlsConfig) -> Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("TLS versions")?;
    let builder = match &tls.trusted_ca_file {
        Some(authorities) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authorities)?), provider());
            let verifier = if tls.client_cert_auth { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().context("client certificate verification")?)
        }
        None => {
            ensure!(
                !tls.client_cert_auth,
                "client certificates are demanded but there is no authority to check them: set the trusted CA file"
            );
            builder.with_no_client_auth()
        }
    };
    let mut config = builder
        .with_single_cert(certificates(&tls.cert_file)?, key(&tls.key_file)?)
        .with_context(|| format!("{} and {} do not fit", tls.cert_file.display(), tls.key_file.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// For connections to peers: our certificate is shown, theirs must come from the trusted authorities.
///
/// # Errors
/// Files that cannot be read or do not fit together; no authority given.
pub fn client(tls: &TlsConfig) -> Result<Arc<ClientConfig>> {
    let authorities = tls
        .trusted_ca_file
        .as_ref()
        .context("TLS between members needs an authority to check peers with: set --peer-trusted-ca-file")?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("TLS versions")?
        .with_root_certificates(roots(authorities)?)
        .with_client_auth_cert(certificates(&tls.cert_file)?, key(&tls.key_file)?)
        .with_context(|| format!("{} and {} do not fit", tls.cert_file.display(), tls.key_file.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}
