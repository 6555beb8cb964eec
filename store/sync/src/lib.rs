//! Hand-written concurrency of the store, checked by loom: nothing here but locks, atomics and wakers.
//!
//! - [`Hub`]: recent changes to many watch streams, without holding up the apply thread.
//! - [`AppliedIndex`]: reads that wait until an index is applied.
//!
//! No runtime: every wait is a plain future, and the shell gives the threads. `models/loom` runs this code under
//! `--cfg loom`, where `primitives` takes loom's types.

mod applied;
mod hub;
mod primitives;

pub use applied::{AppliedIndex, Closed, WaitFor};
pub use hub::{Cursor, Hub, Next, Publisher};
