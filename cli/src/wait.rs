//! `wait`: until a condition holds, a field has a value, or the objects are gone.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::args::Parsed;
use crate::discovery::Discovery;
use crate::jsonpath::Template;
use crate::output;
use crate::session::{Session, is_not_found, sentence};
use crate::small::targets;

/// What is waited for.
enum Until {
    Deleted,
    Created,
    Condition { kind: String, status: String },
    Field { template: Template, value: Option<String> },
}

impl Until {
    fn new(text: &str) -> Result<Until> {
        if let Some(path) = text.strip_prefix("jsonpath=") {
            let path = path.trim_matches('\'');
            let (path, value) = match path.rsplit_once("}=") {
                Some((path, value)) => {
                    (format!("{path}}}"), Some(value.trim_matches(['\'', '"']).to_string()))
                }
                None => (path.to_string(), None),
            };
            return Ok(Until::Field { template: Template::parse(&path)?, value });
        }
        if let Some(condition) = text.strip_prefix("condition=") {
            let (kind, status) = condition.split_once('=').unwrap_or((condition, "True"));
            return Ok(Until::Condition { kind: kind.to_lowercase(), status: status.to_lowercase() });
        }
        match text {
            "delete" => Ok(Until::Deleted),
            "create" => Ok(Until::Created),
            _ => bail!(
                "unrecognized condition: {text:?}: say delete, create, condition=NAME[=VALUE] or jsonpath='{{PATH}}'=VALUE"
            ),
        }
    }

    /// Whether it holds; `None` = the object is absent.
    fn holds(&self, object: Option<&Value>) -> bool {
        let Some(object) = object else { return matches!(self, Until::Deleted) };
        match self {
            Until::Deleted => false,
            Until::Created => true,
            Until::Condition { kind, status } => {
                let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
                let current = |condition: &Value| {
                    condition["observedGeneration"].as_i64().is_none_or(|seen| seen >= generation)
                };
                let lower = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
                object["status"]["conditions"].as_array().into_iter().flatten().any(|condition| {
                    lower(&condition["type"]) == *kind
                        && lower(&condition["status"]) == *status
                        && current(condition)
                })
            }
            Until::Field { template, value } => {
                let found = template.render(object);
                value.as_ref().map_or(!found.is_empty(), |value| found == *value)
            }
        }
    }
}

/// Runs `wait`.
pub async fn run(session: &Session, parsed: &Parsed) -> Result<i32> {
    let Some(wanted) = parsed.get("for") else {
        bail!("say what to wait for: --for=condition=Ready or --for=delete")
    };
    let until = Until::new(wanted)?;
    let timeout = parsed.duration("timeout")?.unwrap_or(Duration::from_secs(30));
    let deadline = Instant::now() + timeout;
    let discovery = Discovery::fetch(session).await?;
    let found = targets(session, parsed, &discovery).await?;
    if found.is_empty() {
        if matches!(until, Until::Deleted) {
            return Ok(0);
        }
        bail!("no matching resources found");
    }
    let mut failures = 0;
    for (session, kind, name) in found {
        let path = session.object(&kind, &name);
        let mut pause = Duration::from_millis(50);
        loop {
            let object = match session.get(&path, &[]).await {
                Ok(object) => Some(object),
                Err(error) if is_not_found(&error) && matches!(until, Until::Deleted | Until::Created) => {
                    None
                }
                Err(error) => {
                    eprintln!("{}", sentence(&error));
                    failures += 1;
                    break;
                }
            };
            if until.holds(object.as_ref()) {
                let verb = if matches!(until, Until::Deleted) { "deleted" } else { "condition met" };
                output::print(&format!("{}/{name} {verb}\n", kind.in_messages()))?;
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                eprintln!("error: timed out waiting for the condition on {}/{name}", kind.resource());
                failures += 1;
                break;
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }
    Ok(i32::from(failures > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn holds(wanted: &str, object: Option<Value>) -> bool {
        Until::new(wanted).expect(wanted).holds(object.as_ref())
    }

    #[test]
    fn conditions_fields_and_absence() {
        let pod = json!({"metadata": {"generation": 2}, "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "Old", "status": "True", "observedGeneration": 1}]}});
        assert!(holds("condition=ready", Some(pod.clone())));
        assert!(!holds("condition=Ready=false", Some(pod.clone())));
        assert!(!holds("condition=Old", Some(pod.clone())), "it speaks of an older generation");
        assert!(holds("jsonpath={.status.phase}=Running", Some(pod.clone())));
        assert!(holds("jsonpath='{.status.phase}'", Some(pod.clone())));
        assert!(!holds("delete", Some(pod)) && holds("delete", None) && !holds("create", None));
        assert!(Until::new("ready").is_err());
    }
}
