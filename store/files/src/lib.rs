//! etcd's files, read and written without etcd: databases and snapshots ([`bolt`],
//! [`content`], looked at by [`check`]) and write-ahead logs
//! ([`wal`]).
//!
//! Knows nothing of RocksDB, openraft, tokio or gRPC. Everything that reads is given hostile bytes by its tests: it
//! answers with a typed error, never a panic, and its memory is bounded by the largest page or record.

pub mod bolt;
pub mod check;
pub mod content;
pub mod messages;
pub mod wal;
