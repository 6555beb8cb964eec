//! Create, update, patch: a pure step of the core between a read and a compare-and-swap.
//!
//! The first attempt starts from the cache (after it has caught up with this server's own writes); an error, a no-op or
//! a lost race is believed only after a second attempt from the store. So a stale cache costs time, never a wrong answer.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use keelson_api::{Resource, Status};
use keelson_apiserver_core as core;
use keelson_apiserver_core::{
    Claim, Context, FieldValidation, Outcome, PatchType, Target, UserInfo, WriteOptions, convert, decode,
};
use serde_json::Value;
use std::sync::Arc;
use tokio::time::Instant;

use crate::object::{encode, set_revision};
use crate::present;
use crate::request::{Accept, dry_run};
use crate::respond::{self, Response};
use crate::server::{Call, Server};
use crate::storage::{Storage, UNCLEAR, Write, Written};

/// Attempts to find a free generated name or claim, and to win a race.
const ATTEMPTS: usize = 8;

/// What a step wants stored.
pub enum Next {
    Put { object: Value, claims: Vec<Claim> },
    Delete { claims: Vec<Claim> },
    Nothing,
}

/// A decision of a step and what to tell of it.
pub struct Decided<T> {
    pub next: Next,
    pub answer: T,
}

/// One object in the store and who writes it.
pub struct Place<'a> {
    pub server: &'a Arc<Server>,
    pub resource: &'static Resource,
    pub namespace: &'a str,
    pub name: &'a str,
    pub user: &'a UserInfo,
    pub deadline: Instant,
}

