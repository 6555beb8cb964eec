//! The member list as clients see it: one replicated source of truth, beside the state (Raft's own voter sets live in
//! the consensus layer; the shell changes both, this list through the log).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member {
    pub id: u64,
    /// Empty until the member has started.
    pub name: String,
    pub peer_urls: Vec<String>,
    /// Empty until the member has started.
    pub client_urls: Vec<String>,
    pub is_learner: bool,
}

/// All members by id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Members {
    by_id: BTreeMap<u64, Member>,
}

impl Members {
    /// A list taken over as it is.
    pub(crate) fn of(members: &[Member]) -> Members {
        Members { by_id: members.iter().map(|member| (member.id, member.clone())).collect() }
    }

    pub fn get(&self, id: u64) -> Option<&Member> {
        self.by_id.get(&id)
    }

    /// In order of id.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.by_id.values()
    }

    pub fn to_vec(&self) -> Vec<Member> {
        self.by_id.values().cloned().collect()
    }

    /// Whether another member than `except` has one of these peer URLs.
    fn peer_urls_taken(&self, urls: &[String], except: u64) -> bool {
        self.iter().any(|member| member.id != except && member.peer_urls.iter().any(|url| urls.contains(url)))
    }

    /// Errors: the id or one of the peer URLs is taken.
    pub fn add(&mut self, member: Member) -> Result<(), Error> {
        if self.by_id.contains_key(&member.id) {
            return Err(Error::MemberExists);
        }
        if self.peer_urls_taken(&member.peer_urls, member.id) {
            return Err(Error::PeerUrlsExist);
        }
        self.by_id.insert(member.id, member);
        Ok(())
    }

    /// Errors: no such member.
    pub fn remove(&mut self, id: u64) -> Result<(), Error> {
        self.by_id.remove(&id).map(|_| ()).ok_or(Error::MemberNotFound)
    }

    /// Errors: no such member; another member has one of the URLs.
    pub fn update(&mut self, id: u64, peer_urls: Vec<String>) -> Result<(), Error> {
        if self.peer_urls_taken(&peer_urls, id) {
            return Err(Error::PeerUrlsExist);
        }
        self.by_id.get_mut(&id).ok_or(Error::MemberNotFound)?.peer_urls = peer_urls;
        Ok(())
    }

    /// Errors: no such member; it votes already.
    pub fn promote(&mut self, id: u64) -> Result<(), Error> {
        let member = self.by_id.get_mut(&id).ok_or(Error::MemberNotFound)?;
        if !member.is_learner {
            return Err(Error::NotLearner);
        }
        member.is_learner = false;
        Ok(())
    }

    /// Errors: no such member.
    pub fn publish(&mut self, id: u64, name: String, client_urls: Vec<String>) -> Result<(), Error> {
        let member = self.by_id.get_mut(&id).ok_or(Error::MemberNotFound)?;
        member.name = name;
        member.client_urls = client_urls;
        Ok(())
    }
}
