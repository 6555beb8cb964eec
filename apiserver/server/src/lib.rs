//! The API server's shell.
