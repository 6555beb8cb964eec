//! What a pod asks for and what a node has, in whole units: millicores, bytes, counts.
//!
//! A pod's request is the larger of "all containers and sidecars together" and "each init container with the
//! sidecars started before it", plus the overhead; requests at pod level replace the sum for cpu, memory and huge pages.
//! All arithmetic saturates: a hostile quantity can make a pod unschedulable, never wrap around.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use keelson_api::quantity::Quantity;
use serde::Serialize;

/// What the score functions assume of a container that names no cpu request, in millicores.
pub const DEFAULT_MILLI_CPU: i64 = 100;
/// What the score functions assume of a container that names no memory request, in bytes.
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// An amount of each resource. `pods` is a node's limit; in a request it stays 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Millicores.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// How many pods a node takes.
    pub pods: i64,
    /// Extended resources, huge pages and attachable volumes, in units or bytes.
    pub scalar: BTreeMap<String, i64>,
}

impl Resources {
    /// Reads a quantity map; quantities that do not parse count as zero (the API server refuses them).
    pub fn from_map(map: &BTreeMap<String, ApiQuantity>) -> Resources {
        let mut found = Resources::default();
        for (name, quantity) in map {
            let Ok(quantity) = Quantity::parse(&quantity.0) else { continue };
            match name.as_str() {
                "cpu" => found.milli_cpu = quantity.milli(),
                "memory" => found.memory = quantity.value(),
                "ephemeral-storage" => found.ephemeral_storage = quantity.value(),
                "pods" => found.pods = quantity.value(),
                _ => {
                    found.scalar.insert(name.clone(), quantity.value());
                }
            }
        }
        found
    }

    /// Adds another amount; `pods` too.
    pub fn add(&mut self, other: &Resources) {
        self.milli_cpu = self.milli_cpu.saturating_add(other.milli_cpu);
        self.memory = self.memory.saturating_add(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.saturating_add(other.ephemeral_storage);
        self.pods = self.pods.saturating_add(other.pods);
        for (name, amount) in &other.scalar {
            let entry = self.scalar.entry(name.clone()).or_default();
            *entry = entry.saturating_add(*amount);
        }
    }

    /// Takes another amount away.
    pub fn subtract(&mut self, other: &Resources) {
        self.milli_cpu = self.milli_cpu.saturating_sub(other.milli_cpu);
        self.memory = self.memory.saturating_sub(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.saturating_sub(other.ephemeral_storage);
        self.pods = self.pods.saturating_sub(other.pods);
        for (name, amount) in &other.scalar {
            let entry = self.scalar.entry(name.clone()).or_default();
            *entry = entry.saturating_sub(*amount);
        }
        self.scalar.retain(|_, amount| *amount != 0);
    }

    /// The larger of both, resource by resource.
    pub fn raise_to(&mut self, other: &Resources) {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        self.pods = self.pods.max(other.pods);
        for (name, amount) in &other.scalar {
            let entry = self.scalar.entry(name.clone()).or_default();
            *entry = (*entry).max(*amount);
        }
    }

    /// Nothing asked for.
    pub fn is_zero(&self) -> bool {
        self.milli_cpu == 0
            && self.memory == 0
            && self.ephemeral_storage == 0
            && self.scalar.values().all(|amount| *amount == 0)
    }
}

/// What a pod asks for.
pub fn pod_requests(spec: &PodSpec, status: Option<&PodStatus>) -> Resources {
    aggregate(spec, status, |_| {})
}

/// The same, with assumptions for containers that name no cpu or memory: what the scores reckon with.
pub fn pod_requests_for_scoring(spec: &PodSpec, status: Option<&PodStatus>) -> Resources {
    aggregate(spec, status, |requests| {
        requests.entry("cpu").or_insert(Quantity::from_milli(DEFAULT_MILLI_CPU));
        requests.entry("memory").or_insert(Quantity::from_int(DEFAULT_MEMORY));
    })
}

fn aggregate<'a>(
    spec: &'a PodSpec,
    status: Option<&'a PodStatus>,
    fill: impl Fn(&mut BTreeMap<&'a str, Quantity>),
) -> Resources {
    let statuses = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&container_requests(container, statuses, &fill));
    }
    let mut sidecars = Resources::default();
    let mut initial = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut requests = container_requests(container, &[], &fill);
        if container.restart_policy.as_deref() == Some("Always") {
            total.add(&requests);
            sidecars.add(&requests);
            initial.raise_to(&sidecars);
        } else {
            requests.add(&sidecars);
            initial.raise_to(&requests);
        }
    }
    total.raise_to(&initial);
    if let Some(requests) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        replace_at_pod_level(&mut total, &Resources::from_map(requests), requests);
    }
    if let Some(overhead) = &spec.overhead {
        total.add(&Resources::from_map(overhead));
    }
    total.pods = 0;
    total
}

