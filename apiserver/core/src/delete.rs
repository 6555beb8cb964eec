//! Deletion: options, preconditions, grace periods, finalizers, propagation.

use crate::context::{Context, DeleteOptions, Deletion, Target};
use crate::resources::strategy;
use crate::value::{at, int, items, set, take, terminating, text};
use keelson_api::{ErrorList, FieldError, Path, Resource, Status};
use serde_json::Value;

/// Reads a `DeleteOptions` object.
pub fn options(value: &Value) -> Result<DeleteOptions, Status> {
    let wrong = |field: &str, found: &Value, want: &str| {
        let found = match found {
            Value::String(_) => "string",
            Value::Number(_) => "number",
            Value::Bool(_) => "bool",
            Value::Array(_) => "array",
            _ => "object",
        };
        Status::bad_request(format!(
            "json: cannot unmarshal {found} into Go struct field DeleteOptions.{field} of type {want}"
        ))
    };
    let text = |at: &Value, field: &str| match at {
        Value::Null => Ok(None),
        Value::String(s) => Ok(Some(s.clone())),
        other => Err(wrong(field, other, "string")),
    };
    let kind = value["kind"].as_str().unwrap_or("");
    if !kind.is_empty() && kind != "DeleteOptions" {
        let version = value["apiVersion"].as_str().unwrap_or("");
        return Err(Status::bad_request(format!(
            "no kind \"{kind}\" is registered for version \"{version}\" in scheme \"pkg/apis/meta/internalversion/scheme/register.go:27\""
        )));
    }
    let mut out = DeleteOptions {
        precondition_uid: text(&value["preconditions"]["uid"], "preconditions.uid")?,
        precondition_resource_version: text(
            &value["preconditions"]["resourceVersion"],
            "preconditions.resourceVersion",
        )?,
        propagation_policy: text(&value["propagationPolicy"], "propagationPolicy")?,
        ..DeleteOptions::default()
    };
    out.grace_period_seconds = match &value["gracePeriodSeconds"] {
        Value::Null => None,
        n => Some(n.as_i64().ok_or_else(|| wrong("gracePeriodSeconds", n, "int64"))?),
    };
    out.orphan_dependents = match &value["orphanDependents"] {
        Value::Null => None,
        b => Some(b.as_bool().ok_or_else(|| wrong("orphanDependents", b, "bool"))?),
    };
    let dry_run = value["dryRun"].as_array().map(Vec::as_slice).unwrap_or_default();
    out.dry_run = dry_run.iter().any(|d| d == "All");
    check(&out)?;
    Ok(out)
}

/// Checks options that came from a body, a query or both.
pub fn check(options: &DeleteOptions) -> Result<(), Status> {
    let mut errors = ErrorList::new();
    let path = Path::new("propagationPolicy");
    if let Some(policy) = &options.propagation_policy {
        if options.orphan_dependents.is_some() {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid(&path, policy.as_str(), detail));
        }
        let known = ["Foreground", "Background", "Orphan"];
        if !known.contains(&policy.as_str()) {
            errors.push(FieldError::not_supported(
                &path,
                policy.as_str(),
                &["Foreground", "Background", "Orphan", "nil"],
            ));
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid_kind("meta.k8s.io", "DeleteOptions", "", errors))
    }
}

/// What the store should hold after a DELETE.
pub fn delete(
    target: &Target,
    current: &Value,
    options: &DeleteOptions,
    ctx: &Context,
) -> Result<Deletion, Status> {
    check(options)?;
    preconditions(target, current, options)?;
    crate::admission::validate_delete(target, current, ctx)?;
    let strategy = strategy(target.resource);
    let mut next = current.clone();
    take(&mut next, "metadata.resourceVersion");
    if target.resource.group.is_empty() && target.resource.plural == "namespaces" {
        return Ok(delete_namespace(next, ctx));
    }
    propagate(target, &mut next, options);
    if target.resource.plural == "customresourcedefinitions" {
        crate::resources::definitions::hold(&mut next, ctx);
    }
    let waits = !items(&next, "metadata.finalizers").is_empty();
    let grace = grace_period(target, current, options);
    if terminating(current) {
        return Ok(delete_again(target, current, next, options, waits, ctx));
    }
    if grace == 0 && !waits {
        let answer = strategy.answers_deleted_object().then_some(next);
        return Ok(Deletion::Remove { answer, claims: strategy.release(current) });
    }
    mark(&mut next, ctx, grace);
    if target.resource.plural == "customresourcedefinitions" {
        // Its objects go first, however long that takes.
        take(&mut next["metadata"], "deletionGracePeriodSeconds");
        return Ok(Deletion::Update { object: next, unchanged: false });
    }
    if strategy.generation() || !at(current, "metadata.generation").is_null() {
        set(&mut next, "metadata.generation", int(current, "metadata.generation") + 1);
    }
    Ok(Deletion::Update { object: next, unchanged: false })
}

fn mark(object: &mut Value, ctx: &Context, grace: i64) {
    let when = ctx.now.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(ctx.now);
    set(object, "metadata.deletionTimestamp", crate::meta::time(when));
    set(object, "metadata.deletionGracePeriodSeconds", grace);
}

