//! One pod on a simulated node.
//!
//! Order of a turn: containers whose time is over end, stops that are due are done, then plan and carry out until the plan
//! is empty. Deleting the pod in the API is the only action that is left to the shell; it stays in flight until `deleted`.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as Spec, ContainerStatus, Pod, PodStatus};

use super::{DURATION, EXIT_CODE, RUNTIME};
use crate::pod::admission::Refusal;
use crate::pod::memory::{EndReason, Memory, Outcome, grace_period, later};
use crate::pod::naming;
use crate::pod::observed::{Container, ContainerPhase, Observed, Sandbox};
use crate::pod::plan::{self, Action};
use crate::pod::status::{self, NodeFacts};

/// How long an init container runs.
const INIT: SignedDuration = SignedDuration::from_secs(1);
/// How long a container runs that its restart policy lets end.
const FINITE: SignedDuration = SignedDuration::from_secs(5);
/// How long a container takes to stop, if its grace is not shorter.
const STOP: SignedDuration = SignedDuration::from_secs(1);
/// Rounds of planning within one turn; a plan settles in far fewer.
const ROUNDS: usize = 64;

/// What a turn found out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turn {
    /// To be deleted in the API now, after this status.
    pub delete: bool,
    /// What happened, for Events: (container, reason, message).
    pub events: Vec<(Option<String>, &'static str, String)>,
    pub wake: Option<Timestamp>,
}

#[derive(Clone, Debug)]
pub struct Simulated {
    memory: Memory,
    observed: Observed,
    /// Stops under way, by container, with the time at which they are done.
    stopping: BTreeMap<String, (Action, Timestamp)>,
    shown: Option<PodStatus>,
}

impl Simulated {
    /// A pod met for the first time by this process. What the API shows as running goes on running.
    pub fn adopt(pod: &Pod) -> Simulated {
        let mut simulated = Simulated {
            memory: Memory::adopt(pod),
            observed: Observed::default(),
            stopping: BTreeMap::new(),
            shown: None,
        };
        let Some(known) = pod.status.as_ref().filter(|s| !over(s)) else { return simulated };
        let sandbox = format!("{}-0", naming::uid(pod));
        let all = known.init_container_statuses.iter().chain(&known.container_statuses).flatten();
        simulated.observed.containers = all.filter_map(|shown| remembered(pod, shown, &sandbox)).collect();
        if !simulated.observed.containers.is_empty() {
            let ips = known.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
            let created = known.start_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
            simulated.observed.sandboxes =
                vec![Sandbox { id: sandbox, attempt: 0, ready: true, created, ips }];
        }
        simulated.observed = simulated.observed.sorted();
        simulated
    }

    /// The status as of the last turn.
    pub fn shown(&self) -> Option<&PodStatus> {
        self.shown.as_ref()
    }

    /// Nothing of the pod is left, here and in the API.
    pub fn gone(&self) -> bool {
        self.memory.gone()
    }

    /// Whether the pod needs an address now or later.
    pub fn wants_address(&self) -> bool {
        self.memory.ending.is_none() || self.observed.sandboxes.iter().any(|s| s.ready)
    }

    /// How the API answered the deletion that a turn asked for.
    pub fn deleted(&mut self, pod: &Pod, answer: Result<(), String>, now: Timestamp) {
        let outcome = answer.map_or_else(Outcome::Failed, |()| Outcome::Done);
        self.memory.finish(pod, &Action::ConfirmDeletion, &outcome, now);
    }

    /// The node does not take the pod.
    pub fn refuse(&mut self, refusal: &Refusal, now: Timestamp) {
        self.memory.end(EndReason::Rejected, &refusal.reason, &refusal.message, 0, now);
    }

