//! Services: defaults, cluster IPs and node ports, validation.
//!
//! Addresses are chosen from the view and claimed in the store, so two servers never give the same one. A claim's key is
//! `/registry/keelson/serviceips/<ip>` or `/registry/keelson/nodeports/<port>`; its owner is `namespace/name`.

use super::Strategy;
use super::pod_validate::port_or_name;
use crate::context::{Claim, Context, Target};
use crate::validate::{one_of, one_of_if_set};
use crate::value::{at, default, each_mut, int, is_empty, items, name, namespace, set, take, text};
use keelson_api::{ErrorList, FieldError, Path, Status, names};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

const IP_CLAIMS: &str = "/registry/keelson/serviceips/";
const PORT_CLAIMS: &str = "/registry/keelson/nodeports/";
const AFFINITY_SECONDS: i64 = 10800;

pub struct Services;

fn external(kind: &str) -> bool {
    kind == "NodePort" || kind == "LoadBalancer"
}

fn needs_cluster_ip(service: &Value) -> bool {
    text(service, "spec.type") != "ExternalName" && text(service, "spec.clusterIP") != "None"
}

fn needs_node_ports(service: &Value) -> bool {
    match text(service, "spec.type") {
        "NodePort" => true,
        "LoadBalancer" => at(service, "spec.allocateLoadBalancerNodePorts") != &json!(false),
        _ => false,
    }
}

fn needs_health_port(service: &Value) -> bool {
    text(service, "spec.type") == "LoadBalancer" && text(service, "spec.externalTrafficPolicy") == "Local"
}

