//! Paths of metrics.k8s.io/v1beta1: which nodes and pods are asked for; `metrics_api` finds the figures.

use std::sync::Arc;

use http::HeaderMap;
use keelson_api::{LabelSelector, Status, resource};
use keelson_apiserver_core::View as _;
use serde_json::Value;

use crate::documents::made_list;
use crate::present;
use crate::request::{Accept, ApiPath, Info, Query};
use crate::respond::Response;
use crate::server::Server;

/// Answers a get or list of NodeMetrics or PodMetrics.
///
/// # Errors
/// 404 for what is not there or has no figures yet, 405 for writes.
pub async fn answer(
    server: &Arc<Server>,
    info: &Info,
    path: &ApiPath,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response, Status> {
    if path.version != "v1beta1" || !path.subresource.is_empty() {
        return Err(Status::no_such_path());
    }
    let kind = match path.resource.as_str() {
        "nodes" if path.namespace.is_empty() => "NodeMetrics",
        "pods" => "PodMetrics",
        _ => return Err(Status::no_such_path()),
    };
    if !matches!(info.verb, "get" | "list") {
        return Err(Status::method_not_allowed());
    }
    let labels = LabelSelector::parse(query.get("labelSelector")).map_err(Status::bad_request)?;
    let wanted = |object: &Arc<Value>| {
        labels.matches_object(object) && (path.name.is_empty() || object["metadata"]["name"] == path.name)
    };
    let nodes = server.view.list("", "nodes", None);
    let items = if kind == "NodeMetrics" {
        let nodes: Vec<_> = nodes.into_iter().filter(wanted).collect();
        server.metrics_api.nodes(&nodes).await
    } else {
        let pods = server
            .view
            .list("", "pods", Some(&path.namespace))
            .into_iter()
            .filter(wanted)
            .collect::<Vec<_>>();
        server.metrics_api.pods(&nodes, &pods).await
    };
    if path.name.is_empty() {
        return made_list(headers, &format!("{kind}List"), crate::metrics_api::API_VERSION, items);
    }
    let accept = Accept::negotiate(headers, false)?;
    match items.first() {
        Some(item) => present::value(&accept, 200, item),
        None => {
            let rows = resource::find("", "v1", &path.resource).ok_or_else(Status::no_such_path)?;
            let mut status = Status::not_found(rows, &path.name);
            status.message = format!("{}.metrics.k8s.io \"{}\" not found", path.resource, path.name);
            status.group = "metrics.k8s.io".to_owned();
            Err(status)
        }
    }
}
