//! Structured merge: objects as trees of fields by their schema.
//!
//! Lists with keys are maps of items, sets are maps of values, atomic lists and maps are leaves.
//! [`fields`] names what an object says, [`compare`] what differs between two, [`merge`] lays one over another,
//! [`without`] takes named fields out.

use crate::fieldset::{Element, FieldSet};
use crate::value::is_empty;
use keelson_api::schema::{Field, ListType, Shape, Table};
use serde_json::{Map, Value};

/// How a value of a shape falls apart.
enum Form<'a> {
    Leaf,
    /// Named members, each with its own shape; `None` shape: deduced from the value.
    Struct(&'a Shape),
    Map(&'a Shape),
    Items(&'a Shape, &'a [String]),
    Set,
}

/// A shape in a place: the field says whether its list or map is taken as a whole.
#[derive(Clone, Copy)]
struct Place<'a> {
    table: &'a Table,
    shape: &'a Shape,
    field: Option<&'a Field>,
}

static ANY: Shape = Shape::Any;

impl<'a> Place<'a> {
    fn root(table: &'a Table, shape: &'a Shape) -> Place<'a> {
        Place { table, shape, field: None }
    }

    fn form(&self) -> Form<'a> {
        if self.field.is_some_and(|f| f.atomic_map) {
            return Form::Leaf;
        }
        match self.shape {
            Shape::Object(id) if self.table.get(*id).atomic || self.table.get(*id).alias.is_some() => {
                Form::Leaf
            }
            Shape::Object(_) => Form::Struct(self.shape),
            Shape::Map(item) => Form::Map(item),
            Shape::List(item) => match self.field.and_then(|f| f.list.as_ref()) {
                Some(ListType::Map(keys)) => Form::Items(item, keys),
                Some(ListType::Set) => Form::Set,
                _ => Form::Leaf,
            },
            _ => Form::Leaf,
        }
    }

    fn member(&self, name: &str) -> Place<'a> {
        match self.form() {
            Form::Struct(shape) => {
                let field = self.table.field(shape, name);
                Place { table: self.table, shape: field.map_or(&ANY, |f| &f.shape), field }
            }
            Form::Map(item) | Form::Items(item, _) => Place { table: self.table, shape: item, field: None },
            _ => Place { table: self.table, shape: &ANY, field: None },
        }
    }

    fn item(&self) -> Place<'a> {
        let shape = match self.shape {
            Shape::List(item) => item,
            _ => &ANY,
        };
        Place { table: self.table, shape, field: None }
    }

    fn element(&self, form: &Form, item: &Value) -> Element {
        match form {
            Form::Items(shape, keys) => {
                let mut map = Map::new();
                for key in *keys {
                    let field = self.table.field(shape, key);
                    let value = match &item[key] {
                        // A key that is left out has its default; that of a required text is the empty one.
                        Value::Null => field.and_then(|f| match &f.default {
                            None if f.required && f.shape == Shape::String => Some("".into()),
                            default => default.clone(),
                        }),
                        v => Some(v.clone()),
                    };
                    if let Some(value) = value {
                        map.insert(key.clone(), value);
                    }
                }
                Element::key(map)
            }
            _ => Element::Value(item.to_string()),
        }
    }
}

/// The fields an object says something about.
pub fn fields(table: &Table, shape: &Shape, object: &Value) -> FieldSet {
    let mut out = FieldSet::default();
    collect(Place::root(table, shape), object, &mut vec![], &mut out);
    out
}

fn collect(place: Place, value: &Value, path: &mut Vec<Element>, out: &mut FieldSet) {
    let form = place.form();
    match (&form, value) {
        (Form::Struct(_) | Form::Map(_), Value::Object(map)) => {
            for (name, child) in map {
                path.push(Element::Field(name.clone()));
                collect(place.member(name), child, path, out);
                let entry = matches!(form, Form::Map(_));
                if entry || child.is_null() || child.as_object().is_some_and(Map::is_empty) {
                    out.insert(path);
                }
                path.pop();
            }
        }
        (Form::Items(..) | Form::Set, Value::Array(list)) => {
            for item in list {
                path.push(place.element(&form, item));
                collect(place.item(), item, path, out);
                out.insert(path);
                path.pop();
            }
        }
        _ => out.insert(path),
    }
}

/// What differs between two versions of an object.
#[derive(Debug, Default, Clone)]
pub struct Difference {
    pub added: FieldSet,
    pub removed: FieldSet,
    pub modified: FieldSet,
}

