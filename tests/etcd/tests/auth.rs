//! Users, tokens and permissions at the wire: what the recordings cannot show. Each security fix of etcd's year 2026 that
//! concerns auth is a negative test here or in `replay_auth`.

use std::path::Path;

use keelson_etcd_tests::{Cluster, eventually, get, put};
use keelson_store_proto::authpb;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::auth_client::AuthClient;
use keelson_store_proto::etcdserverpb::cluster_client::ClusterClient;
use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use keelson_store_proto::etcdserverpb::lease_client::LeaseClient;
use keelson_store_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use keelson_store_proto::etcdserverpb::watch_client::WatchClient;
use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_member"))
}

/// A request with a token.
fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let token: MetadataValue<Ascii> = token.parse().expect("a token is metadata");
    request.metadata_mut().insert("token", token);
    request
}

fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned()).expect("a URL").connect_lazy()
}

fn user(name: &str, password: &str) -> pb::AuthUserAddRequest {
    pb::AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() }
}

fn grant(key: &str, end: &str, kind: authpb::permission::Type) -> pb::AuthRoleGrantPermissionRequest {
    let perm = authpb::Permission {
        perm_type: kind.into(),
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
    };
    pb::AuthRoleGrantPermissionRequest { name: "r".into(), perm: Some(perm) }
}

/// Users root (`rp`) and u (`p`), who may read and write `k` alone; auth on.
async fn guard(url: &str) {
    let mut auth = AuthClient::new(channel(url));
    for name in ["root", "r"] {
        auth.role_add(pb::AuthRoleAddRequest { name: name.into() }).await.expect("added");
    }
    auth.role_grant_permission(grant("k", "", authpb::permission::Type::Readwrite)).await.expect("granted");
    for (name, password, role) in [("root", "rp", "root"), ("u", "p", "r")] {
        auth.user_add(user(name, password)).await.expect("added");
        let grant = pb::AuthUserGrantRoleRequest { user: name.into(), role: role.into() };
        auth.user_grant_role(grant).await.expect("granted");
    }
    auth.auth_enable(pb::AuthEnableRequest {}).await.expect("enabled");
}

async fn token(url: &str, name: &str, password: &str) -> Result<String, Status> {
    let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
    Ok(AuthClient::new(channel(url)).authenticate(request).await?.into_inner().token)
}

