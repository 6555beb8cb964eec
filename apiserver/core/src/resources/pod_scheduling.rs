//! Validation of where a pod may run: tolerations, affinity, spread.

use crate::validate::{label_selector, one_of, one_of_if_set};
use crate::value::{int, items, text};
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::Value;
use std::collections::BTreeSet;

/// Tolerations of a pod.
pub fn tolerations(list: &[Value], path: &Path, errors: &mut ErrorList) {
    for (i, t) in list.iter().enumerate() {
        let at_i = path.index(i);
        let key = text(t, "key");
        if !key.is_empty() {
            for problem in names::qualified_name(key) {
                errors.push(FieldError::invalid(&at_i.child("key"), key, &problem));
            }
        }
        let operator = text(t, "operator");
        if key.is_empty() && operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(&at_i.child("operator"), operator, detail));
        }
        if !t["tolerationSeconds"].is_null() && text(t, "effect") != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(&at_i.child("effect"), text(t, "effect"), detail));
        }
        match operator {
            "" | "Equal" => {
                for problem in names::label_value(text(t, "value")) {
                    errors.push(FieldError::invalid(&at_i.child("operator"), text(t, "value"), &problem));
                }
            }
            "Exists" => {
                if !text(t, "value").is_empty() {
                    let detail = "value must be empty when `operator` is 'Exists'";
                    errors.push(FieldError::invalid(&at_i.child("operator"), t.clone(), detail));
                }
            }
            other => {
                // Comparisons are a feature that is off, but they are named.
                let compares = ["Lt", "Gt"].contains(&other);
                let known =
                    if compares { &["Equal", "Exists", "Lt", "Gt"][..] } else { &["Equal", "Exists"] };
                errors.push(FieldError::not_supported(&at_i.child("operator"), other, known))
            }
        }
        if !text(t, "effect").is_empty() {
            one_of(
                text(t, "effect"),
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
                &at_i.child("effect"),
                errors,
            );
        }
    }
}

/// Reports a field that a pod for this system may not have.
pub(super) fn forbidden_for(system: &str, given: bool, path: &Path, errors: &mut ErrorList) {
    if given {
        errors.push(FieldError::forbidden(path, &format!("cannot be set for a {system} pod")));
    }
}

