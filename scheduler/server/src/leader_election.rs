//! Leader election by a Lease: one acting leader per lease epoch (C13).
//!
//! The decision ([`decide`]) is pure. Its hazard is time: a candidate never compares its clock with the holder's; it
//! waits a whole lease duration after the record last changed *in its own view*. The holder stops acting when it could
//! not renew for `renew_deadline`, measured from before the last successful request was sent, which is shorter than
//! the lease.

use std::future::Future;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, PostParams};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::LeaderElection;

/// The lease as last seen, and when (on the own clock) it was first seen so.
#[derive(Debug, Clone)]
pub struct Sighting {
    pub spec: LeaseSpec,
    pub at: Duration,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Create the lease: there is none.
    Create,
    /// We hold it: renew.
    Renew,
    /// The holder released it or fell silent: take it over.
    TakeOver,
    /// Somebody else holds it, at least this much longer.
    Wait(Duration),
}

/// Decides for `me` at `now` on the own clock.
pub fn decide(me: &str, seen: Option<&Sighting>, own_duration: Duration, now: Duration) -> Step {
    let Some(seen) = seen else { return Step::Create };
    let holder = seen.spec.holder_identity.as_deref().unwrap_or_default();
    if holder == me {
        return Step::Renew;
    }
    if holder.is_empty() {
        return Step::TakeOver;
    }
    let seconds = seen.spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let promised = seconds.map_or(own_duration, Duration::from_secs);
    match (seen.at + promised).checked_sub(now) {
        Some(left) if !left.is_zero() => Step::Wait(left),
        _ => Step::TakeOver,
    }
}

/// The record a step writes; `None` for a step that writes nothing.
pub fn record(
    step: Step,
    me: &str,
    before: Option<&LeaseSpec>,
    duration: Duration,
    now: jiff::Timestamp,
) -> Option<LeaseSpec> {
    let now = MicroTime(now);
    let fresh = LeaseSpec {
        holder_identity: Some(me.into()),
        lease_duration_seconds: Some(duration.as_secs().max(1).min(i32::MAX as u64) as i32),
        acquire_time: Some(now.clone()),
        renew_time: Some(now),
        lease_transitions: Some(0),
        ..LeaseSpec::default()
    };
    let before = before.cloned().unwrap_or_default();
    match step {
        Step::Wait(_) => None,
        Step::Create => Some(fresh),
        Step::Renew => Some(LeaseSpec {
            acquire_time: before.acquire_time,
            lease_transitions: before.lease_transitions,
            ..fresh
        }),
        Step::TakeOver => Some(LeaseSpec {
            lease_transitions: Some(before.lease_transitions.unwrap_or(0).saturating_add(1)),
            ..fresh
        }),
    }
}

/// Campaigns until the token is cancelled; while leading runs `lead` with a token that ends with the term.
pub async fn campaign<F, L>(client: kube::Client, config: &LeaderElection, token: CancellationToken, lead: L)
where
    F: Future<Output = ()>,
    L: Fn(CancellationToken) -> F,
{
    let mut candidate = Candidate::new(client, config);
    while !token.is_cancelled() {
        if !candidate.acquire(&token).await {
            break;
        }
        info!(identity = config.identity, lease = config.name, "became leader");
        let term = token.child_token();
        let renewing = async {
            candidate.renew_until_lost(&term).await;
            term.cancel();
        };
        tokio::join!(lead(term.clone()), renewing);
        info!(identity = config.identity, lease = config.name, "stopped leading");
    }
    candidate.release().await;
}

struct Candidate<'a> {
    api: Api<Lease>,
    config: &'a LeaderElection,
    epoch: Instant,
    seen: Option<Sighting>,
    lease: Option<Lease>,
    /// When the request of the last successful renewal was sent.
    renewed: Option<Instant>,
}

impl<'a> Candidate<'a> {
    fn new(client: kube::Client, config: &'a LeaderElection) -> Candidate<'a> {
        Candidate {
            api: Api::namespaced(client, &config.namespace),
            config,
            epoch: Instant::now(),
            seen: None,
            lease: None,
            renewed: None,
        }
    }

    /// Tries until it holds the lease; false when cancelled.
    async fn acquire(&mut self, token: &CancellationToken) -> bool {
        loop {
            match self.attempt().await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => warn!(%error, lease = self.config.name, "leader election: retrying"),
            }
            // Candidates that start together must not stay in step.
            let jitter = rand::random::<f64>() * 0.2;
            let pause = self.config.retry_period.mul_f64(1.0 + jitter);
            tokio::select! { () = token.cancelled() => return false, () = tokio::time::sleep(pause) => {} }
        }
    }

