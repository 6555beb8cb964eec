//! Calls admission webhooks: one HTTPS request each, to a URL or to a Service's cluster IP.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use keelson_api::Status;
use keelson_apiserver_core::View as _;
use keelson_apiserver_core::admission::webhooks::{self, Hook, Request};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::server::Server;

/// The longest answer that is read, bytes.
const ANSWER: usize = 3 * 1024 * 1024;

/// What all webhooks together made of a request.
#[derive(Default)]
pub struct Admitted {
    /// The object after all patches, when there was one.
    pub patched: Option<Value>,
    pub warnings: Vec<String>,
}

/// Asks every webhook that a request concerns, one after the other; each sees what those before it made.
///
/// # Errors
/// The first refusal.
pub async fn ask(server: &Server, request: &Request<'_>, mutating: bool) -> Result<Admitted, Status> {
    let mut out = Admitted::default();
    for hook in webhooks::matching(request, &server.view, mutating) {
        let now = out.patched.clone();
        let current = Request { new: now.as_ref().or(request.new), ..*request };
        if !webhooks::conditions_match(&hook, &current, &server.view)? {
            continue;
        }
        let uid = uuid::Uuid::new_v4().to_string();
        let review = webhooks::review(&current, &uid);
        let limit = Duration::from_secs(hook.timeout());
        let answer = match tokio::time::timeout(limit, call(server, &hook, &review)).await {
            Ok(answer) => answer.map_err(|e| e.to_string()),
            Err(_) => Err("context deadline exceeded".to_owned()),
        };
        let allowed = webhooks::verdict(&hook, &current, &uid, answer)?;
        out.warnings.extend(allowed.warnings);
        if mutating && allowed.patched.is_some() {
            out.patched = allowed.patched;
        }
    }
    Ok(out)
}

/// Where a webhook listens.
struct Place {
    /// What is dialled.
    address: String,
    /// What its certificate is for.
    host: String,
    path: String,
}

fn place(server: &Server, config: &Value) -> anyhow::Result<Place> {
    if let Some(text) = config["url"].as_str() {
        let url = url::Url::parse(text)?;
        let host = url.host_str().unwrap_or("").trim_matches(['[', ']']).to_owned();
        let port = url.port().unwrap_or(443);
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        return Ok(Place { address, host, path: url.path().to_owned() });
    }
    let service = &config["service"];
    let text = |f: &str| service[f].as_str().unwrap_or("");
    let (namespace, name, port) = (text("namespace"), text("name"), service["port"].as_i64().unwrap_or(443));
    let object = server.view.get("", "services", namespace, name);
    let object = object.ok_or_else(|| anyhow::anyhow!("service {name:?} not found"))?;
    let ip = object["spec"]["clusterIP"].as_str().filter(|ip| !ip.is_empty() && *ip != "None");
    let ip = ip.ok_or_else(|| anyhow::anyhow!("service {name:?} has no cluster IP"))?;
    let path = if text("path").is_empty() { "/" } else { text("path") };
    Ok(Place {
        address: format!("{ip}:{port}"),
        host: format!("{name}.{namespace}.svc"),
        path: path.to_owned(),
    })
}

fn connector(config: &Value) -> anyhow::Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(bundle) = config["caBundle"].as_str() {
        let pem = base64::engine::general_purpose::STANDARD.decode(bundle)?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            roots.add(certificate?)?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn call(server: &Server, hook: &Hook, review: &Value) -> anyhow::Result<Value> {
    let place = place(server, hook.client_config())?;
    let stream = TcpStream::connect(&place.address).await?;
    let stream =
        connector(hook.client_config())?.connect(ServerName::try_from(place.host.clone())?, stream).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::post(&place.path)
        .header(HOST, &place.host)
        .header(CONTENT_TYPE, "application/json")
        .header(http::header::ACCEPT, "application/json")
        .body(Full::new(Bytes::from(review.to_string())))?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, ANSWER).collect().await.map_err(|e| anyhow::anyhow!("{e}"))?.to_bytes();
    anyhow::ensure!(head.status.is_success(), "the webhook answered {}", head.status);
    Ok(serde_json::from_slice(&body)?)
}
