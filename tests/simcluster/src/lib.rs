//! Deterministic simulation of the whole control plane: three store members with openraft inside, an API server beside
//! each, two controller managers and two schedulers that elect their leaders, nodes that run pods, and users, all as
//! they are shipped, on one thread and in virtual time. One seed is one run.
//!
//! `run` lives through a seed: faults of the store (`keelson-sim`), processes that crash and come back, requests and
//! answers between components that are late or lost; then everything is healed and must settle. `check` judges every
//! change of the store as it is applied. Nothing of the shipped shells is replaced but the sockets (`api`), the kubelet
//! (`nodes`) and the store's gRPC door (`etcd`); the C library's clock and randomness are the seed's.

pub mod api;
pub mod check;
pub mod convert;
pub mod etcd;
pub mod nodes;
pub mod run;
