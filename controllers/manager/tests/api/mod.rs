//! A `World` behind the Kubernetes API, in process: what the runner's tests talk to.
//!
//! Lists, watches (from any version), gets, creates, merge patches, puts, deletes, discovery.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use keelson_controllers_core::plan::{Action, Precondition, Propagation};
use keelson_controllers_core::world::{Refused, World};
use keelson_controllers_core::{Gvr, Key, Target};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Group, version, resource, kind, namespaced: what discovery tells.
const KINDS: [(&str, &str, &str, &str, bool); 17] = [
    ("", "v1", "pods", "Pod", true),
    ("", "v1", "services", "Service", true),
    ("", "v1", "endpoints", "Endpoints", true),
    ("", "v1", "configmaps", "ConfigMap", true),
    ("", "v1", "events", "Event", true),
    ("", "v1", "serviceaccounts", "ServiceAccount", true),
    ("", "v1", "namespaces", "Namespace", false),
    ("", "v1", "nodes", "Node", false),
    ("", "v1", "persistentvolumes", "PersistentVolume", false),
    ("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", true),
    ("apps", "v1", "deployments", "Deployment", true),
    ("apps", "v1", "replicasets", "ReplicaSet", true),
    ("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", true),
    ("coordination.k8s.io", "v1", "leases", "Lease", true),
    ("storage.k8s.io", "v1", "storageclasses", "StorageClass", false),
    ("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", true),
    ("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", true),
];

#[derive(Clone)]
pub struct Api {
    world: Arc<Mutex<World>>,
    version: Arc<watch::Sender<usize>>,
    /// Requests answered so far, by method and path.
    pub log: Arc<Mutex<Vec<String>>>,
    /// While set, writes are answered 503.
    pub broken: Arc<std::sync::atomic::AtomicBool>,
}

impl Default for Api {
    fn default() -> Self {
        let version = Arc::new(watch::Sender::new(0));
        Api { world: Arc::default(), version, log: Arc::default(), broken: Arc::default() }
    }
}

impl Api {
    pub fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    pub fn world<T>(&self, f: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.world.lock().unwrap();
        world.now = jiff::Timestamp::now();
        let result = f(&mut world);
        self.version.send_replace(world.version());
        result
    }

