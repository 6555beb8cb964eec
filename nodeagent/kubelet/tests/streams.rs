//! The node's HTTPS server in front of a real containerd: who may call, logs, exec with an ending stdin and exit codes,
//! terminals, port-forward through both dialects, statistics.

mod node;

use std::net::SocketAddr;
use std::sync::Arc;

use futures::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use node::{IMAGE, TestNode, wait};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

/// The cluster's CA and one client certificate per caller.
struct Pki {
    ca: String,
    clients: Vec<(String, String)>,
}

fn pki() -> Pki {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "ca");
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let client = |name: &str, group: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    let clients = vec![client("kube-apiserver-kubelet-client", "system:masters"), client("nosy", "people")];
    Pki { ca: ca.pem(), clients }
}

#[derive(Debug)]
struct Trusting;

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

struct Caller {
    at: SocketAddr,
    tls: tokio_rustls::TlsConnector,
}

impl Caller {
    fn new(at: SocketAddr, identity: Option<&(String, String)>) -> Caller {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusting));
        let config = match identity {
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
                builder
                    .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                    .unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        Caller { at, tls: tokio_rustls::TlsConnector::from(Arc::new(config)) }
    }

    async fn connect(&self) -> std::io::Result<Tls> {
        let stream = TcpStream::connect(self.at).await?;
        self.tls.connect(ServerName::IpAddress(self.at.ip().into()), stream).await
    }

    async fn send(&self, request: http::request::Builder) -> http::Response<hyper::body::Incoming> {
        let stream = TokioIo::new(self.connect().await.unwrap());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
            .send_request(request.header("host", "node").body(Empty::<bytes::Bytes>::new()).unwrap())
            .await
            .unwrap()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.send(http::Request::get(path)).await;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    async fn websocket(
        &self,
        path: &str,
        protocol: &str,
    ) -> WebSocketStream<TokioIo<hyper::upgrade::Upgraded>> {
        let request = http::Request::get(path)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", protocol);
        let answer = self.send(request).await;
        assert_eq!(answer.status(), 101, "{path}");
        assert_eq!(answer.headers()["sec-websocket-protocol"], protocol);
        let upgraded = hyper::upgrade::on(answer).await.unwrap();
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
    }

    /// Runs a command; returns what came on stdout, stderr and the status channel.
    async fn exec(&self, query: &str, input: &[&[u8]]) -> [String; 3] {
        let path = format!("/exec/default/web-node-1/main?{query}");
        let mut socket = self.websocket(&path, "v5.channel.k8s.io").await;
        for message in input {
            socket.send(Message::Binary(message.to_vec().into())).await.unwrap();
        }
        let mut out = [const { Vec::new() }; 3];
        while let Some(message) = socket.next().await {
            match message {
                Ok(Message::Binary(bytes)) => out[usize::from(bytes[0]) - 1].extend_from_slice(&bytes[1..]),
                Ok(Message::Close(frame)) => {
                    // Callers take any other end for a broken stream.
                    assert_eq!(frame.map(|f| u16::from(f.code)), Some(1000));
                    break;
                }
                Err(e) => panic!("{e}"),
                Ok(_) => {}
            }
        }
        out.map(|bytes| String::from_utf8(bytes).unwrap())
    }
}

/// On a thread inside the node's network.
fn within<T: Send + 'static>(node: &TestNode, work: impl Future<Output = T> + Send + 'static) -> T {
    let netns = format!("/run/netns/{}", node.name);
    let thread = std::thread::spawn(move || {
        let file = std::fs::File::open(netns).unwrap();
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            tokio::time::timeout(std::time::Duration::from_secs(60), work).await.expect("within a minute")
        })
    });
    thread.join().unwrap()
}

fn started() -> Option<(TestNode, Pki, SocketAddr)> {
    let mut node = node::start("streams")?;
    let pki = pki();
    let ca = node.dir.join("ca.crt");
    std::fs::write(&ca, &pki.ca).unwrap();
    let mut config = node.config();
    let at: SocketAddr = "127.0.0.1:10250".parse().unwrap();
    config.bind = Some(at);
    config.client_ca = Some(ca);
    node.run_kubelet(config);
    node.apply("web", json!({"terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": IMAGE,
        "command": ["sh", "-c", "echo one; echo two; echo three; mkdir -p /www; echo hello > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www"]}]}));
    wait("the pod has written its log", || node.log_of("web", "main", 0).contains("three"));
    Some((node, pki, at))
}

