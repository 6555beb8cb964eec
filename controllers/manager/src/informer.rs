//! Informers: one list-and-watch per resource, into the `Cache`.
//!
//! A watch that ends is resumed from the last version seen; one that is too old (410) starts over
//! with a list. Failures back off with jitter from 0.2 s to 30 s.

use std::any::TypeId;
use std::sync::Arc;
use std::time::Duration;

use futures::AsyncBufReadExt;
use futures::TryStreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_controllers_core::view::AnyObject;
use keelson_controllers_core::{Gvr, Key, Node, Source, View, Watch};
use kube::Client;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Feed, Incoming};
use crate::request::{self, AnswerMeta};

const PAGE: usize = 500;
const METADATA_LIST: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

/// What to list and watch, and how to read it.
pub struct Informer {
    pub feed: Feed,
    resource: Gvr,
    namespace: &'static str,
    field_selector: Option<&'static str>,
    source: Source,
    needed: fn(&View) -> bool,
    decoder: Option<Decoder>,
}

struct Decoder {
    type_id: TypeId,
    decode: fn(&str) -> Result<AnyObject, serde_json::Error>,
    metadata: fn(&AnyObject) -> Option<&ObjectMeta>,
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(default)]
    metadata: AnswerMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct WatchEvent<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Partial {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    code: Option<u16>,
    #[serde(default)]
    message: Option<String>,
}

/// Why a watch ended.
enum End {
    /// The server closed it: resume.
    Closed,
    /// The version is too old: list again.
    Expired,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] kube::Error),
    #[error("reading the watch: {0}")]
    Read(#[from] std::io::Error),
    #[error("an answer that is not the API's JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the watch ended with: {0}")]
    Ended(String),
}

impl Failure {
    fn code(&self) -> u16 {
        match self {
            Failure::Client(kube::Error::Api(status)) => status.code,
            _ => 0,
        }
    }
}

impl Informer {
    pub fn typed(watch: &Watch) -> Informer {
        Informer {
            feed: Feed::Typed(watch.resource.clone()),
            resource: watch.resource.clone(),
            namespace: watch.namespace.unwrap_or(""),
            field_selector: watch.field_selector,
            source: watch.source,
            needed: watch.needed,
            decoder: Some(Decoder { type_id: watch.type_id, decode: watch.decode, metadata: watch.metadata }),
        }
    }

    pub fn metadata(resource: &Gvr) -> Informer {
        Informer {
            feed: Feed::Graph(resource.clone()),
            resource: resource.clone(),
            namespace: "",
            field_selector: None,
            source: Source::Watch,
            needed: |_| true,
            decoder: None,
        }
    }

    /// Runs until cancelled.
    pub async fn run(self, client: Client, cache: Arc<Cache>, stop: CancellationToken) {
        stop.run_until_cancelled(self.follow(&client, &cache)).await;
    }

    async fn follow(&self, client: &Client, cache: &Cache) {
        let mut version: Option<String> = None;
        let mut failures = 0u32;
        loop {
            let result = match &version {
                None if !cache.view(self.needed) => {
                    cache.replace(&self.feed, self.type_id(), Vec::new(), 0);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    Ok(())
                }
                None => self.list(client, cache).await.map(|v| version = Some(v)),
                Some(_) if self.source != Source::Watch => {
                    let Source::Poll(seconds) = self.source else { continue };
                    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
                    version = None;
                    Ok(())
                }
                Some(from) => {
                    let mut at = from.clone();
                    let ended = self.watch(client, cache, &mut at).await;
                    version = Some(at);
                    if let Ok(End::Expired) = ended {
                        version = None;
                    }
                    // A server that closes at once must not be asked in a tight loop.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    ended.map(|_| ())
                }
            };
            match result {
                Ok(()) => failures = 0,
                Err(failure) => {
                    failures = failures.saturating_add(1);
                    if failure.code() == 410 {
                        version = None;
                        continue;
                    }
                    self.bear(&failure, failures, cache);
                    // A resource that is not served (yet) is asked for seldom.
                    let floor = if matches!(failure.code(), 403..=405) { 5.0 } else { 0.0 };
                    let delay = (0.2 * f64::from(1 << failures.min(8))).max(floor).min(30.0);
                    let jitter: f64 = rand::random_range(0.8..1.2);
                    tokio::time::sleep(Duration::from_secs_f64(delay * jitter)).await;
                }
            }
        }
    }

    /// Logs a failure; a resource that does not exist counts as listed and empty.
    fn bear(&self, failure: &Failure, failures: u32, cache: &Cache) {
        let served = !matches!(failure.code(), 404 | 405);
        if served || matches!(self.source, Source::Watch) && failures == 1 {
            tracing::warn!(resource = %self.resource, failures, "list or watch failed, trying again: {failure}");
        }
        if !served {
            cache.replace(&self.feed, self.type_id(), Vec::new(), 0);
        }
    }

    fn type_id(&self) -> Option<TypeId> {
        self.decoder.as_ref().map(|d| d.type_id)
    }

