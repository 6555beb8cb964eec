//! The whole system, end to end: `keelson up` on this machine, real containers, stock kubectl.
//!
//! One test, since the machine holds one such cluster at a time; each scenario is a function that leaves the
//! cluster as it found it. Skips with a notice without root or without a kubectl of 1.32 or newer.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use keelson_kubernetes_tests::{Cluster, LATER, NODES, SOON, condition, is_ready};
use keelson_test_harness::{call, eventually, is_root, kubectl};

#[test]
fn three_node_cluster() {
    if !is_root() {
        println!("notice: skipped, real containers need root");
        return;
    }
    let Some(kubectl) = kubectl() else {
        println!("notice: skipped, no kubectl of 1.32 or newer on PATH (or in KUBECTL)");
        return;
    };
    let cluster = Cluster::up(kubectl);
    let scenarios: &[(&str, fn(&Cluster))] = &[
        ("nodes_and_demo_are_ready", nodes_and_demo_are_ready),
        ("up_twice_is_harmless", up_twice_is_harmless),
        ("kubectl_reads", kubectl_reads),
        ("kubectl_writes", kubectl_writes),
        ("server_side_apply", server_side_apply),
        ("kubectl_streams", kubectl_streams),
        ("rollout_and_undo", rollout_and_undo),
        ("services_answer_on_every_node", services_answer_on_every_node),
        ("names_resolve_in_pods", names_resolve_in_pods),
        ("volumes_show_configuration", volumes_show_configuration),
        ("claim_is_provisioned_and_survives_its_pod", claim_is_provisioned_and_survives_its_pod),
        ("load_balancer_address_answers", load_balancer_address_answers),
        ("bad_requests_are_refused_clearly", bad_requests_are_refused_clearly),
        ("autoscaler_scales_up_and_down", autoscaler_scales_up_and_down),
        ("runtime_restart_leaves_pods_alone", runtime_restart_leaves_pods_alone),
        ("leader_kill_loses_nothing", leader_kill_loses_nothing),
        ("node_kill_moves_pods_and_node_returns", node_kill_moves_pods_and_node_returns),
    ];
    let only = std::env::var("KEELSON_SCENARIO").ok();
    for (name, scenario) in
        scenarios.iter().filter(|(name, _)| only.as_deref().is_none_or(|only| name.contains(only)))
    {
        let started = Instant::now();
        println!("---- {name}");
        scenario(&cluster);
        println!("---- {name}: ok after {:.1} s", started.elapsed().as_secs_f32());
    }
    down_leaves_nothing(cluster);
}

fn nodes_and_demo_are_ready(cluster: &Cluster) {
    cluster.wait("three nodes Ready", SOON, &["nodes"], |nodes| {
        let nodes = nodes["items"].as_array().map_or(&[][..], Vec::as_slice);
        nodes.len() == 3 && nodes.iter().all(|node| condition(node, "Ready") == Some("True"))
    });
    cluster.wait("the demo available", SOON, &["deployment", "demo"], |demo| {
        demo["status"]["availableReplicas"] == 3
    });
    let pods = cluster.ready_pods("app=demo");
    assert_eq!(pods.len(), 3, "{pods:?}");
}

fn up_twice_is_harmless(cluster: &Cluster) {
    let before = cluster.ready_pods("app=demo");
    let ran = cluster.keelson(&["up"], Duration::from_secs(180));
    assert!(ran.ok, "{}{}", ran.out, ran.err);
    assert_eq!(cluster.ready_pods("app=demo"), before, "a second up touched healthy pods");
}

