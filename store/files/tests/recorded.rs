//! Files recorded from real etcds: read whole, taken into a store of ours, and written back.
//!
//! Skipped with a notice where the recordings are not at hand.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_store_core::restore::{self, Head};
use keelson_store_core::{KeyValue, MemoryBackend, RangeRequest, State, hash_kv, range};
use keelson_store_files::bolt::{Database, Writer};
use keelson_store_files::check;
use keelson_store_files::content::{self, ConfState, Content, ContentError, Origin};
use serde_json::Value;

/// A file of the recordings, unpacked; `None`, with a notice, without them.
fn recorded(name: &str) -> Option<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/etcd-corpus/files");
    let Ok(file) = std::fs::File::open(folder.join(name)) else {
        println!("notice: {} is not there; skipped", folder.join(name).display());
        return None;
    };
    let mut content = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut content).expect("unpacked");
    Some(content)
}

fn case(name: &str) -> Option<(Database<Vec<u8>>, Value)> {
    let file = recorded(&format!("{name}.db.gz"))?;
    let expected = recorded(&format!("{name}.expected.json.gz"))?;
    let database = Database::open(file).expect("a database");
    Some((database, serde_json::from_slice(&expected).expect("JSON")))
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| value.as_str().unwrap_or("0").parse().expect("a number"))
}

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap_or_default()).expect("base64")
}

/// A store of ours with the database's content.
fn taken(database: &Database<Vec<u8>>) -> (State, MemoryBackend) {
    let content = Content::read(database).expect("read");
    let mut backend = MemoryBackend::default();
    let mut revision = 0;
    content::changes::<_, ContentError>(database, |at, tombstone, kv| {
        revision = at.main;
        backend.write(&restore::change(at, tombstone, &kv));
        Ok(())
    })
    .expect("read");
    let mut derived = Vec::new();
    restore::indexes(&backend, &content.leases, &mut |write| derived.push(write));
    backend.write(&derived);
    let head = Head {
        applied: content.consistent_index + 1,
        revision,
        compact_revision: content.compact_revision(),
        scrubbed: content.finished_compaction,
        leases: content.leases,
        alarms: content.alarms,
        members: content.members,
        auth: content.auth,
    };
    backend.write(&restore::head(&head));
    (State::load(&backend).expect("loads"), backend)
}

fn all(revision: i64) -> RangeRequest {
    RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..RangeRequest::default() }
}

fn kvs(state: &State, backend: &MemoryBackend, revision: i64) -> Vec<KeyValue> {
    range(state, backend, &all(revision)).expect("a range").kvs
}

fn compare(name: &str) {
    let Some((database, expected)) = case(name) else { return };
    let (state, backend) = taken(&database);
    let violated = keelson_store_core::invariants::violated(&state, &backend);
    assert!(violated.is_empty(), "{:?}", violated.iter().map(|invariant| invariant.name).collect::<Vec<_>>());
    assert_eq!(state.revision(), number(&expected["revision"]));
    assert_eq!(state.compact_revision(), number(&expected["compact_revision"]));
    let wanted: Vec<KeyValue> = expected["kvs"].as_array().expect("a list").iter().map(kv).collect();
    assert_eq!(kvs(&state, &backend, 0), wanted);
    for (revision, keys) in expected["keys_at_revision"].as_object().expect("an object") {
        let found = kvs(&state, &backend, revision.parse().expect("a number"));
        let found: Vec<_> =
            found.into_iter().map(|kv| (kv.key.to_vec(), kv.mod_revision, kv.version)).collect();
        let keys = keys.as_array().expect("a list").iter();
        let keys: Vec<_> = keys.map(|key| (bytes(&key[0]), number(&key[1]), number(&key[2]))).collect();
        assert_eq!(found, keys, "at {revision}");
    }
    leases_and_auth(&state, &backend, &expected);
}

fn kv(value: &Value) -> KeyValue {
    KeyValue {
        key: bytes(&value["key"]).into(),
        create_revision: number(&value["create_revision"]),
        mod_revision: number(&value["mod_revision"]),
        version: number(&value["version"]),
        value: bytes(&value["value"]).into(),
        lease: number(&value["lease"]),
    }
}

