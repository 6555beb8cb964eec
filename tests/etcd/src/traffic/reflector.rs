//! A reflector: lists, watches, resumes, and writes down what it saw.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use keelson_store_proto::client::{Etcd, Remote, WatchStream};
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
use keelson_store_proto::mvccpb;
use rand::Rng;
use rand::rngs::StdRng;
use tonic::Status;

use super::check::{Entry, List, Log, Seen, digest};
use super::{Shared, within};
use crate::DEADLINE;

/// Between two attempts to open a stream.
const RETRY: Duration = Duration::from_millis(100);

/// A client that lists and watches one prefix.
pub(super) struct Reflector {
    log: Log,
    remote: Remote,
    shared: Arc<Shared>,
    stream: Option<WatchStream>,
    /// Everything up to here was shown.
    shown: i64,
    /// It must list before it can watch: its start is unknown or compacted.
    behind: bool,
}

fn range_end(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    end.into()
}

fn first_key(prefix: &str) -> Bytes {
    if prefix.is_empty() { Bytes::from_static(b"\0") } else { Bytes::copy_from_slice(prefix.as_bytes()) }
}

impl Reflector {
    pub(super) fn new(name: String, prefix: String, remote: Remote, shared: Arc<Shared>) -> Reflector {
        let log = Log { name, prefix, entries: Vec::new() };
        Reflector { log, remote, shared, stream: None, shown: 0, behind: true }
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Lists and opens the first stream.
    pub(super) async fn begin(&mut self) {
        let start = Instant::now();
        while self.behind {
            assert!(start.elapsed() < DEADLINE, "{} finds no beginning", self.log.name);
            self.relist().await;
        }
        self.reopen().await;
    }

    /// Lists its prefix at one revision, in pages, and writes down what was there.
    pub(super) async fn list(&mut self, rng: &mut StdRng) {
        let limit = [0, 5, 20][rng.random_range(0..3)];
        let _failed = self.pages(limit).await;
    }

    async fn pages(&self, limit: i64) -> Result<i64, Status> {
        let floor = self.shared.acknowledged.load(Ordering::SeqCst);
        let mut content: Vec<(String, i64)> = Vec::new();
        let mut request = pb::RangeRequest {
            key: first_key(&self.log.prefix),
            range_end: range_end(&self.log.prefix),
            limit,
            ..Default::default()
        };
        loop {
            self.shared.reads.fetch_add(1, Ordering::Relaxed);
            let page = within(self.remote.range(request.clone())).await.inspect_err(|_| {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
            })?;
            if request.revision == 0 {
                request.revision = page.header.map_or(0, |header| header.revision);
            }
            let Some(last) = page.kvs.last() else { break };
            request.key = [&last.key[..], b"\0"].concat().into();
            let line =
                |kv: &mvccpb::KeyValue| (String::from_utf8_lossy(&kv.key).into_owned(), kv.mod_revision);
            content.extend(page.kvs.iter().map(line));
            if !page.more {
                break;
            }
        }
        let (prefix, revision) = (self.log.prefix.clone(), request.revision);
        let list = List { prefix, revision, floor, content: digest(&content) };
        self.shared.lists.lock().expect("not poisoned").push(list);
        Ok(revision)
    }

    /// What a client does that has no place to watch from.
    async fn relist(&mut self) {
        match self.pages(500).await {
            Ok(revision) => {
                self.log.entries.push(Entry::Listed(revision));
                (self.shown, self.behind) = (revision, false);
            }
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }

    /// Drops its stream and goes on with a new one from where it was.
    pub(super) async fn reopen(&mut self) {
        if self.behind {
            self.relist().await;
            if self.behind {
                return;
            }
        } else if self.stream.is_some() {
            self.log.entries.push(Entry::Resumed);
        }
        self.shared.reads.fetch_add(1, Ordering::Relaxed);
        let create = RequestUnion::CreateRequest(pb::WatchCreateRequest {
            key: first_key(&self.log.prefix),
            range_end: range_end(&self.log.prefix),
            start_revision: self.shown + 1,
            progress_notify: true,
            prev_kv: true,
            ..Default::default()
        });
        self.stream = self.remote.watch().await.ok();
        self.send(create).await;
    }

    async fn send(&mut self, request: RequestUnion) {
        let request = pb::WatchRequest { request_union: Some(request) };
        if let Some((requests, _)) = &self.stream
            && requests.send(request).await.is_err()
        {
            self.broken();
        }
    }

    fn broken(&mut self) {
        self.stream = None;
        self.log.entries.push(Entry::Resumed);
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks for a bookmark.
    pub(super) async fn ask_progress(&mut self) {
        self.shared.reads.fetch_add(1, Ordering::Relaxed);
        self.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    }

    /// Takes in what comes for a while.
    pub(super) async fn take_in(&mut self, pause: Duration) {
        let until = tokio::time::Instant::now() + pause;
        loop {
            let Some((_, answers)) = &mut self.stream else {
                tokio::time::sleep_until(until).await;
                return self.reopen().await;
            };
            match tokio::time::timeout_at(until, answers.recv()).await {
                Err(_) => return,
                Ok(Some(Ok(response))) => self.answer(response),
                Ok(Some(Err(_)) | None) => {
                    self.broken();
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    fn answer(&mut self, response: pb::WatchResponse) {
        if response.canceled {
            // Only compaction ends a watch for good; what else ends it (a lost leader) is resumed.
            self.behind = response.compact_revision > 0;
            return self.broken();
        }
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if response.created {
            return;
        }
        if response.events.is_empty() {
            self.log.entries.push(Entry::Progress(revision));
            self.shown = self.shown.max(revision);
            return;
        }
        let compacted = self.shared.compacted.load(Ordering::SeqCst);
        let events: Vec<Seen> = response.events.into_iter().map(|event| seen(event, compacted)).collect();
        // A revision of which more fragments follow is not shown yet.
        let last = events.last().map_or(0, |seen| seen.revision);
        self.shown = self.shown.max(if response.fragment { last - 1 } else { last });
        self.log.entries.push(Entry::Answer(events, response.fragment));
    }

    /// Follows its watch until everything up to a revision was shown, and gives its log.
    ///
    /// # Panics
    /// At the deadline.
    pub(super) async fn finish(mut self, revision: i64) -> Log {
        let start = Instant::now();
        while self.shown < revision {
            assert!(start.elapsed() < DEADLINE, "{} is at {}, not {revision}", self.log.name, self.shown);
            self.ask_progress().await;
            self.take_in(RETRY).await;
        }
        self.log
    }
}

fn seen(event: mvccpb::Event, compacted: i64) -> Seen {
    let delete = event.r#type == mvccpb::event::EventType::Delete as i32;
    let kv = event.kv.unwrap_or_default();
    Seen {
        revision: kv.mod_revision,
        key: String::from_utf8_lossy(&kv.key).into_owned(),
        value: (!delete).then(|| digest(&kv.value[..])),
        create: kv.create_revision,
        version: kv.version,
        prev: event.prev_kv.map(|prev| (prev.mod_revision, digest(&prev.value[..]))),
        compacted,
    }
}
