//! Cells per kind, in the order of the columns. A kind that is not here shows name and age.

use super::{age, cluster, containers, count, or_none, pod, since, workloads};
use crate::value::{at, flag, int, items, name, namespace, terminating, text};
use keelson_api::{LabelSelector, Resource};
use serde_json::{Value, json};

/// The row of one object.
pub fn of(resource: &Resource, o: &Value, now: jiff::Timestamp) -> Option<Vec<Value>> {
    let aged = |mut cells: Vec<Value>| {
        cells.insert(0, json!(name(o)));
        cells.push(json!(age(o, now)));
        cells
    };
    Some(match (resource.group.as_str(), resource.plural.as_str()) {
        _ if text(o, "kind") == "Scale" => workloads::scale(o, now),
        ("", "pods") => pod::cells(o, now),
        ("", "nodes") => node(o, now),
        ("", "services") => service(o, now),
        ("", "namespaces") => aged(vec![json!(text(o, "status.phase"))]),
        ("", "configmaps") => aged(vec![json!(len(&o["data"]) + len(&o["binaryData"]))]),
        ("", "secrets") => aged(vec![json!(text(o, "type")), json!(len(&o["data"]))]),
        ("", "serviceaccounts") => aged(vec![]),
        ("", "endpoints") => aged(vec![json!(endpoints(o))]),
        ("", "events") | ("events.k8s.io", "events") => event(o, now),
        ("", "componentstatuses") => {
            let healthy = items(o, "conditions").iter().find(|c| text(c, "type") == "Healthy");
            let said = |field: &str| healthy.map_or("", |c| text(c, field));
            let state = match said("status") {
                "True" => "Healthy",
                "False" => "Unhealthy",
                _ => "Unknown",
            };
            vec![json!(name(o)), json!(state), json!(said("message")), json!(said("error"))]
        }
        ("", "podtemplates") => workloads::pod_template(o),
        ("", "replicationcontrollers") => workloads::replication_controller(o, now),
        ("apps", "daemonsets") => workloads::daemon_set(o, now),
        ("apps", "statefulsets") => workloads::stateful_set(o, now),
        ("batch", "jobs") => workloads::job(o, now),
        ("batch", "cronjobs") => workloads::cron_job(o, now),
        ("", "limitranges")
        | ("rbac.authorization.k8s.io", "roles" | "clusterroles")
        | ("storage.k8s.io", "csistoragecapacities")
        | ("apiextensions.k8s.io", "customresourcedefinitions") => {
            vec![json!(name(o)), o["metadata"]["creationTimestamp"].clone()]
        }
        ("", "persistentvolumeclaims") => claim(o, now),
        ("", "persistentvolumes") => volume(o, now),
        ("", "resourcequotas") => aged(quota(o)),
        ("apps", "deployments") => deployment(o, now),
        ("apps", "replicasets") => replica_set(o, now),
        ("apps", "controllerrevisions") => aged(vec![json!(controller(o)), json!(int(o, "revision"))]),
        ("autoscaling", "horizontalpodautoscalers") => aged(autoscaler(o)),
        ("networking.k8s.io", "ingresses") => aged(ingress(o)),
        ("networking.k8s.io", "ingressclasses") => {
            aged(vec![json!(text(o, "spec.controller")), json!(parameters(at(o, "spec.parameters")))])
        }
        ("networking.k8s.io", "networkpolicies") => aged(vec![json!(selector(at(o, "spec.podSelector")))]),
        ("policy", "poddisruptionbudgets") => aged(vec![
            json!(or_na(at(o, "spec.minAvailable"))),
            json!(or_na(at(o, "spec.maxUnavailable"))),
            count(o, "status.disruptionsAllowed"),
        ]),
        ("rbac.authorization.k8s.io", _) => binding(o, now),
        ("storage.k8s.io", "storageclasses") => aged(vec![
            o["provisioner"].clone(),
            json!(text(o, "reclaimPolicy")),
            json!(text(o, "volumeBindingMode")),
            json!(flag(o, "allowVolumeExpansion")),
        ]),
        ("storage.k8s.io", "csidrivers") => aged(csi_driver(o)),
        ("storage.k8s.io", "csinodes") => aged(vec![json!(items(o, "spec.drivers").len())]),
        ("storage.k8s.io", "volumeattachments") => aged(vec![
            json!(text(o, "spec.attacher")),
            json!(text(o, "spec.source.persistentVolumeName")),
            json!(text(o, "spec.nodeName")),
            json!(flag(o, "status.attached")),
        ]),
        ("scheduling.k8s.io", "priorityclasses") => vec![
            json!(name(o)),
            json!(int(o, "value")),
            json!(flag(o, "globalDefault")),
            json!(age(o, now)),
            json!(text(o, "preemptionPolicy")),
        ],
        ("coordination.k8s.io", "leases") => aged(vec![json!(text(o, "spec.holderIdentity"))]),
        ("discovery.k8s.io", "endpointslices") => aged(slice(o)),
        ("certificates.k8s.io", "certificatesigningrequests") => request(o, now),
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => {
            aged(cluster::policy(o, "spec.validations"))
        }
        ("admissionregistration.k8s.io", "mutatingadmissionpolicies") => {
            aged(cluster::policy(o, "spec.mutations"))
        }
        (
            "admissionregistration.k8s.io",
            "validatingadmissionpolicybindings" | "mutatingadmissionpolicybindings",
        ) => aged(cluster::policy_binding(o)),
        ("admissionregistration.k8s.io", _) => aged(vec![json!(items(o, "webhooks").len())]),
        ("apiregistration.k8s.io", "apiservices") => aged(cluster::api_service(o)),
        ("networking.k8s.io", "ipaddresses") => aged(cluster::ip_address(o)),
        ("networking.k8s.io", "servicecidrs") => aged(cluster::service_cidr(o)),
        ("node.k8s.io", "runtimeclasses") => aged(vec![json!(text(o, "handler"))]),
        ("storage.k8s.io", "volumeattributesclasses") => aged(vec![json!(text(o, "driverName"))]),
        ("resource.k8s.io", "resourceclaims") => aged(vec![json!(cluster::claim_state(o))]),
        ("resource.k8s.io", "resourceslices") => aged(cluster::resource_slice(o)),
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => {
            let mut cells = vec![json!(name(o))];
            cells.extend(cluster::flow_schema(o, age(o, now)));
            cells
        }
        ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations") => aged(cluster::priority_level(o)),
        _ => return None,
    })
}

