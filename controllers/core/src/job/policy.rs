//! What a failed pod means for its Job, and when enough indexes have succeeded.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::Pod;

use super::{End, indexes};
use crate::Object;

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Count,
    Ignore,
    FailIndex,
    FailJob(String),
}

/// The first rule that fits a failed pod decides.
pub fn failure(spec: &JobSpec, pod: &Pod) -> Verdict {
    for (i, rule) in spec.pod_failure_policy.iter().flat_map(|p| &p.rules).enumerate() {
        let Some(what) = by_exit_code(rule, pod).or_else(|| by_condition(rule, pod)) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{what} matching FailJob rule at index {i}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn by_exit_code(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let wanted = rule.on_exit_codes.as_ref()?;
    let status = pod.status.as_ref()?;
    let all =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    for container in all.filter(|c| wanted.container_name.as_ref().is_none_or(|name| *name == c.name)) {
        let Some(code) = container.state.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code)
        else {
            continue;
        };
        let listed = wanted.values.contains(&code);
        if code != 0 && (wanted.operator == "In") == listed {
            let (name, at) = (&container.name, format!("{}/{}", pod.namespace(), pod.name()));
            return Some(format!("Container {name} for pod {at} failed with exit code {code}"));
        }
    }
    None
}

fn by_condition(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let has = |kind: &str, status: &str| {
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions.into_iter().flatten().any(|c| c.type_ == kind && c.status == status)
    };
    let mut patterns = rule.on_pod_conditions.iter().flatten();
    let found = patterns.find(|p| has(&p.type_, p.status.as_deref().unwrap_or("True")))?;
    Some(format!("Pod {}/{} has condition {}", pod.namespace(), pod.name(), found.type_))
}

/// Restarts of all containers of a pod.
pub fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    let main = status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten();
    let init = status.and_then(|s| s.init_container_statuses.as_ref()).into_iter().flatten();
    main.chain(init).map(|c| c.restart_count).sum()
}

/// Whether a rule of the success policy holds.
pub fn success(spec: &JobSpec, completed: &BTreeSet<i32>) -> Option<End> {
    for (i, rule) in spec.success_policy.iter().flat_map(|p| &p.rules).enumerate() {
        let named = rule.succeeded_indexes.as_ref().map(|text| indexes::parse(text));
        let counted = match &named {
            Some(named) => completed.intersection(named).count(),
            None => completed.len(),
        };
        let wanted = match (rule.succeeded_count, &named) {
            (Some(count), _) => usize::try_from(count).unwrap_or(0),
            (None, Some(named)) => named.len(),
            (None, None) => continue,
        };
        if counted >= wanted {
            return Some(End::complete("SuccessPolicy", format!("Matched rules at index {i}")));
        }
    }
    None
}
