//! What may change in a pod that exists.

use super::pod_spec::CONTAINER_LISTS;
use crate::value::{at, copy, each_mut, int, is_empty, items, set, take, text};
use keelson_api::{ErrorList, FieldError, Path};
use serde_json::Value;
use std::collections::BTreeSet;

const ALLOWED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` \
(allow it to be set to 1 if it was previously negative)";

/// The main door: images, deadlines and more tolerations.
pub fn spec(current: &Value, new: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec");
    for list in ["containers", "initContainers"] {
        if at(current, "spec")[list].as_array().map_or(0, Vec::len)
            != at(new, "spec")[list].as_array().map_or(0, Vec::len)
        {
            errors.push(FieldError::forbidden(
                &path.child(list),
                "pod updates may not add or remove containers",
            ));
            return;
        }
    }
    deadline(current, new, errors);
    tolerations(current, new, errors);
    gates(current, new, errors);
    let (mut old_rest, mut rest) = (current["spec"].clone(), new["spec"].clone());
    for list in ["containers", "initContainers"] {
        let images: Vec<Value> = items(&old_rest, list).iter().map(|c| c["image"].clone()).collect();
        for (c, image) in each_mut(&mut rest, list).zip(images) {
            set(c, "image", image);
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        take(&mut old_rest, field);
        take(&mut rest, field);
    }
    if int(&old_rest, "terminationGracePeriodSeconds") < 0 && int(&rest, "terminationGracePeriodSeconds") == 1
    {
        copy(&old_rest, &mut rest, "terminationGracePeriodSeconds");
    }
    if !items(current, "spec.schedulingGates").is_empty() {
        // While a pod is held back, its node choice may be narrowed.
        for field in ["nodeSelector", "affinity"] {
            copy(&old_rest, &mut rest, field);
        }
    }
    if old_rest != rest {
        errors.push(FieldError::forbidden(&path, ALLOWED));
    }
}

fn deadline(current: &Value, new: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec").child("activeDeadlineSeconds");
    let (old, now) = (&current["spec"]["activeDeadlineSeconds"], &new["spec"]["activeDeadlineSeconds"]);
    match (old.as_i64(), now.as_i64()) {
        (_, Some(n)) if !(0..=i64::from(i32::MAX)).contains(&n) => {
            errors.push(FieldError::invalid(&path, n, "must be between 0 and 2147483647, inclusive"));
        }
        (Some(o), Some(n)) if n > o => {
            errors.push(FieldError::invalid(&path, n, "must be less than or equal to previous value"));
        }
        (Some(_), None) => {
            errors.push(FieldError::invalid(
                &path,
                Value::Null,
                "must not update from a positive integer to nil value",
            ));
        }
        _ => {}
    }
}

fn tolerations(current: &Value, new: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec").child("tolerations");
    let without_seconds = |t: &Value| {
        let mut t = t.clone();
        take(&mut t, "tolerationSeconds");
        t
    };
    let kept: Vec<Value> = items(new, "spec.tolerations").iter().map(without_seconds).collect();
    let missing = items(current, "spec.tolerations").iter().any(|t| !kept.contains(&without_seconds(t)));
    if missing {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden(&path, detail));
    }
}

fn gates(current: &Value, new: &Value, errors: &mut ErrorList) {
    let had: BTreeSet<&str> =
        items(current, "spec.schedulingGates").iter().map(|g| text(g, "name")).collect();
    for (i, g) in items(new, "spec.schedulingGates").iter().enumerate() {
        if !had.contains(text(g, "name")) {
            let path = Path::new("spec").child("schedulingGates").index(i);
            errors.push(FieldError::forbidden(
                &path,
                "only deletion is allowed, but found new scheduling gate",
            ));
        }
    }
}

/// Ephemeral containers may only be added.
pub fn ephemeral_containers(current: &Value, new: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec").child("ephemeralContainers");
    let list = items(new, "spec.ephemeralContainers");
    check_ephemeral(&new["spec"], list, errors);
    for old in items(current, "spec.ephemeralContainers") {
        let name = text(old, "name");
        match list.iter().find(|c| text(c, "name") == name) {
            None => {
                let detail = format!("existing ephemeral containers {name:?} may not be removed\n");
                errors.push(FieldError::forbidden(&path, &detail));
            }
            Some(found) if found != old => {
                let detail = format!("existing ephemeral containers {name:?} may not be changed\n");
                errors.push(FieldError::forbidden(&path, &detail));
            }
            Some(_) => {}
        }
    }
}

/// What an ephemeral container may have.
pub fn check_ephemeral(spec: &Value, list: &[Value], errors: &mut ErrorList) {
    let path = Path::new("spec").child("ephemeralContainers");
    let mut seen: BTreeSet<&str> =
        CONTAINER_LISTS[..2].iter().flat_map(|l| items(spec, l)).map(|c| text(c, "name")).collect();
    let volumes = items(spec, "volumes").iter().map(|v| text(v, "name").to_string()).collect();
    for (i, c) in list.iter().enumerate() {
        let at_i = path.index(i);
        let name = text(c, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&at_i.child("name"), ""));
        } else {
            for problem in keelson_api::names::dns1123_label(name) {
                errors.push(FieldError::invalid(&at_i.child("name"), name, &problem));
            }
            if !seen.insert(name) {
                errors.push(FieldError::duplicate(&at_i.child("name"), name));
            }
        }
        super::pod_validate::container_common(spec, c, &at_i, &volumes, errors);
        for field in [
            "ports",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
            "resources",
            "restartPolicy",
        ] {
            if !is_empty(&c[field]) {
                let detail = "cannot be set for an Ephemeral Container";
                errors.push(FieldError::forbidden(&at_i.child(field), detail));
            }
        }
        let target = text(c, "targetContainerName");
        if !target.is_empty()
            && !CONTAINER_LISTS[..2].iter().flat_map(|l| items(spec, l)).any(|c| text(c, "name") == target)
        {
            errors.push(FieldError::not_found(&at_i.child("targetContainerName"), target));
        }
    }
}

/// What a resize may not do.
pub fn resize(current: &Value, new: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let mut others = false;
    for list in ["containers", "initContainers"] {
        for (i, c) in items(&new["spec"], list).iter().enumerate() {
            let name = text(c, "name");
            let Some(old) = items(&current["spec"], list).iter().find(|o| text(o, "name") == name) else {
                continue;
            };
            let at_resources = path.child(list).index(i).child("resources");
            for which in ["limits", "requests"] {
                let (before, after) = (&old["resources"][which], &c["resources"][which]);
                let keys = [before, after].into_iter().filter_map(Value::as_object).flat_map(|m| m.keys());
                let plain = |k: &str| k == "cpu" || k == "memory";
                others |= keys.filter(|k| !plain(k)).any(|k| before[k.as_str()] != after[k.as_str()]);
                let gone = ["cpu", "memory"].iter().any(|k| !before[*k].is_null() && after[*k].is_null());
                if gone {
                    let detail = format!("resource {which} cannot be removed");
                    errors.push(FieldError::forbidden(&at_resources.child(which), &detail));
                }
            }
        }
    }
    if others {
        errors.push(FieldError::forbidden(&path, "only cpu and memory resources are mutable"));
    }
}

/// The resize door: container resources and nothing else.
pub fn prepare_resize(current: &Value, new: &mut Value) {
    let mut result = current.clone();
    set(&mut result, "metadata.managedFields", at(new, "metadata.managedFields").clone());
    for list in ["containers", "initContainers"] {
        for c in each_mut(&mut result["spec"], list) {
            let name = text(c, "name").to_string();
            if let Some(wanted) = items(&new["spec"], list).iter().find(|n| text(n, "name") == name) {
                set(c, "resources", wanted["resources"].clone());
                copy(wanted, c, "resizePolicy");
            }
        }
    }
    *new = result;
}
