//! From usage to a size: one proposal per metric.
//!
//! Pods without figures, and pods still starting, are left out first and then counted against the
//! direction of the change: scaling up assumes they use nothing, scaling down that they use their target.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
    ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::{Metadata, NamespaceResourceScope, Resource};
use keelson_api::quantity::Quantity;
use serde::{Deserialize, Serialize};

use super::Autoscaler;
use crate::Object;
use crate::pods;

/// metrics.k8s.io/v1beta1 PodMetrics.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodMetrics {
    pub metadata: ObjectMeta,
    pub timestamp: Option<Time>,
    pub containers: Vec<ContainerMetrics>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerMetrics {
    pub name: String,
    pub usage: BTreeMap<String, Text>,
}

impl Resource for PodMetrics {
    const API_VERSION: &'static str = "metrics.k8s.io/v1beta1";
    const GROUP: &'static str = "metrics.k8s.io";
    const KIND: &'static str = "PodMetrics";
    const VERSION: &'static str = "v1beta1";
    const URL_PATH_SEGMENT: &'static str = "pods";
    type Scope = NamespaceResourceScope;
}

impl Metadata for PodMetrics {
    type Ty = ObjectMeta;
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The size that a metric asks for, and how it stands.
#[derive(Clone, Debug)]
pub struct Proposal {
    pub replicas: i32,
    pub name: String,
    pub status: MetricStatus,
}

/// A pod's usage and request in thousandths; usage is none when nobody measured it.
struct Sample {
    usage: Option<i64>,
    request: i64,
    starting: bool,
}

/// Errors are a condition's reason and message.
pub fn propose(
    scaler: &Autoscaler,
    metric: &MetricSpec,
    pods: &[&Arc<Pod>],
    usages: &[Option<&Arc<PodMetrics>>],
    current: i32,
    now: Timestamp,
) -> Result<Proposal, (String, String)> {
    let (resource, container, target) = match (&metric.resource, &metric.container_resource) {
        (Some(r), _) => (r.name.as_str(), None, &r.target),
        (None, Some(c)) => (c.name.as_str(), Some(c.container.as_str()), &c.target),
        (None, None) => {
            let message = format!(
                "metric source type {:?} needs a metrics adapter, which this build does not ask",
                metric.type_
            );
            return Err(("InvalidMetricSourceType".into(), message));
        }
    };
    let refuse = |message: String| ("FailedGetResourceMetric".to_owned(), message);
    let samples = samples(scaler, resource, container, pods, usages, now);
    let measured: Vec<&Sample> = samples.iter().filter(|s| s.usage.is_some() && !s.starting).collect();
    if measured.is_empty() {
        return Err(refuse(format!(
            "failed to get {resource} utilization: no metrics returned from resource metrics API"
        )));
    }
    let usage: i64 = measured.iter().filter_map(|s| s.usage).sum();
    let goal = goal(target, resource, &measured).map_err(refuse)?;
    let replicas = size(scaler.tolerance, &samples, goal, current);
    let count = measured.len() as i64;
    let requested: i64 = measured.iter().map(|s| s.request).sum();
    let utilization = (requested > 0).then(|| (usage * 100 / requested) as i32);
    let average = Some(Text(format!("{}m", usage / count)));
    let current_value = MetricValueStatus {
        average_utilization: utilization.filter(|_| target.type_ == "Utilization"),
        average_value: average,
        value: None,
    };
    let unit = if target.type_ == "Utilization" { "utilization (percentage of request)" } else { "" };
    let name = format!("{resource} resource {unit}").trim_end().to_owned();
    Ok(Proposal { replicas, name, status: metric_status(resource, container, current_value) })
}

fn metric_status(resource: &str, container: Option<&str>, current: MetricValueStatus) -> MetricStatus {
    match container {
        None => MetricStatus {
            type_: "Resource".into(),
            resource: Some(ResourceMetricStatus { name: resource.into(), current }),
            ..Default::default()
        },
        Some(container) => MetricStatus {
            type_: "ContainerResource".into(),
            container_resource: Some(ContainerResourceMetricStatus {
                name: resource.into(),
                container: container.into(),
                current,
            }),
            ..Default::default()
        },
    }
}

/// What one pod should use: a share of its request, or an amount.
#[derive(Clone, Copy)]
enum Goal {
    Percent(i64),
    Amount(i64),
}

impl Goal {
    fn of(self, sample: &Sample) -> i64 {
        match self {
            Goal::Percent(percent) => sample.request * percent / 100,
            Goal::Amount(amount) => amount,
        }
    }
}

fn goal(target: &MetricTarget, resource: &str, measured: &[&Sample]) -> Result<Goal, String> {
    if let Some(percent) = target.average_utilization.filter(|p| *p > 0) {
        return match measured.iter().all(|s| s.request > 0) {
            true => Ok(Goal::Percent(percent.into())),
            false => Err(format!("failed to get {resource} utilization: missing request for {resource}")),
        };
    }
    let amount = target.average_value.as_ref().and_then(|q| Quantity::parse(&q.0).ok()).map(|q| q.milli());
    amount
        .filter(|a| *a > 0)
        .map(Goal::Amount)
        .ok_or(format!("no valid target for {resource}: set averageUtilization or averageValue"))
}

/// The size that brings usage to its goal, as upstream computes it.
fn size(tolerance: f64, samples: &[Sample], goal: Goal, current: i32) -> i32 {
    let measured = || samples.iter().filter(|s| s.usage.is_some() && !s.starting);
    let ratio = |usage: i64, wanted: i64| if wanted > 0 { usage as f64 / wanted as f64 } else { 1.0 };
    let usage: i64 = measured().filter_map(|s| s.usage).sum();
    let wanted: i64 = measured().map(|s| goal.of(s)).sum();
    let first = ratio(usage, wanted);
    let near = |r: f64| (1.0 - r).abs() <= tolerance;
    let unknown = samples.iter().any(|s| s.usage.is_none());
    let starting = samples.iter().any(|s| s.starting);
    if !unknown && (!starting || first <= 1.0) {
        return if near(first) { current } else { ceil(first * measured().count() as f64) };
    }
    let (mut usage, mut wanted, mut count) = (usage, wanted, measured().count());
    for sample in samples.iter().filter(|s| s.usage.is_none() || (s.starting && first > 1.0)) {
        // Against the direction: nothing when growing, all of it (and no less than the goal) when shrinking.
        usage += if first < 1.0 { sample.request.max(goal.of(sample)) } else { 0 };
        wanted += goal.of(sample);
        count += 1;
    }
    let second = ratio(usage, wanted);
    if near(second) || (first < 1.0 && second > 1.0) || (first > 1.0 && second < 1.0) {
        return current;
    }
    let size = ceil(second * count as f64);
    if (second < 1.0 && size > current) || (second > 1.0 && size < current) { current } else { size }
}

fn ceil(value: f64) -> i32 {
    value.ceil() as i32
}

fn samples(
    scaler: &Autoscaler,
    resource: &str,
    container: Option<&str>,
    pods: &[&Arc<Pod>],
    usages: &[Option<&Arc<PodMetrics>>],
    now: Timestamp,
) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (pod, metrics) in pods.iter().zip(usages) {
        if pod.is_deleting() || pods::phase(pod) == "Failed" {
            continue;
        }
        let here = |name: &str| container.is_none_or(|c| c == name);
        let milli =
            |text: Option<&Text>| text.and_then(|t| Quantity::parse(&t.0).ok()).map_or(0, |q| q.milli());
        let containers = pod.spec.iter().flat_map(|s| &s.containers).filter(|c| here(&c.name));
        let request = |r: &k8s_openapi::api::core::v1::ResourceRequirements| {
            milli(r.requests.as_ref().and_then(|q| q.get(resource)))
        };
        let request = containers.filter_map(|c| c.resources.as_ref()).map(request).sum();
        let usage = metrics.map(|m| {
            let of = m.containers.iter().filter(|c| here(&c.name));
            of.map(|c| milli(c.usage.get(resource))).sum()
        });
        let pending = pods::phase(pod) == "Pending";
        let starting = pending || (resource == "cpu" && is_starting(scaler, pod, *metrics, now));
        samples.push(Sample { usage, request, starting });
    }
    samples
}

/// Whether a pod's CPU is still that of its start.
fn is_starting(scaler: &Autoscaler, pod: &Pod, metrics: Option<&Arc<PodMetrics>>, now: Timestamp) -> bool {
    let condition = pods::condition(pod, "Ready");
    let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
    let (Some(condition), Some(started)) = (condition, started) else { return true };
    let unready = condition.status == "False";
    let changed = condition.last_transition_time.as_ref().map_or(started, |t| t.0);
    if started + scaler.cpu_initialization > now {
        let measured = metrics.and_then(|m| m.timestamp.as_ref()).map_or(now, |t| t.0);
        return unready || measured < changed;
    }
    unready && started + scaler.initial_readiness > changed
}