impl<'a> Place<'a> {
    pub fn of(call: &Call<'a>) -> Place<'a> {
        Place {
            server: call.server,
            resource: call.resource,
            namespace: call.namespace(),
            name: &call.path.name,
            user: call.user,
            deadline: call.deadline,
        }
    }

    fn below(&self) -> String {
        if self.namespace.is_empty() {
            self.name.to_owned()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }

    /// The object as the cache has it.
    fn cached(&self) -> Option<(Value, i64)> {
        let cache = self.server.hub.cache(self.resource.storage.as_deref()?)?;
        cache.get(&self.below()).map(|object| (present::tree(self.resource, &object), object.revision))
    }

    /// The object as the store has it; the caches (for admission) are brought to the same revision.
    ///
    /// # Errors
    /// 500 when it is not readable, 503 or 504 when the store does not answer.
    pub async fn stored(&self, key: &str) -> Result<Option<(Value, i64)>, Status> {
        let (found, revision) = self.server.storage.get(key, self.deadline).await?;
        self.server.hub.wait(revision, self.deadline).await?;
        let Some(kv) = found else { return Ok(None) };
        let mut value: Value = serde_json::from_slice(&kv.value).map_err(|e| {
            Status::internal(format!(
                "the stored {} is not readable ({e}): delete or rewrite it",
                self.resource.kind
            ))
        })?;
        set_revision(&mut value, kv.mod_revision);
        if present::converted(self.resource) {
            value = convert::from_stored(self.resource, value);
        }
        Ok(Some((value, kv.mod_revision)))
    }

    /// Why nothing can be created under a name that is taken.
    async fn taken(&self, key: &str, name: &str) -> Status {
        match self.stored(key).await {
            Ok(Some((object, _))) if object["metadata"]["deletionTimestamp"].is_string() => {
                Status::being_deleted(self.resource, name)
            }
            _ => Status::already_exists(self.resource, name),
        }
    }

    /// Runs a step on the current object and stores what it decides, until it is stored or refused for good. The answer
    /// comes with the object's revision afterwards (0 when there is none).
    ///
    /// # Errors
    /// What the step says of the stored object; 503 or 504 when the store does not answer.
    pub async fn change<T>(
        &self,
        dry_run: bool,
        mut step: impl FnMut(Option<&Value>, &Context) -> Result<Decided<T>, Status>,
    ) -> Result<(T, i64), Status> {
        let server = self.server;
        let key = self.resource.key(self.namespace, self.name).ok_or_else(Status::method_not_allowed)?;
        server.hub.wait(server.storage.written(), self.deadline).await?;
        let (mut fresh, mut unclear) = (false, false);
        for _ in 0..=ATTEMPTS * 4 {
            let current = if fresh { self.stored(&key).await? } else { self.cached() };
            let revision = current.as_ref().map_or(0, |(_, revision)| *revision);
            let decided =
                server.with_context(self.user, |ctx| step(current.as_ref().map(|(value, _)| value), ctx));
            let (next, answer) = match decided {
                Err(_) | Ok(Decided { next: Next::Nothing, .. }) if !fresh => {
                    fresh = true;
                    continue;
                }
                // Content that asks for nothing more is as good as written; anything else may be done already.
                Err(_) | Ok(Decided { next: Next::Put { .. } | Next::Delete { .. }, .. }) if unclear => {
                    return Err(Status::timeout(UNCLEAR, 1));
                }
                Err(status) => return Err(status),
                Ok(Decided { next, answer }) => (next, answer),
            };
            let (value, claims) = match next {
                Next::Nothing => return Ok((answer, revision)),
                Next::Put { object, claims } => (Some(encoded(self.resource, object)), claims),
                Next::Delete { claims } => (None, claims),
            };
            if dry_run {
                return Ok((answer, revision));
            }
            let write = Write { key: &key, revision, value, claims: &claims, lease: 0 };
            match store(server, self.resource, write, self.deadline).await? {
                Written::Done(revision) => return Ok((answer, revision)),
                Written::Perhaps => (fresh, unclear) = (true, true),
                Written::Changed | Written::Taken => fresh = true,
            }
        }
        Err(Status::stale(self.resource, self.name))
    }
}

/// An object as it is stored.
fn encoded(resource: &Resource, object: Value) -> Bytes {
    let object = if present::converted(resource) { convert::to_stored(resource, object) } else { object };
    encode(&object).into()
}

/// Writes with the lease that the resource's objects have.
async fn store(
    server: &Server,
    resource: &Resource,
    mut write: Write<'_>,
    deadline: Instant,
) -> Result<Written, Status> {
    let storage: &Storage = &server.storage;
    let leased = resource.plural == "events" && write.value.is_some();
    if leased {
        write.lease = storage.lease(server.config.event_ttl).await?;
    }
    let written = storage.write(&write, deadline).await;
    match written {
        Err(status) if leased && status.message.contains("lease not found") => {
            storage.drop_lease().await;
            write.lease = storage.lease(server.config.event_ttl).await?;
            storage.write(&write, deadline).await
        }
        other => other,
    }
}

/// `fieldManager`, `fieldValidation`, `dryRun`, `force`.
///
/// # Errors
/// 422 about the options object named.
pub fn options(call: &Call<'_>, kind: &str) -> Result<WriteOptions, Status> {
    let query = call.query;
    let validation = query.get("fieldValidation");
    let field_validation = FieldValidation::parse(validation).ok_or_else(|| {
        let mut errors = keelson_api::ErrorList::new();
        let path = keelson_api::Path::new("fieldValidation");
        errors.push(keelson_api::FieldError::not_supported(
            &path,
            validation,
            &["", "Ignore", "Strict", "Warn"],
        ));
        Status::invalid_kind("meta.k8s.io", kind, "", errors)
    })?;
    if kind == "PatchOptions" && query.has("force") && !is_apply(call) {
        let detail = "may not be specified for non-apply patch";
        let error = keelson_api::FieldError::forbidden(&keelson_api::Path::new("force"), detail);
        return Err(Status::invalid_kind("meta.k8s.io", kind, "", vec![error]));
    }
    let mut field_manager = query.get("fieldManager").to_owned();
    check_manager(&field_manager, kind)?;
    if field_manager.is_empty() && kind != "PatchOptions" || field_manager.is_empty() && !is_apply(call) {
        field_manager = user_agent(call);
    }
    Ok(WriteOptions {
        dry_run: dry_run(query, kind)?,
        field_manager,
        field_validation,
        force: query.flag("force"),
    })
}

fn check_manager(manager: &str, kind: &str) -> Result<(), Status> {
    let mut errors = keelson_api::ErrorList::new();
    let path = keelson_api::Path::new("fieldManager");
    if manager.len() > 128 {
        errors.push(keelson_api::FieldError::too_long(&path, 128));
    }
    if let Some((at, found)) = manager.char_indices().find(|(_, c)| c.is_control()) {
        errors.push(keelson_api::FieldError::invalid(
            &path,
            manager,
            &format!("invalid character U+{:04X} (at position {at})", found as u32),
        ));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid_kind("meta.k8s.io", kind, "", errors)) }
}

fn is_apply(call: &Call<'_>) -> bool {
    PatchType::from_media_type(media_type(call)) == Some(PatchType::Apply)
}

/// The first word of the user agent, as upstream names managers.
fn user_agent(call: &Call<'_>) -> String {
    let agent = call.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("unknown");
    agent.split('/').next().unwrap_or("unknown").chars().take(128).collect()
}

fn media_type<'a>(call: &Call<'a>) -> &'a str {
    let value = call.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    value.split(';').next().unwrap_or("").trim()
}

