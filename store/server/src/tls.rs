//! rustls configurations from PEM files: for clients, for peers in both directions. Certificates are read again when their
//! files change, so that they can be renewed under a running member.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};

use crate::config::{TlsConfig, TlsVersions};
use crate::gate::Gate;

/// What a listener with TLS needs.
#[derive(Clone)]
pub struct Acceptor {
    /// The handshake.
    pub config: Arc<ServerConfig>,
    /// What is looked at after it.
    pub gate: Arc<Gate>,
}

/// Suites of TLS 1.2 that are there, by Go's names.
const SUITES: &[(&str, CipherSuite)] = &[
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// Suites Go knows too: those of TLS 1.3 are always on, the others are too weak to be built in. Naming them is no
/// mistake; they are only not offered.
const SUITES_OF_GO: &[&str] = &[
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_RSA_WITH_RC4_128_SHA",
];

/// The suites of these names.
///
/// # Errors
/// A name nobody knows, in etcd's words; none that is there.
pub fn suites(names: &[String]) -> Result<Vec<CipherSuite>, String> {
    let mut suites = Vec::new();
    for name in names {
        match SUITES.iter().find(|(known, _)| known == name) {
            Some((_, suite)) => suites.push(*suite),
            None if SUITES_OF_GO.contains(&name.as_str()) => {}
            None => return Err(format!("unexpected TLS cipher suite {name:?}")),
        }
    }
    if suites.is_empty()
        && names.iter().any(|name| !name.starts_with("TLS_AES") && !name.starts_with("TLS_CHACHA"))
    {
        return Err(format!("none of the TLS cipher suites {} is supported by this server", names.join(",")));
    }
    Ok(suites)
}

fn provider(names: &[String]) -> Result<Arc<CryptoProvider>> {
    let mut provider = rustls::crypto::ring::default_provider();
    let wanted = suites(names).map_err(|error| anyhow!(error))?;
    if !wanted.is_empty() {
        provider.cipher_suites.retain(|suite| suite.tls13().is_some() || wanted.contains(&suite.suite()));
    }
    Ok(Arc::new(provider))
}

fn versions(versions: TlsVersions) -> Vec<&'static rustls::SupportedProtocolVersion> {
    match versions {
        TlsVersions::Both => vec![&rustls::version::TLS12, &rustls::version::TLS13],
        TlsVersions::Only12 => vec![&rustls::version::TLS12],
        TlsVersions::Only13 => vec![&rustls::version::TLS13],
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| anyhow!("open {}: {}", path.display(), crate::process::errno(&error)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(path)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().unwrap_or_default();
    ensure!(!found.is_empty(), "tls: failed to find any PEM data in certificate input");
    Ok(found)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|_| anyhow!("tls: failed to find any PEM data in key input"))
}

fn roots(path: &Path) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).with_context(|| format!("{} holds no usable authority", path.display()))?;
    }
    Ok(Arc::new(roots))
}

/// A certificate and key that follow their files.
#[derive(Debug)]
struct Pair {
    cert: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    current: Mutex<(Option<[SystemTime; 2]>, Arc<CertifiedKey>)>,
}

impl Pair {
    fn open(cert: &Path, key: &Path, provider: Arc<CryptoProvider>) -> Result<Arc<Pair>> {
        let loaded = Pair::load(cert, key, &provider)?;
        let times = Pair::times(cert, key);
        let current = Mutex::new((times, Arc::new(loaded)));
        Ok(Arc::new(Pair { cert: cert.to_owned(), key: key.to_owned(), provider, current }))
    }

    fn load(cert: &Path, key_path: &Path, provider: &CryptoProvider) -> Result<CertifiedKey> {
        CertifiedKey::from_der(certificates(cert)?, key(key_path)?, provider)
            .with_context(|| format!("{} and {} do not fit", cert.display(), key_path.display()))
    }

    fn times(cert: &Path, key: &Path) -> Option<[SystemTime; 2]> {
        let of = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        Some([of(cert)?, of(key)?])
    }

    /// The pair as it is on disk now; the last good one while a renewal is half written.
    fn current(&self) -> Arc<CertifiedKey> {
        let times = Pair::times(&self.cert, &self.key);
        let mut current = self.current.lock().expect("no panic while locked");
        if times.is_some() && times != current.0 {
            match Pair::load(&self.cert, &self.key, &self.provider) {
                Ok(loaded) => *current = (times, Arc::new(loaded)),
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "a changed certificate cannot be used; the one before stays"
                ),
            }
        }
        current.1.clone()
    }
}

