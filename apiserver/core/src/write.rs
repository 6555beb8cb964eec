//! Create and update: the order in which an object is made ready for the store.

use crate::admission;
use crate::admission::webhooks::Request;
use crate::context::{Claim, Context, Outcome, Target, WriteOptions};
use crate::decode;
use crate::managed;
use crate::meta;
use crate::resources::{Strategy, strategy};
use crate::value::{items, map_mut, set, take, terminating, text};
use keelson_api::{ErrorList, FieldError, Path, Status};
use serde_json::Value;

/// What the store should hold after a POST. The object comes from [`decode`](crate::decode::decode).
pub fn create(
    target: &Target,
    object: Value,
    options: &WriteOptions,
    ctx: &Context,
) -> Result<Outcome, Status> {
    create_with(target, object, options, ctx, |object| {
        managed::update(target, None, object, &options.field_manager, ctx.now)
    })
}

/// Creates with the managed fields of the caller's choice (updates and applies keep them differently).
pub(crate) fn create_with(
    target: &Target,
    mut object: Value,
    options: &WriteOptions,
    ctx: &Context,
    manage: impl FnOnce(&mut Value) -> Result<(), Status>,
) -> Result<Outcome, Status> {
    if target.resource.storage.is_none() || target.subresource.is_some() {
        return Err(Status::method_not_allowed());
    }
    let strategy = strategy(target.resource);
    let raw = finish(target, strategy, &mut object)?;
    meta::prepare_create(target, &mut object, ctx)?;
    managed_as_stored(target, &mut object, raw, manage)?;
    let mut warnings = admission::mutate_create(target, &mut object, ctx)?;
    policies("CREATE", target, None, &mut object, options, ctx)?;
    if strategy.generation_from_the_start() {
        set(&mut object, "metadata.generation", 1);
    }
    if target.resource.subresource("status").is_some() && !strategy.keeps_status_on_create() {
        take(&mut object, "status");
    }
    strategy.prepare_create(&mut object, ctx);
    let raw = finish(target, strategy, &mut object)?;
    strategy.before_create(target, &object)?;
    let mut errors = ErrorList::new();
    meta::validate(target, &object, strategy.name_check(), &mut errors);
    strategy.validate(&object, &mut errors);
    warnings.extend(custom_rules(target, &object, None, &mut errors));
    check(target, &object, errors)?;
    let judged = admission::validate_create(target, &object, ctx)?;
    let claims = strategy.allocate(target, None, &mut object, ctx)?;
    warnings.extend(strategy.warnings(&object));
    warnings.extend(dotted_name(target, &object));
    warnings.extend(judged);
    clean(target, &mut object, raw)?;
    strategy.default_stored(&mut object);
    Ok(Outcome { object, warnings, created: true, claims, ..Outcome::default() })
}

/// What mutating policies make of an object.
fn policies(
    operation: &'static str,
    target: &Target,
    old: Option<&Value>,
    object: &mut Value,
    options: &WriteOptions,
    ctx: &Context,
) -> Result<(), Status> {
    let (user, dry_run) = (ctx.user, options.dry_run);
    let request = Request { operation, target: *target, old, new: None, user, dry_run };
    admission::policies::mutating::mutate(&request, object, ctx.view)
}

/// Names of what becomes pods are host names as well.
fn dotted_name(target: &Target, object: &Value) -> Option<String> {
    let where_ = match target.resource.plural.as_str() {
        "pods" => "the Pod's hostname",
        "deployments" | "replicasets" | "jobs" | "replicationcontrollers" => "Pod names and hostnames",
        _ => return None,
    };
    let problems = keelson_api::names::dns1123_label_without_dots(text(object, "metadata.name"));
    (!problems.is_empty()).then(|| {
        let all = problems.join(" ");
        format!("metadata.name: this is used in {where_}, which can result in surprising behavior; a DNS label is recommended: [{all}]")
    })
}

fn check(target: &Target, object: &Value, errors: ErrorList) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    // Both forms of Event are one kind inside, and that has no group.
    let group = if target.resource.kind == "Event" { "" } else { target.resource.group.as_str() };
    Err(Status::invalid_kind(group, &target.resource.kind, text(object, "metadata.name"), errors))
}

/// What a definition demands of its objects; returns warnings.
fn custom_rules(target: &Target, object: &Value, old: Option<&Value>, errors: &mut ErrorList) -> Vec<String> {
    let Some(definition) = &target.resource.definition else { return vec![] };
    let kind = text(object, "kind");
    if kind != target.resource.kind {
        let detail = format!("must be {}", target.resource.kind);
        errors.push(FieldError::invalid(&Path::new("kind"), kind, &detail));
    }
    crate::custom::validate(definition, object, old, errors)
}

