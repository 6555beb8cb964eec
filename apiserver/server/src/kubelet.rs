//! The way to a node's kubelet: logs and statistics by request, exec, attach and port-forward by raw pass-through.
//!
//! Nothing is decided here: who may do it was settled before, and the bytes of an upgraded connection are not looked
//! at. A connection serves one request.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use keelson_api::Status;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long dialling, the handshake and the answer's head may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest refusal of a kubelet that is passed on.
const REFUSAL: usize = 64 * 1024;

/// Talks to kubelets with the API server's own certificate.
#[derive(Clone)]
pub struct KubeletClient {
    connector: TlsConnector,
}

impl KubeletClient {
    /// `identity`: our certificate chain and key; `authority`: who signed the kubelets' serving certificates, which
    /// are not verified without it (as upstream). All PEM.
    ///
    /// # Errors
    /// A PEM text that holds no certificate or key, or a key that does not fit its certificate.
    pub fn new(
        identity: Option<&(Vec<u8>, Vec<u8>)>,
        authority: Option<&[u8]>,
    ) -> anyhow::Result<KubeletClient> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let builder = match authority {
            Some(pem) => {
                let mut roots = rustls::RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    roots.add(certificate?)?;
                }
                builder.with_root_certificates(roots)
            }
            None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider))),
        };
        let mut config = match identity {
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>()?;
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(KubeletClient { connector: TlsConnector::from(Arc::new(config)) })
    }

    /// GET of a kubelet's path; the body is still to be read.
    ///
    /// # Errors
    /// 503 when the node cannot be reached, the kubelet's own code and words when it refuses.
    pub async fn get(&self, node: &Value, path_and_query: &str) -> Result<Response<Incoming>, Status> {
        let address = Address::of(node)?;
        let request = Request::builder()
            .method(Method::GET)
            .uri(path_and_query)
            .header(HOST, address.to_string())
            .body(Full::new(Bytes::new()))
            .map_err(Status::internal)?;
        let response = self.send(&address, request).await?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    /// What a component on this machine says of its health; the error is what went wrong.
    ///
    /// # Errors
    /// It cannot be reached, or is not well.
    pub async fn healthz(&self, port: u16) -> Result<String, String> {
        let address = Address { host: "127.0.0.1".to_owned(), port };
        let request =
            Request::get("/healthz").header(HOST, address.to_string()).body(Full::new(Bytes::new()));
        let response =
            self.send(&address, request.map_err(|e| e.to_string())?).await.map_err(|s| s.message)?;
        let well = response.status().is_success();
        let body = Limited::new(response.into_body(), REFUSAL).collect().await.map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        if well { Ok(said) } else { Err(said) }
    }

    /// Passes an upgrade on: the kubelet's answer without its body, after which both ends are joined until one closes.
    ///
    /// # Errors
    /// 400 when the request asks for no upgrade, 503 when the node cannot be reached, else the kubelet's refusal.
    pub async fn upgrade(
        &self,
        node: &Value,
        mut request: Request<Incoming>,
        path_and_query: &str,
    ) -> Result<Response<()>, Status> {
        if !request.headers().contains_key(UPGRADE) {
            return Err(Status::bad_request("Upgrade request required"));
        }
        let address = Address::of(node)?;
        let mut onward = Request::builder().method(request.method().clone()).uri(path_and_query);
        for (name, value) in request.headers() {
            let ours = name == HOST
                || name == http::header::AUTHORIZATION
                || name.as_str().starts_with("impersonate-");
            if !ours {
                onward = onward.header(name, value);
            }
        }
        let onward =
            onward.header(HOST, address.to_string()).body(Empty::<Bytes>::new()).map_err(Status::internal)?;
        let mut response = self.send(&address, onward).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let (client, kubelet) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut response));
        tokio::spawn(async move {
            let joined = async { Ok::<_, hyper::Error>((client.await?, kubelet.await?)) };
            match joined.await {
                Ok((client, kubelet)) => {
                    // Either end may cut a stream at any time; that is how such a stream ends.
                    let _ended =
                        tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(kubelet))
                            .await;
                }
                Err(error) => {
                    tracing::debug!(%error, "an upgraded connection went away before it was joined")
                }
            }
        });
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        for (name, value) in response.headers() {
            if name == CONNECTION
                || name == UPGRADE
                || name.as_str().starts_with("sec-websocket")
                || name.as_str().starts_with("x-stream")
            {
                answer.headers_mut().append(name, value.clone());
            }
        }
        Ok(answer)
    }

    async fn send<B>(&self, address: &Address, request: Request<B>) -> Result<Response<Incoming>, Status>
    where
        B: hyper::body::Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static,
    {
        let attempt = async {
            let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(address.host.clone())?;
            let stream = self.connector.connect(name, stream).await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection.with_upgrades());
            Ok::<_, anyhow::Error>(sender.send_request(request).await?)
        };
        match tokio::time::timeout(PATIENCE, attempt).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Status::unavailable(format!("error dialing backend: {address}: {error}"))),
            Err(_) => Err(Status::unavailable(format!(
                "error dialing backend: {address}: no answer within {PATIENCE:?}"
            ))),
        }
    }
}

/// A kubelet's refusal as a Status: its code and its words.
async fn refusal(response: Response<Incoming>) -> Status {
    let code = response.status().as_u16();
    let body =
        Limited::new(response.into_body(), REFUSAL).collect().await.map(http_body_util::Collected::to_bytes);
    let words = body
        .map_or_else(|error| error.to_string(), |bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    if let Ok(value) = serde_json::from_str::<Value>(&words)
        && let Some(message) = value["message"].as_str()
    {
        return Status { code, ..Status::bad_request(message) };
    }
    let words = if words.is_empty() { format!("the kubelet answered {code}") } else { words };
    match code {
        400 => Status::bad_request(words),
        404 => Status { code, reason: "NotFound", ..Status::bad_request(words) },
        // A node that can't do it at all: its words are the whole answer.
        501 => Status { code, reason: "", ..Status::bad_request(words) },
        _ => Status { code, ..Status::internal(words) },
    }
}

/// Where a node's kubelet listens.
struct Address {
    host: String,
    port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Address {
    fn of(node: &Value) -> Result<Address, Status> {
        let addresses = node["status"]["addresses"].as_array().map_or(&[][..], Vec::as_slice);
        let host = addresses
            .iter()
            .find(|address| address["type"] == "InternalIP")
            .and_then(|address| address["address"].as_str());
        let Some(host) = host else {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            return Err(Status::unavailable(format!(
                "node {name:?} has no InternalIP yet: its kubelet has not registered"
            )));
        };
        let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap_or(10_250);
        Ok(Address { host: host.to_owned(), port: u16::try_from(port).unwrap_or(10_250) })
    }
}

/// Accepts any serving certificate: what upstream does when no kubelet authority is configured.
#[derive(Debug)]
struct Unverified(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Unverified {
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
        signature: &rustls::DigitallySignedStruct,
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
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
