//! The Raft log: our own append-only segments, held in memory as an index with a bounded cache of recent entries.
//!
//! Entries, votes, truncations and purges are records of one ordered queue (`Disk`), so a vote can never overtake an
//! entry. A segment is dropped as a whole once all its entries are purged; a new segment begins with the vote and the
//! purge point, so the dropped ones are never missed.
//!
//! Hazard: `append` answers before the disk has the entry; it is readable from the cache at once. An entry leaves the
//! cache only when its bytes are durable.

mod disk;
mod force;
mod record;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use keelson_store_fail::{Point, hit};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{AsyncRuntime, OptionalSend};
use tokio::sync::oneshot;

pub use disk::{Disk, Done, FileDisk, Operation, SyncStats};
use record::{Damage, Record};

use crate::types::{Entry, EntryPayload, LogId, TypeConfig, Vote};

/// A segment is left for a new one above this, bytes.
const SEGMENT: u64 = 16 * 1024 * 1024;
/// Entries kept decoded in memory, bytes of payload.
const CACHE: usize = 4 * 1024 * 1024;
/// Most payload one read for replication returns, bytes.
const READ: usize = 1024 * 1024;
/// What an entry costs in memory beside its payload, bytes.
const ENTRY_OVERHEAD: usize = 96;

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk refused.
    #[error("raft log: {0}; check the data directory's permissions and free space")]
    Io(#[from] io::Error),
    /// Durable bytes changed.
    #[error(
        "raft log segment {file} is corrupt at byte {offset}, before its end: acknowledged entries are damaged; \
         remove this member from the cluster, delete its data directory and add it again"
    )]
    Corrupt {
        /// Segment.
        file: String,
        /// Of the first bad record.
        offset: u64,
    },
    /// An entry does not follow the one before.
    #[error(
        "raft log segment {file} has entry {found} where {expected} was expected: a segment is missing; \
         remove this member from the cluster, delete its data directory and add it again"
    )]
    Gap {
        /// Segment.
        file: String,
        /// Index that should come.
        expected: u64,
        /// Index that came.
        found: u64,
    },
}

/// One entry: always its id and place, sometimes its content.
struct Slot {
    id: LogId,
    segment: u64,
    offset: u64,
    length: usize,
    /// Bytes of all entries before it, counted since the log was opened.
    before: u64,
    cached: Option<Entry>,
}

struct Segment {
    number: u64,
    /// Greatest index of an entry in it.
    last_index: u64,
}

/// The durable length of the newest segment, as far as completions have told.
#[derive(Default)]
struct Synced {
    segment: AtomicU64,
    length: AtomicU64,
}

struct Inner {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// Consecutive, the first follows `purged` when there is one.
    slots: VecDeque<Slot>,
    /// Bytes of all entries pushed.
    written: u64,
    cached_bytes: usize,
    /// Slots before this position are not cached.
    cached_from: usize,
    segments: VecDeque<Segment>,
    /// Of the newest segment, queued bytes included.
    length: u64,
    /// A gap that only an installed snapshot explains, until `settle` has asked for it.
    gap: Option<Gap>,
}

/// Entries follow that do not continue what was there.
struct Gap {
    file: String,
    expected: u64,
    found: u64,
}

/// The log, shared by its readers.
pub struct SegmentLog<D> {
    disk: Arc<D>,
    inner: Arc<Mutex<Inner>>,
    synced: Arc<Synced>,
}

impl<D> Clone for SegmentLog<D> {
    fn clone(&self) -> Self {
        SegmentLog { disk: self.disk.clone(), inner: self.inner.clone(), synced: self.synced.clone() }
    }
}

fn name(number: u64) -> String {
    format!("{number:016x}.log")
}

fn number(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(".log")?, 16).ok()
}

fn size(entry: &Entry) -> usize {
    ENTRY_OVERHEAD
        + match &entry.payload {
            EntryPayload::Normal(payload) => payload.0.len(),
            EntryPayload::Blank | EntryPayload::Membership(_) => 0,
        }
}

