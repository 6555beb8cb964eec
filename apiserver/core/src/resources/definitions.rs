//! CustomResourceDefinitions.

use super::{Strategy, admission_kinds};
use crate::context::{Context, Target};
use crate::meta::NameCheck;
use crate::validate::{immutable, one_of};
use crate::value::{at, flag, is_empty, items, map_mut, object_mut, set, text};
use keelson_api::definition::{default_names, has_condition, storage_version};
use keelson_api::field::quote;
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::{Value, json};
use std::collections::BTreeSet;

mod schema;

/// The finalizer that keeps a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Groups of the project itself need an approval.
const PROTECTED: [&str; 2] = ["k8s.io", "kubernetes.io"];
const APPROVAL: &str = "api-approved.kubernetes.io";

pub struct Definitions;

impl Strategy for Definitions {
    fn name_check(&self) -> NameCheck {
        names::dns1123_subdomain
    }
    fn default(&self, object: &mut Value) {
        let spec = map_mut(object).entry("spec").or_insert(Value::Null);
        default_names(map_mut(spec).entry("names").or_insert(json!({})));
        let conversion = object_mut(spec, "conversion");
        conversion.entry("strategy").or_insert("None".into());
        let service = at(spec, "conversion.webhook.clientConfig.service");
        if service.is_object() && service["port"].is_null() {
            set(spec, "conversion.webhook.clientConfig.service.port", 443);
        }
    }
    fn generation(&self) -> bool {
        true
    }
    fn keeps_status_on_create(&self) -> bool {
        true
    }
    fn prepare_create(&self, object: &mut Value, _: &Context) {
        let stored: Vec<String> = items(object, "spec.versions")
            .iter()
            .filter(|v| v["storage"] == true)
            .map(|v| text(v, "name").to_owned())
            .collect();
        let stored = if stored.is_empty() { Value::Null } else { stored.into() };
        set(
            object,
            "status",
            json!({"storedVersions": stored, "acceptedNames": {"plural": "", "kind": ""}, "conditions": null}),
        );
    }
    fn prepare_update(&self, target: &Target, current: &Value, new: &mut Value, _: &Context) {
        if target.subresource.is_some() {
            return;
        }
        // A version in which objects were stored is remembered until somebody says that none is left.
        let version = storage_version(new).to_owned();
        let mut stored = items(current, "status.storedVersions").to_vec();
        if !version.is_empty() && !stored.iter().any(|s| *s == version) {
            stored.push(version.into());
            set(new, "status.storedVersions", stored);
        }
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let (name, group) = (text(object, "metadata.name"), text(spec, "group"));
        if text(object, "metadata.resourceVersion").is_empty() {
            // The one name it may have.
            let wanted = format!("{}.{group}", text(spec, "names.plural"));
            for (field, given) in [("generateName", text(object, "metadata.generateName")), ("name", name)] {
                if !given.is_empty() && given != wanted {
                    let detail = "must be spec.names.plural+\".\"+spec.group";
                    errors.push(FieldError::invalid(&Path::new("metadata").child(field), given, detail));
                }
            }
        }
        self::group(object, group, &path.child("group"), errors);
        match text(spec, "scope") {
            "" => errors.push(FieldError::required(&path.child("scope"), "")),
            scope => one_of(scope, &["Cluster", "Namespaced"], &path.child("scope"), errors),
        }
        if flag(spec, "preserveUnknownFields") {
            let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
            errors.push(FieldError::invalid(&path.child("preserveUnknownFields"), true, detail));
        }
        versions(object, &path, errors);
        self::names(&spec["names"], &path.child("names"), errors);
        conversion(&spec["conversion"], &path.child("conversion"), errors);
        if items(object, "status.storedVersions").is_empty() {
            let path = Path::new("status").child("storedVersions");
            errors.push(FieldError::invalid(&path, Value::Null, "must have at least one stored version"));
        }
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource.is_some() {
            return;
        }
        if has_condition(current, "Established") {
            immutable(current, new, "spec.scope", errors);
            immutable(current, new, "spec.names.kind", errors);
        }
        immutable(current, new, "spec.group", errors);
        immutable(current, new, "spec.names.plural", errors);
        let path = Path::new("status").child("storedVersions");
        for (i, stored) in items(new, "status.storedVersions").iter().enumerate() {
            let known = items(new, "spec.versions").iter().any(|v| v["name"] == *stored);
            let name = stored.as_str().unwrap_or("");
            if !known {
                let detail = format!(
                    "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
                );
                errors.push(FieldError::invalid(&path.index(i), name, &detail));
            }
        }
    }
}

