//! ValidatingAdmissionPolicy: expressions that a request has to satisfy.

use super::environment::Scope;
use super::inputs::{EXHAUSTED, Inputs, Runner};
use super::params::{Problem, collect};
use super::{BUDGET, Bound, conditions, in_force, refused};
use crate::admission::webhooks::Request;
use crate::context::View;
use crate::value::{items, name, text};
use keelson_api::Status;
use keelson_cel::Value as Cel;
use serde_json::{Value, json};

/// The longest value of an audit annotation, bytes.
const ANNOTATION_BYTES: usize = 10 * 1024;

/// What policies have to say about a request they allow.
#[derive(Debug, Default, PartialEq)]
pub struct Admitted {
    pub warnings: Vec<String>,
    /// Annotations of the audit event.
    pub audit: Vec<(String, String)>,
}

/// One expression that is not satisfied, or could not be evaluated.
struct Failure {
    /// Which validation.
    index: usize,
    reason: String,
    message: String,
}

/// Asks the policies in force.
///
/// # Errors
/// The first refusal.
pub fn validate(request: &Request, view: &dyn View) -> Result<Admitted, Status> {
    let bound = in_force(request, view, "validating");
    if bound.is_empty() {
        return Ok(Admitted::default());
    }
    let inputs = Inputs::new(request, view);
    let (mut admitted, mut denied) = (Admitted::default(), None);
    for bound in &bound {
        policy(bound, request, view, &inputs, &mut admitted, &mut denied);
    }
    match denied {
        Some(status) => Err(status),
        None => Ok(admitted),
    }
}

fn policy(
    bound: &Bound,
    request: &Request,
    view: &dyn View,
    inputs: &Inputs,
    admitted: &mut Admitted,
    denied: &mut Option<Status>,
) {
    let policy = &bound.policy;
    let may_fail = text(policy, "spec.failurePolicy") == "Ignore";
    let mut annotations: Vec<(String, Vec<String>)> = vec![];
    for binding in &bound.bindings {
        let with = format!("ValidatingAdmissionPolicy '{}' with binding '{}'", name(policy), name(binding));
        let mut deny = |who: &str, reason: &str, message: &str| {
            let message = format!("{who} denied request: {message}");
            denied.get_or_insert_with(|| refused(request, reason, &message));
        };
        let params = match collect(policy, binding, request, view) {
            Ok(params) => params,
            Err(_) if may_fail => continue,
            Err(Problem::Policy(why)) => {
                let who = format!("ValidatingAdmissionPolicy '{}'", name(policy));
                deny(&who, "", &format!("failed to configure policy: {why}"));
                break;
            }
            Err(Problem::Binding(why)) => {
                deny(&with, "", &format!("failed to configure binding: {why}"));
                continue;
            }
        };
        for param in params {
            let (failures, noted) = match evaluate(policy, &param, inputs) {
                Ok(found) => found,
                Err(_) if may_fail => continue,
                Err(why) => (vec![Failure { index: 0, reason: String::new(), message: why }], vec![]),
            };
            for failure in &failures {
                for action in items(binding, "spec.validationActions").iter().filter_map(Value::as_str) {
                    match action {
                        "Deny" => deny(&with, &failure.reason, &failure.message),
                        "Warn" => admitted
                            .warnings
                            .push(format!("Validation failed for {with}: {}", failure.message)),
                        _ => admitted.audit.push(failure_annotation(policy, binding, failure)),
                    }
                }
            }
            for (key, value) in noted {
                match value {
                    Ok(value) => note(&mut annotations, key, value),
                    Err(_) if may_fail => {}
                    Err(why) => deny(&with, "", &why),
                }
            }
        }
    }
    let published =
        annotations.into_iter().map(|(key, values)| (format!("{}/{key}", name(policy)), values.join(", ")));
    admitted.audit.extend(published);
}

fn note(annotations: &mut Vec<(String, Vec<String>)>, key: String, mut value: String) {
    if value.len() > ANNOTATION_BYTES {
        let end = (0..=ANNOTATION_BYTES).rev().find(|i| value.is_char_boundary(*i)).unwrap_or(0);
        value.truncate(end);
    }
    match annotations.iter_mut().find(|(known, _)| *known == key) {
        Some((_, values)) if values.contains(&value) => {}
        Some((_, values)) => values.push(value),
        None => annotations.push((key, vec![value])),
    }
}

fn failure_annotation(policy: &Value, binding: &Value, failure: &Failure) -> (String, String) {
    let value = json!([{
        "message": failure.message, "policy": name(policy), "binding": name(binding),
        "expressionIndex": failure.index, "validationActions": binding["spec"]["validationActions"],
    }]);
    ("validation.policy.admission.k8s.io/validation_failure".into(), value.to_string())
}

type Noted = Vec<(String, Result<String, String>)>;

/// Runs the expressions of a policy for one parameter object: what fails, and what is noted.
fn evaluate(policy: &Value, param: &Value, inputs: &Inputs) -> Result<(Vec<Failure>, Noted), String> {
    let spec = &policy["spec"];
    let may_fail = text(spec, "failurePolicy") == "Ignore";
    let has_params = !spec["paramKind"].is_null();
    if !conditions::matches(spec, inputs, has_params.then_some(param))? {
        return Ok((vec![], vec![]));
    }
    let scope = Scope { params: has_params, authorizer: true, patches: false };
    let runner = Runner::new(inputs, spec, param, scope, BUDGET);
    let mut failures = vec![];
    for (index, validation) in items(spec, "validations").iter().enumerate() {
        let reason = text(validation, "reason").to_owned();
        match runner.run(text(validation, "expression")) {
            Ok(value) if value.is_true() => {}
            Ok(_) => failures.push(Failure { index, reason, message: message(validation, &runner) }),
            Err(_) if may_fail => {}
            Err(message) => {
                let last = message == EXHAUSTED;
                failures.push(Failure { index, reason: String::new(), message });
                if last {
                    break;
                }
            }
        }
    }
    // Annotations have a budget of their own.
    let runner = Runner::new(inputs, spec, param, scope, BUDGET);
    let mut noted = vec![];
    for annotation in items(spec, "auditAnnotations") {
        let source = text(annotation, "valueExpression");
        let value = match runner.run(source) {
            Ok(Cel::String(value)) if !value.trim().is_empty() => Ok(value.trim().to_owned()),
            Ok(Cel::String(_) | Cel::Null) => continue,
            Ok(other) => Err(format!(
                "valueExpression '{source}' resulted in unsupported return type: {}. Return type must be either string or null.",
                other.type_name()
            )),
            Err(why) => Err(why),
        };
        noted.push((text(annotation, "key").to_owned(), value));
    }
    Ok((failures, noted))
}

/// What is said of a validation that is not satisfied.
fn message(validation: &Value, runner: &Runner) -> String {
    let expression = text(validation, "messageExpression");
    if !expression.is_empty()
        && let Ok(Cel::String(given)) = runner.run(expression)
    {
        let given = given.trim();
        if !given.is_empty() && given.len() <= crate::cel::MESSAGE_BYTES && !given.contains('\n') {
            return given.to_owned();
        }
    }
    match text(validation, "message").trim() {
        "" => format!("failed expression: {}", text(validation, "expression").trim()),
        given => given.to_owned(),
    }
}
