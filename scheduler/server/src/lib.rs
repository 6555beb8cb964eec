//! The scheduler's shell.
