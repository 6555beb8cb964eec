//! Validation of a pod's volumes, of where they are mounted, and of the fields they project.

use super::volumes as kinds;
use crate::validate::{one_of, one_of_if_set};
use crate::value::{at, int, items, text};
use keelson_api::{ErrorList, FieldError, Path, Quantity, names};
use serde_json::Value;
use std::collections::BTreeSet;

pub(super) fn volumes(spec: &Value, path: &Path, errors: &mut ErrorList) -> BTreeSet<String> {
    let mut names_seen = BTreeSet::new();
    for (i, v) in items(spec, "volumes").iter().enumerate() {
        let at_i = path.index(i);
        let before = errors.len();
        volume_source(v, &at_i, errors);
        let name = text(v, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&at_i.child("name"), ""));
        } else {
            for problem in names::dns1123_label_without_dots(name) {
                errors.push(FieldError::invalid(&at_i.child("name"), name, &problem));
            }
        }
        if names_seen.contains(name) {
            errors.push(FieldError::duplicate(&at_i.child("name"), name));
        }
        if errors.len() == before {
            names_seen.insert(name.to_string());
        }
    }
    names_seen
}

fn volume_source(v: &Value, path: &Path, errors: &mut ErrorList) {
    let sources = kinds::sources(v);
    if sources.is_empty() {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
    for extra in sources.iter().skip(1) {
        errors.push(FieldError::forbidden(&path.child(extra), "may not specify more than 1 volume type"));
    }
    let Some(first) = sources.first() else { return };
    let (source, path) = (&v[*first], path.child(first));
    match *first {
        "hostPath" => {
            if text(source, "path").is_empty() {
                errors.push(FieldError::required(&path.child("path"), ""));
            } else if text(source, "path").split('/').any(|p| p == "..") {
                errors.push(FieldError::invalid(
                    &path.child("path"),
                    text(source, "path"),
                    "must not contain '..'",
                ));
            }
            let kinds = [
                "",
                "DirectoryOrCreate",
                "Directory",
                "FileOrCreate",
                "File",
                "Socket",
                "CharDevice",
                "BlockDevice",
            ];
            if !kinds.contains(&text(source, "type")) {
                errors.push(FieldError::not_supported(
                    &path.child("type"),
                    text(source, "type"),
                    &[
                        "",
                        "BlockDevice",
                        "CharDevice",
                        "Directory",
                        "DirectoryOrCreate",
                        "File",
                        "FileOrCreate",
                        "Socket",
                    ],
                ));
            }
        }
        "emptyDir" => {
            if Quantity::from_value(&source["sizeLimit"]).is_ok_and(|q| q.is_negative()) {
                let detail = "SizeLimit field must be a valid resource quantity";
                errors.push(FieldError::forbidden(&path.child("sizeLimit"), detail));
            }
        }
        "secret" => {
            crate::validate::required(source, "secretName", &path, errors);
            modes_and_items(source, &path, errors);
        }
        "configMap" => {
            crate::validate::required(source, "name", &path, errors);
            modes_and_items(source, &path, errors);
        }
        "persistentVolumeClaim" => {
            crate::validate::required(source, "claimName", &path, errors);
        }
        "downwardAPI" => {
            mode(&source["defaultMode"], &path.child("defaultMode"), errors);
            for item in items(source, "items") {
                downward_item(item, &path, errors);
            }
        }
        "projected" => {
            mode(&source["defaultMode"], &path.child("defaultMode"), errors);
            for (i, s) in items(source, "sources").iter().enumerate() {
                projection(s, &path, &path.child("sources").index(i), errors);
            }
            projected_twice(source, &path, errors);
        }
        "csi" => {
            crate::validate::required(source, "driver", &path, errors);
            kinds::shared_source("csi", source, &path, errors);
        }
        "image" => {
            crate::validate::required(source, "reference", &path, errors);
        }
        "ephemeral" => {
            let template = &source["volumeClaimTemplate"];
            if template.is_null() {
                errors.push(FieldError::required(&path.child("volumeClaimTemplate"), ""));
            } else {
                let at_spec = path.child("volumeClaimTemplate").child("spec");
                super::storage::claim_spec(&template["spec"], &at_spec, errors);
            }
        }
        other => kinds::shared_source(other, source, &path, errors),
    }
}

/// Two sources may not write the same file.
fn projected_twice(projected: &Value, path: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for source in items(projected, "sources") {
        for kind in ["secret", "configMap"] {
            for item in items(&source[kind], "items") {
                let file = text(item, "path");
                if !file.is_empty() && !seen.insert(file) {
                    let name = text(&source[kind], "name");
                    errors.push(FieldError::invalid(path, name, "conflicting duplicate paths"));
                }
            }
        }
    }
}

fn projection(s: &Value, projected: &Path, path: &Path, errors: &mut ErrorList) {
    let kinds: Vec<&str> =
        ["secret", "downwardAPI", "configMap", "serviceAccountToken", "clusterTrustBundle"]
            .into_iter()
            .filter(|k| !s[*k].is_null())
            .collect();
    if kinds.len() > 1 {
        errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type"));
    }
    for kind in kinds {
        let (source, path) = (&s[kind], path.child(kind));
        match kind {
            "secret" | "configMap" => {
                crate::validate::required(source, "name", &path, errors);
                key_items(source, &path, errors);
            }
            "downwardAPI" => {
                for item in items(source, "items") {
                    downward_item(item, &path, errors);
                }
            }
            "serviceAccountToken" => {
                if text(source, "path").is_empty() {
                    errors.push(FieldError::required(&projected.child("path"), ""));
                }
                let seconds = int(source, "expirationSeconds");
                if seconds < 600 {
                    let detail = "may not specify a duration less than 10 minutes";
                    errors.push(FieldError::invalid(&path.child("expirationSeconds"), seconds, detail));
                } else if seconds > 1 << 32 {
                    let detail = "may not specify a duration larger than 2^32 seconds";
                    errors.push(FieldError::invalid(&path.child("expirationSeconds"), seconds, detail));
                }
                relative_path(text(source, "path"), &path.child("path"), errors);
            }
            _ => {}
        }
    }
}

fn mode(value: &Value, path: &Path, errors: &mut ErrorList) {
    if let Some(m) = value.as_i64().filter(|m| !(0..=0o777).contains(m)) {
        errors.push(FieldError::invalid(
            path,
            m,
            "must be a number between 0 and 0777 (octal), both inclusive",
        ));
    }
}

fn modes_and_items(source: &Value, path: &Path, errors: &mut ErrorList) {
    mode(&source["defaultMode"], &path.child("defaultMode"), errors);
    key_items(source, path, errors);
}

fn key_items(source: &Value, path: &Path, errors: &mut ErrorList) {
    for (i, item) in items(source, "items").iter().enumerate() {
        let at_i = path.child("items").index(i);
        crate::validate::required(item, "key", &at_i, errors);
        if crate::validate::required(item, "path", &at_i, errors) {
            relative_path(text(item, "path"), &at_i.child("path"), errors);
        }
        mode(&item["mode"], &at_i.child("mode"), errors);
    }
}

fn relative_path(p: &str, path: &Path, errors: &mut ErrorList) {
    if p.starts_with('/') {
        errors.push(FieldError::invalid(path, p, "must be a relative path"));
    }
    if p.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, p, "must not contain '..'"));
    }
    if p.starts_with("..") && !p.starts_with("../") && p != ".." {
        errors.push(FieldError::invalid(path, p, "must not start with '..'"));
    }
}

