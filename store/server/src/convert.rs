//! Between the wire's messages and the core's types. Nothing is decided here, except that a number without a meaning is
//! left for `check` to refuse.

use keelson_store_core as core;
use keelson_store_core::Error;
use keelson_store_core::watch::{WatchCreate, WatchResponse as CoreWatchResponse};
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::compare::TargetUnion;
use keelson_store_proto::etcdserverpb::request_op::Request;
use keelson_store_proto::etcdserverpb::response_op::Response;
use keelson_store_proto::mvccpb;
use tonic::{Code, Status};

/// etcd's status for a refusal: code and text, nothing else.
pub fn status(error: Error) -> Status {
    Status::new(Code::from(error.code() as i32), error.to_string())
}

pub fn range(r: pb::RangeRequest) -> core::RangeRequest {
    core::RangeRequest {
        key: r.key,
        range_end: r.range_end,
        limit: r.limit,
        revision: r.revision,
        sort_order: core::SortOrder::from_wire(r.sort_order),
        sort_target: core::SortTarget::from_wire(r.sort_target),
        keys_only: r.keys_only,
        count_only: r.count_only,
        min_mod_revision: r.min_mod_revision,
        max_mod_revision: r.max_mod_revision,
        min_create_revision: r.min_create_revision,
        max_create_revision: r.max_create_revision,
    }
}

pub fn put(r: pb::PutRequest) -> core::PutRequest {
    core::PutRequest {
        key: r.key,
        value: r.value,
        lease: r.lease,
        prev_kv: r.prev_kv,
        ignore_value: r.ignore_value,
        ignore_lease: r.ignore_lease,
    }
}

pub fn delete_range(r: pb::DeleteRangeRequest) -> core::DeleteRangeRequest {
    core::DeleteRangeRequest { key: r.key, range_end: r.range_end, prev_kv: r.prev_kv }
}

pub fn txn(r: pb::TxnRequest) -> core::TxnRequest {
    core::TxnRequest {
        compare: r.compare.into_iter().map(compare).collect(),
        success: r.success.into_iter().map(request_op).collect(),
        failure: r.failure.into_iter().map(request_op).collect(),
    }
}

fn request_op(op: pb::RequestOp) -> core::RequestOp {
    match op.request {
        Some(Request::RequestRange(r)) => core::RequestOp::Range(range(r)),
        Some(Request::RequestPut(r)) => core::RequestOp::Put(put(r)),
        Some(Request::RequestDeleteRange(r)) => core::RequestOp::DeleteRange(delete_range(r)),
        Some(Request::RequestTxn(r)) => core::RequestOp::Txn(txn(r)),
        None => core::RequestOp::Unset,
    }
}

/// An operand of another kind than the target counts as absent, and an absent one as zero.
fn compare(c: pb::Compare) -> core::Compare {
    use core::CompareTarget as Target;
    use pb::compare::CompareTarget as Wire;
    let union = c.target_union;
    let target = match Wire::try_from(c.target).unwrap_or(Wire::Version) {
        Wire::Version => Target::Version(match union {
            Some(TargetUnion::Version(v)) => v,
            _ => 0,
        }),
        Wire::Create => Target::Create(match union {
            Some(TargetUnion::CreateRevision(v)) => v,
            _ => 0,
        }),
        Wire::Mod => Target::Mod(match union {
            Some(TargetUnion::ModRevision(v)) => v,
            _ => 0,
        }),
        Wire::Value => Target::Value(match union {
            Some(TargetUnion::Value(v)) => v,
            _ => bytes::Bytes::new(),
        }),
        Wire::Lease => Target::Lease(match union {
            Some(TargetUnion::Lease(v)) => v,
            _ => 0,
        }),
    };
    let result = match pb::compare::CompareResult::try_from(c.result) {
        Ok(pb::compare::CompareResult::Greater) => core::CompareResult::Greater,
        Ok(pb::compare::CompareResult::Less) => core::CompareResult::Less,
        Ok(pb::compare::CompareResult::NotEqual) => core::CompareResult::NotEqual,
        Ok(pb::compare::CompareResult::Equal) | Err(_) => core::CompareResult::Equal,
    };
    core::Compare { key: c.key, range_end: c.range_end, result, target }
}

pub fn key_value(kv: core::KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

/// Fills in who answers; `revision` is the store's.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    pub cluster_id: u64,
    pub member_id: u64,
    pub raft_term: u64,
}

