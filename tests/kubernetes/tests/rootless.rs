//! `keelson up` without root: a real control plane of three servers, simulated nodes, and it says so.
//!
//! When the suite runs as root, everything happens as an ordinary user in a network namespace of its own: a copy of the
//! binary, a home of its own, nothing else. Otherwise as whoever runs it, on this machine's loopback. Our own kubectl is
//! the client.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use keelson_kubernetes_tests::{LATER, SOON, condition};
use keelson_test_harness::{Ran, binary, call, eventually, is_root, run};
use serde_json::{Value, json};

/// Nobody's user and group id on Debian.
const NOBODY: &str = "65534";

struct Somebody {
    folder: tempfile::TempDir,
    /// The network namespace, if the suite is root.
    namespace: Option<String>,
}

impl Somebody {
    fn new() -> Somebody {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let program = folder.path().join("keelson");
        std::fs::copy(binary(), &program).expect("a copy of the binary");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("executable");
        let namespace = is_root().then(|| format!("kn-rootless-{}", std::process::id()));
        if let Some(name) = &namespace {
            let folder = folder.path().to_str().expect("UTF-8 path");
            let owner = format!("{NOBODY}:{NOBODY}");
            for (program, words) in [
                ("chown", &["-R", &owner, folder][..]),
                ("ip", &["netns", "add", name]),
                ("ip", &["-n", name, "link", "set", "lo", "up"]),
            ] {
                let ran = call(program, words);
                assert!(ran.ok, "{program} {words:?}: {}", ran.err);
            }
        }
        Somebody { folder, namespace }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("cluster")
    }

    /// The binary as that user.
    fn keelson(&self, words: &[&str], deadline: Duration) -> Ran {
        let mut command = match &self.namespace {
            None => Command::new(self.folder.path().join("keelson")),
            Some(name) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{name}"));
                command.args(["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
                command.arg("--no-new-privs").arg(self.folder.path().join("keelson"));
                command
            }
        };
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.folder.path()).env("KUBECONFIG", self.data().join("kubeconfig"));
        command.current_dir(self.folder.path()).args(words);
        run(&mut command, deadline)
    }

    fn cluster(&self, verb: &str, more: &[&str]) -> Ran {
        let data = self.data();
        let mut words = vec![verb, "--data-dir", data.to_str().expect("UTF-8 path")];
        words.extend(more);
        self.keelson(&words, LATER)
    }

    /// Our own kubectl, whatever it answers.
    fn kubectl(&self, words: &[&str]) -> Ran {
        self.keelson(&[&["kubectl"], words].concat(), Duration::from_secs(60))
    }

    fn get(&self, words: &[&str]) -> Result<Value, String> {
        let ran = self.kubectl(&[&["get"], words, &["-o", "json"]].concat());
        if !ran.ok {
            return Err(ran.err);
        }
        serde_json::from_str(&ran.out).map_err(|error| error.to_string())
    }

    fn apply(&self, object: &Value) {
        let path = self.folder.path().join("object.json");
        std::fs::write(&path, object.to_string()).expect("written");
        let ran = self.kubectl(&["apply", "-f", path.to_str().expect("UTF-8 path")]);
        assert!(ran.ok, "{}{}", ran.out, ran.err);
    }

    fn wait(&self, what: &str, words: &[&str], holds: impl Fn(&Value) -> bool) -> Value {
        eventually(what, SOON, || {
            let seen = self.get(words)?;
            if holds(&seen) { Ok(seen) } else { Err(seen["status"].to_string()) }
        })
    }

    /// Everything the parts logged, its ends.
    fn logs(&self) -> String {
        let mut text = String::new();
        for part in ["n1/server.log", "n2/server.log", "n3/server.log", "lb.log", "simulated.log"] {
            let log = std::fs::read_to_string(self.data().join(part)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(15)..];
            text.push_str(&format!("---- {part}\n{}\n", tail.join("\n")));
        }
        text
    }
}

impl Drop for Somebody {
    fn drop(&mut self) {
        if self.data().exists() {
            let ran = self.cluster("down", &[]);
            println!("{}{}", ran.out, ran.err);
        }
        if let Some(name) = &self.namespace {
            let _gone = call("ip", &["netns", "del", name]);
        }
    }
}