/// The first answer to a watch.
async fn watch(url: &str, token: &str, key: &str, range_end: &str) -> Result<pb::WatchResponse, Status> {
    let create = pb::WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        start_revision: 1,
        ..Default::default()
    };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // The stream must stay open while the answer is awaited.
    let requests = tokio_stream::StreamExt::chain(tokio_stream::once(create), tokio_stream::pending());
    let mut stream = WatchClient::new(channel(url)).watch(with(token, requests)).await?.into_inner();
    stream.message().await.map(|message| message.expect("an answer"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_never_reads_more_than_its_user_may() {
    let cluster = Cluster::start(binary(), 1, &["--bcrypt-cost=4"]).await;
    let url = &cluster.members[0].client;
    let mut kv = KvClient::new(channel(url));
    kv.put(put("k", "1")).await.expect("written");
    kv.put(put("k2", "secret")).await.expect("written");
    guard(url).await;
    let u = token(url, "u", "p").await.expect("a token");
    let allowed = watch(url, &u, "k", "").await.expect("an answer");
    assert!(allowed.created && !allowed.canceled, "{allowed:?}");
    // From a key on, a prefix, everything: none of them is the one key.
    for (key, end) in [("k", "\0"), ("k", "l"), ("\0", "\0"), ("", "\0"), ("k2", ""), ("", "")] {
        let refused = watch(url, &u, key, end).await.expect("an answer");
        assert!(refused.created && refused.canceled, "{key:?} {end:?}: {refused:?}");
        assert_eq!(refused.watch_id, -1);
        assert_eq!(
            refused.cancel_reason,
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
        );
    }
    let bogus = watch(url, "bogus.1", "k", "").await.expect("an answer");
    assert_eq!(
        bogus.cancel_reason,
        "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_learns_or_changes_anything_without_a_token() {
    let cluster = Cluster::start(binary(), 1, &["--bcrypt-cost=4"]).await;
    let url = &cluster.members[0].client;
    let granted = LeaseClient::new(channel(url))
        .lease_grant(pb::LeaseGrantRequest { ttl: 600, id: 7 })
        .await
        .expect("granted");
    assert_eq!(granted.get_ref().id, 7);
    guard(url).await;
    let nobody = |status: Status| {
        assert_eq!(
            (status.code(), status.message()),
            (Code::InvalidArgument, "etcdserver: user name is empty")
        );
    };
    let mut cluster_client = ClusterClient::new(channel(url));
    nobody(cluster_client.member_list(pb::MemberListRequest::default()).await.expect_err("member list"));
    let keep_alive = tokio_stream::once(pb::LeaseKeepAliveRequest { id: 7 });
    let mut lease = LeaseClient::new(channel(url));
    let answer = async { lease.lease_keep_alive(keep_alive).await?.into_inner().message().await };
    nobody(answer.await.expect_err("keep-alive"));
    let mut maintenance = MaintenanceClient::new(channel(url));
    nobody(maintenance.snapshot(pb::SnapshotRequest {}).await.expect_err("snapshot"));
    nobody(maintenance.defragment(pb::DefragmentRequest {}).await.expect_err("defragment"));
    nobody(maintenance.status(pb::StatusRequest {}).await.expect_err("status"));
    let mut auth = AuthClient::new(channel(url));
    nobody(auth.user_add(user("x", "y")).await.expect_err("user add"));
    nobody(auth.auth_disable(pb::AuthDisableRequest {}).await.expect_err("disable"));
    // A user that is not root is known, and still no administrator.
    let u = token(url, "u", "p").await.expect("a token");
    let denied = |status: Status| assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    denied(maintenance.snapshot(with(&u, pb::SnapshotRequest {})).await.expect_err("snapshot"));
    denied(maintenance.hash_kv(with(&u, pb::HashKvRequest::default())).await.expect_err("hash"));
    denied(maintenance.move_leader(with(&u, pb::MoveLeaderRequest::default())).await.expect_err("move"));
    denied(auth.user_add(with(&u, user("x", "y"))).await.expect_err("user add"));
    let list = pb::AuthUserListRequest {};
    denied(auth.user_list(with(&u, list)).await.expect_err("user list"));
    let own = auth.user_get(with(&u, pb::AuthUserGetRequest { name: "u".into() })).await.expect("its own");
    assert_eq!(own.get_ref().roles, ["r"]);
    denied(
        auth.user_get(with(&u, pb::AuthUserGetRequest { name: "root".into() })).await.expect_err("another"),
    );
    maintenance.status(with(&u, pb::StatusRequest {})).await.expect("any user may");
    cluster_client.member_list(with(&u, pb::MemberListRequest::default())).await.expect("any user may");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_one_member_is_known_to_all_at_once() {
    let cluster = Cluster::start(binary(), 3, &["--bcrypt-cost=4"]).await;
    guard(&cluster.members[0].client).await;
    for from in &cluster.members {
        let root = token(&from.client, "root", "rp").await.expect("a token");
        for to in &cluster.members {
            let answer = KvClient::new(channel(&to.client)).range(with(&root, get("k"))).await;
            answer.unwrap_or_else(|error| panic!("of {} at {}: {error}", from.name, to.name));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_web_tokens_hold_until_users_or_roles_change() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let key = rcgen::KeyPair::generate().expect("a key");
    let private = folder.path().join("jwt.key");
    std::fs::write(&private, key.serialize_pem()).expect("written");
    let flag = format!("--auth-token=jwt,sign-method=ES256,ttl=5m,priv-key={}", private.display());
    let cluster = Cluster::start(binary(), 3, &["--bcrypt-cost=4", &flag]).await;
    let url = &cluster.members[0].client;
    guard(url).await;
    let root = token(url, "root", "rp").await.expect("a token");
    assert_eq!(root.split('.').count(), 3, "{root}");
    for member in &cluster.members {
        // Nothing is kept of it: any member can tell. Followers may have to hear of the users first.
        eventually("the token is taken", || async {
            KvClient::new(channel(&member.client)).put(with(&root, put("k", "1"))).await.ok()
        })
        .await;
    }
    let mut auth = AuthClient::new(channel(url));
    auth.user_add(with(&root, user("x", "y"))).await.expect("added");
    let old = KvClient::new(channel(url)).range(with(&root, get("k"))).await.expect_err("an old token");
    assert_eq!(
        (old.code(), old.message()),
        (Code::InvalidArgument, "etcdserver: revision of auth store is old")
    );
    let forged = format!("{}x", root);
    let refused = KvClient::new(channel(url)).range(with(&forged, get("k"))).await.expect_err("forged");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let again = token(url, "root", "rp").await.expect("a token");
    KvClient::new(channel(url)).range(with(&again, get("k"))).await.expect("a new token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_have_etcd_s_limits_and_users_may_have_none() {
    let cluster = Cluster::start(binary(), 1, &["--bcrypt-cost=4"]).await;
    let url = &cluster.members[0].client;
    guard(url).await;
    let root = token(url, "root", "rp").await.expect("a token");
    let mut auth = AuthClient::new(channel(url));
    let refused = auth.user_add(with(&root, user("long", &"x".repeat(73)))).await.expect_err("too long");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unknown, "bcrypt: password length exceeds 72 bytes")
    );
    let options = Some(authpb::UserAddOptions { no_password: true });
    let add = pb::AuthUserAddRequest { options, ..user("certified", "") };
    auth.user_add(with(&root, add)).await.expect("added");
    let refused = token(url, "certified", "x").await.expect_err("no password");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unknown, "auth: authentication failed, password was given for no password user")
    );
}
