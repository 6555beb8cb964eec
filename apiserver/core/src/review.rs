//! Reviews: questions that are answered and not kept.

use crate::authz::{Attributes, authorize};
use crate::context::{Context, Target, UserInfo};
use crate::rbac;
use crate::value::{at, items, set, take, text};
use keelson_api::{ErrorList, FieldError, Path, Status};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Answers a SubjectAccessReview of any kind, a SelfSubjectRulesReview or a SelfSubjectReview.
/// TokenReview is about authentication and belongs to the server.
pub fn review(target: &Target, mut object: Value, ctx: &Context) -> Result<Value, Status> {
    take(&mut object, "status");
    match target.resource.plural.as_str() {
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            let user = UserInfo {
                name: text(&object, "spec.user").into(),
                uid: text(&object, "spec.uid").into(),
                groups: strings(at(&object, "spec.groups")),
                extra: extra(at(&object, "spec.extra")),
            };
            if target.resource.namespaced {
                crate::meta::place(target, &mut object)?;
                take(&mut object, "metadata.namespace");
            }
            check(target, &object, Some(&user))?;
            access(target, object, user, ctx)
        }
        "selfsubjectaccessreviews" => {
            check(target, &object, None)?;
            access(target, object, ctx.user.clone(), ctx)
        }
        "selfsubjectrulesreviews" => rules(target, object, ctx),
        "selfsubjectreviews" => {
            let mut user = json!({"username": ctx.user.name});
            if !ctx.user.uid.is_empty() {
                set(&mut user, "uid", ctx.user.uid.as_str());
            }
            if !ctx.user.groups.is_empty() {
                set(&mut user, "groups", ctx.user.groups.clone());
            }
            if !ctx.user.extra.is_empty() {
                set(&mut user, "extra", json!(ctx.user.extra));
            }
            set(&mut object, "status", json!({"userInfo": user}));
            set(&mut object, "metadata.creationTimestamp", crate::meta::time(ctx.now));
            Ok(object)
        }
        _ => Err(Status::method_not_allowed()),
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(String::from)).collect()
}

fn extra(value: &Value) -> BTreeMap<String, Vec<String>> {
    value.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), strings(v))).collect()
}

fn check(target: &Target, object: &Value, user: Option<&UserInfo>) -> Result<(), Status> {
    let mut errors = ErrorList::new();
    let (spec, path) = (&object["spec"], Path::new("spec"));
    match (spec["resourceAttributes"].is_null(), spec["nonResourceAttributes"].is_null()) {
        (false, false) => {
            let detail = "cannot be specified in combination with resourceAttributes";
            let shown = non_resource(spec);
            errors.push(FieldError::invalid_shown(&path.child("nonResourceAttributes"), &shown, detail));
        }
        (true, true) => {
            let mut shown = spec.clone();
            crate::value::map_mut(&mut shown);
            let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errors.push(FieldError::invalid(
                &path.child("resourceAttributes"),
                spec["resourceAttributes"].clone(),
                detail,
            ));
        }
        _ => {}
    }
    if user.is_some_and(|u| u.name.is_empty() && u.groups.is_empty()) {
        let detail = "at least one of user or group must be specified";
        errors.push(FieldError::invalid(&path.child("user"), "", detail));
    }
    for field in ["fieldSelector", "labelSelector"] {
        selector(
            &spec["resourceAttributes"][field],
            &path.child("resourceAttributes").child(field),
            &mut errors,
        );
    }
    if target.resource.plural == "localsubjectaccessreviews" {
        let asked = text(spec, "resourceAttributes.namespace");
        if spec["resourceAttributes"].is_object() && asked != target.namespace {
            let detail = "must match metadata.namespace";
            errors.push(FieldError::invalid(
                &path.child("resourceAttributes").child("namespace"),
                asked,
                detail,
            ));
        }
    }
    if target.resource.plural == "localsubjectaccessreviews" && spec["nonResourceAttributes"].is_object() {
        let detail = "disallowed on this kind of request";
        errors.push(FieldError::invalid_shown(
            &path.child("nonResourceAttributes"),
            &non_resource(spec),
            detail,
        ));
    }
    if !text(object, "metadata.name").is_empty() && target.resource.plural != "localsubjectaccessreviews" {
        let table = keelson_api::schema::builtin();
        let shape = table.id(keelson_api::schema::OBJECT_META).map(keelson_api::schema::Shape::Object);
        let mut meta = object["metadata"].clone();
        // The server's own notes on who wrote it come with it.
        take(&mut meta, "creationTimestamp");
        let shown = shape.map_or_else(String::new, |shape| crate::gotext::in_order(table, &shape, &meta));
        errors.push(FieldError::invalid_shown(&Path::new("metadata"), &shown, "must be empty"));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid_kind(&target.resource.group, "", "", errors))
}

