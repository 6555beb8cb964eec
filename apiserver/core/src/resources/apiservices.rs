//! APIServices: who serves a version of a group.

use super::Strategy;
use crate::context::{Context, Target};
use crate::meta::NameCheck;
use crate::value::{at, default, flag, int, is_empty, set, text};
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::{Value, json};

pub struct ApiServices;

impl Strategy for ApiServices {
    fn name_check(&self) -> NameCheck {
        names::path_segment
    }
    fn default(&self, object: &mut Value) {
        if at(object, "spec.service").is_object() {
            default(object, "spec.service.port", 443);
        }
    }
    fn prepare_create(&self, object: &mut Value, ctx: &Context) {
        // What this server serves itself is there as soon as it is named.
        if at(object, "spec.service").is_null() {
            let now = crate::meta::time(ctx.now);
            let condition = json!({"type": "Available", "status": "True", "lastTransitionTime": now, "reason": "Local", "message": "Local APIServices are always available"});
            set(object, "status.conditions", json!([condition]));
        }
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let (group, version) = (text(spec, "group"), text(spec, "version"));
        let wanted = format!("{version}.{group}");
        let name = text(object, "metadata.name");
        if name != wanted && !name.is_empty() && names::path_segment(name).is_empty() {
            let detail =
                format!("must be `spec.version+\".\"+spec.group`: {}", keelson_api::field::quote(&wanted));
            errors.push(FieldError::invalid(&Path::new("metadata").child("name"), name, &detail));
        }
        if group.is_empty() && version != "v1" {
            let detail = "only v1 may have an empty group and it better be legacy kube";
            errors.push(FieldError::required(&path.child("group"), detail));
        }
        if !group.is_empty() {
            for problem in names::dns1123_subdomain(group) {
                errors.push(FieldError::invalid(&path.child("group"), group, &problem));
            }
        }
        for problem in names::dns1035_label(version) {
            errors.push(FieldError::invalid(&path.child("version"), version, &problem));
        }
        for (field, limit) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
            let value = int(spec, field);
            if value <= 0 || value > limit {
                let detail = format!("must be positive and less than {limit}");
                errors.push(FieldError::invalid(&path.child(field), value, &detail));
            }
        }
        service(spec, &path, errors);
    }
    fn validate_update(&self, target: &Target, _: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource == Some("status") {
            let path = Path::new("status").child("conditions");
            for (i, c) in crate::value::items(new, "status.conditions").iter().enumerate() {
                let statuses = ["True", "False", "Unknown"];
                let at = path.index(i).child("status");
                crate::validate::one_of(text(c, "status"), &statuses, &at, errors);
            }
        }
    }
}

fn service(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let (service, insecure) = (&spec["service"], flag(spec, "insecureSkipTLSVerify"));
    if service.is_null() {
        if !is_empty(&spec["caBundle"]) {
            let detail = "local APIServices may not have a caBundle";
            errors.push(FieldError::invalid(&path.child("caBundle"), "[]", detail));
        }
        if insecure {
            let detail = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(FieldError::invalid(&path.child("insecureSkipTLSVerify"), true, detail));
        }
        return;
    }
    let at_service = path.child("service");
    for field in ["namespace", "name"] {
        if text(service, field).is_empty() {
            errors.push(FieldError::required(&at_service.child(field), ""));
        }
    }
    if let Some(problem) = names::port_number(int(service, "port")) {
        let detail = format!("port is not valid: {problem}");
        errors.push(FieldError::invalid(&at_service.child("port"), int(service, "port"), &detail));
    }
    if insecure && !is_empty(&spec["caBundle"]) {
        let detail = "may not be true if caBundle is present";
        errors.push(FieldError::invalid(&path.child("insecureSkipTLSVerify"), true, detail));
    }
}
