//! Which path calls which method: the whole list.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use http::uri::PathAndQuery;
use prost_reflect::{DescriptorPool, MessageDescriptor};

/// Path of the gateway, service and method; the paths are etcd's.
const ROUTES: &[(&str, &str, &str)] = &[
    ("/v3/kv/range", "etcdserverpb.KV", "Range"),
    ("/v3/kv/put", "etcdserverpb.KV", "Put"),
    ("/v3/kv/deleterange", "etcdserverpb.KV", "DeleteRange"),
    ("/v3/kv/txn", "etcdserverpb.KV", "Txn"),
    ("/v3/kv/compaction", "etcdserverpb.KV", "Compact"),
    ("/v3/watch", "etcdserverpb.Watch", "Watch"),
    ("/v3/lease/grant", "etcdserverpb.Lease", "LeaseGrant"),
    ("/v3/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("/v3/kv/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("/v3/lease/keepalive", "etcdserverpb.Lease", "LeaseKeepAlive"),
    ("/v3/lease/timetolive", "etcdserverpb.Lease", "LeaseTimeToLive"),
    ("/v3/kv/lease/timetolive", "etcdserverpb.Lease", "LeaseTimeToLive"),
    ("/v3/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("/v3/kv/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("/v3/cluster/member/add", "etcdserverpb.Cluster", "MemberAdd"),
    ("/v3/cluster/member/remove", "etcdserverpb.Cluster", "MemberRemove"),
    ("/v3/cluster/member/update", "etcdserverpb.Cluster", "MemberUpdate"),
    ("/v3/cluster/member/list", "etcdserverpb.Cluster", "MemberList"),
    ("/v3/cluster/member/promote", "etcdserverpb.Cluster", "MemberPromote"),
    ("/v3/maintenance/alarm", "etcdserverpb.Maintenance", "Alarm"),
    ("/v3/maintenance/status", "etcdserverpb.Maintenance", "Status"),
    ("/v3/maintenance/defragment", "etcdserverpb.Maintenance", "Defragment"),
    ("/v3/maintenance/hash", "etcdserverpb.Maintenance", "Hash"),
    ("/v3/maintenance/hashkv", "etcdserverpb.Maintenance", "HashKV"),
    ("/v3/maintenance/snapshot", "etcdserverpb.Maintenance", "Snapshot"),
    ("/v3/maintenance/transfer-leadership", "etcdserverpb.Maintenance", "MoveLeader"),
    ("/v3/maintenance/downgrade", "etcdserverpb.Maintenance", "Downgrade"),
    ("/v3/auth/enable", "etcdserverpb.Auth", "AuthEnable"),
    ("/v3/auth/disable", "etcdserverpb.Auth", "AuthDisable"),
    ("/v3/auth/status", "etcdserverpb.Auth", "AuthStatus"),
    ("/v3/auth/authenticate", "etcdserverpb.Auth", "Authenticate"),
    ("/v3/auth/user/add", "etcdserverpb.Auth", "UserAdd"),
    ("/v3/auth/user/get", "etcdserverpb.Auth", "UserGet"),
    ("/v3/auth/user/list", "etcdserverpb.Auth", "UserList"),
    ("/v3/auth/user/delete", "etcdserverpb.Auth", "UserDelete"),
    ("/v3/auth/user/changepw", "etcdserverpb.Auth", "UserChangePassword"),
    ("/v3/auth/user/grant", "etcdserverpb.Auth", "UserGrantRole"),
    ("/v3/auth/user/revoke", "etcdserverpb.Auth", "UserRevokeRole"),
    ("/v3/auth/role/add", "etcdserverpb.Auth", "RoleAdd"),
    ("/v3/auth/role/get", "etcdserverpb.Auth", "RoleGet"),
    ("/v3/auth/role/list", "etcdserverpb.Auth", "RoleList"),
    ("/v3/auth/role/delete", "etcdserverpb.Auth", "RoleDelete"),
    ("/v3/auth/role/grant", "etcdserverpb.Auth", "RoleGrantPermission"),
    ("/v3/auth/role/revoke", "etcdserverpb.Auth", "RoleRevokePermission"),
    ("/v3/election/campaign", "v3electionpb.Election", "Campaign"),
    ("/v3/election/proclaim", "v3electionpb.Election", "Proclaim"),
    ("/v3/election/leader", "v3electionpb.Election", "Leader"),
    ("/v3/election/observe", "v3electionpb.Election", "Observe"),
    ("/v3/election/resign", "v3electionpb.Election", "Resign"),
    ("/v3/lock/lock", "v3lockpb.Lock", "Lock"),
    ("/v3/lock/unlock", "v3lockpb.Lock", "Unlock"),
];

/// What a path calls.
#[derive(Debug)]
pub(crate) struct Method {
    /// `/package.Service/Method`.
    pub grpc: PathAndQuery,
    pub input: MessageDescriptor,
    pub output: MessageDescriptor,
    /// The client may send many messages.
    pub takes_many: bool,
    /// The server may answer with many.
    pub answers_many: bool,
}

/// Descriptors of the API.
pub(crate) fn pool() -> DescriptorPool {
    DescriptorPool::decode(keelson_store_proto::DESCRIPTORS).expect("descriptors written by our build")
}

static METHODS: LazyLock<BTreeMap<&'static str, Method>> = LazyLock::new(|| {
    let pool = pool();
    let method = |(path, service, name): &(&'static str, &str, &str)| {
        let service = pool.get_service_by_name(service).expect("a service of the API");
        let method = service.methods().find(|method| method.name() == *name).expect("a method of the API");
        let grpc = format!("/{}/{name}", service.full_name());
        let method = Method {
            grpc: grpc.parse().expect("names make a path"),
            input: method.input(),
            output: method.output(),
            takes_many: method.is_client_streaming(),
            answers_many: method.is_server_streaming(),
        };
        (*path, method)
    };
    ROUTES.iter().map(method).collect()
});

/// What `path` calls, if anything.
pub(crate) fn method(path: &str) -> Option<&'static Method> {
    METHODS.get(path)
}

/// Every method of the API: service, method, whether the client may send many messages, whether the server may.
pub fn methods() -> Vec<(String, String, bool, bool)> {
    let mut methods = Vec::new();
    for service in pool().services() {
        methods.extend(service.methods().map(|method| {
            let (takes_many, answers_many) = (method.is_client_streaming(), method.is_server_streaming());
            (service.full_name().to_owned(), method.name().to_owned(), takes_many, answers_many)
        }));
    }
    methods
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_but_range_stream_and_health_has_a_path() {
        let reached: Vec<&str> =
            ROUTES.iter().map(|(path, ..)| method(path).expect("known").grpc.as_str()).collect();
        for service in pool().services() {
            for method in service.methods() {
                let grpc = format!("/{}/{}", service.full_name(), method.name());
                let without = grpc == "/etcdserverpb.KV/RangeStream" || grpc.starts_with("/grpc.health");
                assert_eq!(reached.contains(&grpc.as_str()), !without, "{grpc}");
            }
        }
    }
}
