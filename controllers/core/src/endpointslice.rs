//! EndpointSlice: the addresses behind a Service's selector.
//!
//! Pods are filed by address family and resolved ports; each file is spread over slices of at most
//! `MAX_ENDPOINTS`, keeping endpoints in the slice they are in. C18: an endpoint is ready only if
//! its pod is (or the Service publishes unready addresses).

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::labels::{self, Labels};
use crate::pods;
use crate::{Change, Key, Object, Plan, Precondition, Reconciler, View, Watch};

pub const MAX_ENDPOINTS: usize = 100;
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
pub const HEADLESS: &str = "service.kubernetes.io/headless";

pub struct EndpointSlices;

impl Reconciler for EndpointSlices {
    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![
            Watch::of::<Service>(),
            Watch::of::<Pod>().index("node", on_node),
            Watch::of::<Node>(),
            Watch::of::<EndpointSlice>().index("service", of_service),
        ]
    }

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        if let Some(slice) = change.latest::<EndpointSlice>() {
            let mine = slice.label(MANAGED_BY) == Some(MANAGER);
            return slice
                .label(SERVICE_NAME)
                .filter(|_| mine)
                .map(|s| Key::new(slice.namespace(), s))
                .into_iter()
                .collect();
        }
        if let Some((old, new)) = change.of::<Node>() {
            let zone =
                |n: Option<&Node>| n.map(|n| n.label("topology.kubernetes.io/zone").unwrap_or("").to_owned());
            if zone(old) == zone(new) {
                return Vec::new();
            }
            let node = new.or(old).map_or("", |n| n.name());
            let mut keys: Vec<Key> =
                view.of::<Pod>().by("node", node).flat_map(|pod| services_of(pod, view)).collect();
            keys.sort();
            keys.dedup();
            return keys;
        }
        service_keys(change, view)
    }

    fn reconcile(&self, key: &Key, view: &View, _now: Timestamp) -> Plan {
        match view.get::<Service>(key) {
            Some(service) => reconcile(service, view),
            None => Plan::none(),
        }
    }
}

pub fn on_node(pod: &Pod) -> Vec<String> {
    vec![pods::node_name(pod).to_owned()]
}

fn of_service(slice: &EndpointSlice) -> Vec<String> {
    slice.label(SERVICE_NAME).map(|name| format!("{}/{name}", slice.namespace())).into_iter().collect()
}

/// Services that a change of a Service or a Pod concerns.
pub fn service_keys(change: &Change, view: &View) -> Vec<Key> {
    if let Some(service) = change.latest::<Service>() {
        return vec![Key::of(service)];
    }
    let Some((old, new)) = change.of::<Pod>() else { return Vec::new() };
    let mut keys: Vec<Key> =
        [old, new].into_iter().flatten().flat_map(|pod| services_of(pod, view)).collect();
    keys.sort();
    keys.dedup();
    keys
}

fn services_of(pod: &Pod, view: &View) -> Vec<Key> {
    let services = view.of::<Service>().namespace(pod.namespace());
    let selects = |s: &&Arc<Service>| {
        selector(s).is_some_and(|selector| labels::contains(pod.metadata.labels.as_ref(), selector))
    };
    services.filter(selects).map(|s| Key::of(s.as_ref())).collect()
}

/// The selector of a Service whose endpoints are made here: not empty, not an ExternalName.
pub fn selector(service: &Service) -> Option<&Labels> {
    let spec = service.spec.as_ref().filter(|s| s.type_.as_deref() != Some("ExternalName"))?;
    spec.selector.as_ref().filter(|s| !s.is_empty())
}

pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

pub fn publishes_unready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true)
}

/// A pod's address of one family (`IPv4` or `IPv6`).
pub fn address(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone());
    listed.chain(status.pod_ip.clone()).find(|ip| !ip.is_empty() && ip.contains(':') == (family == "IPv6"))
}

/// The pod's number for a Service port: given, or looked up by name in its containers.
pub fn resolve(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match port.target_port.as_ref() {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let mut ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let named = ports.find(|p| {
                p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            named.map(|p| p.container_port)
        }
    }
}

pub fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let here = spec.subdomain.as_deref() == Some(service.name()) && pod.namespace() == service.namespace();
    spec.hostname.clone().filter(|h| here && !h.is_empty())
}

pub fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

/// Family and resolved ports: what all endpoints of a slice share.
type File = (String, Vec<(Option<String>, Option<String>, Option<i32>, Option<String>)>);

fn reconcile(service: &Service, view: &View) -> Plan {
    let mut plan = Plan::none();
    let existing: Vec<Arc<EndpointSlice>> = view
        .of::<EndpointSlice>()
        .by("service", &format!("{}/{}", service.namespace(), service.name()))
        .filter(|s| s.label(MANAGED_BY) == Some(MANAGER) && !s.is_deleting())
        .cloned()
        .collect();
    let Some(selector) = selector(service).filter(|_| !service.is_deleting()) else {
        for slice in existing {
            plan.delete(slice.as_ref(), Precondition::unchanged(slice.as_ref()));
        }
        return plan;
    };
    let mut wanted = endpoints(service, selector, view);
    for family in families(service) {
        // A Service without endpoints keeps one empty slice, so that readers tell "none" from "not yet".
        if !wanted.keys().any(|(f, _)| *f == family) {
            wanted.insert((family.clone(), Vec::new()), BTreeMap::new());
        }
    }
    let mut slices: BTreeMap<File, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing {
        slices.entry(file_of(&slice)).or_default().push(slice);
    }
    for (file, endpoints) in wanted {
        let have = slices.remove(&file).unwrap_or_default();
        spread(&mut plan, service, &file, endpoints, have);
    }
    for slice in slices.into_values().flatten() {
        plan.delete(slice.as_ref(), Precondition::unchanged(slice.as_ref()));
    }
    plan
}

