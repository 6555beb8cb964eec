//! The cluster at the wire.