/// A deleted definition waits until its objects are gone.
pub fn hold(object: &mut Value, ctx: &Context) {
    if crate::value::terminating(object) {
        return;
    }
    let finalizers = object_mut(object, "metadata").entry("finalizers").or_insert(json!([]));
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|f| f == CLEANUP)
    {
        list.push(CLEANUP.into());
    }
    let (reason, message) = (
        "InstanceDeletionPending",
        "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    );
    keelson_api::definition::set_condition(
        object,
        "Terminating",
        true,
        reason,
        message,
        &crate::meta::time(ctx.now),
    );
}

fn group(object: &Value, group: &str, path: &Path, errors: &mut ErrorList) {
    if group.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let problems = names::dns1123_subdomain(group);
    if !problems.is_empty() {
        errors.extend(problems.iter().map(|p| FieldError::invalid(path, group, p)));
    } else if !group.contains('.') {
        errors.push(FieldError::invalid(path, group, "should be a domain with at least one dot"));
    }
    let protected = PROTECTED.iter().any(|p| group == *p || group.ends_with(&format!(".{p}")));
    if protected && is_empty(&object["metadata"]["annotations"][APPROVAL]) {
        let path = Path::new("metadata").child("annotations").key(APPROVAL);
        let detail = format!(
            "protected groups must have approval annotation {}, see https://github.com/kubernetes/enhancements/pull/1111",
            quote(APPROVAL)
        );
        errors.push(FieldError::required(&path, &detail));
    }
}

/// The versions as upstream's types print them.
fn shown(versions: &[Value]) -> String {
    let one = |v: &Value| {
        let text_or_null = |f: &str| v[f].as_str().map_or("null".to_owned(), quote);
        format!(
            "{{\"Name\":{},\"Served\":{},\"Storage\":{},\"Deprecated\":{},\"DeprecationWarning\":{},\"Schema\":null,\"Subresources\":null,\"AdditionalPrinterColumns\":null,\"SelectableFields\":null}}",
            quote(text(v, "name")),
            v["served"] == true,
            v["storage"] == true,
            v["deprecated"] == true,
            text_or_null("deprecationWarning"),
        )
    };
    format!("[{}]", versions.iter().map(one).collect::<Vec<_>>().join(","))
}

fn versions(object: &Value, path: &Path, errors: &mut ErrorList) {
    let list = items(object, "spec.versions");
    let at = path.child("versions");
    let (mut seen, mut twice) = (BTreeSet::new(), false);
    for (i, version) in list.iter().enumerate() {
        let name = text(version, "name");
        twice |= !seen.insert(name);
        for problem in names::dns1035_label(name) {
            errors.push(FieldError::invalid(&at.index(i).child("name"), name, &problem));
        }
        deprecation(version, &at.index(i), errors);
    }
    if twice {
        errors.push(FieldError::invalid_shown(&at, &shown(list), "must contain unique version names"));
    }
    if list.iter().filter(|v| v["storage"] == true).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        let shown = if object["spec"]["versions"].is_null() { "null".into() } else { shown(list) };
        errors.push(FieldError::invalid_shown(&at, &shown, detail));
    }
    if let Some(first) = list.first().filter(|v| !text(v, "name").is_empty()) {
        for problem in names::dns1035_label(text(first, "name")) {
            errors.push(FieldError::invalid(&path.child("version"), text(first, "name"), &problem));
        }
    }
    // What all versions share counts as the definition's own.
    let shared = |field: &str| list.windows(2).all(|w| w[0][field] == w[1][field]);
    for (i, version) in list.iter().enumerate() {
        let own = at.index(i);
        if !shared("schema") || i == 0 {
            let place = if shared("schema") { path.child("validation") } else { own.child("schema") };
            if version["schema"]["openAPIV3Schema"].is_null() {
                errors.push(FieldError::required(&own.child("schema").child("openAPIV3Schema"), ""));
                continue;
            }
            schema::validate(&version["schema"], &place.child("openAPIV3Schema"), errors);
        }
        for (field, check) in [
            ("subresources", subresources as fn(&Value, &Path, &mut ErrorList)),
            ("additionalPrinterColumns", columns as fn(&Value, &Path, &mut ErrorList)),
        ] {
            if !shared(field) || i == 0 {
                let place = if shared(field) { path.child(field) } else { own.child(field) };
                check(&version[field], &place, errors);
            }
        }
        if !shared("selectableFields") || i == 0 {
            let place = if shared("selectableFields") {
                path.child("selectableFields")
            } else {
                own.child("selectableFields")
            };
            selectable(version, &place, errors);
        }
    }
}

