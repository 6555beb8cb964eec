//! Validation of pods and pod templates.

use super::pod_scheduling::{affinity, tolerations, topology_spread};
use super::pod_volumes::{ENV_FIELDS, field_ref, mounts};
use crate::validate::{non_negative, one_of, one_of_if_set};
use crate::value::{at, int, items, text};
use keelson_api::{ErrorList, FieldError, Path, Quantity, names};
use serde_json::Value;
use std::collections::BTreeSet;

/// A whole pod (metadata is done by the caller).
pub fn pod(pod: &Value, errors: &mut ErrorList) {
    spec(&pod["spec"], &Path::new("spec"), errors);
    let fresh = text(pod, "metadata.resourceVersion").is_empty();
    if let Some(ephemeral) = pod["spec"]["ephemeralContainers"].as_array().filter(|l| !l.is_empty()) {
        if fresh {
            let path = Path::new("spec").child("ephemeralContainers");
            errors.push(FieldError::forbidden(&path, "cannot be set on create"));
            return;
        }
        super::pod_update::check_ephemeral(&pod["spec"], ephemeral, errors);
    }
}

/// A `PodTemplateSpec`.
pub fn template(template: &Value, path: &Path, errors: &mut ErrorList) {
    crate::meta::labels(at(template, "metadata.labels"), &path.child("labels"), errors);
    crate::meta::annotations(at(template, "metadata.annotations"), &path.child("annotations"), errors);
    spec(&template["spec"], &path.child("spec"), errors);
}

/// A `PodSpec`.
pub fn spec(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let volume_names = super::pod_volumes::volumes(spec, &path.child("volumes"), errors);
    let mut seen = BTreeSet::new();
    let containers = items(spec, "containers");
    if containers.is_empty() {
        errors.push(FieldError::required(&path.child("containers"), ""));
    }
    for (i, c) in containers.iter().enumerate() {
        container(spec, c, &path.child("containers").index(i), &volume_names, &mut seen, false, errors);
    }
    for (i, c) in items(spec, "initContainers").iter().enumerate() {
        container(spec, c, &path.child("initContainers").index(i), &volume_names, &mut seen, true, errors);
    }
    let policies = ["Always", "OnFailure", "Never"];
    match text(spec, "restartPolicy") {
        "" => errors.push(FieldError::required(&path.child("restartPolicy"), "")),
        p => one_of(p, &policies, &path.child("restartPolicy"), errors),
    }
    let dns = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    match text(spec, "dnsPolicy") {
        "" => errors.push(FieldError::required(&path.child("dnsPolicy"), "")),
        p => one_of(p, &dns, &path.child("dnsPolicy"), errors),
    }
    dns_config(spec, path, errors);
    crate::meta::labels(&spec["nodeSelector"], &path.child("nodeSelector"), errors);
    identity(spec, path, errors);
    if let Some(n) = spec["activeDeadlineSeconds"].as_i64().filter(|n| !(1..=i64::from(i32::MAX)).contains(n))
    {
        errors.push(FieldError::invalid(
            &path.child("activeDeadlineSeconds"),
            n,
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    tolerations(items(spec, "tolerations"), &path.child("tolerations"), errors);
    affinity(&spec["affinity"], &path.child("affinity"), errors);
    topology_spread(spec, &path.child("topologySpreadConstraints"), errors);
    readiness_gates(spec, path, errors);
    host_ports(spec, path, errors);
    pod_security(spec, path, errors);
    host_aliases(spec, path, errors);
    super::pod_features::spec(spec, path, errors);
}

fn identity(spec: &Value, path: &Path, errors: &mut ErrorList) {
    for field in ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"] {
        let value = text(spec, field);
        if !value.is_empty() {
            for problem in names::dns1123_subdomain(value) {
                errors.push(FieldError::invalid(&path.child(field), value, &problem));
            }
        }
    }
    for field in ["hostname", "subdomain"] {
        let value = text(spec, field);
        if !value.is_empty() {
            for problem in names::dns1123_label_without_dots(value) {
                errors.push(FieldError::invalid(&path.child(field), value, &problem));
            }
        }
    }
    for (i, s) in items(spec, "imagePullSecrets").iter().enumerate() {
        if text(s, "name").is_empty() {
            errors.push(FieldError::required(&path.child("imagePullSecrets").index(i).child("name"), ""));
        }
    }
    one_of_if_set(
        &spec["preemptionPolicy"],
        &["PreemptLowerPriority", "Never"],
        &path.child("preemptionPolicy"),
        errors,
    );
}

fn dns_config(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let config = &spec["dnsConfig"];
    let path = path.child("dnsConfig");
    let servers = items(config, "nameservers");
    if text(spec, "dnsPolicy") == "None" && config.is_null() {
        errors.push(FieldError::required(&path, "must provide `dnsConfig` when `dnsPolicy` is None"));
    } else if text(spec, "dnsPolicy") == "None" && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(&path.child("nameservers"), detail));
    }
    if servers.len() > 3 {
        let detail = "must not have more than 3 nameservers";
        errors.push(FieldError::invalid(
            &path.child("nameservers"),
            at(config, "nameservers").clone(),
            detail,
        ));
    }
    for (i, s) in servers.iter().enumerate() {
        crate::validate::ip(s.as_str().unwrap_or(""), &path.child("nameservers").index(i), errors);
    }
    let searches = items(config, "searches");
    if searches.len() > 32 {
        let detail = "must not have more than 32 search paths";
        errors.push(FieldError::invalid(&path.child("searches"), config["searches"].clone(), detail));
    }
    for (i, s) in searches.iter().enumerate() {
        let s = s.as_str().unwrap_or("");
        let part = |p: &str| {
            let p = p.strip_prefix('_').unwrap_or(p).as_bytes();
            let edge = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
            p.first().is_some_and(edge)
                && p.last().is_some_and(edge)
                && p.iter().all(|c| edge(c) || b"-_".contains(c))
        };
        let name = s.strip_suffix('.').unwrap_or(s);
        if s != "." && !name.split('.').all(part) {
            let detail = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and \
                          must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
                          '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
            errors.push(FieldError::invalid(&path.child("searches").index(i), s, detail));
        }
    }
    for (i, o) in items(config, "options").iter().enumerate() {
        if text(o, "name").is_empty() {
            errors.push(FieldError::required(&path.child("options").index(i), "must not be empty"));
        }
    }
}

