//! Default classes, protection finalizers, and who may grow a claim.

use super::is;
use crate::context::{Context, Target};
use crate::value::{at, items, set, text};
use keelson_api::{Quantity, Status};
use serde_json::{Value, json};
use std::sync::Arc;

const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const DEFAULT_INGRESS_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";

pub fn mutate_create(target: &Target, object: &mut Value, ctx: &Context) {
    if is(target, "", "persistentvolumeclaims") {
        protect(object, "kubernetes.io/pvc-protection");
        let annotated =
            at(object, "metadata.annotations").get("volume.beta.kubernetes.io/storage-class").is_some();
        if at(object, "spec.storageClassName").is_null() && !annotated {
            let classes = ctx.view.list("storage.k8s.io", "storageclasses", None);
            let is_default = |c: &Arc<Value>| DEFAULT_CLASS.iter().any(|a| annotation_is_true(c, a));
            if let Some(class) = newest(classes, is_default) {
                set(object, "spec.storageClassName", crate::value::name(&class));
            }
        }
    }
    if is(target, "", "persistentvolumes") {
        protect(object, "kubernetes.io/pv-protection");
    }
    if is(target, "networking.k8s.io", "ingresses") && at(object, "spec.ingressClassName").is_null() {
        let annotated = at(object, "metadata.annotations").get("kubernetes.io/ingress.class").is_some();
        let classes = ctx.view.list("networking.k8s.io", "ingressclasses", None);
        let class = newest(classes, |c| annotation_is_true(c, DEFAULT_INGRESS_CLASS)).filter(|_| !annotated);
        if let Some(class) = class {
            set(object, "spec.ingressClassName", crate::value::name(&class));
        }
    }
}

fn annotation_is_true(object: &Value, key: &str) -> bool {
    at(object, "metadata.annotations").get(key).and_then(Value::as_str) == Some("true")
}

/// Of several defaults the newest counts.
fn newest(classes: Vec<Arc<Value>>, is_default: impl Fn(&Arc<Value>) -> bool) -> Option<Arc<Value>> {
    let key = |c: &Arc<Value>| {
        (
            text(c, "metadata.creationTimestamp").to_string(),
            std::cmp::Reverse(crate::value::name(c).to_string()),
        )
    };
    classes.into_iter().filter(is_default).max_by_key(key)
}

fn protect(object: &mut Value, finalizer: &str) {
    let mut list = items(object, "metadata.finalizers").to_vec();
    if !list.iter().any(|f| f == finalizer) {
        list.push(json!(finalizer));
        set(object, "metadata.finalizers", list);
    }
}

/// PersistentVolumeClaimResize: only bound claims of a class that allows it may grow.
pub fn validate_update(target: &Target, current: &Value, new: &Value, ctx: &Context) -> Result<(), Status> {
    if !is(target, "", "persistentvolumeclaims") || target.subresource.is_some() {
        return Ok(());
    }
    let size = |v: &Value| Quantity::from_value(at(v, "spec.resources.requests.storage")).ok();
    let (Some(before), Some(after)) = (size(current), size(new)) else { return Ok(()) };
    if after <= before {
        return Ok(());
    }
    let forbidden = |cause: &str| Err(Status::forbidden(target.resource, target.name, cause));
    if text(current, "status.phase") != "Bound" {
        return forbidden("Only bound persistent volume claims can be expanded");
    }
    let class = ctx.view.get("storage.k8s.io", "storageclasses", "", text(new, "spec.storageClassName"));
    if class.is_none_or(|c| c["allowVolumeExpansion"] != true) {
        let cause = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
        return forbidden(cause);
    }
    Ok(())
}
