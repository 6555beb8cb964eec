//! What an expression may cost at most, from the sizes its data may have. The units are upstream's: reading a name or a
//! field is 1, going over ten characters is 1. Definitions are refused by these numbers, so they follow upstream's rules.

use crate::ast::{ACCUMULATOR, Expr, Fold, Kind};
use crate::check::Facts;
use crate::types::Type;
use crate::value::Value;
use std::collections::BTreeMap;

const PER_CHARACTER: f64 = 0.1;
const PER_PATTERN_CHARACTER: f64 = 0.25;
const LIST: u64 = 10;
const MAP: u64 = 30;
const STRUCT: u64 = 40;
/// What one question to the authorizer costs.
pub const AUTHORIZE: u64 = 350_000;

/// A least and a most; arithmetic saturates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Range {
    pub min: u64,
    pub max: u64,
}

impl Range {
    pub const UNKNOWN: Range = Range { min: 0, max: u64::MAX };
    pub const fn of(n: u64) -> Range {
        Range { min: n, max: n }
    }
    fn plus(self, other: Range) -> Range {
        Range { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }
    fn times(self, other: Range) -> Range {
        Range { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }
    /// Rounded up.
    fn scaled(self, factor: f64) -> Range {
        // A cast from a float saturates.
        let scale = |n: u64| (n as f64 * factor).ceil() as u64;
        Range {
            min: scale(self.min),
            max: if self.max == u64::MAX && factor >= 1.0 { u64::MAX } else { scale(self.max) },
        }
    }
    fn union(self, other: Range) -> Range {
        Range { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// How large data may be.
pub trait Sizes {
    /// The size of what a path leads to: a variable, then fields, `@items`, `@keys`, `@values`.
    fn size(&self, path: &[String]) -> Option<Range>;
}

/// Nothing is known of any size.
pub struct Unknown;

impl Sizes for Unknown {
    fn size(&self, _: &[String]) -> Option<Range> {
        None
    }
}

/// Sizes of what a container holds.
#[derive(Debug, Clone, Copy)]
struct Entry {
    list: bool,
    key: Range,
    value: Range,
}

#[derive(Debug, Clone)]
struct Local {
    name: String,
    path: Vec<String>,
    size: Option<Range>,
    entry: Option<Entry>,
}

struct Coster<'a> {
    facts: &'a Facts,
    sizes: &'a dyn Sizes,
    paths: BTreeMap<usize, Vec<String>>,
    computed: BTreeMap<usize, Range>,
    entries: BTreeMap<usize, Entry>,
    locals: Vec<Local>,
}

/// Estimates a checked expression.
pub fn estimate(expr: &Expr, facts: &Facts, sizes: &dyn Sizes) -> Range {
    let mut coster = Coster {
        facts,
        sizes,
        paths: BTreeMap::new(),
        computed: BTreeMap::new(),
        entries: BTreeMap::new(),
        locals: vec![],
    };
    coster.cost(expr)
}

fn below(mut path: Vec<String>, step: &str) -> Vec<String> {
    path.push(step.to_owned());
    path
}

impl Coster<'_> {
    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|l| l.name == name)
    }

    fn path(&self, expr: &Expr) -> Vec<String> {
        if let Kind::Ident(name) = &expr.kind
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&expr.id).cloned().unwrap_or_default()
    }

