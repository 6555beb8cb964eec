//! MutatingAdmissionPolicy: expressions that change an object, by a partial object laid over it or by a JSON patch.

use super::environment::Scope;
use super::inputs::{Inputs, Runner};
use super::params::{Problem, collect};
use super::{BUDGET, Bound, conditions, in_force, refused};
use crate::admission::webhooks::Request;
use crate::context::View;
use crate::decode;
use crate::merge;
use crate::value::{items, name, text};
use keelson_api::Status;
use keelson_cel::{Key, Value as Cel};
use serde_json::{Map, Value};

/// Changes an object as the policies in force say. A policy that wants it is asked again when others changed the object
/// after it.
///
/// # Errors
/// A policy that fails and may not.
pub fn mutate(request: &Request, object: &mut Value, view: &dyn View) -> Result<(), Status> {
    let bound = in_force(&Request { new: Some(object), ..*request }, view, "mutating");
    if bound.is_empty() {
        return Ok(());
    }
    let mut after = vec![];
    for bound in &bound {
        policy(bound, request, object, view)?;
        after.push(object.clone());
    }
    for (bound, then) in bound.iter().zip(&after) {
        if text(&bound.policy, "spec.reinvocationPolicy") == "IfNeeded" && then != object {
            policy(bound, request, object, view)?;
        }
    }
    Ok(())
}

fn policy(bound: &Bound, request: &Request, object: &mut Value, view: &dyn View) -> Result<(), Status> {
    let policy = &bound.policy;
    let may_fail = text(policy, "spec.failurePolicy") == "Ignore";
    for binding in &bound.bindings {
        let failed = |with_binding: bool, why: &str| {
            let with =
                if with_binding { format!(" with binding '{}'", name(binding)) } else { String::new() };
            let message = format!("policy '{}'{with} denied request: {why}", name(policy));
            let mut status = refused(request, "", &message);
            status.message = message;
            status.code = 403;
            status
        };
        let params = match collect(policy, binding, request, view) {
            Ok(params) => params,
            Err(_) if may_fail => continue,
            Err(Problem::Policy(why)) => {
                return Err(failed(false, &format!("failed to configure policy: {why}")));
            }
            Err(Problem::Binding(why)) => {
                return Err(failed(true, &format!("failed to configure binding: {why}")));
            }
        };
        for param in params {
            let before = object.clone();
            match apply(policy, &param, request, &before, view) {
                Ok(changed) => *object = changed,
                Err(_) if may_fail => {}
                Err(why) => return Err(failed(true, &why)),
            }
        }
    }
    Ok(())
}

/// The object after all mutations of a policy; each sees what those before it made.
fn apply(
    policy: &Value,
    param: &Value,
    request: &Request,
    object: &Value,
    view: &dyn View,
) -> Result<Value, String> {
    let spec = &policy["spec"];
    let has_params = !spec["paramKind"].is_null();
    let scope = Scope { params: has_params, authorizer: true, patches: true };
    let mut object = object.clone();
    {
        let shown = Request { new: Some(&object), ..*request };
        if !conditions::matches(spec, &Inputs::new(&shown, view), has_params.then_some(param))? {
            return Ok(object);
        }
    }
    for mutation in items(spec, "mutations") {
        let shown = object.clone();
        let shown = Request { new: Some(&shown), ..*request };
        let inputs = Inputs::new(&shown, view);
        let runner = Runner::new(&inputs, spec, param, scope, BUDGET);
        object = match text(mutation, "patchType") {
            "JSONPatch" => {
                let value = runner.run(text(mutation, "jsonPatch.expression"))?;
                patched(&object, &value)?
            }
            _ => {
                let value = runner.run(text(mutation, "applyConfiguration.expression"))?;
                merged(request, &object, &value)?
            }
        };
    }
    Ok(object)
}

/// Lays a partial object over the object, by the types' own rules of merging.
fn merged(request: &Request, object: &Value, given: &Cel) -> Result<Value, String> {
    let mut over = given.to_json().map_err(|of| format!("invalid ApplyConfiguration: {of} is no data"))?;
    let Some(map) = over.as_object_mut() else {
        return Err("invalid ApplyConfiguration: must be an object".into());
    };
    for field in ["apiVersion", "kind"] {
        if map.get(field).is_some_and(|v| *v != object[field]) {
            return Err(format!("error applying patch: invalid ApplyConfiguration: may not mutate {field}"));
        }
    }
    let over = without_nulls(over);
    let target = request.target;
    let (table, shape) = decode::types_for(&target).map_err(|status| status.message)?;
    Ok(merge::merge(table, &shape, object, &over))
}

/// A field that is null says nothing.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v)));
            Value::Object(kept.collect::<Map<_, _>>())
        }
        other => other,
    }
}

/// Runs the operations of a list of `JSONPatch`.
fn patched(object: &Value, given: &Cel) -> Result<Value, String> {
    let Cel::List(list) = given else { return Err("JSON Patch: the expression gave no list".into()) };
    let mut object = object.clone();
    for operation in &list.items {
        let Cel::Map(map) = operation else { return Err("JSON Patch: an element is no JSONPatch".into()) };
        let field = |name: &str| map.entries.get(&Key::text(name));
        let word = |name: &str| field(name).and_then(Cel::as_str).unwrap_or("").to_owned();
        let (kind, path) = (word("op"), word("path"));
        let mut one = Map::new();
        one.insert("op".into(), kind.clone().into());
        one.insert("path".into(), path.clone().into());
        if field("from").is_some() {
            one.insert("from".into(), word("from").into());
        }
        if let Some(value) = field("value") {
            let value =
                value.to_json().map_err(|of| format!("JSON Patch: a value of type {of} is no data"))?;
            one.insert("value".into(), value);
        } else if ["add", "replace", "test"].contains(&kind.as_str()) {
            one.insert("value".into(), Value::Null);
        }
        let parsed: json_patch::PatchOperation = serde_json::from_value(Value::Object(one))
            .map_err(|_| format!("JSON Patch: unexpected kind: {kind}"))?;
        json_patch::patch(&mut object, &[parsed]).map_err(|_| problem(&kind, &path))?;
    }
    Ok(object)
}

/// An operation that does not apply, in the words of upstream's library.
fn problem(kind: &str, path: &str) -> String {
    match kind {
        "test" => format!("JSON Patch: testing value {path} failed: test failed"),
        "replace" => {
            format!("JSON Patch: replace operation does not apply: doc is missing key: {path}: missing value")
        }
        _ => format!(
            "JSON Patch: {kind} operation does not apply: doc is missing path: \"{path}\": missing value"
        ),
    }
}
