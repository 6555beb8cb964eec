//! Watch: a cursor into the cache's ring, turned into a stream of JSON lines or protobuf frames.
//!
//! No queue stands between cache and client: the stream is pulled by the connection, so a slow client costs nothing but
//! its place in the ring; when that is gone it gets 410 and lists again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use keelson_api::{ErrorList, FieldError, Path, Resource, Status};
use keelson_apiserver_core::{protobuf, table};
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cache::{Cache, Change, Gap};
use crate::object::{self, Object};
use crate::present;
use crate::read::{Selection, bad_options, soon};
use crate::request::{Accept, Encoding, Form, number, resource_version};
use crate::respond::{self, Response};
use crate::server::{Call, Server};

/// Events taken from the ring at once.
const BATCH: usize = 128;
/// Bytes after which a piece is sent.
const PIECE: usize = 64 * 1024;
/// Time between bookmarks.
const BOOKMARK: Duration = Duration::from_secs(60);

struct Watch {
    server: Arc<Server>,
    cache: Arc<Cache>,
    resource: &'static Resource,
    selection: Selection,
    prefix: String,
    form: Form,
    encoding: Encoding,
    include: table::Include,
    first_table: bool,
    /// Objects to send as they are before anything else.
    initial: VecDeque<Arc<Object>>,
    /// Send a bookmark that ends the initial objects, with this revision.
    initial_end: Option<i64>,
    cursor: u64,
    /// Changes at or before this revision were seen by the client.
    after: i64,
    bookmarks: bool,
    bookmark_at: Instant,
    end: Instant,
    revisions: tokio::sync::watch::Receiver<i64>,
    ended: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.server.metrics.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

/// GET with `watch`.
///
/// # Errors
/// 400, 406, 422; a revision that is too old is an event of the stream.
pub async fn watch(call: &Call<'_>) -> Result<Response, Status> {
    let accept = Accept::negotiate_watch(call.headers)?;
    let query = call.query;
    let selection = Selection::read(call.resource, query)?.named(&call.path.name);
    let version = resource_version(query.get("resourceVersion")).map_err(crate::read::unplaced)?;
    let initial_events = query.flag("sendInitialEvents");
    check(call)?;
    let cache = call.cache()?;
    let namespace = call.namespace();
    let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
    let revisions = call.server.hub.subscribe();
    let mut start = Start::default();
    match version {
        Some(revision) if revision > 0 && !initial_events => match cache.cursor(revision) {
            Ok(cursor) => (start.cursor, start.after) = (cursor, revision),
            Err(Gap::TooOld(oldest)) => start.refused = Some(too_old(revision, oldest)),
        },
        wanted => {
            let revision = match wanted {
                Some(revision) => revision,
                None => call.server.storage.revision(call.deadline).await?,
            };
            call.server.hub.wait(revision, call.deadline.min(soon())).await?;
            let (objects, at, cursor) = cache.list_and_cursor(&prefix);
            start.initial = if query.has("sendInitialEvents") && !initial_events {
                VecDeque::new()
            } else {
                objects.into()
            };
            (start.cursor, start.after) = (cursor, at);
            start.initial_end = initial_events.then(|| at.max(revision));
            #[cfg(feature = "planted")]
            if keelson_plant::is(23) {
                start.initial_end = start.initial_end.map(|end| end + 1);
            }
        }
    }
    if let Some(status) = start.refused {
        let line = error(accept.encoding, &status);
        return Ok(respond::answer(200, accept.content_type, respond::full(line)));
    }
    let now = Instant::now();
    let end = now + duration(number(query, "timeoutSeconds")?);
    call.server.metrics.watches.fetch_add(1, Ordering::Relaxed);
    let watch = Watch {
        server: call.server.clone(),
        cache,
        resource: call.resource,
        selection,
        prefix,
        form: accept.form,
        encoding: accept.encoding,
        include: present::include(query)?,
        first_table: true,
        initial: start.initial,
        initial_end: start.initial_end,
        cursor: start.cursor,
        after: start.after,
        bookmarks: query.flag("allowWatchBookmarks"),
        bookmark_at: bookmark_time(now, end),
        end,
        revisions,
        ended: false,
    };
    let pieces = futures::stream::unfold(watch, |mut watch| async move {
        let piece = watch.next().await?;
        Some((Ok::<_, respond::BodyError>(piece), watch))
    });
    Ok(respond::answer(200, accept.content_type, respond::stream(pieces)))
}

#[derive(Default)]
struct Start {
    initial: VecDeque<Arc<Object>>,
    initial_end: Option<i64>,
    cursor: u64,
    after: i64,
    refused: Option<Status>,
}

fn check(call: &Call<'_>) -> Result<(), Status> {
    let how = call.query.get("resourceVersionMatch");
    let path = Path::new("resourceVersionMatch");
    let mut errors = ErrorList::new();
    let (initial, newer) = (call.query.has("sendInitialEvents"), how == "NotOlderThan");
    if initial && !newer {
        let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        errors.push(FieldError::forbidden(&path, detail));
    }
    if !how.is_empty() && !initial {
        let detail = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        errors.push(FieldError::forbidden(&path, detail));
    }
    if !how.is_empty() && !newer {
        errors.push(FieldError::not_supported(&path, how, &["NotOlderThan"]));
    }
    if !call.query.get("continue").is_empty() {
        let detail = "resourceVersionMatch is forbidden when continue is provided";
        errors.push(FieldError::forbidden(&path, detail));
    }
    bad_options(errors)
}

fn too_old(revision: i64, oldest: i64) -> Status {
    Status::expired(format!("too old resource version: {revision} ({oldest})"))
}

/// The client's time limit, or one between half an hour and an hour.
fn duration(seconds: Option<u64>) -> Duration {
    match seconds {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds.min(24 * 3600)),
        _ => Duration::from_secs(rand::rng().random_range(1800..3600)),
    }
}

