//! The checker: gives every node a type, finds what does not fit, and settles which function a call means.
//!
//! It rewrites names on the way: `a.b` that is one variable, `ns.f(x)` that is one function, `int` that is a type.

use crate::Env;
use crate::ast::{Expr, Fold, Kind};
use crate::functions::{instantiate, overloads};
use crate::parser::Mistake;
use crate::types::{Substitution, Type};
use crate::value::Value;
use std::sync::Arc;

/// What is known of the nodes of a checked tree, by their ids.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub types: Vec<Type>,
    /// Ids of the overloads a call may run.
    pub overloads: Vec<Vec<&'static str>>,
}

impl Facts {
    pub fn of(&self, expr: &Expr) -> &Type {
        static ANYTHING: Type = Type::Dyn;
        self.types.get(expr.id).unwrap_or(&ANYTHING)
    }
}

struct Checker<'a> {
    env: &'a Env,
    found: Substitution,
    facts: Facts,
    scopes: Vec<(String, Type)>,
    mistakes: Vec<Mistake>,
}

/// Checks a tree of so many nodes.
pub fn check(expr: &mut Expr, nodes: usize, env: &Env) -> Result<Facts, Vec<Mistake>> {
    let facts = Facts { types: vec![Type::Dyn; nodes], overloads: vec![vec![]; nodes] };
    let mut checker =
        Checker { env, found: Substitution::default(), facts, scopes: vec![], mistakes: vec![] };
    checker.check(expr);
    let Checker { found, mut facts, mut mistakes, .. } = checker;
    for of in &mut facts.types {
        *of = found.apply(of, true);
    }
    if mistakes.is_empty() {
        crate::literals::check(expr, &mut mistakes);
    }
    if mistakes.is_empty() {
        return Ok(facts);
    }
    mistakes.sort_by_key(|m| m.at);
    Err(mistakes)
}

/// Names of types, as expressions.
fn named_type(name: &str) -> Option<Type> {
    Some(match name {
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "null_type" => Type::Null,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "type" => Type::Kind(Arc::new(Type::Dyn)),
        "optional_type" => Type::optional(Type::Dyn),
        "google.protobuf.Timestamp" => Type::Timestamp,
        "google.protobuf.Duration" => Type::Duration,
        "kubernetes.URL" => Type::Opaque("kubernetes.URL"),
        "kubernetes.Quantity" => Type::Opaque("kubernetes.Quantity"),
        "kubernetes.Semver" => Type::Opaque("kubernetes.Semver"),
        "net.IP" => Type::Opaque("net.IP"),
        "net.CIDR" => Type::Opaque("net.CIDR"),
        _ => return None,
    })
}

