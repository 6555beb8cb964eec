//! What is asked and what is answered, and what of an answer is a fact.
//!
//! Not facts: the cluster's and the member's id, the Raft term, the ids of leases that servers choose (each server's
//! own stand behind placeholders), the order of leases and of a lease's keys, the seconds that a lease has left.

use std::collections::BTreeMap;

use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::request_op::Request;
use keelson_store_proto::etcdserverpb::response_op::Response;
use keelson_store_proto::mvccpb;
use tonic::Status;

/// From here on lease ids stand for those that servers chose: the n-th is `SERVER_CHOSEN + n`.
pub const SERVER_CHOSEN: i64 = 1_000_000;
/// A watch id that no watcher has.
pub const NOT_OPEN: i64 = 1_000_000;
/// A run never takes so many seconds.
const LONGEST_RUN: i64 = 40_000;

/// One call.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    Range(pb::RangeRequest),
    /// As a stream, where the server has that.
    RangeStream(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    KeepAlive(pb::LeaseKeepAliveRequest),
    TimeToLive(pb::LeaseTimeToLiveRequest),
    Leases,
    Auth(Auth),
    /// `ends`: its start has been compacted, so that it ends at once.
    Watch {
        stream: usize,
        request: pb::WatchCreateRequest,
        ends: bool,
    },
    Cancel {
        stream: usize,
        id: i64,
    },
    /// `revision`: the store's, which the answer is at.
    Progress {
        stream: usize,
        revision: i64,
    },
}

/// A call to the service of users and roles.
#[derive(Clone, Debug, PartialEq)]
pub enum Auth {
    UserAdd(pb::AuthUserAddRequest),
    UserGet(pb::AuthUserGetRequest),
    UserList(pb::AuthUserListRequest),
    UserDelete(pb::AuthUserDeleteRequest),
    UserGrantRole(pb::AuthUserGrantRoleRequest),
    UserRevokeRole(pb::AuthUserRevokeRoleRequest),
    RoleAdd(pb::AuthRoleAddRequest),
    RoleGet(pb::AuthRoleGetRequest),
    RoleList(pb::AuthRoleListRequest),
    RoleDelete(pb::AuthRoleDeleteRequest),
    RoleGrantPermission(pb::AuthRoleGrantPermissionRequest),
    RoleRevokePermission(pb::AuthRoleRevokePermissionRequest),
    Status(pb::AuthStatusRequest),
    Enable(pb::AuthEnableRequest),
    Authenticate(pb::AuthenticateRequest),
}

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Range(pb::RangeResponse),
    Put(pb::PutResponse),
    Delete(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Compact(pb::CompactionResponse),
    Grant(pb::LeaseGrantResponse),
    Revoke(pb::LeaseRevokeResponse),
    KeepAlive(pb::LeaseKeepAliveResponse),
    TimeToLive(pb::LeaseTimeToLiveResponse),
    Leases(pb::LeaseLeasesResponse),
    /// An answer of the auth service, printed.
    Auth(String),
    /// Answers that opened or ended a watcher; the revision of a request for progress.
    Watch(Vec<pb::WatchResponse>),
    Error {
        code: i32,
        message: String,
    },
}

impl From<Status> for Answer {
    fn from(status: Status) -> Answer {
        Answer::Error { code: status.code() as i32, message: status.message().to_owned() }
    }
}

/// Leaves the revision of a header alone.
pub fn bare(header: &mut Option<pb::ResponseHeader>) {
    if let Some(header) = header {
        *header = pb::ResponseHeader { revision: header.revision, ..Default::default() };
    }
}

/// The ids that one server chose for leases, by placeholder.
#[derive(Default)]
pub struct Leases {
    chosen: BTreeMap<i64, i64>,
}

impl Leases {
    /// Takes in what a server answered to a grant without an id.
    pub fn learn(&mut self, id: i64) {
        assert!(id > 2 * SERVER_CHOSEN, "a server chose {id} for a lease, which clients might have");
        self.chosen.insert(SERVER_CHOSEN + self.chosen.len() as i64, id);
    }

    fn sent(&self, id: &mut i64) {
        if let Some(own) = self.chosen.get(id) {
            *id = *own;
        }
    }

    fn received(&self, id: &mut i64) {
        // Ids that servers choose are large; those of clients are not looked for.
        if *id > SERVER_CHOSEN {
            let known = self.chosen.iter().find(|(_, own)| *own == id);
            *id = known.map_or(*id, |(placeholder, _)| *placeholder);
        }
    }

    fn sent_txn(&self, txn: &mut pb::TxnRequest) {
        for operation in txn.success.iter_mut().chain(&mut txn.failure) {
            match &mut operation.request {
                Some(Request::RequestPut(r)) => self.sent(&mut r.lease),
                Some(Request::RequestTxn(r)) => self.sent_txn(r),
                Some(Request::RequestRange(_) | Request::RequestDeleteRange(_)) | None => {}
            }
        }
    }

