//! The Node authorizer: what a kubelet may do follows from the pods that are bound to its node.

use crate::authz::{Attributes, Decision};
use crate::context::{UserInfo, View};
use crate::value::{items, text};
use serde_json::Value;

const USER_PREFIX: &str = "system:node:";
const GROUP: &str = "system:nodes";

/// The node a user is, if it is one.
pub fn node_name(user: &UserInfo) -> Option<&str> {
    user.name.strip_prefix(USER_PREFIX).filter(|n| !n.is_empty() && user.in_group(GROUP))
}

fn allow() -> Decision {
    Decision::Allow { reason: String::new() }
}

/// Decides for nodes; has no opinion about anybody else.
pub fn authorize(a: &Attributes, view: &dyn View) -> Decision {
    let Some(node) = node_name(&a.user) else { return Decision::Deny { reason: String::new() } };
    if !a.is_resource {
        return Decision::Deny { reason: String::new() };
    }
    let deny = |reason: &str| Decision::Deny { reason: reason.into() };
    let no_relation = format!("no relationship found between node '{node}' and this object");
    let verb = a.verb.as_str();
    match (a.group.as_str(), a.resource.as_str(), a.subresource.as_str()) {
        ("", "secrets" | "configmaps", "") => match verb {
            "get" | "list" | "watch" if !a.name.is_empty() => {
                if uses(node, &a.resource, &a.namespace, &a.name, view) {
                    allow()
                } else {
                    deny(&no_relation)
                }
            }
            "get" | "list" | "watch" => deny("No Object name found"),
            _ => deny("can only read resources of this type"),
        },
        ("", "persistentvolumeclaims", "" | "status") | ("", "persistentvolumes", "") => match verb {
            "get" | "list" | "watch" | "update" | "patch" if !a.name.is_empty() => {
                let found = if a.resource == "persistentvolumes" {
                    uses_volume(node, &a.name, view)
                } else {
                    uses(node, &a.resource, &a.namespace, &a.name, view)
                };
                if found { allow() } else { deny(&no_relation) }
            }
            _ => deny("can only get individual resources of this type"),
        },
        ("", "serviceaccounts", "token") if verb == "create" => {
            let runs = pods_of(node, view).iter().any(|p| {
                text(p, "metadata.namespace") == a.namespace && text(p, "spec.serviceAccountName") == a.name
            });
            if runs { allow() } else { deny(&no_relation) }
        }
        ("", "pods", _) => pods(a, node, view),
        ("", "nodes", "" | "status") => match verb {
            "get" if a.name.is_empty() => {
                deny(&format!("node '{node}' cannot read all nodes, only its own Node object"))
            }
            "create" | "get" | "list" | "watch" => allow(),
            "update" | "patch" | "delete" if a.name == node || a.name.is_empty() => allow(),
            _ => deny("node can only modify itself"),
        },
        ("coordination.k8s.io", "leases", "") => match verb {
            "get" | "create" | "update" | "patch" | "delete" if a.namespace == "kube-node-lease" => {
                if a.name == node || verb == "create" {
                    allow()
                } else {
                    deny("can only access node lease with the same name as the requesting node")
                }
            }
            _ => deny("can only access leases in the \"kube-node-lease\" system namespace"),
        },
        ("storage.k8s.io", "csinodes", "") => match verb {
            "get" | "create" | "update" | "patch" | "delete" if a.name == node || verb == "create" => allow(),
            _ => deny("can only access CSINode with the same name as the requesting node"),
        },
        ("storage.k8s.io", "volumeattachments", "") if verb == "get" => {
            let found = view
                .get("storage.k8s.io", "volumeattachments", "", &a.name)
                .is_some_and(|v| text(&v, "spec.nodeName") == node);
            if found { allow() } else { deny(&no_relation) }
        }
        ("certificates.k8s.io", "certificatesigningrequests", "") => match verb {
            "create" | "get" | "list" | "watch" => allow(),
            _ => deny(""),
        },
        ("", "events", "") | ("events.k8s.io", "events", "")
            if matches!(verb, "create" | "update" | "patch") =>
        {
            allow()
        }
        ("", "services", "")
        | ("node.k8s.io", "runtimeclasses", "")
        | ("storage.k8s.io", "csidrivers", "")
            if matches!(verb, "get" | "list" | "watch") =>
        {
            allow()
        }
        ("authentication.k8s.io", "tokenreviews", "")
        | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "")
            if verb == "create" =>
        {
            allow()
        }
        _ => deny(""),
    }
}

