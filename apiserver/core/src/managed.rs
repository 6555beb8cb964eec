//! Managed fields: which manager owns which fields, kept through updates; and server-side apply, which works by them.
//!
//! An update gives its manager what it changed and takes that from the others. An apply states everything its manager wants:
//! what others own with another value is a conflict (unless forced), what the manager stated last time and no longer does
//! is removed, unless somebody else owns it too.

use crate::context::{Context, Outcome, Target, WriteOptions};
use crate::fieldset::FieldSet;
use crate::merge::{self, Difference};
use crate::value::{at, items, map_mut, name, set, take, text};
use crate::{decode, meta, scale, write};
use keelson_api::schema::{Shape, Table};
use keelson_api::{Cause, FieldError, Path, Status};
use serde_json::{Value, json};
use std::cmp::Ordering;

/// Managers of updates beyond this many are folded into one.
const MAX_UPDATE_MANAGERS: usize = 10;
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ANCIENT: &str = "ancient-changes";
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Fields nobody manages.
const UNMANAGED: [&str; 8] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "generation",
    "managedFields",
    "resourceVersion",
];

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    manager: String,
    apply: bool,
    version: String,
    subresource: String,
    time: Value,
    set: FieldSet,
}

impl Entry {
    fn read(v: &Value) -> Option<Entry> {
        let operation = text(v, "operation");
        if !["Apply", "Update"].contains(&operation) || text(v, "fieldsType") != "FieldsV1" {
            return None;
        }
        Some(Entry {
            manager: text(v, "manager").into(),
            apply: operation == "Apply",
            version: Some(text(v, "apiVersion")).filter(|a| !a.is_empty())?.into(),
            subresource: text(v, "subresource").into(),
            time: v["time"].clone(),
            set: FieldSet::from_value(&v["fieldsV1"])?,
        })
    }

    fn write(&self) -> Value {
        let mut out = json!({
            "manager": self.manager,
            "operation": if self.apply { "Apply" } else { "Update" },
            "apiVersion": self.version,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.set.to_value(),
        });
        if !self.time.is_null() {
            out["time"] = self.time.clone();
        }
        if !self.subresource.is_empty() {
            out["subresource"] = self.subresource.as_str().into();
        }
        out
    }

    /// The same manager doing the same kind of thing.
    fn is(&self, other: &Entry) -> bool {
        self.manager == other.manager
            && self.apply == other.apply
            && self.subresource == other.subresource
            && (self.apply || self.version == other.version)
    }

    /// As a conflict names it.
    fn shown(&self) -> String {
        let mut out = keelson_api::field::quote(&self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.apply {
            out.push_str(&format!(" using {}", self.version));
        }
        out
    }
}

/// Reads an object's entries; none when one is malformed.
fn read(object: &Value) -> Option<Vec<Entry>> {
    items(object, "metadata.managedFields").iter().map(Entry::read).collect()
}

fn write_back(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|e| !e.set.is_empty());
    fold_ancient(&mut entries);
    entries.sort_by(order);
    if entries.is_empty() {
        take(object, "metadata.managedFields");
    } else {
        set(object, "metadata.managedFields", entries.iter().map(Entry::write).collect::<Vec<_>>());
    }
}

/// Applies first, then by time, then by name.
fn order(a: &Entry, b: &Entry) -> Ordering {
    let time = |e: &Entry| e.time.as_str().unwrap_or("").to_string();
    b.apply
        .cmp(&a.apply)
        .then_with(|| time(a).cmp(&time(b)))
        .then_with(|| a.manager.cmp(&b.manager))
        .then_with(|| a.version.cmp(&b.version))
        .then_with(|| a.subresource.cmp(&b.subresource))
}

/// Of many updaters the oldest are remembered as one.
fn fold_ancient(entries: &mut Vec<Entry>) {
    let mut updates: Vec<Entry> = entries.iter().filter(|e| !e.apply).cloned().collect();
    if updates.len() <= MAX_UPDATE_MANAGERS {
        return;
    }
    updates.sort_by(order);
    let fold = updates.len() - MAX_UPDATE_MANAGERS + 1;
    let mut ancient = updates[0].clone();
    for e in updates.iter().take(fold) {
        ancient.set = ancient.set.union(&e.set);
        ancient.time = e.time.clone();
        entries.retain(|x| x != e);
    }
    ancient.manager = ANCIENT.into();
    ancient.subresource = String::new();
    entries.push(ancient);
}

