//! Keeps all watch caches in step with the store: one list of `/registry/` in pages, then one watch of all of it.
//!
//! One stream means one revision for everything: who has waited for a revision sees every resource at it. After a lost
//! stream (leader change) the watch resumes behind the last applied revision; only a compaction in between costs a
//! relist, and that is turned into the changes it amounts to.
//! Order: changes are applied to their caches first, then the revision is published, so no waiter reads too early.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use keelson_api::{RESOURCES, Status};
use keelson_store_proto::client::{Etcd, WatchStream};
use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
use keelson_store_proto::etcdserverpb::{
    PutRequest, RangeRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use keelson_store_proto::mvccpb::event::EventType;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;

/// Where everything of ours is.
pub const ROOT: &str = "/registry/";
/// Unique values (cluster IPs, node ports) that objects hold.
pub const CLAIMS: &str = "/registry/keelson/";
/// Keys fetched at once while listing.
const PAGE: i64 = 500;
/// Written when somebody waits for a revision that none of our keys has.
const MARK: &str = "/registry/keelson-mark";
/// How long an event is expected to be under way.
const UNDER_WAY: Duration = Duration::from_millis(100);
/// How long a silent stream is trusted before it is asked for progress.
const ASK_PROGRESS: Duration = Duration::from_secs(5);
/// A stream that answers nothing for so long is opened anew.
const GIVE_UP: Duration = Duration::from_secs(15);

/// All caches, and the revision they are at.
pub struct Hub {
    etcd: Arc<dyn Etcd>,
    /// By directory: one for every built-in resource, and one for every custom one that was asked for or has objects.
    caches: RwLock<HashMap<String, Arc<Cache>>>,
    /// Keys of `CLAIMS` that are taken.
    claims: RwLock<BTreeSet<String>>,
    revision: watch::Sender<i64>,
    marking: Mutex<()>,
}

/// The key after a prefix: the end of its range.
pub fn range_end(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

/// Whether a key below the root is of a custom resource: groups of those have dots, our own directories have none.
fn is_custom(rest: &str) -> bool {
    let mut parts = rest.split('/');
    let dotted = parts.next().is_some_and(|group| group.contains('.'));
    dotted && parts.next().is_some_and(|plural| !plural.is_empty())
}

enum Ended {
    Stop,
    /// Resume behind this revision.
    Lost(String),
    /// The store forgot the revision to resume from.
    Compacted,
}

impl Hub {
    /// Empty caches for every stored resource.
    pub fn new(etcd: Arc<dyn Etcd>) -> Arc<Hub> {
        let dirs = RESOURCES.iter().filter_map(|r| r.storage.clone());
        let caches = dirs.map(|dir| (dir.clone(), Arc::new(Cache::new(&dir)))).collect::<HashMap<_, _>>();
        let caches = RwLock::new(caches);
        let claims = RwLock::new(BTreeSet::new());
        Arc::new(Hub { etcd, caches, claims, revision: watch::Sender::new(0), marking: Mutex::new(()) })
    }

    /// The cache of a directory (`Resource::storage`).
    pub fn cache(&self, dir: &str) -> Option<Arc<Cache>> {
        if let Some(cache) = self.caches.read().unwrap_or_else(PoisonError::into_inner).get(dir) {
            return Some(cache.clone());
        }
        is_custom(dir.strip_prefix(ROOT)?).then(|| self.custom_cache(dir))
    }

    /// The cache of a custom resource, made when it is not there: then there is no object of it yet.
    fn custom_cache(&self, dir: &str) -> Arc<Cache> {
        let mut caches = self.caches.write().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let cache = Cache::new(dir);
            cache.loaded(self.revision());
            Arc::new(cache)
        };
        caches.entry(dir.to_owned()).or_insert_with(new).clone()
    }

    /// Whether a claim is taken, as far as this server has heard.
    pub fn claimed(&self, key: &str) -> bool {
        self.claims.read().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    fn claim(&self, key: &str, taken: bool) {
        if key.starts_with(CLAIMS) {
            let mut claims = self.claims.write().unwrap_or_else(PoisonError::into_inner);
            let _ = if taken { claims.insert(key.to_owned()) } else { claims.remove(key) };
        }
    }

    /// Every cache, in no order.
    pub fn caches(&self) -> Vec<Arc<Cache>> {
        self.caches.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Whether the first list is done.
    pub fn ready(&self) -> bool {
        *self.revision.borrow() > 0
    }

    /// The revision everything is at.
    pub fn revision(&self) -> i64 {
        *self.revision.borrow()
    }

    /// Wakes with every new revision.
    pub fn subscribe(&self) -> watch::Receiver<i64> {
        self.revision.subscribe()
    }

    /// Waits until the caches are at `revision` or later.
    ///
    /// # Errors
    /// 504 with a hint to retry when that does not happen by the deadline.
    pub async fn wait(&self, revision: i64, deadline: Instant) -> Result<(), Status> {
        let mut seen = self.revision.subscribe();
        let mut marked = false;
        loop {
            if *seen.borrow_and_update() >= revision {
                return Ok(());
            }
            // Usually the event is under way; a revision that touched none of our keys needs one that does.
            let patience = if marked { deadline } else { deadline.min(Instant::now() + UNDER_WAY) };
            match tokio::time::timeout_at(patience, seen.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Status::unavailable("the API server is stopping")),
                Err(_) if Instant::now() >= deadline => return Err(too_large(revision, self.revision())),
                Err(_) => {
                    marked = true;
                    self.mark(deadline).await;
                }
            }
        }
    }

    /// Writes a key of ours: when its event arrives, everything before it has. (etcd's progress notifications say the
    /// same, but before 3.5.8 they could overtake events.) One writer at a time is enough for all who wait.
    async fn mark(&self, deadline: Instant) {
        let Ok(_one) = self.marking.try_lock() else { return };
        let put = PutRequest { key: Bytes::from_static(MARK.as_bytes()), ..PutRequest::default() };
        if let Ok(Err(error)) = tokio::time::timeout_at(deadline, self.etcd.put(put)).await {
            tracing::debug!(error = error.message(), "the mark could not be written");
        }
    }

    /// The cache and the key below it of a store key.
    fn place<'k>(&self, key: &'k str) -> Option<(Arc<Cache>, &'k str)> {
        let rest = key.strip_prefix(ROOT)?;
        let mut end = ROOT.len();
        for part in rest.split('/').take(2) {
            end += part.len();
            let found = self.caches.read().unwrap_or_else(PoisonError::into_inner).get(&key[..end]).cloned();
            if let Some(cache) = found {
                return key.get(end + 1..).map(|below| (cache, below));
            }
            end += 1;
        }
        // `group/plural/…`, and more than that: an object of a custom resource.
        let dir = key.get(..end - 1).filter(|_| is_custom(rest))?;
        key.get(end..).filter(|below| !below.is_empty()).map(|below| (self.custom_cache(dir), below))
    }

    /// Runs until stopped. Returns only then.
    pub async fn run(self: Arc<Hub>, stop: CancellationToken) {
        let mut at = 0;
        while !stop.is_cancelled() {
            if at == 0 {
                match self.list(&stop).await {
                    Ok(revision) => at = revision,
                    Err(error) => {
                        tracing::warn!(error = error.message(), "listing the store failed; trying again");
                        pause(&stop, Duration::from_millis(200)).await;
                        continue;
                    }
                }
            }
            match self.follow(&mut at, &stop).await {
                Ended::Stop => return,
                Ended::Lost(why) => {
                    tracing::info!(revision = at, why, "watch of the store lost; resuming");
                    pause(&stop, Duration::from_millis(50)).await;
                }
                Ended::Compacted => at = 0,
            }
        }
    }

    /// Lists everything at one revision. The first time it fills the caches; later it applies the differences.
    async fn list(&self, stop: &CancellationToken) -> Result<i64, tonic::Status> {
        let first = !self.ready();
        let mut held: HashMap<String, BTreeMap<Box<str>, i64>> = HashMap::new();
        self.claims.write().unwrap_or_else(PoisonError::into_inner).clear();
        if !first {
            held = self.caches().iter().map(|cache| (cache.dir.clone(), cache.revisions())).collect();
        }
        let (mut revision, mut from) = (0, Bytes::from_static(ROOT.as_bytes()));
        loop {
            if stop.is_cancelled() {
                return Err(tonic::Status::cancelled("stopping"));
            }
            let request = RangeRequest {
                key: from.clone(),
                range_end: range_end(ROOT),
                limit: PAGE,
                revision,
                ..RangeRequest::default()
            };
            let page = self.etcd.range(request).await?;
            if revision == 0 {
                revision = page.header.as_ref().map_or(0, |h| h.revision);
            }
            for kv in &page.kvs {
                let Ok(key) = std::str::from_utf8(&kv.key) else { continue };
                self.claim(key, true);
                let Some((cache, below)) = self.place(key) else { continue };
                if first {
                    cache.load(below, &kv.value, kv.mod_revision);
                } else if held.get_mut(cache.dir.as_str()).and_then(|h| h.remove(below))
                    != Some(kv.mod_revision)
                {
                    cache.put(below, &kv.value, kv.mod_revision);
                }
            }
            match page.kvs.last() {
                Some(last) if page.more => {
                    let mut next = last.key.to_vec();
                    next.push(0);
                    from = next.into();
                }
                _ => break,
            }
        }
        self.finish_list(held, revision, first);
        Ok(revision)
    }

    fn finish_list(&self, held: HashMap<String, BTreeMap<Box<str>, i64>>, revision: i64, first: bool) {
        for (dir, gone) in held {
            let Some(cache) = self.cache(&dir) else { continue };
            for key in gone.keys() {
                cache.remove(key, revision);
            }
        }
        for cache in self.caches() {
            if first { cache.loaded(revision) } else { cache.advance(revision) }
        }
        self.publish(revision);
    }

    fn publish(&self, revision: i64) {
        self.revision.send_if_modified(|current| {
            let newer = revision > *current;
            *current = revision.max(*current);
            newer
        });
    }

    /// Follows the watch from behind `at`, moving `at` along.
    async fn follow(&self, at: &mut i64, stop: &CancellationToken) -> Ended {
        let opened = tokio::time::timeout(GIVE_UP, self.open(*at + 1)).await;
        let (requests, mut answers) = match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(status)) => return Ended::Lost(status.message().to_owned()),
            Err(_) => return Ended::Lost("opening a watch took too long".to_owned()),
        };
        let mut heard = Instant::now();
        let mut ask_at = heard + ASK_PROGRESS;
        loop {
            let answer = tokio::select! {
                biased;
                () = stop.cancelled() => return Ended::Stop,
                answer = answers.recv() => answer,
                () = tokio::time::sleep_until(ask_at) => {
                    if heard.elapsed() > GIVE_UP {
                        return Ended::Lost("no answer on the watch stream".to_owned());
                    }
                    if requests.try_send(progress()).is_err() {
                        return Ended::Lost("the watch stream takes no requests".to_owned());
                    }
                    ask_at = Instant::now() + ASK_PROGRESS / 2;
                    continue;
                }
            };
            heard = Instant::now();
            ask_at = heard + ASK_PROGRESS;
            match answer {
                None => return Ended::Lost("the stream ended".to_owned()),
                Some(Err(status)) => return Ended::Lost(status.message().to_owned()),
                Some(Ok(answer)) if answer.canceled => {
                    if answer.compact_revision > 0 {
                        return Ended::Compacted;
                    }
                    return Ended::Lost(answer.cancel_reason);
                }
                Some(Ok(answer)) => self.take(&answer, at),
            }
        }
    }

    async fn open(&self, from: i64) -> Result<WatchStream, tonic::Status> {
        let (requests, answers) = self.etcd.watch().await?;
        let create = WatchCreateRequest {
            key: Bytes::from_static(ROOT.as_bytes()),
            range_end: range_end(ROOT),
            start_revision: from,
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let gone = |_| tonic::Status::unavailable("the watch stream closed at once");
        requests.send(request).await.map_err(gone)?;
        Ok((requests, answers))
    }

    /// Applies one answer: all its events, then their revision. (Fragments are not asked for: a revision comes whole.)
    /// An answer without events only shows that the stream lives.
    fn take(&self, answer: &WatchResponse, at: &mut i64) {
        let mut newest = 0;
        for event in &answer.events {
            let Some(kv) = &event.kv else { continue };
            newest = newest.max(kv.mod_revision);
            if kv.mod_revision <= *at {
                continue;
            }
            let Ok(key) = std::str::from_utf8(&kv.key) else { continue };
            self.claim(key, event.r#type() == EventType::Put);
            let Some((cache, below)) = self.place(key) else { continue };
            if event.r#type() == EventType::Delete {
                cache.remove(below, kv.mod_revision);
            } else {
                cache.put(below, &kv.value, kv.mod_revision);
            }
        }
        if answer.created {
            return;
        }
        if newest > *at {
            *at = newest;
            for cache in self.caches() {
                cache.advance(newest);
            }
            self.publish(newest);
        }
    }
}

fn progress() -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})) }
}

async fn pause(stop: &CancellationToken, time: Duration) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(time) => {}
    }
}

/// 504 of a revision that is not here (yet).
pub fn too_large(wanted: i64, current: i64) -> Status {
    let message = format!("Too large resource version: {wanted}, current: {current}");
    let mut status = Status::timeout(message.clone(), 1);
    status.causes.push(keelson_api::Cause {
        reason: "ResourceVersionTooLarge".to_owned(),
        message: "Too large resource version".to_owned(),
        field: String::new(),
    });
    status
}
