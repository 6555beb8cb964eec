//! What the agent remembers about one pod between steps, and how actions in flight and their outcomes change it.
//!
//! Order: the shell calls `refresh` with what it observed, asks `plan`, calls `begin` for every action it starts and `finish`
//! when it ends. The runtime stays the truth about containers; this holds only what the runtime cannot say: back-off,
//! failures to start, probe verdicts, whether volumes are mounted, why the pod is ending.
//! Hazard: `ending` is one-way. Once a pod ends, nothing of it may start again (C16), also after a restart of the agent.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::backoff::{self, Backoff};
use super::naming;
use super::observed::Observed;
use super::plan::{self, Action, Op};
use super::probe::{self, ContainerProbes};

/// Retry of a failed preparation (volumes) or container configuration: a missing ConfigMap may appear any moment.
pub const CONFIG_RETRY: SignedDuration = SignedDuration::from_secs(5);

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Prepared {
    #[default]
    Pending,
    Ready,
    Failed {
        message: String,
        retry: Timestamp,
    },
}

/// Why a pod must stop running for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndReason {
    /// Its containers are done by its restart policy.
    Completed,
    DeadlineExceeded,
    Evicted,
    /// The node cannot take it; nothing was ever started.
    Rejected,
    /// The API marks it for deletion.
    Deleted,
    /// The API does not have it any more (or a static pod's file is gone).
    Removed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ending {
    pub reason: EndReason,
    /// The short reason for `status.reason`, empty when the API shows none.
    pub label: String,
    pub message: String,
    pub since: Timestamp,
    /// Seconds from `since` until the kill.
    pub grace: i64,
}

impl Ending {
    /// The pod leaves the node altogether, with its folders and logs.
    pub fn erases(&self) -> bool {
        matches!(self.reason, EndReason::Deleted | EndReason::Removed)
    }

    pub fn deadline(&self) -> Timestamp {
        self.since.saturating_add(SignedDuration::from_secs(self.grace.max(0))).unwrap_or(Timestamp::MAX)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    Pull,
    Config,
    Create,
}

/// The last attempt to start a container did not get as far as a container.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StartFailure {
    pub kind: FailureKind,
    pub reason: String,
    pub message: String,
    pub at: Timestamp,
    pub retry: Timestamp,
}

#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub prepared: Prepared,
    pub sandbox_failure: Option<(String, Timestamp)>,
    pub failures: BTreeMap<String, StartFailure>,
    /// Actions under way, with the time by which a stop will have killed (others: when they began).
    pub in_flight: BTreeMap<Op, Timestamp>,
    pub restarts: BTreeMap<String, Backoff>,
    pub pulls: BTreeMap<String, Backoff>,
    pub probes: BTreeMap<String, ContainerProbes>,
    pub stopped_sandboxes: BTreeSet<String>,
    pub ending: Option<Ending>,
    pub released: bool,
    pub erased: bool,
    pub confirmed: bool,
    /// Errors of clean-up steps: retried not before this time.
    pub hold: BTreeMap<Op, Timestamp>,
    /// The API's status when this agent met the pod, for what the runtime forgot.
    pub inherited: PodStatus,
}

/// How an action ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// A container was made and started.
    Started,
    Failed(String),
    StartFailed {
        kind: FailureKind,
        reason: String,
        message: String,
    },
    Probed {
        container_id: String,
        ok: bool,
    },
}

impl Memory {
    /// A pod met for the first time by this agent process.
    pub fn adopt(pod: &Pod) -> Memory {
        let inherited = pod.status.clone().unwrap_or_default();
        let mut memory = Memory { inherited, ..Memory::default() };
        let statuses = memory.inherited.container_statuses.iter().flatten();
        for status in statuses.chain(memory.inherited.init_container_statuses.iter().flatten()) {
            let Some(id) = status.container_id.as_deref().and_then(|id| id.split("://").nth(1)) else {
                continue;
            };
            let probes = ContainerProbes::adopted(id, status.started.unwrap_or(false), status.ready);
            memory.probes.insert(status.name.clone(), probes);
        }
        memory
    }

