//! Webhook configurations and admission policies, and their bindings.

use super::Strategy;
use crate::admission::policies::environment::{self, Scope, Variables};
use crate::context::Target;
use crate::meta::NameCheck;
use crate::validate::{label_selector, one_of, one_of_if_set};
use crate::value::{at, default, each_mut, items, map_mut, text};
use keelson_api::{ErrorList, FieldError, Path, names};
use keelson_cel::Type;
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub struct Webhooks {
    pub mutating: bool,
}

impl Strategy for Webhooks {
    fn default(&self, object: &mut Value) {
        for hook in each_mut(object, "webhooks") {
            map_mut(hook);
            default(hook, "failurePolicy", "Fail");
            default(hook, "matchPolicy", "Equivalent");
            default(hook, "namespaceSelector", json!({}));
            default(hook, "objectSelector", json!({}));
            default(hook, "timeoutSeconds", 10);
            if self.mutating {
                default(hook, "reinvocationPolicy", "Never");
            }
            if at(hook, "clientConfig.service").is_object() {
                default(hook, "clientConfig.service.port", 443);
            }
            for rule in each_mut(hook, "rules") {
                default(rule, "scope", "*");
            }
        }
    }
    fn generation(&self) -> bool {
        true
    }
    fn spec_changed(&self, old: &Value, new: &Value) -> bool {
        old["webhooks"] != new["webhooks"]
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let mut seen = BTreeSet::new();
        for (i, hook) in items(object, "webhooks").iter().enumerate() {
            let path = Path::new("webhooks").index(i);
            webhook(hook, &path, errors);
            let name = text(hook, "name");
            if !name.is_empty() && !seen.insert(name.to_owned()) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
        }
    }
}

fn webhook(hook: &Value, path: &Path, errors: &mut ErrorList) {
    qualified_name(text(hook, "name"), &path.child("name"), errors);
    review_versions(hook, &path.child("admissionReviewVersions"), errors);
    for (i, rule) in items(hook, "rules").iter().enumerate() {
        rule_with_operations(rule, &path.child("rules").index(i), errors);
    }
    one_of_if_set(&hook["failurePolicy"], &["Fail", "Ignore"], &path.child("failurePolicy"), errors);
    one_of_if_set(&hook["matchPolicy"], &["Equivalent", "Exact"], &path.child("matchPolicy"), errors);
    match hook["sideEffects"].as_str() {
        None => {
            let detail = "must specify one of None, NoneOnDryRun";
            errors.push(FieldError::required(&path.child("sideEffects"), detail));
        }
        Some(effects) => one_of(effects, &["None", "NoneOnDryRun"], &path.child("sideEffects"), errors),
    }
    if let Some(seconds) = hook["timeoutSeconds"].as_i64().filter(|s| !(1..=30).contains(s)) {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.push(FieldError::invalid(&path.child("timeoutSeconds"), seconds, detail));
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        label_selector(&hook[selector], &path.child(selector), errors);
    }
    client_config(&hook["clientConfig"], &path.child("clientConfig"), errors);
    one_of_if_set(
        &hook["reinvocationPolicy"],
        &["IfNeeded", "Never"],
        &path.child("reinvocationPolicy"),
        errors,
    );
    match_conditions(hook, path, Scope { authorizer: true, ..Scope::default() }, errors);
}

fn qualified_name(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let problems = names::dns1123_subdomain(name);
    if !problems.is_empty() {
        errors.extend(problems.iter().map(|p| FieldError::invalid(path, name, p)));
    } else if name.split('.').count() < 3 {
        let detail = "should be a domain with at least three segments separated by dots";
        errors.push(FieldError::invalid(path, name, detail));
    }
}

fn review_versions(hook: &Value, path: &Path, errors: &mut ErrorList) {
    let list: Vec<&str> = items(hook, "admissionReviewVersions").iter().filter_map(Value::as_str).collect();
    if list.is_empty() {
        errors.push(FieldError::required(path, "must specify one of v1, v1beta1"));
        return;
    }
    let mut seen = BTreeSet::new();
    for (i, version) in list.iter().enumerate() {
        if !seen.insert(*version) {
            errors.push(FieldError::invalid(&path.index(i), *version, "duplicate version"));
            continue;
        }
        for problem in names::dns1035_label(version) {
            errors.push(FieldError::invalid(&path.index(i), *version, &problem));
        }
    }
    if !list.iter().any(|v| ["v1", "v1beta1"].contains(v)) {
        let value: Vec<String> = list.iter().map(|v| (*v).to_owned()).collect();
        errors.push(FieldError::invalid(path, value, "must include at least one of v1, v1beta1"));
    }
}