impl Strategy for Services {
    fn default(&self, service: &mut Value) {
        crate::value::object_mut(service, "spec");
        let spec = &mut service["spec"];
        super::pod_spec::fill(spec, "sessionAffinity", "None");
        super::pod_spec::fill(spec, "type", "ClusterIP");
        match text(spec, "sessionAffinity") {
            "ClientIP" => default(spec, "sessionAffinityConfig.clientIP.timeoutSeconds", AFFINITY_SECONDS),
            "None" => drop(take(spec, "sessionAffinityConfig")),
            _ => {}
        }
        for port in each_mut(spec, "ports") {
            super::pod_spec::fill(port, "protocol", "TCP");
            if matches!(&port["targetPort"], Value::Null)
                || port["targetPort"] == 0
                || port["targetPort"] == ""
            {
                let number = port["port"].clone();
                set(port, "targetPort", number);
            }
        }
        let kind = text(spec, "type").to_string();
        let exposed = kind == "ClusterIP" && !items(spec, "externalIPs").is_empty();
        if external(&kind) || exposed {
            super::pod_spec::fill(spec, "externalTrafficPolicy", "Cluster");
        }
        if kind != "ExternalName" && spec["internalTrafficPolicy"].is_null() {
            set(spec, "internalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            default(spec, "allocateLoadBalancerNodePorts", true);
        }
        addresses(spec);
    }
    fn name_check(&self) -> crate::meta::NameCheck {
        names::dns1123_label_without_dots
    }
    fn answers_deleted_object(&self) -> bool {
        true
    }
    /// An address is given before the object is looked at, and the object that stands for it needs the name.
    fn before_create(&self, target: &Target, service: &Value) -> Result<(), Status> {
        let problem = match name(service) {
            "" => "Required value".to_owned(),
            given => match names::path_segment(given).first() {
                Some(problem) => format!("Invalid value: {}: {problem}", keelson_api::field::quote(given)),
                None => return Ok(()),
            },
        };
        if !needs_cluster_ip(service) {
            return Ok(());
        }
        let ip = text(service, "spec.clusterIP");
        let shown = if ip.is_empty() { "10.96.0.1" } else { ip };
        let detail = format!(
            "failed to allocate IP: IPAddress.networking.k8s.io {} is invalid: spec.parentRef.name: {problem}",
            keelson_api::field::quote(shown)
        );
        let error = FieldError::invalid(&Path::new("spec").child("clusterIPs"), json!([ip]), &detail);
        Err(Status::invalid(target.resource, name(service), vec![error]))
    }
    fn warnings(&self, service: &Value) -> Vec<String> {
        let mut out = vec![];
        if !items(service, "spec.externalIPs").is_empty() {
            out.push(
                "spec.externalIPs is deprecated and may no longer be implemented in some clusters".into(),
            );
        }
        if !text(service, "spec.externalName").is_empty() && text(service, "spec.type") != "ExternalName" {
            out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
        }
        out
    }
    fn prepare_create(&self, service: &mut Value, _: &Context) {
        set(service, "status", json!({"loadBalancer": {}}));
    }
    fn prepare_update(&self, target: &Target, current: &Value, new: &mut Value, _: &Context) {
        if target.subresource.is_none() {
            carry(current, new);
            drop_type_fields(current, new);
        }
    }
    fn allocate(
        &self,
        target: &Target,
        current: Option<&Value>,
        new: &mut Value,
        ctx: &Context,
    ) -> Result<Vec<Claim>, Status> {
        if target.subresource.is_some() {
            return Ok(vec![]);
        }
        Allocator { target, ctx, current }.run(new)
    }
    fn release(&self, service: &Value) -> Vec<Claim> {
        keys(service).into_iter().map(|key| Claim { key, owner: owner(service), take: false }).collect()
    }
    fn validate(&self, service: &Value, errors: &mut ErrorList) {
        validate(service, errors);
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource.is_some() {
            let path = Path::new("status").child("loadBalancer").child("ingress");
            if !items(new, "status.loadBalancer.ingress").is_empty()
                && text(new, "spec.type") != "LoadBalancer"
            {
                errors.push(FieldError::forbidden(
                    &path,
                    "may only be used when `spec.type` is 'LoadBalancer'",
                ));
            }
            return;
        }
        let path = Path::new("spec").child("clusterIPs");
        let (old, now) = (text(current, "spec.clusterIP"), text(new, "spec.clusterIP"));
        let was_ip = text(current, "spec.type") != "ExternalName";
        let address = now.is_empty() || now == "None" || crate::validate::is_ip(now);
        if was_ip && text(new, "spec.type") != "ExternalName" && old != now && !old.is_empty() && address {
            errors.push(FieldError::invalid(&path.index(0), json!([now]), "may not change once set"));
        }
        if text(new, "spec.type") != "LoadBalancer" && !at(new, "spec.loadBalancerClass").is_null() {
            // Once more as a change.
            let path = Path::new("spec").child("loadBalancerClass");
            errors.push(FieldError::forbidden(&path, "may only be used when `type` is 'LoadBalancer'"));
        }
    }
}

/// One cluster IP and the list of them say the same.
fn addresses(spec: &mut Value) {
    let ip = text(spec, "clusterIP").to_string();
    let first = items(spec, "clusterIPs").first().and_then(Value::as_str).map(String::from);
    if !ip.is_empty() && first.is_none() {
        set(spec, "clusterIPs", json!([ip]));
    }
}

/// An update that leaves out what the server gave keeps it.
fn carry(current: &Value, new: &mut Value) {
    if needs_cluster_ip(current) && needs_cluster_ip(new) && text(new, "spec.clusterIP").is_empty() {
        crate::value::copy(current, new, "spec.clusterIP");
        crate::value::copy(current, new, "spec.clusterIPs");
    }
    let ip = text(new, "spec.clusterIP").to_string();
    if ip != text(current, "spec.clusterIP") && at(new, "spec.clusterIPs") == at(current, "spec.clusterIPs") {
        // Only one of the two was changed.
        if ip.is_empty() {
            take(&mut new["spec"], "clusterIPs");
        } else {
            set(new, "spec.clusterIPs", json!([ip]));
        }
    }
    if text(new, "spec.type") != "ExternalName" && text(current, "spec.type") != "ExternalName" {
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if is_empty(&new["spec"][field]) {
                crate::value::copy(&current["spec"], &mut new["spec"], field);
            }
        }
    }
    if needs_node_ports(current) && needs_node_ports(new) {
        let old: Vec<Value> = items(current, "spec.ports").to_vec();
        let mut taken: BTreeSet<i64> = items(new, "spec.ports").iter().map(|p| int(p, "nodePort")).collect();
        for port in each_mut(&mut new["spec"], "ports") {
            if int(port, "nodePort") != 0 {
                continue;
            }
            let same = |o: &&Value| {
                int(o, "port") == int(port, "port") && text(o, "protocol") == text(port, "protocol")
            };
            if let Some(number) = old.iter().find(same).map(|o| int(o, "nodePort")).filter(|n| *n != 0)
                && taken.insert(number)
            {
                set(port, "nodePort", number);
            }
        }
    }
    if needs_health_port(current) && needs_health_port(new) && int(new, "spec.healthCheckNodePort") == 0 {
        crate::value::copy(current, new, "spec.healthCheckNodePort");
    }
}