/// Defaults and the form in which an object is looked at; says whether that is another than the canonical one.
fn finish(target: &Target, strategy: &dyn Strategy, object: &mut Value) -> Result<bool, Status> {
    strategy.default(object);
    decode::readable(&Target { subresource: None, ..*target }, object).map_err(Status::bad_request)
}

/// Canonical form, in which objects are stored.
fn canonical(target: &Target, object: &mut Value) -> Result<(), Status> {
    decode::canonical(&Target { subresource: None, ..*target }, object).map_err(Status::bad_request)
}

/// Managed fields speak of the object as it is stored: what is empty and goes has no manager.
fn managed_as_stored(
    target: &Target,
    object: &mut Value,
    raw: bool,
    manage: impl FnOnce(&mut Value) -> Result<(), Status>,
) -> Result<(), Status> {
    if !raw {
        return manage(object);
    }
    let mut stored = object.clone();
    canonical(target, &mut stored)?;
    manage(&mut stored)?;
    crate::value::copy(&stored, object, "metadata.managedFields");
    Ok(())
}

/// What is stored: canonical, without its revision.
fn clean(target: &Target, object: &mut Value, raw: bool) -> Result<(), Status> {
    if let Some(meta) = object.get_mut("metadata") {
        map_mut(meta).remove("resourceVersion");
    }
    if raw { canonical(target, object) } else { Ok(()) }
}

/// What the store should hold after a PUT (also of a subresource with the object's own kind).
pub fn update(
    target: &Target,
    current: Option<&Value>,
    new: Value,
    options: &WriteOptions,
    ctx: &Context,
) -> Result<Outcome, Status> {
    if target.subresource == Some("scale") {
        return crate::scale::update(target, current, new, options, ctx);
    }
    let mut new = new;
    meta::check_name(target, &new)?;
    meta::place(target, &mut new)?;
    let Some(current) = current else {
        if target.resource.create_on_update && target.subresource.is_none() {
            if !text(&new, "metadata.uid").is_empty() {
                return Err(uid_mismatch(target, text(&new, "metadata.uid"), ""));
            }
            take(&mut new, "metadata.resourceVersion");
            return create(target, new, options, ctx);
        }
        return Err(Status::not_found(target.resource, target.name));
    };
    let (uid, current_uid) = (text(&new, "metadata.uid"), text(current, "metadata.uid"));
    if !uid.is_empty() && uid != current_uid {
        return Err(uid_mismatch(target, uid, current_uid));
    }
    update_existing(target, current, new, options, ctx)
}

/// Updates an object that exists, by a PUT or a patch.
pub(crate) fn update_existing(
    target: &Target,
    current: &Value,
    new: Value,
    options: &WriteOptions,
    ctx: &Context,
) -> Result<Outcome, Status> {
    update_with(target, current, new, Some(options), ctx, |current, new| {
        managed::update(target, Some(current), new, &options.field_manager, ctx.now)
    })
}

pub(crate) fn uid_mismatch(target: &Target, wanted: &str, found: &str) -> Status {
    let key = target.resource.key(target.namespace, target.name).unwrap_or_default();
    let cause = format!(
        "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in \
         precondition: {wanted}, UID in object meta: {found}"
    );
    Status::conflict(target.resource, target.name, &cause)
}

/// The optimistic lock.
fn check_version(target: &Target, current: &Value, new: &Value) -> Result<(), Status> {
    #[cfg(feature = "planted")]
    if keelson_plant::is(24) && target.subresource == Some("status") {
        return Ok(());
    }
    let given = text(new, "metadata.resourceVersion");
    if !given.is_empty() && given.parse::<u64>().is_err() {
        let message =
            format!("strconv.ParseUint: parsing {}: invalid syntax", keelson_api::field::quote(given));
        return Err(Status { code: 500, message, bare: true, ..Status::default() });
    }
    if given.is_empty() || given == "0" {
        if !target.resource.unconditional_update {
            let path = Path::new("metadata").child("resourceVersion");
            let error = FieldError::invalid(&path, 0, "must be specified for an update");
            let mut status = Status::invalid(target.resource, target.name, vec![error]);
            status.message =
                status.message.replacen(&target.resource.group_kind(), &target.resource.group_resource(), 1);
            status.kind = target.resource.plural.clone();
            return Err(status);
        }
        return Ok(());
    }
    if given != text(current, "metadata.resourceVersion") {
        return Err(Status::stale(target.resource, target.name));
    }
    Ok(())
}

