//! Auth: users, roles, permissions, tokens. Changes go through the log and are judged there.

use keelson_store_core::{
    Access, Auth as CoreAuth, AuthChange, Command, Error, Permission, Response as CoreResponse, State,
    auth::ROOT,
};
use keelson_store_proto::authpb;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::auth_server::Auth;
use tonic::{Request, Response, Status};

use super::Services;
use crate::auth::{Tokens, draw};
use crate::convert::status;
use crate::handle::{Handle, unexpected};

type Answer<T> = Result<Response<T>, Status>;

/// How often a password is compared again when users or roles changed meanwhile.
const AGAIN: usize = 8;

/// Makes a change in the caller's name; answers the header.
async fn change(handle: &Handle, change: AuthChange) -> Result<Option<pb::ResponseHeader>, Status> {
    handle.voters_only()?;
    match handle.propose_as_caller(Command::Auth(change)).await? {
        CoreResponse::Auth { revision } => Ok(handle.headers().at(revision)),
        other => Err(unexpected(&other)),
    }
}

/// Reads what the rule lets the caller read; answers it with the header.
async fn look<T>(
    handle: &Handle,
    rule: impl Fn(&CoreAuth, &keelson_store_core::Identity) -> Result<(), Error>,
    read: impl Fn(&CoreAuth) -> Result<T, Error>,
) -> Result<(Option<pb::ResponseHeader>, T), Status> {
    handle.voters_only()?;
    handle.linearize().await?;
    let found = |state: &State, _: &_| (state.revision(), read(state.auth()));
    let (revision, found) = handle.allowed(|state, who, _| rule(state.auth(), who), found).await?;
    Ok((handle.headers().at(revision), found.map_err(status)?))
}

fn permission(wire: authpb::Permission) -> Permission {
    let access = match wire.perm_type() {
        authpb::permission::Type::Read => Access::Read,
        authpb::permission::Type::Write => Access::Write,
        authpb::permission::Type::Readwrite => Access::ReadWrite,
    };
    Permission { access, key: wire.key, range_end: wire.range_end }
}

fn wire(permission: &Permission) -> authpb::Permission {
    let kind = match permission.access {
        Access::Read => authpb::permission::Type::Read,
        Access::Write => authpb::permission::Type::Write,
        Access::ReadWrite => authpb::permission::Type::Readwrite,
    };
    authpb::Permission {
        perm_type: kind.into(),
        key: permission.key.clone(),
        range_end: permission.range_end.clone(),
    }
}

/// The role root lists everything, whatever else it was granted.
fn permissions(auth: &CoreAuth, role: &str) -> Result<Vec<authpb::Permission>, Error> {
    let held = auth.role(role).ok_or(Error::RoleNotFound)?;
    if role == ROOT {
        let all = Permission { access: Access::ReadWrite, key: "".into(), range_end: "\0".into() };
        return Ok(vec![wire(&all)]);
    }
    Ok(held.iter().map(wire).collect())
}

impl Services {
    /// Compares a password and gives a token. A user may not change between the two.
    async fn token(&self, name: &str, password: &str) -> Result<(i64, String), Status> {
        for _ in 0..AGAIN {
            self.handle.linearize().await?;
            let (enabled, user, checked) = self
                .handle
                .at_once(|state, _| {
                    let auth = state.auth();
                    (auth.enabled(), auth.user(name).cloned(), auth.revision())
                })
                .await?;
            if !enabled {
                return Err(status(Error::AuthNotEnabled));
            }
            let user = user.ok_or_else(|| status(Error::AuthFailed))?;
            if user.password_hash.is_empty() {
                return Err(status(Error::NoPasswordUser));
            }
            let passwords = &self.handle.inner.passwords;
            if !passwords.matches(password.to_owned(), user.password_hash).await? {
                return Err(status(Error::AuthFailed));
            }
            match &*self.handle.inner.tokens {
                Tokens::Jwt(jwt) => {
                    let token = jwt.give(name, checked).ok_or_else(|| status(Error::AuthFailed))?;
                    let token = token.map_err(|error| Status::internal(format!("{error:#}")))?;
                    return Ok((self.handle.revision().await?, token));
                }
                Tokens::Simple(_) => {
                    let (secret, digest) = draw();
                    let give = AuthChange::GiveToken { user: name.to_owned(), digest, checked };
                    match self.handle.replica().propose(Command::Auth(give)).await {
                        Err(Error::AuthOldRevision) => {}
                        Ok((index, answer)) => return Ok((answer.revision(), format!("{secret}.{index}"))),
                        Err(error) => return Err(status(error)),
                    }
                }
            }
        }
        Err(status(Error::AuthOldRevision))
    }
}

