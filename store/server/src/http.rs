//! The client port: gRPC to the services, everything else to HTTP: the JSON gateway, health, version, metrics.
//!
//! Who may ask at all comes first: host names that are not ours are refused on a port without TLS (a page in a browser
//! could otherwise reach us under a name it controls), and browsers are told which origins may read the answers.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use keelson_store_core::Error;
use keelson_store_gateway::Gateway;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use crate::calls::{Calls, Conversation, Outcome};
use crate::convert::status;
use crate::door::Answer;
use crate::handle::{CLUSTER_VERSION, ETCD_VERSION, Handle};
use crate::health::Health;
use crate::keepalive::{self, KeepAlives};
use crate::listen::{RequestBody, Serve, plain};
use crate::metrics::{Asked, Call, Metrics, file_limit};
use crate::service;

pub(crate) const TEXT: &str = "text/plain; charset=utf-8";

/// Answers clients.
#[derive(Clone)]
pub(crate) struct ClientService {
    pub handle: Handle,
    pub metrics: Metrics,
    /// Absent on listeners without gRPC.
    pub routes: Option<Routes>,
    /// Absent when it is switched off.
    pub gateway: Option<Gateway>,
    /// Whether anything but gRPC is served.
    pub http: bool,
    /// Whether nothing but health and metrics is, to whoever asks.
    pub monitoring: bool,
    /// Whether the port has TLS.
    pub secure: bool,
}

impl Calls for ClientService {
    fn largest(&self) -> usize {
        service::most_message(self.handle.config())
    }

    fn patience(&self) -> Duration {
        self.handle.config().request_timeout()
    }

    fn call(&self, method: crate::calls::Method, message: Bytes, answer: Answer) -> Outcome {
        if self.routes.is_none() || self.handle.traces().is_some() {
            return Outcome::Pass;
        }
        let length = message.len() as u64;
        let outcome = self.handle.small_call(method, message, answer);
        if let Some(stats) = self.metrics.call(method.path()) {
            match &outcome {
                Outcome::Pass => {}
                Outcome::Later | Outcome::Long(_) => stats.small(length, None),
                Outcome::Now(answer) => {
                    let code = answer.as_ref().map_or_else(Status::code, |_| tonic::Code::Ok);
                    stats.small(length, Some(code));
                }
            }
        }
        outcome
    }

    fn converses(&self, path: &[u8]) -> bool {
        path == keepalive::PATH.as_bytes()
    }

    fn converse(&self, request: &Request<()>) -> Option<Conversation> {
        // A stream that is traced, and a refusal, go the way of all others.
        if self.routes.is_none() || self.handle.traces().is_some() {
            return None;
        }
        service::admit(&self.handle, keepalive::PATH, request.headers()).ok()?;
        let stats = self.metrics.call(keepalive::PATH)?.clone();
        let credential = service::credential(&self.handle, request.headers(), request.extensions());
        let handle = self.handle.in_the_name_of(credential);
        let until = service::wants_leader(request.headers()).then(|| {
            let handle = handle.clone();
            Box::pin(async move {
                service::leaderless(&handle).await;
                status(Error::NoLeader)
            }) as Pin<Box<dyn Future<Output = Status> + Send>>
        });
        Some(Conversation { partner: Arc::new(KeepAlives::new(handle, stats)), until })
    }
}

impl Serve for ClientService {
    async fn serve(&self, mut request: Request<RequestBody>) -> Response<Body> {
        let grpc = request.version() == Version::HTTP_2
            && request
                .headers()
                .get(header::CONTENT_TYPE)
                .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        match &self.routes {
            Some(routes) if grpc => call(&self.handle, &self.metrics, routes.clone(), request).await,
            // --listen-client-http-urls took it elsewhere.
            _ if !self.http => not_found(),
            // Monitoring comes from anywhere.
            _ if self.monitoring => self.answer(request).await,
            _ => {
                if let Err(refusal) = self.host_allowed(&request) {
                    return *refusal;
                }
                as_of_today(&mut request);
                let origin = self.origin_allowed(&request);
                let mut response = match *request.method() {
                    Method::OPTIONS => Response::new(Body::empty()),
                    _ => self.answer(request).await,
                };
                if let Some(origin) = origin {
                    allow(origin, &mut response);
                }
                response
            }
        }
    }
}

