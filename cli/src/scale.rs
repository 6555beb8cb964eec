//! `scale`: through the scale subresource.

use anyhow::{Result, bail};
use serde_json::json;

use crate::apply::DryRun;
use crate::args::Parsed;
use crate::discovery::Discovery;
use crate::output;
use crate::session::{Session, sentence};
use crate::small::targets;

/// Runs `scale`.
pub async fn run(session: &Session, parsed: &Parsed) -> Result<i32> {
    let Some(replicas) = parsed.number("replicas")? else {
        bail!("The --replicas=COUNT flag is required, and COUNT must be greater than or equal to 0");
    };
    let dry_run = DryRun::new(parsed)?;
    let discovery = Discovery::fetch(session).await?;
    let mut failures = 0;
    for (session, kind, name) in targets(session, parsed, &discovery).await? {
        let path = format!("{}/scale", session.object(&kind, &name));
        let scaled = async {
            if let Some(expected) = parsed.number("current-replicas")?.filter(|count| *count >= 0) {
                let found = session.get(&path, &[]).await?["spec"]["replicas"].as_i64().unwrap_or(0);
                if found != expected {
                    bail!("expected replicas to be {expected}, was {found}");
                }
            }
            if dry_run != DryRun::Client {
                let patch = json!({"spec": {"replicas": replicas}});
                session.patch(&path, &[dry_run.query()], "merge-patch+json", &patch).await?;
            }
            Ok(())
        };
        match scaled.await {
            Ok(()) => output::print(&format!("{}/{name} scaled{}\n", kind.in_messages(), dry_run.suffix()))?,
            Err(error) => {
                eprintln!("{}", sentence(&error));
                failures += 1;
            }
        }
    }
    Ok(i32::from(failures > 0))
}
