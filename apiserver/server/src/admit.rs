//! Writes that admission webhooks and policies have a say in.
//!
//! The core's step is run as always (with the policies that change objects); what it would store is shown to the webhooks.
//! What they change goes through the core once more, so that nothing they do escapes defaults and validation. Then the
//! policies that refuse, and the webhooks that do. Without webhooks and policies nothing here costs anything.

use keelson_api::Status;
use keelson_apiserver_core::admission::policies::validating;
use keelson_apiserver_core::admission::webhooks::Request;
use keelson_apiserver_core::{self as core, Context, Outcome, Target, WriteOptions};
use serde_json::Value;

use crate::object::{set_revision, take_revision};
use crate::present;
use crate::read;
use crate::server::{Call, Server};
use crate::webhooks;
use crate::write::{Decided, Place, next};

/// Races with other writers that are run again.
const ATTEMPTS: usize = 8;

/// Whether the cluster has webhooks or policies in force at all.
fn configured(server: &Server) -> bool {
    const KINDS: [&str; 3] = [
        "mutatingwebhookconfigurations",
        "validatingwebhookconfigurations",
        "validatingadmissionpolicybindings",
    ];
    let any = |plural: &&str| server.hub.cache(&format!("/registry/{plural}")).is_some_and(|c| c.count() > 0);
    KINDS.iter().any(any)
}

/// Asks the policies; what they note for the audit is logged.
fn policies(server: &Server, request: &Request<'_>) -> Result<Vec<String>, Status> {
    let admitted = validating::validate(request, &server.view)?;
    for (key, value) in &admitted.audit {
        tracing::info!(key, value, user = request.user.name, "audit annotation");
    }
    Ok(admitted.warnings)
}

/// Asks the webhooks about what a step would store; the answer is what they made of it.
///
/// # Errors
/// A refusal of a webhook, or of the core about what a webhook changed.
pub async fn outcome(
    place: &Place<'_>,
    target: &Target<'_>,
    current: Option<&Value>,
    mut outcome: Outcome,
    options: &WriteOptions,
) -> Result<Outcome, Status> {
    let server = place.server;
    if !configured(server) {
        return Ok(outcome);
    }
    let operation = if outcome.created { "CREATE" } else { "UPDATE" };
    let asked = Request {
        operation,
        target: *target,
        old: current,
        new: None,
        user: place.user,
        dry_run: options.dry_run,
    };
    let shown = outcome.object.clone();
    let admitted = webhooks::ask(server, &Request { new: Some(&shown), ..asked }, true).await?;
    if let Some(mut patched) = admitted.patched {
        take_revision(&mut patched);
        let again = server.with_context(place.user, |ctx| match current {
            Some(current) if !outcome.created => core::update(target, Some(current), patched, options, ctx),
            _ => core::create(&Target { name: "", ..*target }, patched, options, ctx),
        })?;
        outcome = Outcome { warnings: outcome.warnings, ..again };
    }
    outcome.warnings.extend(admitted.warnings);
    let shown = outcome.answer.clone().unwrap_or_else(|| outcome.object.clone());
    let said = policies(server, &Request { new: Some(&shown), ..asked })?;
    outcome.warnings.extend(said);
    let shown = outcome.object.clone();
    let admitted = webhooks::ask(server, &Request { new: Some(&shown), ..asked }, false).await?;
    outcome.warnings.extend(admitted.warnings);
    Ok(outcome)
}

/// Runs a step on the object of the path and stores what it and the webhooks decide.
///
/// # Errors
/// As `Place::change`, and refusals of webhooks.
pub async fn change(
    call: &Call<'_>,
    options: &WriteOptions,
    mut step: impl FnMut(Option<&Value>, &Context) -> Result<Outcome, Status>,
) -> Result<(Outcome, i64), Status> {
    let place = Place::of(call);
    if !configured(call.server) {
        let step = |current: Option<&Value>, ctx: &Context| {
            let outcome = step(current, ctx)?;
            Ok(decided(outcome, current))
        };
        return place.change(options.dry_run, step).await;
    }
    let key = call.key(&call.path.name)?;
    for _ in 0..ATTEMPTS {
        let current = place.stored(&key).await?;
        let seen = current.as_ref().map_or(0, |(_, revision)| *revision);
        let current = current.map(|(object, _)| object);
        let decided = call.with_context(|ctx| step(current.as_ref(), ctx))?;
        let decided = outcome(&place, &call.target(), current.as_ref(), decided, options).await?;
        let mut raced = false;
        let store = |now: Option<&Value>, _: &Context| {
            let revision = |o: &Value| o["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok());
            raced = now.and_then(revision).unwrap_or(0) != seen;
            if raced {
                return Err(Status::stale(call.resource, &call.path.name));
            }
            Ok(self::decided(decided.clone(), now))
        };
        match place.change(options.dry_run, store).await {
            Err(_) if raced => {}
            other => return other,
        }
    }
    Err(Status::stale(call.resource, &call.path.name))
}

/// An outcome as what to store and what to answer: what goes keeps the revision it had.
fn decided(mut outcome: Outcome, current: Option<&Value>) -> Decided<Outcome> {
    let next = next(&outcome);
    let before = current.and_then(|c| c["metadata"]["resourceVersion"].as_str()).and_then(|v| v.parse().ok());
    if let Some(before) = before.filter(|_| outcome.remove) {
        set_revision(&mut outcome.object, before);
    }
    Decided { next, answer: outcome }
}

/// Asks the webhooks and policies about a deletion.
///
/// # Errors
/// A refusal.
pub async fn delete(call: &Call<'_>, dry_run: bool) -> Result<(), Status> {
    if !configured(call.server) {
        return Ok(());
    }
    let current = present::tree(call.resource, &read::fetch(call).await?);
    let (target, old) = (call.target(), Some(&current));
    let asked = Request { operation: "DELETE", target, old, new: None, user: call.user, dry_run };
    webhooks::ask(call.server, &asked, true).await?;
    policies(call.server, &asked)?;
    webhooks::ask(call.server, &asked, false).await.map(|_| ())
}
