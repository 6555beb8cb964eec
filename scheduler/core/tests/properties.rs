//! C1 and C2 under lost answers, refusals, late watches and deletions; order independence; the queue loses nobody.
//!
//! The world is the API server's truth and a delayed watch; cache, queue, `schedule` and `after_bind` are the shipped
//! ones. What is left out: nodes do not shrink while pods are bound to them (C2 speaks of bind time).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use keelson_scheduler_core::binding::{AfterBind, BindAnswer, Observed, after_bind};
use keelson_scheduler_core::events::ClusterEvent;
use keelson_scheduler_core::invariants::{c1_bound_once, c2_no_node_is_overcommitted};
use keelson_scheduler_core::queue::Place;
use keelson_scheduler_core::{Cache, Options, PodInfo, SchedulingQueue, Snapshot, schedule};
use proptest::prelude::*;
use serde_json::json;

fn node(name: &str, cpu: u32) -> k8s_openapi::api::core::v1::Node {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": cpu.to_string(), "memory": "8Gi", "pods": "4"}}}))
    .expect("a node")
}

fn pod(name: &str, milli: u32, priority: i32) -> PodInfo {
    PodInfo::new(
        &serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "a"}},
            "spec": {"priority": priority, "containers": [{"name": "c",
                "resources": {"requests": {"cpu": format!("{milli}m")}}}]}}))
        .expect("a pod"),
    )
}

#[derive(Debug, Clone)]
enum Fate {
    Acknowledged,
    AppliedAnswerLost,
    LostOnTheWay,
    Refused,
}

#[derive(Debug, Clone)]
enum Step {
    Create {
        milli: u32,
        priority: i32,
    },
    Delete {
        index: usize,
    },
    Schedule {
        seed: u64,
        fate: Fate,
    },
    /// Reads back (or sends again) for a pod whose bind outcome is open.
    Resolve {
        index: usize,
        readable: bool,
        fate: Fate,
    },
    Watch,
    Pass {
        seconds: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fate = prop_oneof![
        4 => Just(Fate::Acknowledged),
        2 => Just(Fate::AppliedAnswerLost),
        1 => Just(Fate::LostOnTheWay),
        1 => Just(Fate::Refused)
    ];
    let step = prop_oneof![
        3 => (1u32..2500, 0i32..3).prop_map(|(milli, priority)| Step::Create { milli, priority }),
        1 => (0usize..40).prop_map(|index| Step::Delete { index }),
        5 => (any::<u64>(), fate.clone()).prop_map(|(seed, fate)| Step::Schedule { seed, fate }),
        3 => (0usize..8, any::<bool>(), fate)
            .prop_map(|(index, readable, fate)| Step::Resolve { index, readable, fate }),
        4 => Just(Step::Watch),
        2 => (1u64..20).prop_map(|seconds| Step::Pass { seconds }),
    ];
    proptest::collection::vec(step, 1..120)
}

enum WatchEvent {
    Pod(Arc<PodInfo>),
    Gone(String),
}

struct World {
    truth: Snapshot,
    pods: BTreeMap<String, PodInfo>,
    binds: Vec<(String, String)>,
    watch: VecDeque<WatchEvent>,
    cache: Cache,
    queue: SchedulingQueue,
    open: Vec<(String, String, BindAnswer)>,
    now: Duration,
    created: usize,
}

impl World {
    fn new() -> World {
        let mut world = World {
            truth: Snapshot::default(),
            pods: BTreeMap::new(),
            binds: Vec::new(),
            watch: VecDeque::new(),
            cache: Cache::default(),
            queue: SchedulingQueue::default(),
            open: Vec::new(),
            now: Duration::ZERO,
            created: 0,
        };
        for (name, cpu) in [("n1", 2), ("n2", 4), ("n3", 3)] {
            world.truth.set_node(&node(name, cpu));
            world.cache.snapshot_mut().set_node(&node(name, cpu));
        }
        world
    }

