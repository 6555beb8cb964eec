//! Members in this process: the handle, the wire, watches, leases, TLS.

use std::path::Path;
use std::time::Duration;

use keelson_etcd_tests::{Certificates, eventually, free_port, get, prefix, put, value};
use keelson_store_proto::client::{Etcd, Remote};
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use keelson_store_proto::etcdserverpb::lease_client::LeaseClient;
use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
use keelson_store_server::{Config, Store, TlsConfig};
use tokio_util::sync::CancellationToken;
use tonic::Code;

fn config(folder: &Path, name: &str, peers: &[(String, String)]) -> Config {
    let peer = peers.iter().find(|(peer, _)| peer == name).expect("one of the peers").1.clone();
    let client =
        format!("{}://127.0.0.1:{}", if peer.starts_with("https") { "https" } else { "http" }, free_port());
    Config {
        name: name.to_owned(),
        data_dir: folder.join(name),
        listen_client_urls: vec![client.clone()],
        advertise_client_urls: vec![client],
        listen_peer_urls: vec![peer.clone()],
        initial_advertise_peer_urls: vec![peer],
        initial_cluster: peers.to_vec(),
        ..Config::default()
    }
}

fn peers(count: usize, scheme: &str) -> Vec<(String, String)> {
    (1..=count).map(|i| (format!("m{i}"), format!("{scheme}://127.0.0.1:{}", free_port()))).collect()
}

