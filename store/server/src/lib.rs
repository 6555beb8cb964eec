//! The store's shell: openraft, RocksDB, gRPC, HTTP.