fn families(service: &Service) -> Vec<String> {
    let given = service.spec.as_ref().and_then(|s| s.ip_families.clone()).unwrap_or_default();
    if given.is_empty() { vec!["IPv4".to_owned()] } else { given }
}

/// Wanted endpoints by file and pod uid.
fn endpoints(
    service: &Service,
    selector: &Labels,
    view: &View,
) -> BTreeMap<File, BTreeMap<String, Endpoint>> {
    let mut files: BTreeMap<File, BTreeMap<String, Endpoint>> = BTreeMap::new();
    let ports = service.spec.as_ref().and_then(|s| s.ports.clone()).unwrap_or_default();
    for pod in view.of::<Pod>().namespace(service.namespace()) {
        if !labels::contains(pod.metadata.labels.as_ref(), selector) || pods::is_finished(pod) {
            continue;
        }
        let node = view.get::<Node>(&Key::cluster(pods::node_name(pod)));
        if node.is_none() && !pods::node_name(pod).is_empty() {
            continue;
        }
        for family in families(service) {
            let Some(ip) = address(pod, &family) else { continue };
            let mut resolved: Vec<_> = ports
                .iter()
                .filter_map(|p| {
                    let number = resolve(p, pod)?;
                    let protocol = p.protocol.clone().unwrap_or("TCP".into());
                    Some((
                        Some(p.name.clone().unwrap_or_default()),
                        Some(protocol),
                        Some(number),
                        p.app_protocol.clone(),
                    ))
                })
                .collect();
            resolved.sort();
            let endpoint = endpoint(service, pod, ip, node.map(|n| n.as_ref()));
            files.entry((family, resolved)).or_default().insert(pod.uid().to_owned(), endpoint);
        }
    }
    files
}

fn endpoint(service: &Service, pod: &Pod, ip: String, node: Option<&Node>) -> Endpoint {
    let serving = pods::is_ready(pod);
    let terminating = pod.is_deleting();
    Endpoint {
        addresses: vec![ip],
        conditions: Some(EndpointConditions {
            ready: Some(publishes_unready(service) || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(pod, service),
        node_name: Some(pods::node_name(pod).to_owned()).filter(|n| !n.is_empty()),
        target_ref: Some(pod_reference(pod)),
        zone: node.and_then(|n| n.label("topology.kubernetes.io/zone")).map(str::to_owned),
        ..Default::default()
    }
}

fn file_of(slice: &EndpointSlice) -> File {
    let ports = slice.ports.iter().flatten();
    let mut ports: Vec<_> = ports
        .map(|p| {
            let name = Some(p.name.clone().unwrap_or_default());
            (name, Some(p.protocol.clone().unwrap_or("TCP".into())), p.port, p.app_protocol.clone())
        })
        .collect();
    ports.sort();
    (slice.address_type.clone(), ports)
}

/// Puts endpoints into the slices that hold them, new ones where there is room, the rest into new
/// slices; empties go, but for the last one.
fn spread(
    plan: &mut Plan,
    service: &Service,
    file: &File,
    mut wanted: BTreeMap<String, Endpoint>,
    have: Vec<Arc<EndpointSlice>>,
) {
    let uid = |e: &Endpoint| e.target_ref.as_ref().and_then(|t| t.uid.clone()).unwrap_or_default();
    let mut contents: Vec<Vec<Endpoint>> = have
        .iter()
        .map(|s| s.endpoints.iter().flatten().filter_map(|e| wanted.remove(&uid(e))).collect())
        .collect();
    let mut rest: Vec<Endpoint> = wanted.into_values().collect();
    for content in &mut contents {
        let room = MAX_ENDPOINTS.saturating_sub(content.len()).min(rest.len());
        content.extend(rest.drain(..room));
    }
    let keep_one = contents.iter().all(|c| c.is_empty()) && rest.is_empty();
    for (at, (slice, content)) in have.iter().zip(contents).enumerate() {
        if content.is_empty() && !(keep_one && at == 0) {
            plan.delete(slice.as_ref(), Precondition::unchanged(slice.as_ref()));
            continue;
        }
        let mut new = (**slice).clone();
        let meta = slice_meta(service);
        new.metadata.labels = meta.labels;
        new.metadata.owner_references = meta.owner_references;
        if new.endpoints.as_deref().unwrap_or_default() != content.as_slice() {
            new.endpoints = Some(content);
        }
        plan.update(slice.as_ref(), &new);
    }
    let fresh = rest.chunks(MAX_ENDPOINTS).map(<[Endpoint]>::to_vec);
    let placeholder = have.is_empty() && rest.is_empty();
    for content in fresh.chain(placeholder.then(Vec::new)) {
        plan.create(&EndpointSlice {
            metadata: slice_meta(service),
            address_type: file.0.clone(),
            ports: Some(file.1.iter().map(port_of).collect()),
            endpoints: Some(content),
        });
    }
}

fn port_of(port: &(Option<String>, Option<String>, Option<i32>, Option<String>)) -> EndpointPort {
    let (name, protocol, port, app_protocol) = port.clone();
    EndpointPort { name, protocol, port, app_protocol }
}

fn slice_meta(service: &Service) -> ObjectMeta {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.to_owned(), service.name().to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    ObjectMeta {
        generate_name: Some(format!("{}-", service.name())),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels),
        owner_references: Some(vec![service.owner_reference()]),
        ..Default::default()
    }
}
