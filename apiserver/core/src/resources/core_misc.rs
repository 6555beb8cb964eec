//! Small kinds: LimitRange, ResourceQuota, Lease, PriorityClass, CertificateSigningRequest.

use super::Strategy;
use crate::context::{Context, Target};
use crate::validate::{immutable, non_negative, non_negative_quantity, one_of_if_set};
use crate::value::{at, copy, default, int, items, set, text};
use keelson_api::{ErrorList, FieldError, Path, Quantity, names};
use serde_json::Value;

pub struct LimitRanges;

impl Strategy for LimitRanges {
    fn prepare_create(&self, object: &mut Value, ctx: &Context) {
        if text(object, "metadata.name").is_empty() {
            set(object, "metadata.name", ctx.uid);
        }
    }
    fn default(&self, object: &mut Value) {
        for limit in crate::value::each_mut(object, "spec.limits") {
            if text(limit, "type") != "Container" {
                continue;
            }
            inherit(limit, "max", "default");
            inherit(limit, "default", "defaultRequest");
            inherit(limit, "min", "defaultRequest");
        }
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let path = Path::new("spec").child("limits");
        for (i, limit) in items(object, "spec.limits").iter().enumerate() {
            let at_i = path.index(i);
            for problem in names::qualified_name(text(limit, "type")) {
                errors.push(FieldError::invalid(&at_i.child("type"), text(limit, "type"), &problem));
            }
            for (key, min) in limit["min"].as_object().into_iter().flatten() {
                let (Ok(min_q), Ok(max)) =
                    (Quantity::from_value(min), Quantity::from_value(&limit["max"][key]))
                else {
                    continue;
                };
                if min_q > max {
                    let detail = format!("min value {min_q} is greater than max value {max}");
                    errors.push(FieldError::invalid(&at_i.child("min").key(key), min.clone(), &detail));
                }
            }
        }
    }
}

/// What `from` has and `to` lacks is copied.
fn inherit(limit: &mut Value, from: &str, to: &str) {
    let source = limit[from].as_object().cloned().unwrap_or_default();
    for (key, value) in source {
        crate::value::object_mut(limit, to).entry(key).or_insert(value);
    }
}

pub struct ResourceQuotas;

impl Strategy for ResourceQuotas {
    fn answers_deleted_object(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let path = Path::new("spec").child("hard");
        for (key, value) in at(object, "spec.hard").as_object().into_iter().flatten() {
            for problem in names::qualified_name(key) {
                errors.push(FieldError::invalid(&path.key(key), key.as_str(), &problem));
            }
            non_negative_quantity(value, &path.key(key), errors);
        }
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource.is_none() && at(current, "spec.scopes") != at(new, "spec.scopes") {
            let path = Path::new("spec").child("scopes");
            errors.push(FieldError::invalid(&path, at(new, "spec.scopes").clone(), "field is immutable"));
        }
    }
}

pub struct Leases;

impl Strategy for Leases {
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let path = Path::new("spec");
        if let Some(n) = at(object, "spec.leaseDurationSeconds").as_i64().filter(|n| *n <= 0) {
            errors.push(FieldError::invalid(
                &path.child("leaseDurationSeconds"),
                n,
                "must be greater than 0",
            ));
        }
        non_negative(int(object, "spec.leaseTransitions"), &path.child("leaseTransitions"), errors);
    }
}

pub struct PriorityClasses;

/// Values above this are the system's.
pub const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

impl Strategy for PriorityClasses {
    fn default(&self, object: &mut Value) {
        default(object, "preemptionPolicy", "PreemptLowerPriority");
    }
    fn generation(&self) -> bool {
        true
    }
    fn spec_changed(&self, _: &Value, _: &Value) -> bool {
        false
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let name = text(object, "metadata.name");
        let known = [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
        if let Some((_, value)) = known.iter().find(|(n, _)| *n == name) {
            if int(object, "value") != *value {
                let detail = format!("value of system priority class {name:?} must be {value}");
                errors.push(FieldError::forbidden(&Path::new("value"), &detail));
            }
        } else if name.starts_with("system-") {
            let detail = "priority class names with 'system-' prefix are reserved for system use only. error: unknown system priority class";
            errors.push(FieldError::forbidden(&Path::new("metadata").child("name"), detail));
        } else if int(object, "value") > HIGHEST_USER_PRIORITY {
            let detail =
                format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}");
            errors.push(FieldError::forbidden(&Path::new("value"), &detail));
        }
        one_of_if_set(
            &object["preemptionPolicy"],
            &["Never", "PreemptLowerPriority"],
            &Path::new("preemptionPolicy"),
            errors,
        );
    }
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if int(current, "value") != int(new, "value") {
            errors.push(FieldError::forbidden(&Path::new("value"), "may not be changed in an update."));
        }
        immutable(current, new, "preemptionPolicy", errors);
    }
}

pub struct CertificateSigningRequests;

impl Strategy for CertificateSigningRequests {
    fn name_check(&self) -> crate::meta::NameCheck {
        names::path_segment
    }
    fn prepare_create(&self, object: &mut Value, ctx: &Context) {
        // Who asks is what the server saw, not what the request says.
        set(object, "spec.username", ctx.user.name.as_str());
        set(object, "spec.uid", ctx.user.uid.as_str());
        set(object, "spec.groups", ctx.user.groups.clone());
        if !ctx.user.extra.is_empty() {
            set(object, "spec.extra", serde_json::to_value(&ctx.user.extra).unwrap_or_default());
        }
    }
    fn prepare_update(&self, target: &Target, current: &Value, new: &mut Value, ctx: &Context) {
        copy(current, new, "spec");
        match target.subresource {
            Some("status") => {
                let conditions = at(current, "status.conditions").clone();
                let certificate = at(new, "status.certificate").clone();
                let failed: Vec<Value> = items(new, "status.conditions")
                    .iter()
                    .filter(|c| text(c, "type") == "Failed")
                    .cloned()
                    .collect();
                let mut kept: Vec<Value> = conditions
                    .as_array()
                    .cloned()
                    .unwrap_or_default()
                    .into_iter()
                    .filter(|c| text(c, "type") != "Failed")
                    .collect();
                kept.extend(failed);
                if !kept.is_empty() {
                    set(new, "status.conditions", kept);
                }
                set(new, "status.certificate", certificate);
            }
            Some("approval") => copy(current, new, "status.certificate"),
            _ => copy(current, new, "status"),
        }
        for c in crate::value::each_mut(new, "status.conditions") {
            for field in ["lastUpdateTime", "lastTransitionTime"] {
                default(c, field, crate::meta::time(ctx.now));
            }
        }
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let path = Path::new("spec");
        if items(object, "spec.usages").is_empty() {
            errors.push(FieldError::required(&path.child("usages"), ""));
        }
        crate::validate::required(&object["spec"], "request", &path, errors);
        let signer = text(object, "spec.signerName");
        if signer.is_empty() {
            errors.push(FieldError::required(&path.child("signerName"), ""));
        } else if !signer.contains('/') {
            let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
            errors.push(FieldError::invalid(&path.child("signerName"), signer, detail));
        }
    }
}
