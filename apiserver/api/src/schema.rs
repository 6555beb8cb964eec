//! The schema table: for every type its fields, how they merge and how they are written.
//!
//! The built-in table is `data/schema.txt`, a list of facts about the published API; `data/make_schema.py` writes it.
//! One line per type, then one indented line per field:
//! ```text
//! core.v1.ContainerPort [gvk=group/version/Kind] [mt=atomic] [is=shape:format]
//!  name shape tag flags [lt=map:key,key|set|atomic] [mt=atomic] [ps=strategy:key] [d=default] [enum=A|B] [f=format] [go=Name]
//!       [gt=type] [in=Embedded.Struct]
//! ```
//! Names abbreviate `io.k8s.api.` (nothing), `io.k8s.apimachinery.pkg.` (`m:`), apiextensions (`x:`), apiregistration (`k:`).
//! Shapes: `s b i32 i64 f64 by any @Type []shape {}shape`. Flags: `e` omitted when empty, `z` omitted when zero, `p` pointer
//! (absence differs from zero), `r` required, `-` none. Tag: protobuf tag, dotted when the field is nested there. Fields stand
//! in the order of upstream's struct; `go`, `gt` and `in` are its name there when it is not the same with a capital, its type
//! when that has a name, and the embedded structs on the way to it. Error messages show all of these.
//!
//! Custom resources build a [`Table`] of their own in the same form.

use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Index of a type in its table.
pub type TypeId = usize;

/// What a value looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    String,
    Bytes,
    Int32,
    Int64,
    Number,
    Bool,
    /// Anything: JSON, raw extension.
    Any,
    /// `metav1.Time`: RFC 3339 with seconds.
    Time,
    /// `metav1.MicroTime`: RFC 3339 with microseconds.
    MicroTime,
    Quantity,
    IntOrString,
    FieldsV1,
    Object(TypeId),
    List(Box<Shape>),
    Map(Box<Shape>),
}

/// How two versions of a list merge.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    /// Items are told apart by these fields.
    Map(Vec<String>),
}

/// `x-kubernetes-patch-strategy` and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub retain_keys: bool,
    pub key: Option<String>,
    /// As published.
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)]
pub struct Field {
    pub name: String,
    pub shape: Shape,
    /// Protobuf tags from this message down.
    pub tags: Vec<u32>,
    pub omit_empty: bool,
    pub omit_zero: bool,
    pub pointer: bool,
    pub required: bool,
    /// As published; `None` reads as atomic.
    pub list: Option<ListType>,
    pub atomic_map: bool,
    pub patch: Option<PatchStrategy>,
    pub default: Option<Value>,
    pub enumeration: Vec<String>,
    /// Place in upstream's struct.
    pub order: usize,
    /// Name in upstream's struct when it is not `name` with a capital.
    pub go: String,
    /// Named type in upstream's struct, as Go prints it; empty when the shape says it all.
    pub go_type: String,
    /// Embedded structs on the way from the type to this field, joined by dots.
    pub within: String,
}

