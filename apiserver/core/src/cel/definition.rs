//! Whether the rules of a definition can be accepted: they compile, say a message, and cannot cost too much.

use super::compiled::{env, field_path, has_rules};
use super::schema::{Decl, cardinality, declare};
use super::{RULE_ESTIMATE, SCHEMA_ESTIMATE};
use crate::value::{flag, items, text};
use keelson_api::field::quote;
use keelson_api::{ErrorList, FieldError, Path};
use keelson_cel::{Program, Type};
use serde_json::Value;

const CONTRIBUTED: &str =
    "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
/// So many of the dearest rules are named when all together are too dear.
const NAMED: usize = 4;

struct Checker<'a> {
    errors: &'a mut ErrorList,
    total: u64,
    dearest: Vec<(u64, Path)>,
}

/// A place in a schema.
#[derive(Clone)]
struct Place {
    path: Path,
    decl: Decl,
    /// How often it can occur; none when nothing bounds that.
    times: Option<u64>,
    /// The place above which has no old value for what is in it.
    uncorrelatable: Option<Path>,
}

/// Checks the rules of a schema that is structural.
pub fn check(schema: &Value, path: &Path, errors: &mut ErrorList) {
    if !has_rules(schema) {
        return;
    }
    let Some(decl) = declare(schema, true, "selfType") else { return };
    let mut checker = Checker { errors, total: 0, dearest: vec![] };
    let place = Place { path: path.clone(), decl, times: Some(1), uncorrelatable: None };
    checker.place(schema, &place);
    if checker.total > SCHEMA_ESTIMATE {
        let Checker { errors, total, mut dearest, .. } = checker;
        dearest.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        for (_, path) in dearest.iter().take(NAMED) {
            errors.push(FieldError::forbidden(path, CONTRIBUTED));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.push(FieldError::forbidden(path, &too_dear(what, total, SCHEMA_ESTIMATE)));
    }
}

fn too_dear(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

impl Checker<'_> {
    fn place(&mut self, schema: &Value, place: &Place) {
        let multiplied = |most: &Value| place.times.and_then(|n| Some(n.saturating_mul(most.as_u64()?)));
        let within =
            |keeps: bool| place.uncorrelatable.clone().or_else(|| (!keeps).then(|| place.path.clone()));
        let extra = &schema["additionalProperties"];
        if let Some(decl) = place.decl.element().filter(|_| extra.is_object() && has_rules(extra)) {
            let below = Place {
                path: place.path.child("additionalProperties"),
                decl: decl.clone(),
                times: multiplied(&schema["maxProperties"]),
                uncorrelatable: place.uncorrelatable.clone(),
            };
            self.place(extra, &below);
        }
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            let embedded = child["x-kubernetes-embedded-resource"] == true;
            let own = place.decl.property(name).cloned().or_else(|| declare(child, embedded, name));
            let Some(decl) = own.filter(|_| has_rules(child)) else { continue };
            let below = Place {
                path: place.path.child("properties").key(name),
                decl,
                times: place.times,
                uncorrelatable: within(text(schema, "x-kubernetes-map-type") != "atomic"),
            };
            self.place(child, &below);
        }
        let inner = &schema["items"];
        if let Some(decl) = place.decl.element().filter(|_| inner.is_object() && has_rules(inner)) {
            let below = Place {
                path: place.path.child("items"),
                decl: decl.clone(),
                times: multiplied(&schema["maxItems"]),
                uncorrelatable: within(text(schema, "x-kubernetes-list-type") == "map"),
            };
            self.place(inner, &below);
        }
        for (i, rule) in items(schema, "x-kubernetes-validations").iter().enumerate() {
            let path = place.path.child("x-kubernetes-validations").index(i);
            self.rule(rule, schema, place, &path);
        }
    }

    fn observe(&mut self, path: &Path, cost: u64) {
        self.total = self.total.saturating_add(cost);
        if cost > RULE_ESTIMATE / 10 {
            self.dearest.push((cost, path.clone()));
        }
    }

    fn cost(&mut self, program: &Program, place: &Place, what: &str, path: &Path, times: bool) {
        let mut cost = program.estimate(&place.decl).max;
        if times {
            let times = place.times.unwrap_or_else(|| cardinality(place.decl.least_bytes));
            cost = cost.saturating_mul(times);
        }
        if cost > RULE_ESTIMATE {
            self.errors.push(FieldError::forbidden(path, &too_dear(what, cost, RULE_ESTIMATE)));
        }
        self.observe(path, cost);
    }

    fn rule(&mut self, rule: &Value, schema: &Value, place: &Place, path: &Path) {
        let source = text(rule, "rule");
        if source.trim().is_empty() {
            return;
        }
        let given = text(rule, "fieldPath");
        if field_path(schema, given).is_none() {
            let detail = "fieldPath must be a valid path";
            self.errors.push(FieldError::invalid(&path.child("fieldPath"), given, detail));
        }
        let optional = flag(rule, "optionalOldSelf");
        let env = env(&place.decl, optional);
        let at = path.child("rule");
        let wrong = |at: &Path, detail: &str| FieldError::invalid_shown(at, &shown(rule), detail);
        let program = match env.compile(source) {
            Ok(program) => program,
            Err(why) => {
                self.errors.push(wrong(&at, &format!("compilation failed: {why}")));
                return;
            }
        };
        if *program.output() != Type::Bool {
            self.errors.push(wrong(&at, "cel expression must evaluate to a bool"));
            return;
        }
        self.cost(&program, place, "estimated rule cost", &at, true);
        let message = text(rule, "messageExpression");
        let at_message = path.child("messageExpression");
        if !message.trim().is_empty() {
            match env.compile(message) {
                Err(why) => {
                    let detail = format!("messageExpression compilation failed: {why}");
                    self.errors.push(wrong(&at_message, &detail));
                }
                Ok(found) if *found.output() != Type::String => {
                    self.errors.push(wrong(&at_message, "messageExpression must evaluate to a string"));
                }
                Ok(found) => {
                    self.cost(&found, place, "estimated messageExpression cost", &at_message, false);
                }
            }
        }
        if program.expr.mentions("oldSelf") {
            if let Some(above) = &place.uncorrelatable {
                let detail = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {above}"
                );
                self.errors.push(FieldError::invalid(&at, source, &detail));
            }
        } else if !rule["optionalOldSelf"].is_null() {
            let detail = "may not be set if oldSelf is not used in rule";
            self.errors.push(FieldError::invalid(&path.child("optionalOldSelf"), optional, detail));
        }
    }
}

/// Text as Go's JSON writes it.
fn json_text(text: &str) -> String {
    let plain = Value::from(text).to_string();
    plain.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// A rule as upstream's type prints it.
fn shown(rule: &Value) -> String {
    let optional = |field: &str| match &rule[field] {
        Value::Null => "null".to_owned(),
        Value::String(s) => quote(s),
        other => other.to_string(),
    };
    format!(
        "{{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{},\"FieldPath\":{},\"OptionalOldSelf\":{}}}",
        json_text(text(rule, "rule")),
        json_text(text(rule, "message")),
        json_text(text(rule, "messageExpression")),
        optional("reason"),
        json_text(text(rule, "fieldPath")),
        optional("optionalOldSelf"),
    )
}
