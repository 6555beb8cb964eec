//! Questions to the authorizer.

use super::{Called, no_overload};
use crate::authorizer::{Authorizer, Decide, Stage};
use crate::value::Value;
use std::sync::Arc;

/// Runs a member of a question or an answer.
pub fn call(function: &str, of: &Authorizer, args: &[Value]) -> Called {
    let texts: Vec<String> = args.iter().filter_map(|a| a.as_str().map(str::to_owned)).collect();
    if texts.len() != args.len() {
        return no_overload();
    }
    if let Stage::Decided(decision) = &of.stage {
        return Ok(match (function, texts.as_slice()) {
            ("allowed", []) => Value::Bool(decision.allowed),
            ("reason", []) => Value::string(decision.reason.as_str()),
            ("errored", []) => Value::Bool(decision.error.is_some()),
            ("error", []) => Value::string(decision.error.clone().unwrap_or_default()),
            _ => return no_overload(),
        });
    }
    let mut next = of.clone();
    let text = |i: usize| texts.get(i).cloned().unwrap_or_default();
    match (function, texts.len(), &of.stage) {
        ("path", 1, Stage::Authorizer) => {
            next.check.path = Some(text(0));
            next.stage = Stage::Path;
        }
        ("group", 1, Stage::Authorizer) => {
            next.check.group = text(0);
            next.stage = Stage::Group;
        }
        ("serviceAccount", 2, Stage::Authorizer) => {
            for (what, problems) in [
                ("namespace", keelson_api::names::dns1123_label(&texts[0])),
                ("name", keelson_api::names::dns1123_subdomain(&texts[1])),
            ] {
                if let Some(problem) = problems.first() {
                    return Err(format!("Invalid service account {what}: {problem}"));
                }
            }
            next.check.service_account = Some((text(0), text(1)));
        }
        ("resource", 1, Stage::Group) => {
            next.check.resource = text(0);
            next.stage = Stage::Resource;
        }
        ("subresource", 1, Stage::Resource) => next.check.subresource = text(0),
        ("namespace", 1, Stage::Resource) => next.check.namespace = text(0),
        ("name", 1, Stage::Resource) => next.check.name = text(0),
        ("fieldSelector", 1, Stage::Resource) => next.check.field_selector = text(0),
        ("labelSelector", 1, Stage::Resource) => next.check.label_selector = text(0),
        _ => return no_overload(),
    }
    Ok(Value::Authorizer(Arc::new(next)))
}

/// Asks.
pub fn check(of: &Authorizer, args: &[Value], by: &dyn Decide) -> Called {
    let ([Value::String(verb)], Stage::Path | Stage::Resource) = (args, &of.stage) else {
        return no_overload();
    };
    let mut next = of.clone();
    next.check.verb = verb.to_string();
    next.stage = Stage::Decided(by.decide(&next.check));
    Ok(Value::Authorizer(Arc::new(next)))
}
