//! A three-node cluster on this machine, as the end-to-end tests see it: the binary's `up` and `down`, stock kubectl.
//!
//! One cluster at a time on one machine: `up` names its network namespaces alike wherever it runs.

pub mod plane;
pub mod script;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use keelson_test_harness::{Ran, binary, eventually, run};
use serde_json::Value;

/// The names of the nodes and their addresses on the underlay.
pub const NODES: [(&str, &str); 3] = [("n1", "172.30.0.11"), ("n2", "172.30.0.12"), ("n3", "172.30.0.13")];

/// A deadline for what takes seconds on a quiet machine and must not fail on a busy one.
pub const SOON: Duration = Duration::from_secs(90);
/// The same for what waits for several timeouts in a row.
pub const LATER: Duration = Duration::from_secs(240);

/// The running cluster; dropping it takes it down.
pub struct Cluster {
    folder: tempfile::TempDir,
    kubectl: PathBuf,
}

impl Cluster {
    /// Starts the cluster and waits for its nodes; panics with everything it printed.
    pub fn up(kubectl: PathBuf) -> Cluster {
        let cluster = Cluster { folder: tempfile::tempdir().expect("a temporary folder"), kubectl };
        let ran = cluster.keelson(&["up"], Duration::from_secs(300));
        println!("{}{}", ran.out, ran.err);
        assert!(ran.ok, "up failed\n{}", cluster.log_tails());
        cluster
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// One of the binary's cluster verbs against this cluster's folder.
    pub fn keelson(&self, words: &[&str], deadline: Duration) -> Ran {
        let mut command = Command::new(binary());
        command.arg(words[0]).arg("--data-dir").arg(self.folder.path()).args(&words[1..]);
        run(&mut command, deadline)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Stock kubectl, whatever it answers.
    pub fn try_kubectl(&self, words: &[&str]) -> Ran {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", self.kubeconfig()).args(words);
        run(&mut command, Duration::from_secs(60))
    }

    /// Stock kubectl, which must succeed; its standard output.
    pub fn kubectl(&self, words: &[&str]) -> String {
        let ran = self.try_kubectl(words);
        assert!(ran.ok, "kubectl {}: {}{}\n{}", words.join(" "), ran.out, ran.err, self.log_tails());
        ran.out
    }

    /// `kubectl apply -f` of a manifest.
    pub fn apply(&self, manifest: &str) -> String {
        let path = self.folder.path().join("manifest.yaml");
        std::fs::write(&path, manifest).expect("a manifest can be written");
        self.kubectl(&["apply", "-f", path.to_str().expect("UTF-8 path")])
    }

    /// `kubectl get … -o json`, parsed.
    pub fn get(&self, words: &[&str]) -> Value {
        let mut all = vec!["get"];
        all.extend(words);
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.kubectl(&all)).expect("kubectl prints JSON")
    }

    /// Waits for a condition on an object that kubectl gets.
    pub fn wait(
        &self,
        what: &str,
        deadline: Duration,
        words: &[&str],
        holds: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut all = vec!["get"];
        all.extend(words);
        all.extend(["-o", "json"]);
        let started = Instant::now();
        let seen = eventually(what, deadline, || {
            let ran = self.try_kubectl(&all);
            if !ran.ok {
                return Err(ran.err);
            }
            let object: Value = serde_json::from_str(&ran.out).map_err(|error| error.to_string())?;
            if holds(&object) { Ok(object) } else { Err(shorten(&object)) }
        });
        println!("{what}: {:.1} s", started.elapsed().as_secs_f32());
        seen
    }

    /// Names of the running, ready pods of a label.
    pub fn ready_pods(&self, label: &str) -> Vec<(String, String)> {
        let pods = self.get(&["pods", "-l", label]);
        pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pod| is_ready(pod))
            .map(name_and_node)
            .collect()
    }

    /// What the cluster says of itself.
    pub fn status(&self) -> Value {
        let ran = self.keelson(&["status", "-o", "json"], Duration::from_secs(30));
        assert!(ran.ok, "status: {}{}", ran.out, ran.err);
        serde_json::from_str(&ran.out).expect("status prints JSON")
    }

    /// kill -9 of one of a node's processes: `server`, `agent` or `containerd`.
    pub fn kill(&self, node: &str, part: &str) {
        let path = self.folder.path().join(node).join(format!("{part}.pid"));
        let pid =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(
            Command::new("kill").args(["-9", pid.trim()]).status().is_ok_and(|status| status.success()),
            "kill {part} of {node}"
        );
    }

    /// The ends of every log, for a failure's message.
    pub fn log_tails(&self) -> String {
        let mut text = String::new();
        for (node, _) in NODES {
            for part in ["server", "agent", "containerd"] {
                let path = self.folder.path().join(node).join(format!("{part}.log"));
                let log = std::fs::read(&path).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(25)..].join("\n");
                text.push_str(&format!("---- {node} {part}\n{tail}\n"));
            }
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let ran = self.keelson(&["down"], Duration::from_secs(120));
        println!("{}{}", ran.out, ran.err);
    }
}

/// Whether a pod's Ready condition is True and it is not being deleted.
pub fn is_ready(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null() && condition(pod, "Ready") == Some("True")
}

/// The status of a condition of an object.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)?["status"]
        .as_str()
}

fn name_and_node(pod: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]))
}

fn shorten(object: &Value) -> String {
    let mut text = object["status"].to_string();
    if text == "null" {
        text = object.to_string();
    }
    text.chars().take(1_500).collect()
}
