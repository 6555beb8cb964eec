//! Small kinds: LimitRange, ResourceQuota, Lease, PriorityClass, CertificateSigningRequest.

use super::Strategy;
use crate::context::{Context, Target};
use crate::validate::{immutable, non_negative, non_negative_quantity, one_of_if_set};
use crate::value::{at, copy, default, int, is_empty, items, set, text};
use keelson_api::{ErrorList, FieldError, Path, Quantity, names};
use serde_json::Value;

/// What a certificate may be for.
const KEY_USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

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
            match text(limit, "type") {
                "Pod" => {
                    for field in ["default", "defaultRequest"].into_iter().filter(|f| !is_empty(&limit[f])) {
                        let detail = "may not be specified when `type` is 'Pod'";
                        errors.push(FieldError::forbidden(&at_i.child(field), detail));
                    }
                }
                "PersistentVolumeClaim"
                    if limit["min"]["storage"].is_null() && limit["max"]["storage"].is_null() =>
                {
                    let detail =
                        "either minimum or maximum storage value is required, but neither was provided";
                    errors.push(FieldError::required(&at_i.child("limits"), detail));
                }
                _ => {}
            }
            for field in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
                for key in limit[field].as_object().into_iter().flatten().map(|(key, _)| key) {
                    limited_resource(key, text(limit, "type"), &at_i.child(field).key(key), errors);
                }
            }
            ordered(limit, &at_i, errors);
        }
    }
}

/// A name of a resource that may be limited.
fn limited_resource(key: &str, kind: &str, path: &Path, errors: &mut ErrorList) {
    let problems = names::qualified_name(key);
    let plain = problems.is_empty() && !key.contains('/');
    for problem in problems {
        errors.push(FieldError::invalid(path, key, &problem));
    }
    if plain && !counted(key) && !measured(key) && key != "storage" {
        errors.push(FieldError::invalid(path, key, "must be a standard resource type or fully qualified"));
        if kind == "Container" {
            errors.push(FieldError::invalid(path, key, "must be a standard resource for containers"));
        }
    }
}

/// Smallest, requested, default and greatest amounts come in this order.
fn ordered(limit: &Value, path: &Path, errors: &mut ErrorList) {
    let words = |field: &str| match field {
        "min" => "min value",
        "max" => "max value",
        "default" => "default value",
        _ => "default request value",
    };
    // Field, which may not be more than the other field; at which field the error is, and whose amount it shows.
    let rules = [
        ("min", "max", "min", "min"),
        ("min", "defaultRequest", "defaultRequest", "defaultRequest"),
        ("defaultRequest", "max", "defaultRequest", "defaultRequest"),
        ("defaultRequest", "default", "defaultRequest", "defaultRequest"),
        ("min", "default", "default", "min"),
        ("default", "max", "default", "max"),
    ];
    let fields = ["max", "min", "default", "defaultRequest"];
    let keys: std::collections::BTreeSet<&String> =
        fields.iter().filter_map(|f| limit[f].as_object()).flat_map(|o| o.keys()).collect();
    for key in keys {
        for (low, high, at_field, shown) in rules {
            let amount = |field: &str| Quantity::from_value(&limit[field][key.as_str()]);
            let (Ok(a), Ok(b)) = (amount(low), amount(high)) else { continue };
            if a > b {
                let more = if (low, high) == ("defaultRequest", "default") {
                    "default limit value"
                } else {
                    words(high)
                };
                let detail = format!("{} {a} is greater than {more} {b}", words(low));
                let shown = limit[shown][key.as_str()].clone();
                errors.push(FieldError::invalid(&path.child(at_field).key(key), shown, &detail));
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
            let problems = names::qualified_name(key);
            let shorthand = !key.contains('/') && !counted(key) && !measured(key);
            if problems.is_empty() && shorthand && key != "storage" {
                let detail = "must be a standard resource type or fully qualified";
                errors.push(FieldError::invalid(&path.key(key), key.as_str(), detail));
            }
            for problem in problems {
                errors.push(FieldError::invalid(&path.key(key), key.as_str(), &problem));
            }
            if shorthand {
                let detail = "must be a standard resource for quota";
                errors.push(FieldError::invalid(&path.key(key), key.as_str(), detail));
            }
            non_negative_quantity(value, &path.key(key), errors);
            if counted(key) && Quantity::from_value(value).is_ok_and(|q| !q.is_integer()) {
                errors.push(FieldError::invalid(&path.key(key), value.clone(), "must be an integer"));
            }
        }
        quota_scopes(&object["spec"], errors);
        for expression in items(object, "spec.scopeSelector.matchExpressions") {
            scope_expression(expression, errors);
        }
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource.is_none() && at(current, "spec.scopes") != at(new, "spec.scopes") {
            let path = Path::new("spec").child("scopes");
            errors.push(FieldError::invalid(&path, at(new, "spec.scopes").clone(), "field is immutable"));
        }
    }
}

/// Resources a quota counts.
fn counted(key: &str) -> bool {
    matches!(
        key,
        "pods"
            | "resourcequotas"
            | "services"
            | "replicationcontrollers"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "services.nodeports"
            | "services.loadbalancers"
    )
}

/// Resources a quota adds up.
fn measured(key: &str) -> bool {
    let bare = key.strip_prefix("requests.").or_else(|| key.strip_prefix("limits.")).unwrap_or(key);
    matches!(bare, "cpu" | "memory" | "ephemeral-storage")
        || key == "requests.storage"
        || (bare.starts_with("hugepages-") && !key.starts_with("limits."))
}

const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

fn quota_scopes(spec: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec").child("scopes");
    let scopes: Vec<&str> = items(spec, "scopes").iter().filter_map(Value::as_str).collect();
    let mut wrong = |detail| errors.push(FieldError::invalid(&path, spec["scopes"].clone(), detail));
    let compute = |key: &str| measured(key) && (key.ends_with("cpu") || key.ends_with("memory"));
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            wrong("unsupported scope");
        }
        for (key, _) in spec["hard"].as_object().into_iter().flatten() {
            let fits = match *scope {
                "VolumeAttributesClass" => key == "persistentvolumeclaims" || key == "requests.storage",
                "BestEffort" => key == "pods",
                _ => key == "pods" || compute(key),
            };
            if (counted(key) || measured(key)) && !fits {
                wrong("unsupported scope applied to resource");
            }
        }
    }
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|s| scopes.contains(s)) {
            wrong("conflicting scopes");
        }
    }
}

