//! Jobs that ended go after the time they name.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;

use super::{condition, is_finished};
use crate::plan::Action;
use crate::{Change, Key, Object, Plan, Precondition, Propagation, Reconciler, Target, View, Watch};

pub struct TtlAfterFinished;

impl Reconciler for TtlAfterFinished {
    fn name(&self) -> &'static str {
        "ttl-after-finished-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::of::<Job>()]
    }

    fn keys(&self, change: &Change, _: &View) -> Vec<Key> {
        change.latest::<Job>().filter(|job| is_finished(job)).map(Key::of).into_iter().collect()
    }

    fn reconcile(&self, key: &Key, view: &View, now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        let Some(job) = view.get::<Job>(key).filter(|j| is_finished(j) && !j.is_deleting()) else {
            return plan;
        };
        let Some(ttl) = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished) else { return plan };
        let ended = ["Complete", "Failed"].iter().find_map(|k| condition(job.status.as_ref(), k));
        let Some(ended) = ended.and_then(|c| c.last_transition_time.as_ref()) else { return plan };
        let left = SignedDuration::from_secs(ttl.into()) - now.duration_since(ended.0);
        if left.is_positive() {
            plan.requeue_in(left);
        } else {
            plan.actions.push(Action::Delete {
                target: Target::of(job.as_ref()),
                precondition: Precondition::unchanged(job.as_ref()),
                grace: None,
                propagation: Some(Propagation::Foreground),
            });
        }
        plan
    }
}
