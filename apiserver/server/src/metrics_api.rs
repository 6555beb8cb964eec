//! metrics.k8s.io/v1beta1, served from the kubelets' own statistics: what `kubectl top` and the autoscaler read.
//!
//! Statistics are fetched when somebody asks and kept for fifteen seconds; a node that does not answer is left out,
//! as upstream's metrics server does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::kubelet::KubeletClient;

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(15);
/// How long one kubelet may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest summary that is read, bytes.
const LARGEST: usize = 16 * 1024 * 1024;
/// Kubelets asked at the same time.
const PARALLEL: usize = 16;

/// Group and version of what is served.
pub const API_VERSION: &str = "metrics.k8s.io/v1beta1";

/// The kubelets' statistics with a short memory.
#[derive(Clone)]
pub struct MetricsApi {
    client: KubeletClient,
    /// Node name -> when it was read and what it said.
    kept: Arc<Mutex<BTreeMap<String, (Instant, Arc<Value>)>>>,
}

impl MetricsApi {
    pub fn new(client: KubeletClient) -> MetricsApi {
        MetricsApi { client, kept: Arc::default() }
    }

    /// One `NodeMetrics` for each of `nodes` that answered.
    pub async fn nodes(&self, nodes: &[Arc<Value>]) -> Vec<Value> {
        let summaries = self.summaries(nodes).await;
        nodes
            .iter()
            .filter_map(|node| {
                let name = node["metadata"]["name"].as_str()?;
                let node_stats = &summaries.get(name)?["node"];
                Some(json!({
                    "kind": "NodeMetrics", "apiVersion": API_VERSION,
                    "metadata": metadata(&node["metadata"]),
                    "timestamp": node_stats["cpu"]["time"], "window": "15s", "usage": usage(node_stats)?,
                }))
            })
            .collect()
    }

    /// One `PodMetrics` for each of `pods` whose node answered and whose containers all have figures.
    pub async fn pods(&self, nodes: &[Arc<Value>], pods: &[Arc<Value>]) -> Vec<Value> {
        let wanted: Vec<Arc<Value>> = nodes
            .iter()
            .filter(|node| pods.iter().any(|pod| pod["spec"]["nodeName"] == node["metadata"]["name"]))
            .cloned()
            .collect();
        let summaries = self.summaries(&wanted).await;
        pods.iter()
            .filter_map(|pod| pod_metrics(pod, summaries.get(pod["spec"]["nodeName"].as_str()?)?))
            .collect()
    }

    /// The statistics of these nodes, from memory or from the kubelets.
    async fn summaries(&self, nodes: &[Arc<Value>]) -> BTreeMap<String, Arc<Value>> {
        let mut found = BTreeMap::new();
        let mut missing = Vec::new();
        {
            let mut kept = self.kept.lock().await;
            kept.retain(|_, (read, _)| read.elapsed() < FRESH);
            for node in nodes {
                let name = node["metadata"]["name"].as_str().unwrap_or_default();
                match kept.get(name) {
                    Some((_, summary)) => drop(found.insert(name.to_owned(), summary.clone())),
                    None => missing.push((name.to_owned(), node.clone())),
                }
            }
        }
        let fetched: Vec<(String, Option<Value>)> = futures::stream::iter(missing)
            .map(|(name, node)| async move {
                let summary = tokio::time::timeout(PATIENCE, self.fetch(&node)).await.ok().flatten();
                (name, summary)
            })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let mut kept = self.kept.lock().await;
        for (name, summary) in
            fetched.into_iter().filter_map(|(name, summary)| Some((name, Arc::new(summary?))))
        {
            kept.insert(name.clone(), (Instant::now(), summary.clone()));
            found.insert(name, summary);
        }
        found
    }

    async fn fetch(&self, node: &Value) -> Option<Value> {
        let response = match self.client.get(node, "/stats/summary").await {
            Ok(response) => response,
            Err(status) => {
                tracing::debug!(node = %node["metadata"]["name"], %status, "no statistics of a node");
                return None;
            }
        };
        let body = Limited::new(response.into_body(), LARGEST).collect().await.ok()?.to_bytes();
        serde_json::from_slice(&body).ok()
    }
}

/// Name, namespace, labels and creation time, as the metrics server copies them.
fn metadata(of: &Value) -> Value {
    let mut kept = serde_json::Map::new();
    for key in ["name", "namespace", "labels", "creationTimestamp"] {
        if let Some(value) = of.get(key) {
            kept.insert(key.to_owned(), value.clone());
        }
    }
    Value::Object(kept)
}

