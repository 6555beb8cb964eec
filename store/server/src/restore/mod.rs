//! Stores made from etcd's files: a snapshot file restored, a data directory imported.
//!
//! A member's folder is built beside its final place and gets its `identity` last, so that one with an identity is
//! whole. Memory is bounded by a batch, whatever the size of the file.

mod import;
mod tail;

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use keelson_store_core::restore::{self as core_restore, Head};
use keelson_store_core::{KeyValue, Member, Revision, State, Write, apply};
use keelson_store_files::bolt::Database;
use keelson_store_files::content::{self, Content, ContentError};
use keelson_store_files::messages::Entry;
use keelson_store_raft::{Backend, Beginning, FileDisk, SegmentLog};

use crate::identity::{Identity, sync_folder, write_identity};
use crate::rocks::{Memory, Rocks};

pub use import::import;

/// Bytes of changes written at once.
const BATCH: usize = 4 << 20;
/// Changes between two reports of progress.
const REPORT: u64 = 500_000;

/// What becomes of a database file.
pub struct Plan {
    /// Whose store it will be.
    pub identity: Identity,
    /// Who takes part from now on.
    pub members: Vec<Member>,
    /// Term and index of the last entry of the Raft log that is in the database.
    pub position: (u64, u64),
    /// Entries behind it that have to be applied as well.
    pub tail: Vec<Entry>,
    /// How much to raise the revision by, with everything before declared compacted; 0 = not at all.
    pub bump_revision: i64,
}

/// What was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Built {
    pub changes: u64,
    pub revision: i64,
    pub entries: usize,
}

/// Builds a member's folder at `folder`, with its Raft log at `wal`; `progress` is told the number of changes so far.
///
/// # Errors
/// IO; a damaged database; an entry that cannot be applied.
pub async fn build(
    database: &Database<File>,
    folder: &Path,
    wal: &Path,
    plan: Plan,
    progress: impl Fn(u64),
) -> Result<Built> {
    let snap = folder.join("snap");
    std::fs::create_dir_all(&snap).with_context(|| format!("cannot create {}", snap.display()))?;
    let rocks = Rocks::open(&snap, Memory::default())?;
    let content = Content::read(database)?;
    let mut loader = Loader { rocks: &rocks, pending: Vec::new(), bytes: 0 };
    let (mut changes, mut revision) = (0u64, content.compact_revision());
    content::changes::<_, anyhow::Error>(database, |at, tombstone, kv| {
        revision = revision.max(at.main);
        // A restored etcd marks its raised revision with a record that has no key.
        if kv.key.is_empty() {
            return Ok(());
        }
        changes += 1;
        if changes.is_multiple_of(REPORT) {
            progress(changes);
        }
        loader.change(at, tombstone, &kv)
    })?;
    loader.flush()?;
    let mut failed = None;
    core_restore::indexes(&rocks, &content.leases, &mut |write| {
        if failed.is_none() {
            failed = loader.write(write).err();
        }
    });
    failed.map_or(Ok(()), Err)?;
    let compact_revision = if plan.bump_revision > 0 {
        revision = revision.checked_add(plan.bump_revision).context("the raised revision is out of range")?;
        revision
    } else {
        content.compact_revision()
    };
    let head = Head {
        applied: plan.position.1 + 1,
        revision,
        compact_revision,
        scrubbed: content.finished_compaction,
        leases: content.leases,
        alarms: content.alarms,
        members: plan.members.clone(),
        auth: content.auth,
    };
    for write in core_restore::head(&head) {
        loader.write(write)?;
    }
    loader.flush()?;
    let beginning = replay(&rocks, &plan)?;
    let state = State::load(&rocks)?;
    rocks.commit(&[], &beginning.mark()?)?;
    rocks.flush().await?;
    drop(rocks);
    let log = SegmentLog::open(std::sync::Arc::new(FileDisk::open(wal, true).context("raft log")?))?;
    beginning.begin_log(log, plan.identity.member_id).await?;
    write_identity(folder, &plan.identity)?;
    sync_folder(&snap)?;
    sync_folder(folder)?;
    Ok(Built { changes, revision: state.revision(), entries: plan.tail.len() })
}

/// Applies the entries that were not yet in the database.
fn replay(rocks: &Rocks, plan: &Plan) -> Result<Beginning> {
    let mut state = State::load(rocks)?;
    let (mut term, mut index) = plan.position;
    for entry in &plan.tail {
        let batch = tail::batch(entry).with_context(|| format!("entry {} of the log", entry.index))?;
        let effects = apply(&mut state, rocks, entry.index + 1, &batch);
        rocks.prune(&effects.writes)?;
        (term, index) = (entry.term, entry.index);
    }
    Ok(Beginning { term, index, members: state.members().to_vec() })
}

struct Loader<'a> {
    rocks: &'a Rocks,
    pending: Vec<Write>,
    bytes: usize,
}

impl Loader<'_> {
    fn change(&mut self, at: Revision, tombstone: bool, kv: &KeyValue) -> Result<()> {
        core_restore::change(at, tombstone, kv).into_iter().try_for_each(|write| self.write(write))
    }

    fn write(&mut self, write: Write) -> Result<()> {
        self.bytes += write.key.len() + write.value.as_ref().map_or(0, |value| value.len()) + 32;
        self.pending.push(write);
        if self.bytes >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.rocks.prune(&self.pending).context("writing the database")?;
        self.pending.clear();
        self.bytes = 0;
        Ok(())
    }
}

/// Opens a database file.
///
/// # Errors
/// IO; no database.
pub fn open_database(path: &Path) -> Result<Database<File>> {
    let file =
        File::open(path).map_err(|error| anyhow::anyhow!("open {}: {}", path.display(), plain(&error)))?;
    Database::open(file).map_err(ContentError::from).with_context(|| path.display().to_string())
}

/// An IO error in the words etcd's tools use.
pub fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}
