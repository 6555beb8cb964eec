//! The strict reconfiguration check: no change of the membership may cost the quorum.
//!
//! The leader judges, since it knows who answers. etcd's rules and refusals, but for one: a member that is added votes
//! only when it has caught up, so it is enough that the others answer now; for a removal they must have done so for a
//! while.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use keelson_store_core::{Error, Member};
use keelson_store_raft::network::MemberChange;

/// How long a member must have answered without a failure.
const HEALTHY: Duration = Duration::from_secs(5);

/// Who answers us.
#[derive(Debug, Default)]
pub(crate) struct Contacts {
    peers: Mutex<BTreeMap<u64, Contact>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Contact {
    answered: Option<Instant>,
    failed: Option<Instant>,
}

impl Contacts {
    /// A message was answered, or was not.
    pub fn note(&self, peer: u64, answered: bool) {
        let now = Instant::now();
        let mut peers = self.peers.lock().expect("no panic while locked");
        let contact = peers.entry(peer).or_default();
        if answered {
            contact.answered = Some(now);
        } else {
            contact.failed = Some(now);
        }
    }

    /// Whether it has answered for some time.
    fn healthy(&self, peer: u64) -> bool {
        let contact = self.of(peer);
        let recent = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < HEALTHY);
        recent(contact.answered) && !recent(contact.failed)
    }

    /// Whether it does not answer now.
    fn down(&self, peer: u64) -> bool {
        let contact = self.of(peer);
        contact.answered.is_none() || contact.failed > contact.answered
    }

    fn of(&self, peer: u64) -> Contact {
        self.peers.lock().expect("no panic while locked").get(&peer).copied().unwrap_or_default()
    }
}

/// Judges a change; `us` is the leader.
///
/// # Errors
/// Too few members have started; too few answer.
pub(crate) fn judge(
    change: &MemberChange,
    members: &[Member],
    us: u64,
    contacts: &Contacts,
) -> Result<(), Error> {
    let voters: Vec<&Member> = members.iter().filter(|member| !member.is_learner).collect();
    let started = |voters: &[&Member]| voters.iter().filter(|voter| !voter.client_urls.is_empty()).count();
    let healthy = voters.iter().filter(|voter| voter.id == us || contacts.healthy(voter.id)).count();
    match change {
        MemberChange::Add { node, .. } => {
            let (all, started) = (voters.len() + 1, started(&voters));
            // A cluster of one may be given its second member.
            let enough = (all == 2 && started == 1) || started > all / 2;
            if node.promote && !enough {
                return Err(Error::NotEnoughStartedMembers);
            }
            let silent = voters.iter().any(|voter| voter.id != us && contacts.down(voter.id));
            if silent { Err(Error::Unhealthy) } else { Ok(()) }
        }
        MemberChange::Remove { id } => {
            let rest: Vec<&Member> = voters.iter().copied().filter(|voter| voter.id != *id).collect();
            if rest.len() == voters.len() {
                return Ok(());
            }
            if rest.is_empty() || started(&rest) <= rest.len() / 2 {
                return Err(Error::NotEnoughStartedMembers);
            }
            if *id != us && contacts.down(*id) {
                return Ok(());
            }
            let quorum = 1 + (voters.len() - 1) / 2;
            if healthy.saturating_sub(1) < quorum { Err(Error::Unhealthy) } else { Ok(()) }
        }
        MemberChange::Promote { .. } => {
            let (all, started) = (voters.len() + 1, started(&voters) + 1);
            if started > all / 2 { Ok(()) } else { Err(Error::NotEnoughStartedMembers) }
        }
        MemberChange::Update { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use keelson_store_raft::Node;

    use super::*;

    fn members(started: &[bool]) -> Vec<Member> {
        let member = |(i, started): (usize, &bool)| Member {
            id: i as u64 + 1,
            client_urls: if *started { vec!["http://c".to_owned()] } else { Vec::new() },
            ..Member::default()
        };
        started.iter().enumerate().map(member).collect()
    }

    fn add(promote: bool) -> MemberChange {
        MemberChange::Add { id: 9, node: Node { promote, ..Node::default() } }
    }

    #[test]
    fn a_cluster_grows_only_while_most_of_it_has_started_and_answers() {
        let contacts = Contacts::default();
        assert_eq!(judge(&add(true), &members(&[true]), 1, &contacts), Ok(()));
        contacts.note(2, true);
        assert_eq!(judge(&add(true), &members(&[true, true]), 1, &contacts), Ok(()));
        assert_eq!(
            judge(&add(true), &members(&[true, false]), 1, &contacts),
            Err(Error::NotEnoughStartedMembers)
        );
        contacts.note(2, false);
        assert_eq!(judge(&add(true), &members(&[true, true]), 1, &contacts), Err(Error::Unhealthy));
        assert_eq!(judge(&add(false), &members(&[true, true]), 1, &contacts), Err(Error::Unhealthy));
    }

    #[test]
    fn a_member_goes_when_the_rest_has_a_quorum_or_when_it_is_down() {
        let contacts = Contacts::default();
        let remove = |id| MemberChange::Remove { id };
        let three = members(&[true, true, true]);
        contacts.note(2, true);
        contacts.note(3, true);
        assert_eq!(judge(&remove(3), &three, 1, &contacts), Ok(()));
        contacts.note(3, false);
        assert_eq!(judge(&remove(3), &three, 1, &contacts), Ok(()), "it is down");
        assert_eq!(judge(&remove(2), &three, 1, &contacts), Err(Error::Unhealthy), "one would remain");
        assert_eq!(judge(&remove(1), &members(&[true]), 1, &contacts), Err(Error::NotEnoughStartedMembers));
        let half = members(&[true, false]);
        assert_eq!(judge(&remove(1), &half, 1, &contacts), Err(Error::NotEnoughStartedMembers));
        assert_eq!(judge(&remove(7), &three, 1, &contacts), Ok(()), "a learner costs nothing");
    }
}