pub(super) fn affinity(a: &Value, path: &Path, errors: &mut ErrorList) {
    let (node, at_node) = (&a["nodeAffinity"], path.child("nodeAffinity"));
    let required = &node["requiredDuringSchedulingIgnoredDuringExecution"];
    if !required.is_null() {
        node_selector(required, &at_node.child("requiredDuringSchedulingIgnoredDuringExecution"), errors);
    }
    for (i, p) in items(node, "preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
        let at_i = at_node.child("preferredDuringSchedulingIgnoredDuringExecution").index(i);
        weight(p, &at_i, errors);
        node_term(&p["preference"], &at_i.child("preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (value, path) = (&a[kind], path.child(kind));
        for (i, t) in items(value, "requiredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            pod_term(t, &path.child("requiredDuringSchedulingIgnoredDuringExecution").index(i), errors);
        }
        for (i, t) in items(value, "preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            let at_i = path.child("preferredDuringSchedulingIgnoredDuringExecution").index(i);
            weight(t, &at_i, errors);
            pod_term(&t["podAffinityTerm"], &at_i.child("podAffinityTerm"), errors);
        }
    }
}

fn weight(t: &Value, path: &Path, errors: &mut ErrorList) {
    let n = int(t, "weight");
    if !(1..=100).contains(&n) {
        errors.push(FieldError::invalid(&path.child("weight"), n, "must be in the range 1-100"));
    }
}

/// A `NodeSelector`.
pub fn node_selector(selector: &Value, path: &Path, errors: &mut ErrorList) {
    let terms = items(selector, "nodeSelectorTerms");
    if terms.is_empty() {
        errors.push(FieldError::required(
            &path.child("nodeSelectorTerms"),
            "must have at least one node selector term",
        ));
    }
    for (i, t) in terms.iter().enumerate() {
        node_term(t, &path.child("nodeSelectorTerms").index(i), errors);
    }
}

fn node_term(term: &Value, path: &Path, errors: &mut ErrorList) {
    for (i, r) in items(term, "matchExpressions").iter().enumerate() {
        let at_i = path.child("matchExpressions").index(i);
        let values = items(r, "values").len();
        match text(r, "operator") {
            "In" | "NotIn" => {
                if values == 0 {
                    let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                    errors.push(FieldError::required(&at_i.child("values"), detail));
                }
            }
            "Exists" | "DoesNotExist" => {
                if values > 0 {
                    let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(FieldError::forbidden(&at_i.child("values"), detail));
                }
            }
            "Gt" | "Lt" => {
                if values != 1 {
                    let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                    errors.push(FieldError::required(&at_i.child("values"), detail));
                }
            }
            other => errors.push(FieldError::invalid(
                &at_i.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        for problem in names::qualified_name(text(r, "key")) {
            errors.push(FieldError::invalid(&at_i.child("key"), text(r, "key"), &problem));
        }
        for (j, value) in items(r, "values").iter().enumerate() {
            let value = value.as_str().unwrap_or("");
            for problem in names::label_value(value) {
                errors.push(FieldError::invalid(&at_i.child("values").index(j), value, &problem));
            }
        }
    }
    for (i, r) in items(term, "matchFields").iter().enumerate() {
        let at_i = path.child("matchFields").index(i);
        if ["In", "NotIn"].contains(&text(r, "operator")) && items(r, "values").len() != 1 {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(FieldError::required(&at_i.child("values"), detail));
        }
    }
}

fn pod_term(t: &Value, path: &Path, errors: &mut ErrorList) {
    label_selector(&t["labelSelector"], &path.child("labelSelector"), errors);
    for ns in items(t, "namespaces") {
        let ns = ns.as_str().unwrap_or("");
        for problem in names::dns1123_label(ns) {
            errors.push(FieldError::invalid(&path.child("namespace"), ns, &problem));
        }
    }
    match_keys(t, path, errors);
    let key = text(t, "topologyKey");
    if key.is_empty() {
        errors.push(FieldError::required(&path.child("topologyKey"), "can not be empty"));
    }
    for problem in names::qualified_name(key) {
        errors.push(FieldError::invalid(&path.child("topologyKey"), key, &problem));
    }
}

/// Labels whose values are taken from the pod itself.
fn match_keys(term: &Value, path: &Path, errors: &mut ErrorList) {
    let other = |list: &str| if list == "matchLabelKeys" { "mismatchLabelKeys" } else { "matchLabelKeys" };
    for list in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = items(term, list);
        if !keys.is_empty() && term["labelSelector"].is_null() {
            let detail = "must not be specified when labelSelector is not set";
            errors.push(FieldError::forbidden(&path.child(list), detail));
        }
        for (i, key) in keys.iter().enumerate() {
            let (key, at_i) = (key.as_str().unwrap_or(""), path.child(list).index(i));
            for problem in names::qualified_name(key) {
                errors.push(FieldError::invalid(&at_i, key, &problem));
            }
            if list == "matchLabelKeys" && items(term, other(list)).iter().any(|o| o == key) {
                errors.push(FieldError::invalid(
                    &at_i,
                    key,
                    "exists in both matchLabelKeys and mismatchLabelKeys",
                ));
            }
        }
    }
}

pub(super) fn topology_spread(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, c) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        let at_i = path.index(i);
        let skew = int(c, "maxSkew");
        if skew <= 0 {
            errors.push(FieldError::invalid(&at_i.child("maxSkew"), skew, "must be greater than zero"));
        }
        let key = text(c, "topologyKey");
        if key.is_empty() {
            errors.push(FieldError::required(&at_i.child("topologyKey"), "can not be empty"));
        } else {
            for problem in names::qualified_name(key) {
                errors.push(FieldError::invalid(&at_i.child("topologyKey"), key, &problem));
            }
        }
        let action = text(c, "whenUnsatisfiable");
        one_of(action, &["DoNotSchedule", "ScheduleAnyway"], &at_i.child("whenUnsatisfiable"), errors);
        if let Some(n) = c["minDomains"].as_i64() {
            let at_min = at_i.child("minDomains");
            if n <= 0 {
                errors.push(FieldError::invalid(&at_min, n, "must be greater than zero"));
            }
            if action != "DoNotSchedule" {
                let detail =
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.push(FieldError::invalid(&at_min, n, &detail));
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            one_of_if_set(&c[field], &["Honor", "Ignore"], &at_i.child(field), errors);
        }
        if !seen.insert((key, action)) {
            let pair = format!("{{{key}, {action}}}");
            errors.push(FieldError::duplicate(&at_i.child("{topologyKey, whenUnsatisfiable}"), pair));
        }
        label_selector(&c["labelSelector"], &at_i.child("labelSelector"), errors);
    }
}
