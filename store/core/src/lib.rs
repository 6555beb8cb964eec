//! Pure semantics of the etcd v3 store.
