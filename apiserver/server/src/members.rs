//! The store's members, for the console.

use std::sync::Arc;

use keelson_api::Status;
use keelson_store_proto::etcdserverpb::{MemberListRequest, StatusRequest};
use serde_json::json;

use crate::respond::{self, Response};
use crate::server::Server;
use crate::storage::store_error;

/// Where it is served.
pub const PATH: &str = "/keelson/v1/store/members";

/// Who is in the store's cluster, and what the member we speak with says of itself.
///
/// # Errors
/// 503 when the store does not answer.
pub async fn answer(server: &Arc<Server>) -> Result<Response, Status> {
    let etcd = server.storage.etcd();
    let limit = std::time::Duration::from_secs(5);
    let asked = async {
        tokio::try_join!(
            etcd.member_list(MemberListRequest::default()),
            etcd.status(StatusRequest::default())
        )
    };
    let late = |_| Status::unavailable("the store does not answer; look at its members' logs");
    let (list, status) =
        tokio::time::timeout(limit, asked).await.map_err(late)?.map_err(|e| store_error(&e))?;
    let members: Vec<_> = list
        .members
        .iter()
        .map(|m| {
            json!({"id": format!("{:x}", m.id), "name": m.name, "peerURLs": m.peer_ur_ls, "clientURLs": m.client_ur_ls,
                   "isLearner": m.is_learner, "isLeader": m.id == status.leader})
        })
        .collect();
    let revision = status.header.as_ref().map_or(0, |h| h.revision);
    Ok(respond::json(
        200,
        &json!({"members": members, "leader": format!("{:x}", status.leader), "revision": revision, "dbSize": status.db_size,
                "version": status.version, "raftTerm": status.raft_term, "raftIndex": status.raft_index}),
    ))
}
