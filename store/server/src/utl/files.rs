//! Commands that look at files or tidy them: `snapshot status`, `hashkv`, `defrag`, `migrate`. Where etcd's database is a
//! file, ours is a folder; both are understood.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use keelson_store_core::{State, hash_kv};
use keelson_store_files::bolt::{Database, Output, Source, WriteError, Writer};
use keelson_store_files::check::{self, FileHash};
use keelson_store_files::content::Content;
use keelson_store_files::messages::VersionSigns;
use keelson_store_files::wal::Log;
use prost::Message as _;

use super::flags::Values;
use super::{Exit, Outcome, log, print};
use crate::restore::{open_database, plain};
use crate::rocks::{Memory, Rocks};

/// Refuses a path that is not there.
fn there(path: &str) -> Result<&Path, Exit> {
    match std::fs::metadata(path) {
        Ok(_) => Ok(Path::new(path)),
        Err(error) => Err(Exit::new(1, format!("stat {path}: {}", plain(&error)))),
    }
}

pub fn status(values: &Values) -> Outcome {
    let [path] = &values.arguments[..] else {
        return Err(Exit::arguments("snapshot status requires exactly one argument"));
    };
    let path = there(path)?;
    print::check(values.text("write-out"))?;
    let database = open_database(path)?;
    let found = check::status(&database)
        .map_err(|error| Exit::new(1, format!("snapshot file integrity check failed: {error}")))?;
    print::print(values.text("write-out"), &print::status(&found))
}

pub fn hashkv(values: &Values) -> Outcome {
    let form = values.text("write-out");
    print::check(form)?;
    let path = there(&values.arguments[0])?;
    let revision = values.number("rev");
    let found = match our_database(path) {
        Some(snap) => {
            let rocks = Rocks::open(&snap, Memory::default()).map_err(anyhow::Error::from)?;
            let state = State::load(&rocks).map_err(anyhow::Error::from)?;
            let found = hash_kv(&state, &rocks, revision).map_err(|error| Exit::new(1, error.to_string()))?;
            FileHash {
                hash: found.hash,
                hash_revision: found.hash_revision,
                compact_revision: found.compact_revision,
            }
        }
        None => check::hash_kv(&open_database(path)?, revision)
            .map_err(|error| Exit::new(1, error.to_string()))?,
    };
    print::print(form, &print::hash(&found))
}

/// The folder of our database, if `path` is it, or a data directory with it.
fn our_database(path: &Path) -> Option<PathBuf> {
    let at = |snap: PathBuf| snap.join("db").join("CURRENT").exists().then_some(snap);
    at(path.join("member").join("snap"))
        .or_else(|| at(path.parent()?.to_owned()).filter(|_| path.ends_with("db")))
}

pub fn defrag(values: &Values) -> Outcome {
    let data_dir = values.text("data-dir");
    let failed =
        |problem: String| Exit::new(1, format!("Failed to defragment etcd data[{data_dir}] ({problem})"));
    let path = Path::new(data_dir).join("member").join("snap").join("db");
    if let Some(snap) = our_database(Path::new(data_dir)) {
        let rocks = Rocks::open(&snap, Memory::default()).map_err(|error| failed(error.to_string()))?;
        let before = rocks.size().0;
        rocks.reclaim();
        report(&path, before, rocks.size().0);
        return Ok(());
    }
    let before = match std::fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) => return Err(failed(format!("stat {}: {}", path.display(), plain(&error)))),
    };
    let after =
        rewrite(&path, &mut |_, _, _| Edit::Keep, &[]).map_err(|error| failed(format!("{error:#}")))?;
    report(&path, before, after);
    Ok(())
}

fn report(path: &Path, before: u64, after: u64) {
    let fields = [
        ("path", path.display().to_string().into()),
        ("current-db-size-bytes-diff", (after as i64 - before as i64).into()),
        ("current-db-size-bytes", after.into()),
        ("current-db-size", print::bytes(after).into()),
    ];
    log("info", line!(), file!(), "finished defragmenting directory", &fields);
}

/// What becomes of an element.
enum Edit {
    Keep,
    Drop,
}

/// Judges an element by its bucket, key and value.
type Editor<'a> = dyn FnMut(&[u8], &[u8], &[u8]) -> Edit + 'a;

/// An element that a rewritten database has beside the old ones.
type Addition<'a> = (&'a str, &'a [u8], &'a [u8]);

/// Writes a database anew, without its free pages, and puts it in the old one's place. Answers its length.
fn rewrite(path: &Path, edit: &mut Editor<'_>, additions: &[Addition<'_>]) -> Result<u64> {
    let original = File::options().read(true).write(true).open(path)?;
    if original.try_lock().is_err() {
        bail!("{} is in use by a running etcd; stop it first", path.display());
    }
    let database = Database::open(original.try_clone()?)?;
    let mut measure = Writer::measure(|_: &[u8]| Ok::<(), std::io::Error>(()));
    copy(&database, &mut measure, edit, additions)?;
    let layout = measure.finish().map_err(|error| anyhow::anyhow!("{error}"))?;
    let temporary = path.with_extension("tmp");
    let mut file = std::io::BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
    let output = |pages: &[u8]| file.write_all(pages);
    let mut writer = Writer::new(output, layout).map_err(|error| anyhow::anyhow!("{error}"))?;
    copy(&database, &mut writer, edit, additions)?;
    writer.finish().map_err(|error| anyhow::anyhow!("{error}"))?;
    file.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    std::fs::rename(&temporary, path)?;
    crate::identity::sync_folder(path.parent().context("a file has a folder")?)?;
    Ok(layout.length())
}

