//! What the server says about itself: discovery, OpenAPI, version, token keys, metrics, the list of paths.
//!
//! Documents are built when first asked for and kept as bytes until the custom resources change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, ETAG, EXPIRES, HeaderValue, IF_NONE_MATCH, LOCATION, VARY};
use http::{HeaderMap, Request};
use hyper::body::Incoming;
use keelson_api::{RESOURCES, Resource, Status};
use keelson_apiserver_core::{discovery, openapi};
use keelson_store_proto::etcdserverpb::StatusRequest;
use serde_json::{Value, json};

use crate::handler::not_found;
use crate::request::{Query, accepts_gzip, clauses};
use crate::respond::{self, Response};
use crate::server::Server;
use crate::{metrics_api, present};

/// The release we answer for, with our own name as build metadata.
pub const GIT_VERSION: &str = "v1.36.2+keelson";

/// A document and the hash that names this edition of it.
#[derive(Clone)]
struct Document {
    bytes: Bytes,
    hash: String,
}

impl Document {
    fn new(value: &Value) -> Document {
        let bytes = Bytes::from(value.to_string());
        let hash = hash(&bytes);
        Document { bytes, hash }
    }
}

fn hash(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02X}")).collect()
}

/// Documents built so far.
#[derive(Default)]
pub struct Documents {
    kept: Mutex<BTreeMap<String, Document>>,
    /// Of which custom resources `kept` tells.
    of: Mutex<u64>,
    /// Names the edition of everything that is made from the built-in tables.
    edition: OnceLock<String>,
}

impl Documents {
    /// Forgets what is kept when the custom resources (named by a number) are others than before.
    fn of(&self, custom: u64) {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if *of != custom {
            *of = custom;
            self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    fn get(&self, name: &str, build: impl FnOnce() -> Option<Value>) -> Option<Document> {
        let kept = |documents: &Documents| {
            documents.kept.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
        };
        if let Some(document) = kept(self) {
            return Some(document);
        }
        let document = Document::new(&build()?);
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), document.clone());
        Some(document)
    }

    fn edition(&self) -> &str {
        self.edition.get_or_init(|| {
            hash(format!("{GIT_VERSION} {} {:?}", env!("CARGO_PKG_VERSION"), *RESOURCES).as_bytes())
        })
    }
}

/// Answers a path that is not about an object.
pub async fn answer(server: &Arc<Server>, query: &Query, request: &Request<Incoming>) -> Response {
    let path = request.uri().path().trim_end_matches('/');
    let headers = request.headers();
    if request.method() != http::Method::GET && request.method() != http::Method::HEAD {
        return if known(path) { respond::status(&Status::method_not_allowed()) } else { not_found() };
    }
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let api = matches!(parts.first(), Some(&"api" | &"apis" | &"version"));
    if request.method() == http::Method::HEAD && api {
        return respond::status(&Status::method_not_allowed());
    }
    let rows = &server.rows();
    server.documents.of(server.definitions.edition());
    match parts.as_slice() {
        [] | [""] => respond::json(200, &json!({"paths": paths()})),
        ["version"] => respond::json(200, &version()),
        ["api"] | ["apis"] => groups(server, rows, headers, parts[0] == "api"),
        ["api", "v1"] => resources(rows, "", "v1"),
        ["apis", group] => match group_document(rows, group) {
            Some(value) => respond::json(200, &value),
            None => not_found(),
        },
        ["apis", group, version] => {
            let lacks = !rows.iter().any(|r| r.group == *group && r.version == *version);
            let group_is_there = rows.iter().any(|r| r.group == *group);
            if lacks && group_is_there {
                respond::status(&Status::no_such_path())
            } else {
                resources(rows, group, version)
            }
        }
        ["api", _] => respond::status(&Status::no_such_path()),
        ["openapi", "v2"] => openapi_v2(server, rows, headers),
        ["openapi", "v3"] => openapi_index(server, rows),
        ["openapi", "v3", "api", version] => openapi_v3(server, rows, query, headers, ("", version)),
        ["openapi", "v3", "apis", group, version] => {
            openapi_v3(server, rows, query, headers, (group, version))
        }
        ["metrics"] => metrics(server).await,
        [".well-known", "openid-configuration"] => openid(server, request),
        ["openid", "v1", "jwks"] => {
            let keys = server.tokens.jwks().to_string();
            cached(respond::answer(200, "application/jwk-set+json", respond::full(keys)))
        }
        _ => not_found(),
    }
}

fn known(path: &str) -> bool {
    path.is_empty() || paths().iter().any(|known| known == path)
}

fn cached(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}

