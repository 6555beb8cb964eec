//! Custom resources: rows of the resource table and types of the schema table, made from a CustomResourceDefinition.

use crate::resource::{Resource, Subresource};
use crate::schema::{Field, ListType, OBJECT_META, Shape, Table, Type, builtin};
use serde_json::{Map, Value, json};
use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// One served version of a custom resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// `openAPIV3Schema` of the version; null when the version has none.
    pub schema: Value,
    /// The same as types, for merging.
    pub table: Table,
    pub root: Shape,
    /// `additionalPrinterColumns`.
    pub columns: Vec<Value>,
    /// `subresources.scale`, or null.
    pub scale: Value,
    /// Text of the `Warning` header of a deprecated version; empty when it is not.
    pub warning: String,
    /// What others make of it once and keep beside it.
    pub kept: Kept,
}

/// Something made of a definition, at most once. It says nothing that the definition does not say.
#[derive(Default)]
pub struct Kept(OnceLock<Arc<dyn Any + Send + Sync>>);

impl Kept {
    /// What was made first; made now when nothing was.
    pub fn get_or_make<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Option<Arc<T>> {
        self.0.get_or_init(|| Arc::new(make())).clone().downcast().ok()
    }
}

impl Clone for Kept {
    fn clone(&self) -> Kept {
        Kept::default()
    }
}

impl PartialEq for Kept {
    fn eq(&self, _: &Kept) -> bool {
        true
    }
}
impl Eq for Kept {}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("")
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// Order of versions: released ones first, newer before older, then betas, alphas, and others by name.
pub fn rank(version: &str) -> (u8, std::cmp::Reverse<(u64, u64)>, String) {
    let parsed = version.strip_prefix('v').and_then(|rest| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u64 = rest[..digits].parse().ok()?;
        let (class, minor) = match &rest[digits..] {
            "" => (0, "0"),
            tail if tail.starts_with("beta") => (1, &tail[4..]),
            tail if tail.starts_with("alpha") => (2, &tail[5..]),
            _ => return None,
        };
        Some((class, major, minor.parse().ok()?))
    });
    match parsed {
        Some((class, major, minor)) => (class, std::cmp::Reverse((major, minor)), String::new()),
        None => (3, std::cmp::Reverse((0, 0)), version.to_owned()),
    }
}

/// Whether a definition has a condition.
pub fn has_condition(crd: &Value, kind: &str) -> bool {
    let conditions = crd["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
}

/// The served resources of an established definition, preferred version first; none before it is established.
pub fn resources(crd: &Value) -> Vec<Resource> {
    if !has_condition(crd, "Established") {
        return vec![];
    }
    let mut versions: Vec<&Value> =
        crd["spec"]["versions"].as_array().into_iter().flatten().filter(|v| v["served"] == true).collect();
    versions.sort_by_key(|v| rank(text(v, "name")));
    versions.into_iter().map(|v| resource(crd, v)).collect()
}

/// The version in which objects are stored.
pub fn storage_version(crd: &Value) -> &str {
    let versions = crd["spec"]["versions"].as_array();
    versions.into_iter().flatten().find(|v| v["storage"] == true).map_or("", |v| text(v, "name"))
}

fn resource(crd: &Value, version: &Value) -> Resource {
    let (spec, names) = (&crd["spec"], &crd["status"]["acceptedNames"]);
    let (group, name, kind) = (text(spec, "group"), text(version, "name"), text(names, "kind"));
    let plural = text(names, "plural");
    let verbs = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
    let mut fields = vec!["metadata.name".to_owned(), "metadata.namespace".to_owned()];
    for field in version["selectableFields"].as_array().into_iter().flatten() {
        fields.push(text(field, "jsonPath").trim_start_matches('.').to_owned());
    }
    let own = |sub: &str, (group, version, kind): (&str, &str, &str)| Subresource {
        name: sub.into(),
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        verbs: ["get", "patch", "update"].map(str::to_owned).to_vec(),
    };
    let mut subresources = vec![];
    if !version["subresources"]["status"].is_null() {
        subresources.push(own("status", ("", "", kind)));
    }
    if !version["subresources"]["scale"].is_null() {
        subresources.push(own("scale", ("autoscaling", "v1", "Scale")));
    }
    Resource {
        group: group.into(),
        version: name.into(),
        kind: kind.into(),
        plural: plural.into(),
        singular: text(names, "singular").into(),
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        namespaced: spec["scope"] == "Namespaced",
        verbs: verbs.map(str::to_owned).to_vec(),
        subresources,
        storage: Some(format!("/registry/{group}/{plural}")),
        storage_version: format!("{group}/{}", storage_version(crd)),
        fields,
        unconditional_update: false,
        create_on_update: false,
        schema: type_name(group, name, kind),
        definition: Some(Arc::new(definition(crd, version, group, kind))),
    }
}

/// The served version that ranks highest above this one and is not deprecated itself.
fn successor<'a>(crd: &'a Value, version: &str) -> Option<&'a str> {
    let all = crd["spec"]["versions"].as_array().into_iter().flatten();
    let fine = all.filter(|v| v["served"] == true && v["deprecated"] != true).map(|v| text(v, "name"));
    fine.filter(|name| rank(name) < rank(version)).min_by_key(|name| rank(name))
}