/// Takes out what nobody manages, and what this door does not write.
fn strip(set: &mut FieldSet, target: &Target) {
    set.remove(&["apiVersion"]);
    set.remove(&["kind"]);
    for field in UNMANAGED {
        set.remove(&["metadata", field]);
    }
    set.remove_member("metadata");
    match target.subresource {
        None if target.resource.subresource("status").is_some() => set.remove(&["status"]),
        Some("status") => set.remove(&["spec"]),
        _ => {}
    }
}

fn types<'a>(target: &Target<'a>) -> Result<(&'a Table, Shape), Status> {
    let r = target.resource;
    decode::types(r).ok_or_else(|| Status::internal(format!("no schema for {}", r.kind)))
}

/// An object of the kind that says nothing.
fn blank(target: &Target) -> Value {
    let mut v = json!({"apiVersion": target.resource.api_version(), "kind": target.resource.kind});
    if target.resource.definition.is_none() {
        // Zero values only; cannot be of a wrong type.
        let _ = decode::canonical(&Target { subresource: None, ..*target }, &mut v);
    }
    v
}

fn stripped(difference: Difference, target: &Target) -> Difference {
    let mut d = difference;
    for set in [&mut d.added, &mut d.removed, &mut d.modified] {
        strip(set, target);
    }
    d
}

/// Keeps managed fields through a create or an update.
pub(crate) fn update(
    target: &Target,
    current: Option<&Value>,
    new: &mut Value,
    manager: &str,
    now: jiff::Timestamp,
) -> Result<(), Status> {
    let (table, shape) = types(target)?;
    let given = items(new, "metadata.managedFields");
    if !given.is_empty()
        && given.iter().all(|g| g.as_object().is_some_and(|m| m.is_empty() || is_blank_entry(g)))
    {
        take(new, "metadata.managedFields");
        return Ok(());
    }
    let empty = blank(target);
    let before = current.unwrap_or(&empty);
    let given = read(new).filter(|e| !e.is_empty());
    let mut entries = given.or_else(|| read(before)).unwrap_or_default();
    if current.is_some() && items(before, "metadata.managedFields").is_empty() && entries.is_empty() {
        take(new, "metadata.managedFields");
        return Ok(());
    }
    let difference = stripped(merge::compare(table, &shape, before, new), target);
    let changed = difference.added.union(&difference.modified);
    let mut own = Entry {
        manager: if manager.is_empty() { "unknown".into() } else { manager.into() },
        apply: false,
        version: target.resource.api_version(),
        subresource: target.subresource.unwrap_or("").into(),
        time: meta::time(now).into(),
        set: FieldSet::default(),
    };
    for e in entries.iter_mut().filter(|e| !e.is(&own) && e.version == target.resource.api_version()) {
        e.set = e.set.difference(&changed).difference(&difference.removed);
    }
    match entries.iter_mut().find(|e| e.is(&own)) {
        Some(e) => {
            let next = e.set.difference(&difference.removed).union(&changed);
            if next != e.set {
                e.set = next;
                e.time = own.time;
            }
        }
        None => {
            own.set = changed;
            entries.push(own);
        }
    }
    write_back(new, entries);
    Ok(())
}

/// An entry whose fields are all zero values, as a typed client would send an empty one.
fn is_blank_entry(entry: &Value) -> bool {
    entry.as_object().is_some_and(|m| m.values().all(crate::value::is_empty))
}

/// Server-side apply.
pub(crate) fn apply(
    target: &Target,
    current: Option<&Value>,
    body: &[u8],
    options: &WriteOptions,
    ctx: &Context,
) -> Result<Outcome, Status> {
    if options.field_manager.is_empty() {
        let error = FieldError::required(&Path::new("fieldManager"), "is required for apply patch");
        return Err(Status::invalid_kind("meta.k8s.io", "PatchOptions", "", vec![error]));
    }
    let mut config = decode::parse_loose(body)?;
    if !config.is_object() {
        return Err(Status::bad_request("error decoding YAML: the patch is no object"));
    }
    check_kind(target, &config)?;
    if target.subresource == Some("scale") {
        return apply_scale(target, current, &config, options, ctx);
    }
    if !items(&config, "metadata.managedFields").is_empty() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    meta::check_name(target, &config)?;
    let stated = config.clone();
    meta::place(target, &mut config)?;
    let (table, shape) = types(target)?;
    merge::check(table, &shape, &config).map_err(|e| {
        let what = format!(
            "{}/{}; {}, Kind={}",
            text(&stated, "metadata.namespace"),
            name(&config),
            target.resource.api_version(),
            target.resource.kind
        );
        Status {
            code: 500,
            message: format!("failed to create typed patch object ({what}): {e}"),
            bare: true,
            ..Status::default()
        }
    })?;
    let uid = text(&config, "metadata.uid");
    if current.is_none() && !uid.is_empty() {
        let cause = format!(
            "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
        );
        return Err(Status::conflict(target.resource, target.name, &cause));
    }
    let (next, entries) = applied(target, current, &config, &shape, options, ctx)?;
    let mut next = next;
    remember(&mut next, &stated, &options.field_manager);
    finish(target, current, next, entries, options, ctx)
}

