//! Namespaces: phases, the finalizer in the spec, the label with the name.

use super::Strategy;
use crate::context::{Context, Target};
use crate::value::{copy, items, object_mut, set, terminating, text};
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::{Value, json};

pub struct Namespaces;

impl Strategy for Namespaces {
    fn default(&self, object: &mut Value) {
        let name = text(object, "metadata.name").to_string();
        if !name.is_empty() {
            let metadata = object_mut(object, "metadata");
            let labels = crate::value::map_mut(metadata.entry("labels").or_insert(Value::Null));
            labels.insert("kubernetes.io/metadata.name".into(), name.into());
        }
    }
    fn name_check(&self) -> crate::meta::NameCheck {
        names::dns1123_label
    }
    fn prepare_create(&self, object: &mut Value, _: &Context) {
        set(object, "status", json!({"phase": "Active"}));
        let mut finalizers = items(object, "spec.finalizers").to_vec();
        if !finalizers.iter().any(|f| f == "kubernetes") {
            finalizers.push("kubernetes".into());
        }
        set(object, "spec.finalizers", finalizers);
        self.default(object);
    }
    fn prepare_update(&self, target: &Target, current: &Value, new: &mut Value, _: &Context) {
        match target.subresource {
            None => copy(current, new, "spec.finalizers"),
            Some("finalize") => copy(current, new, "status"),
            _ => {}
        }
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        for f in items(object, "spec.finalizers").iter().filter_map(Value::as_str) {
            let path = Path::new("spec").child("finalizers");
            for problem in names::qualified_name(f) {
                errors.push(FieldError::invalid(&path, f, &problem));
            }
            if !f.contains('/') && f != "kubernetes" {
                let detail = "name is neither a standard finalizer name nor is it fully qualified";
                errors.push(FieldError::invalid(&path, f, detail));
            }
        }
    }
    fn validate_update(&self, target: &Target, _: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource == Some("status") {
            let phase = text(new, "status.phase");
            let path = Path::new("status").child("phase");
            if terminating(new) && phase != "Terminating" {
                errors.push(FieldError::invalid(
                    &path,
                    phase,
                    "may only be 'Terminating' if `deletionTimestamp` is not empty",
                ));
            } else if !terminating(new) && phase != "Active" {
                errors.push(FieldError::invalid(
                    &path,
                    phase,
                    "may only be 'Active' if `deletionTimestamp` is empty",
                ));
            }
        }
        if target.subresource == Some("finalize") {
            for (i, f) in items(new, "spec.finalizers").iter().enumerate() {
                let f = f.as_str().unwrap_or("");
                for problem in names::qualified_name(f) {
                    errors.push(FieldError::invalid(&Path::new("spec").child("finalizers"), f, &problem));
                }
                if !f.contains('/') && f != "kubernetes" {
                    let path = Path::new("spec").child("finalizers").index(i);
                    errors.push(FieldError::invalid(
                        &path,
                        f,
                        "name is neither a standard finalizer name nor is it fully qualified",
                    ));
                }
            }
        }
    }
}