/// Changing the type drops what only the old type had, unless the client asks for it.
fn drop_type_fields(current: &Value, new: &mut Value) {
    let (old_kind, kind) = (text(current, "spec.type").to_string(), text(new, "spec.type").to_string());
    if old_kind == kind {
        return;
    }
    let unchanged = |v: &Value, f: &str| current["spec"][f] == v["spec"][f];
    if needs_cluster_ip(current) && !needs_cluster_ip(new) && kind == "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if unchanged(new, field) {
                take(&mut new["spec"], field);
            }
        }
        take(&mut new["spec"], "internalTrafficPolicy");
    }
    if needs_node_ports(current) && !needs_node_ports(new) {
        let old: Vec<i64> = items(current, "spec.ports").iter().map(|p| int(p, "nodePort")).collect();
        for port in each_mut(&mut new["spec"], "ports") {
            if old.contains(&int(port, "nodePort")) {
                take(port, "nodePort");
            }
        }
    }
    if external(&old_kind) && !external(&kind) && unchanged(new, "externalTrafficPolicy") {
        take(&mut new["spec"], "externalTrafficPolicy");
    }
    if old_kind == "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass", "healthCheckNodePort"] {
            if unchanged(new, field) {
                take(&mut new["spec"], field);
            }
        }
    }
}

fn owner(service: &Value) -> String {
    format!("{}/{}", namespace(service), name(service))
}

/// Every claim a service holds.
fn keys(service: &Value) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for ip in items(service, "spec.clusterIPs")
        .iter()
        .filter_map(Value::as_str)
        .filter(|ip| *ip != "None" && !ip.is_empty())
    {
        out.insert(format!("{IP_CLAIMS}{ip}"));
    }
    let ports = items(service, "spec.ports").iter().map(|p| int(p, "nodePort"));
    for port in ports.chain([int(service, "spec.healthCheckNodePort")]).filter(|p| *p != 0) {
        out.insert(format!("{PORT_CLAIMS}{port}"));
    }
    out
}

struct Allocator<'a> {
    target: &'a Target<'a>,
    ctx: &'a Context<'a>,
    current: Option<&'a Value>,
}