/// kubectl's note of what it applied last stays true when it changes to applying on the server's side.
fn remember(object: &mut Value, stated: &Value, manager: &str) {
    let noted = at(object, "metadata.annotations").get(LAST_APPLIED).is_some();
    if noted && manager == "kubectl" {
        let mut stated = stated.clone();
        if let Some(annotations) = stated["metadata"].get_mut("annotations") {
            take(annotations, LAST_APPLIED);
        }
        object["metadata"]["annotations"][LAST_APPLIED] = format!("{stated}\n").into();
    }
}

fn check_kind(target: &Target, config: &Value) -> Result<(), Status> {
    let (group, version, kind) = decode::body_kind(target);
    let want = if group.is_empty() { version } else { format!("{group}/{version}") };
    if text(config, "kind").is_empty() {
        return Err(Status::bad_request(
            "error decoding YAML: Object 'Kind' is missing; set apiVersion and kind",
        ));
    }
    if text(config, "apiVersion") != want || text(config, "kind") != kind {
        let shown = format!("{}, Kind={}", text(config, "apiVersion"), text(config, "kind"));
        return Err(Status::bad_request(format!("invalid object type: {shown}")));
    }
    Ok(())
}

/// The merged object and who manages it then.
fn applied(
    target: &Target,
    current: Option<&Value>,
    config: &Value,
    shape: &Shape,
    options: &WriteOptions,
    ctx: &Context,
) -> Result<(Value, Vec<Entry>), Status> {
    let (table, _) = types(target)?;
    let mut config = config.clone();
    match target.subresource {
        None if target.resource.subresource("status").is_some() => drop(take(&mut config, "status")),
        Some("status") => drop(take(&mut config, "spec")),
        _ => {}
    }
    let empty = blank(target);
    let before = current.unwrap_or(&empty);
    let mut entries = read(before).unwrap_or_default();
    if current.is_some() && entries.is_empty() {
        let mut all = merge::compare(table, shape, &empty, before).added;
        strip(&mut all, &Target { subresource: Some(""), ..*target });
        entries.push(Entry {
            manager: BEFORE_FIRST_APPLY.into(),
            apply: false,
            version: target.resource.api_version(),
            subresource: String::new(),
            time: meta::time(ctx.now).into(),
            set: all,
        });
    }
    let mut own = Entry {
        manager: options.field_manager.clone(),
        apply: true,
        version: target.resource.api_version(),
        subresource: target.subresource.unwrap_or("").into(),
        time: meta::time(ctx.now).into(),
        set: merge::fields(table, shape, &config),
    };
    strip(&mut own.set, target);
    let merged = merge::merge(table, shape, before, &config);
    let last = entries.iter().find(|e| e.is(&own)).cloned();
    entries.retain(|e| !e.is(&own));
    let gone = last.as_ref().map(|last| pruned(&last.set, &own.set, &entries)).unwrap_or_default();
    let next = merge::without(table, shape, &merged, &gone);
    let emptied = merge::emptied(table, shape, &merged, &gone);
    let difference = stripped(merge::compare(table, shape, before, &emptied), target);
    let changed = difference.added.union(&difference.modified);
    let conflicts: Vec<(usize, FieldSet)> = entries
        .iter()
        .enumerate()
        .filter(|(_, e)| e.version == target.resource.api_version())
        .map(|(i, e)| (i, e.set.intersection(&changed)))
        .filter(|(_, s)| !s.is_empty())
        .collect();
    let inherited = last_applied(table, shape, before, &options.field_manager);
    let in_dispute = conflicts.iter().any(|(_, s)| !s.difference(&inherited).is_empty());
    if in_dispute && !options.force {
        return Err(conflict(&entries, &conflicts));
    }
    for (i, lost) in conflicts {
        entries[i].set = entries[i].set.difference(&lost);
    }
    for e in entries.iter_mut().filter(|e| e.version == target.resource.api_version()) {
        e.set = e.set.difference(&difference.removed);
    }
    if let Some(last) = last.filter(|l| l.set == own.set) {
        own.time = last.time;
    }
    entries.push(own);
    Ok((next, entries))
}

