//! A Deployment's status: counts, Available, Progressing with its deadline, ReplicaFailure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::sets::Sets;
use super::{fence, replicas};
use crate::replicaset::whole_seconds;
use crate::{Object, View};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";

/// The status that this view of the sets calls for.
pub fn next(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    sets: &Sets,
    _view: &View,
    now: Timestamp,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = counts(deployment, spec, sets, &old);
    let now = whole_seconds(now);
    let mut conditions = Conditions { list: old.conditions.clone().unwrap_or_default(), now };
    let (_, unavailable) = fence(spec);
    match status.available_replicas.unwrap_or(0) >= replicas(spec) - unavailable {
        true => conditions.set(
            AVAILABLE,
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        ),
        false => conditions.set(
            AVAILABLE,
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        ),
    }
    progress(deployment, spec, sets, &old, &status, &mut conditions);
    match failure(sets) {
        Some((reason, message)) => conditions.set(REPLICA_FAILURE, "True", &reason, &message),
        None => conditions.list.retain(|c| c.type_ != REPLICA_FAILURE),
    }
    status.conditions = (!conditions.list.is_empty()).then_some(conditions.list);
    status
}

fn counts(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    sets: &Sets,
    old: &DeploymentStatus,
) -> DeploymentStatus {
    let sum = |f: &dyn Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| {
        sets.all().filter_map(|s| s.object.status.as_ref()).map(f).sum::<i32>()
    };
    let positive = |n: i32| (n > 0).then_some(n);
    let available = sum(&|s| s.available_replicas.unwrap_or(0));
    let updated = sets.new.as_ref().and_then(|s| s.object.status.as_ref()).map_or(0, |s| s.replicas);
    let total: i32 = sets.all().map(|s| s.size()).sum();
    let collisions = old.collision_count.unwrap_or(0) + i32::from(sets.collided);
    let _ = spec;
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: positive(sum(&|s| s.replicas)),
        updated_replicas: positive(updated),
        ready_replicas: positive(sum(&|s| s.ready_replicas.unwrap_or(0))),
        available_replicas: positive(available),
        unavailable_replicas: positive(total - available),
        terminating_replicas: Some(sum(&|s| s.terminating_replicas.unwrap_or(0))),
        collision_count: positive(collisions).or(old.collision_count),
        conditions: None,
    }
}

/// Whether every wanted pod is of the new template and available, and no old one is left.
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let want = deployment.spec.as_ref().map_or(0, replicas);
    status.updated_replicas.unwrap_or(0) == want
        && status.replicas.unwrap_or(0) == want
        && status.available_replicas.unwrap_or(0) == want
        && status.observed_generation >= deployment.metadata.generation
}

fn progress(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    sets: &Sets,
    old: &DeploymentStatus,
    status: &DeploymentStatus,
    conditions: &mut Conditions,
) {
    let Some(deadline) = deadline(spec) else {
        return conditions.list.retain(|c| c.type_ != PROGRESSING);
    };
    let current = conditions.get(PROGRESSING).cloned();
    let reason = current.as_ref().and_then(|c| c.reason.clone()).unwrap_or_default();
    let paused = spec.paused == Some(true);
    if paused {
        if reason != "DeploymentPaused" && reason != "ProgressDeadlineExceeded" {
            conditions.set(PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused");
        }
        return;
    }
    if reason == "DeploymentPaused" {
        return conditions.set(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed");
    }
    let settled = status.replicas == status.updated_replicas && reason == "NewReplicaSetAvailable";
    if settled && is_complete(deployment, status) {
        return;
    }
    let subject = match sets.new.as_ref().map(|s| s.object.name()) {
        Some(set) => format!("ReplicaSet \"{set}\""),
        None => format!("Deployment \"{}\"", deployment.name()),
    };
    let has_new = sets.new.is_some() || sets.created.is_some();
    if is_complete(deployment, status) {
        conditions.set(
            PROGRESSING,
            "True",
            "NewReplicaSetAvailable",
            &format!("{subject} has successfully progressed."),
        );
    } else if let Some(set) = &sets.created {
        let message = format!("Created new replica set \"{}\"", set.name());
        conditions.touch(PROGRESSING, "True", "NewReplicaSetCreated", &message);
    } else if current.is_none() && has_new {
        let message = format!("Found new replica set {}", subject.trim_start_matches("ReplicaSet "));
        conditions.touch(PROGRESSING, "True", "FoundNewReplicaSet", &message);
    } else if is_progressing(old, status) || (reason == "NewReplicaSetAvailable" && !settled) {
        conditions.touch(PROGRESSING, "True", "ReplicaSetUpdated", &format!("{subject} is progressing."));
    } else if settled {
        // Pods were lost after the rollout: not the rollout's failure.
    } else if let Some(current) = current {
        let since = current.last_update_time.map_or(conditions.now, |t| t.0);
        if current.status != "False" && conditions.now >= since + deadline {
            let message = format!("{subject} has timed out progressing.");
            conditions.set(PROGRESSING, "False", "ProgressDeadlineExceeded", &message);
        }
    }
}

fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |v: Option<i32>| v.unwrap_or(0);
    let stale = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || stale(new) < stale(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn deadline(spec: &DeploymentSpec) -> Option<SignedDuration> {
    let seconds = spec.progress_deadline_seconds.unwrap_or(600);
    (seconds != i32::MAX).then(|| SignedDuration::from_secs(seconds.into()))
}

/// When the progress deadline has to be looked at again, if it may still pass.
pub fn recheck_in(
    spec: &DeploymentSpec,
    status: Option<&DeploymentStatus>,
    now: Timestamp,
) -> Option<SignedDuration> {
    let deadline = deadline(spec)?;
    let current = status?.conditions.as_ref()?.iter().find(|c| c.type_ == PROGRESSING)?;
    let over =
        matches!(current.reason.as_deref(), Some("NewReplicaSetAvailable" | "ProgressDeadlineExceeded"));
    if over || spec.paused == Some(true) {
        return None;
    }
    let since = current.last_update_time.as_ref()?.0;
    Some((deadline - now.duration_since(since)).max(SignedDuration::ZERO) + SignedDuration::from_secs(1))
}

/// The newest set's failure to make pods, else any old set's.
fn failure(sets: &Sets) -> Option<(String, String)> {
    sets.all().find_map(|set| {
        let conditions = set.object.status.as_ref()?.conditions.as_ref()?;
        let failed = conditions.iter().find(|c| c.type_ == REPLICA_FAILURE && c.status == "True")?;
        Some((failed.reason.clone().unwrap_or_default(), failed.message.clone().unwrap_or_default()))
    })
}

struct Conditions {
    list: Vec<DeploymentCondition>,
    now: Timestamp,
}

impl Conditions {
    fn get(&self, kind: &str) -> Option<&DeploymentCondition> {
        self.list.iter().find(|c| c.type_ == kind)
    }

    /// Sets a condition unless it already says so.
    fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        let same = |c: &DeploymentCondition| c.status == status && c.reason.as_deref() == Some(reason);
        if !self.get(kind).is_some_and(same) {
            self.touch(kind, status, reason, message);
        }
    }

    /// Sets a condition and its update time, even if it already says so.
    fn touch(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        let now = Some(Time(self.now));
        let kept = self.get(kind).filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        let condition = DeploymentCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_update_time: now.clone(),
            last_transition_time: kept.or(now),
        };
        match self.list.iter_mut().find(|c| c.type_ == kind) {
            Some(slot) => *slot = condition,
            None => self.list.push(condition),
        }
    }
}
