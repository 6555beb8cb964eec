//! Types as the checker knows them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A type. `Param` stands for one that inference has to find.
#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    Dyn,
    /// Of an expression that is wrong already: agrees with everything, so that one mistake is reported once.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    Object(Arc<Object>),
    Optional(Arc<Type>),
    /// The type of a type.
    Kind(Arc<Type>),
    Opaque(&'static str),
    Param(u32),
}

/// A type with named fields. Two are the same when their names are.
#[derive(Debug, Clone, Default)]
pub struct Object {
    pub name: String,
    pub fields: BTreeMap<String, Type>,
    /// Any other field is there too, and may be anything.
    pub open: bool,
}

impl PartialEq for Object {
    fn eq(&self, other: &Object) -> bool {
        self.name == other.name
    }
}

impl Object {
    pub fn field(&self, name: &str) -> Option<Type> {
        self.fields.get(name).cloned().or_else(|| self.open.then_some(Type::Dyn))
    }
}

impl Type {
    pub fn list(of: Type) -> Type {
        Type::List(Arc::new(of))
    }
    pub fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new(key), Arc::new(value))
    }
    pub fn optional(of: Type) -> Type {
        Type::Optional(Arc::new(of))
    }
    pub fn object(name: &str, fields: impl IntoIterator<Item = (&'static str, Type)>) -> Type {
        let fields = fields.into_iter().map(|(name, of)| (name.to_owned(), of)).collect();
        Type::Object(Arc::new(Object { name: name.into(), fields, open: false }))
    }
    pub fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Error)
    }
    /// Values of it have one size.
    pub fn is_scalar(&self) -> bool {
        match self {
            Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
            Type::Optional(of) => of.is_scalar(),
            _ => false,
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, short: bool) -> fmt::Result {
        let inner = |f: &mut fmt::Formatter<'_>, name: &str, params: &[&Type]| {
            write!(f, "{name}(")?;
            for (i, param) in params.iter().enumerate() {
                if i > 0 {
                    f.write_str(", ")?;
                }
                param.write(f, short)?;
            }
            f.write_str(")")
        };
        f.write_str(match self {
            Type::Dyn => "dyn",
            Type::Error => "!error!",
            Type::Null if short => "null",
            Type::Null => "null_type",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Duration if short => "duration",
            Type::Duration => "google.protobuf.Duration",
            Type::Timestamp if short => "timestamp",
            Type::Timestamp => "google.protobuf.Timestamp",
            Type::List(of) => return inner(f, "list", &[&**of]),
            Type::Map(key, value) => return inner(f, "map", &[&**key, &**value]),
            Type::Object(object) => &object.name,
            Type::Optional(of) => return inner(f, "optional_type", &[&**of]),
            Type::Kind(of) => return inner(f, "type", &[&**of]),
            Type::Opaque(name) => name,
            Type::Param(n) => return write!(f, "_var{n}"),
        })
    }

    /// As the checker's own messages spell it.
    pub fn short(&self) -> String {
        struct Short<'a>(&'a Type);
        impl fmt::Display for Short<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.write(f, true)
            }
        }
        Short(self).to_string()
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

/// What parameters stand for, as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Substitution {
    known: BTreeMap<u32, Type>,
    next: u32,
}

impl Substitution {
    /// A parameter nobody knows yet.
    pub fn fresh(&mut self) -> Type {
        self.next += 1;
        Type::Param(self.next)
    }

    /// The type with everything known put in. Unknown parameters become `dyn` when asked for.
    pub fn apply(&self, of: &Type, settle: bool) -> Type {
        match of {
            Type::Param(n) => match self.known.get(n) {
                Some(known) => self.apply(known, settle),
                None if settle => Type::Dyn,
                None => of.clone(),
            },
            Type::List(of) => Type::list(self.apply(of, settle)),
            Type::Map(key, value) => Type::map(self.apply(key, settle), self.apply(value, settle)),
            Type::Optional(of) => Type::optional(self.apply(of, settle)),
            Type::Kind(of) => Type::Kind(Arc::new(self.apply(of, settle))),
            other => other.clone(),
        }
    }

    fn occurs(&self, n: u32, within: &Type) -> bool {
        match self.apply(within, false) {
            Type::Param(m) => m == n,
            Type::List(of) | Type::Optional(of) | Type::Kind(of) => self.occurs(n, &of),
            Type::Map(key, value) => self.occurs(n, &key) || self.occurs(n, &value),
            _ => false,
        }
    }

    /// Whether a value of `from` will do where `to` is wanted; parameters are bound on the way.
    fn assign(&mut self, from: &Type, to: &Type) -> bool {
        let (from, to) = (self.apply(from, false), self.apply(to, false));
        if let Type::Param(n) = to {
            if from == to {
                return true;
            }
            if self.occurs(n, &from) {
                return false;
            }
            self.known.insert(n, from);
            return true;
        }
        if let Type::Param(n) = from {
            if self.occurs(n, &to) {
                return false;
            }
            self.known.insert(n, to);
            return true;
        }
        if from.is_dyn() || to.is_dyn() {
            return true;
        }
        match (&from, &to) {
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.assign(a, b),
            (Type::Map(ak, av), Type::Map(bk, bv)) => self.assign(ak, bk) && self.assign(av, bv),
            (Type::Kind(_), Type::Kind(_)) => true,
            (Type::Null, Type::Object(_) | Type::Opaque(_) | Type::Duration | Type::Timestamp) => true,
            _ => from == to,
        }
    }

    /// The same for several; nothing is bound when one does not fit. A parameter that was bound to one type widens to
    /// `dyn` when it is met by `dyn`.
    pub fn assignable(&mut self, pairs: &[(&Type, &Type)]) -> bool {
        let before = self.clone();
        for (from, to) in pairs {
            if !self.assign(from, to) {
                let next = self.next;
                *self = before;
                self.next = next;
                return false;
            }
        }
        true
    }

    /// The more general of two that agree, for elements of one list.
    pub fn join(&mut self, a: &Type, b: &Type) -> Option<Type> {
        let (a, b) = (self.apply(a, false), self.apply(b, false));
        if a.is_dyn() || b.is_dyn() {
            return Some(Type::Dyn);
        }
        if self.assignable(&[(&b, &a)]) {
            return Some(self.apply(&a, false));
        }
        self.assignable(&[(&a, &b)]).then(|| self.apply(&b, false))
    }
}