/// Where a webhook listens. Shared by everything that calls one.
pub fn client_config(config: &Value, path: &Path, errors: &mut ErrorList) {
    match (config["url"].as_str(), &config["service"]) {
        (Some(url), Value::Null) => webhook_url(url, &path.child("url"), errors),
        (None, service) if !service.is_null() => {
            webhook_service(service, &path.child("service"), errors);
        }
        _ => errors.push(FieldError::required(path, "exactly one of url or service is required")),
    }
}

fn webhook_url(url: &str, path: &Path, errors: &mut ErrorList) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let mut complain = |value: &str, detail: String| errors.push(FieldError::invalid(path, value, &detail));
    if scheme != "https" {
        complain(scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.split('/').next().unwrap_or("");
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        complain("", format!("host must be specified{FORM}"));
    }
    if !user.is_empty() {
        complain(user, "user information is not permitted in the URL".into());
    }
    if !fragment.is_empty() {
        complain(fragment, "fragments are not permitted in the URL".into());
    }
    if !query.is_empty() {
        complain(query, "query parameters are not permitted in the URL".into());
    }
}

fn webhook_service(service: &Value, path: &Path, errors: &mut ErrorList) {
    for field in ["name", "namespace"] {
        if text(service, field).is_empty() {
            errors.push(FieldError::required(&path.child(field), &format!("service {field} is required")));
        }
    }
    let port = service["port"].as_i64().unwrap_or(443);
    if names::port_number(port).is_some() {
        let detail = format!("port is not valid: {}", names::port_number(port).unwrap_or(""));
        errors.push(FieldError::invalid(&path.child("port"), port, &detail));
    }
    let Some(at_url) = service["path"].as_str().filter(|p| *p != "/" && !p.is_empty()) else { return };
    let path = path.child("path");
    if !at_url.starts_with('/') {
        errors.push(FieldError::invalid(&path, at_url, "must start with a '/'"));
    }
    let steps: Vec<&str> = at_url.get(1..).unwrap_or("").split('/').collect();
    for (i, step) in steps.iter().enumerate() {
        if step.is_empty() && i + 1 == steps.len() && steps.len() > 1 {
            continue;
        }
        if step.is_empty() {
            errors.push(FieldError::invalid(&path, at_url, &format!("segment[{i}] may not be empty")));
            continue;
        }
        for problem in names::dns1123_subdomain(step) {
            errors.push(FieldError::invalid(&path, at_url, &format!("segment[{i}]: {problem}")));
        }
    }
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    items(value, field).iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

fn rule_with_operations(rule: &Value, path: &Path, errors: &mut ErrorList) {
    let operations = texts(rule, "operations");
    let at_operations = path.child("operations");
    if operations.is_empty() {
        errors.push(FieldError::required(&at_operations, ""));
    }
    if operations.len() > 1 && operations.iter().any(|o| o == "*") {
        let detail = "if '*' is present, must not specify other operations";
        errors.push(FieldError::invalid(&at_operations, operations.clone(), detail));
    }
    for (i, operation) in operations.iter().enumerate() {
        one_of(operation, &OPERATIONS, &at_operations.index(i), errors);
    }
    for (field, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let (list, path) = (texts(rule, field), path.child(field));
        if list.is_empty() {
            errors.push(FieldError::required(&path, ""));
        }
        if list.len() > 1 && list.iter().any(|v| v == "*") {
            let detail = format!("if '*' is present, must not specify other {what}");
            errors.push(FieldError::invalid(&path, list.clone(), &detail));
        }
        for (i, value) in list.iter().enumerate() {
            if value.is_empty() && field == "apiVersions" {
                errors.push(FieldError::required(&path.index(i), ""));
            }
        }
    }
    rule_resources(&texts(rule, "resources"), &path.child("resources"), errors);
    one_of_if_set(&rule["scope"], &["*", "Cluster", "Namespaced"], &path.child("scope"), errors);
}

fn rule_resources(list: &[String], path: &Path, errors: &mut ErrorList) {
    if list.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    let has = |name: &str| list.iter().any(|r| r == name);
    for (i, resource) in list.iter().enumerate() {
        if resource.is_empty() {
            errors.push(FieldError::required(&path.index(i), ""));
            continue;
        }
        let Some((name, sub)) = resource.split_once('/') else { continue };
        if sub != "*" && has(&format!("{name}/*")) {
            let detail = format!("if '{name}/*' is present, must not specify {resource}");
            errors.push(FieldError::invalid(&path.index(i), resource.as_str(), &detail));
        }
        if name != "*" && has(&format!("*/{sub}")) {
            let detail = format!("if '*/{sub}' is present, must not specify {resource}");
            errors.push(FieldError::invalid(&path.index(i), resource.as_str(), &detail));
        }
    }
    if has("*/*") && list.len() > 1 {
        let detail = "if '*/*' is present, must not specify other resources";
        errors.push(FieldError::invalid(path, list.to_vec(), detail));
    }
    if has("*") && list.iter().any(|r| r != "*" && !r.contains('/')) {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.push(FieldError::invalid(path, list.to_vec(), detail));
    }
}

fn match_conditions(value: &Value, path: &Path, scope: Scope, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    let list = items(value, "matchConditions");
    if list.len() > 64 {
        errors.push(FieldError::too_many(&path.child("matchConditions"), list.len(), 64));
    }
    for (i, condition) in list.iter().enumerate() {
        let path = path.child("matchConditions").index(i);
        let expression = text(condition, "expression");
        if expression.trim().is_empty() {
            errors.push(FieldError::required(&path.child("expression"), ""));
        } else {
            compiles(
                expression,
                scope,
                &Variables::default(),
                &[Type::Bool],
                &path.child("expression"),
                errors,
            );
        }
        let name = text(condition, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else {
            for problem in names::qualified_name(name) {
                errors.push(FieldError::invalid(&path.child("name"), name, &problem));
            }
            if !seen.insert(name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
        }
    }
}

fn default_matching(matching: &mut Value) {
    if !matching.is_object() {
        return;
    }
    default(matching, "namespaceSelector", json!({}));
    default(matching, "objectSelector", json!({}));
    default(matching, "matchPolicy", "Equivalent");
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in each_mut(matching, list) {
            default(rule, "scope", "*");
        }
    }
}

/// `rules_needed` is for the policy; a binding may leave everything to it.
fn matching(value: &Value, path: &Path, rules_needed: bool, errors: &mut ErrorList) {
    if value.is_null() {
        if rules_needed {
            errors.push(FieldError::required(path, ""));
        }
        return;
    }
    one_of_if_set(&value["matchPolicy"], &["Equivalent", "Exact"], &path.child("matchPolicy"), errors);
    for selector in ["namespaceSelector", "objectSelector"] {
        label_selector(&value[selector], &path.child(selector), errors);
    }
    if rules_needed && items(value, "resourceRules").is_empty() {
        errors.push(FieldError::required(&path.child("resourceRules"), ""));
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        for (i, rule) in items(value, list).iter().enumerate() {
            rule_with_operations(rule, &path.child(list).index(i), errors);
        }
    }
}

pub struct Policies {
    pub mutating: bool,
}

impl Strategy for Policies {
    fn default(&self, object: &mut Value) {
        let spec = map_mut(object).entry("spec").or_insert(Value::Null);
        map_mut(spec);
        default(spec, "failurePolicy", "Fail");
        default_matching(&mut spec["matchConstraints"]);
        if spec["matchConstraints"].is_null() {
            map_mut(spec).remove("matchConstraints");
        }
    }
    fn generation(&self) -> bool {
        true
    }
    fn name_check(&self) -> NameCheck {
        names::dns1123_subdomain
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        one_of_if_set(&spec["failurePolicy"], &["Fail", "Ignore"], &path.child("failurePolicy"), errors);
        if !spec["paramKind"].is_null() {
            param_kind(&spec["paramKind"], &path.child("paramKind"), errors);
        }
        matching(&spec["matchConstraints"], &path.child("matchConstraints"), true, errors);
        if self.mutating {
            for rule in items(spec, "matchConstraints.resourceRules") {
                for operation in texts(rule, "operations") {
                    let at = path.child("matchConstraints").child("resourceRules").child("operations");
                    one_of(&operation, &["*", "CONNECT", "CREATE", "UPDATE"], &at, errors);
                }
            }
        }
        let params = !spec["paramKind"].is_null();
        let scope = Scope { params, authorizer: true, patches: false };
        variables(spec, &path, scope, errors);
        if self.mutating {
            mutations(spec, &path, Scope { patches: true, ..scope }, errors);
            match_conditions(spec, &path, scope, errors);
            match text(spec, "reinvocationPolicy") {
                "" => errors.push(FieldError::required(&path.child("reinvocationPolicy"), "")),
                other => one_of(other, &["IfNeeded", "Never"], &path.child("reinvocationPolicy"), errors),
            }
        } else {
            match_conditions(spec, &path, scope, errors);
            validations(object, &path, scope, errors);
        }
    }
    fn validate_update(&self, _: &Target, _: &Value, _: &Value, _: &mut ErrorList) {}
}

fn param_kind(kind: &Value, path: &Path, errors: &mut ErrorList) {
    let version = text(kind, "apiVersion");
    if version.is_empty() {
        errors.push(FieldError::required(&path.child("apiVersion"), ""));
    } else {
        let (group, bare) = version.rsplit_once('/').unwrap_or(("", version));
        let group = if group.is_empty() { vec![] } else { names::dns1123_subdomain(group) };
        for problem in group.into_iter().chain(names::dns1035_label(bare)) {
            errors.push(FieldError::invalid(&path.child("apiVersion"), version, &problem));
        }
    }
    let name = text(kind, "kind");
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("kind"), ""));
    } else {
        for problem in names::dns1035_label(&name.to_lowercase()) {
            let detail = format!("may have mixed case, but should otherwise match: {problem}");
            errors.push(FieldError::invalid(&path.child("kind"), name, &detail));
        }
    }
}

