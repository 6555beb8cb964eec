//! The shipped queue, cache, decision and bind rules while bind requests fail in every way: refused, lost, answered into
//! the void, or carried out long after everybody gave them up.
//!
//! A state holds the server's pods, the watch events on their way, the scheduler's real cache and queue, and each
//! binding under way. Some lines of the shell (`scheduler/server`) are repeated here: what it does with a popped pod, a
//! watch event and an outcome.
//!
//! Shown: a pod is bound once (C1); no node ever holds more than it has (C2); once faults stop, every pod that fits is
//! bound without waiting for the five-minute flush, so every wake-up came from an event.
//!
//! Omitted, and why that is sound: a request of a dead scheduler that arrives after its successor has listed (nothing
//! in a scheduler can see it; the node's own admission refuses it), volumes and preemption (scripts and property tests
//! have those), priorities and gates (they order or hold back, they never place).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Node, NodeStatus, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_scheduler_core::binding::{AfterBind, BindAnswer, Observed, after_bind};
use keelson_scheduler_core::cache::Change;
use keelson_scheduler_core::events::ClusterEvent;
use keelson_scheduler_core::{Cache, Options, PodInfo, SchedulingQueue, schedule};
use stateright::{Model, Property};

use crate::catalogue::{Bound, Report, explore};

/// Rounds in which the closure must end.
const ROUNDS: usize = 12;

/// The scheduler's memory. States are told apart by what it prints: everything in it is ordered.
#[derive(Clone)]
struct Memory {
    cache: Cache,
    queue: SchedulingQueue,
    now: Duration,
}

impl Memory {
    fn digest(&self) -> String {
        format!("{:?} {:?} {:?}", self.cache, self.queue, self.now)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:?}, pending {:?}", self.now, self.queue.pending())
    }
}

impl PartialEq for Memory {
    fn eq(&self, other: &Self) -> bool {
        self.digest() == other.digest()
    }
}

impl Hash for Memory {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest().hash(state);
    }
}

/// A pod at the server: whether it exists, and its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Truth {
    exists: bool,
    node: Option<u8>,
}

/// One binding under way.
#[derive(Clone, Debug, PartialEq, Hash)]
struct Binding {
    pod: u8,
    node: u8,
    /// Sent and not answered.
    sent: bool,
    unclear: bool,
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub struct World {
    memory: Memory,
    pods: Vec<Truth>,
    unseen: Vec<(u8, Truth)>,
    bindings: Vec<Binding>,
    /// Requests whose senders have given up on their answers.
    late: Vec<(u8, u8)>,
    rebound: bool,
    faults: u8,
    ticks: u8,
    deletions: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The oldest watch event arrives.
    Deliver,
    Schedule,
    /// Time passes until the queue has something to do.
    Tick,
    /// The request is carried out or refused, and the answer arrives.
    Answer(u8),
    /// It is carried out or refused, and the answer is lost.
    LoseAnswer(u8),
    LoseRequest(u8),
    /// It is still under way when the sender stops waiting.
    Delay(u8),
    /// Such a request arrives.
    Late(u8),
    /// The pod is read back after an unclear or bad answer.
    ReadBack(u8),
    Delete(u8),
    /// A new leader, from fresh lists.
    Restart,
}

pub struct Scheduler {
    pods: u8,
    nodes: u8,
    faults: u8,
    ticks: u8,
    deletions: u8,
}

/// Runs the model.
pub fn run(bound: Bound) -> Report {
    let model = match bound {
        Bound::Smoke | Bound::Browse => Scheduler { pods: 2, nodes: 1, faults: 2, ticks: 2, deletions: 1 },
        Bound::Deep => Scheduler { pods: 3, nodes: 2, faults: 2, ticks: 2, deletions: 1 },
    };
    explore("scheduler-binding", bound, model)
}

fn quantities(pods: &str) -> std::collections::BTreeMap<String, Quantity> {
    [("cpu", "1"), ("memory", "1Gi"), ("pods", pods)]
        .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
        .into()
}

fn node_of(number: u8) -> Node {
    Node {
        metadata: ObjectMeta { name: Some(format!("n{number}")), ..ObjectMeta::default() },
        spec: None,
        status: Some(NodeStatus { allocatable: Some(quantities("10")), ..NodeStatus::default() }),
    }
}

fn pod_of(number: u8, node: Option<u8>) -> Arc<PodInfo> {
    let mut requests = quantities("1");
    requests.remove("pods");
    let resources = ResourceRequirements { requests: Some(requests), ..ResourceRequirements::default() };
    let pod = Pod {
        metadata: ObjectMeta {
            name: Some(format!("p{number}")),
            namespace: Some("d".into()),
            uid: Some(format!("{number}")),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "c".into(),
                resources: Some(resources),
                ..Container::default()
            }],
            node_name: node.map(|node| format!("n{node}")),
            ..PodSpec::default()
        }),
        status: None,
    };
    Arc::new(PodInfo::new(&pod))
}

