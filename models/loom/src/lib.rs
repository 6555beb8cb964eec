//! Loom checks of the store's concurrency.
