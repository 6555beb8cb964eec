//! Defaults of a pod spec, in a Pod and in every pod template.

use super::volumes;
use crate::value::{at, default, each_mut, map_mut, set, text};
use serde_json::{Value, json};

/// Whose spec it is: some defaults are for pods alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Pod,
    Template,
}

/// The lists of containers in a spec.
pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Takes out fields of features that are off.
pub fn drop_gated(spec: &mut Value) {
    if spec.is_object() {
        crate::value::take(spec, "schedulingGroup");
    }
    for volume in each_mut(spec, "volumes") {
        for source in each_mut(volume, "projected.sources") {
            crate::value::take(source, "clusterTrustBundle");
        }
    }
    for list in CONTAINER_LISTS {
        for container in each_mut(spec, list) {
            let Some(lifecycle) = container.get_mut("lifecycle").filter(|l| l.is_object()) else { continue };
            if crate::value::take(lifecycle, "stopSignal").is_some() && crate::value::is_empty(lifecycle) {
                crate::value::take(container, "lifecycle");
            }
        }
    }
}

/// Fills in a pod spec.
pub fn default_spec(spec: &mut Value, place: Place) {
    map_mut(spec);
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "restartPolicy", "Always");
    default(spec, "securityContext", json!({}));
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "schedulerName", "default-scheduler");
    for (empty, value) in
        [("dnsPolicy", "ClusterFirst"), ("restartPolicy", "Always"), ("schedulerName", "default-scheduler")]
    {
        if text(spec, empty).is_empty() && spec[empty].is_string() {
            set(spec, empty, value);
        }
    }
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|n| n < 0) {
        set(spec, "terminationGracePeriodSeconds", 1);
    }
    if place == Place::Pod {
        default(spec, "enableServiceLinks", true);
    }
    // The old name of the field follows the new one.
    if text(spec, "serviceAccountName").is_empty() && !text(spec, "serviceAccount").is_empty() {
        let name = spec["serviceAccount"].clone();
        set(spec, "serviceAccountName", name);
    } else if !text(spec, "serviceAccountName").is_empty() {
        let name = spec["serviceAccountName"].clone();
        set(spec, "serviceAccount", name);
    }
    let host_network = spec["hostNetwork"] == true;
    for list in CONTAINER_LISTS {
        for container in each_mut(spec, list) {
            default_container(container, place, host_network);
        }
    }
    for volume in each_mut(spec, "volumes") {
        volumes::default_volume(volume);
    }
}

fn default_container(container: &mut Value, place: Place, host_network: bool) {
    if !container.is_object() {
        return;
    }
    fill(container, "terminationMessagePath", "/dev/termination-log");
    fill(container, "terminationMessagePolicy", "File");
    let policy = pull_policy(text(container, "image"));
    fill(container, "imagePullPolicy", policy);
    for port in each_mut(container, "ports") {
        fill(port, "protocol", "TCP");
        if host_network && place == Place::Pod && port["hostPort"].as_i64().unwrap_or(0) == 0 {
            let number = port["containerPort"].clone();
            set(port, "hostPort", number);
        }
    }
    for env in each_mut(container, "env") {
        if at(env, "valueFrom.fieldRef").is_object() && text(env, "valueFrom.fieldRef.apiVersion").is_empty()
        {
            set(env, "valueFrom.fieldRef.apiVersion", "v1");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[probe].is_object() {
            default_probe(&mut container[probe]);
        }
    }
    for hook in ["postStart", "preStop"] {
        if at(container, &format!("lifecycle.{hook}.httpGet")).is_object() {
            default_http_get(&mut container["lifecycle"][hook]["httpGet"]);
        }
    }
    round_up(container);
    if place == Place::Pod {
        default_requests(container);
    }
}

/// Nothing is counted finer than in thousandths.
pub fn round_up(container: &mut Value) {
    for which in ["limits", "requests"] {
        let amounts =
            container.get_mut("resources").and_then(|r| r.get_mut(which)).and_then(Value::as_object_mut);
        for amount in amounts.into_iter().flat_map(|m| m.values_mut()) {
            if let Ok(q) = keelson_api::Quantity::from_value(amount)
                && q.is_finer_than_milli()
            {
                *amount = keelson_api::Quantity::from_milli(q.milli()).to_string().into();
            }
        }
    }
}

/// A limit without a request is a request too.
fn default_requests(container: &mut Value) {
    let Some(limits) = at(container, "resources.limits").as_object().filter(|l| !l.is_empty()).cloned()
    else {
        return;
    };
    for (resource, quantity) in limits {
        crate::value::object_mut(&mut container["resources"], "requests").entry(resource).or_insert(quantity);
    }
}

fn default_probe(probe: &mut Value) {
    for (field, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if probe[field].as_i64().unwrap_or(0) == 0 {
            set(probe, field, value);
        }
    }
    if probe["httpGet"].is_object() {
        default_http_get(&mut probe["httpGet"]);
    }
    if probe["grpc"].is_object() {
        default(probe, "grpc.service", "");
    }
}

fn default_http_get(action: &mut Value) {
    fill(action, "path", "/");
    fill(action, "scheme", "HTTP");
}

/// Sets a string that is missing or empty.
pub fn fill(value: &mut Value, field: &str, text_: &str) {
    if text(value, field).is_empty() {
        set(value, field, text_);
    }
}

/// `Always` for images without a fixed version.
pub fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or("");
    match last.split_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        _ => "Always",
    }
}

/// The quality-of-service class of a pod.
pub fn qos_class(spec: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    let containers = ["initContainers", "containers"].into_iter().flat_map(|l| crate::value::items(spec, l));
    for container in containers {
        let amount = |which: &str, resource: &str| {
            keelson_api::Quantity::from_value(at(container, &format!("resources.{which}.{resource}")))
                .ok()
                .filter(|q| !q.is_zero() && !q.is_negative())
        };
        for resource in ["cpu", "memory"] {
            let (limit, request) = (amount("limits", resource), amount("requests", resource));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pull_policies() {
        for (image, policy) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("a:1", "IfNotPresent"),
            ("h:5000/a", "Always"),
            ("a@sha256:1", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    proptest! {
        #[test]
        fn defaulting_is_idempotent(image in "[a-z]{1,3}(:[a-z0-9]{1,3})?", host in any::<bool>(), probe in any::<bool>(), limit in any::<bool>()) {
            let mut spec = json!({"hostNetwork": host, "containers": [{"name": "c", "image": image, "ports": [{"containerPort": 80}]}]});
            if probe { spec["containers"][0]["livenessProbe"] = json!({"httpGet": {"port": 1}}); }
            if limit { spec["containers"][0]["resources"] = json!({"limits": {"cpu": "1"}}); }
            default_spec(&mut spec, Place::Pod);
            let once = spec.clone();
            default_spec(&mut spec, Place::Pod);
            prop_assert_eq!(once, spec);
        }
    }
}