fn paths() -> Vec<String> {
    let mut out: Vec<String> =
        ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis"].map(str::to_owned).to_vec();
    for r in RESOURCES.iter().filter(|r| !r.group.is_empty()) {
        out.push(format!("/apis/{}", r.group));
        out.push(format!("/apis/{}/{}", r.group, r.version));
    }
    out.push("/apis/metrics.k8s.io".to_owned());
    out.push(format!("/apis/{}", metrics_api::API_VERSION));
    let rest = [
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ];
    out.extend(rest.map(str::to_owned));
    out.sort();
    out.dedup();
    out
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": GIT_VERSION, "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
    })
}

fn group_document(rows: &[&Resource], group: &str) -> Option<Value> {
    if group == "metrics.k8s.io" {
        let mut value = metrics_api::group();
        value["kind"] = json!("APIGroup");
        value["apiVersion"] = json!("v1");
        return Some(value);
    }
    discovery::group(rows, group)
}

fn resources(rows: &[&Resource], group: &str, version: &str) -> Response {
    let value = if format!("{group}/{version}") == metrics_api::API_VERSION {
        Some(metrics_api::resources())
    } else {
        discovery::resources(rows, group, version)
    };
    value.map_or_else(not_found, |value| respond::json(200, &value))
}

/// `/api` and `/apis`, aggregated where the client asks for that.
fn groups(server: &Server, rows: &[&Resource], headers: &HeaderMap, legacy: bool) -> Response {
    for clause in clauses(headers) {
        if !matches!(clause.media_type, "application/json" | "*/*" | "application/*") {
            continue;
        }
        let wanted =
            clause.param("as") == "APIGroupDiscoveryList" && clause.param("g") == "apidiscovery.k8s.io";
        if wanted && clause.param("v") == "v2" {
            return aggregated(server, rows, headers, legacy);
        }
        if clause.param("as").is_empty() {
            return plain_groups(server, rows, legacy);
        }
    }
    if headers.contains_key(http::header::ACCEPT) {
        return respond::status(&Status::not_acceptable(&crate::request::MEDIA_TYPES));
    }
    plain_groups(server, rows, legacy)
}

fn plain_groups(server: &Server, rows: &[&Resource], legacy: bool) -> Response {
    if legacy {
        let address = format!("{}:{}", server.config.advertise_address, server.port);
        return respond::json(200, &discovery::api_versions(&address));
    }
    let mut groups = discovery::groups(rows);
    if let Some(list) = groups["groups"].as_array_mut() {
        list.push(metrics_api::group());
    }
    respond::json(200, &groups)
}

fn aggregated(server: &Server, rows: &[&Resource], headers: &HeaderMap, legacy: bool) -> Response {
    let name = if legacy { "discovery/api" } else { "discovery/apis" };
    let build = || {
        let mut value = discovery::aggregated(rows, "v2", legacy);
        if let (false, Some(items)) = (legacy, value["items"].as_array_mut()) {
            items.push(metrics_api::aggregated());
        }
        Some(value)
    };
    let Some(document) = server.documents.get(name, build) else { return not_found() };
    let etag = format!("\"{}\"", document.hash);
    let content_type = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let mut response =
        if matches_etag(headers, &etag) { unchanged() } else { large(headers, content_type, document.bytes) };
    set(&mut response, &[(CACHE_CONTROL, "public"), (ETAG, &etag), (VARY, "Accept")]);
    response
}

fn matches_etag(headers: &HeaderMap, etag: &str) -> bool {
    let given = headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok()).unwrap_or("");
    given.split(',').any(|one| one.trim().trim_start_matches("W/") == etag)
}

fn unchanged() -> Response {
    let mut response = http::Response::new(respond::full(Bytes::new()));
    *response.status_mut() = http::StatusCode::NOT_MODIFIED;
    response
}

fn set(response: &mut Response, headers: &[(http::HeaderName, &str)]) {
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name.clone(), value);
        }
    }
}

/// A body that is compressed when it is large and the client likes that.
fn large(headers: &HeaderMap, content_type: &str, bytes: Bytes) -> Response {
    let gzip = bytes.len() >= respond::GZIP_FROM && accepts_gzip(headers);
    if gzip {
        return respond::pieces(content_type, true, std::iter::once(bytes));
    }
    respond::answer(200, content_type, respond::full(bytes))
}

fn openapi_v2(server: &Server, rows: &[&Resource], headers: &HeaderMap) -> Response {
    let json =
        clauses(headers).iter().any(|c| matches!(c.media_type, "application/json" | "*/*" | "application/*"));
    if !json && headers.contains_key(http::header::ACCEPT) {
        return respond::status(&Status::not_acceptable(&["application/json"]));
    }
    let Some(document) = server.documents.get("openapi/v2", || Some(openapi::v2(rows))) else {
        return not_found();
    };
    let etag = format!("\"{}\"", document.hash);
    let mut response = if matches_etag(headers, &etag) {
        unchanged()
    } else {
        large(headers, "application/json", document.bytes)
    };
    set(
        &mut response,
        &[(ETAG, &etag), (VARY, "Accept-Encoding, Accept"), (CACHE_CONTROL, "no-cache, private")],
    );
    response
}