    /// Waits until `f` holds, looking after every write; fails after 30 s.
    pub async fn until(&self, what: &str, f: impl Fn(&World) -> bool) {
        let mut changes = self.version.subscribe();
        let reached = async {
            while !f(&self.world.lock().unwrap()) {
                changes.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(30), reached).await;
        assert!(waited.is_ok(), "not within 30 s: {what}\n{:#?}", self.log.lock().unwrap());
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or("").to_owned();
        self.log.lock().unwrap().push(format!("{} {path}?{query}", parts.method));
        if let Some(answer) = discovery(&path) {
            return answer;
        }
        if parts.method != Method::GET && self.broken.load(std::sync::atomic::Ordering::Relaxed) {
            return status(503, "broken on purpose");
        }
        let Some((gvr, key, sub)) = route(&path) else { return status(404, "no such path") };
        if query.contains("watch=1") {
            return self.watch(gvr, key.namespace, &query);
        }
        let name = key.name.clone();
        match (parts.method, name.is_empty()) {
            (Method::GET, true) => self.list(&gvr, &key.namespace, &query),
            (Method::GET, false) => match self.world(|w| w.value(&gvr, &key)) {
                Some(value) => reply(200, &value),
                None => status(404, "not found"),
            },
            (Method::POST, true) => self.create(gvr, &key.namespace, body),
            (Method::PATCH, false) => self.patch(gvr, key, body),
            (Method::PUT, false) => self.put(gvr, key, sub.as_deref(), body),
            (Method::DELETE, _) => self.delete(gvr, key, &body),
            _ => status(405, "not here"),
        }
    }

    fn list(&self, gvr: &Gvr, namespace: &str, query: &str) -> Answer {
        let only = query.split('&').find_map(|q| q.strip_prefix("fieldSelector=metadata.name%3D"));
        self.world(|w| {
            let mut items = w.values(gvr, namespace);
            items.retain(|i| only.is_none_or(|name| i["metadata"]["name"] == name));
            let items: Vec<&Value> = items.iter().map(|i| i.as_ref()).collect();
            reply(200, &json!({ "kind": "List", "metadata": { "resourceVersion": w.version().to_string() }, "items": items }))
        })
    }

    fn create(&self, gvr: Gvr, namespace: &str, object: Value) -> Answer {
        self.world(|w| {
            let create =
                Action::Create { resource: gvr, namespace: namespace.to_owned(), object, announce: None };
            match w.act(&create) {
                Ok(()) => reply(201, &w.change(w.version()).and_then(|c| c.2).unwrap_or_default()),
                Err(refused) => refusal(&refused),
            }
        })
    }

    fn patch(&self, gvr: Gvr, key: Key, mut patch: Value) -> Answer {
        let take = |patch: &mut Value, field: &str| {
            let meta = patch.get_mut("metadata").and_then(Value::as_object_mut);
            meta.and_then(|m| m.remove(field)).and_then(|v| v.as_str().map(str::to_owned))
        };
        let precondition = Precondition {
            uid: take(&mut patch, "uid"),
            resource_version: take(&mut patch, "resourceVersion"),
        };
        let target = Target { resource: gvr.clone(), key: key.clone(), subresource: None };
        self.world(|w| match w.act(&Action::Patch { target, patch, precondition }) {
            Ok(()) => reply(200, &w.value(&gvr, &key).unwrap_or_default()),
            Err(refused) => refusal(&refused),
        })
    }

    fn put(&self, gvr: Gvr, key: Key, sub: Option<&str>, object: Value) -> Answer {
        self.world(|w| {
            let done = match sub {
                Some("finalize") if object["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty) => {
                    let target = Target { resource: gvr.clone(), key: key.clone(), subresource: None };
                    let patch = json!({ "metadata": { "finalizers": null } });
                    w.act(&Action::Patch { target, patch, precondition: Precondition::default() })
                }
                _ => w.replace(&gvr, &key, object.clone()),
            };
            match done {
                Ok(()) => reply(200, &w.value(&gvr, &key).map_or(object, |v| (*v).clone())),
                Err(refused) => refusal(&refused),
            }
        })
    }

    fn delete(&self, gvr: Gvr, key: Key, options: &Value) -> Answer {
        let text = |field: &str| options["preconditions"][field].as_str().map(str::to_owned);
        let action = match key.name.is_empty() {
            true => Action::DeleteAll { resource: gvr.clone(), namespace: key.namespace.clone() },
            false => Action::Delete {
                target: Target { resource: gvr.clone(), key: key.clone(), subresource: None },
                precondition: Precondition { uid: text("uid"), resource_version: text("resourceVersion") },
                grace: options["gracePeriodSeconds"].as_i64(),
                propagation: Some(Propagation::Background),
            },
        };
        self.world(|w| match w.act(&action) {
            Ok(()) => reply(200, &w.value(&gvr, &key).map_or(json!({ "kind": "Status" }), |v| (*v).clone())),
            Err(refused) => refusal(&refused),
        })
    }

    fn watch(&self, gvr: Gvr, namespace: String, query: &str) -> Answer {
        let number = |q: &str| q.strip_prefix("resourceVersion=").and_then(|v| v.parse::<usize>().ok());
        let mut at = query.split('&').find_map(number).unwrap_or(0);
        let only = query
            .split('&')
            .find_map(|q| q.strip_prefix("fieldSelector=metadata.name%3D"))
            .map(str::to_owned);
        let (send, receive) = mpsc::channel::<Bytes>(64);
        let (api, mut changes) = (self.clone(), self.version.subscribe());
        tokio::spawn(async move {
            loop {
                let mut lines = Vec::new();
                api.world(|w| {
                    while at < w.version() {
                        at += 1;
                        lines.extend(event(w, at, &gvr, &namespace, only.as_deref()));
                    }
                });
                for line in lines {
                    if send.send(line.into()).await.is_err() {
                        return;
                    }
                }
                changes.mark_unchanged();
                if api.world.lock().unwrap().version() == at && changes.changed().await.is_err() {
                    return;
                }
            }
        });
        let frames = tokio_stream(receive).map(|b| Ok::<_, Infallible>(Frame::data(b)));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

fn tokio_stream(receive: mpsc::Receiver<Bytes>) -> impl futures::Stream<Item = Bytes> {
    futures::stream::unfold(receive, |mut r| async move { r.recv().await.map(|b| (b, r)) })
}

/// The watch line of write `version`, a bookmark if it is about something else.
fn event(world: &World, version: usize, gvr: &Gvr, namespace: &str, only: Option<&str>) -> Option<String> {
    let (changed, old, new) = world.change(version)?;
    let last = new.clone().or(old.clone())?;
    let here = changed == *gvr
        && (namespace.is_empty() || last["metadata"]["namespace"] == namespace)
        && only.is_none_or(|name| last["metadata"]["name"] == name);
    let mut object = if here { (*last).clone() } else { json!({ "metadata": {} }) };
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    let kind = match (here, old, new) {
        (false, ..) => "BOOKMARK",
        (_, None, _) => "ADDED",
        (_, _, None) => "DELETED",
        _ => "MODIFIED",
    };
    Some(format!("{}\n", json!({ "type": kind, "object": object })))
}

fn discovery(path: &str) -> Option<Answer> {
    let of = |group: &str| {
        let kinds = KINDS.iter().filter(|k| k.0 == group);
        let list: Vec<Value> = kinds
            .map(|k| {
                json!({ "name": k.2, "kind": k.3, "namespaced": k.4,
                "verbs": ["get", "list", "watch", "create", "delete", "deletecollection"] })
            })
            .collect();
        (!list.is_empty()).then(|| reply(200, &json!({ "resources": list })))
    };
    if path == "/api/v1" {
        return of("");
    }
    if path == "/apis" {
        let mut groups: Vec<Value> = KINDS
            .iter()
            .filter(|k| !k.0.is_empty())
            .map(|k| {
                let version = json!({ "groupVersion": format!("{}/{}", k.0, k.1) });
                json!({ "versions": [version], "preferredVersion": version })
            })
            .collect();
        groups.dedup();
        return Some(reply(200, &json!({ "groups": groups })));
    }
    let mut parts = path.strip_prefix("/apis/")?.split('/');
    let (group, _version) = (parts.next()?, parts.next()?);
    if parts.next().is_none() { of(group) } else { None }
}

/// Resource, key (with an empty name for collections) and subresource of a path.
fn route(path: &str) -> Option<(Gvr, Key, Option<String>)> {
    let mut parts = path.trim_start_matches('/').split('/');
    let group = match parts.next()? {
        "api" => "",
        _ => parts.next()?,
    };
    let _version = parts.next()?;
    let rest: Vec<&str> = parts.collect();
    let (namespace, rest) = match rest.as_slice() {
        ["namespaces", namespace, rest @ ..]
            if !rest.is_empty() && rest[0] != "finalize" && rest[0] != "status" =>
        {
            (*namespace, rest)
        }
        other => ("", other),
    };
    let kind = KINDS.iter().find(|k| k.0 == group && Some(&k.2) == rest.first())?;
    let gvr = Gvr::new(kind.0, kind.1, kind.2);
    let name = rest.get(1).copied().unwrap_or("");
    Some((gvr, Key::new(namespace, name), rest.get(2).map(|s| s.to_string())))
}

fn reply(code: u16, value: &Value) -> Answer {
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}

fn status(code: u16, message: &str) -> Answer {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "",
    };
    let value = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code });
    reply(code, &value)
}

fn refusal(refused: &Refused) -> Answer {
    match refused {
        Refused::NotFound => status(404, "not found"),
        Refused::Conflict => status(409, "conflict"),
        Refused::AlreadyExists => status(409, "already exists"),
        Refused::NotAsExpected => status(500, "an expectation is not a request"),
    }
}
