//! Endpoints, EndpointSlices, Ingresses, IngressClasses, NetworkPolicies.

use super::Strategy;
use crate::context::{Context, Target};
use crate::validate::{cidr_problem, immutable, is_ip, label_selector, one_of, one_of_if_set};
use crate::value::{at, default, each_mut, int, is_empty, items, set, text};
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

pub struct Endpoints;

impl Strategy for Endpoints {
    fn default(&self, object: &mut Value) {
        for subset in each_mut(object, "subsets") {
            for port in each_mut(subset, "ports") {
                super::pod_spec::fill(port, "protocol", "TCP");
            }
        }
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        for (i, s) in items(object, "subsets").iter().enumerate() {
            let at_i = Path::new("subsets").index(i);
            if items(s, "addresses").is_empty() && items(s, "notReadyAddresses").is_empty() {
                errors.push(FieldError::required(&at_i, "must specify `addresses` or `notReadyAddresses`"));
            }
            for list in ["addresses", "notReadyAddresses"] {
                for (j, a) in items(s, list).iter().enumerate() {
                    let (ip, at_ip) = (text(a, "ip"), at_i.child(list).index(j).child("ip"));
                    let before = errors.len();
                    crate::validate::ip(ip, &at_ip, errors);
                    match (errors.len() == before, is_ip(ip)) {
                        (true, _) => super::services::outside_ip(ip, &at_ip, errors),
                        // Looked at twice, with other words.
                        (false, false) if !crate::validate::leading_zeros(ip) => {
                            errors.push(FieldError::invalid(&at_ip, ip, "must be a valid IP address"));
                        }
                        _ => {}
                    }
                }
            }
            let ports = items(s, "ports");
            for (j, p) in ports.iter().enumerate() {
                endpoint_port(p, ports.len() > 1, &at_i.child("ports").index(j), errors);
            }
        }
    }
}

fn endpoint_port(p: &Value, named: bool, path: &Path, errors: &mut ErrorList) {
    let name = text(p, "name");
    if name.is_empty() {
        if named {
            errors.push(FieldError::required(&path.child("name"), ""));
        }
    } else {
        for problem in names::dns1123_label(name) {
            errors.push(FieldError::invalid(&path.child("name"), name, &problem));
        }
    }
    if let Some(problem) = names::port_number(int(p, "port")) {
        errors.push(FieldError::invalid(&path.child("port"), int(p, "port"), problem));
    }
    match text(p, "protocol") {
        "" => errors.push(FieldError::required(&path.child("protocol"), "")),
        protocol => one_of(protocol, &PROTOCOLS, &path.child("protocol"), errors),
    }
}

pub struct EndpointSlices;

impl Strategy for EndpointSlices {
    fn default(&self, object: &mut Value) {
        for port in each_mut(object, "ports") {
            default(port, "name", "");
            default(port, "protocol", "TCP");
        }
    }
    fn prepare_create(&self, object: &mut Value, _: &Context) {
        // Only the versions before this one had it.
        each_mut(object, "endpoints").for_each(|e| drop(crate::value::take(e, "deprecatedTopology")));
    }
    fn generation(&self) -> bool {
        true
    }
    fn spec_changed(&self, old: &Value, new: &Value) -> bool {
        ["endpoints", "ports", "addressType"].iter().any(|f| !crate::value::same(&old[*f], &new[*f]))
            || old["metadata"]["labels"] != new["metadata"]["labels"]
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let kind = text(object, "addressType");
        if kind.is_empty() {
            errors.push(FieldError::required(&Path::new("addressType"), ""));
        } else {
            one_of(kind, &["FQDN", "IPv4", "IPv6"], &Path::new("addressType"), errors);
        }
        for (i, e) in items(object, "endpoints").iter().enumerate() {
            slice_endpoint(e, kind, &Path::new("endpoints").index(i), errors);
        }
        let ports = items(object, "ports");
        if ports.len() > 20_000 {
            errors.push(FieldError::too_many(&Path::new("ports"), ports.len(), 20_000));
        }
        let mut seen = BTreeSet::new();
        for (i, p) in ports.iter().enumerate() {
            let at_i = Path::new("ports").index(i);
            let name = text(p, "name");
            if !name.is_empty() {
                for problem in names::dns1123_label(name) {
                    errors.push(FieldError::invalid(&at_i.child("name"), name, &problem));
                }
            }
            if !seen.insert(name) {
                errors.push(FieldError::duplicate(&at_i.child("name"), name));
            }
            match text(p, "protocol") {
                "" => errors.push(FieldError::required(&at_i.child("protocol"), "")),
                protocol => one_of(protocol, &PROTOCOLS, &at_i.child("protocol"), errors),
            }
            if let Some(app) = p["appProtocol"].as_str() {
                for problem in names::qualified_name(app) {
                    errors.push(FieldError::invalid(&at_i.child("appProtocol"), app, &problem));
                }
            }
        }
    }
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        immutable(current, new, "addressType", errors);
    }
}

