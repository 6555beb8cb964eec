//! What the controllers need to know of the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::SignedDuration;
use keelson_controllers_core::Reconciler;
use keelson_controllers_core::aggregation::ClusterRoleAggregation;
use keelson_controllers_core::autoscaler::Autoscaler;
use keelson_controllers_core::cronjob::CronJobs;
use keelson_controllers_core::daemonset::DaemonSets;
use keelson_controllers_core::deployment::Deployments;
use keelson_controllers_core::disruption::Disruption;
use keelson_controllers_core::election::Timing;
use keelson_controllers_core::endpoints::EndpointsController;
use keelson_controllers_core::endpointslice::EndpointSlices;
use keelson_controllers_core::garbage::GarbageCollector;
use keelson_controllers_core::job::Jobs;
use keelson_controllers_core::job::ttl::TtlAfterFinished;
use keelson_controllers_core::loadbalancer::{self, LoadBalancers};
use keelson_controllers_core::namespace::Namespaces;
use keelson_controllers_core::node_ipam::{NodeIpam, Pool};
use keelson_controllers_core::node_lifecycle::NodeLifecycle;
use keelson_controllers_core::pod_gc::PodGc;
use keelson_controllers_core::replicaset::ReplicaSets;
use keelson_controllers_core::replicationcontroller::ReplicationControllers;
use keelson_controllers_core::root_ca::RootCa;
use keelson_controllers_core::serviceaccount::ServiceAccounts;
use keelson_controllers_core::statefulset::StatefulSets;
use keelson_controllers_core::storage::VolumeBinder;
use keelson_controllers_core::storage::classes::LocalPathClass;
use keelson_controllers_core::storage::protection::{ClaimProtection, VolumeProtection};
use keelson_controllers_core::taint_eviction::TaintEviction;

#[derive(Clone, Debug)]
pub struct Config {
    /// Elect a leader by Lease. Off only where there can be but one manager.
    pub leader_elect: bool,
    /// Name among candidates; none makes one of the host name and a random part.
    pub identity: Option<String>,
    pub timing: Timing,
    pub lease_name: String,
    pub lease_namespace: String,
    /// Ranges that nodes get their pod CIDRs from; empty allocates none.
    pub cluster_cidrs: Vec<String>,
    /// Prefix length of a node's IPv4 and IPv6 range.
    pub node_cidr_mask_v4: u8,
    pub node_cidr_mask_v6: u8,
    /// Silence after which a node counts as lost.
    pub node_monitor_grace: SignedDuration,
    pub node_startup_grace: SignedDuration,
    /// Finished pods to keep.
    pub terminated_pod_threshold: usize,
    /// PEM bundle published as `kube-root-ca.crt`; empty publishes none.
    pub root_ca: String,
    /// `*`, names, `-names`, as in `--controllers`.
    pub controllers: Vec<String>,
    /// Addresses for Services of type LoadBalancer: ranges, addresses or CIDRs. Empty gives none.
    pub load_balancer_pool: Vec<String>,
    /// Folder on the nodes under which the StorageClass `local-path` makes its volumes.
    pub local_path: String,
    /// HorizontalPodAutoscaler settings.
    pub autoscaler_period: SignedDuration,
    pub autoscaler_tolerance: f64,
    pub autoscaler_stabilization: SignedDuration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            leader_elect: true,
            identity: None,
            timing: Timing::default(),
            lease_name: "kube-controller-manager".into(),
            lease_namespace: "kube-system".into(),
            cluster_cidrs: Vec::new(),
            node_cidr_mask_v4: 24,
            node_cidr_mask_v6: 64,
            node_monitor_grace: SignedDuration::from_secs(40),
            node_startup_grace: SignedDuration::from_secs(60),
            terminated_pod_threshold: 12_500,
            root_ca: String::new(),
            controllers: vec!["*".into()],
            load_balancer_pool: Vec::new(),
            local_path: "/var/lib/keelson/local-path".into(),
            autoscaler_period: SignedDuration::from_secs(15),
            autoscaler_tolerance: 0.1,
            autoscaler_stabilization: SignedDuration::from_secs(300),
        }
    }
}