#[test]
fn the_server_serves_the_api_server_and_refuses_the_rest() {
    let Some((node, pki, at)) = started() else { return };
    let server = Caller::new(at, Some(&pki.clients[0]));
    let (nosy, nobody) = (Caller::new(at, Some(&pki.clients[1])), Caller::new(at, None));
    within(&node, async move {
        assert_eq!(nobody.get("/pods").await.0, 401);
        assert_eq!(nosy.get("/pods").await.0, 403);
        while !server.get("/pods").await.1.contains("\"phase\":\"Running\"") {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(server.get("/healthz").await, (200, "ok".into()));
        logs(&server).await;
        exec(&server).await;
        port_forward(&server).await;
        statistics(&server).await;
    });
}

async fn logs(server: &Caller) {
    let path = "/containerLogs/default/web-node-1/main";
    assert_eq!(server.get(path).await, (200, "one\ntwo\nthree\n".into()));
    assert_eq!(server.get(&format!("{path}?tailLines=1")).await.1, "three\n");
    assert_eq!(server.get(&format!("{path}?limitBytes=5")).await.1, "one\nt");
    assert!(server.get(&format!("{path}?timestamps=true&tailLines=1")).await.1.ends_with("Z three\n"));
    assert_eq!(server.get(&format!("{path}?previous=true")).await.0, 400);
    assert_eq!(server.get("/containerLogs/default/web-node-1/none").await.0, 404);
    assert_eq!(server.get("/containerLogs/default/none/main").await.0, 404);
}

async fn exec(server: &Caller) {
    let success = r#"{"metadata":{},"status":"Success"}"#;
    let simple = server.exec("command=echo&command=a%20b&output=1&error=1", &[]).await;
    assert_eq!(simple, ["a b\n".to_string(), String::new(), success.to_string()]);
    // `cat` ends only if the end of stdin reaches it.
    let echoed = server.exec("command=cat&input=1&output=1&error=1", &[b"\0hello", b"\xff\0"]).await;
    assert_eq!(echoed[0], "hello");
    let failed = server
        .exec("command=sh&command=-c&command=echo%20no%20%3E%262%3Bexit%207&output=1&error=1", &[])
        .await;
    assert_eq!(failed[1], "no\n");
    assert!(failed[2].contains("NonZeroExitCode") && failed[2].contains("\"7\""), "{}", failed[2]);
    let sizes = b"\x04{\"Width\":80,\"Height\":24}";
    let terminal =
        server.exec("command=sh&input=1&output=1&tty=1", &[sizes, b"\0echo in-$((40+2)); exit\n"]).await;
    assert!(terminal[0].contains("in-42"), "{}", terminal[0]);
    assert_eq!(server.get("/exec/default/web-node-1/main?command=true&output=1").await.0, 400);
}

async fn port_forward(server: &Caller) {
    // The runtime's own dialect: channel 0 data, 1 error, each first naming the port.
    let mut socket = server.websocket("/portForward/default/web-node-1?port=8080", "v4.channel.k8s.io").await;
    let request = [b"\0".as_slice(), b"GET / HTTP/1.0\r\n\r\n"].concat();
    socket.send(Message::Binary(request.into())).await.unwrap();
    let mut seen = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message {
            seen.extend_from_slice(&bytes);
        }
        if String::from_utf8_lossy(&seen).contains("hello") {
            break;
        }
    }
    assert!(String::from_utf8_lossy(&seen).contains("hello"), "{}", String::from_utf8_lossy(&seen));
    // SPDY in WebSocket messages: a ping goes through to the runtime and comes back.
    let mut tunnel = server.websocket("/portForward/default/web-node-1", "SPDY/3.1+portforward.k8s.io").await;
    let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    tunnel.send(Message::Binary(ping.to_vec().into())).await.unwrap();
    let mut back = Vec::new();
    while back.len() < ping.len() {
        match tunnel.next().await {
            Some(Ok(Message::Binary(bytes))) => back.extend_from_slice(&bytes),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(back, ping);
}

async fn statistics(server: &Caller) {
    loop {
        let summary: serde_json::Value = serde_json::from_str(&server.get("/stats/summary").await.1).unwrap();
        let pod = &summary["pods"][0];
        assert_eq!(pod["podRef"]["name"], "web-node-1");
        // A sample may be some seconds old, from before the pod.
        if pod["containers"][0]["memory"]["workingSetBytes"].as_u64().is_some_and(|bytes| bytes > 0) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let metrics = server.get("/metrics/resource").await.1;
    assert!(metrics.contains(
        "container_memory_working_set_bytes{container=\"main\",namespace=\"default\",pod=\"web-node-1\"}"
    ));
    assert!(server.get("/metrics").await.1.contains("kubelet_running_pods 1"));
}
