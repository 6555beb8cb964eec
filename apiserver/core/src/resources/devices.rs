//! Dynamic resource allocation: DeviceClasses, ResourceClaims and their templates, ResourceSlices.

use super::Strategy;
use crate::context::Target;
use crate::validate::{immutable, one_of};
use crate::value::{at, default, each_mut, int, is_empty, items, map_mut, object_mut, set, text};
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

pub struct DeviceClasses;

impl Strategy for DeviceClasses {
    fn answers_deleted_object(&self) -> bool {
        true
    }
    fn default(&self, object: &mut Value) {
        object_mut(object, "spec");
    }
    fn generation(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let path = Path::new("spec");
        selectors(&object["spec"], &path, errors);
        configurations(&object["spec"], "config", &path, &[], errors);
    }
}

fn selectors(value: &Value, path: &Path, errors: &mut ErrorList) {
    for (i, selector) in items(value, "selectors").iter().enumerate() {
        let path = path.child("selectors").index(i).child("cel");
        if selector["cel"].is_null() {
            errors.push(FieldError::required(&path, ""));
        }
    }
}

/// Drivers and parameters; `requests` are the names a configuration may speak of.
fn configurations(value: &Value, field: &str, path: &Path, requests: &[String], errors: &mut ErrorList) {
    for (i, config) in items(value, field).iter().enumerate() {
        let path = path.child(field).index(i);
        for (k, request) in items(config, "requests").iter().enumerate() {
            request_name(request, requests, &path.child("requests").index(k), errors);
        }
        let opaque = &config["opaque"];
        if opaque.is_null() {
            errors.push(FieldError::required(&path.child("opaque"), ""));
            continue;
        }
        let path = path.child("opaque");
        driver(text(opaque, "driver"), &path.child("driver"), errors);
        let parameters = &opaque["parameters"];
        if parameters.is_null() {
            errors.push(FieldError::required(&path.child("parameters"), ""));
        } else if !parameters.is_object() {
            let at = path.child("parameters");
            errors.push(FieldError::invalid(&at, "<value omitted>", "must be a valid JSON object"));
        }
    }
}

fn driver(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    if name.len() > 63 {
        errors.push(FieldError::too_long(path, 63));
    }
    for problem in names::dns1123_subdomain(name) {
        errors.push(FieldError::invalid(path, name, &problem));
    }
}

fn request_name(request: &Value, known: &[String], path: &Path, errors: &mut ErrorList) {
    let name = request.as_str().unwrap_or("");
    if !known.iter().any(|k| k == name) {
        let detail = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
        errors.push(FieldError::invalid(path, name, detail));
    }
}

/// How many devices a request wants, when it does not say.
fn default_claim(spec: &mut Value) {
    map_mut(spec).entry("devices").or_insert(json!({}));
    for request in each_mut(spec, "devices.requests") {
        if request["exactly"].is_object() {
            default_request(&mut request["exactly"]);
        }
        for sub in each_mut(request, "firstAvailable") {
            default_request(sub);
        }
    }
}

fn default_request(request: &mut Value) {
    if is_empty(&request["allocationMode"]) {
        set(request, "allocationMode", "ExactCount");
    }
    if request["allocationMode"] == "ExactCount" && int(request, "count") == 0 {
        set(request, "count", 1);
    }
    for toleration in each_mut(request, "tolerations") {
        default(toleration, "operator", "Equal");
    }
}