/// An expression that has to compile, to one of some types.
fn compiles(
    expression: &str,
    scope: Scope,
    variables: &Variables,
    wanted: &[Type],
    path: &Path,
    errors: &mut ErrorList,
) {
    if let Err(why) = environment::compile_as(expression, scope, variables, wanted) {
        errors.push(FieldError::invalid(path, expression, &why));
    }
}

fn variables(spec: &Value, path: &Path, scope: Scope, errors: &mut ErrorList) {
    let all = environment::variables(spec, scope);
    for (i, variable) in items(spec, "variables").iter().enumerate() {
        let path = path.child("variables").index(i);
        let name = text(variable, "name");
        let identifier = !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), "name is not specified"));
        } else if !identifier {
            errors.push(FieldError::invalid(&path.child("name"), name, "must be a valid CEL identifier"));
        }
        let expression = text(variable, "expression");
        let at = path.child("expression");
        if expression.trim().is_empty() {
            errors.push(FieldError::required(&at, "expression is not specified"));
        } else if let Err(why) = environment::compile(expression, scope, &all.before(i)) {
            errors.push(FieldError::invalid(&at, expression, &why));
        }
    }
}

fn validations(object: &Value, path: &Path, scope: Scope, errors: &mut ErrorList) {
    let spec = &object["spec"];
    let known = environment::variables(spec, scope);
    let (list, audit) = (items(spec, "validations"), items(spec, "auditAnnotations"));
    if list.is_empty() && audit.is_empty() {
        let detail = "validations or auditAnnotations must contain at least one item";
        errors.push(FieldError::required(&path.child("validations"), detail));
        errors.push(FieldError::required(&path.child("auditAnnotations"), detail));
    }
    for (i, validation) in list.iter().enumerate() {
        let path = path.child("validations").index(i);
        let expression = text(validation, "expression");
        if expression.trim().is_empty() {
            errors.push(FieldError::required(&path.child("expression"), "expression is not specified"));
        } else {
            compiles(expression, scope, &known, &[Type::Bool], &path.child("expression"), errors);
        }
        let expression = text(validation, "messageExpression");
        if !expression.trim().is_empty() {
            let scope = Scope { authorizer: false, ..scope };
            compiles(expression, scope, &known, &[Type::String], &path.child("messageExpression"), errors);
        }
        let message = text(validation, "message");
        if !message.is_empty() && message.trim().is_empty() {
            let detail = "message must be non-empty if specified";
            errors.push(FieldError::invalid(&path.child("message"), message, detail));
        } else if message.trim().contains('\n') {
            let detail = "message must not contain line breaks";
            errors.push(FieldError::invalid(&path.child("message"), message, detail));
        }
        let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
        let shown = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
        if let Some(reason) = validation["reason"].as_str().filter(|r| !reasons.contains(r)) {
            errors.push(FieldError::not_supported(&path.child("reason"), reason, &shown));
        }
    }
    for (i, annotation) in audit.iter().enumerate() {
        let path = path.child("auditAnnotations").index(i);
        let key = format!("{}/{}", text(object, "metadata.name"), text(annotation, "key"));
        for problem in names::qualified_name(&key) {
            errors.push(FieldError::invalid(&path.child("key"), key.as_str(), &problem));
        }
        let (expression, at) = (text(annotation, "valueExpression"), path.child("valueExpression"));
        if expression.trim().is_empty() {
            errors.push(FieldError::required(&at, "valueExpression is not specified"));
        } else {
            compiles(expression, scope, &known, &[Type::String, Type::Null], &at, errors);
        }
    }
}

