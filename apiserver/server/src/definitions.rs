//! Custom resources: which rows their definitions make, and what happens to a definition after it was written.
//!
//! A row is made once for each content and never freed (rows are compared by address nowhere, but handed out as
//! `&'static`): a definition that comes and goes a thousand times costs one row.
//! Every server looks after every definition; writes are compare-and-swap, so two that do the same harm nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keelson_api::{RESOURCES, Resource, Status, definition, resource};
use keelson_apiserver_core::resources::definitions::CLEANUP;
use keelson_apiserver_core::{DeleteOptions, meta};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::object::take_revision;
use crate::remove;
use crate::request::ApiPath;
use crate::server::Server;
use crate::write::{Decided, Next, Place};

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";
/// Pause between looks at definitions whose objects are not gone yet.
const PATIENCE: Duration = Duration::from_millis(500);

/// Rows made so far.
#[derive(Default)]
pub struct Definitions {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// By name of the definition: its revision and its rows.
    rows: BTreeMap<Box<str>, (i64, Vec<&'static Resource>)>,
    /// Every row ever made.
    interned: Vec<&'static Resource>,
    /// Rises with every change.
    edition: u64,
}

impl Kept {
    fn intern(&mut self, row: Resource) -> &'static Resource {
        if let Some(known) = self.interned.iter().find(|known| ***known == row) {
            return known;
        }
        let row: &'static Resource = Box::leak(Box::new(row));
        self.interned.push(row);
        row
    }

    /// Brings the rows in step with the definitions there are.
    fn refresh(&mut self, cache: &Cache) {
        let now = cache.revisions();
        let same = now.len() == self.rows.len()
            && now.iter().all(|(name, revision)| self.rows.get(name).is_some_and(|(r, _)| r == revision));
        if same {
            return;
        }
        self.edition += 1;
        self.rows.retain(|name, _| now.contains_key(name));
        for (name, revision) in now {
            if self.rows.get(&name).is_some_and(|(r, _)| *r == revision) {
                continue;
            }
            let Some(object) = cache.get(&name) else { continue };
            let rows = definition::resources(&cache.decoded(&object));
            let rows = rows.into_iter().map(|row| self.intern(row)).collect();
            self.rows.insert(name, (revision, rows));
        }
    }
}

impl Definitions {
    /// A number that changes when the custom resources do.
    pub fn edition(&self) -> u64 {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).edition
    }

    /// One of the rows that a definition makes.
    fn first(&self, rows: &[&'static Resource], crd: &Value) -> Option<&'static Resource> {
        let (group, plural) = (&crd["spec"]["group"], &crd["spec"]["names"]["plural"]);
        rows.iter().copied().find(|r| r.definition.is_some() && *group == *r.group && *plural == *r.plural)
    }
}

fn cache(server: &Server) -> Option<Arc<Cache>> {
    server.hub.cache(resource::find_preferred(GROUP, PLURAL)?.storage.as_deref()?)
}

impl Server {
    /// The row a path is about, built-in or custom.
    pub fn find(&self, path: &ApiPath) -> Option<&'static Resource> {
        if let Some(row) = path.find() {
            return Some(row);
        }
        if !path.group.contains('.') {
            return None;
        }
        let fits = |r: &&Resource| r.version == path.version && (r.namespaced || path.namespace.is_empty());
        let mut kept = self.definitions.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.refresh(&*cache(self)?);
        let (_, rows) = kept.rows.get(format!("{}.{}", path.resource, path.group).as_str())?;
        rows.iter().copied().find(fits)
    }

    /// Every row that is served: the built-in ones, then the custom ones.
    pub fn rows(&self) -> Vec<&'static Resource> {
        let mut out: Vec<&'static Resource> = RESOURCES.iter().collect();
        let mut kept = self.definitions.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = cache(self) {
            kept.refresh(&cache);
        }
        out.extend(kept.rows.values().flat_map(|(_, rows)| rows.iter().copied()));
        out
    }
}

/// Looks after definitions until stopped: accepts their names, and empties those that are to go.
pub async fn run(server: Arc<Server>, stop: CancellationToken) {
    let mut revisions = server.hub.subscribe();
    let mut seen: BTreeMap<Box<str>, i64> = BTreeMap::new();
    loop {
        let mut waiting = false;
        if let Some(cache) = cache(&server).filter(|_| server.hub.ready()) {
            let now = cache.revisions();
            for (name, revision) in &now {
                let Some(object) = cache.get(name) else { continue };
                let crd = cache.decoded(&object);
                let going = !crd["metadata"]["deletionTimestamp"].is_null();
                if !going && seen.get(name) == Some(revision) && now.len() == seen.len() {
                    continue;
                }
                waiting |= going;
                let result =
                    if going { empty(&server, &crd).await } else { accept(&server, name, &cache).await };
                if let Err(status) = result {
                    waiting = true;
                    tracing::debug!(
                        name = &**name,
                        error = status.message,
                        "a definition is not settled yet"
                    );
                }
            }
            if !waiting {
                seen = now;
            }
        }
        let woken = async {
            if waiting {
                let _ = tokio::time::timeout(PATIENCE, revisions.changed()).await;
            } else {
                let _ = revisions.changed().await;
            }
        };
        if stop.run_until_cancelled(woken).await.is_none() {
            return;
        }
    }
}

fn place<'a>(
    server: &'a Arc<Server>,
    name: &'a str,
    user: &'a keelson_apiserver_core::UserInfo,
) -> Option<Place<'a>> {
    let resource = resource::find_preferred(GROUP, PLURAL)?;
    Some(Place {
        server,
        resource,
        namespace: "",
        name,
        user,
        deadline: Instant::now() + Duration::from_secs(10),
    })
}

