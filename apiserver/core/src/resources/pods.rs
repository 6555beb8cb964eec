//! Pods: status on creation, what an update may change, bookkeeping of addresses.

use super::pod_spec::{self, Place};
use super::{Strategy, pod_update, pod_validate};
use crate::context::{Context, Target};
use crate::value::{at, copy, items, map_mut, set, text};
use keelson_api::{ErrorList, Path};
use serde_json::{Value, json};

pub struct Pods;

impl Strategy for Pods {
    fn default(&self, pod: &mut Value) {
        pod_spec::default_spec(map_mut(pod).entry("spec").or_insert(Value::Null), Place::Pod);
        addresses(pod);
    }
    fn generation(&self) -> bool {
        true
    }
    fn answers_deleted_object(&self) -> bool {
        true
    }
    fn prepare_create(&self, pod: &mut Value, ctx: &Context) {
        let class = pod_spec::qos_class(&pod["spec"]);
        set(pod, "status", json!({"phase": "Pending", "qosClass": class}));
        if !items(pod, "spec.schedulingGates").is_empty() {
            let gated = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates", "lastProbeTime": null, "lastTransitionTime": crate::meta::time(ctx.now)}]);
            set(pod, "status.conditions", gated);
        }
        pod_spec::drop_gated(&mut pod["spec"]);
    }
    fn warnings(&self, pod: &Value) -> Vec<String> {
        super::pod_warnings::spec(&pod["spec"], &Path::new("spec"))
    }
    fn warnings_on_update(&self, _: &Value, _: &Value) -> Vec<String> {
        vec![]
    }
    fn prepare_update(&self, target: &Target, current: &Value, new: &mut Value, _ctx: &Context) {
        match target.subresource {
            Some("status") => {
                copy(current, new, "metadata.ownerReferences");
                copy(current, new, "metadata.deletionTimestamp");
                if text(new, "status.qosClass").is_empty() {
                    copy(current, new, "status.qosClass");
                }
            }
            Some("ephemeralcontainers") => {
                let containers = at(new, "spec.ephemeralContainers").clone();
                let managed = at(new, "metadata.managedFields").clone();
                *new = current.clone();
                set(new, "spec.ephemeralContainers", containers);
                set(new, "metadata.managedFields", managed);
            }
            Some("resize") => pod_update::prepare_resize(current, new),
            _ => {
                pod_spec::drop_gated(&mut new["spec"]);
            }
        }
    }
    fn validate(&self, pod: &Value, errors: &mut ErrorList) {
        pod_validate::pod(pod, errors);
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        match target.subresource {
            None => pod_update::spec(current, new, errors),
            Some("ephemeralcontainers") => pod_update::ephemeral_containers(current, new, errors),
            Some("resize") => {
                pod_validate::spec(&new["spec"], &Path::new("spec"), errors);
                pod_update::resize(current, new, errors);
            }
            _ => {}
        }
    }
}

/// One address and the list of addresses say the same.
fn addresses(pod: &mut Value) {
    let ip = text(pod, "status.podIP").to_string();
    let first = items(pod, "status.podIPs").first().map(|f| text(f, "ip").to_string());
    match (ip.is_empty(), first) {
        (false, first) if first.as_deref() != Some(&ip) => set(pod, "status.podIPs", json!([{"ip": ip}])),
        (true, Some(first)) => set(pod, "status.podIP", first),
        _ => {}
    }
}
