//! Macros: calls that are rewritten while parsing, because their arguments are not evaluated once.

use crate::ast::{ACCUMULATOR, Expr, Fold, Kind};
use crate::parser::{Mistake, Parser};
use crate::value::Value;

type Parsed = Result<Expr, Mistake>;

/// A call of a function by its name.
pub fn global(p: &mut Parser, at: usize, name: String, mut args: Vec<Expr>) -> Parsed {
    if name == "has" && args.len() == 1 {
        let arg = args.remove(0);
        return match arg.kind {
            Kind::Select { operand, field, test: false } => {
                Ok(p.node(at, Kind::Select { operand, field, test: true }))
            }
            _ => Err(Mistake { at: arg.at, message: "invalid argument to has() macro".into() }),
        };
    }
    Ok(p.node(at, Kind::Call { function: name, target: None, args }))
}

/// A call of a function on something.
pub fn receiver(p: &mut Parser, at: usize, name: String, target: Expr, args: Vec<Expr>) -> Parsed {
    let count = args.len();
    match (name.as_str(), count) {
        ("all" | "exists" | "exists_one" | "existsOne" | "filter", 2) | ("map", 2 | 3) => {
            fold(p, at, &name, target, args)
        }
        ("all" | "exists" | "exists_one" | "existsOne", 3)
        | ("transformList" | "transformMap" | "transformMapEntry", 3 | 4) => {
            fold_two(p, at, &name, target, args)
        }
        ("optMap" | "optFlatMap", 2) => optional(p, at, &name, target, args),
        _ => Ok(p.node(at, Kind::Call { function: name, target: Some(Box::new(target)), args })),
    }
}

/// A variable's name.
fn variable(arg: &Expr) -> Result<String, Mistake> {
    match &arg.kind {
        Kind::Ident(name) if name == ACCUMULATOR => {
            Err(Mistake { at: arg.at, message: "iteration variable overwrites accumulator variable".into() })
        }
        Kind::Ident(name) => Ok(name.clone()),
        _ => Err(Mistake { at: arg.at, message: "argument must be a simple name".into() }),
    }
}

/// Builds the parts of folds at one place of the source.
struct Parts<'a> {
    p: &'a mut Parser,
    at: usize,
}

impl Parts<'_> {
    fn literal(&mut self, value: Value) -> Expr {
        self.p.node(self.at, Kind::Literal(value))
    }
    fn bool(&mut self, value: bool) -> Expr {
        self.literal(Value::Bool(value))
    }
    fn ident(&mut self, name: &str) -> Expr {
        self.p.node(self.at, Kind::Ident(name.into()))
    }
    fn accumulator(&mut self) -> Expr {
        self.ident(ACCUMULATOR)
    }
    fn call(&mut self, function: &str, args: Vec<Expr>) -> Expr {
        self.p.call(self.at, function, args)
    }
    fn list(&mut self, items: Vec<Expr>) -> Expr {
        self.p.node(self.at, Kind::List(items.into_iter().map(|e| (e, false)).collect()))
    }

    /// Initial value, condition, step and result of a quantifier over a predicate.
    fn quantifier(&mut self, name: &str, predicate: Expr) -> [Expr; 4] {
        match name {
            "all" => {
                let accumulator = self.accumulator();
                let condition = self.call("@not_strictly_false", vec![accumulator]);
                let accumulator = self.accumulator();
                let step = self.call("_&&_", vec![accumulator, predicate]);
                [self.bool(true), condition, step, self.accumulator()]
            }
            "exists" => {
                let accumulator = self.accumulator();
                let not = self.call("!_", vec![accumulator]);
                let condition = self.call("@not_strictly_false", vec![not]);
                let accumulator = self.accumulator();
                let step = self.call("_||_", vec![accumulator, predicate]);
                [self.bool(false), condition, step, self.accumulator()]
            }
            _ => {
                let (accumulator, one) = (self.accumulator(), self.literal(Value::Int(1)));
                let more = self.call("_+_", vec![accumulator, one]);
                let same = self.accumulator();
                let step = self.call("_?_:_", vec![predicate, more, same]);
                let (accumulator, one) = (self.accumulator(), self.literal(Value::Int(1)));
                let result = self.call("_==_", vec![accumulator, one]);
                [self.literal(Value::Int(0)), self.bool(true), step, result]
            }
        }
    }

    /// A step that is taken when a filter says so.
    fn when(&mut self, filter: Option<Expr>, step: Expr) -> Expr {
        match filter {
            Some(filter) => {
                let same = self.accumulator();
                self.call("_?_:_", vec![filter, step, same])
            }
            None => step,
        }
    }

    /// A list that grows by an element.
    fn appending(&mut self, filter: Option<Expr>, element: Expr) -> [Expr; 4] {
        let (accumulator, element) = (self.accumulator(), self.list(vec![element]));
        let step = self.call("_+_", vec![accumulator, element]);
        let step = self.when(filter, step);
        [self.list(vec![]), self.bool(true), step, self.accumulator()]
    }
}