fn container(
    spec: &Value,
    c: &Value,
    path: &Path,
    volumes: &BTreeSet<String>,
    seen: &mut BTreeSet<String>,
    init: bool,
    errors: &mut ErrorList,
) {
    let name = text(c, "name");
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), ""));
    } else {
        for problem in names::dns1123_label_without_dots(name) {
            errors.push(FieldError::invalid(&path.child("name"), name, &problem));
        }
    }
    if !name.is_empty() && !seen.insert(name.to_string()) {
        errors.push(FieldError::duplicate(&path.child("name"), name));
    }
    container_common(spec, c, path, volumes, errors);
    super::pod_features::container(c, path, errors);
    let restartable = text(c, "restartPolicy") == "Always";
    if init || c["restartPolicy"].is_string() {
        one_of_if_set(
            &c["restartPolicy"],
            &["Always", "Never", "OnFailure"],
            &path.child("restartPolicy"),
            errors,
        );
    }
    for probe_name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let value = &c[probe_name];
        if value.is_null() {
            continue;
        }
        if init && !restartable {
            let detail = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(&path.child(probe_name), detail));
            continue;
        }
        probe(value, &path.child(probe_name), errors);
        let success = int(value, "successThreshold");
        if probe_name != "readinessProbe" && success != 1 {
            errors.push(FieldError::invalid(
                &path.child(probe_name).child("successThreshold"),
                success,
                "must be 1",
            ));
        }
        let grace = &value["terminationGracePeriodSeconds"];
        if probe_name == "readinessProbe" && !grace.is_null() {
            let at_grace = path.child(probe_name).child("terminationGracePeriodSeconds");
            errors.push(FieldError::invalid(&at_grace, grace.clone(), "must not be set for readinessProbes"));
        }
    }
    for hook in ["postStart", "preStop"] {
        let value = &c["lifecycle"][hook];
        if value.is_null() {
            continue;
        }
        if init && !restartable {
            let detail = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(&path.child("lifecycle"), detail));
            continue;
        }
        handler(
            value,
            &["exec", "httpGet", "tcpSocket", "sleep"],
            &path.child("lifecycle").child(hook),
            errors,
        );
        let grace = spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
        if let Some(n) = value["sleep"]["seconds"].as_i64().filter(|n| *n < 0 || *n > grace) {
            let detail =
                format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
            errors.push(FieldError::invalid(&path.child("lifecycle").child(hook).child("sleep"), n, &detail));
        }
    }
}