fn deprecation(version: &Value, path: &Path, errors: &mut ErrorList) {
    let Some(warning) = version["deprecationWarning"].as_str() else { return };
    let path = path.child("deprecationWarning");
    let mut complain = |detail: &str| errors.push(FieldError::invalid(&path, warning, detail));
    if version["deprecated"] != true {
        complain("can only be set for deprecated versions");
    }
    if warning.is_empty() {
        complain("must not be an empty string");
    }
    if warning.len() > 256 {
        complain("must be <= 256 characters long");
    }
    if let Some((i, _)) = warning.char_indices().find(|(_, c)| c.is_control()) {
        complain(&format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {i}"
        ));
    }
}

fn subresources(value: &Value, path: &Path, errors: &mut ErrorList) {
    let scale = &value["scale"];
    if scale.is_null() {
        return;
    }
    let path = path.child("scale");
    for (field, part) in
        [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status."), ("labelSelectorPath", "")]
    {
        let given = text(scale, field);
        if given.is_empty() {
            if field != "labelSelectorPath" {
                errors.push(FieldError::required(&path.child(field), ""));
            }
        } else if !given.starts_with('.') {
            let detail = "must be a simple json path starting with .";
            errors.push(FieldError::invalid(&path.child(field), given, detail));
        } else if !part.is_empty() && !given.starts_with(part) {
            let detail = format!("should be a json path under {}", part.trim_end_matches('.'));
            errors.push(FieldError::invalid(&path.child(field), given, &detail));
        }
    }
}

fn columns(value: &Value, path: &Path, errors: &mut ErrorList) {
    for (i, column) in value.as_array().into_iter().flatten().enumerate() {
        let path = path.index(i);
        if text(column, "name").is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        }
        let kinds = ["boolean", "date", "integer", "number", "string"];
        match text(column, "type") {
            "" => {
                let detail = format!("must be one of {}", kinds.join(","));
                errors.push(FieldError::required(&path.child("type"), &detail));
            }
            kind if !kinds.contains(&kind) => {
                let detail = format!("must be one of {}", kinds.join(","));
                errors.push(FieldError::invalid(&path.child("type"), kind, &detail));
            }
            _ => {}
        }
        let given = text(column, "jsonPath");
        if given.is_empty() {
            errors.push(FieldError::required(&path.child("JSONPath"), ""));
        } else if !given.starts_with('.') {
            let detail = "must be a simple json path starting with .";
            errors.push(FieldError::invalid(&path.child("JSONPath"), given, detail));
        }
    }
}

