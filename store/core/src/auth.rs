//! Users, roles and what they may touch.
//!
//! Users have roles, roles have permissions on keys or ranges; the role `root` may do everything. Each successful change
//! moves the auth revision (property S22), and a request carries the one its identity was established under: a request
//! from before a change is refused and established again. Passwords are hashed and compared by the shell; tokens are the
//! shell's too, which is told of what becomes of them ([`TokenChange`]).
//!
//! Requests of a known user enter the log as `Command::As`, and are judged when they are applied: on every member by the
//! same rules, however late. While auth is enabled, a request without a user is refused; only what the server itself
//! says (members, alarms, ticks) needs none.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::backend::Read;
use crate::command::{
    AuthChange, Command, DeleteRangeRequest, LeaseId, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use crate::error::Error;
use crate::range::KeyRange;
use crate::state::lease_keys;

/// The user, and the role, that may do everything.
pub const ROOT: &str = "root";

/// Who asks, by a token or a client certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Empty = nobody.
    pub user: String,
    /// The auth revision the token was given under.
    pub revision: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Access {
    Read,
    Write,
    ReadWrite,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Permission {
    pub access: Access,
    pub key: Bytes,
    /// As on the wire: empty = the one key, `\0` = everything from `key` on.
    pub range_end: Bytes,
}

impl Permission {
    fn gives(&self, wanted: Access) -> bool {
        self.access == wanted || self.access == Access::ReadWrite
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct User {
    /// bcrypt; empty = no password, the user is known by certificate only.
    pub password_hash: Bytes,
    pub roles: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Auth {
    enabled: bool,
    revision: u64,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Vec<Permission>>,
}

/// What a change means for the tokens the shell keeps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TokenChange {
    Given {
        user: String,
        digest: [u8; 32],
    },
    /// All tokens of the user are void.
    LostBy {
        user: String,
    },
    /// All tokens are void.
    AllLost,
}

impl Default for Auth {
    fn default() -> Auth {
        Auth { enabled: false, revision: 1, users: BTreeMap::new(), roles: BTreeMap::new() }
    }
}

impl Auth {
    /// Users and roles taken over from another store as they are. Permissions may come in any order.
    pub fn restored(
        enabled: bool,
        revision: u64,
        users: impl IntoIterator<Item = (String, User)>,
        roles: impl IntoIterator<Item = (String, Vec<Permission>)>,
    ) -> Auth {
        let sorted = |(name, mut permissions): (String, Vec<Permission>)| {
            permissions.sort_by(|a, b| (&a.key, &a.range_end).cmp(&(&b.key, &b.range_end)));
            (name, permissions)
        };
        Auth {
            enabled,
            revision,
            users: users.into_iter().collect(),
            roles: roles.into_iter().map(sorted).collect(),
        }
    }

    pub fn enabled(&self) -> bool {
        self.enabled
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// In order of name.
    pub fn users(&self) -> impl Iterator<Item = (&str, &User)> {
        self.users.iter().map(|(name, user)| (name.as_str(), user))
    }

    /// Permissions in order of key.
    pub fn role(&self, name: &str) -> Option<&[Permission]> {
        self.roles.get(name).map(Vec::as_slice)
    }

    /// In order of name.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    fn user_mut(&mut self, name: &str) -> Result<&mut User, Error> {
        self.users.get_mut(name).ok_or(Error::UserNotFound)
    }

    fn role_mut(&mut self, name: &str) -> Result<&mut Vec<Permission>, Error> {
        self.roles.get_mut(name).ok_or(Error::RoleNotFound)
    }

    /// What must stay while auth is on.
    fn guards(&self, is_root: bool) -> Result<(), Error> {
        if self.enabled && is_root { Err(Error::InvalidAuthManagement) } else { Ok(()) }
    }

    /// Errors: etcd's, for each change.
    pub(crate) fn change(&mut self, change: &AuthChange, tokens: &mut Vec<TokenChange>) -> Result<(), Error> {
        let moved = match change {
            AuthChange::Enable => self.enable().map(|()| false)?,
            AuthChange::Disable => {
                tokens.push(TokenChange::AllLost);
                std::mem::replace(&mut self.enabled, false)
            }
            AuthChange::GiveToken { user, digest, checked } => {
                self.may_give(user, *checked)?;
                tokens.push(TokenChange::Given { user: user.clone(), digest: *digest });
                false
            }
            AuthChange::UserAdd { name, password_hash } => {
                self.user_add(name, password_hash).map(|()| true)?
            }
            AuthChange::UserDelete { name } => {
                self.guards(name == ROOT)?;
                self.users.remove(name).ok_or(Error::UserNotFound)?;
                tokens.push(TokenChange::LostBy { user: name.clone() });
                true
            }
            AuthChange::UserChangePassword { name, password_hash } => {
                let user = self.user_mut(name)?;
                // One without a password stays so.
                if !user.password_hash.is_empty() {
                    user.password_hash = password_hash.clone();
                }
                tokens.push(TokenChange::LostBy { user: name.clone() });
                true
            }
            AuthChange::UserGrantRole { user, role } => {
                let known = role == ROOT || self.roles.contains_key(role);
                let user = self.user_mut(user)?;
                if !known {
                    return Err(Error::RoleNotFound);
                }
                user.roles.insert(role.clone())
            }
            AuthChange::UserRevokeRole { user, role } => {
                self.guards(user == ROOT && role == ROOT)?;
                let revoked = self.user_mut(user)?.roles.remove(role);
                if revoked { true } else { return Err(Error::RoleNotGranted) }
            }
            AuthChange::RoleAdd { name } => self.role_add(name).map(|()| true)?,
            AuthChange::RoleDelete { name } => {
                self.guards(name == ROOT)?;
                self.roles.remove(name).ok_or(Error::RoleNotFound)?;
                for (user, held) in &mut self.users {
                    if held.roles.remove(name) {
                        tokens.push(TokenChange::LostBy { user: user.clone() });
                    }
                }
                true
            }
            AuthChange::RoleGrantPermission { name, permission } => {
                self.grant(name, permission.as_ref()).map(|()| true)?
            }
            AuthChange::RoleRevokePermission { name, key, range_end } => {
                let permissions = self.role_mut(name)?;
                let before = permissions.len();
                permissions.retain(|held| held.key != *key || held.range_end != *range_end);
                if permissions.len() < before { true } else { return Err(Error::PermissionNotGranted) }
            }
        };
        #[cfg(feature = "planted")]
        let moved = moved && !(keelson_plant::is(44) && matches!(change, AuthChange::UserRevokeRole { .. }));
        self.revision += u64::from(moved);
        Ok(())
    }

    /// Between the comparison of the password and now nothing may have changed.
    fn may_give(&self, user: &str, checked: u64) -> Result<(), Error> {
        if !self.enabled {
            return Err(Error::AuthNotEnabled);
        }
        if checked != self.revision {
            return Err(Error::AuthOldRevision);
        }
        if self.users.contains_key(user) { Ok(()) } else { Err(Error::AuthFailed) }
    }

    fn enable(&mut self) -> Result<(), Error> {
        let root = self.users.get(ROOT).ok_or(Error::RootUserNotExist)?;
        if !root.roles.contains(ROOT) {
            return Err(Error::RootRoleNotExist);
        }
        self.enabled = true;
        Ok(())
    }

    fn user_add(&mut self, name: &str, password_hash: &Bytes) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if self.users.contains_key(name) {
            return Err(Error::UserExists);
        }
        let user = User { password_hash: password_hash.clone(), roles: BTreeSet::new() };
        self.users.insert(name.to_owned(), user);
        Ok(())
    }

    fn role_add(&mut self, name: &str) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::RoleEmpty);
        }
        if self.roles.contains_key(name) {
            return Err(Error::RoleExists);
        }
        self.roles.insert(name.to_owned(), Vec::new());
        Ok(())
    }

    fn grant(&mut self, name: &str, permission: Option<&Permission>) -> Result<(), Error> {
        let permission = permission.ok_or(Error::PermissionNotGiven)?;
        if permission.key.is_empty() || KeyRange::new(&permission.key, &permission.range_end).is_empty() {
            return Err(Error::InvalidAuthManagement);
        }
        let permissions = self.role_mut(name)?;
        permissions.retain(|held| held.key != permission.key || held.range_end != permission.range_end);
        permissions.push(permission.clone());
        permissions.sort_by(|a, b| (&a.key, &a.range_end).cmp(&(&b.key, &b.range_end)));
        Ok(())
    }

    /// The user of a request while auth is on; `None` = may do everything.
    fn judge(&self, who: &Identity) -> Result<Option<&User>, Error> {
        if !self.enabled {
            return Ok(None);
        }
        if who.user.is_empty() {
            return Err(Error::UserEmpty);
        }
        if who.revision < self.revision {
            return Err(Error::AuthOldRevision);
        }
        let user = self.users.get(&who.user).ok_or(Error::PermissionDenied)?;
        Ok(Some(user).filter(|user| !user.roles.contains(ROOT)))
    }

    /// Errors: nobody, an old token, or a user that is none.
    pub fn check_user(&self, who: &Identity) -> Result<(), Error> {
        self.judge(who).map(|_| ())
    }

    /// The users themselves may look at it, beside root. Errors: as `check_admin`.
    pub fn check_user_get(&self, who: &Identity, name: &str) -> Result<(), Error> {
        match self.judge(who)? {
            Some(_) if who.user != name => Err(Error::PermissionDenied),
            _ => Ok(()),
        }
    }

    /// Whoever has the role may look at it, beside root. Errors: as `check_admin`.
    pub fn check_role_get(&self, who: &Identity, role: &str) -> Result<(), Error> {
        match self.judge(who)? {
            Some(user) if !user.roles.contains(role) => Err(Error::PermissionDenied),
            _ => Ok(()),
        }
    }

    /// Errors: nobody, an old token, or not root.
    pub fn check_admin(&self, who: &Identity) -> Result<(), Error> {
        match self.judge(who)? {
            None => Ok(()),
            Some(_) => Err(Error::PermissionDenied),
        }
    }

    /// Errors: nobody, an old token, or no permission on the whole range.
    pub fn check_keys(
        &self,
        who: &Identity,
        wanted: Access,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<(), Error> {
        let Some(user) = self.judge(who)? else { return Ok(()) };
        let held = user.roles.iter().filter_map(|role| self.roles.get(role)).flatten();
        let ranges = held.filter(|permission| permission.gives(wanted));
        let ranges = ranges.map(|permission| KeyRange::new(&permission.key, &permission.range_end));
        if covered(ranges.collect(), KeyRange::new(key, range_end)) {
            Ok(())
        } else {
            Err(Error::PermissionDenied)
        }
    }

    pub fn check_range(&self, who: &Identity, request: &RangeRequest) -> Result<(), Error> {
        self.check_keys(who, Access::Read, &request.key, &request.range_end)
    }

    /// A put into a lease touches, in the end, every key of the lease.
    pub fn check_put(&self, who: &Identity, read: &dyn Read, request: &PutRequest) -> Result<(), Error> {
        self.check_keys(who, Access::Write, &request.key, b"")?;
        if request.prev_kv {
            self.check_keys(who, Access::Read, &request.key, b"")?;
        }
        if request.lease == 0 { Ok(()) } else { self.check_lease(who, read, Access::Write, request.lease) }
    }

    pub fn check_delete(&self, who: &Identity, request: &DeleteRangeRequest) -> Result<(), Error> {
        self.check_keys(who, Access::Write, &request.key, &request.range_end)?;
        if !request.prev_kv {
            return Ok(());
        }
        self.check_keys(who, Access::Read, &request.key, &request.range_end)
    }

    /// Errors: no permission on some key attached to the lease.
    pub fn check_lease(
        &self,
        who: &Identity,
        read: &dyn Read,
        wanted: Access,
        id: LeaseId,
    ) -> Result<(), Error> {
        self.judge(who)?;
        lease_keys(read, id).iter().try_for_each(|key| self.check_keys(who, wanted, key, b""))
    }

    /// Errors: no permission to read some key attached to one of the leases.
    pub fn check_leases(
        &self,
        who: &Identity,
        read: &dyn Read,
        mut ids: impl Iterator<Item = LeaseId>,
    ) -> Result<(), Error> {
        if self.judge(who)?.is_none() {
            return Ok(());
        }
        ids.try_for_each(|id| self.check_lease(who, read, Access::Read, id))
    }

    /// Every compare and every operation of both branches, nested ones too.
    pub fn check_txn(&self, who: &Identity, read: &dyn Read, request: &TxnRequest) -> Result<(), Error> {
        self.judge(who)?;
        for compare in &request.compare {
            self.check_keys(who, Access::Read, &compare.key, &compare.range_end)?;
        }
        request.success.iter().chain(&request.failure).try_for_each(|op| match op {
            RequestOp::Range(range) => self.check_range(who, range),
            RequestOp::Put(put) => self.check_put(who, read, put),
            RequestOp::DeleteRange(delete) => self.check_delete(who, delete),
            RequestOp::Txn(nested) => self.check_txn(who, read, nested),
            RequestOp::Unset => Ok(()),
        })
    }

    /// Judges a command that is about to run in the name of `who`.
    pub(crate) fn check_command(
        &self,
        who: &Identity,
        read: &dyn Read,
        command: &Command,
    ) -> Result<(), Error> {
        match command {
            Command::Put(put) => self.check_put(who, read, put),
            Command::DeleteRange(delete) => self.check_delete(who, delete),
            Command::Txn(txn) => self.check_txn(who, read, txn),
            Command::LeaseGrant { .. } => self.judge(who).map(|_| ()),
            Command::LeaseRevoke { id } | Command::LeaseKeepAlive { id } => {
                self.check_lease(who, read, Access::Write, *id)
            }
            // Members, alarms, compaction, users and roles.
            _ => self.check_admin(who),
        }
    }
}

/// Whether the union of the ranges covers the wanted one: neighbours may meet.
fn covered(mut ranges: Vec<KeyRange<'_>>, wanted: KeyRange<'_>) -> bool {
    let start = |range: &KeyRange<'_>| match *range {
        KeyRange::One(key) => key.to_vec(),
        KeyRange::Span(from, _) => from.to_vec(),
    };
    let (mut from, to) = match wanted {
        KeyRange::One(key) => return ranges.iter().any(|range| range.contains(key)),
        // It ends before it begins: as in etcd, whoever holds everything between the two ends may ask.
        KeyRange::Span(from, Some(to)) if to <= from => {
            return ranges.iter().any(|range| match *range {
                KeyRange::One(key) => key < to && key >= from,
                KeyRange::Span(first, end) => first < to && end.is_none_or(|end| end > from),
            });
        }
        KeyRange::Span(from, to) => (from.to_vec(), to),
    };
    ranges.sort_by_key(start);
    for range in ranges {
        if start(&range) > from {
            return false;
        }
        let end = match range {
            // The next key after it.
            KeyRange::One(key) => Some([key, &[0]].concat()),
            KeyRange::Span(_, end) => end.map(<[u8]>::to_vec),
        };
        let Some(end) = end else { return true };
        from = from.max(end);
        if to.is_some_and(|to| &from[..] >= to) {
            return true;
        }
    }
    false
}
