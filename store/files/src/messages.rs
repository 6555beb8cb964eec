//! Messages of etcd's log and lease files, beside those of its API.

use bytes::Bytes;
use keelson_store_proto::etcdserverpb as pb;
use prost::Message;

/// One record of a write-ahead log.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    #[prost(int64, tag = "1")]
    pub kind: i64,
    #[prost(uint32, tag = "2")]
    pub crc: u32,
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub data: Option<Bytes>,
}

/// Whose log it is.
#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    #[prost(uint64, tag = "1")]
    pub node_id: u64,
    #[prost(uint64, tag = "2")]
    pub cluster_id: u64,
}

/// What Raft promised.
#[derive(Clone, PartialEq, Message)]
pub struct HardState {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(uint64, tag = "2")]
    pub vote: u64,
    #[prost(uint64, tag = "3")]
    pub commit: u64,
}

/// One entry of the Raft log.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    /// 0 a request, 1 a change of the membership, 2 one of the newer form.
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(uint64, tag = "2")]
    pub term: u64,
    #[prost(uint64, tag = "3")]
    pub index: u64,
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub data: Option<Bytes>,
}

/// A change of one member.
#[derive(Clone, PartialEq, Message)]
pub struct ConfChange {
    /// 0 add a voter, 1 remove, 2 update, 3 add a learner.
    #[prost(int32, tag = "2")]
    pub kind: i32,
    #[prost(uint64, tag = "3")]
    pub node_id: u64,
    /// The member as JSON.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub context: Option<Bytes>,
}

/// A lease as the `lease` bucket keeps it.
#[derive(Clone, PartialEq, Message)]
pub struct Lease {
    #[prost(int64, tag = "1")]
    pub id: i64,
    #[prost(int64, tag = "2")]
    pub ttl: i64,
    #[prost(int64, tag = "3")]
    pub remaining_ttl: i64,
}

/// Who asked.
#[derive(Clone, PartialEq, Message)]
pub struct RequestHeader {
    #[prost(string, tag = "2")]
    pub username: String,
    #[prost(uint64, tag = "3")]
    pub auth_revision: u64,
}

/// A member's name and client URLs.
#[derive(Clone, PartialEq, Message)]
pub struct Attributes {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, repeated, tag = "2")]
    pub client_urls: Vec<String>,
}

/// A member says who it is.
#[derive(Clone, PartialEq, Message)]
pub struct MemberAttributes {
    #[prost(uint64, tag = "1")]
    pub member_id: u64,
    #[prost(message, optional, tag = "2")]
    pub attributes: Option<Attributes>,
}

/// A request of the v2 API, which shares the log.
#[derive(Clone, PartialEq, Message)]
pub struct V2Request {
    #[prost(string, tag = "2")]
    pub method: String,
    #[prost(string, tag = "3")]
    pub path: String,
}

/// The request in an entry; what changes nothing here (reads, versions, tokens, lease checkpoints) is left out.
#[derive(Clone, PartialEq, Message)]
pub struct InternalRequest {
    #[prost(message, optional, tag = "4")]
    pub put: Option<pb::PutRequest>,
    #[prost(message, optional, tag = "5")]
    pub delete_range: Option<pb::DeleteRangeRequest>,
    #[prost(message, optional, tag = "6")]
    pub txn: Option<pb::TxnRequest>,
    #[prost(message, optional, tag = "7")]
    pub compaction: Option<pb::CompactionRequest>,
    #[prost(message, optional, tag = "8")]
    pub lease_grant: Option<pb::LeaseGrantRequest>,
    #[prost(message, optional, tag = "9")]
    pub lease_revoke: Option<pb::LeaseRevokeRequest>,
    #[prost(message, optional, tag = "10")]
    pub alarm: Option<pb::AlarmRequest>,
    #[prost(message, optional, tag = "100")]
    pub header: Option<RequestHeader>,
    #[prost(message, optional, tag = "1000")]
    pub auth_enable: Option<pb::AuthEnableRequest>,
    #[prost(message, optional, tag = "1011")]
    pub auth_disable: Option<pb::AuthDisableRequest>,
    #[prost(message, optional, tag = "1100")]
    pub user_add: Option<pb::AuthUserAddRequest>,
    #[prost(message, optional, tag = "1101")]
    pub user_delete: Option<pb::AuthUserDeleteRequest>,
    #[prost(message, optional, tag = "1103")]
    pub user_change_password: Option<pb::AuthUserChangePasswordRequest>,
    #[prost(message, optional, tag = "1104")]
    pub user_grant_role: Option<pb::AuthUserGrantRoleRequest>,
    #[prost(message, optional, tag = "1105")]
    pub user_revoke_role: Option<pb::AuthUserRevokeRoleRequest>,
    #[prost(message, optional, tag = "1200")]
    pub role_add: Option<pb::AuthRoleAddRequest>,
    #[prost(message, optional, tag = "1201")]
    pub role_delete: Option<pb::AuthRoleDeleteRequest>,
    #[prost(message, optional, tag = "1203")]
    pub role_grant_permission: Option<pb::AuthRoleGrantPermissionRequest>,
    #[prost(message, optional, tag = "1204")]
    pub role_revoke_permission: Option<pb::AuthRoleRevokePermissionRequest>,
    #[prost(message, optional, tag = "1301")]
    pub member_attributes: Option<MemberAttributes>,
}

/// A header's newest field.
#[derive(Clone, PartialEq, Message)]
pub struct HeaderSigns {
    #[prost(uint64, tag = "4")]
    pub requester_member_id: u64,
}

/// The cluster agrees on a version.
#[derive(Clone, PartialEq, Message)]
pub struct ClusterVersionSet {
    #[prost(string, tag = "1")]
    pub version: String,
}

/// Fields of a request that only some versions of etcd understand.
#[derive(Clone, PartialEq, Message)]
pub struct VersionSigns {
    #[prost(message, optional, tag = "100")]
    pub header: Option<HeaderSigns>,
    #[prost(message, optional, tag = "1300")]
    pub cluster_version: Option<ClusterVersionSet>,
    #[prost(bytes = "bytes", optional, tag = "9900")]
    pub downgrade_test: Option<Bytes>,
}
