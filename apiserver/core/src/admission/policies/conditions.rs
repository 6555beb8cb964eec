//! Match conditions: whether a policy or a webhook is about a request after all.

use super::CONDITIONS_BUDGET;
use super::environment::Scope;
use super::inputs::{Inputs, Runner};
use crate::value::{items, text};
use keelson_cel::Value as Cel;
use serde_json::Value;

/// Whether all conditions are true. One that is false settles it, whatever others fail.
///
/// # Errors
/// Upstream's sentences of the conditions that could not be evaluated.
pub fn matches(owner: &Value, inputs: &Inputs, params: Option<&Value>) -> Result<bool, String> {
    let conditions = items(owner, "matchConditions");
    if conditions.is_empty() {
        return Ok(true);
    }
    let scope = Scope { params: params.is_some(), authorizer: true, patches: false };
    let runner = Runner::bare(inputs, scope, params.unwrap_or(&Value::Null), CONDITIONS_BUDGET);
    let mut errors = vec![];
    for condition in conditions {
        match runner.run(text(condition, "expression")) {
            Ok(Cel::Bool(true)) => {}
            Ok(Cel::Bool(false)) => return Ok(false),
            Ok(other) => errors.push(format!("must evaluate to bool but got {}", other.type_name())),
            Err(why) => errors.push(why),
        }
    }
    match errors.as_slice() {
        [] => Ok(true),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}
