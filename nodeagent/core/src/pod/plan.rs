//! From spec, memory and observation to the next actions: the pod worker's decision.
//!
//! Order for a running pod: prepare (cgroup, volumes) → sandbox → init containers one by one, sidecars staying → containers.
//! Order for an ending pod: containers (sidecars last) → sandbox → release volumes and cgroup → (deleted only) remove from
//! the runtime, erase folders, confirm to the API. Confirmation therefore never precedes the last container's stop (C17).
//! The plan never names an action that is in flight, except a stop with a shorter grace than the one under way.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod};

use super::backoff;
use super::memory::{EndReason, Ending, Memory, Prepared, grace_period, later};
use super::naming;
use super::observed::{Container, ContainerPhase, Observed};
use super::probe::Kind;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Make the pod's cgroup and folders, mount its volumes. Idempotent: also run for adopted pods.
    Prepare,
    CreateSandbox {
        attempt: u32,
    },
    /// Pull if needed, create, start, run the post-start hook.
    StartContainer {
        name: String,
        attempt: u32,
        sandbox: String,
    },
    /// Run the pre-stop hook, then stop; `grace` in seconds covers both.
    StopContainer {
        id: String,
        name: String,
        grace: i64,
        message: String,
    },
    StopSandbox {
        id: String,
    },
    RemoveSandbox {
        id: String,
    },
    /// Remove a dead container that is no longer of use.
    RemoveContainer {
        id: String,
    },
    Probe {
        name: String,
        container_id: String,
        kind: Kind,
    },
    /// Unmount volumes, remove the cgroup.
    Release,
    /// Remove folders and logs.
    Erase,
    /// Tell the API that nothing of the pod is left (after its final status).
    ConfirmDeletion,
}

/// The identity of an action, for "is it under way?".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    Prepare,
    CreateSandbox,
    Start(String),
    Stop(String),
    StopSandbox(String),
    RemoveSandbox(String),
    RemoveContainer(String),
    Probe(String, Kind),
    Release,
    Erase,
    ConfirmDeletion,
}

impl Action {
    pub fn op(&self) -> Op {
        match self {
            Action::Prepare => Op::Prepare,
            Action::CreateSandbox { .. } => Op::CreateSandbox,
            Action::StartContainer { name, .. } => Op::Start(name.clone()),
            Action::StopContainer { id, .. } => Op::Stop(id.clone()),
            Action::StopSandbox { id } => Op::StopSandbox(id.clone()),
            Action::RemoveSandbox { id } => Op::RemoveSandbox(id.clone()),
            Action::RemoveContainer { id } => Op::RemoveContainer(id.clone()),
            Action::Probe { name, kind, .. } => Op::Probe(name.clone(), *kind),
            Action::Release => Op::Release,
            Action::Erase => Op::Erase,
            Action::ConfirmDeletion => Op::ConfirmDeletion,
        }
    }
}

/// What to do now, and when to ask again if nothing happens before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodActions {
    pub actions: Vec<Action>,
    pub wake: Option<Timestamp>,
}

/// How far a pod's containers have come by its restart policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Running,
    Succeeded,
    Failed,
}

struct Planner<'a> {
    pod: &'a Pod,
    memory: &'a Memory,
    observed: &'a Observed,
    now: Timestamp,
    out: PodActions,
}

/// The next actions for one pod. Deterministic in its arguments.
pub fn plan(pod: &Pod, memory: &Memory, observed: &Observed, now: Timestamp) -> PodActions {
    let mut planner = Planner { pod, memory, observed, now, out: PodActions::default() };
    match &memory.ending {
        Some(ending) => planner.ending(ending),
        None => planner.running(),
    }
    planner.out
}

/// The restart policy of one container: its own, else the pod's.
pub fn policy<'a>(pod: &'a Pod, container: &'a ContainerSpec) -> &'a str {
    container.restart_policy.as_deref().unwrap_or_else(|| naming::restart_policy(pod))
}

pub fn should_restart(policy: &str, last: &Container) -> bool {
    match policy {
        "Always" => true,
        "OnFailure" => !last.succeeded(),
        _ => false,
    }
}

