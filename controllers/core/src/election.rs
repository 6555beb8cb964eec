//! Leader election over a coordination Lease, without its clock and its requests.
//!
//! A holder is dead when its record has not changed for `lease_duration` on *our* clock. A leader
//! acts only until `renew_deadline` after it *began* its last successful renewal; that is shorter
//! than the lease, so it has stopped before anybody can take over (C13). A leader that stops
//! empties the record, so that another takes over at once.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

#[derive(Clone, Debug)]
pub struct Timing {
    pub lease_duration: SignedDuration,
    pub renew_deadline: SignedDuration,
    pub retry_period: SignedDuration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            lease_duration: SignedDuration::from_secs(15),
            renew_deadline: SignedDuration::from_secs(10),
            retry_period: SignedDuration::from_secs(2),
        }
    }
}

/// What to do about the Lease just read.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Create it, with us as holder.
    Create(LeaseSpec),
    /// Replace its spec, under the resourceVersion read.
    Update(LeaseSpec),
    /// Somebody else holds it.
    Wait,
}

/// One candidate's memory.
#[derive(Clone, Debug)]
pub struct Election {
    identity: String,
    timing: Timing,
    observed: Option<(LeaseSpec, Timestamp)>,
    acting_until: Option<Timestamp>,
}

impl Election {
    pub fn new(identity: &str, timing: Timing) -> Election {
        assert!(
            timing.renew_deadline < timing.lease_duration,
            "a leader must stop before its lease can be taken"
        );
        Election { identity: identity.to_owned(), timing, observed: None, acting_until: None }
    }

    /// Decides on the Lease as just read (none: there is none).
    pub fn next(&mut self, lease: Option<&Lease>, now: Timestamp) -> Step {
        let Some(lease) = lease else { return Step::Create(self.record(None, now)) };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder == self.identity || holder.is_empty() {
            return Step::Update(self.record(Some(&spec), now));
        }
        if self.observed.as_ref().is_none_or(|(seen, _)| *seen != spec) {
            self.observed = Some((spec.clone(), now));
        }
        let since = self.observed.as_ref().map_or(now, |(_, at)| *at);
        let seconds = spec
            .lease_duration_seconds
            .map_or(self.timing.lease_duration, |s| SignedDuration::from_secs(s.into()));
        if now.duration_since(since) < seconds {
            Step::Wait
        } else {
            Step::Update(self.record(Some(&spec), now))
        }
    }

    /// Our write went through; `began` is when it was sent.
    pub fn renewed(&mut self, began: Timestamp) {
        self.acting_until = Some(began + self.timing.renew_deadline);
        #[cfg(feature = "planted")]
        if keelson_plant::is(31) {
            self.acting_until = Some(began + self.timing.lease_duration + self.timing.retry_period);
        }
        self.observed = None;
    }

    /// Whether this candidate may act now.
    pub fn leads(&self, now: Timestamp) -> bool {
        self.acting_until.is_some_and(|until| now < until)
    }

    /// Until when this candidate may act without another renewal.
    pub fn acting_until(&self) -> Option<Timestamp> {
        self.acting_until
    }

    /// Stops leading; the record to write so that another may lead at once.
    pub fn release(&mut self, spec: &LeaseSpec, now: Timestamp) -> LeaseSpec {
        self.acting_until = None;
        LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            renew_time: Some(MicroTime(now)),
            acquire_time: Some(MicroTime(now)),
            ..spec.clone()
        }
    }

    fn record(&self, old: Option<&LeaseSpec>, now: Timestamp) -> LeaseSpec {
        let kept = old.filter(|o| o.holder_identity.as_deref() == Some(&self.identity));
        let transitions =
            old.and_then(|o| o.lease_transitions).unwrap_or(0) + i32::from(old.is_some() && kept.is_none());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(self.timing.lease_duration.as_secs() as i32),
            acquire_time: kept.and_then(|o| o.acquire_time.clone()).or(Some(MicroTime(now))),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(transitions),
            preferred_holder: None,
            strategy: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn lease(spec: LeaseSpec) -> Lease {
        Lease { spec: Some(spec), ..Default::default() }
    }

    fn taken(step: Step) -> LeaseSpec {
        match step {
            Step::Create(spec) | Step::Update(spec) => spec,
            Step::Wait => panic!("expected to take the lease"),
        }
    }

    #[test]
    fn a_silent_holder_is_replaced_only_after_it_stopped_acting() {
        let (mut a, mut b) = (Election::new("a", Timing::default()), Election::new("b", Timing::default()));
        let record = lease(taken(a.next(None, at(0))));
        a.renewed(at(0));
        assert_eq!(b.next(Some(&record), at(1)), Step::Wait);
        for second in 1..30 {
            let step = b.next(Some(&record), at(second));
            if step != Step::Wait {
                assert!(!a.leads(at(second)), "both would act at {second}");
                assert_eq!(taken(step).lease_transitions, Some(1));
                assert_eq!(second, 16);
                return;
            }
        }
        panic!("never taken over");
    }

    #[test]
    fn a_renewing_holder_keeps_it_and_a_released_one_is_free_at_once() {
        let (mut a, mut b) = (Election::new("a", Timing::default()), Election::new("b", Timing::default()));
        let mut record = taken(a.next(None, at(0)));
        for second in (0..60).step_by(2) {
            assert_eq!(b.next(Some(&lease(record.clone())), at(second)), Step::Wait);
            record = taken(a.next(Some(&lease(record.clone())), at(second)));
            a.renewed(at(second));
            assert_eq!(record.lease_transitions, Some(0));
        }
        let released = a.release(&record, at(60));
        assert!(!a.leads(at(60)));
        assert_eq!(taken(b.next(Some(&lease(released)), at(60))).holder_identity.as_deref(), Some("b"));
    }
}