impl<D: Disk> SegmentLog<D> {
    /// Reads all segments. A torn end is cut off; nothing acknowledged can be in it.
    ///
    /// # Errors
    /// IO; durable bytes that changed; a missing segment.
    pub fn open(disk: Arc<D>) -> Result<Self, LogError> {
        let mut inner = Inner {
            vote: None,
            committed: None,
            purged: None,
            slots: VecDeque::new(),
            written: 0,
            cached_bytes: 0,
            cached_from: 0,
            segments: VecDeque::new(),
            length: 0,
            gap: None,
        };
        let mut numbers: Vec<u64> = disk.list()?.iter().filter_map(|name| number(name)).collect();
        numbers.sort_unstable();
        for (position, segment) in numbers.iter().enumerate() {
            let newest = position + 1 == numbers.len();
            inner.load(disk.as_ref(), *segment, newest)?;
            inner.forget_loaded();
        }
        inner.drop_purged();
        if let Some(committed) = inner.committed
            && inner.last_id() < Some(committed)
        {
            inner.committed = inner.last_id();
        }
        let log = SegmentLog { disk, inner: Arc::new(Mutex::new(inner)), synced: Arc::default() };
        {
            // Always a fresh segment: the old one's durable length need not be known.
            let mut inner = log.lock();
            log.roll(&mut inner);
        }
        Ok(log)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while the log is locked")
    }

    /// Called once, before openraft starts, with the entry that the stored state ends at. After a snapshot from the
    /// leader, openraft may append what follows it before it purges what the snapshot covers; a crash in between
    /// leaves a gap that the state fills.
    ///
    /// # Errors
    /// A gap that the state does not fill: a segment is missing.
    pub fn settle(&self, applied: Option<LogId>) -> Result<(), LogError> {
        let mut inner = self.lock();
        let Some(gap) = inner.gap.take() else { return Ok(()) };
        #[cfg(feature = "planted")]
        let applied = applied.filter(|_| !keelson_plant::is(41));
        match applied.filter(|applied| applied.index + 1 >= gap.found) {
            Some(applied) => {
                inner.purge(applied);
                self.write(&mut inner, &Record::Purge(applied), None);
                Ok(())
            }
            None => Err(LogError::Gap { file: gap.file, expected: gap.expected, found: gap.found }),
        }
    }

    /// Bytes of all payloads cached; a gauge.
    pub fn cached_bytes(&self) -> usize {
        self.lock().cached_bytes
    }

    /// Bytes of all entries after an index.
    pub fn bytes_after(&self, index: u64) -> u64 {
        let inner = self.lock();
        let total = inner.written;
        let at = inner.slots.front().map_or(0, |slot| (index + 1).saturating_sub(slot.id.index));
        inner.slots.get(at as usize).map_or(0, |slot| total - slot.before)
    }

    /// The last entry before the newest `keep` bytes of entries; `None` when there is none.
    pub fn index_before(&self, keep: u64) -> Option<u64> {
        let inner = self.lock();
        let total = inner.written;
        let old = inner.slots.partition_point(|slot| total - slot.before > keep);
        // The entry that the border lies in is kept.
        inner.slots.get(old.checked_sub(2)?).map(|slot| slot.id.index)
    }

    /// Whether the log holds nothing: no entry, no vote, nothing purged.
    pub fn is_pristine(&self) -> bool {
        let inner = self.lock();
        inner.vote.is_none() && inner.purged.is_none() && inner.slots.is_empty()
    }

    /// Begins a new segment with what the older ones say beside entries.
    fn roll(&self, inner: &mut Inner) {
        let number = inner.segments.back().map_or(1, |segment| segment.number + 1);
        inner.segments.push_back(Segment { number, last_index: 0 });
        inner.length = 0;
        if let Some(vote) = inner.vote {
            self.write(inner, &Record::Vote(vote), None);
        }
        if let Some(purged) = inner.purged {
            self.write(inner, &Record::Purge(purged), None);
        }
    }

    /// Queues one record; answers its place.
    fn write(&self, inner: &mut Inner, record: &Record, done: Option<Done>) -> (u64, u64, usize) {
        let segment = inner.segments.back().map_or(0, |segment| segment.number);
        let synced = if self.synced.segment.load(Ordering::Acquire) == segment {
            self.synced.length.load(Ordering::Acquire)
        } else {
            0
        };
        let data = record::encode(record, synced);
        let offset = inner.length;
        let length = data.len();
        inner.length += length as u64;
        let end = inner.length;
        let marks = self.synced.clone();
        let done = done.map(|done| -> Done {
            Box::new(move |result| {
                if result.is_ok() {
                    // One flusher completes in order, so these two never go back.
                    if marks.segment.load(Ordering::Acquire) != segment {
                        marks.length.store(0, Ordering::Release);
                        marks.segment.store(segment, Ordering::Release);
                    }
                    marks.length.store(end, Ordering::Release);
                }
                done(result);
            })
        });
        self.disk.submit(Operation::Append { file: name(segment), data, done });
        (segment, offset, length)
    }