/// Whether the pod is over by its restart policy. A pod none of whose containers ever ran is running.
pub fn progress(pod: &Pod, observed: &Observed) -> Progress {
    let begun = naming::main_containers(pod).iter().any(|c| observed.latest(&c.name).is_some());
    if !begun {
        for init in naming::init_containers(pod).iter().filter(|c| !naming::is_sidecar(c)) {
            let Some(last) = observed.latest(&init.name) else { break };
            let never =
                init.restart_policy.as_deref().unwrap_or_else(|| naming::restart_policy(pod)) == "Never";
            if last.exited() && !last.succeeded() && never {
                return Progress::Failed;
            }
        }
        return Progress::Running;
    }
    let mut all_succeeded = true;
    for main in naming::main_containers(pod) {
        match observed.latest(&main.name) {
            Some(last) if last.exited() && !should_restart(policy(pod, main), last) => {
                all_succeeded &= last.succeeded();
            }
            _ => return Progress::Running,
        }
    }
    if all_succeeded { Progress::Succeeded } else { Progress::Failed }
}

impl Planner<'_> {
    fn push(&mut self, action: Action) -> bool {
        let op = action.op();
        if self.memory.in_flight.contains_key(&op) {
            return false;
        }
        if let Some(until) = self.memory.hold.get(&op).copied().filter(|until| *until > self.now) {
            self.wake_at(until);
            return false;
        }
        self.out.actions.push(action);
        true
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.out.wake = Some(self.out.wake.map_or(at, |current| current.min(at)));
    }

    fn busy(&self, wanted: impl Fn(&Op) -> bool) -> bool {
        self.memory.in_flight.keys().any(wanted)
    }

    /// Stops a container unless a stop at least as quick is under way.
    fn stop(&mut self, container: &Container, grace: i64, message: &str) {
        let op = Op::Stop(container.id.clone());
        let killed_by = later(self.now, SignedDuration::from_secs(grace + 1));
        if self.memory.in_flight.get(&op).is_some_and(|under_way| *under_way <= killed_by) {
            return;
        }
        if let Some(until) = self.memory.hold.get(&op).copied().filter(|until| *until > self.now) {
            self.wake_at(until);
            return;
        }
        self.out.actions.push(Action::StopContainer {
            id: container.id.clone(),
            name: container.name.clone(),
            grace,
            message: message.to_string(),
        });
    }

    fn is_sidecar_name(&self, name: &str) -> bool {
        naming::init_containers(self.pod).iter().any(|c| c.name == name && naming::is_sidecar(c))
    }

    fn ending(&mut self, ending: &Ending) {
        let remaining = ending.deadline().duration_since(self.now).as_secs().max(0);
        let grace = if ending.reason == EndReason::Completed { grace_period(self.pod) } else { remaining };
        let live: Vec<Container> =
            self.observed.containers.iter().filter(|c| live(c.phase)).cloned().collect();
        let (sidecars, mains): (Vec<_>, Vec<_>) =
            live.into_iter().partition(|c| self.is_sidecar_name(&c.name));
        for container in &mains {
            self.stop(container, grace, "Stopping container");
        }
        if mains.is_empty() || remaining == 0 {
            for container in &sidecars {
                self.stop(container, grace, "Stopping container");
            }
        } else if !sidecars.is_empty() {
            self.wake_at(ending.deadline());
        }
        let starting = self.busy(|op| matches!(op, Op::Start(_) | Op::CreateSandbox | Op::Prepare));
        if !mains.is_empty() || !sidecars.is_empty() || starting {
            return;
        }
        self.tear_down(ending);
    }

    /// Nothing runs: sandbox, volumes, and for deleted pods the rest, each step after the one before.
    fn tear_down(&mut self, ending: &Ending) {
        let mut waiting = false;
        for sandbox in &self.observed.sandboxes {
            if sandbox.ready || !self.memory.stopped_sandboxes.contains(&sandbox.id) {
                waiting = true;
                self.push(Action::StopSandbox { id: sandbox.id.clone() });
            }
        }
        if waiting {
            return;
        }
        if !self.memory.released {
            self.push(Action::Release);
            return;
        }
        if !ending.erases() {
            return;
        }
        if !self.observed.sandboxes.is_empty() || !self.observed.containers.is_empty() {
            for container in &self.observed.containers {
                self.push(Action::RemoveContainer { id: container.id.clone() });
            }
            if self.observed.containers.is_empty() {
                for sandbox in &self.observed.sandboxes {
                    self.push(Action::RemoveSandbox { id: sandbox.id.clone() });
                }
            }
            return;
        }
        if !self.memory.erased {
            self.push(Action::Erase);
        } else if !self.memory.confirmed {
            self.push(Action::ConfirmDeletion);
        }
    }

    fn running(&mut self) {
        self.deadline();
        match &self.memory.prepared {
            Prepared::Pending => {
                self.push(Action::Prepare);
                return;
            }
            Prepared::Failed { retry, .. } if *retry > self.now => {
                let retry = *retry;
                self.wake_at(retry);
                return;
            }
            Prepared::Failed { .. } => {
                self.push(Action::Prepare);
                return;
            }
            Prepared::Ready => {}
        }
        if progress(self.pod, self.observed) != Progress::Running {
            return; // `refresh` turns this into an ending as soon as no start is under way
        }
        let Some(sandbox) = self.observed.ready_sandbox() else {
            self.make_sandbox();
            return;
        };
        let sandbox = sandbox.id.clone();
        self.probes();
        if self.init_done(&sandbox) {
            self.mains(&sandbox);
        }
        self.ephemeral(&sandbox);
        self.collect_dead();
    }

    fn deadline(&mut self) {
        let limit = self.pod.spec.as_ref().and_then(|s| s.active_deadline_seconds);
        if let Some(at) = limit.and_then(|limit| self.memory.start_deadline(self.pod, limit)) {
            self.wake_at(at);
        }
    }

    fn make_sandbox(&mut self) {
        let live: Vec<Container> =
            self.observed.containers.iter().filter(|c| live(c.phase)).cloned().collect();
        for container in &live {
            self.stop(container, 0, "Pod sandbox changed, it will be killed and re-created.");
        }
        if !live.is_empty() {
            return;
        }
        let mut waiting = false;
        for sandbox in &self.observed.sandboxes {
            if !self.memory.stopped_sandboxes.contains(&sandbox.id) {
                waiting = true;
                self.push(Action::StopSandbox { id: sandbox.id.clone() });
            }
        }
        if waiting {
            return;
        }
        if let Some((_, retry)) = &self.memory.sandbox_failure
            && *retry > self.now
        {
            self.wake_at(*retry);
            return;
        }
        let attempt = self.observed.sandboxes.first().map_or(0, |s| s.attempt + 1);
        self.push(Action::CreateSandbox { attempt });
    }

    fn in_sandbox(&self, name: &str, sandbox: &str) -> Option<&Container> {
        self.observed.latest(name).filter(|c| c.sandbox == sandbox)
    }

    /// Drives init containers and sidecars. True when the main containers may run.
    fn init_done(&mut self, sandbox: &str) -> bool {
        let pod = self.pod;
        let begun = naming::main_containers(pod).iter().any(|c| self.in_sandbox(&c.name, sandbox).is_some());
        for init in naming::init_containers(pod) {
            let last = self.in_sandbox(&init.name, sandbox).cloned();
            if naming::is_sidecar(init) {
                let up = match &last {
                    Some(c) if c.running() => !self.replace(init, c) && self.started(init, c),
                    _ => {
                        self.start(init, last.as_ref(), sandbox);
                        false
                    }
                };
                if !up && !begun {
                    return false;
                }
            } else if !begun {
                match &last {
                    Some(c) if c.running() => return false,
                    Some(c) if c.succeeded() => {}
                    _ => {
                        self.start(init, last.as_ref(), sandbox);
                        return false;
                    }
                }
            }
        }
        true
    }

    fn started(&self, spec: &ContainerSpec, container: &Container) -> bool {
        let probes = self.memory.probes.get(&spec.name).filter(|p| p.container_id == container.id);
        self.memory.starting() != Some(&spec.name)
            && probes.map_or(spec.startup_probe.is_none(), |p| p.is_started(spec))
    }

    fn mains(&mut self, sandbox: &str) {
        let pod = self.pod;
        let mut all_over = true;
        for main in naming::main_containers(pod) {
            let last = self.observed.latest(&main.name).cloned();
            match last {
                Some(c) if c.running() && c.sandbox == sandbox => {
                    all_over = false;
                    self.replace(main, &c);
                }
                Some(c) if c.exited() && !should_restart(policy(pod, main), &c) => {}
                last => {
                    all_over = false;
                    self.start(main, last.as_ref(), sandbox);
                }
            }
        }
        if all_over {
            let last_sidecar = naming::init_containers(pod)
                .iter()
                .rev()
                .filter(|c| naming::is_sidecar(c))
                .find_map(|c| self.observed.latest(&c.name).filter(|c| c.running()).cloned());
            if let Some(container) = last_sidecar {
                self.stop(&container, grace_period(pod), "Stopping container");
            }
        }
    }

    /// Stops a running container that must be replaced (changed image, failed probe). True if so.
    fn replace(&mut self, spec: &ContainerSpec, container: &Container) -> bool {
        if container.hash != naming::container_hash(spec) && !container.hash.is_empty() {
            let message = format!("Container {} definition changed, will be restarted", spec.name);
            self.stop(container, grace_period(self.pod), &message);
            return true;
        }
        let probes = self.memory.probes.get(&spec.name).filter(|p| p.container_id == container.id);
        let Some(kind) = probes.and_then(|p| p.fatal(spec)) else { return false };
        let own = kind.of(spec).and_then(|p| p.termination_grace_period_seconds);
        let verb = if kind == Kind::Startup { "startup" } else { "liveness" };
        let message = format!("Container {} failed {verb} probe, will be restarted", spec.name);
        self.stop(container, own.unwrap_or_else(|| grace_period(self.pod)), &message);
        true
    }

    fn start(&mut self, spec: &ContainerSpec, last: Option<&Container>, sandbox: &str) {
        if self.busy(|op| matches!(op, Op::Start(_))) || self.out.actions.iter().any(is_start) {
            return;
        }
        if let Some(failure) = self.memory.failures.get(&spec.name)
            && failure.retry > self.now
        {
            let retry = failure.retry;
            self.wake_at(retry);
            let shown = super::status::shown_as_error_until(failure.at);
            if shown > self.now {
                self.wake_at(shown);
            }
            return;
        }
        if let Some(last) = last {
            let held = backoff::held_until(self.memory.restarts.get(&spec.name), last.ended(), self.now);
            if let Some(until) = held.filter(|_| last.sandbox == sandbox) {
                self.wake_at(until);
                return;
            }
        }
        let attempt = self.next_attempt(&spec.name);
        self.push(Action::StartContainer { name: spec.name.clone(), attempt, sandbox: sandbox.to_string() });
    }

    /// One past what the runtime has, or past what the API last showed if the runtime forgot.
    fn next_attempt(&self, name: &str) -> u32 {
        if let Some(last) = self.observed.latest(name) {
            return last.attempt + 1;
        }
        let inherited = &self.memory.inherited;
        let lists = inherited.container_statuses.iter().chain(&inherited.init_container_statuses).flatten();
        let known = lists.into_iter().find(|s| s.name == name && s.container_id.is_some());
        known.map_or(0, |s| u32::try_from(s.restart_count).unwrap_or(0) + 1)
    }

    fn ephemeral(&mut self, sandbox: &str) {
        for spec in naming::ephemeral_containers(self.pod) {
            if self.observed.latest(&spec.name).is_none() {
                self.start(&spec, None, sandbox);
            }
        }
    }

    fn probes(&mut self) {
        let pod = self.pod;
        for spec in naming::init_containers(pod).iter().chain(naming::main_containers(pod)) {
            let Some(container) = self.observed.latest(&spec.name).filter(|c| c.running()).cloned() else {
                continue;
            };
            let Some(state) = self.memory.probes.get(&spec.name).filter(|p| p.container_id == container.id)
            else {
                continue;
            };
            if self.memory.in_flight.contains_key(&Op::Stop(container.id.clone())) {
                continue;
            }
            let began = container.started.unwrap_or(container.created);
            for kind in Kind::ALL {
                match state.next_due(spec, kind, began) {
                    Some(at) if at <= self.now => {
                        let (name, container_id) = (spec.name.clone(), container.id.clone());
                        self.push(Action::Probe { name, container_id, kind });
                    }
                    Some(at) => self.wake_at(at),
                    None => {}
                }
            }
        }
    }

    /// Keeps the newest dead container of each name (for logs and lastState) and one before it.
    fn collect_dead(&mut self) {
        let mut seen: std::collections::BTreeMap<&str, u32> = std::collections::BTreeMap::new();
        let mut old = Vec::new();
        for container in &self.observed.containers {
            let count = seen.entry(container.name.as_str()).or_insert(0);
            *count += 1;
            if *count > 2 && !live(container.phase) {
                old.push(container.id.clone());
            }
        }
        for id in old {
            self.push(Action::RemoveContainer { id });
        }
    }
}

fn live(phase: ContainerPhase) -> bool {
    matches!(phase, ContainerPhase::Running | ContainerPhase::Unknown)
}

fn is_start(action: &Action) -> bool {
    matches!(action, Action::StartContainer { .. })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