fn mutations(spec: &Value, path: &Path, scope: Scope, errors: &mut ErrorList) {
    let known = environment::variables(spec, scope);
    let list = items(spec, "mutations");
    if list.is_empty() {
        let detail = "mutations must contain at least one item";
        errors.push(FieldError::required(&path.child("mutations"), detail));
    }
    let forms = [("ApplyConfiguration", "applyConfiguration"), ("JSONPatch", "jsonPatch")];
    for (i, mutation) in list.iter().enumerate() {
        let path = path.child("mutations").index(i);
        let kind = text(mutation, "patchType");
        let Some((_, field)) = forms.iter().find(|(k, _)| *k == kind) else {
            let at = path.child("patchType");
            errors.push(if kind.is_empty() {
                FieldError::required(&at, "")
            } else {
                FieldError::not_supported(&at, kind, &["ApplyConfiguration", "JSONPatch"])
            });
            continue;
        };
        if mutation[*field].is_null() {
            let detail = format!("must be specified when patchType is {kind}");
            errors.push(FieldError::required(&path.child(field), &detail));
        } else {
            let (expression, at) =
                (text(&mutation[*field], "expression"), path.child(field).child("expression"));
            let named = |name: &str| Type::object(name, []);
            let wanted = if kind == "JSONPatch" { Type::list(named("JSONPatch")) } else { named("Object") };
            if expression.trim().is_empty() {
                errors.push(FieldError::required(&at, ""));
            } else {
                compiles(expression, scope, &known, &[wanted], &at, errors);
            }
        }
        for (_, other) in forms.iter().filter(|(k, f)| *k != kind && !mutation[*f].is_null()) {
            let detail = format!("must not be specified when patchType is {kind}");
            errors.push(FieldError::invalid(&path.child(other), format!("{{{other}}}"), &detail));
        }
    }
}

