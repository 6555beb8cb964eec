//! Pod worker, probes, status, rulesets, pure.

pub mod proxy;
