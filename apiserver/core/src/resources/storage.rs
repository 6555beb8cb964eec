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
        let capacity = spec["capacity"].as_object();
        if capacity.is_none_or(serde_json::Map::is_empty) {
            errors.push(FieldError::required(&path.child("capacity"), ""));
        }
        if capacity.is_none_or(|c| c.len() > 1 || !c.contains_key("storage")) {
            errors.push(FieldError::not_supported(
                &path.child("capacity"),
                spec["capacity"].clone(),
                &["storage"],
            ));
        }
        for (key, value) in capacity.into_iter().flatten() {
            let at_key = path.child("capacity").key(key);
            if Quantity::from_value(value).is_ok_and(|q| q.is_negative()) {
                let shown = text(&spec["capacity"], key);
                errors.push(FieldError::invalid_shown(&at_key, shown, "must be a valid resource quantity"));
            }
            positive_storage(value, &at_key, errors);
        }
        let policy = text(spec, "persistentVolumeReclaimPolicy");
        let at_policy = path.child("persistentVolumeReclaimPolicy");
        one_of(policy, &["Delete", "Recycle", "Retain"], &at_policy, errors);
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
        for source in &sources {
            volumes::shared_source(source, &spec[*source], &path.child(source), errors);
            volumes::secret_references(&spec[*source], &path.child(source), errors);
        }
        let local = text(spec, "local.path");
        if local.split('/').any(|part| part == "..") {
            let at_path = path.child("local").child("path");
            errors.push(FieldError::invalid(&at_path, local, "must not contain '..'"));
        }
        if policy == "Recycle" && text(spec, "hostPath.path") == "/" {
            let detail = "may not be 'recycle' for a hostPath mount of '/'";
            errors.push(FieldError::forbidden(&at_policy, detail));
        }
        let class = text(spec, "storageClassName");
        if !class.is_empty() {
            for problem in names::dns1123_subdomain(class) {
                errors.push(FieldError::invalid(&path.child("storageClassName"), class, &problem));
            }
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
    fn warnings(&self, object: &Value) -> Vec<String> {
        let recycled = text(object, "spec.persistentVolumeReclaimPolicy") == "Recycle";
        let text = "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach \
                    is to use dynamic provisioning.";
        if recycled { vec![text.into()] } else { vec![] }
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
        super::pod_spec::round_up(&mut object["spec"]);
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
    fn warnings(&self, object: &Value) -> Vec<String> {
        claim_warnings(&object["spec"], "spec.")
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
        if bound {
            copy(&old, &mut now, "volumeAttributesClassName");
        }
        if old != now {
            let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
            errors.push(FieldError::forbidden(&path, detail));
        }
    }
}

/// What is odd about a claim's spec or a claim template's, its fields below `prefix`.
pub fn claim_warnings(spec: &Value, prefix: &str) -> Vec<String> {
    let requested = at(spec, "resources.requests.storage");
    let fraction = crate::validate::fractional_bytes(requested);
    fraction
        .map(|shown| format!("{prefix}resources.requests[storage]: fractional byte value {shown} is invalid, must be an integer"))
        .into_iter()
        .collect()
}

/// Both fields that name a source of data say the same. A reference into another namespace needs a feature that is off.
fn data_source(object: &mut Value) {
    let (old, new) = (at(object, "spec.dataSource").clone(), at(object, "spec.dataSourceRef").clone());
    if !text(&new, "namespace").is_empty() && old.is_null() {
        take(&mut object["spec"], "dataSourceRef");
        return;
    }
    if old.is_object() && new.is_null() {
        set(object, "spec.dataSourceRef", old);
    } else if new.is_object() && old.is_null() && text(&new, "namespace").is_empty() {
        let group = text(&new, "apiGroup");
        let known = (group.is_empty() && ["PersistentVolumeClaim", ""].contains(&text(&new, "kind")))
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
    for field in ["dataSource", "dataSourceRef"] {
        if spec[field].is_object() {
            source_reference(&spec[field], &path.child(field), errors);
        }
    }
}

fn source_reference(source: &Value, path: &Path, errors: &mut ErrorList) {
    crate::validate::required(source, "name", path, errors);
    crate::validate::required(source, "kind", path, errors);
    if text(source, "apiGroup").is_empty() && text(source, "kind") != "PersistentVolumeClaim" {
        let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.push(FieldError::invalid(path, text(source, "kind"), detail));
    }
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
            // What was looked at is what is shown.
            let lower = provisioner.to_lowercase();
            for problem in names::qualified_name(&lower) {
                errors.push(FieldError::invalid(&Path::new("provisioner"), lower.as_str(), &problem));
            }
        }
        topologies(&object["allowedTopologies"], errors);
        one_of_if_set(&object["reclaimPolicy"], &["Delete", "Retain"], &Path::new("reclaimPolicy"), errors);
        let modes = ["Immediate", "WaitForFirstConsumer"];
        one_of_if_set(&object["volumeBindingMode"], &modes, &Path::new("volumeBindingMode"), errors);
    }
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
            if current[field] == new[field] || (is_empty(&current[field]) && is_empty(&new[field])) {
                continue;
            }
            errors.push(if field == "parameters" {
                FieldError::forbidden(&Path::new(field), "updates to parameters are forbidden.")
            } else {
                FieldError::invalid(&Path::new(field), new[field].clone(), "field is immutable")
            });
        }
    }
}

