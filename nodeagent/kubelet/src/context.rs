//! What every task of the agent shares: configuration, runtime, API caches, the node's facts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock};

use k8s_openapi::api::core::v1::{Pod, Service};
use keelson_nodeagent_core::pod::dns::{self, Resolver};
use keelson_nodeagent_core::pod::downward::Facts;
use keelson_nodeagent_core::pod::observed::Observed;
use keelson_nodeagent_core::pod::status::NodeFacts;

use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::cri::Cri;
use crate::events::Events;
use crate::objects::{Objects, Tokens};

/// What the machine has.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub cpus: i64,
    pub memory_bytes: i64,
    pub disk_bytes: i64,
}

/// One pod as the server and the metrics see it.
#[derive(Clone)]
pub struct PodView {
    pub pod: Arc<Pod>,
    pub observed: Observed,
}

pub struct Node {
    pub config: Config,
    pub cri: Cri,
    pub cgroups: Cgroups,
    pub objects: Objects,
    pub tokens: Tokens,
    pub events: Events,
    pub machine: Machine,
    /// Services for environment links, if an API is there.
    pub services: Option<kube::runtime::reflector::Store<Service>>,
    /// Every pod with a worker, by uid.
    pub pods: RwLock<BTreeMap<String, PodView>>,
    pub resolver: Resolver,
    /// When each image was last seen in use.
    pub image_uses: Mutex<BTreeMap<String, jiff::Timestamp>>,
    pub sampler: crate::stats::Sampler,
}

impl Node {
    pub fn node_facts(&self) -> NodeFacts {
        NodeFacts { host_ips: vec![self.config.node_ip.to_string()], runtime: self.cri.name.clone() }
    }

    pub fn facts(&self, pod_ips: &[String]) -> Facts {
        Facts {
            node_name: self.config.node_name.clone(),
            host_ips: vec![self.config.node_ip.to_string()],
            pod_ips: pod_ips.to_vec(),
            allocatable_cpu_milli: self.machine.cpus * 1000,
            allocatable_memory_bytes: self.machine.memory_bytes,
            allocatable_ephemeral_bytes: self.machine.disk_bytes,
        }
    }

    pub fn view(&self, uid: &str) -> Option<PodView> {
        self.pods.read().unwrap_or_else(|e| e.into_inner()).get(uid).cloned()
    }

    /// Every pod, in uid order.
    pub fn views(&self) -> Vec<PodView> {
        self.pods.read().unwrap_or_else(|e| e.into_inner()).values().cloned().collect()
    }

    pub fn put_view(&self, uid: &str, view: PodView) {
        self.pods.write().unwrap_or_else(|e| e.into_inner()).insert(uid.to_string(), view);
    }

    pub fn remove_view(&self, uid: &str) {
        self.pods.write().unwrap_or_else(|e| e.into_inner()).remove(uid);
    }

    /// The services a pod's environment may name.
    pub fn services(&self, namespace: &str) -> Vec<Service> {
        let Some(store) = &self.services else { return Vec::new() };
        let mut found: Vec<Service> = store
            .state()
            .iter()
            .filter(|s| {
                let home = s.metadata.namespace.as_deref();
                home == Some(namespace)
                    || home == Some("default") && s.metadata.name.as_deref() == Some("kubernetes")
            })
            .map(|s| s.as_ref().clone())
            .collect();
        found.sort_by(|a, b| {
            (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name))
        });
        found
    }
}

impl Machine {
    pub fn detect(root: &std::path::Path) -> Machine {
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kilobytes = memory
            .lines()
            .find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
        let disk = nix::sys::statvfs::statvfs(root).map(|s| s.blocks() as i64 * s.fragment_size() as i64);
        Machine {
            cpus: crate::cgroups::available_cpus(),
            memory_bytes: kilobytes.unwrap_or(0i64) * 1024,
            disk_bytes: disk.unwrap_or(0),
        }
    }
}

/// The node's resolver file, read; an unreadable one is empty.
pub fn node_resolver(config: &Config) -> Resolver {
    dns::parse_resolv_conf(&std::fs::read_to_string(&config.resolv_conf).unwrap_or_default())
}
