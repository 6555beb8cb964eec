//! What etcd keeps in a database: its buckets, between their bytes and the core's types.
//!
//! | bucket | key | value |
//! |---|---|---|
//! | `key` | revision, see `keelson_store_core::portable` | `mvccpb.KeyValue` |
//! | `lease` | id (8, big-endian) | `leasepb.Lease` |
//! | `alarm` | `etcdserverpb.AlarmMember` | empty |
//! | `auth` | `authEnabled`, `authRevision` | one byte; 8, big-endian |
//! | `authUsers`, `authRoles` | name | `authpb.User`, `authpb.Role` |
//! | `members`, `members_removed` | id, hexadecimal | JSON |
//! | `cluster` | `clusterVersion`, `downgrade` | text, JSON |
//! | `meta` | `consistent_index`, `term` (8, big-endian); `finishedCompactRev`, `scheduledCompactRev` (revisions); `confState` (JSON); `storageVersion` (text, since 3.6) | |

use std::ops::ControlFlow;

use bytes::Bytes;
use keelson_store_core::portable;
use keelson_store_core::restore::RestoredLease;
use keelson_store_core::{
    Access, Alarm, AlarmType, Auth, KeyValue, Member, Permission, Read, Revision, State, User, compact,
};
use keelson_store_proto::etcdserverpb::AlarmMember;
use keelson_store_proto::{authpb, mvccpb};
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::bolt::{BoltError, Database, Output, Source, WriteError, Writer};
use crate::messages;

/// Why a database is not etcd's, or a damaged one.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The file itself.
    #[error(transparent)]
    Bolt(#[from] BoltError),
    /// A bucket every etcd database has.
    #[error("no bucket {0:?}: this is no etcd database")]
    Missing(&'static str),
    /// A record that does not decode.
    #[error("bucket {bucket:?} has a record that cannot be read: {problem}")]
    Record {
        /// Where.
        bucket: &'static str,
        /// Why.
        problem: String,
    },
}

fn bad(bucket: &'static str, problem: impl ToString) -> ContentError {
    ContentError::Record { bucket, problem: problem.to_string() }
}

/// Who votes, as Raft last knew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfState {
    pub voters: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub learners: Vec<u64>,
    pub auto_leave: bool,
}

/// A member as etcd writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberRecord {
    pub id: u64,
    #[serde(rename = "peerURLs")]
    pub peer_urls: Vec<String>,
    #[serde(rename = "isLearner", skip_serializing_if = "std::ops::Not::not")]
    pub is_learner: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(rename = "clientURLs", skip_serializing_if = "Vec::is_empty")]
    pub client_urls: Vec<String>,
}

impl From<MemberRecord> for Member {
    fn from(record: MemberRecord) -> Member {
        Member {
            id: record.id,
            name: record.name,
            peer_urls: record.peer_urls,
            client_urls: record.client_urls,
            is_learner: record.is_learner,
        }
    }
}

impl From<&Member> for MemberRecord {
    fn from(member: &Member) -> MemberRecord {
        MemberRecord {
            id: member.id,
            peer_urls: member.peer_urls.clone(),
            is_learner: member.is_learner,
            name: member.name.clone(),
            client_urls: member.client_urls.clone(),
        }
    }
}

/// Everything in a database but the changes of keys.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Index and term of the last entry of the Raft log that is in it; 0 = none.
    pub consistent_index: u64,
    pub term: u64,
    /// Superseded versions up to here are gone; 0 = never.
    pub finished_compaction: i64,
    /// Reads below it are refused; 0 = never.
    pub scheduled_compaction: i64,
    /// Absent before 3.6.
    pub storage_version: Option<String>,
    pub conf_state: Option<ConfState>,
    pub leases: Vec<RestoredLease>,
    pub alarms: Vec<Alarm>,
    pub members: Vec<Member>,
    pub auth: Auth,
}

impl Content {
    /// Reads all buckets but `key`.
    ///
    /// # Errors
    /// Not etcd's, or damaged.
    pub fn read<S: Source>(database: &Database<S>) -> Result<Content, ContentError> {
        let mut content = Content::default();
        content.read_meta(database)?;
        each(database, "lease", |_, value| {
            let lease = messages::Lease::decode(value).map_err(|error| bad("lease", error))?;
            content.leases.push(RestoredLease {
                id: lease.id,
                ttl: lease.ttl,
                remaining: lease.remaining_ttl,
            });
            Ok(())
        })?;
        each(database, "alarm", |key, _| {
            let alarm = AlarmMember::decode(key).map_err(|error| bad("alarm", error))?;
            let kind = match alarm.alarm {
                1 => AlarmType::NoSpace,
                2 => AlarmType::Corrupt,
                _ => return Ok(()),
            };
            content.alarms.push(Alarm { member: alarm.member_id, alarm: kind });
            Ok(())
        })?;
        each(database, "members", |_, value| {
            let member: MemberRecord =
                serde_json::from_slice(value).map_err(|error| bad("members", error))?;
            content.members.push(member.into());
            Ok(())
        })?;
        content.auth = read_auth(database)?;
        Ok(content)
    }

