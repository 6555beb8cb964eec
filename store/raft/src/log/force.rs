//! A cluster made anew of one surviving member (`--force-new-cluster`).
//!
//! One entry is appended that makes us the only member. What is in the log before it stays and is applied first, so
//! everything this member knows of survives; what the lost members alone knew is lost, which is why it must be asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::{Disk, Record, SegmentLog};
use crate::types::{Entry, EntryPayload, LogId, Membership, Node};

impl<D: Disk> SegmentLog<D> {
    /// Called once, before openraft starts. An empty log is left alone: there is nothing to survive.
    ///
    /// # Errors
    /// IO.
    pub async fn make_alone(&self, id: u64, node: Node) -> io::Result<()> {
        let Some(last) = self.lock().last_id() else { return Ok(()) };
        let membership = Membership::new(vec![BTreeSet::from([id])], BTreeMap::from([(id, node)]))
            .map_err(|error| io::Error::other(error.to_string()))?;
        let log_id = LogId { index: last.index + 1, ..last };
        let entry = Entry { log_id, payload: EntryPayload::Membership(membership) };
        let (sender, receiver) = tokio::sync::oneshot::channel();
        {
            let mut inner = self.lock();
            let record = Record::Entry(entry.clone());
            // The waiter is below.
            let place = self.write(&mut inner, &record, Some(Box::new(move |done| drop(sender.send(done)))));
            inner.push(entry, place);
        }
        receiver.await.map_err(|_| io::Error::other("the raft log's disk has stopped"))?
    }
}