fn scope_expression(expression: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec").child("scopeSelector").child("matchExpressions");
    let (scope, operator) = (text(expression, "scopeName"), text(expression, "operator"));
    let values = items(expression, "values");
    if !SCOPES.contains(&scope) {
        errors.push(FieldError::invalid(&path.child("scopeName"), scope, "unsupported scope"));
    }
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            let detail = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
            errors.push(FieldError::required(&path.child("values"), detail));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
            errors.push(FieldError::invalid(&path.child("values"), expression["values"].clone(), detail));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        _ => {
            let detail = "not a valid selector operator";
            errors.push(FieldError::invalid(&path.child("operator"), operator, detail));
        }
    }
}

pub struct Leases;

impl Strategy for Leases {
    fn prepare_create(&self, object: &mut Value, _: &Context) {
        coordination(object);
    }
    fn prepare_update(&self, _: &Target, _: &Value, new: &mut Value, _: &Context) {
        coordination(new);
    }
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

/// Fields of coordinated leader election, which is off.
fn coordination(object: &mut Value) {
    for field in ["strategy", "preferredHolder"] {
        crate::value::take(&mut object["spec"], field);
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
        let path = Path::new("preemptionPolicy");
        match object["preemptionPolicy"].as_str() {
            Some("") => errors.push(FieldError::required(&path, "")),
            // Of an object that exists only the change is looked at.
            Some(_) if !text(object, "metadata.resourceVersion").is_empty() => {}
            _ => {
                one_of_if_set(&object["preemptionPolicy"], &["PreemptLowerPriority", "Never"], &path, errors)
            }
        }
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
        let request = at(object, "spec.request");
        let encoded = request.as_str().unwrap_or("");
        use base64::Engine as _;
        let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default();
        if !String::from_utf8_lossy(&decoded).contains("-----BEGIN CERTIFICATE REQUEST-----") {
            let detail = "PEM block type must be CERTIFICATE REQUEST";
            errors.push(FieldError::invalid(&path.child("request"), request.clone(), detail));
        }
        if items(object, "spec.usages").is_empty() {
            errors.push(FieldError::required(&path.child("usages"), ""));
        }
        for (i, usage) in items(object, "spec.usages").iter().enumerate() {
            let usage = usage.as_str().unwrap_or("");
            crate::validate::one_of(usage, &KEY_USAGES, &path.child("usages").index(i), errors);
        }
        let signer = text(object, "spec.signerName");
        if signer.is_empty() {
            errors.push(FieldError::required(&path.child("signerName"), ""));
        } else if !signer.contains('/') {
            let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
            errors.push(FieldError::invalid(&path.child("signerName"), signer, detail));
        }
    }
}