/// The gateway's paths had another beginning once.
fn as_of_today(request: &mut Request<RequestBody>) {
    let Some(rest) = request.uri().path_and_query().and_then(|path| path.as_str().strip_prefix("/v3beta/"))
    else {
        return;
    };
    if let Ok(uri) = format!("{}{rest}", keelson_store_gateway::PREFIX).parse() {
        *request.uri_mut() = uri;
    }
}

fn allow(origin: HeaderValue, response: &mut Response<Body>) {
    let headers = response.headers_mut();
    let methods = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
    let names = HeaderValue::from_static("accept, content-type, authorization");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names);
}

/// As Go's `http.Error` writes it.
pub(crate) fn failure(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = plain(status, TEXT, format!("{text}\n"));
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(HeaderName::from_static("x-content-type-options"), nosniff);
    response
}

pub(crate) fn not_found() -> Response<Body> {
    failure(StatusCode::NOT_FOUND, "404 page not found")
}

/// The gateway before our own services; its calls count like any other.
pub(crate) fn gateway(handle: &Handle, routes: Routes, metrics: &Metrics) -> Gateway {
    let most_message = service::most_message(handle.config());
    let (handle, metrics) = (handle.clone(), metrics.clone());
    let calls = tower::service_fn(move |request: Request<Body>| {
        let (handle, routes, metrics) = (handle.clone(), routes.clone(), metrics.clone());
        async move { Ok::<_, Infallible>(call(&handle, &metrics, routes, request).await) }
    });
    Gateway::new(calls, most_message)
}

/// One gRPC call, counted; refused at once where this member cannot serve it.
async fn call<B>(
    handle: &Handle,
    metrics: &Metrics,
    mut routes: Routes,
    request: Request<B>,
) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<tower::BoxError>,
{
    let admitted = service::admit(handle, request.uri().path(), request.headers());
    let answered = match metrics.call(request.uri().path()) {
        None => routes.call(request).await,
        Some(stats) => {
            let span = handle.traces().map(|traces| traces.begin(request.uri().path(), request.headers()));
            let call = Call::new(stats.clone(), span);
            let stats = stats.clone();
            if let Err(refusal) = admitted {
                let _begun = Asked::new(request.into_body(), stats);
                return call.answer(refusal.into_http());
            }
            let answered = routes.call(request.map(|body| Asked::new(body, stats))).await;
            answered.map(|response| call.answer(as_go_says_it(response)))
        }
    };
    answered.unwrap_or_else(|never| match never {})
}

