//! Roles and bindings.

use super::Strategy;
use crate::context::Target;
use crate::validate::label_selector;
use crate::value::{each_mut, is_empty, items, set, text};
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::Value;

const GROUP: &str = "rbac.authorization.k8s.io";

fn rules(object: &Value, namespaced: bool, errors: &mut ErrorList) {
    for (i, r) in items(object, "rules").iter().enumerate() {
        let path = Path::new("rules").index(i);
        let empty = |f: &str| items(r, f).is_empty();
        if empty("verbs") {
            errors.push(FieldError::required(&path.child("verbs"), "verbs must contain at least one value"));
        }
        if !empty("nonResourceURLs") {
            if namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(
                    &path.child("nonResourceURLs"),
                    r["nonResourceURLs"].clone(),
                    detail,
                ));
            }
            if !empty("apiGroups") || !empty("resources") || !empty("resourceNames") {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(
                    &path.child("nonResourceURLs"),
                    r["nonResourceURLs"].clone(),
                    detail,
                ));
            }
            continue;
        }
        if empty("apiGroups") {
            let detail = "resource rules must supply at least one api group";
            errors.push(FieldError::required(&path.child("apiGroups"), detail));
        }
        if empty("resources") {
            let detail = "resource rules must supply at least one resource";
            errors.push(FieldError::required(&path.child("resources"), detail));
        }
    }
}

pub struct Roles;

impl Strategy for Roles {
    fn name_check(&self) -> crate::meta::NameCheck {
        names::path_segment
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        rules(object, true, errors);
    }
}

pub struct ClusterRoles;

impl Strategy for ClusterRoles {
    fn name_check(&self) -> crate::meta::NameCheck {
        names::path_segment
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        rules(object, false, errors);
        if object["aggregationRule"].is_null() {
            return;
        }
        let path = Path::new("aggregationRule").child("clusterRoleSelectors");
        let selectors = items(object, "aggregationRule.clusterRoleSelectors");
        if selectors.is_empty() {
            let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.push(FieldError::required(&path, detail));
        }
        for (i, s) in selectors.iter().enumerate() {
            label_selector(s, &path.index(i), errors);
            if !super::apps::is_valid(s) {
                errors.push(FieldError::invalid(&path.index(i), Value::Null, "invalid label selector."));
            }
        }
    }
}

/// RoleBindings and ClusterRoleBindings.
pub struct Bindings;

impl Strategy for Bindings {
    fn name_check(&self) -> crate::meta::NameCheck {
        names::path_segment
    }
    fn default(&self, object: &mut Value) {
        if is_empty(&object["roleRef"]["apiGroup"]) && object["roleRef"].is_object() {
            set(object, "roleRef.apiGroup", GROUP);
        }
        for s in each_mut(object, "subjects") {
            if is_empty(&s["apiGroup"]) && ["User", "Group"].contains(&text(s, "kind")) {
                set(s, "apiGroup", GROUP);
            }
        }
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let namespaced = text(object, "kind") == "RoleBinding";
        let (role, path) = (&object["roleRef"], Path::new("roleRef"));
        if text(role, "apiGroup") != GROUP {
            errors.push(FieldError::not_supported(&path.child("apiGroup"), text(role, "apiGroup"), &[GROUP]));
        }
        let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
        if !kinds.contains(&text(role, "kind")) {
            errors.push(FieldError::not_supported(&path.child("kind"), text(role, "kind"), kinds));
        }
        if text(role, "name").is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else {
            for problem in names::path_segment(text(role, "name")) {
                errors.push(FieldError::invalid(&path.child("name"), text(role, "name"), &problem));
            }
        }
        for (i, s) in items(object, "subjects").iter().enumerate() {
            subject(s, namespaced, &Path::new("subjects").index(i), errors);
        }
    }
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if current["roleRef"] != new["roleRef"] {
            errors.push(FieldError::invalid(
                &Path::new("roleRef"),
                new["roleRef"].clone(),
                "cannot change roleRef",
            ));
        }
    }
}

fn subject(s: &Value, namespaced: bool, path: &Path, errors: &mut ErrorList) {
    let (kind, name, group) = (text(s, "kind"), text(s, "name"), text(s, "apiGroup"));
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), ""));
    }
    match kind {
        "ServiceAccount" => {
            if !name.is_empty() {
                for problem in names::dns1123_subdomain(name) {
                    errors.push(FieldError::invalid(&path.child("name"), name, &problem));
                }
            }
            if !group.is_empty() {
                errors.push(FieldError::not_supported(&path.child("apiGroup"), group, &[""]));
            }
            if !namespaced && text(s, "namespace").is_empty() {
                errors.push(FieldError::required(&path.child("namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.push(FieldError::not_supported(&path.child("apiGroup"), group, &[GROUP]));
            }
        }
        other => errors.push(FieldError::not_supported(
            &path.child("kind"),
            other,
            &["ServiceAccount", "User", "Group"],
        )),
    }
}