impl World {
    /// A scheduler that has just listed.
    fn fresh(pods: &[Truth], nodes: u8) -> Memory {
        let mut memory =
            Memory { cache: Cache::default(), queue: SchedulingQueue::default(), now: Duration::ZERO };
        (0..nodes).for_each(|node| memory.cache.snapshot_mut().set_node(&node_of(node)));
        for (pod, truth) in (0..).zip(pods).filter(|(_, truth)| truth.exists) {
            memory.see(pod, *truth);
        }
        memory
    }

    fn change(&mut self, pod: u8, truth: Truth) {
        self.pods[usize::from(pod)] = truth;
        self.unseen.push((pod, truth));
    }

    /// The server's part of a bind request.
    fn serve(&mut self, pod: u8, node: u8) -> BindAnswer {
        let truth = self.pods[usize::from(pod)];
        if !truth.exists || truth.node.is_some() {
            return BindAnswer::Refused;
        }
        self.change(pod, Truth { node: Some(node), ..truth });
        BindAnswer::Accepted
    }

    fn schedule(&mut self) {
        let Some(popped) = self.memory.queue.pop() else { return };
        let pod = popped.pod;
        if self.memory.cache.snapshot().place(&pod.uid).is_some() {
            return self.memory.queue.done(&pod.uid);
        }
        let decision = schedule(&pod, self.memory.cache.snapshot(), &Options::default());
        let now = self.memory.now;
        match decision.placement {
            None => self.memory.queue.failed(&pod.uid, decision.plugins, now),
            Some(place) => {
                if !self.memory.cache.assume(&pod, &place.node, &place.pre_bind) {
                    return self.memory.queue.failed(&pod.uid, Default::default(), now);
                }
                let number = |name: &str, skip: usize| name[skip..].parse().expect("a name of ours");
                let (pod, node) = (number(&pod.uid, 0), number(&place.node, 1));
                self.bindings.push(Binding { pod, node, sent: true, unclear: false });
            }
        }
    }

    fn binding(&mut self, pod: u8) -> &mut Binding {
        self.bindings.iter_mut().find(|binding| binding.pod == pod).expect("only a binding is asked for")
    }

    /// What the binder makes of an answer, and the scheduler of its outcome.
    fn conclude(&mut self, pod: u8, answer: BindAnswer, observed: Option<Observed>) {
        let now = self.memory.now;
        let binding = self.binding(pod);
        binding.unclear |= answer == BindAnswer::Unknown;
        let node = format!("n{}", binding.node);
        let uid = pod.to_string();
        match after_bind(&node, answer, observed.as_ref()) {
            AfterBind::ReadBack => return binding.sent = false,
            AfterBind::BindAgain => return binding.sent = true,
            AfterBind::Bound => self.memory.queue.done(&uid),
            AfterBind::Forget => {
                self.memory.queue.done(&uid);
                self.memory.freed(&uid);
            }
            AfterBind::ForgetAndRequeue => {
                self.memory.queue.failed(&uid, Default::default(), now);
                self.memory.freed(&uid);
            }
        }
        self.bindings.retain(|binding| binding.pod != pod);
    }