    /// Forgets the content of old entries, as far as they are durable.
    fn shrink(&self, inner: &mut Inner) {
        let durable =
            (self.synced.segment.load(Ordering::Acquire), self.synced.length.load(Ordering::Acquire));
        while inner.cached_bytes > CACHE && inner.cached_from < inner.slots.len() {
            let at = inner.cached_from;
            let slot = &mut inner.slots[at];
            if (slot.segment, slot.offset + slot.length as u64) > durable {
                return;
            }
            if let Some(entry) = slot.cached.take() {
                inner.cached_bytes -= size(&entry);
            }
            inner.cached_from += 1;
        }
    }

    /// Queues a record and waits until it is durable.
    async fn write_through(&self, change: impl FnOnce(&mut Inner) -> Record) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut inner = self.lock();
            let record = change(&mut inner);
            let done: Done = Box::new(move |result| {
                // The waiter may be gone; the record is written all the same.
                let _ = sender.send(result);
            });
            self.write(&mut inner, &record, Some(done));
        }
        receiver.await.map_err(|_| io::Error::other("the raft log's disk has stopped"))?
    }

    fn entry(&self, slot: &Slot) -> io::Result<Entry> {
        if let Some(entry) = &slot.cached {
            return Ok(entry.clone());
        }
        let data = self.disk.read_at(&name(slot.segment), slot.offset, slot.length)?;
        match record::decode(&data) {
            Some(Record::Entry(entry)) if entry.log_id == slot.id => Ok(entry),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("raft log segment {} is corrupt at byte {}", name(slot.segment), slot.offset),
            )),
        }
    }

    fn read(&self, from: u64, to: u64, limit: usize) -> io::Result<Vec<Entry>> {
        let inner = self.lock();
        let Some(first) = inner.slots.front().map(|slot| slot.id.index) else { return Ok(Vec::new()) };
        let mut entries = Vec::new();
        let mut bytes = 0;
        for index in from.max(first)..to {
            let Some(slot) = inner.slots.get((index - first) as usize) else { break };
            let entry = self.entry(slot)?;
            bytes += size(&entry);
            entries.push(entry);
            if bytes >= limit {
                break;
            }
        }
        Ok(entries)
    }
}

impl Inner {
    fn last_id(&self) -> Option<LogId> {
        self.slots.back().map(|slot| slot.id).or(self.purged)
    }

    fn next_index(&self) -> Option<u64> {
        self.last_id().map(|id| id.index + 1)
    }

    /// Replays one segment.
    fn load<D: Disk>(&mut self, disk: &D, segment: u64, newest: bool) -> Result<(), LogError> {
        let file = name(segment);
        let (found, damage) = record::scan(&disk.read(&file)?);
        match damage {
            Some(Damage::Torn(offset)) if newest => {
                tracing::debug!(file, offset, "raft log: cutting off a torn end or space set aside");
                disk.truncate(&file, offset)?;
            }
            Some(Damage::Torn(offset) | Damage::Corrupt(offset)) => {
                return Err(LogError::Corrupt { file, offset });
            }
            None => {}
        }
        self.segments.push_back(Segment { number: segment, last_index: 0 });
        for item in found {
            match item.record {
                Record::Entry(entry) => self.replay(entry, &file, item.offset, item.length),
                Record::Vote(vote) => self.vote = Some(vote),
                Record::Truncate(last) => self.truncate(last),
                Record::Purge(upto) => self.purge(upto),
                Record::Committed(committed) => self.committed = committed,
            }
        }
        Ok(())
    }

    fn replay(&mut self, entry: Entry, file: &str, offset: u64, length: usize) {
        let found = entry.log_id.index;
        if let Some(expected) = self.next_index()
            && found != expected
        {
            // Entries of a segment that outlived its purged neighbours may lie before the purge point.
            if self.purged.is_some_and(|purged| found <= purged.index) {
                return;
            }
            // What lies before the gap is covered by whatever explains the gap.
            self.truncate(None);
            self.gap = Some(Gap { file: file.to_owned(), expected, found });
        }
        let segment = self.segments.back().map_or(0, |segment| segment.number);
        self.push(entry, (segment, offset, length));
    }

    fn push(&mut self, entry: Entry, (segment, offset, length): (u64, u64, usize)) {
        if let Some(last) = self.segments.back_mut() {
            last.last_index = last.last_index.max(entry.log_id.index);
        }
        self.cached_bytes += size(&entry);
        let before = self.written;
        self.written += length as u64;
        self.slots.push_back(Slot { id: entry.log_id, segment, offset, length, before, cached: Some(entry) });
    }