fn preconditions(target: &Target, current: &Value, options: &DeleteOptions) -> Result<(), Status> {
    let what = |field: &str, wanted: &str, found: &str, hint: &str| {
        let cause = format!(
            "the {field} in the precondition ({wanted}) does not match the {field} in record ({found}). The object might have been {hint}"
        );
        // Both forms of Event are one kind inside, and that has no group.
        let event = target.resource.kind == "Event";
        let kind = if event { "Event".into() } else { target.resource.group_kind() };
        let mut status = Status::conflict(target.resource, target.name, &cause);
        status.message = format!("Operation cannot be fulfilled on {kind} \"{}\": {cause}", target.name);
        status.kind = target.resource.kind.clone();
        if event {
            status.group.clear();
        }
        status
    };
    let uid = text(current, "metadata.uid");
    if let Some(wanted) = options.precondition_uid.as_deref().filter(|w| *w != uid) {
        return Err(what("UID", wanted, uid, "deleted and then recreated"));
    }
    let version = text(current, "metadata.resourceVersion");
    if let Some(wanted) = options.precondition_resource_version.as_deref().filter(|w| *w != version) {
        return Err(what("ResourceVersion", wanted, version, "modified"));
    }
    Ok(())
}

/// Seconds a deletion waits: pods that run somewhere are stopped first.
fn grace_period(target: &Target, current: &Value, options: &DeleteOptions) -> i64 {
    if !(target.resource.group.is_empty() && target.resource.plural == "pods") {
        return 0;
    }
    let phase = text(current, "status.phase");
    if text(current, "spec.nodeName").is_empty() || phase == "Failed" || phase == "Succeeded" {
        return 0;
    }
    let own = at(current, "spec.terminationGracePeriodSeconds").as_i64().unwrap_or(30);
    let asked = options.grace_period_seconds.unwrap_or(own);
    // Nothing negative: that reads as "at once, but let the node confirm".
    if asked < 0 { 1 } else { asked }
}

/// A second deletion can only make it sooner.
fn delete_again(
    target: &Target,
    current: &Value,
    mut next: Value,
    options: &DeleteOptions,
    waits: bool,
    ctx: &Context,
) -> Deletion {
    let strategy = strategy(target.resource);
    let pending = int(current, "metadata.deletionGracePeriodSeconds");
    let asked = match options.grace_period_seconds {
        Some(_) => grace_period(target, current, options),
        None => pending,
    };
    if asked == 0 && !waits {
        if pending > 0 {
            mark(&mut next, ctx, 0);
        }
        let answer = strategy.answers_deleted_object().then_some(next);
        return Deletion::Remove { answer, claims: strategy.release(current) };
    }
    if asked < pending {
        mark(&mut next, ctx, asked);
    }
    let mut before = current.clone();
    take(&mut before, "metadata.resourceVersion");
    let unchanged = before == next;
    Deletion::Update { object: next, unchanged }
}

/// Which of the garbage collector's finalizers a deletion leaves.
fn propagate(target: &Target, next: &mut Value, options: &DeleteOptions) {
    if !collects(target) {
        return;
    }
    let policy = options.propagation_policy.as_deref();
    let (mut foreground, mut orphan) = (false, false);
    match (policy, options.orphan_dependents) {
        (Some("Foreground"), _) => foreground = true,
        (Some("Orphan"), _) | (None, Some(true)) => orphan = true,
        (Some("Background"), _) | (None, Some(false)) => {}
        _ => {
            let has = |f: &str| items(next, "metadata.finalizers").iter().any(|x| x == f);
            foreground = has("foregroundDeletion");
            orphan = has("orphan") || (!foreground && leaves_dependents(target.resource));
        }
    }
    let mut finalizers: Vec<Value> = items(next, "metadata.finalizers").to_vec();
    finalizers.retain(|f| f != "foregroundDeletion" && f != "orphan");
    if orphan {
        finalizers.push("orphan".into());
    }
    if foreground {
        finalizers.push("foregroundDeletion".into());
    }
    if finalizers.is_empty() {
        take(next, "metadata.finalizers");
    } else {
        set(next, "metadata.finalizers", finalizers);
    }
}

/// The oldest kinds leave what they made, unless the client says otherwise.
fn leaves_dependents(resource: &Resource) -> bool {
    let names = (resource.group.as_str(), resource.plural.as_str());
    matches!(names, ("batch", "jobs") | ("", "replicationcontrollers"))
}

/// What a client should hear about a deletion it asks for.
pub fn warnings(resource: &Resource, options: &DeleteOptions) -> Vec<String> {
    let said = options.propagation_policy.is_some() || options.orphan_dependents.is_some();
    if resource.plural != "jobs" || said || !leaves_dependents(resource) {
        return vec![];
    }
    let text = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning";
    vec![text.into()]
}

/// Events and leases own nothing, so there is nothing to wait for.
fn collects(target: &Target) -> bool {
    target.resource.plural != "events"
}

fn delete_namespace(mut next: Value, ctx: &Context) -> Deletion {
    if terminating(&next) {
        if items(&next, "spec.finalizers").is_empty() && items(&next, "metadata.finalizers").is_empty() {
            return Deletion::Remove { answer: Some(next), claims: vec![] };
        }
        return Deletion::Update { object: next, unchanged: true };
    }
    set(&mut next, "metadata.deletionTimestamp", crate::meta::time(ctx.now));
    set(&mut next, "status.phase", "Terminating");
    Deletion::Update { object: next, unchanged: false }
}