/// Compares two versions of an object.
pub fn compare(table: &Table, shape: &Shape, old: &Value, new: &Value) -> Difference {
    let mut out = Difference::default();
    differ(Place::root(table, shape), Some(old), Some(new), &mut vec![], &mut out);
    out
}

fn differ(
    place: Place,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<Element>,
    out: &mut Difference,
) {
    match (old, new) {
        (None, None) => return,
        (None, Some(_)) => out.added.insert(path),
        (Some(_), None) => out.removed.insert(path),
        (Some(a), Some(b)) if a == b => return,
        _ => {}
    }
    let form = place.form();
    let none = Value::Null;
    let (a, b) = (old.unwrap_or(&none), new.unwrap_or(&none));
    match form {
        Form::Struct(_) | Form::Map(_) if a.is_object() || b.is_object() => {
            let empty = Map::new();
            let (a, b) = (a.as_object().unwrap_or(&empty), b.as_object().unwrap_or(&empty));
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                path.push(Element::Field(name.clone()));
                differ(place.member(name), a.get(name), b.get(name), path, out);
                path.pop();
            }
        }
        Form::Items(..) | Form::Set if a.is_array() || b.is_array() => {
            let side = |v: &Value| -> Vec<(Element, Value)> {
                v.as_array().into_iter().flatten().map(|i| (place.element(&form, i), i.clone())).collect()
            };
            let (a, b) = (side(a), side(b));
            let find = |side: &[(Element, Value)], e: &Element| {
                side.iter().find(|(x, _)| x == e).map(|(_, v)| v.clone())
            };
            let elements: std::collections::BTreeSet<&Element> = a.iter().chain(&b).map(|(e, _)| e).collect();
            for element in elements {
                path.push(element.clone());
                differ(place.item(), find(&a, element).as_ref(), find(&b, element).as_ref(), path, out);
                path.pop();
            }
        }
        _ if old.is_some() && new.is_some() => out.modified.insert(path),
        _ => {}
    }
}

/// Lays `over` over `under`: what `over` says wins, what it does not mention stays.
pub fn merge(table: &Table, shape: &Shape, under: &Value, over: &Value) -> Value {
    lay(Place::root(table, shape), under, over)
}

fn lay(place: Place, under: &Value, over: &Value) -> Value {
    let form = place.form();
    match (&form, under, over) {
        (Form::Struct(_) | Form::Map(_), Value::Object(a), Value::Object(b)) => {
            let mut out = a.clone();
            for (name, value) in b {
                let merged = match a.get(name) {
                    Some(old) => lay(place.member(name), old, value),
                    None => value.clone(),
                };
                out.insert(name.clone(), merged);
            }
            Value::Object(out)
        }
        (Form::Items(..) | Form::Set, Value::Array(a), Value::Array(b)) => {
            let (a_keys, b_keys): (Vec<_>, Vec<_>) = (
                a.iter().map(|i| place.element(&form, i)).collect(),
                b.iter().map(|i| place.element(&form, i)).collect(),
            );
            let mut out = vec![];
            let (mut i, mut j) = (0, 0);
            // Shared items follow the order of `over`; the others keep their place among them.
            while i < a.len() || j < b.len() {
                if i < a.len() && !b_keys.contains(&a_keys[i]) {
                    out.push(a[i].clone());
                    i += 1;
                } else if j < b.len() {
                    match a_keys.iter().position(|k| *k == b_keys[j]) {
                        Some(at) => {
                            out.push(lay(place.item(), &a[at], &b[j]));
                            i += usize::from(i < a.len());
                        }
                        None => out.push(b[j].clone()),
                    }
                    j += 1;
                } else {
                    i += 1;
                }
            }
            Value::Array(out)
        }
        _ => over.clone(),
    }
}

/// The object without the members of a set (and all that is below them).
pub fn without(table: &Table, shape: &Shape, object: &Value, gone: &FieldSet) -> Value {
    cut(Place::root(table, shape), object, gone, false)
}

/// The same, with what is empty for it: who owns such a parent goes on to own it.
pub fn emptied(table: &Table, shape: &Shape, object: &Value, gone: &FieldSet) -> Value {
    cut(Place::root(table, shape), object, gone, true)
}

