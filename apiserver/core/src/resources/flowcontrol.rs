//! FlowSchemas and PriorityLevelConfigurations.

use super::Strategy;
use crate::context::Target;
use crate::validate::one_of;
use crate::value::{at, default, each_mut, flag, int, is_empty, items, set, text};
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::{Value, json};

const MOST_PRECEDENCE: i64 = 10_000;
const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

pub struct FlowSchemas;

impl Strategy for FlowSchemas {
    fn default(&self, object: &mut Value) {
        if int(object, "spec.matchingPrecedence") == 0 {
            set(object, "spec.matchingPrecedence", 1000);
        }
        for rule in each_mut(object, "spec.rules") {
            for subject in each_mut(rule, "subjects") {
                if text(subject, "kind") == "ServiceAccount" && subject["serviceAccount"].is_null() {
                    crate::value::map_mut(subject);
                }
            }
        }
    }
    fn generation(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let (name, precedence) = (text(object, "metadata.name"), int(spec, "matchingPrecedence"));
        let at_precedence = path.child("matchingPrecedence");
        if precedence <= 0 {
            errors.push(FieldError::invalid(&at_precedence, precedence, "must be a positive value"));
        }
        if precedence > MOST_PRECEDENCE {
            let detail = format!("must not be greater than {MOST_PRECEDENCE}");
            errors.push(FieldError::invalid(&at_precedence, precedence, &detail));
        }
        if precedence == 1 && name != "exempt" {
            let detail = "only the schema named 'exempt' may have matchingPrecedence 1";
            errors.push(FieldError::invalid(&at_precedence, 1, detail));
        }
        if !spec["distinguisherMethod"].is_null() {
            let kind = text(spec, "distinguisherMethod.type");
            if kind != "ByUser" && kind != "ByNamespace" {
                let at = path.child("distinguisherMethod").child("type");
                let value = json!({"Type": kind});
                errors.push(FieldError::not_supported(&at, value, &["ByNamespace", "ByUser"]));
            }
        }
        let (level, at_level) = (
            text(spec, "priorityLevelConfiguration.name"),
            path.child("priorityLevelConfiguration").child("name"),
        );
        if level.is_empty() {
            errors.push(FieldError::required(&at_level, "must reference a priority level"));
        } else {
            for problem in names::dns1123_subdomain(level) {
                errors.push(FieldError::invalid(&at_level, level, &problem));
            }
        }
        for (i, rule) in items(spec, "rules").iter().enumerate() {
            schema_rule(rule, &path.child("rules").index(i), errors);
        }
    }
    fn validate_update(&self, _: &Target, _: &Value, _: &Value, _: &mut ErrorList) {}
}

fn schema_rule(rule: &Value, path: &Path, errors: &mut ErrorList) {
    let subjects = items(rule, "subjects");
    if subjects.is_empty() {
        errors
            .push(FieldError::required(&path.child("subjects"), "subjects must contain at least one value"));
    }
    for (i, s) in subjects.iter().enumerate() {
        subject(s, &path.child("subjects").index(i), errors);
    }
    let (resources, others) = (items(rule, "resourceRules"), items(rule, "nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        let detail = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.push(FieldError::required(path, detail));
    }
    for (i, r) in resources.iter().enumerate() {
        resource_rule(r, &path.child("resourceRules").index(i), errors);
    }
    for (i, r) in others.iter().enumerate() {
        let path = path.child("nonResourceRules").index(i);
        verbs(r, &path, errors);
        urls(r, &path.child("nonResourceURLs"), errors);
    }
}

fn subject(s: &Value, path: &Path, errors: &mut ErrorList) {
    let kinds = [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];
    let kind = text(s, "kind");
    let Some((_, field)) = kinds.iter().find(|(k, _)| *k == kind) else {
        let names = kinds.map(|(k, _)| k);
        errors.push(FieldError::not_supported(&path.child("kind"), kind, &names));
        return;
    };
    for (_, other) in kinds.iter().filter(|(k, f)| *k != kind && !s[*f].is_null()) {
        let detail = format!("{other} is forbidden when subject kind is not '{}'", kind);
        errors.push(FieldError::forbidden(&path.child(other), &detail));
    }
    let path = path.child(field);
    if s[*field].is_null() {
        let detail = format!("{field} is required when subject kind is '{kind}'");
        errors.push(FieldError::required(&path, &detail));
        return;
    }
    let name = text(&s[*field], "name");
    if kind != "ServiceAccount" {
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        }
        return;
    }
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), ""));
    } else if name != "*" {
        for problem in names::dns1123_subdomain(name) {
            errors.push(FieldError::invalid(&path.child("name"), name, &problem));
        }
    }
    let namespace = text(&s[*field], "namespace");
    if namespace.is_empty() {
        let detail = "must specify namespace for service account";
        errors.push(FieldError::required(&path.child("namespace"), detail));
    } else {
        for problem in names::dns1123_label(namespace) {
            errors.push(FieldError::invalid(&path.child("namespace"), namespace, &problem));
        }
    }
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    items(value, field).iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn verbs(rule: &Value, path: &Path, errors: &mut ErrorList) {
    let list = texts(rule, "verbs");
    let path = path.child("verbs");
    if list.is_empty() {
        errors.push(FieldError::required(&path, "verbs must contain at least one value"));
    } else if list.iter().any(|v| v == "*") {
        if list.len() > 1 {
            errors.push(FieldError::invalid(&path, list, "if '*' is present, must not specify other verbs"));
        }
    } else if !list.iter().all(|v| VERBS.contains(&v.as_str())) {
        errors.push(FieldError::not_supported(&path, list, &VERBS));
    }
}

