//! The one place state changes: a batch of the log, in order, to [`Effects`].
//!
//! Order within a batch: lease time advances to the batch's stamp, the commands run, then leases whose time is over are
//! revoked (so a keep-alive that shares a batch with its deadline wins). Commands see the writes of earlier ones.
//!
//! Duties of the shell: hold one writer; give strictly the log's order; put `writes` into the backend as one atomic
//! batch; then publish `events`, then answer. A batch at or below the applied index is ignored, so replaying a log over
//! a backend that is ahead of it is safe.

use bytes::Bytes;

use crate::auth::{Identity, TokenChange};
use crate::backend::{Cf, Overlay, Read, Write};
use crate::command::{AlarmType, AuthChange, Batch, Command, LeaseId};
use crate::error::Error;
use crate::invariants;
use crate::layout;
use crate::lease::Lease;
use crate::response::{Response, RevisionEvents};
use crate::state::{Alarm, State, lease_keys};
use crate::txn::{self, WriteTxn};

/// What the shell does after a batch, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Effects {
    /// One atomic backend batch; never split. Sorted by column family and key.
    pub writes: Vec<Write>,
    /// To publish to watchers once written: ascending revisions without a gap.
    pub events: Vec<RevisionEvents>,
    /// One per command, in order.
    pub responses: Vec<Result<Response, Error>>,
    /// Leases revoked because their time was over.
    pub expired: Vec<LeaseId>,
    /// The compaction revision moved: start scrubbing (see `compact`).
    pub compacted: bool,
    /// What became of tokens, in order.
    pub tokens: Vec<TokenChange>,
}

/// Applies the batch at log position `index`. `read` must show the backend as of the last applied batch.
///
/// An `index` at or below the applied one answers empty effects.
pub fn apply(state: &mut State, read: &dyn Read, index: u64, batch: &Batch) -> Effects {
    if index <= state.applied {
        return Effects::default();
    }
    let before = (state.revision, state.compact_revision);
    let mut applier = Applier { state, view: Overlay::new(read), effects: Effects::default() };
    applier.state.lessor.clock.advance(batch.stamp);
    #[cfg(feature = "planted")]
    let doomed = if keelson_plant::is(21) { applier.state.lessor.expired() } else { Vec::new() };
    for command in &batch.commands {
        let response = applier.run(command);
        applier.effects.responses.push(response);
    }
    let expired = applier.state.lessor.expired();
    #[cfg(feature = "planted")]
    let expired = if keelson_plant::is(21) {
        doomed.into_iter().filter(|id| applier.state.lessor.get(*id).is_some()).collect()
    } else {
        expired
    };
    for id in expired {
        applier.revoke(id);
        applier.effects.expired.push(id);
    }
    applier.state.applied = index;
    let Applier { state, mut view, mut effects } = applier;
    state.write_head(&mut view);
    effects.writes = view.into_writes();
    effects.compacted = state.compact_revision != before.1;
    invariants::assert_step(before, state, &effects);
    effects
}

/// What the server says in its own name, without a user.
fn of_the_server(command: &Command) -> bool {
    use Command::{
        AlarmActivate, AlarmDeactivate, MemberAdd, MemberPromote, MemberPublish, MemberRemove, MemberUpdate,
    };
    matches!(
        command,
        AlarmActivate { .. }
            | AlarmDeactivate { .. }
            | MemberAdd(_)
            | MemberRemove { .. }
            | MemberUpdate { .. }
            | MemberPromote { .. }
            | MemberPublish { .. }
            | Command::Auth(AuthChange::GiveToken { .. })
    )
}

pub(crate) struct Applier<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) view: Overlay<'a>,
    effects: Effects,
}

impl<'a> Applier<'a> {
    fn run(&mut self, command: &Command) -> Result<Response, Error> {
        let nobody = Identity::default();
        let (who, command) = match command {
            Command::As { who, command } => (who, &**command),
            command => (&nobody, command),
        };
        let named = who != &nobody;
        if named || !of_the_server(command) {
            self.state.auth.check_command(who, &self.view, command)?;
        }
        self.execute(command)
    }

    fn execute(&mut self, command: &Command) -> Result<Response, Error> {
        self.refused_by_alarm(command)?;
        match command {
            Command::Put(put) => {
                txn::check_lease(self, put)?;
                txn::check_kept(self, put)?;
                self.write(|txn| Response::Put(txn.put(put)))
            }
            Command::DeleteRange(delete) => self.write(|txn| Response::DeleteRange(txn.delete_range(delete))),
            Command::Txn(request) => {
                let path = txn::Path::choose(self, request);
                path.check(self, request)?;
                self.write(|txn| Response::Txn(txn.run(request, &path)))
            }
            Command::Compact { revision } => self.compact(*revision),
            Command::LeaseGrant { id, ttl } => self.lease_grant(*id, *ttl),
            Command::LeaseRevoke { id } => {
                if self.state.lessor.get(*id).is_none() {
                    return Err(Error::LeaseNotFound);
                }
                self.revoke(*id);
                Ok(Response::LeaseRevoke { revision: self.state.revision })
            }
            Command::LeaseKeepAlive { id } => Ok(self.keep_alive(*id)),
            Command::AlarmActivate { member, alarm } => Ok(self.alarm(*member, *alarm, true)),
            Command::AlarmDeactivate { member, alarm } => Ok(self.alarm(*member, *alarm, false)),
            Command::Auth(change) => {
                self.state.auth.change(change, &mut self.effects.tokens)?;
                if !matches!(change, AuthChange::GiveToken { .. }) {
                    self.state.write_auth(&mut self.view);
                }
                Ok(Response::Auth { revision: self.state.revision })
            }
            Command::Downgrade { target } => {
                if target.is_some() && self.state.downgrade.is_some() {
                    return Err(Error::DowngradeInProcess);
                }
                self.state.downgrade.clone_from(target);
                self.state.write_downgrade(&mut self.view);
                Ok(Response::Downgrade { revision: self.state.revision })
            }
            // Nobody speaks for one who speaks for another.
            Command::As { .. } => Err(Error::InvalidAuthManagement),
            command => self.members(command),
        }
    }

