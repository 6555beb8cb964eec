//! Nodes, Services and EndpointSlices: the latest of each, and the DNS zone made of them.
//!
//! Hazard: a relist replaces what is known only when it is complete, the zone included.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use futures::{StreamExt, stream::BoxStream};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_nodeagent_core::network::{Candidate, NodeNet, read_node};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tracing::warn;

use crate::dns::Dns;

/// The controllers' choice of the node that answers for a Service's load-balancer addresses.
const ANNOUNCER: &str = "keelson.dev/announced-by";

pub enum Input {
    Node(Box<Event<Node>>),
    Service(Event<Service>),
    Slice(Event<EndpointSlice>),
}

pub fn watch(client: kube::Client) -> BoxStream<'static, Input> {
    fn noted<K>(what: &str, event: watcher::Result<Event<K>>) -> Option<Event<K>> {
        event.inspect_err(|error| warn!(%error, "watch of {what} broke; it is retried")).ok()
    }
    let all = watcher::Config::default;
    let nodes = watcher(Api::<Node>::all(client.clone()), all()).default_backoff();
    let services = watcher(Api::<Service>::all(client.clone()), all()).default_backoff();
    let slices = watcher(Api::<EndpointSlice>::all(client), all()).default_backoff();
    let nodes =
        nodes.filter_map(|event| async { noted("Nodes", event).map(|event| Input::Node(Box::new(event))) });
    let services = services.filter_map(|event| async { noted("Services", event).map(Input::Service) });
    let slices = slices.filter_map(|event| async { noted("EndpointSlices", event).map(Input::Slice) });
    futures::stream::select(nodes, futures::stream::select(services, slices)).boxed()
}

type Named<K> = BTreeMap<(String, String), K>;

/// One kind: what is known, and the list being read.
struct Listed<K> {
    known: Named<K>,
    fresh: Option<Named<K>>,
    complete: bool,
}

/// What an event did: objects that are there now, objects that went.
struct Turn<K> {
    come: Vec<K>,
    gone: Vec<K>,
}

impl<K: ResourceExt + Clone> Listed<K> {
    fn new() -> Listed<K> {
        Listed { known: Named::new(), fresh: None, complete: false }
    }

    fn take(&mut self, event: Event<K>) -> Turn<K> {
        let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
        let (mut come, mut gone) = (Vec::new(), Vec::new());
        match event {
            Event::Init => self.fresh = Some(Named::new()),
            Event::InitApply(object) => {
                self.fresh.get_or_insert_default().insert(key(&object), slim(object));
            }
            Event::InitDone => {
                let before = std::mem::replace(&mut self.known, self.fresh.take().unwrap_or_default());
                gone.extend(
                    before.into_iter().filter(|(key, _)| !self.known.contains_key(key)).map(|(_, old)| old),
                );
                come.extend(self.known.values().cloned());
                self.complete = true;
            }
            Event::Apply(object) => {
                self.known.insert(key(&object), slim(object.clone()));
                come.push(object);
            }
            Event::Delete(object) => {
                self.known.remove(&key(&object));
                gone.push(object);
            }
        }
        Turn { come, gone }
    }
}

fn slim<K: ResourceExt>(mut object: K) -> K {
    object.managed_fields_mut().clear();
    object.annotations_mut().retain(|name, _| name == ANNOUNCER);
    object
}

pub struct Observed {
    dns: Dns,
    nodes: BTreeMap<String, NodeNet>,
    fresh_nodes: BTreeMap<String, NodeNet>,
    nodes_complete: bool,
    services: Listed<Service>,
    slices: Listed<EndpointSlice>,
}

impl Observed {
    pub fn new(dns: Dns) -> Observed {
        Observed {
            dns,
            nodes: BTreeMap::new(),
            fresh_nodes: BTreeMap::new(),
            nodes_complete: false,
            services: Listed::new(),
            slices: Listed::new(),
        }
    }

    pub fn take(&mut self, input: Input) {
        match input {
            Input::Node(event) => self.take_node(*event),
            Input::Service(event) => {
                let Turn { come, gone } = self.services.take(event);
                self.dns.change(|zone| {
                    gone.iter().for_each(|service| zone.remove_service(service));
                    come.iter().for_each(|service| zone.apply_service(service));
                });
            }
            Input::Slice(event) => {
                let Turn { come, gone } = self.slices.take(event);
                self.dns.change(|zone| {
                    gone.iter().for_each(|slice| zone.remove_slice(slice));
                    come.iter().for_each(|slice| zone.apply_slice(slice));
                });
            }
        }
    }

    fn take_node(&mut self, event: Event<Node>) {
        match event {
            Event::Init => self.fresh_nodes.clear(),
            Event::InitApply(node) => {
                self.fresh_nodes.extend(read_node(&node).map(|node| (node.name.clone(), node)));
            }
            Event::InitDone => {
                self.nodes = std::mem::take(&mut self.fresh_nodes);
                self.nodes_complete = true;
            }
            Event::Apply(node) => self.nodes.extend(read_node(&node).map(|node| (node.name.clone(), node))),
            Event::Delete(node) => {
                self.nodes.remove(&node.name_any());
            }
        }
    }

    /// `None` before the first complete list.
    pub fn nodes(&self) -> Option<&BTreeMap<String, NodeNet>> {
        self.nodes_complete.then_some(&self.nodes)
    }

    /// The cluster's load-balancer addresses and who may hold each; `None` before the first complete lists.
    pub fn candidates(&self) -> Option<Vec<Candidate>> {
        if !self.services.complete || !self.slices.complete {
            return None;
        }
        let balanced = self.services.known.values().filter(|service| {
            service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"))
        });
        let candidates = balanced.flat_map(|service| {
            let local = service
                .spec
                .as_ref()
                .is_some_and(|spec| spec.external_traffic_policy.as_deref() == Some("Local"));
            // The controllers' choice counts; without one all nodes compute the same.
            let nodes = match service.annotations().get(ANNOUNCER) {
                Some(node) => Some(BTreeSet::from([node.clone()])),
                None => local.then(|| self.nodes_with_endpoints(service)),
            };
            let ingress =
                service.status.iter().filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref());
            let addresses =
                ingress.flatten().filter_map(|ingress| ingress.ip.as_deref()?.parse::<Ipv4Addr>().ok());
            addresses.map(move |address| Candidate { address, nodes: nodes.clone() })
        });
        Some(candidates.collect())
    }

    fn nodes_with_endpoints(&self, service: &Service) -> BTreeSet<String> {
        let (namespace, name) = (service.namespace(), service.name_any());
        let mine = self.slices.known.values().filter(|slice| {
            slice.namespace() == namespace
                && slice.labels().get("kubernetes.io/service-name").is_some_and(|owner| *owner == name)
        });
        let endpoints = mine.flat_map(|slice| slice.endpoints.iter().flatten());
        let ready = endpoints.filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        });
        ready.filter_map(|endpoint| endpoint.node_name.clone()).collect()
    }
}