/// What every kind of container obeys.
pub fn container_common(
    spec: &Value,
    c: &Value,
    path: &Path,
    volumes: &BTreeSet<String>,
    errors: &mut ErrorList,
) {
    let image = text(c, "image");
    if image.is_empty() {
        errors.push(FieldError::required(&path.child("image"), ""));
    } else if image != image.trim() {
        errors.push(FieldError::invalid(
            &path.child("image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    match text(c, "terminationMessagePolicy") {
        "" => errors.push(FieldError::required(&path.child("terminationMessagePolicy"), "")),
        p => one_of(p, &["File", "FallbackToLogsOnError"], &path.child("terminationMessagePolicy"), errors),
    }
    match text(c, "imagePullPolicy") {
        "" => errors.push(FieldError::required(&path.child("imagePullPolicy"), "")),
        p => one_of(p, &["Always", "IfNotPresent", "Never"], &path.child("imagePullPolicy"), errors),
    }
    ports(items(c, "ports"), &path.child("ports"), errors);
    env(items(c, "env"), &path.child("env"), errors);
    env_from(items(c, "envFrom"), &path.child("envFrom"), errors);
    mounts(spec, c, path, volumes, errors);
    devices(c, path, volumes, errors);
    resources(&c["resources"], &path.child("resources"), true, errors);
    let (security, path) = (&c["securityContext"], path.child("securityContext"));
    security_context(security, &path, errors);
    if security["procMount"] == "Unmasked" && spec["hostUsers"] != false {
        let detail = "`hostUsers` must be false to use `Unmasked`";
        errors.push(FieldError::invalid(&path.child("procMount"), "Unmasked", detail));
    }
}

/// Volumes as block devices.
fn devices(c: &Value, path: &Path, volumes: &BTreeSet<String>, errors: &mut ErrorList) {
    for (i, d) in items(c, "volumeDevices").iter().enumerate() {
        let at_i = path.child("volumeDevices").index(i);
        let name = text(d, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&at_i.child("name"), ""));
        }
        if !volumes.contains(name) {
            errors.push(FieldError::not_found(&at_i.child("name"), name));
        }
        crate::validate::required(d, "devicePath", &at_i, errors);
    }
}

fn ports(ports: &[Value], path: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, p) in ports.iter().enumerate() {
        let at_i = path.index(i);
        let name = text(p, "name");
        if !name.is_empty() {
            let problems = names::port_name(name);
            for problem in &problems {
                errors.push(FieldError::invalid(&at_i.child("name"), name, problem));
            }
            if problems.is_empty() && !seen.insert(name) {
                errors.push(FieldError::duplicate(&at_i.child("name"), name));
            }
        }
        match int(p, "containerPort") {
            0 => errors.push(FieldError::required(&at_i.child("containerPort"), "")),
            n => port(n, &at_i.child("containerPort"), errors),
        }
        if int(p, "hostPort") != 0 {
            port(int(p, "hostPort"), &at_i.child("hostPort"), errors);
        }
        match text(p, "protocol") {
            "" => errors.push(FieldError::required(&at_i.child("protocol"), "")),
            protocol => one_of(protocol, &["SCTP", "TCP", "UDP"], &at_i.child("protocol"), errors),
        }
    }
}

fn port(n: i64, path: &Path, errors: &mut ErrorList) {
    if let Some(problem) = names::port_number(n) {
        errors.push(FieldError::invalid(path, n, problem));
    }
}

