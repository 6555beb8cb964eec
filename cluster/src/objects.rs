//! Objects given as JSON, brought into the cluster through its API.

use anyhow::{Context, Result};
use http::{Method, Request};
use kube::Client;
use serde_json::Value;

/// Plural and whether it is namespaced, of the kinds that are created here.
const KINDS: &[(&str, &str, bool)] = &[
    ("ServiceAccount", "serviceaccounts", true),
    ("ClusterRole", "clusterroles", false),
    ("ClusterRoleBinding", "clusterrolebindings", false),
    ("Service", "services", true),
    ("Deployment", "deployments", true),
];

fn collection(object: &Value) -> Result<String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let (version, kind) = (text("/apiVersion").unwrap_or_default(), text("/kind").unwrap_or_default());
    let (_, plural, namespaced) = KINDS
        .iter()
        .find(|(known, ..)| *known == kind)
        .with_context(|| format!("kind {kind:?} is not known here"))?;
    let root = if version.contains('/') { "apis" } else { "api" };
    Ok(match namespaced {
        true => format!(
            "/{root}/{version}/namespaces/{}/{plural}",
            text("/metadata/namespace").unwrap_or("default")
        ),
        false => format!("/{root}/{version}/{plural}"),
    })
}

async fn send(client: &Client, method: Method, path: &str, body: &Value) -> Result<Value, kube::Error> {
    let request = Request::builder().method(method).uri(path).header("Content-Type", "application/json");
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = request.body(body).map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// POSTs to a path and returns the answer.
///
/// # Errors
/// The API's refusal.
pub async fn post(client: &Client, path: &str, body: &Value) -> Result<Value> {
    send(client, Method::POST, path, body).await.with_context(|| format!("POST {path}"))
}

/// Creates each object that does not exist yet; what exists is left as it is (somebody may have changed it).
///
/// # Errors
/// The first refusal, with the object's name.
pub async fn create_missing(client: &Client, objects: &[Value]) -> Result<usize> {
    let mut created = 0;
    for object in objects {
        let path = collection(object)?;
        match send(client, Method::POST, &path, object).await {
            Ok(_) => created += 1,
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => {
                let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
                let path = format!("{path}/{name}");
                // A Service that is there already is refused for its address before it is found to exist.
                if send(client, Method::GET, &path, &Value::Null).await.is_err() {
                    return Err(error).with_context(|| format!("create {path}"));
                }
            }
        }
    }
    Ok(created)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_object_of_ours_has_a_path() {
        let dns = crate::addons::addons("10.96.0.10".parse().expect("an address"));
        for object in crate::up::demo().iter().chain(&crate::up::console()).chain(&dns) {
            collection(object).expect("a known kind");
        }
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole"});
        assert_eq!(collection(&role).expect("known"), "/apis/rbac.authorization.k8s.io/v1/clusterroles");
        assert!(collection(&json!({"apiVersion": "v1", "kind": "Pod"})).is_err());
    }
}
