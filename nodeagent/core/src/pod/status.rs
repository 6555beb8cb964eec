//! The API's `PodStatus` from spec, memory and observation.
//!
//! Order: container statuses → phase → conditions. Transition times and foreign conditions come from the status the API
//! has; what the runtime forgot comes from the inherited one. A terminal phase never changes again (C16).

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container as ContainerSpec, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::backoff;
use super::memory::{EndReason, FailureKind, Memory, Prepared, later};
use super::naming;
use super::observed::{Container, ContainerPhase, Observed};
use super::plan;
use super::qos;

/// What the node contributes to its pods' statuses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeFacts {
    pub host_ips: Vec<String>,
    /// E.g. `containerd`, the scheme of container ids.
    pub runtime: String,
}

/// A pull error is shown as itself this long, then as a back-off.
pub fn shown_as_error_until(at: Timestamp) -> Timestamp {
    later(at, SignedDuration::from_secs(3))
}

struct Maker<'a> {
    pod: &'a Pod,
    memory: &'a Memory,
    observed: &'a Observed,
    facts: &'a NodeFacts,
    now: Timestamp,
}

/// The status to publish now.
pub fn pod_status(
    pod: &Pod,
    memory: &Memory,
    observed: &Observed,
    facts: &NodeFacts,
    now: Timestamp,
) -> PodStatus {
    Maker { pod, memory, observed, facts, now }.make()
}

/// The pod with the status shown last, which the API may not have yet; conditions that others wrote since are kept.
/// Transition times of the next status come from it.
pub fn with_shown(pod: &Pod, shown: Option<&PodStatus>) -> Pod {
    let mut pod = pod.clone();
    let Some(shown) = shown else { return pod };
    let own = shown.conditions.as_deref().unwrap_or_default();
    let known = pod.status.take().and_then(|status| status.conditions).unwrap_or_default();
    let foreign = known.into_iter().filter(|c| !own.iter().any(|o| o.type_ == c.type_));
    let mut status = shown.clone();
    status.conditions.get_or_insert_default().extend(foreign);
    pod.status = Some(status);
    pod
}

/// Whether the API shows something else than what it was told: somebody (the node lifecycle controller, after a silence)
/// wrote since, or what is seen of the API is older than what it was told. Told again, both end well.
pub fn contradicts(api: &PodStatus, told: &PodStatus) -> bool {
    let shown = api.conditions.as_deref().unwrap_or_default();
    let other = |own: &PodCondition| {
        shown.iter().find(|c| c.type_ == own.type_).is_none_or(|c| c.status != own.status)
    };
    api.phase != told.phase || told.conditions.iter().flatten().any(other)
}

/// What the pod is waiting for, in one line, from its status; `None` when it runs or is over.
pub fn waiting_reason(status: &PodStatus) -> Option<String> {
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    all.into_iter().find_map(|c| {
        let waiting = c.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        Some(
            format!("{}: {reason} {}", c.name, waiting.message.as_deref().unwrap_or_default())
                .trim()
                .to_string(),
        )
    })
}

