//! Endpoints: the older form of a Service's addresses, one object of the Service's name.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::endpointslice::{
    HEADLESS, address, hostname, is_headless, pod_reference, publishes_unready, resolve, selector,
    service_keys,
};
use crate::labels::{self, Labels};
use crate::pods;
use crate::{Change, Key, Object, Plan, Precondition, Reconciler, View, Watch};

/// More addresses than this do not go into one object; slices have them all.
pub const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";

pub struct EndpointsController;

impl Reconciler for EndpointsController {
    fn name(&self) -> &'static str {
        "endpoints-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::of::<Service>(), Watch::of::<Pod>(), Watch::of::<Endpoints>()]
    }

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        match change.latest::<Endpoints>() {
            Some(endpoints) => vec![Key::of(endpoints)],
            None => service_keys(change, view),
        }
    }

    fn reconcile(&self, key: &Key, view: &View, _now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        let old = view.get::<Endpoints>(key);
        let service = view.get::<Service>(key).filter(|s| !s.is_deleting());
        let wanted = service.and_then(|s| Some((s, selector(s)?)));
        match (wanted, old) {
            (None, Some(old))
                if service.is_none() && old.label(MANAGED_BY) == Some("endpoint-controller") =>
            {
                plan.delete(old.as_ref(), Precondition::unchanged(old.as_ref()));
            }
            (None, _) => {}
            (Some((service, selector)), old) => match old {
                None => plan.create(&fill(
                    &Endpoints { metadata: name_of(service), subsets: None },
                    service,
                    selector,
                    view,
                )),
                Some(old) => plan.update(old.as_ref(), &fill(old, service, selector, view)),
            },
        }
        plan
    }
}

fn name_of(service: &Service) -> ObjectMeta {
    ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        ..Default::default()
    }
}

type Ports = Vec<(Option<String>, i32, Option<String>, Option<String>)>;

fn fill(old: &Endpoints, service: &Service, selector: &Labels, view: &View) -> Endpoints {
    let mut subsets: BTreeMap<Ports, EndpointSubset> = BTreeMap::new();
    let mut count = 0;
    let family = service.spec.as_ref().and_then(|s| s.ip_families.as_ref()).and_then(|f| f.first());
    let family = family.map_or("IPv4", String::as_str);
    let ports = service.spec.as_ref().and_then(|s| s.ports.clone()).unwrap_or_default();
    for pod in view.of::<Pod>().namespace(service.namespace()) {
        let chosen = labels::contains(pod.metadata.labels.as_ref(), selector)
            && !pods::is_finished(pod)
            && (!pod.is_deleting() || publishes_unready(service));
        let Some(ip) = address(pod, family).filter(|_| chosen) else { continue };
        count += 1;
        if count > MAX_ADDRESSES {
            continue;
        }
        let resolved = ports.iter().filter_map(|p| {
            Some((p.name.clone(), resolve(p, pod)?, p.protocol.clone(), p.app_protocol.clone()))
        });
        let mut resolved: Ports = resolved.collect();
        if resolved.is_empty() && !(ports.is_empty() && is_headless(service)) {
            continue;
        }
        resolved.sort();
        let subset = subsets.entry(resolved).or_default();
        let side = match publishes_unready(service) || pods::is_ready(pod) {
            true => &mut subset.addresses,
            false => &mut subset.not_ready_addresses,
        };
        side.get_or_insert_default().push(EndpointAddress {
            ip,
            hostname: hostname(pod, service),
            node_name: Some(pods::node_name(pod).to_owned()).filter(|n| !n.is_empty()),
            target_ref: Some(pod_reference(pod)),
        });
    }
    finish(old, service, subsets, count)
}

fn finish(
    old: &Endpoints,
    service: &Service,
    subsets: BTreeMap<Ports, EndpointSubset>,
    count: usize,
) -> Endpoints {
    let mut new = old.clone();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    new.metadata.labels = Some(labels);
    let annotations = new.metadata.annotations.get_or_insert_default();
    match count > MAX_ADDRESSES {
        true => annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned()),
        false => annotations.remove(OVER_CAPACITY),
    };
    if annotations.is_empty() && old.metadata.annotations.is_none() {
        new.metadata.annotations = None;
    }
    let subsets = subsets.into_iter().map(|(ports, mut subset)| {
        let port = |(name, port, protocol, app_protocol)| EndpointPort { name, port, protocol, app_protocol };
        subset.ports = (!ports.is_empty()).then(|| ports.into_iter().map(port).collect());
        for side in [&mut subset.addresses, &mut subset.not_ready_addresses].into_iter().flatten() {
            side.sort_by(|a, b| a.ip.cmp(&b.ip));
        }
        subset
    });
    let subsets: Vec<EndpointSubset> = subsets.collect();
    new.subsets = (!subsets.is_empty()).then_some(subsets);
    new
}
