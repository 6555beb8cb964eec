//! Stateright models of the shipped cores: exhaustive within small bounds, over the very code that runs.
//!
//! Each model's header says what it explores, what it omits, and why the omission is sound. [`MODELS`] is the
//! catalogue: `keelson check` and `cargo xtask models` run it. A new model is one file and one line here. Tests assert
//! the exact number of unique states at [`Bound::Smoke`], so that a change in reach is a reviewed diff.

pub mod apiserver;
pub mod catalogue;
pub mod cluster;
pub mod command;
pub mod controllers;
pub mod scheduler;
pub mod sieve;
pub mod store;

pub use catalogue::{Bound, Entry, Property, Report};

/// Every model.
pub const MODELS: &[Entry] = &[
    Entry {
        name: "api-updates",
        description: "racing writers of one object lose nothing, finalizers hold, generation counts",
        run: apiserver::updates::run,
    },
    Entry {
        name: "controllers-cronjob",
        description: "no due time is lost or served twice, and none runs into another",
        run: controllers::cronjob::run,
    },
    Entry {
        name: "controllers-daemonset",
        description: "each node has one pod in the end, and never two that stay",
        run: controllers::daemonset::run,
    },
    Entry {
        name: "controllers-deployment",
        description: "a rollout stays within its fence and ends, on stale views and cut plans",
        run: controllers::deployment::run,
    },
    Entry {
        name: "controllers-garbage",
        description: "dependents follow their owner and nobody of its name",
        run: controllers::garbage::run,
    },
    Entry {
        name: "controllers-job",
        description: "each pod that ends is counted once, and never too many run",
        run: controllers::job::run,
    },
    Entry {
        name: "controllers-namespaces",
        description: "a namespace is let go when it is empty and not before",
        run: controllers::namespaces::run,
    },
    Entry {
        name: "controllers-replicaset",
        description: "a ReplicaSet never overshoots and always converges, on stale views and cut plans",
        run: controllers::replicaset::run,
    },
    Entry {
        name: "controllers-statefulset",
        description: "pods come and go in their order, and by their node's word",
        run: controllers::statefulset::run,
    },
    Entry {
        name: "scheduler-binding",
        description: "binds that fail in every way neither rebind, nor overcommit, nor strand a pod",
        run: scheduler::binding::run,
    },
    Entry {
        name: "store-auth",
        description: "a write is judged by the permissions of the moment it is applied in",
        run: store::auth::run,
    },
    Entry {
        name: "store-compaction",
        description: "the past reads as it was at every kept revision, whatever is scrubbed",
        run: store::compaction::run,
    },
    Entry {
        name: "store-kv",
        description: "apply under duplicates, restarts, snapshot installs and scrubs equals an undisturbed member",
        run: store::kv::run,
    },
    Entry {
        name: "store-lease",
        description: "a lease lives its full TTL through leader changes, clock skew and retried proposals",
        run: store::lease::run,
    },
    Entry {
        name: "store-watch",
        description: "watchers get exactly what happened through laps, compactions and catch-ups",
        run: store::watch::run,
    },
];