impl Headers {
    pub fn at(&self, revision: i64) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            revision,
            raft_term: self.raft_term,
        })
    }

    pub fn range(&self, r: core::RangeResponse) -> pb::RangeResponse {
        pb::RangeResponse { header: self.at(r.revision), ..bare_range(r) }
    }

    pub fn put(&self, r: core::PutResponse) -> pb::PutResponse {
        pb::PutResponse { header: self.at(r.revision), prev_kv: r.prev_kv.map(key_value) }
    }

    pub fn delete_range(&self, r: core::DeleteRangeResponse) -> pb::DeleteRangeResponse {
        pb::DeleteRangeResponse { header: self.at(r.revision), ..bare_delete(r) }
    }

    pub fn txn(&self, r: core::TxnResponse) -> pb::TxnResponse {
        pb::TxnResponse { header: self.at(r.revision), ..bare_txn(r) }
    }

    pub fn watch(&self, r: CoreWatchResponse) -> pb::WatchResponse {
        pb::WatchResponse {
            header: self.at(r.revision),
            watch_id: r.watch_id,
            created: r.created,
            canceled: r.canceled,
            compact_revision: r.compact_revision,
            cancel_reason: r.cancel_reason.to_owned(),
            fragment: r.fragment,
            events: r.events.into_iter().map(event).collect(),
        }
    }
}

/// Inside a Txn only the revision of a header is set.
fn inner(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..pb::ResponseHeader::default() })
}

fn bare_range(r: core::RangeResponse) -> pb::RangeResponse {
    pb::RangeResponse {
        header: inner(r.revision),
        kvs: r.kvs.into_iter().map(key_value).collect(),
        more: r.more,
        count: r.count,
    }
}

fn bare_delete(r: core::DeleteRangeResponse) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header: inner(r.revision),
        deleted: r.deleted,
        prev_kvs: r.prev_kvs.into_iter().map(key_value).collect(),
    }
}

fn bare_txn(r: core::TxnResponse) -> pb::TxnResponse {
    pb::TxnResponse {
        header: inner(r.revision),
        succeeded: r.succeeded,
        responses: r.responses.into_iter().map(response_op).collect(),
    }
}

fn response_op(op: core::ResponseOp) -> pb::ResponseOp {
    let response = match op {
        core::ResponseOp::Range(r) => Response::ResponseRange(bare_range(r)),
        core::ResponseOp::Put(r) => Response::ResponsePut(pb::PutResponse {
            header: inner(r.revision),
            prev_kv: r.prev_kv.map(key_value),
        }),
        core::ResponseOp::DeleteRange(r) => Response::ResponseDeleteRange(bare_delete(r)),
        // etcd leaves the header of a nested Txn empty but present.
        core::ResponseOp::Txn(r) => Response::ResponseTxn(pb::TxnResponse {
            header: Some(pb::ResponseHeader::default()),
            ..bare_txn(r)
        }),
    };
    pb::ResponseOp { response: Some(response) }
}

fn event(event: core::WatchEvent) -> mvccpb::Event {
    let kind = match event.kind {
        core::EventType::Put => mvccpb::event::EventType::Put,
        core::EventType::Delete => mvccpb::event::EventType::Delete,
    };
    mvccpb::Event {
        r#type: kind.into(),
        kv: Some(key_value(event.kv)),
        prev_kv: event.prev_kv.map(key_value),
    }
}

pub fn watch_create(r: pb::WatchCreateRequest) -> WatchCreate {
    use pb::watch_create_request::FilterType;
    let filtered = |kind: FilterType| r.filters.contains(&(kind as i32));
    WatchCreate {
        no_put: filtered(FilterType::Noput),
        no_delete: filtered(FilterType::Nodelete),
        key: r.key,
        range_end: r.range_end,
        start_revision: r.start_revision,
        progress_notify: r.progress_notify,
        prev_kv: r.prev_kv,
        watch_id: r.watch_id,
        fragment: r.fragment,
    }
}

pub fn member(member: &core::Member) -> pb::Member {
    pb::Member {
        id: member.id,
        name: member.name.clone(),
        peer_ur_ls: member.peer_urls.clone(),
        client_ur_ls: member.client_urls.clone(),
        is_learner: member.is_learner,
    }
}

pub fn alarm(alarm: &core::Alarm) -> pb::AlarmMember {
    let kind = match alarm.alarm {
        core::AlarmType::NoSpace => pb::AlarmType::Nospace,
        core::AlarmType::Corrupt => pb::AlarmType::Corrupt,
    };
    pb::AlarmMember { member_id: alarm.member, alarm: kind.into() }
}