    /// The API server's side of a bind: applied at most once.
    fn bind(&mut self, uid: &str, node: &str, fate: &Fate) -> BindAnswer {
        let pod = match fate {
            Fate::LostOnTheWay => return BindAnswer::Unknown,
            Fate::Refused => return BindAnswer::Refused,
            _ => self.pods.get_mut(uid),
        };
        let refused = match pod {
            Some(pod) if pod.node_name.is_empty() => {
                pod.node_name = node.to_string();
                let bound = Arc::new(pod.clone());
                self.truth.add_pod(bound.clone());
                self.binds.push((uid.to_string(), node.to_string()));
                self.watch.push_back(WatchEvent::Pod(bound));
                false
            }
            _ => true,
        };
        match fate {
            Fate::AppliedAnswerLost => BindAnswer::Unknown,
            _ if refused => BindAnswer::Refused,
            _ => BindAnswer::Accepted,
        }
    }

    fn settle(
        &mut self,
        uid: String,
        node: String,
        answer: BindAnswer,
        observed: Option<Observed>,
        fate: &Fate,
    ) {
        match after_bind(&node, answer, observed.as_ref()) {
            AfterBind::Bound => self.queue.done(&uid),
            AfterBind::Forget => {
                self.cache.forget(&uid);
                self.queue.done(&uid);
            }
            AfterBind::ForgetAndRequeue => {
                if let Some(pod) = self.cache.forget(&uid) {
                    self.queue.failed(&uid, Default::default(), self.now);
                    self.queue.event(ClusterEvent::PodLeft(pod), self.now);
                }
            }
            AfterBind::ReadBack => self.open.push((uid, node, answer)),
            AfterBind::BindAgain => {
                let answer = self.bind(&uid, &node, fate);
                self.open.push((uid, node, answer));
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Create { milli, priority } => {
                let name = format!("p{:03}", self.created);
                self.created += 1;
                let pod = pod(&name, *milli, *priority);
                self.pods.insert(name, pod.clone());
                self.watch.push_back(WatchEvent::Pod(Arc::new(pod)));
            }
            Step::Delete { index } => {
                if let Some(uid) = self.pods.keys().nth(*index).cloned() {
                    self.pods.remove(&uid);
                    self.truth.remove_pod(&uid);
                    self.watch.push_back(WatchEvent::Gone(uid));
                }
            }
            Step::Schedule { seed, fate } => self.schedule(*seed, fate),
            Step::Resolve { index, readable, fate } => {
                if *index < self.open.len() {
                    let (uid, node, answer) = self.open.remove(*index);
                    let observed = match self.pods.get(&uid) {
                        _ if !readable => Observed::Unreadable,
                        None => Observed::Gone,
                        Some(pod) => Observed::Node(pod.node_name.clone()),
                    };
                    self.settle(uid, node, answer, Some(observed), fate);
                }
            }
            Step::Watch => self.deliver(),
            Step::Pass { seconds } => {
                self.now += Duration::from_secs(*seconds);
                self.queue.tick(self.now);
            }
        }
    }

    fn schedule(&mut self, seed: u64, fate: &Fate) {
        let Some(popped) = self.queue.pop() else { return };
        let options = Options { seed, ..Options::default() };
        let decision = schedule(&popped.pod, self.cache.snapshot(), &options);
        let Some(placement) = decision.placement else {
            self.queue.failed(&popped.pod.uid, decision.plugins, self.now);
            return;
        };
        if !self.cache.assume(&popped.pod, &placement.node, &placement.pre_bind) {
            self.queue.done(&popped.pod.uid);
            return;
        }
        let uid = popped.pod.uid.clone();
        let answer = self.bind(&uid, &placement.node, fate);
        self.settle(uid, placement.node, answer, None, fate);
    }

    fn deliver(&mut self) {
        match self.watch.pop_front() {
            Some(WatchEvent::Pod(pod)) if pod.node_name.is_empty() => self.queue.update(pod, self.now),
            Some(WatchEvent::Pod(pod)) => {
                self.queue.remove(&pod.uid);
                self.cache.observe(pod.clone());
                self.queue.event(ClusterEvent::PodPlaced(pod), self.now);
            }
            Some(WatchEvent::Gone(uid)) => {
                self.queue.remove(&uid);
                if let Some(pod) = self.cache.remove(&uid) {
                    self.queue.event(ClusterEvent::PodLeft(pod), self.now);
                }
            }
            None => {}
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        c2_no_node_is_overcommitted(&self.truth).map_err(TestCaseError::fail)?;
        c2_no_node_is_overcommitted(self.cache.snapshot()).map_err(TestCaseError::fail)?;
        c1_bound_once(&self.binds).map_err(TestCaseError::fail)
    }

    /// Faults off: everything open is resolved, the watch drains, backoffs end. Then a waiting pod fits nowhere.
    fn converge(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..400 {
            while !self.watch.is_empty() {
                self.deliver();
            }
            while !self.open.is_empty() {
                self.step(&Step::Resolve { index: 0, readable: true, fate: Fate::Acknowledged });
            }
            self.step(&Step::Pass { seconds: 11 });
            self.schedule(7, &Fate::Acknowledged);
            self.check()?;
        }
        for (uid, pod) in self.pods.iter().filter(|(_, pod)| pod.node_name.is_empty()) {
            prop_assert!(
                matches!(self.queue.place(uid), Some(Place::Unschedulable(_))),
                "{uid} is neither bound nor waiting: {:?}",
                self.queue.place(uid)
            );
            let decision = schedule(pod, self.cache.snapshot(), &Options::default());
            prop_assert!(decision.placement.is_none(), "{uid} would fit but was left waiting");
        }
        for uid in self.pods.keys() {
            prop_assert!(!self.cache.is_assumed(uid), "{uid} is still assumed after its watch event");
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pods_are_bound_once_and_nodes_never_overcommitted(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            world.check()?;
        }
        world.converge()?;
    }

    #[test]
    fn a_decision_does_not_depend_on_the_order_of_arrival(
        milli in proptest::collection::vec(1u32..1500, 1..12),
        rotate in 0usize..12,
        seed in any::<u64>(),
    ) {
        let nodes: Vec<_> = (0..6).map(|index| node(&format!("n{index}"), 2 + index % 3)).collect();
        let placed: Vec<Arc<PodInfo>> = milli
            .iter()
            .enumerate()
            .map(|(index, milli)| pod(&format!("p{index}"), *milli, 0).on(&format!("n{}", index % 6)))
            .collect();
        let build = |shift: usize, nodes_first: bool| {
            let mut snapshot = Snapshot::default();
            let add_nodes = |snapshot: &mut Snapshot| {
                (0..nodes.len()).for_each(|index| snapshot.set_node(&nodes[(index + shift) % nodes.len()]));
            };
            if nodes_first { add_nodes(&mut snapshot) }
            (0..placed.len()).for_each(|index| snapshot.add_pod(placed[(index + shift) % placed.len()].clone()));
            if !nodes_first { add_nodes(&mut snapshot) }
            snapshot
        };
        let asked = pod("x", 300, 0);
        let options = Options { seed, ..Options::default() };
        let text = |snapshot: &Snapshot| {
            serde_json::to_string(&schedule(&asked, snapshot, &options)).expect("JSON")
        };
        prop_assert_eq!(text(&build(0, true)), text(&build(rotate, false)));
    }

    #[test]
    fn removing_what_was_added_leaves_no_trace(milli in proptest::collection::vec(1u32..3000, 1..10)) {
        let mut snapshot = Snapshot::default();
        snapshot.set_node(&node("n0", 4));
        for (index, milli) in milli.iter().enumerate() {
            snapshot.add_pod(pod(&format!("p{index}"), *milli, 0).on("n0"));
        }
        for index in 0..milli.len() {
            snapshot.remove_pod(&format!("p{index}"));
        }
        let slot = snapshot.slot("n0").expect("present");
        prop_assert!(snapshot.requested[slot].is_zero() && snapshot.requested[slot].pods == 0);
        prop_assert_eq!((snapshot.scored_cpu[slot], snapshot.scored_memory[slot]), (0, 0));
    }
}

#[test]
fn ties_are_spread_by_the_seed_and_nothing_else() {
    let mut snapshot = Snapshot::default();
    (0..4).for_each(|index| snapshot.set_node(&node(&format!("n{index}"), 4)));
    let asked = pod("x", 100, 0);
    let mut chosen = std::collections::BTreeSet::new();
    for seed in 0..64 {
        let options = Options { seed, ..Options::default() };
        let once = schedule(&asked, &snapshot, &options).placement.expect("a node").node;
        let twice = schedule(&asked, &snapshot, &options).placement.expect("a node").node;
        assert_eq!(once, twice);
        chosen.insert(once);
    }
    assert_eq!(chosen.len(), 4, "64 seeds reach every one of four equal nodes");
}
