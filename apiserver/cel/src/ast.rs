//! The tree an expression becomes. Macros are gone from it: they are folds.

use crate::value::Value;

/// A node. Ids are dense, so that what is known of nodes fits into vectors.
#[derive(Debug, Clone)]
pub struct Expr {
    pub id: usize,
    /// Offset in the source, in characters: where an error about it points.
    pub at: usize,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub enum Kind {
    Literal(Value),
    Ident(String),
    /// `operand.field`, or `has(operand.field)`.
    Select {
        operand: Box<Expr>,
        field: String,
        test: bool,
    },
    Call {
        function: String,
        target: Option<Box<Expr>>,
        args: Vec<Expr>,
    },
    /// Elements, and which of them are optional.
    List(Vec<(Expr, bool)>),
    /// Key, value, optional.
    Map(Vec<(Expr, Expr, bool)>),
    Struct {
        name: String,
        /// Name, value, optional, and where the field is.
        fields: Vec<(String, Expr, bool, usize)>,
    },
    Fold(Box<Fold>),
}

/// What a macro becomes: `result` after `step` was taken for every element of `range` while `condition` held.
#[derive(Debug, Clone)]
pub struct Fold {
    pub range: Expr,
    /// The element of a list, the key of a map; with a second variable: index or key.
    pub variable: String,
    /// The value, in comprehensions of two variables.
    pub second: Option<String>,
    pub accumulator: String,
    pub init: Expr,
    pub condition: Expr,
    pub step: Expr,
    pub result: Expr,
}

/// The name of the accumulator of folds.
pub const ACCUMULATOR: &str = "@result";

impl Expr {
    /// `a.b.c` as it is written.
    pub fn qualified(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.clone()),
            Kind::Select { operand, field, test: false } => Some(format!("{}.{field}", operand.qualified()?)),
            _ => None,
        }
    }

    /// The identifiers that are read anywhere inside.
    pub fn mentions(&self, name: &str) -> bool {
        match &self.kind {
            Kind::Literal(_) => false,
            Kind::Ident(found) => found == name,
            Kind::Select { operand, .. } => operand.mentions(name),
            Kind::Call { target, args, .. } => {
                target.as_ref().is_some_and(|t| t.mentions(name)) || args.iter().any(|a| a.mentions(name))
            }
            Kind::List(items) => items.iter().any(|(e, _)| e.mentions(name)),
            Kind::Map(entries) => entries.iter().any(|(k, v, _)| k.mentions(name) || v.mentions(name)),
            Kind::Struct { fields, .. } => fields.iter().any(|(_, e, ..)| e.mentions(name)),
            Kind::Fold(fold) => {
                let parts = [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result];
                parts.iter().any(|e| e.mentions(name))
            }
        }
    }
}