/// Decodes the body for the target.
///
/// # Errors
/// 400 or 415.
pub fn body(
    call: &Call<'_>,
    target: &Target,
    bytes: &[u8],
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let media_type = match media_type(call) {
        "" => "application/json",
        given => given,
    };
    decode(target, media_type, bytes, validation)
}

/// POST to a collection.
///
/// # Errors
/// As the core decides, 409, 503.
pub async fn create(call: &Call<'_>, bytes: Bytes) -> Result<Response, Status> {
    Accept::negotiate(call.headers, false)?;
    let options = options(call, "CreateOptions")?;
    let target = Target::collection(call.resource, call.namespace());
    let (object, warnings) = body(call, &target, &bytes, options.field_validation)?;
    if call.resource.storage.is_none() {
        return crate::subresource::virtual_resource(call, object, &warnings).await;
    }
    let place = Place::of(call);
    match create_object(&place, object, &options).await {
        Ok((outcome, revision)) => finish(call, 201, outcome, warnings, revision),
        Err(status) => warned(call, status, &warnings),
    }
}

/// Creates an object: a new name while a generated one is taken, new claims while one is taken.
///
/// # Errors
/// As the core decides; 409 when it exists.
pub async fn create_object(
    place: &Place<'_>,
    object: Value,
    options: &WriteOptions,
) -> Result<(Outcome, i64), Status> {
    let (server, resource) = (place.server, place.resource);
    let target = Target::collection(resource, place.namespace);
    let generated = object["metadata"]["name"].as_str().unwrap_or("").is_empty();
    server.hub.wait(server.storage.written(), place.deadline).await?;
    let mut fresh = false;
    for attempt in 0.. {
        let step = server.with_context(place.user, |ctx| core::create(&target, object.clone(), options, ctx));
        let outcome = match step {
            Err(_) if !fresh => {
                let revision = server.storage.revision(place.deadline).await?;
                server.hub.wait(revision, place.deadline).await?;
                fresh = true;
                continue;
            }
            other => other?,
        };
        let outcome = crate::admit::outcome(place, &target, None, outcome, options).await?;
        let name = outcome.object["metadata"]["name"].as_str().unwrap_or("").to_owned();
        let key = resource.key(place.namespace, &name).ok_or_else(Status::method_not_allowed)?;
        if options.dry_run {
            let (found, _) = server.storage.get(&key, place.deadline).await?;
            return if found.is_some() { Err(place.taken(&key, &name).await) } else { Ok((outcome, 0)) };
        }
        let value = Some(encoded(resource, outcome.object.clone()));
        let write = Write { key: &key, revision: 0, value, claims: &outcome.claims, lease: 0 };
        match store(server, resource, write, place.deadline).await? {
            Written::Done(revision) => return Ok((outcome, revision)),
            Written::Changed | Written::Perhaps if !generated || attempt >= ATTEMPTS => {
                return Err(place.taken(&key, &name).await);
            }
            Written::Changed | Written::Perhaps => {}
            Written::Taken if attempt >= ATTEMPTS * 4 => {
                return Err(Status::server_timeout(
                    resource,
                    "no free address or port could be claimed; try again",
                    1,
                ));
            }
            Written::Taken => {
                let revision = server.storage.revision(place.deadline).await?;
                server.hub.wait(revision, place.deadline).await?;
            }
        }
    }
    Err(Status::internal("creation ended without an answer"))
}

