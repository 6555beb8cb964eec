//! Streams that end at a kubelet or a pod: log, exec, attach, port-forward, proxy. Who may do it is settled before; here
//! the pod's node is found and the bytes are passed on.

use http::header::{CONNECTION, CONTENT_TYPE, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use keelson_api::Status;
use keelson_apiserver_core::View as _;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::Value;
use std::sync::Arc;
use tokio::net::TcpStream;

use crate::read;
use crate::respond::{self, Body, Response};
use crate::server::{Call, read_body};

const QUERY_SAFE: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'&')
    .add(b'+')
    .add(b'%')
    .add(b'=')
    .add(b'?')
    .add(b'<')
    .add(b'>');
const PATH_SAFE: &AsciiSet = &QUERY_SAFE.add(b'/');

/// Answers a streaming subresource of a pod, a node or a service.
///
/// # Errors
/// 400 about the container, 404, 503 when the other end cannot be reached.
pub async fn answer(call: &Call<'_>, request: Request<Incoming>) -> Result<Response, Status> {
    let object = read::fetch(call).await?.parse();
    let kind = (call.resource.plural.as_str(), call.path.subresource.as_str());
    match kind {
        ("nodes", "proxy") => node_proxy(call, &object, request).await,
        (_, "proxy") => proxy(call, &object, request).await,
        ("pods", "log") => log(call, &object).await,
        ("pods", action @ ("exec" | "attach")) => {
            let container = container(call, &object)?;
            node_of(call, &object)?;
            if !request.headers().contains_key(UPGRADE) {
                return Err(Status::bad_request("Upgrade request required"));
            }
            let path = kubelet_path(
                call,
                action,
                Some(&container),
                &["command", "stdin", "stdout", "stderr", "tty"],
            );
            upgrade(call, &object, request, &path).await
        }
        ("pods", "portforward") => {
            let path = kubelet_path(call, "portForward", None, &["ports", "port"]);
            upgrade(call, &object, request, &path).await
        }
        _ => Err(Status::method_not_allowed()),
    }
}

/// Path at the kubelet; booleans and lists of the query go along under the kubelet's names.
fn kubelet_path(call: &Call<'_>, action: &str, container: Option<&str>, pass: &[&str]) -> String {
    let safe = |text: &str| utf8_percent_encode(text, PATH_SAFE).to_string();
    let mut path = format!("/{action}/{}/{}", safe(call.namespace()), safe(&call.path.name));
    if let Some(container) = container {
        path = format!("{path}/{}", safe(container));
    }
    let mut first = true;
    for name in pass {
        let theirs = match *name {
            "stdin" => "input",
            "stdout" => "output",
            "stderr" => "error",
            other => other,
        };
        for value in call.query.all(name) {
            let boolean = matches!(*name, "stdin" | "stdout" | "stderr" | "tty");
            if boolean && !call.query.flag(name) {
                continue;
            }
            let value =
                if boolean { "1".to_owned() } else { utf8_percent_encode(value, QUERY_SAFE).to_string() };
            path.push(if std::mem::take(&mut first) { '?' } else { '&' });
            path.push_str(&format!("{theirs}={value}"));
        }
    }
    path
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let all = pod["spec"][list].as_array().into_iter().flatten();
    all.filter_map(|c| c["name"].as_str().map(str::to_owned)).collect()
}

/// The container asked for, or the only one, or the one the pod names as its default.
fn container(call: &Call<'_>, pod: &Value) -> Result<String, Status> {
    let asked = call.query.get("container");
    let plain = names(pod, "containers");
    let (init, ephemeral) = (names(pod, "initContainers"), names(pod, "ephemeralContainers"));
    let name = &call.path.name;
    if asked.is_empty() {
        if let [only] = plain.as_slice()
            && (init.is_empty() && ephemeral.is_empty() || call.path.subresource != "log")
        {
            return Ok(only.clone());
        }
        if let [only] = plain.as_slice()
            && init.is_empty()
        {
            return Ok(only.clone());
        }
        let mut message = format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            plain.join(" ")
        );
        if !init.is_empty() {
            message = format!(
                "a container name must be specified for pod {name}, choose one of: [{} {}]",
                init.join(" "),
                plain.join(" ")
            );
        }
        return Err(Status::bad_request(message));
    }
    if plain.iter().chain(&init).chain(&ephemeral).any(|known| known == asked) {
        return Ok(asked.to_owned());
    }
    Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")))
}

