//! openraft adaptor: type config, log storage and state machine over seams, no RocksDB, no gRPC.