/// A refusal of a body that gave reason for warnings.
pub fn warned(call: &Call<'_>, status: Status, warnings: &[String]) -> Result<Response, Status> {
    if warnings.is_empty() {
        return Err(status);
    }
    let encoding = Accept::negotiate(call.headers, false)?.encoding;
    let mut response = respond::status_as(&status, encoding);
    respond::warn(&mut response, warnings);
    Ok(response)
}

/// What an outcome wants stored.
pub fn next(outcome: &Outcome) -> Next {
    let claims = outcome.claims.clone();
    if outcome.remove {
        Next::Delete { claims }
    } else if outcome.unchanged {
        Next::Nothing
    } else {
        Next::Put { object: outcome.object.clone(), claims }
    }
}

/// The answer to a write.
///
/// # Errors
/// 406 as negotiated.
pub fn finish(
    call: &Call<'_>,
    code: u16,
    outcome: Outcome,
    mut warnings: Vec<String>,
    revision: i64,
) -> Result<Response, Status> {
    let mut object = match outcome.answer {
        Some(answer) => answer,
        None => outcome.object,
    };
    // What is gone with its last finalizer is shown as it was stored last.
    if revision > 0 && !outcome.remove {
        set_revision(&mut object, revision);
    }
    warnings.extend(outcome.warnings);
    let mut response = present::object(call.resource, call.headers, call.query, code, &object)?;
    respond::warn(&mut response, &warnings);
    Ok(response)
}

/// PUT of an object or a subresource.
///
/// # Errors
/// As the core decides, 409, 503.
pub async fn update(call: &Call<'_>, bytes: Bytes) -> Result<Response, Status> {
    Accept::negotiate(call.headers, false)?;
    let options = options(call, "UpdateOptions")?;
    let target = call.target();
    let (object, warnings) = body(call, &target, &bytes, options.field_validation)?;
    let step = |current: Option<&Value>, ctx: &Context| {
        core::update(&target, current, object.clone(), &options, ctx)
    };
    match crate::admit::change(call, &options, step).await {
        Ok((outcome, revision)) => {
            let code = if outcome.created { 201 } else { 200 };
            finish(call, code, outcome, warnings, revision)
        }
        Err(status) => warned(call, status, &warnings),
    }
}

/// PATCH of an object or a subresource.
///
/// # Errors
/// As the core decides, 409, 415, 503.
pub async fn patch(call: &Call<'_>, bytes: Bytes) -> Result<Response, Status> {
    Accept::negotiate(call.headers, false)?;
    let kind = PatchType::from_media_type(media_type(call)).ok_or_else(|| Status {
        bare: false,
        message: "415: Unsupported Media Type".to_owned(),
        ..Status::unsupported_media_type(&[])
    })?;
    let options = options(call, "PatchOptions")?;
    let target = call.target();
    let step =
        |current: Option<&Value>, ctx: &Context| core::patch(&target, current, kind, &bytes, &options, ctx);
    match crate::admit::change(call, &options, step).await {
        Ok((outcome, revision)) => {
            let code = if outcome.created { 201 } else { 200 };
            finish(call, code, outcome, vec![], revision)
        }
        Err(status) => {
            let warnings = status.warnings.clone();
            warned(call, status, &warnings)
        }
    }
}
