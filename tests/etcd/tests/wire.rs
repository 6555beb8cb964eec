//! The store's other doors: streamed ranges, limits, host names and origins, and what the proxies pass on.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use keelson_etcd_tests::replay::http;
use keelson_etcd_tests::{Cluster, free_port, put};
use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use keelson_store_proto::v3electionpb::election_client::ElectionClient;
use keelson_store_proto::v3electionpb::{CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest};
use tonic::Code;
use tonic::transport::Channel;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_member"))
}

async fn channel(url: &str) -> Channel {
    Channel::from_shared(url.to_owned()).expect("a URL").connect().await.expect("connected")
}

fn address(url: &str) -> &str {
    url.strip_prefix("http://").expect("a plain URL")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_range_is_the_range_in_small_pieces_with_the_header_last() {
    let cluster = Cluster::start(binary(), 1, &["--max-request-bytes=20000", "--unsafe-no-fsync"]).await;
    let client = cluster.members[0].connect().await;
    for i in 0..60 {
        client.put(put(&format!("k{i:03}"), &"x".repeat(1000))).await.expect("written");
    }
    let mut kv = KvClient::new(channel(&cluster.members[0].client).await);
    for limit in [0, 25] {
        let request = pb::RangeRequest {
            key: Bytes::from_static(b"k"),
            range_end: Bytes::from_static(b"l"),
            limit,
            ..Default::default()
        };
        let whole = client.range(request.clone()).await.expect("read");
        let mut stream = kv.range_stream(request).await.expect("opened").into_inner();
        let mut pieces = Vec::new();
        while let Some(message) = stream.message().await.expect("read") {
            pieces.push(message.range_response.expect("a piece"));
        }
        let last = pieces.pop().expect("a last piece");
        assert!(pieces.len() >= if limit == 0 { 3 } else { 1 }, "{} pieces", pieces.len());
        for piece in &pieces {
            assert!(piece.header.is_none() && !piece.more && piece.count == 0);
            assert!(prost_reflect::prost::Message::encoded_len(piece) <= 20000);
        }
        assert_eq!((last.header, last.more, last.count), (whole.header, whole.more, whole.count));
        let kvs: Vec<_> = pieces.into_iter().flat_map(|piece| piece.kvs).chain(last.kvs).collect();
        assert_eq!(kvs, whole.kvs);
    }
    let sorted = pb::RangeRequest {
        key: Bytes::from_static(b"k"),
        range_end: Bytes::from_static(b"l"),
        sort_order: pb::range_request::SortOrder::Descend.into(),
        ..Default::default()
    };
    let refused = kv.range_stream(sorted).await.expect_err("not in one pass");
    assert_eq!(refused.code(), Code::Unimplemented);
    let future = pb::RangeRequest { key: Bytes::from_static(b"k"), revision: 1000, ..Default::default() };
    let mut stream = kv.range_stream(future).await.expect("opened").into_inner();
    let refused = stream.message().await.expect_err("a future revision");
    assert_eq!(refused.message(), "etcdserver: mvcc: required revision is a future revision");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_above_the_limit_is_refused_in_gos_words() {
    let cluster = Cluster::start(binary(), 1, &["--max-request-bytes=1000", "--unsafe-no-fsync"]).await;
    let client = cluster.members[0].connect().await;
    let refused = client.put(put("k", &"x".repeat(2000))).await.expect_err("above the request limit");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "etcdserver: request is too large")
    );
    let refused = client.put(put("k", &"x".repeat(1 << 20))).await.expect_err("above the message limit");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let words = "grpc: received message larger than max (";
    assert!(
        refused.message().starts_with(words) && refused.message().ends_with(" vs. 525288)"),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strange_host_names_are_refused_and_listed_origins_named() {
    let flags =
        ["--host-whitelist=good.example,127.0.0.1", "--cors=http://page.example", "--unsafe-no-fsync"];
    let cluster = Cluster::start(binary(), 1, &flags).await;
    let at = address(&cluster.members[0].client).to_owned();
    let ask = async |headers: &[(&str, &str)]| {
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        http::request(&at, "GET", "/health", &headers, "").await.expect("answered")
    };
    let fine = ask(&[("origin", "http://page.example")]).await;
    assert_eq!(fine.status, 200);
    assert_eq!(fine.header("access-control-allow-origin"), Some("http://page.example"));
    assert_eq!(ask(&[("origin", "http://other.example")]).await.header("access-control-allow-origin"), None);
    // The connection names the address first; a second Host is what a rebound name would send alone.
    let stream = tokio::net::TcpStream::connect(&at).await.expect("connected");
    let mut stream = tokio::io::BufReader::new(stream);
    let mut answer = String::new();
    {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let request = b"GET /health HTTP/1.1\r\nhost: evil.example:80\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.expect("sent");
        stream.read_to_string(&mut answer).await.expect("answered");
    }
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    assert!(answer.contains("--host-whitelist \"evil.example\""), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_is_elected_observed_and_followed_by_the_next() {
    let cluster = Cluster::start(binary(), 1, &["--unsafe-no-fsync"]).await;
    let mut election = ElectionClient::new(channel(&cluster.members[0].client).await);
    let name = Bytes::from_static(b"e");
    let none = election.leader(LeaderRequest { name: name.clone() }).await.expect_err("nobody yet");
    assert_eq!((none.code(), none.message()), (Code::Unknown, "election: no leader"));
    let mut watcher = election.clone();
    let observe = LeaderRequest { name: name.clone() };
    let mut seen = watcher.observe(observe).await.expect("observed").into_inner();
    let first = CampaignRequest { name: name.clone(), lease: 0, value: Bytes::from_static(b"one") };
    let first = election.campaign(first).await.expect("elected").into_inner().leader.expect("a leader");
    let mut value =
        async || seen.message().await.expect("observed").expect("goes on").kv.expect("a leader").value;
    assert_eq!(&value().await[..], b"one");
    let proclaim = ProclaimRequest { leader: Some(first.clone()), value: Bytes::from_static(b"more") };
    election.proclaim(proclaim.clone()).await.expect("it leads");
    assert_eq!(&value().await[..], b"more");
    let mut other = election.clone();
    let second = CampaignRequest { name: name.clone(), lease: 0, value: Bytes::from_static(b"two") };
    let waiting = tokio::spawn(async move { other.campaign(second).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "the first still leads");
    election.resign(ResignRequest { leader: Some(first) }).await.expect("resigned");
    let second = waiting.await.expect("no panic").expect("elected").into_inner().leader.expect("a leader");
    assert_eq!(&value().await[..], b"two");
    let led =
        election.leader(LeaderRequest { name }).await.expect("somebody").into_inner().kv.expect("a key");
    assert_eq!((led.key, led.create_revision), (second.key, second.rev));
    let refused = election.proclaim(proclaim).await.expect_err("it leads no more");
    assert_eq!(refused.message(), "election: not leader");
    let refused = election.resign(ResignRequest { leader: None }).await.expect_err("whose?");
    assert_eq!(refused.message(), "\"leader\" field must be provided");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_that_goes_away_gives_its_place_up() {
    let cluster = Cluster::start(binary(), 1, &["--unsafe-no-fsync"]).await;
    let client = cluster.members[0].connect().await;
    let mut election = ElectionClient::new(channel(&cluster.members[0].client).await);
    let campaign = |value: &'static [u8]| CampaignRequest {
        name: Bytes::from_static(b"e"),
        lease: 0,
        value: Bytes::from_static(value),
    };
    election.campaign(campaign(b"one")).await.expect("elected");
    let mut other = election.clone();
    let waiting = tokio::spawn(async move { other.campaign(campaign(b"two")).await });
    let keys = async || client.range(keelson_etcd_tests::prefix("e/")).await.expect("read").kvs.len();
    keelson_etcd_tests::eventually("the second stands", || async { (keys().await == 2).then_some(()) }).await;
    waiting.abort();
    keelson_etcd_tests::eventually("its key is gone", || async { (keys().await == 1).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateway_and_proxy_pass_calls_and_streams_on() {
    let cluster = Cluster::start(binary(), 1, &["--unsafe-no-fsync"]).await;
    let target = address(&cluster.members[0].client).to_owned();
    for command in ["gateway", "grpc-proxy"] {
        let door = format!("127.0.0.1:{}", free_port());
        let child = std::process::Command::new(binary())
            .args([command, "start", "--endpoints", &target, "--listen-addr", &door])
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("started");
        let _stop = Stop(child);
        let url = format!("http://{door}");
        let client = keelson_store_proto::client::Remote::connect(std::slice::from_ref(&url), None).await;
        let client = client.expect("a URL");
        let key = format!("through-{command}");
        keelson_etcd_tests::eventually("a call through it", || async {
            client.put(put(&key, "v")).await.ok()
        })
        .await;
        let (requests, mut answers) = client.watch().await.expect("a stream");
        let create =
            pb::WatchCreateRequest { key: key.clone().into(), start_revision: 1, ..Default::default() };
        let union = pb::watch_request::RequestUnion::CreateRequest(create);
        requests.send(pb::WatchRequest { request_union: Some(union) }).await.expect("sent");
        assert!(answers.recv().await.expect("an answer").expect("good").created);
        let events = answers.recv().await.expect("an answer").expect("good").events;
        assert_eq!(events[0].kv.as_ref().map(|kv| &kv.key[..]), Some(key.as_bytes()));
    }
}

struct Stop(std::process::Child);

impl Drop for Stop {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
