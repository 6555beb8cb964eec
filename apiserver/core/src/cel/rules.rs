//! Runs the rules of a custom resource's schema on an object.
//!
//! Order: a place's own rules, then the places below it. Transition rules run where there is an old value that belongs to
//! the new one: fields by name, elements of a list by its keys. What did not change is not held against an update: an
//! error about an unchanged value is a warning (upstream calls this ratcheting).

use super::compiled::{Node, Rule};
use super::{MESSAGE_BYTES, RUNTIME_BUDGET};
use keelson_api::field::quote;
use keelson_api::{ErrorList, FieldError, Path};
use keelson_cel::eval::EvalError;
use keelson_cel::{PER_CALL_LIMIT, Value as Cel};
use serde_json::Value;
use std::sync::Arc;

const EXHAUSTED: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

struct Run<'a> {
    errors: &'a mut ErrorList,
    warnings: Vec<String>,
    budget: u64,
    /// Nothing more is run.
    stopped: bool,
}

/// A value, the old one that belongs to it, and whether nothing changed here.
#[derive(Clone, Copy)]
struct Place<'a> {
    new: &'a Value,
    old: Option<&'a Value>,
    unchanged: bool,
}

/// Runs all rules; returns warnings.
pub fn run(node: &Node, object: &Value, old: Option<&Value>, errors: &mut ErrorList) -> Vec<String> {
    let mut run = Run { errors, warnings: vec![], budget: RUNTIME_BUDGET, stopped: false };
    let place = Place { new: object, old, unchanged: old == Some(object) };
    run.node(node, place, &Path::root());
    run.warnings
}