fn kubectl_reads(cluster: &Cluster) {
    let nodes = cluster.kubectl(&["get", "nodes", "-o", "wide"]);
    for (name, address) in NODES {
        assert!(nodes.contains(name) && nodes.contains(address), "{nodes}");
    }
    assert!(cluster.kubectl(&["get", "pods", "-A", "-o", "wide"]).contains("demo-"));
    assert!(cluster.kubectl(&["get", "all"]).contains("deployment.apps/demo"));
    let described = cluster.kubectl(&["describe", "deployment", "demo"]);
    assert!(described.contains("RollingUpdate") && described.contains("Events:"), "{described}");
    assert!(cluster.kubectl(&["describe", "nodes"]).contains("Allocatable:"));
    assert!(cluster.kubectl(&["get", "events"]).contains("Scheduled"));
    assert!(cluster.kubectl(&["api-resources"]).contains("deployments"));
    assert!(cluster.kubectl(&["version"]).contains("v1.36.2"));
    assert!(cluster.kubectl(&["explain", "deployment.spec.replicas"]).contains("replicas"));
    assert!(cluster.kubectl(&["auth", "can-i", "create", "pods"]).contains("yes"));
    assert!(cluster.kubectl(&["auth", "whoami"]).contains("kubernetes-admin"));
    assert!(cluster.kubectl(&["get", "--raw", "/readyz?verbose"]).contains("readyz check passed"));
    assert!(cluster.kubectl(&["get", "--raw", "/metrics"]).contains("apiserver_request_total"));
}

fn kubectl_writes(cluster: &Cluster) {
    let applied =
        cluster.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: green}\n");
    assert!(applied.contains("configmap/settings created"), "{applied}");
    let applied =
        cluster.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: blue}\n");
    assert!(applied.contains("configured"), "{applied}");
    assert_eq!(cluster.get(&["configmap", "settings"])["data"]["colour"], "blue");
    let unchanged =
        cluster.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: blue}\n");
    assert!(unchanged.contains("unchanged"), "{unchanged}");
    cluster.kubectl(&["label", "configmap", "settings", "tier=test"]);
    cluster.kubectl(&["annotate", "configmap", "settings", "note=kept"]);
    cluster.kubectl(&[
        "patch",
        "configmap",
        "settings",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/data/size","value":"L"}]"#,
    ]);
    cluster.kubectl(&[
        "patch",
        "configmap",
        "settings",
        "--type=merge",
        "-p",
        r#"{"data":{"shape":"round"}}"#,
    ]);
    let settings = cluster.get(&["configmap", "settings", "--show-managed-fields"]);
    for (key, value) in [("colour", "blue"), ("size", "L"), ("shape", "round")] {
        assert_eq!(settings["data"][key], value, "{settings}");
    }
    assert_eq!(settings["metadata"]["labels"]["tier"], "test");
    assert!(
        settings["metadata"]["managedFields"].as_array().is_some_and(|managers| managers.len() >= 2),
        "{settings}"
    );
    cluster.kubectl(&["scale", "deployment", "demo", "--replicas=5"]);
    cluster.wait("five replicas", SOON, &["deployment", "demo"], |demo| {
        demo["status"]["availableReplicas"] == 5
    });
    cluster.kubectl(&["scale", "deployment", "demo", "--replicas=3"]);
    cluster.wait("three replicas", SOON, &["deployment", "demo"], |demo| demo["status"]["replicas"] == 3);
    cluster.kubectl(&["delete", "configmap", "settings"]);
    assert!(!cluster.try_kubectl(&["get", "configmap", "settings"]).ok);
    cluster.kubectl(&["create", "namespace", "short-lived"]);
    cluster.wait("a service account", SOON, &["serviceaccount", "default", "-n", "short-lived"], |_| true);
    cluster.kubectl(&["create", "configmap", "inside", "-n", "short-lived", "--from-literal=a=b"]);
    cluster.kubectl(&["delete", "namespace", "short-lived", "--timeout=60s"]);
    assert!(!cluster.try_kubectl(&["get", "namespace", "short-lived"]).ok);
}

