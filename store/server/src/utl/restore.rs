//! `snapshot restore`: a data directory of ours from a snapshot file, etcd's or ours, as a new cluster.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use keelson_store_core::Member;
use sha2::{Digest, Sha256};

use super::flags::{Flag, Kind, Values};
use super::{Exit, Outcome, log};
use crate::identity::{Identity, cluster_id, initial_ids, sync_folder};
use crate::restore::{Plan, build, open_database, plain};

/// Of the hash at a snapshot's end, bytes. The database before it is a multiple of `SECTOR`.
const SUM: u64 = 32;
const SECTOR: u64 = 512;

pub const FLAGS: &[Flag] = &[
    Flag::of("bump-revision", Kind::Uint, "0", "How much to increase the latest revision after restore"),
    Flag::text("data-dir", "", "Path to the output data directory").required(),
    Flag::text(
        "initial-advertise-peer-urls",
        "http://localhost:2380",
        "List of this member's peer URLs to advertise to the rest of the cluster",
    ),
    Flag::text(
        "initial-cluster",
        "default=http://localhost:2380",
        "Initial cluster configuration for restore bootstrap",
    ),
    Flag::text(
        "initial-cluster-token",
        "etcd-cluster",
        "Initial cluster token for the etcd cluster during restore bootstrap",
    ),
    Flag::of(
        "initial-memory-map-size",
        Kind::Uint,
        "10737418240",
        "Initial memory map size of the database in bytes. It uses the default value if not defined or defined to 0",
    ),
    Flag::switch(
        "mark-compacted",
        "Mark the latest revision after restore as the point of scheduled compaction (required if --bump-revision > 0, disallowed otherwise)",
    ),
    Flag::text("name", "default", "Human-readable name for this member"),
    Flag::switch(
        "skip-hash-check",
        "Ignore snapshot integrity hash value (required if copied from data directory)",
    ),
    Flag::text("wal-dir", "", "Path to the WAL directory (use --data-dir if none given)"),
];

pub fn run(values: &Values) -> Outcome {
    let [path] = &values.arguments[..] else {
        return Err(Exit::arguments("snapshot restore requires exactly one argument"));
    };
    let bump: u64 = values.number("bump-revision");
    if (bump > 0) != values.switch("mark-compacted") {
        return Err(Exit::arguments("--mark-compacted required if --revision-bump > 0"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting threads")?;
    Ok(runtime.block_on(restore(Path::new(path), values, bump))?)
}

async fn restore(snapshot: &Path, values: &Values, bump: u64) -> Result<()> {
    let (identity, members) = cluster(values)?;
    let data_dir = PathBuf::from(values.text("data-dir"));
    let empty = |folder: &Path| std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    ensure!(
        !data_dir.exists() || empty(&data_dir),
        "data-dir {:?} not empty or could not be read",
        data_dir.display().to_string()
    );
    let member = data_dir.join("member");
    let wal = match values.text("wal-dir") {
        "" => None,
        folder => Some(PathBuf::from(folder)),
    };
    if let Some(wal) = &wal {
        ensure!(!wal.exists(), "wal-dir {:?} exists", wal.display().to_string());
    }
    let wal_shown = wal.clone().unwrap_or_else(|| member.join("wal"));
    let fields = [
        ("path", snapshot.display().to_string().into()),
        ("wal-dir", wal_shown.display().to_string().into()),
        ("data-dir", data_dir.display().to_string().into()),
        ("snap-dir", member.join("snap").display().to_string().into()),
    ];
    log("info", line!(), file!(), "restoring snapshot", &fields);
    verify(snapshot, values.switch("skip-hash-check"))?;
    let database = open_database(snapshot)?;
    let plan = Plan {
        identity,
        // The members' own entries would come first in a new log.
        position: (1, members.len() as u64),
        members,
        tail: Vec::new(),
        bump_revision: i64::try_from(bump).context("--bump-revision is out of range")?,
    };
    let building = data_dir.join("member.restoring");
    let wal_building = wal.clone().unwrap_or_else(|| building.join("wal"));
    let progress = |changes: u64| log("info", line!(), file!(), "restoring", &[("changes", changes.into())]);
    let built = build(&database, &building, &wal_building, plan, progress).await?;
    std::fs::rename(&building, &member).context("moving the restored data into place")?;
    sync_folder(&data_dir)?;
    let done = [("changes", built.changes.into()), ("revision", built.revision.into())];
    let fields: Vec<_> = fields.into_iter().chain(done).collect();
    log("info", line!(), file!(), "restored snapshot", &fields);
    Ok(())
}

/// Who we are in which cluster, from the flags.
fn cluster(values: &Values) -> Result<(Identity, Vec<Member>)> {
    let mut initial: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for part in values.text("initial-cluster").split(',').filter(|part| !part.is_empty()) {
        let (name, url) =
            part.split_once('=').with_context(|| format!("bad --initial-cluster entry {part:?}"))?;
        let parsed =
            url::Url::parse(url).ok().filter(|url| url.has_host() || url.scheme().starts_with("unix"));
        ensure!(parsed.is_some(), "URL address does not have the form \"host:port\": {url}");
        initial.entry(name.to_owned()).or_default().push(url.to_owned());
    }
    let name = values.text("name");
    let Some(ours) = initial.get(name) else {
        bail!("couldn't find local name {name:?} in the initial cluster configuration");
    };
    let (mut told, mut listed): (Vec<&str>, Vec<&str>) = (
        values.text("initial-advertise-peer-urls").split(',').collect(),
        ours.iter().map(String::as_str).collect(),
    );
    told.sort_unstable();
    listed.sort_unstable();
    ensure!(
        told == listed,
        "--initial-cluster has {name}={} but missing from --initial-advertise-peer-urls={}",
        listed.join(","),
        told.join(",")
    );
    let token = values.text("initial-cluster-token");
    let ids = initial_ids(&initial, token);
    let member_id = ids[name];
    let members = initial
        .iter()
        .map(|(name, peer_urls)| Member {
            id: ids[name],
            name: name.clone(),
            peer_urls: peer_urls.clone(),
            client_urls: Vec::new(),
            is_learner: false,
        })
        .collect();
    Ok((Identity::new(member_id, cluster_id(&ids, token)), members))
}

/// Compares the file with the hash at its end.
fn verify(path: &Path, skip: bool) -> Result<()> {
    let mut file =
        File::open(path).map_err(|error| anyhow::anyhow!("open {}: {}", path.display(), plain(&error)))?;
    let length = file.metadata()?.len();
    if skip {
        return Ok(());
    }
    ensure!(length % SECTOR == SUM, "snapshot missing hash but --skip-hash-check=false");
    let mut left = length - SUM;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        file.read_exact(&mut piece[..count])?;
        hash.update(&piece[..count]);
        left -= count as u64;
    }
    let mut expected = [0; SUM as usize];
    file.seek(SeekFrom::Start(length - SUM))?;
    file.read_exact(&mut expected)?;
    let found: [u8; SUM as usize] = hash.finalize().into();
    let shown = |sum: [u8; SUM as usize]| sum.map(|byte| byte.to_string()).join(" ");
    ensure!(found == expected, "expected sha256 [{}], got [{}]", shown(expected), shown(found));
    Ok(())
}