    /// Everything that is due. `removed`: the API does not have the pod any more. `address`: for its sandbox, `None` when
    /// the node has none left; a host-network pod needs none.
    pub fn turn(
        &mut self,
        pod: &Pod,
        removed: bool,
        address: Option<&str>,
        facts: &NodeFacts,
        now: Timestamp,
    ) -> Turn {
        let mut turn = Turn::default();
        if removed {
            let forced = pod.metadata.deletion_timestamp.as_ref();
            let grace = forced.and(pod.metadata.deletion_grace_period_seconds);
            self.memory.end(EndReason::Removed, "", "", grace.unwrap_or_else(|| grace_period(pod)), now);
        }
        for _ in 0..ROUNDS {
            self.pass(pod, now);
            self.memory.refresh(pod, &self.observed, now);
            let planned = plan::plan(pod, &self.memory, &self.observed, now);
            turn.wake = planned.wake;
            if planned.actions.is_empty() {
                break;
            }
            for action in planned.actions {
                self.memory.begin(&action, &self.observed, now);
                if let Some(outcome) = self.carry_out(pod, removed, address, &action, now, &mut turn) {
                    self.memory.finish(pod, &action, &outcome, now);
                }
            }
            self.observed = std::mem::take(&mut self.observed).sorted();
        }
        let dues = self.dues(pod);
        turn.wake = turn.wake.into_iter().chain(dues).min();
        let erasing = self.memory.ending.as_ref().is_some_and(|e| e.erases());
        if !(self.memory.released && erasing) {
            let seen = status::with_shown(pod, self.shown.as_ref());
            self.shown = Some(status::pod_status(&seen, &self.memory, &self.observed, facts, now));
        }
        turn
    }

    /// Time passes: stops that are due are done, containers whose time is over end.
    fn pass(&mut self, pod: &Pod, now: Timestamp) {
        let due: Vec<String> =
            self.stopping.iter().filter(|(_, (_, at))| *at <= now).map(|(id, _)| id.clone()).collect();
        for id in due {
            let Some((action, at)) = self.stopping.remove(&id) else { continue };
            if let Some(container) = self.observed.containers.iter_mut().find(|c| c.id == id && c.running()) {
                end(container, 0, at);
            }
            self.memory.finish(pod, &action, &Outcome::Done, now);
        }
        for container in self.observed.containers.iter_mut().filter(|c| c.running()) {
            if let Some((at, code)) = natural_end(pod, container).filter(|(at, _)| *at <= now) {
                end(container, code, at);
            }
        }
    }

    /// When something ends without being asked about.
    fn dues(&self, pod: &Pod) -> Vec<Timestamp> {
        let stops = self.stopping.values().map(|(_, at)| *at);
        let running = self.observed.containers.iter().filter(|c| c.running());
        stops.chain(running.filter_map(|c| natural_end(pod, c)).map(|(at, _)| at)).collect()
    }

    /// `None`: the action stays in flight.
    fn carry_out(
        &mut self,
        pod: &Pod,
        removed: bool,
        address: Option<&str>,
        action: &Action,
        now: Timestamp,
        turn: &mut Turn,
    ) -> Option<Outcome> {
        match action {
            Action::Prepare | Action::Release | Action::Erase => {}
            Action::CreateSandbox { attempt } => {
                let id = format!("{}-{attempt}", naming::uid(pod));
                let ips = match (naming::host_network(pod), address) {
                    (true, _) => vec![],
                    (false, Some(ip)) => vec![ip.to_string()],
                    (false, None) => {
                        return Some(Outcome::Failed("the node's range has no free address".into()));
                    }
                };
                self.observed.sandboxes.push(Sandbox {
                    id,
                    attempt: *attempt,
                    ready: true,
                    created: now,
                    ips,
                });
                let said = "This node is simulated: the pod is shown as running, no container runs.";
                turn.events.push((None, "Simulated", said.into()));
            }
            Action::StartContainer { name, attempt, sandbox } => {
                let Some(spec) = naming::find_container(pod, name) else {
                    return Some(Outcome::Failed(format!("no container named {name}")));
                };
                self.observed.containers.push(started(pod, &spec, *attempt, sandbox, now));
                return Some(Outcome::Started);
            }
            Action::StopContainer { id, name, grace, message } => {
                let at = later(now, STOP.min(SignedDuration::from_secs(*grace)));
                // A quicker stop replaces a slower one.
                let at = self.stopping.get(id).map_or(at, |(_, before)| at.min(*before));
                self.stopping.insert(id.clone(), (action.clone(), at));
                let plain = message == "Stopping container";
                let said = if plain { format!("{message} {name}") } else { message.clone() };
                turn.events.push((Some(name.clone()), "Killing", said));
                return None;
            }
            Action::StopSandbox { id } => {
                for sandbox in self.observed.sandboxes.iter_mut().filter(|s| s.id == *id) {
                    sandbox.ready = false;
                    sandbox.ips.clear();
                }
            }
            Action::RemoveSandbox { id } => self.observed.sandboxes.retain(|s| s.id != *id),
            Action::RemoveContainer { id } => self.observed.containers.retain(|c| c.id != *id),
            Action::Probe { container_id, .. } => {
                return Some(Outcome::Probed { container_id: container_id.clone(), ok: true });
            }
            Action::ConfirmDeletion if removed => {}
            Action::ConfirmDeletion => {
                turn.delete = true;
                return None;
            }
        }
        Some(Outcome::Done)
    }
}