/// Two managers share an object; a third that disagrees is told with whom, and may insist.
fn server_side_apply(cluster: &Cluster) {
    let path = cluster.folder().join("shared.yaml");
    let file = path.to_str().expect("UTF-8 path");
    let apply = |manager: &str, data: &str, force: &str| {
        let manifest =
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: shared}}\ndata: {{{data}}}\n");
        std::fs::write(&path, manifest).expect("a manifest can be written");
        let manager = format!("--field-manager={manager}");
        cluster.try_kubectl(&["apply", "--server-side", &manager, force, "-f", file])
    };
    assert!(apply("first", "a: one", "--force-conflicts=false").ok);
    assert!(apply("second", "b: two", "--force-conflicts=false").ok);
    let refused = apply("third", "a: three", "--force-conflicts=false");
    assert!(!refused.ok && refused.err.contains("conflict with \"first\": .data.a"), "{}", refused.err);
    assert!(apply("third", "a: three", "--force-conflicts").ok);
    let shared = cluster.get(&["configmap", "shared"]);
    assert_eq!((&shared["data"]["a"], &shared["data"]["b"]), (&"three".into(), &"two".into()), "{shared}");
    cluster.kubectl(&["delete", "configmap", "shared"]);
}

fn kubectl_streams(cluster: &Cluster) {
    let pod = &cluster.ready_pods("app=demo")[0].0;
    let said = cluster.kubectl(&["exec", pod, "--", "sh", "-c", "echo out; hostname"]);
    assert!(said.contains("out") && said.contains(pod.as_str()), "{said}");
    let failed = cluster.try_kubectl(&["exec", pod, "--", "sh", "-c", "exit 7"]);
    assert!(!failed.ok && failed.err.contains("exit code 7"), "{}{}", failed.out, failed.err);
    cluster.kubectl(&["logs", pod, "--tail=5"]);
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a free port")
        .port();
    let mut forward = Command::new("kubectl")
        .env("KUBECONFIG", cluster.kubeconfig())
        .args(["port-forward", &format!("pod/{pod}"), &format!("{port}:8080")])
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("kubectl starts");
    let body = eventually("port-forward answers", SOON, || fetch(&format!("http://127.0.0.1:{port}/")));
    let _ended = forward.kill();
    let _reaped = forward.wait();
    assert!(body.contains(pod.as_str()), "{body}");
}

/// The body of a page, or why not.
fn fetch(url: &str) -> Result<String, String> {
    let ran = call("curl", &["-sS", "--max-time", "5", url]);
    if ran.ok { Ok(ran.out) } else { Err(ran.err) }
}

fn rollout_and_undo(cluster: &Cluster) {
    cluster.kubectl(&["set", "env", "deployment/demo", "COLOUR=red"]);
    cluster.kubectl(&["rollout", "status", "deployment/demo", "--timeout=55s"]);
    let history = cluster.kubectl(&["rollout", "history", "deployment/demo"]);
    assert!(history.contains('2'), "{history}");
    cluster.kubectl(&["rollout", "undo", "deployment/demo"]);
    cluster.kubectl(&["rollout", "status", "deployment/demo", "--timeout=55s"]);
    let demo = cluster.get(&["deployment", "demo"]);
    assert!(!demo["spec"]["template"].to_string().contains("COLOUR"), "{demo}");
    cluster.wait("old pods gone", SOON, &["pods", "-l", "app=demo"], |pods| {
        pods["items"].as_array().is_some_and(|pods| pods.len() == 3 && pods.iter().all(is_ready))
    });
}

fn services_answer_on_every_node(cluster: &Cluster) {
    let pods: Vec<String> = cluster.ready_pods("app=demo").into_iter().map(|(pod, _)| pod).collect();
    for (_, address) in NODES {
        let mut unseen = pods.clone();
        eventually(&format!("the NodePort of {address} reaches every pod"), SOON, || {
            let body = fetch(&format!("http://{address}:30080/"))?;
            unseen.retain(|pod| !body.contains(pod.as_str()));
            if unseen.is_empty() { Ok(()) } else { Err(format!("not yet seen: {unseen:?}")) }
        });
    }
}

