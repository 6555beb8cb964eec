//! The watch cache of one directory of the store: its objects now, and a bounded ring of what changed lately.
//!
//! One writer (`hub`) applies changes in revision order; readers take consistent lists, watchers are cursors into the
//! ring. No queue per watcher: who falls behind the ring is told so and starts again.
//! Hazard: `apply` must be followed by `Hub` publishing the revision; a reader that waits for a revision waits there.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use keelson_api::{RESOURCES, Resource};
use serde_json::Value;

use crate::object::Object;

/// Most events kept per directory.
const RING_EVENTS: usize = 8192;
/// Most bytes of events kept per directory.
const RING_BYTES: usize = 8 << 20;

/// What happened to one object.
#[derive(Clone, Debug)]
pub struct Change {
    pub revision: i64,
    /// Its state after the change; for a deletion its last state, with the revision of the deletion.
    pub object: Arc<Object>,
    /// Its state before; none when it was created.
    pub before: Option<Arc<Object>>,
    pub deleted: bool,
}

struct State {
    objects: BTreeMap<Box<str>, Arc<Object>>,
    /// Everything up to here is in `objects`.
    revision: i64,
    ring: VecDeque<Change>,
    ring_bytes: usize,
    /// Number of the first change in the ring, counted from the start of the cache.
    first: u64,
    /// Changes at or before this revision are no longer (or never were) in the ring.
    forgotten: i64,
}

/// See the module.
pub struct Cache {
    /// Directory in the store, without trailing slash.
    pub dir: String,
    /// The rows of the resource table stored there.
    pub resources: Vec<&'static Resource>,
    keep_decoded: bool,
    state: RwLock<State>,
}

/// Why a watch cannot start or go on.
#[derive(Debug, PartialEq, Eq)]
pub enum Gap {
    /// The revision is older than the ring: list again. Carries the oldest revision that works.
    TooOld(i64),
}

/// Objects of these are many or large: their trees are not kept.
const NOT_KEPT: [&str; 9] = [
    "pods",
    "events",
    "secrets",
    "configmaps",
    "leases",
    "endpointslices",
    "endpoints",
    "replicasets",
    "controllerrevisions",
];

impl Cache {
    /// An empty cache of a directory.
    pub fn new(dir: &str) -> Cache {
        let resources: Vec<_> = RESOURCES.iter().filter(|r| r.storage.as_deref() == Some(dir)).collect();
        let keep_decoded = !resources.iter().any(|r| NOT_KEPT.contains(&r.plural.as_str()));
        let state = State {
            objects: BTreeMap::new(),
            revision: 0,
            ring: VecDeque::new(),
            ring_bytes: 0,
            first: 0,
            forgotten: 0,
        };
        Cache { dir: dir.to_owned(), resources, keep_decoded, state: RwLock::new(state) }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts one object as of its revision.
    pub fn put(&self, key: &str, stored: &[u8], revision: i64) {
        let Some(object) = Object::read(&self.resources, key, stored, revision) else {
            tracing::warn!(
                dir = self.dir,
                key,
                "stored object is not JSON: left out of lists; delete or rewrite it"
            );
            return;
        };
        let object = Arc::new(object);
        let mut state = self.write();
        let before = state.objects.insert(key.into(), object.clone());
        state.remember(Change { revision, object, before, deleted: false });
    }

    /// Removes one object as of `revision`.
    pub fn remove(&self, key: &str, revision: i64) {
        let mut state = self.write();
        let Some(before) = state.objects.remove(key) else { return };
        if let Some(object) = before.deleted_at(&self.resources, revision) {
            let before = Some(before);
            state.remember(Change { revision, object: Arc::new(object), before, deleted: true });
        }
    }

    /// Loads a listed object without making a change of it (only before anybody reads).
    pub fn load(&self, key: &str, stored: &[u8], revision: i64) {
        if let Some(object) = Object::read(&self.resources, key, stored, revision) {
            self.write().objects.insert(key.into(), Arc::new(object));
        }
    }

    /// What was loaded is complete as of `revision`; changes before it are not known.
    pub fn loaded(&self, revision: i64) {
        let mut state = self.write();
        state.forgotten = state.forgotten.max(revision);
        state.revision = state.revision.max(revision);
    }

    /// Nothing more will come at or before `revision`.
    pub fn advance(&self, revision: i64) {
        let mut state = self.write();
        state.revision = state.revision.max(revision);
    }

    /// Keys and revisions of everything held (to find differences after a relist).
    pub fn revisions(&self) -> BTreeMap<Box<str>, i64> {
        self.read().objects.iter().map(|(key, object)| (key.clone(), object.revision)).collect()
    }

    /// Everything up to this revision is here.
    pub fn revision(&self) -> i64 {
        self.read().revision
    }

    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.read().objects.get(key).cloned()
    }

