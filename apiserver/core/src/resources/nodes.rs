//! Nodes: capacity, addresses of their pods, taints.

use super::Strategy;
use crate::context::{Context, Target};
use crate::value::{at, copy, items, set, text};
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub struct Nodes;

impl Strategy for Nodes {
    fn default(&self, node: &mut Value) {
        if at(node, "status.allocatable").is_null() && at(node, "status.capacity").is_object() {
            let capacity = at(node, "status.capacity").clone();
            set(node, "status.allocatable", capacity);
        }
        let cidr = text(node, "spec.podCIDR").to_string();
        let first = items(node, "spec.podCIDRs").first().and_then(Value::as_str).map(String::from);
        match (cidr.is_empty(), first) {
            (false, Some(first)) if first != cidr => set(node, "spec.podCIDRs", json!([cidr])),
            (false, None) => set(node, "spec.podCIDRs", json!([cidr])),
            (true, Some(first)) => set(node, "spec.podCIDR", first),
            _ => {}
        }
    }
    fn keeps_status_on_create(&self) -> bool {
        true
    }
    fn prepare_create(&self, node: &mut Value, _: &Context) {
        // Of a feature that is gone.
        crate::value::take(&mut node["spec"], "configSource");
    }
    fn prepare_update(&self, target: &Target, current: &Value, new: &mut Value, _: &Context) {
        if target.subresource.is_none() {
            copy(current, new, "status");
        }
    }
    fn validate(&self, node: &Value, errors: &mut ErrorList) {
        let path = Path::new("spec");
        let mut seen = BTreeSet::new();
        for (i, t) in items(node, "spec.taints").iter().enumerate() {
            let at_i = Path::new("metadata").child("taints").index(i);
            for problem in names::qualified_name(text(t, "key")) {
                errors.push(FieldError::invalid(&at_i.child("key"), text(t, "key"), &problem));
            }
            for problem in names::label_value(text(t, "value")) {
                errors.push(FieldError::invalid(&at_i.child("value"), text(t, "value"), &problem));
            }
            match text(t, "effect") {
                "" => errors.push(FieldError::required(&at_i.child("effect"), "")),
                e => crate::validate::one_of(
                    e,
                    &["NoSchedule", "PreferNoSchedule", "NoExecute"],
                    &at_i.child("effect"),
                    errors,
                ),
            }
            if !seen.insert((text(t, "key"), text(t, "effect"))) {
                let shown = crate::gotext::inner("core.v1.Taint", t);
                errors.push(FieldError::duplicate_shown(
                    &at_i,
                    &shown,
                    "taints must be unique by key and effect pair",
                ));
            }
        }
        for list in ["capacity", "allocatable"] {
            for (key, value) in node["status"][list].as_object().into_iter().flatten() {
                let whole = keelson_api::Quantity::from_value(value).is_ok_and(|q| q.is_integer());
                if key.contains('/') && !key.starts_with("kubernetes.io/") && !whole {
                    let at_key = Path::new("status").child(list).child(key);
                    errors.push(FieldError::invalid(&at_key, value.clone(), "must be an integer"));
                }
            }
        }
        for (i, cidr) in items(node, "spec.podCIDRs").iter().enumerate() {
            let cidr = cidr.as_str().unwrap_or("");
            if let Some(detail) = crate::validate::cidr_problem(cidr) {
                errors.push(FieldError::invalid(&path.child("podCIDRs").index(i), cidr, detail));
            }
        }
        let mut addresses = BTreeSet::new();
        for (i, a) in items(node, "status.addresses").iter().enumerate() {
            if !addresses.insert((text(a, "type"), text(a, "address"))) {
                errors
                    .push(FieldError::duplicate(&Path::new("status").child("addresses").index(i), a.clone()));
            }
        }
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource.is_some() {
            return;
        }
        let path = Path::new("spec");
        let old = items(current, "spec.podCIDRs");
        if !old.is_empty() && old != items(new, "spec.podCIDRs") {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            errors.push(FieldError::forbidden(&path.child("podCIDRs"), detail));
        }
        let old = text(current, "spec.providerID");
        if !old.is_empty() && old != text(new, "spec.providerID") {
            let detail = "node updates may not change providerID except from \"\" to valid";
            errors.push(FieldError::forbidden(&path.child("providerID"), detail));
        }
    }
}
