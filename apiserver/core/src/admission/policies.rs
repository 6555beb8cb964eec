//! Admission policies: ValidatingAdmissionPolicy, MutatingAdmissionPolicy and their bindings, and the match conditions of
//! webhooks. All of it is decided here; the server only says when.
//!
//! Order of a write: built-in changes, [`mutating`], the webhooks that change, [`validating`], the webhooks that refuse.
//! - [`environment`]: what expressions of policies may speak of, compiled once a text;
//! - [`inputs`]: the values of that for one request;
//! - [`params`]: the objects a binding names.

use super::webhooks::{Request, namespace_matches, object_matches, rule_matches};
use crate::context::View;
use crate::value::{items, text};
use keelson_api::{Cause, Resource, Status};
use serde_json::Value;
use std::sync::Arc;

pub mod conditions;
pub mod environment;
pub mod inputs;
pub mod mutating;
pub mod params;
pub mod validating;

pub use conditions::matches as conditions_match;

/// The group of policies; none of them is asked about these.
pub const GROUP: &str = "admissionregistration.k8s.io";
/// What the expressions of one policy may cost for one request.
pub const BUDGET: u64 = 10_000_000;
/// What all match conditions together may cost.
pub const CONDITIONS_BUDGET: u64 = 2_500_000;

/// A policy and the bindings that put it in force.
pub struct Bound {
    pub policy: Arc<Value>,
    pub bindings: Vec<Arc<Value>>,
}

/// The policies a request concerns that are in force, by name.
pub fn in_force(request: &Request, view: &dyn View, kind: &str) -> Vec<Bound> {
    if request.target.resource.group == GROUP || exempt(request.target.resource) {
        return vec![];
    }
    let bindings = view.list(GROUP, &format!("{kind}admissionpolicybindings"), None);
    if bindings.is_empty() {
        return vec![];
    }
    let mut policies = view.list(GROUP, &format!("{kind}admissionpolicies"), None);
    policies.sort_by(|a, b| crate::value::name(a).cmp(crate::value::name(b)));
    policies
        .into_iter()
        .filter(|policy| concerns(&policy["spec"]["matchConstraints"], request, view, true))
        .map(|policy| {
            let own = bindings.iter().filter(|b| text(b, "spec.policyName") == crate::value::name(&policy));
            let bindings = own
                .filter(|b| concerns(&b["spec"]["matchResources"], request, view, false))
                .cloned()
                .collect();
            Bound { policy, bindings }
        })
        .filter(|bound| !bound.bindings.is_empty())
        .collect()
}

/// Reviews are questions, no objects.
fn exempt(resource: &Resource) -> bool {
    matches!(resource.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io")
}

/// Whether a request is among what a policy or binding says it is about. A binding without rules leaves them to its policy.
fn concerns(matching: &Value, request: &Request, view: &dyn View, rules_needed: bool) -> bool {
    let name = request.new.or(request.old).map_or("", |o| text(o, "metadata.name"));
    let fits = |rule: &Value| {
        let names = items(rule, "resourceNames");
        rule_matches(rule, request) && (names.is_empty() || names.iter().any(|n| *n == name))
    };
    let rules = items(matching, "resourceRules");
    let included = (rules.is_empty() && !rules_needed) || rules.iter().any(fits);
    included
        && !items(matching, "excludeResourceRules").iter().any(fits)
        && namespace_matches(&matching["namespaceSelector"], request, view)
        && object_matches(&matching["objectSelector"], request)
}

/// The name a refusal speaks of.
fn shown_name<'a>(request: &Request<'a>) -> &'a str {
    if !request.target.name.is_empty() {
        return request.target.name;
    }
    let object = request.new.or(request.old);
    let name = object.map_or("", |o| text(o, "metadata.name"));
    let generated = object.map_or("", |o| text(o, "metadata.generateName"));
    [name, generated].into_iter().find(|n| !n.is_empty()).unwrap_or("Unknown")
}

/// A refusal with a code of its own.
fn refused(request: &Request, reason: &str, message: &str) -> Status {
    let (code, reason) = match reason {
        "Forbidden" => (403, "Forbidden"),
        "Unauthorized" => (401, "Unauthorized"),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    };
    let mut status = Status::forbidden(request.target.resource, shown_name(request), message);
    status.code = code;
    status.reason = reason;
    status.causes.push(Cause { message: message.to_owned(), ..Cause::default() });
    status
}