fn names_resolve_in_pods(cluster: &Cluster) {
    for (pod, _) in cluster.ready_pods("app=demo") {
        eventually("a pod reaches the Service by name", SOON, || {
            let ran = cluster.try_kubectl(&[
                "exec",
                &pod,
                "--",
                "wget",
                "-qO-",
                "http://demo.default.svc.cluster.local/",
            ]);
            if ran.ok && ran.out.contains("demo-") { Ok(()) } else { Err(format!("{}{}", ran.out, ran.err)) }
        });
        let short = cluster.kubectl(&["exec", &pod, "--", "wget", "-qO-", "http://demo/"]);
        assert!(short.contains("demo-"), "{short}");
    }
}

fn volumes_show_configuration(cluster: &Cluster) {
    cluster.apply(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: shown}
data: {greeting: hello}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {word: sesame}
---
apiVersion: v1
kind: Pod
metadata: {name: reader, labels: {role: reader}}
spec:
  initContainers:
  - {name: first, image: "localhost/demo:1", command: [sh, -c, "echo prepared > /scratch/file"], volumeMounts: [{name: scratch, mountPath: /scratch}]}
  containers:
  - name: main
    image: localhost/demo:1
    command: [sh, -c, "cat /scratch/file /config/greeting /secret/word; echo; echo $GREETING $NAME; ls /var/run/secrets/kubernetes.io/serviceaccount; exec sleep 3600"]
    env:
    - {name: GREETING, valueFrom: {configMapKeyRef: {name: shown, key: greeting}}}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
    volumeMounts: [{name: scratch, mountPath: /scratch}, {name: config, mountPath: /config}, {name: secret, mountPath: /secret}]
  volumes:
  - {name: scratch, emptyDir: {}}
  - {name: config, configMap: {name: shown}}
  - {name: secret, secret: {secretName: hidden}}
"#,
    );
    cluster.wait("the reader Ready", SOON, &["pod", "reader"], is_ready);
    let log = cluster.kubectl(&["logs", "reader"]);
    for word in ["prepared", "hello", "sesame", "reader", "token", "ca.crt"] {
        assert!(log.contains(word), "no {word:?} in {log}");
    }
    assert_eq!(cluster.get(&["pod", "reader"])["status"]["qosClass"], "Burstable");
    cluster.kubectl(&["delete", "pod", "reader", "--grace-period=1", "--timeout=50s"]);
    cluster.kubectl(&["delete", "configmap/shown", "secret/hidden"]);
}

const WRITER: &str = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  containers:
  - name: main
    image: localhost/demo:1
    command: [sh, -c, "date >> /data/starts; wc -l < /data/starts; exec sleep 3600"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
"#;

fn claim_is_provisioned_and_survives_its_pod(cluster: &Cluster) {
    for expected in ["1", "2"] {
        cluster.apply(WRITER);
        cluster.wait("the writer Ready", SOON, &["pod", "writer"], is_ready);
        assert_eq!(cluster.get(&["pvc", "data"])["status"]["phase"], "Bound");
        assert_eq!(cluster.kubectl(&["logs", "writer"]).trim(), expected);
        cluster.kubectl(&["delete", "pod", "writer", "--grace-period=1", "--timeout=50s"]);
    }
    cluster.kubectl(&["delete", "pvc", "data", "--timeout=50s"]);
}

fn load_balancer_address_answers(cluster: &Cluster) {
    let service = cluster.wait("an address for demo-lb", SOON, &["service", "demo-lb"], |service| {
        service["status"]["loadBalancer"]["ingress"][0]["ip"].is_string()
    });
    let address =
        service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().unwrap_or_default().to_string();
    let port = service["spec"]["ports"][0]["port"].as_u64().unwrap_or_default();
    let body = eventually("the address answers", SOON, || fetch(&format!("http://{address}:{port}/")));
    assert!(body.contains("demo-"), "{body}");
}

fn bad_requests_are_refused_clearly(cluster: &Cluster) {
    let refused = |manifest: &str, words: &[&str]| {
        let path = cluster.folder().join("bad.yaml");
        std::fs::write(&path, manifest).expect("a manifest can be written");
        let ran = cluster.try_kubectl(&["apply", "-f", path.to_str().expect("UTF-8 path")]);
        assert!(!ran.ok, "accepted: {manifest}");
        for word in words {
            assert!(ran.err.contains(word), "no {word:?} in {}", ran.err);
        }
    };
    refused("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Bad_Name}\n", &["Invalid value", "RFC 1123"]);
    refused("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndatum: {a: b}\n", &["unknown field"]);
    refused(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {replicas: 1}\n",
        &["spec.selector"],
    );
    let large = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: large}}\ndata: {{a: {}}}\n",
        "x".repeat(1_100_000)
    );
    let path = cluster.folder().join("large.yaml");
    std::fs::write(&path, large).expect("a manifest can be written");
    let ran = cluster.try_kubectl(&["create", "-f", path.to_str().expect("UTF-8 path")]);
    assert!(!ran.ok && ran.err.contains("Too long"), "{}{}", ran.out, ran.err);
    let ran = call("curl", &["-sk", "https://172.30.0.11:6443/api/v1/pods"]);
    assert!(ran.out.contains("Unauthorized") || ran.out.contains("Forbidden"), "{}", ran.out);
}