/// Updates with the managed fields of the caller's choice. Without options no policy changes the object.
pub(crate) fn update_with(
    target: &Target,
    current: &Value,
    mut new: Value,
    options: Option<&WriteOptions>,
    ctx: &Context,
    manage: impl FnOnce(&Value, &mut Value) -> Result<(), Status>,
) -> Result<Outcome, Status> {
    check_version(target, current, &new)?;
    let strategy = strategy(target.resource);
    meta::prepare_update(current, &mut new);
    let raw = finish(target, strategy, &mut new)?;
    reset(target, current, &mut new);
    managed_as_stored(target, &mut new, raw, |new| manage(current, new))?;
    strategy.prepare_update(target, current, &mut new, ctx);
    let mut warnings = admission::mutate_update(target, current, &mut new, ctx)?;
    if let Some(options) = options {
        policies("UPDATE", target, Some(current), &mut new, options, ctx)?;
        reset(target, current, &mut new);
        strategy.prepare_update(target, current, &mut new, ctx);
    }
    if strategy.generation() && target.subresource != Some("status") && strategy.spec_changed(current, &new) {
        let generation = crate::value::int(current, "metadata.generation") + 1;
        set(&mut new, "metadata.generation", generation);
    }
    let claims = strategy.allocate(target, Some(current), &mut new, ctx)?;
    let raw = finish(target, strategy, &mut new)?;
    let mut errors = ErrorList::new();
    meta::validate_update(target, current, &new, &mut errors);
    // Changes are looked at as they would be stored.
    let mut stored = None;
    if raw {
        let mut canonical_form = new.clone();
        canonical(target, &mut canonical_form)?;
        stored = Some(canonical_form);
    }
    let change = stored.as_ref().unwrap_or(&new);
    strategy.validate_change(target, current, change, &mut errors);
    if target.subresource.is_none() {
        (0..strategy.looks_on_update()).for_each(|_| strategy.validate(&new, &mut errors));
    }
    warnings.extend(custom_rules(target, &new, Some(current), &mut errors));
    strategy.validate_update(target, current, change, &mut errors);
    check(target, current, errors)?;
    let judged = admission::validate_update(target, current, &new, ctx)?;
    if target.subresource.is_none() {
        warnings.extend(strategy.warnings_on_update(current, &new));
    }
    warnings.extend(judged);
    clean(target, &mut new, raw)?;
    Ok(outcome(target, current, new, warnings, claims))
}

/// Compares with the current object and decides whether the last finalizer is gone.
fn outcome(
    target: &Target,
    current: &Value,
    object: Value,
    warnings: Vec<String>,
    mut claims: Vec<Claim>,
) -> Outcome {
    let mut before = current.clone();
    take(&mut before, "metadata.resourceVersion");
    let unchanged = before == object;
    // A namespace has finalizers in its spec and no grace period; others wait until theirs is over.
    let is_namespace = target.resource.group.is_empty() && target.resource.plural == "namespaces";
    let free = if is_namespace {
        items(&object, "spec.finalizers").is_empty()
    } else {
        crate::value::int(&object, "metadata.deletionGracePeriodSeconds") == 0
    };
    let remove = terminating(&object) && items(&object, "metadata.finalizers").is_empty() && free;
    if remove {
        claims = strategy(target.resource).release(current);
    }
    Outcome { object, warnings, claims, remove, unchanged: unchanged && !remove, ..Outcome::default() }
}

/// Status and spec are written through different doors: what came through the wrong one is put back.
fn reset(target: &Target, current: &Value, new: &mut Value) {
    match target.subresource {
        None if target.resource.subresource("status").is_some() => crate::value::copy(current, new, "status"),
        None => {}
        Some("status") => {
            let keys: Vec<String> = union_keys(current, new);
            for field in status_keeps(target) {
                crate::value::copy(&current["metadata"], &mut new["metadata"], field);
            }
            for key in
                keys.iter().filter(|k| !matches!(k.as_str(), "status" | "metadata" | "apiVersion" | "kind"))
            {
                crate::value::copy(current, new, key);
            }
        }
        Some(_) => {}
    }
}

/// Metadata that some kinds do not let a write of the status change.
fn status_keeps(target: &Target) -> &'static [&'static str] {
    let r = target.resource;
    match (r.group.as_str(), r.plural.as_str()) {
        ("apps", "deployments") => &["labels"],
        ("networking.k8s.io", "servicecidrs")
        | ("resource.k8s.io", "resourceclaims")
        | ("storage.k8s.io", "volumeattachments")
        | ("admissionregistration.k8s.io", "validatingadmissionpolicies") => {
            &["labels", "annotations", "finalizers", "ownerReferences"]
        }
        _ if r.definition.is_some() => &["labels", "annotations", "finalizers", "ownerReferences"],
        _ => &[],
    }
}

fn union_keys(a: &Value, b: &Value) -> Vec<String> {
    let mut keys: Vec<String> =
        [a, b].iter().filter_map(|v| v.as_object()).flat_map(|m| m.keys().cloned()).collect();
    keys.sort();
    keys.dedup();
    keys
}