fn leases_and_auth(state: &State, backend: &MemoryBackend, expected: &Value) {
    for lease in expected["leases"].as_array().expect("a list") {
        let found = state.time_to_live(backend, number(&lease["ID"]), true, Default::default());
        assert_eq!(found.granted_ttl, number(&lease["grantedTTL"]));
        let keys: Vec<Vec<u8>> = found.keys.iter().map(|key| key.to_vec()).collect();
        let listed: Vec<Vec<u8>> =
            lease["keys"].as_array().map(|keys| keys.iter().map(bytes).collect()).unwrap_or_default();
        assert_eq!(keys, listed);
    }
    assert_eq!(state.lessor().len(), expected["leases"].as_array().expect("a list").len());
    let users: BTreeMap<&str, usize> =
        state.auth().users().map(|(name, user)| (name, user.roles.len())).collect();
    for user in expected["users"].as_array().expect("a list") {
        let name = user["name"].as_str().expect("a name");
        assert_eq!(users.get(name), user["roles"].as_array().map(Vec::len).as_ref(), "{name}");
    }
    assert_eq!(state.auth().revision() as i64, number(&expected["auth_status"]["authRevision"]));
    let reader = state.auth().role("reader").expect("a role");
    assert_eq!(reader.len(), 2);
    let alarms = expected["alarms"].as_array().expect("a list");
    assert_eq!(state.alarms().len(), alarms.len());
    let member = &expected["members"][0];
    let ours = state.members().iter().next().expect("a member");
    let id: u64 = member["ID"].as_str().expect("text").parse().expect("a number");
    assert_eq!((ours.id, ours.name.as_str()), (id, member["name"].as_str().expect("a name")));
    // etcd 3.5 keeps them elsewhere; a member tells its own at its next start.
    if let Some(url) = ours.client_urls.first() {
        assert_eq!(url, member["clientURLs"][0].as_str().expect("a URL"));
    }
}

#[test]
fn snapshots_of_etcd_become_the_same_store() {
    compare("snapshot-3.7.1");
    compare("snapshot-3.5.1");
}

#[test]
fn status_is_what_etcdutl_says() {
    for name in ["snapshot-3.7.1", "snapshot-3.5.1"] {
        let Some((database, expected)) = case(name) else { return };
        let status = check::status(&database).expect("sound");
        let told = &expected["snapshot_status"];
        assert_eq!(i64::from(status.hash), number(&told["hash"]), "{name}");
        assert_eq!(status.revision, number(&told["revision"]));
        assert_eq!(status.total_size as i64, number(&told["totalSize"]));
        assert_eq!(status.version, told["version"].as_str().unwrap_or_default());
        // Counting keys, not versions, is what etcd does since 3.6.
        assert_eq!(status.total_keys as i64, number(&expected["count"]));
    }
}

#[test]
fn hashes_are_etcds() {
    let Some((database, expected)) = case("snapshot-3.7.1") else { return };
    let (state, backend) = taken(&database);
    for (revision, told) in expected["etcdutl_hashkv"].as_object().expect("an object") {
        let revision = revision.parse().expect("a number");
        let of_file = check::hash_kv(&database, revision).expect("a hash");
        let of_store = hash_kv(&state, &backend, revision).expect("a hash");
        assert_eq!(i64::from(of_file.hash), number(&told["hash"]), "the file at {revision}");
        assert_eq!(i64::from(of_store.hash), number(&told["hash"]), "the store at {revision}");
        assert_eq!(of_file.hash_revision, number(&told["hashRevision"]));
        assert_eq!(of_store.compact_revision, number(&told["compactRevision"]));
    }
}

#[test]
fn what_we_write_is_read_as_the_same_store() {
    let Some((database, _)) = case("snapshot-3.7.1") else { return };
    let (state, backend) = taken(&database);
    let origin = Origin {
        term: 2,
        conf_state: ConfState { voters: vec![7], ..ConfState::default() },
        storage_version: "3.7.0".to_owned(),
    };
    let mut measure = Writer::measure(|_: &[u8]| Ok::<(), std::io::Error>(()));
    content::write(&mut measure, &state, &backend, &origin).expect("written");
    let layout = measure.finish().expect("finished");
    let mut file = Vec::new();
    let output = |pages: &[u8]| {
        file.extend_from_slice(pages);
        Ok::<(), std::io::Error>(())
    };
    let mut writer = Writer::new(output, layout).expect("begun");
    content::write(&mut writer, &state, &backend, &origin).expect("written");
    writer.finish().expect("both passes agree");
    let ours = Database::open(file).expect("a database");
    let status = check::status(&ours).expect("sound");
    assert_eq!((status.revision, status.total_keys), (772, 497));
    let (again, again_backend) = taken(&ours);
    assert_eq!(kvs(&again, &again_backend, 0), kvs(&state, &backend, 0));
    assert_eq!(hash_kv(&again, &again_backend, 0), hash_kv(&state, &backend, 0));
    assert_eq!(again.auth(), state.auth());
    assert_eq!(again.members(), state.members());
    assert_eq!(again.alarms(), state.alarms());
    assert_eq!(check::hash_kv(&ours, 0).expect("a hash"), check::hash_kv(&database, 0).expect("a hash"));
}