fn autoscaler_scales_up_and_down(cluster: &Cluster) {
    cluster.apply(
        r#"
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: demo}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: demo}
  minReplicas: 3
  maxReplicas: 4
  behavior: {scaleDown: {stabilizationWindowSeconds: 0}}
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]
"#,
    );
    let mut burners: Vec<_> = cluster
        .ready_pods("app=demo")
        .iter()
        .map(|(pod, _)| {
            Command::new("kubectl")
                .env("KUBECONFIG", cluster.kubeconfig())
                .args(["exec", pod, "--", "sh", "-c", "timeout 60 sh -c 'while :; do :; done'"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("kubectl starts")
        })
        .collect();
    cluster.wait("the autoscaler scaled up", LATER, &["deployment", "demo"], |demo| {
        demo["spec"]["replicas"] == 4
    });
    let top = eventually("kubectl top", SOON, || {
        let ran = cluster.try_kubectl(&["top", "pods"]);
        if ran.ok { Ok(ran.out) } else { Err(ran.err) }
    });
    assert!(top.contains("demo-"), "{top}");
    for burner in &mut burners {
        let _reaped = burner.wait();
    }
    cluster.wait("the autoscaler scaled down", LATER, &["deployment", "demo"], |demo| {
        demo["spec"]["replicas"] == 3
    });
    cluster.kubectl(&["delete", "hpa", "demo"]);
    cluster.wait("three pods", SOON, &["pods", "-l", "app=demo"], |pods| {
        pods["items"].as_array().is_some_and(|pods| pods.len() == 3 && pods.iter().all(is_ready))
    });
}

/// Restart counts of the demo's pods, by name.
fn restarts(cluster: &Cluster) -> Vec<(String, u64)> {
    let pods = cluster.get(&["pods", "-l", "app=demo"]);
    let mut counts: Vec<(String, u64)> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pod| {
            let count = pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(u64::MAX);
            (pod["metadata"]["name"].as_str().unwrap_or_default().to_string(), count)
        })
        .collect();
    counts.sort();
    counts
}

fn runtime_restart_leaves_pods_alone(cluster: &Cluster) {
    let before = restarts(cluster);
    cluster.kill("n1", "agent");
    cluster.kill("n1", "containerd");
    let ran = cluster.keelson(&["up"], Duration::from_secs(180));
    assert!(ran.ok, "{}{}", ran.out, ran.err);
    cluster.wait("n1 Ready", SOON, &["node", "n1"], |node| condition(node, "Ready") == Some("True"));
    assert_eq!(restarts(cluster), before);
}