/// A node lists and watches the pods on it; what it changes is checked once more by NodeRestriction.
fn pods(a: &Attributes, node: &str, view: &dyn View) -> Decision {
    let deny = |reason: &str| Decision::Deny { reason: reason.into() };
    match (a.verb.as_str(), a.subresource.as_str()) {
        ("list" | "watch", "") => allow(),
        ("create", "" | "eviction") | ("delete", "") => allow(),
        ("update" | "patch", "status") => allow(),
        ("get", "") => {
            let pod = view.get("", "pods", &a.namespace, &a.name);
            // One that is gone is answered with 404, not with a riddle.
            let found = pod.is_none_or(|p| text(&p, "spec.nodeName") == node);
            if found {
                allow()
            } else {
                deny(&format!("no relationship found between node '{node}' and this object"))
            }
        }
        _ => deny(""),
    }
}

fn pods_of(node: &str, view: &dyn View) -> Vec<std::sync::Arc<Value>> {
    let mut pods = view.list("", "pods", None);
    pods.retain(|p| text(p, "spec.nodeName") == node);
    pods
}

/// Whether a pod on the node names the object in one of its fields.
fn uses(node: &str, resource: &str, namespace: &str, name: &str, view: &dyn View) -> bool {
    let pods = pods_of(node, view);
    pods.iter()
        .filter(|p| text(p, "metadata.namespace") == namespace)
        .any(|p| names_of(p, resource).contains(&name))
}

/// Whether a claim that a pod on the node uses is bound to the volume.
fn uses_volume(node: &str, volume: &str, view: &dyn View) -> bool {
    pods_of(node, view).iter().any(|p| {
        let namespace = text(p, "metadata.namespace");
        names_of(p, "persistentvolumeclaims").iter().any(|claim| {
            view.get("", "persistentvolumeclaims", namespace, claim)
                .is_some_and(|c| text(&c, "spec.volumeName") == volume)
        })
    })
}

/// The objects of a resource that a pod names.
fn names_of<'a>(pod: &'a Value, resource: &str) -> Vec<&'a str> {
    let mut out = vec![];
    let (volume, volume_key, projected, env, env_from) = match resource {
        "secrets" => ("secret", "secretName", "secret", "secretKeyRef", "secretRef"),
        "configmaps" => ("configMap", "name", "configMap", "configMapKeyRef", "configMapRef"),
        _ => ("persistentVolumeClaim", "claimName", "", "", ""),
    };
    for v in items(pod, "spec.volumes") {
        out.push(text(&v[volume], volume_key));
        for source in items(v, "projected.sources") {
            if !projected.is_empty() {
                out.push(text(&source[projected], "name"));
            }
        }
        if resource == "secrets" {
            for source in v.as_object().into_iter().flat_map(|m| m.values()) {
                for reference in ["secretRef", "nodePublishSecretRef"] {
                    out.push(text(&source[reference], "name"));
                }
            }
        }
    }
    if !env.is_empty() {
        for list in crate::resources::pod_spec::CONTAINER_LISTS {
            for c in items(&pod["spec"], list) {
                out.extend(items(c, "env").iter().map(|e| text(&e["valueFrom"][env], "name")));
                out.extend(items(c, "envFrom").iter().map(|e| text(&e[env_from], "name")));
            }
        }
    }
    if resource == "secrets" {
        out.extend(items(pod, "spec.imagePullSecrets").iter().map(|s| text(s, "name")));
    }
    out.retain(|n| !n.is_empty());
    out
}