    fn cost(&mut self, expr: &Expr) -> Range {
        match &expr.kind {
            Kind::Literal(_) => Range::of(0),
            Kind::Ident(name) => {
                let path = self.local(name).map_or_else(|| vec![name.clone()], |l| l.path.clone());
                self.paths.insert(expr.id, path);
                Range::of(1)
            }
            // Asking whether a field is there costs what leads to it.
            Kind::Select { operand, test: true, .. } => self.cost(operand),
            Kind::Select { operand, field, .. } => {
                let sum = self.cost(operand);
                let path = below(self.path(operand), field);
                self.paths.insert(expr.id, path);
                match self.facts.of(operand) {
                    Type::Map(..) | Type::Object(_) | Type::Param(_) => sum.plus(Range::of(1)),
                    _ => sum,
                }
            }
            Kind::Call { function, target, args } => self.call(expr, function, target.as_deref(), args),
            Kind::List(items) => {
                let mut sum = Range::of(LIST);
                let mut size = if items.is_empty() { Range::of(0) } else { Range { min: u64::MAX, max: 0 } };
                for (item, _) in items {
                    sum = sum.plus(self.cost(item));
                    size = size.union(self.size(item));
                }
                self.entries.insert(expr.id, Entry { list: true, key: Range::of(1), value: size });
                sum
            }
            Kind::Map(pairs) => {
                let mut sum = Range::of(MAP);
                let start = if pairs.is_empty() { Range::of(0) } else { Range { min: u64::MAX, max: 0 } };
                let (mut keys, mut values) = (start, start);
                for (key, value, _) in pairs {
                    sum = sum.plus(self.cost(key)).plus(self.cost(value));
                    keys = keys.union(self.size(key));
                    values = values.union(self.size(value));
                }
                self.entries.insert(expr.id, Entry { list: false, key: keys, value: values });
                sum
            }
            Kind::Struct { fields, .. } => {
                fields.iter().fold(Range::of(STRUCT), |sum, (_, value, ..)| sum.plus(self.cost(value)))
            }
            Kind::Fold(fold) => self.fold(expr, fold),
        }
    }

    fn call(&mut self, expr: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) -> Range {
        if function == "dyn" && args.len() == 1 {
            let sum = self.cost(&args[0]).plus(Range::of(1));
            self.copy(expr, &args[0]);
            return sum;
        }
        let costs: Vec<Range> = args.iter().map(|arg| self.cost(arg)).collect();
        let mut sum = target.map_or(Range::of(0), |t| self.cost(t));
        let facts = self.facts;
        let ids = facts.overloads.get(expr.id).map_or(&[][..], Vec::as_slice);
        if ids.is_empty() {
            return Range::of(0);
        }
        let mut worst = Range { min: u64::MAX, max: 0 };
        let mut result: Option<Range> = None;
        for id in ids {
            let (cost, size) = self.overload(expr, function, id, target, args, &costs);
            worst = worst.union(cost);
            if let Some(size) = size {
                result = Some(result.map_or(size, |r| r.union(size)));
            }
            let step = match *id {
                "index_list" => Some("@items"),
                "index_map" => Some("@values"),
                _ => None,
            };
            if let Some(step) = step {
                result = self.entry(&args[0]).map(|e| e.value);
                let path = below(self.path(&args[0]), step);
                self.paths.insert(expr.id, path);
            }
            if result.is_none() {
                result = self.computed_size(expr);
            }
        }
        if let Some(result) = result {
            self.computed.insert(expr.id, result);
        }
        sum = sum.plus(worst);
        sum
    }

    fn overload(
        &mut self,
        expr: &Expr,
        function: &str,
        id: &str,
        target: Option<&Expr>,
        args: &[Expr],
        costs: &[Range],
    ) -> (Range, Option<Range>) {
        let arguments = costs.iter().fold(Range::of(0), |sum, c| sum.plus(*c));
        if let Some((cost, size)) = self.library(function, id, target, args) {
            return (cost.plus(arguments), size);
        }
        match id {
            "logical_or" | "logical_and" => {
                (Range { min: costs[0].min, max: costs[0].max.saturating_add(costs[1].max) }, None)
            }
            "conditional" => {
                let size = self.size(&args[1]).union(self.size(&args[2]));
                if let (Some(a), Some(b)) = (self.entry(&args[1]), self.entry(&args[2])) {
                    let both = Entry { list: a.list, key: a.key.union(b.key), value: a.value.union(b.value) };
                    self.entries.insert(expr.id, both);
                }
                (costs[0].plus(costs[1].union(costs[2])), Some(size))
            }
            "add_string" | "add_bytes" | "add_list" => {
                let size = self.size(&args[0]).plus(self.size(&args[1]));
                if let (Some(a), Some(b)) = (self.entry(&args[0]), self.entry(&args[1])) {
                    let both = Entry { list: a.list, key: a.key.union(b.key), value: a.value.union(b.value) };
                    self.entries.insert(expr.id, both);
                }
                let cost = if id == "add_list" { Range::of(1) } else { size.scaled(PER_CHARACTER) };
                (cost.plus(arguments), Some(size))
            }
            _ => {
                let (cost, size) = self.standard(id, target, args);
                (cost.plus(arguments), size)
            }
        }
    }

