//! The shipped Deployment and ReplicaSet reconcilers rolling out a new template together, each on views that lag
//! behind, with plans cut short, and pods that start and stop in any order.
//!
//! A state holds the API server's objects as they are (`World` of `controllers/core`), the last few writes, and how much
//! of its own writes each controller has seen. A reconcile takes a view up to [`LAG`] writes old, but never one that
//! lacks the controller's own writes (the runner's promise), and runs its whole plan or, as a fault, only the first
//! action of it.
//!
//! Shown at every step: never more active pods than replicas + maxSurge, never fewer ready ones than replicas −
//! maxUnavailable (C7); from every state, once faults stop, the rollout ends with the new template alone (C26) and then
//! nothing is written any more (C27).
//!
//! Omitted, and why that is sound: other requests between the actions of one plan (each is guarded by a precondition,
//! and what a ReplicaSet creates unguarded is the ReplicaSet model's subject), resource versions beyond their age (only
//! equality counts), deadlines (time stands still).

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use keelson_controllers_core::deployment::Deployments;
use keelson_controllers_core::replicaset::ReplicaSets;
use keelson_controllers_core::world::World;
use keelson_controllers_core::{Key, Object, Reconciler, pods};
use serde_json::{Value, json};
use stateright::{Model, Property};

use crate::catalogue::{Bound, Report, explore};

/// How many writes a view may lag behind.
const LAG: usize = 2;
/// Rounds in which the closure must end.
const ROUNDS: usize = 40;

#[derive(Clone)]
pub struct Cluster {
    world: World,
    /// Controller -> the version that holds its own last write.
    own: BTreeMap<String, usize>,
    faults: u8,
    /// A view older than the truth led to writes.
    acted_late: bool,
    print: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The Deployment's controller, on a view of this age; `cut`: only the first action.
    Roll { lag: usize, cut: bool },
    /// A set's controller, likewise.
    Size { set: usize, lag: usize, cut: bool },
    /// A pod starts, or, being deleted, stops.
    Pod(usize),
}

pub struct Rollout {
    replicas: i32,
    surge: i32,
    unavailable: i32,
    faults: u8,
}

/// Runs the model.
pub fn run(bound: Bound) -> Report {
    let model = match bound {
        Bound::Smoke | Bound::Browse => Rollout { replicas: 1, surge: 1, unavailable: 0, faults: 1 },
        Bound::Deep => Rollout { replicas: 2, surge: 1, unavailable: 0, faults: 1 },
    };
    explore("controllers-deployment", bound, model)
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn key() -> Key {
    Key::new("d", "web")
}

impl Rollout {
    /// The old template, all settled; then the new one is asked for.
    fn begin(&self) -> Cluster {
        let mut world = World::default();
        let rolling = json!({"maxSurge": self.surge, "maxUnavailable": self.unavailable});
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "d", "generation": 1},
            "spec": {
                "replicas": self.replicas,
                "selector": {"matchLabels": {"app": "a"}},
                "template": template("v1"),
                "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
            },
        }))
        .expect("a sound object");
        world.put(&deployment);
        let mut cluster = Cluster { world, own: BTreeMap::new(), faults: 0, acted_late: false, print: 0 };
        assert!(cluster.settles(), "the old template rolls out");
        cluster.world.edit::<Deployment>(&key(), |deployment| {
            if let Some(spec) = deployment.spec.as_mut() {
                spec.template = serde_json::from_value(template("v2")).expect("a sound template");
            }
        });
        cluster.own.clear();
        cluster.print = cluster.fingerprint();
        cluster
    }
}

impl Cluster {
    fn sets(&self) -> Vec<Key> {
        self.world.list::<ReplicaSet>().iter().map(Key::of).collect()
    }

    /// One reconcile on a view of this age, and its plan or the first action of it.
    fn reconcile(&mut self, reconciler: &dyn Reconciler, key: &Key, lag: usize, cut: bool) {
        let name = format!("{} {key}", reconciler.name());
        let now = self.world.version();
        let seen = now.saturating_sub(lag).max(self.own.get(&name).copied().unwrap_or(0));
        let view = self.world.view(&reconciler.watches(), seen);
        let plan = reconciler.reconcile(key, &view, self.world.now);
        for action in plan.actions.iter().take(if cut { 1 } else { usize::MAX }) {
            if self.world.act(action).is_err() {
                break;
            }
        }
        if self.world.version() > now {
            self.own.insert(name, self.world.version());
            self.acted_late |= seen < now;
        }
    }

    fn run_pod(&mut self, key: &Key) {
        let Some(pod) = self.world.get::<Pod>(key) else { return };
        if pod.is_deleting() {
            return self.world.remove::<Pod>(key);
        }
        if pods::is_ready(&pod) {
            return;
        }
        let now = self.world.now.to_string();
        let ready = json!({
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
        });
        self.world.edit::<Pod>(key, |pod| {
            pod.spec.get_or_insert_default().node_name.get_or_insert("n1".into());
            pod.status = Some(serde_json::from_value::<PodStatus>(ready).expect("a sound status"));
        });
    }

    /// Everybody in turn, on fresh views, until nothing is written; whether that comes.
    fn settles(&mut self) -> bool {
        for _ in 0..ROUNDS {
            let before = self.world.version();
            self.reconcile(&Deployments, &key(), 0, false);
            for set in self.sets() {
                self.reconcile(&ReplicaSets, &set, 0, false);
            }
            let pods: Vec<Key> = self.world.list::<Pod>().iter().map(Key::of).collect();
            pods.iter().for_each(|pod| self.run_pod(pod));
            if self.world.version() == before {
                return true;
            }
        }
        false
    }

