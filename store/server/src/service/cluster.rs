//! Cluster: members added, removed, updated, promoted, listed.

use keelson_store_core::{Error, Member};
use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::cluster_server::Cluster;
use keelson_store_raft::network::MemberChange;
use tonic::{Request, Response, Status};

use super::Services;
use crate::config::Endpoint;
use crate::convert::{self, status};

fn list(members: &[Member]) -> Vec<pb::Member> {
    members.iter().map(convert::member).collect()
}

impl Services {
    fn member_header(&self) -> Option<pb::ResponseHeader> {
        self.handle.headers().at(0)
    }
}

#[tonic::async_trait]
impl Cluster for Services {
    async fn member_add(
        &self,
        r: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let handle = self.by(&r).into_owned();
        let request = r.into_inner();
        let id = handle.add_member("", request.peer_ur_ls, request.is_learner).await?;
        let members = self.handle.members().await?;
        Ok(Response::new(pb::MemberAddResponse {
            header: self.member_header(),
            member: members.iter().find(|member| member.id == id).map(convert::member),
            members: list(&members),
        }))
    }

    async fn member_remove(
        &self,
        r: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        self.by(&r).remove_member(r.get_ref().id).await?;
        let members = self.handle.members().await?;
        Ok(Response::new(pb::MemberRemoveResponse { header: self.member_header(), members: list(&members) }))
    }

    async fn member_update(
        &self,
        r: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let handle = self.by(&r).into_owned();
        let request = r.into_inner();
        handle.voters_only()?;
        let (id, peer_urls) = (request.id, request.peer_ur_ls);
        if peer_urls.is_empty() || peer_urls.iter().any(|url| Endpoint::parse(url).is_err()) {
            return Err(status(Error::InvalidMemberUrls));
        }
        handle.allowed_admin().await?;
        let members = self.handle.members().await?;
        if members.iter().all(|member| member.id != id) {
            return Err(status(Error::MemberNotFound));
        }
        let change = MemberChange::Update { id, peer_urls: peer_urls.clone() };
        let shows = |members: &keelson_store_core::Members| {
            members.get(id).is_none_or(|member| member.peer_urls == peer_urls)
        };
        let members = self.handle.change(change, shows).await?;
        Ok(Response::new(pb::MemberUpdateResponse { header: self.member_header(), members: list(&members) }))
    }

    async fn member_list(
        &self,
        r: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        Etcd::member_list(&*self.by(&r), r.into_inner()).await.map(Response::new)
    }

    async fn member_promote(
        &self,
        r: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        self.by(&r).promote_member(r.get_ref().id).await?;
        let members = self.handle.members().await?;
        Ok(Response::new(pb::MemberPromoteResponse { header: self.member_header(), members: list(&members) }))
    }
}
