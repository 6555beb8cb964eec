//! Models of the shipped API semantics.

pub mod updates;