fn slice_endpoint(e: &Value, kind: &str, path: &Path, errors: &mut ErrorList) {
    if let Some(node) = e["nodeName"].as_str() {
        for problem in names::dns1123_subdomain(node) {
            errors.push(FieldError::invalid(&path.child("nodeName"), node, &problem));
        }
    }
    if let Some(host) = e["hostname"].as_str() {
        for problem in names::dns1123_label(host) {
            errors.push(FieldError::invalid(&path.child("hostname"), host, &problem));
        }
    }
    let addresses = items(e, "addresses");
    if addresses.is_empty() {
        errors.push(FieldError::required(&path.child("addresses"), "must contain at least 1 address"));
    } else if addresses.len() > 100 {
        errors.push(FieldError::too_many(&path.child("addresses"), addresses.len(), 100));
    }
    for (j, a) in addresses.iter().enumerate() {
        let (a, at_j) = (a.as_str().unwrap_or(""), path.child("addresses").index(j));
        match kind {
            "FQDN" => {
                for problem in names::dns1123_subdomain(a) {
                    errors.push(FieldError::invalid(&at_j, a, &problem));
                }
            }
            "IPv4" | "IPv6" => {
                let before = errors.len();
                crate::validate::ip(a, &at_j, errors);
                if errors.len() > before {
                    continue;
                }
                let four = a.parse::<std::net::Ipv4Addr>().is_ok();
                if four != (kind == "IPv4") {
                    let detail = format!("must be an {kind} address");
                    errors.push(FieldError::invalid(&path.child("addresses"), a, &detail));
                }
                super::services::outside_ip(a, &at_j, errors);
            }
            _ => {}
        }
    }
}

pub struct Ingresses;

impl Strategy for Ingresses {
    fn generation(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let path = Path::new("spec");
        let spec = &object["spec"];
        if items(spec, "rules").is_empty() && spec["defaultBackend"].is_null() {
            let detail = "either `defaultBackend` or `rules` must be specified";
            errors.push(FieldError::invalid(&path, spec["rules"].clone(), detail));
        }
        if !spec["defaultBackend"].is_null() {
            backend(&spec["defaultBackend"], &path.child("defaultBackend"), errors);
        }
        for (i, rule) in items(spec, "rules").iter().enumerate() {
            ingress_rule(rule, &path.child("rules").index(i), errors);
        }
        if let Some(class) = spec["ingressClassName"].as_str() {
            for problem in names::dns1123_subdomain(class) {
                errors.push(FieldError::invalid(&path.child("ingressClassName"), class, &problem));
            }
        }
        for (i, tls) in items(spec, "tls").iter().enumerate() {
            let secret = text(tls, "secretName");
            for problem in names::dns1123_subdomain(secret).iter().filter(|_| !secret.is_empty()) {
                let at_secret = path.child("tls").index(i).child("secretName");
                errors.push(FieldError::invalid(&at_secret, secret, problem));
            }
            for (j, host) in items(tls, "hosts").iter().enumerate() {
                let host = host.as_str().unwrap_or("");
                let problems = if host.contains('*') {
                    names::wildcard_dns1123_subdomain(host)
                } else {
                    names::dns1123_subdomain(host)
                };
                for problem in problems {
                    errors.push(FieldError::invalid(
                        &path.child("tls").index(i).child("hosts").index(j),
                        host,
                        &problem,
                    ));
                }
            }
        }
    }
}