/// `com.example.v1.Foo` of group `example.com`, as documents name types.
fn type_name(group: &str, version: &str, kind: &str) -> String {
    let reversed: Vec<&str> = group.rsplit('.').collect();
    format!("{}.{version}.{kind}", reversed.join("."))
}

fn definition(crd: &Value, version: &Value, group: &str, kind: &str) -> Definition {
    let schema = version["schema"]["openAPIV3Schema"].clone();
    let mut table = Table::default();
    let name = type_name(group, text(version, "name"), kind);
    let meta = table.import(builtin(), OBJECT_META).map_or(Shape::Any, Shape::Object);
    let mut root = properties(&schema, &mut table, &name);
    root.retain(|f| !["apiVersion", "kind", "metadata"].contains(&f.name.as_str()));
    root.extend([field("apiVersion", Shape::String), field("kind", Shape::String), field("metadata", meta)]);
    let id = table.add(object(&name, root));
    let warning = match (version["deprecated"] == true, version["deprecationWarning"].as_str()) {
        (false, _) => String::new(),
        (true, Some(text)) => text.to_owned(),
        (true, None) => {
            let newer = successor(crd, text(version, "name"))
                .map_or_else(String::new, |newer| format!("; use {group}/{newer} {kind}"));
            format!("{group}/{} {kind} is deprecated{newer}", text(version, "name"))
        }
    };
    Definition {
        schema,
        table,
        root: Shape::Object(id),
        columns: version["additionalPrinterColumns"].as_array().cloned().unwrap_or_default(),
        scale: version["subresources"]["scale"].clone(),
        warning,
        kept: Kept::default(),
    }
}

fn object(name: &str, fields: Vec<Field>) -> Type {
    Type { name: name.into(), fields, atomic: false, gvk: None, alias: None, format: String::new() }
}

fn field(name: &str, shape: Shape) -> Field {
    Field {
        name: name.into(),
        shape,
        tags: vec![],
        omit_empty: false,
        omit_zero: false,
        pointer: true,
        required: false,
        list: None,
        atomic_map: false,
        patch: None,
        default: None,
        enumeration: vec![],
        order: 0,
        go: String::new(),
        go_type: String::new(),
        within: String::new(),
    }
}

fn properties(schema: &Value, table: &mut Table, name: &str) -> Vec<Field> {
    let given = schema["properties"].as_object();
    given
        .into_iter()
        .flatten()
        .map(|(key, child)| {
            let mut out = field(key, shape(child, table, &format!("{name}.{key}")));
            out.list = match text(child, "x-kubernetes-list-type") {
                "set" => Some(ListType::Set),
                "map" => Some(ListType::Map(texts(&child["x-kubernetes-list-map-keys"]))),
                _ => None,
            };
            out.atomic_map = child["x-kubernetes-map-type"] == "atomic";
            out
        })
        .collect()
}

