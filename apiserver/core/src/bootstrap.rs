//! What every cluster starts with: namespaces, priority classes, roles and bindings.
//!
//! The roles are a table of facts in `data/rbac.txt` (`data/make_rbac.py` writes it and says how it reads).
//! The server creates what is missing at start and leaves alone what is there.

use keelson_api::{Resource, resource};
use serde_json::{Map, Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";
const ROLES: &str = include_str!("../data/rbac.txt");

/// The objects, in the order in which to create them.
pub fn objects() -> Vec<(&'static Resource, Value)> {
    let mut out = vec![];
    let mut add = |group: &str, plural: &str, object: Value| {
        if let Some(r) = resource::find_preferred(group, plural) {
            out.push((r, object));
        }
    };
    for name in ["kube-system", "default", "kube-public", "kube-node-lease"] {
        add("", "namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    }
    let classes = [
        (
            "system-node-critical",
            2_000_001_000u32,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ];
    for (name, value, description) in classes {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description});
        add("scheduling.k8s.io", "priorityclasses", class);
    }
    for object in rbac_objects() {
        let plural = match object["kind"].as_str() {
            Some("ClusterRole") => "clusterroles",
            Some("Role") => "roles",
            Some("ClusterRoleBinding") => "clusterrolebindings",
            _ => "rolebindings",
        };
        add(GROUP, plural, object);
    }
    out
}

/// Reads the table of roles and bindings.
pub fn rbac_objects() -> Vec<Value> {
    let mut out: Vec<Value> = vec![];
    for line in ROLES.lines() {
        match line.strip_prefix(' ') {
            None => out.extend(head(line)),
            Some(line) => {
                if let Some(last) = out.last_mut() {
                    detail(last, line);
                }
            }
        }
    }
    out
}

fn head(line: &str) -> Option<Value> {
    let mut words = line.split(' ');
    let (word, name) = (words.next()?, words.next()?);
    let kind = match word {
        "clusterrole" => "ClusterRole",
        "role" => "Role",
        "clusterrolebinding" => "ClusterRoleBinding",
        _ => "RoleBinding",
    };
    let mut metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    });
    if let Some((namespace, name)) = name.split_once('/').filter(|_| word == "role" || word == "rolebinding")
    {
        metadata["name"] = name.into();
        metadata["namespace"] = namespace.into();
    }
    let mut object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata});
    let mut selectors = vec![];
    for word in words {
        if let Some((key, value)) = word.strip_prefix("label=").and_then(|l| l.split_once('=')) {
            object["metadata"]["labels"][key] = value.into();
        } else if let Some((key, value)) = word.strip_prefix("aggregate=").and_then(|l| l.split_once('=')) {
            selectors.push(json!({"matchLabels": Map::from_iter([(key.to_string(), Value::from(value))])}));
        } else if let Some((kind, name)) = word.split_once('/') {
            object["roleRef"] = json!({"apiGroup": GROUP, "kind": kind, "name": name});
        }
    }
    if !selectors.is_empty() {
        object["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
    }
    Some(object)
}

fn detail(object: &mut Value, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let list =
        |text: &str| text.split(',').map(|w| Value::from(if w == "_" { "" } else { w })).collect::<Vec<_>>();
    let (field, item) = match words.as_slice() {
        [kind @ ("User" | "Group"), name] => {
            ("subjects", json!({"kind": kind, "apiGroup": GROUP, "name": name}))
        }
        ["ServiceAccount", name] => {
            let (namespace, name) = name.split_once('/').unwrap_or(("", name));
            ("subjects", json!({"kind": "ServiceAccount", "name": name, "namespace": namespace}))
        }
        [verbs, urls] => {
            ("rules", json!({"verbs": list(verbs), "nonResourceURLs": list(urls.trim_start_matches("url="))}))
        }
        [verbs, groups, resources, rest @ ..] => {
            let mut rule =
                json!({"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources)});
            if let Some(names) = rest.first().and_then(|r| r.strip_prefix("names=")) {
                rule["resourceNames"] = list(names).into();
            }
            ("rules", rule)
        }
        _ => return,
    };
    let slot = crate::value::map_mut(object).entry(field).or_insert_with(|| json!([]));
    if let Some(slot) = slot.as_array_mut() {
        slot.push(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Attributes, authorize};
    use crate::context::{UserInfo, View};
    use std::sync::Arc;

    struct Bootstrapped(Vec<(&'static Resource, Arc<Value>)>);
    impl View for Bootstrapped {
        fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
            let namespace = Some(namespace).filter(|n| !n.is_empty());
            self.list(group, resource, namespace).into_iter().find(|o| crate::value::name(o) == name)
        }
        fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
            let here = |o: &Arc<Value>| namespace.is_none_or(|n| crate::value::namespace(o) == n);
            self.0
                .iter()
                .filter(|(r, o)| r.group == group && r.plural == resource && here(o))
                .map(|(_, o)| o.clone())
                .collect()
        }
    }

    #[test]
    fn the_scheduler_binds_and_strangers_do_not() {
        let view = Bootstrapped(objects().into_iter().map(|(r, o)| (r, Arc::new(o))).collect());
        let mut a = Attributes {
            user: UserInfo { name: "system:kube-scheduler".into(), ..UserInfo::default() },
            verb: "create".into(),
            resource: "pods".into(),
            subresource: "binding".into(),
            namespace: "default".into(),
            is_resource: true,
            ..Attributes::default()
        };
        assert!(authorize(&a, &view).allowed());
        a.user.name = "alice".into();
        assert!(!authorize(&a, &view).allowed());
        a.user.groups = vec!["system:masters".into()];
        assert!(authorize(&a, &view).allowed());
    }
}
