//! etcd v3 wire messages.
