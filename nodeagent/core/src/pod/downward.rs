//! The downward API: a pod's own fields and its containers' resources as text.
//!
//! A resource limit that is not set reads as the node's allocatable amount.

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use super::amounts::{self, Amounts};
use super::naming;

/// What only the node knows about a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Facts {
    pub node_name: String,
    pub host_ips: Vec<String>,
    pub pod_ips: Vec<String>,
    pub allocatable_cpu_milli: i64,
    pub allocatable_memory_bytes: i64,
    pub allocatable_ephemeral_bytes: i64,
}

/// The value of a `fieldRef`, or why there is none.
pub fn field(pod: &Pod, path: &str, facts: &Facts) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let service_account =
        || spec.and_then(|s| s.service_account_name.clone()).unwrap_or_else(|| "default".into());
    Ok(match path {
        "metadata.name" => naming::name(pod).into(),
        "metadata.namespace" => naming::namespace(pod).into(),
        "metadata.uid" => naming::uid(pod).into(),
        "metadata.labels" => pairs(pod.metadata.labels.iter().flatten()),
        "metadata.annotations" => pairs(pod.metadata.annotations.iter().flatten()),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => service_account(),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return keyed(pod, path),
    })
}

/// `metadata.labels['key']` and `metadata.annotations['key']`; an absent key is empty.
fn keyed(pod: &Pod, path: &str) -> Result<String, String> {
    let unsupported = || format!("unsupported fieldPath: {path}");
    let (map, key) = path.split_once("['").ok_or_else(unsupported)?;
    let key = key.strip_suffix("']").ok_or_else(unsupported)?;
    let map = match map {
        "metadata.labels" => &pod.metadata.labels,
        "metadata.annotations" => &pod.metadata.annotations,
        _ => return Err(unsupported()),
    };
    Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default())
}

fn pairs<'a>(map: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    map.map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
}

/// The value of a `resourceFieldRef` for `container`, divided and rounded up.
pub fn resource(
    container: &Container,
    selector: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, String> {
    let limits = amounts::limits(container.resources.as_ref());
    let requests = Amounts::of(container.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let (is_cpu, value) = match selector.resource.as_str() {
        "limits.cpu" => (true, limits.cpu_milli.unwrap_or(facts.allocatable_cpu_milli)),
        "limits.memory" => (false, limits.memory_bytes.unwrap_or(facts.allocatable_memory_bytes)),
        "limits.ephemeral-storage" => {
            (false, limits.ephemeral_bytes.unwrap_or(facts.allocatable_ephemeral_bytes))
        }
        "requests.cpu" => (true, requests.cpu_milli.or(limits.cpu_milli).unwrap_or(0)),
        "requests.memory" => (false, requests.memory_bytes.or(limits.memory_bytes).unwrap_or(0)),
        "requests.ephemeral-storage" => {
            (false, requests.ephemeral_bytes.or(limits.ephemeral_bytes).unwrap_or(0))
        }
        other => return Err(format!("unsupported container resource: {other}")),
    };
    let divisor =
        selector.divisor.as_ref().map(|d| d.0.as_str()).filter(|d| !d.is_empty() && *d != "0").unwrap_or("1");
    let parsed = if is_cpu { amounts::milli(divisor) } else { amounts::whole(divisor) };
    let divisor = parsed.filter(|d| *d > 0).ok_or_else(|| format!("invalid divisor: {divisor}"))?;
    Ok((value / divisor + i64::from(value % divisor != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata":{"name":"p","labels":{"a":"x","b":"y\"z"}},
            "spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"1500m"}}}]}
        }))
        .unwrap();
        let facts = Facts { allocatable_memory_bytes: 3 << 20, ..Facts::default() };
        assert_eq!(field(&pod, "metadata.labels", &facts).unwrap(), "a=\"x\"\nb=\"y\\\"z\"");
        assert_eq!(field(&pod, "metadata.labels['a']", &facts).unwrap(), "x");
        assert_eq!(field(&pod, "metadata.annotations['q']", &facts).unwrap(), "");
        assert!(field(&pod, "spec.other", &facts).is_err());
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let ask = |resource: &str, divisor: &str| {
            let selector: ResourceFieldSelector =
                serde_json::from_value(json!({"resource":resource,"divisor":divisor})).unwrap();
            super::resource(container, &selector, &facts).unwrap()
        };
        assert_eq!(ask("limits.cpu", "0"), "2");
        assert_eq!(ask("limits.cpu", "1m"), "1500");
        assert_eq!(ask("limits.memory", "1Mi"), "3");
    }
}
