//! Request semantics, pure.