async fn one(folder: &Path) -> (Store, CancellationToken, String) {
    let config = config(folder, "m1", &peers(1, "http"));
    let url = config.advertise_client_urls[0].clone();
    let stop = CancellationToken::new();
    let store = Store::start(config, stop.clone()).await.expect("it starts");
    store.ready().await.expect("it serves");
    (store, stop, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_and_the_wire_show_the_same_store() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, stop, url) = one(folder.path()).await;
    let (handle, wire) =
        (store.handle(), Remote::connect(std::slice::from_ref(&url), None).await.expect("a good URL"));
    let written = handle.put(put("a", "1")).await.expect("written");
    assert_eq!(written.header.expect("a header").revision, 2);
    assert_eq!(value(&wire, "a").await.expect("read"), Some("1".to_owned()));
    assert_eq!(
        handle.range(get("a")).await.expect("read").kvs,
        wire.range(get("a")).await.expect("read").kvs
    );
    let refused = wire.put(pb::PutRequest::default()).await.expect_err("no key");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "etcdserver: key is not provided")
    );
    let future = wire.range(pb::RangeRequest { revision: 99, ..get("a") }).await.expect_err("the future");
    assert_eq!(future.code(), Code::OutOfRange);
    let large = put("big", &"x".repeat(1_600_000));
    let refused = wire.put(large).await.expect_err("too large");
    assert_eq!(refused.message(), "etcdserver: request is too large");
    let mut kv = KvClient::connect(url).await.expect("connected");
    for i in 0..50 {
        handle.put(put(&format!("s{i:02}"), &"y".repeat(100_000))).await.expect("written");
    }
    // Longer than what is encoded before its length is known.
    for limit in [0, 45, 1] {
        let request = pb::RangeRequest { limit, ..prefix("s") };
        let (here, there) = (handle.range(request.clone()).await, wire.range(request).await);
        assert_eq!(here.expect("read"), there.expect("read"), "limit {limit}");
    }
    let mut stream = kv.range_stream(prefix("s")).await.expect("a stream").into_inner();
    let (mut kvs, mut pieces, mut count) = (0, 0, 0);
    while let Some(piece) = stream.message().await.expect("a piece") {
        let piece = piece.range_response.expect("a range");
        (kvs, pieces, count) = (kvs + piece.kvs.len(), pieces + 1, piece.count);
    }
    assert_eq!((kvs, count), (50, 50));
    assert!(pieces > 1, "5 MB come in pieces");
    stop.cancel();
    store.stopped().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_everything_and_another_cluster_s_directory_is_told_apart() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = config(folder.path(), "m1", &peers(1, "http"));
    for round in 0..3 {
        let stop = CancellationToken::new();
        let store = Store::start(config.clone(), stop.clone()).await.expect("it starts");
        store.ready().await.expect("it serves");
        let handle = store.handle();
        let answer = handle.range(prefix("k")).await.expect("read");
        assert_eq!(answer.count, round);
        handle.put(put(&format!("k{round}"), "v")).await.expect("written");
        stop.cancel();
        store.stopped().await.expect("a clean stop");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_sees_history_then_the_present_and_compaction_ends_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, stop, url) = one(folder.path()).await;
    let client = Remote::connect(&[url], None).await.expect("a good URL");
    for i in 0..10 {
        client.put(put("w", &i.to_string())).await.expect("written");
    }
    let (requests, mut answers) = client.watch().await.expect("a stream");
    let create = |start_revision| pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(pb::WatchCreateRequest {
            key: "w".into(),
            start_revision,
            prev_kv: true,
            ..Default::default()
        })),
    };
    requests.send(create(2)).await.expect("sent");
    let created = answers.recv().await.expect("an answer").expect("fine");
    assert!(created.created && !created.canceled);
    for i in 10..20 {
        client.put(put("w", &i.to_string())).await.expect("written");
    }
    let mut seen = Vec::new();
    while seen.len() < 20 {
        let answer = tokio::time::timeout(Duration::from_secs(30), answers.recv()).await.expect("in time");
        for event in answer.expect("an answer").expect("fine").events {
            seen.push(String::from_utf8_lossy(&event.kv.expect("a record").value).into_owned());
        }
    }
    assert_eq!(seen, (0..20).map(|i| i.to_string()).collect::<Vec<_>>(), "every change, once, in order");
    client.compact(pb::CompactionRequest { revision: 15, physical: true }).await.expect("compacted");
    requests.send(create(5)).await.expect("sent");
    let canceled = loop {
        let answer = answers.recv().await.expect("an answer").expect("fine");
        if answer.canceled {
            break answer;
        }
    };
    assert_eq!(canceled.compact_revision, 15);
    drop(requests);
    assert!(answers.recv().await.is_none(), "dropping the sender ends the stream");
    stop.cancel();
    store.stopped().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_kept_alive_and_takes_its_keys_along_when_it_ends() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, stop, url) = one(folder.path()).await;
    let client = Remote::connect(std::slice::from_ref(&url), None).await.expect("a good URL");
    let lease = client.lease_grant(pb::LeaseGrantRequest { ttl: 1, id: 0 }).await.expect("granted");
    assert_eq!(lease.ttl, 2, "the floor is one and a half election timeouts");
    client.put(pb::PutRequest { lease: lease.id, ..put("leased", "x") }).await.expect("written");
    let mut leases = LeaseClient::connect(url).await.expect("connected");
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let stream = leases.lease_keep_alive(tokio_stream::wrappers::ReceiverStream::new(receiver)).await;
    let mut stream = stream.expect("a stream").into_inner();
    for _ in 0..6 {
        sender.send(pb::LeaseKeepAliveRequest { id: lease.id }).await.expect("sent");
        let answer = stream.message().await.expect("fine").expect("an answer");
        assert_eq!(answer.ttl, 2);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(client.range(get("leased")).await.expect("read").count, 1, "kept alive past its TTL");
    eventually("the key goes with its lease", || async {
        (client.range(get("leased")).await.ok()?.count == 0).then_some(())
    })
    .await;
    sender.send(pb::LeaseKeepAliveRequest { id: lease.id }).await.expect("sent");
    assert_eq!(stream.message().await.expect("fine").expect("an answer").ttl, 0);
    stop.cancel();
    store.stopped().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keep_alives_are_answered_in_order_and_few_of_them_are_logged() {
    const LEASES: i64 = 20;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, stop, url) = one(folder.path()).await;
    let client = Remote::connect(std::slice::from_ref(&url), None).await.expect("a good URL");
    for id in 1..=LEASES {
        client.lease_grant(pb::LeaseGrantRequest { ttl: 600, id }).await.expect("granted");
    }
    // One of them is unknown.
    let asked: Vec<i64> = (0..2_000).map(|number| number % (LEASES + 1) + 1).collect();
    let index = || async { client.status(pb::StatusRequest::default()).await.expect("a status").raft_index };
    let before = index().await;
    let requests: Vec<_> = asked.iter().map(|id| pb::LeaseKeepAliveRequest { id: *id }).collect();
    let mut leases = LeaseClient::connect(url).await.expect("connected");
    let stream = leases.lease_keep_alive(tokio_stream::iter(requests)).await;
    let mut stream = stream.expect("a stream").into_inner();
    for id in &asked {
        let answer = stream.message().await.expect("fine").expect("an answer");
        assert_eq!((answer.id, answer.ttl), (*id, if *id > LEASES { 0 } else { 600 }));
    }
    assert!(stream.message().await.expect("fine").is_none(), "who says no more is told no more");
    assert!(index().await - before < 500, "nearly all of them found nothing to change");
    stop.cancel();
    store.stopped().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_with_tls_everywhere_refuse_strangers() {
    let certificates = Certificates::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tls = TlsConfig {
        cert_file: certificates.path("server.pem"),
        key_file: certificates.path("server-key.pem"),
        trusted_ca_file: Some(certificates.path("ca.pem")),
        client_cert_auth: true,
        ..TlsConfig::default()
    };
    let peers = peers(3, "https");
    let stop = CancellationToken::new();
    let mut stores = Vec::new();
    let mut endpoints = Vec::new();
    for (name, _) in &peers {
        let config = Config {
            tls: Some(tls.clone()),
            peer_tls: Some(tls.clone()),
            ..config(folder.path(), name, &peers)
        };
        endpoints.extend(config.advertise_client_urls.clone());
        stores.push(Store::start(config, stop.clone()).await.expect("it starts"));
    }
    for store in &stores {
        store.ready().await.expect("it serves");
    }
    let friend = Remote::connect(&endpoints, Some(certificates.client(true))).await.expect("good URLs");
    friend.put(put("a", "1")).await.expect("written");
    for store in &stores {
        assert_eq!(value(&store.handle(), "a").await.expect("read"), Some("1".to_owned()));
    }
    let stranger = Remote::connect(&endpoints, Some(certificates.client(false))).await.expect("good URLs");
    stranger.put(put("a", "2")).await.expect_err("no certificate");
    stop.cancel();
    for store in &stores {
        store.stopped().await.expect("a clean stop");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_s_common_name_is_its_user_and_the_process_itself_is_root() {
    use keelson_store_proto::etcdserverpb::auth_client::AuthClient;
    use keelson_store_proto::{authpb, etcdserverpb::AuthEnableRequest};
    use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
    let certificates = Certificates::new();
    for name in ["root", "u", "stranger"] {
        certificates.issue(name);
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = Config {
        tls: Some(TlsConfig {
            cert_file: certificates.path("server.pem"),
            key_file: certificates.path("server-key.pem"),
            trusted_ca_file: Some(certificates.path("ca.pem")),
            client_cert_auth: true,
            ..TlsConfig::default()
        }),
        bcrypt_cost: 4,
        ..config(folder.path(), "m1", &peers(1, "https"))
    };
    let config = Config {
        listen_peer_urls: vec!["http://127.0.0.1:0".to_owned()],
        initial_advertise_peer_urls: vec!["http://127.0.0.1:1".to_owned()],
        initial_cluster: Vec::new(),
        ..config
    };
    let url = config.advertise_client_urls[0].clone();
    let stop = CancellationToken::new();
    let store = Store::start(config, stop.clone()).await.expect("it starts");
    store.ready().await.expect("it serves");
    let tls = certificates.client_as(Some("root"));
    let (certificate, key) = tls.identity.clone().expect("an identity");
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&tls.ca))
        .identity(Identity::from_pem(certificate, key));
    let channel = Endpoint::from_shared(url.clone()).expect("a URL").tls_config(tls).expect("good");
    let mut auth = AuthClient::new(channel.connect_lazy());
    auth.role_add(pb::AuthRoleAddRequest { name: "r".into() }).await.expect("added");
    let perm = authpb::Permission { perm_type: 2, key: "k".into(), range_end: "".into() };
    let grant = pb::AuthRoleGrantPermissionRequest { name: "r".into(), perm: Some(perm) };
    auth.role_grant_permission(grant).await.expect("granted");
    for (name, role) in [("root", "root"), ("u", "r")] {
        let options = Some(authpb::UserAddOptions { no_password: true });
        let add = pb::AuthUserAddRequest { name: name.into(), options, ..Default::default() };
        auth.user_add(add).await.expect("added");
        let grant = pb::AuthUserGrantRoleRequest { user: name.into(), role: role.into() };
        auth.user_grant_role(grant).await.expect("granted");
    }
    auth.auth_enable(AuthEnableRequest {}).await.expect("enabled");
    let by = async |name: &str| {
        let tls = certificates.client_as(Some(name));
        Remote::connect(std::slice::from_ref(&url), Some(tls)).await.expect("a good URL")
    };
    by("root").await.put(put("x", "1")).await.expect("root may do everything");
    by("u").await.put(put("k", "1")).await.expect("its own key");
    let code = |result: Result<pb::PutResponse, tonic::Status>| result.expect_err("refused").code();
    assert_eq!(code(by("u").await.put(put("x", "2")).await), Code::PermissionDenied);
    assert_eq!(code(by("stranger").await.put(put("k", "2")).await), Code::PermissionDenied);
    store.handle().put(put("x", "3")).await.expect("who runs the member is root");
    assert_eq!(value(&store.handle(), "k").await.expect("read"), Some("1".to_owned()));
    stop.cancel();
    store.stopped().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_never_comes_is_not_waited_for() {
    use tokio::io::AsyncReadExt;
    let certificates = Certificates::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tls = TlsConfig {
        cert_file: certificates.path("server.pem"),
        key_file: certificates.path("server-key.pem"),
        trusted_ca_file: Some(certificates.path("ca.pem")),
        client_cert_auth: true,
        ..TlsConfig::default()
    };
    let config = Config {
        tls: Some(tls.clone()),
        peer_tls: Some(tls),
        ..config(folder.path(), "m1", &peers(1, "https"))
    };
    let urls = [config.advertise_client_urls[0].clone(), config.listen_peer_urls[0].clone()];
    let stop = CancellationToken::new();
    let store = Store::start(config, stop.clone()).await.expect("it starts");
    store.ready().await.expect("it serves");
    for url in urls {
        let address = url.strip_prefix("https://").expect("a URL");
        let mut silent = tokio::net::TcpStream::connect(address).await.expect("connected");
        let closed = tokio::time::timeout(Duration::from_secs(60), silent.read(&mut [0; 1])).await;
        let closed = closed.expect("within the handshake's time");
        assert!(matches!(closed, Ok(0) | Err(_)), "{address}: {closed:?}");
    }
    stop.cancel();
    store.stopped().await.expect("a clean stop");
}
