//! Defaults and names of volume sources.

use super::pod_spec::{fill, pull_policy};
use crate::value::{default, each_mut, map_mut, set, text};
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::{Value, json};

/// Every kind of volume a pod may have.
pub const POD_SOURCES: [&str; 30] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
];

/// The sources a volume (or the spec of a persistent one) names.
pub fn sources(volume: &Value) -> Vec<&'static str> {
    POD_SOURCES.iter().copied().filter(|s| !volume[*s].is_null()).collect()
}

/// Fills in one volume of a pod.
pub fn default_volume(volume: &mut Value) {
    if !volume.is_object() {
        return;
    }
    if sources(volume).is_empty() && volume["local"].is_null() {
        set(volume, "emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if volume[source].is_object() {
            default(&mut volume[source], "defaultMode", 420);
        }
    }
    for item in each_mut(volume, "downwardAPI.items") {
        default_field_ref(item);
    }
    for source in each_mut(volume, "projected.sources") {
        if source["serviceAccountToken"].is_object() {
            default(source, "serviceAccountToken.expirationSeconds", 3600);
        }
        for item in each_mut(source, "downwardAPI.items") {
            default_field_ref(item);
        }
    }
    if crate::value::at(volume, "ephemeral.volumeClaimTemplate.spec").is_object() {
        default(volume, "ephemeral.volumeClaimTemplate.spec.volumeMode", "Filesystem");
    }
    if volume["image"].is_object() {
        let policy = pull_policy(text(volume, "image.reference"));
        fill(&mut volume["image"], "pullPolicy", policy);
    }
    default_source(volume);
}

fn default_field_ref(item: &mut Value) {
    if item["fieldRef"].is_object() {
        fill(&mut item["fieldRef"], "apiVersion", "v1");
    }
}

/// What the older kinds of volume cannot do without.
const REQUIRED: [(&str, &str, &[&str]); 17] = [
    ("awsElasticBlockStore", "awsElasticBlockStore", &["volumeID"]),
    ("azureDisk", "azureDisk", &["diskName", "diskURI"]),
    ("azureFile", "azureFile", &["secretName", "shareName"]),
    ("cephfs", "cephfs", &["monitors"]),
    ("cinder", "cinder", &["volumeID"]),
    ("flexVolume", "flexVolume", &["driver"]),
    ("gcePersistentDisk", "persistentDisk", &["pdName"]),
    ("gitRepo", "gitRepo", &["repository"]),
    ("glusterfs", "glusterfs", &["endpoints", "path"]),
    ("iscsi", "iscsi", &["targetPortal", "iqn"]),
    ("photonPersistentDisk", "photonPersistentDisk", &["pdID"]),
    ("portworxVolume", "portworxVolume", &["volumeID"]),
    ("nfs", "nfs", &["server", "path"]),
    ("rbd", "rbd", &["monitors", "image"]),
    ("scaleIO", "scaleIO", &["gateway", "system", "volumeName"]),
    ("storageos", "storageos", &["volumeName"]),
    ("vsphereVolume", "vsphereVolume", &["volumePath"]),
];

/// Reports what is missing from one of the older kinds of volume.
pub fn required_fields(kind: &str, source: &Value, path: &Path, errors: &mut ErrorList) {
    let Some((_, shown, fields)) = REQUIRED.iter().find(|(k, _, _)| *k == kind) else { return };
    let renamed = Path::new(&path.as_str().replace(kind, shown));
    for field in *fields {
        crate::validate::required(source, field, &renamed, errors);
    }
}

/// What pods' volumes and persistent ones demand of a source alike, beyond what must be there.
pub fn shared_source(kind: &str, source: &Value, path: &Path, errors: &mut ErrorList) {
    required_fields(kind, source, path, errors);
    match kind {
        "nfs" => {
            let at_path = text(source, "path");
            if !at_path.starts_with('/') {
                errors.push(FieldError::invalid(&path.child("path"), at_path, "must be an absolute path"));
            }
        }
        "csi" => {
            let driver = text(source, "driver");
            for problem in
                names::dns1123_subdomain(&driver.to_lowercase()).iter().filter(|_| !driver.is_empty())
            {
                errors.push(FieldError::invalid(&path.child("driver"), driver, problem));
            }
        }
        "iscsi" => {
            if let Some(lun) = source["lun"].as_i64().filter(|n| !(0..=255).contains(n)) {
                errors.push(FieldError::invalid(
                    &path.child("lun"),
                    lun,
                    "must be between 0 and 255, inclusive",
                ));
            }
        }
        "gcePersistentDisk" => {
            if let Some(n) = source["partition"].as_i64().filter(|n| !(0..=255).contains(n)) {
                let at_partition =
                    Path::new(&path.as_str().replace(kind, "persistentDisk")).child("partition");
                errors.push(FieldError::invalid(&at_partition, n, "must be between 1 and 255, inclusive"));
            }
        }
        "fc" => {
            let (targets, ids) =
                (crate::value::is_empty(&source["targetWWNs"]), crate::value::is_empty(&source["wwids"]));
            if targets == ids {
                let detail = "must specify either targetWWNs or wwids, but not both";
                errors.push(FieldError::required(&path.child("targetWWNs"), detail));
            }
        }
        "quobyte" => {
            if text(source, "registry").is_empty() {
                let detail = "must be a host:port pair or multiple pairs separated by commas";
                errors.push(FieldError::required(&path.child("registry"), detail));
            }
            crate::validate::required(source, "volume", path, errors);
        }
        _ => {}
    }
}

/// References to secrets in persistent volumes name their namespace.
pub fn secret_references(source: &Value, path: &Path, errors: &mut ErrorList) {
    for (field, reference) in source.as_object().into_iter().flatten() {
        if field.ends_with("SecretRef") && reference.is_object() {
            for part in ["name", "namespace"] {
                crate::validate::required(reference, part, &path.child(field), errors);
            }
        }
    }
}

/// Fills in the sources that pods and persistent volumes share.
pub fn default_source(volume: &mut Value) {
    if volume["hostPath"].is_object() {
        default(volume, "hostPath.type", "");
    }
    if volume["iscsi"].is_object() {
        fill(&mut volume["iscsi"], "iscsiInterface", "default");
    }
    if let Some(rbd) = volume.get_mut("rbd").filter(|v| v.is_object()) {
        fill(rbd, "pool", "rbd");
        fill(rbd, "user", "admin");
        fill(rbd, "keyring", "/etc/ceph/keyring");
    }
    if let Some(disk) = volume.get_mut("azureDisk").filter(|v| v.is_object()) {
        default(disk, "cachingMode", "ReadWrite");
        default(disk, "kind", "Shared");
        default(disk, "fsType", "ext4");
        default(disk, "readOnly", false);
    }
    if let Some(io) = volume.get_mut("scaleIO").filter(|v| v.is_object()) {
        fill(io, "storageMode", "ThinProvisioned");
        fill(io, "fsType", "xfs");
    }
    map_mut(volume);
}
