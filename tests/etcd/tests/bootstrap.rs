//! Ways to start: through a discovery service, with certificates made at start, on unix sockets, http and https on one
//! port, HTTP on a port of its own, rotated logs.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use keelson_etcd_tests::{Certificates, Cluster, eventually, free_port, put, value};
use keelson_store_proto::client::{Etcd, Remote};
use keelson_store_proto::etcdserverpb as pb;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A member started with exactly these flags; killed at the end.
struct Bare {
    child: Child,
    log: std::path::PathBuf,
}

impl Bare {
    fn start(folder: &Path, name: &str, flags: &[String]) -> Bare {
        let log = folder.join(format!("{name}.log"));
        let child = Command::new(env!("CARGO_BIN_EXE_member"))
            .arg(format!("--name={name}"))
            .arg(format!("--data-dir={}", folder.join(name).display()))
            .args(flags)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).expect("a log"))
            .spawn()
            .expect("it starts");
        Bare { child, log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    async fn ready(&self) {
        eventually("it is ready", || async {
            let log = self.log();
            assert!(!log.contains(r#""level":"fatal""#), "{log}");
            log.contains("ready to serve client requests").then_some(())
        })
        .await;
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn flag(name: &str, value: &str) -> String {
    format!("--{name}={value}")
}

fn urls(client: &str, peer: &str) -> Vec<String> {
    vec![
        flag("listen-client-urls", client),
        flag("advertise-client-urls", client),
        flag("listen-peer-urls", peer),
        flag("initial-advertise-peer-urls", peer),
    ]
}

fn local(scheme: &str) -> String {
    format!("{scheme}://127.0.0.1:{}", free_port())
}

async fn works(endpoint: &str) {
    let client = Remote::connect(&[endpoint.to_owned()], None).await.expect("a good URL");
    client.put(put("a", "1")).await.expect("written");
    assert_eq!(value(&client, "a").await.expect("read"), Some("1".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_find_each_other_through_a_discovery_service() {
    let service = Cluster::start(Path::new(env!("CARGO_BIN_EXE_member")), 1, &[]).await;
    let registry = service.members[0].connect().await;
    registry.put(put("/_etcd/registry/tok/_config/size", "3")).await.expect("the size");
    let folder = tempfile::tempdir().expect("a folder");
    let mut members = Vec::new();
    let mut clients = Vec::new();
    for name in ["d1", "d2", "d3", "d4"] {
        let client = local("http");
        let mut flags = urls(&client, &local("http"));
        flags.push(flag("discovery-token", "tok"));
        flags.push(flag("discovery-endpoints", &service.members[0].client));
        if name == "d4" {
            // Three are in; the fourth comes too late.
            for member in &members {
                Bare::ready(member).await;
            }
        }
        members.push(Bare::start(folder.path(), name, &flags));
        clients.push(client);
    }
    works(&clients[0]).await;
    let client = Remote::connect(&clients[..1], None).await.expect("a good URL");
    let list = client.member_list(pb::MemberListRequest { linearizable: true }).await.expect("members");
    assert_eq!(list.members.len(), 3);
    eventually("the fourth is refused", || async {
        members[3].log().contains("discovery: cluster is full").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_make_their_own_certificates() {
    let folder = tempfile::tempdir().expect("a folder");
    let peers: Vec<String> = (0..3).map(|_| local("https")).collect();
    let cluster: Vec<String> = peers.iter().enumerate().map(|(i, peer)| format!("t{i}={peer}")).collect();
    let mut members = Vec::new();
    let mut clients = Vec::new();
    for (i, peer) in peers.iter().enumerate() {
        let client = local("https");
        let mut flags = urls(&client, peer);
        flags.push(flag("initial-cluster", &cluster.join(",")));
        flags.extend(["--auto-tls".to_owned(), "--peer-auto-tls".to_owned()]);
        members.push(Bare::start(folder.path(), &format!("t{i}"), &flags));
        clients.push(client);
    }
    for member in &members {
        member.ready().await;
    }
    let etcdctl = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_etcdctl"))
            .args([
                "--insecure-skip-tls-verify",
                "--insecure-transport=false",
                "--endpoints",
                &clients.join(","),
            ])
            .args(args)
            .output()
            .expect("etcdctl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(etcdctl(&["put", "a", "1"]), "OK\n");
    assert_eq!(etcdctl(&["get", "a", "--print-value-only"]), "1\n");
    assert!(folder.path().join("t0/fixtures/client/cert.pem").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_and_peers_may_use_unix_sockets() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = |name: &str| format!("unix://{}", folder.path().join(name).display());
    let peers: Vec<String> = (0..3).map(|i| socket(&format!("p{i}"))).collect();
    let cluster: Vec<String> = peers.iter().enumerate().map(|(i, peer)| format!("u{i}={peer}")).collect();
    let mut members = Vec::new();
    for (i, peer) in peers.iter().enumerate() {
        let mut flags = urls(&socket(&format!("c{i}")), peer);
        flags.push(flag("initial-cluster", &cluster.join(",")));
        members.push(Bare::start(folder.path(), &format!("u{i}"), &flags));
    }
    for member in &members {
        member.ready().await;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_etcdctl"))
        .args(["--endpoints", &socket("c0"), "put", "a", "1"])
        .output()
        .expect("etcdctl runs");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "OK\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_takes_http_and_https() {
    let certificates = Certificates::new();
    let folder = tempfile::tempdir().expect("a folder");
    let (port, peer) = (free_port(), local("http"));
    let path = |name: &str| certificates.path(name).display().to_string();
    let both = format!("http://127.0.0.1:{port},https://127.0.0.1:{port}");
    let flags = vec![
        flag("listen-client-urls", &both),
        flag("advertise-client-urls", &format!("http://127.0.0.1:{port}")),
        flag("listen-peer-urls", &peer),
        flag("initial-advertise-peer-urls", &peer),
        flag("initial-cluster", &format!("b={peer}")),
        flag("cert-file", &path("server.pem")),
        flag("key-file", &path("server-key.pem")),
        flag("trusted-ca-file", &path("ca.pem")),
        "--client-cert-auth".to_owned(),
    ];
    let member = Bare::start(folder.path(), "b", &flags);
    member.ready().await;
    works(&format!("http://127.0.0.1:{port}")).await;
    let secure = [format!("https://127.0.0.1:{port}")];
    let friend = Remote::connect(&secure, Some(certificates.client(true))).await.expect("good");
    friend.put(put("a", "2")).await.expect("a certificate of the authority");
    let stranger = Remote::connect(&secure, Some(certificates.client(false))).await.expect("good");
    stranger.put(put("a", "3")).await.expect_err("no certificate");
}

async fn http(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_may_have_a_port_of_its_own_and_the_log_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (grpc, plain, peer) = (free_port(), free_port(), local("http"));
    let mut flags = urls(&format!("http://127.0.0.1:{grpc}"), &peer);
    flags.push(flag("initial-cluster", &format!("s={peer}")));
    flags.push(flag("listen-client-http-urls", &format!("http://127.0.0.1:{plain}")));
    flags.push(flag("log-outputs", &format!("stderr,{}", folder.path().join("etcd.log").display())));
    flags.push(flag("wal-dir", &folder.path().join("wal").display().to_string()));
    let member = Bare::start(folder.path(), "s", &flags);
    member.ready().await;
    works(&format!("http://127.0.0.1:{grpc}")).await;
    assert!(http(plain, "/health").await.starts_with("HTTP/1.1 200"));
    assert!(http(grpc, "/health").await.starts_with("HTTP/1.1 404"));
    let copy = std::fs::read_to_string(folder.path().join("etcd.log")).expect("the log file");
    assert!(copy.contains("ready to serve client requests"));
    assert!(folder.path().join("wal").is_dir());
}
