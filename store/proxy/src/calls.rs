//! The proxy: gRPC calls passed on to an endpoint that answers, with TLS of its own on either side.
//!
//! A call is one HTTP/2 request: head, messages and trailers go through as they are, in both directions at once, so
//! every method and every stream is served, those of tomorrow included.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tower::Service;

use crate::flags::{self, Given};

/// How long a TLS handshake, or reaching an endpoint, may take.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) const HELP: &str = "grpc-proxy related command

Usage:
  etcd grpc-proxy start [flags]

Flags:
      --endpoints strings        comma separated etcd cluster endpoints (default [127.0.0.1:2379])
      --listen-addr string       listen address (default \"127.0.0.1:23790\")
      --metrics-addr string      listen for endpoint /metrics and /health requests on an additional interface
      --cert, --key, --cacert    certificate, key and authority for the endpoints
      --cert-file, --key-file, --trusted-ca-file
                                 certificate, key and authority for clients of the proxy
      --client-cert-auth         refuse clients without a certificate of the authority";

/// How the proxy runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub endpoints: Vec<String>,
    pub listen: String,
    pub metrics: Option<String>,
    /// To the endpoints: authority, and our certificate with its key.
    pub cacert: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// To clients.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub trusted_ca_file: Option<PathBuf>,
    pub client_cert_auth: bool,
}

/// Flags that ask for what is not done here; their "off" values are taken.
const ABSENT: &[&str] = &[
    "namespace",
    "leasing-prefix",
    "resolver-prefix",
    "resolver-ttl",
    "discovery-srv",
    "discovery-srv-name",
    "insecure-discovery",
    "insecure-skip-tls-verify",
    "auto-tls",
    "client-crl-file",
    "experimental-serializable-ordering",
    "serializable-ordering",
    "experimental-leasing-prefix",
];

/// Flags whose subject does not exist here: connections are kept alive by the transport, messages pass unread.
const WITHOUT_EFFECT: &[&str] = &[
    "advertise-client-url",
    "data-dir",
    "max-send-bytes",
    "max-recv-bytes",
    "grpc-keepalive-min-time",
    "grpc-keepalive-interval",
    "grpc-keepalive-timeout",
    "endpoints-auto-sync-interval",
    "dial-keepalive-time",
    "dial-keepalive-timeout",
    "permit-without-stream",
    "enable-pprof",
    "debug",
    "max-concurrent-streams",
    "self-signed-cert-validity",
    "tls-min-version",
    "tls-max-version",
    "listen-cipher-suites",
];

const SWITCHES: &[&str] = &[
    "client-cert-auth",
    "insecure-discovery",
    "insecure-skip-tls-verify",
    "auto-tls",
    "enable-pprof",
    "debug",
    "permit-without-stream",
    "experimental-serializable-ordering",
    "serializable-ordering",
];

impl Options {
    /// `None` when only help was asked for.
    ///
    /// # Errors
    /// Flags that are unknown, cannot be read, or ask for what is not done here.
    pub fn parse(args: &[String]) -> Result<Option<Options>> {
        let mut options = Options {
            endpoints: vec!["127.0.0.1:2379".to_owned()],
            listen: "127.0.0.1:23790".to_owned(),
            ..Options::default()
        };
        let path = |value: &str| (!value.is_empty()).then(|| PathBuf::from(value));
        let read = flags::each(args, SWITCHES, |Given { name, value }| {
            match name {
                "endpoints" => options.endpoints = flags::list(value),
                "listen-addr" => options.listen = value.to_owned(),
                "metrics-addr" => options.metrics = (!value.is_empty()).then(|| flags::address(value)),
                "cacert" => options.cacert = path(value),
                "cert" => options.cert = path(value),
                "key" => options.key = path(value),
                "cert-file" => options.cert_file = path(value),
                "key-file" => options.key_file = path(value),
                "trusted-ca-file" => options.trusted_ca_file = path(value),
                "client-cert-auth" => options.client_cert_auth = value == "true",
                name if ABSENT.contains(&name) && matches!(value, "" | "false" | "0") => {}
                name if ABSENT.contains(&name) => bail!("not supported by this proxy; leave the flag out"),
                name if WITHOUT_EFFECT.contains(&name) => {}
                _ => bail!("unknown flag"),
            }
            Ok(())
        })?;
        if read.is_none() {
            println!("{HELP}");
            return Ok(None);
        }
        if options.endpoints.is_empty() {
            bail!("no endpoints found");
        }
        if options.cert_file.is_some() != options.key_file.is_some()
            || options.cert.is_some() != options.key.is_some()
        {
            bail!("a certificate needs its key, and a key its certificate");
        }
        Ok(Some(options))
    }