    /// The language's own functions, without their arguments.
    fn standard(&mut self, id: &str, target: Option<&Expr>, args: &[Expr]) -> (Range, Option<Range>) {
        match (id, target, args) {
            ("string_format", Some(target), _) => (self.size(target).scaled(PER_CHARACTER), None),
            ("string_to_bytes", _, [arg]) => {
                let size = self.size(arg);
                let result = Range { min: size.min, max: size.max.saturating_mul(4) };
                (size.scaled(PER_CHARACTER), Some(result))
            }
            ("bytes_to_string", _, [arg]) => {
                let size = self.size(arg);
                (size.scaled(PER_CHARACTER), Some(Range { min: size.min / 4, max: size.max }))
            }
            ("strings_quote", _, [arg]) => {
                let size = self.size(arg);
                let result = Range { min: size.min + 2, max: size.max.saturating_mul(2).saturating_add(2) };
                (size.scaled(PER_CHARACTER), Some(result))
            }
            ("starts_with_string" | "ends_with_string", _, [arg]) => {
                (self.size(arg).scaled(PER_CHARACTER), None)
            }
            ("in_list", _, [_, list]) => (self.size(list).scaled(1.0), None),
            ("matches_string", Some(target), [pattern]) => {
                let text = self.size(target).plus(Range::of(1)).scaled(PER_CHARACTER);
                (text.times(self.size(pattern).scaled(PER_PATTERN_CHARACTER)), None)
            }
            ("contains_string", Some(target), [arg]) => {
                let text = self.size(target).scaled(PER_CHARACTER);
                (text.times(self.size(arg).scaled(PER_CHARACTER)), None)
            }
            ("equals" | "not_equals", _, [a, b]) => (self.comparison(a, b), None),
            (_, _, [a, b]) if compares(id) => (self.comparison(a, b), None),
            _ => (Range::of(1), None),
        }
    }

    fn comparison(&mut self, a: &Expr, b: &Expr) -> Range {
        let max = self.size(a).max.min(self.size(b).max);
        Range { min: u64::from(max > 0), max }.scaled(PER_CHARACTER)
    }

