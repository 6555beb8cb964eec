//! Deterministic simulation of the store: three members, openraft inside, on one thread and in virtual time.
//!
//! One seed is one run: message delays and losses, cuts, crashes with unsynced writes lost, and the clients' operations
//! are all drawn from it. `world` runs a seed, `checker` judges it.

pub mod checker;
pub mod disk;
pub mod network;
pub mod runtime;
pub mod world;