    /// Whether the API already showed this pod as over when the agent met it.
    fn inherited_terminal(&self) -> bool {
        matches!(self.inherited.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// Takes the newest spec and observation in: deletion, deadline, probes of new incarnations.
    pub fn refresh(&mut self, pod: &Pod, observed: &Observed, now: Timestamp) {
        if self.ending.is_none() && self.inherited_terminal() {
            let label = self.inherited.reason.clone().unwrap_or_default();
            let message = self.inherited.message.clone().unwrap_or_default();
            self.end(EndReason::Completed, &label, &message, 0, now);
        }
        if pod.metadata.deletion_timestamp.is_some() && !naming::is_static(pod) {
            let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(30).max(0);
            self.end(EndReason::Deleted, "", "", grace, now);
        }
        if let Some(limit) = pod.spec.as_ref().and_then(|s| s.active_deadline_seconds)
            && let Some(deadline) = self.start_deadline(pod, limit)
            && now >= deadline
            && self.ending.is_none()
        {
            let grace = grace_period(pod);
            let message = "Pod was active on the node longer than the specified deadline";
            self.end(EndReason::DeadlineExceeded, "DeadlineExceeded", message, grace, now);
        }
        if self.ending.is_none()
            && self.starting().is_none()
            && plan::progress(pod, observed) != plan::Progress::Running
        {
            self.end(EndReason::Completed, "", "", 0, now);
        }
        for container in &observed.containers {
            let newest = observed.latest(&container.name).is_some_and(|c| c.id == container.id);
            if newest && container.running() {
                let state = probe::current(self.probes.get(&container.name), container);
                self.probes.insert(container.name.clone(), state);
                self.failures.remove(&container.name);
            }
        }
        if observed.ready_sandbox().is_some() {
            self.sandbox_failure = None;
        }
    }

    /// When the pod's active deadline falls, once it has a start time.
    pub fn start_deadline(&self, pod: &Pod, limit: i64) -> Option<Timestamp> {
        let known = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
        let start = known.or(self.inherited.start_time.as_ref())?;
        start.0.saturating_add(SignedDuration::from_secs(limit)).ok()
    }

    /// Marks the pod as ending. A stronger reason (deletion) or a shorter remaining grace replaces what is there.
    pub fn end(&mut self, reason: EndReason, label: &str, message: &str, grace: i64, now: Timestamp) {
        let next = Ending { reason, label: label.into(), message: message.into(), since: now, grace };
        match &mut self.ending {
            None => self.ending = Some(next),
            Some(current) if current.erases() => {
                if reason == EndReason::Removed && current.reason == EndReason::Deleted {
                    current.reason = EndReason::Removed;
                }
                if next.grace < current.grace {
                    current.grace = next.grace;
                    current.since = if next.grace == 0 { now } else { current.since };
                }
            }
            Some(current) => {
                if next.erases() {
                    current.reason = reason;
                    current.grace = grace;
                    current.since = now;
                }
            }
        }
    }

    pub fn begin(&mut self, action: &Action, observed: &Observed, now: Timestamp) {
        let grace = if let Action::StopContainer { grace, .. } = action { *grace } else { 0 };
        self.in_flight.insert(action.op(), later(now, SignedDuration::from_secs(grace)));
        self.hold.remove(&action.op());
        if let Action::StartContainer { name, .. } = action
            && let Some(last) = observed.latest(name)
        {
            let entry = backoff::raised(self.restarts.get(name), last.ended(), now);
            self.restarts.insert(name.clone(), entry);
        }
    }

    pub fn finish(&mut self, pod: &Pod, action: &Action, outcome: &Outcome, now: Timestamp) {
        let op = action.op();
        self.in_flight.remove(&op);
        if let Outcome::Failed(_) = outcome {
            self.hold.insert(op, later(now, SignedDuration::from_secs(2)));
        }
        match (action, outcome) {
            (Action::Prepare, Outcome::Done) => self.prepared = Prepared::Ready,
            (Action::Prepare, Outcome::Failed(message)) => {
                self.prepared =
                    Prepared::Failed { message: message.clone(), retry: later(now, CONFIG_RETRY) };
            }
            (Action::CreateSandbox { .. }, Outcome::Failed(message)) => {
                self.sandbox_failure = Some((message.clone(), later(now, CONFIG_RETRY)));
            }
            (Action::StartContainer { name, .. }, Outcome::Started) => {
                self.failures.remove(name);
                self.pulls.remove(name);
            }
            (Action::StartContainer { name, .. }, Outcome::StartFailed { kind, reason, message }) => {
                self.start_failed(name, *kind, reason, message, now);
            }
            (Action::StopSandbox { id }, Outcome::Done) => {
                self.stopped_sandboxes.insert(id.clone());
            }
            (Action::Release, Outcome::Done) => self.released = true,
            (Action::Erase, Outcome::Done) => self.erased = true,
            (Action::ConfirmDeletion, Outcome::Done) => self.confirmed = true,
            (Action::Probe { name, kind, .. }, Outcome::Probed { container_id, ok }) => {
                let spec = naming::find_container(pod, name);
                if let (Some(spec), Some(state)) = (spec, self.probes.get_mut(name))
                    && state.container_id == *container_id
                {
                    state.record(&spec, *kind, *ok, now);
                }
            }
            _ => {}
        }
    }

    fn start_failed(&mut self, name: &str, kind: FailureKind, reason: &str, message: &str, now: Timestamp) {
        let retry = match kind {
            FailureKind::Pull => {
                let entry = backoff::raised(self.pulls.get(name), now, now);
                self.pulls.insert(name.to_string(), entry);
                later(now, entry.delay)
            }
            FailureKind::Config => later(now, CONFIG_RETRY),
            FailureKind::Create => {
                let entry = backoff::raised(self.restarts.get(name), now, now);
                self.restarts.insert(name.to_string(), entry);
                later(now, entry.delay)
            }
        };
        let failure =
            StartFailure { kind, reason: reason.to_string(), message: message.to_string(), at: now, retry };
        self.failures.insert(name.to_string(), failure);
    }

    pub fn starting(&self) -> Option<&str> {
        self.in_flight.keys().find_map(|op| if let Op::Start(name) = op { Some(name.as_str()) } else { None })
    }

    /// Nothing of this pod is left on the node, and the API knows.
    pub fn gone(&self) -> bool {
        self.erased && self.confirmed
    }
}

pub fn later(now: Timestamp, by: SignedDuration) -> Timestamp {
    now.saturating_add(by).unwrap_or(Timestamp::MAX)
}

/// The pod's own grace for its end, in seconds.
pub fn grace_period(pod: &Pod) -> i64 {
    pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30).max(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_only_gets_shorter_and_stronger() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let mut memory = Memory::default();
        memory.end(EndReason::Evicted, "Evicted", "m", 30, at(0));
        memory.end(EndReason::Completed, "", "", 0, at(1));
        assert_eq!(memory.ending.as_ref().unwrap().reason, EndReason::Evicted);
        memory.end(EndReason::Deleted, "", "", 30, at(2));
        assert_eq!(memory.ending.as_ref().unwrap().deadline(), at(32));
        memory.end(EndReason::Deleted, "", "", 60, at(3));
        assert_eq!(memory.ending.as_ref().unwrap().deadline(), at(32));
        memory.end(EndReason::Removed, "", "", 0, at(4));
        let ending = memory.ending.unwrap();
        assert_eq!((ending.reason, ending.deadline()), (EndReason::Removed, at(4)));
        assert_eq!(ending.label, "Evicted");
    }
}
