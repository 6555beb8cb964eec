//! CSIStorageCapacities and VolumeAttributesClasses.

use super::Strategy;
use crate::context::{Context, Target};
use crate::validate::{label_selector, non_negative_quantity};
use crate::value::{is_empty, map_mut, object_mut, text};
use keelson_api::{ErrorList, FieldError, Path, Quantity, names};
use serde_json::{Value, json};

pub struct StorageCapacities;

impl Strategy for StorageCapacities {
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let class = text(object, "storageClassName");
        for problem in names::dns1123_subdomain(class) {
            errors.push(FieldError::invalid(&Path::new("storageClassName"), class, &problem));
        }
        let topology = Path::new("nodeTopology");
        label_selector(&object["nodeTopology"], &topology, errors);
        for field in ["capacity", "maximumVolumeSize"] {
            non_negative_quantity(&object[field], &Path::new(field), errors);
        }
        let size = |f: &str| Quantity::from_value(&object[f]).ok();
        if let (Some(capacity), Some(largest)) = (size("capacity"), size("maximumVolumeSize"))
            && capacity < largest
        {
            let detail = format!("must not be larger than capacity {}", text(object, "capacity"));
            let value = object["maximumVolumeSize"].clone();
            errors.push(FieldError::invalid(&Path::new("maximumVolumeSize"), value, &detail));
        }
    }
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        for field in ["nodeTopology", "storageClassName"] {
            crate::validate::immutable(current, new, field, errors);
        }
    }
}

const PROTECTION: &str = "kubernetes.io/vac-protection";

pub struct VolumeAttributesClasses;

impl Strategy for VolumeAttributesClasses {
    fn answers_deleted_object(&self) -> bool {
        true
    }
    fn prepare_create(&self, object: &mut Value, _: &Context) {
        let finalizers = object_mut(object, "metadata").entry("finalizers").or_insert(json!([]));
        if let Some(list) = finalizers.as_array_mut()
            && !list.iter().any(|f| f == PROTECTION)
        {
            list.push(PROTECTION.into());
        }
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let driver = text(object, "driverName");
        if driver.is_empty() {
            errors.push(FieldError::required(&Path::new("driverName"), ""));
        } else {
            for problem in names::qualified_name(&driver.to_lowercase()) {
                errors.push(FieldError::invalid(&Path::new("driverName"), driver, &problem));
            }
        }
        if is_empty(&object["parameters"]) {
            let detail = "must contain at least one key/value pair";
            errors.push(FieldError::required(&Path::new("parameters"), detail));
        }
    }
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        for field in ["driverName", "parameters"] {
            if current[field] != new[field] {
                let detail = format!("updates to {field} are forbidden.");
                errors.push(FieldError::forbidden(&Path::new(field), &detail));
            }
        }
    }
    fn default(&self, object: &mut Value) {
        map_mut(object);
    }
}