fn selectable(version: &Value, path: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, field) in items(version, "selectableFields").iter().enumerate() {
        let (given, path) = (text(field, "jsonPath"), path.index(i).child("jsonPath"));
        if given.is_empty() {
            errors.push(FieldError::required(&path, ""));
            continue;
        }
        if !given.starts_with('.') {
            let detail = format!(
                "is an invalid path: expected [ or . but got: {}",
                given.split('.').next().unwrap_or("")
            );
            errors.push(FieldError::invalid(&path, given, &detail));
            continue;
        }
        let mut at = &version["schema"]["openAPIV3Schema"];
        for key in given.split('.').skip(1) {
            at = &at["properties"][key];
        }
        if given.starts_with(".metadata") || at.is_null() {
            errors.push(FieldError::invalid(
                &path,
                given,
                "is an invalid path: does not refer to a valid field",
            ));
        } else if !["string", "boolean", "integer"].contains(&text(at, "type")) {
            let detail = "is an invalid path: must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.push(FieldError::invalid(&path, given, detail));
        }
        if !seen.insert(given) {
            errors.push(FieldError::duplicate(&path, given));
        }
    }
}

fn names(value: &Value, path: &Path, errors: &mut ErrorList) {
    let plain = |field: &str, errors: &mut ErrorList| {
        let given = text(value, field);
        for problem in names::dns1035_label(given) {
            errors.push(FieldError::invalid(&path.child(field), given, &problem));
        }
    };
    let mixed = |field: &str, errors: &mut ErrorList| {
        let given = text(value, field);
        for problem in names::dns1035_label(&given.to_lowercase()) {
            let detail = format!("may have mixed case, but should otherwise match: {problem}");
            errors.push(FieldError::invalid(&path.child(field), given, &detail));
        }
    };
    if text(value, "plural").is_empty() {
        errors.push(FieldError::required(&path.child("plural"), ""));
    } else {
        plain("plural", errors);
    }
    if text(value, "singular").is_empty() {
        errors.push(FieldError::required(&path.child("singular"), ""));
    } else {
        plain("singular", errors);
    }
    if text(value, "kind").is_empty() {
        errors.push(FieldError::required(&path.child("kind"), ""));
    } else {
        mixed("kind", errors);
    }
    if text(value, "listKind").is_empty() {
        errors.push(FieldError::required(&path.child("listKind"), ""));
    } else {
        mixed("listKind", errors);
        if text(value, "kind") == text(value, "listKind") {
            let detail = "kind and listKind may not be the same";
            errors.push(FieldError::invalid(&path.child("listKind"), text(value, "listKind"), detail));
        }
    }
    for list in ["shortNames", "categories"] {
        for (i, given) in items(value, list).iter().enumerate() {
            let given = given.as_str().unwrap_or("");
            for problem in names::dns1035_label(given) {
                errors.push(FieldError::invalid(&path.child(list).index(i), given, &problem));
            }
        }
    }
}

fn conversion(value: &Value, path: &Path, errors: &mut ErrorList) {
    let webhook = &value["webhook"];
    let versions = items(webhook, "conversionReviewVersions");
    match text(value, "strategy") {
        "" => errors.push(FieldError::required(&path.child("strategy"), "")),
        "Webhook" => {
            if webhook["clientConfig"].is_null() {
                let detail = "required when strategy is set to Webhook";
                errors.push(FieldError::required(&path.child("webhookClientConfig"), detail));
            } else {
                admission_kinds::client_config(
                    &webhook["clientConfig"],
                    &path.child("webhookClientConfig"),
                    errors,
                );
            }
            let at = path.child("conversionReviewVersions");
            if versions.is_empty() {
                errors.push(FieldError::required(&at, ""));
            } else if !versions.iter().any(|v| *v == "v1" || *v == "v1beta1") {
                let detail = "must include at least one of v1, v1beta1";
                errors.push(FieldError::invalid(&at, versions.to_vec(), detail));
            }
        }
        "None" => {
            if !webhook["clientConfig"].is_null() {
                let detail = "should not be set when strategy is not set to Webhook";
                errors.push(FieldError::forbidden(&path.child("webhookClientConfig"), detail));
            }
            if !versions.is_empty() {
                let detail = "should not be set when strategy is not set to Webhook";
                errors.push(FieldError::forbidden(&path.child("conversionReviewVersions"), detail));
            }
        }
        other => errors.push(FieldError::not_supported(&path.child("strategy"), other, &["None", "Webhook"])),
    }
}