/// The edition of an OpenAPI document: it changes with the binary, so the index needs not build any.
fn openapi_hash(server: &Server, rows: &[&Resource], group: &str, version: &str) -> String {
    let mut text = format!("{} {group}/{version}", server.documents.edition());
    for row in rows.iter().filter(|r| r.definition.is_some() && r.group == group && r.version == version) {
        text.push_str(&format!("{row:?}"));
    }
    hash(text.as_bytes())
}

fn openapi_index(server: &Server, rows: &[&Resource]) -> Response {
    let mut paths = serde_json::Map::new();
    for (group, versions) in discovery::grouped(rows) {
        for version in versions {
            let path =
                if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            let hash = openapi_hash(server, rows, group, version);
            paths.insert(
                path.clone(),
                json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}),
            );
        }
    }
    respond::answer(200, "text/plain; charset=utf-8", respond::full(json!({"paths": paths}).to_string()))
}

fn openapi_v3(
    server: &Server,
    rows: &[&Resource],
    query: &Query,
    headers: &HeaderMap,
    (group, version): (&str, &str),
) -> Response {
    let served = rows.iter().any(|r| r.group == group && r.version == version);
    let json =
        clauses(headers).iter().any(|c| matches!(c.media_type, "application/json" | "*/*" | "application/*"));
    if !json && headers.contains_key(http::header::ACCEPT) {
        return respond::status(&Status::not_acceptable(&["application/json"]));
    }
    let hash = openapi_hash(server, rows, group, version);
    let etag = format!("\"{hash}\"");
    let asked = query.get("hash");
    if served && !asked.is_empty() && asked != hash {
        let path =
            if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
        let location = format!("/openapi/v3/{path}?hash={hash}");
        let mut response = respond::answer(301, "application/json", respond::full(Bytes::new()));
        set(&mut response, &[(LOCATION, &location), (ETAG, &etag), (VARY, "Accept")]);
        return response;
    }
    // Large and seldom asked for (clients keep them for a year): built each time, not kept.
    let Some(value) = served.then(|| openapi::v3(rows, group, version)).flatten() else { return not_found() };
    let mut response = if matches_etag(headers, &etag) {
        unchanged()
    } else {
        large(headers, "application/json", value.to_string().into())
    };
    set(&mut response, &[(ETAG, &etag), (VARY, "Accept")]);
    if !asked.is_empty() {
        let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(365 * 24);
        let expires = expires.strftime("%a, %d %b %Y %H:%M:%S UTC").to_string();
        set(&mut response, &[(CACHE_CONTROL, "public, immutable"), (EXPIRES, &expires)]);
    }
    response
}

fn openid(server: &Server, request: &Request<Incoming>) -> Response {
    let own = format!("{}:{}", server.config.advertise_address, server.port);
    let host = request.headers().get(http::header::HOST).and_then(|v| v.to_str().ok()).unwrap_or(&own);
    let host = request.uri().authority().map_or(host, |a| a.as_str());
    let value = json!({
        "issuer": server.tokens.issuer,
        "jwks_uri": format!("https://{host}/openid/v1/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": server.tokens.algorithms(),
    });
    cached(respond::json(200, &value))
}

async fn metrics(server: &Arc<Server>) -> Response {
    let objects: Vec<(String, usize)> = {
        let mut out: Vec<_> = server
            .hub
            .caches()
            .into_iter()
            .filter_map(|cache| cache.resources.first().map(|r| (r.group_resource(), cache.count())))
            .collect();
        out.sort();
        out
    };
    let status = server.storage.etcd().status(StatusRequest::default());
    let size = tokio::time::timeout(std::time::Duration::from_secs(2), status).await;
    let size = size.ok().and_then(Result::ok).map(|s| s.db_size);
    let text = server.metrics.render(&objects, size);
    respond::answer(200, "text/plain; version=0.0.4; charset=utf-8", respond::full(text))
}

/// A list of made objects (not stored ones) in the requested form.
///
/// # Errors
/// 406 as negotiated.
pub fn made_list(
    headers: &HeaderMap,
    kind: &str,
    api_version: &str,
    items: Vec<Value>,
) -> Result<Response, Status> {
    let accept = crate::request::Accept::negotiate(headers, true)?;
    present::value(
        &accept,
        200,
        &json!({"kind": kind, "apiVersion": api_version, "metadata": {}, "items": items}),
    )
}