    /// The operation as this server is asked it.
    pub fn outgoing(&self, operation: &Operation) -> Operation {
        let mut operation = operation.clone();
        match &mut operation {
            Operation::Put(r) => self.sent(&mut r.lease),
            Operation::Txn(r) => self.sent_txn(r),
            Operation::Revoke(r) => self.sent(&mut r.id),
            Operation::KeepAlive(r) => self.sent(&mut r.id),
            Operation::TimeToLive(r) => self.sent(&mut r.id),
            _ => {}
        }
        operation
    }

    /// A record with the placeholder for its lease.
    pub fn record(&self, kv: &mut mvccpb::KeyValue) {
        self.received(&mut kv.lease);
    }

    fn records(&self, kvs: &mut [mvccpb::KeyValue]) {
        kvs.iter_mut().for_each(|kv| self.record(kv));
    }

    fn received_txn(&self, txn: &mut pb::TxnResponse) {
        bare(&mut txn.header);
        for response in &mut txn.responses {
            match &mut response.response {
                Some(Response::ResponseRange(r)) => {
                    bare(&mut r.header);
                    self.records(&mut r.kvs);
                }
                Some(Response::ResponsePut(r)) => {
                    bare(&mut r.header);
                    r.prev_kv.iter_mut().for_each(|kv| self.record(kv));
                }
                Some(Response::ResponseDeleteRange(r)) => {
                    bare(&mut r.header);
                    self.records(&mut r.prev_kvs);
                }
                Some(Response::ResponseTxn(r)) => self.received_txn(r),
                None => {}
            }
        }
    }

    /// What of an answer is a fact.
    pub fn incoming(&self, answer: &mut Answer) {
        match answer {
            Answer::Range(r) => {
                bare(&mut r.header);
                self.records(&mut r.kvs);
            }
            Answer::Put(r) => {
                bare(&mut r.header);
                r.prev_kv.iter_mut().for_each(|kv| self.record(kv));
            }
            Answer::Delete(r) => {
                bare(&mut r.header);
                self.records(&mut r.prev_kvs);
            }
            Answer::Txn(r) => self.received_txn(r),
            Answer::Compact(r) => bare(&mut r.header),
            Answer::Grant(r) => {
                bare(&mut r.header);
                self.received(&mut r.id);
            }
            Answer::Revoke(r) => bare(&mut r.header),
            Answer::KeepAlive(r) => {
                bare(&mut r.header);
                self.received(&mut r.id);
            }
            Answer::TimeToLive(r) => {
                bare(&mut r.header);
                self.received(&mut r.id);
                if (r.granted_ttl - LONGEST_RUN).max(1) <= r.ttl && r.ttl <= r.granted_ttl {
                    r.ttl = r.granted_ttl;
                }
                r.keys.sort();
            }
            Answer::Leases(r) => {
                bare(&mut r.header);
                r.leases.iter_mut().for_each(|lease| self.received(&mut lease.id));
                r.leases.sort_by_key(|lease| lease.id);
            }
            Answer::Watch(responses) => responses.iter_mut().for_each(|r| bare(&mut r.header)),
            Answer::Auth(_) | Answer::Error { .. } => {}
        }
    }
}

/// The store's revision as an answer's header has it.
pub fn revision(answer: &Answer) -> Option<i64> {
    let header = match answer {
        Answer::Range(r) => &r.header,
        Answer::Put(r) => &r.header,
        Answer::Delete(r) => &r.header,
        Answer::Txn(r) => &r.header,
        Answer::Compact(r) => &r.header,
        Answer::Revoke(r) => &r.header,
        _ => return None,
    };
    header.as_ref().map(|header| header.revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_s_own_lease_ids_stand_behind_the_same_placeholder() {
        let (mut a, mut b) = (Leases::default(), Leases::default());
        a.learn(7_000_001);
        b.learn(9_000_002);
        let operation = Operation::Revoke(pb::LeaseRevokeRequest { id: SERVER_CHOSEN });
        let own = |leases: &Leases| match leases.outgoing(&operation) {
            Operation::Revoke(r) => r.id,
            other => panic!("{other:?}"),
        };
        assert_eq!((own(&a), own(&b)), (7_000_001, 9_000_002));
        let answer = |id| Answer::KeepAlive(pb::LeaseKeepAliveResponse { id, ttl: 3, header: None });
        let (mut first, mut second) = (answer(7_000_001), answer(9_000_002));
        a.incoming(&mut first);
        b.incoming(&mut second);
        assert_eq!(first, second);
    }
}
