//! The rules of a schema, compiled: a tree beside the schema, with branches only where there are rules.

use super::schema::{Decl, declare};
use crate::value::{flag, items, text};
use keelson_cel::{Env, Program, Type};
use serde_json::Value;
use std::collections::BTreeMap;

/// One rule.
#[derive(Debug)]
pub struct Rule {
    pub source: String,
    pub message: String,
    /// `FieldValueInvalid`, …; empty when nothing is said.
    pub reason: String,
    /// Where the error is, below the rule's own place: `.a.b` as a path; empty for the place itself.
    pub field_path: String,
    pub optional_old_self: bool,
    /// It speaks of `oldSelf`.
    pub transition: bool,
    pub program: Result<Program, String>,
    pub message_program: Option<Program>,
}

/// A place in the schema with rules at it or below it.
#[derive(Debug)]
pub struct Node {
    pub decl: Decl,
    pub kind: String,
    pub rules: Vec<Rule>,
    pub properties: BTreeMap<String, Node>,
    pub items: Option<Box<Node>>,
    pub additional: Option<Box<Node>>,
    /// Fields of the old object belong to fields of the new one.
    pub granular: bool,
    /// Keys that tell elements of a list apart; none when they cannot be told apart.
    pub keys: Option<Vec<String>>,
}

/// Compiles the rules of a whole schema; none when it has none.
pub fn compile(schema: &Value) -> Option<Node> {
    if !has_rules(schema) {
        return None;
    }
    node(schema, declare(schema, true, "selfType")?)
}

/// Whether there are rules anywhere in a schema.
pub fn has_rules(schema: &Value) -> bool {
    let below = |v: &Value| v.is_object() && has_rules(v);
    !items(schema, "x-kubernetes-validations").is_empty()
        || schema["properties"].as_object().into_iter().flatten().any(|(_, child)| has_rules(child))
        || below(&schema["items"])
        || below(&schema["additionalProperties"])
}

fn node(schema: &Value, decl: Decl) -> Option<Node> {
    let rules: Vec<Rule> = items(schema, "x-kubernetes-validations")
        .iter()
        .filter(|rule| !text(rule, "rule").trim().is_empty())
        .map(|r| rule(r, schema, &decl))
        .collect();
    let embedded = |child: &Value| child["x-kubernetes-embedded-resource"] == true;
    let mut properties = BTreeMap::new();
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        if !has_rules(child) {
            continue;
        }
        let own = decl.property(name).cloned().or_else(|| declare(child, embedded(child), name));
        if let Some(found) = own.and_then(|own| node(child, own)) {
            properties.insert(name.clone(), found);
        }
    }
    let below = |field: &str| {
        let child = &schema[field];
        if !child.is_object() || !has_rules(child) {
            return None;
        }
        node(child, decl.element()?.clone()).map(Box::new)
    };
    let (inner, additional) = (below("items"), below("additionalProperties"));
    if rules.is_empty() && properties.is_empty() && inner.is_none() && additional.is_none() {
        return None;
    }
    let keys = items(schema, "x-kubernetes-list-map-keys");
    Some(Node {
        kind: text(schema, "type").to_owned(),
        rules,
        properties,
        items: inner,
        additional,
        granular: text(schema, "x-kubernetes-map-type") != "atomic",
        keys: (text(schema, "x-kubernetes-list-type") == "map")
            .then(|| keys.iter().filter_map(|k| k.as_str().map(str::to_owned)).collect()),
        decl,
    })
}

/// What a rule may speak of.
pub fn env(decl: &Decl, optional_old_self: bool) -> Env {
    let old = if optional_old_self { Type::optional(decl.of.clone()) } else { decl.of.clone() };
    Env::new([("self", decl.of.clone()), ("oldSelf", old)])
}

fn rule(rule: &Value, schema: &Value, decl: &Decl) -> Rule {
    let optional_old_self = flag(rule, "optionalOldSelf");
    let env = env(decl, optional_old_self);
    let source = text(rule, "rule");
    let program = env.compile(source).map_err(|e| e.to_string());
    let message = text(rule, "messageExpression");
    Rule {
        source: source.trim().to_owned(),
        message: text(rule, "message").trim().to_owned(),
        reason: text(rule, "reason").to_owned(),
        field_path: field_path(schema, text(rule, "fieldPath")).unwrap_or_default(),
        optional_old_self,
        transition: program.as_ref().is_ok_and(|p| p.expr.mentions("oldSelf")),
        program,
        message_program: if message.is_empty() { None } else { env.compile(message).ok() },
    }
}

/// `.a['b c'].d` as errors write it, `a.b c.d`; none when it leads nowhere in the schema.
pub fn field_path(schema: &Value, given: &str) -> Option<String> {
    let (mut at, mut out, mut rest) = (schema, String::new(), given.trim());
    while !rest.is_empty() {
        let (step, tail) = match rest.strip_prefix("['") {
            Some(quoted) => quoted.split_once("']")?,
            None => {
                let bare = rest.strip_prefix('.')?;
                bare.split_at(bare.find(['.', '[']).unwrap_or(bare.len()))
            }
        };
        if step.is_empty() {
            return None;
        }
        if at["properties"].is_object() {
            at = at["properties"].get(step)?;
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(step);
        } else if at["additionalProperties"].is_object() {
            at = &at["additionalProperties"];
            out.push_str(&format!("[{step}]"));
        } else {
            return None;
        }
        rest = tail;
    }
    Some(out)
}