    /// How many objects it holds.
    pub fn count(&self) -> usize {
        self.read().objects.len()
    }

    /// Objects whose key begins with `prefix` and is at least `start`, in key order, with the revision they are of.
    pub fn list(&self, prefix: &str, start: &str) -> (Vec<Arc<Object>>, i64) {
        let state = self.read();
        let from: &str = if start > prefix { start } else { prefix };
        let range = state.objects.range::<str, _>((Bound::Included(from), Bound::Unbounded));
        let found =
            range.take_while(|(key, _)| key.starts_with(prefix)).map(|(_, object)| object.clone()).collect();
        (found, state.revision)
    }

    /// The tree of an object, kept where that is worth it.
    pub fn decoded(&self, object: &Object) -> Arc<Value> {
        object.decoded(self.keep_decoded)
    }

    /// The cursor of a watch that has seen everything up to `revision`.
    ///
    /// # Errors
    /// The changes since then are no longer all here.
    pub fn cursor(&self, revision: i64) -> Result<u64, Gap> {
        let state = self.read();
        if revision < state.forgotten {
            return Err(Gap::TooOld(state.forgotten));
        }
        let seen = state.ring.partition_point(|change| change.revision <= revision);
        Ok(state.first + seen as u64)
    }

    /// Objects and the cursor of what comes after them, as of one moment.
    pub fn list_and_cursor(&self, prefix: &str) -> (Vec<Arc<Object>>, i64, u64) {
        let state = self.read();
        let range = state.objects.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let found =
            range.take_while(|(key, _)| key.starts_with(prefix)).map(|(_, object)| object.clone()).collect();
        (found, state.revision, state.first + state.ring.len() as u64)
    }

    /// Up to `most` changes from the cursor on, the cursor behind them, and the revision up to which that is everything
    /// (when nothing is left).
    ///
    /// # Errors
    /// The cursor fell out of the ring.
    pub fn changes(&self, cursor: u64, most: usize) -> Result<(Vec<Change>, u64, i64), Gap> {
        let state = self.read();
        let Some(skip) = cursor.checked_sub(state.first) else { return Err(Gap::TooOld(state.forgotten)) };
        let changes: Vec<Change> = state.ring.iter().skip(skip as usize).take(most).cloned().collect();
        let next = cursor + changes.len() as u64;
        Ok((changes, next, state.revision))
    }
}

impl State {
    fn remember(&mut self, change: Change) {
        self.revision = self.revision.max(change.revision);
        self.ring_bytes += change.object.size();
        self.ring.push_back(change);
        while self.ring.len() > RING_EVENTS || (self.ring_bytes > RING_BYTES && self.ring.len() > 1) {
            let Some(old) = self.ring.pop_front() else { return };
            self.ring_bytes -= old.object.size();
            self.first += 1;
            self.forgotten = self.forgotten.max(old.revision);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::encode;
    use serde_json::json;

    fn pod(name: &str) -> Vec<u8> {
        encode(&json!({"kind":"Pod","apiVersion":"v1","metadata":{"name":name,"namespace":"d"}}))
    }

    #[test]
    fn lists_are_ordered_and_cursors_see_every_change_once() {
        let cache = Cache::new("/registry/pods");
        cache.load("d/a", &pod("a"), 3);
        cache.loaded(5);
        assert_eq!(cache.cursor(4), Err(Gap::TooOld(5)));
        let cursor = cache.cursor(5).expect("fresh");
        cache.put("d/b", &pod("b"), 6);
        cache.remove("d/a", 7);
        let (changes, next, revision) = cache.changes(cursor, 10).expect("in the ring");
        let seen: Vec<_> = changes.iter().map(|c| (&*c.object.key, c.revision, c.deleted)).collect();
        assert_eq!(seen, [("d/b", 6, false), ("d/a", 7, true)]);
        assert_eq!((next, revision), (cursor + 2, 7));
        assert_eq!(cache.list("d/", "").0.len(), 1);
        assert_eq!(cache.list("e/", "").0.len(), 0);
    }

    #[test]
    fn ring_is_bounded_and_says_so() {
        let cache = Cache::new("/registry/pods");
        cache.loaded(1);
        let cursor = cache.cursor(1).expect("fresh");
        for revision in 2..(RING_EVENTS as i64 + 10) {
            cache.put("d/a", &pod("a"), revision);
        }
        assert!(matches!(cache.changes(cursor, 10), Err(Gap::TooOld(_))));
        assert!(matches!(cache.cursor(1), Err(Gap::TooOld(_))));
        assert!(cache.cursor(RING_EVENTS as i64).is_ok());
    }
}