#[tonic::async_trait]
impl Auth for Services {
    /// Needs no user, but a token that is shown must be one.
    async fn auth_status(&self, r: Request<pb::AuthStatusRequest>) -> Answer<pb::AuthStatusResponse> {
        let handle = self.by(&r);
        handle.voters_only()?;
        handle.linearize().await?;
        handle.who().await?;
        let read = |state: &State, _: &_| (state.revision(), state.auth().enabled(), state.auth().revision());
        let (revision, enabled, auth_revision) = handle.at_once(read).await?;
        let header = handle.headers().at(revision);
        Ok(Response::new(pb::AuthStatusResponse { header, enabled, auth_revision }))
    }

    async fn authenticate(&self, r: Request<pb::AuthenticateRequest>) -> Answer<pb::AuthenticateResponse> {
        let request = r.into_inner();
        self.handle.voters_only()?;
        let (revision, token) = self.token(&request.name, &request.password).await?;
        let header = self.handle.headers().at(revision);
        Ok(Response::new(pb::AuthenticateResponse { header, token }))
    }

    async fn auth_enable(&self, r: Request<pb::AuthEnableRequest>) -> Answer<pb::AuthEnableResponse> {
        let header = change(&self.by(&r), AuthChange::Enable).await?;
        Ok(Response::new(pb::AuthEnableResponse { header }))
    }

    async fn auth_disable(&self, r: Request<pb::AuthDisableRequest>) -> Answer<pb::AuthDisableResponse> {
        let header = change(&self.by(&r), AuthChange::Disable).await?;
        Ok(Response::new(pb::AuthDisableResponse { header }))
    }

    /// A hash that the client brings is not taken: the password is what counts, as in etcd.
    async fn user_add(&self, r: Request<pb::AuthUserAddRequest>) -> Answer<pb::AuthUserAddResponse> {
        let handle = self.by(&r).into_owned();
        let request = r.into_inner();
        // Before the work of hashing: who may not add users may not make us work either.
        handle.allowed_admin().await?;
        let password_hash = match request.options {
            Some(options) if options.no_password => bytes::Bytes::new(),
            _ => handle.inner.passwords.hash(request.password).await?,
        };
        let add = AuthChange::UserAdd { name: request.name, password_hash };
        let header = change(&handle, add).await?;
        Ok(Response::new(pb::AuthUserAddResponse { header }))
    }

    async fn user_get(&self, r: Request<pb::AuthUserGetRequest>) -> Answer<pb::AuthUserGetResponse> {
        let handle = self.by(&r);
        let name = &r.get_ref().name;
        let roles = |auth: &CoreAuth| {
            let user = auth.user(name).ok_or(Error::UserNotFound)?;
            Ok(user.roles.iter().cloned().collect())
        };
        let (header, roles) = look(&handle, |auth, who| auth.check_user_get(who, name), roles).await?;
        Ok(Response::new(pb::AuthUserGetResponse { header, roles }))
    }

