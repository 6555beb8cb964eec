//! One request from its first line to its answer: hook, authentication, impersonation, authorization, dispatch; around
//! it the audit id, the time limit, the count, and a 500 for a handler that panicked.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt as _;
use http::{HeaderValue, Request};
use hyper::body::Incoming;
use keelson_api::Status;
use keelson_apiserver_core::{Attributes, UserInfo, authz};
use tokio::time::Instant;

use crate::config::Peer;
use crate::metrics::Labels;
use crate::request::{Accept, Encoding, Info, Query};
use crate::respond::{self, Response};
use crate::server::{Call, REQUEST_TIMEOUT, Server, read_body};
use crate::{
    authn, components, console, documents, health, members, metrics_routes, read, remove, streams,
    subresource, watch, write,
};

/// What everybody hears who still uses Endpoints.
const COMPONENT_STATUS: &str = "v1 ComponentStatus is deprecated in v1.19+";
const ENDPOINTS: &str = "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice";
/// Paths that are answered whoever asks.
const ALWAYS_ALLOWED: [&str; 3] = ["/healthz", "/livez", "/readyz"];

/// Answers one request.
pub async fn handle(
    server: Arc<Server>,
    peer: Peer,
    certificate: Option<Arc<UserInfo>>,
    request: Request<Incoming>,
) -> Response {
    let started = Instant::now();
    let query = Query::parse(request.uri().query());
    let info = Info::read(request.method(), request.uri().path(), &query);
    let (labels, long) = labels(&server, &info, &query);
    let audit = audit_id(&request);
    let head_only = request.method() == http::Method::HEAD;
    server.metrics.inflight.fetch_add(1, Ordering::Relaxed);
    let answer =
        AssertUnwindSafe(route(&server, peer, certificate.as_deref(), &info, &query, request)).catch_unwind();
    let limit = if long { Duration::from_secs(24 * 3600) } else { REQUEST_TIMEOUT + Duration::from_secs(5) };
    let mut response = match tokio::time::timeout(limit, answer).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            tracing::error!(
                verb = labels.verb,
                resource = labels.resource,
                "a handler panicked: this is a bug"
            );
            respond::status(&Status::internal("the server made an error; see its log"))
        }
        Err(_) => {
            respond::status(&Status::timeout("request did not complete within the allotted timeout", 0))
        }
    };
    server.metrics.inflight.fetch_sub(1, Ordering::Relaxed);
    let took = (!long).then(|| started.elapsed());
    server.metrics.answered(labels, response.status().as_u16(), took);
    if let Ok(value) = HeaderValue::from_str(&audit) {
        response.headers_mut().insert("audit-id", value);
    }
    if head_only { respond::head_only(response) } else { response }
}

fn audit_id(request: &Request<Incoming>) -> String {
    let given = request.headers().get("audit-id").and_then(|v| v.to_str().ok());
    given.filter(|g| g.len() <= 64).map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned)
}

/// What the request is counted as, and whether it may take long.
fn labels(server: &Server, info: &Info, query: &Query) -> (Labels, bool) {
    let Some(api) = &info.api else {
        return (Labels { verb: info.verb.to_uppercase(), ..Labels::default() }, false);
    };
    let streams = ["exec", "attach", "portforward", "proxy"].contains(&api.subresource.as_str());
    let long = info.verb == "watch" || streams || (api.subresource == "log" && query.flag("follow"));
    let verb = match info.verb {
        "create" => "POST".to_owned(),
        "update" => "PUT".to_owned(),
        _ if streams => "CONNECT".to_owned(),
        verb => verb.to_uppercase(),
    };
    let scope = match (api.name.is_empty(), api.namespace.is_empty()) {
        (false, _) => "resource",
        (true, false) => "namespace",
        (true, true) => "cluster",
    };
    // Names that nobody serves are not counted apart, or a client could fill the memory with them.
    let found = server.find(api);
    let known = found.is_some();
    let keep = |text: &str| if known { text.to_owned() } else { String::new() };
    let labels = Labels {
        verb,
        group: keep(&api.group),
        version: keep(&api.version),
        resource: keep(&api.resource),
        subresource: found
            .and_then(|r| r.subresource(&api.subresource))
            .map_or_else(String::new, |s| s.name.clone()),
        scope,
    };
    (labels, long)
}

