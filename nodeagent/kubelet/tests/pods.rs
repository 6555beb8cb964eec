//! Static pods through a real containerd: start, environment, volumes, probes, restarts, adoption, termination, clean-up.

mod node;

use keelson_kubelet::cri::Cri;
use node::{IMAGE, TestNode, wait};
use serde_json::json;

fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// `(name, attempt, running)` of every container.
fn containers(node: &TestNode) -> Vec<(String, u32, bool)> {
    block(async {
        let cri = Cri::connect(&node.socket()).await.unwrap();
        let mut list: Vec<_> = cri
            .containers(None)
            .await
            .unwrap()
            .into_iter()
            .map(|c| {
                let metadata = c.metadata.unwrap();
                (metadata.name, metadata.attempt, c.state == 1)
            })
            .collect();
        list.sort();
        list
    })
}

fn running(node: &TestNode, name: &str) -> bool {
    containers(node).iter().any(|(n, _, up)| n == name && *up)
}

#[test]
fn a_pod_runs_restarts_and_leaves_nothing() {
    let Some(mut node) = node::start("life") else { return };
    node.run_kubelet(node.config());
    node.apply("web", json!({"terminationGracePeriodSeconds": 2,
        "initContainers": [{"name": "first", "image": IMAGE, "command": ["sh", "-c", "echo made > /data/file"],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "containers": [
          {"name": "main", "image": IMAGE, "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
            "command": ["sh", "-c", "echo on $(NODE) file=`cat /data/file`; grep web- /etc/hosts; cat /sub; exec sleep 1000"],
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/sub", "subPath": "file"}]},
          {"name": "flaky", "image": IMAGE, "command": ["sh", "-c", "touch /tmp/ok; sleep 4; rm /tmp/ok; exec sleep 1000"],
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
            "livenessProbe": {"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 1, "failureThreshold": 1,
              "terminationGracePeriodSeconds": 1}}],
        "volumes": [{"name": "data", "emptyDir": {"medium": "Memory"}}]}));
    wait("main runs", || running(&node, "main"));
    wait("main wrote its log", || node.log_of("web", "main", 0).matches("made").count() == 2);
    let log = node.log_of("web", "main", 0);
    assert!(log.contains("on node-1 file=made") && log.contains("web-node-1"), "{log}");
    wait("the failed probe restarted flaky", || {
        containers(&node).iter().any(|(name, attempt, up)| name == "flaky" && *attempt >= 1 && *up)
    });
    assert!(containers(&node).iter().any(|(name, attempt, up)| name == "main" && *attempt == 0 && *up));
    node.delete("web");
    wait("all containers are gone", || containers(&node).is_empty());
    node.assert_clean();
}

#[test]
fn a_restarted_kubelet_adopts_running_pods_and_ends_orphans() {
    let Some(mut node) = node::start("adopt") else { return };
    node.run_kubelet(node.config());
    let sleeper = |name: &str| {
        json!({"terminationGracePeriodSeconds": 1,
        "containers": [{"name": name, "image": IMAGE, "command": ["sleep", "1000"]}]})
    };
    node.apply("keep", sleeper("keep"));
    node.apply("lose", sleeper("lose"));
    wait("both run", || running(&node, "keep") && running(&node, "lose"));
    node.stop_kubelet();
    assert!(running(&node, "keep") && running(&node, "lose"));
    node.delete("lose");
    node.run_kubelet(node.config());
    wait("the orphan is gone", || !containers(&node).iter().any(|(name, ..)| name == "lose"));
    assert_eq!(containers(&node), [("keep".to_string(), 0, true)]);
    node.delete("keep");
    wait("all containers are gone", || containers(&node).is_empty());
    node.assert_clean();
}
