//! The Common Expression Language with Kubernetes' libraries: parsing, checking, estimating, running.
//!
//! ```
//! use keelson_cel::{Env, Type, Value};
//! let env = Env::new([("self", Type::Int)]);
//! let program = env.compile("self > 1 && self < 5").unwrap();
//! let (result, cost) = program.run(&|name| (name == "self").then_some(Ok(Value::Int(3))), 1000);
//! assert!(result.unwrap().is_true() && cost > 0);
//! ```
//! Order: [`lexer`], [`parser`] (with [`macros`]), [`check`] against an [`Env`], [`cost`] (the most it may take),
//! [`eval`] (what it took). The libraries are one file each under [`library`], what they declare is `functions.txt`.
//!
//! Hazards: sources and values come from the wire, so depth, size and cost are bounded everywhere; nothing here may panic.
//! Absences: no IO, no clock, no randomness. Nothing here knows of resources or requests, only of values.

pub mod ast;
pub mod authorizer;
pub mod check;
pub mod cost;
pub mod eval;
pub mod functions;
pub mod lexer;
pub mod library;
mod literals;
mod macros;
pub mod parser;
pub mod types;
pub mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub use authorizer::{Authorizer, Check, Decide, Decision};
pub use cost::{Range, Sizes};
pub use functions::{AUTHORIZER, RESOURCE_CHECK};
pub use types::{Object, Type};
pub use value::{Key, List, ListKind, Map, Value};

/// What one run may cost at most.
pub const PER_CALL_LIMIT: u64 = 1_000_000;

/// What expressions may speak of.
#[derive(Debug, Clone, Default)]
pub struct Env {
    pub variables: BTreeMap<String, Type>,
    /// Whether `Object{…}` and `JSONPatch{…}` can be made.
    pub patches: bool,
}

/// An expression that can be run.
#[derive(Debug, Clone)]
pub struct Program {
    pub expr: ast::Expr,
    pub facts: check::Facts,
}

/// Why a source is no expression of an environment: upstream's text, all mistakes with their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompileError(pub String);

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for CompileError {}

impl Env {
    pub fn new<'a>(variables: impl IntoIterator<Item = (&'a str, Type)>) -> Env {
        let variables = variables.into_iter().map(|(name, of)| (name.to_owned(), of)).collect();
        Env { variables, patches: false }
    }

    /// Whether a namespaced function belongs to this environment.
    fn knows(&self, function: &str) -> bool {
        self.patches || !function.starts_with("jsonpatch.")
    }

    /// The type of a message that can be made.
    fn object(&self, name: &str) -> Option<Type> {
        if !self.patches {
            return None;
        }
        if name == "JSONPatch" {
            let text = |name| (name, Type::String);
            return Some(Type::object(
                "JSONPatch",
                [text("op"), text("path"), text("from"), ("value", Type::Dyn)],
            ));
        }
        let open = name == "Object" || name.starts_with("Object.");
        open.then(|| {
            Type::Object(Arc::new(Object { name: name.into(), fields: BTreeMap::new(), open: true }))
        })
    }

    /// Parses and checks a source.
    ///
    /// # Errors
    /// Every mistake, as upstream prints them.
    pub fn compile(&self, source: &str) -> Result<Program, CompileError> {
        let said = |mistakes: &[parser::Mistake]| {
            let lines: Vec<String> = mistakes.iter().map(|m| shown(source, m)).collect();
            CompileError(lines.join("\n"))
        };
        let (mut expr, nodes) = parser::parse(source).map_err(|m| said(&[m]))?;
        let facts = check::check(&mut expr, nodes, self).map_err(|m| said(&m))?;
        Ok(Program { expr, facts })
    }
}

/// A mistake with the line it is in and a mark below.
fn shown(source: &str, mistake: &parser::Mistake) -> String {
    let (mut line, mut column) = (1, 0);
    for c in source.chars().take(mistake.at) {
        if c == '\n' {
            (line, column) = (line + 1, 0);
        } else {
            column += 1;
        }
    }
    let text = source.split('\n').nth(line - 1).unwrap_or("").replace('\t', " ");
    let dots = ".".repeat(column);
    format!("ERROR: <input>:{line}:{}: {}\n | {text}\n | {dots}^", column + 1, mistake.message)
}

impl Program {
    /// The type of what it gives.
    pub fn output(&self) -> &Type {
        self.facts.of(&self.expr)
    }

    /// Runs it: what it gives, and what that cost.
    pub fn run(&self, variables: &eval::Lookup, limit: u64) -> (Result<Value, eval::EvalError>, u64) {
        self.run_with(variables, &authorizer::Nobody, limit)
    }

    /// The same, with somebody who answers what the expression asks about permissions.
    pub fn run_with(
        &self,
        variables: &eval::Lookup,
        decide: &dyn Decide,
        limit: u64,
    ) -> (Result<Value, eval::EvalError>, u64) {
        eval::run(&self.expr, &self.facts, variables, decide, limit)
    }

    /// The least and the most it may cost.
    pub fn estimate(&self, sizes: &dyn Sizes) -> Range {
        cost::estimate(&self.expr, &self.facts, sizes)
    }
}
