//! The watchers of one stream: who gets which change, as values in and values out.
//!
//! ```text
//! create / cancel / progress request ─►            ┌─► WatchResponse, in the order to send
//! live changes, one revision at a time ─► WatcherSet
//! history slices for those behind     ─►            └─► catch_up_from() says what it wants next
//! ```
//!
//! The set has a `position`: every change up to it has been offered. A watcher is *synced* when it has had everything up
//! to the position, else *unsynced*: it gets no live changes, only history, until it has caught up. A watcher of a
//! future revision is synced and silent. When the live feed was lost (the hub's ring has moved on), [`WatcherSet::lag`]
//! turns all into unsynced ones. Progress speaks of the position, so it can never overtake a change (property S13).
//!
//! Hazard: take the backend snapshot first and the state's compaction revision after it, never the other way round, or
//! [`history`] may read a hole as "nothing happened".

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::backend::{Cf, Read};
use crate::compact::before;
use crate::layout::{self, Kind, Revision};
use crate::range::{KeyRange, version_at};
use crate::response::{EventType, KeyValue, RevisionEvents, WatchEvent};
use crate::state::State;

/// The id in answers that speak of no watcher, or of all.
pub const NO_WATCHER: i64 = -1;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct WatchCreate {
    /// Empty = `\0`, the smallest key.
    pub key: Bytes,
    /// As on the wire: empty = the one key, `\0` = everything from `key` on.
    pub range_end: Bytes,
    /// 0 = from now on.
    pub start_revision: i64,
    pub progress_notify: bool,
    pub no_put: bool,
    pub no_delete: bool,
    pub prev_kv: bool,
    /// 0 = the stream chooses.
    pub watch_id: i64,
    pub fragment: bool,
}

/// One message of the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct WatchResponse {
    /// The header's revision.
    pub revision: i64,
    pub watch_id: i64,
    pub created: bool,
    pub canceled: bool,
    pub cancel_reason: &'static str,
    /// Not 0 when the watcher was canceled because its next revision is compacted.
    pub compact_revision: i64,
    /// More of the same revision follows.
    pub fragment: bool,
    pub events: Vec<WatchEvent>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Watcher {
    key: Bytes,
    range_end: Bytes,
    /// Nothing older is sent. For an unsynced watcher: where history goes on.
    next: i64,
    progress_notify: bool,
    no_put: bool,
    no_delete: bool,
    prev_kv: bool,
    fragment: bool,
    /// Had events since the last progress tick.
    busy: bool,
}

impl Watcher {
    fn wants(&self, revision: i64, event: &WatchEvent) -> bool {
        let filtered = match event.kind {
            EventType::Put => self.no_put,
            EventType::Delete => self.no_delete,
        };
        #[cfg(feature = "planted")]
        if keelson_plant::is(18) {
            return !filtered;
        }
        revision >= self.next && !filtered
    }

    fn sees(&self, event: &WatchEvent) -> WatchEvent {
        let prev_kv = if self.prev_kv { event.prev_kv.clone() } else { None };
        WatchEvent { kind: event.kind, kv: event.kv.clone(), prev_kv }
    }
}

/// What the unsynced watchers need next: changes of revisions `from..=to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CatchUp {
    pub from: i64,
    pub to: i64,
    /// Whether anyone wants previous versions (they cost a lookup each).
    pub prev_kv: bool,
}

/// A stretch of the past: all changes of `from..=through`, whole revisions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct History {
    pub from: i64,
    pub through: i64,
    /// Changes below it are gone.
    pub compact_revision: i64,
    pub revisions: Vec<RevisionEvents>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WatcherSet {
    position: i64,
    next_id: i64,
    /// The newest revision any answer has shown; manual progress waits until the position has reached it.
    shown: i64,
    progress_asked: bool,
    max_response: usize,
    watchers: BTreeMap<i64, Watcher>,
    unsynced: BTreeSet<i64>,
    /// Synced watchers of one key, by key.
    points: BTreeMap<Bytes, BTreeSet<i64>>,
    /// Synced watchers of more than a key.
    spans: BTreeSet<i64>,
}

impl WatcherSet {
    /// `position`: the revision up to which the live feed has been read. Fragments split at `max_response` bytes.
    pub fn new(position: i64, max_response: usize) -> WatcherSet {
        WatcherSet {
            position,
            next_id: 0,
            shown: 0,
            progress_asked: false,
            max_response,
            watchers: BTreeMap::new(),
            unsynced: BTreeSet::new(),
            points: BTreeMap::new(),
            spans: BTreeSet::new(),
        }
    }

