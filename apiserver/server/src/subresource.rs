//! Subresources and resources that are answered and not kept.

use bytes::Bytes;
use hyper::body::Incoming;
use keelson_api::{Status, resource};
use keelson_apiserver_core::{self as core, Context, Target};
use serde_json::{Value, json};

use crate::authn;
use crate::object::take_revision;
use crate::present;
use crate::read;
use crate::remove;
use crate::request::{Accept, dry_run};
use crate::respond::{self, Response};
use crate::server::{Call, read_body};
use crate::write::{self, Decided, Next, Place};

/// Answers a subresource of an object.
///
/// # Errors
/// As the core decides; 405 for a verb it does not have.
pub async fn answer(call: &Call<'_>, verb: &str, body: Incoming) -> Result<Response, Status> {
    match (call.path.subresource.as_str(), verb) {
        ("scale", "get") => {
            let scale =
                core::scale::read(call.resource, &present::tree(call.resource, &read::fetch(call).await?))?;
            present::value(&Accept::negotiate(call.headers, false)?, 200, &scale)
        }
        (_, "get") => {
            let object = read::fetch(call).await?;
            present::stored(call.resource, call.headers, call.query, &object)
        }
        (_, "update") => write::update(call, read_body(body).await?).await,
        (_, "patch") => write::patch(call, read_body(body).await?).await,
        ("binding", "create") => bind(call, read_body(body).await?).await,
        ("eviction", "create") => evict(call, read_body(body).await?).await,
        ("token", "create") => token(call, read_body(body).await?).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// POST of a resource that is not stored: reviews, and the old way to bind.
///
/// # Errors
/// As the core decides.
pub async fn virtual_resource(
    call: &Call<'_>,
    object: Value,
    warnings: &[String],
) -> Result<Response, Status> {
    let accept = Accept::negotiate(call.headers, false)?;
    if call.resource.plural == "bindings" {
        return bind_object(call, &object, object["metadata"]["name"].as_str().unwrap_or("")).await;
    }
    let answer = if call.resource.plural == "tokenreviews" {
        if object["spec"]["token"].as_str().unwrap_or("").is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        token_review(call, object)
    } else {
        let target = Target::collection(call.resource, call.namespace());
        call.with_context(|ctx| core::review(&target, object, ctx))?
    };
    let mut response = present::value(&accept, 201, &answer)?;
    respond::warn(&mut response, warnings);
    Ok(response)
}

/// Says who a token speaks for.
fn token_review(call: &Call<'_>, mut review: Value) -> Value {
    let wanted: Vec<String> = review["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    let token = review["spec"]["token"].as_str().unwrap_or("").to_owned();
    review["status"] = match authn::token(call.server, &token, &wanted) {
        Ok(verified) => {
            let mut groups = verified.user.groups.clone();
            if !verified.user.in_group("system:authenticated") {
                groups.push("system:authenticated".to_owned());
            }
            let mut user = json!({"username": verified.user.name, "groups": groups});
            if !verified.user.uid.is_empty() {
                user["uid"] = json!(verified.user.uid);
            }
            if !verified.user.extra.is_empty() {
                user["extra"] = json!(verified.user.extra);
            }
            json!({"authenticated": true, "user": user, "audiences": verified.audiences})
        }
        Err(why) => json!({"user": {}, "error": why}),
    };
    review
}

async fn bind(call: &Call<'_>, bytes: Bytes) -> Result<Response, Status> {
    let options = write::options(call, "CreateOptions")?;
    let (binding, _) = write::body(call, &call.target(), &bytes, options.field_validation)?;
    bind_object(call, &binding, &call.path.name).await
}

async fn bind_object(call: &Call<'_>, binding: &Value, name: &str) -> Result<Response, Status> {
    let dry_run = dry_run(call.query, "CreateOptions")?;
    let pods = resource::find("", "v1", "pods").ok_or_else(Status::no_such_path)?;
    let place = Place { resource: pods, namespace: &call.path.namespace, name, ..Place::of(call) };
    let target = Target::object(pods, &call.path.namespace, name).sub("binding");
    let step = |current: Option<&Value>, ctx: &Context| {
        let pod = current.ok_or_else(|| Status::not_found(pods, name))?;
        let outcome = core::bind(&target, pod, binding, ctx)?;
        Ok(Decided { next: write::next(&outcome), answer: () })
    };
    place.change(dry_run, step).await?;
    Ok(respond::status(&Status::created()))
}

/// First the budget, then the pod: a budget that changed meanwhile is asked again.
async fn evict(call: &Call<'_>, bytes: Bytes) -> Result<Response, Status> {
    let options = write::options(call, "CreateOptions")?;
    let target = call.target();
    let (eviction, _) = write::body(call, &target, &bytes, options.field_validation)?;
    let place = Place::of(call);
    let pod = || async {
        let object = read::fetch(call).await?;
        call.server.hub.wait(object.revision, call.deadline).await?;
        Ok::<_, Status>(object.parse())
    };
    let mut dry_run = options.dry_run;
    dry_run |=
        eviction["deleteOptions"]["dryRun"].as_array().is_some_and(|all| all.iter().any(|d| d == "All"));
    let decided = {
        let pod = pod().await?;
        call.with_context(|ctx| core::evict(&target, &pod, &eviction, ctx))?
    };
    if let Some(budget) = decided.budget
        && !dry_run
    {
        disrupt(call, &target, &eviction, budget).await?;
    }
    // The budget is spent: what remains is the deletion, whatever the pod's state is by now.
    let delete_options = core::DeleteOptions::from_value(&eviction["deleteOptions"])?;
    let plain = Target::object(call.resource, call.namespace(), &call.path.name);
    remove::carry_out(&place, dry_run, |pod, ctx| {
        core::delete(&plain, &core::pod_actions::evicted(pod, ctx), &delete_options, ctx)
    })
    .await?;
    Ok(respond::status(&Status::created()))
}

/// Stores the budget after this disruption; on a lost race it is computed anew from the newer budget.
async fn disrupt(
    call: &Call<'_>,
    target: &Target<'_>,
    eviction: &Value,
    budget: Value,
) -> Result<(), Status> {
    let budgets = resource::find("policy", "v1", "poddisruptionbudgets").ok_or_else(Status::no_such_path)?;
    let name = budget["metadata"]["name"].as_str().unwrap_or("").to_owned();
    let place = Place { resource: budgets, name: &name, ..Place::of(call) };
    let pod = read::fetch(call).await?.parse();
    let step = |current: Option<&Value>, ctx: &Context| {
        let current = current.ok_or_else(|| Status::not_found(budgets, &name))?;
        let next = core::evict(target, &pod, eviction, ctx)?.budget;
        let Some(object) = next else { return Ok(Decided { next: Next::Nothing, answer: () }) };
        // The core saw the budget in the view; only if that is the one at hand may it be replaced.
        let seen = ctx.view.get("policy", "poddisruptionbudgets", target.namespace, &name);
        if seen
            .is_none_or(|seen| seen["metadata"]["resourceVersion"] != current["metadata"]["resourceVersion"])
        {
            return Err(Status::too_many_requests("The disruption budget is being changed; try again", 1));
        }
        Ok(Decided { next: Next::Put { object, claims: vec![] }, answer: () })
    };
    place.change(false, step).await.map(|_| ())
}

/// POST of a TokenRequest.
async fn token(call: &Call<'_>, bytes: Bytes) -> Result<Response, Status> {
    let accept = Accept::negotiate(call.headers, false)?;
    let options = write::options(call, "CreateOptions")?;
    let target = call.target();
    let (mut request, warnings) = write::body(call, &target, &bytes, options.field_validation)?;
    let tokens = &call.server.tokens;
    if request["spec"]["audiences"].as_array().is_none_or(Vec::is_empty) {
        request["spec"]["audiences"] = json!(tokens.audiences);
    }
    let account = read::fetch(call).await?;
    // The pod, node or secret it is bound to is looked up in the caches.
    let revision = call.server.storage.revision(call.deadline).await?;
    call.server.hub.wait(revision, call.deadline).await?;
    let mut made = call.with_context(|ctx| core::token_request(&target, &account.parse(), &request, ctx))?;
    made.claims["jti"] = json!(uuid::Uuid::new_v4().to_string());
    let signed = tokens.sign(made.claims).map_err(Status::internal)?;
    made.answer["status"]["token"] = json!(signed);
    take_revision(&mut made.answer);
    let mut response = present::value(&accept, 201, &made.answer)?;
    respond::warn(&mut response, &warnings);
    Ok(response)
}
