//! Models of the shipped reconcilers.

pub mod replicaset;
