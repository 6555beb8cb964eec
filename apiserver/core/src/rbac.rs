//! RBAC: roles and bindings decide.

use crate::authz::{Attributes, Decision};
use crate::context::{UserInfo, View};
use crate::value::{items, text};
use serde_json::Value;
use std::sync::Arc;

const GROUP: &str = "rbac.authorization.k8s.io";
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";

fn listed(list: &[Value], wanted: &str) -> bool {
    list.iter().any(|v| v == "*" || v == wanted)
}

/// Whether a rule allows a request.
pub fn rule_allows(rule: &Value, a: &Attributes) -> bool {
    if !listed(items(rule, "verbs"), &a.verb) {
        return false;
    }
    if !a.is_resource {
        return items(rule, "nonResourceURLs").iter().filter_map(Value::as_str).any(|url| {
            match url.strip_suffix('*') {
                Some(prefix) => a.path.starts_with(prefix),
                None => url == a.path,
            }
        });
    }
    let names = items(rule, "resourceNames");
    listed(items(rule, "apiGroups"), &a.group)
        && resource_listed(items(rule, "resources"), &a.resource, &a.subresource)
        && (names.is_empty() || names.iter().any(|n| *n == a.name))
}

fn resource_listed(resources: &[Value], resource: &str, subresource: &str) -> bool {
    let combined =
        if subresource.is_empty() { resource.to_string() } else { format!("{resource}/{subresource}") };
    resources.iter().filter_map(Value::as_str).any(|r| {
        r == "*" || r == combined || (!subresource.is_empty() && r.strip_prefix("*/") == Some(subresource))
    })
}

/// Whether a subject of a binding in `namespace` is the user.
fn is_subject(subject: &Value, user: &UserInfo, namespace: &str) -> bool {
    let name = text(subject, "name");
    match text(subject, "kind") {
        "User" => name == user.name,
        "Group" => user.in_group(name),
        "ServiceAccount" => {
            let own = text(subject, "namespace");
            let own = if own.is_empty() { namespace } else { own };
            !own.is_empty()
                && user.name.strip_prefix(ACCOUNT_PREFIX).is_some_and(|rest| rest == format!("{own}:{name}"))
        }
        _ => false,
    }
}

/// The rules a role reference stands for.
pub fn rules_of(reference: &Value, namespace: &str, view: &dyn View) -> Option<Vec<Value>> {
    let name = text(reference, "name");
    let role = match text(reference, "kind") {
        "ClusterRole" => view.get(GROUP, "clusterroles", "", name),
        "Role" => view.get(GROUP, "roles", namespace, name),
        _ => None,
    }?;
    Some(rules_of_role(&role, view))
}

/// The rules of a role, with those of the roles it aggregates.
pub fn rules_of_role(role: &Value, view: &dyn View) -> Vec<Value> {
    let mut rules = items(role, "rules").to_vec();
    let selectors = items(role, "aggregationRule.clusterRoleSelectors");
    if !selectors.is_empty() {
        let selectors: Vec<_> = selectors.iter().map(keelson_api::LabelSelector::from_object).collect();
        for other in view.list(GROUP, "clusterroles", None) {
            let same = crate::value::name(&other) == crate::value::name(role);
            if !same && selectors.iter().any(|s| s.matches_object(&other)) {
                rules.extend(items(&other, "rules").iter().cloned());
            }
        }
    }
    rules
}

/// One binding that applies to a user: its rules and a sentence about it.
struct Grant {
    rules: Vec<Value>,
    reason: String,
}

fn grants(user: &UserInfo, namespace: &str, view: &dyn View) -> Vec<Grant> {
    let mut out = vec![];
    let mut collect = |bindings: Vec<Arc<Value>>, kind: &str, namespace: &str| {
        for b in bindings {
            let Some(subject) = items(&b, "subjects").iter().find(|s| is_subject(s, user, namespace)) else {
                continue;
            };
            let Some(rules) = rules_of(&b["roleRef"], namespace, view) else { continue };
            let name = crate::value::name(&b);
            let shown = if namespace.is_empty() { name.to_string() } else { format!("{name}/{namespace}") };
            let who = match text(subject, "kind") {
                "ServiceAccount" => {
                    let own = text(subject, "namespace");
                    format!("\"{}/{}\"", text(subject, "name"), if own.is_empty() { namespace } else { own })
                }
                _ => format!("\"{}\"", text(subject, "name")),
            };
            let reason = format!(
                "RBAC: allowed by {kind} \"{shown}\" of {} \"{}\" to {} {who}",
                text(&b, "roleRef.kind"),
                text(&b, "roleRef.name"),
                text(subject, "kind"),
            );
            out.push(Grant { rules, reason });
        }
    };
    collect(view.list(GROUP, "clusterrolebindings", None), "ClusterRoleBinding", "");
    if !namespace.is_empty() {
        collect(view.list(GROUP, "rolebindings", Some(namespace)), "RoleBinding", namespace);
    }
    out
}