fn usage(stats: &Value) -> Option<Value> {
    let cpu = stats["cpu"]["usageNanoCores"].as_u64()?;
    let memory = stats["memory"]["workingSetBytes"].as_u64()?;
    Some(json!({ "cpu": format!("{cpu}n"), "memory": format!("{}Ki", memory / 1024) }))
}

fn pod_metrics(pod: &Value, summary: &Value) -> Option<Value> {
    let (name, namespace) = (&pod["metadata"]["name"], &pod["metadata"]["namespace"]);
    let stats = summary["pods"]
        .as_array()?
        .iter()
        .find(|stats| stats["podRef"]["name"] == *name && stats["podRef"]["namespace"] == *namespace)?;
    let containers: Vec<Value> = stats["containers"]
        .as_array()?
        .iter()
        .map(|container| Some(json!({ "name": container["name"], "usage": usage(container)? })))
        .collect::<Option<_>>()?;
    if containers.is_empty() {
        return None;
    }
    Some(json!({
        "kind": "PodMetrics", "apiVersion": API_VERSION,
        "metadata": metadata(&pod["metadata"]),
        "timestamp": stats["containers"][0]["cpu"]["time"], "window": "15s", "containers": containers,
    }))
}

/// The two resources as `/apis/metrics.k8s.io/v1beta1` lists them.
pub fn resources() -> Value {
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": API_VERSION,
        "resources": [
            { "name": "nodes", "singularName": "", "namespaced": false, "kind": "NodeMetrics", "verbs": ["get", "list"] },
            { "name": "pods", "singularName": "", "namespaced": true, "kind": "PodMetrics", "verbs": ["get", "list"] },
        ],
    })
}

/// The group's entry in `/apis`.
pub fn group() -> Value {
    let version = json!({ "groupVersion": API_VERSION, "version": "v1beta1" });
    json!({ "name": "metrics.k8s.io", "versions": [version.clone()], "preferredVersion": version })
}

/// The group's entry in aggregated discovery (v2 and v2beta1 alike).
pub fn aggregated() -> Value {
    let resource = |name: &str, kind: &str, scope: &str| {
        json!({
            "resource": name, "scope": scope, "singularResource": "", "verbs": ["get", "list"],
            "responseKind": { "group": "metrics.k8s.io", "version": "v1beta1", "kind": kind },
        })
    };
    json!({
        "metadata": { "name": "metrics.k8s.io", "creationTimestamp": null },
        "versions": [{
            "version": "v1beta1", "freshness": "Current",
            "resources": [resource("nodes", "NodeMetrics", "Cluster"), resource("pods", "PodMetrics", "Namespaced")],
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(name: &str, cpu: u64, memory: u64) -> Value {
        json!({ "name": name, "cpu": { "time": "2026-01-01T00:00:00Z", "usageNanoCores": cpu }, "memory": { "workingSetBytes": memory } })
    }

    #[test]
    fn a_pod_is_found_by_name_and_namespace() {
        let pod = json!({ "metadata": { "name": "web", "namespace": "shop", "labels": { "app": "web" }, "uid": "1" }, "spec": { "nodeName": "n1" } });
        let summary = json!({ "pods": [
            { "podRef": { "name": "web", "namespace": "other" }, "containers": [stats("c", 1, 1024)] },
            { "podRef": { "name": "web", "namespace": "shop" }, "containers": [stats("c", 250_000_000, 10_485_760)] },
        ] });
        let metrics = pod_metrics(&pod, &summary).expect("the pod is there");
        assert_eq!(
            metrics["containers"],
            json!([{ "name": "c", "usage": { "cpu": "250000000n", "memory": "10240Ki" } }])
        );
        assert_eq!(
            metrics["metadata"],
            json!({ "name": "web", "namespace": "shop", "labels": { "app": "web" } })
        );
    }

    #[test]
    fn a_container_without_figures_hides_its_pod() {
        let pod = json!({ "metadata": { "name": "web", "namespace": "shop" } });
        let summary = json!({ "pods": [{ "podRef": { "name": "web", "namespace": "shop" }, "containers": [stats("c", 1, 1), { "name": "d" }] }] });
        assert_eq!(pod_metrics(&pod, &summary), None);
    }
}