fn env(env: &[Value], path: &Path, errors: &mut ErrorList) {
    for (i, e) in env.iter().enumerate() {
        let at_i = path.index(i);
        let name = text(e, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&at_i.child("name"), ""));
        } else {
            for problem in names::env_var_name(name) {
                errors.push(FieldError::invalid(&at_i.child("name"), name, &problem));
            }
        }
        env_source(e, &at_i.child("valueFrom"), errors);
    }
}

fn env_source(e: &Value, path: &Path, errors: &mut ErrorList) {
    let from = &e["valueFrom"];
    if from.is_null() {
        return;
    }
    let kinds: Vec<&str> = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"]
        .into_iter()
        .filter(|k| !from[*k].is_null())
        .collect();
    for kind in &kinds {
        let (source, path) = (&from[*kind], path.child(kind));
        if *kind == "secretKeyRef" {
            for problem in names::dns1123_subdomain(text(source, "name")) {
                errors.push(FieldError::invalid(&path.child("name"), text(source, "name"), &problem));
            }
        }
        match *kind {
            "fieldRef" => field_ref(source, &path, &ENV_FIELDS, errors),
            "configMapKeyRef" | "secretKeyRef" if crate::validate::required(source, "key", &path, errors) => {
                for problem in names::config_map_key(text(source, "key")) {
                    errors.push(FieldError::invalid(&path.child("key"), text(source, "key"), &problem));
                }
            }
            "resourceFieldRef" => {
                crate::validate::required(source, "resource", &path, errors);
                divisor(source, &path, errors);
            }
            _ => {}
        }
    }
    if !text(e, "value").is_empty() {
        if !kinds.is_empty() {
            errors.push(FieldError::invalid(path, "", "may not be specified when `value` is not empty"));
        }
    } else if kinds.is_empty() {
        let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.push(FieldError::invalid(path, "", detail));
    } else if kinds.len() > 1 {
        errors.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"));
    }
}

/// The unit in which a container sees its own resource.
fn divisor(source: &Value, path: &Path, errors: &mut ErrorList) {
    let (resource, divisor) = (text(source, "resource"), text(source, "divisor"));
    let kind = resource.rsplit('.').next().unwrap_or("");
    let bytes = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let known: &[&str] = match kind {
        "cpu" => &["1m", "1"],
        "memory" | "ephemeral-storage" => &bytes,
        _ => return,
    };
    if divisor.is_empty() || divisor == "0" || known.contains(&divisor) {
        return;
    }
    let shown = match kind {
        "ephemeral-storage" => "local ephemeral storage",
        other => other,
    };
    let detail =
        format!("only divisor's values {} are supported with the {shown} resource", known.join(", "));
    errors.push(FieldError::invalid(&path.child("divisor"), resource, &detail));
}

