//! `apply`: create what is absent, patch what differs; or let the server merge with `--server-side`.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::args::Parsed;
use crate::discovery::{Discovery, Kind};
use crate::manifest;
use crate::output::{self, Format};
use crate::session::{MANAGER, Session, is_not_found, sentence};
use crate::three_way;

/// How much is only tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DryRun {
    No,
    Client,
    Server,
}

impl DryRun {
    /// Reads `--dry-run`.
    pub fn new(parsed: &Parsed) -> Result<DryRun> {
        Ok(match parsed.get("dry-run") {
            None | Some("none" | "false") => DryRun::No,
            Some("client" | "true" | "unchanged") => DryRun::Client,
            Some("server") => DryRun::Server,
            Some(other) => {
                bail!("invalid --dry-run value {other:?}: must be \"none\", \"server\", or \"client\"")
            }
        })
    }

    /// The query parameter.
    pub fn query(self) -> (&'static str, String) {
        ("dryRun", if self == DryRun::Server { "All".into() } else { String::new() })
    }

    /// What messages end with.
    pub fn suffix(self) -> &'static str {
        match self {
            DryRun::No => "",
            DryRun::Client => " (dry run)",
            DryRun::Server => " (server dry run)",
        }
    }
}

/// The parameters of every write.
pub fn write_query(parsed: &Parsed, dry_run: DryRun, manager: &str) -> Vec<(&'static str, String)> {
    let validation = match parsed.get("validate") {
        Some("ignore" | "false") => "Ignore",
        Some("warn") => "Warn",
        _ => "Strict",
    };
    vec![
        ("fieldManager", parsed.get("field-manager").unwrap_or(manager).to_string()),
        ("fieldValidation", validation.to_string()),
        dry_run.query(),
    ]
}

/// The session for an object: its own namespace, if it names one.
pub fn session_for(session: &Session, parsed: &Parsed, kind: &Kind, object: &Value) -> Result<Session> {
    let own = object["metadata"]["namespace"].as_str().filter(|_| kind.namespaced);
    if let Some(own) = own
        && let Some(wanted) = parsed.get("namespace").filter(|wanted| *wanted != own)
    {
        bail!(
            "the namespace from the provided object {own:?} does not match the namespace {wanted:?}. You must pass '--namespace={own}' to perform this operation."
        );
    }
    Ok(Session { client: session.client.clone(), namespace: own.unwrap_or(&session.namespace).to_string() })
}

/// The object's name.
pub fn name_of(object: &Value) -> Result<&str> {
    match object["metadata"]["name"].as_str().filter(|name| !name.is_empty()) {
        Some(name) => Ok(name),
        None => bail!("an object of kind {} has no metadata.name: add it", object["kind"]),
    }
}

/// Runs `apply`.
pub async fn run(session: &Session, parsed: &Parsed) -> Result<i32> {
    let objects = manifest::objects(parsed)?;
    let format = parsed.get("output").map(|_| Format::new(parsed)).transpose()?;
    let dry_run = DryRun::new(parsed)?;
    let mut discovery = Discovery::fetch(session).await?;
    let mut failures = 0;
    let mut results = Vec::new();
    for object in objects {
        // A kind that a definition applied just before made known.
        if discovery.of(&object).is_err() {
            discovery = Discovery::fetch(session).await?;
        }
        match one(session, parsed, &discovery, &object, dry_run).await {
            Ok((kind, result, verb)) => match &format {
                None => {
                    let name = name_of(&result).unwrap_or_default();
                    output::print(&format!("{}/{name} {verb}{}\n", kind.in_messages(), dry_run.suffix()))?;
                }
                Some(_) => results.push((kind, result)),
            },
            Err(error) => {
                eprintln!("{}", sentence(&error));
                failures += 1;
            }
        }
    }
    if let Some(format) = format {
        let single = results.len() == 1;
        output::objects(parsed, &format, results, single)?;
    }
    Ok(i32::from(failures > 0))
}

async fn one(
    session: &Session,
    parsed: &Parsed,
    discovery: &Discovery,
    object: &Value,
    dry_run: DryRun,
) -> Result<(Kind, Value, &'static str)> {
    let kind = discovery.of(object)?.clone();
    let session = session_for(session, parsed, &kind, object)?;
    let name = name_of(object)?;
    let path = session.object(&kind, name);
    if parsed.has("server-side") {
        let mut query = write_query(parsed, dry_run, MANAGER);
        query.push(("force", if parsed.has("force-conflicts") { "true".into() } else { String::new() }));
        let result = session.patch(&path, &query, "apply-patch+yaml", object).await?;
        return Ok((kind, result, "serverside-applied"));
    }
    let query = write_query(parsed, dry_run, "kubectl-client-side-apply");
    let mut wanted = object.clone();
    if kind.namespaced {
        wanted["metadata"]["namespace"] = json!(session.namespace);
    }
    let mut tries = 0;
    loop {
        let live = match session.get(&path, &[]).await {
            Ok(live) => live,
            Err(error) if is_not_found(&error) => {
                let sent = three_way::remember(&wanted);
                if dry_run == DryRun::Client {
                    return Ok((kind, sent, "created"));
                }
                let result = session.post(&session.collection(&kind, false), &query, &sent).await?;
                return Ok((kind, result, "created"));
            }
            Err(error) => return Err(error),
        };
        let patch = three_way::patch(&three_way::original(&live), &three_way::remember(&wanted), &live);
        if patch.is_empty() {
            return Ok((kind, live, "unchanged"));
        }
        if dry_run == DryRun::Client {
            return Ok((kind, live, "configured"));
        }
        match session.patch(&path, &query, patch.kind, &patch.body).await {
            // Somebody wrote in between: compute again.
            Err(error) if crate::session::code(&error) == Some(409) && tries < 5 => tries += 1,
            Err(error) => return Err(error),
            Ok(result) => {
                let same = result["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"];
                let verb = if same && dry_run == DryRun::No { "unchanged" } else { "configured" };
                return Ok((kind, result, verb));
            }
        }
    }
}