    fn uri(&self, query: &str) -> String {
        let mut uri = format!("{}?{query}", request::path(&self.resource, self.namespace, None, None));
        if let Some(selector) = self.field_selector {
            uri += &format!("&fieldSelector={}", selector.replace('=', "%3D"));
        }
        uri
    }

    fn request(&self, uri: &str, metadata: &'static str) -> http::Request<Vec<u8>> {
        let mut request = request::get(uri);
        if self.decoder.is_none() {
            request.headers_mut().insert("accept", http::HeaderValue::from_static(metadata));
        }
        request
    }

    /// Lists page by page; returns the version to watch from.
    async fn list(&self, client: &Client, cache: &Cache) -> Result<String, Failure> {
        let mut items = Vec::new();
        let mut more = String::new();
        loop {
            let mut query = format!("limit={PAGE}");
            if !more.is_empty() {
                query += &format!("&continue={}", encode(&more));
            }
            let text = client.request_text(self.request(&self.uri(&query), METADATA_LIST)).await?;
            let page: List<'_> = serde_json::from_str(&text)?;
            for item in page.items.unwrap_or_default() {
                items.extend(self.read(item.get(), cache));
            }
            match page.metadata.more.filter(|m| !m.is_empty()) {
                Some(next) => more = next,
                None => {
                    let version = page.metadata.resource_version;
                    cache.replace(&self.feed, self.type_id(), items, number(&version));
                    return Ok(version);
                }
            }
        }
    }

    /// One object; an unreadable one is logged and left out.
    fn read(&self, json: &str, cache: &Cache) -> Option<Incoming> {
        let graph = self.decoder.is_none() || cache.feeds_graph(&self.resource);
        let result = match &self.decoder {
            Some(d) => (d.decode)(json).map(|typed| {
                let meta = (d.metadata)(&typed).cloned().unwrap_or_default();
                (Some(typed), meta)
            }),
            None => serde_json::from_str::<Partial>(json).map(|p| (None, p.metadata)),
        };
        match result {
            Ok((typed, meta)) => {
                let key = key_of(&meta);
                let node = graph.then(|| Node::new(&self.resource, &meta));
                Some(Incoming::Put { typed, node, key })
            }
            Err(error) => {
                tracing::warn!(resource = %self.resource, "an object cannot be read and is left out: {error}");
                None
            }
        }
    }

    async fn watch(&self, client: &Client, cache: &Cache, version: &mut String) -> Result<End, Failure> {
        let seconds: u32 = rand::random_range(240..480);
        let query =
            format!("watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={version}");
        let mut request = self.request(&self.uri(&query), METADATA);
        request.headers_mut().insert("accept-encoding", http::HeaderValue::from_static("identity"));
        let mut lines = client.request_stream(request).await?.lines();
        while let Some(line) = lines.try_next().await? {
            if line.is_empty() {
                continue;
            }
            let event: WatchEvent<'_> = serde_json::from_str(&line)?;
            let json = event.object.get();
            if event.kind == "ERROR" {
                let status: Partial = serde_json::from_str(json)?;
                return match status.code {
                    Some(410) => Ok(End::Expired),
                    code => Err(Failure::Ended(format!("{code:?} {}", status.message.unwrap_or_default()))),
                };
            }
            self.event(event.kind, json, cache, version)?;
        }
        Ok(End::Closed)
    }

    fn event(&self, kind: &str, json: &str, cache: &Cache, version: &mut String) -> Result<(), Failure> {
        let of = |meta: &ObjectMeta| meta.resource_version.clone().unwrap_or_default();
        if kind == "BOOKMARK" {
            let mark: Partial = serde_json::from_str(json)?;
            *version = of(&mark.metadata);
            cache.bookmark(&self.feed, number(version));
            return Ok(());
        }
        if kind == "DELETED" {
            let last: Partial = serde_json::from_str(json)?;
            *version = of(&last.metadata);
            let key = key_of(&last.metadata);
            cache.apply(&self.feed, self.type_id(), Incoming::Remove { key }, number(version));
            return Ok(());
        }
        match self.read(json, cache) {
            Some(incoming) => {
                if let Incoming::Put { typed, node, .. } = &incoming {
                    let meta = typed.as_ref().and_then(|t| (self.decoder.as_ref()?.metadata)(t));
                    let seen = meta.map(of).or(node.as_ref().map(|n| n.resource_version.clone()));
                    *version = seen.unwrap_or_default();
                }
                cache.apply(&self.feed, self.type_id(), incoming, number(version));
            }
            None => {
                let meta: Partial = serde_json::from_str(json)?;
                *version = of(&meta.metadata);
            }
        }
        Ok(())
    }
}

fn key_of(meta: &ObjectMeta) -> Key {
    Key::new(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""))
}

/// Versions are comparable numbers (Kubernetes promises so since 1.35).
pub fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

/// Percent-encodes what a continue token may hold.
fn encode(token: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    token.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}
