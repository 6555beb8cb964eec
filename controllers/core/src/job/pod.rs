//! The pods of a Job: how they are made, which index they have, when they ended.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::TRACKING;
use crate::{Object, pods};

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const INDEX_ENV: &str = "JOB_COMPLETION_INDEX";
/// A pod's name may have so many characters before the server's five.
const PREFIX_MOST: usize = 58;

pub fn restart_policy(spec: &JobSpec) -> &str {
    spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or_default()
}

/// The index of an indexed Job's pod.
pub fn index(pod: &Pod) -> Option<i32> {
    pod.annotation(INDEX)?.parse().ok()
}

/// How often its index had failed when the pod was made.
pub fn failures_before(pod: &Pod) -> i32 {
    pod.annotation(FAILURES).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// When a pod ended: its last container's end, or what comes closest.
pub fn end(pod: &Pod) -> Timestamp {
    let status = pod.status.as_ref();
    let containers = status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten();
    let ends =
        containers.filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()).map(|t| t.0);
    let ready = pods::condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
    ends.max().or(ready).or_else(|| pods::created(pod)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A new pod; of an indexed Job with its index and how often that failed.
pub fn of(job: &Job, spec: &JobSpec, index: Option<(i32, i32)>) -> Pod {
    let template = spec.template.clone();
    let meta = template.metadata.unwrap_or_default();
    let (mut labels, mut annotations) =
        (meta.labels.unwrap_or_default(), meta.annotations.unwrap_or_default());
    let mut pod = template.spec.unwrap_or_default();
    let mut prefix = job.name().to_owned();
    if let Some((index, failures)) = index {
        annotations.insert(INDEX.to_owned(), index.to_string());
        labels.insert(INDEX.to_owned(), index.to_string());
        if spec.backoff_limit_per_index.is_some() {
            annotations.insert(FAILURES.to_owned(), failures.to_string());
        }
        pod.hostname = Some(format!("{}-{index}", job.name()));
        add_index_variable(&mut pod);
        prefix = format!("{prefix}-{index}");
    }
    prefix.truncate(PREFIX_MOST - 1);
    let mut finalizers = meta.finalizers.unwrap_or_default();
    finalizers.push(TRACKING.to_owned());
    let some = |map: BTreeMap<String, String>| (!map.is_empty()).then_some(map);
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{prefix}-")),
            namespace: Some(job.namespace().to_owned()),
            labels: some(labels),
            annotations: some(annotations),
            finalizers: Some(finalizers),
            owner_references: Some(vec![job.owner_reference()]),
            ..Default::default()
        },
        spec: Some(pod),
        status: None,
    }
}

fn add_index_variable(pod: &mut PodSpec) {
    let variable = EnvVar {
        name: INDEX_ENV.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.annotations['{INDEX}']"),
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    for container in pod.init_containers.iter_mut().flatten().chain(&mut pod.containers) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|e| e.name == INDEX_ENV) {
            env.push(variable.clone());
        }
    }
}