fn fold(p: &mut Parser, at: usize, name: &str, range: Expr, mut args: Vec<Expr>) -> Parsed {
    let variable = variable(&args[0])?;
    let last = args.pop();
    let filter = if args.len() == 2 { args.pop() } else { None };
    let Some(last) = last else {
        return Err(Mistake { at, message: "argument must be a simple name".into() });
    };
    let mut parts = Parts { p: &mut *p, at };
    let [init, condition, step, result] = match name {
        "map" => parts.appending(filter, last),
        "filter" => {
            let element = parts.ident(&variable);
            parts.appending(Some(last), element)
        }
        _ => parts.quantifier(name, last),
    };
    let accumulator = ACCUMULATOR.to_owned();
    let fold = Fold { range, variable, second: None, accumulator, init, condition, step, result };
    Ok(p.node(at, Kind::Fold(Box::new(fold))))
}

fn fold_two(p: &mut Parser, at: usize, name: &str, range: Expr, mut args: Vec<Expr>) -> Parsed {
    let (first, second) = (variable(&args[0])?, variable(&args[1])?);
    if first == second {
        let message = format!("duplicate variable name: {first}");
        return Err(Mistake { at: args[1].at, message });
    }
    let last = args.pop();
    let filter = if args.len() == 3 { args.pop() } else { None };
    let Some(last) = last else {
        return Err(Mistake { at, message: "argument must be a simple name".into() });
    };
    let mut parts = Parts { p: &mut *p, at };
    let [init, condition, step, result] = match name {
        "transformList" => parts.appending(filter, last),
        "transformMap" | "transformMapEntry" => {
            let (accumulator, key) = (parts.accumulator(), parts.ident(&first));
            let step = if name == "transformMap" {
                parts.call("cel.@mapInsert", vec![accumulator, key, last])
            } else {
                parts.call("cel.@mapInsert", vec![accumulator, last])
            };
            let step = parts.when(filter, step);
            let init = parts.p.node(at, Kind::Map(vec![]));
            [init, parts.bool(true), step, parts.accumulator()]
        }
        _ => parts.quantifier(name, last),
    };
    let accumulator = ACCUMULATOR.to_owned();
    let fold =
        Fold { range, variable: first, second: Some(second), accumulator, init, condition, step, result };
    Ok(p.node(at, Kind::Fold(Box::new(fold))))
}

/// `target.optMap(v, f)`: `f` of the value when there is one. A fold over nothing binds the variable.
fn optional(p: &mut Parser, at: usize, name: &str, target: Expr, mut args: Vec<Expr>) -> Parsed {
    let variable = variable(&args[0])?;
    let Some(body) = args.pop() else {
        return Err(Mistake { at, message: "argument must be a simple name".into() });
    };
    let member = |p: &mut Parser, function: &str, target: Expr| {
        p.node(at, Kind::Call { function: function.into(), target: Some(Box::new(target)), args: vec![] })
    };
    p.bounded(at)?;
    // The target is evaluated once for the test and once for the value, as upstream does it.
    let again = duplicate(p, &target);
    let test = member(p, "hasValue", target);
    let init = member(p, "value", again);
    let mut parts = Parts { p: &mut *p, at };
    let (range, condition) = (parts.list(vec![]), parts.bool(false));
    let step = parts.ident(&variable);
    let fold = Fold {
        range,
        variable: "#unused".into(),
        second: None,
        accumulator: variable,
        init,
        condition,
        step,
        result: body,
    };
    let bound = p.node(at, Kind::Fold(Box::new(fold)));
    let root = p.node(at, Kind::Ident("optional".into()));
    let yes = if name == "optMap" {
        let target = Some(Box::new(root.clone()));
        p.node(at, Kind::Call { function: "of".into(), target, args: vec![bound] })
    } else {
        bound
    };
    let root = p.node(at, Kind::Ident("optional".into()));
    let no = p.node(at, Kind::Call { function: "none".into(), target: Some(Box::new(root)), args: vec![] });
    Ok(p.call(at, "_?_:_", vec![test, yes, no]))
}

/// A copy with ids of its own.
fn duplicate(p: &mut Parser, expr: &Expr) -> Expr {
    let boxed = |p: &mut Parser, e: &Expr| Box::new(duplicate(p, e));
    let kind = match &expr.kind {
        Kind::Select { operand, field, test } => {
            Kind::Select { operand: boxed(p, operand), field: field.clone(), test: *test }
        }
        Kind::Call { function, target, args } => Kind::Call {
            function: function.clone(),
            target: target.as_ref().map(|t| boxed(p, t)),
            args: args.iter().map(|a| duplicate(p, a)).collect(),
        },
        Kind::List(items) => Kind::List(items.iter().map(|(e, o)| (duplicate(p, e), *o)).collect()),
        Kind::Map(entries) => {
            Kind::Map(entries.iter().map(|(k, v, o)| (duplicate(p, k), duplicate(p, v), *o)).collect())
        }
        Kind::Struct { name, fields } => Kind::Struct {
            name: name.clone(),
            fields: fields.iter().map(|(n, e, o, at)| (n.clone(), duplicate(p, e), *o, *at)).collect(),
        },
        Kind::Fold(fold) => Kind::Fold(Box::new(Fold {
            range: duplicate(p, &fold.range),
            variable: fold.variable.clone(),
            second: fold.second.clone(),
            accumulator: fold.accumulator.clone(),
            init: duplicate(p, &fold.init),
            condition: duplicate(p, &fold.condition),
            step: duplicate(p, &fold.step),
            result: duplicate(p, &fold.result),
        })),
        leaf => leaf.clone(),
    };
    p.node(expr.at, kind)
}
