//! Scheduling framework and plugins, pure.