impl Maker<'_> {
    fn make(&self) -> PodStatus {
        let init_spec = naming::init_containers(self.pod);
        let mains_spec = naming::main_containers(self.pod);
        let init_pending = self.init_pending();
        let init: Vec<_> = init_spec.iter().map(|c| self.container(c, "PodInitializing", true)).collect();
        let idle = if init_pending { "PodInitializing" } else { "ContainerCreating" };
        let mains: Vec<_> = mains_spec.iter().map(|c| self.container(c, idle, false)).collect();
        let ephemeral: Vec<_> = naming::ephemeral_containers(self.pod)
            .iter()
            .map(|c| self.container(c, "ContainerCreating", false))
            .collect();
        let phase = self.phase(&mains, init_pending);
        let mut status = PodStatus { phase: Some(phase.clone()), ..PodStatus::default() };
        status.observed_generation = self.pod.metadata.generation;
        status.qos_class = Some(qos::class(self.pod).to_string());
        let start = self.memory.inherited.start_time.clone();
        let api_start = self.pod.status.as_ref().and_then(|s| s.start_time.clone());
        status.start_time = api_start.or(start).or(Some(Time(self.now)));
        self.addresses(&mut status);
        self.ending(&mut status);
        status.conditions = Some(self.conditions(&phase, &init, &mains));
        status.init_container_statuses = (!init.is_empty()).then_some(init);
        status.container_statuses = Some(mains);
        status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
        status
    }

    fn addresses(&self, status: &mut PodStatus) {
        let host: Vec<_> = self.facts.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect();
        status.host_ip = self.facts.host_ips.first().cloned();
        status.host_ips = (!host.is_empty()).then_some(host);
        let ips: Vec<String> = if naming::host_network(self.pod) {
            if self.observed.sandboxes.is_empty() { Vec::new() } else { self.facts.host_ips.clone() }
        } else {
            self.observed.sandboxes.first().map(|s| s.ips.clone()).unwrap_or_default()
        };
        if ips.is_empty() && self.memory.ending.is_some() {
            let known = self.pod.status.as_ref().unwrap_or(&self.memory.inherited);
            status.pod_ip = known.pod_ip.clone();
            status.pod_ips = known.pod_ips.clone();
            return;
        }
        status.pod_ip = ips.first().cloned();
        status.pod_ips = (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect());
    }

    fn ending(&self, status: &mut PodStatus) {
        let Some(ending) = &self.memory.ending else { return };
        if !ending.label.is_empty() {
            status.reason = Some(ending.label.clone());
            status.message = Some(ending.message.clone());
        }
    }

    /// Whether the init sequence is not through yet.
    fn init_pending(&self) -> bool {
        let init = naming::init_containers(self.pod);
        let begun = naming::main_containers(self.pod).iter().any(|c| self.observed.latest(&c.name).is_some());
        if init.is_empty() || begun {
            return false;
        }
        if self.observed.containers.is_empty() && self.inherited_initialized() {
            return false;
        }
        !init.iter().all(|spec| {
            self.observed.latest(&spec.name).is_some_and(|c| {
                if naming::is_sidecar(spec) { c.running() && self.is_started(spec, c) } else { c.succeeded() }
            })
        })
    }

    fn inherited_initialized(&self) -> bool {
        let over = matches!(self.memory.inherited.phase.as_deref(), Some("Succeeded" | "Failed"));
        let conditions = self.memory.inherited.conditions.iter().flatten();
        over && conditions.into_iter().any(|c| c.type_ == "Initialized" && c.status == "True")
    }

    fn inherited(&self, name: &str) -> Option<&ContainerStatus> {
        let inherited = &self.memory.inherited;
        let lists = inherited.container_statuses.iter().chain(&inherited.init_container_statuses);
        lists.chain(&inherited.ephemeral_container_statuses).flatten().find(|s| s.name == name)
    }

    fn is_started(&self, spec: &ContainerSpec, container: &Container) -> bool {
        let probes = self.memory.probes.get(&spec.name).filter(|p| p.container_id == container.id);
        self.memory.starting() != Some(&spec.name)
            && probes.map_or(spec.startup_probe.is_none(), |p| p.is_started(spec))
    }

    fn is_ready(&self, spec: &ContainerSpec, container: &Container) -> bool {
        let probes = self.memory.probes.get(&spec.name).filter(|p| p.container_id == container.id);
        self.is_started(spec, container)
            && probes.map_or(spec.readiness_probe.is_none(), |p| p.is_ready(spec))
    }

    fn container(&self, spec: &ContainerSpec, idle: &str, init: bool) -> ContainerStatus {
        let latest = self.observed.latest(&spec.name);
        let mut status = ContainerStatus {
            name: spec.name.clone(),
            image: spec.image.clone().unwrap_or_default(),
            started: Some(false),
            ..ContainerStatus::default()
        };
        match latest {
            Some(c) => self.fill_from_runtime(spec, c, init, &mut status),
            None => self.fill_from_inherited(spec, idle, &mut status),
        }
        if !latest.is_some_and(Container::running) {
            self.waiting(spec, latest, &mut status);
        }
        status.allocated_resources = spec.resources.as_ref().and_then(|r| r.requests.clone());
        status.resources = spec.resources.clone().filter(|r| r.requests.is_some() || r.limits.is_some());
        status
    }

    fn fill_from_runtime(
        &self,
        spec: &ContainerSpec,
        c: &Container,
        init: bool,
        status: &mut ContainerStatus,
    ) {
        status.restart_count = i32::try_from(c.attempt).unwrap_or(i32::MAX);
        status.container_id = Some(self.id(c));
        status.image_id = c.image_id.clone();
        if !c.image.is_empty() {
            status.image = c.image.clone();
        }
        status.state = Some(self.state(c));
        match c.phase {
            ContainerPhase::Running => {
                status.started = Some(self.is_started(spec, c));
                status.ready = self.is_ready(spec, c);
            }
            ContainerPhase::Exited => status.ready = init && !naming::is_sidecar(spec) && c.succeeded(),
            _ => {}
        }
        status.last_state = match self.observed.previous(&spec.name) {
            Some(previous) => Some(self.state(previous)),
            None => {
                self.inherited(&spec.name).filter(|i| i.restart_count > 0).and_then(|i| i.last_state.clone())
            }
        };
    }

    /// The runtime has no container of that name: never made, or forgotten.
    fn fill_from_inherited(&self, spec: &ContainerSpec, idle: &str, status: &mut ContainerStatus) {
        status.state = Some(waiting(idle, ""));
        let Some(known) = self.inherited(&spec.name).filter(|k| k.container_id.is_some()) else { return };
        status.restart_count = known.restart_count;
        status.container_id = known.container_id.clone();
        status.image_id = known.image_id.clone();
        let ended =
            known.state.clone().filter(|s| s.terminated.is_some()).unwrap_or_else(|| ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: 137,
                    reason: Some("ContainerStatusUnknown".into()),
                    message: Some("The container could not be located when the pod was terminated".into()),
                    container_id: known.container_id.clone(),
                    ..ContainerStateTerminated::default()
                }),
                ..ContainerState::default()
            });
        if self.memory.ending.is_some() {
            status.ready = known.ready && ended.terminated.as_ref().is_some_and(|t| t.exit_code == 0);
            status.last_state = known.last_state.clone();
            status.state = Some(ended);
        } else {
            status.last_state = Some(ended);
        }
    }

    /// Overrides the state where the next step is being waited for.
    fn waiting(&self, spec: &ContainerSpec, latest: Option<&Container>, status: &mut ContainerStatus) {
        if self.memory.ending.is_some() {
            return;
        }
        let reason = if let Some(failure) = self.memory.failures.get(&spec.name) {
            let backing_off =
                failure.kind == FailureKind::Pull && shown_as_error_until(failure.at) <= self.now;
            if backing_off && failure.reason == "ErrImagePull" {
                let image = spec.image.as_deref().unwrap_or_default();
                let message =
                    format!("Back-off pulling image \"{image}\": ErrImagePull: {}", failure.message);
                waiting("ImagePullBackOff", &message)
            } else {
                waiting(&failure.reason, &failure.message)
            }
        } else if let Some(last) = latest.filter(|l| l.exited()) {
            let restarts = plan::should_restart(plan::policy(self.pod, spec), last);
            let entry = self.memory.restarts.get(&spec.name);
            match backoff::held_until(entry, last.ended(), self.now).filter(|_| restarts).and(entry) {
                Some(entry) => waiting("CrashLoopBackOff", &self.crash_loop(spec, entry.delay)),
                None => return,
            }
        } else {
            return;
        };
        if let Some(last) = latest.filter(|l| l.exited()) {
            status.last_state = Some(self.state(last));
        }
        status.state = Some(reason);
    }

    fn crash_loop(&self, spec: &ContainerSpec, delay: SignedDuration) -> String {
        let seconds = delay.as_secs();
        let shown = match (seconds / 60, seconds % 60) {
            (0, s) => format!("{s}s"),
            (m, s) => format!("{m}m{s}s"),
        };
        format!(
            "back-off {shown} restarting failed container={} pod={}_{}({})",
            spec.name,
            naming::name(self.pod),
            naming::namespace(self.pod),
            naming::uid(self.pod)
        )
    }

    fn id(&self, container: &Container) -> String {
        format!("{}://{}", self.facts.runtime, container.id)
    }

    fn state(&self, c: &Container) -> ContainerState {
        let mut state = ContainerState::default();
        match c.phase {
            ContainerPhase::Running => {
                state.running = Some(ContainerStateRunning { started_at: c.started.map(Time) });
            }
            ContainerPhase::Exited | ContainerPhase::Unknown => {
                let unknown = c.phase == ContainerPhase::Unknown;
                let fallback = if c.exit_code == 0 { "Completed" } else { "Error" };
                let reason = if unknown { "ContainerStatusUnknown" } else { c.reason.as_str() };
                let reason = if reason.is_empty() { fallback } else { reason };
                state.terminated = Some(ContainerStateTerminated {
                    container_id: Some(self.id(c)),
                    exit_code: if unknown { 137 } else { c.exit_code },
                    reason: Some(reason.to_string()),
                    message: (!c.message.is_empty()).then(|| c.message.clone()),
                    started_at: c.started.map(Time),
                    finished_at: c.finished.map(Time),
                    signal: None,
                });
            }
            ContainerPhase::Created => state.waiting = waiting("ContainerCreating", "").waiting,
        }
        state
    }

    fn phase(&self, mains: &[ContainerStatus], init_pending: bool) -> String {
        let known = self.pod.status.as_ref().and_then(|s| s.phase.as_deref());
        for terminal in ["Succeeded", "Failed"] {
            if known == Some(terminal) || self.memory.inherited.phase.as_deref() == Some(terminal) {
                return terminal.into();
            }
        }
        let stopped = self.observed.stopped() && self.memory.starting().is_none();
        if let Some(ending) = &self.memory.ending {
            match ending.reason {
                EndReason::Rejected => return "Failed".into(),
                EndReason::Evicted | EndReason::DeadlineExceeded if stopped => return "Failed".into(),
                EndReason::Completed
                    if plan::progress(self.pod, self.observed) == plan::Progress::Succeeded =>
                {
                    return "Succeeded".into();
                }
                EndReason::Completed => return "Failed".into(),
                EndReason::Deleted | EndReason::Removed if stopped && !ending.label.is_empty() => {
                    return "Failed".into();
                }
                EndReason::Deleted | EndReason::Removed if stopped => {
                    let all_ok = !mains.is_empty() && mains.iter().all(|c| exit_code(c) == Some(0));
                    let ran = mains.iter().any(|c| exit_code(c).is_some());
                    return if all_ok {
                        "Succeeded"
                    } else if ran {
                        "Failed"
                    } else {
                        "Pending"
                    }
                    .into();
                }
                _ => {}
            }
        }
        if init_pending {
            // The planner's own word: a sidecar that was killed with its sandbox ends nothing.
            let failed = plan::progress(self.pod, self.observed) == plan::Progress::Failed;
            return if failed { "Failed" } else { "Pending" }.into();
        }
        if mains.iter().any(is_waiting_first) {
            return "Pending".into();
        }
        if mains.is_empty() { "Pending".into() } else { "Running".into() }
    }

    fn conditions(
        &self,
        phase: &str,
        init: &[ContainerStatus],
        mains: &[ContainerStatus],
    ) -> Vec<PodCondition> {
        let over = matches!(phase, "Succeeded" | "Failed");
        let sandbox = self.observed.ready_sandbox();
        let network = sandbox.is_some_and(|s| naming::host_network(self.pod) || !s.ips.is_empty());
        let initialized = self.initialized(phase, init);
        let containers_ready = self.containers_ready(phase, init, mains);
        let ready = self.ready(&containers_ready);
        let mut list = vec![
            self.condition("PodReadyToStartContainers", network, None),
            self.condition("Initialized", initialized.is_none(), initialized),
            self.condition("Ready", ready.is_none(), ready),
            self.condition("ContainersReady", containers_ready.is_none(), containers_ready),
            self.condition("PodScheduled", true, None),
        ];
        if phase == "Succeeded" {
            for condition in &mut list {
                if condition.type_ == "Initialized" {
                    condition.reason = Some("PodCompleted".into());
                }
            }
        }
        debug_assert!(!over || list.iter().all(|c| c.type_ != "Ready" || c.status == "False"));
        list
    }

    fn initialized(&self, phase: &str, init: &[ContainerStatus]) -> Option<(String, String)> {
        if phase == "Succeeded" || !self.init_pending() {
            return None;
        }
        let specs = naming::init_containers(self.pod);
        let incomplete: Vec<&str> = specs
            .iter()
            .zip(init)
            .filter(
                |(spec, status)| {
                    if naming::is_sidecar(spec) { status.started != Some(true) } else { !status.ready }
                },
            )
            .map(|(spec, _)| spec.name.as_str())
            .collect();
        let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
        Some(("ContainersNotInitialized".into(), message))
    }

    fn containers_ready(
        &self,
        phase: &str,
        init: &[ContainerStatus],
        mains: &[ContainerStatus],
    ) -> Option<(String, String)> {
        match phase {
            "Succeeded" => return Some(("PodCompleted".into(), String::new())),
            "Failed" => return Some(("PodFailed".into(), String::new())),
            _ => {}
        }
        let sidecars =
            naming::init_containers(self.pod).iter().zip(init).filter(|(s, _)| naming::is_sidecar(s));
        let all = sidecars.map(|(_, status)| status).chain(mains);
        let unready: Vec<&str> = all.filter(|c| !c.ready).map(|c| c.name.as_str()).collect();
        if unready.is_empty() {
            return None;
        }
        Some((
            "ContainersNotReady".into(),
            format!("containers with unready status: [{}]", unready.join(" ")),
        ))
    }

    fn ready(&self, containers_ready: &Option<(String, String)>) -> Option<(String, String)> {
        if containers_ready.is_some() {
            return containers_ready.clone();
        }
        let gates = self.pod.spec.as_ref().and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
        let known = self.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let open: Vec<String> = gates
            .iter()
            .filter(|gate| !known.iter().any(|c| c.type_ == gate.condition_type && c.status == "True"))
            .map(|gate| {
                format!(
                    "corresponding condition of pod readiness gate \"{}\" is not \"True\".",
                    gate.condition_type
                )
            })
            .collect();
        if open.is_empty() { None } else { Some(("ReadinessGatesNotReady".into(), open.join(", "))) }
    }

    fn condition(&self, kind: &str, ok: bool, why: Option<(String, String)>) -> PodCondition {
        let wanted = if ok { "True" } else { "False" };
        let known = self.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let known =
            known.iter().chain(self.memory.inherited.conditions.iter().flatten()).find(|c| c.type_ == kind);
        let since = known.filter(|c| c.status == wanted).and_then(|c| c.last_transition_time.clone());
        let (reason, message) = why.unwrap_or_default();
        PodCondition {
            type_: kind.into(),
            status: wanted.into(),
            reason: (!reason.is_empty()).then_some(reason),
            message: (!message.is_empty()).then_some(message),
            last_transition_time: Some(since.unwrap_or(Time(self.now))),
            observed_generation: self.pod.metadata.generation,
            ..PodCondition::default()
        }
    }
}

/// The message of a failed preparation or sandbox, for events.
pub fn blocked_message(memory: &Memory) -> Option<&str> {
    match (&memory.prepared, &memory.sandbox_failure) {
        (Prepared::Failed { message, .. }, _) => Some(message),
        (_, Some((message, _))) => Some(message),
        _ => None,
    }
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_string()),
            message: (!message.is_empty()).then(|| message.to_string()),
        }),
        ..ContainerState::default()
    }
}

fn exit_code(status: &ContainerStatus) -> Option<i32> {
    Some(status.state.as_ref()?.terminated.as_ref()?.exit_code)
}

/// Waits without ever having run.
fn is_waiting_first(status: &ContainerStatus) -> bool {
    let waits = status.state.as_ref().is_some_and(|s| s.waiting.is_some());
    waits && status.last_state.as_ref().is_none_or(|s| s.terminated.is_none())
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
