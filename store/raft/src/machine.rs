//! The state machine: committed entries in log order through `keelson_store_core::apply` into the backend.
//!
//! Order per entry: compute under the write lock, commit writes and mark in one batch, publish events, answer. Readers
//! take the read lock only to pair a backend snapshot with the revisions it shows.
//!
//! The member list clients see is part of the core's state. It is brought in line with Raft's own membership here, when
//! a membership entry is applied, so that the two can never disagree.
//!
//! Hazard: while a snapshot is installed the backend is between two states; `Shared::read` answers `None` then.

use std::io;
use std::sync::{Arc, RwLock};

use futures::{Stream, StreamExt};
use keelson_store_core::compact::{Scrub, Slice};
use keelson_store_core::{Batch, Command, Error, Member, RevisionEvents, State, TokenChange, apply};
use keelson_store_fail::{Point, hit};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{AsyncRuntime, OptionalSend};
use tokio::sync::watch;

use crate::backend::{Backend, Chunks};
use crate::types::{
    Applied, CommittedLeaderId, Entry, EntryPayload, LogId, Membership, Node, SnapshotMeta, StoredMembership,
    TypeConfig,
};

/// Told of everything that is applied, in order, after it is stored and before it is answered.
pub trait Listener: Send + Sync + 'static {
    /// A batch was applied. Revisions ascend without a gap.
    fn applied(&self, state: &State, events: Vec<RevisionEvents>, compacted: bool);
    /// What became of tokens, after it is stored and before it is answered.
    fn tokens(&self, _: Vec<TokenChange>) {}
    /// The whole state was replaced by a snapshot.
    fn restored(&self, state: &State);
}

/// What readers share with the state machine.
pub struct Shared<B> {
    /// Stored state; while nobody holds the write lock it is at `state`'s applied index.
    pub backend: Arc<B>,
    state: RwLock<Guarded>,
    applied: watch::Sender<u64>,
}

struct Guarded {
    state: State,
    /// State and backend are not of one moment: a snapshot is being installed, or a write failed.
    unreadable: bool,
}

impl<B: Backend> Shared<B> {
    /// Runs `read` on state and backend at one point of the log; `None` while a snapshot is being installed. Keep it
    /// short: it holds up applying.
    pub fn read<T>(&self, read: impl FnOnce(&State, &B) -> T) -> Option<T> {
        let guarded = self.state.read().expect("no panic while the state is locked");
        if guarded.unreadable { None } else { Some(read(&guarded.state, &self.backend)) }
    }

    /// Writes one slice of a scrub, apart from applying; answers what comes next. `None` while a snapshot is installed.
    ///
    /// # Errors
    /// IO.
    pub fn scrub(&self, slice: impl FnOnce(&B) -> Slice) -> Option<io::Result<Option<Scrub>>> {
        let guarded = self.state.write().expect("no panic while the state is locked");
        if guarded.unreadable {
            return None;
        }
        let slice = slice(&self.backend);
        let free = || {
            hit(Point::CompactBeforeCommitBatch)?;
            self.backend.prune(&slice.writes)?;
            hit(Point::CompactAfterCommitBatch)
        };
        Some(free().map(|()| slice.next))
    }

    /// Index of the newest applied entry.
    pub fn applied(&self) -> u64 {
        *self.applied.borrow()
    }

    /// Returns once the entry at `index` is applied.
    ///
    /// # Errors
    /// The state machine has stopped.
    pub async fn wait_applied(&self, index: u64) -> Result<(), Error> {
        if self.applied() >= index {
            return Ok(());
        }
        let mut applied = self.applied.subscribe();
        applied.wait_for(|applied| *applied >= index).await.map(|_| ()).map_err(|_| Error::Stopped)
    }

    /// Follows the applied index.
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }
}