    /// Renews until it cannot in time, somebody else holds the lease, or the term ends.
    async fn renew_until_lost(&mut self, term: &CancellationToken) {
        loop {
            tokio::select! {
                () = term.cancelled() => return,
                () = tokio::time::sleep(self.config.retry_period) => {}
            }
            let since = self.renewed.map_or(self.config.renew_deadline, |sent| sent.elapsed());
            let left = self.config.renew_deadline.saturating_sub(since);
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => {
                    warn!(lease = self.config.name, "lost the lease to another candidate");
                    return;
                }
                Ok(Err(error)) => warn!(%error, lease = self.config.name, "could not renew the lease"),
                Err(_) => {
                    warn!(
                        lease = self.config.name,
                        "could not renew the lease before the deadline: stop leading"
                    );
                    return;
                }
            }
        }
    }

    /// Reads, decides, writes. True when we hold the lease afterwards.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let sent = Instant::now();
        let found = self.api.get_opt(&self.config.name).await?;
        let now = self.epoch.elapsed();
        let spec = found.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        let unchanged = matches!((&self.seen, &spec), (Some(seen), Some(spec)) if seen.spec == *spec);
        if !unchanged {
            self.seen = spec.map(|spec| Sighting { spec, at: now });
        }
        self.lease = found;
        let step = decide(&self.config.identity, self.seen.as_ref(), self.config.lease_duration, now);
        let before = self.seen.as_ref().map(|seen| &seen.spec);
        let Some(spec) =
            record(step, &self.config.identity, before, self.config.lease_duration, jiff::Timestamp::now())
        else {
            return Ok(false);
        };
        match self.write(spec).await {
            Ok(()) => {
                self.renewed = Some(sent);
                Ok(true)
            }
            // Another candidate was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn write(&mut self, spec: LeaseSpec) -> Result<(), kube::Error> {
        let written = match self.lease.take() {
            Some(mut lease) => {
                lease.spec = Some(spec);
                self.api.replace(&self.config.name, &PostParams::default(), &lease).await?
            }
            None => {
                let mut lease = Lease { spec: Some(spec), ..Lease::default() };
                lease.metadata.name = Some(self.config.name.clone());
                lease.metadata.namespace = Some(self.config.namespace.clone());
                self.api.create(&PostParams::default(), &lease).await?
            }
        };
        let spec = written.spec.clone().unwrap_or_default();
        self.seen = Some(Sighting { spec, at: self.epoch.elapsed() });
        self.lease = Some(written);
        Ok(())
    }

    /// Gives the lease back, so that the next leader need not wait. Best effort.
    async fn release(&mut self) {
        let Some(mut lease) = self.lease.take() else { return };
        let Some(spec) = lease.spec.as_mut() else { return };
        if spec.holder_identity.as_deref() != Some(self.config.identity.as_str()) {
            return;
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        let params = PostParams::default();
        let released = self.api.replace(&self.config.name, &params, &lease);
        match tokio::time::timeout(Duration::from_secs(3), released).await {
            Ok(Ok(_)) => info!(lease = self.config.name, "released the lease"),
            Ok(Err(error)) => warn!(%error, lease = self.config.name, "could not release the lease"),
            Err(_) => warn!(lease = self.config.name, "could not release the lease in 3 s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn held_by(holder: &str, at: u64) -> Sighting {
        let spec = LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        };
        Sighting { spec, at: Duration::from_secs(at) }
    }

    fn step(seen: Option<&Sighting>, now: u64) -> Step {
        decide("me", seen, LEASE, Duration::from_secs(now))
    }

    #[test]
    fn a_silent_holder_is_waited_for_a_whole_lease_on_the_own_clock() {
        let seen = held_by("other", 100);
        assert_eq!(step(Some(&seen), 100), Step::Wait(LEASE));
        assert_eq!(step(Some(&seen), 114), Step::Wait(Duration::from_secs(1)));
        assert_eq!(step(Some(&seen), 115), Step::TakeOver);
    }

    #[test]
    fn absent_released_and_own_leases_are_taken_at_once() {
        assert_eq!(step(None, 0), Step::Create);
        assert_eq!(step(Some(&held_by("", 100)), 100), Step::TakeOver);
        assert_eq!(step(Some(&held_by("me", 100)), 500), Step::Renew);
    }

    #[test]
    fn only_a_change_of_holder_counts_as_a_transition() {
        let seen = held_by("other", 0);
        let now = jiff::Timestamp::UNIX_EPOCH;
        let taken = record(Step::TakeOver, "me", Some(&seen.spec), LEASE, now).expect("a record");
        assert_eq!(taken.lease_transitions, Some(4));
        let renewed = record(Step::Renew, "me", Some(&taken), LEASE, now).expect("a record");
        assert_eq!((renewed.lease_transitions, renewed.holder_identity.as_deref()), (Some(4), Some("me")));
        assert_eq!(record(Step::Wait(LEASE), "me", Some(&taken), LEASE, now), None);
    }
}
