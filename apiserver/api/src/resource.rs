//! The resource table: every resource this API server knows, one line each, in discovery order.
//!
//! Storage keys are upstream's, so data moves both ways. Adding a resource is a line here and, when its
//! semantics are its own, a file under `apiserver/core/src/resources/`.
//! Strings are owned so that custom resources can use the same type.

use std::sync::{Arc, LazyLock};

use crate::definition::Definition;

/// How one resource is called, stored and served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
    /// Directory in the store (`/registry/pods`), or none for a resource that is answered and not kept.
    pub storage: Option<String>,
    /// Group and version in which the object is stored, as `apiVersion` reads (`v1` for both kinds of Event).
    pub storage_version: String,
    /// Field labels a field selector may name.
    pub fields: Vec<String>,
    /// PUT without a resourceVersion is accepted.
    pub unconditional_update: bool,
    /// PUT to a name that does not exist creates it.
    pub create_on_update: bool,
    /// Full name of the type in the schema table (`io.k8s.api.core.v1.Pod`).
    pub schema: String,
    /// What a custom resource's objects look like; none for a built-in one.
    pub definition: Option<Arc<Definition>>,
}

/// A path below an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subresource {
    pub name: String,
    /// Group, version and kind of its body; empty group and version mean the resource's own.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub verbs: Vec<String>,
}

pub const ALL_VERBS: [&str; 8] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const READ_WRITE: [&str; 3] = ["get", "patch", "update"];

impl Resource {
    fn new(group: &str, version: &str, kind: &str, plural: &str) -> Resource {
        let singular = kind.to_lowercase();
        let prefix = match group {
            "" => "io.k8s.api.core".to_string(),
            "apiextensions.k8s.io" => "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions".into(),
            "apiregistration.k8s.io" => "io.k8s.kube-aggregator.pkg.apis.apiregistration".into(),
            "flowcontrol.apiserver.k8s.io" => "io.k8s.api.flowcontrol".into(),
            "rbac.authorization.k8s.io" => "io.k8s.api.rbac".into(),
            g => format!("io.k8s.api.{}", g.split('.').next().unwrap_or(g)),
        };
        Resource {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            plural: plural.into(),
            singular,
            short_names: vec![],
            categories: vec![],
            namespaced: true,
            verbs: ALL_VERBS.iter().map(|v| v.to_string()).collect(),
            subresources: vec![],
            storage: Some(format!("/registry/{plural}")),
            storage_version: if group.is_empty() { version.into() } else { format!("{group}/{version}") },
            fields: vec!["metadata.name".into(), "metadata.namespace".into()],
            unconditional_update: true,
            create_on_update: false,
            schema: format!("{prefix}.{version}.{kind}"),
            definition: None,
        }
    }
    fn short(mut self, names: &[&str]) -> Self {
        self.short_names = names.iter().map(|n| n.to_string()).collect();
        self
    }
    fn singular(mut self, name: &str) -> Self {
        self.singular = name.into();
        self
    }
    fn without_verb(mut self, verb: &str) -> Self {
        self.verbs.retain(|v| v != verb);
        self
    }
    fn category(mut self, name: &str) -> Self {
        self.categories.push(name.into());
        self
    }
    fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }
    fn storage(mut self, prefix: &str) -> Self {
        self.storage = Some(prefix.into());
        self
    }
    fn stored_as(mut self, api_version: &str) -> Self {
        self.storage_version = api_version.into();
        self
    }
    fn locked(mut self) -> Self {
        self.unconditional_update = false;
        self
    }
    fn upsert(mut self) -> Self {
        self.create_on_update = true;
        self
    }
    fn fields(mut self, more: &[&str]) -> Self {
        self.fields.extend(more.iter().map(|f| f.to_string()));
        self
    }
    fn only_name_selectable(mut self) -> Self {
        self.fields.retain(|f| f != "metadata.namespace");
        self
    }
    fn virtual_(mut self) -> Self {
        self.storage = None;
        self.verbs = vec!["create".into()];
        self.fields.clear();
        self
    }
    fn read_only(mut self) -> Self {
        self.verbs = vec!["get".into(), "list".into()];
        self
    }
    fn sub(mut self, name: &str, gvk: (&str, &str, &str), verbs: &[&str]) -> Self {
        let (group, version, kind) = gvk;
        self.subresources.push(Subresource {
            name: name.into(),
            group: group.into(),
            version: version.into(),
            kind: if kind.is_empty() { self.kind.clone() } else { kind.into() },
            verbs: verbs.iter().map(|v| v.to_string()).collect(),
        });
        self
    }
    fn status(self) -> Self {
        self.sub("status", ("", "", ""), &READ_WRITE)
    }
    fn scale(self) -> Self {
        self.sub("scale", ("autoscaling", "v1", "Scale"), &READ_WRITE)
    }

    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }
    /// `deployments.apps`, as error messages name it.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }
    /// `Deployment.apps`, as error messages name it.
    pub fn group_kind(&self) -> String {
        if self.group.is_empty() { self.kind.clone() } else { format!("{}.{}", self.kind, self.group) }
    }
    /// Store key of one object; `None` for a resource that is not stored.
    pub fn key(&self, namespace: &str, name: &str) -> Option<String> {
        Some(format!("{}{name}", self.prefix(namespace)?))
    }
    /// Store prefix (with trailing slash) of a namespace's objects, or of all when `namespace` is empty.
    pub fn prefix(&self, namespace: &str) -> Option<String> {
        let dir = self.storage.as_deref()?;
        Some(if self.namespaced && !namespace.is_empty() {
            format!("{dir}/{namespace}/")
        } else {
            format!("{dir}/")
        })
    }
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// Finds a resource by group, version and plural name.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.plural == plural && r.group == group && r.version == version)
}

