//! Entries of etcd's Raft log as batches of the core's commands.
//!
//! What etcd logs but what changes nothing a client of ours can see becomes an empty batch: reads, tokens, cluster
//! versions, lease checkpoints, requests of the v2 API.

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use keelson_store_core::{AlarmType, AuthChange, Batch, Command, Identity, Member, Stamp};
use keelson_store_files::content::MemberRecord;
use keelson_store_files::messages::{ConfChange, Entry, InternalRequest, V2Request};
use keelson_store_proto::etcdserverpb as pb;
use prost::Message;

use crate::convert;

/// Passed over in silence.
const NOTHING: Vec<Command> = Vec::new();

/// The batch an entry stands for.
///
/// # Errors
/// An entry that cannot be read, or of a kind this version does not know: nothing may be left out silently.
pub fn batch(entry: &Entry) -> Result<Batch> {
    let data = entry.data.clone().unwrap_or_default();
    let commands = match entry.kind {
        _ if data.is_empty() => NOTHING,
        0 => request(data)?,
        1 => conf_change(data)?,
        other => bail!(
            "a membership change of form {other} is not understood; start etcd once, let it run alone, stop it"
        ),
    };
    Ok(Batch { stamp: Stamp::default(), commands })
}

fn conf_change(data: Bytes) -> Result<Vec<Command>> {
    let change = ConfChange::decode(data).context("a membership change")?;
    let member = || -> Result<Member> {
        let context = change.context.clone().unwrap_or_default();
        let record: MemberRecord = serde_json::from_slice(&context).context("the member in a change")?;
        Ok(record.into())
    };
    Ok(match change.kind {
        0 => {
            let member = member()?;
            let (id, peer_urls) = (member.id, member.peer_urls.clone());
            // The first change of a member's log adds it; a later one promotes a learner.
            vec![
                Command::MemberAdd(Member { is_learner: false, ..member }),
                Command::MemberPromote { id },
                Command::MemberUpdate { id, peer_urls },
            ]
        }
        1 => vec![Command::MemberRemove { id: change.node_id }],
        2 => {
            let member = member()?;
            vec![Command::MemberUpdate { id: member.id, peer_urls: member.peer_urls }]
        }
        3 => vec![Command::MemberAdd(Member { is_learner: true, ..member()? })],
        other => bail!("a membership change of kind {other} is not known"),
    })
}

/// Requests of the v2 API stand in the log as they are; none of them is about a key of the v3 API.
fn is_v2(data: &Bytes) -> bool {
    V2Request::decode(data.clone()).is_ok_and(|request| {
        matches!(request.method.as_str(), "PUT" | "POST" | "DELETE" | "GET" | "QGET" | "SYNC")
    })
}

fn request(data: Bytes) -> Result<Vec<Command>> {
    if is_v2(&data) {
        return Ok(NOTHING);
    }
    let request = InternalRequest::decode(data).context("a request")?;
    let who = request.header.clone().unwrap_or_default();
    let Some(command) = command(request)? else { return Ok(NOTHING) };
    if who.username.is_empty() {
        return Ok(vec![command]);
    }
    let who = Identity { user: who.username, revision: who.auth_revision };
    Ok(vec![Command::As { who, command: Box::new(command) }])
}

fn command(request: InternalRequest) -> Result<Option<Command>> {
    if let Some(put) = request.put {
        return Ok(Some(Command::Put(convert::put(put))));
    }
    if let Some(delete) = request.delete_range {
        return Ok(Some(Command::DeleteRange(convert::delete_range(delete))));
    }
    if let Some(txn) = request.txn {
        return Ok(Some(Command::Txn(convert::txn(txn))));
    }
    if let Some(compaction) = request.compaction {
        return Ok(Some(Command::Compact { revision: compaction.revision }));
    }
    if let Some(grant) = request.lease_grant {
        return Ok(Some(Command::LeaseGrant { id: grant.id, ttl: grant.ttl }));
    }
    if let Some(revoke) = request.lease_revoke {
        return Ok(Some(Command::LeaseRevoke { id: revoke.id }));
    }
    if let Some(alarm) = request.alarm {
        return Ok(alarm_command(&alarm));
    }
    if let Some(member) = request.member_attributes {
        let attributes = member.attributes.unwrap_or_default();
        return Ok(Some(Command::MemberPublish {
            id: member.member_id,
            name: attributes.name,
            client_urls: attributes.client_urls,
        }));
    }
    Ok(auth_change(request)?.map(Command::Auth))
}

fn alarm_command(request: &pb::AlarmRequest) -> Option<Command> {
    use pb::alarm_request::AlarmAction;
    let member = request.member_id;
    let alarm = match request.alarm() {
        pb::AlarmType::None => return None,
        pb::AlarmType::Nospace => AlarmType::NoSpace,
        pb::AlarmType::Corrupt => AlarmType::Corrupt,
    };
    match request.action() {
        AlarmAction::Get => None,
        AlarmAction::Activate => Some(Command::AlarmActivate { member, alarm }),
        AlarmAction::Deactivate => Some(Command::AlarmDeactivate { member, alarm }),
    }
}

/// The hash that etcd put in place of the password.
fn hashed(password: &str, hash: &str) -> Result<Bytes> {
    if !password.is_empty() {
        bail!(
            "a password that is not hashed: the log is of an etcd before 3.5; start etcd 3.5 once and stop it"
        );
    }
    STANDARD.decode(hash).map(Bytes::from).context("a hashed password")
}

fn auth_change(request: InternalRequest) -> Result<Option<AuthChange>> {
    if request.auth_enable.is_some() {
        return Ok(Some(AuthChange::Enable));
    }
    if request.auth_disable.is_some() {
        return Ok(Some(AuthChange::Disable));
    }
    if let Some(add) = request.user_add {
        let without = add.options.is_some_and(|options| options.no_password);
        let password_hash = if without { Bytes::new() } else { hashed(&add.password, &add.hashed_password)? };
        return Ok(Some(AuthChange::UserAdd { name: add.name, password_hash }));
    }
    if let Some(delete) = request.user_delete {
        return Ok(Some(AuthChange::UserDelete { name: delete.name }));
    }
    if let Some(change) = request.user_change_password {
        let password_hash = hashed(&change.password, &change.hashed_password)?;
        return Ok(Some(AuthChange::UserChangePassword { name: change.name, password_hash }));
    }
    if let Some(grant) = request.user_grant_role {
        return Ok(Some(AuthChange::UserGrantRole { user: grant.user, role: grant.role }));
    }
    if let Some(revoke) = request.user_revoke_role {
        return Ok(Some(AuthChange::UserRevokeRole { user: revoke.name, role: revoke.role }));
    }
    if let Some(add) = request.role_add {
        return Ok(Some(AuthChange::RoleAdd { name: add.name }));
    }
    if let Some(delete) = request.role_delete {
        return Ok(Some(AuthChange::RoleDelete { name: delete.role }));
    }
    if let Some(grant) = request.role_grant_permission {
        let permission = grant.perm.map(keelson_store_files::content::permission);
        return Ok(Some(AuthChange::RoleGrantPermission { name: grant.name, permission }));
    }
    if let Some(revoke) = request.role_revoke_permission {
        let (key, range_end) = (revoke.key, revoke.range_end);
        return Ok(Some(AuthChange::RoleRevokePermission { name: revoke.role, key, range_end }));
    }
    Ok(None)
}
