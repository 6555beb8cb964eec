//! The node's HTTPS server: logs, exec, attach, port-forward, pods, health, statistics, metrics.
//!
//! Order of a request: TLS (client certificate verified if sent) → who is it → may they → route. Streams are bridged in
//! `streams`. Hazard: everything here can read or run things inside pods; no route may answer before `auth` has.

// A refusal is an HTTP answer: built once per request, its size does not matter.
#![allow(clippy::result_large_err)]

mod auth;
pub mod logs;
mod metrics;
mod spdy;
mod streams;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use keelson_nodeagent_core::pod::logs::Options;
use keelson_nodeagent_core::pod::naming;
use keelson_nodeagent_core::pod::observed::Container;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::context::{Node, PodView};
use auth::Peer;

const CONNECTIONS: usize = 512;
const HANDSHAKE: Duration = Duration::from_secs(10);

pub type Body = BoxBody<Bytes, Infallible>;
pub type Answer = Response<Body>;

/// Serves until `stop`; open streams end then.
pub async fn serve(
    node: Arc<Node>,
    listener: TcpListener,
    tls: rustls::ServerConfig,
    stop: CancellationToken,
) {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            warn!("connection refused: {CONNECTIONS} are open");
            continue;
        };
        let (node, acceptor, stop) = (node.clone(), acceptor.clone(), stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                _ => return,
            };
            let peer = Peer::of(stream.get_ref().1.peer_certificates());
            let service = service_fn(move |request| {
                let (node, peer) = (node.clone(), peer.clone());
                async move { Ok::<_, Infallible>(answer(node, peer, request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HANDSHAKE)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            tokio::select! {
                ended = connection => if let Err(e) = ended { debug!(error = %e, "connection ended") },
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn answer(node: Arc<Node>, peer: Peer, request: Request<Incoming>) -> Answer {
    match auth::check(&node, &peer, &request).await {
        Ok(()) => route(node, request).await.unwrap_or_else(|refusal| refusal),
        Err(refusal) => refusal,
    }
}

pub fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text.into())).boxed());
    *answer.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    answer
}

fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut answer = Response::new(Full::new(Bytes::from(bytes)).boxed());
            let kind = http::HeaderValue::from_static("application/json");
            answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
            answer
        }
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
}

async fn route(node: Arc<Node>, request: Request<Incoming>) -> Result<Answer, Answer> {
    let path = request.uri().path().to_string();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let query = Query::of(request.uri().query().unwrap_or_default());
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match parts.as_slice() {
        ["healthz"] => healthz(&node).await,
        ["pods"] if reads => {
            let items: Vec<_> = node.views().iter().map(|v| (*v.pod).clone()).collect();
            Ok(json(
                &serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}),
            ))
        }
        ["stats", "summary"] => Ok(json(&crate::stats::summary(&node).await)),
        ["metrics"] if reads => Ok(text(StatusCode::OK, metrics::own(&node).await)),
        ["metrics", "resource"] if reads => Ok(text(StatusCode::OK, metrics::resource(&node).await)),
        ["containerLogs", namespace, pod, container] if reads => {
            container_logs(node.clone(), &find(&node, namespace, pod)?, container, &query)
        }
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            let target = running(&find(&node, namespace, pod)?, container)?;
            streams::exec(&node, &target, &query, request).await
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            let view = find(&node, namespace, pod)?;
            let tty = naming::find_container(&view.pod, container).and_then(|c| c.tty).unwrap_or(false);
            streams::attach(&node, &running(&view, container)?, tty, &query, request).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            let view = find(&node, namespace, pod)?;
            let sandbox = view.observed.ready_sandbox().map(|s| s.id.clone());
            let sandbox =
                sandbox.ok_or_else(|| text(StatusCode::NOT_FOUND, format!("pod {pod} is not running")))?;
            streams::port_forward(&node, &sandbox, &query, request).await
        }
        _ => Err(text(StatusCode::NOT_FOUND, "404 page not found\n")),
    }
}

async fn healthz(node: &Node) -> Result<Answer, Answer> {
    match node.cri.status().await {
        Ok(_) => Ok(text(StatusCode::OK, "ok")),
        Err(e) => Err(text(StatusCode::INTERNAL_SERVER_ERROR, format!("runtime: {}\n", e.message()))),
    }
}

fn find(node: &Node, namespace: &str, name: &str) -> Result<PodView, Answer> {
    let mut found: Vec<PodView> = node
        .views()
        .into_iter()
        .filter(|v| naming::namespace(&v.pod) == namespace && naming::name(&v.pod) == name)
        .collect();
    // A name may be in use twice for a moment; the pod that is not leaving is the one meant.
    found.sort_by_key(|v| v.pod.metadata.deletion_timestamp.is_some());
    let missing = || text(StatusCode::NOT_FOUND, format!("pod \"{name}\" not found on this node\n"));
    found.into_iter().next().ok_or_else(missing)
}