    async fn user_list(&self, r: Request<pb::AuthUserListRequest>) -> Answer<pb::AuthUserListResponse> {
        let users = |auth: &CoreAuth| Ok(auth.users().map(|(name, _)| name.to_owned()).collect());
        let (header, users) = look(&self.by(&r), CoreAuth::check_admin, users).await?;
        Ok(Response::new(pb::AuthUserListResponse { header, users }))
    }

    async fn user_delete(&self, r: Request<pb::AuthUserDeleteRequest>) -> Answer<pb::AuthUserDeleteResponse> {
        let handle = self.by(&r).into_owned();
        let header = change(&handle, AuthChange::UserDelete { name: r.into_inner().name }).await?;
        Ok(Response::new(pb::AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        r: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Answer<pb::AuthUserChangePasswordResponse> {
        let handle = self.by(&r).into_owned();
        let request = r.into_inner();
        handle.allowed_admin().await?;
        let password_hash = handle.inner.passwords.hash(request.password).await?;
        let change_password = AuthChange::UserChangePassword { name: request.name, password_hash };
        let header = change(&handle, change_password).await?;
        Ok(Response::new(pb::AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        r: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Answer<pb::AuthUserGrantRoleResponse> {
        let handle = self.by(&r).into_owned();
        let request = r.into_inner();
        let grant = AuthChange::UserGrantRole { user: request.user, role: request.role };
        let header = change(&handle, grant).await?;
        Ok(Response::new(pb::AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        r: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Answer<pb::AuthUserRevokeRoleResponse> {
        let handle = self.by(&r).into_owned();
        let request = r.into_inner();
        let revoke = AuthChange::UserRevokeRole { user: request.name, role: request.role };
        let header = change(&handle, revoke).await?;
        Ok(Response::new(pb::AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(&self, r: Request<pb::AuthRoleAddRequest>) -> Answer<pb::AuthRoleAddResponse> {
        let handle = self.by(&r).into_owned();
        let header = change(&handle, AuthChange::RoleAdd { name: r.into_inner().name }).await?;
        Ok(Response::new(pb::AuthRoleAddResponse { header }))
    }

    async fn role_get(&self, r: Request<pb::AuthRoleGetRequest>) -> Answer<pb::AuthRoleGetResponse> {
        let handle = self.by(&r);
        let role = &r.get_ref().role;
        let rule = |auth: &CoreAuth, who: &_| auth.check_role_get(who, role);
        let (header, perm) = look(&handle, rule, |auth| permissions(auth, role)).await?;
        Ok(Response::new(pb::AuthRoleGetResponse { header, perm }))
    }

    async fn role_list(&self, r: Request<pb::AuthRoleListRequest>) -> Answer<pb::AuthRoleListResponse> {
        let roles = |auth: &CoreAuth| Ok(auth.roles().map(str::to_owned).collect());
        let (header, roles) = look(&self.by(&r), CoreAuth::check_admin, roles).await?;
        Ok(Response::new(pb::AuthRoleListResponse { header, roles }))
    }

    async fn role_delete(&self, r: Request<pb::AuthRoleDeleteRequest>) -> Answer<pb::AuthRoleDeleteResponse> {
        let handle = self.by(&r).into_owned();
        let header = change(&handle, AuthChange::RoleDelete { name: r.into_inner().role }).await?;
        Ok(Response::new(pb::AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        r: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Answer<pb::AuthRoleGrantPermissionResponse> {
        let handle = self.by(&r).into_owned();
        let request = r.into_inner();
        let permission = request.perm.map(permission);
        let grant = AuthChange::RoleGrantPermission { name: request.name, permission };
        let header = change(&handle, grant).await?;
        Ok(Response::new(pb::AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        r: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Answer<pb::AuthRoleRevokePermissionResponse> {
        let handle = self.by(&r).into_owned();
        let request = r.into_inner();
        let (name, key, range_end) = (request.role, request.key, request.range_end);
        let header = change(&handle, AuthChange::RoleRevokePermission { name, key, range_end }).await?;
        Ok(Response::new(pb::AuthRoleRevokePermissionResponse { header }))
    }
}