fn downward_item(item: &Value, path: &Path, errors: &mut ErrorList) {
    if crate::validate::required(item, "path", path, errors) {
        relative_path(text(item, "path"), &path.child("path"), errors);
    }
    if !item["fieldRef"].is_null() {
        field_ref(&item["fieldRef"], &path.child("fieldRef"), &VOLUME_FIELDS, errors);
        if !item["resourceFieldRef"].is_null() {
            let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errors.push(FieldError::invalid(path, "resource", detail));
        }
    } else if item["resourceFieldRef"].is_null() {
        errors.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required"));
    }
    mode(&item["mode"], &path.child("mode"), errors);
}

const VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
pub(super) const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

pub(super) fn field_ref(reference: &Value, path: &Path, supported: &[&str], errors: &mut ErrorList) {
    if !crate::validate::required(reference, "apiVersion", path, errors) {
        return;
    }
    if !crate::validate::required(reference, "fieldPath", path, errors) {
        return;
    }
    let field = text(reference, "fieldPath");
    if let Some((base, rest)) = field.split_once('[') {
        let key = rest.trim_end_matches(']').trim_matches(|c| c == '\'' || c == '"');
        if base == "metadata.annotations" || base == "metadata.labels" {
            for problem in names::qualified_name(&key.to_lowercase()) {
                errors.push(FieldError::invalid(path, key, &problem));
            }
        } else {
            errors.push(FieldError::invalid(path, field, "does not support subscript"));
        }
        return;
    }
    if text(reference, "apiVersion") != "v1" {
        let detail =
            format!("error converting fieldPath: unsupported pod version: {}", text(reference, "apiVersion"));
        errors.push(FieldError::invalid(&path.child("fieldPath"), field, &detail));
        return;
    }
    let known = ENV_FIELDS.contains(&field)
        || VOLUME_FIELDS.contains(&field)
        || ["spec.restartPolicy", "status.phase", "spec.schedulerName", "spec.host"].contains(&field);
    if !known {
        let detail = format!("error converting fieldPath: field label not supported: {field}");
        errors.push(FieldError::invalid(&path.child("fieldPath"), field, &detail));
    } else if !supported.contains(&field) {
        errors.push(FieldError::not_supported(&path.child("fieldPath"), field, supported));
    }
}