impl Allocator<'_> {
    fn run(&self, service: &mut Value) -> Result<Vec<Claim>, Status> {
        let held = self.current.map(keys).unwrap_or_default();
        self.families(service);
        if needs_cluster_ip(service) {
            self.cluster_ip(service, &held)?;
        }
        if needs_node_ports(service) {
            self.node_ports(service, &held)?;
        }
        if needs_health_port(service) && int(service, "spec.healthCheckNodePort") == 0 {
            let used = self.used_ports(service);
            let port = self.free_port(service, &used)?;
            set(service, "spec.healthCheckNodePort", port);
        }
        let wanted = keys(service);
        let owner = owner(service);
        let taken =
            wanted.difference(&held).map(|key| Claim { key: key.clone(), owner: owner.clone(), take: true });
        let given =
            held.difference(&wanted).map(|key| Claim { key: key.clone(), owner: owner.clone(), take: false });
        Ok(taken.chain(given).collect())
    }

    fn families(&self, service: &mut Value) {
        if text(service, "spec.type") == "ExternalName" {
            return;
        }
        let headless_alone =
            text(service, "spec.clusterIP") == "None" && is_empty(at(service, "spec.selector"));
        if at(service, "spec.ipFamilyPolicy").is_null() {
            let policy = if headless_alone && is_empty(at(service, "spec.ipFamilies")) {
                "RequireDualStack"
            } else {
                "SingleStack"
            };
            set(service, "spec.ipFamilyPolicy", policy);
        }
        if is_empty(at(service, "spec.ipFamilies")) {
            let dual = headless_alone && text(service, "spec.ipFamilyPolicy") != "SingleStack";
            set(service, "spec.ipFamilies", if dual { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) });
        }
    }

    fn invalid(&self, service: &Value, error: FieldError) -> Status {
        Status::invalid(self.target.resource, name(service), vec![error])
    }

    fn cluster_ip(&self, service: &mut Value, held: &BTreeSet<String>) -> Result<(), Status> {
        let path = Path::new("spec").child("clusterIPs");
        let given = text(service, "spec.clusterIP").to_string();
        if given.is_empty() {
            let ip = self.free_ip(service)?.to_string();
            set(service, "spec.clusterIP", ip.as_str());
            set(service, "spec.clusterIPs", json!([ip]));
            return Ok(());
        }
        let key = format!("{IP_CLAIMS}{given}");
        if held.contains(&key) {
            return Ok(());
        }
        let Ok(ip) = given.parse::<Ipv4Addr>() else { return Ok(()) };
        let shown = json!([given]);
        let cidr = self.ctx.service_cidr;
        if !cidr.contains(&ip) || ip == cidr.network() || ip == cidr.broadcast() {
            let detail = format!(
                "failed to allocate IP {given}: the provided network does not match the current range"
            );
            return Err(self.invalid(service, FieldError::invalid(&path, shown, &detail)));
        }
        if self.ctx.view.claimed(&key) || self.used_ips(service).contains(&ip) {
            let detail = format!("failed to allocate IP {given}: provided IP is already allocated");
            return Err(self.invalid(service, FieldError::invalid(&path, shown, &detail)));
        }
        Ok(())
    }

    fn others(&self, service: &Value) -> Vec<std::sync::Arc<Value>> {
        let mut all = self.ctx.view.list("", "services", None);
        all.retain(|s| name(s) != name(service) || namespace(s) != namespace(service));
        all
    }

    fn used_ips(&self, service: &Value) -> BTreeSet<Ipv4Addr> {
        let others = self.others(service);
        others
            .iter()
            .flat_map(|s| items(s, "spec.clusterIPs"))
            .filter_map(|ip| ip.as_str()?.parse().ok())
            .collect()
    }

    fn used_ports(&self, service: &Value) -> BTreeSet<i64> {
        let mut used: BTreeSet<i64> = self.others(service).iter().flat_map(|s| ports_of(s)).collect();
        used.extend(ports_of(service));
        used
    }

    /// A seed that differs per object and is the same for a retry of the same request.
    fn seed(&self, service: &Value) -> u64 {
        let text = format!("{}{}{}", self.ctx.uid, self.ctx.suffix, owner(service));
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
    }

    fn free_ip(&self, service: &Value) -> Result<Ipv4Addr, Status> {
        let cidr = self.ctx.service_cidr;
        let (first, last) = (u32::from(cidr.network()) + 1, u32::from(cidr.broadcast()).saturating_sub(1));
        let count = last.saturating_sub(first) + 1;
        // The low end is left to addresses that people choose, as long as there is room.
        let band = (count / 16).clamp(16, 256).min(count);
        let used = self.used_ips(service);
        let free = |ip: &Ipv4Addr| !used.contains(ip) && !self.ctx.view.claimed(&format!("{IP_CLAIMS}{ip}"));
        let upper = count - band;
        let start = if upper > 0 { (self.seed(service) % u64::from(upper)) as u32 } else { 0 };
        let high = (0..upper).map(|i| first + band + (start + i) % upper.max(1));
        high.chain(first..first + band).map(Ipv4Addr::from).find(free).ok_or_else(|| {
            Status::internal(
                "failed to allocate a serviceIP: range is full; delete Services or widen the service range",
            )
        })
    }

    fn node_ports(&self, service: &mut Value, held: &BTreeSet<String>) -> Result<(), Status> {
        let others: BTreeSet<i64> = self.others(service).iter().flat_map(|s| ports_of(s)).collect();
        let (low, high) = self.ctx.node_ports;
        let path = Path::new("spec").child("ports");
        for (i, port) in items(service, "spec.ports").to_vec().iter().enumerate() {
            let number = int(port, "nodePort");
            let at_port = path.index(i).child("nodePort");
            if number == 0 {
                // The same port number in another protocol shares the node port.
                let twin = items(service, "spec.ports")
                    .iter()
                    .find(|p| {
                        int(p, "port") == int(port, "port")
                            && text(p, "protocol") != text(port, "protocol")
                            && int(p, "nodePort") != 0
                    })
                    .map(|p| int(p, "nodePort"));
                let chosen = match twin {
                    Some(number) => number,
                    None => self.free_port(service, &self.used_ports(service))?,
                };
                service["spec"]["ports"][i]["nodePort"] = chosen.into();
                continue;
            }
            let key = format!("{PORT_CLAIMS}{number}");
            if held.contains(&key) {
                continue;
            }
            if !(i64::from(low)..=i64::from(high)).contains(&number) {
                let detail = format!(
                    "provided port is not in the valid range. The range of valid ports is {low}-{high}"
                );
                return Err(self.invalid(service, FieldError::invalid(&at_port, number, &detail)));
            }
            if others.contains(&number) || self.ctx.view.claimed(&key) {
                return Err(self.invalid(
                    service,
                    FieldError::invalid(&at_port, number, "provided port is already allocated"),
                ));
            }
        }
        Ok(())
    }

    fn free_port(&self, service: &Value, used: &BTreeSet<i64>) -> Result<i64, Status> {
        let (low, high) = (i64::from(self.ctx.node_ports.0), i64::from(self.ctx.node_ports.1));
        let count = high - low + 1;
        let band = (count / 32).clamp(16, 128).min(count - 1).max(0);
        let upper = count - band;
        let start = (self.seed(service) % upper.max(1) as u64) as i64;
        let candidates = (0..upper).map(|i| low + band + (start + i) % upper).chain(low..low + band);
        let mut free =
            candidates.filter(|p| !used.contains(p) && !self.ctx.view.claimed(&format!("{PORT_CLAIMS}{p}")));
        free.next().ok_or_else(|| {
            Status::internal(
                "failed to allocate a nodePort: range is full; delete Services or widen the node port range",
            )
        })
    }
}

