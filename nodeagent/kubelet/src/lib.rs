//! The kubelet: runs this node's pods through a container runtime and serves their logs and streams.
//!
//! Decisions are made in `keelson-nodeagent-core`; here they meet the world. Start with `agent` (which pods), `worker` (one
//! pod's loop) and `execute` (one action); `simulated` is a node without any of it. Knows nothing of the store or the scheduler.

pub mod agent;
pub mod cgroups;
mod config;
mod containers;
pub mod context;
pub mod cri;
mod events;
mod execute;
mod flags;
mod handlers;
mod heartbeat;
mod images;
mod objects;
mod publish;
mod sandboxes;
pub mod server;
mod simulated;
pub mod source;
mod start;
mod stats;
mod tls;
mod upkeep;
pub mod volumes;
mod worker;

pub use config::Config;
pub use flags::main;
pub use keelson_nodeagent_core::pod::admission::Room;
pub use simulated::{Simulation, simulate};
pub use start::run;