fn env_from(sources: &[Value], path: &Path, errors: &mut ErrorList) {
    for (i, s) in sources.iter().enumerate() {
        let at_i = path.index(i);
        let prefix = text(s, "prefix");
        if !prefix.is_empty() {
            for problem in names::env_var_name(prefix) {
                errors.push(FieldError::invalid(&at_i.child("prefix"), prefix, &problem));
            }
        }
        let kinds: Vec<&str> =
            ["configMapRef", "secretRef"].into_iter().filter(|k| !s[*k].is_null()).collect();
        for kind in &kinds {
            if crate::validate::required(&s[*kind], "name", &at_i.child(kind), errors) {
                let name = text(&s[*kind], "name");
                for problem in names::dns1123_subdomain(name) {
                    errors.push(FieldError::invalid(&at_i.child(kind).child("name"), name, &problem));
                }
            }
        }
        match kinds.len() {
            0 => errors.push(FieldError::invalid(
                path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            1 => {}
            _ => errors.push(FieldError::invalid(
                path,
                "",
                "may not have more than one field specified at a time",
            )),
        }
    }
}

fn probe(p: &Value, path: &Path, errors: &mut ErrorList) {
    handler(p, &["exec", "httpGet", "tcpSocket", "grpc"], path, errors);
    for field in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        non_negative(int(p, field), &path.child(field), errors);
    }
    if let Some(n) = p["terminationGracePeriodSeconds"].as_i64().filter(|n| *n <= 0) {
        errors.push(FieldError::invalid(
            &path.child("terminationGracePeriodSeconds"),
            n,
            "must be greater than 0",
        ));
    }
}

fn handler(h: &Value, kinds: &[&str], path: &Path, errors: &mut ErrorList) {
    let found: Vec<&str> = kinds.iter().copied().filter(|k| !h[*k].is_null()).collect();
    for (i, kind) in found.iter().enumerate() {
        let (action, path) = (&h[*kind], path.child(kind));
        if i > 0 {
            errors.push(FieldError::forbidden(&path, "may not specify more than 1 handler type"));
            continue;
        }
        match *kind {
            "exec" if items(action, "command").is_empty() => {
                errors.push(FieldError::required(&path.child("command"), ""));
            }
            "httpGet" => {
                crate::validate::required(action, "path", &path, errors);
                port_or_name(&action["port"], &path.child("port"), errors);
                one_of(text(action, "scheme"), &["HTTP", "HTTPS"], &path.child("scheme"), errors);
                for header in items(action, "httpHeaders") {
                    for problem in names::http_header_name(text(header, "name")) {
                        errors.push(FieldError::invalid(
                            &path.child("httpHeaders"),
                            text(header, "name"),
                            &problem,
                        ));
                    }
                }
            }
            "tcpSocket" => port_or_name(&action["port"], &path.child("port"), errors),
            "grpc" => port(int(action, "port"), &path.child("port"), errors),
            _ => {}
        }
    }
    if found.is_empty() {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

/// A port number or the name of one.
pub fn port_or_name(value: &Value, path: &Path, errors: &mut ErrorList) {
    match value {
        Value::String(s) => {
            for problem in names::port_name(s) {
                errors.push(FieldError::invalid(path, s.as_str(), &problem));
            }
        }
        other => port(other.as_i64().unwrap_or(0), path, errors),
    }
}

/// What may be asked for: of a container, or of a pod as a whole.
pub(super) fn resources(r: &Value, path: &Path, container: bool, errors: &mut ErrorList) {
    let named = |name: &str| r["limits"].get(name).is_some() || r["requests"].get(name).is_some();
    let lists = [&r["limits"], &r["requests"]].into_iter().filter_map(Value::as_object);
    let huge = lists.flatten().any(|(name, _)| name.starts_with("hugepages-"));
    for which in ["limits", "requests"] {
        let path = path.child(which);
        for (name, quantity) in r[which].as_object().into_iter().flatten() {
            let at_key = path.key(name);
            resource_name(name, &at_key, container, errors);
            crate::validate::non_negative_quantity(quantity, &at_key, errors);
            let whole = Quantity::from_value(quantity).is_ok_and(|q| q.is_integer());
            if name.contains('/') && !whole {
                errors.push(FieldError::invalid(&at_key, quantity.clone(), "must be an integer"));
            }
            if name.contains('/') && name.starts_with("requests.") {
                let detail = "doesn't follow extended resource name standard";
                errors.push(FieldError::invalid(&at_key, name.as_str(), detail));
            }
        }
    }
    if huge && !named("cpu") && !named("memory") {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
    for (name, request) in r["requests"].as_object().into_iter().flatten() {
        let (Ok(request_q), limit) = (Quantity::from_value(request), &r["limits"][name]) else { continue };
        // Whole devices are not shared: what is asked for is what is allowed.
        let whole = name.contains('/') && !name.contains("kubernetes.io/") || name.starts_with("hugepages-");
        if whole && limit.is_null() {
            let detail = "Limit must be set for non overcommitable resources";
            errors.push(FieldError::required(&path.child("limits"), detail));
        } else if whole && Quantity::from_value(limit).is_ok_and(|l| l != request_q) {
            let shown = limit.as_str().unwrap_or("");
            let detail = format!("must be equal to {name} limit of {shown}");
            errors.push(FieldError::invalid(&path.child("requests"), request.clone(), &detail));
        } else if let Ok(limit_q) = Quantity::from_value(limit)
            && !limit.is_null()
            && request_q > limit_q
        {
            let detail = format!("must be less than or equal to {name} limit of {limit_q}");
            errors.push(FieldError::invalid(&path.child("requests"), request.clone(), &detail));
        }
    }
}

fn resource_name(name: &str, path: &Path, container: bool, errors: &mut ErrorList) {
    for problem in names::qualified_name(name) {
        errors.push(FieldError::invalid(path, name, &problem));
    }
    let standard = ["cpu", "memory", "ephemeral-storage"].contains(&name) || name.starts_with("hugepages-");
    let elsewhere =
        ["pods", "services", "storage", "secrets", "configmaps", "persistentvolumeclaims", "resourcequotas"];
    if !name.contains('/') && !standard {
        if !elsewhere.contains(&name) && !name.starts_with("requests.") && !name.starts_with("limits.") {
            errors.push(FieldError::invalid(
                path,
                name,
                "must be a standard resource type or fully qualified",
            ));
        }
        if container {
            errors.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
        }
    }
}

/// Security profiles that a pod and its containers name alike.
fn profiles(s: &Value, path: &Path, errors: &mut ErrorList) {
    for (field, shown) in [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")] {
        let profile = &s[field];
        if profile.is_null() {
            continue;
        }
        let path = path.child(field);
        match text(profile, "type") {
            "" => {
                errors.push(FieldError::required(&path.child("type"), "type is required when profile is set"))
            }
            "Localhost" => {
                if text(profile, "localhostProfile").is_empty() {
                    let detail = format!("must be set when {shown} type is Localhost");
                    errors.push(FieldError::required(&path.child("localhostProfile"), &detail));
                }
            }
            kind => {
                one_of(kind, &["Localhost", "RuntimeDefault", "Unconfined"], &path.child("type"), errors);
                if !profile["localhostProfile"].is_null() {
                    let detail = format!("can only be set when {shown} type is Localhost");
                    let ty = if field == "seccompProfile" {
                        "core.v1.SeccompProfile"
                    } else {
                        "core.v1.AppArmorProfile"
                    };
                    let shown = crate::gotext::inner(ty, profile);
                    errors.push(FieldError::invalid_shown(&path.child("localhostProfile"), &shown, &detail));
                }
            }
        }
    }
}

fn sysctls(s: &Value, path: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, sysctl) in items(s, "sysctls").iter().enumerate() {
        let at_name = path.child("sysctls").index(i).child("name");
        let name = text(sysctl, "name");
        let part = |p: &str| {
            !p.is_empty()
                && p.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_".contains(&c))
        };
        if name.is_empty() {
            errors.push(FieldError::required(&at_name, ""));
        } else if name.len() > 253 || !name.split(['.', '/']).all(part) {
            let detail = "must have at most 253 characters and match regex \
                          ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(FieldError::invalid(&at_name, name, detail));
        } else if !seen.insert(name) {
            errors.push(FieldError::duplicate(&at_name, name));
        }
    }
}

fn security_context(s: &Value, path: &Path, errors: &mut ErrorList) {
    profiles(s, path, errors);
    for field in ["runAsUser", "runAsGroup"] {
        if let Some(n) = s[field].as_i64().filter(|n| !(0..=2147483647).contains(n)) {
            errors.push(FieldError::invalid(
                &path.child(field),
                n,
                "must be between 0 and 2147483647, inclusive",
            ));
        }
    }
    if s["allowPrivilegeEscalation"] == false && s["privileged"] == true {
        let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        let shown = crate::gotext::inner("core.v1.SecurityContext", s);
        errors.push(FieldError::invalid_shown(path, &shown, detail));
    }
    let all = items(s, "capabilities.add").iter().any(|c| c == "CAP_SYS_ADMIN");
    if s["allowPrivilegeEscalation"] == false && all {
        let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        let shown = crate::gotext::inner("core.v1.SecurityContext", s);
        errors.push(FieldError::invalid_shown(path, &shown, detail));
    }
}

fn pod_security(spec: &Value, path: &Path, errors: &mut ErrorList) {
    if spec["hostNetwork"] == true && spec["hostUsers"] == false {
        errors.push(FieldError::forbidden(&path.child("hostNetwork"), "when `hostUsers` is false"));
    }
    let (s, path) = (&spec["securityContext"], path.child("securityContext"));
    profiles(s, &path, errors);
    sysctls(s, &path, errors);
    one_of_if_set(
        &s["supplementalGroupsPolicy"],
        &["Merge", "Strict"],
        &path.child("supplementalGroupsPolicy"),
        errors,
    );
    one_of_if_set(&s["seLinuxChangePolicy"], &["Recursive"], &path.child("seLinuxChangePolicy"), errors);
    if spec["hostPID"] == true && spec["shareProcessNamespace"] == true {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(&path.child("shareProcessNamespace"), true, detail));
    }
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        if let Some(n) = s[field].as_i64().filter(|n| !(0..=2147483647).contains(n)) {
            errors.push(FieldError::invalid(
                &path.child(field),
                n,
                "must be between 0 and 2147483647, inclusive",
            ));
        }
    }
    for (i, g) in items(s, "supplementalGroups").iter().enumerate() {
        if let Some(n) = g.as_i64().filter(|n| !(0..=2147483647).contains(n)) {
            let at_i = path.child("supplementalGroups").index(i);
            errors.push(FieldError::invalid(&at_i, n, "must be between 0 and 2147483647, inclusive"));
        }
    }
}

fn readiness_gates(spec: &Value, path: &Path, errors: &mut ErrorList) {
    for (i, g) in items(spec, "readinessGates").iter().enumerate() {
        let kind = text(g, "conditionType");
        for problem in names::qualified_name(kind) {
            let at_kind = path.child("readinessGates").index(i).child("conditionType");
            errors.push(FieldError::invalid(&at_kind, kind, &problem));
        }
    }
    let gates = items(spec, "schedulingGates");
    if !gates.is_empty() && !text(spec, "nodeName").is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(&path.child("nodeName"), detail));
    }
    for (i, g) in gates.iter().enumerate() {
        if gates[..i].iter().any(|other| text(other, "name") == text(g, "name")) {
            errors.push(FieldError::duplicate(&path.child("schedulingGates").index(i), text(g, "name")));
        }
        for problem in names::qualified_name(text(g, "name")) {
            errors.push(FieldError::invalid(
                &path.child("schedulingGates").index(i),
                text(g, "name"),
                &problem,
            ));
        }
    }
}

