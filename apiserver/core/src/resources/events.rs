//! Events, old form and new; both are stored in the old one.

use super::Strategy;
use crate::value::{namespace, text};
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::Value;

pub struct Events;

impl Strategy for Events {
    fn name_check(&self) -> crate::meta::NameCheck {
        |_| vec![]
    }
    fn validate(&self, event: &Value, errors: &mut ErrorList) {
        let old_form = text(event, "apiVersion") == "v1";
        let (involved, field) = if old_form { (&event["involvedObject"], "involvedObject") } else { (&event["regarding"], "regarding") };
        let at_namespace = Path::new(field).child("namespace");
        let in_namespace = text(involved, "namespace");
        let own = namespace(event);
        if old_form || event["eventTime"].is_null() {
            let matches = if in_namespace.is_empty() { own == "default" || own == "kube-system" || own.is_empty() } else { own == in_namespace };
            if !matches {
                let detail = if in_namespace.is_empty() { "does not match event.namespace" } else { "does not match event.namespace" };
                errors.push(FieldError::invalid(&Path::new("involvedObject").child("namespace"), in_namespace, detail));
            }
        } else if !in_namespace.is_empty() && in_namespace != own {
            errors.push(FieldError::invalid(&at_namespace, in_namespace, "does not match event.namespace"));
        }
        if event["eventTime"].is_null() {
            return;
        }
        let reporter = if old_form { "reportingComponent" } else { "reportingController" };
        if text(event, reporter).is_empty() {
            errors.push(FieldError::required(&Path::new("reportingController"), ""));
        } else {
            for problem in names::qualified_name(text(event, reporter)) {
                errors.push(FieldError::invalid(&Path::new("reportingController"), text(event, reporter), &problem));
            }
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
}