fn non_resource(spec: &Value) -> String {
    crate::gotext::inner("authorization.v1.NonResourceAttributes", &spec["nonResourceAttributes"])
}

/// The selector an access is limited to: as text, or taken apart.
fn selector(selector: &Value, path: &Path, errors: &mut ErrorList) {
    let raw = text(selector, "rawSelector");
    let requirements = items(selector, "requirements");
    if !raw.is_empty() && !requirements.is_empty() {
        let detail = "may not specified at the same time as requirements";
        errors.push(FieldError::invalid(&path.child("rawSelector"), raw, detail));
    }
    for (i, r) in requirements.iter().enumerate() {
        let at_i = path.child("requirements").index(i);
        if text(r, "key").is_empty() {
            errors.push(FieldError::required(&at_i.child("key"), "must be specified"));
        }
    }
}

/// Which of the selectors as text cannot be read.
fn unreadable(attributes: &Value) -> Option<String> {
    let label = text(attributes, "labelSelector.rawSelector");
    let wrong = !label.is_empty() && keelson_api::LabelSelector::parse(label).is_err();
    wrong.then(|| "spec.resourceAttributes.labelSelector ignored due to parse error".into())
}

fn access(target: &Target, mut object: Value, user: UserInfo, ctx: &Context) -> Result<Value, Status> {
    let spec = &object["spec"];
    let attributes = if spec["resourceAttributes"].is_null() {
        let r = &spec["nonResourceAttributes"];
        Attributes {
            user,
            verb: text(r, "verb").into(),
            path: text(r, "path").into(),
            ..Attributes::default()
        }
    } else {
        let r = &spec["resourceAttributes"];
        Attributes {
            user,
            verb: text(r, "verb").into(),
            group: text(r, "group").into(),
            version: text(r, "version").into(),
            resource: text(r, "resource").into(),
            subresource: text(r, "subresource").into(),
            namespace: text(r, "namespace").into(),
            name: text(r, "name").into(),
            is_resource: true,
            ..Attributes::default()
        }
    };
    let decision = authorize(&attributes, ctx.view);
    let reason = match &decision {
        crate::Decision::Allow { reason } | crate::Decision::Deny { reason } => reason.clone(),
    };
    let mut status = json!({"allowed": decision.allowed()});
    if let Some(problem) = unreadable(&object["spec"]["resourceAttributes"]) {
        set(&mut status, "evaluationError", problem);
    }
    if !reason.is_empty() {
        set(&mut status, "reason", reason);
    }
    if target.resource.namespaced {
        set(&mut object, "metadata.namespace", target.namespace);
    }
    set(&mut object, "status", status);
    Ok(object)
}

fn rules(target: &Target, mut object: Value, ctx: &Context) -> Result<Value, Status> {
    let namespace = text(&object, "spec.namespace").to_string();
    if namespace.is_empty() {
        let _ = target;
        return Err(Status::bad_request("no namespace on request"));
    }
    let (mut resource_rules, mut url_rules) = (vec![], vec![]);
    for rule in rbac::rules_for(ctx.user, &namespace, ctx.view) {
        if items(&rule, "nonResourceURLs").is_empty() {
            resource_rules.push(rule);
        } else {
            url_rules.push(rule);
        }
    }
    let status = json!({"resourceRules": resource_rules, "nonResourceRules": url_rules, "incomplete": false});
    set(&mut object, "status", status);
    Ok(object)
}