fn running(view: &PodView, name: &str) -> Result<Container, Answer> {
    let missing = || text(StatusCode::NOT_FOUND, format!("container not found (\"{name}\")"));
    let found = view.observed.latest(name).cloned().ok_or_else(missing)?;
    if found.running() {
        Ok(found)
    } else {
        Err(text(StatusCode::BAD_REQUEST, format!("container {name} is not running")))
    }
}

fn container_logs(node: Arc<Node>, view: &PodView, name: &str, query: &Query) -> Result<Answer, Answer> {
    let bad = |message: String| text(StatusCode::BAD_REQUEST, message);
    if naming::find_container(&view.pod, name).is_none() && view.observed.latest(name).is_none() {
        return Err(text(
            StatusCode::NOT_FOUND,
            format!("container {name} not found in pod {}\n", naming::name(&view.pod)),
        ));
    }
    let previous = query.flag("previous");
    let wanted = if previous { view.observed.previous(name) } else { view.observed.latest(name) };
    let latest_waits = !previous && wanted.is_some_and(|c| !c.running() && !c.exited());
    let wanted = if latest_waits { view.observed.previous(name) } else { wanted };
    let (pod, uid) = (naming::name(&view.pod).to_string(), naming::uid(&view.pod).to_string());
    let Some(container) = wanted.cloned() else {
        let state = if previous { "previous terminated container" } else { "container" };
        return Err(bad(format!("{state} \"{name}\" in pod \"{pod}\" is waiting to start or not found")));
    };
    let dir = node.config.pod_log_dir(naming::namespace(&view.pod), &pod, &uid);
    let path = dir.join(naming::log_file(name, container.attempt));
    let options = log_options(query).map_err(bad)?;
    let follow = query.flag("follow") && container.running();
    let (sender, receiver) = mpsc::channel::<Bytes>(8);
    let id = container.id.clone();
    tokio::spawn(async move {
        let alive = move || {
            let (node, uid, id) = (node.clone(), uid.clone(), id.clone());
            async move {
                let view = node.view(&uid);
                view.is_some_and(|v| v.observed.containers.iter().any(|c| c.id == id && c.running()))
            }
        };
        if let Err(e) = logs::stream(path.clone(), options, follow, alive, sender).await {
            debug!(path = %path.display(), error = %e, "log stream ended");
        }
    });
    let frames =
        tokio_stream::wrappers::ReceiverStream::new(receiver).map(|b| Ok::<_, Infallible>(Frame::data(b)));
    let mut answer = Response::new(http_body_util::BodyExt::boxed(StreamBody::new(frames)));
    let kind = http::HeaderValue::from_static("text/plain");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    Ok(answer)
}

fn log_options(query: &Query) -> Result<Options, String> {
    let number = |key: &str| -> Result<Option<i64>, String> {
        let Some(value) = query.get(key) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| format!("{key} must be a number: {value:?}"))
    };
    let mut options = Options { timestamps: query.flag("timestamps"), ..Options::default() };
    options.tail_lines = number("tailLines")?.filter(|n| *n >= 0).map(|n| n as u64);
    options.limit_bytes = number("limitBytes")?.filter(|n| *n > 0).map(|n| n as u64);
    options.stream = query.get("stream").map(String::from);
    if let Some(time) = query.get("sinceTime") {
        options.since = Some(time.parse().map_err(|_| format!("sinceTime is no RFC 3339 time: {time:?}"))?);
    } else if let Some(seconds) = number("sinceSeconds")? {
        let since = jiff::Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(seconds));
        options.since = Some(since.map_err(|_| format!("sinceSeconds is out of range: {seconds}"))?);
    }
    Ok(options)
}

/// Decoded query parameters in order.
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn of(raw: &str) -> Query {
        let pairs = raw.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        });
        Query(pairs.collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    pub fn all(&self, key: &str) -> Vec<String> {
        self.0.iter().filter(|(k, _)| k == key).map(|(_, v)| v.clone()).collect()
    }

    pub fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
    }
}

fn decode(text: &str) -> String {
    let text = text.replace('+', " ");
    percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_decode_and_repeat() {
        let query = Query::of("command=sh&command=-c&command=a%20%2B+b&stdin=true&tty=&x");
        assert_eq!(query.all("command"), ["sh", "-c", "a + b"]);
        assert!(query.flag("stdin") && !query.flag("tty") && query.get("x").is_none());
        assert!(log_options(&Query::of("tailLines=x")).is_err());
        assert_eq!(log_options(&Query::of("tailLines=5&limitBytes=9")).unwrap().tail_lines, Some(5));
    }
}
