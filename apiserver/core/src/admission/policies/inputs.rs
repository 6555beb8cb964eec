//! The values expressions speak of, for one request: made when they are first asked for, and once.

use super::environment::{Scope, stored};
use crate::admission::webhooks::Request;
use crate::authz::{Attributes, authorize};
use crate::context::{UserInfo, View};
use crate::value::{items, text};
use keelson_cel::eval::EvalError;
use keelson_cel::{Authorizer, Check, Decide, Decision, Key, Map, PER_CALL_LIMIT, Value as Cel};
use serde_json::{Value, json};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a request looks like to expressions.
pub struct Inputs<'a> {
    request: &'a Request<'a>,
    view: &'a dyn View,
    object: OnceCell<Cel>,
    old: OnceCell<Cel>,
    asked: OnceCell<Cel>,
    namespace: OnceCell<Cel>,
}

impl<'a> Inputs<'a> {
    pub fn new(request: &'a Request<'a>, view: &'a dyn View) -> Inputs<'a> {
        Inputs {
            request,
            view,
            object: OnceCell::new(),
            old: OnceCell::new(),
            asked: OnceCell::new(),
            namespace: OnceCell::new(),
        }
    }

    fn namespace(&self) -> Cel {
        let target = &self.request.target;
        let is_namespace = target.resource.group.is_empty() && target.resource.kind == "Namespace";
        if target.namespace.is_empty() || is_namespace {
            return Cel::Null;
        }
        let Some(found) = self.view.get("", "namespaces", "", target.namespace) else { return Cel::Null };
        let mut metadata = found["metadata"].clone();
        if let Some(map) = metadata.as_object_mut() {
            map.retain(|key, _| !["managedFields", "ownerReferences", "uid"].contains(&key.as_str()));
        }
        let mut value =
            Cel::from_json(&json!({"metadata": metadata, "spec": found["spec"], "status": found["status"]}));
        for field in ["creationTimestamp", "deletionTimestamp"] {
            let at = text(&found, &format!("metadata.{field}")).to_owned();
            if let Some(at) = keelson_cel::library::time::timestamp(&at) {
                replace(&mut value, &["metadata", field], Cel::Timestamp(at));
            }
        }
        value
    }

    fn get(&self, name: &str) -> Option<Cel> {
        let json = |object: Option<&Value>| object.map_or(Cel::Null, Cel::from_json);
        Some(match name {
            "object" => self.object.get_or_init(|| json(self.request.new)).clone(),
            "oldObject" => self.old.get_or_init(|| json(self.request.old)).clone(),
            "request" => self.asked.get_or_init(|| Cel::from_json(&admission_request(self.request))).clone(),
            "namespaceObject" => self.namespace.get_or_init(|| self.namespace()).clone(),
            "authorizer" => Cel::Authorizer(Arc::new(Authorizer::new())),
            "authorizer.requestResource" => Cel::Authorizer(Arc::new(self.own_check())),
            _ => return None,
        })
    }

    /// The question whether the user may do what the request does.
    fn own_check(&self) -> Authorizer {
        let target = &self.request.target;
        let mut authorizer = Authorizer::new();
        authorizer.stage = keelson_cel::authorizer::Stage::Resource;
        authorizer.check.group = target.resource.group.clone();
        authorizer.check.resource = target.resource.plural.clone();
        authorizer.check.subresource = target.subresource.unwrap_or("").to_owned();
        authorizer.check.namespace = target.namespace.to_owned();
        let object = self.request.new.or(self.request.old);
        authorizer.check.name = object.map_or(target.name, |o| text(o, "metadata.name")).to_owned();
        authorizer
    }
}

/// Replaces a value inside maps.
fn replace(value: &mut Cel, path: &[&str], new: Cel) {
    let Some((first, rest)) = path.split_first() else {
        *value = new;
        return;
    };
    if let Cel::Map(map) = value
        && let Some(child) = Arc::make_mut(map).entries.get_mut(&Key::text(first))
    {
        replace(child, rest, new);
    }
}

/// The variable `request`: what a webhook is sent, without the objects.
fn admission_request(request: &Request) -> Value {
    let mut out = crate::admission::webhooks::review(request, "")["request"].take();
    if let Some(map) = out.as_object_mut() {
        for field in ["uid", "object", "oldObject"] {
            map.remove(field);
        }
        for field in ["subResource", "requestSubResource", "namespace"] {
            map.entry(field).or_insert("".into());
        }
    }
    crate::value::default(&mut out["userInfo"], "uid", "");
    crate::value::default(&mut out["userInfo"], "extra", json!({}));
    out
}

/// The authorizer of the request's user.
pub struct Permissions<'a> {
    pub user: &'a UserInfo,
    pub view: &'a dyn View,
}