fn cut(place: Place, value: &Value, gone: &FieldSet, keep: bool) -> Value {
    if gone.is_empty() {
        return value.clone();
    }
    let form = place.form();
    match (&form, value) {
        (Form::Struct(_) | Form::Map(_), Value::Object(map)) => {
            let mut out = Map::new();
            for (name, child) in map {
                let (member, below) = gone.below(&Element::Field(name.clone()));
                if member {
                    continue;
                }
                let left = below.map_or_else(|| child.clone(), |b| cut(place.member(name), child, b, keep));
                // What is empty now and was not before goes as well.
                if keep || !is_empty(&left) || is_empty(child) {
                    out.insert(name.clone(), left);
                }
            }
            Value::Object(out)
        }
        (Form::Items(..) | Form::Set, Value::Array(list)) => {
            let mut out = vec![];
            for item in list {
                let (member, below) = gone.below(&place.element(&form, item));
                if !member {
                    out.push(below.map_or_else(|| item.clone(), |b| cut(place.item(), item, b, keep)));
                }
            }
            Value::Array(out)
        }
        _ => value.clone(),
    }
}

/// Checks that an object fits its schema as apply wants it: known fields, right kinds, unique keys. The error is upstream's.
pub fn check(table: &Table, shape: &Shape, object: &Value) -> Result<(), String> {
    fit(Place::root(table, shape), object, &mut String::new())
}

fn fit(place: Place, value: &Value, path: &mut String) -> Result<(), String> {
    if value.is_null() {
        return Ok(());
    }
    let got = match value {
        Value::Object(_) => "map",
        Value::Array(_) => "list",
        Value::String(_) => "string",
        Value::Bool(_) => "boolean",
        _ => "number",
    };
    let wrong = |want: &str| Err(format!("{path}: expected {want}, got {got}"));
    match place.shape {
        Shape::Object(id) if place.table.get(*id).alias.is_some() => Ok(()),
        Shape::Object(_) | Shape::Map(_) => {
            let Some(map) = value.as_object() else { return wrong("map") };
            for (name, child) in map {
                let length = path.len();
                path.push('.');
                path.push_str(name);
                if matches!(place.shape, Shape::Object(_)) && place.table.field(place.shape, name).is_none() {
                    return Err(format!("{path}: field not declared in schema"));
                }
                let member = match place.shape {
                    Shape::Map(item) => Place { table: place.table, shape: item, field: None },
                    _ => {
                        let field = place.table.field(place.shape, name);
                        Place { table: place.table, shape: field.map_or(&ANY, |f| &f.shape), field }
                    }
                };
                fit(member, child, path)?;
                path.truncate(length);
            }
            Ok(())
        }
        Shape::List(_) => {
            let Some(list) = value.as_array() else { return wrong("list") };
            let form = place.form();
            let mut seen: Vec<Element> = vec![];
            for (i, item) in list.iter().enumerate() {
                let length = path.len();
                if !matches!(form, Form::Leaf) {
                    let element = place.element(&form, item);
                    if seen.contains(&element) {
                        return Err(format!("{path}: duplicate entries for key {}", element.shown()));
                    }
                    path.push_str(&element.shown());
                    seen.push(element);
                } else {
                    path.push_str(&format!("[{i}]"));
                }
                fit(place.item(), item, path)?;
                path.truncate(length);
            }
            Ok(())
        }
        Shape::String | Shape::Bytes | Shape::Time | Shape::MicroTime if !value.is_string() => {
            wrong("string")
        }
        Shape::Bool if !value.is_boolean() => wrong("boolean"),
        Shape::Int32 | Shape::Int64 | Shape::Number if !value.is_number() => wrong("numeric (int or float)"),
        Shape::Quantity | Shape::IntOrString if !(value.is_string() || value.is_number()) => wrong("string"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::shape_of;
    use keelson_api::schema::builtin;
    use serde_json::json;

    #[test]
    fn containers_are_told_apart_by_name() {
        let shape = shape_of("apps", "v1", "Deployment").unwrap();
        let object = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}}}});
        let want = json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {},
            "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}});
        assert_eq!(fields(builtin(), &shape, &object).to_value(), want);
    }

    #[test]
    fn taking_out_the_last_label_leaves_the_name() {
        let shape = shape_of("", "v1", "ConfigMap").unwrap();
        let object = json!({"metadata": {"name": "x", "labels": {"a": "b"}}, "data": {"k": "v"}});
        let gone = fields(builtin(), &shape, &json!({"metadata": {"labels": {"a": "b"}}}));
        assert_eq!(
            without(builtin(), &shape, &object, &gone),
            json!({"metadata": {"name": "x"}, "data": {"k": "v"}})
        );
    }

    #[test]
    fn merging_keeps_the_others_items() {
        let shape = shape_of("", "v1", "Pod").unwrap();
        let a = json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}});
        let b = json!({"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "c"}]}});
        let merged = merge(builtin(), &shape, &a, &b);
        assert_eq!(
            merged["spec"]["containers"],
            json!([{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c"}])
        );
        assert_eq!(merge(builtin(), &shape, &merged, &b), merged);
    }
}
