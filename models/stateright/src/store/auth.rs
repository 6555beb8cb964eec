//! Users, roles and tokens: requests made under one set of permissions that are applied under another.
//!
//! A user logs in at any time (its token carries the auth revision of that moment), sends a write, and the write enters
//! the log any time later, while root grants, revokes, deletes, adds again, enables and disables.
//!
//! Shown: a write is applied exactly when auth is off, or its token is of the present auth revision and the permissions
//! of that moment allow it, as a naive reading of users and roles says; whatever changes what the user may do makes
//! older tokens void; the auth revision never goes back and does not move on a refused change (S22); root cannot lock
//! itself out; a restart changes nothing.
//!
//! Omitted: passwords and token formats (the shell's), permissions on ranges (property-tested against a naive cover),
//! several users (they share nothing but the revision, which all changes move).

use bytes::Bytes;
use keelson_store_core::{
    Access, AuthChange, Batch, Command, Error, Identity, MemoryBackend, Permission, PutRequest, State, apply,
};
use stateright::{Model, Property};

use crate::catalogue::{Bound, Report, explore};

const USER: &str = "u";
const ROLE: &str = "r";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    state: State,
    backend: MemoryBackend,
    index: u64,
    changes: u8,
    /// Whether the user exists, has the role, and the role the permission: the naive reading.
    user: bool,
    granted: bool,
    role: bool,
    permitted: bool,
    token: Option<u64>,
    /// Sent under these tokens, not yet in the log.
    sent: Vec<u64>,
    writes: u8,
    /// When the user's rights last changed, as an auth revision.
    changed_at: u64,
    broken: Option<&'static str>,
    refused_old: bool,
    refused_denied: bool,
    applied: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    AddUser,
    DeleteUser,
    AddRole,
    DeleteRole,
    Grant,
    Revoke,
    Permit,
    Forbid,
    Disable,
    Enable,
    /// Must be refused while auth is on.
    DeleteRoot,
}

const CHANGES: [Change; 11] = [
    Change::AddUser,
    Change::DeleteUser,
    Change::AddRole,
    Change::DeleteRole,
    Change::Grant,
    Change::Revoke,
    Change::Permit,
    Change::Forbid,
    Change::Disable,
    Change::Enable,
    Change::DeleteRoot,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Admin(Change),
    LogIn,
    Send,
    /// The oldest write sent enters the log.
    Apply,
    Restart,
}

pub struct AuthModel {
    changes: u8,
    writes: u8,
}

/// Runs the model.
pub fn run(bound: Bound) -> Report {
    let model = match bound {
        Bound::Smoke | Bound::Browse => AuthModel { changes: 5, writes: 1 },
        Bound::Deep => AuthModel { changes: 6, writes: 2 },
    };
    explore("store-auth", bound, model)
}

fn key() -> Bytes {
    Bytes::from_static(b"k")
}

impl Change {
    fn command(self) -> AuthChange {
        let (user, role) = (|| USER.to_owned(), || ROLE.to_owned());
        let permission = Some(Permission { access: Access::Write, key: key(), range_end: Bytes::new() });
        match self {
            Change::AddUser => AuthChange::UserAdd { name: user(), password_hash: Bytes::new() },
            Change::DeleteUser => AuthChange::UserDelete { name: user() },
            Change::AddRole => AuthChange::RoleAdd { name: role() },
            Change::DeleteRole => AuthChange::RoleDelete { name: role() },
            Change::Grant => AuthChange::UserGrantRole { user: user(), role: role() },
            Change::Revoke => AuthChange::UserRevokeRole { user: user(), role: role() },
            Change::Permit => AuthChange::RoleGrantPermission { name: role(), permission },
            Change::Forbid => {
                AuthChange::RoleRevokePermission { name: role(), key: key(), range_end: Bytes::new() }
            }
            Change::Disable => AuthChange::Disable,
            Change::Enable => AuthChange::Enable,
            Change::DeleteRoot => AuthChange::UserDelete { name: "root".into() },
        }
    }
}

impl World {
    fn begin() -> World {
        let mut world = World {
            state: State::default(),
            backend: MemoryBackend::default(),
            index: 0,
            changes: 0,
            user: false,
            granted: false,
            role: false,
            permitted: false,
            token: None,
            sent: Vec::new(),
            writes: 0,
            changed_at: 0,
            broken: None,
            refused_old: false,
            refused_denied: false,
            applied: false,
        };
        let root = || "root".to_owned();
        for change in [
            AuthChange::UserAdd { name: root(), password_hash: Bytes::new() },
            AuthChange::UserGrantRole { user: root(), role: root() },
            AuthChange::Enable,
        ] {
            let done = world.append(Command::Auth(change));
            assert_eq!(done, Ok(()), "root sets auth up");
        }
        for change in [Change::AddUser, Change::AddRole] {
            world.admin(change);
        }
        world.changes = 0;
        world
    }

