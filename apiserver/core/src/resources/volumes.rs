//! Defaults and names of volume sources.

use super::pod_spec::{fill, pull_policy};
use crate::value::{default, each_mut, map_mut, set, text};
use keelson_api::{ErrorList, Path};
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
const REQUIRED: [(&str, &str, &[&str]); 14] = [
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
    ("rbd", "rbd", &["monitors", "image"]),
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
