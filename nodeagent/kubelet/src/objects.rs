//! ConfigMaps and Secrets of this node's pods, read when needed and kept for a few seconds, and service account tokens,
//! renewed at 80 % of their life.
//!
//! The node may read only objects its pods name, so each is fetched by name; nothing is listed or watched.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{
    BoundObjectReference, TokenRequest as ApiTokenRequest, TokenRequestSpec,
};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use keelson_nodeagent_core::pod::environment::{Reference, SourceKind, Sources};
use keelson_nodeagent_core::pod::naming;
use keelson_nodeagent_core::pod::payload::TokenRequest;

use crate::context::Node;

const FRESH: Duration = Duration::from_secs(5);
const KEPT: usize = 512;

type Data = BTreeMap<String, Vec<u8>>;
/// By namespace and object: when read, and what.
type Cached = BTreeMap<(String, Reference), (Instant, Option<Data>)>;
/// By pod and request: when got, after which time to renew, the token.
type Issued = BTreeMap<(String, TokenRequest), (Instant, Duration, String)>;

/// A small cache of fetched objects.
pub struct Objects {
    client: Option<kube::Client>,
    cache: Mutex<Cached>,
}

impl Objects {
    pub fn new(client: Option<kube::Client>) -> Objects {
        Objects { client, cache: Mutex::new(BTreeMap::new()) }
    }

    /// Fetches all; what the API does not have is left out. `Err` is a failed request.
    pub async fn fetch(&self, namespace: &str, wanted: &[Reference]) -> Result<Sources, String> {
        let mut out = Sources::new();
        for reference in wanted {
            if let Some(data) = self.one(namespace, reference).await? {
                out.insert(reference.clone(), data);
            }
        }
        Ok(out)
    }

    async fn one(&self, namespace: &str, reference: &Reference) -> Result<Option<Data>, String> {
        let key = (namespace.to_string(), reference.clone());
        if let Some(hit) = self.cached(&key) {
            return Ok(hit);
        }
        let Some(client) = self.client.clone() else { return Ok(None) };
        let name = reference.name.as_str();
        let failed = |e: kube::Error| format!("cannot read {:?} {namespace}/{name}: {e}", reference.kind);
        let data = match reference.kind {
            SourceKind::ConfigMap => {
                let api: kube::Api<ConfigMap> = kube::Api::namespaced(client, namespace);
                api.get_opt(name).await.map_err(failed)?.map(|c| {
                    let text = c.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes()));
                    text.chain(c.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0))).collect::<Data>()
                })
            }
            SourceKind::Secret => {
                let api: kube::Api<Secret> = kube::Api::namespaced(client, namespace);
                let found = api.get_opt(name).await.map_err(failed)?;
                found.map(|s| s.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect::<Data>())
            }
        };
        let mut cache = self.cache.lock().unwrap_or_else(|e| e.into_inner());
        cache.retain(|_, (at, _)| at.elapsed() < FRESH);
        if cache.len() < KEPT && data.is_some() {
            cache.insert(key, (Instant::now(), data.clone()));
        }
        Ok(data)
    }

    fn cached(&self, key: &(String, Reference)) -> Option<Option<Data>> {
        let cache = self.cache.lock().unwrap_or_else(|e| e.into_inner());
        cache.get(key).filter(|(at, _)| at.elapsed() < FRESH).map(|(_, data)| data.clone())
    }
}

/// Bound tokens by pod and request.
#[derive(Default)]
pub struct Tokens {
    cache: Mutex<Issued>,
}

impl Tokens {
    /// The token for a projected volume; a new one once 80 % of its life (at most 24 h) is over.
    pub async fn get(&self, node: &Node, pod: &Pod, wanted: &TokenRequest) -> Result<String, String> {
        let key = (naming::uid(pod).to_string(), wanted.clone());
        if let Some(token) = self.fresh(&key) {
            return Ok(token);
        }
        let client = node.config.client.clone().ok_or("a service account token needs an API server")?;
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
        let spec = TokenRequestSpec {
            audiences: (!wanted.audience.is_empty()).then(|| vec![wanted.audience.clone()]),
            expiration_seconds: Some(wanted.expiration_seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(naming::name(pod).into()),
                uid: Some(naming::uid(pod).into()),
            }),
        };
        let request = ApiTokenRequest { spec: Some(spec), ..ApiTokenRequest::default() };
        let api: kube::Api<ServiceAccount> = kube::Api::namespaced(client, naming::namespace(pod));
        let parameters = kube::api::PostParams::default();
        let answer: ApiTokenRequest =
            api.create_subresource("token", account, &parameters, &request)
                .await
                .map_err(|e| format!("cannot get a token of service account \"{account}\": {e}"))?;
        let status = answer.status.ok_or("the API server sent no token")?;
        let (Some(token), Some(expires)) = (status.token, status.expiration_timestamp) else {
            return Err("the API server sent a token without its text or its end".into());
        };
        let life = expires.0.duration_since(jiff::Timestamp::now()).as_secs().max(0) as u64;
        let renew = Duration::from_secs((life * 4 / 5).min(24 * 3600));
        let mut cache = self.cache.lock().unwrap_or_else(|e| e.into_inner());
        cache.insert(key, (Instant::now(), renew, token.clone()));
        Ok(token)
    }

    fn fresh(&self, key: &(String, TokenRequest)) -> Option<String> {
        let cache = self.cache.lock().unwrap_or_else(|e| e.into_inner());
        cache.get(key).filter(|(at, renew, _)| at.elapsed() < *renew).map(|(_, _, token)| token.clone())
    }

    /// Forgets a pod's tokens.
    pub fn forget(&self, uid: &str) {
        self.cache.lock().unwrap_or_else(|e| e.into_inner()).retain(|(pod, _), _| pod != uid);
    }
}
