//! Scheduling scripts: every file of `testdata/` goes through this one door.
//!
//! A script is commands, one a line (`verb NAME JSON`), each `schedule` followed by `----` and what it answered.
//! `KEELSON_REWRITE=1 cargo test -p keelson-scheduler-core --test scripts` writes the answers; review the diff.

use std::path::Path;
use std::sync::Arc;

use keelson_scheduler_core::plugins::PLUGINS;
use keelson_scheduler_core::{Decision, Options, PodInfo, Snapshot, schedule};
use serde_json::{Value, json};

#[derive(Default)]
struct Script {
    snapshot: Snapshot,
}

impl Script {
    fn run(&mut self, line: &str) -> Option<String> {
        let (verb, rest) = line.split_once(' ').expect("verb NAME JSON");
        let (name, body) = rest.split_once(' ').unwrap_or((rest, "{}"));
        let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{line}: {error}"));
        match verb {
            "node" => self.snapshot.set_node(&from(node(name, &body))),
            "remove-node" => self.snapshot.remove_node(name),
            "pod" => self.snapshot.add_pod(Arc::new(PodInfo::new(&from(pod(name, &body))))),
            "remove-pod" => drop(self.snapshot.remove_pod(name)),
            "nominate" => {
                let pod = PodInfo::new(&from(pod(name, &body)));
                let node = pod.nominated_node.clone();
                self.snapshot.nominated.insert(pod.uid.clone(), (Arc::new(pod), node));
            }
            "claim" => self.snapshot.volumes.set_claim(&from(named(name, body))),
            "volume" => self.snapshot.volumes.set_volume(&from(named(name, body))),
            "class" => self.snapshot.volumes.set_class(&from(named(name, body))),
            "csinode" => self.snapshot.volumes.set_limits(&from(named(name, body))),
            "budget" => self.snapshot.set_budget(&from(named(name, body))),
            "namespace" => {
                self.snapshot.namespaces.insert(name.into(), serde_json::from_value(body).expect("labels"));
            }
            "service" => {
                let key = ("default".to_string(), name.to_string());
                self.snapshot.services.insert(key, serde_json::from_value(body).expect("labels"));
            }
            "schedule" => {
                let pod = PodInfo::new(&from(pod(name, &body)));
                return Some(answer(&schedule(&pod, &self.snapshot, &Options::default())));
            }
            "scores" => {
                let pod = PodInfo::new(&from(pod(name, &body)));
                return Some(scores(&schedule(&pod, &self.snapshot, &Options::default())));
            }
            _ => panic!("unknown verb {verb}"),
        }
        None
    }
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn named(name: &str, mut body: Value) -> Value {
    let meta = &mut body["metadata"];
    if meta.is_null() {
        *meta = json!({});
    }
    meta["name"] = json!(name);
    meta["namespace"] = json!("default");
    body
}

/// `{"cpu", "memory", "pods", "extra", "labels", "taints", "unschedulable", "images"}`; a hostname label is added.
fn node(name: &str, body: &Value) -> Value {
    let mut labels = body.get("labels").cloned().unwrap_or(json!({}));
    labels["kubernetes.io/hostname"] = json!(name);
    let mut allocatable = body.get("extra").cloned().unwrap_or(json!({}));
    for (key, default) in [("cpu", "4"), ("memory", "8Gi"), ("pods", "110"), ("ephemeral-storage", "100Gi")] {
        allocatable[key] = body.get(key).cloned().unwrap_or(json!(default));
    }
    json!({"metadata": {"name": name, "labels": labels},
        "spec": {"taints": body.get("taints"), "unschedulable": body.get("unschedulable")},
        "status": {"allocatable": allocatable, "images": body.get("images")}})
}

/// `{"cpu", "memory", "requests", "labels", "namespace", "priority", "on", "owner", "ports", …}`: other keys go into the spec.
fn pod(name: &str, body: &Value) -> Value {
    let mut spec = body.clone();
    let fields = spec.as_object_mut().expect("an object");
    let mut take = |key: &str| fields.remove(key);
    let mut requests = take("requests").unwrap_or(json!({}));
    for key in ["cpu", "memory"] {
        if let Some(value) = take(key) {
            requests[key] = value;
        }
    }
    let meta = json!({"name": name, "uid": name, "namespace": take("namespace").unwrap_or(json!("default")),
        "labels": take("labels"), "deletionTimestamp": take("deleted"),
        "creationTimestamp": take("created")});
    let status = json!({"nominatedNodeName": take("nominated")});
    let (on, ports, image) = (take("on"), take("ports"), take("image"));
    if let Some(on) = on {
        spec["nodeName"] = on;
    }
    spec["containers"] =
        json!([{"name": "c", "image": image, "resources": {"requests": requests}, "ports": ports}]);
    json!({"metadata": meta, "spec": spec, "status": status})
}

fn answer(decision: &Decision) -> String {
    let mut lines = Vec::new();
    match &decision.placement {
        Some(placement) => {
            lines.push(format!("node {}", placement.node));
            for action in &placement.pre_bind {
                lines.push(format!("before binding: {}", serde_json::to_string(action).expect("JSON")));
            }
        }
        None => lines.push(decision.message()),
    }
    for verdict in &decision.verdicts {
        let detail = &verdict.rejection.detail;
        let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        lines.push(format!("{}: {}{detail}", verdict.node, verdict.plugin));
    }
    if let Some(preemption) = &decision.preemption {
        let victims: Vec<&str> = preemption.victims.iter().map(|victim| victim.name.as_str()).collect();
        lines.push(format!("preempt on {}: {}", preemption.node, victims.join(" ")));
    }
    lines.join("\n")
}

fn scores(decision: &Decision) -> String {
    let line = |score: &keelson_scheduler_core::schedule::NodeScore| {
        let plugins: Vec<String> =
            score.plugins.iter().map(|(plugin, score)| format!("{plugin} {score}")).collect();
        format!("{} {}: {}", score.node, score.total, plugins.join(", "))
    };
    decision.scores.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn replay(text: &str) -> String {
    let mut script = Script::default();
    let mut written = String::new();
    let mut answering = false;
    for line in text.lines() {
        if line == "----" {
            answering = true;
        } else if line.is_empty() {
            answering = false;
            written.push('\n');
        } else if line.starts_with('#') {
            written.push_str(&format!("{line}\n"));
            if line.contains("new cluster") {
                script = Script::default();
            }
        } else if !answering {
            written.push_str(&format!("{line}\n"));
            if let Some(answer) = script.run(line) {
                written.push_str(&format!("----\n{answer}\n"));
            }
        }
    }
    written
}

#[test]
fn scripts_answer_as_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut ran = 0;
    let mut paths: Vec<_> =
        std::fs::read_dir(&folder).expect("testdata").map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("a script");
        let written = replay(&text);
        if std::env::var_os("KEELSON_REWRITE").is_some() {
            std::fs::write(&path, &written).expect("write");
        } else {
            assert_eq!(written, text, "{}: rerun with KEELSON_REWRITE=1 and review the diff", path.display());
        }
        ran += 1;
    }
    assert!(ran >= 5, "scripts are missing from {}", folder.display());
}

#[test]
fn every_filtering_plugin_refuses_somewhere_in_the_scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut all = String::new();
    for entry in std::fs::read_dir(folder).expect("testdata") {
        all.push_str(&std::fs::read_to_string(entry.expect("entry").path()).expect("a script"));
    }
    // These refuse before nodes are looked at, or only score.
    let elsewhere = ["SchedulingGates", "DynamicResources"];
    for plugin in PLUGINS.iter().map(|plugin| plugin.name()).filter(|name| !elsewhere.contains(name)) {
        let shown = all.contains(&format!(": {plugin}")) || all.contains(&format!("{plugin} "));
        assert!(shown, "no script shows {plugin}: add one to testdata/");
    }
}