    fn ends(&self, replicas: i32) -> bool {
        let mut cluster = self.clone();
        let settled = cluster.settles();
        let pods = cluster.world.list::<Pod>();
        let image = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
        let new = pods.iter().filter(|pod| image(pod).as_deref() == Some("v2"));
        settled && pods.len() == replicas as usize && new.count() == pods.len()
    }

    /// Active and ready pods.
    fn counts(&self) -> (i32, i32) {
        let pods = self.world.list::<Pod>();
        let active: Vec<&Pod> = pods.iter().filter(|pod| pods::is_active(pod)).collect();
        let ready = active.iter().filter(|pod| pods::is_ready(pod)).count();
        (active.len() as i32, ready as i32)
    }

    /// What tells states apart: the objects, the writes that a view may lack, and who has seen which of them. A
    /// resource version counts by its age.
    fn fingerprint(&self) -> u64 {
        let now = self.world.version();
        let mut hasher = DefaultHasher::new();
        let mut add = |value: &Value| {
            let mut value = value.clone();
            let version = value["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok());
            let age = version.map_or(0, |version: usize| (now - version).min(LAG + 1));
            value["metadata"]["resourceVersion"] = json!(age);
            value.to_string().hash(&mut hasher);
        };
        self.world.objects().for_each(|(_, _, value)| add(value));
        for version in (now.saturating_sub(LAG) + 1)..=now {
            if let Some((_, before, _)) = self.world.change(version) {
                add(&before.as_deref().cloned().unwrap_or_default());
            }
        }
        for (name, version) in &self.own {
            (name, (now - version).min(LAG + 1)).hash(&mut hasher);
        }
        (self.faults, self.acted_late).hash(&mut hasher);
        hasher.finish()
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} writes, (active, ready) pods {:?}", self.world.version(), self.counts())
    }
}

impl PartialEq for Cluster {
    fn eq(&self, other: &Self) -> bool {
        self.print == other.print
    }
}

impl Hash for Cluster {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.print.hash(state);
    }
}

impl Model for Rollout {
    type State = Cluster;
    type Action = Step;

    fn init_states(&self) -> Vec<Cluster> {
        vec![self.begin()]
    }

    fn actions(&self, cluster: &Cluster, steps: &mut Vec<Step>) {
        let cuts: &[bool] = if cluster.faults < self.faults { &[false, true] } else { &[false] };
        for lag in 0..=LAG {
            for cut in cuts.iter().copied() {
                steps.push(Step::Roll { lag, cut });
                steps.extend((0..cluster.sets().len()).map(|set| Step::Size { set, lag, cut }));
            }
        }
        steps.extend((0..cluster.world.list::<Pod>().len()).map(Step::Pod));
    }

    fn next_state(&self, last: &Cluster, step: Step) -> Option<Cluster> {
        let mut cluster = last.clone();
        match step {
            Step::Roll { lag, cut } => {
                cluster.faults += u8::from(cut);
                cluster.reconcile(&Deployments, &key(), lag, cut);
            }
            Step::Size { set, lag, cut } => {
                cluster.faults += u8::from(cut);
                let set = cluster.sets()[set].clone();
                cluster.reconcile(&ReplicaSets, &set, lag, cut);
            }
            Step::Pod(at) => {
                let pod = Key::of(&cluster.world.list::<Pod>()[at]);
                cluster.run_pod(&pod);
            }
        }
        // A step that writes nothing leads nowhere.
        if cluster.world.version() == last.world.version() {
            return None;
        }
        cluster.print = cluster.fingerprint();
        Some(cluster)
    }

    fn properties(&self) -> Vec<Property<Rollout>> {
        vec![
            Property::always(
                "C7 never more pods than replicas + maxSurge",
                |model: &Rollout, cluster: &Cluster| cluster.counts().0 <= model.replicas + model.surge,
            ),
            Property::always(
                "C7 never fewer ready pods than replicas - maxUnavailable",
                |model: &Rollout, cluster: &Cluster| cluster.counts().1 >= model.replicas - model.unavailable,
            ),
            Property::always(
                "C26 C27 once faults stop the rollout ends",
                |model: &Rollout, cluster: &Cluster| cluster.ends(model.replicas),
            ),
            Property::sometimes("a view behind the truth led to writes", |_, cluster: &Cluster| {
                cluster.acted_late
            }),
            Property::sometimes("both templates run at once", |_, cluster: &Cluster| {
                let sizes: Vec<i32> = cluster
                    .world
                    .list::<ReplicaSet>()
                    .iter()
                    .map(|set| set.status.as_ref().map_or(0, |status| status.replicas))
                    .collect();
                sizes.len() == 2 && sizes.iter().all(|size| *size > 0)
            }),
            Property::sometimes(
                "the old set is empty and the new one full",
                |model: &Rollout, cluster: &Cluster| {
                    let sets = cluster.world.list::<ReplicaSet>();
                    let size =
                        |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
                    sets.len() == 2
                        && sets.iter().any(|s| size(s) == 0)
                        && cluster.counts() == (model.replicas, model.replicas)
                },
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_stays_within_its_fence_and_ends() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 575, "the reach changed: look why, then set the new count");
    }
}