impl Field {
    /// Name in upstream's struct.
    pub fn go_name(&self) -> String {
        if !self.go.is_empty() {
            return self.go.clone();
        }
        let mut letters = self.name.chars();
        letters
            .next()
            .map_or_else(String::new, |first| format!("{}{}", first.to_uppercase(), letters.as_str()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Type {
    /// Full published name.
    pub name: String,
    /// Sorted by name.
    pub fields: Vec<Field>,
    pub atomic: bool,
    /// Group, version, kind when it is one.
    pub gvk: Option<(String, String, String)>,
    /// A type that is no object (Quantity, Time, …) and its format.
    pub alias: Option<Shape>,
    pub format: String,
}

impl Type {
    /// Fields as upstream's struct has them.
    pub fn in_order(&self) -> Vec<&Field> {
        let mut fields: Vec<&Field> = self.fields.iter().collect();
        fields.sort_by_key(|f| f.order);
        fields
    }
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|f| f.name.as_str().cmp(name)).ok().map(|i| &self.fields[i])
    }
    /// `PodSpec`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
    /// `v1.PodSpec`, as Go names it.
    pub fn go_name(&self) -> String {
        let mut parts = self.name.rsplit('.');
        let (kind, version) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        format!("{version}.{kind}")
    }
}

/// A set of types that refer to one another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    pub types: Vec<Type>,
    by_name: BTreeMap<String, TypeId>,
}

impl Table {
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id]
    }
    pub fn id(&self, full_name: &str) -> Option<TypeId> {
        self.by_name.get(full_name).copied()
    }
    /// Follows `key` from an object shape.
    pub fn field(&self, shape: &Shape, key: &str) -> Option<&Field> {
        match shape {
            Shape::Object(id) => self.get(*id).field(key),
            _ => None,
        }
    }

    /// Adds a type; fields are put in order.
    pub fn add(&mut self, mut new: Type) -> TypeId {
        new.fields.sort_by(|a, b| a.name.cmp(&b.name));
        self.by_name.insert(new.name.clone(), self.types.len());
        self.types.push(new);
        self.types.len() - 1
    }

    /// Copies a type of another table, and what it refers to.
    pub fn import(&mut self, from: &Table, full_name: &str) -> Option<TypeId> {
        if let Some(id) = self.id(full_name) {
            return Some(id);
        }
        let original = from.get(from.id(full_name)?).clone();
        // The place first: types may refer to themselves.
        let id = self.add(Type { fields: vec![], ..original.clone() });
        let mut fields = original.fields;
        for field in &mut fields {
            field.shape = self.import_shape(from, &field.shape);
        }
        self.types[id].fields = fields;
        Some(id)
    }

    fn import_shape(&mut self, from: &Table, shape: &Shape) -> Shape {
        match shape {
            Shape::Object(id) => {
                let name = from.get(*id).name.clone();
                self.import(from, &name).map_or(Shape::Any, Shape::Object)
            }
            Shape::List(item) => Shape::List(Box::new(self.import_shape(from, item))),
            Shape::Map(item) => Shape::Map(Box::new(self.import_shape(from, item))),
            other => other.clone(),
        }
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Table, String> {
        let mut table = Table::default();
        for line in text.lines().filter(|l| !l.starts_with(' ') && !l.is_empty()) {
            let name = full_name(line.split(' ').next().unwrap_or(""));
            table.by_name.insert(name.clone(), table.types.len());
            table.types.push(Type {
                name,
                fields: vec![],
                atomic: false,
                gvk: None,
                alias: None,
                format: String::new(),
            });
        }
        let mut current = usize::MAX;
        for (n, line) in text.lines().enumerate() {
            let problem = |what: &str| format!("schema table line {}: {what}", n + 1);
            let Some(field) = line.strip_prefix(' ') else {
                current = current.wrapping_add(1);
                table.read_head(current, line).map_err(|e| problem(&e))?;
                continue;
            };
            let field = table.read_field(field).map_err(|e| problem(&e))?;
            let fields =
                &mut table.types.get_mut(current).ok_or_else(|| problem("field before any type"))?.fields;
            fields.push(Field { order: fields.len(), ..field });
        }
        for t in &mut table.types {
            t.fields.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(table)
    }

    fn read_head(&mut self, id: TypeId, line: &str) -> Result<(), String> {
        for word in line.split(' ').skip(1) {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("what is {word}?"))?;
            match key {
                "gvk" => {
                    let mut p = value.splitn(3, '/').map(String::from);
                    let mut next = || p.next().unwrap_or_default();
                    self.types[id].gvk = Some((next(), next(), next()));
                }
                "mt" => self.types[id].atomic = value == "atomic",
                "is" => {
                    let (shape, format) = value.split_once(':').unwrap_or((value, ""));
                    let name = self.types[id].name.clone();
                    self.types[id].alias = Some(match name.rsplit('.').next() {
                        Some("Quantity") => Shape::Quantity,
                        Some("IntOrString") => Shape::IntOrString,
                        Some("FieldsV1") => Shape::FieldsV1,
                        Some("Time") => Shape::Time,
                        Some("MicroTime") => Shape::MicroTime,
                        _ => self.read_shape(shape)?,
                    });
                    self.types[id].format = format.into();
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_shape(&self, text: &str) -> Result<Shape, String> {
        if let Some(rest) = text.strip_prefix("[]") {
            return Ok(Shape::List(Box::new(self.read_shape(rest)?)));
        }
        if let Some(rest) = text.strip_prefix("{}") {
            return Ok(Shape::Map(Box::new(self.read_shape(rest)?)));
        }
        if let Some(name) = text.strip_prefix('@') {
            let id = self.id(&full_name(name)).ok_or_else(|| format!("no type {name}"))?;
            return Ok(match name.rsplit('.').next() {
                Some("Quantity") => Shape::Quantity,
                Some("IntOrString") => Shape::IntOrString,
                Some("FieldsV1") => Shape::FieldsV1,
                Some("Time") => Shape::Time,
                Some("MicroTime") => Shape::MicroTime,
                Some("RawExtension" | "JSON") => Shape::Any,
                _ => Shape::Object(id),
            });
        }
        Ok(match text {
            "s" => Shape::String,
            "by" => Shape::Bytes,
            "i32" => Shape::Int32,
            "i64" => Shape::Int64,
            "f64" => Shape::Number,
            "b" => Shape::Bool,
            "any" => Shape::Any,
            other => return Err(format!("no shape {other}")),
        })
    }

    fn read_field(&self, line: &str) -> Result<Field, String> {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or("");
        let shape = self.read_shape(words.next().ok_or("field without shape")?)?;
        let tags =
            words.next().ok_or("field without tag")?.split('.').filter_map(|t| t.parse().ok()).collect();
        let flags = words.next().ok_or("field without flags")?;
        let mut field = Field {
            name: name.into(),
            shape,
            tags,
            omit_empty: flags.contains('e'),
            omit_zero: flags.contains('z'),
            pointer: flags.contains('p'),
            required: flags.contains('r'),
            list: None,
            atomic_map: false,
            patch: None,
            default: None,
            enumeration: vec![],
            order: 0,
            go: String::new(),
            go_type: String::new(),
            within: String::new(),
        };
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("what is {word}?"))?;
            match key {
                "lt" => {
                    field.list = Some(match value.split_once(':') {
                        Some(("map", keys)) => ListType::Map(keys.split(',').map(String::from).collect()),
                        _ if value == "set" => ListType::Set,
                        _ => ListType::Atomic,
                    })
                }
                "mt" => field.atomic_map = value == "atomic",
                "ps" => {
                    let (strategy, key) =
                        value.split_once(':').map_or((value, None), |(s, k)| (s, Some(k.to_string())));
                    field.patch = Some(PatchStrategy {
                        merge: strategy.contains("merge"),
                        retain_keys: strategy.contains("retainKeys"),
                        key,
                        text: strategy.into(),
                    });
                }
                "d" => field.default = Some(serde_json::from_str(value).map_err(|e| e.to_string())?),
                "go" => field.go = value.into(),
                "gt" => field.go_type = value.into(),
                "in" => field.within = value.into(),
                "enum" => field.enumeration = value.split('|').map(String::from).collect(),
                _ => {}
            }
        }
        Ok(field)
    }
}

const PREFIXES: [(&str, &str); 3] = [
    ("m:", "io.k8s.apimachinery.pkg."),
    ("x:", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions."),
    ("k:", "io.k8s.kube-aggregator.pkg.apis.apiregistration."),
];

/// A published name from its abbreviation in the table.
pub fn full_name(short: &str) -> String {
    for (mark, prefix) in PREFIXES {
        if let Some(rest) = short.strip_prefix(mark) {
            return format!("{prefix}{rest}");
        }
    }
    format!("io.k8s.api.{short}")
}

static BUILTIN: LazyLock<Table> = LazyLock::new(|| match Table::parse(include_str!("../data/schema.txt")) {
    Ok(table) => table,
    Err(e) => panic!("built-in schema table: {e}"),
});

/// The table of built-in types.
pub fn builtin() -> &'static Table {
    &BUILTIN
}

/// Full name of `metav1.ObjectMeta`.
pub const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_has_a_schema() {
        for r in crate::RESOURCES.iter() {
            assert!(builtin().id(&r.schema).is_some(), "{} has no type {}", r.plural, r.schema);
        }
    }

    #[test]
    fn container_ports_merge_by_port_and_protocol() {
        let t = builtin();
        let container = t.get(t.id("io.k8s.api.core.v1.Container").unwrap());
        let ports = container.field("ports").unwrap();
        assert_eq!(ports.list, Some(ListType::Map(vec!["containerPort".into(), "protocol".into()])));
        assert_eq!(ports.patch.as_ref().unwrap().key.as_deref(), Some("containerPort"));
        assert_eq!(container.field("env").unwrap().tags, vec![7]);
    }
}
