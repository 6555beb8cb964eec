//! Events, old form and new; both are stored in the old one.

use super::Strategy;
use crate::context::Target;
use crate::value::{is_empty, namespace, text};
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::Value;

/// Events in the old form (`v1`) or the new one.
pub struct Events {
    pub old_form: bool,
}

/// An empty object and none are one.
fn same(a: &Value, b: &Value) -> bool {
    a == b || (is_empty(a) && is_empty(b))
}

impl Strategy for Events {
    fn name_check(&self) -> crate::meta::NameCheck {
        if self.old_form { names::path_segment } else { names::dns1123_subdomain }
    }
    fn validate(&self, event: &Value, errors: &mut ErrorList) {
        let old_form = self.old_form;
        let involved = if old_form { &event["involvedObject"] } else { &event["regarding"] };
        let in_namespace = text(involved, "namespace");
        let own = namespace(event);
        // What is in no namespace is reported in one of these.
        let matches = if in_namespace.is_empty() {
            ["default", "kube-system", ""].contains(&own)
        } else {
            own == in_namespace
        };
        if !matches {
            let path = Path::new("involvedObject").child("namespace");
            errors.push(FieldError::invalid(&path, in_namespace, "does not match event.namespace"));
        }
        if event["eventTime"].is_null() {
            if !old_form {
                errors.push(FieldError::required(&Path::new("eventTime"), ""));
            }
            return;
        }
        let reporter = if old_form { "reportingComponent" } else { "reportingController" };
        if text(event, reporter).is_empty() {
            errors.push(FieldError::required(&Path::new("reportingController"), ""));
        }
        for problem in names::qualified_name(text(event, reporter)) {
            errors.push(FieldError::invalid(
                &Path::new("reportingController"),
                text(event, reporter),
                &problem,
            ));
        }
        for (field, longest) in [("reportingInstance", 128), ("action", 128), ("reason", 128)] {
            if text(event, field).is_empty() {
                errors.push(FieldError::required(&Path::new(field), ""));
            } else if text(event, field).len() > longest {
                let detail = format!("can have at most {longest} characters");
                errors.push(FieldError::invalid(&Path::new(field), "", &detail));
            }
        }
        let kind = text(event, "type");
        if kind != "Normal" && kind != "Warning" {
            errors.push(FieldError::invalid(&Path::new("type"), "", &format!("has invalid value: {kind}")));
        }
    }
    /// In the new form an event is what it was; only its series goes on. Fields have their old names in messages.
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        let fields = [
            ("regarding", "involvedObject"),
            ("reason", "reason"),
            ("note", "message"),
            ("deprecatedSource", "source"),
            ("deprecatedFirstTimestamp", "firstTimestamp"),
            ("deprecatedLastTimestamp", "lastTimestamp"),
            ("deprecatedCount", "count"),
            ("type", "type"),
            ("eventTime", "eventTime"),
            ("action", "action"),
            ("related", "related"),
            ("reportingController", "reportingController"),
            ("reportingInstance", "reportingInstance"),
        ];
        for (field, inside) in fields.into_iter().filter(|_| !self.old_form) {
            if !same(&current[field], &new[field]) {
                let path = Path::new(inside);
                errors.push(FieldError::invalid(&path, new[field].clone(), "field is immutable"));
            }
        }
    }
}
