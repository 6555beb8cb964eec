//! One pod on one node, as values.
//!
//! Order of reading: `observed` (what the runtime says) and `memory` (what the agent remembers between steps) are the
//! inputs, `plan` makes `PodActions` of them, `status` makes the API's `PodStatus`. The rest are the small pure parts they
//! or the shell need: probes, back-off, quality of service, environment, `$(VAR)` expansion, DNS, volumes' payload, logs.
//! Hazard: nothing here may read a clock; every time is an argument.

pub mod admission;
pub mod amounts;
pub mod backoff;
pub mod dns;
pub mod downward;
pub mod environment;
pub mod eviction;
pub mod expand;
pub mod image_gc;
pub mod logs;
pub mod memory;
pub mod naming;
pub mod observed;
pub mod payload;
pub mod plan;
pub mod probe;
pub mod qos;
pub mod security;
pub mod status;
