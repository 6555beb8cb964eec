//! Running: a walk over the tree that counts what it costs and stops when that is too much.
//!
//! Errors are values on the way: `false && error` is false, in whichever order they come. Running out of budget is not
//! one of them: it ends everything.

use crate::ast::{ACCUMULATOR, Expr, Fold, Kind};
use crate::authorizer::Decide;
use crate::check::Facts;
use crate::library;
use crate::value::{Key, List, Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Gives the value of a variable, or why it has none; nothing when there is no such variable.
pub type Lookup<'a> = dyn Fn(&str) -> Option<Result<Value, EvalError>> + 'a;

/// Why there is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EvalError {
    /// In upstream's words: `no such key: a`, `division by zero`.
    Failed(String),
    /// It cost more than it may.
    OverBudget,
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EvalError::Failed(message) => f.write_str(message),
            EvalError::OverBudget => f.write_str("operation cancelled: actual cost limit exceeded"),
        }
    }
}
impl std::error::Error for EvalError {}

type Evaluated = Result<Value, EvalError>;

fn failed<T>(message: impl Into<String>) -> Result<T, EvalError> {
    Err(EvalError::Failed(message.into()))
}

struct Run<'a> {
    facts: &'a Facts,
    variables: &'a Lookup<'a>,
    decide: &'a dyn Decide,
    /// Variables of comprehensions, the innermost last. An accumulator may hold an error.
    locals: Vec<(&'a str, Evaluated)>,
    cost: u64,
    limit: u64,
}

/// Runs a checked expression: the result and what it cost.
pub fn run(
    expr: &Expr,
    facts: &Facts,
    variables: &Lookup,
    decide: &dyn Decide,
    limit: u64,
) -> (Evaluated, u64) {
    let mut run = Run { facts, variables, decide, locals: vec![], cost: 0, limit };
    let result = run.eval(expr);
    (result, run.cost)
}

