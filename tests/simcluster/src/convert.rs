//! Between etcd's messages and the core's, as far as the API server uses them.

use keelson_store_core as core;
use keelson_store_proto::etcdserverpb::compare::TargetUnion;
use keelson_store_proto::etcdserverpb::request_op::Request as Op;
use keelson_store_proto::etcdserverpb::response_op::Response as Answer;
use keelson_store_proto::etcdserverpb::*;
use keelson_store_proto::mvccpb;
use tonic::Status;

pub fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: 1, member_id: 1, revision, raft_term: 1 })
}

pub fn kv(kv: core::KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

pub fn range_in(r: &RangeRequest) -> core::RangeRequest {
    core::RangeRequest {
        key: r.key.clone(),
        range_end: r.range_end.clone(),
        limit: r.limit,
        revision: r.revision,
        keys_only: r.keys_only,
        count_only: r.count_only,
        ..core::RangeRequest::default()
    }
}

pub fn range_out(r: core::RangeResponse) -> RangeResponse {
    RangeResponse {
        header: header(r.revision),
        kvs: r.kvs.into_iter().map(kv).collect(),
        more: r.more,
        count: r.count,
    }
}

pub fn put_in(p: &PutRequest) -> core::PutRequest {
    core::PutRequest {
        key: p.key.clone(),
        value: p.value.clone(),
        lease: p.lease,
        ..core::PutRequest::default()
    }
}

pub fn delete_in(d: &DeleteRangeRequest) -> core::DeleteRangeRequest {
    core::DeleteRangeRequest { key: d.key.clone(), range_end: d.range_end.clone(), prev_kv: d.prev_kv }
}

pub fn ops(ops: &[RequestOp]) -> Vec<core::RequestOp> {
    ops.iter()
        .map(|op| match &op.request {
            Some(Op::RequestRange(r)) => core::RequestOp::Range(range_in(r)),
            Some(Op::RequestPut(p)) => core::RequestOp::Put(put_in(p)),
            Some(Op::RequestDeleteRange(d)) => core::RequestOp::DeleteRange(delete_in(d)),
            Some(Op::RequestTxn(t)) => core::RequestOp::Txn(txn_in(t)),
            None => core::RequestOp::Unset,
        })
        .collect()
}

/// The comparisons that the API server makes: equality of modification revisions.
pub fn txn_in(t: &TxnRequest) -> core::TxnRequest {
    let compare = t.compare.iter().map(|c| {
        let Some(TargetUnion::ModRevision(revision)) = c.target_union else {
            panic!("unexpected comparison {c:?}")
        };
        core::Compare {
            key: c.key.clone(),
            range_end: c.range_end.clone(),
            result: core::CompareResult::Equal,
            target: core::CompareTarget::Mod(revision),
        }
    });
    core::TxnRequest { compare: compare.collect(), success: ops(&t.success), failure: ops(&t.failure) }
}

pub fn txn_out(t: core::TxnResponse) -> TxnResponse {
    let answers = t.responses.into_iter().map(|r| {
        let response = match r {
            core::ResponseOp::Range(r) => Answer::ResponseRange(range_out(r)),
            core::ResponseOp::Put(p) => {
                Answer::ResponsePut(PutResponse { header: header(p.revision), prev_kv: p.prev_kv.map(kv) })
            }
            core::ResponseOp::DeleteRange(d) => Answer::ResponseDeleteRange(DeleteRangeResponse {
                header: header(d.revision),
                deleted: d.deleted,
                prev_kvs: d.prev_kvs.into_iter().map(kv).collect(),
            }),
            core::ResponseOp::Txn(t) => Answer::ResponseTxn(txn_out(t)),
        };
        ResponseOp { response: Some(response) }
    });
    TxnResponse { header: header(t.revision), succeeded: t.succeeded, responses: answers.collect() }
}

/// As the store's own door: what may have been carried out is unavailable, a refusal is a refusal.
pub fn failed(error: core::Error) -> Status {
    use core::Error::{
        Compacted, FutureRevision, LeaderChanged, NoLeader, NotLeader, Stopped, Timeout,
        TimeoutDueToConnectionLost, TimeoutWaitAppliedIndex,
    };
    match error {
        Compacted | FutureRevision => Status::out_of_range(error.to_string()),
        LeaderChanged
        | NoLeader
        | NotLeader
        | Stopped
        | Timeout
        | TimeoutDueToConnectionLost
        | TimeoutWaitAppliedIndex => Status::unavailable(error.to_string()),
        other => Status::failed_precondition(other.to_string()),
    }
}