    /// Every change up to it has been offered.
    pub fn position(&self) -> i64 {
        self.position
    }

    pub fn len(&self) -> usize {
        self.watchers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.watchers.is_empty()
    }

    pub fn contains(&self, id: i64) -> bool {
        self.watchers.contains_key(&id)
    }

    /// `revision` is the store's, read after the last published change was; it starts a watch "from now on".
    pub fn create(&mut self, request: WatchCreate, revision: i64) -> WatchResponse {
        let revision = revision.max(self.position);
        self.shown = self.shown.max(revision);
        let refused = |cancel_reason| WatchResponse {
            revision,
            watch_id: NO_WATCHER,
            created: true,
            canceled: true,
            cancel_reason,
            ..WatchResponse::default()
        };
        if request.start_revision < 0 {
            return refused("etcdserver: mvcc: required revision has been compacted");
        }
        let key = if request.key.is_empty() { Bytes::from_static(b"\0") } else { request.key };
        if KeyRange::new(&key, &request.range_end).is_empty() {
            return refused("mvcc: watcher range is empty");
        }
        let Some(id) = self.choose_id(request.watch_id) else {
            return refused("mvcc: duplicate watch ID provided on the WatchStream");
        };
        let watcher = Watcher {
            key,
            range_end: request.range_end,
            next: if request.start_revision == 0 { revision + 1 } else { request.start_revision },
            progress_notify: request.progress_notify,
            no_put: request.no_put,
            no_delete: request.no_delete,
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            busy: false,
        };
        let behind = watcher.next <= self.position;
        self.watchers.insert(id, watcher);
        if behind {
            self.unsynced.insert(id);
        } else {
            self.index(id);
        }
        WatchResponse { revision, watch_id: id, created: true, ..WatchResponse::default() }
    }

    fn choose_id(&mut self, wanted: i64) -> Option<i64> {
        if wanted != 0 {
            return (!self.watchers.contains_key(&wanted)).then_some(wanted);
        }
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }

    /// An unknown id answers nothing.
    pub fn cancel(&mut self, id: i64, revision: i64) -> Vec<WatchResponse> {
        let mut out = Vec::new();
        if self.remove(id).is_some() {
            let revision = revision.max(self.position);
            out.push(WatchResponse { revision, watch_id: id, canceled: true, ..WatchResponse::default() });
        }
        // It may have been the one that progress waited for.
        self.answer_progress(&mut out);
        out
    }

    fn remove(&mut self, id: i64) -> Option<Watcher> {
        self.unindex(id);
        self.unsynced.remove(&id);
        self.watchers.remove(&id)
    }

    fn index(&mut self, id: i64) {
        let watcher = &self.watchers[&id];
        if watcher.range_end.is_empty() {
            self.points.entry(watcher.key.clone()).or_default().insert(id);
        } else {
            self.spans.insert(id);
        }
    }

    fn unindex(&mut self, id: i64) {
        self.spans.remove(&id);
        let Some(watcher) = self.watchers.get(&id) else { return };
        if let Some(ids) = self.points.get_mut(&watcher.key) {
            ids.remove(&id);
            if ids.is_empty() {
                self.points.remove(&watcher.key);
            }
        }
    }

    /// The next live revision. One at or below the position is ignored (it has been offered); a gap is the shell's bug.
    pub fn offer(&mut self, change: &RevisionEvents) -> Vec<WatchResponse> {
        self.offer_all([change])
    }

