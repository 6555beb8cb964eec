//! RuntimeClasses.

use super::{Strategy, pod_scheduling};
use crate::context::Target;
use crate::validate::immutable;
use crate::value::{at, items, text};
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::Value;

pub struct RuntimeClasses;

impl Strategy for RuntimeClasses {
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let handler = text(object, "handler");
        if handler.is_empty() {
            errors.push(FieldError::required(&Path::new("handler"), ""));
        } else {
            for problem in names::dns1123_label(handler) {
                errors.push(FieldError::invalid(&Path::new("handler"), handler, &problem));
            }
        }
        let scheduling = Path::new("scheduling");
        let selector = at(object, "scheduling.nodeSelector");
        crate::meta::labels(selector, &scheduling.child("nodeSelector"), errors);
        let tolerations = items(object, "scheduling.tolerations");
        pod_scheduling::tolerations(tolerations, &scheduling.child("tolerations"), errors);
        for (i, toleration) in tolerations.iter().enumerate() {
            if tolerations[..i].contains(toleration) {
                let path = scheduling.child("tolerations").index(i);
                errors.push(FieldError::duplicate(&path, toleration.clone()));
            }
        }
    }
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        immutable(current, new, "handler", errors);
    }
}
