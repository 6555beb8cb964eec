//! The latest objects, from watch events. A relist replaces what is known only when it is complete.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_nodeagent_core::proxy::{EndpointsMap, HostPort, ServiceMap, State, host_ports};
use kube::ResourceExt;
use kube::runtime::watcher::Event;

pub enum Input {
    Service(Event<Service>),
    Slice(Event<EndpointSlice>),
    Pod(Event<Pod>),
}

/// One kind: what is known, and the list being read.
#[derive(Default)]
struct Listed<M> {
    known: M,
    fresh: Option<M>,
    complete: bool,
}

impl<M: Default> Listed<M> {
    fn take<K>(&mut self, event: Event<K>, apply: impl Fn(&mut M, &K), remove: impl Fn(&mut M, &K)) {
        match event {
            Event::Init => self.fresh = Some(M::default()),
            Event::InitApply(object) => apply(self.fresh.get_or_insert_default(), &object),
            Event::InitDone => {
                self.known = self.fresh.take().unwrap_or_default();
                self.complete = true;
            }
            Event::Apply(object) => apply(&mut self.known, &object),
            Event::Delete(object) => remove(&mut self.known, &object),
        }
    }
}

pub struct Observed {
    services: Listed<ServiceMap>,
    slices: Listed<EndpointsMap>,
    pods: Listed<BTreeMap<String, Vec<HostPort>>>,
}

impl Observed {
    /// `pods`: whether pods are watched at all.
    pub fn new(pods: bool) -> Observed {
        let pods = Listed { complete: !pods, ..Listed::default() };
        Observed { services: Listed::default(), slices: Listed::default(), pods }
    }

    pub fn take(&mut self, input: Input) {
        match input {
            Input::Service(event) => self.services.take(event, ServiceMap::apply, ServiceMap::remove),
            Input::Slice(event) => self.slices.take(event, EndpointsMap::apply, EndpointsMap::remove),
            Input::Pod(event) => self.pods.take(
                event,
                |pods, pod| {
                    // A pod that ended stays in the list without ports.
                    pods.insert(key(pod), host_ports(pod));
                },
                |pods, pod| {
                    pods.remove(&key(pod));
                },
            ),
        }
    }

    /// Whether every kind was listed once.
    pub fn complete(&self) -> bool {
        self.services.complete && self.slices.complete && self.pods.complete
    }

    pub fn state(&self) -> State {
        State {
            services: self.services.known.clone(),
            endpoints: self.slices.known.clone(),
            host_ports: self.pods.known.values().flatten().cloned().collect(),
        }
    }
}

fn key(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}
