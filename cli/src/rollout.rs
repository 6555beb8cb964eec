//! `rollout`: status, restart, undo, history, pause and resume of Deployments, DaemonSets and StatefulSets.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::apply::DryRun;
use crate::args::Parsed;
use crate::discovery::{Discovery, Kind};
use crate::get::labels;
use crate::output;
use crate::session::Session;
use crate::small::targets_of;

const REVISION: &str = "deployment.kubernetes.io/revision";
const CAUSE: &str = "kubernetes.io/change-cause";

/// Runs `rollout`.
pub async fn run(session: &Session, parsed: &Parsed) -> Result<i32> {
    let Some((action, rest)) = parsed.words.split_first() else {
        bail!("say what: rollout status|restart|undo|history|pause|resume KIND/NAME");
    };
    let discovery = Discovery::fetch(session).await?;
    let parsed_rest = Words { parsed, words: rest };
    for (session, kind, name) in parsed_rest.targets(session, &discovery).await? {
        if !matches!(kind.kind.as_str(), "Deployment" | "DaemonSet" | "StatefulSet") {
            bail!(
                "no rollouts for {}: they exist for deployments, daemonsets and statefulsets",
                kind.resource()
            );
        }
        match action.as_str() {
            "status" => status(&session, parsed, &kind, &name).await?,
            "restart" => restart(&session, parsed, &kind, &name).await?,
            "undo" => undo(&session, parsed, &kind, &name).await?,
            "history" => history(&session, parsed, &kind, &name).await?,
            "pause" => pause(&session, parsed, &kind, &name, true).await?,
            "resume" => pause(&session, parsed, &kind, &name, false).await?,
            other => {
                bail!("unknown rollout command {other:?}: status, restart, undo, history, pause or resume")
            }
        }
    }
    Ok(0)
}

struct Words<'a> {
    parsed: &'a Parsed,
    words: &'a [String],
}

impl Words<'_> {
    async fn targets(
        &self,
        session: &Session,
        discovery: &Discovery,
    ) -> Result<Vec<(Session, Kind, String)>> {
        targets_of(session, self.parsed, discovery, self.words).await
    }
}

