//! Models of the store's cores.

pub mod kv;
