//! Get and list.
//!
//! A get reads the store unless any revision will do. A list is answered from the watch cache once that has caught up
//! with the store's revision; later pages, and exact old revisions, are read from the store at that revision.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use keelson_api::{ErrorList, FieldError, FieldSelector, LabelSelector, Path, Resource, Status};
use keelson_store_proto::etcdserverpb::RangeRequest;
use serde_json::{Value, json};

use crate::cache::Cache;
use crate::hub::range_end;
use crate::object::Object;
use crate::present::{self, ListMeta, converted};
use crate::request::{Accept, Query, number, resource_version};
use crate::respond::Response;
use crate::server::Call;
use crate::storage::{is_compacted, store_error};

/// What a list or watch is limited to.
pub struct Selection {
    resource: &'static Resource,
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selection {
    /// Reads the selectors of a query.
    ///
    /// # Errors
    /// 400 in upstream's words.
    pub fn read(resource: &'static Resource, query: &Query) -> Result<Selection, Status> {
        let labels = LabelSelector::parse(query.get("labelSelector")).map_err(Status::bad_request)?;
        let fields =
            FieldSelector::parse(query.get("fieldSelector"), resource).map_err(Status::bad_request)?;
        Ok(Selection { resource, labels, fields })
    }

    /// Also demands a name (watch of one object).
    pub fn named(mut self, name: &str) -> Selection {
        if !name.is_empty() {
            self.fields.terms.push(("metadata.name".to_owned(), name.to_owned(), true));
        }
        self
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    pub fn matches(&self, object: &Object) -> bool {
        if self.is_everything() {
            return true;
        }
        if !self.labels.matches_object(&object.selectable) {
            return false;
        }
        if self.fields.is_everything() {
            return true;
        }
        if converted(self.resource) || self.resource.definition.is_some() {
            return self.fields.matches(&present::tree(self.resource, object));
        }
        self.fields.matches(&object.selectable)
    }

    /// The one key that can match, if the selection names an object.
    fn name(&self) -> Option<&str> {
        self.fields.exact("metadata.name")
    }
}

impl Call<'_> {
    /// The cache of the resource.
    ///
    /// # Errors
    /// 405 for a resource that is not stored.
    pub fn cache(&self) -> Result<Arc<Cache>, Status> {
        let dir = self.resource.storage.as_deref().ok_or_else(Status::method_not_allowed)?;
        self.server.hub.cache(dir).ok_or_else(Status::method_not_allowed)
    }

    /// Key below the resource's directory: of the path's object, or the prefix of its collection.
    pub fn below(&self, name: &str) -> String {
        let namespace = self.namespace();
        if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
    }

    /// Key in the store.
    ///
    /// # Errors
    /// 405 for a resource that is not stored.
    pub fn key(&self, name: &str) -> Result<String, Status> {
        self.resource.key(self.namespace(), name).ok_or_else(Status::method_not_allowed)
    }
}

/// The object of the path from the store, now.
///
/// # Errors
/// 404 when it does not exist.
pub async fn fetch(call: &Call<'_>) -> Result<Object, Status> {
    let name = &call.path.name;
    let (found, _) = call.server.storage.get(&call.key(name)?, call.deadline).await?;
    let kv = found.ok_or_else(|| Status::not_found(call.resource, name))?;
    Object::read(&call.cache()?.resources, &call.below(name), &kv.value, kv.mod_revision).ok_or_else(|| {
        Status::internal(format!(
            "the stored {} {name} is not readable: delete or rewrite it",
            call.resource.kind
        ))
    })
}

/// GET of one object.
///
/// # Errors
/// 404, 406, 504.
pub async fn get(call: &Call<'_>) -> Result<Response, Status> {
    // One object's revision is read where nobody says whose mistake a wrong one is.
    let wanted = resource_version(call.query.get("resourceVersion")).map_err(unplaced)?;
    let Some(revision) = wanted else {
        let object = fetch(call).await?;
        return present::stored(call.resource, call.headers, call.query, &object);
    };
    call.server.hub.wait(revision, call.deadline.min(soon())).await?;
    let found = call.cache()?.get(&call.below(&call.path.name));
    let object = found.ok_or_else(|| Status::not_found(call.resource, &call.path.name))?;
    present::stored(call.resource, call.headers, call.query, &object)
}

/// A wrong revision where upstream does not say that it is the client's mistake.
pub fn unplaced(status: Status) -> Status {
    let message = status.message.replacen("invalid resource version: ", "", 1);
    Status { code: 500, message, bare: true, ..Status::default() }
}

/// How long a read waits for a revision that is not here yet.
pub fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + std::time::Duration::from_secs(3)
}

/// A 422 about the list options, if anything is wrong with them.
///
/// # Errors
/// That one.
pub fn bad_options(errors: ErrorList) -> Result<(), Status> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid_kind("meta.k8s.io", "ListOptions", "", errors))
    }
}