fn ingress_rule(rule: &Value, path: &Path, errors: &mut ErrorList) {
    let host = text(rule, "host");
    if !host.is_empty() {
        if is_ip(host) {
            errors.push(FieldError::invalid(
                &path.child("host"),
                host,
                "must be a DNS name, not an IP address",
            ));
        }
        let problems = if host.contains('*') {
            names::wildcard_dns1123_subdomain(host)
        } else {
            names::dns1123_subdomain(host)
        };
        for problem in problems {
            errors.push(FieldError::invalid(&path.child("host"), host, &problem));
        }
    }
    if rule["http"].is_null() {
        return;
    }
    let at_paths = path.child("http").child("paths");
    let paths = items(rule, "http.paths");
    if paths.is_empty() {
        errors.push(FieldError::required(&at_paths, ""));
    }
    for (i, p) in paths.iter().enumerate() {
        let at_i = at_paths.index(i);
        match p["pathType"].as_str() {
            None => errors.push(FieldError::required(&at_i.child("pathType"), "pathType must be specified")),
            Some("Exact" | "Prefix") if !text(p, "path").starts_with('/') => {
                errors.push(FieldError::invalid(
                    &at_i.child("path"),
                    text(p, "path"),
                    "must be an absolute path",
                ));
            }
            Some("Exact" | "Prefix" | "ImplementationSpecific") => {}
            Some(other) => {
                let known = ["Exact", "ImplementationSpecific", "Prefix"];
                errors.push(FieldError::not_supported(&at_i.child("pathType"), other, &known));
            }
        }
        if ["Exact", "Prefix"].contains(&text(p, "pathType")) {
            for part in
                ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|part| text(p, "path").contains(**part))
            {
                let detail = format!("must not contain '{part}'");
                errors.push(FieldError::invalid(&at_i.child("path"), text(p, "path"), &detail));
            }
            for part in ["/..", "/."].iter().filter(|part| text(p, "path").ends_with(**part)) {
                let detail = format!("cannot end with '{part}'");
                errors.push(FieldError::invalid(&at_i.child("path"), text(p, "path"), &detail));
            }
        }
        backend(&p["backend"], &at_i.child("backend"), errors);
    }
}

fn backend(b: &Value, path: &Path, errors: &mut ErrorList) {
    match (b["service"].is_null(), b["resource"].is_null()) {
        (true, true) => errors.push(FieldError::invalid(path, "", "resource or service backend is required")),
        (false, false) => {
            errors.push(FieldError::invalid(path, "", "cannot set both resource and service backends"))
        }
        (false, true) => {
            let (service, whole, path) = (&b["service"], path, path.child("service"));
            let name = text(service, "name");
            if name.is_empty() {
                errors.push(FieldError::required(&path.child("name"), ""));
            } else {
                for problem in names::dns1035_label(name) {
                    errors.push(FieldError::invalid(&path.child("name"), name, &problem));
                }
            }
            let (port_name, number) = (text(service, "port.name"), int(service, "port.number"));
            if port_name.is_empty() && number == 0 {
                errors.push(FieldError::required(whole, "port name or number is required"));
            } else if !port_name.is_empty() && number != 0 {
                errors.push(FieldError::invalid(whole, "", "cannot set both port name & port number"));
            } else if !port_name.is_empty() {
                for problem in names::port_name(port_name) {
                    errors.push(FieldError::invalid(&path.child("port").child("name"), port_name, &problem));
                }
            } else if let Some(problem) = names::port_number(number) {
                errors.push(FieldError::invalid(&path.child("port").child("number"), number, problem));
            }
        }
        (true, false) => {
            for field in ["kind", "name"] {
                crate::validate::required(&b["resource"], field, &path.child("resource"), errors);
            }
        }
    }
}

pub struct IngressClasses;

impl Strategy for IngressClasses {
    fn default(&self, object: &mut Value) {
        if at(object, "spec.parameters").is_object() {
            default(object, "spec.parameters.scope", "Cluster");
        }
    }
    fn generation(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let path = Path::new("spec").child("controller");
        let controller = text(object, "spec.controller");
        if controller.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else if controller.len() > 250 {
            errors.push(FieldError::too_long(&path, 250));
        } else if !controller.contains('/') {
            let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.push(FieldError::invalid(&path, controller, detail));
        }
        let parameters = at(object, "spec.parameters");
        if parameters.is_object() {
            for field in ["kind", "name"] {
                crate::validate::required(parameters, field, &Path::new("spec").child("parameters"), errors);
            }
        }
    }
    fn validate_change(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        let (old, now) = (text(current, "spec.controller"), text(new, "spec.controller"));
        if old != now {
            let path = Path::new("spec").child("controller");
            errors.push(FieldError::invalid(&path, now, "field is immutable"));
        }
    }
}