impl Run<'_> {
    fn node(&mut self, node: &Node, place: Place, path: &Path) {
        if self.stopped || place.new.is_null() {
            return;
        }
        self.rules(node, place, path);
        match place.new {
            Value::Array(list) => self.list(node, list, place, path),
            Value::Object(map) => {
                // In the order of names, so that a request is always answered alike.
                for (key, child) in &node.properties {
                    if let Some(new) = map.get(key) {
                        self.member(node, child, key, new, place, &path.child(key));
                    }
                }
                if let Some(child) = &node.additional {
                    for (key, new) in map.iter().filter(|(key, _)| !node.properties.contains_key(*key)) {
                        self.member(node, child, key, new, place, &path.key(key));
                    }
                }
            }
            _ => {}
        }
    }

    fn member(&mut self, node: &Node, child: &Node, key: &str, new: &Value, place: Place, path: &Path) {
        let old = place.old.filter(|_| node.granular).and_then(|old| old.get(key));
        let unchanged = if node.granular { old == Some(new) } else { place.unchanged };
        self.node(child, Place { new, old, unchanged }, path);
    }

    fn list(&mut self, node: &Node, list: &[Value], place: Place, path: &Path) {
        let Some(child) = &node.items else { return };
        for (i, new) in list.iter().enumerate() {
            let old = node.keys.as_ref().and_then(|keys| {
                let same = |other: &&Value| keys.iter().all(|key| other[key.as_str()] == new[key.as_str()]);
                place.old?.as_array()?.iter().find(same)
            });
            let unchanged = if node.keys.is_some() { old == Some(new) } else { place.unchanged };
            self.node(child, Place { new, old, unchanged }, &path.index(i));
        }
    }

    fn rules(&mut self, node: &Node, place: Place, path: &Path) {
        if node.rules.is_empty() {
            return;
        }
        let old = place.old.filter(|old| !old.is_null());
        let this = node.decl.value(place.new);
        let before =
            if node.rules.iter().any(|r| r.transition) { old.map(|old| node.decl.value(old)) } else { None };
        for rule in &node.rules {
            if self.stopped {
                return;
            }
            if rule.transition && old.is_none() && !rule.optional_old_self {
                continue;
            }
            self.rule(rule, node, place, &this, before.as_ref(), path);
        }
    }

    /// Runs one program within the budget; none when that ended everything.
    fn program(
        &mut self,
        program: &keelson_cel::Program,
        rule: &Rule,
        this: &Cel,
        old: Option<&Cel>,
    ) -> Outcome {
        let variables = |name: &str| match name {
            "self" => Some(Ok(this.clone())),
            "oldSelf" if rule.optional_old_self => Some(Ok(Cel::Optional(old.cloned().map(Arc::new)))),
            "oldSelf" => old.cloned().map(Ok),
            _ => None,
        };
        let (result, cost) = program.run(&variables, PER_CALL_LIMIT);
        if cost > self.budget {
            self.stopped = true;
            return Outcome::Exhausted;
        }
        self.budget -= cost;
        match result {
            Ok(value) => Outcome::Value(value),
            Err(error) => Outcome::Error(error),
        }
    }

    fn rule(&mut self, rule: &Rule, node: &Node, place: Place, this: &Cel, old: Option<&Cel>, path: &Path) {
        let said = if rule.message.is_empty() { &rule.source } else { &rule.message };
        let mut typed =
            |detail: String| self.errors.push(FieldError::invalid(path, node.kind.as_str(), &detail));
        let program = match &rule.program {
            Ok(program) => program,
            Err(why) => return typed(format!("rule compile error: compilation failed: {why}")),
        };
        match self.program(program, rule, this, old) {
            Outcome::Exhausted => {
                self.errors.push(FieldError::invalid(path, node.kind.as_str(), EXHAUSTED));
            }
            Outcome::Error(error) => {
                let detail = match &error {
                    EvalError::OverBudget => {
                        self.stopped = true;
                        format!(
                            "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {said}"
                        )
                    }
                    EvalError::Failed(why) if why.starts_with("no such overload") => format!(
                        "'{error}': call arguments did not match a supported operator, function or macro signature for rule: {said}"
                    ),
                    EvalError::Failed(_) => format!("{error} evaluating rule: {said}"),
                };
                self.errors.push(FieldError::invalid(path, node.kind.as_str(), &detail));
            }
            Outcome::Value(value) if value.is_true() => {}
            Outcome::Value(_) => self.broken(rule, node, place, this, old, path),
        }
    }

    /// Says that a rule is broken.
    fn broken(&mut self, rule: &Rule, node: &Node, place: Place, this: &Cel, old: Option<&Cel>, path: &Path) {
        let at = if rule.field_path.is_empty() { path.clone() } else { path.child(&rule.field_path) };
        let given = rule.message_program.as_ref().map(|program| self.program(program, rule, this, old));
        let detail = match given {
            Some(Outcome::Exhausted) => {
                let detail = "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run";
                return self.say(rule, place, FieldError::invalid(&at, node.kind.as_str(), detail));
            }
            Some(Outcome::Error(EvalError::OverBudget)) => {
                self.stopped = true;
                let shown = quote(&rule.source);
                let detail = format!(
                    "no further validation rules will be run due to call cost exceeds limit for messageExpression: {shown}"
                );
                return self.say(rule, place, FieldError::invalid(&at, node.kind.as_str(), &detail));
            }
            Some(Outcome::Value(Cel::String(text))) => usable(&text),
            _ => None,
        };
        let detail = detail.unwrap_or_else(|| {
            if rule.message.is_empty() {
                format!("failed rule: {}", rule.source)
            } else {
                rule.message.clone()
            }
        });
        let error = match (rule.reason.as_str(), place.new) {
            ("FieldValueForbidden", _) => FieldError::forbidden(&at, &detail),
            ("FieldValueRequired", _) => FieldError::required(&at, &detail),
            ("FieldValueDuplicate", Value::Object(_) | Value::Array(_)) => {
                FieldError { reason: "FieldValueDuplicate", path: at, message: "Duplicate value".into() }
            }
            ("FieldValueDuplicate", value) => FieldError::duplicate(&at, value.clone()),
            // Whole objects are not repeated.
            (_, Value::Object(_) | Value::Array(_)) => {
                let message = format!("Invalid value: {detail}");
                FieldError { reason: "FieldValueInvalid", path: at, message }
            }
            (_, value) => FieldError::invalid(&at, value.clone(), &detail),
        };
        self.say(rule, place, error);
    }

    fn say(&mut self, rule: &Rule, place: Place, error: FieldError) {
        if place.unchanged && !rule.transition {
            self.warnings.push(error.to_string());
        } else {
            self.errors.push(error);
        }
    }
}

enum Outcome {
    Value(Cel),
    Error(EvalError),
    Exhausted,
}

/// A message that an expression gave, when it can be one.
fn usable(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty() && text.len() <= MESSAGE_BYTES && !text.contains('\n')).then(|| text.to_owned())
}