impl Config {
    /// The controllers this configuration asks for. Errors name the setting to correct.
    pub fn reconcilers(&self) -> anyhow::Result<Vec<Arc<dyn Reconciler>>> {
        let mut all: Vec<Arc<dyn Reconciler>> = vec![
            Arc::new(ReplicaSets),
            Arc::new(Deployments),
            Arc::new(StatefulSets),
            Arc::new(DaemonSets),
            Arc::new(Jobs),
            Arc::new(CronJobs),
            Arc::new(TtlAfterFinished),
            Arc::new(ReplicationControllers),
            Arc::new(EndpointSlices),
            Arc::new(EndpointsController),
            Arc::new(ServiceAccounts),
            Arc::new(NodeLifecycle {
                grace: self.node_monitor_grace,
                startup_grace: self.node_startup_grace,
            }),
            Arc::new(TaintEviction),
            Arc::new(PodGc { threshold: self.terminated_pod_threshold }),
            Arc::new(GarbageCollector),
            Arc::new(Namespaces),
            Arc::new(self.autoscaler()),
            Arc::new(Disruption),
            Arc::new(ClusterRoleAggregation),
            Arc::new(VolumeBinder { base: self.local_path.clone() }),
            Arc::new(LocalPathClass),
            Arc::new(ClaimProtection),
            Arc::new(VolumeProtection),
        ];
        if !self.load_balancer_pool.is_empty() {
            let provider = loadbalancer::Pool::parse(&self.load_balancer_pool).map_err(anyhow::Error::msg)?;
            all.push(Arc::new(LoadBalancers { provider }));
        }
        if !self.root_ca.is_empty() {
            all.push(Arc::new(RootCa { bundle: self.root_ca.clone() }));
        }
        if !self.cluster_cidrs.is_empty() {
            all.push(Arc::new(NodeIpam { pools: self.pools()? }));
        }
        let names: BTreeMap<&str, ()> = all.iter().map(|r| (r.name(), ())).collect();
        for wanted in &self.controllers {
            let plain = wanted.trim_start_matches('-');
            let known = plain == "*"
                || names.contains_key(plain)
                || names.contains_key(format!("{plain}-controller").as_str());
            if !known {
                tracing::warn!("--controllers names {plain:?}, which is not among {:?}", names.keys());
            }
        }
        all.retain(|r| self.is_wanted(r.name()));
        Ok(all)
    }

    fn autoscaler(&self) -> Autoscaler {
        Autoscaler {
            period: self.autoscaler_period,
            tolerance: self.autoscaler_tolerance,
            stabilization: self.autoscaler_stabilization,
            ..Autoscaler::default()
        }
    }

    fn pools(&self) -> anyhow::Result<Vec<Pool>> {
        let mask =
            |cidr: &str| if cidr.contains(':') { self.node_cidr_mask_v6 } else { self.node_cidr_mask_v4 };
        self.cluster_cidrs.iter().map(|c| Pool::parse(c, mask(c)).map_err(anyhow::Error::msg)).collect()
    }

    fn is_wanted(&self, name: &str) -> bool {
        let same = |w: &str| w == name || format!("{w}-controller") == name;
        if self.controllers.iter().any(|w| w.strip_prefix('-').is_some_and(same)) {
            return false;
        }
        self.controllers.iter().any(|w| w == "*" || same(w))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(controllers: &[&str]) -> Vec<&'static str> {
        let controllers = controllers.iter().map(|c| c.to_string()).collect();
        let config = Config { controllers, ..Config::default() };
        config.reconcilers().unwrap().iter().map(|r| r.name()).collect()
    }

    #[test]
    fn controllers_are_chosen_by_name() {
        assert!(names(&["*"]).len() > 5);
        assert_eq!(names(&["replicaset"]), ["replicaset-controller"]);
        assert!(!names(&["*", "-deployment-controller"]).contains(&"deployment-controller"));
    }

    #[test]
    fn a_bad_range_is_named() {
        let config = Config { cluster_cidrs: vec!["10.0.0/16".into()], ..Config::default() };
        let error = config.reconcilers().err().unwrap().to_string();
        assert!(error.contains("10.0.0/16"), "{error}");
    }
}