pub struct NetworkPolicies;

impl Strategy for NetworkPolicies {
    fn default(&self, object: &mut Value) {
        for direction in ["ingress", "egress"] {
            for rule in each_mut(&mut object["spec"], direction) {
                for port in each_mut(rule, "ports") {
                    default(port, "protocol", "TCP");
                }
            }
        }
        if is_empty(at(object, "spec.policyTypes")) {
            let egress = !items(object, "spec.egress").is_empty();
            set(
                object,
                "spec.policyTypes",
                if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) },
            );
        }
    }
    fn generation(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let path = Path::new("spec");
        let spec = &object["spec"];
        label_selector(&spec["podSelector"], &path.child("podSelector"), errors);
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for (i, rule) in items(spec, direction).iter().enumerate() {
                let at_i = path.child(direction).index(i);
                for (j, port) in items(rule, "ports").iter().enumerate() {
                    policy_port(port, &at_i.child("ports").index(j), errors);
                }
                for (j, peer) in items(rule, peers).iter().enumerate() {
                    policy_peer(peer, &at_i.child(peers).index(j), errors);
                }
            }
        }
        let types = items(spec, "policyTypes");
        if types.len() > 2 {
            let detail = "may not specify more than two policyTypes";
            errors.push(FieldError::invalid(&path.child("policyTypes"), spec["policyTypes"].clone(), detail));
            return;
        }
        for (i, t) in types.iter().enumerate() {
            one_of(
                t.as_str().unwrap_or(""),
                &["Egress", "Ingress"],
                &path.child("policyTypes").index(i),
                errors,
            );
        }
    }
}

fn policy_port(p: &Value, path: &Path, errors: &mut ErrorList) {
    one_of_if_set(&p["protocol"], &PROTOCOLS, &path.child("protocol"), errors);
    if !p["port"].is_null() {
        super::pod_validate::port_or_name(&p["port"], &path.child("port"), errors);
    }
    if let Some(end) = p["endPort"].as_i64() {
        match p["port"].as_i64() {
            None if p["port"].is_null() => {
                errors.push(FieldError::invalid(
                    &path.child("endPort"),
                    end,
                    "may not be specified when `port` is not specified",
                ));
            }
            None => errors.push(FieldError::invalid(
                &path.child("endPort"),
                end,
                "may not be specified when `port` is non-numeric",
            )),
            Some(first) if end < first => {
                errors.push(FieldError::invalid(
                    &path.child("endPort"),
                    end,
                    "must be greater than or equal to `port`",
                ));
            }
            Some(_) => {
                if let Some(problem) = names::port_number(end) {
                    errors.push(FieldError::invalid(&path.child("endPort"), end, problem));
                }
            }
        }
    }
}

fn policy_peer(p: &Value, path: &Path, errors: &mut ErrorList) {
    let mut kinds = 0;
    for kind in ["podSelector", "namespaceSelector"] {
        if !p[kind].is_null() {
            kinds += 1;
            label_selector(&p[kind], &path.child(kind), errors);
        }
    }
    if !p["ipBlock"].is_null() {
        let at_block = path.child("ipBlock");
        let cidr = text(&p["ipBlock"], "cidr");
        if cidr.is_empty() {
            errors.push(FieldError::required(&at_block.child("cidr"), ""));
        } else if let Some(detail) = cidr_problem(cidr) {
            errors.push(FieldError::invalid(&at_block.child("cidr"), cidr, detail));
        }
        for (i, except) in items(&p["ipBlock"], "except").iter().map(|e| e.as_str().unwrap_or("")).enumerate()
        {
            let inside = |outer: ipnet::IpNet, inner: ipnet::IpNet| outer != inner && outer.contains(&inner);
            let detail =
                match (cidr_problem(except), cidr.parse::<ipnet::IpNet>(), except.parse::<ipnet::IpNet>()) {
                    (Some(problem), ..) => problem,
                    (_, Ok(outer), Ok(inner)) if !inside(outer, inner) => "must be a strict subset of `cidr`",
                    _ => continue,
                };
            errors.push(FieldError::invalid(&at_block.child("except").index(i), except, detail));
        }
        if kinds > 0 {
            errors.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer"));
        }
        kinds += 1;
    }
    if kinds == 0 {
        errors.push(FieldError::required(path, "must specify a peer"));
    }
}
