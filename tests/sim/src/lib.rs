//! Deterministic simulation of the store: three members, openraft inside, on one thread and in virtual time.
//!
//! One seed is one run: message delays, losses, duplicates, partitions, crashes with unsynced writes lost, and the
//! clients' operations are all drawn from it. See `checker` for what is judged.

pub mod checker;
pub mod runtime;
