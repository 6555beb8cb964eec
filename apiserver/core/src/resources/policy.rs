//! PodDisruptionBudgets.

use super::Strategy;
use crate::context::Target;
use crate::validate::{at_most_100_percent, int_or_percent, label_selector, non_negative, one_of_if_set};
use crate::value::int;
use keelson_api::{ErrorList, FieldError, Path};
use serde_json::Value;

pub struct PodDisruptionBudgets;

impl Strategy for PodDisruptionBudgets {
    fn name_check(&self) -> crate::meta::NameCheck {
        keelson_api::names::path_segment
    }
    fn generation(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
            let detail = "minAvailable and maxUnavailable cannot be both set";
            let shown = crate::gotext::inner("policy.v1.PodDisruptionBudgetSpec", spec);
            errors.push(FieldError::invalid_shown(&path, &shown, detail));
        }
        for field in ["minAvailable", "maxUnavailable"] {
            if !spec[field].is_null() {
                int_or_percent(&spec[field], &path.child(field), errors);
                at_most_100_percent(&spec[field], &path.child(field), errors);
            }
        }
        label_selector(&spec["selector"], &path.child("selector"), errors);
        let policies = ["AlwaysAllow", "IfHealthyBudget"];
        one_of_if_set(
            &spec["unhealthyPodEvictionPolicy"],
            &policies,
            &path.child("unhealthyPodEvictionPolicy"),
            errors,
        );
    }
    fn validate_update(&self, target: &Target, _: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource == Some("status") {
            for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
                non_negative(int(&new["status"], field), &Path::new("status").child(field), errors);
            }
        }
    }
}