/// The content of a snapshot as openraft hands it about.
pub enum SnapshotData<I> {
    /// Stored state itself is the snapshot; nothing is copied until a peer needs it.
    Here,
    /// To be sent.
    Outgoing(Chunks),
    /// Received and checked.
    Incoming(I),
}

/// The state machine openraft drives.
pub struct StateMachine<B> {
    shared: Arc<Shared<B>>,
    listener: Arc<dyn Listener>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
}

pub(crate) type Mark = (Option<LogId>, StoredMembership);

pub(crate) fn encode_mark(mark: &Mark) -> Vec<u8> {
    postcard::to_stdvec(mark).expect("a mark is plain data")
}

fn corrupt(what: &str, error: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{what}: {error}; remove this member, delete its data directory and add it again"),
    )
}

impl<B: Backend> StateMachine<B> {
    /// Loads state from the backend.
    ///
    /// # Errors
    /// IO; records that do not decode.
    pub fn open(backend: Arc<B>, listener: Arc<dyn Listener>) -> io::Result<StateMachine<B>> {
        let state = State::load(backend.as_ref()).map_err(|error| corrupt("stored state", error))?;
        let (last_applied, membership): Mark = match backend.mark()? {
            Some(mark) => postcard::from_bytes(&mark).map_err(|error| corrupt("applied mark", error))?,
            None => (None, StoredMembership::default()),
        };
        listener.restored(&state);
        let applied = last_applied.map_or(0, |id| id.index);
        let shared = Shared {
            backend,
            state: RwLock::new(Guarded { state, unreadable: false }),
            applied: watch::Sender::new(applied),
        };
        Ok(StateMachine { shared: Arc::new(shared), listener, last_applied, membership })
    }

    /// The side readers use.
    pub fn shared(&self) -> Arc<Shared<B>> {
        self.shared.clone()
    }

    /// The entry the stored state ends at.
    pub fn last_applied(&self) -> Option<LogId> {
        self.last_applied
    }

    fn apply_entry(&mut self, entry: Entry) -> io::Result<Applied> {
        let index = entry.log_id.index;
        let mut guarded = self.shared.state.write().expect("no panic while the state is locked");
        let batch = match &entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Normal(payload) => {
                Some(payload.decode().map_err(|error| corrupt("a log entry", error))?)
            }
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                Some(Batch { commands: align(&guarded.state, membership), ..Batch::default() })
            }
        };
        self.last_applied = Some(entry.log_id);
        let mark = encode_mark(&(self.last_applied, self.membership.clone()));
        let backend = &self.shared.backend;
        // openraft counts from 0, where the first membership stands; the core takes 0 for "nothing applied yet".
        let position = index + 1;
        let run = |batch: Batch| apply(&mut guarded.state, backend.as_ref(), position, &batch);
        let effects = batch.map(run).unwrap_or_default();
        #[cfg(feature = "planted")]
        if keelson_plant::is(6) {
            backend.commit(&[], &mark)?;
        }
        let store = || {
            hit(Point::BeforeCommit)?;
            backend.commit(&effects.writes, &mark)?;
            hit(Point::AfterCommit)
        };
        if let Err(error) = store() {
            // The state in memory is ahead of what is stored: this member stops, and until then nobody reads the pair.
            guarded.unreadable = true;
            return Err(error);
        }
        self.listener.applied(&guarded.state, effects.events, effects.compacted);
        if !effects.tokens.is_empty() {
            self.listener.tokens(effects.tokens);
        }
        drop(guarded);
        self.shared.applied.send_replace(index);
        Ok(Applied { index, responses: effects.responses })
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() }
    }

    fn set_installing(&self, installing: bool) {
        self.shared.state.write().expect("no panic while the state is locked").unreadable = installing;
    }
}

