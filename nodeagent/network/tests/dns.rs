//! The DNS server over real sockets, with a name server of our own as the node's upstream. Loopback only.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use k8s_openapi::api::core::v1::Service;
use keelson_network::{Dns, Upstream};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(40);

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    message.to_vec().expect("bytes")
}

async fn over_udp(server: SocketAddr, bytes: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let mut buffer = vec![0u8; 4096];
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        socket.send_to(bytes, server).await.expect("sent");
        // The server may not listen yet: then the question is lost and asked again.
        match tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut buffer)).await {
            Ok(Ok(length)) => return Message::from_vec(&buffer[..length]).expect("a message"),
            _ => assert!(tokio::time::Instant::now() < deadline, "no answer from {server}"),
        }
    }
}

async fn over_tcp(server: SocketAddr, bytes: &[u8]) -> Message {
    let mut stream = TcpStream::connect(server).await.expect("a connection");
    let length = u16::try_from(bytes.len()).expect("short");
    stream.write_all(&length.to_be_bytes()).await.expect("sent");
    stream.write_all(bytes).await.expect("sent");
    let mut length = [0u8; 2];
    stream.read_exact(&mut length).await.expect("a length");
    let mut answer = vec![0u8; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).await.expect("an answer");
    Message::from_vec(&answer).expect("a message")
}

/// A port that is free for UDP and TCP.
async fn free_port() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    socket.local_addr().expect("an address")
}

fn service(name: &str, spec: serde_json::Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec}))
        .expect("a Service")
}

#[tokio::test]
async fn cluster_names_are_answered_and_others_fail_at_once_without_upstream() {
    let folder = tempfile::tempdir().expect("a folder");
    let resolv_conf = folder.path().join("resolv.conf");
    let server = free_port().await;
    // Ourselves as the only name server: asking it would be a loop.
    std::fs::write(&resolv_conf, format!("nameserver {}\n", server.ip())).expect("written");
    let dns = Dns::new("cluster.local", server.ip());
    dns.change(|zone| {
        zone.apply_service(&service("web", json!({"clusterIP": "10.96.0.20", "ports": [{"port": 80}]})));
    });
    let token = CancellationToken::new();
    let upstream = Upstream::new(resolv_conf, vec![server.ip()]);
    let running = tokio::spawn(dns.clone().serve(server, upstream, token.clone()));

    let asked = query("web.default.svc.cluster.local.", RecordType::A);
    let address = |message: &Message| match message.answers.first().map(|record| &record.data) {
        Some(RData::A(address)) => Some(address.0),
        _ => None,
    };
    let answer = over_udp(server, &asked).await;
    assert_eq!(address(&answer), Some(Ipv4Addr::new(10, 96, 0, 20)));
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert_eq!(address(&over_tcp(server, &asked).await), Some(Ipv4Addr::new(10, 96, 0, 20)));

    let missing = over_udp(server, &query("nobody.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(missing.authorities.len(), 1, "with the zone's SOA");
    let outside = over_udp(server, &query("example.com.", RecordType::A)).await;
    assert_eq!(outside.metadata.response_code, ResponseCode::ServFail, "nobody to ask");

    dns.change(|zone| zone.remove_service(&service("web", json!({}))));
    let gone = over_udp(server, &asked).await;
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
    token.cancel();
    running.await.expect("no panic");
}

#[tokio::test]
async fn a_long_answer_is_cut_over_udp_and_whole_over_tcp() {
    let server = free_port().await;
    let dns = Dns::new("cluster.local", IpAddr::V4(Ipv4Addr::LOCALHOST));
    let endpoints: Vec<serde_json::Value> = (1..=60)
        .map(|host| json!({"addresses": [format!("10.244.1.{host}")], "conditions": {"ready": true}}))
        .collect();
    let slice = json!({
        "metadata": {"name": "db-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 1}], "endpoints": endpoints,
    });
    dns.change(|zone| {
        zone.apply_service(&service("db", json!({"clusterIP": "None"})));
        zone.apply_slice(&serde_json::from_value(slice).expect("a slice"));
    });
    let token = CancellationToken::new();
    let upstream = Upstream::new("/nonexistent".into(), vec![]);
    let running = tokio::spawn(dns.serve(server, upstream, token.clone()));
    let asked = query("db.default.svc.cluster.local.", RecordType::A);
    let cut = over_udp(server, &asked).await;
    assert!(cut.metadata.truncation && cut.answers.len() < 60);
    let whole = over_tcp(server, &asked).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 60);
    token.cancel();
    running.await.expect("no panic");
}
