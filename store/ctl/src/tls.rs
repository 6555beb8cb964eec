//! Endpoints, and TLS to them: the client's certificate, the authorities, or none checked where that was asked for.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The TLS flags.
#[derive(Clone, Debug, Default)]
pub struct Security {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
    /// Expected in the server's certificate; the endpoint's host when empty.
    pub server_name: String,
    pub insecure_transport: bool,
    pub skip_verify: bool,
}

fn given(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

/// An endpoint taken apart.
#[derive(Clone)]
pub struct Target {
    host: String,
    port: u16,
    /// A unix socket instead.
    pub unix: Option<PathBuf>,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Target {
    /// `host:port`, or a URL of http(s) or unix(s).
    ///
    /// # Errors
    /// Not of that form; certificates that cannot be used.
    pub fn new(endpoint: &str, security: &Security) -> Result<Target, String> {
        Target::speaking(endpoint, security, b"h2")
    }

    /// The same for HTTP/1.
    ///
    /// # Errors
    /// As [`Target::new`].
    pub fn http1(endpoint: &str, security: &Security) -> Result<Target, String> {
        Target::speaking(endpoint, security, b"http/1.1")
    }

    fn speaking(endpoint: &str, security: &Security, protocol: &[u8]) -> Result<Target, String> {
        let (scheme, rest) = match endpoint.split_once("://") {
            Some((scheme, rest)) => (scheme, rest),
            None => match endpoint.split_once(':') {
                Some((scheme @ ("unix" | "unixs"), rest)) => (scheme, rest),
                _ => ("", endpoint),
            },
        };
        let material = given(&security.cert) || given(&security.ca) || !security.insecure_transport;
        let secure = match scheme {
            "https" | "unixs" => true,
            "http" | "unix" => false,
            "" => material,
            other => return Err(format!("unsupported scheme {other:?} in endpoint {endpoint:?}")),
        };
        let (host, port, unix) = if scheme.starts_with("unix") {
            ("localhost".to_owned(), 0, Some(PathBuf::from(rest)))
        } else {
            let authority = rest.split('/').next().unwrap_or_default();
            let (host, port) = match authority.rsplit_once(':') {
                Some((host, port)) => {
                    (host, port.parse().map_err(|_| format!("endpoint {endpoint:?} has no port"))?)
                }
                None => (authority, 2379),
            };
            (host.trim_start_matches('[').trim_end_matches(']').to_owned(), port, None)
        };
        let name = if security.server_name.is_empty() { &host } else { &security.server_name };
        let tls = if secure {
            let name = ServerName::try_from(name.clone()).map_err(|error| error.to_string())?;
            Some((config(security, protocol)?, name))
        } else {
            None
        };
        Ok(Target { host, port, unix, tls })
    }

    /// `host:port`.
    pub fn authority(&self) -> String {
        match (&self.unix, self.host.contains(':')) {
            (Some(_), _) => "localhost".to_owned(),
            (None, true) => format!("[{}]:{}", self.host, self.port),
            (None, false) => format!("{}:{}", self.host, self.port),
        }
    }

    /// Adds TLS where the endpoint has it.
    ///
    /// # Errors
    /// The handshake's.
    pub async fn secure(&self, stream: Stream) -> std::io::Result<Stream> {
        match &self.tls {
            None => Ok(stream),
            Some((config, name)) => {
                let stream = TlsConnector::from(config.clone()).connect(name.clone(), stream).await?;
                Ok(Stream(Box::new(Secured(stream))))
            }
        }
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl Io for TcpStream {}
impl Io for UnixStream {}

struct Secured(TlsStream<Stream>);
impl Io for Secured {}

/// A connection of any kind.
pub struct Stream(Box<dyn Io>);

impl Stream {
    /// Plain TCP.
    pub fn tcp(stream: TcpStream) -> Stream {
        Stream(Box::new(stream))
    }

    /// A unix socket.
    pub fn unix(stream: UnixStream) -> Stream {
        Stream(Box::new(stream))
    }
}

macro_rules! forward {
    ($type:ty) => {
        impl AsyncRead for $type {
            fn poll_read(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<std::io::Result<()>> {
                Pin::new(&mut self.0).poll_read(context, buffer)
            }
        }

        impl AsyncWrite for $type {
            fn poll_write(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<std::io::Result<usize>> {
                Pin::new(&mut self.0).poll_write(context, bytes)
            }

            fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
                Pin::new(&mut self.0).poll_flush(context)
            }

            fn poll_shutdown(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
            ) -> Poll<std::io::Result<()>> {
                Pin::new(&mut self.0).poll_shutdown(context)
            }
        }
    };
}

forward!(Stream);
forward!(Secured);

fn read(path: &PathBuf) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| {
        let text = error.to_string();
        format!("open {}: {}", path.display(), text.split(" (os").next().unwrap_or_default().to_lowercase())
    })
}

fn config(security: &Security, protocol: &[u8]) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = if security.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    } else {
        builder.with_root_certificates(roots(security)?)
    };
    let mut config = match (given(&security.cert), given(&security.key)) {
        (false, false) => builder.with_no_client_auth(),
        (true, true) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(&security.cert)?).collect();
            let chain =
                chain.map_err(|_| "tls: failed to find any PEM data in certificate input".to_owned())?;
            let key = PrivateKeyDer::from_pem_slice(&read(&security.key)?)
                .map_err(|_| "tls: failed to find any PEM data in key input".to_owned())?;
            builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())?
        }
        _ => {
            return Err(format!(
                "KeyFile and CertFile must both be present[key: {}, cert: {}]",
                security.key.display(),
                security.cert.display()
            ));
        }
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Arc::new(config))
}

fn roots(security: &Security) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if !given(&security.ca) {
        // The machine's; what cannot be read there is missed when a certificate does not verify.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    }
    for certificate in CertificateDer::pem_slice_iter(&read(&security.ca)?) {
        let certificate = certificate.map_err(|error| format!("{}: {error}", security.ca.display()))?;
        roots.add(certificate).map_err(|error| format!("{}: {error}", security.ca.display()))?;
    }
    Ok(roots)
}

/// `--insecure-skip-tls-verify`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_every_form() {
        let plain = Security { insecure_transport: true, ..Security::default() };
        let authority = |endpoint: &str| Target::new(endpoint, &plain).map(|target| target.authority());
        assert_eq!(authority("127.0.0.1:2379"), Ok("127.0.0.1:2379".to_owned()));
        assert_eq!(authority("http://h:1/"), Ok("h:1".to_owned()));
        assert_eq!(authority("[::1]:2"), Ok("[::1]:2".to_owned()));
        let socket = Target::new("unix:///run/e.sock", &plain).map(|target| target.unix);
        assert_eq!(socket, Ok(Some("/run/e.sock".into())));
        assert!(authority("ftp://h:1").is_err());
        assert!(Target::new("https://h:1", &plain).is_ok_and(|target| target.tls.is_some()));
    }
}