fn urls(rule: &Value, path: &Path, errors: &mut ErrorList) {
    let list = texts(rule, "nonResourceURLs");
    if list.is_empty() {
        errors.push(FieldError::required(path, "nonResourceURLs must contain at least one value"));
        return;
    }
    if list.iter().any(|u| u == "*") {
        if list.len() > 1 {
            let detail = "if '*' is present, must not specify other non-resource URLs";
            errors.push(FieldError::invalid(path, list, detail));
        }
        return;
    }
    for (i, url) in list.iter().enumerate() {
        let complaint = if url.is_empty() {
            "must not be empty"
        } else if !url.starts_with('/') {
            "must start with slash"
        } else if url.contains("//") {
            "must not contain double slash"
        } else if url.contains(' ') {
            "must not contain white-space"
        } else if url.strip_suffix("/*").unwrap_or(url).contains('*') {
            "wildcard can only do suffix matching"
        } else {
            continue;
        };
        errors.push(FieldError::invalid(&path.index(i), url.as_str(), complaint));
    }
}

fn resource_rule(rule: &Value, path: &Path, errors: &mut ErrorList) {
    verbs(rule, path, errors);
    for (field, what) in [("apiGroups", "api groups"), ("resources", "resources")] {
        let list = texts(rule, field);
        let path = path.child(field);
        if list.is_empty() {
            errors.push(FieldError::required(
                &path,
                &format!(
                    "resource rules must supply at least one {}",
                    if field == "apiGroups" { "api group" } else { "resource" }
                ),
            ));
        } else if list.len() > 1 && list.iter().any(|v| v == "*") {
            let detail = format!("if '*' is present, must not specify other {what}");
            errors.push(FieldError::invalid(&path, list, &detail));
        }
    }
    let (namespaces, path) = (texts(rule, "namespaces"), path.child("namespaces"));
    if namespaces.is_empty() && !flag(rule, "clusterScope") {
        let detail = "resource rules that are not cluster scoped must supply at least one namespace";
        errors.push(FieldError::required(&path, detail));
    } else if namespaces.iter().any(|n| n == "*") {
        if namespaces.len() > 1 {
            let detail = "if '*' is present, must not specify other namespaces";
            errors.push(FieldError::invalid(&path, namespaces, detail));
        }
    } else {
        for (i, namespace) in namespaces.iter().enumerate() {
            for problem in names::dns1123_label(namespace) {
                let detail = format!("nor a valid namespace name: {problem}");
                errors.push(FieldError::invalid(&path.index(i), namespace.as_str(), &detail));
            }
        }
    }
}

pub struct PriorityLevels;

