//! PersistentVolumes and claims, storage classes, CSI objects, volume attachments.

use super::{Strategy, volumes};
use crate::context::{Context, Target};
use crate::validate::{one_of, one_of_if_set};
use crate::value::{at, copy, default, is_empty, items, set, take, text};
use keelson_api::{ErrorList, FieldError, Path, Quantity, names};
use serde_json::{Value, json};

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];

fn access_modes(spec: &Value, path: &Path, missing: &str, errors: &mut ErrorList) {
    let modes = items(spec, "accessModes");
    if modes.is_empty() {
        errors.push(FieldError::required(&path.child("accessModes"), missing));
    }
    for mode in modes {
        one_of(mode.as_str().unwrap_or(""), &ACCESS_MODES, &path.child("accessModes"), errors);
    }
    if modes.len() > 1 && modes.iter().any(|m| m == "ReadWriteOncePod") {
        let detail = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden(&path.child("accessModes"), detail));
    }
}

fn positive_storage(value: &Value, path: &Path, errors: &mut ErrorList) {
    if Quantity::from_value(value).is_ok_and(|q| q.is_zero() || q.is_negative()) {
        errors.push(FieldError::invalid(path, value.clone(), "must be greater than zero"));
    }
}

pub struct PersistentVolumes;

impl Strategy for PersistentVolumes {
    fn default(&self, object: &mut Value) {
        default(object, "spec.persistentVolumeReclaimPolicy", "Retain");
        default(object, "spec.volumeMode", "Filesystem");
        volumes::default_source(&mut object["spec"]);
    }
    fn answers_deleted_object(&self) -> bool {
        true
    }
    fn prepare_create(&self, object: &mut Value, ctx: &Context) {
        set(
            object,
            "status",
            json!({"phase": "Pending", "lastPhaseTransitionTime": crate::meta::time(ctx.now)}),
        );
    }
    fn prepare_update(&self, target: &Target, current: &Value, new: &mut Value, ctx: &Context) {
        if target.subresource == Some("status") && text(current, "status.phase") != text(new, "status.phase")
        {
            set(new, "status.lastPhaseTransitionTime", crate::meta::time(ctx.now));
        }
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        access_modes(spec, &path, "", errors);
        match spec["capacity"].as_object().filter(|c| !c.is_empty()) {
            None => errors.push(FieldError::required(&path.child("capacity"), "")),
            Some(c) if c.len() > 1 || !c.contains_key("storage") => {
                errors.push(FieldError::not_supported(
                    &path.child("capacity"),
                    spec["capacity"].clone(),
                    &["storage"],
                ));
            }
            Some(_) => {}
        }
        for (key, value) in spec["capacity"].as_object().into_iter().flatten() {
            positive_storage(value, &path.child("capacity").key(key), errors);
        }
        let policy = text(spec, "persistentVolumeReclaimPolicy");
        one_of(
            policy,
            &["Delete", "Recycle", "Retain"],
            &path.child("persistentVolumeReclaimPolicy"),
            errors,
        );
        let sources = pv_sources(spec);
        if sources.is_empty() {
            errors.push(FieldError::required(&path, "must specify a volume type"));
        }
        for extra in sources.iter().skip(1) {
            errors.push(FieldError::forbidden(&path.child(extra), "may not specify more than 1 volume type"));
        }
        if spec["hostPath"].is_object() {
            crate::validate::required(&spec["hostPath"], "path", &path.child("hostPath"), errors);
        }
        let affinity = &spec["nodeAffinity"];
        if !spec["local"].is_null() && affinity.is_null() {
            errors.push(FieldError::required(
                &path.child("nodeAffinity"),
                "Local volume requires node affinity",
            ));
        }
        if !affinity["required"].is_null() {
            super::pod_scheduling::node_selector(
                &affinity["required"],
                &path.child("nodeAffinity").child("required"),
                errors,
            );
        }
        one_of_if_set(&spec["volumeMode"], &VOLUME_MODES, &path.child("volumeMode"), errors);
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource.is_some() {
            return;
        }
        let changed = pv_sources(&current["spec"]) != pv_sources(&new["spec"])
            || pv_sources(&new["spec"]).iter().any(|s| current["spec"][*s] != new["spec"][*s]);
        if changed {
            let detail = "spec.persistentvolumesource is immutable after creation";
            errors.push(FieldError::forbidden(&Path::new("spec").child("persistentvolumesource"), detail));
        }
        if at(current, "spec.volumeMode") != at(new, "spec.volumeMode") {
            let mode = at(new, "spec.volumeMode").clone();
            errors.push(FieldError::invalid(&Path::new("volumeMode"), mode, "field is immutable"));
        }
    }
}