fn host_ports(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    let host_network = spec["hostNetwork"] == true;
    for (i, c) in items(spec, "containers").iter().enumerate() {
        for (j, p) in items(c, "ports").iter().enumerate() {
            let at_port = path.child("containers").index(i).child("ports").index(j);
            let host = int(p, "hostPort");
            if host_network && host != 0 && host != int(p, "containerPort") {
                let at_ports = path.child("containers").index(i).child("ports").index(j).child("hostPort");
                errors.push(FieldError::invalid(
                    &at_ports,
                    host,
                    "must match `containerPort` when `hostNetwork` is true",
                ));
            }
            if host != 0 && !seen.insert((host, text(p, "protocol"), text(p, "hostIP"))) {
                let ip = text(p, "hostIP");
                let shown = format!("{}/{ip}/{host}", text(p, "protocol"));
                errors.push(FieldError::duplicate(&at_port.child("hostPort"), shown));
            }
        }
    }
}

fn host_aliases(spec: &Value, path: &Path, errors: &mut ErrorList) {
    for (i, a) in items(spec, "hostAliases").iter().enumerate() {
        let at_i = path.child("hostAliases").index(i);
        crate::validate::ip(text(a, "ip"), &at_i.child("ip"), errors);
        for (j, h) in items(a, "hostnames").iter().enumerate() {
            let h = h.as_str().unwrap_or("");
            for problem in names::dns1123_subdomain(h) {
                errors.push(FieldError::invalid(&at_i.child("hostnames").index(j), h, &problem));
            }
        }
    }
}