fn ports_of(service: &Value) -> Vec<i64> {
    let ports = items(service, "spec.ports").iter().map(|p| int(p, "nodePort"));
    ports.chain([int(service, "spec.healthCheckNodePort")]).filter(|p| *p != 0).collect()
}

fn validate(service: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let spec = &service["spec"];
    let kind = text(spec, "type");
    let headless = text(spec, "clusterIP") == "None";
    if items(spec, "ports").is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required(&path.child("ports"), ""));
    }
    if kind == "LoadBalancer" && headless {
        let detail = "may not be set to 'None' for LoadBalancer services";
        errors.push(FieldError::invalid(&path.child("clusterIPs").index(0), "None", detail));
    }
    if kind == "NodePort" && headless {
        let detail = "may not be set to 'None' for NodePort services";
        errors.push(FieldError::invalid(&path.child("clusterIPs").index(0), "None", detail));
    }
    if kind == "ExternalName" {
        if !is_empty(&spec["clusterIPs"]) {
            errors.push(FieldError::forbidden(
                &path.child("clusterIPs"),
                "may not be set for ExternalName services",
            ));
        }
        let host = text(spec, "externalName");
        if host.is_empty() {
            errors.push(FieldError::required(&path.child("externalName"), ""));
        } else {
            for problem in names::dns1123_subdomain(host.trim_end_matches('.')) {
                errors.push(FieldError::invalid(&path.child("externalName"), host, &problem));
            }
        }
    }
    ports(spec, kind, errors);
    crate::meta::labels(&spec["selector"], &path.child("selector"), errors);
    one_of(text(spec, "sessionAffinity"), &["ClientIP", "None"], &path.child("sessionAffinity"), errors);
    if text(spec, "sessionAffinity") == "ClientIP" {
        let seconds = int(spec, "sessionAffinityConfig.clientIP.timeoutSeconds");
        if !(1..=86400).contains(&seconds) {
            let at_seconds = path.child("sessionAffinityConfig").child("clientIP").child("timeoutSeconds");
            errors.push(FieldError::invalid(
                &at_seconds,
                seconds,
                "must be greater than 0 and less than 86400",
            ));
        }
    }
    cluster_ips(spec, errors);
    for (i, ip) in items(spec, "externalIPs").iter().enumerate() {
        outside_ip(ip.as_str().unwrap_or(""), &path.child("externalIPs").index(i), errors);
    }
    for (i, range) in items(spec, "loadBalancerSourceRanges").iter().enumerate() {
        source_range(range.as_str().unwrap_or(""), &path.child("LoadBalancerSourceRanges").index(i), errors);
    }
    families(spec, &path, errors);
    match kind {
        "" => errors.push(FieldError::required(&path.child("type"), "")),
        k => {
            one_of(k, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], &path.child("type"), errors)
        }
    }
    traffic(spec, kind, errors);
}

