//! Strategies: what is particular to each resource. Adding one is a file below and a line in [`strategy`].
//!
//! Order of calls on create: `default`, admission, `prepare_create`, `allocate`, `validate`.
//! On update: `default`, `prepare_update`, `allocate`, `validate_update` (which starts with `validate`).

use crate::context::{Claim, Context, Target};
use crate::meta::NameCheck;
use keelson_api::{ErrorList, Resource, Status, names};
use serde_json::Value;

pub mod apps;
pub mod autoscaling;
pub mod config;
pub mod core_misc;
pub mod events;
pub mod namespaces;
pub mod networking;
pub mod nodes;
pub mod pod_scheduling;
pub mod pod_spec;
pub mod pod_update;
pub mod pod_validate;
pub mod pod_volumes;
pub mod pods;
pub mod policy;
pub mod rbac_kinds;
pub mod services;
pub mod storage;
pub mod volumes;

/// What is particular to a resource. Every method has the answer of a plain resource.
pub trait Strategy: Sync {
    /// Fills in defaults. Idempotent, and depends on the object alone.
    fn default(&self, _object: &mut Value) {}
    fn name_check(&self) -> NameCheck {
        names::dns1123_subdomain
    }
    /// The server counts spec changes in `metadata.generation`.
    fn generation(&self) -> bool {
        false
    }
    /// Fields outside `metadata` and `status` whose change counts as one of the spec.
    fn spec_changed(&self, old: &Value, new: &Value) -> bool {
        old["spec"] != new["spec"]
    }
    /// A new object keeps the status it came with.
    fn keeps_status_on_create(&self) -> bool {
        false
    }
    /// Deleting it answers with the object instead of a Status.
    fn answers_deleted_object(&self) -> bool {
        false
    }
    fn prepare_create(&self, _object: &mut Value, _ctx: &Context) {}
    fn prepare_update(&self, _target: &Target, _current: &Value, _new: &mut Value, _ctx: &Context) {}
    /// Takes and gives back unique values.
    fn allocate(
        &self,
        _target: &Target,
        _current: Option<&Value>,
        _new: &mut Value,
        _ctx: &Context,
    ) -> Result<Vec<Claim>, Status> {
        Ok(vec![])
    }
    /// Claims a deleted object gives back.
    fn release(&self, _object: &Value) -> Vec<Claim> {
        vec![]
    }
    fn validate(&self, _object: &Value, _errors: &mut ErrorList) {}
    /// What the new object may not be, given the current one. Metadata and `validate` are done by the caller.
    fn validate_update(&self, _target: &Target, _current: &Value, _new: &Value, _errors: &mut ErrorList) {}
    /// Texts for `Warning` headers.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        vec![]
    }
}

/// A resource without particulars.
struct Plain;
impl Strategy for Plain {}

/// The strategy of a resource.
pub fn strategy(resource: &Resource) -> &'static dyn Strategy {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "configmaps") => &config::ConfigMaps,
        ("", "secrets") => &config::Secrets,
        ("", "serviceaccounts") => &config::ServiceAccounts,
        ("", "pods") => &pods::Pods,
        ("", "services") => &services::Services,
        ("", "endpoints") => &networking::Endpoints,
        ("", "nodes") => &nodes::Nodes,
        ("", "namespaces") => &namespaces::Namespaces,
        ("", "persistentvolumes") => &storage::PersistentVolumes,
        ("", "persistentvolumeclaims") => &storage::PersistentVolumeClaims,
        ("", "limitranges") => &core_misc::LimitRanges,
        ("", "resourcequotas") => &core_misc::ResourceQuotas,
        ("", "events") => &events::Events { old_form: true },
        ("events.k8s.io", "events") => &events::Events { old_form: false },
        ("apps", "deployments") => &apps::Deployments,
        ("apps", "replicasets") => &apps::ReplicaSets,
        ("apps", "controllerrevisions") => &apps::ControllerRevisions,
        ("autoscaling", "horizontalpodautoscalers") => &autoscaling::HorizontalPodAutoscalers,
        ("coordination.k8s.io", "leases") => &core_misc::Leases,
        ("scheduling.k8s.io", "priorityclasses") => &core_misc::PriorityClasses,
        ("certificates.k8s.io", "certificatesigningrequests") => &core_misc::CertificateSigningRequests,
        ("discovery.k8s.io", "endpointslices") => &networking::EndpointSlices,
        ("networking.k8s.io", "ingresses") => &networking::Ingresses,
        ("networking.k8s.io", "ingressclasses") => &networking::IngressClasses,
        ("networking.k8s.io", "networkpolicies") => &networking::NetworkPolicies,
        ("policy", "poddisruptionbudgets") => &policy::PodDisruptionBudgets,
        ("rbac.authorization.k8s.io", "roles") => &rbac_kinds::Roles,
        ("rbac.authorization.k8s.io", "clusterroles") => &rbac_kinds::ClusterRoles,
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => &rbac_kinds::Bindings,
        ("storage.k8s.io", "storageclasses") => &storage::StorageClasses,
        ("storage.k8s.io", "csidrivers") => &storage::CsiDrivers,
        ("storage.k8s.io", "csinodes") => &storage::CsiNodes,
        ("storage.k8s.io", "volumeattachments") => &storage::VolumeAttachments,
        _ => &Plain,
    }
}