/// The commands that make the visible member list equal to Raft's membership.
fn align(state: &State, membership: &Membership) -> Vec<Command> {
    let mut commands = Vec::new();
    for (id, node) in membership.nodes() {
        let votes = membership.voter_ids().any(|voter| voter == *id);
        match state.members().get(*id) {
            None => commands.push(Command::MemberAdd(Member {
                id: *id,
                name: node.name.clone(),
                peer_urls: node.peer_urls.clone(),
                client_urls: Vec::new(),
                is_learner: !votes && !node.promote,
            })),
            Some(known) => {
                if known.peer_urls != node.peer_urls {
                    commands.push(Command::MemberUpdate { id: *id, peer_urls: node.peer_urls.clone() });
                }
                if known.is_learner && votes {
                    commands.push(Command::MemberPromote { id: *id });
                }
            }
        }
    }
    for member in state.members().iter() {
        if membership.get_node(&member.id).is_none() {
            commands.push(Command::MemberRemove { id: member.id });
        }
    }
    commands
}

impl<R: AsyncRuntime, B: Backend> RaftStateMachine<TypeConfig<R>> for StateMachine<B> {
    type SnapshotData = SnapshotData<B::Incoming>;
    type SnapshotBuilder = Builder<B>;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig<R>>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let applied = self.apply_entry(entry)?;
            if let Some(responder) = responder {
                responder.send(applied);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder<B> {
        Builder { meta: self.meta(), backend: self.shared.backend.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData<B::Incoming>,
    ) -> io::Result<()> {
        let incoming = match snapshot {
            SnapshotData::Incoming(incoming) => incoming,
            SnapshotData::Outgoing(chunks) => self.shared.backend.receive(chunks).await?,
            SnapshotData::Here => {
                return Err(io::Error::other("a snapshot that was never sent cannot be installed"));
            }
        };
        let mark = (meta.last_log_id, meta.last_membership.clone());
        #[cfg(feature = "planted")]
        let mark = (mark.0.filter(|_| !keelson_plant::is(7)), mark.1);
        hit(Point::RaftBeforeApplySnap)?;
        self.set_installing(true);
        let installed = self.shared.backend.install(incoming, &encode_mark(&mark)).await;
        installed?;
        hit(Point::RaftAfterApplySnap)?;
        let state =
            State::load(self.shared.backend.as_ref()).map_err(|error| corrupt("a snapshot", error))?;
        (self.last_applied, self.membership) = mark;
        {
            let mut guarded = self.shared.state.write().expect("no panic while the state is locked");
            guarded.state = state;
            guarded.unreadable = false;
            #[cfg(feature = "planted")]
            if keelson_plant::is(9) {
                drop(guarded);
                self.shared.applied.send_replace(self.last_applied.map_or(0, |id| id.index));
                return Ok(());
            }
            self.listener.restored(&guarded.state);
        }
        self.shared.applied.send_replace(self.last_applied.map_or(0, |id| id.index));
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<openraft::storage::Snapshot<CommittedLeaderId, u64, Node, Self::SnapshotData>>>
    {
        if self.last_applied.is_none() {
            return Ok(None);
        }
        let snapshot = SnapshotData::Outgoing(self.shared.backend.export()?);
        Ok(Some(openraft::storage::Snapshot { meta: self.meta(), snapshot }))
    }
}

/// Makes the state so far durable, after which the log before it is not needed.
pub struct Builder<B> {
    meta: SnapshotMeta,
    backend: Arc<B>,
}

impl<R: AsyncRuntime, B: Backend> RaftSnapshotBuilder<TypeConfig<R>> for Builder<B> {
    type SnapshotData = SnapshotData<B::Incoming>;

    async fn build_snapshot(
        &mut self,
    ) -> io::Result<openraft::storage::Snapshot<CommittedLeaderId, u64, Node, Self::SnapshotData>> {
        hit(Point::RaftBeforeSaveSnap)?;
        self.backend.flush().await?;
        hit(Point::RaftAfterSaveSnap)?;
        Ok(openraft::storage::Snapshot { meta: self.meta.clone(), snapshot: SnapshotData::Here })
    }
}
