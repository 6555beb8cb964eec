//! Requests of the Kubernetes API, made by hand over `kube::Client`: paths, bodies, answers.
//!
//! By hand, because plans speak of resources by name and of objects as JSON.

use http::{Method, Request};
use keelson_controllers_core::plan::{Action, Expectation};
use keelson_controllers_core::{Gvr, Method as SubmitMethod, Precondition, Target};
use serde::Deserialize;
use serde_json::{Value, json};

pub const FIELD_MANAGER: &str = "kube-controller-manager";

/// Why a request did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The object moved on, or is already (not) there: look again.
    #[error("{0}")]
    Stale(String),
    /// The server says no.
    #[error("{0}")]
    Denied(String),
    /// No answer, or none that can be read.
    #[error("{0}")]
    Lost(String),
    #[error("no longer the leader")]
    NotLeading,
}

impl Refusal {
    pub fn of(what: &str, error: kube::Error) -> Refusal {
        match error {
            kube::Error::Api(status) => {
                let text = format!("{what}: {}", status.message);
                let causes = status.details.as_ref().map(|d| d.causes.as_slice()).unwrap_or_default();
                // What lives in a namespace that is going away needs no replacement, and no complaint.
                if causes.iter().any(|c| c.reason == "NamespaceTerminating") {
                    return Refusal::Stale(text);
                }
                match status.code {
                    404 | 409 | 410 => Refusal::Stale(text),
                    429 | 500 | 502..=504 => Refusal::Lost(text),
                    _ => Refusal::Denied(text),
                }
            }
            other => Refusal::Lost(format!("{what}: {other}")),
        }
    }
}

/// What an answer tells of the object.
#[derive(Debug, Default, Deserialize)]
pub struct Answer {
    #[serde(default)]
    pub metadata: AnswerMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AnswerMeta {
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub deletion_timestamp: Option<String>,
    #[serde(rename = "continue")]
    pub more: Option<String>,
}

/// `/api/v1/namespaces/n/pods/p/status` and the like.
pub fn path(resource: &Gvr, namespace: &str, name: Option<&str>, subresource: Option<&str>) -> String {
    let mut path = match resource.group.is_empty() {
        true => format!("/api/{}", resource.version),
        false => format!("/apis/{}/{}", resource.group, resource.version),
    };
    if !namespace.is_empty() {
        path += &format!("/namespaces/{namespace}");
    }
    path += &format!("/{}", resource.resource);
    for part in [name, subresource].into_iter().flatten() {
        path += &format!("/{part}");
    }
    path
}

fn target_path(target: &Target) -> String {
    path(&target.resource, &target.key.namespace, Some(&target.key.name), target.subresource)
}

/// A request with a JSON body.
pub fn build(method: Method, uri: &str, content_type: &str, body: &Value) -> Request<Vec<u8>> {
    let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap_or_default() };
    Request::builder()
        .method(method)
        .uri(uri)
        .header("content-type", content_type)
        .header("accept", "application/json")
        .body(bytes)
        .expect("paths are made of names that are valid in a URI")
}

pub fn get(uri: &str) -> Request<Vec<u8>> {
    build(Method::GET, uri, "application/json", &Value::Null)
}

/// The request of an action, and a few words for logs and errors. Events go through the recorder.
pub fn of(action: &Action) -> Option<(Request<Vec<u8>>, String)> {
    const JSON: &str = "application/json";
    Some(match action {
        Action::Create { resource, namespace, object, .. } => {
            let uri = format!("{}?fieldManager={FIELD_MANAGER}", path(resource, namespace, None, None));
            (build(Method::POST, &uri, JSON, object), format!("create {resource} in {namespace:?}"))
        }
        Action::Patch { target, patch, precondition } => {
            let uri = format!("{}?fieldManager={FIELD_MANAGER}", target_path(target));
            let body = guarded(patch.clone(), precondition);
            (build(Method::PATCH, &uri, "application/merge-patch+json", &body), words("patch", target))
        }
        Action::Submit { target, method, object } => {
            let method = match method {
                SubmitMethod::Post => Method::POST,
                SubmitMethod::Put => Method::PUT,
            };
            let uri = format!("{}?fieldManager={FIELD_MANAGER}", target_path(target));
            (build(method, &uri, JSON, object), words("submit", target))
        }
        Action::Delete { target, precondition, grace, propagation } => {
            let mut options = json!({ "apiVersion": "v1", "kind": "DeleteOptions" });
            let mut conditions = serde_json::Map::new();
            conditions.extend(precondition.uid.as_ref().map(|u| ("uid".to_owned(), json!(u))));
            conditions.extend(
                precondition.resource_version.as_ref().map(|r| ("resourceVersion".to_owned(), json!(r))),
            );
            options["preconditions"] = Value::Object(conditions);
            if let Some(grace) = grace {
                options["gracePeriodSeconds"] = json!(grace);
            }
            if let Some(propagation) = propagation {
                options["propagationPolicy"] = json!(propagation.as_str());
            }
            (build(Method::DELETE, &target_path(target), JSON, &options), words("delete", target))
        }
        Action::DeleteAll { resource, namespace } => {
            let options =
                json!({ "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background" });
            let uri = path(resource, namespace, None, None);
            (build(Method::DELETE, &uri, JSON, &options), format!("delete all {resource} in {namespace}"))
        }
        Action::Expect(Expectation::Empty { resource, namespace }) => {
            let uri = format!("{}?limit=1", path(resource, namespace, None, None));
            (get(&uri), format!("list {resource} in {namespace}"))
        }
        Action::Expect(Expectation::Absent { target, .. } | Expectation::Live { target, .. }) => {
            (get(&target_path(target)), words("get", target))
        }
        Action::Record(_) => return None,
    })
}

fn words(verb: &str, target: &Target) -> String {
    let sub = target.subresource.map(|s| format!("/{s}")).unwrap_or_default();
    format!("{verb} {}{sub} {}", target.resource, target.key)
}

/// A merge patch that the server refuses unless the object is the one meant.
fn guarded(mut patch: Value, precondition: &Precondition) -> Value {
    if !patch["metadata"].is_object() {
        patch["metadata"] = json!({});
    }
    if let Some(uid) = &precondition.uid {
        patch["metadata"]["uid"] = json!(uid);
    }
    if let Some(version) = &precondition.resource_version {
        patch["metadata"]["resourceVersion"] = json!(version);
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let pods = Gvr::new("", "v1", "pods");
        assert_eq!(path(&pods, "n", Some("p"), Some("status")), "/api/v1/namespaces/n/pods/p/status");
        assert_eq!(path(&pods, "", None, None), "/api/v1/pods");
        let sets = Gvr::new("apps", "v1", "replicasets");
        assert_eq!(path(&sets, "n", None, None), "/apis/apps/v1/namespaces/n/replicasets");
    }

    #[test]
    fn a_patch_carries_its_precondition() {
        let precondition = Precondition { uid: Some("u".into()), resource_version: Some("7".into()) };
        let patch = guarded(json!({ "spec": { "replicas": 1 } }), &precondition);
        assert_eq!(
            patch,
            json!({ "spec": { "replicas": 1 }, "metadata": { "uid": "u", "resourceVersion": "7" } })
        );
    }
}