fn over(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

fn started(pod: &Pod, spec: &Spec, attempt: u32, sandbox: &str, now: Timestamp) -> Container {
    Container {
        id: format!("{}-{}-{attempt}", naming::uid(pod), spec.name),
        sandbox: sandbox.to_string(),
        name: spec.name.clone(),
        attempt,
        phase: ContainerPhase::Running,
        created: now,
        started: Some(now),
        finished: None,
        exit_code: 0,
        reason: String::new(),
        message: String::new(),
        image: spec.image.clone().unwrap_or_default(),
        image_id: String::new(),
        hash: naming::container_hash(spec),
    }
}

fn end(container: &mut Container, code: i32, at: Timestamp) {
    container.phase = ContainerPhase::Exited;
    container.exit_code = code;
    container.finished = Some(at);
    container.reason = if code == 0 { "Completed" } else { "Error" }.into();
}

/// When a running container ends by itself, and with which exit code; most never do.
fn natural_end(pod: &Pod, container: &Container) -> Option<(Timestamp, i32)> {
    let began = container.started.unwrap_or(container.created);
    if let Some(init) = naming::init_containers(pod).iter().find(|c| c.name == container.name) {
        return (!naming::is_sidecar(init)).then(|| (later(began, INIT), 0));
    }
    let main = naming::main_containers(pod).iter().find(|c| c.name == container.name)?;
    let told = naming::annotation(pod, DURATION).and_then(|text| text.trim().parse::<SignedDuration>().ok());
    let finite = (plan::policy(pod, main) != "Always").then_some(FINITE);
    let runs = told.filter(|runs| !runs.is_negative()).or(finite)?;
    let code = naming::annotation(pod, EXIT_CODE).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    Some((later(began, runs), code))
}

/// A container of an earlier process of this simulator, from what the API shows of it.
fn remembered(pod: &Pod, shown: &ContainerStatus, sandbox: &str) -> Option<Container> {
    let (scheme, _) = shown.container_id.as_deref()?.split_once("://")?;
    let spec = naming::find_container(pod, &shown.name)?;
    let attempt = u32::try_from(shown.restart_count).unwrap_or(0);
    let state = shown.state.as_ref()?;
    let waits = shown.last_state.as_ref().filter(|_| state.waiting.is_some());
    let ended = state.terminated.as_ref().or_else(|| waits?.terminated.as_ref());
    if scheme != RUNTIME {
        return None;
    }
    let time = |t: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| t.as_ref().map(|t| t.0);
    match (&state.running, ended) {
        (Some(running), _) => {
            let began = time(&running.started_at).unwrap_or(Timestamp::UNIX_EPOCH);
            Some(started(pod, &spec, attempt, sandbox, began))
        }
        (None, Some(ended)) => {
            let began = time(&ended.started_at).unwrap_or(Timestamp::UNIX_EPOCH);
            let mut container = started(pod, &spec, attempt, sandbox, began);
            end(&mut container, ended.exit_code, time(&ended.finished_at).unwrap_or(began));
            Some(container)
        }
        _ => None,
    }
}