/// Processes whose command line names the folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let text = folder.to_str().expect("UTF-8 path");
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(text))
        .collect()
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn without_root_a_real_control_plane_has_simulated_nodes_and_says_so() {
    let user = Somebody::new();
    let up = user.cluster("up", &[]);
    println!("{}{}", up.out, up.err);
    assert!(up.ok, "{}", user.logs());
    assert!(up.out.contains("the nodes are simulated") && up.out.contains("no container runs"), "{}", up.out);
    if user.namespace.is_some() {
        assert!(up.out.contains("This is not root"), "{}", up.out);
    }
    nodes_and_demo(&user);
    what_can_t_be_is_refused(&user);
    our_own_verbs(&user);
    pods_come_and_go(&user);
    the_leader_is_killed(&user);
    let again = user.cluster("up", &["--simulated", "5"]);
    assert!(again.ok, "{}{}\n{}", again.out, again.err, user.logs());
    let nodes = user.get(&["nodes"]).expect("listed");
    assert_eq!(items(&nodes).len(), 5, "more nodes join; the killed server is back");
    let status = status(&user);
    assert!(items_all(&status["servers"], |server| server["server"] == true), "{status}");
    down_leaves_nothing(user);
}

fn items_all(list: &Value, holds: impl Fn(&Value) -> bool) -> bool {
    list.as_array().is_some_and(|list| list.len() == 3 && list.iter().all(holds))
}

fn status(user: &Somebody) -> Value {
    let ran = user.cluster("status", &["-o", "json"]);
    assert!(ran.ok, "{}{}", ran.out, ran.err);
    serde_json::from_str(&ran.out).expect("JSON")
}

fn nodes_and_demo(user: &Somebody) {
    let nodes = user.get(&["nodes"]).expect("listed");
    assert_eq!(items(&nodes).len(), 3);
    for node in items(&nodes) {
        assert_eq!(condition(node, "Ready"), Some("True"), "{node}");
        assert_eq!(node["metadata"]["labels"]["keelson.dev/simulated"], "true");
        let runtime = node["status"]["nodeInfo"]["containerRuntimeVersion"].as_str().unwrap_or_default();
        assert!(runtime.starts_with("simulated://"), "{runtime}");
        assert!(node["status"]["allocatable"]["cpu"].is_string(), "{node}");
    }
    user.wait("the demo available", &["deployment", "demo"], |demo| demo["status"]["availableReplicas"] == 3);
    let pods = user.get(&["pods", "-l", "app=demo"]).expect("listed");
    let addresses: std::collections::BTreeSet<&str> =
        items(&pods).iter().filter_map(|pod| pod["status"]["podIP"].as_str()).collect();
    assert_eq!(addresses.len(), 3, "an address each: {pods}");
    let status = status(user);
    assert!(items_all(&status["servers"], |server| server["server"] == true), "{status}");
    assert_eq!(status["simulated"], json!({"nodes": 3, "ready": 3, "process": true}));
    assert!(status["leader"].is_string(), "{status}");
    let text = user.cluster("status", &[]).out;
    assert!(text.contains("simulated nodes (no containers): 3 of 3 Ready"), "{text}");
}

/// Logs and exec of a pod that does not really run are an error that says why, not an empty answer.
fn what_can_t_be_is_refused(user: &Somebody) {
    if user.namespace.is_some() {
        // What does need root says so, and what to do instead.
        let data = user.folder.path().join("node");
        let agent = user.keelson(&["agent", "--data-dir", data.to_str().expect("UTF-8 path")], SOON);
        assert!(!agent.ok && agent.err.contains("needs root"), "{}", agent.err);
        assert!(agent.err.contains("keelson simulate"), "{}", agent.err);
        let kubelet = user.keelson(&["kubelet", "--node-ip=127.0.0.1", "--pod-manifest-path=."], SOON);
        assert!(!kubelet.ok && kubelet.err.contains("run it as root"), "{}", kubelet.err);
        let server = user.keelson(&["server", "--node-ip=127.0.0.1", "--data-dir=/root/keelson"], SOON);
        assert!(!server.ok && server.err.contains("choose another --data-dir"), "{}", server.err);
    }
    let pods = user.get(&["pods", "-l", "app=demo"]).expect("listed");
    let pod = items(&pods)[0]["metadata"]["name"].as_str().expect("a name").to_owned();
    for (words, why) in [
        (&["logs", &pod][..], "so there are no logs"),
        (&["exec", &pod, "--", "true"], "so there is nothing to run a command in"),
    ] {
        let ran = user.kubectl(words);
        assert!(!ran.ok && ran.out.is_empty(), "{words:?}: {}", ran.out);
        assert!(
            ran.err.contains("is simulated: no container runs on it") && ran.err.contains(why),
            "{}",
            ran.err
        );
    }
}

