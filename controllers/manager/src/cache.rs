//! The shared state of one leadership: the `View`, how far each informer has come, and which
//! changes wake which controller.
//!
//! One lock. Writers are the informers (an event at a time, a list at a time); readers are the
//! reconcilers, which are pure and quick. Never held across an await.
//!
//! Read-your-own-writes lives here: after a plan, its key is held back until the informers that feed
//! its controller have seen what the plan wrote.

use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use keelson_controllers_core::view::AnyObject;
use keelson_controllers_core::{
    ApiResource, Change, GraphChange, Gvr, Key, Node, Reconciler, Source, View, Watch,
};
use tokio::time::Instant;

use crate::queue::Queue;

/// A key is not held back longer than this; then something is wrong and it is said in the log.
const PATIENCE: Duration = Duration::from_secs(120);

/// What an informer feeds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feed {
    /// A typed cache.
    Typed(Gvr),
    /// The graph alone, from metadata.
    Graph(Gvr),
}

/// Something a plan wrote, to be seen before its key is looked at again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// An object of this resource has this version now.
    Version { resource: Gvr, version: u64 },
    /// This object is gone or being deleted.
    Removed { resource: Gvr, key: Key, uid: String },
}

pub struct Controller {
    pub reconciler: Arc<dyn Reconciler>,
    pub queue: Arc<Queue>,
    types: BTreeMap<Gvr, TypeId>,
}

#[derive(Default)]
struct State {
    view: View,
    progress: BTreeMap<Feed, u64>,
    held: Vec<Held>,
    expected: BTreeSet<Feed>,
    discovered: bool,
}

struct Held {
    controller: usize,
    key: Key,
    written: Vec<Written>,
    since: Instant,
    /// A worker asked for the key and was turned away: queue it when its writes are seen.
    wanted: bool,
}

pub struct Cache {
    state: RwLock<State>,
    pub controllers: Vec<Controller>,
    /// Resources whose typed informer sees every object and so feeds the graph as well.
    whole: BTreeSet<Gvr>,
}

/// A decoded change on its way in.
pub enum Incoming {
    Put { typed: Option<AnyObject>, node: Option<Node>, key: Key },
    Remove { key: Key },
}