/// Terms of node labels, each other than the rest.
fn topologies(terms: &Value, errors: &mut ErrorList) {
    let mut seen: Vec<&Value> = vec![];
    for (i, term) in terms.as_array().into_iter().flatten().enumerate() {
        let at_list = Path::new("allowedTopologies").index(i).child("matchLabelExpressions");
        let expressions = &term["matchLabelExpressions"];
        if is_empty(expressions) || seen.contains(&expressions) {
            errors.push(FieldError::duplicate(&at_list, ""));
        }
        seen.push(expressions);
        for (j, e) in expressions.as_array().into_iter().flatten().enumerate() {
            let path = at_list.index(j);
            let values = items(e, "values");
            if values.is_empty() {
                errors.push(FieldError::required(&path.child("values"), ""));
            }
            for (k, v) in values.iter().enumerate().filter(|(k, v)| values[..*k].contains(v)) {
                errors.push(FieldError::duplicate(&path.child("values").index(k), v.clone()));
            }
            let key = text(e, "key");
            for problem in names::qualified_name(key) {
                errors.push(FieldError::invalid(&path.child("key"), key, &problem));
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
    fn generation(&self) -> bool {
        true
    }
    fn generation_from_the_start(&self) -> bool {
        false
    }
    fn prepare_create(&self, object: &mut Value, _: &Context) {
        gated_driver_fields(object);
    }
    fn prepare_update(&self, _: &Target, _: &Value, new: &mut Value, _: &Context) {
        gated_driver_fields(new);
    }
    fn spec_changed(&self, old: &Value, new: &Value) -> bool {
        let counted = [
            "tokenRequests",
            "requiresRepublish",
            "seLinuxMount",
            "podInfoOnMount",
            "storageCapacity",
            "fsGroupPolicy",
        ];
        counted.iter().any(|f| !crate::value::same(&old["spec"][*f], &new["spec"][*f]))
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        for (i, request) in items(spec, "tokenRequests").iter().enumerate() {
            let at_i = path.child("tokenRequests").index(i).child("expirationSeconds");
            match request["expirationSeconds"].as_i64() {
                Some(n) if n < 600 => {
                    errors.push(FieldError::invalid(
                        &at_i,
                        n,
                        "may not specify a duration less than 10 minutes",
                    ));
                }
                Some(n) if n > 1 << 32 => {
                    errors.push(FieldError::invalid(
                        &at_i,
                        n,
                        "may not specify a duration larger than 2^32 seconds",
                    ));
                }
                _ => {}
            }
        }
        let policies = ["File", "None", "ReadWriteOnceWithFSType"];
        one_of_if_set(&spec["fsGroupPolicy"], &policies, &path.child("fsGroupPolicy"), errors);
        for mode in items(spec, "volumeLifecycleModes") {
            let at_mode = path.child("volumeLifecycleModes");
            one_of(mode.as_str().unwrap_or(""), &["Persistent", "Ephemeral"], &at_mode, errors);
        }
        if let Some(n) = spec["nodeAllocatableUpdatePeriodSeconds"].as_i64().filter(|n| *n < 10) {
            let at_period = path.child("nodeAllocatableUpdatePeriodSeconds");
            errors.push(FieldError::invalid(&at_period, n, "must be greater than or equal to 10 seconds"));
        }
        if spec["serviceAccountTokenInSecrets"] == true && is_empty(&spec["tokenRequests"]) {
            let detail = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
            errors.push(FieldError::invalid(&path.child("serviceAccountTokenInSecrets"), true, detail));
        }
    }
}

/// Fields of features that are off.
fn gated_driver_fields(object: &mut Value) {
    take(&mut object["spec"], "preventPodSchedulingIfMissing");
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
            let drivers = items(object, "spec.drivers");
            if drivers[..i].iter().any(|o| o["name"] == d["name"]) {
                errors.push(FieldError::duplicate(&path.child("name"), text(d, "name")));
            }
            if let Some(n) = at(d, "allocatable.count").as_i64() {
                crate::validate::non_negative(n, &path.child("allocatable").child("count"), errors);
            }
            let keys = items(d, "topologyKeys");
            for (_, key) in keys.iter().enumerate().filter(|(k, key)| keys[..*k].contains(key)) {
                errors.push(FieldError::duplicate(&path, key.clone()));
            }
        }
    }
}

pub struct VolumeAttachments;

impl Strategy for VolumeAttachments {
    fn answers_deleted_object(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let path = Path::new("spec");
        crate::validate::required(&object["spec"], "attacher", &path, errors);
        let source = at(object, "spec.source");
        if is_empty(&source["persistentVolumeName"]) && source["inlineVolumeSpec"].is_null() {
            let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errors.push(FieldError::required(&path.child("source"), detail));
        }
        let node = text(object, "spec.nodeName");
        for problem in names::dns1123_subdomain(node) {
            errors.push(FieldError::invalid(&path.child("nodeName"), node, &problem));
        }
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource.is_none() && current["spec"] != new["spec"] {
            let shown = crate::gotext::inner("storage.v1.VolumeAttachmentSpec", &new["spec"]);
            errors.push(FieldError::invalid_shown(&Path::new("spec"), &shown, "field is immutable"));
        }
    }
}
