//! Whether the server that an APIService names could be asked: a condition in the APIService's status.
//!
//! Local versions are available as soon as they are named (`apiserver/core`). For the others the Service, its port and its
//! endpoints are looked for. Requests are not forwarded to them, and the condition says that too.
//! Every server looks after every APIService; writes are compare-and-swap, so two that do the same harm nothing.

use std::sync::Arc;
use std::time::Duration;

use keelson_api::{Resource, Status, definition, resource};
use keelson_apiserver_core::{self as core, Target, View as _, WriteOptions, meta};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::server::Server;
use crate::write::{self, Decided, Next, Place};

/// Who writes the condition.
const MANAGER: &str = "kube-apiserver";
/// Pause after a look: changes come in crowds.
const PAUSE: Duration = Duration::from_millis(100);

/// Looks after APIServices until stopped.
pub async fn run(server: Arc<Server>, stop: CancellationToken) {
    let mut revisions = server.hub.subscribe();
    loop {
        if server.hub.ready() {
            look(&server).await;
        }
        let woken = async {
            tokio::time::sleep(PAUSE).await;
            let _ = revisions.changed().await;
        };
        if stop.run_until_cancelled(woken).await.is_none() {
            return;
        }
    }
}

async fn look(server: &Arc<Server>) {
    let Some(row) = resource::find_preferred("apiregistration.k8s.io", "apiservices") else { return };
    for found in server.view.list(&row.group, &row.plural, None) {
        if !found["spec"]["service"].is_object() || fits(&found, &judge(server, &found)) {
            continue;
        }
        let name = found["metadata"]["name"].as_str().unwrap_or("");
        if let Err(status) = record(server, row, name).await {
            tracing::debug!(name, error = status.message, "an APIService's condition is not written yet");
        }
    }
}

/// Reason and message.
type Finding = (&'static str, String);

/// What keeps the other server from being asked.
fn judge(server: &Server, api_service: &Value) -> Finding {
    let reference = &api_service["spec"]["service"];
    let text = |f: &str| reference[f].as_str().unwrap_or("");
    let (name, namespace) = (text("name"), text("namespace"));
    let Some(service) = server.view.get("", "services", namespace, name) else {
        return ("ServiceNotFound", format!("service/{name} in {namespace:?} is not present"));
    };
    let port = reference["port"].as_i64().unwrap_or(443);
    let listens = service["spec"]["ports"].as_array().into_iter().flatten().any(|p| p["port"] == port);
    if !listens {
        let message = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return ("ServicePortError", message);
    }
    let slices = server.view.list("discovery.k8s.io", "endpointslices", Some(namespace));
    let own = |s: &&Arc<Value>| s["metadata"]["labels"]["kubernetes.io/service-name"] == name;
    let addressed = |s: &Arc<Value>| s["endpoints"].as_array().is_some_and(|e| !e.is_empty());
    let own: Vec<&Arc<Value>> = slices.iter().filter(own).collect();
    if own.is_empty() {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return ("EndpointsNotFound", message);
    }
    if !own.iter().any(|s| addressed(s)) {
        let message = format!("endpointslices for service/{name} in {namespace:?} have no addresses");
        return ("MissingEndpoints", message);
    }
    ("FailedDiscoveryCheck", "this server does not forward requests to other API servers".to_owned())
}

/// Whether the condition says so already.
fn fits(api_service: &Value, (reason, message): &Finding) -> bool {
    let conditions = api_service["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| {
        c["type"] == "Available"
            && c["status"] == "False"
            && c["reason"] == *reason
            && c["message"] == *message.as_str()
    })
}

async fn record(server: &Arc<Server>, row: &'static Resource, name: &str) -> Result<(), Status> {
    let user = Server::own_user();
    let deadline = Instant::now() + Duration::from_secs(10);
    let place = Place { server, resource: row, namespace: "", name, user: &user, deadline };
    let target = Target::object(row, "", name).sub("status");
    let options = WriteOptions { field_manager: MANAGER.to_owned(), ..WriteOptions::default() };
    let step = |current: Option<&Value>, ctx: &core::Context| {
        let nothing = Decided { next: Next::Nothing, answer: () };
        let Some(current) = current.filter(|c| c["spec"]["service"].is_object()) else { return Ok(nothing) };
        let (reason, message) = judge(server, current);
        let mut new = current.clone();
        if !definition::set_condition(&mut new, "Available", false, reason, &message, &meta::time(ctx.now)) {
            return Ok(nothing);
        }
        let outcome = core::update(&target, Some(current), new, &options, ctx)?;
        Ok(Decided { next: write::next(&outcome), answer: () })
    };
    place.change(false, step).await.map(|_| ())
}