/// Finds a resource by group and plural name in its preferred version.
pub fn find_preferred(group: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.plural == plural && r.group == group)
}

/// Finds a resource by `apiVersion` and kind.
pub fn find_kind(api_version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.kind == kind && r.api_version() == api_version)
}

/// Groups in discovery order, each with its versions, preferred first.
pub fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut out: Vec<(&str, Vec<&str>)> = vec![];
    for r in RESOURCES.iter() {
        match out.iter_mut().find(|(g, _)| *g == r.group) {
            Some((_, versions)) if versions.contains(&r.version.as_str()) => {}
            Some((_, versions)) => versions.push(&r.version),
            None => out.push((&r.group, vec![&r.version])),
        }
    }
    out
}

const CONNECT_ALL: [&str; 5] = ["create", "delete", "get", "patch", "update"];
const POD_FIELDS: [&str; 9] = [
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.podIPs",
    "status.nominatedNodeName",
];
const CORE_EVENT_FIELDS: [&str; 11] = [
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];
const EVENT_FIELDS: [&str; 10] = [
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "type",
];

/// The table.
pub static RESOURCES: LazyLock<Vec<Resource>> = LazyLock::new(|| {
    let core = |kind, plural| Resource::new("", "v1", kind, plural);
    let rbac = |kind, plural| Resource::new("rbac.authorization.k8s.io", "v1", kind, plural).upsert();
    let authz = |kind, plural| Resource::new("authorization.k8s.io", "v1", kind, plural).virtual_();
    let admission = |kind, plural| {
        let row = Resource::new("admissionregistration.k8s.io", "v1", kind, plural);
        row.category("api-extensions").cluster().locked()
    };
    let flow = |kind, plural| Resource::new("flowcontrol.apiserver.k8s.io", "v1", kind, plural).cluster();
    let pod = ("", "", "Pod");
    vec![
        core("Binding", "bindings").virtual_(),
        core("ComponentStatus", "componentstatuses")
            .singular("componentstatus")
            .short(&["cs"])
            .cluster()
            .virtual_()
            .read_only(),
        core("ConfigMap", "configmaps").short(&["cm"]),
        core("Endpoints", "endpoints")
            .singular("endpoints")
            .short(&["ep"])
            .storage("/registry/services/endpoints")
            .upsert(),
        core("Event", "events").short(&["ev"]).upsert().fields(&CORE_EVENT_FIELDS),
        core("LimitRange", "limitranges").short(&["limits"]).upsert(),
        core("Namespace", "namespaces")
            .short(&["ns"])
            .cluster()
            .without_verb("deletecollection")
            .only_name_selectable()
            .fields(&["status.phase"])
            .sub("finalize", ("", "", ""), &["update"])
            .status(),
        core("Node", "nodes")
            .short(&["no"])
            .cluster()
            .storage("/registry/minions")
            .only_name_selectable()
            .fields(&["spec.unschedulable"])
            .sub("proxy", ("", "", "NodeProxyOptions"), &CONNECT_ALL)
            .status(),
        core("PersistentVolumeClaim", "persistentvolumeclaims").short(&["pvc"]).status(),
        core("PersistentVolume", "persistentvolumes").short(&["pv"]).cluster().status(),
        core("Pod", "pods")
            .short(&["po"])
            .category("all")
            .fields(&POD_FIELDS)
            .sub("attach", ("", "", "PodAttachOptions"), &["create", "get"])
            .sub("binding", ("", "", "Binding"), &["create"])
            .sub("ephemeralcontainers", pod, &READ_WRITE)
            .sub("eviction", ("policy", "v1", "Eviction"), &["create"])
            .sub("exec", ("", "", "PodExecOptions"), &["create", "get"])
            .sub("log", pod, &["get"])
            .sub("portforward", ("", "", "PodPortForwardOptions"), &["create", "get"])
            .sub("proxy", ("", "", "PodProxyOptions"), &CONNECT_ALL)
            .sub("resize", pod, &READ_WRITE)
            .status(),
        core("PodTemplate", "podtemplates"),
        core("ReplicationController", "replicationcontrollers")
            .short(&["rc"])
            .category("all")
            .storage("/registry/controllers")
            .fields(&["status.replicas"])
            .scale()
            .status(),
        core("ResourceQuota", "resourcequotas").short(&["quota"]).status(),
        core("Secret", "secrets").fields(&["type"]),
        core("ServiceAccount", "serviceaccounts").short(&["sa"]).sub(
            "token",
            ("authentication.k8s.io", "v1", "TokenRequest"),
            &["create"],
        ),
        core("Service", "services")
            .short(&["svc"])
            .category("all")
            .storage("/registry/services/specs")
            .upsert()
            .fields(&["spec.clusterIP", "spec.type"])
            .sub("proxy", ("", "", "ServiceProxyOptions"), &CONNECT_ALL)
            .status(),
        Resource::new("apiregistration.k8s.io", "v1", "APIService", "apiservices")
            .category("api-extensions")
            .cluster()
            .storage("/registry/apiregistration.k8s.io/apiservices")
            .locked()
            .status(),
        Resource::new("apps", "v1", "ControllerRevision", "controllerrevisions"),
        Resource::new("apps", "v1", "DaemonSet", "daemonsets").short(&["ds"]).category("all").status(),
        Resource::new("apps", "v1", "Deployment", "deployments")
            .short(&["deploy"])
            .category("all")
            .scale()
            .status(),
        Resource::new("apps", "v1", "ReplicaSet", "replicasets")
            .short(&["rs"])
            .category("all")
            .scale()
            .status(),
        Resource::new("apps", "v1", "StatefulSet", "statefulsets")
            .short(&["sts"])
            .category("all")
            .scale()
            .status(),
        Resource::new("events.k8s.io", "v1", "Event", "events")
            .short(&["ev"])
            .upsert()
            .stored_as("v1")
            .fields(&EVENT_FIELDS),
        Resource::new("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews")
            .cluster()
            .virtual_(),
        Resource::new("authentication.k8s.io", "v1", "TokenReview", "tokenreviews").cluster().virtual_(),
        authz("LocalSubjectAccessReview", "localsubjectaccessreviews"),
        authz("SelfSubjectAccessReview", "selfsubjectaccessreviews").cluster(),
        authz("SelfSubjectRulesReview", "selfsubjectrulesreviews").cluster(),
        authz("SubjectAccessReview", "subjectaccessreviews").cluster(),
        Resource::new("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
            .short(&["hpa"])
            .category("all")
            .status(),
        Resource::new("autoscaling", "v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
            .short(&["hpa"])
            .category("all")
            .stored_as("autoscaling/v2")
            .status(),
        Resource::new("batch", "v1", "CronJob", "cronjobs").short(&["cj"]).category("all").status(),
        Resource::new("batch", "v1", "Job", "jobs").category("all").fields(&["status.successful"]).status(),
        Resource::new("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests")
            .short(&["csr"])
            .cluster()
            .only_name_selectable()
            .fields(&["spec.signerName"])
            .sub("approval", ("", "", ""), &READ_WRITE)
            .status(),
        Resource::new("networking.k8s.io", "v1", "IngressClass", "ingressclasses").cluster(),
        Resource::new("networking.k8s.io", "v1", "Ingress", "ingresses")
            .short(&["ing"])
            .storage("/registry/ingress")
            .status(),
        Resource::new("networking.k8s.io", "v1", "IPAddress", "ipaddresses").short(&["ip"]).cluster(),
        Resource::new("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies").short(&["netpol"]),
        Resource::new("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs").cluster().status(),
        Resource::new("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
            .short(&["pdb"])
            .locked()
            .status(),
        rbac("ClusterRoleBinding", "clusterrolebindings").cluster(),
        rbac("ClusterRole", "clusterroles").cluster(),
        rbac("RoleBinding", "rolebindings"),
        rbac("Role", "roles"),
        Resource::new("storage.k8s.io", "v1", "CSIDriver", "csidrivers").cluster().locked(),
        Resource::new("storage.k8s.io", "v1", "CSINode", "csinodes").cluster().locked(),
        Resource::new("storage.k8s.io", "v1", "CSIStorageCapacity", "csistoragecapacities").locked(),
        Resource::new("storage.k8s.io", "v1", "StorageClass", "storageclasses").short(&["sc"]).cluster(),
        Resource::new("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments")
            .cluster()
            .locked()
            .status(),
        Resource::new("storage.k8s.io", "v1", "VolumeAttributesClass", "volumeattributesclasses")
            .short(&["vac"])
            .cluster(),
        admission("MutatingAdmissionPolicy", "mutatingadmissionpolicies"),
        admission("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings"),
        admission("MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
        admission("ValidatingAdmissionPolicy", "validatingadmissionpolicies").status(),
        admission("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings"),
        admission("ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
        Resource::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions")
            .short(&["crd", "crds"])
            .category("api-extensions")
            .cluster()
            .storage("/registry/apiextensions.k8s.io/customresourcedefinitions")
            .locked()
            .status(),
        Resource::new("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses").short(&["pc"]).cluster(),
        Resource::new("coordination.k8s.io", "v1", "Lease", "leases").locked().upsert(),
        Resource::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses").cluster().locked().upsert(),
        Resource::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
        Resource::new("resource.k8s.io", "v1", "DeviceClass", "deviceclasses").cluster(),
        Resource::new("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims").status(),
        Resource::new("resource.k8s.io", "v1", "ResourceClaimTemplate", "resourceclaimtemplates"),
        Resource::new("resource.k8s.io", "v1", "ResourceSlice", "resourceslices")
            .cluster()
            .only_name_selectable()
            .fields(&["spec.nodeName", "spec.driver"]),
        flow("FlowSchema", "flowschemas").status(),
        flow("PriorityLevelConfiguration", "prioritylevelconfigurations").status(),
    ]
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_upstreams() {
        let key = |g, p| find_preferred(g, p).unwrap().key("ns", "x").unwrap();
        assert_eq!(key("", "pods"), "/registry/pods/ns/x");
        assert_eq!(key("", "nodes"), "/registry/minions/x");
        assert_eq!(key("", "services"), "/registry/services/specs/ns/x");
        assert_eq!(key("", "endpoints"), "/registry/services/endpoints/ns/x");
        assert_eq!(key("networking.k8s.io", "ingresses"), "/registry/ingress/ns/x");
        assert!(find_preferred("", "bindings").unwrap().key("ns", "x").is_none());
    }
}