pub(super) fn mounts(
    spec: &Value,
    c: &Value,
    path: &Path,
    volumes: &BTreeSet<String>,
    errors: &mut ErrorList,
) {
    let path = path.child("volumeMounts");
    let mut seen = BTreeSet::new();
    for (i, m) in items(c, "volumeMounts").iter().enumerate() {
        let at_i = path.index(i);
        let name = text(m, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&at_i.child("name"), ""));
        }
        if !volumes.contains(name) {
            // A volume that is itself broken is not reported twice.
            if !items(spec, "volumes").iter().any(|v| text(v, "name") == name && !name.is_empty()) {
                errors.push(FieldError::not_found(&at_i.child("name"), name));
            }
        }
        let mount = text(m, "mountPath");
        if mount.is_empty() {
            errors.push(FieldError::required(&at_i.child("mountPath"), ""));
        }
        if !seen.insert(mount) {
            errors.push(FieldError::invalid(&at_i.child("mountPath"), mount, "must be unique"));
        }
        // Upstream names these without the index.
        if !text(m, "subPath").is_empty() {
            relative_path(text(m, "subPath"), &path.child("subPath"), errors);
        }
        if !text(m, "subPathExpr").is_empty() {
            if !text(m, "subPath").is_empty() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errors.push(FieldError::invalid(&at_i.child("subPathExpr"), text(m, "subPathExpr"), detail));
            }
            relative_path(text(m, "subPathExpr"), &path.child("subPathExpr"), errors);
        }
        if text(m, "mountPropagation") == "Bidirectional"
            && at(c, "securityContext.privileged") != &Value::Bool(true)
        {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(&path.child("mountPropagation"), detail));
        }
        read_only(m, &path, errors);
        one_of_if_set(
            &m["mountPropagation"],
            &["Bidirectional", "HostToContainer", "None"],
            &path.child("mountPropagation"),
            errors,
        );
    }
}

fn read_only(m: &Value, path: &Path, errors: &mut ErrorList) {
    let at_recursive = path.child("recursiveReadOnly");
    match m["recursiveReadOnly"].as_str() {
        Some("Enabled" | "IfPossible") if m["readOnly"] != true => {
            errors.push(FieldError::forbidden(&at_recursive, "may only be specified when readOnly is true"));
        }
        Some(other) => one_of(other, &["Disabled", "Enabled", "IfPossible"], &at_recursive, errors),
        None => {}
    }
}
