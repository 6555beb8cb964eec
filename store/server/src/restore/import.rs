//! A data directory of etcd, taken over at the first start.
//!
//! ```text
//! <data-dir>/member            etcd's, read only until the import is whole
//! <data-dir>/member.importing  ours, being built; without an `identity` it is a leftover and starts over
//! <data-dir>/member.etcd       etcd's, moved aside once ours is whole; delete it when you are sure
//! ```
//!
//! A crash at any point loses nothing: until `member` is moved aside everything is done again; between the two moves
//! `member` is missing and `member.importing` whole, and the next start moves it into place.
//!
//! Only a member that is alone is imported: several members have logs whose ends differ until Raft has settled them. With
//! `--force-new-cluster` one of several is made a cluster of one, as in etcd: what it does not know to be committed goes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use keelson_store_core::Member;
use keelson_store_files::bolt::Database;
use keelson_store_files::content::{Content, MemberRecord};
use keelson_store_files::messages::{ConfChange, Entry};
use keelson_store_files::wal::Log;
use prost::Message;

use super::{Plan, build, open_database};
use crate::identity::{IDENTITY, Identity, sync_folder};

struct Places {
    member: PathBuf,
    building: PathBuf,
    data_dir: PathBuf,
}

impl Places {
    fn of(data_dir: &Path) -> Places {
        Places {
            member: data_dir.join("member"),
            building: data_dir.join("member.importing"),
            data_dir: data_dir.to_owned(),
        }
    }

    fn database(&self) -> PathBuf {
        self.member.join("snap").join("db")
    }

    /// Where etcd's folder goes: a name that is free.
    fn aside(&self) -> PathBuf {
        let name = |number: u32| match number {
            1 => self.data_dir.join("member.etcd"),
            _ => self.data_dir.join(format!("member.etcd.{number}")),
        };
        (1..).map(name).find(|path| !path.exists()).expect("some number is free")
    }

    fn move_into_place(&self) -> Result<()> {
        std::fs::rename(&self.building, &self.member)
            .with_context(|| format!("moving {} into place", self.building.display()))?;
        sync_folder(&self.data_dir)
    }
}

/// Imports `data_dir` if etcd's data is in it; answers whether it was. `wal_dir` is where etcd kept its log, if that was
/// another folder; `force` makes one of several members a cluster of one.
///
/// # Errors
/// An etcd that runs on it; damage; a member that is not alone; IO. The original is as it was.
pub async fn import(data_dir: &Path, wal_dir: Option<&Path>, force: bool) -> Result<bool> {
    let places = Places::of(data_dir);
    if !places.member.exists() && places.building.join(IDENTITY).exists() {
        tracing::info!("finishing an import that was interrupted");
        places.move_into_place()?;
        return Ok(true);
    }
    if !places.database().is_file() {
        return Ok(false);
    }
    let original = File::open(places.database()).context("opening etcd's database")?;
    // etcd locks its database as long as it runs.
    if original.try_lock().is_err() {
        bail!("{} is in use by a running etcd; stop it first", places.database().display());
    }
    if places.building.exists() {
        tracing::info!(folder = %places.building.display(), "an import was interrupted; it starts over");
        std::fs::remove_dir_all(&places.building).context("removing the interrupted import")?;
    }
    let wal = wal_dir.map_or_else(|| places.member.join("wal"), Path::to_path_buf);
    let database = open_database(&places.database())?;
    let (plan, found) = plan(&database, &wal, force)?;
    tracing::info!(
        "local-member-id" = format!("{:x}", plan.identity.member_id),
        "cluster-id" = format!("{:x}", plan.identity.cluster_id),
        "storage-version" = found,
        "consistent-index" = plan.position.1,
        entries = plan.tail.len(),
        bytes = database.size(),
        "importing etcd's data directory"
    );
    let began = Instant::now();
    let progress = |changes| tracing::info!(changes, "importing");
    let built = build(&database, &places.building, &places.building.join("wal"), plan, progress).await?;
    let aside = places.aside();
    sync_folder(&places.data_dir)?;
    std::fs::rename(&places.member, &aside)
        .with_context(|| format!("moving etcd's data aside to {}", aside.display()))?;
    sync_folder(&places.data_dir)?;
    places.move_into_place()?;
    drop(original);
    tracing::info!(
        changes = built.changes,
        revision = built.revision,
        entries = built.entries,
        took = ?began.elapsed(),
        original = %aside.display(),
        "imported etcd's data directory; the original was moved aside"
    );
    Ok(true)
}

/// What to build, and the storage version found.
fn plan(database: &Database<File>, wal: &Path, force: bool) -> Result<(Plan, String)> {
    let content = Content::read(database)?;
    ensure!(
        wal.is_dir(),
        "etcd's write-ahead log is not at {}; name its folder with --wal-dir: without it the newest writes could be lost",
        wal.display()
    );
    let mut log = Log::read_folder(wal, content.consistent_index)?;
    let metadata = log.metadata.with_context(|| format!("{} does not say whose log it is", wal.display()))?;
    let mut members = content.members;
    if force {
        members.retain(|member| member.id == metadata.node_id);
        let committed = log.hard_state.commit;
        log.entries.retain(|entry| entry.index <= committed);
        for entry in log.entries.iter_mut().filter(|entry| entry.kind != 0) {
            entry.data = None;
        }
    }
    for entry in log.entries.iter().filter(|entry| entry.kind == 1) {
        follow(&mut members, entry)?;
    }
    let others = members.iter().filter(|member| member.id != metadata.node_id).count();
    ensure!(
        others == 0 && members.len() == 1,
        "this is a member of a cluster of {}: members are not imported one by one. Take a snapshot of the cluster \
         (`etcdctl snapshot save`) and restore it for every member (`keelson etcdutl snapshot restore`), remove the \
         other members first, or take this one as a cluster of one with --force-new-cluster",
        others + 1
    );
    let identity = Identity::new(metadata.node_id, metadata.cluster_id);
    // The database did not say its term before 3.5.
    let position = (content.term.max(1), content.consistent_index);
    let version = content.storage_version.unwrap_or_else(|| "3.5 or older".to_owned());
    Ok((Plan { identity, members, position, tail: log.entries, bump_revision: 0 }, version))
}

/// Who is a member after an entry.
fn follow(members: &mut Vec<Member>, entry: &Entry) -> Result<()> {
    let data = entry.data.clone().unwrap_or_default();
    if data.is_empty() {
        return Ok(());
    }
    let change = ConfChange::decode(data).context("a membership change in the log")?;
    match change.kind {
        1 => members.retain(|member| member.id != change.node_id),
        _ => {
            let context = change.context.unwrap_or_default();
            let record: MemberRecord =
                serde_json::from_slice(&context).context("a membership change in the log")?;
            if !members.iter().any(|member| member.id == record.id) {
                members.push(record.into());
            }
        }
    }
    Ok(())
}