async fn route(
    server: &Arc<Server>,
    peer: Peer,
    certificate: Option<&UserInfo>,
    info: &Info,
    query: &Query,
    request: Request<Incoming>,
) -> Response {
    let path = request.uri().path();
    if let Some(page) = console::serve(&request) {
        return page;
    }
    if path.starts_with("/keelson/v1/") && path != members::PATH {
        return extra(server, peer, request).await;
    }
    if ALWAYS_ALLOWED
        .iter()
        .any(|p| path == *p || path.strip_prefix(p).is_some_and(|rest| rest.starts_with('/')))
    {
        return health::answer(server, path, query);
    }
    // What cannot be negotiated is refused in JSON, which every client reads.
    let encoding = Accept::negotiate(request.headers(), false).map_or(Encoding::Json, |a| a.encoding);
    let answer = match permitted(server, certificate, info, &request) {
        Ok(user) => dispatch(server, &user, info, query, request).await,
        Err(status) => Err(status),
    };
    answer.unwrap_or_else(|status| respond::status_as(&status, encoding))
}

/// The hook for paths of the cluster itself.
async fn extra(server: &Server, peer: Peer, request: Request<Incoming>) -> Response {
    let Some(hook) = &server.config.extra else { return not_found() };
    let (mut parts, body) = request.into_parts();
    let body = match read_body(body).await {
        Ok(body) => body,
        Err(status) => return respond::status(&status),
    };
    parts.extensions.insert(peer);
    match hook(Request::from_parts(parts, body)).await {
        Some(response) => response.map(respond::full),
        None => not_found(),
    }
}

/// 404 of a path that is no API path.
pub fn not_found() -> Response {
    respond::text(404, "404 page not found\n")
}

/// The user, if the request may be served.
fn permitted(
    server: &Server,
    certificate: Option<&UserInfo>,
    info: &Info,
    request: &Request<Incoming>,
) -> Result<UserInfo, Status> {
    let user = authn::authenticate(server, certificate, request.headers())?;
    if !server.hub.ready() {
        return Err(Status {
            retry_after_seconds: 1,
            ..Status::unavailable("the API server is starting: it waits for the store")
        });
    }
    let path = request.uri().path();
    let user = authn::impersonate(server, user, request.headers(), |user| attributes(user, info, path))?;
    let attributes = attributes(user, info, request.uri().path());
    match authz::authorize(&attributes, &server.view) {
        authz::Decision::Allow { .. } => Ok(attributes.user),
        authz::Decision::Deny { reason } => Err(authn::forbidden(&attributes, &reason)),
    }
}

fn attributes(user: UserInfo, info: &Info, path: &str) -> Attributes {
    let Some(api) = &info.api else {
        return Attributes {
            user,
            verb: info.verb.to_owned(),
            path: path.to_owned(),
            ..Attributes::default()
        };
    };
    // Streams into a container need the right to create, however they are asked for.
    let streams = ["exec", "attach", "portforward"].contains(&api.subresource.as_str());
    let verb = if streams { "create" } else { info.verb };
    let namespace = if api.resource == "namespaces" && api.group.is_empty() {
        api.name.clone()
    } else {
        api.namespace.clone()
    };
    Attributes {
        user,
        verb: verb.to_owned(),
        group: api.group.clone(),
        version: api.version.clone(),
        resource: api.resource.clone(),
        subresource: api.subresource.clone(),
        namespace,
        name: api.name.clone(),
        path: path.to_owned(),
        is_resource: true,
    }
}