/// Where to read a list.
enum At {
    /// From the cache, once it has this revision.
    Cache(i64),
    /// From the store at this revision (0 = now).
    Store(i64),
}

struct Options {
    at: At,
    limit: usize,
    /// Key below the directory to start from, for a later page.
    start: String,
    selection: Selection,
}

async fn options(call: &Call<'_>) -> Result<Options, Status> {
    let query = call.query;
    let selection = Selection::read(call.resource, query)?;
    number(query, "timeoutSeconds")?;
    let (version, how) = (query.get("resourceVersion"), query.get("resourceVersionMatch"));
    let mut limit = number(query, "limit")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    if version == "0" {
        // Whatever the cache has, whole.
        limit = 0;
    }
    check_match(query, version, how)?;
    let token = query.get("continue");
    if !token.is_empty() {
        if !version.is_empty() && version != "0" {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let (revision, start) = read_token(token, &prefix(call))?;
        return Ok(Options { at: At::Store(revision.max(0)), limit, start, selection });
    }
    let start = String::new();
    let at = match (resource_version(version)?, how) {
        (None, _) => At::Cache(call.server.storage.revision(call.deadline).await?),
        (Some(revision), "Exact") => At::Store(revision),
        (Some(revision), "") if limit > 0 && revision > 0 => At::Store(revision),
        (Some(revision), _) => At::Cache(revision),
    };
    Ok(Options { at, limit, start, selection })
}

fn check_match(query: &Query, version: &str, how: &str) -> Result<(), Status> {
    let path = Path::new("resourceVersionMatch");
    let mut errors = ErrorList::new();
    let mut forbid = |detail: &str| errors.push(FieldError::forbidden(&path, detail));
    if !how.is_empty() && version.is_empty() {
        forbid("resourceVersionMatch is forbidden unless resourceVersion is provided");
    }
    if !how.is_empty() && !query.get("continue").is_empty() {
        forbid("resourceVersionMatch is forbidden when continue is provided");
    }
    if how == "Exact" && version == "0" {
        forbid("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
    }
    if !how.is_empty() && how != "Exact" && how != "NotOlderThan" {
        errors.push(FieldError::not_supported(&path, how, &["Exact", "NotOlderThan", ""]));
    }
    if query.has("sendInitialEvents") {
        let detail = "sendInitialEvents is forbidden for list";
        errors.push(FieldError::forbidden(&Path::new("sendInitialEvents"), detail));
    }
    bad_options(errors)
}

/// Prefix below the directory of the collection of the path.
fn prefix(call: &Call<'_>) -> String {
    let namespace = call.namespace();
    if namespace.is_empty() { String::new() } else { format!("{namespace}/") }
}

/// GET of a collection.
///
/// # Errors
/// 400, 406, 410, 422, 504.
pub async fn list(call: &Call<'_>) -> Result<Response, Status> {
    let accept = Accept::negotiate(call.headers, true)?;
    let (objects, meta) = select(call).await?;
    present::list(call.resource, &accept, call.query, objects, &meta)
}

/// The objects a list or deletecollection speaks of.
///
/// # Errors
/// As `list`.
pub async fn select(call: &Call<'_>) -> Result<(Vec<Arc<Object>>, ListMeta), Status> {
    let options = options(call).await?;
    match options.at {
        At::Cache(revision) => {
            #[cfg(feature = "planted")]
            if keelson_plant::is(22) {
                return from_cache(call, &options);
            }
            call.server.hub.wait(revision, call.deadline.min(soon())).await?;
            from_cache(call, &options)
        }
        At::Store(revision) => from_store(call, &options, revision).await,
    }
}

fn from_cache(call: &Call<'_>, options: &Options) -> Result<(Vec<Arc<Object>>, ListMeta), Status> {
    let cache = call.cache()?;
    let prefix = prefix(call);
    let selection = &options.selection;
    // The revision is the hub's: this directory may not have changed for long.
    let hub = call.server.hub.revision();
    let (mut objects, revision) = match selection.name() {
        Some(name) if !prefix.is_empty() || !call.resource.namespaced => {
            (cache.get(&format!("{prefix}{name}")).into_iter().collect(), cache.revision())
        }
        _ => cache.list(&prefix, ""),
    };
    let mut meta = ListMeta { revision: revision.max(hub), ..ListMeta::default() };
    objects.retain(|object| selection.matches(object));
    if options.limit > 0 && objects.len() > options.limit {
        if selection.is_everything() {
            meta.remaining = Some(objects.len() - options.limit);
        }
        objects.truncate(options.limit);
        meta.continue_token = token(meta.revision, objects.last(), &prefix);
    }
    Ok((objects, meta))
}

/// What a page of the store is followed by.
fn token(revision: i64, last: Option<&Arc<Object>>, prefix: &str) -> String {
    let key = last.map_or("", |o| o.key.strip_prefix(prefix).unwrap_or(&o.key));
    BASE64.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": format!("{key}\0")}).to_string())
}

/// Revision (-1 = whatever is current) and the key below the directory to go on from.
fn read_token(text: &str, prefix: &str) -> Result<(i64, String), Status> {
    let bad = |why: String| {
        Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
    };
    let bytes = BASE64.decode(text.trim_end_matches('=')).map_err(|e| bad(e.to_string()))?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|_| {
        let first = bytes.first().map_or(' ', |b| char::from(*b));
        bad(format!("invalid character '{first}' looking for beginning of value"))
    })?;
    if value["v"] != "meta.k8s.io/v1" {
        let version = value["v"].as_str().unwrap_or("");
        return Err(bad(format!("server does not recognize this encoded version {version}")));
    }
    let (Some(revision), Some(start)) = (value["rv"].as_i64(), value["start"].as_str()) else {
        return Err(bad("server should generate valid continue tokens".to_owned()));
    };
    if start.split('/').any(|part| part == ".." || part == ".") || start.starts_with('/') {
        return Err(bad(start.to_owned()));
    }
    Ok((revision, format!("{prefix}{start}")))
}

const EXPIRED_LIST: &str = "The resourceVersion for the provided list is too old.";
const EXPIRED_CONTINUE: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

async fn from_store(
    call: &Call<'_>,
    options: &Options,
    revision: i64,
) -> Result<(Vec<Arc<Object>>, ListMeta), Status> {
    let dir = call.resource.prefix("").ok_or_else(Status::method_not_allowed)?;
    let prefix = prefix(call);
    let end = range_end(&format!("{dir}{prefix}"));
    let mut from =
        if options.start.is_empty() { format!("{dir}{prefix}") } else { format!("{dir}{}", options.start) };
    let resources = call.cache()?.resources.clone();
    let mut meta = ListMeta { revision, ..ListMeta::default() };
    let mut objects: Vec<Arc<Object>> = vec![];
    loop {
        let wanted = if options.limit == 0 { 500 } else { options.limit + 1 - objects.len() };
        let request = RangeRequest {
            key: Bytes::copy_from_slice(from.as_bytes()),
            range_end: end.clone(),
            limit: i64::try_from(wanted).unwrap_or(500),
            revision: meta.revision,
            ..RangeRequest::default()
        };
        let page = match call.server.storage.range(request, call.deadline).await {
            Err(error) if is_compacted(&error) => return Err(expired(call, options, &prefix)),
            Err(error) if error.message().contains("future revision") => {
                return Err(crate::hub::too_large(revision, call.server.hub.revision()));
            }
            other => other.map_err(|e| store_error(&e))?,
        };
        if meta.revision == 0 {
            meta.revision = page.revision;
        }
        let taken = page.kvs.len();
        for kv in &page.kvs {
            let Ok(key) = std::str::from_utf8(&kv.key) else { continue };
            let below = key.strip_prefix(&dir).unwrap_or(key);
            let object = Object::read(&resources, below, &kv.value, kv.mod_revision);
            objects.extend(object.filter(|o| options.selection.matches(o)).map(Arc::new));
        }
        if options.limit > 0 && objects.len() > options.limit {
            objects.truncate(options.limit);
            meta.continue_token = token(meta.revision, objects.last(), &prefix);
            if options.selection.is_everything() {
                let left = usize::try_from(page.count).unwrap_or(0).saturating_sub(taken.saturating_sub(1));
                meta.remaining = Some(left);
            }
            return Ok((objects, meta));
        }
        match page.kvs.last() {
            Some(last) if page.more => from = format!("{}\0", String::from_utf8_lossy(&last.key)),
            _ => return Ok((objects, meta)),
        }
    }
}

fn expired(call: &Call<'_>, options: &Options, prefix: &str) -> Status {
    if call.query.get("continue").is_empty() {
        return Status::expired(EXPIRED_LIST);
    }
    let start = options.start.strip_prefix(prefix).unwrap_or(&options.start);
    let token = BASE64.encode(json!({"v": "meta.k8s.io/v1", "rv": -1, "start": start}).to_string());
    Status { continue_token: token, ..Status::expired(EXPIRED_CONTINUE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens_round_trip_and_cannot_leave_their_collection() {
        let object = Arc::new(
            Object::read(&[], "d/x", b"{\"kind\":\"A\",\"apiVersion\":\"v1\",\"metadata\":{}}", 1)
                .expect("object"),
        );
        let text = token(7, Some(&object), "d/");
        assert_eq!(read_token(&text, "d/"), Ok((7, "d/x\0".to_owned())));
        let evil = BASE64.encode(json!({"v":"meta.k8s.io/v1","rv":7,"start":"../secrets/"}).to_string());
        assert_eq!(read_token(&evil, "d/").map_err(|s| s.code), Err(400));
        assert_eq!(read_token("zz", "d/").map_err(|s| s.code), Err(400));
    }
}
