//! Reconcilers, pure.