fn leader_kill_loses_nothing(cluster: &Cluster) {
    for number in 0..20 {
        cluster.kubectl(&["create", "configmap", &format!("kept-{number}"), "--from-literal=a=b"]);
    }
    let leader = cluster.status()["leader"].as_str().expect("status names the leader").to_string();
    cluster.kill(&leader, "server");
    let started = Instant::now();
    eventually("a write after the leader's death", SOON, || {
        let ran = cluster.try_kubectl(&[
            "create",
            "configmap",
            "after-kill",
            "--from-literal=a=b",
            "--request-timeout=5s",
        ]);
        if ran.ok || ran.err.contains("AlreadyExists") || ran.err.contains("already exists") {
            Ok(())
        } else {
            Err(ran.err)
        }
    });
    println!(
        "first write after kill -9 of the leading server ({leader}): {:.1} s",
        started.elapsed().as_secs_f32()
    );
    for number in 0..20 {
        cluster.kubectl(&["get", "configmap", &format!("kept-{number}")]);
    }
    let ran = cluster.keelson(&["up"], Duration::from_secs(180));
    assert!(ran.ok, "{}{}", ran.out, ran.err);
    for number in 0..20 {
        cluster.kubectl(&["delete", "configmap", &format!("kept-{number}")]);
    }
    cluster.kubectl(&["delete", "configmap", "after-kill"]);
    cluster.kubectl(&["scale", "deployment", "demo", "--replicas=4"]);
    cluster.wait("controllers act again", SOON, &["deployment", "demo"], |demo| {
        demo["status"]["availableReplicas"] == 4
    });
    cluster.kubectl(&["scale", "deployment", "demo", "--replicas=3"]);
    cluster.wait("three replicas", SOON, &["deployment", "demo"], |demo| demo["status"]["replicas"] == 3);
}

fn node_kill_moves_pods_and_node_returns(cluster: &Cluster) {
    for part in ["agent", "containerd", "server"] {
        cluster.kill("n3", part);
    }
    cluster
        .wait("n3 seen as lost", LATER, &["node", "n3"], |node| condition(node, "Ready") == Some("Unknown"));
    // The demo tolerates an unreachable node for a few seconds only (its manifest says so).
    cluster.wait("three ready pods elsewhere", LATER, &["pods", "-l", "app=demo"], |pods| {
        let ready = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pod| is_ready(pod) && pod["spec"]["nodeName"] != "n3");
        ready.count() == 3
    });
    let ran = cluster.keelson(&["up"], Duration::from_secs(240));
    assert!(ran.ok, "{}{}", ran.out, ran.err);
    cluster.wait("n3 back", SOON, &["node", "n3"], |node| condition(node, "Ready") == Some("True"));
    cluster.wait("three pods in all", SOON, &["pods", "-l", "app=demo"], |pods| {
        pods["items"].as_array().is_some_and(|pods| pods.len() == 3 && pods.iter().all(is_ready))
    });
}

fn down_leaves_nothing(cluster: Cluster) {
    let folder = cluster.folder().to_string_lossy().into_owned();
    let ran = cluster.keelson(&["down"], Duration::from_secs(120));
    assert!(ran.ok, "{}{}", ran.out, ran.err);
    let namespaces = call("ip", &["netns", "list"]).out;
    assert!(!namespaces.contains("kn-"), "{namespaces}");
    let processes = call("ps", &["-eo", "args"]).out;
    let left: Vec<&str> =
        processes.lines().filter(|line| line.contains(&folder) && !line.contains("ps -eo")).collect();
    assert!(left.is_empty(), "{left:?}");
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts can be read");
    assert!(!mounts.contains(&folder), "{mounts}");
    for hierarchy in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup"] {
        for (node, _) in NODES {
            let left = std::path::Path::new(hierarchy).join(format!("keelson-{node}"));
            assert!(!left.exists(), "{} was left behind", left.display());
        }
    }
}
