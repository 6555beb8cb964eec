//! `why`: what keeps a pod from running, from its conditions, container states and events, in one page with a remedy
//! each. `-o json` gives the same as data.

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::args::Parsed;
use crate::describe::{about, age};
use crate::output;
use crate::session::Session;

/// A reason with what helps.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Finding {
    what: String,
    because: String,
    remedy: String,
}

fn finding(what: impl Into<String>, because: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { what: what.into(), because: because.into(), remedy: remedy.into() }
}

/// Runs `why pod NAME`.
pub async fn run(session: &Session, parsed: &Parsed) -> Result<i32> {
    let name = match &parsed.words[..] {
        [kind, name] if matches!(kind.as_str(), "pod" | "pods" | "po") => name.as_str(),
        [word] => word.strip_prefix("pod/").unwrap_or(word),
        _ => bail!("name a pod: why pod NAME"),
    };
    let pod = session.get(&format!("/api/v1/namespaces/{}/pods/{name}", session.namespace), &[]).await?;
    let events = about(session, &pod).await?;
    let findings = explain(&pod, &events);
    if parsed.get("output") == Some("json") {
        output::print(&format!("{}\n", output::pretty(&serde_json::to_value(&findings)?)?))?;
        return Ok(0);
    }
    let phase = pod["status"]["phase"].as_str().unwrap_or("Unknown");
    let node = pod["spec"]["nodeName"].as_str().unwrap_or("no node yet");
    output::print(&format!("pod/{name}: {phase} on {node}\n"))?;
    if findings.is_empty() {
        output::print("  Nothing keeps it from running.\n")?;
    }
    for found in findings {
        output::print(&format!(
            "\n  {}\n    because  {}\n    remedy   {}\n",
            found.what, found.because, found.remedy
        ))?;
    }
    Ok(0)
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn explain(pod: &Value, events: &[Value]) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(since) = pod["metadata"]["deletionTimestamp"].as_str() {
        found.push(terminating(pod, since));
    }
    if text(pod, "/spec/nodeName").is_empty() {
        found.extend(pending(pod));
        return found;
    }
    for field in ["initContainerStatuses", "containerStatuses"] {
        for status in pod["status"][field].as_array().into_iter().flatten() {
            found.extend(container(status));
        }
    }
    let ready = condition(pod, "Ready");
    if found.is_empty() && ready.is_some_and(|ready| ready["status"] != "True") {
        let ready = ready.unwrap_or(&Value::Null);
        let warning = events.iter().rev().find(|event| event["type"] == "Warning");
        let because = warning.map_or_else(
            || text(ready, "/message").to_string(),
            |event| format!("{}: {}", text(event, "/reason"), text(event, "/message")),
        );
        if text(pod, "/status/phase") != "Succeeded" {
            found.push(finding(
                "It runs but is not ready.",
                because,
                "see the events ('describe pod') and the readiness probe",
            ));
        }
    }
    if matches!(
        text(pod, "/status/reason"),
        "Evicted" | "NodeLost" | "Preempting" | "OutOfcpu" | "OutOfmemory"
    ) {
        found.push(finding(
            format!("It was ended: {}.", text(pod, "/status/reason")),
            text(pod, "/status/message"),
            "a controller makes a new one; a bare pod must be created again",
        ));
    }
    found
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn terminating(pod: &Value, since: &str) -> Finding {
    let finalizers = pod["metadata"]["finalizers"].as_array().filter(|list| !list.is_empty());
    match finalizers {
        Some(finalizers) => finding(
            format!("It is terminating (asked {} ago).", age(since)),
            format!("finalizers hold it: {}", Value::Array(finalizers.clone())),
            "the controllers that own these finalizers must finish; see their logs",
        ),
        None => finding(
            format!("It is terminating (due {} ago).", age(since)),
            format!("the node {:?} has not confirmed that its containers ended", text(pod, "/spec/nodeName")),
            "wait for the grace period; if the node is gone for good, 'delete pod --force'",
        ),
    }
}

/// Reasons of the scheduler, one finding each: what stands before the preemption sentence.
fn pending(pod: &Value) -> Vec<Finding> {
    let Some(scheduled) = condition(pod, "PodScheduled") else {
        let name = text(pod, "/spec/schedulerName");
        return vec![finding(
            "No scheduler has looked at it yet.",
            format!("it asks for scheduler {name:?}"),
            "check that this scheduler runs: 'get lease -n kube-system'",
        )];
    };
    let message = text(scheduled, "/message");
    if text(scheduled, "/reason") == "SchedulingGated" {
        return vec![finding(
            "It is held back by scheduling gates.",
            message,
            "whoever set spec.schedulingGates must take them away",
        )];
    }
    let verdict = message.split(" preemption:").next().unwrap_or(message);
    let (head, reasons) = verdict.split_once(": ").unwrap_or((verdict, ""));
    let mut found = Vec::new();
    for reason in reasons.trim_end_matches('.').split(", ").filter(|reason| !reason.is_empty()) {
        found.push(finding(format!("No node takes it ({head})."), reason, remedy(reason)));
    }
    if found.is_empty() {
        found.push(finding("No node takes it.", message, remedy(message)));
    }
    found
}

/// What helps against a scheduler's reason.
fn remedy(reason: &str) -> &'static str {
    const REMEDIES: &[(&str, &str)] = &[
        ("Insufficient", "lower its requests, add a node, or free room ('top node', 'describe node')"),
        ("Too many pods", "add a node, or raise the node's pod limit"),
        ("untolerated taint", "add a toleration, or take the taint away ('describe node' shows taints)"),
        ("were unschedulable", "'uncordon' the node"),
        (
            "node affinity/selector",
            "label a node so that it matches, or relax nodeSelector and node affinity",
        ),
        ("requested node name", "the node it names is not there: correct spec.nodeName"),
        ("free ports", "another pod has this host port: change it, or add a node"),
        ("anti-affinity", "add a node in another place, or relax the anti-affinity"),
        ("pod affinity rules", "start a pod that the affinity looks for, or relax the affinity"),
        ("topology spread", "add nodes in the emptier places, or raise maxSkew"),
        ("unbound immediate", "bind or provision its claims: 'get pvc', 'describe pvc'"),
        ("persistentvolumeclaim", "create the claim, or correct its name"),
        (
            "persistent volumes to bind",
            "add a volume that fits the claim, or a storage class that provisions",
        ),
        ("PersistentVolume's node affinity", "its volume lives on another node, which must take it"),
        ("volume zone", "its volume lives in another zone, which needs a node"),
        ("max volume count", "the node attaches no more volumes: add a node"),
        ("no nodes available", "join a node: 'get nodes'"),
    ];
    let known = REMEDIES.iter().find(|(sign, _)| reason.contains(sign));
    known.map_or("see 'describe pod' and the scheduler's log", |(_, remedy)| remedy)
}