fn copy<S: Source, O: Output<Error = std::io::Error>>(
    database: &Database<S>,
    writer: &mut Writer<O>,
    edit: &mut Editor<'_>,
    additions: &[Addition<'_>],
) -> Result<()> {
    let text = |error: WriteError<std::io::Error>| anyhow::anyhow!("{error}");
    for (name, bucket) in database.buckets()? {
        let bucket_name = std::str::from_utf8(&name).context("a bucket's name")?;
        writer.bucket(bucket_name).map_err(text)?;
        let mut added = additions.iter().filter(|(bucket, ..)| *bucket == bucket_name).peekable();
        let mut cursor = database.cursor(&bucket)?;
        while let Some((key, value)) = cursor.next_element()? {
            while let Some((_, key, value)) = added.next_if(|(_, added, _)| *added < key) {
                writer.put(key, value).map_err(text)?;
            }
            let replaced = added.peek().is_some_and(|(_, added, _)| *added == key);
            if !replaced && matches!(edit(&name, key, value), Edit::Keep) {
                writer.put(key, value).map_err(text)?;
            }
        }
        for (_, key, value) in added {
            writer.put(key, value).map_err(text)?;
        }
    }
    Ok(())
}

/// A storage version: major and minor.
type Version = (u64, u64);

fn version(text: &str) -> Option<Version> {
    let mut parts = text.split('.');
    let parsed = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(parsed)
}

pub fn migrate(values: &Values) -> Outcome {
    let target = values.text("target-version");
    if target.matches('.').count() != 1 {
        return Err(Exit::arguments(format!(
            "wrong target version format, expected \"X.Y\", got {target:?}"
        )));
    }
    let Some(wanted) = version(target) else {
        return Err(Exit::arguments(format!(
            "failed to parse target version: {target}.0 is not in dotted-tri format"
        )));
    };
    if wanted < (3, 5) {
        return Err(Exit::arguments(format!("target version {target:?} not supported. Minimal \"3.5\"")));
    }
    let data_dir = Path::new(values.text("data-dir"));
    if our_database(data_dir).is_some() {
        if wanted == (3, 7) {
            log(
                "info",
                line!(),
                file!(),
                "storage version up-to-date",
                &[("storage-version", target.into())],
            );
            return Ok(());
        }
        return Err(Exit::new(
            1,
            "this data directory is keelson's own, which has no other form; to go back to etcd take a snapshot \
             (`etcdctl snapshot save`) and restore it with etcd's etcdutl",
        ));
    }
    migrate_etcd(data_dir, wanted, values.switch("force")).map_err(Exit::from)
}

fn migrate_etcd(data_dir: &Path, wanted: Version, force: bool) -> Result<()> {
    let path = data_dir.join("member").join("snap").join("db");
    let database = open_database(&path)?;
    let content = Content::read(&database)?;
    let current = match &content.storage_version {
        Some(text) => version(text).with_context(|| format!("storage version {text:?}"))?,
        None => {
            ensure!(
                content.conf_state.is_some(),
                "cannot detect storage schema version: missing confstate information"
            );
            ensure!(content.term != 0, "cannot detect storage schema version: missing term information");
            (3, 5)
        }
    };
    let shown = format!("{}.{}", wanted.0, wanted.1);
    if current == wanted {
        log("info", line!(), file!(), "storage version up-to-date", &[("storage-version", shown.into())]);
        return Ok(());
    }
    let needed = log_version(&data_dir.join("member").join("wal"), content.consistent_index)?;
    let known = (3, 5)..=(3, 7);
    let refused = if !known.contains(&wanted) {
        Some(format!("cannot create migration plan: version \"{shown}.0\" is not supported"))
    } else if needed > wanted {
        Some(format!("cannot downgrade storage, WAL contains newer entries ({}.{})", needed.0, needed.1))
    } else {
        None
    };
    if let Some(problem) = refused {
        ensure!(force, problem);
        log(
            "info",
            line!(),
            file!(),
            "normal migrate failed, trying with force",
            &[("error", problem.into())],
        );
    }
    drop(database);
    let version = format!("{shown}.0");
    let field: Addition<'_> = ("meta", b"storageVersion", version.as_bytes());
    // Before 3.6 there was no such field.
    let additions: &[Addition<'_>] = if wanted >= (3, 6) { &[field] } else { &[] };
    let mut edit = |bucket: &[u8], key: &[u8], _: &[u8]| {
        if bucket == b"meta" && key == b"storageVersion" { Edit::Drop } else { Edit::Keep }
    };
    rewrite(&path, &mut edit, additions)?;
    let message = if wanted >= (3, 6) { "updated storage version" } else { "cleared storage version" };
    log("info", line!(), file!(), message, &[("storage-version", shown.into())]);
    Ok(())
}

/// The version that the entries not yet in the database need.
fn log_version(wal: &Path, after: u64) -> Result<Version> {
    let log = Log::read_folder(wal, after).context("failed to read wal")?;
    let mut needed = (3, 0);
    for entry in log.entries.iter().filter(|entry| entry.kind == 0) {
        let data = entry.data.clone().unwrap_or_default();
        let signs = VersionSigns::decode(data).context("failed to read wal")?;
        if signs.header.is_some_and(|header| header.requester_member_id != 0) {
            needed = needed.max((3, 7));
        }
        if signs.downgrade_test.is_some() {
            needed = needed.max((3, 6));
        }
        if let Some(set) = signs.cluster_version {
            needed = needed.max(version(&set.version).unwrap_or(needed));
        }
    }
    Ok(needed)
}