impl<'a> Run<'a> {
    fn pay(&mut self, cost: u64) -> Result<(), EvalError> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit { Err(EvalError::OverBudget) } else { Ok(()) }
    }

    fn eval(&mut self, expr: &'a Expr) -> Evaluated {
        match &expr.kind {
            Kind::Literal(value) => Ok(value.clone()),
            Kind::Ident(name) => {
                self.pay(1)?;
                if let Some((_, value)) = self.locals.iter().rev().find(|(local, _)| local == name) {
                    return value.clone();
                }
                match (self.variables)(name) {
                    Some(value) => value,
                    None => failed(format!("no such attribute(s): {name}")),
                }
            }
            Kind::Select { operand, field, test } => self.select(operand, field, *test),
            Kind::Call { function, target, args } => self.call(expr, function, target.as_deref(), args),
            Kind::List(items) => {
                let mut out = Vec::with_capacity(items.len());
                for (item, optional) in items {
                    match (self.eval(item)?, optional) {
                        (Value::Optional(value), true) => out.extend(value.map(|v| (*v).clone())),
                        (value, _) => out.push(value),
                    }
                }
                self.pay(10)?;
                Ok(out.into())
            }
            Kind::Map(entries) => self.map(entries),
            Kind::Struct { name, fields } => {
                let mut out = BTreeMap::new();
                for (field, value, optional, _) in fields {
                    match (self.eval(value)?, optional) {
                        (Value::Optional(None), true) => {}
                        (Value::Optional(Some(value)), true) => {
                            out.insert(Key::text(field), (*value).clone());
                        }
                        (value, _) => {
                            out.insert(Key::text(field), value);
                        }
                    }
                }
                self.pay(40)?;
                Ok(Value::Map(Arc::new(Map { entries: out, of: Some(name.as_str().into()) })))
            }
            Kind::Fold(fold) => self.fold(fold),
        }
    }

    fn map(&mut self, entries: &'a [(Expr, Expr, bool)]) -> Evaluated {
        let mut out = BTreeMap::new();
        for (key, value, optional) in entries {
            let key = self.eval(key)?;
            let value = match (self.eval(value)?, optional) {
                (Value::Optional(None), true) => continue,
                (Value::Optional(Some(value)), true) => (*value).clone(),
                (value, _) => value,
            };
            let Some(key) = Key::of(&key) else {
                return failed(format!("unsupported key type: {}", key.type_name()));
            };
            if out.insert(key, value).is_some() {
                return failed("Failed with repeated key");
            }
        }
        self.pay(30)?;
        Ok(Value::Map(Arc::new(Map { entries: out, of: None })))
    }

    fn select(&mut self, operand: &'a Expr, field: &str, test: bool) -> Evaluated {
        let value = self.eval(operand)?;
        if !test {
            self.pay(1)?;
        }
        match (&value, test) {
            (Value::Map(map), true) => Ok(Value::Bool(map.get(field).is_some())),
            (Value::Map(map), false) => match map.get(field) {
                Some(value) => Ok(value.clone()),
                None => failed(format!("no such key: {field}")),
            },
            (Value::Optional(None), true) => Ok(Value::Bool(false)),
            (Value::Optional(None), false) => Ok(Value::Optional(None)),
            (Value::Optional(Some(inner)), _) => match (&**inner, test) {
                (Value::Map(map), true) => Ok(Value::Bool(map.get(field).is_some())),
                (Value::Map(map), false) => Ok(Value::Optional(map.get(field).cloned().map(Arc::new))),
                _ => failed("no such overload"),
            },
            (Value::Null, _) => failed(format!("no such key: {field}")),
            _ => failed("no such overload"),
        }
    }

    fn call(
        &mut self,
        expr: &'a Expr,
        function: &'a str,
        target: Option<&'a Expr>,
        args: &'a [Expr],
    ) -> Evaluated {
        match (function, args) {
            ("_&&_" | "_||_", [left, right]) => return self.junction(function == "_||_", left, right),
            ("_?_:_", [condition, yes, no]) => {
                return match self.eval(condition)? {
                    Value::Bool(true) => self.eval(yes),
                    Value::Bool(false) => self.eval(no),
                    _ => failed("no such overload"),
                };
            }
            ("@not_strictly_false", [arg]) => {
                let value = self.eval(arg);
                self.pay(1)?;
                return match value {
                    Err(EvalError::OverBudget) => Err(EvalError::OverBudget),
                    Ok(Value::Bool(false)) => Ok(Value::Bool(false)),
                    _ => Ok(Value::Bool(true)),
                };
            }
            ("_[_]", [operand, index]) => {
                let (operand, index) = (self.eval(operand)?, self.eval(index)?);
                self.pay(1)?;
                return library::index(&operand, &index).map_err(EvalError::Failed);
            }
            ("_[?_]" | "_?._", [operand, index]) => {
                let (operand, index) = (self.eval(operand)?, self.eval(index)?);
                self.pay(1)?;
                return library::optional_index(&operand, &index).map_err(EvalError::Failed);
            }
            _ => {}
        }
        let mut values = Vec::with_capacity(args.len() + 1);
        if let Some(target) = target {
            values.push(self.eval(target)?);
        }
        for arg in args {
            values.push(self.eval(arg)?);
        }
        let id = self.facts.overloads.get(expr.id).and_then(|ids| ids.first()).copied().unwrap_or("");
        // What a call costs must be known before it is done when that is what makes it dear.
        self.pay(library::price(function, &values))?;
        let result = match values.first() {
            Some(Value::Authorizer(question)) if function == "check" => {
                library::authorization::check(question, &values[1..], self.decide)
            }
            _ => library::call(function, target.is_some(), id, &values),
        };
        let result = result.map_err(EvalError::Failed)?;
        self.pay(library::price_of_result(function, &result))?;
        Ok(result)
    }

    fn junction(&mut self, or: bool, left: &'a Expr, right: &'a Expr) -> Evaluated {
        let decides = |value: &Evaluated| matches!(value, Ok(Value::Bool(b)) if *b == or);
        let first = self.eval(left);
        if decides(&first) || first == Err(EvalError::OverBudget) {
            return first;
        }
        let second = self.eval(right);
        if decides(&second) || second == Err(EvalError::OverBudget) {
            return second;
        }
        match (first?, second?) {
            (Value::Bool(_), Value::Bool(b)) => Ok(Value::Bool(b)),
            _ => failed("no such overload"),
        }
    }

    fn fold(&mut self, fold: &'a Fold) -> Evaluated {
        if fold.accumulator != ACCUMULATOR {
            let bound = self.eval(&fold.init);
            self.locals.push((&fold.accumulator, bound));
            let out = self.eval(&fold.result);
            self.locals.pop();
            return out;
        }
        let range = self.eval(&fold.range)?;
        let elements = self.elements(&range, fold.second.is_some())?;
        let init = self.eval(&fold.init);
        let base = self.locals.len();
        self.locals.push((&fold.accumulator, init));
        let gone_over = self.go_over(fold, elements, base);
        let out = gone_over.and_then(|()| {
            self.locals.truncate(base + 1);
            self.eval(&fold.result)
        });
        // Also after an error, which may be no error of the whole.
        self.locals.truncate(base);
        out
    }

    /// Takes the step of a fold for each element.
    fn go_over(
        &mut self,
        fold: &'a Fold,
        elements: Vec<(Value, Value)>,
        base: usize,
    ) -> Result<(), EvalError> {
        let growing = appended(&fold.step);
        for (first, second) in elements {
            self.locals.truncate(base + 1);
            self.locals.push((&fold.variable, Ok(first)));
            if let Some(name) = &fold.second {
                self.locals.push((name, Ok(second)));
            }
            if matches!(self.eval(&fold.condition)?, Value::Bool(false)) {
                return Ok(());
            }
            match growing {
                Some((filter, element)) => self.append(base, filter, element)?,
                None => match self.eval(&fold.step) {
                    Err(EvalError::OverBudget) => return Err(EvalError::OverBudget),
                    next => self.locals[base].1 = next,
                },
            }
        }
        Ok(())
    }

    /// Grows the accumulated list in place: what `@result + [element]` means, without copying it each time.
    fn append(&mut self, base: usize, filter: Option<&'a Expr>, element: &'a Expr) -> Result<(), EvalError> {
        if let Some(filter) = filter {
            match self.eval(filter)? {
                Value::Bool(true) => {}
                Value::Bool(false) => {
                    return self.pay(1);
                }
                _ => return failed("no such overload"),
            }
        }
        let value = self.eval(element)?;
        // The accumulator, the new list, joining them.
        self.pay(1 + 10 + 1)?;
        if let Ok(Value::List(list)) = &mut self.locals[base].1 {
            Arc::make_mut(list).items.push(value);
        }
        Ok(())
    }

    fn elements(&self, range: &Value, two: bool) -> Result<Vec<(Value, Value)>, EvalError> {
        match range {
            Value::List(list) => {
                let items = list.items.iter().cloned();
                Ok(if two {
                    items.enumerate().map(|(i, item)| (Value::Int(i as i64), item)).collect()
                } else {
                    items.map(|item| (item, Value::Null)).collect()
                })
            }
            Value::Map(map) => Ok(map.entries.iter().map(|(k, v)| (k.value(), v.clone())).collect()),
            _ => failed("no such overload"),
        }
    }
}

/// The filter and the element of a step that appends to the accumulator.
fn appended(step: &Expr) -> Option<(Option<&Expr>, &Expr)> {
    let Kind::Call { function, args, .. } = &step.kind else { return None };
    match (function.as_str(), args.as_slice()) {
        ("_?_:_", [filter, step, _]) => match appended(step)? {
            (None, element) => Some((Some(filter), element)),
            _ => None,
        },
        ("_+_", [accumulator, list]) => match (&accumulator.kind, &list.kind) {
            (Kind::Ident(name), Kind::List(items)) if name == ACCUMULATOR => match items.as_slice() {
                [(element, false)] => Some((None, element)),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

/// An empty list of a kind, for those who build values.
pub fn list(items: Vec<Value>, kind: crate::value::ListKind) -> Value {
    Value::List(Arc::new(List { items, kind }))
}
