//! Who we are: member and cluster ids, derived so that all members of a new cluster agree, and kept in the data
//! directory from the first start on.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::process::errno;
use crate::rocks::write_durably;

/// What the data directory knows of its member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Format of the data directory.
    pub version: u32,
    /// Ours.
    pub member_id: u64,
    /// The cluster's.
    pub cluster_id: u64,
}

/// Format written by this version.
const VERSION: u32 = 1;
/// Its file, written last: a member's folder that has one is whole.
pub const IDENTITY: &str = "identity";

impl Identity {
    /// In the form of this version.
    pub fn new(member_id: u64, cluster_id: u64) -> Identity {
        Identity { version: VERSION, member_id, cluster_id }
    }
}

/// Keeps an identity in a member's folder, durably.
///
/// # Errors
/// IO.
pub fn write_identity(folder: &Path, identity: &Identity) -> Result<()> {
    let path = folder.join(IDENTITY);
    let text = serde_json::to_vec(identity).context("an identity is plain data")?;
    write_durably(&path, &text).with_context(|| format!("cannot write {}", path.display()))
}

/// Makes renames and new files in a folder durable.
///
/// # Errors
/// IO.
pub fn sync_folder(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("making {} durable", folder.display()))
}

fn digest(parts: &[&[u8]]) -> u64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let sum = hash.finalize();
    // Zero means "nobody" on the wire; the sign bit stays clear so that ids print the same everywhere.
    (u64::from_be_bytes(sum[..8].try_into().expect("eight bytes")) >> 1).max(1)
}

/// A member's id from its peer URLs and whatever else makes it unique.
pub fn member_id(peer_urls: &[String], salt: &[u8]) -> u64 {
    let mut urls: Vec<&[u8]> = peer_urls.iter().map(String::as_bytes).collect();
    urls.sort_unstable();
    urls.push(salt);
    digest(&urls)
}

/// Ids of all members of a new cluster, by name.
pub fn initial_ids(members: &BTreeMap<String, Vec<String>>, token: &str) -> BTreeMap<String, u64> {
    members.iter().map(|(name, urls)| (name.clone(), member_id(urls, token.as_bytes()))).collect()
}

/// A new cluster's id.
pub fn cluster_id(members: &BTreeMap<String, u64>, token: &str) -> u64 {
    let mut ids: Vec<[u8; 8]> = members.values().map(|id| id.to_be_bytes()).collect();
    ids.sort_unstable();
    let mut parts: Vec<&[u8]> = ids.iter().map(|id| id.as_slice()).collect();
    parts.push(token.as_bytes());
    digest(&parts)
}

/// The data directory, locked for this process.
pub struct DataDir {
    /// Everything of ours is below it.
    pub folder: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates and locks the directory.
    ///
    /// # Errors
    /// IO; another process has it; it holds another program's data.
    pub fn open(data_dir: &Path) -> Result<DataDir> {
        let folder = data_dir.join("member");
        // Only ours to read, as etcd makes it.
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|error| {
            let missing = folder.ancestors().take_while(|path| !path.exists()).last().unwrap_or(&folder);
            anyhow!("cannot access data directory: mkdir {}: {}", missing.display(), errno(&error))
        })?;
        let lock = File::create(folder.join("lock")).with_context(|| {
            format!("cannot write to data directory {}; check its permissions", data_dir.display())
        })?;
        if let Err(error) = lock.try_lock() {
            bail!(
                "data directory {} is in use by another process ({error}); stop it or choose another --data-dir",
                data_dir.display()
            );
        }
        Ok(DataDir { folder, _lock: lock })
    }

    fn file(&self) -> PathBuf {
        self.folder.join(IDENTITY)
    }

    /// The identity kept here, if this is not the first start.
    ///
    /// # Errors
    /// IO; not readable by this version.
    pub fn identity(&self) -> Result<Option<Identity>> {
        let path = self.file();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let identity: Identity = serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is damaged; remove this member from the cluster, delete the data directory and add it again",
                path.display()
            )
        })?;
        ensure!(
            identity.version == VERSION,
            "{} was written by another version (format {}, expected {VERSION}); start that version instead",
            path.display(),
            identity.version
        );
        Ok(Some(identity))
    }

    /// Keeps the identity.
    ///
    /// # Errors
    /// IO.
    pub fn keep(&self, member_id: u64, cluster_id: u64) -> Result<Identity> {
        let identity = Identity::new(member_id, cluster_id);
        write_identity(&self.folder, &identity)?;
        Ok(identity)
    }
}
