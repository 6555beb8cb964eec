//! The connection: kubeconfig rules, one request function, errors in kubectl's words.

use std::fmt;

use anyhow::{Context, Result};
use http::Request;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

use crate::args::Parsed;
use crate::discovery::Kind;

/// What the server asks for when tables are wanted.
pub const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
const JSON: &str = "application/json";

/// The writer's name in managed fields, as kubectl calls itself.
pub const MANAGER: &str = "kubectl";

/// A connected client and the namespace it works in.
pub struct Session {
    pub client: Client,
    pub namespace: String,
}

/// A Status with a failure.
#[derive(Debug)]
pub struct ServerError {
    pub code: u16,
    pub reason: String,
    pub message: String,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason.as_str() {
            "" | "Unknown" => write!(f, "Error from server: {}", self.message),
            "Invalid" => write!(f, "{}", self.message),
            reason => write!(f, "Error from server ({reason}): {}", self.message),
        }
    }
}

impl std::error::Error for ServerError {}

/// Whether the error is the server's 404.
pub fn is_not_found(error: &anyhow::Error) -> bool {
    code(error) == Some(404)
}

/// The server's HTTP status behind an error.
pub fn code(error: &anyhow::Error) -> Option<u16> {
    error.downcast_ref::<ServerError>().map(|error| error.code)
}

/// The error as kubectl prints it.
pub fn sentence(error: &anyhow::Error) -> String {
    match error.downcast_ref::<ServerError>() {
        Some(error) if error.reason == "Invalid" => format!("The request is invalid: {error}"),
        Some(error) => error.to_string(),
        None => format!("error: {error:#}"),
    }
}

impl Session {
    /// Finds the kubeconfig, applies the flags, and builds the client. No request is sent yet.
    pub async fn connect(parsed: &Parsed) -> Result<Session> {
        let options = KubeConfigOptions {
            context: parsed.get("context").map(str::to_string),
            cluster: parsed.get("cluster").map(str::to_string),
            user: parsed.get("user").map(str::to_string),
        };
        let mut config = match parsed.get("kubeconfig") {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("reading {path}: give an existing kubeconfig"))?;
                kube::Config::from_custom_kubeconfig(file, &options).await?
            }
            None => match Kubeconfig::read() {
                Ok(file) => kube::Config::from_custom_kubeconfig(file, &options).await?,
                Err(error) => match (kube::Config::incluster(), parsed.get("server")) {
                    (Ok(config), _) => config,
                    (Err(_), Some(server)) => {
                        kube::Config::new(server.parse().context("--server: an address")?)
                    }
                    (Err(_), None) => {
                        return Err(error)
                            .context("no kubeconfig: set KUBECONFIG, or give --kubeconfig or --server");
                    }
                },
            },
        };
        if let Some(server) = parsed.get("server") {
            config.cluster_url = server.parse().with_context(|| format!("--server={server}: an address"))?;
        }
        if let Some(token) = parsed.get("token") {
            config.auth_info.token = Some(token.to_string().into());
        }
        if parsed.has("insecure-skip-tls-verify") {
            config.accept_invalid_certs = true;
        }
        // Watches and logs may be silent for long.
        config.read_timeout = None;
        let namespace = parsed.get("namespace").map_or(config.default_namespace.clone(), str::to_string);
        Ok(Session { client: Client::try_from(config)?, namespace })
    }

    /// Builds a request; `query` is appended as it is when not empty.
    pub fn request(
        method: &str,
        path: &str,
        query: &[(&str, String)],
        body: Option<(&str, Vec<u8>)>,
        accept: &str,
    ) -> Result<Request<Vec<u8>>> {
        let mut encoded = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in query.iter().filter(|(_, value)| !value.is_empty()) {
            encoded.append_pair(name, value);
        }
        let encoded = encoded.finish();
        let uri = match (encoded.is_empty(), path.contains('?')) {
            (true, _) => path.to_string(),
            (false, true) => format!("{path}&{encoded}"),
            (false, false) => format!("{path}?{encoded}"),
        };
        let mut request = Request::builder().method(method).uri(uri).header("Accept", accept);
        let body = body.map(|(content_type, bytes)| {
            request = std::mem::take(&mut request).header("Content-Type", content_type);
            bytes
        });
        Ok(request.body(body.unwrap_or_default())?)
    }

    /// Sends and reads the whole body as text.
    pub async fn text(&self, request: Request<Vec<u8>>) -> Result<String> {
        self.client.request_text(request).await.map_err(translate)
    }

    /// Sends and reads JSON.
    pub async fn json(&self, request: Request<Vec<u8>>) -> Result<Value> {
        let text = self.text(request).await?;
        serde_json::from_str(&text).with_context(|| {
            format!("the server's answer is no JSON: {:?}", text.chars().take(200).collect::<String>())
        })
    }

    /// GET.
    pub async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value> {
        self.json(Session::request("GET", path, query, None, JSON)?).await
    }

    /// GET as a table.
    pub async fn table(&self, path: &str, query: &[(&str, String)]) -> Result<Value> {
        self.json(Session::request("GET", path, query, None, TABLE)?).await
    }

    /// POST an object.
    pub async fn post(&self, path: &str, query: &[(&str, String)], object: &Value) -> Result<Value> {
        let body = serde_json::to_vec(object)?;
        self.json(Session::request("POST", path, query, Some((JSON, body)), JSON)?).await
    }

    /// PATCH with one of the patch types: `strategic-merge-patch+json`, `merge-patch+json`, `json-patch+json`,
    /// `apply-patch+yaml`.
    pub async fn patch(
        &self,
        path: &str,
        query: &[(&str, String)],
        kind: &str,
        patch: &Value,
    ) -> Result<Value> {
        let body = (format!("application/{kind}"), serde_json::to_vec(patch)?);
        self.json(Session::request("PATCH", path, query, Some((&body.0, body.1)), JSON)?).await
    }

    /// DELETE with options.
    pub async fn delete(&self, path: &str, query: &[(&str, String)], options: &Value) -> Result<Value> {
        let body = serde_json::to_vec(options)?;
        self.json(Session::request("DELETE", path, query, Some((JSON, body)), JSON)?).await
    }

    /// The path of a kind's collection: in the session's namespace, or over all.
    pub fn collection(&self, kind: &Kind, all_namespaces: bool) -> String {
        kind.path((!all_namespaces).then_some(self.namespace.as_str()), None)
    }

    /// The path of one object in the session's namespace.
    pub fn object(&self, kind: &Kind, name: &str) -> String {
        kind.path(Some(&self.namespace), Some(name))
    }
}

/// The server's Status, or what kept us from it.
pub fn translate(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => {
            ServerError { code: status.code, reason: status.reason.clone(), message: status.message.clone() }
                .into()
        }
        kube::Error::Service(error) => anyhow::anyhow!("unable to connect to the server: {}", chain(&*error)),
        kube::Error::HyperError(error) => {
            anyhow::anyhow!("unable to connect to the server: {}", chain(&error))
        }
        other => other.into(),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}