/// The node a pod is on.
fn node_of(call: &Call<'_>, pod: &Value) -> Result<Arc<Value>, Status> {
    let node = pod["spec"]["nodeName"].as_str().unwrap_or("");
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", call.path.name)));
    }
    // As upstream has it: what was not found goes by the resource that was asked for.
    let missing = || Status::not_found(call.resource, node);
    call.server.view.get("", "nodes", "", node).ok_or_else(missing)
}

/// What is wrong with the options of a log.
fn log_options(call: &Call<'_>) -> Result<(), Status> {
    let mut errors = keelson_api::ErrorList::new();
    let path = |field: &str| keelson_api::Path::new(field);
    let mut number = |field: &str, least: i64, detail: &str| {
        if let Ok(n) = call.query.get(field).parse::<i64>()
            && n < least
        {
            errors.push(keelson_api::FieldError::invalid(&path(field), n, detail));
        }
    };
    number("tailLines", 0, "must be greater than or equal to 0");
    number("limitBytes", 1, "must be greater than 0");
    number("sinceSeconds", 1, "must be greater than 0");
    let since = call.query.get("sinceTime");
    if !since.is_empty() && since.parse::<jiff::Timestamp>().is_err() {
        return Err(Status::bad_request(format!(
            "parsing time {since:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {since:?} as \"2006\""
        )));
    }
    if !since.is_empty() && call.query.has("sinceSeconds") {
        let detail = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        errors.push(keelson_api::FieldError::forbidden(&path("[]"), detail));
    }
    if !["", "All"].contains(&call.query.get("stream")) {
        // One stream alone is a feature that is off.
        errors.push(keelson_api::FieldError::forbidden(&path("stream"), "may not be specified"));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid_kind("", "PodLogOptions", &call.path.name, errors))
}

async fn log(call: &Call<'_>, pod: &Value) -> Result<Response, Status> {
    log_options(call)?;
    let container = container(call, pod)?;
    let assigned = pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    if !assigned {
        // Nothing has run, so nothing was said.
        let mut nothing = respond::answer(204, "text/plain", respond::full(""));
        nothing.headers_mut().remove(CONTENT_TYPE);
        return Ok(nothing);
    }
    let node = node_of(call, pod)?;
    let pass = [
        "follow",
        "previous",
        "sinceSeconds",
        "sinceTime",
        "timestamps",
        "tailLines",
        "limitBytes",
        "stream",
    ];
    let path = kubelet_path(call, "containerLogs", Some(&container), &pass);
    let response = call.server.kubelets.get(&node, &path).await?;
    Ok(respond::answer(200, "text/plain", pass_on(response.into_body())))
}

fn pass_on(body: Incoming) -> Body {
    body.map_err(respond::BodyError::from).boxed_unsync()
}

async fn upgrade(
    call: &Call<'_>,
    pod: &Value,
    request: Request<Incoming>,
    path: &str,
) -> Result<Response, Status> {
    let node = node_of(call, pod)?;
    let response = call.server.kubelets.upgrade(&node, request, path).await?;
    Ok(response.map(|()| respond::full("")))
}