/// An address from which traffic may come in: no special one.
pub fn outside_ip(ip: &str, path: &Path, errors: &mut ErrorList) {
    let before = errors.len();
    crate::validate::ip(ip, path, errors);
    let Some(parsed) = ip.parse::<std::net::IpAddr>().ok().filter(|_| errors.len() == before) else { return };
    let (link_local, link_multicast) = match parsed {
        std::net::IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        std::net::IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] == 0xff02),
    };
    let problem = if parsed.is_unspecified() {
        format!("may not be unspecified ({ip})")
    } else if parsed.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)".into()
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)".into()
    } else if link_multicast {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into()
    } else {
        return;
    };
    errors.push(FieldError::invalid(path, ip, &problem));
}

fn source_range(range: &str, path: &Path, errors: &mut ErrorList) {
    if let Some(detail) = crate::validate::cidr_problem(range.trim()) {
        errors.push(FieldError::invalid(path, range, detail));
    }
}

/// This cluster speaks IPv4; a headless Service without selector may name both.
fn families(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let list: Vec<&str> = items(spec, "ipFamilies").iter().filter_map(Value::as_str).collect();
    let headless_alone = text(spec, "clusterIP") == "None" && is_empty(&spec["selector"]);
    for (i, family) in list.iter().enumerate() {
        let at_i = path.child("ipFamilies").index(i);
        if !["IPv4", "IPv6"].contains(family) {
            errors.push(FieldError::not_supported(&at_i, *family, &["IPv4", "IPv6"]));
        } else if list[..i].contains(family) {
            errors.push(FieldError::duplicate(&at_i, *family));
        } else if *family == "IPv6" && !headless_alone {
            errors.push(FieldError::invalid(&at_i, *family, "not configured on this cluster"));
        }
    }
    if text(spec, "ipFamilyPolicy") == "RequireDualStack" && !headless_alone {
        let detail = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid(&path.child("ipFamilyPolicy"), "RequireDualStack", detail));
    }
}