/// Fields that kubectl owns from the time it applied on the client's side: it may take them over.
fn last_applied(
    table: &keelson_api::schema::Table,
    shape: &Shape,
    before: &Value,
    manager: &str,
) -> FieldSet {
    let annotation = at(before, "metadata.annotations").get(LAST_APPLIED);
    let parsed = annotation.and_then(Value::as_str).and_then(|t| serde_json::from_str(t).ok());
    match parsed.filter(|_| manager == "kubectl") {
        Some(object) => merge::fields(table, shape, &object),
        None => FieldSet::default(),
    }
}

/// What the manager stated last time, states no longer, and nobody else owns.
fn pruned(last: &FieldSet, own: &FieldSet, others: &[Entry]) -> FieldSet {
    let kept = others.iter().fold(own.clone(), |all, e| all.union(&e.set)).with_named_parents();
    last.difference(&kept)
}

fn conflict(entries: &[Entry], conflicts: &[(usize, FieldSet)]) -> Status {
    let mut found: Vec<(String, Vec<String>)> =
        conflicts.iter().map(|(i, set)| (entries[*i].shown(), set.paths())).collect();
    found.sort();
    let total: usize = found.iter().map(|(_, p)| p.len()).sum();
    let causes = found
        .iter()
        .flat_map(|(who, paths)| {
            paths.iter().map(move |p| Cause {
                reason: "FieldManagerConflict".into(),
                message: format!("conflict with {who}"),
                field: p.clone(),
            })
        })
        .collect();
    let list = if total == 1 {
        format!("conflict with {}: {}", found[0].0, found[0].1[0])
    } else {
        let groups: Vec<String> = found
            .iter()
            .map(|(who, paths)| {
                let lines: Vec<String> = paths.iter().map(|p| format!("- {p}")).collect();
                format!("conflicts with {who}:\n{}", lines.join("\n"))
            })
            .collect();
        groups.join("\n")
    };
    let plural = if total == 1 { "conflict" } else { "conflicts" };
    Status {
        code: 409,
        reason: "Conflict",
        message: format!("Apply failed with {total} {plural}: {list}"),
        causes,
        ..Status::default()
    }
}

fn finish(
    target: &Target,
    current: Option<&Value>,
    mut next: Value,
    entries: Vec<Entry>,
    options: &WriteOptions,
    ctx: &Context,
) -> Result<Outcome, Status> {
    let Some(current) = current else {
        if target.subresource.is_some() {
            return Err(Status::not_found(target.resource, target.name));
        }
        drop_nulls(&mut next);
        return write::create_with(target, next, options, ctx, |object| {
            write_back(object, entries);
            Ok(())
        });
    };
    drop_nulls(&mut next);
    if text(&next, "metadata.resourceVersion").is_empty() {
        crate::value::copy(current, &mut next, "metadata.resourceVersion");
    }
    write::update_with(target, current, next, Some(options), ctx, |_, new| {
        write_back(new, entries);
        Ok(())
    })
}

fn drop_nulls(object: &mut Value) {
    map_mut(object).retain(|_, v| !v.is_null());
}

/// Applying a Scale is owning the replicas.
fn apply_scale(
    target: &Target,
    current: Option<&Value>,
    config: &Value,
    options: &WriteOptions,
    ctx: &Context,
) -> Result<Outcome, Status> {
    let Some(current) = current else {
        return Err(Status::not_found(target.resource, target.name));
    };
    let replicas = at(config, "spec.replicas").clone();
    let config = json!({
        "apiVersion": target.resource.api_version(),
        "kind": target.resource.kind,
        "metadata": {"name": target.name, "namespace": target.namespace},
        "spec": {"replicas": replicas},
    });
    let (_, shape) = types(target)?;
    let (next, entries) = applied(target, Some(current), &config, &shape, options, ctx)?;
    let main = Target { subresource: None, ..*target };
    let mut outcome = finish(&main, Some(current), next, entries, options, ctx)?;
    outcome.answer = Some(scale::read(target.resource, &outcome.object)?);
    Ok(outcome)
}
