//! A Kubernetes API in a value, for proofs: objects, versions, preconditions, finalizers, and every
//! past state, so that a reconciler can be shown an older view.
//!
//! What it omits, and why that is sound here: admission, defaulting and validation (the objects in
//! the proofs are complete), graceful deletion of anything but pods, and watch ordering between
//! resources (a view is a past state of all of them; the model draws the lag).

use std::any::TypeId;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::graph::{ApiResource, Node};
use crate::object::{Gvr, Key, Object};
use crate::plan::{Action, Expectation, Plan, Precondition, Target, to_value};
use crate::view::{AnyObject, View, Watch};

type Objects = BTreeMap<(Gvr, Key), Arc<Stored>>;

/// An object as it was written, and what views have already decoded of it.
struct Stored {
    value: Arc<Value>,
    text: OnceLock<String>,
    decoded: OnceLock<(TypeId, AnyObject)>,
    node: OnceLock<Node>,
}

impl Stored {
    fn new(value: Value) -> Arc<Stored> {
        Arc::new(Stored {
            value: Arc::new(value),
            text: OnceLock::new(),
            decoded: OnceLock::new(),
            node: OnceLock::new(),
        })
    }

    /// The object without its resourceVersion.
    fn text(&self) -> &str {
        self.text.get_or_init(|| {
            let mut value = (*self.value).clone();
            value["metadata"].as_object_mut().map(|meta| meta.remove("resourceVersion"));
            value.to_string()
        })
    }

    /// The object in a watch's type.
    fn decode(&self, watch: &Watch) -> AnyObject {
        let decode = || (watch.decode)(&self.value.to_string()).expect("the world holds what it was given");
        let (kind, object) = self.decoded.get_or_init(|| (watch.type_id, decode()));
        if *kind == watch.type_id { object.clone() } else { decode() }
    }

