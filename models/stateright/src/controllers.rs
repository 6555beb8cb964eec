//! Models of the shipped reconcilers.

pub mod deployment;
pub mod replicaset;