    /// Revisions that are there together: each watcher has one answer to all of them.
    pub fn offer_all<'a>(
        &mut self,
        changes: impl IntoIterator<Item = &'a RevisionEvents>,
    ) -> Vec<WatchResponse> {
        let mut hits: BTreeMap<i64, Vec<WatchEvent>> = BTreeMap::new();
        let before = self.position;
        for change in changes.into_iter().skip_while(|change| change.revision <= before) {
            assert_eq!(
                change.revision,
                self.position + 1,
                "S15: live changes come without a gap; call lag() after one"
            );
            self.position = change.revision;
            self.hit(change, &mut hits);
        }
        let mut out = Vec::new();
        if self.position == before {
            return out;
        }
        for (id, events) in hits {
            #[cfg(feature = "planted")]
            if keelson_plant::is(19) {
                events.into_iter().for_each(|event| self.respond(id, vec![event], &mut out));
                continue;
            }
            self.respond(id, events, &mut out);
        }
        self.answer_progress(&mut out);
        out
    }

    /// Who sees what of a change.
    fn hit(&self, change: &RevisionEvents, hits: &mut BTreeMap<i64, Vec<WatchEvent>>) {
        for event in &change.events {
            let points = self.points.get(&event.kv.key).into_iter().flatten();
            let spans = self.spans.iter().filter(|id| {
                let watcher = &self.watchers[id];
                KeyRange::new(&watcher.key, &watcher.range_end).contains(&event.kv.key)
            });
            for id in points.chain(spans) {
                let watcher = &self.watchers[id];
                if watcher.wants(change.revision, event) {
                    hits.entry(*id).or_default().push(watcher.sees(event));
                }
            }
        }
    }

    /// The live feed was lost and goes on after `revision`: all watchers continue from history.
    pub fn lag(&mut self, revision: i64) -> Vec<WatchResponse> {
        let mut out = Vec::new();
        if revision <= self.position {
            return out;
        }
        for (id, watcher) in &mut self.watchers {
            if !self.unsynced.contains(id) {
                watcher.next = watcher.next.max(self.position + 1);
                #[cfg(feature = "planted")]
                if keelson_plant::is(17) && watcher.next == self.position + 1 {
                    watcher.next = self.position;
                }
            }
        }
        self.position = revision;
        self.points.clear();
        self.spans.clear();
        self.unsynced = self.watchers.iter().filter(|(_, w)| w.next <= revision).map(|(id, _)| *id).collect();
        let synced: Vec<i64> =
            self.watchers.keys().filter(|id| !self.unsynced.contains(id)).copied().collect();
        synced.into_iter().for_each(|id| self.index(id));
        #[cfg(feature = "planted")]
        if keelson_plant::is(43) {
            return out;
        }
        self.answer_progress(&mut out);
        out
    }

    /// What to read for those behind; `None` when all are synced.
    pub fn catch_up_from(&self) -> Option<CatchUp> {
        let behind = || self.unsynced.iter().map(|id| &self.watchers[id]);
        let from = behind().map(|watcher| watcher.next).min()?;
        Some(CatchUp { from, to: self.position, prev_kv: behind().any(|watcher| watcher.prev_kv) })
    }

    /// Gives a stretch of the past to those behind. Who wants something older than its `compact_revision` is canceled.
    pub fn catch_up(&mut self, history: &History) -> Vec<WatchResponse> {
        let mut out = Vec::new();
        for id in self.unsynced.clone() {
            let watcher = &self.watchers[&id];
            if watcher.next < history.compact_revision {
                self.remove(id);
                out.push(WatchResponse {
                    watch_id: id,
                    canceled: true,
                    compact_revision: history.compact_revision,
                    ..WatchResponse::default()
                });
                continue;
            }
            // Created since this stretch was asked for, further back: its turn comes. Or ahead of it.
            if watcher.next < history.from || watcher.next > history.through {
                continue;
            }
            let range = KeyRange::new(&watcher.key, &watcher.range_end);
            let changes = history.revisions.iter().flat_map(|change| {
                change.events.iter().filter(|event| watcher.wants(change.revision, event))
            });
            let events =
                changes.filter(|event| range.contains(&event.kv.key)).map(|event| watcher.sees(event));
            let events: Vec<WatchEvent> = events.collect();
            let next = history.through + 1;
            self.watchers.get_mut(&id).expect("an unsynced watcher exists").next = next;
            if next > self.position {
                self.unsynced.remove(&id);
                self.index(id);
            }
            if !events.is_empty() {
                self.respond(id, events, &mut out);
            }
        }
        self.answer_progress(&mut out);
        out
    }

    /// A client asked for progress: answered for all watchers at once as soon as all are synced, not at all without any.
    pub fn request_progress(&mut self) -> Vec<WatchResponse> {
        self.progress_asked = !self.watchers.is_empty();
        let mut out = Vec::new();
        self.answer_progress(&mut out);
        out
    }

    fn answer_progress(&mut self, out: &mut Vec<WatchResponse>) {
        #[cfg(feature = "planted")]
        if keelson_plant::is(15) && self.progress_asked {
            self.progress_asked = false;
            out.push(self.progress(NO_WATCHER));
        }
        if self.progress_asked
            && !self.watchers.is_empty()
            && self.unsynced.is_empty()
            && self.position >= self.shown
        {
            self.progress_asked = false;
            out.push(self.progress(NO_WATCHER));
        }
    }

    /// The interval of automatic progress is over: one notice for each synced watcher that asked and was idle.
    pub fn tick_progress(&mut self) -> Vec<WatchResponse> {
        let idle = |(id, watcher): (&i64, &mut Watcher)| {
            let idle = watcher.progress_notify && !watcher.busy && !self.unsynced.contains(id);
            watcher.busy = false;
            idle.then_some(*id)
        };
        let idle: Vec<i64> = self.watchers.iter_mut().filter_map(idle).collect();
        idle.into_iter().filter(|_| self.position >= self.shown).map(|id| self.progress(id)).collect()
    }

    fn progress(&self, watch_id: i64) -> WatchResponse {
        WatchResponse { revision: self.position, watch_id, ..WatchResponse::default() }
    }

    /// One answer, or several fragments of it.
    fn respond(&mut self, id: i64, events: Vec<WatchEvent>, out: &mut Vec<WatchResponse>) {
        assert!(!events.is_empty(), "an answer has events");
        let watcher = self.watchers.get_mut(&id).expect("only a known watcher is answered");
        watcher.busy = true;
        self.shown = self.shown.max(self.position);
        let whole = WatchResponse { revision: self.position, watch_id: id, ..WatchResponse::default() };
        if !watcher.fragment {
            out.push(WatchResponse { events, ..whole });
            return;
        }
        let mut part = WatchResponse { fragment: true, ..whole };
        let mut size = 0;
        for event in events {
            let weight = weight(&event);
            if !part.events.is_empty() && size + weight > self.max_response {
                out.push(WatchResponse { events: std::mem::take(&mut part.events), ..part });
                size = 0;
            }
            size += weight;
            part.events.push(event);
        }
        part.fragment = false;
        out.push(part);
    }
}