    fn read_meta<S: Source>(&mut self, database: &Database<S>) -> Result<(), ContentError> {
        let long = |value: &[u8]| {
            value.try_into().map(u64::from_be_bytes).map_err(|_| bad("meta", "a number has 8 bytes"))
        };
        let revision = |value: &[u8]| {
            let decoded = portable::decode_revision(value);
            decoded.map(|(at, _)| at.main).ok_or_else(|| bad("meta", "no revision"))
        };
        if database.bucket(b"meta")?.is_none() {
            return Err(ContentError::Missing("meta"));
        }
        each(database, "meta", |key, value| {
            match key {
                b"consistent_index" => self.consistent_index = long(value)?,
                b"term" => self.term = long(value)?,
                b"finishedCompactRev" => self.finished_compaction = revision(value)?,
                b"scheduledCompactRev" => self.scheduled_compaction = revision(value)?,
                b"storageVersion" => {
                    self.storage_version = Some(String::from_utf8_lossy(value).into_owned());
                }
                b"confState" => {
                    let state = serde_json::from_slice(value).map_err(|error| bad("meta", error))?;
                    self.conf_state = Some(state);
                }
                _ => {}
            }
            Ok(())
        })
    }

    /// Reads below it are refused; 0 = never compacted.
    pub fn compact_revision(&self) -> i64 {
        self.scheduled_compaction.max(self.finished_compaction)
    }
}

fn each<S: Source>(
    database: &Database<S>,
    name: &'static str,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), ContentError>,
) -> Result<(), ContentError> {
    let Some(bucket) = database.bucket(name.as_bytes())? else { return Ok(()) };
    let mut cursor = database.cursor(&bucket)?;
    while let Some((key, value)) = cursor.next_element()? {
        visit(key, value)?;
    }
    Ok(())
}

fn read_auth<S: Source>(database: &Database<S>) -> Result<Auth, ContentError> {
    let (mut enabled, mut revision) = (false, 1);
    each(database, "auth", |key, value| {
        match key {
            b"authEnabled" => enabled = value == [1],
            b"authRevision" => {
                let bytes = value.try_into().map_err(|_| bad("auth", "a revision has 8 bytes"))?;
                revision = u64::from_be_bytes(bytes);
            }
            _ => {}
        }
        Ok(())
    })?;
    let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    let mut users = Vec::new();
    each(database, "authUsers", |_, value| {
        let user = authpb::User::decode(value).map_err(|error| bad("authUsers", error))?;
        let roles = user.roles.into_iter().collect();
        users.push((text(&user.name), User { password_hash: user.password, roles }));
        Ok(())
    })?;
    let mut roles = Vec::new();
    each(database, "authRoles", |_, value| {
        let role = authpb::Role::decode(value).map_err(|error| bad("authRoles", error))?;
        let permissions = role.key_permission.into_iter().map(permission).collect();
        roles.push((text(&role.name), permissions));
        Ok(())
    })?;
    Ok(Auth::restored(enabled, revision, users, roles))
}

/// A permission off the wire.
pub fn permission(held: authpb::Permission) -> Permission {
    let access = match held.perm_type {
        1 => Access::Write,
        2 => Access::ReadWrite,
        _ => Access::Read,
    };
    Permission { access, key: held.key, range_end: held.range_end }
}

/// Visits every change of the `key` bucket in order; `true` marks a tombstone.
///
/// # Errors
/// Damage; what `visit` answers.
pub fn changes<S: Source, E: From<ContentError>>(
    database: &Database<S>,
    mut visit: impl FnMut(Revision, bool, KeyValue) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |error: BoltError| E::from(ContentError::Bolt(error));
    let bucket = database.bucket(b"key").map_err(failed)?;
    let bucket = bucket.ok_or(E::from(ContentError::Missing("key")))?;
    let mut cursor = database.cursor(&bucket).map_err(failed)?;
    while let Some((key, value)) = cursor.next_element().map_err(failed)? {
        let (at, tombstone) =
            portable::decode_revision(key).ok_or_else(|| E::from(bad("key", "no revision")))?;
        let kv = mvccpb::KeyValue::decode(Bytes::copy_from_slice(value));
        let kv = kv.map_err(|error| E::from(bad("key", error)))?;
        let kv = KeyValue {
            key: kv.key,
            create_revision: kv.create_revision,
            mod_revision: at.main,
            version: kv.version,
            value: kv.value,
            lease: kv.lease,
        };
        visit(at, tombstone, kv)?;
    }
    Ok(())
}

/// What a written database says of the Raft group it comes from.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    pub term: u64,
    pub conf_state: ConfState,
    /// `X.Y.Z`.
    pub storage_version: String,
}

fn revision_key(main: i64) -> Vec<u8> {
    let mut key = Vec::new();
    portable::encode_revision(Revision { main, sub: 0 }, false, &mut key);
    key
}