fn container(status: &Value) -> Vec<Finding> {
    let name = text(status, "/name");
    let last = &status["lastState"]["terminated"];
    let mut found = Vec::new();
    if let Some(waiting) = status["state"].get("waiting") {
        let (reason, message) = (text(waiting, "/reason"), text(waiting, "/message"));
        let remedy = match reason {
            "CrashLoopBackOff" => "read why it ended: 'logs --previous'",
            "ImagePullBackOff" | "ErrImagePull" | "InvalidImageName" => {
                "correct the image name or its pull secret"
            }
            "CreateContainerConfigError" => "a ConfigMap, Secret or key it names is absent: create it",
            "ContainerCreating" | "PodInitializing" => "wait; if it stays, see the events: 'describe pod'",
            _ => "see the events: 'describe pod'",
        };
        found.push(finding(
            format!("Container {name} waits: {reason}."),
            if message.is_empty() { "no message" } else { message },
            remedy,
        ));
    }
    if !last.is_null() {
        let (code, reason) = (last["exitCode"].as_i64().unwrap_or(0), text(last, "/reason"));
        let restarts = status["restartCount"].as_i64().unwrap_or(0);
        let remedy = match (reason, code) {
            ("OOMKilled", _) | (_, 137) => {
                "it used more memory than its limit, or was killed: raise the limit or see the liveness probe"
            }
            (_, 0) => "it ends by itself: a container of a service must keep running",
            _ => "read its last output: 'logs --previous'",
        };
        found.push(finding(
            format!("Container {name} restarted {restarts} times."),
            format!(
                "it last ended {} ago with exit code {code} ({reason}) {}",
                age(text(last, "/finishedAt")),
                text(last, "/message")
            )
            .trim()
            .to_string(),
            remedy,
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_reason_of_the_scheduler_gets_its_remedy() {
        let pod = json!({"metadata": {"name": "a"}, "spec": {}, "status": {"conditions": [{"type": "PodScheduled",
            "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."}]}});
        let found = explain(&pod, &[]);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].because, "2 Insufficient cpu");
        assert!(found[0].remedy.contains("toleration") && found[1].remedy.contains("requests"));
    }

    #[test]
    fn a_crash_loop_points_at_the_previous_log() {
        let pod = json!({"metadata": {}, "spec": {"nodeName": "n"}, "status": {"containerStatuses": [{"name": "c", "restartCount": 4,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}});
        let found = explain(&pod, &[]);
        assert!(
            found[0].remedy.contains("--previous") && found[1].because.contains("exit code 1"),
            "{found:?}"
        );
    }

    #[test]
    fn a_running_ready_pod_needs_no_explanation() {
        let pod = json!({"metadata": {}, "spec": {"nodeName": "n"}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "c", "state": {"running": {}}, "ready": true}]}});
        assert_eq!(explain(&pod, &[]), []);
    }
}
