//! Loom checks of the store's concurrency (`store/sync`): every interleaving within the preemption bound.
//!
//! `cargo xtask loom`, or `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=… cargo test -p keelson-loom`. Without `--cfg loom`
//! this crate is empty. The bound is `LOOM_MAX_PREEMPTIONS`, 2 unless told otherwise.

#![cfg(loom)]

use loom::model::Builder;

/// Explores every interleaving of `check` within the bound.
pub fn explore(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(check);
}