fn pv_sources(spec: &Value) -> Vec<&'static str> {
    let mut out = volumes::sources(spec);
    if !spec["local"].is_null() {
        out.push("local");
    }
    out
}

pub struct PersistentVolumeClaims;

impl Strategy for PersistentVolumeClaims {
    fn default(&self, object: &mut Value) {
        default(object, "spec.volumeMode", "Filesystem");
        data_source(object);
    }
    fn answers_deleted_object(&self) -> bool {
        true
    }
    fn prepare_create(&self, object: &mut Value, _: &Context) {
        set(object, "status", json!({"phase": "Pending"}));
    }
    fn prepare_update(&self, target: &Target, current: &Value, new: &mut Value, _: &Context) {
        if target.subresource == Some("status") {
            copy(current, new, "spec");
        }
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        claim_spec(&object["spec"], &Path::new("spec"), errors);
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource.is_some() {
            return;
        }
        let path = Path::new("spec");
        let (mut old, mut now) = (current["spec"].clone(), new["spec"].clone());
        // Binding fills in the volume; a bound claim may grow.
        if text(&old, "volumeName").is_empty() {
            take(&mut now, "volumeName");
            take(&mut old, "volumeName");
        }
        if old["storageClassName"].is_null() {
            take(&mut now, "storageClassName");
        }
        let size = |v: &Value| Quantity::from_value(at(v, "resources.requests.storage")).ok();
        let bound = text(current, "status.phase") == "Bound";
        if let (Some(before), Some(after)) = (size(&old), size(&now)) {
            if bound && after < before {
                let at_size = path.child("resources").child("requests").child("storage");
                errors.push(FieldError::forbidden(&at_size, "field can not be less than status.capacity"));
            }
            if bound {
                copy(&old, &mut now, "resources.requests.storage");
            }
        }
        copy(&old, &mut now, "volumeAttributesClassName");
        if old != now {
            let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
            errors.push(FieldError::forbidden(&path, detail));
        }
    }
}

/// Both fields that name a source of data say the same.
fn data_source(object: &mut Value) {
    let (old, new) = (at(object, "spec.dataSource").clone(), at(object, "spec.dataSourceRef").clone());
    if old.is_object() && new.is_null() {
        set(object, "spec.dataSourceRef", old);
    } else if new.is_object() && old.is_null() && text(&new, "namespace").is_empty() {
        let group = text(&new, "apiGroup");
        let known = (group.is_empty() && text(&new, "kind") == "PersistentVolumeClaim")
            || (group == "snapshot.storage.k8s.io" && text(&new, "kind") == "VolumeSnapshot");
        if known {
            set(object, "spec.dataSource", new);
        }
    }
}