impl Strategy for PriorityLevels {
    fn default(&self, object: &mut Value) {
        if at(object, "spec.limited").is_object() {
            default(object, "spec.limited.nominalConcurrencyShares", 30);
            default(object, "spec.limited.lendablePercent", 0);
            if at(object, "spec.limited.limitResponse.queuing").is_object() {
                let path = "spec.limited.limitResponse.queuing";
                for (field, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                    if int(object, &format!("{path}.{field}")) == 0 {
                        set(object, &format!("{path}.{field}"), value);
                    }
                }
            }
        }
        if at(object, "spec.exempt").is_object() {
            default(object, "spec.exempt.nominalConcurrencyShares", 0);
            default(object, "spec.exempt.lendablePercent", 0);
        }
    }
    fn generation(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let (name, kind) = (text(object, "metadata.name"), text(spec, "type"));
        if (name == "exempt") != (kind == "Exempt") && (kind == "Exempt" || kind == "Limited") {
            let detail = "must be 'Exempt' if and only if `name` is 'exempt'";
            errors.push(FieldError::invalid(&path.child("type"), kind, detail));
            return;
        }
        match kind {
            "Exempt" if !spec["limited"].is_null() => {
                let detail = "must be nil if the type is not Limited";
                errors.push(FieldError::forbidden(&path.child("limited"), detail));
            }
            "Exempt" => {}
            "Limited" if !spec["exempt"].is_null() => {
                let detail = "must be nil if the type is Limited";
                errors.push(FieldError::forbidden(&path.child("exempt"), detail));
            }
            "Limited" if spec["limited"].is_null() => {
                let detail = "must not be empty when type is Limited";
                errors.push(FieldError::required(&path.child("limited"), detail));
            }
            "Limited" => limited(&spec["limited"], &path.child("limited"), errors),
            other => {
                errors.push(FieldError::not_supported(&path.child("type"), other, &["Exempt", "Limited"]))
            }
        }
    }
    fn validate_update(&self, _: &Target, _: &Value, _: &Value, _: &mut ErrorList) {}
}

fn limited(limited: &Value, path: &Path, errors: &mut ErrorList) {
    let shares = int(limited, "nominalConcurrencyShares");
    if shares < 0 {
        let at = path.child("nominalConcurrencyShares");
        errors.push(FieldError::invalid(&at, shares, "must be a non-negative integer"));
    }
    let (response, at_response) = (&limited["limitResponse"], path.child("limitResponse"));
    let queuing = &response["queuing"];
    match text(response, "type") {
        "Reject" if !queuing.is_null() => {
            let detail = "must be nil if limited.limitResponse.type is not Limited";
            errors.push(FieldError::forbidden(&at_response.child("queuing"), detail));
        }
        "Reject" => {}
        "Queue" if is_empty(queuing) => {
            let detail = "must not be empty if limited.limitResponse.type is Limited";
            errors.push(FieldError::required(&at_response.child("queuing"), detail));
        }
        "Queue" => queues(queuing, &at_response.child("queuing"), errors),
        other => one_of(other, &["Queue", "Reject"], &at_response.child("type"), errors),
    }
    let lendable = int(limited, "lendablePercent");
    if !(0..=100).contains(&lendable) {
        let detail = "must be between 0 and 100, inclusive";
        errors.push(FieldError::invalid(&path.child("lendablePercent"), lendable, detail));
    }
    if let Some(percent) = limited["borrowingLimitPercent"].as_i64().filter(|p| *p < 0) {
        let detail = "if specified, must be a non-negative integer";
        errors.push(FieldError::invalid(&path.child("borrowingLimitPercent"), percent, detail));
    }
}

fn queues(queuing: &Value, path: &Path, errors: &mut ErrorList) {
    let number = |f: &str| int(queuing, f);
    if number("queueLengthLimit") <= 0 {
        let at = path.child("queueLengthLimit");
        errors.push(FieldError::invalid(&at, number("queueLengthLimit"), "must be positive"));
    }
    let (queues, hand) = (number("queues"), number("handSize"));
    if queues <= 0 {
        errors.push(FieldError::invalid(&path.child("queues"), queues, "must be positive"));
    } else if queues > 10_000_000 {
        let detail = "must not be greater than 10000000";
        errors.push(FieldError::invalid(&path.child("queues"), queues, detail));
    }
    if hand <= 0 {
        errors.push(FieldError::invalid(&path.child("handSize"), hand, "must be positive"));
    } else if hand > queues {
        let detail = format!("should not be greater than queues ({queues})");
        errors.push(FieldError::invalid(&path.child("handSize"), hand, &detail));
    }
}
