//! Scheduling framework, default plugins, queue, cache and preemption, pure.
//!
//! Reading order: [`pod`] and [`snapshot`] (what is known), [`framework`] (the extension points), one file of
//! [`plugins`], [`schedule`] (one decision with its reasons), [`queue`] (whose turn it is), [`cache`] (what was decided
//! but is not yet seen), [`binding`] (what a bind request's outcome means), [`preemption`], [`invariants`].
//!
//! Absences: no clock (`now` is an argument, a `Duration` since an epoch the caller chose), no randomness (ties are
//! broken by a seed the caller gives), no IO, no async; nothing depends on the order in which objects arrived.

pub mod binding;
pub mod cache;
pub mod events;
pub mod framework;
pub mod invariants;
pub mod plugins;
pub mod pod;
pub mod preemption;
pub mod queue;
pub mod resources;
pub mod schedule;
pub mod selector;
pub mod snapshot;
pub mod volumes;

pub use cache::Cache;
pub use pod::PodInfo;
pub use queue::SchedulingQueue;
pub use schedule::{Decision, Options, schedule};
pub use snapshot::Snapshot;
