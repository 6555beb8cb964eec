//! openraft adaptor of the store: no RocksDB, no gRPC, no threads of its own except in `FileDisk`.
//!
//! ```text
//! commands ─► Proposer ─► one Raft entry = one encoded batch ─► SegmentLog (Disk seam)
//!                                       │ commit                └► Network (Transport seam) ─► peers
//!                                       ▼
//!                                  StateMachine ─► core::apply ─► Backend (seam) ─► Listener (watch hub)
//! ```
//!
//! Everything that touches the world stands behind four traits, so that a simulator can supply its own: `Disk` (the
//! log's files and their fsync), `Backend` (state), `Transport` (messages to peers) and openraft's `AsyncRuntime`.
//! tokio's channels and timers are used, never `spawn_blocking`, threads or an unbiased `select!`.
//!
//! Entry points: `Replica::start`, then `Replica::propose`, `Replica::read_index`; a peer's message goes to
//! `Replica::receive`.

pub mod backend;
pub mod log;
pub mod machine;
pub mod network;
mod prompt;
pub mod proposer;
pub mod reads;
pub mod replica;
pub mod restore;
mod trim;
pub mod types;

pub use backend::{Backend, Chunks, MemoryStore, SnapshotReader, SnapshotWriter};
pub use log::{Disk, FileDisk, LogError, SegmentLog};
pub use machine::{Listener, Shared, StateMachine};
pub use network::{Network, Reply, Request, Transport, TransportError};
pub use prompt::prompt_thread;
pub use reads::Seen;
pub use replica::{Raft, Replica, ReplicaConfig, ReplicaError};
pub use restore::Beginning;
pub use types::{Applied, LogId, Node, Payload, TypeConfig};
