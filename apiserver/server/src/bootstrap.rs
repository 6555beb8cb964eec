//! What a server does once its caches are filled: make the objects every cluster has, keep an eye on the store, compact.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keelson_api::Status;
use keelson_apiserver_core::{WriteOptions, bootstrap};
use keelson_store_proto::etcdserverpb::{CompactionRequest, PutRequest, RangeRequest};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::server::Server;
use crate::write::{Place, create_object};

const FIELD_MANAGER: &str = "keelson";
/// Where the last compaction is noted, so that several servers do not all compact.
const COMPACT_KEY: &str = "/registry/keelson-compact";

/// Creates what is missing, until everything is there.
pub async fn run(server: Arc<Server>, stop: CancellationToken) {
    loop {
        let waited = server.hub.wait(1, Instant::now() + Duration::from_secs(5)).await;
        let made = if waited.is_ok() { objects(&server).await } else { waited };
        match made {
            Ok(()) => {
                server.bootstrapped.store(true, Ordering::Release);
                return;
            }
            Err(status) => tracing::warn!(
                error = status.message,
                "objects of a new cluster could not be made; trying again"
            ),
        }
        if stop.run_until_cancelled(tokio::time::sleep(Duration::from_millis(500))).await.is_none() {
            return;
        }
    }
}

async fn objects(server: &Arc<Server>) -> Result<(), Status> {
    let user = Server::own_user();
    let options = WriteOptions { field_manager: FIELD_MANAGER.to_owned(), ..WriteOptions::default() };
    for (resource, object) in bootstrap::objects() {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("").to_owned();
        let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
        let below = if namespace.is_empty() { name.clone() } else { format!("{namespace}/{name}") };
        let cache = resource.storage.as_deref().and_then(|dir| server.hub.cache(dir));
        if cache.is_some_and(|cache| cache.get(&below).is_some()) {
            continue;
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        let place = Place { server, resource, namespace: &namespace, name: "", user: &user, deadline };
        match create_object(&place, object, &options).await {
            Err(status) if status.reason != "AlreadyExists" => return Err(status),
            _ => {}
        }
    }
    Ok(())
}

/// Notes when the store last answered (for the health checks).
pub async fn watch_store(server: Arc<Server>, stop: CancellationToken) {
    loop {
        let deadline = Instant::now() + Duration::from_secs(4);
        if server.storage.revision(deadline).await.is_ok() {
            let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
            server.store_heard.store(now, Ordering::Relaxed);
        }
        if stop.run_until_cancelled(tokio::time::sleep(Duration::from_secs(2))).await.is_none() {
            return;
        }
    }
}

/// Drops history older than one interval. Several servers share the work: who finds that another one compacted within
/// the interval leaves it.
pub async fn compact(server: Arc<Server>, stop: CancellationToken) {
    let interval = server.config.compaction_interval;
    if interval == 0 {
        return;
    }
    let (mut before, mut noted) = (0, 0);
    loop {
        if stop.run_until_cancelled(tokio::time::sleep(Duration::from_secs(interval))).await.is_none() {
            return;
        }
        let etcd = server.storage.etcd();
        let note = RangeRequest { key: COMPACT_KEY.into(), ..RangeRequest::default() };
        let Ok(answer) = etcd.range(note).await else { continue };
        let now = answer.header.as_ref().map_or(0, |h| h.revision);
        let last = answer.kvs.first().map_or(0, |kv| kv.mod_revision);
        let (target, elsewhere) = (before, last != noted && noted != 0);
        before = now;
        noted = last;
        if target == 0 || elsewhere {
            continue;
        }
        let put =
            PutRequest { key: COMPACT_KEY.into(), value: target.to_string().into(), ..PutRequest::default() };
        if let Ok(put) = etcd.put(put).await {
            noted = put.header.as_ref().map_or(0, |h| h.revision);
        }
        if let Err(error) = etcd.compact(CompactionRequest { revision: target, physical: false }).await {
            tracing::debug!(error = error.message(), "compaction was left to another server");
        }
    }
}