async fn dispatch(
    server: &Arc<Server>,
    user: &UserInfo,
    info: &Info,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response, Status> {
    let Some(path) = &info.api else {
        if request.uri().path() == members::PATH {
            return members::answer(server).await;
        }
        return Ok(documents::answer(server, query, &request).await);
    };
    if path.group == "metrics.k8s.io" {
        let mut headers = request.headers().clone();
        // Upstream's figures have messages of their own; clients that ask for protobuf take JSON too.
        crate::request::without_protobuf_objects(&mut headers);
        return metrics_routes::answer(server, info, path, query, &headers).await;
    }
    // A namespace is in no namespace.
    let nested = path.group.is_empty() && path.resource == "namespaces";
    if nested && request.uri().path().matches("/namespaces").count() > 1 {
        return Err(Status::no_such_path());
    }
    let Some(resource) = server.find(path) else {
        let group = server.rows().iter().any(|r| r.group == path.group && r.version == path.version);
        // A version that a group (or the oldest API) lacks is answered in the API's own form.
        let served = server.rows().iter().any(|r| r.group == path.group && r.definition.is_none());
        return if group || served { Err(Status::no_such_path()) } else { Ok(not_found()) };
    };
    let deadline = Instant::now() + timeout(query);
    let mut headers = request.headers().clone();
    if resource.definition.is_some() {
        crate::request::without_protobuf_objects(&mut headers);
    }
    let call = Call { server, resource, path, query, headers: &headers, user, deadline };
    let warning = match &resource.definition {
        Some(definition) => definition.warning.clone(),
        None if resource.plural == "endpoints" && resource.group.is_empty() => ENDPOINTS.to_owned(),
        None if resource.plural == "componentstatuses" => COMPONENT_STATUS.to_owned(),
        None => String::new(),
    };
    let answer = act(&call, info, request).await;
    // Requests that were never understood are not warned of anything.
    let lost = |s: &Status| matches!(s.code, 405 | 415) || (s.code == 404 && s.name.is_empty());
    if warning.is_empty() || answer.as_ref().is_err_and(lost) {
        return answer;
    }
    let encoding = Accept::negotiate(&headers, false).map_or(Encoding::Json, |a| a.encoding);
    let mut answer = answer.unwrap_or_else(|status| respond::status_as(&status, encoding));
    respond::warn_first(&mut answer, &warning);
    Ok(answer)
}

/// What is asked of a resource.
async fn act(call: &Call<'_>, info: &Info, request: Request<Incoming>) -> Result<Response, Status> {
    let (resource, path, headers) = (call.resource, call.path, call.headers);
    if !path.subresource.is_empty() {
        let sub = resource.subresource(&path.subresource).ok_or_else(Status::no_such_path)?;
        if !sub.verbs.iter().any(|v| v == info.verb) {
            return Err(Status::method_not_allowed());
        }
        if ["log", "exec", "attach", "portforward", "proxy"].contains(&sub.name.as_str()) {
            return streams::answer(call, request).await;
        }
        return subresource::answer(call, info.verb, request.into_body()).await;
    }
    let named = !path.name.is_empty();
    if named && resource.storage.is_none() && resource.plural != "componentstatuses" {
        // A review is posted and gone; there is none by name.
        return Err(Status::no_such_path());
    }
    let needs_name = matches!(info.verb, "get" | "update" | "patch" | "delete");
    let named_post = info.verb == "create" && named;
    // Objects of a namespace are written in one.
    let nowhere = resource.namespaced && path.namespace.is_empty() && !matches!(info.verb, "list" | "watch");
    let nowhere = nowhere && resource.storage.is_some();
    if !resource.allows(info.verb) || (needs_name && !named) || named_post || nowhere {
        return Err(Status::method_not_allowed());
    }
    if info.verb != "watch" {
        Accept::negotiate(headers, matches!(info.verb, "list" | "deletecollection"))?;
    }
    if resource.plural == "componentstatuses" {
        return components::answer(call).await;
    }
    match info.verb {
        "get" => read::get(call).await,
        "list" => read::list(call).await,
        "watch" => watch::watch(call).await,
        "create" => write::create(call, read_body(request.into_body()).await?).await,
        "update" => write::update(call, read_body(request.into_body()).await?).await,
        "patch" => write::patch(call, read_body(request.into_body()).await?).await,
        "delete" => remove::delete(call, read_body(request.into_body()).await?).await,
        "deletecollection" => remove::delete_collection(call, read_body(request.into_body()).await?).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// The client's `timeout` (`30s`, `1m`), at most ours.
fn timeout(query: &Query) -> Duration {
    let text = query.get("timeout");
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match (number.parse::<u64>(), unit) {
        (Ok(n), "s" | "") if n > 0 => n,
        (Ok(n), "m") if n > 0 => n.saturating_mul(60),
        _ => return REQUEST_TIMEOUT,
    };
    Duration::from_secs(seconds).min(REQUEST_TIMEOUT)
}