fn claim_spec(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let (devices, path) = (&spec["devices"], path.child("devices"));
    let mut known: Vec<String> = vec![];
    for (i, request) in items(devices, "requests").iter().enumerate() {
        let path = path.child("requests").index(i);
        let name = text(request, "name");
        for problem in names::dns1123_label(name) {
            errors.push(FieldError::invalid(&path.child("name"), name, &problem));
        }
        if known.iter().any(|k| k == name) {
            errors.push(FieldError::duplicate(&path, name));
        }
        known.push(name.to_owned());
        match (request["exactly"].is_null(), items(request, "firstAvailable")) {
            (true, []) => {
                let detail = "exactly one of `exactly` or `firstAvailable` is required";
                errors.push(FieldError::required(&path, detail));
            }
            (false, []) => one_request(&request["exactly"], &path.child("exactly"), errors),
            (true, several) => {
                for (k, sub) in several.iter().enumerate() {
                    let path = path.child("firstAvailable").index(k);
                    let sub_name = text(sub, "name");
                    for problem in names::dns1123_label(sub_name) {
                        errors.push(FieldError::invalid(&path.child("name"), sub_name, &problem));
                    }
                    known.push(format!("{name}/{sub_name}"));
                    one_request(sub, &path, errors);
                }
            }
            (false, _) => {
                let detail =
                    "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
                errors.push(FieldError::invalid(&path, Value::Null, detail));
            }
        }
    }
    for (i, constraint) in items(devices, "constraints").iter().enumerate() {
        let path = path.child("constraints").index(i);
        for (k, request) in items(constraint, "requests").iter().enumerate() {
            request_name(request, &known, &path.child("requests").index(k), errors);
        }
        match (is_empty(&constraint["matchAttribute"]), is_empty(&constraint["distinctAttribute"])) {
            (true, true) | (false, false) => {
                let detail = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
                errors.push(FieldError::required(&path, detail));
            }
            _ => {}
        }
    }
    configurations(devices, "config", &path, &known, errors);
}

fn one_request(request: &Value, path: &Path, errors: &mut ErrorList) {
    let class = text(request, "deviceClassName");
    if class.is_empty() {
        errors.push(FieldError::required(&path.child("deviceClassName"), ""));
    } else {
        for problem in names::dns1123_subdomain(class) {
            errors.push(FieldError::invalid(&path.child("deviceClassName"), class, &problem));
        }
    }
    selectors(request, path, errors);
    let count = int(request, "count");
    match text(request, "allocationMode") {
        "All" if count != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            errors.push(FieldError::invalid(&path.child("count"), count, detail));
        }
        "All" => {}
        "ExactCount" if count <= 0 => {
            errors.push(FieldError::invalid(&path.child("count"), count, "must be greater than zero"));
        }
        "ExactCount" => {}
        other => one_of(other, &["All", "ExactCount"], &path.child("allocationMode"), errors),
    }
}

pub struct ResourceClaims;

impl Strategy for ResourceClaims {
    fn answers_deleted_object(&self) -> bool {
        true
    }
    fn default(&self, object: &mut Value) {
        default_claim(map_mut(object).entry("spec").or_insert(Value::Null));
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        claim_spec(&object["spec"], &Path::new("spec"), errors);
    }
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if current["spec"] != new["spec"] {
            let shown = crate::gotext::inner("resource.v1.ResourceClaimSpec", &new["spec"]);
            errors.push(FieldError::invalid_shown(&Path::new("spec"), &shown, "field is immutable"));
        }
    }
}

pub struct ResourceClaimTemplates;

impl Strategy for ResourceClaimTemplates {
    fn answers_deleted_object(&self) -> bool {
        true
    }
    fn default(&self, object: &mut Value) {
        let spec = object_mut(object, "spec");
        default_claim(spec.entry("spec").or_insert(Value::Null));
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        claim_spec(at(object, "spec.spec"), &Path::new("spec").child("spec"), errors);
    }
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if current["spec"] != new["spec"] {
            let shown = crate::gotext::inner("resource.v1.ResourceClaimTemplateSpec", &new["spec"]);
            errors.push(FieldError::invalid_shown(&Path::new("spec"), &shown, "field is immutable"));
        }
    }
}

pub struct ResourceSlices;

const PLACES: [&str; 4] = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];

impl Strategy for ResourceSlices {
    fn answers_deleted_object(&self) -> bool {
        true
    }
    fn generation(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        driver(text(spec, "driver"), &path.child("driver"), errors);
        let pool = path.child("pool");
        if text(spec, "pool.name").is_empty() {
            errors.push(FieldError::required(&pool.child("name"), ""));
        }
        let slices = int(spec, "pool.resourceSliceCount");
        if slices <= 0 {
            let at = pool.child("resourceSliceCount");
            errors.push(FieldError::invalid(&at, slices, "must be greater than zero"));
        }
        crate::validate::non_negative(int(spec, "pool.generation"), &pool.child("generation"), errors);
        place(spec, &path, errors);
        let mut seen = BTreeSet::new();
        for (i, device) in items(spec, "devices").iter().enumerate() {
            let path = path.child("devices").index(i);
            let name = text(device, "name");
            if !seen.insert(name.to_owned()) {
                errors.push(FieldError::duplicate(&path, name));
            }
            one_device(device, name, &path, errors);
        }
    }
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        for field in ["spec.driver", "spec.pool.name"] {
            immutable(current, new, field, errors);
        }
    }
    fn validate_change(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        immutable(current, new, "spec.nodeName", errors);
    }
}

