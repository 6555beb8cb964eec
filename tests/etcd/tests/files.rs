//! etcd's files both ways: its snapshots and data directories taken over, ours taken over by it. With recorded files, and
//! with etcd's own programs where `ETCD`, `ETCDCTL` and `ETCDUTL` name them; without either, a notice.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_etcd_tests::{Process, eventually, free_port, get, put, value};
use keelson_store_proto::client::{Etcd, Remote};
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::lease_client::LeaseClient;
use keelson_store_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use serde_json::Value;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_member"))
}

/// The folder of recorded files; `None`, with a notice, where it is not.
fn recordings() -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/etcd-corpus/files");
    if folder.exists() {
        return Some(folder);
    }
    println!("notice: {} is not there; skipped", folder.display());
    None
}

/// etcd's own programs: etcd, etcdctl, etcdutl.
fn originals() -> Option<[PathBuf; 3]> {
    let program = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists());
    match (program("ETCD"), program("ETCDCTL"), program("ETCDUTL")) {
        (Some(etcd), Some(etcdctl), Some(etcdutl)) => Some([etcd, etcdctl, etcdutl]),
        _ => {
            println!("notice: set ETCD, ETCDCTL and ETCDUTL to etcd's own programs; skipped");
            None
        }
    }
}

fn unpacked(file: &Path) -> Vec<u8> {
    let mut content = Vec::new();
    let packed = std::fs::File::open(file).expect("a recording");
    flate2::read::GzDecoder::new(packed).read_to_end(&mut content).expect("unpacked");
    content
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&unpacked(file)).expect("JSON")
}

fn run(program: &Path, args: &[&str]) -> Output {
    Command::new(program).args(args).env("ETCDCTL_API", "3").output().expect("it runs")
}

