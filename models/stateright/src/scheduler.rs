//! Models of the shipped scheduler.

pub mod binding;
