//! A running API server over a store in memory, and a client of it.

// Each test binary uses a part.
#![allow(dead_code)]

pub mod memory;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use keelson_apiserver::{Config, Pki};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

use memory::Memory;

/// Longest wait for anything; a busy machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(40);

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Issuer {
    let mut params = CertificateParams::new(vec![]).expect("no names");
    params.distinguished_name.push(DnType::CommonName, "test-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("CA")
}

fn leaf(ca: &Issuer, name: &str, group: &str, hosts: &[&str]) -> (String, String) {
    let mut params =
        CertificateParams::new(hosts.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>()).expect("names");
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, group);
    let key = KeyPair::generate().expect("key");
    let certificate = params.signed_by(&key, ca).expect("certificate");
    (certificate.pem(), key.serialize_pem())
}

/// The server, its store, and a client with all rights.
pub struct World {
    pub store: Arc<Memory>,
    pub admin: Client,
    pub nobody: Client,
    pub address: SocketAddr,
    ca: Issuer,
    _stop: DropGuard,
}

/// Somebody who talks to the server; a connection per request.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    tls: TlsConnector,
    pub token: Option<String>,
}

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub text: String,
    pub bytes: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }
}

fn connector(ca: &Issuer, identity: Option<&(String, String)>) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).expect("root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let config = match identity {
        Some((certificate, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("certificate")],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("key"),
            )
            .expect("identity"),
        None => builder.with_no_client_auth(),
    };
    TlsConnector::from(Arc::new(config))
}

impl World {
    /// Starts a server and waits until it is ready.
    pub async fn start() -> World {
        let ca = authority();
        let (server_cert, server_key) = leaf(&ca, "kube-apiserver", "servers", &["127.0.0.1"]);
        let admin = leaf(&ca, "admin", "system:masters", &[]);
        let pki = Pki {
            server_cert: server_cert.into_bytes(),
            server_key: server_key.into_bytes(),
            client_ca: ca.pem().into_bytes(),
            service_account_key: KeyPair::generate().expect("key").serialize_pem().into_bytes(),
            ..Pki::default()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("address");
        let store = Arc::new(Memory::new());
        let mut config = Config::new(store.clone(), address, address.ip(), pki);
        config.shutdown_grace = 1;
        config.service_account_issuer = "https://kubernetes.default.svc".to_owned();
        let stop = CancellationToken::new();
        tokio::spawn(keelson_apiserver::run_on(listener, config, stop.clone()));
        let client = |identity: Option<&(String, String)>| Client {
            address,
            tls: connector(&ca, identity),
            token: None,
        };
        let (admin, nobody) = (client(Some(&admin)), client(None));
        let world = World { store, admin, nobody, address, ca, _stop: stop.drop_guard() };
        until("the server is ready", || async { world.nobody.get("/readyz").await.code == 200 }).await;
        world
    }
}

impl World {
    /// Forgets what was before a revision of the store.
    pub async fn forget(&self, revision: i64) {
        let request = keelson_store_proto::etcdserverpb::CompactionRequest { revision, physical: false };
        keelson_store_proto::client::Etcd::compact(&*self.store, request)
            .await
            .expect("a store that compacts");
    }

    /// The authority's certificate, PEM.
    pub fn authority(&self) -> String {
        self.ca.pem()
    }

    /// A serving certificate and its key, PEM.
    pub fn certificate(&self, name: &str, hosts: &[&str]) -> (String, String) {
        leaf(&self.ca, name, "servers", hosts)
    }

    /// A client with a certificate.
    pub fn user(&self, name: &str, group: &str) -> Client {
        let identity = leaf(&self.ca, name, group, &[]);
        Client { address: self.address, tls: connector(&self.ca, Some(&identity)), token: None }
    }
}

/// Waits for a condition.
pub async fn until<F: Future<Output = bool>>(what: &str, mut good: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !good().await {
        assert!(tokio::time::Instant::now() < deadline, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Client {
    /// A connection of its own.
    pub async fn connect(&self) -> SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.address).await.expect("connect");
        let name = ServerName::try_from("127.0.0.1").expect("name");
        let stream = self.tls.connect(name, stream).await.expect("TLS");
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        sender
    }

    /// Sends a request and gives the answer's head and its body to be read.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: String,
    ) -> http::Response<Incoming> {
        let mut sender = self.connect().await;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "127.0.0.1")
            .header("accept", "application/json");
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(Bytes::from(body))).expect("request");
        tokio::time::timeout(PATIENCE, sender.send_request(request))
            .await
            .expect("an answer in time")
            .expect("an answer")
    }

    /// HEAD over HTTP/2; panics when the server sends a body along, which HTTP/2 would deliver.
    pub async fn head(&self, path: &str) -> Answer {
        let stream = TcpStream::connect(self.address).await.expect("connect");
        let name = ServerName::try_from("127.0.0.1").expect("name");
        let stream = self.tls.connect(name, stream).await.expect("TLS");
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.expect("HTTP/2");
        tokio::spawn(connection);
        let request = Request::head(format!("https://127.0.0.1{path}"));
        let request = request.body(Full::new(Bytes::new())).expect("request");
        let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
        let (head, body) = answer.expect("an answer in time").expect("an answer").into_parts();
        let bytes = body.collect().await.expect("no frame that HTTP/2 forbids after HEAD").to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Answer { code: head.status.as_u16(), headers: head.headers, text, bytes }
    }

    async fn whole(&self, method: Method, path: &str, content_type: &str, body: String) -> Answer {
        let (head, body) = self.open(method, path, content_type, body).await.into_parts();
        let bytes = tokio::time::timeout(PATIENCE, body.collect())
            .await
            .expect("a body in time")
            .expect("a body")
            .to_bytes();
        Answer {
            code: head.status.as_u16(),
            headers: head.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
            bytes,
        }
    }

    /// A request with headers of the test's choice.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
        self.send_bytes(method, path, headers, body.into_bytes()).await
    }

    pub async fn send_bytes(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header("host", "127.0.0.1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body))).expect("request");
        let mut sender = self.connect().await;
        let answered = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
        let (head, body) = answered.expect("an answer in time").expect("an answer").into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Answer { code: head.status.as_u16(), headers: head.headers, text, bytes }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.whole(Method::GET, path, "", String::new()).await
    }
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.whole(Method::POST, path, "application/json", body.to_string()).await
    }
    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.whole(Method::PUT, path, "application/json", body.to_string()).await
    }
    pub async fn merge(&self, path: &str, body: &Value) -> Answer {
        self.whole(Method::PATCH, path, "application/merge-patch+json", body.to_string()).await
    }
    pub async fn delete(&self, path: &str) -> Answer {
        self.whole(Method::DELETE, path, "", String::new()).await
    }
    pub async fn watch(&self, path: &str) -> Events {
        let body = self.open(Method::GET, path, "", String::new()).await.into_body();
        Events { body, rest: vec![] }
    }
}

/// The events of a watch, one at a time.
pub struct Events {
    body: Incoming,
    rest: Vec<u8>,
}

impl Events {
    /// The next event, or nothing at the end of the stream.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("an event is JSON"));
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("an event in time")?;
            if let Ok(data) = frame.expect("a whole frame").into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }

    /// Type and name of the next event.
    pub async fn named(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}
