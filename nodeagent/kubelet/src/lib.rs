//! The kubelet's shell over CRI.
