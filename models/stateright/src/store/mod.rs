//! Models of the store's cores.

pub mod kv;
pub mod lease;
pub mod watch;