pub struct Bindings {
    pub mutating: bool,
}

impl Strategy for Bindings {
    fn default(&self, object: &mut Value) {
        let spec = map_mut(object).entry("spec").or_insert(Value::Null);
        map_mut(spec);
        if spec["matchResources"].is_object() {
            default_matching(&mut spec["matchResources"]);
        }
    }
    fn generation(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let policy = text(spec, "policyName");
        if policy.is_empty() {
            errors.push(FieldError::required(&path.child("policyName"), ""));
        } else {
            for problem in names::dns1123_subdomain(policy) {
                errors.push(FieldError::invalid(&path.child("policyName"), policy, &problem));
            }
        }
        if !spec["paramRef"].is_null() {
            param_ref(&spec["paramRef"], &path.child("paramRef"), errors);
        }
        matching(&spec["matchResources"], &path.child("matchResources"), false, errors);
        if !self.mutating {
            actions(&texts(spec, "validationActions"), &path.child("validationActions"), errors);
        }
    }
}

fn param_ref(reference: &Value, path: &Path, errors: &mut ErrorList) {
    let (name, selector) = (text(reference, "name"), &reference["selector"]);
    if name.is_empty() && selector.is_null() {
        errors.push(FieldError::required(path, "one of name or selector must be specified"));
    } else if !name.is_empty() && !selector.is_null() {
        for field in ["name", "selector"] {
            let detail = "name and selector are mutually exclusive";
            errors.push(FieldError::forbidden(&path.child(field), detail));
        }
    }
    label_selector(selector, &path.child("selector"), errors);
    match text(reference, "parameterNotFoundAction") {
        "" => errors.push(FieldError::required(&path.child("parameterNotFoundAction"), "")),
        action => one_of(action, &["Allow", "Deny"], &path.child("parameterNotFoundAction"), errors),
    }
}

fn actions(list: &[String], path: &Path, errors: &mut ErrorList) {
    if list.is_empty() {
        errors.push(FieldError::required(path, "at least one validation action is required"));
    }
    let mut seen = BTreeSet::new();
    for (i, action) in list.iter().enumerate() {
        one_of(action, &["Audit", "Deny", "Warn"], &path.index(i), errors);
        if !seen.insert(action) {
            errors.push(FieldError::duplicate(&path.index(i), action.as_str()));
        }
    }
    let has = |name: &str| list.iter().any(|a| a == name);
    if has("Deny") && has("Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.push(FieldError::invalid(path, list.to_vec(), detail));
    }
}
