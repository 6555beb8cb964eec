//! How a pod is doing, in a few words.

use super::{age, or_none, since};
use crate::value::{at, flag, int, items, name, terminating, text};
use serde_json::{Value, json};

/// Pods that are done are shown as such by clients.
pub fn row_conditions(pod: &Value) -> Option<Value> {
    let phase = text(pod, "status.phase");
    (phase == "Succeeded" || phase == "Failed").then(|| {
        json!([{"type": "Completed", "status": "True", "reason": phase,
            "message": if phase == "Succeeded" { "The pod has completed successfully." } else { "The pod failed." }}])
    })
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    items(pod, "status.conditions").iter().find(|c| text(c, "type") == kind)
}

/// What the init containers make of the status, and whether they are still at it.
fn init_reason(pod: &Value) -> Option<String> {
    let specs = items(pod, "spec.initContainers");
    let restartable =
        |n: &str| specs.iter().any(|c| text(c, "name") == n && text(c, "restartPolicy") == "Always");
    for (i, status) in items(pod, "status.initContainerStatuses").iter().enumerate() {
        let state = &status["state"];
        let terminated = &state["terminated"];
        if !terminated.is_null() && int(terminated, "exitCode") == 0 {
            continue;
        }
        if restartable(text(status, "name")) && flag(status, "started") {
            continue;
        }
        if !terminated.is_null() {
            let reason = text(terminated, "reason");
            return Some(match (reason.is_empty(), int(terminated, "signal")) {
                (false, _) => format!("Init:{reason}"),
                (true, 0) => format!("Init:ExitCode:{}", int(terminated, "exitCode")),
                (true, signal) => format!("Init:Signal:{signal}"),
            });
        }
        let waiting = text(state, "waiting.reason");
        if !waiting.is_empty() && waiting != "PodInitializing" {
            return Some(format!("Init:{waiting}"));
        }
        return Some(format!("Init:{i}/{}", specs.len()));
    }
    None
}

fn status(pod: &Value) -> String {
    let mut reason = text(pod, "status.phase").to_string();
    if !text(pod, "status.reason").is_empty() {
        reason = text(pod, "status.reason").into();
    }
    if let Some(c) = condition(pod, "PodScheduled")
        && text(c, "reason") == "SchedulingGated"
    {
        reason = "SchedulingGated".into();
    }
    let initializing = init_reason(pod);
    if let Some(init) = &initializing {
        reason = init.clone();
    }
    if initializing.is_none() || condition(pod, "Initialized").is_some_and(|c| text(c, "status") == "True") {
        let mut running = false;
        for s in items(pod, "status.containerStatuses").iter().rev() {
            let (waiting, terminated) = (text(s, "state.waiting.reason"), at(s, "state.terminated"));
            if !waiting.is_empty() {
                reason = waiting.into();
            } else if !text(terminated, "reason").is_empty() {
                reason = text(terminated, "reason").into();
            } else if !terminated.is_null() {
                let signal = int(terminated, "signal");
                reason = if signal != 0 {
                    format!("Signal:{signal}")
                } else {
                    format!("ExitCode:{}", int(terminated, "exitCode"))
                };
            } else if flag(s, "ready") && !at(s, "state.running").is_null() {
                running = true;
            }
        }
        if reason == "Completed" && running {
            let ready = condition(pod, "Ready").is_some_and(|c| text(c, "status") == "True");
            reason = if ready { "Running".into() } else { "NotReady".into() };
        }
    }
    if terminating(pod) {
        let phase = text(pod, "status.phase");
        if text(pod, "status.reason") == "NodeLost" {
            reason = "Unknown".into();
        } else if phase != "Failed" && phase != "Succeeded" {
            reason = "Terminating".into();
        }
    }
    reason
}

/// Name, Ready, Status, Restarts, Age, IP, Node, Nominated Node, Readiness Gates.
pub fn cells(pod: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let sidecars: Vec<&str> = items(pod, "spec.initContainers")
        .iter()
        .filter(|c| text(c, "restartPolicy") == "Always")
        .map(|c| text(c, "name"))
        .collect();
    let total = items(pod, "spec.containers").len() + sidecars.len();
    let counted: Vec<&Value> = items(pod, "status.containerStatuses")
        .iter()
        .chain(
            items(pod, "status.initContainerStatuses").iter().filter(|s| sidecars.contains(&text(s, "name"))),
        )
        .collect();
    let ready = counted.iter().filter(|s| flag(s, "ready") && !at(s, "state.running").is_null()).count();
    let watched: Vec<&Value> = if init_reason(pod).is_some() {
        items(pod, "status.initContainerStatuses").iter().collect()
    } else {
        counted
    };
    let restarts: i64 = watched.iter().map(|s| int(s, "restartCount")).sum();
    let last = watched
        .iter()
        .map(|s| at(s, "lastState.terminated.finishedAt"))
        .filter(|t| t.is_string())
        .max_by_key(|t| t.as_str());
    let restarts = match last {
        Some(when) if restarts > 0 => format!("{restarts} ({} ago)", since(when, now)),
        _ => restarts.to_string(),
    };
    let gates = items(pod, "spec.readinessGates");
    let gates_shown = if gates.is_empty() {
        "<none>".to_string()
    } else {
        let on = |g: &&Value| {
            condition(pod, text(g, "conditionType")).is_some_and(|c| text(c, "status") == "True")
        };
        format!("{}/{}", gates.iter().filter(on).count(), gates.len())
    };
    let ip = items(pod, "status.podIPs").first().map_or(text(pod, "status.podIP"), |i| text(i, "ip"));
    vec![
        json!(name(pod)),
        json!(format!("{ready}/{total}")),
        json!(status(pod)),
        json!(restarts),
        json!(age(pod, now)),
        json!(or_none(ip)),
        json!(or_none(text(pod, "spec.nodeName"))),
        json!(or_none(text(pod, "status.nominatedNodeName"))),
        json!(gates_shown),
    ]
}
