//! Deterministic simulation of the store: three members, openraft inside, on one thread and in virtual time.
//!
//! One seed is one run: message delays and losses, cuts, crashes with unsynced writes lost, and the clients' operations
//! are all drawn from it. `world` runs a seed, `clients` work in it, `judge` watches every applied entry, `keelson_checker` judges
//! the clients' history at the end.

pub mod clients;
pub mod disk;
pub mod histories;
pub mod judge;
pub mod network;
pub mod runtime;
pub mod seam;
pub mod seeds;
pub mod shrink;
pub mod world;
