//! Services of type LoadBalancer: an address, and the node that announces it.
//!
//! `AddressProvider` is the seam for clouds; `Pool` is the bare-metal one. The agent on the node that
//! the annotation `ANNOUNCED_BY` names puts the address on its uplink. One key for all Services: two
//! allocations from two views would collide.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::endpointslice::SERVICE_NAME;
use crate::node_lifecycle::ready;
use crate::{Change, Key, Object, Plan, Reconciler, View, Watch};

pub const ANNOUNCED_BY: &str = "keelson.dev/announced-by";
pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Where addresses come from.
pub trait AddressProvider: Send + Sync + 'static {
    /// An address for the Service that is not among `taken`; none when there is none left.
    fn address(&self, service: &Service, taken: &BTreeSet<IpAddr>) -> Option<IpAddr>;
}

/// Ranges of addresses of the nodes' own network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    ranges: Vec<(u32, u32)>,
}

impl Pool {
    /// From `172.30.0.200-172.30.0.250`, `172.30.1.0/28` or single addresses.
    pub fn parse(texts: &[String]) -> Result<Pool, String> {
        let wrong = |text: &str| {
            format!("load balancer pool {text:?}: give a range (a-b), a CIDR or an IPv4 address")
        };
        let ip = |text: &str| text.trim().parse::<Ipv4Addr>().ok().map(u32::from);
        let mut ranges = Vec::new();
        for text in texts {
            let range = if let Some((a, b)) = text.split_once('-') {
                ip(a).zip(ip(b))
            } else if let Some((base, bits)) = text.split_once('/') {
                let bits = bits.parse::<u32>().ok().filter(|b| (1..=32).contains(b));
                let size = bits.map(|b| u32::MAX.checked_shr(b).unwrap_or(0));
                ip(base).zip(size).map(|(base, size)| (base & !size, base | size))
            } else {
                ip(text).map(|a| (a, a))
            };
            ranges.push(range.filter(|(a, b)| a <= b).ok_or_else(|| wrong(text))?);
        }
        Ok(Pool { ranges })
    }

    fn contains(&self, address: u32) -> bool {
        self.ranges.iter().any(|(a, b)| (*a..=*b).contains(&address))
    }
}

impl AddressProvider for Pool {
    fn address(&self, service: &Service, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let free = |n: &u32| !taken.contains(&IpAddr::from(Ipv4Addr::from(*n)));
        let asked =
            service.spec.as_ref().and_then(|s| s.load_balancer_ip.as_deref()).filter(|a| !a.is_empty());
        if let Some(asked) = asked {
            let address = asked.parse::<Ipv4Addr>().ok().map(u32::from)?;
            return Some(address)
                .filter(|n| self.contains(*n))
                .filter(free)
                .map(|n| Ipv4Addr::from(n).into());
        }
        let mut all = self.ranges.iter().flat_map(|(a, b)| *a..=*b);
        all.find(free).map(|n| Ipv4Addr::from(n).into())
    }
}

pub struct LoadBalancers<P> {
    pub provider: P,
}

impl<P: AddressProvider> Reconciler for LoadBalancers<P> {
    fn name(&self) -> &'static str {
        "service-lb-controller"
    }

    fn watches(&self) -> Vec<Watch> {
        let of_service = |s: &EndpointSlice| {
            s.label(SERVICE_NAME).map(|name| format!("{}/{name}", s.namespace())).into_iter().collect()
        };
        vec![
            Watch::of::<Service>(),
            Watch::of::<Node>(),
            Watch::of::<EndpointSlice>().index("service", of_service),
        ]
    }

    fn keys(&self, change: &Change, view: &View) -> Vec<Key> {
        let concerns = if let Some((old, new)) = change.of::<Service>() {
            [old, new].into_iter().flatten().any(|s| is_ours(s) || s.has_finalizer(FINALIZER))
        } else if let Some((old, new)) = change.of::<Node>() {
            old.map(ready) != new.map(ready)
        } else if let Some(slice) = change.latest::<EndpointSlice>() {
            let service = slice.label(SERVICE_NAME).map(|s| Key::new(slice.namespace(), s));
            service.and_then(|k| view.get::<Service>(&k)).is_some_and(|s| is_ours(s) && is_local(s))
        } else {
            false
        };
        if concerns { vec![Key::default()] } else { Vec::new() }
    }

    fn reconcile(&self, _key: &Key, view: &View, _now: Timestamp) -> Plan {
        let mut plan = Plan::none();
        let mut taken: BTreeSet<IpAddr> = view.of::<Service>().iter().flat_map(|s| addresses(s)).collect();
        for service in view.of::<Service>().iter() {
            if is_ours(service) && !service.is_deleting() {
                self.serve(&mut plan, service, view, &mut taken);
            } else if service.has_finalizer(FINALIZER) {
                withdraw(&mut plan, service);
            }
        }
        plan
    }
}