impl Cache {
    pub fn new(reconcilers: &[Arc<dyn Reconciler>]) -> (Cache, Vec<Watch>) {
        let mut state = State::default();
        let mut watches: BTreeMap<Gvr, Watch> = BTreeMap::new();
        let mut controllers = Vec::new();
        for reconciler in reconcilers {
            let mut types = BTreeMap::new();
            for watch in reconciler.watches() {
                types.insert(watch.resource.clone(), watch.type_id);
                for install in &watch.install {
                    install(&mut state.view);
                }
                match watches.get_mut(&watch.resource) {
                    None => {
                        watches.insert(watch.resource.clone(), watch);
                    }
                    // Two controllers share an informer: it sees what either wants to see.
                    Some(have) => {
                        have.namespace = have.namespace.filter(|n| Some(*n) == watch.namespace);
                        have.field_selector =
                            have.field_selector.filter(|s| Some(*s) == watch.field_selector);
                    }
                }
            }
            controllers.push(Controller { reconciler: reconciler.clone(), queue: Arc::default(), types });
        }
        let watches: Vec<Watch> = watches.into_values().collect();
        let all =
            |w: &&Watch| w.namespace.is_none() && w.field_selector.is_none() && w.source == Source::Watch;
        let whole = watches.iter().filter(all).map(|w| w.resource.clone()).collect();
        state.expected = watches.iter().map(|w| Feed::Typed(w.resource.clone())).collect();
        (Cache { state: RwLock::new(state), controllers, whole }, watches)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn feeds_graph(&self, resource: &Gvr) -> bool {
        self.whole.contains(resource)
    }

    pub fn needs_graph(&self) -> bool {
        self.controllers.iter().any(|c| c.reconciler.reads_graph())
    }

    /// Runs `f` on the view.
    pub fn view<T>(&self, f: impl FnOnce(&View) -> T) -> T {
        f(&self.read().view)
    }

    pub fn view_mut<T>(&self, f: impl FnOnce(&mut View) -> T) -> T {
        f(&mut self.write().view)
    }

    /// Whether every informer a controller reads from has listed.
    pub fn synced(&self, controller: usize) -> bool {
        let state = self.read();
        let seen = |resource: &Gvr| state.progress.contains_key(&Feed::Typed(resource.clone()));
        self.controllers[controller].types.keys().all(seen)
    }

    /// Takes in a whole list: what is not in it any more is removed.
    pub fn replace(&self, feed: &Feed, type_id: Option<TypeId>, items: Vec<Incoming>, version: u64) {
        let mut state = self.write();
        let present: BTreeSet<Key> = items.iter().map(Incoming::key).collect();
        let known = match (feed, type_id) {
            (Feed::Typed(_), Some(id)) => state.view.any(id).map(|i| i.keys()).unwrap_or_default(),
            (Feed::Graph(resource), _) | (Feed::Typed(resource), None) => state.view.graph.keys(resource),
        };
        let gone = known.into_iter().filter(|key| !present.contains(key)).map(|key| Incoming::Remove { key });
        for incoming in gone.collect::<Vec<_>>().into_iter().chain(items) {
            self.take(&mut state, feed, type_id, incoming);
        }
        self.advance(&mut state, feed, version);
    }

    /// Takes in one watch event.
    pub fn apply(&self, feed: &Feed, type_id: Option<TypeId>, incoming: Incoming, version: u64) {
        let mut state = self.write();
        self.take(&mut state, feed, type_id, incoming);
        self.advance(&mut state, feed, version);
    }

    /// A bookmark: nothing changed up to here.
    pub fn bookmark(&self, feed: &Feed, version: u64) {
        let mut state = self.write();
        self.advance(&mut state, feed, version);
    }

    fn take(&self, state: &mut State, feed: &Feed, type_id: Option<TypeId>, incoming: Incoming) {
        let (Feed::Typed(resource) | Feed::Graph(resource)) = feed;
        let key = incoming.key();
        let (typed, node) = match incoming {
            Incoming::Put { typed, node, .. } => (typed, node),
            Incoming::Remove { .. } => (None, None),
        };
        if let (Feed::Typed(_), Some(type_id)) = (feed, type_id) {
            let Some(indexer) = state.view.any_mut(type_id) else { return };
            let old = match typed.clone() {
                Some(object) => indexer.insert_any(object),
                None => indexer.remove_any(&key),
            };
            self.dispatch(state, Change { type_id, old, new: typed });
        }
        if matches!(feed, Feed::Graph(_)) || self.feeds_graph(resource) {
            let old = match node.clone() {
                Some(node) => state.view.graph.insert(node),
                None => state.view.graph.remove(resource, &key),
            };
            if old != node {
                self.dispatch_graph(state, &GraphChange { old, new: node });
            }
        }
    }

    fn dispatch(&self, state: &State, change: Change) {
        if change.old.is_none() && change.new.is_none() {
            return;
        }
        for controller in self.controllers.iter().filter(|c| c.types.values().any(|t| *t == change.type_id)) {
            for key in controller.reconciler.keys(&change, &state.view) {
                controller.queue.add(key);
            }
        }
    }

    fn dispatch_graph(&self, state: &State, change: &GraphChange) {
        for controller in self.controllers.iter().filter(|c| c.reconciler.reads_graph()) {
            for key in controller.reconciler.graph_keys(change, &state.view) {
                controller.queue.add(key);
            }
        }
    }

    fn advance(&self, state: &mut State, feed: &Feed, version: u64) {
        let progress = state.progress.entry(feed.clone()).or_default();
        *progress = version.max(*progress);
        self.check_complete(state);
        let mut held = std::mem::take(&mut state.held);
        held.retain(|h| {
            let waiting = !self.seen(state, h.controller, &h.written);
            if !waiting && h.wanted {
                self.controllers[h.controller].queue.add(h.key.clone());
            }
            waiting
        });
        state.held = held;
    }

    fn check_complete(&self, state: &mut State) {
        let complete =
            state.discovered && state.expected.iter().all(|feed| state.progress.contains_key(feed));
        if complete != state.view.graph.complete {
            state.view.graph.complete = complete;
            tracing::debug!(complete, "object graph");
        }
    }

    /// Discovery's answer; `complete` when every group answered. Returns the resources that need an
    /// informer of their own for the graph.
    pub fn set_resources(&self, resources: Vec<ApiResource>, complete: bool) -> Vec<ApiResource> {
        let mut state = self.write();
        let listable = |r: &&ApiResource| r.can("list") && r.can("watch");
        let own = resources.iter().filter(listable).filter(|r| !self.feeds_graph(&r.gvr));
        let own: Vec<ApiResource> =
            own.filter(|r| !keelson_controllers_core::namespace::is_unlisted(&r.gvr)).cloned().collect();
        let typed = state.expected.iter().filter(|f| matches!(f, Feed::Typed(_))).cloned();
        let mut expected: BTreeSet<Feed> = typed.collect();
        expected.extend(own.iter().map(|r| Feed::Graph(r.gvr.clone())));
        // Objects of a resource that is gone are gone.
        let dropped: Vec<Feed> = state.expected.difference(&expected).cloned().collect();
        for feed in &dropped {
            let Feed::Graph(resource) = feed else { continue };
            for key in state.view.graph.keys(resource) {
                self.take(&mut state, feed, None, Incoming::Remove { key });
            }
            state.progress.remove(feed);
        }
        state.expected = expected;
        state.discovered = complete;
        state.view.graph.set_resources(resources);
        self.check_complete(&mut state);
        own
    }

    /// Holds the key back until its controller's informers have seen what was written.
    pub fn hold(&self, controller: usize, key: &Key, written: Vec<Written>) {
        #[cfg(feature = "planted")]
        if keelson_plant::is(25) {
            return;
        }
        if written.is_empty() {
            return;
        }
        let mut state = self.write();
        if !self.seen(&state, controller, &written) {
            let held = Held { controller, key: key.clone(), written, since: Instant::now(), wanted: false };
            state.held.push(held);
        }
    }

    /// Whether the key may be reconciled now. If not, it is queued when it may.
    pub fn is_current(&self, controller: usize, key: &Key) -> bool {
        let mut state = self.write();
        let mut current = true;
        state.held.retain_mut(|h| {
            if h.controller != controller || h.key != *key {
                return true;
            }
            if h.since.elapsed() > PATIENCE {
                let name = self.controllers[controller].reconciler.name();
                tracing::warn!(controller = name, %key, written = ?h.written, "own writes not seen; going on without");
                return false;
            }
            h.wanted = true;
            current = false;
            true
        });
        if !current {
            self.controllers[controller].queue.add_after(key.clone(), PATIENCE + Duration::from_secs(1));
        }
        current
    }

    fn seen(&self, state: &State, controller: usize, written: &[Written]) -> bool {
        written.iter().all(|w| match w {
            Written::Version { resource, version } => {
                self.feeds(controller, resource).all(|f| state.progress.get(&f).is_none_or(|p| p >= version))
            }
            Written::Removed { resource, key, uid } => {
                let typed = self.controllers[controller].types.get(resource);
                let cached = typed.and_then(|t| state.view.any(*t)?.state(key));
                let live = cached.is_some_and(|(u, deleting)| u == *uid && !deleting);
                let graph = self.controllers[controller].reconciler.reads_graph();
                let node = state.view.graph.get(resource, key).filter(|_| graph);
                !live && !node.is_some_and(|n| n.uid == *uid && !n.deleting)
            }
        })
    }

    /// The feeds through which a controller would see a write of this resource.
    fn feeds<'a>(&'a self, controller: usize, resource: &'a Gvr) -> impl Iterator<Item = Feed> + 'a {
        let c = &self.controllers[controller];
        let graph = c.reconciler.reads_graph();
        let typed = c.types.contains_key(resource) || (graph && self.feeds_graph(resource));
        let alone = graph && !self.feeds_graph(resource);
        let typed = typed.then(|| Feed::Typed(resource.clone()));
        typed.into_iter().chain(alone.then(|| Feed::Graph(resource.clone())))
    }
}

impl Incoming {
    fn key(&self) -> Key {
        match self {
            Incoming::Put { key, .. } | Incoming::Remove { key } => key.clone(),
        }
    }
}
