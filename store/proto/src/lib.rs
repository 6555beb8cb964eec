//! etcd's v3 API on the wire: the messages and services generated from `proto/`, and the seam
//! (`client::Etcd`) through which everything above the store speaks it.
//!
//! The .proto files are our own writing of etcd's public contract (names and numbers only). The
//! generated modules keep etcd's package names. `bytes` fields are `Bytes`, so keys and values are
//! slices of the received frame, not copies.

/// `mvccpb`: the stored record and its change event.
#[allow(missing_docs, clippy::all)]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// `authpb`: users, roles, permissions.
#[allow(missing_docs, clippy::all)]
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// `etcdserverpb`: KV, Watch, Lease, Cluster, Maintenance, Auth.
#[allow(missing_docs, clippy::all)]
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// `v3lockpb`: the lock service.
#[allow(missing_docs, clippy::all)]
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}

/// `v3electionpb`: the election service.
#[allow(missing_docs, clippy::all)]
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}

/// `grpc.health.v1`: the standard health service.
#[allow(missing_docs, clippy::all)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// The descriptors of all of the above: an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub mod client;
