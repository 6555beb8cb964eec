//! CEL in schemas: `x-kubernetes-validations` of custom resources.
//!
//! [`schema`] turns a structural schema into types, sizes and values of the language; [`compiled`] compiles the rules of a
//! schema once; [`definition`] refuses definitions whose rules do not compile or may cost too much; [`rules`] runs them.
//! Policies and match conditions, where nothing is known of objects, live in [`crate::admission::policies`].

pub mod compiled;
pub mod definition;
pub mod rules;
pub mod schema;

/// What all rules of one object may cost together when they run.
pub const RUNTIME_BUDGET: u64 = 10_000_000;
/// What one rule may be estimated to cost.
pub const RULE_ESTIMATE: u64 = 10_000_000;
/// What all rules of a schema may be estimated to cost.
pub const SCHEMA_ESTIMATE: u64 = 100_000_000;
/// The longest message an expression may give, bytes.
pub const MESSAGE_BYTES: usize = 5 * 1024;
