//! Which pods belong to an owner: owned and selected, to be adopted, to be let go.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::plan::{Action, Expectation};
use crate::{Change, Key, Object, Plan, Target, View, Watch};

/// The index of pods without a controller, by namespace.
const ORPHANS: &str = "orphans";

/// Pods, with those that nobody owns found by namespace.
pub fn watch_pods() -> Watch {
    Watch::of::<Pod>().index(ORPHANS, orphan)
}

fn orphan(pod: &Pod) -> Vec<String> {
    if pod.controller().is_none() { vec![pod.namespace().to_owned()] } else { Vec::new() }
}

/// An owner's pods, sorted out against its selector.
#[derive(Default)]
pub struct Claim {
    /// Owned and selected, whatever their state.
    pub owned: Vec<Arc<Pod>>,
    /// Selected, owned by nobody, not finished.
    pub adopt: Vec<Arc<Pod>>,
    /// Owned and no longer selected.
    pub release: Vec<Arc<Pod>>,
}

/// Sorts out the pods of `owner`.
pub fn claim<K: Object>(owner: &K, view: &View, selects: impl Fn(&Pod) -> bool) -> Claim {
    let mut claim = Claim::default();
    for pod in view.of::<Pod>().controlled_by(owner.uid()) {
        match selects(pod) {
            true => claim.owned.push(pod.clone()),
            false if crate::pods::is_active(pod) => claim.release.push(pod.clone()),
            false => {}
        }
    }
    if !owner.is_deleting() {
        let orphans = view.of::<Pod>().by(ORPHANS, owner.namespace());
        claim.adopt = orphans.filter(|p| crate::pods::is_active(p) && selects(p)).cloned().collect();
    }
    claim
}

impl Claim {
    /// Lets go what is no longer selected, takes in what nobody owns.
    pub fn settle<K: Object>(&self, plan: &mut Plan, owner: &K) {
        for pod in &self.release {
            let mut free = (**pod).clone();
            if let Some(owners) = free.metadata.owner_references.as_mut() {
                owners.retain(|o| o.uid != owner.uid());
            }
            plan.update(pod.as_ref(), &free);
        }
        if self.adopt.is_empty() {
            return;
        }
        // The owner may be gone by now; a pod adopted by the dead would be collected with it.
        let live = Expectation::Live { target: Target::of(owner), uid: owner.uid().to_owned() };
        plan.actions.push(Action::Expect(live));
        for pod in &self.adopt {
            let mut owned = (**pod).clone();
            owned.metadata.owner_references.get_or_insert_default().push(owner.owner_reference());
            plan.update(pod.as_ref(), &owned);
        }
    }
}

/// The owners that a change concerns: the one that changed, those of a pod that changed, and those that select an orphan.
pub fn keys<K: Object>(change: &Change, view: &View, selects: impl Fn(&K, &Pod) -> bool) -> Vec<Key> {
    if let Some(owner) = change.latest::<K>() {
        return vec![Key::of(owner)];
    }
    let Some((old, new)) = change.of::<Pod>() else { return Vec::new() };
    let group = |version: &str| version.split_once('/').map_or("", |(group, _)| group).to_owned();
    let mut keys: Vec<Key> = [old, new]
        .into_iter()
        .flatten()
        .filter_map(|pod| {
            let owner = pod.controller()?;
            let mine = owner.kind == K::KIND && group(&owner.api_version) == K::GROUP;
            mine.then(|| Key::new(pod.namespace(), &owner.name))
        })
        .collect();
    if let Some(pod) = new.filter(|pod| pod.controller().is_none()) {
        let owners = view.of::<K>().namespace(pod.namespace());
        keys.extend(owners.filter(|owner| selects(owner, pod)).map(|owner| Key::of(owner.as_ref())));
    }
    keys.dedup();
    keys
}