impl Decide for Permissions<'_> {
    fn decide(&self, check: &Check) -> Decision {
        let user = match &check.service_account {
            None => self.user.clone(),
            Some((namespace, name)) => UserInfo {
                name: format!("system:serviceaccount:{namespace}:{name}"),
                groups: vec![
                    "system:serviceaccounts".into(),
                    format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated".into(),
                ],
                ..UserInfo::default()
            },
        };
        let attributes = Attributes {
            user,
            verb: check.verb.clone(),
            group: check.group.clone(),
            version: "*".into(),
            resource: check.resource.clone(),
            subresource: check.subresource.clone(),
            namespace: check.namespace.clone(),
            name: check.name.clone(),
            path: check.path.clone().unwrap_or_default(),
            is_resource: check.path.is_none(),
        };
        match authorize(&attributes, self.view) {
            crate::authz::Decision::Allow { reason } => Decision { allowed: true, reason, error: None },
            crate::authz::Decision::Deny { reason } => Decision { allowed: false, reason, error: None },
        }
    }
}

/// What ended all expressions of a policy.
pub const EXHAUSTED: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// Runs the expressions of one policy for one parameter object, within one budget.
pub struct Runner<'a> {
    inputs: &'a Inputs<'a>,
    params: Option<Cel>,
    variables: &'a [Value],
    names: Vec<&'a str>,
    scope: Scope,
    values: RefCell<BTreeMap<String, Result<Cel, EvalError>>>,
    budget: Cell<u64>,
}

impl<'a> Runner<'a> {
    /// `params` is null where the policy has parameters and the binding names none.
    pub fn new(
        inputs: &'a Inputs<'a>,
        spec: &'a Value,
        params: &Value,
        scope: Scope,
        budget: u64,
    ) -> Runner<'a> {
        let variables = items(spec, "variables");
        Runner {
            inputs,
            params: scope.params.then(|| Cel::from_json(params)),
            variables,
            names: variables.iter().map(|v| text(v, "name")).collect(),
            scope,
            values: RefCell::new(BTreeMap::new()),
            budget: Cell::new(budget),
        }
    }

    /// A runner of expressions that no policy belongs to.
    pub fn bare(inputs: &'a Inputs<'a>, scope: Scope, params: &Value, budget: u64) -> Runner<'a> {
        static NOTHING: Value = Value::Null;
        Runner::new(inputs, &NOTHING, params, scope, budget)
    }

    fn lookup(&self, name: &str) -> Option<Result<Cel, EvalError>> {
        if name == "params" {
            return self.params.clone().map(Ok);
        }
        if let Some(variable) = name.strip_prefix("variables.") {
            return Some(self.variable(variable));
        }
        if name == "variables" {
            let known = self.names.iter().filter_map(|n| Some((Key::text(n), self.variable(n).ok()?)));
            return Some(Ok(Cel::Map(Arc::new(Map { entries: known.collect(), of: None }))));
        }
        self.inputs.get(name).map(Ok)
    }

    fn variable(&self, name: &str) -> Result<Cel, EvalError> {
        if let Some(known) = self.values.borrow().get(name) {
            return known.clone();
        }
        let at = self.names.iter().position(|n| *n == name);
        let value = match at {
            None => Err(EvalError::Failed(format!("no such key: {name}"))),
            // Only what is declared before it may be read: this ends.
            Some(at) => self
                .evaluate(text(&self.variables[at], "expression"), self.scope, &self.names[..at])
                .map_err(|e| match e {
                    EvalError::Failed(why) => {
                        EvalError::Failed(format!("composited variable {name:?} fails to evaluate: {why}"))
                    }
                    other => other,
                }),
        };
        self.values.borrow_mut().insert(name.to_owned(), value.clone());
        value
    }

    fn evaluate(&self, source: &str, scope: Scope, names: &[&str]) -> Result<Cel, EvalError> {
        let program = stored(source, scope, names).map_err(EvalError::Failed)?;
        let decide = Permissions { user: self.inputs.request.user, view: self.inputs.view };
        let (result, cost) = program.run_with(&|name: &str| self.lookup(name), &decide, PER_CALL_LIMIT);
        let left = self.budget.get();
        if cost > left {
            self.budget.set(0);
            return Err(EvalError::Failed(EXHAUSTED.to_owned()));
        }
        self.budget.set(left - cost);
        result
    }

    /// Runs an expression of the policy.
    ///
    /// # Errors
    /// Upstream's sentence.
    pub fn run(&self, source: &str) -> Result<Cel, String> {
        let source = source.trim();
        self.evaluate(source, self.scope, &self.names).map_err(|why| match &why {
            EvalError::Failed(text) if text == EXHAUSTED => EXHAUSTED.to_owned(),
            why => format!("expression '{source}' resulted in error: {why}"),
        })
    }

    /// Whether nothing is left to spend.
    pub fn exhausted(&self) -> bool {
        self.budget.get() == 0
    }
}