    fn node(&self, resource: &Gvr) -> Node {
        let node = || {
            let meta = serde_json::from_value(self.value["metadata"].clone()).expect("metadata is metadata");
            Node::new(resource, &meta)
        };
        self.node.get_or_init(node).clone()
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// Clones are cheap: they share every object and every past state.
#[derive(Clone, Debug)]
pub struct World {
    objects: Objects,
    /// `history[n]` is the state after the nth write.
    history: Vec<Arc<Objects>>,
    uids: u64,
    pub now: Timestamp,
    /// What the runner keeps for each controller and key (`Plan::note`).
    pub notes: BTreeMap<(&'static str, Key), Value>,
    /// Reasons of the Events recorded, in order.
    pub events: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    NotFound,
    Conflict,
    AlreadyExists,
    NotAsExpected,
}

impl Default for World {
    fn default() -> Self {
        let now = Timestamp::from_second(1_700_000_000).unwrap_or_default();
        World {
            objects: Objects::new(),
            history: vec![Arc::default()],
            uids: 0,
            now,
            notes: BTreeMap::new(),
            events: Vec::new(),
        }
    }
}

impl World {
    /// The number of writes so far, which is also the newest resourceVersion.
    pub fn version(&self) -> usize {
        self.history.len() - 1
    }

    fn commit(&mut self) {
        self.history.push(Arc::new(self.objects.clone()));
    }

    /// Moves the clock.
    pub fn pass(&mut self, seconds: i64) {
        self.now += jiff::SignedDuration::from_secs(seconds);
    }

    pub fn put<K: Object>(&mut self, object: &K) -> Key {
        let mut value = to_value(object);
        let place = (Gvr::of::<K>(), Key::of(object));
        if value["metadata"]["uid"].is_null() {
            value["metadata"]["uid"] = json!(self.uid());
        }
        self.store(&place, value);
        place.1
    }

    fn uid(&mut self) -> String {
        self.uids += 1;
        format!("uid-{:04}", self.uids)
    }

    fn store(&mut self, place: &(Gvr, Key), mut value: Value) {
        let version = self.version() + 1;
        value["metadata"]["resourceVersion"] = json!(version.to_string());
        if value["metadata"]["creationTimestamp"].is_null() {
            value["metadata"]["creationTimestamp"] = json!(self.now.to_string());
        }
        let gone = !value["metadata"]["deletionTimestamp"].is_null()
            && value["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)
            && place.0.resource != "pods";
        match gone {
            true => self.objects.remove(place),
            false => self.objects.insert(place.clone(), Stored::new(value)),
        };
        self.commit();
    }

    /// One object as JSON.
    pub fn value(&self, resource: &Gvr, key: &Key) -> Option<Arc<Value>> {
        self.objects.get(&(resource.clone(), key.clone())).map(|stored| stored.value.clone())
    }

    /// All objects of a resource as JSON; of one namespace, if it is not empty.
    pub fn values(&self, resource: &Gvr, namespace: &str) -> Vec<Arc<Value>> {
        let here = |r: &Gvr, k: &Key| r == resource && (namespace.is_empty() || k.namespace == namespace);
        self.objects.iter().filter(|((r, k), _)| here(r, k)).map(|(_, v)| v.value.clone()).collect()
    }

    /// Stores an object whole, under the resourceVersion it carries, if any.
    pub fn replace(&mut self, resource: &Gvr, key: &Key, value: Value) -> Result<(), Refused> {
        let version = value["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        let target = Target { resource: resource.clone(), key: key.clone(), subresource: None };
        self.check(&target, &Precondition { uid: None, resource_version: version })?;
        self.store(&(resource.clone(), key.clone()), value);
        Ok(())
    }

    /// One object as it was after write `version`.
    pub fn value_at(&self, resource: &Gvr, key: &Key, version: usize) -> Option<Arc<Value>> {
        let then = self.history.get(version)?;
        then.get(&(resource.clone(), key.clone())).map(|stored| stored.value.clone())
    }

    /// The writes from `after` (exclusive) to `to` (inclusive): of which resource and object each was.
    pub fn writes(&self, after: usize, to: usize) -> Vec<(Gvr, Key)> {
        (after + 1..=to.min(self.version())).filter_map(|version| self.place_of(version)).collect()
    }

    fn place_of(&self, version: usize) -> Option<(Gvr, Key)> {
        let (old, new) = (self.history.get(version.checked_sub(1)?)?, self.history.get(version)?);
        let differs = |place: &&(Gvr, Key)| match (old.get(*place), new.get(*place)) {
            (Some(a), Some(b)) => !Arc::ptr_eq(a, b),
            (a, b) => a.is_some() != b.is_some(),
        };
        old.keys().chain(new.keys()).find(differs).cloned()
    }

    /// What write `version` changed: the resource, and the object before and after.
    pub fn change(&self, version: usize) -> Option<(Gvr, Option<Arc<Value>>, Option<Arc<Value>>)> {
        let place = self.place_of(version)?;
        let (old, new) = (self.history.get(version - 1)?, self.history.get(version)?);
        let value = |state: &Objects| state.get(&place).map(|stored| stored.value.clone());
        Some((place.0.clone(), value(old), value(new)))
    }

    /// Everything there is, in order.
    pub fn objects(&self) -> impl Iterator<Item = (&Gvr, &Key, &Arc<Value>)> {
        self.objects.iter().map(|((resource, key), stored)| (resource, key, &stored.value))
    }

    /// Everything there is, in order: as text without the resourceVersion, and the write that left it so.
    pub fn texts(&self) -> impl Iterator<Item = (&Gvr, &Key, &str, usize)> {
        let version = |stored: &Stored| {
            stored.value["metadata"]["resourceVersion"]
                .as_str()
                .and_then(|text| text.parse().ok())
                .unwrap_or(0)
        };
        self.objects.iter().map(move |((gvr, key), stored)| (gvr, key, stored.text(), version(stored)))
    }

    /// What write `version` replaced, as in `texts`; `None` where nothing was.
    pub fn text_before(&self, version: usize) -> Option<(Gvr, Key, Option<&str>)> {
        let (gvr, key) = self.place_of(version)?;
        let old = self.history.get(version - 1)?;
        let place = (gvr, key);
        let text = old.get(&place).map(|stored| stored.text());
        Some((place.0, place.1, text))
    }

    pub fn get<K: Object>(&self, key: &Key) -> Option<K> {
        let stored = self.objects.get(&(Gvr::of::<K>(), key.clone()))?;
        K::deserialize(&*stored.value).ok()
    }

    pub fn list<K: Object>(&self) -> Vec<K> {
        let here = self.objects.iter().filter(|((gvr, _), _)| *gvr == Gvr::of::<K>());
        here.filter_map(|(_, v)| K::deserialize(&*v.value).ok()).collect()
    }

    /// Changes an object as its owner (kubelet, user) would.
    pub fn edit<K: Object>(&mut self, key: &Key, change: impl FnOnce(&mut K)) {
        if let Some(mut object) = self.get::<K>(key) {
            let before = to_value(&object);
            change(&mut object);
            let mut value = to_value(&object);
            if before["spec"] != value["spec"] {
                bump(&mut value);
            }
            self.store(&(Gvr::of::<K>(), key.clone()), value);
        }
    }

    /// Removes an object at once, as the last step of its deletion.
    pub fn remove<K: Object>(&mut self, key: &Key) {
        self.objects.remove(&(Gvr::of::<K>(), key.clone()));
        self.commit();
    }

    /// The view of the state after write `version`, for these watches and the graph.
    pub fn view(&self, watches: &[Watch], version: usize) -> View {
        self.view_of(watches, &self.history[version.min(self.version())])
    }

    /// The same with some objects as they were after an earlier write of their own.
    pub fn view_but(&self, watches: &[Watch], version: usize, held: &BTreeMap<(Gvr, Key), usize>) -> View {
        let mut objects = (*self.history[version.min(self.version())]).clone();
        for (place, then) in held {
            match self.history[*then].get(place) {
                Some(stored) => objects.insert(place.clone(), stored.clone()),
                None => objects.remove(place),
            };
        }
        self.view_of(watches, &objects)
    }

    fn view_of(&self, watches: &[Watch], objects: &Objects) -> View {
        let mut view = View::default();
        for ((controller, key), note) in &self.notes {
            view.set_note(controller, key, Some(note.clone()));
        }
        for watch in watches {
            watch.install.iter().for_each(|install| install(&mut view));
        }
        for ((gvr, _), stored) in objects {
            for watch in watches.iter().filter(|w| w.resource == *gvr) {
                if let Some(indexer) = view.any_mut(watch.type_id) {
                    indexer.insert_any(stored.decode(watch));
                }
            }
            view.graph.insert(stored.node(gvr));
        }
        view.graph.complete = true;
        view
    }

    /// Makes the graph of a view know these kinds.
    pub fn resources(kinds: &[(Gvr, &str, bool)]) -> Vec<ApiResource> {
        let verbs = || ["list", "watch", "delete", "deletecollection"].map(str::to_owned).to_vec();
        kinds
            .iter()
            .map(|(gvr, kind, namespaced)| ApiResource {
                gvr: gvr.clone(),
                kind: kind.to_string(),
                namespaced: *namespaced,
                verbs: verbs(),
            })
            .collect()
    }

    /// Runs a plan to its end or first refusal.
    pub fn run(&mut self, plan: &Plan) -> Result<(), Refused> {
        plan.actions.iter().try_for_each(|action| self.act(action))
    }

    /// Runs one action.
    pub fn act(&mut self, action: &Action) -> Result<(), Refused> {
        match action {
            Action::Create { resource, namespace, object, announce } => {
                self.create(resource, namespace, object)?;
                self.events.extend(announce.iter().map(|e| e.reason.to_owned()));
                Ok(())
            }
            Action::Patch { target, patch, precondition } => self.patch(target, patch, precondition),
            Action::Submit { target, object, .. } => {
                let place = place(target);
                let old = self.objects.get(&place).ok_or(Refused::NotFound)?;
                let mut new = (*old.value).clone();
                new["spec"] = object["spec"].clone();
                self.store(&place, new);
                Ok(())
            }
            Action::Delete { target, precondition, grace, .. } => self.delete(target, precondition, *grace),
            Action::DeleteAll { resource, namespace } => {
                let here = self.objects.keys().filter(|(r, k)| r == resource && k.namespace == *namespace);
                for (resource, key) in here.cloned().collect::<Vec<_>>() {
                    self.delete(
                        &Target { resource, key, subresource: None },
                        &Precondition::default(),
                        None,
                    )?;
                }
                Ok(())
            }
            Action::Expect(expectation) => self.expect(expectation),
            Action::Record(event) => {
                self.events.push(event.reason.to_owned());
                Ok(())
            }
        }
    }

    fn create(&mut self, resource: &Gvr, namespace: &str, object: &Value) -> Result<(), Refused> {
        let mut value = object.clone();
        let uid = self.uid();
        let name = match value["metadata"]["name"].as_str() {
            Some(name) => name.to_owned(),
            None => format!("{}{uid}", value["metadata"]["generateName"].as_str().unwrap_or_default()),
        };
        let place = (resource.clone(), Key::new(namespace, &name));
        if self.objects.contains_key(&place) {
            return Err(Refused::AlreadyExists);
        }
        value["metadata"]["name"] = json!(name);
        value["metadata"]["uid"] = json!(uid);
        value["metadata"]["generation"] = json!(1);
        self.store(&place, value);
        Ok(())
    }

    fn check(&self, target: &Target, precondition: &Precondition) -> Result<Arc<Value>, Refused> {
        let old = self.objects.get(&place(target)).ok_or(Refused::NotFound)?;
        let differs = |want: &Option<String>, field: &str| {
            want.as_deref().is_some_and(|w| old.value["metadata"][field].as_str() != Some(w))
        };
        if differs(&precondition.uid, "uid") || differs(&precondition.resource_version, "resourceVersion") {
            return Err(Refused::Conflict);
        }
        Ok(old.value.clone())
    }

    fn patch(&mut self, target: &Target, patch: &Value, precondition: &Precondition) -> Result<(), Refused> {
        let old = self.check(target, precondition)?;
        let mut new = (*old).clone();
        merge(&mut new, patch);
        if new["spec"] != old["spec"] {
            bump(&mut new);
        }
        self.store(&place(target), new);
        Ok(())
    }

    fn delete(
        &mut self,
        target: &Target,
        precondition: &Precondition,
        grace: Option<i64>,
    ) -> Result<(), Refused> {
        let old = self.check(target, precondition)?;
        let place = place(target);
        let finalized = old["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        let graceful = place.0.resource == "pods"
            && grace != Some(0)
            && old["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty());
        if finalized || graceful {
            if old["metadata"]["deletionTimestamp"].is_null() {
                let mut new = (*old).clone();
                new["metadata"]["deletionTimestamp"] = json!(self.now.to_string());
                self.store(&place, new);
            }
        } else {
            self.objects.remove(&place);
            self.commit();
        }
        Ok(())
    }

    fn expect(&self, expectation: &Expectation) -> Result<(), Refused> {
        let found = |target: &Target| self.objects.get(&place(target)).map(|stored| &stored.value);
        let same = |v: &Arc<Value>, uid: &str| v["metadata"]["uid"].as_str() == Some(uid);
        let met = match expectation {
            Expectation::Absent { target, uid: Some(uid) } => !found(target).is_some_and(|v| same(v, uid)),
            Expectation::Absent { target, uid: None } => found(target).is_none(),
            Expectation::Live { target, uid } => {
                found(target).is_some_and(|v| same(v, uid) && v["metadata"]["deletionTimestamp"].is_null())
            }
            Expectation::Empty { resource, namespace } => {
                !self.objects.keys().any(|(r, k)| r == resource && k.namespace == *namespace)
            }
        };
        if met { Ok(()) } else { Err(Refused::NotAsExpected) }
    }
}

fn place(target: &Target) -> (Gvr, Key) {
    (target.resource.clone(), target.key.clone())
}

fn bump(value: &mut Value) {
    let generation = value["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
    value["metadata"]["generation"] = json!(generation);
}

/// Applies a JSON merge patch.
pub fn merge(value: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    for (key, change) in fields {
        if change.is_null() {
            value.as_object_mut().map(|o| o.remove(key));
        } else {
            merge(&mut value[key], change);
        }
    }
}
