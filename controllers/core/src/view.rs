//! What a reconciler sees: typed, indexed caches of API objects, filled by the runner's informers.
//!
//! A `View` is a moment of each informer, not of the cluster: every resource in it may lag on its own.
//! The runner promises only that it includes the effects of this key's own last plan.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::graph::Graph;
use crate::object::{Gvr, Key, Object, controller_of};

/// An object whose type only its `Indexer` knows.
pub type AnyObject = Arc<dyn Any + Send + Sync>;

/// Names the values under which an object is found by `Indexer::by`.
pub type IndexFn<K> = fn(&K) -> Vec<String>;

/// One resource's cache.
pub struct Indexer<K> {
    objects: BTreeMap<Key, Arc<K>>,
    controllers: BTreeMap<String, BTreeSet<Key>>,
    indexes: BTreeMap<&'static str, Index<K>>,
}

struct Index<K> {
    values: IndexFn<K>,
    keys: BTreeMap<String, BTreeSet<Key>>,
}

impl<K: Object> Default for Indexer<K> {
    fn default() -> Self {
        Indexer { objects: BTreeMap::new(), controllers: BTreeMap::new(), indexes: BTreeMap::new() }
    }
}

impl<K: Object> Indexer<K> {
    pub fn get(&self, key: &Key) -> Option<&Arc<K>> {
        self.objects.get(key)
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// All objects in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<K>> {
        self.objects.values()
    }

    /// The objects of one namespace, by name.
    pub fn namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<K>> {
        self.objects
            .range(Key::new(namespace, "")..)
            .take_while(move |(key, _)| key.namespace == namespace)
            .map(|(_, object)| object)
    }

    /// The objects whose controlling owner has this uid.
    pub fn controlled_by(&self, uid: &str) -> impl Iterator<Item = &Arc<K>> {
        self.controllers.get(uid).into_iter().flatten().filter_map(|key| self.objects.get(key))
    }

    /// The objects that an index (see `Watch::index`) files under `value`.
    pub fn by<'a>(&'a self, index: &str, value: &str) -> impl Iterator<Item = &'a Arc<K>> + use<'a, K> {
        let index = self.indexes.get(index).expect("the index is declared by `Watch::index` in `watches`");
        index.keys.get(value).into_iter().flatten().filter_map(|key| self.objects.get(key))
    }

    /// Puts an object in; returns what it replaces.
    pub fn insert(&mut self, object: Arc<K>) -> Option<Arc<K>> {
        let key = Key::of(object.as_ref());
        let old = self.remove(&key);
        if let Some(owner) = controller_of(object.metadata()) {
            self.controllers.entry(owner.uid.clone()).or_default().insert(key.clone());
        }
        for index in self.indexes.values_mut() {
            for value in (index.values)(&object) {
                index.keys.entry(value).or_default().insert(key.clone());
            }
        }
        self.objects.insert(key, object);
        old
    }

    pub fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        if let Some(owner) = controller_of(old.metadata()) {
            unfile(&mut self.controllers, &owner.uid, key);
        }
        for index in self.indexes.values_mut() {
            for value in (index.values)(&old) {
                unfile(&mut index.keys, &value, key);
            }
        }
        Some(old)
    }

    /// Adds an index; the objects already here are filed too.
    pub fn add_index(&mut self, name: &'static str, values: IndexFn<K>) {
        let mut index = Index { values, keys: BTreeMap::new() };
        for (key, object) in &self.objects {
            for value in values(object) {
                index.keys.entry(value).or_insert_with(BTreeSet::new).insert(key.clone());
            }
        }
        self.indexes.insert(name, index);
    }
}

fn unfile(index: &mut BTreeMap<String, BTreeSet<Key>>, value: &str, key: &Key) {
    if let Some(keys) = index.get_mut(value) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(value);
        }
    }
}

/// An `Indexer` as the informers see it: objects arrive as JSON.
pub trait AnyIndexer: Send + Sync {
    fn insert_any(&mut self, object: AnyObject) -> Option<AnyObject>;
    fn remove_any(&mut self, key: &Key) -> Option<AnyObject>;
    fn keys(&self) -> Vec<Key>;
    /// uid of the object now under a key, and whether it is being deleted.
    fn state(&self, key: &Key) -> Option<(String, bool)>;
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

impl<K: Object> AnyIndexer for Indexer<K> {
    fn insert_any(&mut self, object: AnyObject) -> Option<AnyObject> {
        let object = object.downcast::<K>().ok()?;
        self.insert(object).map(|o| o as AnyObject)
    }

    fn remove_any(&mut self, key: &Key) -> Option<AnyObject> {
        self.remove(key).map(|o| o as AnyObject)
    }

    fn keys(&self) -> Vec<Key> {
        self.objects.keys().cloned().collect()
    }

