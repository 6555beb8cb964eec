//! OpenAPI documents, made from the resource table and the schema table: version 3 per group and version, version 2 as one.
//!
//! They carry what clients decide by: names and types of fields, list types and merge keys, group-version-kinds, and that
//! `dryRun` and `fieldValidation` are understood; and what the published API says about each type and field.

use keelson_api::resource::{Resource, Subresource};
use keelson_api::schema::{Field, ListType, Shape, Table, Type, TypeId, builtin};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";

fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3/…` of a group and version; none when it is not served.
pub fn v3(rows: &[&Resource], group: &str, version: &str) -> Option<Value> {
    let served: Vec<&Resource> =
        rows.iter().copied().filter(|r| r.group == group && r.version == version).collect();
    if served.is_empty() {
        return None;
    }
    let mut doc = Document::new(true);
    for r in served {
        doc.resource(r);
    }
    let schemas = doc.schemas();
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": crate::VERSION},
        "paths": doc.paths,
        "components": {"schemas": schemas,
            "securitySchemes": {"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication"}}},
    }))
}

/// `/openapi/v2`.
pub fn v2(rows: &[&Resource]) -> Value {
    let mut doc = Document::new(false);
    for r in rows {
        doc.resource(r);
    }
    let definitions = doc.schemas();
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": crate::VERSION},
        "paths": doc.paths,
        "definitions": definitions,
        "securityDefinitions": {"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication"}},
        "security": [{"BearerToken": []}],
    })
}

struct Document {
    /// Version 3 of the format, or 2.
    third: bool,
    paths: Map<String, Value>,
    /// What the resource at hand takes: merge keys are known of built-in kinds only. kubectl decides by this how it applies.
    patch_types: &'static [&'static str],
    used: BTreeSet<TypeId>,
    /// Types of custom resources.
    custom: Map<String, Value>,
}

/// How an operation is called in `x-kubernetes-action` and what it takes.
struct Operation<'a> {
    method: &'a str,
    action: &'a str,
    /// Full names of the types taken and given.
    body: Option<&'a str>,
    answer: &'a str,
    parameters: &'a [(&'a str, &'a str)],
}

const LIST: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETE: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const DELETE_COLLECTION: &[(&str, &str)] = &[
    ("continue", "string"),
    ("dryRun", "string"),
    ("fieldSelector", "string"),
    ("gracePeriodSeconds", "integer"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("propagationPolicy", "string"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
];
const JSON_TYPES: [&str; 2] = ["application/json", "application/yaml"];
const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

impl Document {
    fn new(third: bool) -> Document {
        Document {
            third,
            paths: Map::new(),
            patch_types: &PATCH_TYPES,
            used: BTreeSet::new(),
            custom: Map::new(),
        }
    }

    /// The types of a custom resource: its schema with what every object has, and its list.
    fn describe(&mut self, r: &Resource) {
        let Some(definition) = &r.definition else { return };
        let gvk = |kind: &str| json!([{"group": r.group, "version": r.version, "kind": kind}]);
        let (meta, list_meta) =
            (self.reference(&format!("{META}.ObjectMeta")), self.reference(&format!("{META}.ListMeta")));
        let mut schema = definition.schema.clone();
        if !schema.is_object() {
            schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        }
        let text = json!({"type": "string"});
        for (field, kind) in [("apiVersion", &text), ("kind", &text), ("metadata", &meta)] {
            crate::value::set(&mut schema, &format!("properties.{field}"), kind.clone());
        }
        schema["x-kubernetes-group-version-kind"] = gvk(&r.kind);
        self.custom.insert(r.schema.clone(), schema);
        let item = json!({"$ref": format!("{}{}", self.prefix(), r.schema)});
        let list = json!({
            "type": "object", "required": ["items"], "x-kubernetes-group-version-kind": gvk(&format!("{}List", r.kind)),
            "properties": {"apiVersion": text, "kind": text, "metadata": list_meta, "items": {"type": "array", "items": item}},
        });
        self.custom.insert(format!("{}List", r.schema), list);
    }

    fn resource(&mut self, r: &Resource) {
        self.describe(r);
        self.patch_types = if r.definition.is_some() { &PATCH_TYPES[..3] } else { &PATCH_TYPES };
        let base = format!("/{}", root(&r.group, &r.version));
        let scope = if r.namespaced { format!("{base}/namespaces/{{namespace}}") } else { base.clone() };
        let collection = format!("{scope}/{}", r.plural);
        let object = format!("{collection}/{{name}}");
        let (status, options) = (format!("{META}.Status"), format!("{META}.DeleteOptions"));
        let list = format!("{}List", r.schema);
        let patch = format!("{META}.Patch");
        let gvk = (r.group.as_str(), r.version.as_str(), r.kind.as_str());
        let op = |verb: &str| match verb {
            "list" => Some((
                &collection,
                Operation { method: "get", action: "list", body: None, answer: &list, parameters: LIST },
            )),
            "create" => Some((
                &collection,
                Operation {
                    method: "post",
                    action: "post",
                    body: Some(&r.schema),
                    answer: &r.schema,
                    parameters: WRITE,
                },
            )),
            "deletecollection" => Some((
                &collection,
                Operation {
                    method: "delete",
                    action: "deletecollection",
                    body: Some(&options),
                    answer: &status,
                    parameters: DELETE_COLLECTION,
                },
            )),
            "get" => Some((
                &object,
                Operation { method: "get", action: "get", body: None, answer: &r.schema, parameters: &[] },
            )),
            "update" => Some((
                &object,
                Operation {
                    method: "put",
                    action: "put",
                    body: Some(&r.schema),
                    answer: &r.schema,
                    parameters: WRITE,
                },
            )),
            "patch" => Some((
                &object,
                Operation {
                    method: "patch",
                    action: "patch",
                    body: Some(&patch),
                    answer: &r.schema,
                    parameters: PATCH,
                },
            )),
            "delete" => Some((
                &object,
                Operation {
                    method: "delete",
                    action: "delete",
                    body: Some(&options),
                    answer: &status,
                    parameters: DELETE,
                },
            )),
            _ => None,
        };
        for (path, operation) in r.verbs.iter().filter_map(|v| op(v)) {
            self.add(path, &operation, gvk);
        }
        if r.namespaced && r.allows("list") {
            let all = format!("{base}/{}", r.plural);
            self.add(
                &all,
                &Operation { method: "get", action: "list", body: None, answer: &list, parameters: LIST },
                gvk,
            );
        }
        for s in &r.subresources {
            self.subresource(r, s, &format!("{object}/{}", s.name));
        }
    }

    fn subresource(&mut self, r: &Resource, s: &Subresource, path: &str) {
        let version = if s.version.is_empty() { r.version.as_str() } else { s.version.as_str() };
        let group = if s.version.is_empty() { r.group.as_str() } else { s.group.as_str() };
        let schema = match s.kind.as_str() {
            "Scale" => SCALE.to_string(),
            kind if s.version.is_empty() => {
                format!("{}.{kind}", r.schema.rsplit_once('.').map_or("", |(p, _)| p))
            }
            kind => format!("io.k8s.api.{}.{version}.{kind}", group.split('.').next().unwrap_or(group)),
        };
        let known = builtin().id(&schema).is_some() || self.custom.contains_key(&schema);
        let connects = !known || s.name == "log";
        let patch = format!("{META}.Patch");
        let gvk = (group, version, s.kind.as_str());
        for verb in &s.verbs {
            let (method, body, parameters) = match verb.as_str() {
                "get" => ("get", None, &[][..]),
                "create" => ("post", Some(schema.as_str()), WRITE),
                "update" => ("put", Some(schema.as_str()), WRITE),
                "patch" => ("patch", Some(patch.as_str()), PATCH),
                _ => ("delete", None, &[][..]),
            };
            let action = if connects && s.name != "log" { "connect" } else { method };
            let (body, parameters) = if connects { (None, &[][..]) } else { (body, parameters) };
            self.add(
                path,
                &Operation { method, action, body, answer: if connects { "" } else { &schema }, parameters },
                gvk,
            );
        }
    }

    fn reference(&mut self, name: &str) -> Value {
        match builtin().id(name) {
            Some(id) => {
                self.used.insert(id);
                json!({"$ref": format!("{}{name}", self.prefix())})
            }
            None if self.custom.contains_key(name) => json!({"$ref": format!("{}{name}", self.prefix())}),
            None => json!({"type": "object"}),
        }
    }

    fn prefix(&self) -> &'static str {
        if self.third { "#/components/schemas/" } else { "#/definitions/" }
    }

    fn add(&mut self, path: &str, op: &Operation, (group, version, kind): (&str, &str, &str)) {
        let parameter = |name: &str, kind: &str, place: &str, third: bool| {
            let mut p = json!({"name": name, "in": place, "uniqueItems": true});
            if third {
                p["schema"] = json!({"type": kind, "uniqueItems": true})
            } else {
                p["type"] = kind.into()
            }
            if third {
                crate::value::take(&mut p, "uniqueItems");
            }
            if place == "path" {
                p["required"] = true.into();
            }
            p
        };
        let mut parameters: Vec<Value> =
            op.parameters.iter().map(|(name, kind)| parameter(name, kind, "query", self.third)).collect();
        let answer = if op.answer.is_empty() { json!({"type": "string"}) } else { self.reference(op.answer) };
        let content = |types: &[&str], schema: &Value| -> Value {
            Value::Object(types.iter().map(|t| (t.to_string(), json!({"schema": schema}))).collect())
        };
        let mut out = json!({
            "x-kubernetes-action": op.action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
            "operationId": operation_id(op, path),
            "tags": [tag(path)],
        });
        if self.third {
            out["responses"] = json!({"200": {"description": "OK", "content": content(&JSON_TYPES, &answer)}, "401": {"description": "Unauthorized"}});
        } else {
            out["responses"] = json!({"200": {"description": "OK", "schema": answer}, "401": {"description": "Unauthorized"}});
            out["produces"] = json!(JSON_TYPES);
            out["consumes"] = if op.method == "patch" { json!(self.patch_types) } else { json!(["*/*"]) };
        }
        if let Some(body) = op.body {
            let schema = self.reference(body);
            let required = op.method != "delete";
            if self.third {
                let types: &[&str] = if op.method == "patch" { self.patch_types } else { &["*/*"] };
                out["requestBody"] = json!({"content": content(types, &schema)});
                if required {
                    out["requestBody"]["required"] = true.into();
                }
            } else {
                let mut p = json!({"name": "body", "in": "body", "schema": schema});
                if required {
                    p["required"] = true.into();
                }
                parameters.push(p);
            }
        }
        out["parameters"] = parameters.into();
        let shared: Vec<Value> = ["name", "namespace"]
            .into_iter()
            .filter(|n| path.contains(&format!("{{{n}}}")))
            .map(|n| parameter(n, "string", "path", self.third))
            .chain([parameter("pretty", "string", "query", self.third)])
            .collect();
        let item = self.paths.entry(path).or_insert_with(|| json!({"parameters": shared}));
        item[op.method] = out;
    }

    /// The schemas that are referred to, with those they refer to.
    fn schemas(&mut self) -> Map<String, Value> {
        let table = builtin();
        let mut out = self.custom.clone();
        let mut todo: Vec<TypeId> = self.used.iter().copied().collect();
        while let Some(id) = todo.pop() {
            let ty = table.get(id);
            if out.contains_key(&ty.name) {
                continue;
            }
            out.insert(ty.name.clone(), self.type_schema(table, ty));
            for field in &ty.fields {
                todo.extend(referred(table, &field.shape));
            }
        }
        out
    }

    fn type_schema(&self, table: &Table, ty: &Type) -> Value {
        let mut out = match &ty.alias {
            None => json!({"type": "object"}),
            Some(Shape::Time | Shape::MicroTime) => json!({"type": "string", "format": "date-time"}),
            Some(Shape::Quantity) if self.third => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            Some(Shape::Quantity) => json!({"type": "string"}),
            Some(Shape::IntOrString) if self.third => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            Some(Shape::IntOrString) => json!({"type": "string", "format": "int-or-string"}),
            Some(Shape::Any) if ty.name.contains("apiextensions") => json!({}),
            Some(_) => json!({"type": "object"}),
        };
        if !ty.fields.is_empty() {
            let properties: Map<String, Value> =
                ty.fields.iter().map(|f| (f.name.clone(), self.field_schema(table, ty, f))).collect();
            out["properties"] = properties.into();
            let required: Vec<&str> =
                ty.fields.iter().filter(|f| f.required).map(|f| f.name.as_str()).collect();
            if !required.is_empty() {
                out["required"] = json!(required);
            }
        }
        let about = crate::prose::about(&ty.name);
        if !about.is_empty() {
            out["description"] = about.into();
        }
        if ty.atomic {
            out["x-kubernetes-map-type"] = "atomic".into();
        }
        if let Some((group, version, kind)) = &ty.gvk {
            out["x-kubernetes-group-version-kind"] =
                json!([{"group": group, "version": version, "kind": kind}]);
        }
        out
    }

    fn field_schema(&self, table: &Table, ty: &Type, field: &Field) -> Value {
        let mut out = self.shape_schema(table, &field.shape);
        let mut extra = Map::new();
        let about = crate::prose::about(&format!("{}.{}", ty.name, field.name));
        if !about.is_empty() {
            extra.insert("description".into(), about.into());
        }
        match &field.list {
            Some(ListType::Map(keys)) => {
                extra.insert("x-kubernetes-list-type".into(), "map".into());
                extra.insert("x-kubernetes-list-map-keys".into(), json!(keys));
            }
            Some(ListType::Set) => drop(extra.insert("x-kubernetes-list-type".into(), "set".into())),
            Some(ListType::Atomic) => drop(extra.insert("x-kubernetes-list-type".into(), "atomic".into())),
            None => {}
        }
        if field.atomic_map {
            extra.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        if let Some(patch) = &field.patch {
            extra.insert("x-kubernetes-patch-strategy".into(), patch.text.as_str().into());
            if let Some(key) = &patch.key {
                extra.insert("x-kubernetes-patch-merge-key".into(), key.as_str().into());
            }
        }
        if self.third {
            if let Some(default) = &field.default {
                extra.insert("default".into(), default.clone());
            }
            if !field.enumeration.is_empty() {
                extra.insert("enum".into(), json!(field.enumeration));
            }
        }
        if extra.is_empty() {
            return out;
        }
        // A reference stands alone; what is said beside it goes around it.
        if self.third && out.get("$ref").is_some() {
            out = json!({"allOf": [out]});
        }
        crate::value::map_mut(&mut out).extend(extra);
        out
    }

    fn shape_schema(&self, table: &Table, shape: &Shape) -> Value {
        let named = |name: &str| json!({"$ref": format!("{}{name}", self.prefix())});
        match shape {
            Shape::String => json!({"type": "string"}),
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::Int32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 => json!({"type": "integer", "format": "int64"}),
            Shape::Number => json!({"type": "number", "format": "double"}),
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Any => json!({"type": "object"}),
            Shape::List(item) => json!({"type": "array", "items": self.shape_schema(table, item)}),
            Shape::Map(item) => {
                json!({"type": "object", "additionalProperties": self.shape_schema(table, item)})
            }
            Shape::Object(id) => named(&table.get(*id).name),
            other => match alias_name(other) {
                Some(name) => named(name),
                None => json!({"type": "object"}),
            },
        }
    }
}

/// Full names of the types that are shapes of their own.
fn alias_name(shape: &Shape) -> Option<&'static str> {
    Some(match shape {
        Shape::Quantity => "io.k8s.apimachinery.pkg.api.resource.Quantity",
        Shape::IntOrString => "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
        Shape::Time => "io.k8s.apimachinery.pkg.apis.meta.v1.Time",
        Shape::MicroTime => "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime",
        Shape::FieldsV1 => "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1",
        _ => return None,
    })
}

fn referred(table: &Table, shape: &Shape) -> Option<TypeId> {
    match shape {
        Shape::Object(id) => Some(*id),
        Shape::List(item) | Shape::Map(item) => referred(table, item),
        other => alias_name(other).and_then(|n| table.id(n)),
    }
}

fn tag(path: &str) -> String {
    let mut parts = path.split('/').skip(1);
    match parts.next() {
        Some("api") => format!("core_{}", parts.next().unwrap_or("")),
        _ => {
            let group = parts.next().unwrap_or("").split('.').next().unwrap_or("");
            format!("{group}_{}", parts.next().unwrap_or(""))
        }
    }
}

fn operation_id(op: &Operation, path: &str) -> String {
    let words: String = path
        .split(['/', '.', '-'])
        .filter(|w| !w.is_empty() && !w.starts_with('{'))
        .map(|w| {
            let mut chars = w.chars();
            chars.next().map(|c| c.to_uppercase().collect::<String>() + chars.as_str()).unwrap_or_default()
        })
        .collect();
    let scope = if path.contains("{namespace}") { "Namespaced" } else { "" };
    let one = if path.contains("{name}") { "One" } else { "" };
    format!("{}{words}{scope}{one}{}", op.action, if op.action == op.method { "" } else { op.method })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_resolves() {
        let rows: Vec<&Resource> = keelson_api::RESOURCES.iter().collect();
        let doc = v3(&rows, "apps", "v1").unwrap();
        let text = doc.to_string();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(doc["components"]["schemas"].get(name).is_some(), "{name}");
        }
        let patch = &doc["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        let names: Vec<_> =
            patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].clone()).collect();
        assert!(names.contains(&json!("fieldValidation")) && names.contains(&json!("dryRun")));
    }

    #[test]
    fn version_two_has_unique_operation_names() {
        let doc = v2(&keelson_api::RESOURCES.iter().collect::<Vec<_>>());
        let mut seen = BTreeSet::new();
        for item in doc["paths"].as_object().unwrap().values() {
            for op in item.as_object().unwrap().values().filter_map(|o| o.get("operationId")) {
                assert!(seen.insert(op.to_string()), "{op}");
            }
        }
    }
}