impl ResolvesServerCert for Pair {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl rustls::client::ResolvesClientCert for Pair {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// For a listener. HTTP/2 and HTTP/1 are offered. As in etcd, an authority alone demands certificates too.
///
/// # Errors
/// Files that cannot be read or do not fit together; `check_address` asks for certificates good for the address a
/// connection comes from.
pub fn server(tls: &TlsConfig, check_address: bool) -> Result<Acceptor> {
    let provider = provider(&tls.cipher_suites)?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions(tls.versions))
        .context("TLS versions")?;
    let builder = match &tls.trusted_ca_file {
        Some(authorities) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots(authorities)?, provider.clone());
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
    let mut config = builder.with_cert_resolver(Pair::open(&tls.cert_file, &tls.key_file, provider)?);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let gate = Gate::new(
        tls.crl_file.clone(),
        tls.allowed_cns.clone(),
        tls.allowed_hostnames.clone(),
        check_address && !tls.skip_client_san_verify,
    );
    gate.check().map_err(|error| anyhow!(error))?;
    Ok(Acceptor { config: Arc::new(config), gate: Arc::new(gate) })
}

/// For connections to peers: our certificate is shown, theirs must come from the trusted authorities, unless ours was made
/// at start, when there is no common authority.
///
/// # Errors
/// Files that cannot be read or do not fit together; no authority given.
pub fn client(tls: &TlsConfig) -> Result<Arc<ClientConfig>> {
    let provider = provider(&tls.cipher_suites)?;
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions(tls.versions))
        .context("TLS versions")?;
    let builder = match &tls.trusted_ca_file {
        Some(authorities) => builder.with_root_certificates(roots(authorities)?),
        None if tls.self_signed => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider.clone())))
        }
        None => {
            bail!("TLS between members needs an authority to check peers with: set --peer-trusted-ca-file")
        }
    };
    let (cert, key) = match &tls.dial {
        Some((cert, key)) => (cert, key),
        None => (&tls.cert_file, &tls.key_file),
    };
    let mut config = builder.with_client_cert_resolver(Pair::open(cert, key, provider)?);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Takes every certificate: encryption without identity, which is what `--peer-auto-tls` promises.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificate of `--auto-tls`: made once, kept in `folder`, good for these hosts.
///
/// # Errors
/// IO.
pub fn self_signed(folder: &Path, hosts: &[String], validity: std::time::Duration) -> Result<TlsConfig> {
    let (cert_file, key_file) = (folder.join("cert.pem"), folder.join("key.pem"));
    if !cert_file.exists() || !key_file.exists() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let mut names = hosts.to_vec();
        names.sort_unstable();
        names.dedup();
        let mut parameters = rcgen::CertificateParams::new(names).context("names of a certificate")?;
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::OrganizationName, "etcd");
        // From the day before, for clocks that differ; whole days are exact enough.
        let day = |seconds: u64| -> Result<_> {
            let date = jiff::Timestamp::from_second(i64::try_from(seconds)?)?
                .to_zoned(jiff::tz::TimeZone::UTC)
                .date();
            let (month, day) = (u8::try_from(date.month())?, u8::try_from(date.day())?);
            Ok(rcgen::date_time_ymd(i32::from(date.year()), month, day))
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock")?.as_secs();
        parameters.not_before = day(now.saturating_sub(86_400))?;
        parameters.not_after = day(now + validity.as_secs())?;
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().context("a key")?;
        let certificate = parameters.self_signed(&key).context("a certificate")?;
        private(&key_file, key.serialize_pem().as_bytes())?;
        std::fs::write(&cert_file, certificate.pem())
            .with_context(|| format!("cannot write {}", cert_file.display()))?;
        tracing::warn!("automatically generate certificates");
    }
    Ok(TlsConfig { cert_file, key_file, self_signed: true, ..TlsConfig::default() })
}

fn private(path: &Path, content: &[u8]) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(content))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_have_gos_names() {
        let of = |names: &[&str]| suites(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["nope"]), Err("unexpected TLS cipher suite \"nope\"".to_owned()));
        assert_eq!(
            of(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_RSA_WITH_AES_128_CBC_SHA"]),
            Ok(vec![CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256])
        );
        assert!(of(&["TLS_RSA_WITH_AES_128_CBC_SHA"]).is_err(), "nothing left");
        assert_eq!(of(&[]), Ok(vec![]));
    }

    #[test]
    fn a_made_certificate_is_kept_and_followed_when_it_changes() {
        let folder = tempfile::tempdir().expect("a folder");
        let year = std::time::Duration::from_secs(365 * 86_400);
        let made = self_signed(folder.path(), &["127.0.0.1".to_owned()], year).expect("made");
        let again = self_signed(folder.path(), &["127.0.0.1".to_owned()], year).expect("found");
        assert_eq!(made, again);
        let pair =
            Pair::open(&made.cert_file, &made.key_file, provider(&[]).expect("suites")).expect("opens");
        let first = pair.current();
        std::fs::remove_file(&made.cert_file).expect("removed");
        assert_eq!(pair.current().cert, first.cert, "the last good one stays");
        self_signed(folder.path(), &["127.0.0.1".to_owned()], year).expect("made anew");
        assert_ne!(pair.current().cert, first.cert, "renewed");
    }
}
