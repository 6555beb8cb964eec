//! A member that begins with a state from elsewhere (a snapshot file, another program's data) instead of an empty one:
//! what the mark beside its state and its log have to say.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use keelson_store_core::Member;
use openraft::storage::RaftLogStorage;

use crate::log::{Disk, SegmentLog};
use crate::machine::encode_mark;
use crate::types::{LogId, Membership, Node, StoredMembership, TokioRuntime, TypeConfig, Vote};

/// Where a restored history stands, the same on all members that are restored from it.
#[derive(Clone, Debug)]
pub struct Beginning {
    /// Of the last entry that is in the state.
    pub term: u64,
    /// Its index; the state's log position is one more.
    pub index: u64,
    /// Who takes part from now on.
    pub members: Vec<Member>,
}

impl Beginning {
    fn last(&self) -> LogId {
        LogId::new_term_index(self.term, self.index)
    }

    /// The mark to commit with the state.
    ///
    /// # Errors
    /// No member votes.
    pub fn mark(&self) -> io::Result<Vec<u8>> {
        let voters = self.members.iter().filter(|member| !member.is_learner).map(|member| member.id);
        let voters: BTreeSet<u64> = voters.collect();
        let node = |member: &Member| {
            let node =
                Node { name: member.name.clone(), peer_urls: member.peer_urls.clone(), promote: false };
            (member.id, node)
        };
        let nodes: BTreeMap<u64, Node> = self.members.iter().map(node).collect();
        let membership = Membership::new(vec![voters], nodes).map_err(io::Error::other)?;
        let last = Some(self.last());
        Ok(encode_mark(&(last, StoredMembership::new(last, membership))))
    }

    /// Makes an empty log begin behind the state: `member` has voted in its term, and everything before is purged.
    ///
    /// # Errors
    /// IO.
    pub async fn begin_log<D: Disk>(&self, mut log: SegmentLog<D>, member: u64) -> io::Result<()> {
        let vote = Vote::new(self.term, member);
        RaftLogStorage::<TypeConfig<TokioRuntime>>::save_vote(&mut log, &vote).await?;
        RaftLogStorage::<TypeConfig<TokioRuntime>>::purge(&mut log, self.last()).await
    }
}
