//! API machinery.
