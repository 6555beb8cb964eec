//! Looking at a database without a store: what `etcdutl snapshot status` and `etcdutl hashkv` answer.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use keelson_store_core::portable;
use keelson_store_proto::mvccpb;
use prost::Message;

use crate::bolt::{Database, Source};
use crate::content::{Content, ContentError, changes};

/// A snapshot file in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// crc32c over all buckets' names, keys and values.
    pub hash: u32,
    /// Of the newest change.
    pub revision: i64,
    /// Keys that exist.
    pub total_keys: u64,
    /// Bytes.
    pub total_size: u64,
    /// Storage version; empty before 3.6.
    pub version: String,
}

/// Checks every page, then sums everything up. Memory: about 16 bytes a key.
///
/// # Errors
/// Not etcd's, or damaged.
pub fn status<S: Source>(database: &Database<S>) -> Result<Status, ContentError> {
    database.check()?;
    let version = Content::read(database)?.storage_version.unwrap_or_default();
    let mut status = Status { total_size: database.size(), version, ..Status::default() };
    let mut live: HashSet<u64> = HashSet::new();
    for (name, bucket) in database.buckets()? {
        status.hash = crc32c::crc32c_append(status.hash, &name);
        let mut cursor = database.cursor(&bucket)?;
        while let Some((key, value)) = cursor.next_element()? {
            status.hash = crc32c::crc32c_append(status.hash, key);
            status.hash = crc32c::crc32c_append(status.hash, value);
            if name != b"key" {
                continue;
            }
            let problem = |problem: &str| ContentError::Record { bucket: "key", problem: problem.to_owned() };
            let (at, tombstone) = portable::decode_revision(key).ok_or_else(|| problem("no revision"))?;
            let kv = mvccpb::KeyValue::decode(Bytes::copy_from_slice(value));
            let name = fingerprint(&kv.map_err(|error| problem(&error.to_string()))?.key);
            status.revision = at.main;
            if tombstone {
                live.remove(&name)
            } else {
                live.insert(name)
            };
        }
    }
    status.total_keys = live.len() as u64;
    Ok(status)
}

/// Keys are counted by it: two of a billion keys share one with a chance of one in forty.
fn fingerprint(key: &[u8]) -> u64 {
    let mix = |sum: u64| (sum ^ sum >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let sum = key.iter().fold(0xcbf2_9ce4_8422_2325u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3).rotate_left(5)
    });
    mix(mix(sum ^ key.len() as u64))
}

/// Answer of [`hash_kv`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHash {
    pub hash: u32,
    pub hash_revision: i64,
    /// -1 = never compacted.
    pub compact_revision: i64,
}

/// Why there is no hash.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// The file.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// Asked for a revision that compaction took.
    #[error("mvcc: required revision has been compacted")]
    Compacted,
    /// Asked for one that is not there yet.
    #[error("mvcc: required revision is a future revision")]
    Future,
}

/// HashKV of a database file, `revision` 0 or less = all of it. Memory: the keys that are older than the
/// compaction.
///
/// # Errors
/// Damage; a revision that is not in the file.
pub fn hash_kv<S: Source>(database: &Database<S>, revision: i64) -> Result<FileHash, HashError> {
    let compacted = Content::read(database)?.compact_revision();
    let mut newest = BTreeMap::new();
    let mut current = compacted.max(1);
    changes::<_, HashError>(database, |at, tombstone, kv| {
        current = current.max(at.main);
        let counts = revision <= 0 || at.main <= revision;
        if at.main <= compacted || (counts && newest.contains_key(&kv.key)) {
            newest.insert(kv.key, (at, tombstone));
        }
        Ok(())
    })?;
    if revision > current {
        return Err(HashError::Future);
    }
    if revision > 0 && revision < compacted {
        return Err(HashError::Compacted);
    }
    let until = if revision <= 0 { current } else { revision };
    let mut hash = crc32c::crc32c(b"key");
    let (mut stored_key, mut stored_value) = (Vec::new(), Vec::new());
    changes::<_, HashError>(database, |at, tombstone, kv| {
        let survives = at.main > compacted || newest.get(&kv.key) == Some(&(at, false));
        if at.main <= until && survives {
            portable::encode(at, tombstone, &kv, &mut stored_key, &mut stored_value);
            hash = crc32c::crc32c_append(hash, &stored_key);
            hash = crc32c::crc32c_append(hash, &stored_value);
        }
        Ok(())
    })?;
    let compact_revision = if compacted > 0 { compacted } else { -1 };
    Ok(FileHash { hash, hash_revision: until, compact_revision })
}
