//! What `up` puts into a new cluster: a demo workload, and the console's account.

use serde_json::{Value, json};

use super::image::DEMO;

/// The demo: three web servers behind a NodePort and a load-balancer address.
pub fn demo() -> Vec<Value> {
    let seconds =
        |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
    let service = |name: &str, kind: &str, port: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": "demo"}},
            "spec": {"type": kind, "selector": {"app": "demo"}, "ports": [port]},
        })
    };
    vec![
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "demo", "namespace": "default", "labels": {"app": "demo"}},
            "spec": {
                "replicas": 3, "selector": {"matchLabels": {"app": "demo"}},
                "template": {
                    "metadata": {"labels": {"app": "demo"}},
                    "spec": {
                        "terminationGracePeriodSeconds": 5,
                        // A lost node's pods are replaced after seconds, not after upstream's five minutes.
                        "tolerations": [seconds("node.kubernetes.io/not-ready"), seconds("node.kubernetes.io/unreachable")],
                        "topologySpreadConstraints": [{
                            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                            "labelSelector": {"matchLabels": {"app": "demo"}},
                        }],
                        "containers": [{
                            "name": "web", "image": DEMO, "ports": [{"name": "http", "containerPort": 8080}],
                            "resources": {"requests": {"cpu": "100m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
                            "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 2},
                            "livenessProbe": {"tcpSocket": {"port": "http"}, "initialDelaySeconds": 5, "periodSeconds": 10},
                        }],
                    },
                },
            },
        }),
        service(
            "demo",
            "NodePort",
            json!({"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080}),
        ),
        service("demo-lb", "LoadBalancer", json!({"name": "http", "port": 80, "targetPort": "http"})),
    ]
}

/// The console's account: it may look at everything but Secrets.
pub fn console() -> Vec<Value> {
    let read = json!(["get", "list", "watch"]);
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "console", "namespace": "kube-system"}}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "keelson:console"},
            "rules": [
                {"apiGroups": [""], "verbs": read, "resources": ["nodes", "pods", "pods/log", "services", "endpoints",
                    "events", "namespaces", "configmaps", "persistentvolumeclaims", "persistentvolumes", "serviceaccounts"]},
                {"apiGroups": ["apps", "batch", "autoscaling", "discovery.k8s.io", "events.k8s.io", "metrics.k8s.io",
                    "coordination.k8s.io", "networking.k8s.io", "storage.k8s.io", "policy"], "verbs": read, "resources": ["*"]},
                {"nonResourceURLs": ["/keelson/v1/store/members"], "verbs": ["get"]},
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "keelson:console"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "keelson:console"},
            "subjects": [{"kind": "ServiceAccount", "name": "console", "namespace": "kube-system"}],
        }),
    ]
}