impl Checker<'_> {
    fn wrong(&mut self, at: usize, message: String) -> Type {
        self.mistakes.push(Mistake { at, message });
        Type::Error
    }

    fn undeclared(&mut self, at: usize, name: &str) -> Type {
        self.wrong(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn mismatch(&mut self, at: usize, wanted: &Type, found: &Type) -> Type {
        let (wanted, found) = (self.found.apply(wanted, false), self.found.apply(found, false));
        self.wrong(at, format!("expected type '{}' but found '{}'", wanted.short(), found.short()))
    }

    fn check(&mut self, expr: &mut Expr) -> Type {
        let of = match &mut expr.kind {
            Kind::Literal(value) => literal(value),
            Kind::Ident(name) => {
                let name = name.clone();
                self.ident(expr, &name)
            }
            Kind::Select { .. } => self.select(expr),
            Kind::Call { .. } => self.call(expr),
            Kind::List(_) => self.list(expr),
            Kind::Map(_) => self.map(expr),
            Kind::Struct { .. } => self.message(expr),
            Kind::Fold(_) => self.fold(expr),
        };
        self.facts.types[expr.id] = of.clone();
        of
    }

    /// The type of a variable, the innermost one first.
    fn variable(&self, name: &str) -> Option<Type> {
        let local = self.scopes.iter().rev().find(|(known, _)| known == name);
        local.map(|(_, of)| of.clone()).or_else(|| self.env.variables.get(name).cloned())
    }

    fn ident(&mut self, expr: &mut Expr, name: &str) -> Type {
        if let Some(of) = self.variable(name) {
            return of;
        }
        if let Some(of) = named_type(name) {
            expr.kind = Kind::Literal(Value::Type(name.into()));
            return Type::Kind(Arc::new(of));
        }
        self.undeclared(expr.at, name)
    }

    fn select(&mut self, expr: &mut Expr) -> Type {
        if let Some(name) = expr.qualified()
            && self.scopes.iter().all(|(local, _)| !name.starts_with(&format!("{local}.")))
        {
            if let Some(of) = self.env.variables.get(&name).cloned() {
                expr.kind = Kind::Ident(name);
                return of;
            }
            if let Some(of) = named_type(&name) {
                expr.kind = Kind::Literal(Value::Type(name.into()));
                return Type::Kind(Arc::new(of));
            }
        }
        let at = expr.at;
        let Kind::Select { operand, field, test } = &mut expr.kind else { return Type::Error };
        let target = self.check(operand);
        let of = self.field(&target, field, at);
        if *test { Type::Bool } else { of }
    }

    fn field(&mut self, target: &Type, field: &str, at: usize) -> Type {
        let target = self.found.apply(target, false);
        match &target {
            Type::Dyn | Type::Error => Type::Dyn,
            Type::Param(_) => {
                self.found.assignable(&[(&Type::Dyn, &target)]);
                Type::Dyn
            }
            Type::Map(_, value) => (**value).clone(),
            Type::Optional(of) => match self.field(of, field, at) {
                Type::Optional(of) => Type::Optional(of),
                of => Type::optional(of),
            },
            Type::Object(object) => match object.field(field) {
                Some(of) => of,
                None => self.wrong(at, format!("undefined field '{field}'")),
            },
            other => {
                let message = format!("type '{}' does not support field selection", other.short());
                self.wrong(at, message)
            }
        }
    }

    fn call(&mut self, expr: &mut Expr) -> Type {
        let (at, id) = (expr.at, expr.id);
        let Kind::Call { function, target, args } = &mut expr.kind else { return Type::Error };
        if function == "_?._" {
            let operand = self.check(&mut args[0]);
            self.check(&mut args[1]);
            let Kind::Literal(Value::String(field)) = &args[1].kind else { return Type::Error };
            let field = field.clone();
            self.facts.overloads[id] = vec!["select_optional_field"];
            return match self.field(&operand, &field, at) {
                Type::Optional(of) => Type::Optional(of),
                of => Type::optional(of),
            };
        }
        let mut types: Vec<Type> = args.iter_mut().map(|arg| self.check(arg)).collect();
        let Some(receiver) = target else {
            if overloads(function).is_empty() {
                let name = function.clone();
                return self.undeclared(at, &name);
            }
            let (function, ats) = (function.clone(), args.iter().map(|a| a.at).collect::<Vec<_>>());
            return self.resolve(id, at, &function, &types, &ats, false);
        };
        // A name before the dot may be a part of the function's name.
        if let Some(prefix) = receiver.qualified()
            && self.variable(&prefix).is_none()
        {
            let qualified = format!("{prefix}.{function}");
            if !overloads(&qualified).is_empty() && self.env.knows(&qualified) {
                *function = qualified.clone();
                *target = None;
                let ats = args.iter().map(|a| a.at).collect::<Vec<_>>();
                return self.resolve(id, at, &qualified, &types, &ats, false);
            }
        }
        types.insert(0, self.check(receiver));
        let function = function.clone();
        if !overloads(&function).iter().any(|o| o.member) {
            return self.undeclared(at, &function);
        }
        let mut ats = vec![receiver.at];
        ats.extend(args.iter().map(|a| a.at));
        self.resolve(id, at, &function, &types, &ats, true)
    }

    /// Finds the overloads that take arguments of these types.
    fn resolve(
        &mut self,
        id: usize,
        at: usize,
        function: &str,
        types: &[Type],
        ats: &[usize],
        member: bool,
    ) -> Type {
        if matches!(function, "_&&_" | "_||_") {
            self.facts.overloads[id] = vec![if function == "_&&_" { "logical_and" } else { "logical_or" }];
            let mut result = Type::Bool;
            for (of, at) in types.iter().zip(ats) {
                if !self.found.assignable(&[(of, &Type::Bool)]) {
                    result = self.mismatch(*at, &Type::Bool, of);
                }
            }
            return result;
        }
        // Objects have as many entries as fields that are set.
        if function == "size"
            && let [one] = types
            && matches!(self.found.apply(one, false), Type::Object(_))
        {
            self.facts.overloads[id] = vec![if member { "map_size" } else { "size_map" }];
            return Type::Int;
        }
        let mut result: Option<Type> = None;
        let mut ids = vec![];
        for overload in overloads(function).iter().filter(|o| o.member == member) {
            if overload.params.len() != types.len() {
                continue;
            }
            let (params, of) = instantiate(overload, &mut self.found);
            let pairs: Vec<(&Type, &Type)> = types.iter().zip(&params).collect();
            if !self.found.assignable(&pairs) {
                continue;
            }
            ids.push(overload.id.as_str());
            let of = self.found.apply(&of, false);
            result = Some(match result {
                None => of,
                Some(before) if before == of => of,
                Some(_) => Type::Dyn,
            });
        }
        self.facts.overloads[id] = ids;
        result.unwrap_or_else(|| {
            let shown: Vec<String> = types.iter().map(|t| self.found.apply(t, false).short()).collect();
            let applied = if member {
                format!("{}.({})", shown[0], shown[1..].join(", "))
            } else {
                format!("({})", shown.join(", "))
            };
            self.wrong(at, format!("found no matching overload for '{function}' applied to '{applied}'"))
        })
    }

    /// The type of an optional element's value.
    fn unwrapped(&mut self, at: usize, of: Type, optional: bool) -> Type {
        if !optional {
            return of;
        }
        match self.found.apply(&of, false) {
            Type::Optional(inner) => (*inner).clone(),
            of if of.is_dyn() => Type::Dyn,
            other => self.mismatch(at, &Type::optional(other.clone()), &other),
        }
    }

    fn joined(&mut self, at: usize, before: Option<Type>, of: Type) -> Type {
        match before {
            None => of,
            Some(before) => match self.found.join(&before, &of) {
                Some(of) => of,
                None => self.mismatch(at, &before, &of),
            },
        }
    }

    fn list(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        let Kind::List(items) = &mut expr.kind else { return Type::Error };
        let mut element = None;
        for (item, optional) in items {
            let of = self.check(item);
            let of = self.unwrapped(item.at, of, *optional);
            element = Some(self.joined(item.at.max(at), element, of));
        }
        Type::list(element.unwrap_or_else(|| self.found.fresh()))
    }

    fn map(&mut self, expr: &mut Expr) -> Type {
        let Kind::Map(entries) = &mut expr.kind else { return Type::Error };
        let (mut key, mut value) = (None, None);
        for (k, v, optional) in entries {
            let of = self.check(k);
            key = Some(self.joined(k.at, key, of));
            let of = self.check(v);
            let of = self.unwrapped(v.at, of, *optional);
            value = Some(self.joined(v.at, value, of));
        }
        let key = key.unwrap_or_else(|| self.found.fresh());
        Type::map(key, value.unwrap_or_else(|| self.found.fresh()))
    }

    fn message(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        let Kind::Struct { name, fields } = &mut expr.kind else { return Type::Error };
        let Some(of) = self.env.object(name) else {
            let name = name.clone();
            for (_, value, ..) in fields {
                self.check(value);
            }
            return self.undeclared(at, &name);
        };
        for (field, value, optional, at) in fields {
            let given = self.check(value);
            let given = self.unwrapped(value.at, given, *optional);
            let wanted = match &of {
                Type::Object(object) => object.field(field),
                _ => None,
            };
            match wanted {
                None => {
                    self.wrong(*at, format!("undefined field '{field}'"));
                }
                Some(wanted) => {
                    if !self.found.assignable(&[(&given, &wanted)]) {
                        let given = self.found.apply(&given, false).short();
                        let message = format!(
                            "expected type of field '{field}' is '{}' but provided type is '{given}'",
                            wanted.short()
                        );
                        self.wrong(*at, message);
                    }
                }
            }
        }
        of
    }

    /// The types of the variables of a comprehension over something.
    fn elements(&mut self, range: &Type, two: bool, at: usize) -> (Type, Type) {
        let range = self.found.apply(range, false);
        match &range {
            Type::List(of) if two => (Type::Int, (**of).clone()),
            Type::List(of) => ((**of).clone(), Type::Dyn),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Error => (Type::Dyn, Type::Dyn),
            Type::Param(_) => {
                self.found.assignable(&[(&Type::Dyn, &range)]);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{}' cannot be range of a comprehension (must be list, map, or dynamic)",
                    other.short()
                );
                (self.wrong(at, message), Type::Error)
            }
        }
    }

    fn fold(&mut self, expr: &mut Expr) -> Type {
        let Kind::Fold(fold) = &mut expr.kind else { return Type::Error };
        let Fold { range, variable, second, accumulator, init, condition, step, result } = &mut **fold;
        let over = self.check(range);
        let kept = self.check(init);
        let (first_type, second_type) = self.elements(&over, second.is_some(), range.at);
        self.scopes.push((accumulator.clone(), kept.clone()));
        self.scopes.push((variable.clone(), first_type));
        if let Some(second) = second {
            self.scopes.push((second.clone(), second_type));
        }
        let of = self.check(condition);
        if !self.found.assignable(&[(&of, &Type::Bool)]) {
            self.mismatch(condition.at, &Type::Bool, &of);
        }
        let of = self.check(step);
        if !self.found.assignable(&[(&of, &kept)]) {
            self.mismatch(step.at, &kept, &of);
        }
        self.scopes.truncate(self.scopes.len() - if second.is_some() { 2 } else { 1 });
        let of = self.check(result);
        self.scopes.pop();
        self.found.apply(&of, false)
    }
}

fn literal(value: &Value) -> Type {
    match value {
        Value::Null => Type::Null,
        Value::Bool(_) => Type::Bool,
        Value::Int(_) => Type::Int,
        Value::Uint(_) => Type::Uint,
        Value::Double(_) => Type::Double,
        Value::Bytes(_) => Type::Bytes,
        Value::String(_) => Type::String,
        _ => Type::Dyn,
    }
}
