//! Probe bookkeeping: when a probe is due, and what a run of results means.
//!
//! Order: a startup probe, while it has not succeeded, holds back the other two. State belongs to one container id; a
//! restarted container starts afresh. A passed verdict flips only after a full run of the opposite result.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Probe};

use super::observed::Container;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Startup, Kind::Liveness, Kind::Readiness];

    /// As events and metrics spell it.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }

    pub fn of(self, spec: &ContainerSpec) -> Option<&Probe> {
        match self {
            Kind::Startup => spec.startup_probe.as_ref(),
            Kind::Liveness => spec.liveness_probe.as_ref(),
            Kind::Readiness => spec.readiness_probe.as_ref(),
        }
    }
}

/// One probe's run of equal results and the verdict it led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProbeState {
    pub last_run: Option<Timestamp>,
    pub last_ok: bool,
    pub run: u32,
    pub verdict: Option<bool>,
}

/// The probes of one container incarnation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ContainerProbes {
    pub container_id: String,
    pub startup: ProbeState,
    pub liveness: ProbeState,
    pub readiness: ProbeState,
}

impl ContainerProbes {
    pub fn new(container_id: &str) -> ContainerProbes {
        ContainerProbes { container_id: container_id.to_string(), ..ContainerProbes::default() }
    }

    /// For a container found running by a restarted agent: what the API last said of it still holds.
    pub fn adopted(container_id: &str, started: bool, ready: bool) -> ContainerProbes {
        let mut probes = ContainerProbes::new(container_id);
        probes.startup.verdict = started.then_some(true);
        probes.readiness.verdict = Some(ready);
        probes
    }

    pub fn state(&self, kind: Kind) -> &ProbeState {
        match kind {
            Kind::Startup => &self.startup,
            Kind::Liveness => &self.liveness,
            Kind::Readiness => &self.readiness,
        }
    }

    fn state_mut(&mut self, kind: Kind) -> &mut ProbeState {
        match kind {
            Kind::Startup => &mut self.startup,
            Kind::Liveness => &mut self.liveness,
            Kind::Readiness => &mut self.readiness,
        }
    }

    /// Takes one result in. True when the verdict changed.
    pub fn record(&mut self, spec: &ContainerSpec, kind: Kind, ok: bool, now: Timestamp) -> bool {
        let Some(probe) = kind.of(spec) else { return false };
        let success_needed = probe.success_threshold.unwrap_or(1).max(1) as u32;
        let failure_needed = probe.failure_threshold.unwrap_or(3).max(1) as u32;
        let state = self.state_mut(kind);
        state.run = if state.last_ok == ok { state.run.saturating_add(1) } else { 1 };
        state.last_ok = ok;
        state.last_run = Some(now);
        let needed = if ok { success_needed } else { failure_needed };
        if state.run < needed || state.verdict == Some(ok) {
            return false;
        }
        state.verdict = Some(ok);
        true
    }

    /// When this probe should next run, or `None` when it must not (absent, gated by startup, or startup is over).
    pub fn next_due(&self, spec: &ContainerSpec, kind: Kind, started: Timestamp) -> Option<Timestamp> {
        let probe = kind.of(spec)?;
        let startup_done = spec.startup_probe.is_none() || self.startup.verdict == Some(true);
        match kind {
            Kind::Startup if self.startup.verdict.is_some() => return None,
            Kind::Liveness | Kind::Readiness if !startup_done => return None,
            Kind::Liveness if self.liveness.verdict == Some(false) => return None,
            _ => {}
        }
        let seconds =
            |value: Option<i32>, default: i64| SignedDuration::from_secs(value.map_or(default, i64::from));
        let first = started.saturating_add(seconds(probe.initial_delay_seconds, 0)).ok()?;
        let Some(last) = self.state(kind).last_run else { return Some(first) };
        let period = seconds(probe.period_seconds.filter(|p| *p > 0), 10);
        Some(first.max(last.saturating_add(period).ok()?))
    }

    /// Whether the container counts as started.
    pub fn is_started(&self, spec: &ContainerSpec) -> bool {
        spec.startup_probe.is_none() || self.startup.verdict == Some(true)
    }

    /// Whether the container counts as ready, given that it runs.
    pub fn is_ready(&self, spec: &ContainerSpec) -> bool {
        self.is_started(spec) && (spec.readiness_probe.is_none() || self.readiness.verdict == Some(true))
    }

    /// The probe whose failure means this container must be replaced.
    pub fn fatal(&self, spec: &ContainerSpec) -> Option<Kind> {
        [Kind::Startup, Kind::Liveness]
            .into_iter()
            .find(|kind| kind.of(spec).is_some() && self.state(*kind).verdict == Some(false))
    }
}

/// The state for `container`, or a fresh one if what is remembered belongs to an earlier incarnation.
pub fn current(remembered: Option<&ContainerProbes>, container: &Container) -> ContainerProbes {
    match remembered {
        Some(probes) if probes.container_id == container.id => probes.clone(),
        _ => ContainerProbes::new(&container.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn spec() -> ContainerSpec {
        let probe = |failures, delay| Probe {
            failure_threshold: Some(failures),
            initial_delay_seconds: Some(delay),
            period_seconds: Some(5),
            ..Probe::default()
        };
        ContainerSpec {
            startup_probe: Some(probe(2, 0)),
            liveness_probe: Some(probe(3, 1)),
            readiness_probe: Some(probe(1, 0)),
            ..ContainerSpec::default()
        }
    }

    #[test]
    fn startup_gates_the_others_and_ends_after_success() {
        let spec = spec();
        let mut probes = ContainerProbes::new("c");
        assert_eq!(probes.next_due(&spec, Kind::Readiness, at(0)), None);
        assert!(probes.record(&spec, Kind::Startup, true, at(1)));
        assert_eq!(probes.next_due(&spec, Kind::Startup, at(0)), None);
        assert_eq!(probes.next_due(&spec, Kind::Liveness, at(0)), Some(at(1)));
        assert!(probes.is_started(&spec) && !probes.is_ready(&spec));
        assert!(probes.record(&spec, Kind::Readiness, true, at(2)));
        assert!(probes.is_ready(&spec));
        assert_eq!(probes.next_due(&spec, Kind::Readiness, at(0)), Some(at(7)));
    }

    #[test]
    fn a_verdict_needs_a_full_run_of_failures() {
        let spec = spec();
        let mut probes = ContainerProbes::new("c");
        probes.record(&spec, Kind::Startup, true, at(0));
        assert!(!probes.record(&spec, Kind::Liveness, false, at(1)));
        assert!(!probes.record(&spec, Kind::Liveness, false, at(2)));
        assert!(probes.record(&spec, Kind::Liveness, true, at(3)));
        for second in 4..6 {
            assert!(!probes.record(&spec, Kind::Liveness, false, at(second)));
        }
        assert_eq!(probes.fatal(&spec), None);
        assert!(probes.record(&spec, Kind::Liveness, false, at(6)));
        assert_eq!(probes.fatal(&spec), Some(Kind::Liveness));
    }

    #[test]
    fn failed_startup_is_fatal() {
        let spec = spec();
        let mut probes = ContainerProbes::new("c");
        probes.record(&spec, Kind::Startup, false, at(0));
        probes.record(&spec, Kind::Startup, false, at(5));
        assert_eq!(probes.fatal(&spec), Some(Kind::Startup));
    }
}