    /// Kubernetes' libraries: cost and size of the result.
    fn library(
        &mut self,
        function: &str,
        id: &str,
        target: Option<&Expr>,
        args: &[Expr],
    ) -> Option<(Range, Option<Range>)> {
        let one = Some((Range::of(1), None));
        match (function, target, args) {
            ("check", ..) => Some((Range::of(AUTHORIZE), None)),
            (
                "serviceAccount" | "path" | "group" | "resource" | "subresource" | "namespace" | "name"
                | "allowed" | "reason" | "error" | "errored" | "fieldSelector" | "labelSelector",
                ..,
            ) => one,
            ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", Some(target), _) => {
                let size = self.known_size(target);
                let Type::List(of) = self.facts.of(target) else {
                    return Some((size.scaled(PER_CHARACTER), None));
                };
                let mut each = Range::of(1);
                if matches!(**of, Type::String | Type::Bytes) {
                    each = each.plus(self.element_size(target).scaled(PER_CHARACTER));
                }
                Some((size.times(each), None))
            }
            (
                "url" | "isIP" | "cidr" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver"
                | "validate",
                _,
                [arg, ..],
            )
            | ("ip", None, [arg]) => Some((self.known_size(arg).scaled(PER_CHARACTER), None)),
            ("ip.isCanonical", _, [arg]) => Some((self.known_size(arg).scaled(2.0 * PER_CHARACTER), None)),
            ("lowerAscii" | "upperAscii" | "substring" | "trim", Some(target), _) => {
                let size = self.known_size(target);
                Some((size.scaled(PER_CHARACTER), Some(size)))
            }
            ("replace", Some(target), [from, to, ..]) => {
                let (size, from, to) = (self.known_size(target), self.known_size(from), self.known_size(to));
                Some((size.scaled(2.0 * PER_CHARACTER), Some(replaced(size, from, to))))
            }
            ("split", Some(target), _) => {
                let size = self.known_size(target);
                Some((size.scaled(2.0 * PER_CHARACTER), Some(Range { min: 0, max: size.max })))
            }
            ("join", Some(target), _) => {
                let list = self.known_size(target);
                let mut size = list.times(self.element_size(target));
                if let Some(separator) = args.first() {
                    let gaps = Range { min: list.min.saturating_sub(1), max: list.max.saturating_sub(1) };
                    size = size.plus(self.known_size(separator).times(gaps));
                }
                Some((size.scaled(PER_CHARACTER), Some(size)))
            }
            ("find" | "findAll", Some(target), [pattern, ..]) => {
                let size = self.known_size(target);
                let text = size.plus(Range::of(1)).scaled(PER_CHARACTER);
                let pattern = self.known_size(pattern).scaled(PER_PATTERN_CHARACTER);
                Some((text.times(pattern), Some(Range { min: 0, max: size.max })))
            }
            (
                "masked"
                | "prefixLength"
                | "family"
                | "isUnspecified"
                | "isLoopback"
                | "isLinkLocalMulticast"
                | "isLinkLocalUnicast"
                | "isGlobalUnicast"
                | "ip"
                | "sign"
                | "asInteger"
                | "isInteger"
                | "asApproximateFloat"
                | "isGreaterThan"
                | "isLessThan"
                | "compareTo"
                | "add"
                | "sub"
                | "major"
                | "minor"
                | "patch",
                Some(_),
                _,
            ) => one,
            ("containsIP" | "containsCIDR", Some(_), [arg]) => {
                let bytes = Range { min: 4, max: 16 };
                let mut cost = bytes.plus(bytes).scaled(PER_CHARACTER);
                if function == "containsCIDR" {
                    cost = cost.plus(bytes.scaled(PER_CHARACTER)).plus(Range::of(1));
                }
                if id.ends_with("_string") {
                    cost = cost.plus(self.known_size(arg).scaled(PER_CHARACTER));
                }
                Some((cost, None))
            }
            _ => None,
        }
    }

    fn fold(&mut self, expr: &Expr, fold: &Fold) -> Range {
        let mut sum = self.cost(&fold.range).plus(self.cost(&fold.init));
        if fold.accumulator != ACCUMULATOR {
            // A binding: nothing is gone over.
            self.push(&fold.accumulator, &fold.init);
            sum = sum.plus(self.cost(&fold.result));
            self.locals.pop();
            self.copy(expr, &fold.result);
            return sum;
        }
        self.push(&fold.accumulator, &fold.init);
        let entry = self.entry(&fold.range);
        let list = match (entry, self.facts.of(&fold.range)) {
            (Some(entry), _) => entry.list,
            (None, of) => matches!(of, Type::List(_)),
        };
        let path = self.path(&fold.range);
        let mut element = |name: &str, step: &str, size: Option<Range>| {
            let path = below(path.clone(), step);
            self.locals.push(Local { name: name.into(), path, size, entry: None });
        };
        let (key, value) = (entry.map(|e| e.key), entry.map(|e| e.value));
        match &fold.second {
            Some(second) => {
                element(&fold.variable, if list { "@indices" } else { "@keys" }, key);
                element(second, if list { "@items" } else { "@values" }, value);
            }
            None if list => element(&fold.variable, "@items", value),
            None => element(&fold.variable, "@keys", key),
        }
        let loop_cost = self.cost(&fold.condition).plus(self.cost(&fold.step));
        let step_entry = self.entry(&fold.step);
        let variables = 1 + usize::from(fold.second.is_some());
        self.locals.truncate(self.locals.len() - variables);
        sum = sum.plus(self.cost(&fold.result));
        self.locals.pop();
        let count = self.size(&fold.range);
        match &fold.init.kind {
            Kind::Literal(_) => {
                if let Some(size) = self.computed_size(&fold.init) {
                    self.computed.insert(expr.id, size);
                }
            }
            Kind::List(_) | Kind::Map(_) => {
                self.computed.insert(expr.id, count);
                if let Some(entry) = step_entry {
                    self.entries.insert(expr.id, entry);
                }
            }
            _ => {}
        }
        sum.plus(count.times(loop_cost))
    }

    fn push(&mut self, name: &str, value: &Expr) {
        let (path, size, entry) = (self.path(value), self.computed_size(value), self.entry(value));
        self.locals.push(Local { name: name.into(), path, size, entry });
    }

    fn copy(&mut self, to: &Expr, from: &Expr) {
        if let Some(size) = self.computed_size(from) {
            self.computed.insert(to.id, size);
        }
        if let Some(entry) = self.entry(from) {
            self.entries.insert(to.id, entry);
        }
    }

    fn entry(&self, expr: &Expr) -> Option<Entry> {
        if let Some(entry) = self.entries.get(&expr.id) {
            return Some(*entry);
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name)?.entry,
            _ => None,
        }
    }

    fn size(&mut self, expr: &Expr) -> Range {
        self.computed_size(expr).unwrap_or(Range::UNKNOWN)
    }

    /// As the libraries see it.
    fn known_size(&mut self, expr: &Expr) -> Range {
        self.size(expr)
    }

    fn element_size(&mut self, list: &Expr) -> Range {
        let path = self.path(list);
        if path.is_empty() || path[0] == ACCUMULATOR {
            return Range::UNKNOWN;
        }
        self.sizes.size(&below(path, "@items")).unwrap_or(Range::UNKNOWN)
    }

    fn computed_size(&mut self, expr: &Expr) -> Option<Range> {
        if let Some(size) = self.computed.get(&expr.id) {
            return Some(*size);
        }
        match &expr.kind {
            // The name of a type is looked up as data would be.
            Kind::Literal(Value::Type(name)) => return self.sizes.size(&[name.to_string()]),
            Kind::Literal(value) => return Some(Range::of(value.size())),
            Kind::List(items) => return Some(Range::of(items.len() as u64)),
            Kind::Map(entries) => return Some(Range::of(entries.len() as u64)),
            _ => {}
        }
        let path = self.path(expr);
        if !path.is_empty()
            && path[0] != ACCUMULATOR
            && let Some(size) = self.sizes.size(&path)
        {
            self.computed.insert(expr.id, size);
            return Some(size);
        }
        if self.facts.of(expr).is_scalar() {
            return Some(Range::of(1));
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name)?.size,
            _ => None,
        }
    }
}

/// Overloads of `<`, `<=`, `>` and `>=` that go over their operands.
fn compares(id: &str) -> bool {
    ["less_", "greater_"].iter().any(|p| id.starts_with(p))
        && (id.ends_with("_string") || id.ends_with("_bytes"))
}

/// The size of a text in which parts are replaced.
fn replaced(size: Range, from: Range, to: Range) -> Range {
    let (mut count, mut kept) = (Range::of(0), Range::of(0));
    if from.min == 0 {
        count.max = size.max.saturating_add(1);
        kept.max = size.max;
    } else if to.max <= from.min {
        kept.max = size.max;
    } else {
        count.max = (size.max as f64 / from.min as f64).ceil() as u64;
    }
    if from.max == 0 {
        count.min = size.min.saturating_add(1);
        kept.min = size.min;
    } else if from.max <= to.min {
        kept.min = size.min;
    } else {
        count.min = (size.min as f64 / from.max as f64).ceil() as u64;
    }
    count.times(to).plus(kept)
}