/// Decides by roles and bindings.
pub fn authorize(a: &Attributes, view: &dyn View) -> Decision {
    let found =
        grants(&a.user, &a.namespace, view).into_iter().find(|g| g.rules.iter().any(|r| rule_allows(r, a)));
    match found {
        Some(grant) => Decision::Allow { reason: grant.reason },
        None => Decision::Deny { reason: String::new() },
    }
}

/// Every rule that applies to a user in a namespace.
pub fn rules_for(user: &UserInfo, namespace: &str, view: &dyn View) -> Vec<Value> {
    let mut rules: Vec<Value> = grants(user, namespace, view).into_iter().flat_map(|g| g.rules).collect();
    if user.in_group("system:masters") {
        rules.push(serde_json::json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        rules.push(serde_json::json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    rules
}

/// Whether `owned` rules cover everything `wanted` allows; returns what they do not.
pub fn uncovered(owned: &[Value], wanted: &[Value]) -> Vec<Value> {
    wanted.iter().flat_map(atoms).filter(|w| !owned.iter().any(|o| covers(o, w))).collect()
}

/// A rule as single permissions.
fn atoms(rule: &Value) -> Vec<Value> {
    let list =
        |f: &str| items(rule, f).iter().filter_map(Value::as_str).map(String::from).collect::<Vec<_>>();
    let mut out = vec![];
    for verb in list("verbs") {
        for url in list("nonResourceURLs") {
            out.push(serde_json::json!({"verbs": [verb], "nonResourceURLs": [url]}));
        }
        for group in list("apiGroups") {
            for resource in list("resources") {
                let names = list("resourceNames");
                if names.is_empty() {
                    out.push(
                        serde_json::json!({"verbs": [verb], "apiGroups": [group], "resources": [resource]}),
                    );
                }
                for name in names {
                    out.push(serde_json::json!({"verbs": [verb], "apiGroups": [group], "resources": [resource], "resourceNames": [name]}));
                }
            }
        }
    }
    out
}

fn covers(owned: &Value, atom: &Value) -> bool {
    let first = |f: &str| items(atom, f).first().and_then(Value::as_str);
    let has = |f: &str| first(f).is_some_and(|w| listed(items(owned, f), w));
    if !has("verbs") {
        return false;
    }
    if let Some(url) = first("nonResourceURLs") {
        return items(owned, "nonResourceURLs").iter().filter_map(Value::as_str).any(|o| {
            match o.strip_suffix('*') {
                Some(prefix) => url.starts_with(prefix),
                None => o == url,
            }
        });
    }
    let resource = first("resources").unwrap_or("");
    let (plain, sub) = resource.split_once('/').unwrap_or((resource, ""));
    let names = items(owned, "resourceNames");
    has("apiGroups")
        && resource_listed(items(owned, "resources"), plain, sub)
        && (names.is_empty() || first("resourceNames").is_some_and(|n| names.iter().any(|o| o == n)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules() {
        let a = |verb: &str, resource: &str, sub: &str, name: &str| Attributes {
            verb: verb.into(),
            resource: resource.into(),
            subresource: sub.into(),
            name: name.into(),
            is_resource: true,
            ..Attributes::default()
        };
        let r = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log", "*/scale"], "resourceNames": ["x"]});
        assert!(rule_allows(&r, &a("get", "pods", "", "x")));
        assert!(rule_allows(&r, &a("get", "pods", "log", "x")));
        assert!(rule_allows(&r, &a("get", "deployments", "scale", "x")));
        assert!(!rule_allows(&r, &a("get", "pods", "exec", "x")));
        assert!(!rule_allows(&r, &a("get", "pods", "", "y")));
        assert!(!rule_allows(&r, &a("list", "pods", "", "x")));
        let u = json!({"verbs": ["get"], "nonResourceURLs": ["/healthz/*"]});
        let path = Attributes { verb: "get".into(), path: "/healthz/a".into(), ..Attributes::default() };
        assert!(rule_allows(&u, &path));
    }

    #[test]
    fn nobody_grants_what_he_lacks() {
        let owned = [json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["*"]})];
        assert!(
            uncovered(
                &owned,
                &[json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "secrets"]})]
            )
            .is_empty()
        );
        assert_eq!(
            uncovered(
                &owned,
                &[json!({"verbs": ["get", "delete"], "apiGroups": [""], "resources": ["pods"]})]
            )
            .len(),
            1
        );
    }
}