/// Writes a whole state as etcd would; both passes of a [`Writer`] are given the same `state` and `read`.
///
/// # Errors
/// The output's; content that the format cannot hold.
pub fn write<O: Output>(
    writer: &mut Writer<O>,
    state: &State,
    read: &dyn Read,
    origin: &Origin,
) -> Result<(), WriteError<O::Error>> {
    writer.bucket("alarm")?;
    let mut alarms: Vec<Vec<u8>> = state.alarms().iter().map(alarm_key).collect();
    alarms.sort();
    for alarm in alarms {
        writer.put(&alarm, b"")?;
    }
    write_auth(writer, state.auth())?;
    // Without a version: an etcd older than ours could not start from it. Whoever restores it agrees on one.
    writer.bucket("cluster")?;
    write_changes(writer, read)?;
    writer.bucket("lease")?;
    let now = state.lessor().clock().now;
    let mut leases: Vec<_> = state.lessor().iter().collect();
    // As stored: negative ids behind the others.
    leases.sort_by_key(|(id, _)| *id as u64);
    for (id, lease) in leases {
        let remaining = i64::try_from(lease.expiry.saturating_sub(now).div_ceil(1000)).unwrap_or(i64::MAX);
        let remaining_ttl = if remaining < lease.ttl { remaining.max(1) } else { 0 };
        let record = messages::Lease { id, ttl: lease.ttl, remaining_ttl };
        writer.put(&id.to_be_bytes(), &record.encode_to_vec())?;
    }
    writer.bucket("members")?;
    let mut members: Vec<(String, MemberRecord)> =
        state.members().iter().map(|member| (format!("{:x}", member.id), member.into())).collect();
    members.sort_by(|a, b| a.0.cmp(&b.0));
    for (id, member) in members {
        writer.put(id.as_bytes(), &json(&member))?;
    }
    writer.bucket("members_removed")?;
    write_meta(writer, state, read, origin)
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data")
}

fn alarm_key(alarm: &Alarm) -> Vec<u8> {
    let kind = match alarm.alarm {
        AlarmType::NoSpace => 1,
        AlarmType::Corrupt => 2,
    };
    AlarmMember { member_id: alarm.member, alarm: kind }.encode_to_vec()
}

fn write_auth<O: Output>(writer: &mut Writer<O>, auth: &Auth) -> Result<(), WriteError<O::Error>> {
    writer.bucket("auth")?;
    writer.put(b"authEnabled", &[u8::from(auth.enabled())])?;
    writer.put(b"authRevision", &auth.revision().to_be_bytes())?;
    writer.bucket("authRoles")?;
    for name in auth.roles() {
        let held = auth.role(name).unwrap_or_default().iter().map(|permission| authpb::Permission {
            perm_type: match permission.access {
                Access::Read => 0,
                Access::Write => 1,
                Access::ReadWrite => 2,
            },
            key: permission.key.clone(),
            range_end: permission.range_end.clone(),
        });
        let role =
            authpb::Role { name: Bytes::copy_from_slice(name.as_bytes()), key_permission: held.collect() };
        writer.put(name.as_bytes(), &role.encode_to_vec())?;
    }
    writer.bucket("authUsers")?;
    for (name, user) in auth.users() {
        let record = authpb::User {
            name: Bytes::copy_from_slice(name.as_bytes()),
            password: user.password_hash.clone(),
            roles: user.roles.iter().cloned().collect(),
            options: Some(authpb::UserAddOptions { no_password: user.password_hash.is_empty() }),
        };
        writer.put(name.as_bytes(), &record.encode_to_vec())?;
    }
    Ok(())
}

fn write_changes<O: Output>(writer: &mut Writer<O>, read: &dyn Read) -> Result<(), WriteError<O::Error>> {
    writer.bucket("key")?;
    let (mut key, mut value) = (Vec::new(), Vec::new());
    let mut result = Ok(());
    portable::changes(read, &mut |at, tombstone, kv| {
        portable::encode(at, tombstone, kv, &mut key, &mut value);
        result = writer.put(&key, &value);
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    result
}

fn write_meta<O: Output>(
    writer: &mut Writer<O>,
    state: &State,
    read: &dyn Read,
    origin: &Origin,
) -> Result<(), WriteError<O::Error>> {
    writer.bucket("meta")?;
    writer.put(b"confState", &json(&origin.conf_state))?;
    writer.put(b"consistent_index", &state.applied().to_be_bytes())?;
    if state.compact_revision() > 0 {
        // etcd finishes at its start what was only scheduled.
        let finished = compact::scrubbed(read);
        if finished > 0 {
            writer.put(b"finishedCompactRev", &revision_key(finished))?;
        }
        writer.put(b"scheduledCompactRev", &revision_key(state.compact_revision()))?;
    }
    writer.put(b"storageVersion", origin.storage_version.as_bytes())?;
    writer.put(b"term", &origin.term.to_be_bytes())
}
