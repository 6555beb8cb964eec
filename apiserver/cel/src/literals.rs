//! Literals that can be seen to be wrong before anything runs: durations, timestamps, regular expressions.

use crate::ast::{Expr, Kind};
use crate::library;
use crate::parser::Mistake;
use crate::value::Value;

/// Looks at the literal arguments of calls.
pub fn check(expr: &Expr, mistakes: &mut Vec<Mistake>) {
    match &expr.kind {
        Kind::Call { function, target, args } => {
            let pattern = match (function.as_str(), target) {
                ("matches", Some(_)) => args.first(),
                ("matches", None) => args.get(1),
                ("duration" | "timestamp", None) => args.first(),
                _ => None,
            };
            if let Some(arg) = pattern
                && let Kind::Literal(Value::String(text)) = &arg.kind
            {
                let fits = match function.as_str() {
                    "matches" => library::regexes::compile(text).is_ok(),
                    "duration" => library::time::duration(text).is_some(),
                    _ => library::time::timestamp(text).is_some(),
                };
                if !fits {
                    mistakes.push(Mistake { at: arg.at, message: format!("invalid {function} argument") });
                }
            }
            if let Some(target) = target {
                check(target, mistakes);
            }
            args.iter().for_each(|arg| check(arg, mistakes));
        }
        Kind::Select { operand, .. } => check(operand, mistakes),
        Kind::List(items) => items.iter().for_each(|(item, _)| check(item, mistakes)),
        Kind::Map(entries) => entries.iter().for_each(|(key, value, _)| {
            check(key, mistakes);
            check(value, mistakes);
        }),
        Kind::Struct { fields, .. } => fields.iter().for_each(|(_, value, ..)| check(value, mistakes)),
        Kind::Fold(fold) => {
            for part in [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result] {
                check(part, mistakes);
            }
        }
        Kind::Literal(_) | Kind::Ident(_) => {}
    }
}