fn traffic(spec: &Value, kind: &str, errors: &mut ErrorList) {
    let path = Path::new("spec");
    if kind != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if !spec[field].is_null() {
                errors.push(FieldError::forbidden(
                    &path.child(field),
                    "may only be used when `type` is 'LoadBalancer'",
                ));
            }
        }
    }
    let policy = text(spec, "externalTrafficPolicy");
    if !policy.is_empty() {
        if !external(kind) && items(spec, "externalIPs").is_empty() {
            let detail = "may only be set for externally-accessible services";
            errors.push(FieldError::invalid(&path.child("externalTrafficPolicy"), policy, detail));
        } else {
            one_of(policy, &["Cluster", "Local"], &path.child("externalTrafficPolicy"), errors);
        }
    } else if external(kind) {
        errors.push(FieldError::required(&path.child("externalTrafficPolicy"), ""));
    }
    let health = int(spec, "healthCheckNodePort");
    if health != 0 && !(kind == "LoadBalancer" && policy == "Local") {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid(&path.child("healthCheckNodePort"), health, detail));
    }
    one_of_if_set(
        &spec["internalTrafficPolicy"],
        &["Cluster", "Local"],
        &path.child("internalTrafficPolicy"),
        errors,
    );
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    one_of_if_set(&spec["ipFamilyPolicy"], &policies, &path.child("ipFamilyPolicy"), errors);
    let distributions = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    one_of_if_set(&spec["trafficDistribution"], &distributions, &path.child("trafficDistribution"), errors);
}

fn cluster_ips(spec: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec").child("clusterIPs");
    let list: Vec<&str> = items(spec, "clusterIPs").iter().filter_map(Value::as_str).collect();
    let single = text(spec, "clusterIP");
    if single.is_empty() && !list.is_empty() {
        let detail = "must be empty when `clusterIP` is not specified";
        errors.push(FieldError::invalid(&path, json!(list), detail));
    } else if let Some(first) = list.first()
        && *first != single
    {
        let detail = "first value must match `clusterIP`";
        errors.push(FieldError::invalid(&path, json!(list), detail));
    }
    for (i, ip) in list.iter().enumerate() {
        if *ip == "None" && list.len() > 1 {
            let detail = "'None' must be the first and only value";
            errors.push(FieldError::invalid(&path.index(i), *ip, detail));
        } else if *ip != "None" {
            crate::validate::ip(ip, &path.index(i), errors);
        }
    }
}

fn ports(spec: &Value, kind: &str, errors: &mut ErrorList) {
    let path = Path::new("spec").child("ports");
    let list = items(spec, "ports");
    let mut seen_names = BTreeSet::new();
    for (i, p) in list.iter().enumerate() {
        let at_i = path.index(i);
        let name = text(p, "name");
        if name.is_empty() {
            if list.len() > 1 {
                errors.push(FieldError::required(&at_i.child("name"), ""));
            }
        } else {
            for problem in names::dns1123_label(name) {
                errors.push(FieldError::invalid(&at_i.child("name"), name, &problem));
            }
            if !seen_names.insert(name) {
                errors.push(FieldError::duplicate(&at_i.child("name"), name));
            }
        }
        if let Some(problem) = names::port_number(int(p, "port")) {
            errors.push(FieldError::invalid(&at_i.child("port"), int(p, "port"), problem));
        }
        match text(p, "protocol") {
            "" => errors.push(FieldError::required(&at_i.child("protocol"), "")),
            protocol => one_of(protocol, &["SCTP", "TCP", "UDP"], &at_i.child("protocol"), errors),
        }
        port_or_name(&p["targetPort"], &at_i.child("targetPort"), errors);
        if int(p, "nodePort") != 0 && !external(kind) {
            let detail = format!("may not be used when `type` is '{kind}'");
            errors.push(FieldError::forbidden(&at_i.child("nodePort"), &detail));
        }
    }
    duplicates(list, &path, errors);
}

fn duplicates(list: &[Value], path: &Path, errors: &mut ErrorList) {
    let (mut ports, mut node_ports) = (BTreeSet::new(), BTreeSet::new());
    for (i, p) in list.iter().enumerate() {
        let protocol = text(p, "protocol");
        if int(p, "nodePort") != 0 && !node_ports.insert((int(p, "nodePort"), protocol)) {
            errors.push(FieldError::duplicate(&path.index(i).child("nodePort"), int(p, "nodePort")));
        }
        if !ports.insert((int(p, "port"), protocol)) {
            let same = json!({"protocol": protocol, "port": int(p, "port")});
            let shown = crate::gotext::inner("core.v1.ServicePort", &same);
            errors.push(FieldError::duplicate_shown(&path.index(i), &shown, ""));
        }
    }
}
