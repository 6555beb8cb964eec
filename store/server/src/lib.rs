//! The store's shell: openraft over HTTP/2 between members, RocksDB below, etcd's v3 API above.
//!
//! ```text
//! clients ─► listen ─► http ─► service ─► Handle ─► Replica (store/raft) ─► Rocks
//! peers   ─► listen ─► peer ───────────────────────►   │
//!                              watch ◄─ hub ◄──────────┘
//! ```
//!
//! Entry points: [`Store::start`] (embed), [`Handle`] (the API in process, `impl Etcd`), [`main`] (`keelson etcd`).
//! Nothing here decides what a request means: that is `keelson_store_core`.

mod auth;
mod autocompact;
mod calls;
mod config;
mod consistency;
mod convert;
mod discovery;
mod door;
mod facts;
mod failpoints;
mod flags;
mod gate;
mod handle;
mod health;
mod http;
mod identity;
mod keepalive;
mod listen;
mod logging;
mod long_range;
mod metrics;
mod peer;
mod process;
mod quota;
mod range_stream;
mod restore;
mod rocks;
mod rotate;
mod scrub;
mod service;
mod store;
mod strict;
mod tls;
mod traces;
mod utl;
mod watch;

pub use config::{
    Address, AutoCompaction, ClusterState, Config, Discovery, DnsSrv, Endpoint, TlsConfig, TlsVersions,
};
pub use handle::{CLUSTER_VERSION, ETCD_VERSION, Handle};
pub use keelson_store_raft::prompt_thread;
pub use process::main;
pub use rocks::{Memory, Rocks};
pub use store::Store;
pub use utl::main as utl_main;