/// Each minute, and once shortly before the end, so that the client can resume from there.
fn bookmark_time(now: Instant, end: Instant) -> Instant {
    let last = end - Duration::from_secs(2);
    let next = now + BOOKMARK;
    if last > now { next.min(last) } else { next }
}

/// The event that ends a stream early.
fn error(encoding: Encoding, status: &Status) -> Vec<u8> {
    let mut out = vec![];
    write_value(&mut out, encoding, "ERROR", &status.to_value());
    out
}

/// An event about an object that is a tree. What has no protobuf form (it never gets here) is left out.
fn write_value(out: &mut Vec<u8>, encoding: Encoding, kind: &str, object: &Value) {
    if encoding != Encoding::Protobuf {
        return write_event(out, kind, object.to_string().as_bytes());
    }
    match protobuf::encode(object) {
        Ok(enveloped) => out.extend_from_slice(&protobuf::watch_frame(kind, &enveloped)),
        Err(why) => tracing::error!(why, "an event cannot be written as protobuf: this is a bug"),
    }
}

fn write_event(out: &mut Vec<u8>, kind: &str, object: &[u8]) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}

impl Watch {
    /// The next piece of the stream, or its end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        self.send_initial(&mut out);
        if !out.is_empty() {
            return Some(out.into());
        }
        loop {
            // Everything up to here was in the ring before this was published.
            let seen = *self.revisions.borrow_and_update();
            match self.cache.changes(self.cursor, BATCH) {
                Ok((changes, next, _)) => {
                    let some = !changes.is_empty();
                    for change in &changes {
                        self.send_change(&mut out, change);
                    }
                    self.cursor = next;
                    if !out.is_empty() {
                        return Some(out.into());
                    }
                    if some {
                        continue;
                    }
                }
                Err(Gap::TooOld(oldest)) => {
                    self.ended = true;
                    return Some(error(self.encoding, &too_old(self.after, oldest)).into());
                }
            }
            match self.wait().await {
                Woken::Changed => {}
                Woken::Bookmark => {
                    self.bookmark_at = bookmark_time(Instant::now(), self.end);
                    if self.bookmark_at >= self.end {
                        self.bookmark_at = self.end + BOOKMARK;
                    }
                    if self.bookmarks {
                        let bookmark = self.bookmark(seen.max(self.after), false);
                        write_value(&mut out, self.encoding, "BOOKMARK", &bookmark);
                        return Some(out.into());
                    }
                }
                Woken::End => return None,
            }
        }
    }

    async fn wait(&mut self) -> Woken {
        tokio::select! {
            changed = self.revisions.changed() => if changed.is_ok() { Woken::Changed } else { Woken::End },
            () = tokio::time::sleep_until(self.bookmark_at) => Woken::Bookmark,
            () = tokio::time::sleep_until(self.end) => Woken::End,
            () = self.server.stopping.cancelled() => Woken::End,
        }
    }

    fn send_initial(&mut self, out: &mut Vec<u8>) {
        while out.len() < PIECE
            && let Some(object) = self.initial.pop_front()
        {
            if self.selection.matches(&object) {
                self.send(out, "ADDED", &object);
            }
        }
        if self.initial.is_empty()
            && let Some(revision) = self.initial_end.take()
            && self.bookmarks
        {
            let bookmark = self.bookmark(revision, true);
            write_value(out, self.encoding, "BOOKMARK", &bookmark);
        }
    }

    /// A bookmark is an object of the watched kind with nothing but a revision.
    fn bookmark(&self, revision: i64, initial_end: bool) -> Value {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        if self.form == Form::Partial {
            return json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
        }
        let empty = json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata});
        if self.form != Form::Table {
            return empty;
        }
        let of_table = json!({"resourceVersion": revision.to_string()});
        table::table(self.resource, &[&empty], of_table, jiff::Timestamp::now(), self.include, false)
    }

    /// A change as this watch sees it: an object that starts or ceases to match is added or deleted.
    fn send_change(&mut self, out: &mut Vec<u8>, change: &Change) {
        if change.revision <= self.after || !change.object.key.starts_with(&self.prefix) {
            return;
        }
        let was = change.before.as_ref().is_some_and(|before| self.selection.matches(before));
        let is = !change.deleted && self.selection.matches(&change.object);
        match (was, is) {
            (false, true) => self.send(out, "ADDED", &change.object),
            (true, true) => self.send(out, "MODIFIED", &change.object),
            (true, false) if change.deleted => self.send(out, "DELETED", &change.object),
            (true, false) => {
                let last =
                    change.before.as_ref().and_then(|b| b.deleted_at(&self.cache.resources, change.revision));
                if let Some(last) = last {
                    self.send(out, "DELETED", &last);
                }
            }
            (false, false) => {}
        }
    }

    fn send(&mut self, out: &mut Vec<u8>, kind: &str, object: &Object) {
        let json = self.encoding == Encoding::Json;
        if self.form == Form::Object && json && !present::converted(self.resource) {
            return write_event(out, kind, &object.bytes);
        }
        let value = present::tree(self.resource, object);
        let shown = match self.form {
            Form::Object => value,
            Form::Partial | Form::PartialList => object::partial(&value),
            Form::Table => {
                let columns = std::mem::take(&mut self.first_table);
                let metadata = json!({"resourceVersion": object.revision.to_string()});
                table::table(
                    self.resource,
                    &[&value],
                    metadata,
                    jiff::Timestamp::now(),
                    self.include,
                    columns,
                )
            }
        };
        write_value(out, self.encoding, kind, &shown);
    }
}

enum Woken {
    Changed,
    Bookmark,
    End,
}
