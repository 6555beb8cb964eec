//! The store at the wire.