/// About the bytes an event takes on the wire.
pub fn weight(event: &WatchEvent) -> usize {
    let kv = |kv: &KeyValue| kv.key.len() + kv.value.len() + 32;
    kv(&event.kv) + event.prev_kv.as_ref().map_or(0, kv)
}

/// Reads the changes of `want.from..=want.to` from a snapshot, whole revisions, stopping after about `max_bytes`.
///
/// `through` of the answer says how far it got (at least one revision that has changes, or all that was wanted).
pub fn history(state: &State, read: &dyn Read, want: CatchUp, max_bytes: usize) -> History {
    let compact_revision = state.compact_revision();
    let from = want.from.max(compact_revision);
    let through = want.to.min(state.revision());
    let mut history = History { from, through, compact_revision, revisions: Vec::new() };
    if from > through {
        return history;
    }
    let mut size = 0;
    let first = Revision { main: from.max(0), sub: 0 }.encode();
    let last = Revision { main: through, sub: u32::MAX }.encode();
    read.scan(Cf::History, Bound::Included(&first), Bound::Included(&last), false, &mut |stored, record| {
        let at = Revision::decode(stored);
        if history.revisions.last().is_none_or(|change| change.revision != at.main) {
            if size >= max_bytes && size > 0 {
                history.through = at.main - 1;
                return ControlFlow::Break(());
            }
            history.revisions.push(RevisionEvents { revision: at.main, events: Vec::new() });
        }
        let event = event(read, at, &Bytes::copy_from_slice(record), compact_revision, want.prev_kv);
        size += weight(&event);
        history.revisions.last_mut().expect("pushed above").events.push(event);
        ControlFlow::Continue(())
    });
    history
}

fn event(read: &dyn Read, at: Revision, record: &Bytes, compacted: i64, prev: bool) -> WatchEvent {
    let (kind, kv) = layout::decode_history(at.main, record);
    // What was before the compaction revision may be scrubbed on one member and not yet on another: none shows it.
    let known = |prev: &KeyValue| at.main > compacted || prev.mod_revision == at.main;
    #[cfg(feature = "planted")]
    let known = |prev: &KeyValue| known(prev) || keelson_plant::is(42);
    let before = before(at).filter(|_| prev);
    let prev_kv = before.and_then(|before| version_at(read, &kv.key, before)).filter(known);
    let kind = match kind {
        Kind::Put => EventType::Put,
        Kind::Tombstone => EventType::Delete,
    };
    WatchEvent { kind, kv, prev_kv }
}