fn len(v: &Value) -> usize {
    v.as_object().map_or(0, |m| m.len())
}

fn or_na(v: &Value) -> String {
    match v {
        Value::Null => "N/A".into(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

fn selector(v: &Value) -> String {
    or_none(&LabelSelector::from_object(v).to_string())
}

fn labels(v: &Value) -> String {
    or_none(&LabelSelector::from_map(v).to_string())
}

fn node(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let ready = items(o, "status.conditions").iter().find(|c| text(c, "type") == "Ready");
    let mut status = vec![match ready.map(|c| text(c, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if flag(o, "spec.unschedulable") {
        status.push("SchedulingDisabled");
    }
    let mut roles: Vec<&str> = vec![];
    for (key, value) in at(o, "metadata.labels").as_object().into_iter().flatten() {
        let role = key.strip_prefix("node-role.kubernetes.io/").filter(|r| !r.is_empty());
        roles.extend(role.or(value.as_str().filter(|_| key == "kubernetes.io/role")));
    }
    roles.sort_unstable();
    let address = |kind: &str| {
        let found = items(o, "status.addresses").iter().find(|a| text(a, "type") == kind);
        json!(or_none(found.map_or("", |a| text(a, "address"))))
    };
    let info = |f: &str| {
        let v = text(&o["status"]["nodeInfo"], f);
        json!(if v.is_empty() { "<unknown>" } else { v })
    };
    vec![
        json!(name(o)),
        json!(status.join(",")),
        json!(or_none(&roles.join(","))),
        json!(age(o, now)),
        json!(text(o, "status.nodeInfo.kubeletVersion")),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn service(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let kind = text(o, "spec.type");
    let listed = |path: &str| items(o, path).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",");
    let balancers: Vec<&str> = items(o, "status.loadBalancer.ingress")
        .iter()
        .map(|i| if text(i, "ip").is_empty() { text(i, "hostname") } else { text(i, "ip") })
        .collect();
    let external = match kind {
        "ExternalName" => text(o, "spec.externalName").to_string(),
        "LoadBalancer" => {
            let mut all = balancers.join(",");
            let ips = listed("spec.externalIPs");
            if !ips.is_empty() {
                all = if all.is_empty() { ips } else { format!("{all},{ips}") };
            }
            if all.is_empty() { "<pending>".into() } else { all }
        }
        _ => or_none(&listed("spec.externalIPs")),
    };
    let ports: Vec<String> = items(o, "spec.ports")
        .iter()
        .map(|p| match int(p, "nodePort") {
            0 => format!("{}/{}", int(p, "port"), text(p, "protocol")),
            n => format!("{}:{n}/{}", int(p, "port"), text(p, "protocol")),
        })
        .collect();
    vec![
        json!(name(o)),
        json!(kind),
        json!(or_none(text(o, "spec.clusterIP"))),
        json!(external),
        json!(or_none(&ports.join(","))),
        json!(age(o, now)),
        json!(labels(at(o, "spec.selector"))),
    ]
}

/// The first three, and how many more.
fn some_of(all: Vec<String>) -> String {
    match all.len() {
        0 => "<none>".into(),
        n if n > 3 => format!("{} + {} more...", all[..3].join(","), n - 3),
        _ => all.join(","),
    }
}

fn endpoints(o: &Value) -> String {
    let mut all = vec![];
    for s in items(o, "subsets") {
        for a in items(s, "addresses") {
            let ports = items(s, "ports");
            if ports.is_empty() {
                all.push(text(a, "ip").to_string());
            }
            all.extend(ports.iter().map(|p| format!("{}:{}", text(a, "ip"), int(p, "port"))));
        }
    }
    some_of(all)
}

fn slice(o: &Value) -> Vec<Value> {
    let some = |all: Vec<String>| match all.len() {
        0 => "<unset>".to_string(),
        n if n > 3 => format!("{} + {} more...", all[..3].join(","), n - 3),
        _ => all.join(","),
    };
    let port = |p: &Value| p["port"].as_i64().map_or("*".to_string(), |n| n.to_string());
    let ports = items(o, "ports").iter().map(port).collect();
    let addresses = items(o, "endpoints")
        .iter()
        .flat_map(|e| items(e, "addresses"))
        .filter_map(|a| a.as_str().map(String::from))
        .collect();
    vec![json!(text(o, "addressType")), json!(some(ports)), json!(some(addresses))]
}

fn event(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let pick = |old: &str, new: &str| {
        if o.get(new).is_some_and(|v| !v.is_null()) { o[new].clone() } else { o[old].clone() }
    };
    let involved = pick("involvedObject", "regarding");
    let first = pick("firstTimestamp", "deprecatedFirstTimestamp");
    let last = pick("lastTimestamp", "deprecatedLastTimestamp");
    let source = pick("source", "deprecatedSource");
    let time = at(o, "eventTime");
    let series = at(o, "series.lastObservedTime");
    let first = if first.is_null() { time.clone() } else { first };
    let last = if !series.is_null() {
        series.clone()
    } else if last.is_null() {
        first.clone()
    } else {
        last
    };
    let counted = pick("count", "deprecatedCount");
    let n = o["series"]["count"].as_i64().or(counted.as_i64()).filter(|n| *n > 0).unwrap_or(1);
    let kind = text(&involved, "kind").to_lowercase();
    let reporter = match (text(&source, "component"), text(&source, "host")) {
        ("", _) => {
            let component = pick("reportingComponent", "reportingController");
            let instance = text(o, "reportingInstance");
            let component = component.as_str().unwrap_or("").to_string();
            if instance.is_empty() { component } else { format!("{component}, {instance}") }
        }
        (component, "") => component.to_string(),
        (component, host) => format!("{component}, {host}"),
    };
    let message = pick("message", "note");
    vec![
        json!(since(&last, now)),
        json!(text(o, "type")),
        json!(text(o, "reason")),
        json!(format!("{kind}/{}", text(&involved, "name"))),
        json!(text(&involved, "fieldPath")),
        json!(reporter),
        json!(message.as_str().unwrap_or("").trim()),
        json!(since(&first, now)),
        json!(n),
        json!(name(o)),
    ]
}

fn modes(o: &Value) -> String {
    let short = |m: &Value| match m.as_str() {
        Some("ReadWriteOnce") => "RWO",
        Some("ReadOnlyMany") => "ROX",
        Some("ReadWriteMany") => "RWX",
        Some("ReadWriteOncePod") => "RWOP",
        _ => "",
    };
    o.as_array().into_iter().flatten().map(short).collect::<Vec<_>>().join(",")
}

fn phase(o: &Value) -> &str {
    if terminating(o) { "Terminating" } else { text(o, "status.phase") }
}

fn unset(v: &Value) -> Value {
    json!(v.as_str().unwrap_or("<unset>"))
}

fn claim(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let bound = !text(o, "spec.volumeName").is_empty();
    vec![
        json!(name(o)),
        json!(phase(o)),
        json!(text(o, "spec.volumeName")),
        json!(if bound { text(o, "status.capacity.storage") } else { "" }),
        json!(if bound { modes(at(o, "status.accessModes")) } else { String::new() }),
        json!(text(o, "spec.storageClassName")),
        unset(at(o, "spec.volumeAttributesClassName")),
        json!(age(o, now)),
        json!(text(o, "spec.volumeMode")),
    ]
}

fn volume(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let reference = at(o, "spec.claimRef");
    let claim = if reference.is_null() {
        String::new()
    } else {
        format!("{}/{}", text(reference, "namespace"), text(reference, "name"))
    };
    vec![
        json!(name(o)),
        json!(text(o, "spec.capacity.storage")),
        json!(modes(at(o, "spec.accessModes"))),
        json!(text(o, "spec.persistentVolumeReclaimPolicy")),
        json!(phase(o)),
        json!(claim),
        json!(text(o, "spec.storageClassName")),
        unset(at(o, "spec.volumeAttributesClassName")),
        json!(text(o, "status.reason")),
        json!(age(o, now)),
        json!(text(o, "spec.volumeMode")),
    ]
}

fn quota(o: &Value) -> Vec<Value> {
    let (mut requests, mut limits) = (vec![], vec![]);
    for (key, hard) in at(o, "status.hard").as_object().into_iter().flatten() {
        let used = at(o, "status.used").get(key).and_then(Value::as_str).unwrap_or("0");
        let line = format!("{key}: {used}/{}", hard.as_str().unwrap_or(""));
        if key.starts_with("limits") { limits.push(line) } else { requests.push(line) }
    }
    vec![json!(requests.join(", ")), json!(limits.join(", "))]
}

fn deployment(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (names, images) = containers(at(o, "spec.template.spec"));
    vec![
        json!(name(o)),
        json!(format!("{}/{}", int(o, "status.readyReplicas"), int(o, "spec.replicas"))),
        count(o, "status.updatedReplicas"),
        count(o, "status.availableReplicas"),
        json!(age(o, now)),
        json!(names),
        json!(images),
        json!(selector(at(o, "spec.selector"))),
    ]
}

fn replica_set(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (names, images) = containers(at(o, "spec.template.spec"));
    vec![
        json!(name(o)),
        count(o, "spec.replicas"),
        count(o, "status.replicas"),
        count(o, "status.readyReplicas"),
        json!(age(o, now)),
        json!(names),
        json!(images),
        json!(selector(at(o, "spec.selector"))),
    ]
}

fn controller(o: &Value) -> String {
    let owner = items(o, "metadata.ownerReferences").iter().find(|r| flag(r, "controller"));
    owner.map_or("<none>".into(), |r| {
        let group = text(r, "apiVersion").split_once('/').map_or("", |(g, _)| g);
        let kind = text(r, "kind").to_lowercase();
        if group.is_empty() {
            format!("{kind}/{}", text(r, "name"))
        } else {
            format!("{kind}.{group}/{}", text(r, "name"))
        }
    })
}

fn autoscaler(o: &Value) -> Vec<Value> {
    let target = at(o, "spec.scaleTargetRef");
    let metrics = items(o, "spec.metrics");
    let current = items(o, "status.currentMetrics");
    let mut shown: Vec<String> = metrics.iter().enumerate().map(|(i, m)| metric(m, current.get(i))).collect();
    let extra = shown.len().saturating_sub(2);
    shown.truncate(2);
    let mut text_ = if shown.is_empty() { "<none>".to_string() } else { shown.join(", ") };
    if extra > 0 {
        text_.push_str(&format!(" + {extra} more..."));
    }
    if o["spec"].get("targetCPUUtilizationPercentage").is_some() {
        let now = at(o, "status.currentCPUUtilizationPercentage")
            .as_i64()
            .map_or("<unknown>".into(), |n| format!("{n}%"));
        text_ = format!("cpu: {now}/{}%", int(o, "spec.targetCPUUtilizationPercentage"));
    }
    let min = at(o, "spec.minReplicas").as_i64().map_or("<unset>".into(), |n| n.to_string());
    vec![
        json!(format!("{}/{}", text(target, "kind"), text(target, "name"))),
        json!(text_),
        json!(min),
        count(o, "spec.maxReplicas"),
        count(o, "status.currentReplicas"),
    ]
}

fn metric(m: &Value, current: Option<&Value>) -> String {
    let field = match text(m, "type") {
        "ContainerResource" => "containerResource",
        "External" => "external",
        "Object" => "object",
        "Pods" => "pods",
        _ => "resource",
    };
    let wanted = &m[field]["target"];
    let empty = Value::Null;
    let is = current.map_or(&empty, |c| &c[field]["current"]);
    let plain = |v: &Value| match v {
        Value::String(s) => s.clone(),
        Value::Null => "<unknown>".into(),
        other => other.to_string(),
    };
    let shown = if !wanted["averageUtilization"].is_null() {
        let now = is["averageUtilization"].as_i64().map_or("<unknown>".into(), |n| format!("{n}%"));
        format!("{now}/{}%", int(wanted, "averageUtilization"))
    } else if !wanted["averageValue"].is_null() {
        let suffix = if field == "resource" || field == "pods" { "" } else { " (avg)" };
        format!("{}/{}{suffix}", plain(&is["averageValue"]), plain(&wanted["averageValue"]))
    } else {
        format!("{}/{}", plain(&is["value"]), plain(&wanted["value"]))
    };
    match field {
        "resource" => format!("{}: {shown}", text(&m[field], "name")),
        "containerResource" => format!("{}: {shown}", text(&m[field], "name")),
        _ => shown,
    }
}

fn ingress(o: &Value) -> Vec<Value> {
    let mut hosts: Vec<&str> =
        items(o, "spec.rules").iter().map(|r| text(r, "host")).filter(|h| !h.is_empty()).collect();
    hosts.dedup();
    let shown = match hosts.len() {
        0 => "*".to_string(),
        n if n > 3 => format!("{} + {} more...", hosts[..3].join(","), n - 3),
        _ => hosts.join(","),
    };
    let addresses: Vec<&str> = items(o, "status.loadBalancer.ingress")
        .iter()
        .map(|i| if text(i, "ip").is_empty() { text(i, "hostname") } else { text(i, "ip") })
        .collect();
    let class = text(o, "spec.ingressClassName");
    vec![
        json!(or_none(class)),
        json!(shown),
        json!(addresses.join(",")),
        json!(if items(o, "spec.tls").is_empty() { "80" } else { "80, 443" }),
    ]
}

fn parameters(p: &Value) -> String {
    if p.is_null() {
        return "<none>".into();
    }
    let group = text(p, "apiGroup");
    let kind =
        if group.is_empty() { text(p, "kind").to_string() } else { format!("{}.{group}", text(p, "kind")) };
    format!("{kind}/{}", text(p, "name"))
}

fn binding(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let of_kind = |kind: &str| {
        let subjects = items(o, "subjects").iter().filter(|s| text(s, "kind") == kind);
        let names = subjects.map(|s| match kind {
            "ServiceAccount" => format!(
                "{}/{}",
                if text(s, "namespace").is_empty() { namespace(o) } else { text(s, "namespace") },
                text(s, "name")
            ),
            _ => text(s, "name").to_string(),
        });
        json!(names.collect::<Vec<_>>().join(", "))
    };
    vec![
        json!(name(o)),
        json!(format!("{}/{}", text(o, "roleRef.kind"), text(o, "roleRef.name"))),
        json!(age(o, now)),
        of_kind("User"),
        of_kind("Group"),
        of_kind("ServiceAccount"),
    ]
}

fn csi_driver(o: &Value) -> Vec<Value> {
    let spec = &o["spec"];
    let tokens: Vec<&str> = items(spec, "tokenRequests").iter().map(|t| text(t, "audience")).collect();
    let modes: Vec<&str> = items(spec, "volumeLifecycleModes").iter().filter_map(Value::as_str).collect();
    vec![
        json!(spec["attachRequired"].as_bool().unwrap_or(true)),
        json!(flag(spec, "podInfoOnMount")),
        json!(flag(spec, "storageCapacity")),
        json!(if tokens.is_empty() { "<unset>".into() } else { tokens.join(",") }),
        json!(flag(spec, "requiresRepublish")),
        json!(if modes.is_empty() { "<none>".into() } else { modes.join(",") }),
    ]
}

fn request(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let has = |kind: &str| items(o, "status.conditions").iter().any(|c| text(c, "type") == kind);
    let mut state = vec![];
    for kind in ["Approved", "Denied", "Failed"] {
        if has(kind) {
            state.push(kind);
        }
    }
    if state.is_empty() {
        state.push("Pending");
    }
    if !text(o, "status.certificate").is_empty() {
        state.push("Issued");
    }
    let duration =
        at(o, "spec.expirationSeconds").as_i64().map_or("<none>".into(), keelson_api::duration::human);
    vec![
        json!(name(o)),
        json!(age(o, now)),
        json!(text(o, "spec.signerName")),
        json!(text(o, "spec.username")),
        json!(duration),
        json!(state.join(",")),
    ]
}