    fn answer(&mut self, pod: u8) {
        let node = self.binding(pod).node;
        let answer = self.serve(pod, node);
        self.conclude(pod, answer, None);
    }

    fn read_back(&mut self, pod: u8) {
        let truth = self.pods[usize::from(pod)];
        let observed = match truth {
            Truth { exists: false, .. } => Observed::Gone,
            Truth { node, .. } => Observed::Node(node.map(|node| format!("n{node}")).unwrap_or_default()),
        };
        let unclear = self.binding(pod).unclear;
        let answer = if unclear { BindAnswer::Unknown } else { BindAnswer::Refused };
        self.conclude(pod, answer, Some(observed));
    }

    fn deliver(&mut self) {
        let (pod, truth) = self.unseen.remove(0);
        self.memory.see(pod, truth);
    }

    fn tick(&mut self) {
        if let Some(next) = self.memory.queue.next_wakeup() {
            self.memory.now = self.memory.now.max(next);
            self.memory.queue.tick(self.memory.now);
        }
    }

    fn overcommitted(&self) -> bool {
        let live = self.pods.iter().filter(|pod| pod.exists);
        let mut nodes: Vec<u8> = live.filter_map(|pod| pod.node).collect();
        nodes.sort_unstable();
        nodes.windows(2).any(|pair| pair[0] == pair[1])
    }

    /// With no more faults, a few fair rounds bind whatever fits; only backoffs may be waited for.
    fn converges(&self, nodes: u8) -> bool {
        let mut world = self.clone();
        for _ in 0..ROUNDS {
            for (pod, node) in std::mem::take(&mut world.late) {
                world.serve(pod, node);
            }
            for Binding { pod, sent, .. } in world.bindings.clone() {
                if sent { world.answer(pod) } else { world.read_back(pod) }
            }
            while !world.unseen.is_empty() {
                world.deliver();
            }
            if world.memory.queue.pending()[1] > 0 {
                world.tick();
            }
            while world.memory.queue.pending()[0] > 0 {
                world.schedule();
            }
        }
        let live = world.pods.iter().filter(|pod| pod.exists);
        let (bound, waiting): (Vec<&Truth>, Vec<&Truth>) = live.partition(|pod| pod.node.is_some());
        world.bindings.is_empty() && (waiting.is_empty() || bound.len() >= usize::from(nodes))
    }
}

impl Memory {
    /// One watch event.
    fn see(&mut self, pod: u8, truth: Truth) {
        let uid = pod.to_string();
        let info = pod_of(pod, truth.node);
        if !truth.exists {
            self.queue.remove(&uid);
            if let Some(left) = self.cache.remove(&uid) {
                self.queue.event(ClusterEvent::PodLeft(left), self.now);
            }
        } else if truth.node.is_none() {
            if !self.cache.is_assumed(&uid) {
                self.queue.update(info, self.now);
            }
        } else {
            self.queue.remove(&uid);
            if self.cache.observe(info.clone()) != Change::Nothing {
                self.queue.event(ClusterEvent::PodPlaced(info), self.now);
            }
        }
    }

    fn freed(&mut self, uid: &str) {
        if let Some(pod) = self.cache.forget(uid) {
            self.queue.event(ClusterEvent::PodLeft(pod), self.now);
        }
    }
}