/// A message that is too large is refused by the transport, in words clients of etcd know.
fn as_go_says_it(mut response: Response<Body>) -> Response<Body> {
    if let Some(status) =
        response.headers().get("grpc-status").and_then(|_| Status::from_header_map(response.headers()))
        && let Some(status) = service::too_large(&status)
    {
        // Both are ours: digits and plain words.
        let headers = status.into_http::<Body>().headers().clone();
        for name in ["grpc-status", "grpc-message"] {
            if let Some(value) = headers.get(name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
    }
    response
}

impl ClientService {
    /// The refusal of a request for a host name that is not allowed, with etcd's advice.
    fn host_allowed(&self, request: &Request<RequestBody>) -> Result<(), Box<Response<Body>>> {
        let allowed = &self.handle.config().host_whitelist;
        if self.secure || allowed.iter().any(|host| host == "*") {
            return Ok(());
        }
        let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let host = named.or_else(|| request.uri().authority().map(|authority| authority.as_str()));
        let host = host.unwrap_or_default();
        let host = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        if allowed.iter().any(|allowed| allowed == host) {
            return Ok(());
        }
        tracing::warn!(host, "rejecting HTTP request to prevent DNS rebinding attacks");
        let text = format!(
            "\netcd received your request, but the Host header was unrecognized.\n\nTo fix this, choose one of the \
             following options:\n- Enable TLS, then any HTTPS request will be allowed.\n- Add the hostname you want to \
             use to the whitelist in settings.\n  - e.g. etcd --host-whitelist {host:?}\n\nThis requirement has been \
             added to help prevent \"DNS Rebinding\" attacks (CVE-2018-5702).\n"
        );
        Err(Box::new(failure(StatusCode::MISDIRECTED_REQUEST, &text)))
    }

    /// The origin to name as allowed, if any.
    fn origin_allowed(&self, request: &Request<RequestBody>) -> Option<HeaderValue> {
        let allowed = &self.handle.config().cors;
        if allowed.iter().any(|origin| origin == "*") {
            return Some(HeaderValue::from_static("*"));
        }
        let origin = request.headers().get(header::ORIGIN)?;
        allowed.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
    }

    async fn answer(&self, request: Request<RequestBody>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if let Some(gateway) = &self.gateway {
            if path.starts_with(keelson_store_gateway::PREFIX) {
                return gateway.serve(request).await;
            }
            if format!("{path}/") == keelson_store_gateway::PREFIX {
                return moved_below(&request);
            }
        }
        if path == "/metrics" {
            let body = self.metrics.render(&self.handle).await;
            return plain(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
                body,
            );
        }
        if path == "/debug/vars" && !self.monitoring {
            return plain(StatusCode::OK, "application/json; charset=utf-8", self.variables());
        }
        let health = Health { handle: &self.handle, metrics: &self.metrics };
        let asked = request.uri().query().unwrap_or_default();
        let probe = match &*path {
            "/livez" => Some((false, None)),
            "/readyz" => Some((true, None)),
            path => {
                let live = path.strip_prefix("/livez/").map(|check| (false, Some(check)));
                live.or_else(|| path.strip_prefix("/readyz/").map(|check| (true, Some(check))))
            }
        };
        let known = probe.is_some() || path == "/health" || (path == "/version" && !self.monitoring);
        if !known {
            return not_found();
        }
        if request.method() != Method::GET {
            let mut response = failure(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            return response;
        }
        match probe {
            Some((ready, single)) => health.probe(ready, single, asked).await,
            None if path == "/health" => health.health(asked).await,
            None => plain(StatusCode::OK, "application/json", version()),
        }
    }

    /// `/debug/vars`: the process, and Raft as this member sees it.
    fn variables(&self) -> String {
        let replica = self.handle.replica();
        let leader = replica.leader_id();
        let state = if leader == replica.id { "StateLeader" } else { "StateFollower" };
        let variables = serde_json::json!({
            "cmdline": std::env::args().collect::<Vec<_>>(),
            "file_descriptor_limit": file_limit(),
            "raft.status": {
                "id": format!("{:x}", replica.id),
                "term": replica.term(),
                "commit": replica.committed(),
                "applied": replica.shared.applied(),
                "lead": format!("{leader:x}"),
                "raftState": state,
            },
        });
        format!("{variables:#}\n")
    }
}

fn version() -> String {
    format!(
        r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{CLUSTER_VERSION}","storage":"{CLUSTER_VERSION}"}}"#
    )
}

/// From the gateway's name to the folder, as Go's multiplexer says it.
fn moved_below(request: &Request<RequestBody>) -> Response<Body> {
    let place = keelson_store_gateway::PREFIX;
    let named = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = match named {
        true => {
            let body = format!("<a href=\"{place}\">Temporary Redirect</a>.\n\n");
            plain(StatusCode::TEMPORARY_REDIRECT, "text/html; charset=utf-8", body)
        }
        false => Response::new(Body::empty()),
    };
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static(place));
    response
}