    fn append(&mut self, command: Command) -> Result<(), Error> {
        self.index += 1;
        let batch = Batch { commands: vec![command], ..Batch::default() };
        let mut effects = apply(&mut self.state, &self.backend, self.index, &batch);
        self.backend.write(&effects.writes);
        effects.responses.remove(0).map(|_| ())
    }

    fn may_write(&self) -> bool {
        self.user && self.granted && self.role && self.permitted
    }

    fn admin(&mut self, change: Change) {
        self.changes += 1;
        let before = (self.state.auth().revision(), self.may_write());
        let who = Identity { user: "root".into(), revision: before.0 };
        let command = Box::new(Command::Auth(change.command()));
        let done = self.append(Command::As { who, command });
        let on = self.state.auth().enabled();
        if done.is_ok() {
            match change {
                Change::AddUser => self.user = true,
                Change::DeleteUser => (self.user, self.granted) = (false, false),
                Change::AddRole => self.role = true,
                Change::DeleteRole => (self.role, self.granted, self.permitted) = (false, false, false),
                Change::Grant => self.granted = true,
                Change::Revoke => self.granted = false,
                Change::Permit => self.permitted = true,
                Change::Forbid => self.permitted = false,
                Change::Disable | Change::Enable => {}
                Change::DeleteRoot => {
                    if on {
                        self.broken = Some("root was locked out");
                    }
                }
            }
        }
        let revision = self.state.auth().revision();
        if revision < before.0 || (done.is_err() && revision != before.0) {
            self.broken = Some("S22 the auth revision went back, or moved without a change");
        }
        if self.may_write() != before.1 {
            self.changed_at = revision;
            if revision == before.0 {
                self.broken = Some("S22 rights changed and old tokens are still good");
            }
        }
    }

    fn write(&mut self) {
        let token = self.sent.remove(0);
        let revision = self.state.revision();
        let (on, current) = (self.state.auth().enabled(), self.state.auth().revision());
        let put = PutRequest { key: key(), ..PutRequest::default() };
        let who = Identity { user: USER.into(), revision: token };
        let done = self.append(Command::As { who, command: Box::new(Command::Put(put)) });
        let expected = if !on {
            Ok(())
        } else if token < current {
            Err(Error::AuthOldRevision)
        } else if self.may_write() {
            Ok(())
        } else {
            Err(Error::PermissionDenied)
        };
        self.refused_old |= expected == Err(Error::AuthOldRevision);
        self.refused_denied |= expected == Err(Error::PermissionDenied);
        self.applied |= on && expected.is_ok();
        if done != expected || (self.state.revision() > revision) != expected.is_ok() {
            self.broken = Some("a write was judged by other rights than those of its moment");
        }
    }
}

impl Model for AuthModel {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::begin()]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.changes < self.changes {
            steps.extend(CHANGES.map(Step::Admin));
        }
        if world.user && world.token != Some(world.state.auth().revision()) {
            steps.push(Step::LogIn);
        }
        if world.token.is_some() && world.writes < self.writes {
            steps.push(Step::Send);
        }
        if !world.sent.is_empty() {
            steps.push(Step::Apply);
        }
        steps.push(Step::Restart);
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        match step {
            Step::Admin(change) => world.admin(change),
            Step::LogIn => world.token = Some(world.state.auth().revision()),
            Step::Send => {
                world.writes += 1;
                world.sent.extend(world.token);
            }
            Step::Apply => world.write(),
            Step::Restart => {
                world.state = State::load(&world.backend).expect("what was written loads");
                if world.state != last.state {
                    world.broken = Some("a restart changed the state");
                }
            }
        }
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<AuthModel>> {
        vec![
            Property::always("S22 no step broke a rule", |_, world: &World| world.broken.is_none()),
            Property::sometimes("a write was allowed", |_, world: &World| world.applied),
            Property::sometimes("a write was refused for its old token", |_, world: &World| {
                world.refused_old
            }),
            Property::sometimes("a write was refused for want of a right", |_, world: &World| {
                world.refused_denied
            }),
            Property::sometimes("a write in the name of a user that is gone", |_, world: &World| {
                !world.user && world.writes > 0 && world.sent.is_empty()
            }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_judged_by_the_rights_of_its_moment() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 9_629, "the reach changed: look why, then set the new count");
    }
}
