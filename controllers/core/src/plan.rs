//! What a reconciler wants done: a `Plan` of `Action`s.
//!
//! Order: actions run from first to last; the first that fails ends the plan and the key is
//! queued again with backoff, so any prefix of a plan must leave the cluster in a state from
//! which the next reconcile continues. Consecutive `Create`s and consecutive `Delete`s of one
//! resource may run side by side in batches of 1, 2, 4, … (slow start): a failing batch is the last.
//! Hazard: every change or removal of an existing object carries a `Precondition`, because the
//! view that led to it may be old.

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::{Map, Value, json};

use crate::object::{Gvr, Key, Object};

/// The object (or its subresource) that an action is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub resource: Gvr,
    pub key: Key,
    pub subresource: Option<&'static str>,
}

impl Target {
    pub fn of<K: Object>(object: &K) -> Target {
        Target { resource: Gvr::of::<K>(), key: Key::of(object), subresource: None }
    }
}

/// The server refuses with Conflict what does not fit; the runner then looks again at a newer view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Precondition {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl Precondition {
    /// The very object, unchanged since it was seen.
    pub fn unchanged<K: Object>(object: &K) -> Precondition {
        let meta = object.metadata();
        Precondition { uid: meta.uid.clone(), resource_version: meta.resource_version.clone() }
    }

    /// The very object, whatever happened to it since.
    pub fn same<K: Object>(object: &K) -> Precondition {
        Precondition { uid: object.metadata().uid.clone(), resource_version: None }
    }
}

/// What happens to dependents of a deleted object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

impl Propagation {
    pub fn as_str(self) -> &'static str {
        match self {
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
            Propagation::Orphan => "Orphan",
        }
    }
}

/// Asked of the server itself, not of a cache, before an action that cannot be taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// No object with this name (and uid, if one is given) exists.
    Absent { target: Target, uid: Option<String> },
    /// This very object exists and is not being deleted.
    Live { target: Target, uid: String },
    /// The collection in this namespace is empty.
    Empty { resource: Gvr, namespace: String },
}

/// One API request.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// POST. With `generateName` the server chooses the name; it is appended to the announcement's message.
    Create { resource: Gvr, namespace: String, object: Value, announce: Option<Recorded> },
    /// PATCH with a JSON merge patch; the precondition travels in its metadata.
    Patch { target: Target, patch: Value, precondition: Precondition },
    /// POST or PUT of a whole body to a subresource (`pods/eviction`, `namespaces/finalize`).
    Submit { target: Target, method: Method, object: Value },
    /// DELETE. `grace` in seconds; none leaves the object's own.
    Delete {
        target: Target,
        precondition: Precondition,
        grace: Option<i64>,
        propagation: Option<Propagation>,
    },
    /// DELETE of a collection: everything of a resource in one namespace.
    DeleteAll { resource: Gvr, namespace: String },
    /// A read that must come out as expected, or the plan ends here.
    Expect(Expectation),
    /// A Kubernetes Event. Best effort: a failure never ends the plan.
    Record(Recorded),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Post,
    Put,
}

/// An Event to record about an object. Equal ones are counted, not repeated, by the runner.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    pub about: ObjectReference,
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Recorded {
    pub fn new<K: Object>(about: &K, warning: bool, reason: &'static str, message: String) -> Recorded {
        Recorded { about: about.object_reference(), warning, reason, message }
    }
}

/// Ordered actions, and when to look at the key again if nothing changes before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub requeue: Option<SignedDuration>,
    /// Kept by the runner and shown to the next reconcile of this key as `View::note`. It lives in
    /// memory only: after a change of leader it is gone, and the reconciler must cope.
    pub note: Option<Value>,
}

impl Plan {
    /// Nothing to do.
    pub fn none() -> Plan {
        Plan::default()
    }

    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// Looks at the key again after `delay`; the shortest asked for wins.
    pub fn requeue_in(&mut self, delay: SignedDuration) {
        let delay = delay.max(SignedDuration::from_millis(1));
        self.requeue = Some(self.requeue.map_or(delay, |d| d.min(delay)));
    }

    pub fn create<K: Object>(&mut self, object: &K) {
        self.create_announced(object, None);
    }

    /// Creates, then records an Event whose message ends in the new object's name.
    pub fn create_announced<K: Object>(&mut self, object: &K, announce: Option<Recorded>) {
        let mut value = to_value(object);
        value["apiVersion"] = json!(K::API_VERSION);
        value["kind"] = json!(K::KIND);
        self.actions.push(Action::Create {
            resource: Gvr::of::<K>(),
            namespace: object.namespace().to_owned(),
            object: value,
            announce,
        });
    }