    /// Calls go to an endpoint that answers.
    fn channel(&self) -> Result<Channel> {
        let read =
            |path: &PathBuf| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let secure = self.cacert.is_some() || self.cert.is_some();
        let mut endpoints = Vec::new();
        for endpoint in &self.endpoints {
            let url = match (endpoint.contains("://"), secure) {
                (true, _) => endpoint.clone(),
                (false, true) => format!("https://{endpoint}"),
                (false, false) => format!("http://{endpoint}"),
            };
            let mut target = Endpoint::from_shared(url.clone())
                .with_context(|| format!("--endpoints: {url} is no URL"))?
                .connect_timeout(PATIENCE)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(10));
            if url.starts_with("https://") {
                let mut tls = ClientTlsConfig::new();
                if let Some(authority) = &self.cacert {
                    tls = tls.ca_certificate(Certificate::from_pem(read(authority)?));
                }
                if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
                    tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
                }
                target = target.tls_config(tls).context("TLS to the endpoints")?;
            }
            endpoints.push(target);
        }
        Ok(Channel::balance_list(endpoints.into_iter()))
    }

    /// TLS for clients, if there is to be any.
    fn acceptor(&self) -> Result<Option<TlsAcceptor>> {
        let (Some(cert), Some(key)) = (&self.cert_file, &self.key_file) else { return Ok(None) };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .context("TLS versions")?;
        let certificates = |path: &PathBuf| -> Result<Vec<CertificateDer<'static>>> {
            let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
                .with_context(|| format!("cannot read certificates from {}", path.display()))?
                .collect();
            found.with_context(|| format!("cannot read certificates from {}", path.display()))
        };
        let builder = match &self.trusted_ca_file {
            Some(authority) => {
                let mut roots = rustls::RootCertStore::empty();
                for certificate in certificates(authority)? {
                    roots.add(certificate).context("--trusted-ca-file holds no usable authority")?;
                }
                let verifier =
                    rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier =
                    if self.client_cert_auth { verifier } else { verifier.allow_unauthenticated() };
                builder.with_client_cert_verifier(verifier.build().context("client certificates")?)
            }
            None if self.client_cert_auth => bail!("--client-cert-auth needs --trusted-ca-file"),
            None => builder.with_no_client_auth(),
        };
        let key = PrivateKeyDer::from_pem_file(key)
            .with_context(|| format!("cannot read a private key from {}", key.display()))?;
        let mut config =
            builder.with_single_cert(certificates(cert)?, key).context("certificate and key do not fit")?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Some(TlsAcceptor::from(Arc::new(config))))
    }
}

/// Serves until the process ends.
///
/// # Errors
/// An address that cannot be bound, certificates that cannot be used.
pub(crate) async fn run(options: Options) -> Result<()> {
    let bind = async |address: &str| {
        TcpListener::bind(address).await.with_context(|| format!("listen tcp {address}: cannot bind"))
    };
    let (channel, acceptor) = (options.channel()?, options.acceptor()?);
    let listener = bind(&options.listen).await?;
    if let Some(address) = &options.metrics {
        tokio::spawn(serve(bind(address).await?, channel.clone(), None));
    }
    println!("started gRPC proxy on {}", listener.local_addr().map_or_else(|_| options.listen, text));
    serve(listener, channel, acceptor).await;
    Ok(())
}

fn text(address: SocketAddr) -> String {
    address.to_string()
}

