//! `delete`: by name, selector, `--all` or file; waits until the objects are gone unless told otherwise.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::apply::{DryRun, session_for};
use crate::args::Parsed;
use crate::discovery::{Discovery, Kind, select};
use crate::manifest;
use crate::output;
use crate::session::{Session, is_not_found, sentence};

struct Doomed {
    session: Session,
    kind: Kind,
    name: String,
    uid: String,
}

/// Runs `delete`.
pub async fn run(session: &Session, parsed: &Parsed) -> Result<i32> {
    let discovery = Discovery::fetch(session).await?;
    let dry_run = DryRun::new(parsed)?;
    let options = options(parsed)?;
    let mut failures = 0;
    let mut waiting = Vec::new();
    let doomed = find(session, parsed, &discovery).await?;
    if doomed.is_empty() && !parsed.has("ignore-not-found") {
        output::print("No resources found\n")?;
    }
    if parsed.has("force") && grace(parsed)? == Some(0) && !doomed.is_empty() {
        eprintln!(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource may continue to run on the cluster indefinitely."
        );
    }
    for mut object in doomed {
        match remove(&object, dry_run, &options).await {
            Ok(uid) => {
                print_deleted(&object, parsed, dry_run)?;
                object.uid = uid;
                waiting.push(object);
            }
            Err(error) if is_not_found(&error) && parsed.has("ignore-not-found") => {}
            Err(error) => {
                eprintln!("{}", sentence(&error));
                failures += 1;
            }
        }
    }
    let wait = parsed.get("wait").is_none_or(|wait| wait != "false");
    if wait && dry_run == DryRun::No {
        let timeout = parsed.duration("timeout")?.filter(|timeout| !timeout.is_zero());
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        for object in waiting {
            gone(&object, deadline).await?;
        }
    }
    Ok(i32::from(failures > 0))
}

async fn find(session: &Session, parsed: &Parsed, discovery: &Discovery) -> Result<Vec<Doomed>> {
    let mut found = Vec::new();
    let make = |session: &Session, kind: &Kind, name: &str| Doomed {
        session: Session { client: session.client.clone(), namespace: session.namespace.clone() },
        kind: kind.clone(),
        name: name.to_string(),
        uid: String::new(),
    };
    if !parsed.all("filename").is_empty() {
        for object in manifest::objects(parsed)? {
            let kind = discovery.of(&object)?.clone();
            let session = session_for(session, parsed, &kind, &object)?;
            found.push(make(&session, &kind, crate::apply::name_of(&object)?));
        }
        return Ok(found);
    }
    let by_query =
        parsed.has("all") || parsed.get("selector").is_some() || parsed.get("field-selector").is_some();
    for selection in select(discovery, &parsed.words)? {
        if selection.names.is_empty() && !by_query {
            bail!("resource(s) were provided, but no name was specified: give names, -l SELECTOR or --all");
        }
        for name in &selection.names {
            found.push(make(session, &selection.kind, name));
        }
        if selection.names.is_empty() {
            let path = session.collection(&selection.kind, parsed.has("all-namespaces"));
            let list = crate::get::list(session, &path, parsed, false).await?;
            for item in list["items"].as_array().into_iter().flatten() {
                let namespace = item["metadata"]["namespace"].as_str().unwrap_or(&session.namespace);
                let session = Session { client: session.client.clone(), namespace: namespace.into() };
                found.push(make(
                    &session,
                    &selection.kind,
                    item["metadata"]["name"].as_str().unwrap_or_default(),
                ));
            }
        }
    }
    Ok(found)
}

fn grace(parsed: &Parsed) -> Result<Option<i64>> {
    if parsed.has("now") {
        return Ok(Some(1));
    }
    let grace = parsed.number("grace-period")?.filter(|grace| *grace >= 0);
    match (grace, parsed.has("force")) {
        (Some(0), false) => Ok(Some(1)),
        (None, true) => Ok(Some(0)),
        (grace, _) => Ok(grace),
    }
}

fn options(parsed: &Parsed) -> Result<Value> {
    let policy = match parsed.get("cascade") {
        None | Some("background" | "true") => "Background",
        Some("foreground") => "Foreground",
        Some("orphan" | "false") => "Orphan",
        Some(other) => {
            bail!("invalid cascade value ({other}): must be \"background\", \"foreground\", or \"orphan\"")
        }
    };
    let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy});
    if let Some(grace) = grace(parsed)? {
        options["gracePeriodSeconds"] = json!(grace);
    }
    Ok(options)
}

/// Deletes; the answer is the uid of what was deleted.
async fn remove(object: &Doomed, dry_run: DryRun, options: &Value) -> Result<String> {
    let path = object.session.object(&object.kind, &object.name);
    let answer = match dry_run {
        DryRun::Client => object.session.get(&path, &[]).await?,
        _ => object.session.delete(&path, &[dry_run.query()], options).await?,
    };
    let uid = answer["metadata"]["uid"].as_str().or_else(|| answer["details"]["uid"].as_str());
    Ok(uid.unwrap_or_default().to_string())
}

fn print_deleted(object: &Doomed, parsed: &Parsed, dry_run: DryRun) -> Result<()> {
    let kind = object.kind.in_messages();
    if parsed.get("output") == Some("name") {
        return output::print(&format!("{kind}/{}\n", object.name));
    }
    let verb = if parsed.has("force") && grace(parsed)? == Some(0) { "force deleted" } else { "deleted" };
    let place = if object.kind.namespaced {
        format!(" from {} namespace", object.session.namespace)
    } else {
        String::new()
    };
    output::print(&format!("{kind} \"{}\" {verb}{place}{}\n", object.name, dry_run.suffix()))
}

/// Waits until the object is gone, or another one has its name.
async fn gone(object: &Doomed, deadline: Option<Instant>) -> Result<()> {
    let path = object.session.object(&object.kind, &object.name);
    let mut pause = Duration::from_millis(50);
    loop {
        match object.session.get(&path, &[]).await {
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error) => return Err(error),
            Ok(found) => {
                let uid = found["metadata"]["uid"].as_str().unwrap_or_default();
                if !object.uid.is_empty() && uid != object.uid {
                    return Ok(());
                }
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    bail!(
                        "timed out waiting for the condition on {}/{}",
                        object.kind.resource(),
                        object.name
                    );
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}