fn with_query(path: &str, request: &Request<Incoming>) -> String {
    match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

/// GET below a node goes to its kubelet.
async fn node_proxy(call: &Call<'_>, node: &Value, request: Request<Incoming>) -> Result<Response, Status> {
    let path = with_query(&format!("/{}", call.path.rest), &request);
    if request.headers().contains_key(UPGRADE) {
        let response = call.server.kubelets.upgrade(node, request, &path).await?;
        return Ok(response.map(|()| respond::full("")));
    }
    if request.method() != http::Method::GET {
        return Err(Status::method_not_allowed());
    }
    let (parts, body) = call.server.kubelets.get(node, &path).await?.into_parts();
    let content_type = parts.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("text/plain");
    Ok(respond::answer(parts.status.as_u16(), content_type, pass_on(body)))
}

/// `[scheme:]name[:port]` of a proxied pod or service: the port asked for.
fn port_of(path_name: &str) -> (&str, &str) {
    let parts: Vec<&str> = path_name.split(':').collect();
    match parts.as_slice() {
        [_, name, port] => (*name, *port),
        [name, port] => (*name, *port),
        _ => (path_name, ""),
    }
}

/// Plain HTTP to a pod or a service.
async fn proxy(call: &Call<'_>, object: &Value, request: Request<Incoming>) -> Result<Response, Status> {
    let (_, port) = port_of(&call.path.name);
    if call.resource.plural == "pods" && object["status"]["podIP"].as_str().unwrap_or("").is_empty() {
        return Err(Status::bad_request("address not allowed"));
    }
    let (host, port) = if call.resource.plural == "pods" {
        pod_address(object, port)
    } else {
        service_address(call, object, port)
    }
    .ok_or_else(|| {
        Status::unavailable(format!(
            "no endpoints available for {} {:?}",
            call.resource.singular, call.path.name
        ))
    })?;
    let path = with_query(&format!("/{}", call.path.rest), &request);
    let refused = |e: std::io::Error| {
        Status::unavailable(format!(
            "error trying to reach {} {}: {e}",
            call.resource.singular, call.path.name
        ))
    };
    let limit = std::time::Duration::from_secs(10);
    let connected = tokio::time::timeout(limit, TcpStream::connect((host.as_str(), port))).await;
    let stream = connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(refused)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(Status::internal)?;
    tokio::spawn(connection);
    let mut onward = Request::builder().method(request.method().clone()).uri(path);
    if let Some(headers) = onward.headers_mut() {
        copy_headers(request.headers(), headers);
        if let Ok(value) = format!("{host}:{port}").parse() {
            headers.insert(HOST, value);
        }
    }
    let body = read_body(request.into_body()).await?;
    let onward = onward.body(Full::new(body)).map_err(Status::internal)?;
    let (parts, body) =
        sender.send_request(onward).await.map_err(|e| Status::unavailable(e.to_string()))?.into_parts();
    let mut response = http::Response::new(pass_on(body));
    *response.status_mut() = parts.status;
    copy_headers(&parts.headers, response.headers_mut());
    Ok(response)
}

fn copy_headers(from: &HeaderMap, to: &mut HeaderMap) {
    let own = [
        CONNECTION,
        TRANSFER_ENCODING,
        HOST,
        UPGRADE,
        http::header::AUTHORIZATION,
        http::header::CONTENT_LENGTH,
    ];
    for (name, value) in
        from.iter().filter(|(name, _)| !own.contains(name) && !name.as_str().starts_with("impersonate-"))
    {
        to.append(name, value.clone());
    }
}

fn pod_address(pod: &Value, port: &str) -> Option<(String, u16)> {
    let host = pod["status"]["podIP"].as_str()?.to_owned();
    let first = || {
        let containers = pod["spec"]["containers"].as_array()?;
        containers.iter().find_map(|c| c["ports"][0]["containerPort"].as_u64())
    };
    let port = if port.is_empty() { first().unwrap_or(80) } else { port.parse().ok()? };
    Some((host, u16::try_from(port).ok()?))
}

/// A ready endpoint of a service port, from its slices.
fn service_address(call: &Call<'_>, service: &Value, port: &str) -> Option<(String, u16)> {
    let ports = service["spec"]["ports"].as_array()?;
    let matches = |p: &&Value| {
        port.is_empty() || p["name"] == port || port.parse::<i64>().is_ok_and(|number| p["port"] == number)
    };
    let wanted = ports.iter().find(matches)?;
    let slices = call.server.view.list("discovery.k8s.io", "endpointslices", Some(call.namespace()));
    let name = &service["metadata"]["name"];
    slices.iter().filter(|s| s["metadata"]["labels"]["kubernetes.io/service-name"] == *name).find_map(
        |slice| {
            let named =
                |p: &&Value| p["name"].as_str().unwrap_or("") == wanted["name"].as_str().unwrap_or("");
            let port = slice["ports"].as_array()?.iter().find(named)?["port"].as_u64()?;
            let ready = |e: &&Value| e["conditions"]["ready"].as_bool().unwrap_or(true);
            let endpoint = slice["endpoints"].as_array()?.iter().find(ready)?;
            Some((endpoint["addresses"][0].as_str()?.to_owned(), u16::try_from(port).ok()?))
        },
    )
}