impl Model for Scheduler {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let pods = vec![Truth { exists: true, node: None }; usize::from(self.pods)];
        vec![World {
            memory: World::fresh(&pods, self.nodes),
            pods,
            unseen: Vec::new(),
            bindings: Vec::new(),
            late: Vec::new(),
            rebound: false,
            faults: 0,
            ticks: 0,
            deletions: 0,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if !world.unseen.is_empty() {
            steps.push(Step::Deliver);
        }
        if world.memory.queue.pending()[0] > 0 {
            steps.push(Step::Schedule);
        }
        if world.ticks < self.ticks && world.memory.queue.next_wakeup().is_some() {
            steps.push(Step::Tick);
        }
        let faulty = world.faults < self.faults;
        for binding in &world.bindings {
            if !binding.sent {
                steps.push(Step::ReadBack(binding.pod));
                continue;
            }
            steps.push(Step::Answer(binding.pod));
            if faulty {
                steps.push(Step::LoseAnswer(binding.pod));
                steps.push(Step::LoseRequest(binding.pod));
                steps.push(Step::Delay(binding.pod));
            }
        }
        steps.extend((0..).take(world.late.len()).map(Step::Late));
        if world.deletions < self.deletions {
            let live = (0..).zip(&world.pods).filter(|(_, pod)| pod.exists);
            steps.extend(live.map(|(pod, _)| Step::Delete(pod)));
        }
        if faulty {
            steps.push(Step::Restart);
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        let fault =
            matches!(step, Step::LoseAnswer(_) | Step::LoseRequest(_) | Step::Delay(_) | Step::Restart);
        world.faults += u8::from(fault);
        match step {
            Step::Deliver => world.deliver(),
            Step::Schedule => world.schedule(),
            Step::Tick => {
                world.ticks += 1;
                world.tick();
            }
            Step::Answer(pod) => world.answer(pod),
            Step::LoseAnswer(pod) => {
                let node = world.binding(pod).node;
                world.serve(pod, node);
                world.conclude(pod, BindAnswer::Unknown, None);
            }
            Step::LoseRequest(pod) => world.conclude(pod, BindAnswer::Unknown, None),
            Step::Delay(pod) => {
                let node = world.binding(pod).node;
                world.late.push((pod, node));
                world.conclude(pod, BindAnswer::Unknown, None);
            }
            Step::Late(at) => {
                let (pod, node) = world.late.remove(usize::from(at));
                world.serve(pod, node);
            }
            Step::ReadBack(pod) => world.read_back(pod),
            Step::Delete(pod) => {
                world.deletions += 1;
                world.change(pod, Truth { exists: false, ..world.pods[usize::from(pod)] });
            }
            Step::Restart => {
                world.bindings.clear();
                world.late.clear();
                world.unseen.clear();
                world.memory = World::fresh(&world.pods, self.nodes);
            }
        }
        let moved = |(before, after): (&Truth, &Truth)| before.node.is_some() && before.node != after.node;
        world.rebound |= last.pods.iter().zip(&world.pods).any(moved);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Scheduler>> {
        vec![
            Property::always("C1 a pod is bound once", |_, world: &World| !world.rebound),
            Property::always("C2 no node holds more than it has", |_, world: &World| !world.overcommitted()),
            Property::always("what fits is bound once faults stop", |model: &Scheduler, world: &World| {
                world.converges(model.nodes)
            }),
            Property::sometimes(
                "a late request binds a pod that is being tried again",
                |_, world: &World| {
                    world.bindings.iter().any(|binding| {
                        binding.sent && binding.unclear && world.pods[usize::from(binding.pod)].node.is_some()
                    })
                },
            ),
            Property::sometimes(
                "a deleted pod's room went to the one that waited",
                |model: &Scheduler, world: &World| {
                    let gone = world.pods.iter().any(|pod| !pod.exists && pod.node.is_some());
                    let bound = world.pods.iter().filter(|pod| pod.exists && pod.node.is_some()).count();
                    gone && bound == usize::from(model.nodes)
                },
            ),
            Property::sometimes(
                "a restarted scheduler takes a bind it had not seen for done",
                |_, world: &World| {
                    world.faults > 0
                        && world.bindings.is_empty()
                        && world.pods.iter().all(|pod| pod.node.is_some())
                },
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_that_fail_in_every_way_neither_rebind_nor_overcommit() {
        let report = run(Bound::Smoke);
        assert!(report.holds(), "{}", report.failures());
        assert_eq!(report.unique, 4_272, "the reach changed: look why, then set the new count");
    }
}