/// Names of a definition that no other of its group may have.
fn taken(crd: &Value) -> BTreeSet<String> {
    let names = &crd["status"]["acceptedNames"];
    let text = |f: &str| names[f].as_str().unwrap_or("").to_owned();
    let mut out: BTreeSet<String> =
        ["plural", "singular"].map(text).into_iter().filter(|t| !t.is_empty()).collect();
    out.extend(
        names["shortNames"].as_array().into_iter().flatten().filter_map(|n| n.as_str().map(str::to_owned)),
    );
    // Kinds are apart from plurals.
    out.extend(
        ["kind", "listKind"].map(text).into_iter().filter(|t| !t.is_empty()).map(|k| format!("kind {k}")),
    );
    out
}

/// The first wish of a definition that another one has, and what it is called.
fn conflict(crd: &Value, others: &BTreeSet<String>) -> Option<(&'static str, String)> {
    let names = &crd["spec"]["names"];
    let text = |f: &str| names[f].as_str().unwrap_or("").to_owned();
    let wishes = [
        ("PluralConflict", text("plural"), text("plural")),
        ("SingularConflict", text("singular"), text("singular")),
        ("KindConflict", text("kind"), format!("kind {}", text("kind"))),
        ("ListKindConflict", text("listKind"), format!("kind {}", text("listKind"))),
    ];
    let short = names["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let short = short.map(|n| ("ShortNamesConflict", n.to_owned(), n.to_owned()));
    let mut all = wishes.into_iter().chain(short);
    all.find(|(_, _, key)| others.contains(key)).map(|(reason, name, _)| (reason, name))
}

/// Accepts the names of a definition, unless another one has them, and establishes it.
async fn accept(server: &Arc<Server>, name: &str, cache: &Cache) -> Result<(), Status> {
    let user = Server::own_user();
    let Some(place) = place(server, name, &user) else { return Ok(()) };
    let step = |current: Option<&Value>, ctx: &keelson_apiserver_core::Context| {
        let Some(current) = current.filter(|c| c["metadata"]["deletionTimestamp"].is_null()) else {
            return Ok(Decided { next: Next::Nothing, answer: () });
        };
        let group = &current["spec"]["group"];
        let (all, _) = cache.list("", "");
        let others = all
            .iter()
            .map(|o| cache.decoded(o))
            .filter(|o| o["spec"]["group"] == *group && o["metadata"]["name"] != current["metadata"]["name"]);
        let others: BTreeSet<String> = others.flat_map(|o| taken(&o)).collect();
        let (mut new, now) = (current.clone(), meta::time(ctx.now));
        let mut changed = false;
        match conflict(current, &others) {
            None => {
                changed |= new["status"]["acceptedNames"] != current["spec"]["names"];
                new["status"]["acceptedNames"] = current["spec"]["names"].clone();
                let set = |new: &mut Value, kind: &str, reason: &str, message: &str| {
                    definition::set_condition(new, kind, true, reason, message, &now)
                };
                changed |= set(&mut new, "NamesAccepted", "NoConflicts", "no conflicts found");
                let initial = "the initial names have been accepted";
                changed |= set(&mut new, "Established", "InitialNamesAccepted", initial);
            }
            Some((reason, name)) => {
                let message = format!("{name:?} is already in use");
                changed |=
                    definition::set_condition(&mut new, "NamesAccepted", false, reason, &message, &now);
                if !definition::has_condition(current, "Established") {
                    let message = "not all names are accepted";
                    changed |= definition::set_condition(
                        &mut new,
                        "Established",
                        false,
                        "NotAccepted",
                        message,
                        &now,
                    );
                }
            }
        }
        take_revision(&mut new);
        let next = if changed { Next::Put { object: new, claims: vec![] } } else { Next::Nothing };
        Ok(Decided { next, answer: () })
    };
    place.change(false, step).await.map(|_| ())
}

/// Deletes the objects of a definition that is to go, then lets it go.
async fn empty(server: &Arc<Server>, crd: &Value) -> Result<(), Status> {
    let held = crd["metadata"]["finalizers"].as_array().is_some_and(|f| f.iter().any(|f| f == CLEANUP));
    let (name, user) = (crd["metadata"]["name"].as_str().unwrap_or(""), Server::own_user());
    let Some(place) = place(server, name, &user).filter(|_| held) else { return Ok(()) };
    // One version is enough to delete by: all of them are the same objects.
    let row = server.definitions.first(&server.rows(), crd);
    if let Some(row) = row {
        let Some(objects) = row.storage.as_deref().and_then(|dir| server.hub.cache(dir)) else {
            return Ok(());
        };
        for object in objects.list("", "").0 {
            let (namespace, name) = object.key.rsplit_once('/').unwrap_or(("", &object.key));
            let one = Place { resource: row, namespace, name, ..place };
            match remove::delete_object(&one, &DeleteOptions::default()).await {
                Err(status) if status.code != 404 => return Err(status),
                _ => {}
            }
        }
        server.hub.wait(server.storage.written(), place.deadline).await?;
        if objects.count() > 0 {
            return Err(Status::unavailable("some objects have finalizers"));
        }
    }
    let step = |current: Option<&Value>, _: &keelson_apiserver_core::Context| {
        let Some(current) = current else { return Ok(Decided { next: Next::Nothing, answer: () }) };
        let mut new = current.clone();
        take_revision(&mut new);
        let mut left = current["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        left.retain(|f| f != CLEANUP);
        new["metadata"]["finalizers"] = json!(left);
        let next = if left.is_empty() {
            Next::Delete { claims: vec![] }
        } else {
            Next::Put { object: new, claims: vec![] }
        };
        Ok(Decided { next, answer: () })
    };
    place.change(false, step).await.map(|_| ())
}
