//! Members as processes: killed, stopped, restarted, replaced. Nothing acknowledged is ever lost.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keelson_etcd_tests::{Cluster, Process, etcdctl, eventually, free_port, get, prefix, put, value};
use keelson_store_proto::client::{Etcd, Remote};
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::cluster_client::ClusterClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_member"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_after_the_leader_is_killed_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::start(binary(), 3, &[]).await;
    let leader = cluster.leader().await;
    let others: Vec<String> = cluster
        .endpoints()
        .into_iter()
        .enumerate()
        .filter(|(i, _)| *i != leader)
        .map(|(_, endpoint)| endpoint)
        .collect();
    let client = Remote::connect(&others, None).await.expect("good URLs");
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writer = {
        let (client, stop, acknowledged) = (client.clone(), stop.clone(), acknowledged.clone());
        tokio::spawn(async move {
            let mut written = Vec::new();
            for i in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                if client.put(put(&format!("k{i:06}"), &i.to_string())).await.is_ok() {
                    written.push(i);
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
            }
            written
        })
    };
    let progress = |more: usize| {
        let (acknowledged, from) = (acknowledged.clone(), acknowledged.load(Ordering::Relaxed));
        async move {
            eventually("more writes", || async {
                (acknowledged.load(Ordering::Relaxed) >= from + more).then_some(())
            })
            .await;
        }
    };
    progress(50).await;
    cluster.members[leader].kill();
    let killed = Instant::now();
    progress(50).await;
    assert!(killed.elapsed() < Duration::from_secs(30), "a new leader took {:?}", killed.elapsed());
    let initial = cluster.initial();
    cluster.members[leader].start(&initial, "new", &[]);
    cluster.members[leader].ready(2).await;
    progress(20).await;
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.expect("the writer ends");
    for member in &cluster.members {
        let answer = member.connect().await.range(prefix("k")).await.expect("a linearizable read");
        let found: std::collections::BTreeSet<_> = answer.kvs.iter().map(|kv| kv.value.to_vec()).collect();
        for i in &written {
            assert!(found.contains(i.to_string().as_bytes()), "{} lost write {i}", member.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_killed_at_once_come_back_with_everything() {
    let mut cluster =
        Cluster::start(binary(), 3, &["--snapshot-count=20", "--snapshot-catchup-entries=5"]).await;
    let client = Remote::connect(&cluster.endpoints(), None).await.expect("good URLs");
    for i in 0..100 {
        client.put(put(&format!("k{i:03}"), "v")).await.expect("written");
    }
    cluster.members.iter_mut().for_each(Process::kill);
    let initial = cluster.initial();
    for member in &mut cluster.members {
        member.start(&initial, "new", &["--snapshot-count=20", "--snapshot-catchup-entries=5"]);
    }
    for member in &cluster.members {
        member.ready(2).await;
        let answer = member.connect().await.range(prefix("k")).await.expect("read");
        let found: Vec<_> =
            answer.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect();
        let expected: Vec<_> = (0..100).map(|i| format!("k{i:03}")).collect();
        assert_eq!(found, expected, "{} at {:?}", member.name, answer.header);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_hands_over_first() {
    let mut cluster = Cluster::start(binary(), 3, &[]).await;
    let leader = cluster.leader().await;
    let other = (leader + 1) % 3;
    let client = cluster.members[other].connect().await;
    let before = client.status(pb::StatusRequest {}).await.expect("status");
    let start = Instant::now();
    let status = cluster.members[leader].terminate();
    // A clean stop ends with the signal itself, as etcd's does.
    assert_eq!(status.signal(), Some(15), "{status}; {}", cluster.members[leader].log());
    assert!(
        !cluster.members[leader].log().contains(r#""level":"error""#),
        "{}",
        cluster.members[leader].log()
    );
    let after = eventually("another leader", || async {
        let now = client.status(pb::StatusRequest {}).await.ok()?;
        (now.leader != before.leader && now.leader != 0).then_some(now)
    })
    .await;
    assert!(after.raft_term > before.raft_term);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    client.put(put("k", "v")).await.expect("written without the stopped member");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_added_catches_up_by_snapshot_votes_and_is_replaced_after_losing_its_disk() {
    let flags = &["--snapshot-count=50", "--snapshot-catchup-entries=10"];
    let mut cluster = Cluster::start(binary(), 1, flags).await;
    let first = cluster.members[0].connect().await;
    for i in 0..200 {
        first.put(put(&format!("k{i:03}"), &"x".repeat(1000))).await.expect("written");
    }
    for name in ["m2", "m3"] {
        let mut member = Process::new(binary(), cluster.folder.path(), name);
        add(&cluster.members[0].client, &member.peer).await;
        cluster.members.push(Process::new(binary(), cluster.folder.path(), "placeholder"));
        let place = cluster.members.len() - 1;
        std::mem::swap(&mut cluster.members[place], &mut member);
        let initial = cluster.initial();
        cluster.members[place].start(&initial, "existing", flags);
        cluster.members[place].ready(1).await;
        let answer = cluster.members[place].connect().await.range(prefix("k")).await.expect("read");
        assert_eq!(answer.count, 200, "{name} has everything");
    }
    all_vote(&cluster).await;
    // Its disk is lost: under its old identity it must not come back ...
    cluster.members[2].kill();
    std::fs::remove_dir_all(&cluster.members[2].data_dir).expect("wiped");
    let initial = cluster.initial();
    cluster.members[2].start(&initial, "existing", flags);
    eventually("the refusal", || async {
        cluster.members[2].log().contains("has already been bootstrapped").then_some(())
    })
    .await;
    cluster.members[2].kill();
    // ... but as a new member.
    let lost = member_by_name(&cluster.members[0].client, "m3").await;
    let mut cluster_client =
        ClusterClient::connect(cluster.members[0].client.clone()).await.expect("connected");
    cluster_client.member_remove(pb::MemberRemoveRequest { id: lost }).await.expect("removed");
    add(&cluster.members[0].client, &cluster.members[2].peer).await;
    cluster.members[2].start(&initial, "existing", flags);
    cluster.members[2].ready(2).await;
    all_vote(&cluster).await;
    let answer = cluster.members[2].connect().await.range(get("k199")).await.expect("read");
    assert_eq!(answer.count, 1);
    // It counts: the first member may go.
    cluster.members[0].kill();
    let rest = Remote::connect(&cluster.endpoints()[1..], None).await.expect("good URLs");
    rest.put(put("after", "v")).await.expect("written by the two that are left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_moves_to_another_peer_address_by_member_update() {
    let mut cluster = Cluster::start(binary(), 3, &[]).await;
    let mut client = ClusterClient::connect(cluster.members[0].client.clone()).await.expect("connected");
    let moved = member_by_name(&cluster.members[0].client, "m3").await;
    let update = |id: u64, urls: &[&str]| pb::MemberUpdateRequest {
        id,
        peer_ur_ls: urls.iter().map(|url| (*url).to_owned()).collect(),
    };
    // What can't be is refused, in etcd's words, and changes nothing.
    let taken = cluster.members[0].peer.clone();
    for (id, urls, code, message) in [
        (moved, &[][..], Code::InvalidArgument, "etcdserver: given member URLs are invalid"),
        (moved, &["nonsense"], Code::InvalidArgument, "etcdserver: given member URLs are invalid"),
        (moved, &[taken.as_str()], Code::FailedPrecondition, "etcdserver: Peer URLs already exists"),
        (1, &["http://127.0.0.1:1"], Code::NotFound, "etcdserver: member not found"),
    ] {
        let refused = client.member_update(update(id, urls)).await.expect_err("refused");
        assert_eq!((refused.code(), refused.message()), (code, message), "{urls:?}");
    }
    assert_eq!(peer_urls(&cluster, 1, moved).await, [cluster.members[2].peer.clone()]);
    // It stops, its address is changed, others write without it; where it now listens they find it again.
    cluster.members[2].terminate();
    let port = free_port();
    cluster.members[2].peer = format!("http://127.0.0.1:{port}");
    let new = cluster.members[2].peer.clone();
    let answer = client.member_update(update(moved, &[&new])).await.expect("updated").into_inner();
    let shown = answer.members.iter().find(|member| member.id == moved).expect("it is still a member");
    assert_eq!((shown.peer_ur_ls.as_slice(), shown.name.as_str()), (&[new.clone()][..], "m3"));
    assert_eq!(answer.members.len(), 3);
    let rest = Remote::connect(&cluster.endpoints()[..2], None).await.expect("good URLs");
    rest.put(put("while-away", "v")).await.expect("written by two");
    let initial = cluster.initial();
    cluster.members[2].start(&initial, "existing", &[]);
    cluster.members[2].ready(2).await;
    for i in 0..3 {
        assert_eq!(peer_urls(&cluster, i, moved).await, std::slice::from_ref(&new), "as member {i} shows it");
    }
    let itself = cluster.members[2].connect().await;
    let own = pb::RangeRequest { serializable: true, ..get("while-away") };
    eventually("the moved member has what it missed", || async {
        (itself.range(own.clone()).await.ok()?.count == 1).then_some(())
    })
    .await;
    // Its vote counts from there: another member may go.
    cluster.members[0].kill();
    let rest = Remote::connect(&cluster.endpoints()[1..], None).await.expect("good URLs");
    eventually("a write by the moved member and one other", || async {
        rest.put(put("after", "v")).await.ok()
    })
    .await;
}

/// A member's peer URLs as the cluster's i-th member shows them.
async fn peer_urls(cluster: &Cluster, i: usize, id: u64) -> Vec<String> {
    let client = cluster.members[i].connect().await;
    let members =
        client.member_list(pb::MemberListRequest { linearizable: true }).await.expect("listed").members;
    members.into_iter().find(|member| member.id == id).expect("a member").peer_ur_ls
}

async fn add(endpoint: &str, peer: &str) {
    let mut client = ClusterClient::connect(endpoint.to_owned()).await.expect("connected");
    let request = pb::MemberAddRequest { peer_ur_ls: vec![peer.to_owned()], is_learner: false };
    client.member_add(request).await.expect("added");
}

async fn member_by_name(endpoint: &str, name: &str) -> u64 {
    let client = Remote::connect(&[endpoint.to_owned()], None).await.expect("a good URL");
    let members =
        client.member_list(pb::MemberListRequest { linearizable: true }).await.expect("listed").members;
    members.iter().find(|member| member.name == name).expect("a member of that name").id
}

/// Waits until Raft counts all three as voters.
async fn all_vote(cluster: &Cluster) {
    eventually("three voters", || async {
        let text = http_get(&cluster.members[0].peer, "/members").await?;
        let (_, voters) = text.split_once("\"voters\":[")?;
        (voters.split(']').next()?.split(',').count() == 3).then_some(())
    })
    .await;
}

/// The whole answer to a GET, head included.
async fn http_get(url: &str, path: &str) -> Option<String> {
    let mut stream = tokio::net::TcpStream::connect(url.strip_prefix("http://")?).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    Some(text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_version_and_metrics_answer_as_etcd_does() {
    let cluster = Cluster::start(binary(), 1, &[]).await;
    let get = async |path: &str| http_get(&cluster.members[0].client, path).await.expect("an answer");
    let health = get("/health").await;
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    assert!(health.ends_with(r#"{"health":"true","reason":""}"#), "{health}");
    assert!(get("/health?serializable=true").await.starts_with("HTTP/1.1 200"));
    assert!(get("/livez").await.ends_with("\r\n\r\nok\n"));
    assert!(get("/readyz?verbose").await.contains("[+]linearizable_read ok\n"));
    assert!(get("/readyz/non_learner").await.starts_with("HTTP/1.1 200"));
    assert!(get("/readyz/nonsense").await.starts_with("HTTP/1.1 404"));
    let version = get("/version").await;
    assert!(
        version.ends_with(r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#),
        "{version}"
    );
    let metrics = get("/metrics").await;
    for line in
        ["etcd_server_has_leader 1", "etcd_server_is_leader 1", "etcd_disk_wal_fsync_duration_seconds_count"]
    {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_end_with_a_clear_message() {
    let cluster = Cluster::start(binary(), 1, &[]).await;
    let member = &cluster.members[0];
    let run = |args: &[&str]| {
        let output = Command::new(binary()).args(args).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = run(&["--no-such-flag"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("flag provided but not defined: -no-such-flag"), "{text}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let other = format!("--data-dir={}", folder.path().display());
    let peer = "http://127.0.0.1:0";
    let own = [
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:0",
        &format!("--initial-advertise-peer-urls={peer}"),
        &format!("--initial-cluster=default={peer}"),
    ];
    let taken = format!("--listen-client-urls={}", member.client);
    let (code, text) = run(&[&[other.as_str(), taken.as_str()], &own[..]].concat());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("bind: address already in use"), "{text}");
    let used = format!("--data-dir={}", member.data_dir.display());
    let (code, text) = run(&[&[used.as_str(), "--listen-client-urls=http://127.0.0.1:0"], &own[..]].concat());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("in use by another process"), "{text}");
    let version = Command::new(binary()).arg("--version").output().expect("it runs");
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("etcd Version: 3.7.1\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_drives_a_cluster() {
    let Some(etcdctl) = etcdctl() else {
        eprintln!("skipped: no etcdctl; set ETCDCTL to one");
        return;
    };
    let cluster = Cluster::start(binary(), 3, &[]).await;
    let endpoints = cluster.endpoints().join(",");
    let run = |args: &[&str]| {
        let output = Command::new(&etcdctl)
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &endpoints, "--command-timeout=30s"])
            .args(args)
            .output()
            .expect("etcdctl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    assert_eq!(run(&["put", "a", "1"]), "OK\n");
    assert_eq!(run(&["get", "a"]), "a\n1\n");
    assert_eq!(run(&["get", "--prefix", "--keys-only", "a"]), "a\n\n");
    assert_eq!(run(&["put", "a", "2", "--prev-kv"]), "OK\na\n1\n");
    assert_eq!(run(&["get", "a", "--rev=2", "--print-value-only"]), "1\n");
    let lease = run(&["lease", "grant", "60"]);
    let id = lease.split_whitespace().nth(1).expect("an id").to_owned();
    run(&["put", "leased", "x", &format!("--lease={id}")]);
    assert!(run(&["lease", "timetolive", &id, "--keys"]).contains("[leased]"));
    run(&["lease", "revoke", &id]);
    assert_eq!(run(&["get", "leased"]), "");
    let members = run(&["member", "list"]);
    assert_eq!(members.lines().count(), 3);
    let id = members.split(',').next().expect("an id").to_owned();
    let own = members.split(", ").nth(3).expect("peer URLs").to_owned();
    let updated = run(&["member", "update", &id, &format!("--peer-urls={own}")]);
    assert!(updated.starts_with(&format!("Member {id} updated in cluster")), "{updated}");
    assert_eq!(run(&["endpoint", "status"]).lines().count(), 3);
    run(&["endpoint", "health"]);
    assert_eq!(run(&["del", "a", "--prev-kv"]), "1\na\n2\n");
    run(&["compaction", "3"]);
    let snapshot = cluster.folder.path().join("snapshot.db");
    let one = Command::new(&etcdctl)
        .env("ETCDCTL_API", "3")
        .args([
            "--endpoints",
            &cluster.members[0].client,
            "snapshot",
            "save",
            &snapshot.display().to_string(),
        ])
        .output()
        .expect("etcdctl runs");
    assert!(one.status.success(), "{}", String::from_utf8_lossy(&one.stderr));
    let hashes = run(&["endpoint", "hashkv"]);
    let hashes: std::collections::BTreeSet<_> =
        hashes.lines().filter_map(|line| line.rsplit(' ').next()).collect();
    assert_eq!(hashes.len(), 1, "all members hash the same: {hashes:?}");
    let client = Remote::connect(&cluster.endpoints(), None).await.expect("good URLs");
    assert_eq!(value(&client, "a").await.expect("read"), None);
}