/// Runs to success and answers what it printed.
fn done(program: &Path, args: &[&str]) -> String {
    let output = run(program, args);
    assert!(
        output.status.success(),
        "{} {args:?}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

fn etcdutl(args: &[&str]) -> Output {
    let mut all = vec!["etcdutl"];
    all.extend(args);
    run(binary(), &all)
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| value.as_str().unwrap_or("0").parse().expect("a number"))
}

fn everything(revision: i64) -> pb::RangeRequest {
    pb::RangeRequest { range_end: b"\0"[..].into(), revision, ..get("\0") }
}

/// Compares what a member serves with what the recording says.
async fn serves(endpoint: &str, expected: &Value) {
    let client = Remote::connect(&[endpoint.to_owned()], None).await.expect("a good URL");
    let found = client.range(everything(0)).await.expect("a range");
    let header = found.header.expect("a header");
    assert_eq!(header.revision, number(&expected["revision"]));
    let kvs: Vec<_> = found
        .kvs
        .iter()
        .map(|kv| {
            (kv.key.to_vec(), kv.create_revision, kv.mod_revision, kv.version, kv.value.to_vec(), kv.lease)
        })
        .collect();
    let bytes = |value: &Value| STANDARD.decode(value.as_str().unwrap_or_default()).expect("base64");
    let wanted: Vec<_> = expected["kvs"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|kv| {
            let of = |name: &str| number(&kv[name]);
            (
                bytes(&kv["key"]),
                of("create_revision"),
                of("mod_revision"),
                of("version"),
                bytes(&kv["value"]),
                of("lease"),
            )
        })
        .collect();
    assert_eq!(kvs, wanted);
    for (revision, keys) in expected["keys_at_revision"].as_object().expect("an object") {
        let found = client.range(everything(revision.parse().expect("a number"))).await.expect("a range");
        assert_eq!(found.kvs.len(), keys.as_array().expect("a list").len(), "at {revision}");
    }
    let compacted = client.range(everything(number(&expected["compact_revision"]) - 1)).await;
    assert_eq!(
        compacted.expect_err("refused").message(),
        "etcdserver: mvcc: required revision has been compacted"
    );
    for lease in expected["leases"].as_array().expect("a list") {
        let found = time_to_live(endpoint, number(&lease["ID"])).await;
        assert_eq!(found.granted_ttl, number(&lease["grantedTTL"]));
        assert!(found.ttl > 0 && found.ttl <= found.granted_ttl);
        assert_eq!(found.keys.len(), lease["keys"].as_array().map_or(0, Vec::len));
    }
}

async fn time_to_live(endpoint: &str, id: i64) -> pb::LeaseTimeToLiveResponse {
    let mut client = LeaseClient::connect(endpoint.to_owned()).await.expect("connected");
    let request = pb::LeaseTimeToLiveRequest { id, keys: true };
    client.lease_time_to_live(request).await.expect("an answer").into_inner()
}

async fn hash(endpoint: &str, revision: i64) -> (u32, i64) {
    let mut client = MaintenanceClient::connect(endpoint.to_owned()).await.expect("connected");
    let answer = client.hash_kv(pb::HashKvRequest { revision }).await.expect("a hash").into_inner();
    (answer.hash, answer.compact_revision)
}

/// A member on a data directory that somebody else made.
async fn started_on(folder: &Path, data_dir: &Path) -> Process {
    let mut member = Process::new(binary(), folder, "m0");
    member.data_dir = data_dir.to_owned();
    let initial = format!("m0={}", member.peer);
    member.start(&initial, "new", &[]);
    member.ready(1).await;
    member
}

fn unpack_directory(recordings: &Path, name: &str, into: &Path) {
    std::fs::create_dir_all(into).expect("a folder");
    let archive = recordings.join(format!("{name}.tar.gz"));
    let unpacked =
        Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(into).status().expect("tar runs");
    assert!(unpacked.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_directories_of_etcd_are_imported_at_the_first_start() {
    let Some(recordings) = recordings() else { return };
    for (name, expected) in [
        ("datadir-3.7.1-killed", "datadir-3.7.1-killed"),
        ("datadir-3.7.1-clean", "snapshot-3.7.1"),
        ("datadir-3.5.1-clean", "snapshot-3.5.1"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let data_dir = folder.path().join("data");
        unpack_directory(&recordings, name, &data_dir);
        let original = std::fs::read(data_dir.join("member/snap/db")).expect("etcd's database");
        let expected = json(&recordings.join(format!("{expected}.expected.json.gz")));
        let mut member = started_on(folder.path(), &data_dir).await;
        let client = member.connect().await;
        serves(&member.client, &expected).await;
        let header = client.range(get("x")).await.expect("a range").header.expect("a header");
        let id = expected["members"][0]["ID"].as_str().expect("an id");
        assert_eq!(header.member_id.to_string(), id, "it is the member it was");
        assert_eq!(header.cluster_id.to_string(), expected["cluster_id"].to_string().trim_matches('"'));
        if let Some(hashes) = expected["hashkv"].as_object() {
            for (revision, told) in hashes {
                // A hash that etcd kept from the compaction itself is another than the one it would compute.
                if number(&told["compact_revision"]) > 0 {
                    let found = hash(&member.client, revision.parse().expect("a number")).await;
                    assert_eq!(i64::from(found.0), number(&told["hash"]), "{name} at {revision}");
                }
            }
        }
        let kept = std::fs::read(data_dir.join("member.etcd/snap/db")).expect("moved aside");
        assert!(kept == original, "etcd's own files are untouched");
        member.kill();
        let initial = format!("m0={}", member.peer);
        member.start(&initial, "new", &[]);
        member.ready(2).await;
        serves(&member.client, &expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_was_interrupted_starts_over_or_finishes() {
    let Some(recordings) = recordings() else { return };
    let expected = json(&recordings.join("datadir-3.7.1-killed.expected.json.gz"));
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data");
    unpack_directory(&recordings, "datadir-3.7.1-killed", &data_dir);
    // What a crash while building leaves: a folder without an identity.
    let building = data_dir.join("member.importing");
    std::fs::create_dir_all(building.join("snap/db")).expect("a leftover");
    std::fs::write(building.join("snap/db/CURRENT"), b"half").expect("a leftover");
    let mut member = started_on(folder.path(), &data_dir).await;
    serves(&member.client, &expected).await;
    assert!(!building.exists());
    member.kill();
    // What a crash between the two moves leaves.
    std::fs::rename(data_dir.join("member"), &building).expect("renamed");
    let initial = format!("m0={}", member.peer);
    member.start(&initial, "new", &[]);
    member.ready(2).await;
    serves(&member.client, &expected).await;
}

#[test]
fn what_cannot_be_imported_is_refused_and_left_alone() {
    let Some(recordings) = recordings() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data");
    unpack_directory(&recordings, "datadir-3.7.1-killed", &data_dir);
    let start = || {
        let peer = format!("http://127.0.0.1:{}", free_port());
        let client = format!("http://127.0.0.1:{}", free_port());
        let output = Command::new(binary())
            .arg(format!("--data-dir={}", data_dir.display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"))
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        assert!(!data_dir.join("member.etcd").exists());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let database = data_dir.join("member/snap/db");
    let running = std::fs::File::open(&database).expect("etcd's database");
    running.lock().expect("locked as etcd does");
    assert!(start().contains("in use by a running etcd"));
    drop(running);
    let wal = data_dir.join("member/wal");
    std::fs::rename(&wal, folder.path().join("elsewhere")).expect("renamed");
    assert!(start().contains("--wal-dir"));
    std::fs::rename(folder.path().join("elsewhere"), &wal).expect("renamed");
    let whole = std::fs::read(&database).expect("readable");
    std::fs::write(&database, &whole[..40_000]).expect("written");
    assert!(start().contains("the file is shorter than its pages"));
    std::fs::write(&database, b"not a database").expect("written");
    assert!(start().contains("invalid database"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_etcdutl_restores_snapshots_of_etcd() {
    let Some(recordings) = recordings() else { return };
    for name in ["snapshot-3.7.1", "snapshot-3.5.1"] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("s.db");
        std::fs::write(&file, unpacked(&recordings.join(format!("{name}.db.gz")))).expect("written");
        let expected = json(&recordings.join(format!("{name}.expected.json.gz")));
        let mut members: Vec<Process> =
            (0..3).map(|i| Process::new(binary(), folder.path(), &format!("m{i}"))).collect();
        let pairs: Vec<String> = members.iter().map(|m| format!("{}={}", m.name, m.peer)).collect();
        let initial = pairs.join(",");
        for member in &members {
            let restored = etcdutl(&[
                "snapshot",
                "restore",
                &file.display().to_string(),
                "--name",
                &member.name,
                "--data-dir",
                &member.data_dir.display().to_string(),
                "--initial-cluster",
                &initial,
                "--initial-cluster-token=test",
                "--initial-advertise-peer-urls",
                &member.peer,
            ]);
            let told = String::from_utf8_lossy(&restored.stderr).into_owned();
            assert!(restored.status.success(), "{told}");
            assert!(told.contains("\trestored snapshot\t"), "{told}");
        }
        for member in &mut members {
            member.start(&initial, "new", &[]);
        }
        for member in &members {
            member.ready(1).await;
            serves(&member.client, &expected).await;
        }
        let client = members[1].connect().await;
        let revision = number(&expected["revision"]);
        // A snapshot may hold an alarm; what shrinks works all the same.
        let delete = pb::DeleteRangeRequest { key: expected_key(&expected), ..Default::default() };
        let answer = client.delete_range(delete).await.expect("deleted");
        assert_eq!(answer.header.expect("a header").revision, revision + 1);
        assert_eq!(hash(&members[0].client, revision).await, hash(&members[2].client, revision).await);
    }
}

fn expected_key(expected: &Value) -> bytes::Bytes {
    STANDARD.decode(expected["kvs"][0]["key"].as_str().expect("text")).expect("base64").into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raised_revision_makes_watchers_read_again() {
    let Some(recordings) = recordings() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("s.db");
    std::fs::write(&file, unpacked(&recordings.join("snapshot-3.7.1.db.gz"))).expect("written");
    let mut member = Process::new(binary(), folder.path(), "m0");
    let initial = format!("m0={}", member.peer);
    let restored = etcdutl(&[
        "snapshot",
        "restore",
        &file.display().to_string(),
        "--name=m0",
        "--data-dir",
        &member.data_dir.display().to_string(),
        "--initial-cluster",
        &initial,
        "--initial-advertise-peer-urls",
        &member.peer,
        "--bump-revision=1000000",
        "--mark-compacted",
    ]);
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    member.start(&initial, "new", &[]);
    member.ready(1).await;
    let client = member.connect().await;
    let found = client.range(everything(0)).await.expect("a range");
    assert_eq!(found.header.expect("a header").revision, 1_000_772);
    assert_eq!(found.kvs.len(), 497);
    let old = client.range(everything(772)).await.expect_err("compacted");
    assert_eq!(old.message(), "etcdserver: mvcc: required revision has been compacted");
}

#[test]
fn etcdutl_answers_as_etcds() {
    let Some(recordings) = recordings() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("s.db").display().to_string();
    std::fs::write(&file, unpacked(&recordings.join("snapshot-3.7.1.db.gz"))).expect("written");
    let expected = json(&recordings.join("snapshot-3.7.1.expected.json.gz"));
    for (form, text) in expected["snapshot_status_text"].as_object().expect("an object") {
        let output = etcdutl(&["snapshot", "status", &file, "-w", form]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), text.as_str().expect("text"), "{form}");
    }
    let status = etcdutl(&["snapshot", "status", &file, "--write-out=json"]).stdout;
    assert_eq!(serde_json::from_slice::<Value>(&status).expect("JSON"), expected["snapshot_status"]);
    for (revision, told) in expected["etcdutl_hashkv"].as_object().expect("an object") {
        let output = etcdutl(&["hashkv", &file, "--rev", revision, "-w", "json"]);
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).expect("JSON"), *told);
    }
    replay_tool_cases(&recordings, folder.path());
}

/// The recorded runs of etcdutl whose answer does not depend on that run's snapshot.
fn replay_tool_cases(recordings: &Path, scratch: &Path) {
    let text = std::fs::read_to_string(recordings.join("../etcdctl.jsonl")).expect("recordings");
    let mut compared = 0;
    for line in text.lines() {
        let sequence: Value = serde_json::from_str(line).expect("JSON");
        for step in sequence["steps"].as_array().expect("a list") {
            let argv: Vec<&str> = step["argv"]
                .as_array()
                .map(|a| a.iter().filter_map(Value::as_str).collect())
                .unwrap_or_default();
            // Restores of a damaged file, and of logs this tool reads in another order, are tested elsewhere.
            let depends = ["/s.db", "/r1"].iter().any(|name| argv.iter().any(|arg| arg.contains(name)));
            if argv.first() != Some(&"etcdutl") || depends {
                continue;
            }
            let there = scratch.display().to_string();
            let args: Vec<String> = argv[1..].iter().map(|arg| arg.replace("TMPDIR", &there)).collect();
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let output = etcdutl(&args);
            assert_eq!(
                i64::from(output.status.code().unwrap_or(-1)),
                number(&step["res"]["exit"]),
                "{argv:?}"
            );
            if step["exitonly"] != Value::Bool(true) {
                // Lines of log name places in other sources.
                let errors = |text: &str| {
                    let kept = text.lines().filter(|line| !line.contains("\tinfo\t"));
                    kept.map(|line| line.replace(&there, "TMPDIR")).collect::<Vec<_>>()
                };
                let told = step["res"]["stderr"].as_str().unwrap_or_default();
                assert_eq!(errors(&String::from_utf8_lossy(&output.stderr)), errors(told), "{argv:?}");
                let shown = step["res"]["stdout"].as_str().unwrap_or_default();
                assert_eq!(String::from_utf8_lossy(&output.stdout), shown, "{argv:?}");
            }
            compared += 1;
        }
    }
    assert!(compared >= 8, "only {compared} recorded runs were compared");
}

#[test]
fn damaged_snapshots_are_refused() {
    let Some(recordings) = recordings() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("s.db").display().to_string();
    let whole = unpacked(&recordings.join("snapshot-3.7.1.db.gz"));
    let target = folder.path().join("d").display().to_string();
    let restore = |more: &[&str]| {
        let mut args = vec!["snapshot", "restore", &file, "--data-dir", &target];
        args.extend(more);
        let output = etcdutl(&args);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let mut changed = whole.clone();
    changed[20_000] ^= 1;
    std::fs::write(&file, &changed).expect("written");
    let (code, told) = restore(&[]);
    assert_eq!(code, Some(1));
    assert!(told.contains("Error: expected sha256 ["), "{told}");
    std::fs::write(&file, &whole[..whole.len() - 32]).expect("written");
    let (code, told) = restore(&[]);
    assert_eq!(code, Some(1));
    assert!(told.contains("Error: snapshot missing hash but --skip-hash-check=false"), "{told}");
    assert_eq!(restore(&["--skip-hash-check"]).0, Some(0), "a copy of a database has no hash");
    assert_eq!(restore(&["--skip-hash-check"]).0, Some(1), "never over data that is there");
}

#[test]
fn defrag_and_migrate_rewrite_etcds_database() {
    let Some(recordings) = recordings() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data");
    unpack_directory(&recordings, "datadir-3.7.1-clean", &data_dir);
    let database = data_dir.join("member/snap/db").display().to_string();
    let dir = data_dir.display().to_string();
    let status = || -> Value {
        let output = etcdutl(&["snapshot", "status", &database, "-w", "json"]);
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let length = || std::fs::metadata(&database).expect("etcd's database").len();
    let (before, length_before) = (status(), length());
    let defragmented = etcdutl(&["defrag", "--data-dir", &dir]);
    assert!(defragmented.status.success(), "{}", String::from_utf8_lossy(&defragmented.stderr));
    let after = status();
    assert_eq!(after["hash"], before["hash"], "the same content");
    assert!(length() < length_before, "free pages are gone");
    assert!(
        etcdutl(&["migrate", "--data-dir", &dir, "--target-version=3.7"]).status.success(),
        "nothing to do"
    );
    assert_eq!(status(), after);
    let migrated = etcdutl(&["migrate", "--data-dir", &dir, "--target-version=3.5", "--force"]);
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    assert_eq!(status()["version"], "");
    assert!(etcdutl(&["migrate", "--data-dir", &dir, "--target-version=3.6"]).status.success());
    assert_eq!(status()["version"], "3.6.0");
}

/// A real etcd, alone.
struct Original {
    child: std::process::Child,
    client: String,
}

impl Original {
    async fn start(etcd: &Path, data_dir: &Path, more: &[&str]) -> Original {
        let client = format!("http://127.0.0.1:{}", free_port());
        let peer = format!("http://127.0.0.1:{}", free_port());
        Original::start_at(etcd, data_dir, &client, &peer, more).await
    }

    async fn start_at(etcd: &Path, data_dir: &Path, client: &str, peer: &str, more: &[&str]) -> Original {
        let log = std::fs::File::create(data_dir.with_extension("log")).expect("a log");
        let child = Command::new(etcd)
            .args(["--name=default", "--log-level=warn"])
            .arg(format!("--data-dir={}", data_dir.display()))
            .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .arg(format!("--initial-cluster=default={peer}"))
            .args(more)
            .stderr(log)
            .spawn()
            .expect("etcd starts");
        let original = Original { child, client: client.to_owned() };
        eventually("etcd answers", || async {
            let client = Remote::connect(std::slice::from_ref(&original.client), None).await.ok()?;
            client.range(get("x")).await.ok().map(|_| ())
        })
        .await;
        original
    }

    async fn connect(&self) -> Remote {
        Remote::connect(std::slice::from_ref(&self.client), None).await.expect("a good URL")
    }
}

impl Drop for Original {
    fn drop(&mut self) {
        // It may be gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes of every kind a store keeps: versions, tombstones, transactions, leases, a compaction, large values.
async fn fill(client: &Remote) {
    let lease = client.lease_grant(pb::LeaseGrantRequest { id: 4711, ttl: 5000 }).await.expect("granted").id;
    for i in 0..300 {
        client.put(put(&format!("key/{i:04}"), &format!("value {i}"))).await.expect("put");
    }
    for i in (0..300).step_by(3) {
        let key = format!("key/{i:04}").into();
        client.delete_range(pb::DeleteRangeRequest { key, ..Default::default() }).await.expect("deleted");
    }
    for i in (0..300).step_by(5) {
        let leased = pb::PutRequest { lease, ..put(&format!("key/{i:04}"), "second") };
        client.put(leased).await.expect("put");
    }
    client.put(put("large", &"x".repeat(100_000))).await.expect("put");
    let op =
        |key: &str| pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put(key, "in one"))) };
    let txn = pb::TxnRequest { success: vec![op("txn/a"), op("txn/b"), op("txn/c")], ..Default::default() };
    client.txn(txn).await.expect("a txn");
    client.compact(pb::CompactionRequest { revision: 350, physical: true }).await.expect("compacted");
    client.put(put("last", "one")).await.expect("put");
}

/// Both serve the same at every revision still kept, to the same hash.
async fn same(one: &str, other: &str) {
    let connect = |endpoint: &str| {
        let endpoint = endpoint.to_owned();
        async move { Remote::connect(&[endpoint], None).await.expect("a good URL") }
    };
    let (first, second) = (connect(one).await, connect(other).await);
    let now = first.range(everything(0)).await.expect("a range");
    assert_eq!(now.kvs, second.range(everything(0)).await.expect("a range").kvs);
    let revision = now.header.expect("a header").revision;
    for at in [350, 400, revision] {
        let (a, b) = (first.range(everything(at)).await, second.range(everything(at)).await);
        assert_eq!(a.expect("a range").kvs, b.expect("a range").kvs, "at {at}");
    }
    let (mut a, mut b) = (time_to_live(one, 4711).await.keys, time_to_live(other, 4711).await.keys);
    a.sort();
    b.sort();
    assert_eq!(a, b);
    assert_eq!(hash(one, revision).await, hash(other, revision).await, "HashKV at {revision}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_restores_and_serves_our_snapshots() {
    let Some([etcd, etcdctl, etcdutl_of_etcd]) = originals() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let mut member = Process::new(binary(), folder.path(), "m0");
    let initial = format!("m0={}", member.peer);
    member.start(&initial, "new", &[]);
    member.ready(1).await;
    fill(&member.connect().await).await;
    let file = folder.path().join("ours.db").display().to_string();
    done(&etcdctl, &["--endpoints", &member.client, "snapshot", "save", &file]);
    let told = done(&etcdutl_of_etcd, &["snapshot", "status", &file, "-w", "json"]);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let ours: Value =
        serde_json::from_slice(&etcdutl(&["snapshot", "status", &file, "-w", "json"]).stdout).expect("JSON");
    assert_eq!((&told["hash"], &told["revision"]), (&ours["hash"], &ours["revision"]));
    let data_dir = folder.path().join("etcd");
    done(&etcdutl_of_etcd, &["snapshot", "restore", &file, "--data-dir", &data_dir.display().to_string()]);
    let original = Original::start(&etcd, &data_dir, &["--initial-cluster-state=existing"]).await;
    same(&member.client, &original.client).await;
    original.connect().await.put(put("goes", "on")).await.expect("etcd writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_etcd_is_imported_with_everything_it_acknowledged() {
    let Some([etcd, ..]) = originals() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data");
    // Its database is written once an hour: all of it is in the log only.
    let lazy = ["--backend-batch-interval=1h", "--backend-batch-limit=1000000"];
    let original = Original::start(&etcd, &data_dir, &lazy).await;
    let client = original.connect().await;
    fill(&client).await;
    for i in 0..200 {
        client.put(put(&format!("tail/{i}"), "acknowledged")).await.expect("put");
    }
    let before = client.range(everything(0)).await.expect("a range");
    let revision = before.header.expect("a header").revision;
    let sum = hash(&original.client, revision).await;
    drop(original);
    let member = started_on(folder.path(), &data_dir).await;
    assert!(member.log().contains("imported etcd's data directory"), "{}", member.log());
    let after = member.connect().await.range(everything(0)).await.expect("a range");
    assert_eq!(after.kvs, before.kvs);
    assert_eq!(after.header.expect("a header").revision, revision);
    assert_eq!(hash(&member.client, revision).await, sum);
    assert_eq!(
        value(&member.connect().await, "tail/199").await.expect("a read").as_deref(),
        Some("acknowledged")
    );
}

/// The blocks of the migration guide with a label, as one script each.
fn guide(label: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/migrating-from-etcd.md");
    let text = std::fs::read_to_string(path).expect("the guide");
    let mut script = String::new();
    let mut inside = false;
    for line in text.lines() {
        match line.strip_prefix("```") {
            Some(opening) if !inside => inside = opening == format!("sh {label}"),
            Some(_) => inside = false,
            None if inside => script.push_str(&format!("{line}\n")),
            None => {}
        }
    }
    assert!(!script.is_empty(), "no block {label:?} in the guide");
    script
}

/// What the guide's commands find on their PATH.
const PROGRAMS: &[(&str, &str)] = &[
    ("keelson", r#"exec "$MEMBER" "$@""#),
    ("etcd", r#"exec "$ETCD" "$@""#),
    ("etcdctl", r#"ETCDCTL_API=3 exec "$ETCDCTL" "$@""#),
    ("etcdutl", r#"exec "$ETCDUTL" "$@""#),
    ("wait-for", r#"until etcdctl --endpoints "$1" get x > /dev/null 2>&1; do sleep 0.1; done"#),
    ("stop-etcd", r#"kill "$ETCD_PID"; while kill -0 "$ETCD_PID" 2> /dev/null; do sleep 0.1; done"#),
];

/// Programs left in the background end with the script.
const AROUND: &str = r#"set -eu
trap 'for job in $(jobs -p); do kill "$job" || true; done' EXIT
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_migration_guide_works_literally() {
    let Some([etcd, etcdctl, etcdutl_of_etcd]) = originals() else { return };
    for way in [&["in-place"][..], &["snapshot", "back"], &["mirror"]] {
        let folder = tempfile::tempdir().expect("a folder");
        let url = || format!("http://127.0.0.1:{}", free_port());
        let (old, peer, new, new_peer) = (url(), url(), url(), url());
        let data = folder.path().join("data");
        let original = Original::start_at(&etcd, &data, &old, &peer, &[]).await;
        original.connect().await.put(put("greeting", "hello")).await.expect("put");
        let _beside = if way == ["mirror"] {
            let mut member = Process::new(binary(), folder.path(), "m0");
            (member.client, member.peer) = (new.clone(), new_peer.clone());
            let initial = format!("m0={new_peer}");
            member.start(&initial, "new", &[]);
            member.ready(1).await;
            Some(member)
        } else {
            None
        };
        let programs = folder.path().join("bin");
        std::fs::create_dir(&programs).expect("a folder");
        for (name, body) in PROGRAMS {
            use std::os::unix::fs::PermissionsExt as _;
            let path = programs.join(name);
            std::fs::write(&path, format!("#!/bin/bash\n{body}\n")).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        }
        let script: String = way.iter().map(|label| guide(label)).collect();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let mut bash = tokio::process::Command::new("bash");
        bash.arg("-c").arg(format!("{AROUND}{script}")).current_dir(folder.path()).kill_on_drop(true);
        bash.env("PATH", path).env("MEMBER", binary());
        bash.env("ETCD", &etcd).env("ETCDCTL", &etcdctl).env("ETCDUTL", &etcdutl_of_etcd);
        bash.env("OLD", &old).env("PEER", &peer).env("DATA", &data);
        bash.env("ETCD_PID", original.child.id().to_string());
        bash.env("NEW", &new).env("NEW_PEER", &new_peer).env("NEW_DATA", folder.path().join("new"));
        bash.env("BACK_URL", url()).env("BACK_PEER", url()).env("BACK_DATA", folder.path().join("back"));
        let _kept = if way == ["mirror"] {
            Some(original)
        } else {
            // Whoever stops etcd waits until it is gone: it must be reaped.
            std::thread::spawn(move || {
                let mut original = original;
                original.child.wait()
            });
            None
        };
        let running = tokio::time::timeout(keelson_etcd_tests::DEADLINE * 3, bash.output());
        let output = running.await.expect("the guide ends in time").expect("bash runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{way:?}: {told}");
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let greetings = if way == ["mirror"] { 0 } else { way.len() };
        assert_eq!(shown.matches("greeting\nhello\n").count(), greetings, "{way:?}: {shown}\n{told}");
        if way == ["mirror"] {
            let client = Remote::connect(std::slice::from_ref(&new), None).await.expect("a good URL");
            assert_eq!(value(&client, "greeting").await.expect("a read").as_deref(), Some("hello"));
        }
    }
}