async fn serve(listener: TcpListener, channel: Channel, acceptor: Option<TlsAcceptor>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: those in use must go first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (channel, acceptor) = (channel.clone(), acceptor.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let channel = channel.clone();
                async move { Ok::<_, std::convert::Infallible>(answer(channel, request).await) }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            let ended = match acceptor {
                None => builder.serve_connection(TokioIo::new(stream), service).await,
                Some(acceptor) => match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => builder.serve_connection(TokioIo::new(stream), service).await,
                    Ok(Err(error)) => return tracing::warn!(%error, "rejected connection"),
                    Err(_) => return tracing::warn!("rejected connection: TLS handshake took too long"),
                },
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
}

async fn answer(channel: Channel, request: Request<Incoming>) -> Response<Body> {
    let grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if !grpc {
        return plain(channel, &request).await;
    }
    match pass(channel, request.map(Body::new)).await {
        Ok(response) => response,
        Err(error) => {
            tonic::Status::unavailable(format!("no endpoint of the cluster answers: {error}")).into_http()
        }
    }
}

async fn pass(
    mut channel: Channel,
    request: Request<Body>,
) -> Result<Response<Body>, tonic::transport::Error> {
    std::future::poll_fn(|context| channel.poll_ready(context)).await?;
    channel.call(request).await
}

/// `/health`: whether the cluster answers a read; `/metrics`: the proxy's own, which has nothing to cache or merge.
async fn plain(channel: Channel, request: &Request<Incoming>) -> Response<Body> {
    let (status, text) = match request.uri().path() {
        "/health" => health(channel).await,
        "/metrics" => (StatusCode::OK, metrics()),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(Body::new(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

async fn health(channel: Channel) -> (StatusCode, String) {
    use keelson_store_proto::etcdserverpb::RangeRequest;
    use keelson_store_proto::etcdserverpb::kv_client::KvClient;
    let read = RangeRequest { key: Bytes::from_static(b"a"), limit: 1, ..RangeRequest::default() };
    match tokio::time::timeout(PATIENCE, KvClient::new(channel).range(read)).await {
        Ok(Ok(_)) => (StatusCode::OK, r#"{"health":"true","reason":""}"#.to_owned()),
        // It answers, if only to refuse: the proxy has no rights of its own.
        Ok(Err(status)) if status.code() == tonic::Code::PermissionDenied => {
            (StatusCode::OK, r#"{"health":"true","reason":""}"#.to_owned())
        }
        Ok(Err(status)) => {
            let reason = status.message().replace(['"', '\\'], "'");
            (StatusCode::SERVICE_UNAVAILABLE, format!("{{\"health\":\"false\",\"reason\":\"{reason}\"}}\n"))
        }
        Err(_) => {
            let text = "{\"health\":\"false\",\"reason\":\"context deadline exceeded\"}\n";
            (StatusCode::SERVICE_UNAVAILABLE, text.to_owned())
        }
    }
}

fn metrics() -> String {
    let families = [
        ("cache_hits_total", "gauge"),
        ("cache_keys_total", "gauge"),
        ("cache_misses_total", "gauge"),
        ("events_coalescing_total", "counter"),
        ("watchers_coalescing_total", "gauge"),
    ];
    let line = |(name, kind): &(&str, &str)| {
        let name = format!("etcd_grpc_proxy_{name}");
        format!("# HELP {name} {}\n# TYPE {name} {kind}\n{name} 0\n", name.replace('_', " "))
    };
    families.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Option<Options>> {
        Options::parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_not_done_is_refused_and_the_rest_is_read() {
        let options = parse(&[
            "--endpoints=a:1,b:2",
            "--metrics-addr",
            "http://127.0.0.1:4",
            "--client-cert-auth",
            "--max-recv-bytes=1",
            "--namespace=",
        ]);
        let options = options.expect("good").expect("run");
        assert_eq!(options.endpoints, ["a:1", "b:2"]);
        assert_eq!(options.metrics.as_deref(), Some("127.0.0.1:4"));
        assert!(options.client_cert_auth);
        for bad in [&["--namespace=x"][..], &["--nope=1"], &["--cert-file=x"], &["--auto-tls"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_call_without_a_cluster_is_unavailable() {
        let gone = TcpListener::bind("127.0.0.1:0").await.and_then(|l| l.local_addr()).expect("an address");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let door = listener.local_addr().expect("an address");
        let options = parse(&[&format!("--endpoints={gone}")]).expect("good").expect("run");
        tokio::spawn(serve(listener, options.channel().expect("a channel"), None));
        let channel = Endpoint::from_shared(format!("http://{door}")).expect("a URL").connect_lazy();
        let mut client = keelson_store_proto::etcdserverpb::kv_client::KvClient::new(channel);
        let call = client.range(keelson_store_proto::etcdserverpb::RangeRequest::default());
        let answer = tokio::time::timeout(Duration::from_secs(60), call).await.expect("answered");
        assert_eq!(answer.expect_err("nobody there").code(), tonic::Code::Unavailable);
    }
}