/// The spec of a claim or of a claim template.
pub fn claim_spec(spec: &Value, path: &Path, errors: &mut ErrorList) {
    access_modes(spec, path, "at least 1 access mode is required", errors);
    let size = at(spec, "resources.requests.storage");
    let at_size = path.child("resources").key("storage");
    if size.is_null() {
        errors.push(FieldError::required(&at_size, ""));
    } else {
        positive_storage(size, &at_size, errors);
    }
    let class = text(spec, "storageClassName");
    if !class.is_empty() {
        for problem in names::dns1123_subdomain(class) {
            errors.push(FieldError::invalid(&path.child("storageClassName"), class, &problem));
        }
    }
    if !spec["selector"].is_null() {
        crate::validate::label_selector(&spec["selector"], &path.child("selector"), errors);
    }
    one_of_if_set(&spec["volumeMode"], &VOLUME_MODES, &path.child("volumeMode"), errors);
}

pub struct StorageClasses;

impl Strategy for StorageClasses {
    fn default(&self, object: &mut Value) {
        default(object, "reclaimPolicy", "Delete");
        default(object, "volumeBindingMode", "Immediate");
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let provisioner = text(object, "provisioner");
        if provisioner.is_empty() {
            errors.push(FieldError::required(&Path::new("provisioner"), provisioner));
        } else {
            for problem in names::qualified_name(&provisioner.to_lowercase()) {
                errors.push(FieldError::invalid(&Path::new("provisioner"), provisioner, &problem));
            }
        }
        one_of_if_set(&object["reclaimPolicy"], &["Delete", "Retain"], &Path::new("reclaimPolicy"), errors);
        let modes = ["Immediate", "WaitForFirstConsumer"];
        one_of_if_set(&object["volumeBindingMode"], &modes, &Path::new("volumeBindingMode"), errors);
    }
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
            if current[field] != new[field] && !(is_empty(&current[field]) && is_empty(&new[field])) {
                if field == "reclaimPolicy" || field == "volumeBindingMode" {
                    errors.push(FieldError::invalid(
                        &Path::new(field),
                        new[field].clone(),
                        "field is immutable",
                    ));
                } else {
                    let detail = format!("updates to {field} are forbidden.");
                    errors.push(FieldError::forbidden(&Path::new(field), &detail));
                }
            }
        }
    }
}

pub struct CsiDrivers;

impl Strategy for CsiDrivers {
    fn default(&self, object: &mut Value) {
        default(object, "spec.attachRequired", true);
        default(object, "spec.podInfoOnMount", false);
        default(object, "spec.storageCapacity", false);
        default(object, "spec.fsGroupPolicy", "ReadWriteOnceWithFSType");
        default(object, "spec.requiresRepublish", false);
        default(object, "spec.seLinuxMount", false);
        if is_empty(at(object, "spec.volumeLifecycleModes")) {
            set(object, "spec.volumeLifecycleModes", json!(["Persistent"]));
        }
    }
}

pub struct CsiNodes;

impl Strategy for CsiNodes {
    fn answers_deleted_object(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        for (i, d) in items(object, "spec.drivers").iter().enumerate() {
            let path = Path::new("spec").child("drivers").index(i);
            crate::validate::required(d, "name", &path, errors);
            crate::validate::required(d, "nodeID", &path, errors);
        }
    }
}

pub struct VolumeAttachments;

impl Strategy for VolumeAttachments {
    fn prepare_update(&self, target: &Target, current: &Value, new: &mut Value, _: &Context) {
        if target.subresource == Some("status") {
            let managed = at(new, "metadata.managedFields").clone();
            copy(current, new, "metadata");
            set(new, "metadata.managedFields", managed);
        }
    }
    fn answers_deleted_object(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let path = Path::new("spec");
        crate::validate::required(&object["spec"], "attacher", &path, errors);
        crate::validate::required(&object["spec"], "nodeName", &path, errors);
        let source = at(object, "spec.source");
        if is_empty(&source["persistentVolumeName"]) && source["inlineVolumeSpec"].is_null() {
            let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errors.push(FieldError::required(&path.child("source"), detail));
        }
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource.is_none() && current["spec"] != new["spec"] {
            errors.push(FieldError::invalid(&Path::new("spec"), new["spec"].clone(), "field is immutable"));
        }
    }
}
