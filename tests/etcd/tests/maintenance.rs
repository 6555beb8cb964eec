//! Alarms, space, consistency and membership in trouble: members as processes.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use keelson_etcd_tests::replay::http;
use keelson_etcd_tests::{Cluster, Process, eventually, get, prefix, put, value};
use keelson_store_core::{Cf, Read, Write};
use keelson_store_proto::client::{Etcd, Remote};
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::alarm_request::AlarmAction;
use keelson_store_proto::etcdserverpb::cluster_client::ClusterClient;
use keelson_store_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use keelson_store_raft::Backend;
use keelson_store_server::{Memory, Rocks};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_member"))
}

fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned()).expect("a URL").connect_lazy()
}

async fn alarms(url: &str) -> Vec<pb::AlarmMember> {
    let request = pb::AlarmRequest { action: AlarmAction::Get.into(), ..Default::default() };
    MaintenanceClient::new(channel(url)).alarm(request).await.expect("alarms").into_inner().alarms
}

async fn health(member: &Process) -> String {
    let address = member.client.strip_prefix("http://").expect("a plain URL");
    http::request(address, "GET", "/health", &[], "").await.expect("an answer").text()
}

/// Puts pages until the space is used up.
async fn fill(client: &Remote) -> Status {
    for i in 0..1000 {
        if let Err(full) = client.put(put(&format!("page{i}"), &"x".repeat(4096))).await {
            return full;
        }
    }
    panic!("a thousand pages fit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_database_refuses_growth_and_takes_it_again_when_space_returns() {
    let cluster = Cluster::start(binary(), 1, &["--quota-backend-bytes=53248"]).await;
    let member = &cluster.members[0];
    let client = member.connect().await;
    client.put(put("first", "fits")).await.expect("a small database takes something");
    let full = fill(&client).await;
    assert_eq!(
        (full.code(), full.message()),
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded")
    );
    assert_eq!(alarms(&member.client).await.len(), 1);
    assert!(health(member).await.contains(r#""reason":"ALARM NOSPACE""#), "{}", health(member).await);
    let status = client.status(pb::StatusRequest {}).await.expect("status");
    assert!(status.errors.iter().any(|error| error.contains("NOSPACE")), "{:?}", status.errors);
    assert_eq!(status.db_size_quota, 53248);
    assert!(status.db_size > 0 && status.db_size_in_use <= status.db_size, "{status:?}");
    client.put(put("k", "v")).await.expect_err("still full");
    assert_eq!(value(&client, "first").await.expect("reads go on"), Some("fits".to_owned()));
    // Deleting and compacting is allowed, and enough: nobody lowers the alarm by hand.
    let all = prefix("page");
    let delete = pb::DeleteRangeRequest { key: all.key, range_end: all.range_end, prev_kv: false };
    let deleted = client.delete_range(delete).await.expect("deleting is allowed");
    let revision = deleted.header.expect("a header").revision;
    let compact = pb::CompactionRequest { revision, physical: true };
    client.compact(compact).await.expect("compacting is allowed");
    eventually("the alarm is lowered", || async { alarms(&member.client).await.is_empty().then_some(()) })
        .await;
    client.put(put("k", "v")).await.expect("there is space again");
    assert!(health(member).await.contains(r#""health":"true""#));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_is_disarmed_by_hand_and_comes_back_while_there_is_no_space() {
    let cluster = Cluster::start(binary(), 1, &["--quota-backend-bytes=53248"]).await;
    let member = &cluster.members[0];
    let client = member.connect().await;
    fill(&client).await;
    let raised = alarms(&member.client).await;
    let disarm = pb::AlarmRequest {
        action: AlarmAction::Deactivate.into(),
        member_id: raised[0].member_id,
        alarm: pb::AlarmType::Nospace.into(),
    };
    let lowered = MaintenanceClient::new(channel(&member.client)).alarm(disarm).await.expect("disarmed");
    assert_eq!(lowered.get_ref().alarms, raised);
    assert!(alarms(&member.client).await.is_empty());
    let full = fill(&client).await;
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert_eq!(alarms(&member.client).await, raised);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_alarm_stops_everything_that_touches_data() {
    let cluster = Cluster::start(binary(), 1, &[]).await;
    let member = &cluster.members[0];
    let client = member.connect().await;
    client.put(put("k", "v")).await.expect("written");
    let id = client.status(pb::StatusRequest {}).await.expect("status").leader;
    let alarm = |action: AlarmAction| pb::AlarmRequest {
        action: action.into(),
        member_id: id,
        alarm: pb::AlarmType::Corrupt.into(),
    };
    let mut maintenance = MaintenanceClient::new(channel(&member.client));
    maintenance.alarm(alarm(AlarmAction::Activate)).await.expect("raised");
    let corrupt = |status: Status| {
        assert_eq!((status.code(), status.message()), (Code::DataLoss, "etcdserver: corrupt cluster"));
    };
    corrupt(client.put(put("k", "w")).await.expect_err("a put"));
    corrupt(client.range(get("k")).await.expect_err("a range"));
    corrupt(client.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 }).await.expect_err("a grant"));
    assert!(health(member).await.contains(r#""reason":"ALARM CORRUPT""#));
    maintenance.alarm(alarm(AlarmAction::Deactivate)).await.expect("lowered");
    assert_eq!(value(&client, "k").await.expect("read"), Some("v".to_owned()));
}

/// Changes one stored value of a member that is stopped, as a bad disk would.
fn rot(member: &Process) {
    let rocks = Rocks::open(&member.data_dir.join("member/snap"), Memory::default()).expect("it opens");
    let mut found = None;
    let (from, to) = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
    rocks.scan(Cf::History, from, to, false, &mut |key, value| {
        found = Some((key.to_vec(), value.to_vec()));
        std::ops::ControlFlow::Break(())
    });
    let (key, mut value) = found.expect("something was written");
    *value.last_mut().expect("a value") ^= 1;
    let write = Write { cf: Cf::History, key: key.into(), value: Some(value.into()) };
    rocks.prune(&[write]).expect("written");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(rocks.flush()).expect("durable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_data_rots_is_found_by_default() {
    // Only more often than by default.
    let often = &["--compact-hash-check-time=1s"];
    let mut cluster = Cluster::start(binary(), 3, often).await;
    let client = Remote::connect(&cluster.endpoints(), None).await.expect("good URLs");
    for i in 0..20 {
        client.put(put(&format!("k{i}"), "v")).await.expect("written");
    }
    let victim = (cluster.leader().await + 1) % 3;
    let rotten = cluster.members[victim].connect().await.status(pb::StatusRequest {}).await.expect("status");
    let rotten = rotten.header.expect("a header").member_id;
    assert_eq!(cluster.members[victim].terminate().signal(), Some(15));
    tokio::task::block_in_place(|| {
        let member = &cluster.members[victim];
        std::thread::scope(|scope| scope.spawn(|| rot(member)).join().expect("no panic"));
    });
    let initial = cluster.initial();
    cluster.members[victim].start(&initial, "new", often);
    cluster.members[victim].ready(2).await;
    let healthy = &cluster.members[(victim + 1) % 3].client;
    let found = eventually("CORRUPT is raised", || async {
        let alarms = alarms(healthy).await;
        (!alarms.is_empty()).then_some(alarms)
    })
    .await;
    assert_eq!((found[0].member_id, found[0].alarm), (rotten, i32::from(pb::AlarmType::Corrupt)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_survivor_of_three_becomes_a_cluster_of_its_own() {
    let mut cluster = Cluster::start(binary(), 3, &[]).await;
    let client = Remote::connect(&cluster.endpoints(), None).await.expect("good URLs");
    for i in 0..50 {
        client.put(put(&format!("k{i:02}"), "v")).await.expect("written");
    }
    // All have everything before two are lost for good.
    for member in &cluster.members {
        assert_eq!(member.connect().await.range(prefix("k")).await.expect("read").count, 50);
    }
    cluster.members.iter_mut().for_each(Process::kill);
    let initial = cluster.initial();
    cluster.members[1].start(&initial, "new", &["--force-new-cluster"]);
    cluster.members[1].ready(2).await;
    let survivor = cluster.members[1].connect().await;
    assert_eq!(survivor.range(prefix("k")).await.expect("read").count, 50);
    survivor.put(put("after", "1")).await.expect("it writes alone");
    let list = survivor.member_list(pb::MemberListRequest { linearizable: true }).await.expect("members");
    let names: Vec<_> = list.members.iter().map(|member| member.name.clone()).collect();
    assert_eq!(names, ["m2"]);
    // And it stays so without the flag.
    cluster.members[1].kill();
    cluster.members[1].start(&initial, "new", &[]);
    cluster.members[1].ready(3).await;
    assert_eq!(value(&survivor, "after").await.expect("read"), Some("1".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_leader_is_followed_at_once() {
    // Without a hand-over the others would wait this long; a loaded machine needs less.
    let mut cluster =
        Cluster::start(binary(), 3, &["--election-timeout=20000", "--heartbeat-interval=100"]).await;
    let leader = cluster.leader().await;
    let other = cluster.members[(leader + 1) % 3].connect().await;
    let before = other.status(pb::StatusRequest {}).await.expect("status");
    let (member, begin) = (&mut cluster.members[leader], Instant::now());
    let (moved, stopped) = std::thread::scope(|scope| {
        let stopping = scope.spawn(|| member.terminate());
        let moved = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(eventually("another leads", || async {
                let now = other.status(pb::StatusRequest {}).await.ok()?;
                let moved =
                    now.raft_term > before.raft_term && now.leader != before.leader && now.leader != 0;
                moved.then(|| begin.elapsed())
            }))
        });
        (moved, stopping.join().expect("no panic"))
    });
    assert_eq!(stopped.signal(), Some(15));
    eprintln!("leadership moved within {moved:?}");
    assert!(moved < Duration::from_secs(10), "{moved:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn learners_are_limited_and_a_removed_member_stops() {
    let mut cluster = Cluster::start(binary(), 1, &["--max-learners=2"]).await;
    let url = cluster.members[0].client.clone();
    let mut client = ClusterClient::new(channel(&url));
    let peers: Vec<String> =
        (0..3).map(|_| format!("http://127.0.0.1:{}", keelson_etcd_tests::free_port())).collect();
    let add = |peer: &str| pb::MemberAddRequest { peer_ur_ls: vec![peer.to_owned()], is_learner: true };
    let first = client.member_add(add(&peers[0])).await.expect("a learner").into_inner();
    client.member_add(add(&peers[1])).await.expect("a second learner");
    let refused = client.member_add(add(&peers[2])).await.expect_err("a third");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::FailedPrecondition, "etcdserver: too many learner members in cluster")
    );
    let id = first.member.expect("the new member").id;
    let promoted = client.member_promote(pb::MemberPromoteRequest { id }).await.expect_err("not started");
    assert_eq!(
        promoted.message(),
        "etcdserver: can only promote a learner member which is in sync with leader"
    );
    let mut learner = Process::new(binary(), cluster.folder.path(), "learner");
    learner.peer = peers[0].clone();
    let initial = format!("{},learner={}", cluster.initial(), peers[0]);
    learner.start(&initial, "existing", &[]);
    learner.ready(1).await;
    client.member_remove(pb::MemberRemoveRequest { id }).await.expect("removed");
    eventually("the removed member stops", || async {
        learner.log().contains("permanently removed from the cluster").then_some(())
    })
    .await;
    let gone = client.member_remove(pb::MemberRemoveRequest { id }).await.expect_err("gone already");
    assert_eq!((gone.code(), gone.message()), (Code::NotFound, "etcdserver: member not found"));
    cluster.members.push(learner);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_s_peer_urls_are_updated() {
    let cluster = Cluster::start(binary(), 1, &[]).await;
    let url = &cluster.members[0].client;
    let mut client = ClusterClient::new(channel(url));
    let list = async |client: &mut ClusterClient<Channel>| {
        let list = client.member_list(pb::MemberListRequest { linearizable: true }).await.expect("members");
        list.into_inner().members
    };
    let before = list(&mut client).await;
    let id = before[0].id;
    let update = |id, url: &str| pb::MemberUpdateRequest { id, peer_ur_ls: vec![url.to_owned()] };
    let bad = client.member_update(update(id, "nonsense")).await.expect_err("no URL");
    assert_eq!(bad.message(), "etcdserver: given member URLs are invalid");
    let unknown = client.member_update(update(7, "http://127.0.0.1:3")).await.expect_err("nobody");
    assert_eq!((unknown.code(), unknown.message()), (Code::NotFound, "etcdserver: member not found"));
    let updated = client.member_update(update(id, "http://127.0.0.1:3")).await.expect("updated");
    assert_eq!(updated.get_ref().members[0].peer_ur_ls, ["http://127.0.0.1:3"]);
    assert_eq!(list(&mut client).await[0].peer_ur_ls, ["http://127.0.0.1:3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_s_body_is_bounded() {
    let cluster = Cluster::start(binary(), 1, &[]).await;
    let member = &cluster.members[0];
    let status = member.connect().await.status(pb::StatusRequest {}).await.expect("status");
    let header = status.header.expect("a header");
    let headers = [
        ("x-keelson-cluster".to_owned(), header.cluster_id.to_string()),
        ("x-keelson-to".to_owned(), header.member_id.to_string()),
    ];
    let address = member.peer.strip_prefix("http://").expect("a plain URL");
    for (path, size) in [("/members/hashkv", 1000), ("/raft/message", (64 << 20) + 1)] {
        let answer = http::request(address, "POST", path, &headers, vec![0; size]).await;
        // Refused, or the connection is closed on whoever goes on sending.
        if let Ok(answer) = answer {
            assert_eq!(answer.status, 400, "{path}: {}", answer.text());
            assert!(answer.text().contains("length limit exceeded"), "{path}: {}", answer.text());
        }
    }
    let strange = http::request(address, "POST", "/raft/message", &[], "x").await.expect("an answer");
    assert_eq!(strange.status, 412, "{}", strange.text());
    let alive = member.connect().await.range(get("k")).await;
    assert!(alive.is_ok(), "{alive:?}");
}

/// A request that wants no answer without a leader.
fn led<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("hasleader", "true".parse().expect("metadata"));
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_a_leader_is_refused_without_one() {
    use keelson_store_proto::etcdserverpb::kv_client::KvClient;
    use keelson_store_proto::etcdserverpb::lease_client::LeaseClient;
    use keelson_store_proto::etcdserverpb::watch_client::WatchClient;
    use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
    let mut cluster = Cluster::start(binary(), 3, &[]).await;
    let url = cluster.members[0].client.clone();
    let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let creates = tokio_stream::StreamExt::chain(tokio_stream::once(create), tokio_stream::pending());
    let mut watch = WatchClient::new(channel(&url)).watch(led(creates)).await.expect("opened").into_inner();
    assert!(watch.message().await.expect("fine").expect("an answer").created);
    let mut kept = LeaseClient::new(channel(&url))
        .lease_keep_alive(led(tokio_stream::pending()))
        .await
        .expect("opened")
        .into_inner();
    cluster.members[1].kill();
    cluster.members[2].kill();
    let no_leader =
        |status: &Status| (status.code(), status.message()) == (Code::Unavailable, "etcdserver: no leader");
    let local = pb::RangeRequest { serializable: true, ..get("k") };
    let mut kv = KvClient::new(channel(&url));
    eventually("a range is refused", || async {
        let mut kv = kv.clone();
        kv.range(led(local.clone())).await.err().filter(no_leader)
    })
    .await;
    kv.range(local).await.expect("who does not ask for a leader is served");
    let ended = watch.message().await.expect_err("the watch ends");
    assert!(no_leader(&ended), "{ended:?}");
    let ended = kept.message().await.expect_err("the keep-alive ends");
    assert!(no_leader(&ended), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_s_version_must_be_text() {
    use keelson_store_proto::etcdserverpb::kv_client::KvClient;
    let cluster = Cluster::start(binary(), 1, &[]).await;
    let mut kv = KvClient::new(channel(&cluster.members[0].client));
    for (version, fine) in [(&b"3.7"[..], true), (&[0xff, 0xfe][..], false)] {
        let mut request = tonic::Request::new(get("k"));
        let value = tonic::metadata::MetadataValue::try_from(version).expect("bytes of a header");
        request.metadata_mut().insert("client-api-version", value);
        match kv.range(request).await {
            Ok(_) => assert!(fine),
            Err(refused) => {
                assert!(!fine, "{refused:?}");
                assert_eq!(
                    (refused.code(), refused.message()),
                    (Code::InvalidArgument, "etcdserver: invalid client api version")
                );
            }
        }
    }
}