async fn status(session: &Session, parsed: &Parsed, kind: &Kind, name: &str) -> Result<()> {
    let watch = parsed.get("watch").is_none_or(|watch| watch != "false");
    let deadline = parsed
        .duration("timeout")?
        .filter(|timeout| !timeout.is_zero())
        .map(|timeout| Instant::now() + timeout);
    let mut last = String::new();
    let mut pause = Duration::from_millis(100);
    loop {
        let object = session.get(&session.object(kind, name), &[]).await?;
        let (message, done) = progress(&object, name)?;
        if message != last {
            output::print(&format!("{message}\n"))?;
            last = message;
            pause = Duration::from_millis(100);
        }
        if done || !watch {
            return Ok(());
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            bail!("timed out waiting for the condition");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// kubectl's sentence about a rollout, and whether it is done.
fn progress(object: &Value, name: &str) -> Result<(String, bool)> {
    let number = |path: &str| object.pointer(path).and_then(Value::as_i64);
    let status = |field: &str| number(&format!("/status/{field}")).unwrap_or(0);
    let seen = status("observedGeneration");
    let kind = object["kind"].as_str().unwrap_or_default();
    if number("/metadata/generation").is_some_and(|generation| generation > seen) {
        let what = match kind {
            "Deployment" => "deployment spec update to be observed...",
            "DaemonSet" => "daemon set spec update to be observed...",
            _ => "statefulset spec update to be observed...",
        };
        return Ok((format!("Waiting for {what}"), false));
    }
    match kind {
        "Deployment" => {
            let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
            let stuck = conditions.iter().any(|condition| {
                condition["type"] == "Progressing" && condition["reason"] == "ProgressDeadlineExceeded"
            });
            if stuck {
                bail!("deployment {name:?} exceeded its progress deadline");
            }
            let wanted = number("/spec/replicas").unwrap_or(1);
            let (all, updated, available) =
                (status("replicas"), status("updatedReplicas"), status("availableReplicas"));
            if updated < wanted {
                return Ok((
                    format!(
                        "Waiting for deployment {name:?} rollout to finish: {updated} out of {wanted} new replicas have been updated..."
                    ),
                    false,
                ));
            }
            if all > updated {
                return Ok((
                    format!(
                        "Waiting for deployment {name:?} rollout to finish: {} old replicas are pending termination...",
                        all - updated
                    ),
                    false,
                ));
            }
            if available < updated {
                return Ok((
                    format!(
                        "Waiting for deployment {name:?} rollout to finish: {available} of {updated} updated replicas are available..."
                    ),
                    false,
                ));
            }
            Ok((format!("deployment {name:?} successfully rolled out"), true))
        }
        "DaemonSet" => {
            let (wanted, updated, available) = (
                status("desiredNumberScheduled"),
                status("updatedNumberScheduled"),
                status("numberAvailable"),
            );
            if updated < wanted {
                return Ok((
                    format!(
                        "Waiting for daemon set {name:?} rollout to finish: {updated} out of {wanted} new pods have been updated..."
                    ),
                    false,
                ));
            }
            if available < wanted {
                return Ok((
                    format!(
                        "Waiting for daemon set {name:?} rollout to finish: {available} of {wanted} updated pods are available..."
                    ),
                    false,
                ));
            }
            Ok((format!("daemon set {name:?} successfully rolled out"), true))
        }
        _ => {
            let wanted = number("/spec/replicas").unwrap_or(1);
            let (ready, updated) = (status("readyReplicas"), status("updatedReplicas"));
            if ready < wanted {
                return Ok((format!("Waiting for {} pods to be ready...", wanted - ready), false));
            }
            let partition = number("/spec/updateStrategy/rollingUpdate/partition").unwrap_or(0);
            if partition > 0 {
                if updated < wanted - partition {
                    return Ok((
                        format!(
                            "Waiting for partitioned roll out to finish: {updated} out of {} new pods have been updated...",
                            wanted - partition
                        ),
                        false,
                    ));
                }
                return Ok((
                    format!("partitioned roll out complete: {updated} new pods have been updated..."),
                    true,
                ));
            }
            if object["status"]["updateRevision"] != object["status"]["currentRevision"] {
                return Ok((
                    format!(
                        "waiting for statefulset rolling update to complete {updated} pods at revision {}...",
                        object["status"]["updateRevision"].as_str().unwrap_or_default()
                    ),
                    false,
                ));
            }
            Ok((
                format!(
                    "statefulset rolling update complete {ready} pods at revision {}...",
                    object["status"]["currentRevision"].as_str().unwrap_or_default()
                ),
                true,
            ))
        }
    }
}

async fn change(
    session: &Session,
    parsed: &Parsed,
    kind: &Kind,
    name: &str,
    patch: &Value,
    verb: &str,
) -> Result<()> {
    let dry_run = DryRun::new(parsed)?;
    if dry_run != DryRun::Client {
        let query = [("fieldManager", "kubectl-rollout".to_string()), dry_run.query()];
        session.patch(&session.object(kind, name), &query, "strategic-merge-patch+json", patch).await?;
    }
    output::print(&format!("{}/{name} {verb}{}\n", kind.in_messages(), dry_run.suffix()))
}

async fn restart(session: &Session, parsed: &Parsed, kind: &Kind, name: &str) -> Result<()> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": now}}}}});
    change(session, parsed, kind, name, &patch, "restarted").await
}

async fn pause(session: &Session, parsed: &Parsed, kind: &Kind, name: &str, paused: bool) -> Result<()> {
    if kind.kind != "Deployment" {
        bail!("{} cannot be paused: only deployments can", kind.resource());
    }
    let found = session.get(&session.object(kind, name), &[]).await?;
    let verb = if paused { "paused" } else { "resumed" };
    if found["spec"]["paused"].as_bool().unwrap_or(false) == paused {
        bail!("{}/{name} is already {verb}", kind.in_messages());
    }
    change(session, parsed, kind, name, &json!({"spec": {"paused": paused}}), verb).await
}

/// A kept version of the pod template.
struct Revision {
    number: i64,
    cause: String,
    template: Value,
}

/// Revisions, oldest first: ReplicaSets of a Deployment, else ControllerRevisions.
async fn revisions(session: &Session, object: &Value, kind: &Kind) -> Result<Vec<Revision>> {
    let uid = &object["metadata"]["uid"];
    let selector = labels(&object["spec"]["selector"]["matchLabels"]);
    let path = match kind.kind.as_str() {
        "Deployment" => format!("/apis/apps/v1/namespaces/{}/replicasets", session.namespace),
        _ => format!("/apis/apps/v1/namespaces/{}/controllerrevisions", session.namespace),
    };
    let list = session.get(&path, &[("labelSelector", selector.replace("<none>", ""))]).await?;
    let owned = |item: &&Value| {
        item["metadata"]["ownerReferences"].as_array().into_iter().flatten().any(|owner| owner["uid"] == *uid)
    };
    let mut found: Vec<Revision> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(owned)
        .map(|item| {
            let annotations = &item["metadata"]["annotations"];
            let cause = annotations[CAUSE].as_str().unwrap_or("<none>").to_string();
            match kind.kind.as_str() {
                "Deployment" => Revision {
                    number: annotations[REVISION].as_str().and_then(|text| text.parse().ok()).unwrap_or(0),
                    cause,
                    template: item["spec"]["template"].clone(),
                },
                _ => Revision {
                    number: item["revision"].as_i64().unwrap_or(0),
                    cause,
                    template: item["data"]["spec"]["template"].clone(),
                },
            }
        })
        .collect();
    found.sort_by_key(|revision| revision.number);
    Ok(found)
}

async fn history(session: &Session, parsed: &Parsed, kind: &Kind, name: &str) -> Result<()> {
    let object = session.get(&session.object(kind, name), &[]).await?;
    let revisions = revisions(session, &object, kind).await?;
    if let Some(wanted) = parsed.number("revision")?.filter(|wanted| *wanted > 0) {
        let Some(found) = revisions.iter().find(|revision| revision.number == wanted) else {
            bail!("unable to find the specified revision {wanted}: 'rollout history' lists them");
        };
        output::print(&format!(
            "{}/{name} with revision #{wanted}\n{}",
            kind.in_messages(),
            output::yaml(&found.template)
        ))?;
        return Ok(());
    }
    let mut rows = vec![vec!["REVISION".to_string(), "CHANGE-CAUSE".to_string()]];
    rows.extend(revisions.iter().map(|revision| vec![revision.number.to_string(), revision.cause.clone()]));
    output::print(&format!("{}/{name} \n{}\n", kind.in_messages(), output::aligned(&rows)))
}

async fn undo(session: &Session, parsed: &Parsed, kind: &Kind, name: &str) -> Result<()> {
    let path = session.object(kind, name);
    let object = session.get(&path, &[]).await?;
    if object["spec"]["paused"] == true {
        bail!("you cannot rollback a paused deployment; resume it first with 'rollout resume' and try again");
    }
    let revisions = revisions(session, &object, kind).await?;
    let wanted = parsed.number("to-revision")?.unwrap_or(0);
    let target = match wanted {
        0 if revisions.len() < 2 => bail!("no rollout history found for {} {name:?}", kind.in_messages()),
        0 => &revisions[revisions.len() - 2],
        wanted => match revisions.iter().find(|revision| revision.number == wanted) {
            Some(found) => found,
            None => {
                bail!("unable to find specified revision {wanted} in history: 'rollout history' lists them")
            }
        },
    };
    let mut template = target.template.clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove("pod-template-hash");
    }
    if template["metadata"]["creationTimestamp"].is_null()
        && let Some(meta) = template["metadata"].as_object_mut()
    {
        meta.remove("creationTimestamp");
    }
    let mut now = object["spec"]["template"].clone();
    for template in [&mut now, &mut template] {
        if let Some(map) = template.as_object_mut() {
            // A strategic merge directive that ControllerRevisions carry.
            map.remove("$patch");
        }
    }
    let dry_run = DryRun::new(parsed)?;
    if now == template {
        return output::print(&format!(
            "{}/{name} skipped rollback (current template already matches revision {})\n",
            kind.in_messages(),
            target.number
        ));
    }
    if dry_run != DryRun::Client {
        // Replaced, not merged: what the revision has not must go.
        let patch = json!([{"op": "replace", "path": "/spec/template", "value": template}]);
        let query = [("fieldManager", "kubectl-rollout".to_string()), dry_run.query()];
        session.patch(&path, &query, "json-patch+json", &patch).await?;
    }
    output::print(&format!("{}/{name} rolled back{}\n", kind.in_messages(), dry_run.suffix()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(status: Value) -> Value {
        json!({"kind": "Deployment", "metadata": {"generation": 2}, "spec": {"replicas": 3}, "status": status})
    }

    #[test]
    fn a_deployment_is_done_when_all_new_replicas_are_available_and_no_old_ones_left() {
        let text = |status: Value| progress(&deployment(status), "web").expect("a sentence");
        assert!(text(json!({"observedGeneration": 1})).0.contains("to be observed"));
        assert!(
            text(json!({"observedGeneration": 2, "updatedReplicas": 1}))
                .0
                .contains("1 out of 3 new replicas")
        );
        let old =
            json!({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 4, "availableReplicas": 3});
        assert!(text(old).0.contains("1 old replicas are pending termination"));
        let (message, done) = text(
            json!({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 3}),
        );
        assert!(done && message.contains("successfully rolled out"));
    }
}