/// Exactly one field says on which nodes the devices are.
fn place(spec: &Value, path: &Path, errors: &mut ErrorList) {
    if spec["nodeName"] == "" {
        let detail = "must be either unset or set to a non-empty string";
        errors.push(FieldError::invalid(&path.child("nodeName"), "", detail));
    }
    if spec["nodeSelector"].is_object() && items(&spec["nodeSelector"], "nodeSelectorTerms").len() != 1 {
        let at_terms = path.child("nodeSelector").child("nodeSelectorTerms");
        let terms = &spec["nodeSelector"]["nodeSelectorTerms"];
        if is_empty(terms) {
            errors.push(FieldError::required(&at_terms, "must have at least one node selector term"));
        }
        errors.push(FieldError::invalid(
            &at_terms,
            terms.clone(),
            "must have exactly one node selector term",
        ));
    }
    if spec["sharedCounters"].is_array() && spec["devices"].is_array() {
        errors.push(FieldError::invalid(path, "", "only one of `sharedCounters` or `devices` is allowed"));
    }
    let set: Vec<String> = PLACES
        .iter()
        .filter(|f| (!is_empty(&spec[**f]) || spec[**f].is_object()) && spec[**f] != false)
        .map(|f| format!("`{f}`"))
        .collect();
    let all = PLACES.map(|f| format!("`{f}`")).join(", ");
    match set.len() {
        0 => errors.push(FieldError::required(path, &format!("exactly one of {all} is required"))),
        1 => {}
        _ => {
            let detail = format!("exactly one of {all} is required, but multiple fields are set");
            errors.push(FieldError::invalid(path, format!("{{{}}}", set.join(", ")), &detail));
        }
    }
}

fn one_device(device: &Value, name: &str, path: &Path, errors: &mut ErrorList) {
    for problem in names::dns1123_label(name) {
        errors.push(FieldError::invalid(&path.child("name"), name, &problem));
    }
    for (key, attribute) in device["attributes"].as_object().into_iter().flatten() {
        let attributes = path.child("attributes");
        let (domain, id) = key.split_once('/').unwrap_or(("", key));
        if !domain.is_empty() {
            for problem in names::dns1123_subdomain(domain) {
                errors.push(FieldError::invalid(&attributes, key.as_str(), &problem));
            }
        }
        if !identifier(id) {
            let detail = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";
            errors.push(FieldError::invalid(&attributes, key.as_str(), detail));
        }
        let count = attribute.as_object().map_or(0, Map::len);
        if count != 1 {
            let shown = if count == 0 { Value::from("") } else { attribute.clone() };
            errors.push(FieldError::invalid(
                &attributes.key(key),
                shown,
                "exactly one value must be specified",
            ));
        }
        if let Some(version) = attribute["version"].as_str().filter(|v| !semantic_version(v)) {
            let detail = "must be a string compatible with semver.org spec 2.0.0";
            errors.push(FieldError::invalid(&attributes.key(key).child("version"), version, detail));
        }
    }
    for (i, taint) in items(device, "taints").iter().enumerate() {
        let path = path.child("taints").index(i).child("effect");
        one_of(text(taint, "effect"), &["NoExecute", "NoSchedule", "None"], &path, errors);
    }
}

fn identifier(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// `major.minor.patch`, then what may follow a dash or a plus.
fn semantic_version(text: &str) -> bool {
    let core = text.split(['-', '+']).next().unwrap_or("");
    let parts: Vec<&str> = core.split('.').collect();
    let number = |p: &&str| {
        !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()) && (p.len() == 1 || !p.starts_with('0'))
    };
    parts.len() == 3 && parts.iter().all(number)
}
