//! Kubernetes' controllers as pure functions: `reconcile(key, &View, now) -> Plan`.
//!
//! One file per controller. Nothing here is async, reads a clock, the environment or a map in
//! random order; names are made from arguments or left to the server (`generateName`). The runner
//! (`keelson-controllers`) keeps the `View`, runs the `Plan`s, and never reconciles a key on a view
//! older than that key's last plan.
//!
//! Write your own controller by implementing `Reconciler` and handing it to the runner:
//! ```
//! use keelson_controllers_core::{Change, Key, Object, Plan, Reconciler, View, Watch};
//! use k8s_openapi::api::core::v1::Namespace;
//!
//! /// Gives every namespace a label with its own name.
//! struct Named;
//! impl Reconciler for Named {
//!     fn name(&self) -> &'static str { "named" }
//!     fn watches(&self) -> Vec<Watch> { vec![Watch::of::<Namespace>()] }
//!     fn keys(&self, change: &Change, _: &View) -> Vec<Key> {
//!         change.latest::<Namespace>().map(Key::of).into_iter().collect()
//!     }
//!     fn reconcile(&self, key: &Key, view: &View, _: jiff::Timestamp) -> Plan {
//!         let mut plan = Plan::none();
//!         if let Some(old) = view.get::<Namespace>(key) {
//!             let mut new = (**old).clone();
//!             new.metadata.labels.get_or_insert_default().insert("name".into(), key.name.clone());
//!             plan.update(old.as_ref(), &new);
//!         }
//!         plan
//!     }
//! }
//! ```

pub mod claim;
pub mod election;
pub mod graph;
pub mod history;
pub mod labels;
pub mod object;
pub mod plan;
pub mod pods;
pub mod view;

pub mod aggregation;
pub mod autoscaler;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod garbage;
pub mod job;
pub mod loadbalancer;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod pod_gc;
pub mod replicaset;
pub mod replicationcontroller;
pub mod root_ca;
pub mod serviceaccount;
pub mod statefulset;
pub mod storage;
pub mod taint_eviction;

#[cfg(test)]
mod proofs;
#[cfg(any(test, feature = "world"))]
pub mod world;

pub use graph::{ApiResource, Graph, GraphChange, Node};
pub use object::{Gvr, Key, Object};
pub use plan::{Action, Expectation, Method, Plan, Precondition, Propagation, Recorded, Target};
pub use view::{Change, Indexer, Source, View, Watch};

use jiff::Timestamp;

/// A controller: which objects it reads, which keys a change concerns, and what a key needs done.
pub trait Reconciler: Send + Sync + 'static {
    /// Upstream's controller name, as in `--controllers`.
    fn name(&self) -> &'static str;

    /// Every resource that `reconcile` or `keys` reads from the view.
    fn watches(&self) -> Vec<Watch>;

    /// The keys to look at again after a change. Called after the view took the change in.
    fn keys(&self, change: &Change, view: &View) -> Vec<Key>;

    /// The same for changes of any object's metadata; only the garbage collector and its like need it.
    fn graph_keys(&self, _change: &GraphChange, _view: &View) -> Vec<Key> {
        Vec::new()
    }

    /// Whether the controller reads `View::graph`.
    fn reads_graph(&self) -> bool {
        false
    }

    /// What the key needs done now. Called with keys that are gone, too. Must be a function of its
    /// arguments alone, and must answer an empty plan when nothing needs doing.
    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan;
}