    fn state(&self, key: &Key) -> Option<(String, bool)> {
        self.get(key).map(|o| (o.uid().to_owned(), o.is_deleting()))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// Everything the reconcilers of one runner see.
#[derive(Default)]
pub struct View {
    indexers: BTreeMap<TypeId, Box<dyn AnyIndexer>>,
    /// Owners, finalizers and namespaces of all objects of all resources (garbage collector, namespaces).
    pub graph: Graph,
    notes: BTreeMap<(&'static str, Key), Value>,
    failures: BTreeMap<(&'static str, Key), String>,
}

impl View {
    /// The cache of a resource. The reconciler must have named it in `watches`.
    pub fn of<K: Object>(&self) -> &Indexer<K> {
        self.indexers
            .get(&TypeId::of::<K>())
            .and_then(|i| i.as_any().downcast_ref())
            .unwrap_or_else(|| panic!("{} is read but not watched: add Watch::of to `watches`", K::KIND))
    }

    /// The cache of a resource, made when it is missing.
    pub fn of_mut<K: Object>(&mut self) -> &mut Indexer<K> {
        self.indexers
            .entry(TypeId::of::<K>())
            .or_insert_with(|| Box::new(Indexer::<K>::default()))
            .as_any_mut()
            .downcast_mut()
            .expect("an indexer is filed under its own type")
    }

    pub fn get<K: Object>(&self, key: &Key) -> Option<&Arc<K>> {
        self.of::<K>().get(key)
    }

    pub fn any(&self, id: TypeId) -> Option<&dyn AnyIndexer> {
        self.indexers.get(&id).map(|i| i.as_ref())
    }

    pub fn any_mut(&mut self, id: TypeId) -> Option<&mut Box<dyn AnyIndexer>> {
        self.indexers.get_mut(&id)
    }

    /// What this controller's last plan for the key left as `Plan::note`.
    pub fn note(&self, controller: &'static str, key: &Key) -> Option<&Value> {
        self.notes.get(&(controller, key.clone()))
    }

    /// Why the server refused an action of this controller's last plan for the key, if it did.
    /// Conflicts and lost connections are not failures: they are tried again without a word.
    pub fn failure(&self, controller: &'static str, key: &Key) -> Option<&str> {
        self.failures.get(&(controller, key.clone())).map(String::as_str)
    }

    pub fn set_failure(&mut self, controller: &'static str, key: &Key, failure: Option<String>) {
        match failure {
            Some(failure) => self.failures.insert((controller, key.clone()), failure),
            None => self.failures.remove(&(controller, key.clone())),
        };
    }

    pub fn set_note(&mut self, controller: &'static str, key: &Key, note: Option<Value>) {
        match note {
            Some(note) => self.notes.insert((controller, key.clone()), note),
            None => self.notes.remove(&(controller, key.clone())),
        };
    }
}

/// An object appeared (`old` none), changed, or went (`new` none).
pub struct Change {
    pub type_id: TypeId,
    pub old: Option<AnyObject>,
    pub new: Option<AnyObject>,
}

impl Change {
    pub fn new<K: Object>(old: Option<Arc<K>>, new: Option<Arc<K>>) -> Change {
        Change {
            type_id: TypeId::of::<K>(),
            old: old.map(|o| o as AnyObject),
            new: new.map(|o| o as AnyObject),
        }
    }

    /// The old and the new object if the change is one of type `K`.
    pub fn of<K: Object>(&self) -> Option<(Option<&K>, Option<&K>)> {
        (self.type_id == TypeId::of::<K>()).then(|| {
            (
                self.old.as_ref().and_then(|o| o.downcast_ref::<K>()),
                self.new.as_ref().and_then(|o| o.downcast_ref::<K>()),
            )
        })
    }

    /// The newest form known of the object, if it is of type `K`.
    pub fn latest<K: Object>(&self) -> Option<&K> {
        let (old, new) = self.of::<K>()?;
        new.or(old)
    }
}

/// How the informer of a resource learns of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// List, then watch.
    Watch,
    /// List every so many seconds (resources without watch: metrics).
    Poll(u32),
}

/// A resource that a reconciler reads, and how its objects get in.
pub struct Watch {
    pub type_id: TypeId,
    pub resource: Gvr,
    pub kind: &'static str,
    pub source: Source,
    /// Only this namespace; none for all.
    pub namespace: Option<&'static str>,
    /// Only what this field selector picks; none for all.
    pub field_selector: Option<&'static str>,
    /// Whether a polled resource is worth asking for now.
    pub needed: fn(&View) -> bool,
    /// JSON to object; `managedFields` is dropped.
    pub decode: fn(&str) -> Result<AnyObject, serde_json::Error>,
    /// The metadata of a decoded object.
    pub metadata: fn(&AnyObject) -> Option<&ObjectMeta>,
    /// Makes the cache and its indexes.
    pub install: Vec<Box<dyn Fn(&mut View) + Send + Sync>>,
}

impl Watch {
    pub fn of<K: Object>() -> Watch {
        Watch {
            type_id: TypeId::of::<K>(),
            resource: Gvr::of::<K>(),
            kind: K::KIND,
            source: Source::Watch,
            needed: |_| true,
            namespace: None,
            field_selector: None,
            decode: decode::<K>,
            metadata: |object| object.downcast_ref::<K>().map(|o| o.metadata()),
            install: vec![Box::new(|view| {
                view.of_mut::<K>();
            })],
        }
    }

    /// Files objects under the values of `f`; `Indexer::by(name, value)` finds them.
    pub fn index<K: Object>(mut self, name: &'static str, f: IndexFn<K>) -> Watch {
        assert_eq!(self.type_id, TypeId::of::<K>(), "an index is of the watched type");
        self.install.push(Box::new(move |view| view.of_mut::<K>().add_index(name, f)));
        self
    }

    pub fn namespace(mut self, namespace: &'static str) -> Watch {
        self.namespace = Some(namespace);
        self
    }

    pub fn field_selector(mut self, selector: &'static str) -> Watch {
        self.field_selector = Some(selector);
        self
    }

    /// Lists every so many seconds, while `needed`, instead of watching.
    pub fn poll(mut self, seconds: u32, needed: fn(&View) -> bool) -> Watch {
        self.source = Source::Poll(seconds);
        self.needed = needed;
        self
    }
}

fn decode<K: Object>(json: &str) -> Result<AnyObject, serde_json::Error> {
    let mut object: K = serde_json::from_str(json)?;
    object.metadata_mut().managed_fields = None;
    Ok(Arc::new(object))
}
