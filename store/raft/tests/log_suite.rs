//! openraft's own test suite for log stores, on our log over real files and our state machine over memory; and what it
//! does not ask: restarts, torn ends, damaged middles.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use keelson_store_core::{RevisionEvents, State};
use keelson_store_raft::types::{CommittedLeaderId, Entry, EntryPayload, LogId, Payload, TokioRuntime, Vote};
use keelson_store_raft::{FileDisk, Listener, LogError, MemoryStore, SegmentLog, StateMachine, TypeConfig};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftVote;

type Config = TypeConfig<TokioRuntime>;
type Log = SegmentLog<FileDisk>;

struct Nobody;

impl Listener for Nobody {
    fn applied(&self, _: &State, _: Vec<RevisionEvents>, _: bool) {}
    fn restored(&self, _: &State) {}
}

struct Builder;

impl StoreBuilder<Config, Log, StateMachine<MemoryStore>, tempfile::TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, Log, StateMachine<MemoryStore>), openraft::StorageError<Config>> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = open(folder.path()).expect("an empty log opens");
        let machine =
            StateMachine::open(Arc::new(MemoryStore::default()), Arc::new(Nobody)).expect("empty state");
        Ok((folder, log, machine))
    }
}

fn open(folder: &std::path::Path) -> Result<Log, LogError> {
    SegmentLog::open(Arc::new(FileDisk::open(folder, true)?))
}

#[tokio::test]
async fn the_log_passes_openrafts_suite() {
    Suite::<Config, Log, StateMachine<MemoryStore>, Builder, tempfile::TempDir>::test_all(Builder)
        .await
        .expect("the suite passes");
}

fn id(term: u64, index: u64) -> LogId {
    LogId { leader_id: CommittedLeaderId { term }, index }
}

fn entry(term: u64, index: u64, size: usize) -> Entry {
    Entry { log_id: id(term, index), payload: EntryPayload::Normal(Payload(vec![index as u8; size].into())) }
}

async fn append(log: &mut Log, entries: Vec<Entry>) {
    let (sender, receiver) = Config::oneshot();
    RaftLogStorage::<Config>::append(log, entries, IOFlushed::signal(sender)).await.expect("queued");
    receiver.await.expect("told").expect("durable");
}

async fn indexes(log: &mut Log) -> Vec<u64> {
    let entries = RaftLogReader::<Config>::try_get_log_entries(log, ..).await.expect("readable");
    entries.iter().map(|entry| entry.index()).collect()
}

#[tokio::test]
async fn a_restart_finds_entries_vote_and_purge_point() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let vote =
        Vote::from_leader_id(openraft::impls::leader_id_std::LeaderId { term: 3, voted_for: 7 }, false);
    {
        let mut log = open(folder.path()).expect("opens");
        RaftLogStorage::<Config>::save_vote(&mut log, &vote).await.expect("saved");
        append(&mut log, (0..20).map(|i| entry(1, i, 100)).collect()).await;
        RaftLogStorage::<Config>::truncate_after(&mut log, Some(id(1, 14))).await.expect("cut");
        append(&mut log, vec![entry(2, 15, 10)]).await;
        RaftLogStorage::<Config>::purge(&mut log, id(1, 4)).await.expect("purged");
    }
    for _ in 0..3 {
        let mut log = open(folder.path()).expect("opens again");
        assert_eq!(indexes(&mut log).await, (5..16).collect::<Vec<_>>());
        assert_eq!(RaftLogReader::<Config>::read_vote(&mut log).await.expect("readable"), Some(vote));
        let state = RaftLogStorage::<Config>::get_log_state(&mut log).await.expect("readable");
        assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(1, 4)), Some(id(2, 15))));
    }
}

/// A crash between the first append after an installed snapshot and the purge of what it covers (first found by the
/// simulation).
#[tokio::test]
async fn a_gap_is_accepted_where_an_installed_snapshot_explains_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    {
        let mut log = open(folder.path()).expect("opens");
        append(&mut log, (0..3).map(|i| entry(1, i, 10)).collect()).await;
        append(&mut log, vec![entry(2, 10, 10)]).await;
    }
    let log = open(folder.path()).expect("opens");
    let refused = log.settle(Some(id(1, 8)));
    assert!(matches!(refused, Err(LogError::Gap { expected: 3, found: 10, .. })), "{refused:?}");
    let mut log = open(folder.path()).expect("opens again");
    log.settle(Some(id(2, 9))).expect("the state has what is missing");
    assert_eq!(indexes(&mut log).await, [10]);
    append(&mut log, vec![entry(2, 11, 10)]).await;
    drop(log);
    let mut log = open(folder.path()).expect("and needs no explanation any more");
    assert_eq!(indexes(&mut log).await, [10, 11]);
}

#[tokio::test]
async fn old_segments_are_read_back_and_dropped_when_purged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let files = || std::fs::read_dir(folder.path()).expect("readable").count();
    let mut log = open(folder.path()).expect("opens");
    // 80 MB: several segments, and far more than the cache.
    for i in 0..80 {
        append(&mut log, vec![entry(1, i, 1 << 20)]).await;
    }
    assert!(log.cached_bytes() < 16 << 20, "the cache is bounded");
    assert_eq!(indexes(&mut log).await.len(), 80, "what left the cache is read from the files");
    let before = files();
    assert!(before >= 3, "{before} segments");
    RaftLogStorage::<Config>::purge(&mut log, id(1, 79)).await.expect("purged");
    append(&mut log, vec![entry(1, 80, 1)]).await;
    drop(log);
    assert!(files() < before, "purged segments are gone");
    let mut log = open(folder.path()).expect("opens again");
    assert_eq!(indexes(&mut log).await, [80]);
}

#[tokio::test]
async fn a_torn_end_is_cut_and_a_damaged_middle_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    {
        let mut log = open(folder.path()).expect("opens");
        for i in 0..10 {
            append(&mut log, vec![entry(1, i, 1000)]).await;
        }
    }
    let path = folder.path().join(format!("{:016x}.log", 1));
    let whole = std::fs::read(&path).expect("readable");
    {
        let torn = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(torn.path().join(format!("{:016x}.log", 1)), &whole[..whole.len() - 10])
            .expect("written");
        let mut log = open(torn.path()).expect("a torn end is fine");
        assert_eq!(indexes(&mut log).await, (0..9).collect::<Vec<_>>());
    }
    let file = OpenOptions::new().write(true).open(&path).expect("writable");
    file.write_all_at(b"rot", 2500).expect("written");
    match open(folder.path()).map(|_| ()) {
        Err(LogError::Corrupt { offset, .. }) => assert!((2000..2500).contains(&offset), "{offset}"),
        other => panic!("{other:?}"),
    }
}