    /// Changes `old` into `new`; nothing when they are equal (a settled cluster sees no writes).
    pub fn update<K: Object>(&mut self, old: &K, new: &K) {
        self.change(old, new, None, Precondition::unchanged(old));
    }

    /// Changes the status of `old` into that of `new`; nothing when they are equal.
    pub fn update_status<K: Object>(&mut self, old: &K, new: &K) {
        self.change(old, new, Some("status"), Precondition::unchanged(old));
    }

    /// The same for a status that only this controller writes: with `spent`, an earlier action of
    /// this plan already moved the resourceVersion, so the uid alone is the precondition.
    pub fn update_status_after<K: Object>(&mut self, old: &K, new: &K, spent: bool) {
        let precondition = if spent { Precondition::same(old) } else { Precondition::unchanged(old) };
        self.change(old, new, Some("status"), precondition);
    }

    fn change<K: Object>(
        &mut self,
        old: &K,
        new: &K,
        subresource: Option<&'static str>,
        precondition: Precondition,
    ) {
        let (mut before, mut after) = (to_value(old), to_value(new));
        match subresource {
            None => {
                before.as_object_mut().map(|o| o.remove("status"));
                after.as_object_mut().map(|o| o.remove("status"));
            }
            Some(sub) => {
                before = json!({ sub: before.get(sub).cloned().unwrap_or(json!({})) });
                after = json!({ sub: after.get(sub).cloned().unwrap_or(json!({})) });
            }
        }
        if let Some(patch) = merge_patch(&before, &after) {
            let target = Target { subresource, ..Target::of(old) };
            self.actions.push(Action::Patch { target, patch, precondition });
        }
    }

    /// A hand-made merge patch under a chosen precondition.
    pub fn patch<K: Object>(&mut self, object: &K, patch: Value, precondition: Precondition) {
        self.actions.push(Action::Patch { target: Target::of(object), patch, precondition });
    }

    pub fn delete<K: Object>(&mut self, object: &K, precondition: Precondition) {
        self.actions.push(Action::Delete {
            target: Target::of(object),
            precondition,
            grace: None,
            propagation: None,
        });
    }

    pub fn record<K: Object>(&mut self, about: &K, warning: bool, reason: &'static str, message: String) {
        self.actions.push(Action::Record(Recorded::new(about, warning, reason, message)));
    }
}

/// An object as JSON. k8s-openapi types always serialize; a custom type that does not is a bug of its author.
pub fn to_value<K: Object>(object: &K) -> Value {
    serde_json::to_value(object).expect("an API type serializes to JSON: fix its Serialize implementation")
}

/// The JSON merge patch (RFC 7386) that turns `old` into `new`, or none when they are equal.
pub fn merge_patch(old: &Value, new: &Value) -> Option<Value> {
    if old == new {
        return None;
    }
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        return Some(new.clone());
    };
    let mut patch = Map::new();
    for key in before.keys().filter(|k| !after.contains_key(*k)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in after {
        match before.get(key) {
            None => patch.insert(key.clone(), value.clone()),
            Some(was) => merge_patch(was, value).and_then(|p| patch.insert(key.clone(), p)),
        };
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// Splits `n` like actions into batches of 1, 2, 4, …: a server that refuses the first is asked
/// once, not `n` times. The sum of the batches is `n`.
pub fn slow_start(n: usize) -> Vec<usize> {
    let (mut batches, mut left, mut size) = (Vec::new(), n, 1);
    while left > 0 {
        let batch = size.min(left);
        batches.push(batch);
        left -= batch;
        size = size.saturating_mul(2);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_patch_names_only_what_changed() {
        let patch = |a, b| merge_patch(&a, &b);
        assert_eq!(patch(json!({"a":1}), json!({"a":1})), None);
        assert_eq!(
            patch(json!({"a":1,"b":{"c":[1],"d":2}}), json!({"b":{"c":[2],"d":2}})),
            Some(json!({"a":null,"b":{"c":[2]}}))
        );
        assert_eq!(patch(json!({}), json!({"x":{"y":1}})), Some(json!({"x":{"y":1}})));
    }

    #[test]
    fn slow_start_doubles() {
        assert_eq!(slow_start(0), Vec::<usize>::new());
        assert_eq!(slow_start(1), [1]);
        assert_eq!(slow_start(10), [1, 2, 4, 3]);
    }
}