fn replace_at_pod_level(total: &mut Resources, level: &Resources, named: &BTreeMap<String, ApiQuantity>) {
    for name in named.keys() {
        match name.as_str() {
            "cpu" => total.milli_cpu = level.milli_cpu,
            "memory" => total.memory = level.memory,
            name if name.starts_with("hugepages-") => {
                total.scalar.insert(name.to_string(), level.scalar.get(name).copied().unwrap_or(0));
            }
            _ => {}
        }
    }
}

/// One container's requests; while an in-place resize is under way, the larger of wanted and allocated.
fn container_requests<'a>(
    container: &'a Container,
    statuses: &'a [ContainerStatus],
    fill: &impl Fn(&mut BTreeMap<&'a str, Quantity>),
) -> Resources {
    let mut requests: BTreeMap<&str, Quantity> = BTreeMap::new();
    let wanted = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let allocated = statuses
        .iter()
        .find(|status| status.name == container.name)
        .and_then(|status| status.allocated_resources.as_ref());
    for (name, quantity) in wanted.into_iter().flatten().chain(allocated.into_iter().flatten()) {
        let Ok(quantity) = Quantity::parse(&quantity.0) else { continue };
        let entry = requests.entry(name.as_str()).or_insert(quantity);
        *entry = (*entry).max(quantity);
    }
    fill(&mut requests);
    let mut found = Resources::default();
    for (name, quantity) in requests {
        match name {
            "cpu" => found.milli_cpu = quantity.milli(),
            "memory" => found.memory = quantity.value(),
            "ephemeral-storage" => found.ephemeral_storage = quantity.value(),
            _ => {
                found.scalar.insert(name.to_string(), quantity.value());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> PodSpec {
        serde_json::from_value(json).expect("a pod spec")
    }

    #[test]
    fn the_largest_init_container_counts_with_the_sidecars_before_it() {
        let spec = spec(serde_json::json!({
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}},
                {"name": "b", "resources": {"requests": {"cpu": "200m"}}}],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "1", "memory": "16Mi"}}}],
            "overhead": {"cpu": "10m"}
        }));
        let found = pod_requests(&spec, None);
        assert_eq!(found.milli_cpu, 1000 + 50 + 10);
        assert_eq!(found.memory, 64 << 20);
    }

    #[test]
    fn a_container_without_requests_is_assumed_to_need_some_when_scoring() {
        let spec = spec(serde_json::json!({"containers": [{"name": "a"}, {"name": "b",
            "resources": {"requests": {"cpu": "0"}}}]}));
        assert!(pod_requests(&spec, None).is_zero());
        let scored = pod_requests_for_scoring(&spec, None);
        assert_eq!((scored.milli_cpu, scored.memory), (DEFAULT_MILLI_CPU, 2 * DEFAULT_MEMORY));
    }

    #[test]
    fn pod_level_requests_replace_the_sum() {
        let spec = spec(serde_json::json!({"resources": {"requests": {"cpu": "3"}},
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Mi"}}}]}));
        let found = pod_requests(&spec, None);
        assert_eq!((found.milli_cpu, found.memory), (3000, 1 << 20));
    }

    #[test]
    fn hostile_quantities_saturate() {
        let spec = spec(serde_json::json!({"containers": [
            {"name": "a", "resources": {"requests": {"memory": "9e30"}}},
            {"name": "b", "resources": {"requests": {"memory": "9e30"}}}]}));
        assert_eq!(pod_requests(&spec, None).memory, i64::MAX);
    }
}
