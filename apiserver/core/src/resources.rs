//! Strategies: what is particular to each resource. Adding one is a file below and a line in [`strategy`].
//!
//! Order of calls on create: `default`, admission, `prepare_create`, `allocate`, `validate`.
//! On update: `default`, `prepare_update`, `allocate`, `validate_update` (which starts with `validate`).

use crate::context::{Claim, Context, Target};
use crate::meta::NameCheck;
use keelson_api::{ErrorList, Resource, Status, names};
use serde_json::Value;

pub mod addresses;
pub mod admission_kinds;
pub mod apiservices;
pub mod apps;
pub mod autoscaling;
pub mod config;
pub mod core_misc;
pub mod daemonsets;
pub mod definitions;
pub mod devices;
pub mod events;
pub mod flowcontrol;
pub mod jobs;
pub mod namespaces;
pub mod networking;
pub mod nodes;
pub mod pod_features;
pub mod pod_scheduling;
pub mod pod_spec;
pub mod pod_update;
pub mod pod_validate;
pub mod pod_volumes;
pub mod pod_warnings;
pub mod pods;
pub mod policy;
pub mod rbac_kinds;
pub mod replication;
pub mod runtimeclasses;
pub mod services;
pub mod statefulsets;
pub mod storage;
pub mod storage_capacity;
pub mod volumes;

/// What is particular to a resource. Every method has the answer of a plain resource.
pub trait Strategy: Sync {
    /// Fills in defaults. Idempotent, and depends on the object alone.
    fn default(&self, _object: &mut Value) {}
    /// Defaults that a new object gets when it is read from the store.
    fn default_stored(&self, _object: &mut Value) {}
    /// How often an update is validated as a whole: upstream does so twice for some kinds, and all findings are causes.
    fn looks_on_update(&self) -> usize {
        1
    }
    fn name_check(&self) -> NameCheck {
        names::dns1123_subdomain
    }
    /// The server counts spec changes in `metadata.generation`.
    fn generation(&self) -> bool {
        false
    }
    /// The count begins with 1 when an object is made.
    fn generation_from_the_start(&self) -> bool {
        self.generation()
    }
    /// Fields outside `metadata` and `status` whose change counts as one of the spec.
    fn spec_changed(&self, old: &Value, new: &Value) -> bool {
        !crate::value::same(&old["spec"], &new["spec"])
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
    /// What fails before a new object is looked at as a whole.
    fn before_create(&self, _target: &Target, _object: &Value) -> Result<(), Status> {
        Ok(())
    }
    /// What may not change, where that is found before anything is wrong with the new object itself.
    fn validate_change(&self, _target: &Target, _current: &Value, _new: &Value, _errors: &mut ErrorList) {}
    /// What the new object may not be, given the current one. Metadata and `validate` are done by the caller.
    fn validate_update(&self, _target: &Target, _current: &Value, _new: &Value, _errors: &mut ErrorList) {}
    /// Texts for `Warning` headers.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        vec![]
    }
    /// The same for an object that was changed.
    fn warnings_on_update(&self, _current: &Value, new: &Value) -> Vec<String> {
        self.warnings(new)
    }
}

/// A resource without particulars.
struct Plain;
impl Strategy for Plain {}

/// The strategy of a resource.
pub fn strategy(resource: &Resource) -> &'static dyn Strategy {
    if resource.definition.is_some() {
        let status = resource.subresource("status").is_some();
        return if status { &crate::custom::WithStatus } else { &crate::custom::Plain };
    }
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
        ("apps", "daemonsets") => &daemonsets::DaemonSets,
        ("apps", "statefulsets") => &statefulsets::StatefulSets,
        ("batch", "jobs") => &jobs::Jobs,
        ("batch", "cronjobs") => &jobs::CronJobs,
        ("", "replicationcontrollers") => &replication::ReplicationControllers,
        ("", "podtemplates") => &replication::PodTemplates,
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
        ("storage.k8s.io", "csistoragecapacities") => &storage_capacity::StorageCapacities,
        ("storage.k8s.io", "volumeattributesclasses") => &storage_capacity::VolumeAttributesClasses,
        ("storage.k8s.io", "volumeattachments") => &storage::VolumeAttachments,
        ("apiextensions.k8s.io", "customresourcedefinitions") => &definitions::Definitions,
        ("node.k8s.io", "runtimeclasses") => &runtimeclasses::RuntimeClasses,
        ("networking.k8s.io", "servicecidrs") => &addresses::ServiceCidrs,
        ("networking.k8s.io", "ipaddresses") => &addresses::IpAddresses,
        ("apiregistration.k8s.io", "apiservices") => &apiservices::ApiServices,
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => &flowcontrol::FlowSchemas,
        ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations") => &flowcontrol::PriorityLevels,
        ("resource.k8s.io", "deviceclasses") => &devices::DeviceClasses,
        ("resource.k8s.io", "resourceclaims") => &devices::ResourceClaims,
        ("resource.k8s.io", "resourceclaimtemplates") => &devices::ResourceClaimTemplates,
        ("resource.k8s.io", "resourceslices") => &devices::ResourceSlices,
        ("admissionregistration.k8s.io", plural) => match plural {
            "mutatingwebhookconfigurations" => &admission_kinds::Webhooks { mutating: true },
            "validatingwebhookconfigurations" => &admission_kinds::Webhooks { mutating: false },
            "mutatingadmissionpolicies" => &admission_kinds::Policies { mutating: true },
            "validatingadmissionpolicies" => &admission_kinds::Policies { mutating: false },
            "mutatingadmissionpolicybindings" => &admission_kinds::Bindings { mutating: true },
            _ => &admission_kinds::Bindings { mutating: false },
        },
        _ => &Plain,
    }
}