/// The shape of a part of a structural schema. What it does not describe may be anything.
fn shape(schema: &Value, table: &mut Table, name: &str) -> Shape {
    if schema["x-kubernetes-int-or-string"] == true {
        return Shape::Any;
    }
    match text(schema, "type") {
        "object" => {
            let extra = &schema["additionalProperties"];
            if extra.is_object() {
                return Shape::Map(Box::new(shape(extra, table, &format!("{name}.*"))));
            }
            let open = schema["x-kubernetes-preserve-unknown-fields"] == true || extra == true;
            if open && schema["properties"].as_object().is_none_or(Map::is_empty) {
                return Shape::Any;
            }
            let fields = properties(schema, table, name);
            let mut new = object(name, fields);
            new.atomic = schema["x-kubernetes-map-type"] == "atomic";
            Shape::Object(table.add(new))
        }
        "array" => Shape::List(Box::new(shape(&schema["items"], table, &format!("{name}[]")))),
        "string" => Shape::String,
        "integer" => Shape::Int64,
        "number" => Shape::Number,
        "boolean" => Shape::Bool,
        _ => Shape::Any,
    }
}

/// Names of a definition that its author may leave out.
pub fn default_names(names: &mut Value) {
    let kind = text(names, "kind").to_owned();
    let empty = |names: &Value, field: &str| text(names, field).is_empty();
    if empty(names, "singular") {
        names["singular"] = kind.to_lowercase().into();
    }
    if empty(names, "listKind") && !kind.is_empty() {
        names["listKind"] = format!("{kind}List").into();
    }
}

/// The condition with a type, replaced or added; true when something changed.
pub fn set_condition(crd: &mut Value, kind: &str, is: bool, reason: &str, message: &str, now: &str) -> bool {
    let status = if is { "True" } else { "False" };
    if !crd["status"].is_object() {
        crd["status"] = json!({});
    }
    if !crd["status"]["conditions"].is_array() {
        crd["status"]["conditions"] = json!([]);
    }
    let Some(list) = crd["status"]["conditions"].as_array_mut() else { return false };
    let new = json!({"type": kind, "status": status, "lastTransitionTime": now, "reason": reason, "message": message});
    match list.iter_mut().find(|c| c["type"] == kind) {
        Some(old) if old["status"] == status && old["reason"] == reason && old["message"] == message => false,
        Some(old) => {
            let since = if old["status"] == status { old["lastTransitionTime"].clone() } else { now.into() };
            *old = new;
            old["lastTransitionTime"] = since;
            true
        }
        None => {
            list.push(new);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ranked_as_clients_expect() {
        let mut versions = ["foo", "v1alpha1", "v2", "v1", "v1beta2", "v10", "v1beta1"];
        versions.sort_by_key(|v| rank(v));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }

    #[test]
    fn a_definition_becomes_rows_and_types() {
        let mut crd = json!({"spec": {"group": "g.example", "scope": "Namespaced",
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {
                    "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                        "items": {"type": "object", "properties": {"port": {"type": "integer"}}}}}}}}}}]}});
        assert!(resources(&crd).is_empty(), "not yet established");
        crd["status"] = json!({"acceptedNames": {"plural": "foos", "kind": "Foo", "singular": "foo"}});
        set_condition(&mut crd, "Established", true, "InitialNamesAccepted", "", "2026-01-01T00:00:00Z");
        let rows = resources(&crd);
        assert_eq!((rows.len(), rows[0].storage.as_deref()), (1, Some("/registry/g.example/foos")));
        let definition = rows[0].definition.clone().expect("a definition");
        let spec = definition.table.field(&definition.root, "spec").expect("spec");
        let ports = definition.table.field(&spec.shape, "ports").expect("ports");
        assert_eq!(ports.list, Some(ListType::Map(vec!["port".into()])));
    }
}
