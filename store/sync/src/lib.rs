//! Hand-written concurrency of the store, checked by loom.
