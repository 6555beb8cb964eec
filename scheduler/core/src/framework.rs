//! The extension points, as one trait with defaults: a plugin is a file that fills in what it cares about and one line
//! in `plugins::PLUGINS`.
//!
//! Order within one scheduling cycle: PreFilter → Filter (per node) → PostFilter (only when no node is left; see
//! `preemption`) → PreScore → Score (per node) → normalize → Reserve (`Cache::assume`) → PreBind (returned as data, the
//! shell carries it out) → Bind (the shell). PreEnqueue runs before a pod enters the active queue. Permit has no
//! default plugin upstream and does not exist here.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::events::ClusterEvent;
use crate::pod::PodInfo;
use crate::snapshot::{Slot, Snapshot};

/// The most a node can get from one plugin.
pub const MAX_SCORE: i64 = 100;

/// Why a plugin refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// Upstream's sentences, counted over nodes in the summary.
    pub reasons: Vec<String>,
    /// What exactly, for machines and for `why`: the taint, the missing amount, the label. May be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Removing pods from the node could help.
    pub resolvable: bool,
}

impl Rejection {
    /// Preemption may help.
    pub fn resolvable(reason: impl Into<String>) -> Rejection {
        Rejection { reasons: vec![reason.into()], detail: String::new(), resolvable: true }
    }

    /// Preemption cannot help.
    pub fn unresolvable(reason: impl Into<String>) -> Rejection {
        Rejection { reasons: vec![reason.into()], detail: String::new(), resolvable: false }
    }

    /// Adds what exactly was wrong.
    pub fn detail(mut self, detail: impl Into<String>) -> Rejection {
        self.detail = detail.into();
        self
    }
}

/// A filter's answer.
pub type Verdict = Result<(), Rejection>;

/// PreFilter's answer.
pub enum PreFilter {
    /// Run this plugin's filter on each node.
    Continue,
    /// This plugin has nothing to say about this pod.
    Skip,
    /// Only these nodes can do.
    Only(BTreeSet<String>),
    /// No node can do.
    Reject(Rejection),
}

/// What must be written before the pod may be bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum PreBind {
    /// Bind this volume to this claim (namespace, name).
    BindVolume { volume: String, namespace: String, claim: String },
    /// Have the claim's volume provisioned for the chosen node.
    SelectNode { namespace: String, claim: String },
}

/// What a plugin makes of an event for a pod it had refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// The pod may be schedulable now.
    Queue,
    /// Nothing changed for this plugin.
    Skip,
}

/// What plugins remember from PreFilter and PreScore within one cycle, by type.
#[derive(Default)]
pub struct CycleState {
    kept: BTreeMap<TypeId, Box<dyn Any + Send + Sync>>,
}

impl CycleState {
    /// Keeps a value until the end of the cycle.
    pub fn put<T: Send + Sync + 'static>(&mut self, value: T) {
        self.kept.insert(TypeId::of::<T>(), Box::new(value));
    }

    /// The value of this type, if one was kept.
    pub fn get<T: 'static>(&self) -> Option<&T> {
        self.kept.get(&TypeId::of::<T>()).and_then(|value| value.downcast_ref())
    }
}

/// A scheduling plugin. All methods are pure.
pub trait Plugin: Sync {
    /// Upstream's name.
    fn name(&self) -> &'static str;

    /// How much its score counts; 0 = does not score.
    fn weight(&self) -> i64 {
        0
    }

    /// Whether the pod may enter the active queue at all.
    fn pre_enqueue(&self, _pod: &PodInfo) -> Verdict {
        Ok(())
    }

    /// Looks at the pod once and at the whole cluster where needed.
    fn pre_filter(&self, _cycle: &mut CycleState, _pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        PreFilter::Continue
    }

    /// Whether the node can take the pod.
    fn filter(&self, _cycle: &CycleState, _pod: &PodInfo, _snapshot: &Snapshot, _node: Slot) -> Verdict {
        Ok(())
    }

    /// Looks at the nodes that passed; `false` = does not score this pod.
    fn pre_score(
        &self,
        _cycle: &mut CycleState,
        _pod: &PodInfo,
        _snapshot: &Snapshot,
        _nodes: &[Slot],
    ) -> bool {
        true
    }

    /// The raw score of a node.
    fn score(&self, _cycle: &CycleState, _pod: &PodInfo, _snapshot: &Snapshot, _node: Slot) -> i64 {
        0
    }

    /// Brings raw scores, in the order of `nodes`, into 0..=100.
    fn normalize(&self, _cycle: &CycleState, _snapshot: &Snapshot, _nodes: &[Slot], _scores: &mut [i64]) {}

    /// What must be written before the pod is bound to the node.
    fn pre_bind(
        &self,
        _cycle: &CycleState,
        _pod: &PodInfo,
        _snapshot: &Snapshot,
        _node: Slot,
    ) -> Vec<PreBind> {
        Vec::new()
    }

    /// Whether an event may help a pod this plugin refused. Called only after a refusal.
    fn hint(&self, _pod: &PodInfo, _event: &ClusterEvent) -> Hint {
        Hint::Queue
    }
}

/// Scales scores so that the largest becomes 100; with `reverse` the smallest raw score is the best.
pub fn normalize_to_max(scores: &mut [i64], reverse: bool) {
    let most = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if most == 0 { 0 } else { MAX_SCORE.saturating_mul(*score) / most };
        *score = if reverse { MAX_SCORE - scaled } else { scaled };
    }
}