    /// CORRUPT stops everything that touches data; NOSPACE stops what grows.
    fn refused_by_alarm(&self, command: &Command) -> Result<(), Error> {
        if self.state.alarms.is_empty() {
            return Ok(());
        }
        let (data, grows) = match command {
            Command::Put(_) | Command::LeaseGrant { .. } => (true, true),
            Command::Txn(request) => (true, txn::has_put(request)),
            Command::DeleteRange(_)
            | Command::Compact { .. }
            | Command::LeaseRevoke { .. }
            | Command::LeaseKeepAlive { .. } => (true, false),
            _ => (false, false),
        };
        if data && self.state.has_alarm(AlarmType::Corrupt) {
            return Err(Error::Corrupt);
        }
        if grows && self.state.has_alarm(AlarmType::NoSpace) {
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// Runs one write transaction: its changes share one new revision, or there is none.
    fn write(&mut self, body: impl FnOnce(&mut WriteTxn<'_, 'a>) -> Response) -> Result<Response, Error> {
        let mut txn = WriteTxn::begin(self);
        let response = body(&mut txn);
        if let Some(events) = txn.end() {
            self.effects.events.push(events);
        }
        Ok(response)
    }

    fn compact(&mut self, revision: i64) -> Result<Response, Error> {
        if revision <= self.state.compact_revision {
            return Err(Error::Compacted);
        }
        if revision > self.state.revision {
            return Err(Error::FutureRevision);
        }
        self.state.compact_revision = revision;
        Ok(Response::Compact { revision: self.state.revision })
    }

    fn lease_grant(&mut self, id: LeaseId, ttl: i64) -> Result<Response, Error> {
        let lease = self.state.lessor.grant(id, ttl)?;
        self.put_lease(id, lease);
        Ok(Response::LeaseGrant { revision: self.state.revision, id, ttl })
    }

    fn keep_alive(&mut self, id: LeaseId) -> Response {
        let lease = self.state.lessor.keep_alive(id);
        if let Some(lease) = lease {
            self.put_lease(id, lease);
        }
        Response::LeaseKeepAlive {
            revision: self.state.revision,
            id,
            ttl: lease.map_or(0, |lease| lease.ttl),
        }
    }

    fn put_lease(&mut self, id: LeaseId, lease: Lease) {
        self.view.put(Cf::Lease, layout::lease(id), layout::encode_lease(lease.ttl, lease.expiry));
    }

    /// Ends a lease: all of its keys go in one revision.
    fn revoke(&mut self, id: LeaseId) {
        let lease = self.state.lessor.remove(id);
        assert!(lease.is_some(), "only a known lease is revoked");
        self.view.delete(Cf::Lease, layout::lease(id));
        let keys: Vec<Bytes> = lease_keys(&self.view, id);
        let mut txn = WriteTxn::begin(self);
        for key in keys {
            txn.delete_leased(&key, id);
        }
        if let Some(events) = txn.end() {
            self.effects.events.push(events);
        }
    }

    fn alarm(&mut self, member: u64, alarm: AlarmType, raise: bool) -> Response {
        let alarm = Alarm { member, alarm };
        let changed = if raise { self.state.alarms.insert(alarm) } else { self.state.alarms.remove(&alarm) };
        if changed {
            self.state.write_alarms(&mut self.view);
        }
        // Raising one that is up answers it again; lowering one that is not up answers nothing.
        let alarms = if changed || raise { vec![alarm] } else { Vec::new() };
        Response::Alarm { revision: self.state.revision, alarms }
    }

    fn members(&mut self, command: &Command) -> Result<Response, Error> {
        let members = &mut self.state.members;
        match command {
            Command::MemberAdd(member) => members.add(member.clone())?,
            Command::MemberRemove { id } => members.remove(*id)?,
            Command::MemberUpdate { id, peer_urls } => members.update(*id, peer_urls.clone())?,
            Command::MemberPromote { id } => members.promote(*id)?,
            Command::MemberPublish { id, name, client_urls } => {
                members.publish(*id, name.clone(), client_urls.clone())?;
            }
            other => unreachable!("handled by run: {other:?}"),
        }
        self.state.write_members(&mut self.view);
        Ok(Response::Members { revision: self.state.revision, members: self.state.members.to_vec() })
    }
}