impl<P: AddressProvider> LoadBalancers<P> {
    fn serve(&self, plan: &mut Plan, service: &Arc<Service>, view: &View, taken: &mut BTreeSet<IpAddr>) {
        let mut new = (**service).clone();
        if !service.has_finalizer(FINALIZER) {
            new.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
        }
        let node = announcer(service, view);
        let annotations = new.metadata.annotations.get_or_insert_default();
        match node {
            Some(node) => annotations.insert(ANNOUNCED_BY.to_owned(), node),
            None => annotations.remove(ANNOUNCED_BY),
        };
        if annotations.is_empty() && service.metadata.annotations.is_none() {
            new.metadata.annotations = None;
        }
        let before = plan.actions.len();
        plan.update(service.as_ref(), &new);
        let spent = plan.actions.len() > before;
        if addresses(service).next().is_some() {
            return;
        }
        match self.provider.address(service, taken) {
            Some(address) => {
                taken.insert(address);
                new.status.get_or_insert_default().load_balancer = Some(LoadBalancerStatus {
                    ingress: Some(vec![LoadBalancerIngress {
                        ip: Some(address.to_string()),
                        ip_mode: Some("VIP".into()),
                        ..Default::default()
                    }]),
                });
                plan.update_status_after(service.as_ref(), &new, spent);
                plan.record(service.as_ref(), false, "EnsuredLoadBalancer", format!("Address {address}"));
            }
            None => plan.record(
                service.as_ref(),
                true,
                "SyncLoadBalancerFailed",
                "No address is free in the pool; add one or delete a Service".to_owned(),
            ),
        }
    }
}

/// Takes the address back and lets the Service go.
fn withdraw(plan: &mut Plan, service: &Arc<Service>) {
    let mut new = (**service).clone();
    if let Some(status) = new.status.as_mut() {
        status.load_balancer = Some(LoadBalancerStatus::default());
    }
    let before = plan.actions.len();
    if addresses(service).next().is_some() {
        plan.update_status(service.as_ref(), &new);
    }
    if plan.actions.len() > before {
        // The finalizer goes on the next view: this one's resourceVersion is spent.
        return;
    }
    new.metadata.finalizers.iter_mut().for_each(|f| f.retain(|f| f != FINALIZER));
    new.metadata.annotations.iter_mut().for_each(|a| {
        a.remove(ANNOUNCED_BY);
    });
    plan.update(service.as_ref(), &new);
}

fn is_ours(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let balanced = spec.and_then(|s| s.type_.as_deref()) == Some("LoadBalancer");
    balanced && spec.and_then(|s| s.load_balancer_class.as_deref()).is_none_or(|c| c == "keelson.dev/pool")
}

fn is_local(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.external_traffic_policy.as_deref()) == Some("Local")
}

fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> + '_ {
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = status.and_then(|l| l.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|i| i.ip.as_deref()?.parse().ok())
}

/// The node to announce the address: the present one while it can, else one chosen by the uid.
fn announcer(service: &Service, view: &View) -> Option<String> {
    let able = |n: &&Arc<Node>| ready(n) == "True" && n.label(EXCLUDED).is_none() && !n.is_deleting();
    let mut nodes: Vec<&str> = view.of::<Node>().iter().filter(able).map(|n| n.name()).collect();
    if is_local(service) {
        let service = format!("{}/{}", service.namespace(), service.name());
        let slices = view.of::<EndpointSlice>().by("service", &service);
        let endpoints = slices.flat_map(|s| s.endpoints.iter().flatten());
        let serving = |e: &&k8s_openapi::api::discovery::v1::Endpoint| {
            e.conditions.as_ref().is_none_or(|c| c.ready != Some(false))
        };
        let with: BTreeSet<&str> = endpoints.filter(serving).filter_map(|e| e.node_name.as_deref()).collect();
        nodes.retain(|n| with.contains(n));
    }
    let current = service.annotation(ANNOUNCED_BY);
    if let Some(node) = current.filter(|c| nodes.contains(c)) {
        return Some(node.to_owned());
    }
    let spread = service.uid().bytes().fold(0usize, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
    (!nodes.is_empty()).then(|| nodes[spread % nodes.len()].to_owned())
}
