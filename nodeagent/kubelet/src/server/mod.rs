//! The node's HTTPS server: logs, exec, attach, port-forward, pods, health, statistics, metrics.

pub mod logs;