/// The verbs for machines without kubectl, in the forms people type.
fn our_own_verbs(user: &Somebody) {
    let says = |words: &[&str]| {
        let ran = user.keelson(words, Duration::from_secs(90));
        assert!(ran.ok, "{words:?}: {}{}", ran.out, ran.err);
        ran.out
    };
    let wide = says(&["get", "nodes,pods", "-A", "-o", "wide"]);
    assert!(wide.contains("simulated://") && wide.contains("10.244."), "{wide}");
    let described = says(&["describe", "node", "sim-1"]);
    assert!(described.contains("simulated (no containers)") && described.contains("Ready"), "{described}");
    let described = says(&["describe", "deployment/demo"]);
    assert!(described.contains("Available") && described.contains("Scaled up replica set"), "{described}");
    assert!(says(&["rollout", "status", "deployment/demo"]).contains("successfully rolled out"));
    says(&["label", "deployment", "demo", "tier=web"]);
    assert!(says(&["get", "deploy", "-l", "tier=web", "-o", "name"]).contains("deployment.apps/demo"));
    let image = r#"{"spec":{"template":{"metadata":{"annotations":{"round":"2"}}}}}"#;
    says(&["patch", "deployment", "demo", "-p", image]);
    says(&["rollout", "status", "deployment/demo", "--timeout=80s"]);
    says(&["rollout", "undo", "deployment/demo"]);
    says(&["rollout", "status", "deployment/demo", "--timeout=80s"]);
    assert!(says(&["rollout", "history", "deployment/demo"]).contains("3"), "the third revision");
    let top = user.kubectl(&["top", "nodes"]);
    assert!(!top.ok || !top.out.contains("sim-1"), "nothing is measured: {}", top.out);
}

fn pods_come_and_go(user: &Somebody) {
    let scaled = user.kubectl(&["scale", "deployment/demo", "--replicas=5"]);
    assert!(scaled.ok, "{}", scaled.err);
    user.wait("five pods available", &["deployment", "demo"], |demo| {
        demo["status"]["availableReplicas"] == 5
    });
    let pods = user.get(&["pods", "-l", "app=demo"]).expect("listed");
    let victim = items(&pods)[0]["metadata"]["name"].as_str().expect("a name").to_owned();
    let deleted = user.kubectl(&["delete", "pod", &victim]);
    assert!(deleted.ok, "{}", deleted.err);
    assert!(user.get(&["pod", &victim]).is_err_and(|error| error.contains("NotFound")), "it is gone");
    user.wait("it is replaced", &["deployment", "demo"], |demo| demo["status"]["availableReplicas"] == 5);
    let finite = |name: &str, code: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "annotations": {
                "keelson.dev/simulated-duration": "2s", "keelson.dev/simulated-exit-code": code,
            }},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "localhost/none:1"}]},
        })
    };
    user.apply(&finite("ends-well", "0"));
    user.apply(&finite("ends-badly", "3"));
    user.wait("one succeeds", &["pod", "ends-well"], |pod| pod["status"]["phase"] == "Succeeded");
    let failed = user.wait("one fails", &["pod", "ends-badly"], |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(failed["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
}

/// The store is the real one: its leader killed, writes go on and nothing is lost.
fn the_leader_is_killed(user: &Somebody) {
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    user.apply(&map("before"));
    let leader = status(user)["leader"].as_str().expect("a leader").to_owned();
    let pid = std::fs::read_to_string(user.data().join(&leader).join("server.pid")).expect("its pid");
    assert!(call("kill", &["-9", pid.trim()]).ok);
    eventually("a write without it", SOON, || {
        let ran = user.kubectl(&["create", "configmap", "after"]);
        if ran.ok || ran.err.contains("AlreadyExists") { Ok(()) } else { Err(ran.err) }
    });
    for name in ["before", "after"] {
        eventually("a read without it", SOON, || user.get(&["configmap", name]).map(drop));
    }
    let status = status(user);
    let dead = status["servers"].as_array().into_iter().flatten().filter(|s| s["server"] == false).count();
    assert_eq!(dead, 1, "{status}");
}

fn down_leaves_nothing(user: Somebody) {
    assert!(processes_of(&user.data()).len() >= 5, "three servers, a balancer, the nodes");
    let down = user.cluster("down", &[]);
    assert!(down.ok, "{}{}", down.out, down.err);
    assert_eq!(processes_of(&user.data()), Vec::<String>::new());
    assert!(!user.data().exists(), "the folder is gone");
    let status = user.cluster("status", &[]);
    assert!(!status.ok && status.err.contains("keelson up"), "{}", status.err);
    let twice = user.cluster("down", &[]);
    assert!(twice.ok, "a second down is harmless: {}", twice.err);
}
