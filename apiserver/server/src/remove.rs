//! Delete and deletecollection.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use keelson_api::{Status, schema};
use keelson_apiserver_core::{self as core, Context, DeleteOptions, Deletion, Target};
use serde_json::Value;

use crate::object::set_revision;
use crate::present;
use crate::read;
use crate::request::{Accept, dry_run};
use crate::respond::{self, Response};
use crate::server::Call;
use crate::write::{Decided, Next, Place};

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

/// Options from the body, overlaid by the query.
fn options(call: &Call<'_>, bytes: &[u8]) -> Result<DeleteOptions, Status> {
    let mut options = DeleteOptions::default();
    if !bytes.is_empty() {
        let media_type = call.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        let given = if media_type.starts_with("application/vnd.kubernetes.protobuf") {
            core::protobuf::decode_type(schema::builtin(), DELETE_OPTIONS, bytes)
                .map_err(Status::bad_request)?
        } else {
            core::decode::parse_loose(bytes)?
        };
        options = DeleteOptions::from_value(&given)?;
    }
    let query = call.query;
    if let Ok(seconds) = query.get("gracePeriodSeconds").parse() {
        options.grace_period_seconds = Some(seconds);
    }
    if !query.get("propagationPolicy").is_empty() {
        options.propagation_policy = Some(query.get("propagationPolicy").to_owned());
    }
    if query.has("orphanDependents") {
        options.orphan_dependents = Some(query.flag("orphanDependents"));
    }
    options.dry_run |= dry_run(query, "DeleteOptions")?;
    core::delete::check(&options)?;
    Ok(options)
}

/// What a deletion wants stored, and its answer: the object, or nothing when it is gone.
fn decide(deletion: Deletion) -> Decided<Option<Value>> {
    match deletion {
        Deletion::Remove { answer, claims } => Decided { next: Next::Delete { claims }, answer },
        Deletion::Update { object, unchanged: true } => Decided { next: Next::Nothing, answer: Some(object) },
        Deletion::Update { object, unchanged: false } => {
            Decided { next: Next::Put { object: object.clone(), claims: vec![] }, answer: Some(object) }
        }
    }
}

/// Deletes one object: its remains (or nothing), its uid, and its revision.
///
/// # Errors
/// As the core decides; 404 when it is not there.
pub async fn delete_object(
    place: &Place<'_>,
    options: &DeleteOptions,
) -> Result<(Option<Value>, String, i64), Status> {
    let target = Target::object(place.resource, place.namespace, place.name);
    let mut uid = String::new();
    let step = |current: Option<&Value>, ctx: &Context| {
        let current = current.ok_or_else(|| Status::not_found(place.resource, place.name))?;
        uid = current["metadata"]["uid"].as_str().unwrap_or("").to_owned();
        Ok(decide(core::delete(&target, current, options, ctx)?))
    };
    let (answer, revision) = place.change(options.dry_run, step).await?;
    Ok((answer, uid, revision))
}

/// Carries out a deletion that was decided elsewhere (eviction).
///
/// # Errors
/// As the step decides.
pub async fn carry_out(
    place: &Place<'_>,
    dry_run: bool,
    mut step: impl FnMut(&Value, &Context) -> Result<Deletion, Status>,
) -> Result<(), Status> {
    let step = |current: Option<&Value>, ctx: &Context| {
        let current = current.ok_or_else(|| Status::not_found(place.resource, place.name))?;
        Ok(decide(step(current, ctx)?))
    };
    place.change(dry_run, step).await.map(|_| ())
}

/// DELETE of an object.
///
/// # Errors
/// As the core decides, 404, 409, 503.
pub async fn delete(call: &Call<'_>, bytes: Bytes) -> Result<Response, Status> {
    Accept::negotiate(call.headers, false)?;
    let options = options(call, &bytes)?;
    let warnings = core::delete::warnings(call.resource, &options);
    match delete_one(call, &options).await {
        Ok(mut response) => {
            respond::warn(&mut response, &warnings);
            Ok(response)
        }
        Err(status) => crate::write::warned(call, status, &warnings),
    }
}

async fn delete_one(call: &Call<'_>, options: &DeleteOptions) -> Result<Response, Status> {
    crate::admit::delete(call, options.dry_run).await?;
    let (answer, uid, revision) = delete_object(&Place::of(call), options).await?;
    let Some(mut object) = answer else {
        return Ok(respond::status(&Status::deleted(call.resource, &call.path.name, &uid)));
    };
    set_revision(&mut object, revision);
    present::object(call.resource, call.headers, call.query, 200, &object)
}

/// DELETE of a collection: everything the selectors match, one after the other.
///
/// # Errors
/// The first that is not "already gone".
pub async fn delete_collection(call: &Call<'_>, bytes: Bytes) -> Result<Response, Status> {
    let accept = Accept::negotiate(call.headers, true)?;
    let options = options(call, &bytes)?;
    let (objects, meta) = read::select(call).await?;
    for object in &objects {
        let (namespace, name) = object.key.rsplit_once('/').unwrap_or(("", &object.key));
        let place = Place { namespace, name, ..Place::of(call) };
        match delete_object(&place, &options).await {
            Err(status) if status.code != 404 => return Err(status),
            _ => {}
        }
    }
    present::list(call.resource, &accept, call.query, objects, &meta)
}
