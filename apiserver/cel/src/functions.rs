//! What can be called, with which types: the language's own functions and Kubernetes' libraries.
//!
//! One line an overload: its id, how it is called, its result. `A` and `B` are types to be inferred; what stands before
//! the dot of a member is its receiver when it is a type, and a part of the name otherwise.

use crate::types::{Substitution, Type};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

const TABLE: &str = include_str!("functions.txt");

/// One form of a function.
#[derive(Debug, Clone, PartialEq)]
pub struct Overload {
    pub id: String,
    pub member: bool,
    /// The receiver first when there is one.
    pub params: Vec<Type>,
    pub result: Type,
}

/// `A` and `B` in the table.
const GENERIC: [(&str, u32); 2] = [("A", u32::MAX), ("B", u32::MAX - 1)];

static FUNCTIONS: LazyLock<BTreeMap<String, Vec<Overload>>> = LazyLock::new(|| {
    let mut out: BTreeMap<String, Vec<Overload>> = BTreeMap::new();
    for line in TABLE.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some((name, overload)) = read(line) {
            out.entry(name).or_default().push(overload);
        }
    }
    out
});

/// The forms of a function; none when nobody declared it.
pub fn overloads(name: &str) -> &'static [Overload] {
    FUNCTIONS.get(name).map_or(&[], Vec::as_slice)
}

fn read(line: &str) -> Option<(String, Overload)> {
    let (id, rest) = line.split_once(char::is_whitespace)?;
    let rest = rest.trim();
    let end = rest.rfind(") ")?;
    let result = type_of(rest[end + 2..].trim())?;
    // The parenthesis that closes at `end` opens the parameters.
    let (mut depth, mut open) = (0, 0);
    for (i, c) in rest[..=end].char_indices().rev() {
        depth += match c {
            ')' => 1,
            '(' => -1,
            _ => 0,
        };
        if depth == 0 {
            open = i;
            break;
        }
    }
    let called = &rest[..open];
    let mut params: Vec<Type> =
        split(&rest[open + 1..end]).into_iter().map(type_of).collect::<Option<_>>()?;
    let receiver = called.rsplit_once('.').and_then(|(receiver, name)| Some((type_of(receiver)?, name)));
    let (name, member) = match receiver {
        Some((receiver, name)) => {
            params.insert(0, receiver);
            (name, true)
        }
        None => (called, false),
    };
    Some((name.to_owned(), Overload { id: id.into(), member, params, result }))
}

/// Parts between commas that stand in no parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut out, mut depth, mut from) = (vec![], 0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                out.push(text[from..i].trim());
                from = i + 1;
            }
            _ => {}
        }
    }
    let last = text[from..].trim();
    if !last.is_empty() {
        out.push(last);
    }
    out
}

fn type_of(text: &str) -> Option<Type> {
    if let Some((_, n)) = GENERIC.iter().find(|(name, _)| *name == text) {
        return Some(Type::Param(*n));
    }
    if let Some((name, inner)) = text.strip_suffix(')').and_then(|t| t.split_once('(')) {
        let mut params = split(inner).into_iter().map(type_of).collect::<Option<Vec<_>>>()?.into_iter();
        return Some(match name {
            "list" => Type::list(params.next()?),
            "map" => Type::map(params.next()?, params.next()?),
            "optional" => Type::optional(params.next()?),
            "type" => Type::Kind(Arc::new(params.next()?)),
            _ => return None,
        });
    }
    Some(match text {
        "dyn" => Type::Dyn,
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "URL" => Type::Opaque("kubernetes.URL"),
        "Quantity" => Type::Opaque("kubernetes.Quantity"),
        "IP" => Type::Opaque("net.IP"),
        "CIDR" => Type::Opaque("net.CIDR"),
        "Semver" => Type::Opaque("kubernetes.Semver"),
        "Format" => Type::Opaque("kubernetes.NamedFormat"),
        "Authorizer" => AUTHORIZER,
        "PathCheck" => Type::Opaque("kubernetes.authorization.PathCheck"),
        "GroupCheck" => Type::Opaque("kubernetes.authorization.GroupCheck"),
        "ResourceCheck" => RESOURCE_CHECK,
        "Decision" => Type::Opaque("kubernetes.authorization.Decision"),
        _ => return None,
    })
}

/// The type of the variable `authorizer`.
pub const AUTHORIZER: Type = Type::Opaque("kubernetes.authorization.Authorizer");
/// The type of `authorizer.requestResource`.
pub const RESOURCE_CHECK: Type = Type::Opaque("kubernetes.authorization.ResourceCheck");

/// An overload's types with parameters of its own.
pub fn instantiate(overload: &Overload, found: &mut Substitution) -> (Vec<Type>, Type) {
    let fresh = [found.fresh(), found.fresh()];
    let params = overload.params.iter().map(|p| renamed(p, &fresh)).collect();
    (params, renamed(&overload.result, &fresh))
}

fn renamed(of: &Type, fresh: &[Type; 2]) -> Type {
    match of {
        Type::Param(n) => fresh[(u32::MAX - n) as usize].clone(),
        Type::List(of) => Type::list(renamed(of, fresh)),
        Type::Map(key, value) => Type::map(renamed(key, fresh), renamed(value, fresh)),
        Type::Optional(of) => Type::optional(renamed(of, fresh)),
        Type::Kind(of) => Type::Kind(Arc::new(renamed(of, fresh))),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_read() {
        let lines = TABLE.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        for line in lines {
            assert!(read(line).is_some(), "{line}");
        }
        let size = overloads("size");
        assert!(size.iter().any(|o| o.member) && size.iter().any(|o| !o.member));
        assert_eq!(overloads("sets.contains")[0].params.len(), 2);
        assert_eq!(overloads("_+_")[0].result, Type::Int);
    }
}
