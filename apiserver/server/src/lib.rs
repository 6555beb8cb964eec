//! The API server's shell: HTTPS, authentication, storage over the etcd seam, watch caches, streams.
pub mod cache;
pub mod config;
pub mod hub;
pub mod object;
pub mod request;
pub mod respond;
pub mod storage;
pub use config::{Config, Extra, Peer, Pki};
