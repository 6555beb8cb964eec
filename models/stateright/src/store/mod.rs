//! Models of the store's cores.

pub mod auth;
pub mod compaction;
pub mod kv;
pub mod lease;
pub mod watch;