    /// Forgets the content of entries that were just read, which are all durable.
    fn forget_loaded(&mut self) {
        while self.cached_bytes > CACHE / 4
            && let Some(slot) = self.slots.get_mut(self.cached_from)
        {
            if let Some(entry) = slot.cached.take() {
                self.cached_bytes -= size(&entry);
            }
            self.cached_from += 1;
        }
    }

    fn forget(&mut self, slot: Option<Slot>) {
        if let Some(entry) = slot.and_then(|slot| slot.cached) {
            self.cached_bytes -= size(&entry);
        }
    }

    fn truncate(&mut self, last: Option<LogId>) {
        let keep = last.map_or(0, |id| id.index + 1);
        while self.slots.back().is_some_and(|slot| slot.id.index >= keep) {
            let slot = self.slots.pop_back();
            self.forget(slot);
        }
        self.cached_from = self.cached_from.min(self.slots.len());
    }

    fn purge(&mut self, upto: LogId) {
        if self.purged.is_some_and(|purged| purged >= upto) {
            return;
        }
        while self.slots.front().is_some_and(|slot| slot.id.index <= upto.index) {
            let slot = self.slots.pop_front();
            self.forget(slot);
            self.cached_from = self.cached_from.saturating_sub(1);
        }
        self.purged = Some(upto);
        self.gap.take_if(|gap| upto.index + 1 >= gap.found);
    }

    /// Segments that hold nothing any more, oldest first; never the newest.
    fn drop_purged(&mut self) -> Vec<String> {
        let Some(purged) = self.purged else { return Vec::new() };
        let mut dropped = Vec::new();
        while self.segments.len() > 1 && self.segments[0].last_index <= purged.index {
            dropped.extend(self.segments.pop_front().map(|segment| name(segment.number)));
        }
        dropped
    }
}

impl<R: AsyncRuntime, D: Disk> RaftLogReader<TypeConfig<R>> for SegmentLog<D> {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(from) => from + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(to) => to + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.read(from, to, usize::MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.lock().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ)
    }
}

impl<R: AsyncRuntime, D: Disk> RaftLogStorage<TypeConfig<R>> for SegmentLog<D> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig<R>>> {
        let inner = self.lock();
        Ok(LogState { last_purged_log_id: inner.purged, last_log_id: inner.last_id() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = *vote;
        #[cfg(feature = "planted")]
        if keelson_plant::is(2) {
            let mut inner = self.lock();
            inner.vote = Some(vote);
            self.write(&mut inner, &Record::Vote(vote), None);
            return Ok(());
        }
        hit(Point::RaftBeforeVote)?;
        self.write_through(|inner| {
            inner.vote = Some(vote);
            Record::Vote(vote)
        })
        .await?;
        hit(Point::RaftAfterVote)
    }

    /// Rides with the next durable record: losing it costs a wait at start, nothing else.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let mut inner = self.lock();
        inner.committed = committed;
        self.write(&mut inner, &Record::Committed(committed), None);
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig<R>>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut inner = self.lock();
        if inner.length > SEGMENT {
            self.roll(&mut inner);
        }
        let mut callback = Some(callback);
        #[cfg(feature = "planted")]
        if keelson_plant::is(1)
            && let Some(early) = callback.take()
        {
            early.io_completed(Ok(()));
        }
        let mut entries = entries.into_iter().peekable();
        while let Some(entry) = entries.next() {
            let last = entries.peek().is_none();
            let done = callback
                .take_if(|_| last)
                .map(|callback| -> Done { Box::new(move |result| callback.io_completed(result)) });
            let record = Record::Entry(entry);
            let place = self.write(&mut inner, &record, done);
            let Record::Entry(entry) = record else { unreachable!("it was just made") };
            inner.push(entry, place);
        }
        self.shrink(&mut inner);
        drop(inner);
        if let Some(callback) = callback {
            callback.io_completed(Ok(()));
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.write_through(|inner| {
            inner.truncate(last_log_id);
            Record::Truncate(last_log_id)
        })
        .await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.write_through(|inner| {
            inner.purge(log_id);
            Record::Purge(log_id)
        })
        .await?;
        let dropped = self.lock().drop_purged();
        for file in dropped {
            self.disk.submit(Operation::Remove { file });
        }
        Ok(())
    }
}
